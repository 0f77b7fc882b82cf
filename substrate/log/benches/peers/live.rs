//! Live delivery: from the moment the writer has its answer to the moment a subscriber has the event.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tabbify_api::log::{Append, Delivery, EventLog as _, Filter};
use tabbify_types::Position;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

use crate::ours::{Ours, event};
use crate::rows::{Rows, Times};
use crate::{Arguments, process};

const PER_SECOND: u64 = 1_000;
/// Events whose delivery is not counted: connections come to be with them.
const FIRST: u64 = 100;

/// When each event was acknowledged, in nanoseconds from the beginning; 0 is not yet.
type Acknowledged = Arc<Vec<AtomicU64>>;

pub(crate) async fn measure(arguments: &Arguments, rows: &mut Rows) -> anyhow::Result<()> {
    for subscribers in [1, 10, 100] {
        let (mut p50, mut p99) = (Vec::new(), Vec::new());
        for _ in 0..arguments.rounds {
            let count = FIRST + arguments.seconds * PER_SECOND;
            let mut times = round(subscribers, count).await?;
            p50.push(times.micros(500));
            p99.push(times.micros(990));
        }
        rows.note(&format!("live, pressure {}", process::pressure()));
        let metric = |what: &str| {
            format!("live delivery at {PER_SECOND} events/s, {subscribers} subscribers, {what}")
        };
        rows.alone(&metric("p50"), "µs", &p50, None);
        rows.alone(&metric("p99"), "µs", &p99, None);
    }
    Ok(())
}

async fn round(subscribers: usize, count: u64) -> anyhow::Result<Times> {
    let dir = tempfile::tempdir()?;
    let ours = Ours::start(dir.path()).await?;
    let (reader, writer) = (ours.client().await?, ours.client().await?);
    let began = Instant::now();
    let acknowledged: Acknowledged = Arc::new((0..=count).map(|_| AtomicU64::new(0)).collect());
    let mut reading = JoinSet::new();
    for _ in 0..subscribers {
        let mut subscription = reader.subscribe(Filter::default(), Position(0))?;
        reading.spawn(async move {
            let mut received = Vec::new();
            loop {
                if let Delivery::Event(event) = subscription.next().await? {
                    received.push((event.position, began.elapsed()));
                    if event.position.get() == count {
                        return anyhow::Ok(received);
                    }
                }
            }
        });
    }
    write(&writer, count, began, &acknowledged).await?;
    let mut times = Times::default();
    while let Some(done) = reading.join_next().await {
        let received = done??;
        anyhow::ensure!(received.len() as u64 == count, "a subscriber missed events");
        for (position, at) in received {
            if position.get() > FIRST {
                let slot = &acknowledged[usize::try_from(position.get())?];
                let answered = Duration::from_nanos(slot.load(Ordering::Acquire));
                // A subscriber may have it before the writer has its answer.
                times.push(at.saturating_sub(answered));
            }
        }
    }
    Ok(times)
}

/// Appends at an even pace, whatever each append takes.
async fn write(
    writer: &tabbify_log::RemoteLog,
    count: u64,
    began: Instant,
    acknowledged: &Acknowledged,
) -> anyhow::Result<()> {
    let mut pace = tokio::time::interval(Duration::from_nanos(1_000_000_000 / PER_SECOND));
    pace.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut writing = JoinSet::new();
    for n in 0..count {
        pace.tick().await;
        let (writer, acknowledged) = (writer.clone(), Arc::clone(acknowledged));
        let batch = Append::of(vec![event(n, 1_000)?]);
        writing.spawn(async move {
            let position = writer.append(batch).await?.first;
            let at = u64::try_from(began.elapsed().as_nanos())?;
            acknowledged[usize::try_from(position.get())?].store(at, Ordering::Release);
            anyhow::Ok(())
        });
    }
    while let Some(done) = writing.join_next().await {
        done??;
    }
    Ok(())
}
