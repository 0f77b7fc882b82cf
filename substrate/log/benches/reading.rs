//! How fast a long log is read, and started: `cargo bench -p tabbify-log`. Takes the number of events
//! as argument; 1,000,000 of 256 bytes otherwise. The peers are measured by `cargo xtask bench log`.

use std::error::Error;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use serde_json::value::RawValue;
use tabbify_api::log::{Append, EventLog, Filter, LogScope};
use tabbify_log::{Log, Options};
use tabbify_process::SystemClock;
use tabbify_types::{EventId, NewEvent, Position, Segment, SegmentGlob};
use tokio::time::Instant;

type Wrong = Box<dyn Error + Send + Sync>;

const SEGMENT: &str = "tenant_bench.apps";
/// Events of one append, and of one key.
const BATCH: u64 = 64;
const HISTORY: u64 = 200;

fn client(log: &Log) -> Arc<dyn EventLog> {
    let all = vec![SegmentGlob::all()];
    log.client(LogScope {
        actor: "bench".to_owned(),
        write: all.clone(),
        read: all,
    })
}

fn open(dir: &Path) -> Result<Log, Wrong> {
    Ok(Log::open(dir, Options::new(Arc::new(SystemClock)))?)
}

fn event(n: u64, keys: u64) -> Result<NewEvent, Wrong> {
    Ok(NewEvent {
        id: EventId::mint(),
        segment: SEGMENT.parse()?,
        key: format!("key-{}", n % keys),
        kind: "x.measured".to_owned(),
        version: 1,
        cause: None,
        trace: None,
        data: RawValue::from_string(format!("{{\"n\":{n:010},\"x\":\"{}\"}}", "x".repeat(233)))?,
    })
}

async fn fill(log: &Log, events: u64) -> Result<(), Wrong> {
    let (client, keys) = (client(log), (events / HISTORY).max(1));
    let mut next = 0;
    while next < events {
        let upto = (next + BATCH).min(events);
        let batch: Result<Vec<_>, Wrong> = (next..upto).map(|n| event(n, keys)).collect();
        client.append(Append::of(batch?)).await?;
        next = upto;
    }
    Ok(())
}

fn resident() -> Result<u64, Wrong> {
    let text = std::fs::read_to_string("/proc/self/statm")?;
    let pages: u64 = text.split(' ').nth(1).ok_or("a number of pages")?.parse()?;
    Ok(pages * 4096 / 1_000_000)
}

#[expect(clippy::print_stdout, reason = "a benchmark prints")]
#[tokio::main]
async fn main() -> Result<(), Wrong> {
    let number = std::env::args().find_map(|arg| arg.parse().ok());
    let events: u64 = number.unwrap_or(1_000_000);
    let dir = tempfile::tempdir()?;
    let log = open(dir.path())?;
    let start = Instant::now();
    fill(&log, events).await?;
    let rate = |start: Instant| events as f64 / start.elapsed().as_secs_f64() / 1e6;
    println!(
        "append, one writer, {BATCH} at once   {:>8.3} M events/s",
        rate(start)
    );
    println!("resident after it                  {:>8} MB", resident()?);
    log.close().await;
    drop(log);

    // Twice: what was closed last is sealed by the first.
    drop(open(dir.path())?);
    let start = Instant::now();
    let log = open(dir.path())?;
    println!(
        "start                              {:>8.1} ms",
        start.elapsed().as_secs_f64() * 1e3
    );

    for _ in 0..3 {
        let (start, mut bytes) = (Instant::now(), 0);
        log.replay(Position(0), log.head(), |event| {
            bytes += event.data.len();
            ControlFlow::Continue(())
        })?;
        println!(
            "replay, every byte verified        {:>8.3} M events/s of {} bytes",
            rate(start),
            bytes as u64 / events
        );
    }
    let client = client(&log);
    let (start, mut after) = (Instant::now(), Position(0));
    while after < client.head() {
        after = client
            .read(Filter::default(), after, 10_000)
            .await?
            .next_after;
    }
    println!(
        "read in pages of 10,000            {:>8.3} M events/s",
        rate(start)
    );

    let segment: Segment = SEGMENT.parse()?;
    let mut times = Vec::new();
    for n in 0..200 {
        let filter = Filter {
            key: Some(format!("key-{n}")),
            ..Filter::segments([(&segment).into()])
        };
        let start = Instant::now();
        let page = client.read(filter, Position(0), 10_000).await?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
        if page.events.len() as u64 != HISTORY.min(events) {
            return Err(format!("{} events of one key", page.events.len()).into());
        }
    }
    times.sort_by(f64::total_cmp);
    println!(
        "one key's {HISTORY} events            p50 {:>8.3} ms, p99 {:.3} ms",
        times[100], times[198]
    );
    println!("resident at the end                {:>8} MB", resident()?);
    log.close().await;
    Ok(())
}
