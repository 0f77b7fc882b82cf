//! Writes a log to keep for ever: every event of the catalog of this version, in each of its places,
//! in extents of a few KiB. Each release that writes something new makes its own, once:
//! `cargo run -p tabbify-testing --example fixture_log -- testing/fixtures/log-v4`.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use serde_json::value::RawValue;
use tabbify_api::log::{Append, LogScope};
use tabbify_log::{Log, Options};
use tabbify_process::SystemClock;
use tabbify_testing::catalog;
use tabbify_types::event::About;
use tabbify_types::{Event, EventId, NewEvent, Position, SegmentGlob};

/// Events of one append, over and over: frames of one event and of several.
const BATCHES: [usize; 4] = [1, 2, 5, 3];

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let dir = std::env::args_os()
        .nth(1)
        .context("give a folder to make")?;
    let dir = Path::new(&dir);
    ensure!(
        !dir.exists(),
        "{} is there; a fixture never changes",
        dir.display()
    );
    let options = Options::new(Arc::new(SystemClock)).extent_lens(4 * 1024, 16 * 1024);
    let log = Log::open(dir, options)?;
    let mut events = events()?.into_iter().peekable();
    for len in BATCHES.into_iter().cycle() {
        if events.peek().is_none() {
            break;
        }
        let batch: Vec<NewEvent> = events.by_ref().take(len).collect();
        let all = vec![SegmentGlob::all()];
        let scope = LogScope {
            actor: format!("service:fixture-{len}"),
            write: all.clone(),
            read: all,
        };
        log.client(scope).append(Append::of(batch)).await?;
    }
    log.close().await;
    // The extents are the log; the others are the opener's.
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path
            .extension()
            .is_none_or(|extension| extension != "extent")
        {
            std::fs::remove_file(path)?;
        }
    }
    Ok(())
}

fn events() -> anyhow::Result<Vec<NewEvent>> {
    let mut all = Vec::new();
    for about in Event::CATALOG {
        let data = catalog::golden(about)?;
        for home in about.homes {
            let mut event = event(about, home.segment, &data)?;
            // Some follow from an earlier one, and some from a request.
            if let Some(cause) = (all.len() as u64).checked_sub(5).filter(|cause| *cause > 0) {
                event = event.caused_by(Position(cause));
                event.trace = cause
                    .is_multiple_of(2)
                    .then(|| "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".to_owned());
            }
            all.push(event);
        }
    }
    // An app's own type, and a type of a release that does not exist yet.
    for (kind, version) in [("x.order_placed", 1), ("thing_of_a_later_release", 3)] {
        all.push(NewEvent {
            id: EventId::mint(),
            segment: "tenant_main.chat".parse()?,
            key: "general".to_owned(),
            kind: kind.to_owned(),
            version,
            cause: None,
            trace: None,
            data: RawValue::from_string(r#"{"total": "12,50 €", "lines":[1,2]}"#.to_owned())?,
        });
    }
    Ok(all)
}

fn event(about: &About, segment: &str, data: &str) -> anyhow::Result<NewEvent> {
    let segment = segment
        .replace("tenant_*", "tenant_main")
        .replace("hosts.*", "hosts.box1");
    Ok(NewEvent {
        id: EventId::mint(),
        segment: segment.parse()?,
        key: catalog::key(about, &serde_json::from_str(data)?)?,
        kind: about.kind.to_owned(),
        version: about.version,
        cause: None,
        trace: None,
        data: RawValue::from_string(data.to_owned())?,
    })
}
