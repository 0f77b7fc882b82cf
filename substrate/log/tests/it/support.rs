//! A small vocabulary for the stories in this binary.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::value::RawValue;
use tabbify_api::log::{Append, Delivery, EventLog, Filter, LogScope, ReadError, Subscribe};
use tabbify_log::{Log, Options};
use tabbify_process::SystemClock;
use tabbify_types::{EventId, NewEvent, Position, Recorded, Segment, SegmentGlob};

pub(crate) type Wrong = Box<dyn std::error::Error + Send + Sync>;
pub(crate) type Outcome = Result<(), Wrong>;

pub(crate) fn options() -> Options {
    Options::new(Arc::new(SystemClock))
}

/// A log that everybody may do everything with, in extents as small as given.
pub(crate) fn open(dir: &Path, extent_len: u64) -> Result<(Log, Arc<dyn EventLog>), Wrong> {
    let log = Log::open(dir, options().extent_lens(extent_len, extent_len))?;
    let client = log.client(scope("test", &["**"], &["**"])?);
    Ok((log, client))
}

pub(crate) fn scope(actor: &str, write: &[&str], read: &[&str]) -> Result<LogScope, Wrong> {
    Ok(LogScope {
        actor: actor.to_owned(),
        write: globs(write)?,
        read: globs(read)?,
    })
}

pub(crate) fn globs(texts: &[&str]) -> Result<Vec<SegmentGlob>, Wrong> {
    texts
        .iter()
        .map(|text| text.parse().map_err(Into::into))
        .collect()
}

pub(crate) fn segment(text: &str) -> Segment {
    text.parse().expect("a literal segment of a test")
}

/// An event with a fresh id.
pub(crate) fn event(segment_text: &str, key: &str, data: &str) -> NewEvent {
    NewEvent {
        id: EventId::mint(),
        segment: segment(segment_text),
        key: key.to_owned(),
        kind: "thing_happened".to_owned(),
        version: 1,
        cause: None,
        trace: None,
        data: RawValue::from_string(data.to_owned()).expect("JSON of a test"),
    }
}

/// One event of about `len` bytes.
pub(crate) fn sized(len: usize) -> Append {
    let text = "x".repeat(len);
    Append::of(vec![event(
        "tenant_main.apps",
        "shop",
        &format!("{{\"text\":\"{text}\"}}"),
    )])
}

/// Everything there is to read, page by page.
pub(crate) async fn read_all(
    client: &dyn EventLog,
    filter: Filter,
    page: usize,
) -> Result<Vec<Arc<Recorded>>, Wrong> {
    let (mut after, mut all) = (Position(0), Vec::new());
    loop {
        let page = client.read(filter.clone(), after, page).await?;
        assert!(
            page.next_after > after || page.next_after >= page.head,
            "no progress at {after}"
        );
        all.extend(page.events);
        after = page.next_after;
        if after >= page.head {
            return Ok(all);
        }
    }
}

/// The next delivery, or a failed test instead of a hung one.
pub(crate) async fn next(subscription: &mut dyn Subscribe) -> Result<Delivery, Wrong> {
    let delivery = tokio::time::timeout(Duration::from_secs(20), subscription.next()).await?;
    Ok(delivery?)
}

/// Why there is no subscription: said at once, or over a network in its first delivery.
pub(crate) async fn refused_subscription(
    client: &dyn EventLog,
    filter: Filter,
    after: Position,
) -> Result<ReadError, Wrong> {
    match client.subscribe(filter, after) {
        Err(error) => Ok(error),
        Ok(mut subscription) => match subscription.next().await {
            Err(error) => Ok(error),
            Ok(delivery) => Err(format!("it delivers {delivery:?}").into()),
        },
    }
}

/// Whether the long versions are asked for: `cargo xtask test --long`.
pub(crate) fn long() -> bool {
    tabbify_process::env::read("TABBIFY_TEST_LENGTH").is_some_and(|length| length == "long")
}

/// The extents of a log, in order.
pub(crate) fn extents(dir: &Path) -> Result<Vec<PathBuf>, Wrong> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "extent")
        {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// A log on disk as it was at some moment: its extents without lock and spare.
pub(crate) fn copy_log(from: &Path, to: &Path) -> Outcome {
    for path in extents(from)? {
        std::fs::copy(&path, to.join(path.file_name().ok_or("a file")?))?;
    }
    Ok(())
}
