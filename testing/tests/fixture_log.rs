//! Logs of every release stay readable: `testing/fixtures/log-v*` open, verify, and say what they
//! said on the day that they were written. `testing/examples/fixture_log.rs` made them; none of the
//! numbers here ever changes.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use tabbify_api::log::{Filter, LogScope, PAGE_EVENTS_MAX};
use tabbify_log::{Log, Options};
use tabbify_process::SystemClock;
use tabbify_testing::catalog;
use tabbify_testing::platform::root;
use tabbify_types::{Digest, Event, Position, Recorded, SegmentGlob};

/// A fixture and what must come out of it.
struct Fixture {
    name: &'static str,
    head: u64,
    /// Of every event: position, segment, key, revision, id, type, version, data.
    digest: &'static str,
    /// Types of the catalog of its release.
    kinds: usize,
}

const FIXTURES: [Fixture; 4] = [
    Fixture {
        name: "log-v1",
        head: 90,
        digest: "d55fbd2d70b7dadb5a6839f9be08a3a31118f0c310af5d42ad5bb8c56ce9848d",
        kinds: 71,
    },
    Fixture {
        name: "log-v2",
        head: 94,
        digest: "8ab0c35b1d7adac7ee9b96b558a7225054172b65760c2d56053a25be381a192b",
        kinds: 75,
    },
    Fixture {
        name: "log-v3",
        head: 97,
        digest: "743fac97f23e5fa7bdb3d02d389fcfbdff9a4fd37289c4dc70cf9f4c805efec6",
        kinds: 78,
    },
    Fixture {
        name: "log-v4",
        head: 99,
        digest: "b8e3cc7de760f1f5853d4ec77e091406d3a3b71b11495ec558647b1e3620faf7",
        kinds: 80,
    },
];

async fn read(dir: &Path) -> anyhow::Result<Vec<Arc<Recorded>>> {
    let log = Log::open(dir, Options::new(Arc::new(SystemClock)))?;
    let client = log.client(LogScope {
        actor: "test".to_owned(),
        write: Vec::new(),
        read: vec![SegmentGlob::all()],
    });
    let page = client
        .read(Filter::default(), Position(0), PAGE_EVENTS_MAX)
        .await?;
    log.close().await;
    anyhow::ensure!(page.next_after == page.head, "a fixture fits one page");
    Ok(page.events)
}

fn digest(events: &[Arc<Recorded>]) -> anyhow::Result<Digest> {
    let mut text = String::new();
    for event in events {
        let (data, version) = (event.data.get(), event.version);
        writeln!(
            text,
            "{} {} {} {} {} {} {version} {data}",
            event.position, event.segment, event.key, event.rev, event.id, event.kind,
        )?;
    }
    Ok(Digest::of(text.as_bytes()))
}

async fn check(fixture: &Fixture) -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    catalog::copy_log(
        &root().join("testing/fixtures").join(fixture.name),
        dir.path(),
    )?;
    let verified = Log::verify(dir.path())?;
    assert_eq!(verified.head, Position(fixture.head), "{}", fixture.name);
    assert!(
        verified.torn.is_none() && verified.extents > 2,
        "{verified:?}"
    );

    let events = read(dir.path()).await?;
    assert_eq!(events.len() as u64, fixture.head);
    assert_eq!(
        digest(&events)?.to_string(),
        fixture.digest,
        "{}",
        fixture.name
    );
    let mut kinds = BTreeSet::new();
    for event in &events {
        let shown = || format!("{} at position {}", event.kind, event.position);
        let decoded = event.event().with_context(shown)?;
        let known = Event::KINDS.contains(&event.kind.as_str());
        assert_eq!(decoded.is_some(), known, "{}", shown());
        if let Some(decoded) = decoded {
            kinds.insert(decoded.kind());
        }
    }
    assert_eq!(kinds.len(), fixture.kinds, "types that are read");
    // Reading has changed nothing.
    assert_eq!(Log::verify(dir.path())?, verified);
    Ok(())
}

#[tokio::test]
async fn logs_of_every_release_say_what_they_said() -> anyhow::Result<()> {
    for fixture in &FIXTURES {
        check(fixture).await?;
    }
    let folders = std::fs::read_dir(root().join("testing/fixtures"))?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with("log-v"));
    let known: BTreeSet<String> = FIXTURES.iter().map(|it| it.name.to_owned()).collect();
    assert_eq!(folders.collect::<BTreeSet<_>>(), known);
    Ok(())
}

#[tokio::test]
async fn what_this_version_can_write_is_in_the_newest_fixture() -> anyhow::Result<()> {
    let newest = FIXTURES.last().context("there is one")?;
    let dir = tempfile::tempdir()?;
    catalog::copy_log(
        &root().join("testing/fixtures").join(newest.name),
        dir.path(),
    )?;
    let events = read(dir.path()).await?;
    for about in Event::CATALOG {
        for home in about.homes {
            let glob: SegmentGlob = home.segment.parse()?;
            let found = events.iter().any(|event| {
                let same = event.kind == about.kind && event.version == about.version;
                same && glob.matches(&event.segment)
            });
            assert!(
                found,
                "{} v{} of {} is in no fixture: write a new one (testing/examples/fixture_log.rs)",
                about.kind, about.version, home.segment
            );
        }
    }
    Ok(())
}
