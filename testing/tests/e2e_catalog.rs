//! What the roles really write is what the catalog says that they write: type, segment, key, writer.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use tabbify_api::log::{Filter, LogScope, PAGE_EVENTS_MAX};
use tabbify_log::{Log, Options};
use tabbify_process::SystemClock;
use tabbify_testing::{Platform, catalog};
use tabbify_types::event::Home;
use tabbify_types::{Position, Recorded, SegmentGlob};

/// What two pushes lead to, at least.
const EXPECTED: [&str; 24] = [
    "platform_initialized",
    "tenant_created",
    "issuer_key_rotated",
    "user_registered",
    "token_issued",
    "network_allocated",
    "peer_joined",
    "app_address_claimed",
    "lease_granted",
    "lease_released",
    "supervisor_joined",
    "app_name_claimed",
    "app_registered",
    "version_reserved",
    "version_published",
    "deploy_requested",
    "app_placed",
    "app_starting",
    "app_started",
    "app_healthy",
    "traffic_shifted",
    "instance_drained",
    "app_stopped",
    "deploy_finished",
];

/// Whether the actor of an event is the role: people and agents write through the node.
fn is_role(actor: &str, role: &str) -> bool {
    match role {
        "node" => actor.starts_with("user:") || actor.starts_with("agent:"),
        "supervisord" => actor.starts_with("host:"),
        role => actor == format!("service:{role}"),
    }
}

fn check(event: &Recorded) -> anyhow::Result<()> {
    let decoded = event.event()?.context("not in the catalog")?;
    let about = decoded.about();
    ensure!(event.version == about.version, "version {}", event.version);
    let stands = |home: &&Home| {
        let glob: Result<SegmentGlob, _> = home.segment.parse();
        glob.is_ok_and(|glob| glob.matches(&event.segment)) && is_role(&event.actor, home.writer)
    };
    ensure!(
        about.homes.iter().any(|home| stands(&home)),
        "in {} by {}; the catalog: {:?}",
        event.segment,
        event.actor,
        about.homes
    );
    let key = catalog::key(about, &serde_json::from_str(event.data.get())?)?;
    ensure!(
        key == event.key,
        "under {:?}; the catalog: {key:?}",
        event.key
    );
    Ok(())
}

async fn read(platform: &Platform) -> anyhow::Result<Vec<Arc<Recorded>>> {
    // Copied under the writer's hands, it may be anything; then it is refused, and copied again.
    let copy = tempfile::tempdir()?;
    catalog::copy_log(&platform.data().join("log"), copy.path())?;
    let log = Log::open(copy.path(), Options::new(Arc::new(SystemClock)))?;
    let client = log.client(LogScope {
        actor: "test".to_owned(),
        write: Vec::new(),
        read: vec![SegmentGlob::all()],
    });
    let page = client
        .read(Filter::default(), Position(0), PAGE_EVENTS_MAX)
        .await?;
    log.close().await;
    Ok(page.events)
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_write_what_the_catalog_says() -> anyhow::Result<()> {
    let mut platform = Platform::start().await?;
    let folder = platform.copy_app("examples/hello-wasm", "hello-wasm")?;
    platform.succeed(&folder, &["push"]).await?;
    platform.succeed(&folder, &["push"]).await?;
    // The first version's instance ends after the push has answered.
    let mut events = Vec::new();
    tabbify_testing::wait::until("the first instance has ended", async || {
        events = read(&platform).await.ok()?;
        let ended = events.iter().any(|event| event.kind == "lease_released");
        ended.then_some(())
    })
    .await?;
    platform.kill().await?;

    for event in &events {
        let shown = || format!("{} at position {}", event.kind, event.position);
        check(event).with_context(shown)?;
    }
    let written: BTreeSet<&str> = events.iter().map(|event| event.kind.as_str()).collect();
    let missing: Vec<&&str> = EXPECTED
        .iter()
        .filter(|kind| !written.contains(**kind))
        .collect();
    ensure!(missing.is_empty(), "never written: {missing:?}");
    Ok(())
}
