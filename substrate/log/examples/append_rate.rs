//! Appends per second, one event of 256 bytes each, answered before the next: with 1 writer and
//! with 64, beside the disk's own `fdatasync`. A measurement to look at, not a test.

use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::Duration;

use serde_json::value::RawValue;
use tabbify_api::log::{Append, EventLog, LogScope};
use tabbify_log::{Log, Options};
use tabbify_process::SystemClock;
use tabbify_types::{EventId, NewEvent, SegmentGlob};
use tokio::task::JoinSet;
use tokio::time::Instant;

type Wrong = Box<dyn std::error::Error + Send + Sync>;

const SPAN: Duration = Duration::from_secs(2);

#[tokio::main]
#[expect(
    clippy::print_stdout,
    reason = "an example that prints what it measures"
)]
async fn main() -> Result<(), Wrong> {
    let dir = tempfile::tempdir_in(std::env::current_dir()?)?;
    let floor = disk(&dir.path().join("disk"))?;
    println!("disk: 512 bytes and fdatasync, p50 {floor:?}");
    for writers in [1, 64] {
        let log = Log::open(
            &dir.path().join(writers.to_string()),
            Options::new(Arc::new(SystemClock)),
        )?;
        let all = vec![SegmentGlob::all()];
        let client = log.client(LogScope {
            actor: "rate".to_owned(),
            write: all.clone(),
            read: all,
        });
        let mut tasks: JoinSet<Result<Vec<Duration>, Wrong>> = JoinSet::new();
        for writer in 0..writers {
            tasks.spawn(write(Arc::clone(&client), writer));
        }
        let mut times = Vec::new();
        while let Some(done) = tasks.join_next().await {
            times.extend(done??);
        }
        times.sort_unstable();
        let (p50, p99) = (times[times.len() / 2], times[times.len() * 99 / 100]);
        let rate = times.len() as u64 / SPAN.as_secs();
        println!("{writers} writers: {rate} appends/s, p50 {p50:?}, p99 {p99:?}");
        log.close().await;
        let start = Instant::now();
        let verified = Log::verify(&dir.path().join(writers.to_string()))?;
        println!(
            "  {} events in {} frames verified in {:?}",
            verified.head,
            verified.frames,
            start.elapsed()
        );
    }
    Ok(())
}

/// Time of a durable write of one sector into written space.
fn disk(path: &std::path::Path) -> Result<Duration, Wrong> {
    let file = std::fs::File::create_new(path)?;
    file.write_all_at(&vec![0; 1 << 20], 0)?;
    file.sync_all()?;
    let mut times = Vec::new();
    for sector in 0..2000 {
        let start = Instant::now();
        file.write_all_at(&[1; 512], sector * 512)?;
        file.sync_data()?;
        times.push(start.elapsed());
    }
    times.sort_unstable();
    Ok(times[times.len() / 2])
}

async fn write(client: Arc<dyn EventLog>, writer: u32) -> Result<Vec<Duration>, Wrong> {
    let data = RawValue::from_string(format!("{{\"text\":\"{}\"}}", "x".repeat(245)))?;
    let (end, mut times) = (Instant::now() + SPAN, Vec::new());
    loop {
        let start = Instant::now();
        if start >= end {
            return Ok(times);
        }
        let event = NewEvent {
            id: EventId::mint(),
            segment: "tenant_main.apps".parse()?,
            key: format!("w{writer}"),
            kind: "thing_happened".to_owned(),
            version: 1,
            cause: None,
            trace: None,
            data: data.clone(),
        };
        client.append(Append::of(vec![event])).await?;
        times.push(start.elapsed());
    }
}
