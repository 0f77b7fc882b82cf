//! A large log: killed while it is written, started again; its memory, and one key's history in it.

use std::path::Path;
use std::time::Duration;

use tabbify_api::log::{Append, EventLog, Filter};
use tabbify_types::{Position, SegmentGlob};
use tokio::time::Instant;

use crate::ours::{EVENTS_OF_KEY, Ours, event, key, own_process, segment};
use crate::rows::{Rows, Times};
use crate::{Arguments, process};

/// Keys whose history is read.
const KEYS: u64 = 100;

/// What a log of one length showed.
struct Shown {
    seconds: Vec<f64>,
    memory_mib: Vec<f64>,
}

pub(crate) async fn measure(arguments: &Arguments, rows: &mut Rows) -> anyhow::Result<()> {
    let few = (arguments.events / 10).max(1);
    let dir = tempfile::tempdir()?;
    let small = killed_and_started(arguments, dir.path(), few).await?;
    drop(dir);
    let dir = tempfile::tempdir()?;
    let filling = Instant::now();
    let large = killed_and_started(arguments, dir.path(), arguments.events).await?;
    rows.note(&format!(
        "{} events filled, killed and started {} times in {:.0} s, pressure {}",
        arguments.events,
        large.seconds.len(),
        filling.elapsed().as_secs_f64(),
        process::pressure()
    ));
    for (count, shown) in [(few, &small), (arguments.events, &large)] {
        let metric = |what: &str| format!("{count} events after kill -9, {what}");
        let aim = (count == arguments.events).then_some("≤ 3 s");
        rows.alone(
            &metric("first append answered after"),
            "s",
            &shown.seconds,
            aim,
        );
        rows.alone(&metric("memory then"), "MiB", &shown.memory_mib, None);
    }
    one_key(dir.path(), arguments.events, rows).await
}

async fn killed_and_started(
    arguments: &Arguments,
    dir: &Path,
    count: u64,
) -> anyhow::Result<Shown> {
    let words = ["fill", &dir.to_string_lossy(), &count.to_string()];
    let (mut filling, said) = own_process(&words).await?;
    anyhow::ensure!(said == count.to_string(), "it says {said}");
    // It goes on writing.
    tokio::time::sleep(Duration::from_millis(200)).await;
    filling.kill();
    let mut shown = Shown {
        seconds: Vec::new(),
        memory_mib: Vec::new(),
    };
    for _ in 0..arguments.rounds {
        let began = Instant::now();
        let mut ours = Ours::start(dir).await?;
        let client = ours.client().await?;
        client.append(Append::of(vec![event(0, 1)?])).await?;
        shown.seconds.push(began.elapsed().as_secs_f64());
        shown
            .memory_mib
            .push(process::memory_mib(ours.running.id())?);
        ours.running.kill();
    }
    Ok(shown)
}

/// The whole history of one entity among all.
async fn one_key(dir: &Path, count: u64, rows: &mut Rows) -> anyhow::Result<()> {
    let ours = Ours::start(dir).await?;
    let client = ours.client().await?;
    let keys = (count / EVENTS_OF_KEY).max(1);
    let mut times = Times::default();
    for n in 0..KEYS {
        // Spread over all keys, none of them twice.
        let key = key(n * (keys / KEYS).max(1) + 1, keys);
        let one = Instant::now();
        let found = history(&client, key).await?;
        times.push(one.elapsed());
        anyhow::ensure!(found as u64 >= EVENTS_OF_KEY.min(count), "{found} events");
    }
    let metric =
        |what: &str| format!("one key's 200 events out of {count}, over the network, {what}");
    let (p50, p99) = (vec![times.micros(500)], vec![times.micros(990)]);
    rows.alone(&metric("p50"), "µs", &p50, Some("≤ 1 ms"));
    rows.alone(&metric("p99"), "µs", &p99, None);
    Ok(())
}

async fn history(client: &dyn EventLog, key: String) -> anyhow::Result<usize> {
    let filter = Filter {
        segments: vec![SegmentGlob::from(&segment())],
        key: Some(key),
        ..Filter::default()
    };
    let (mut after, mut found) = (Position(0), 0);
    loop {
        let page = client.read(filter.clone(), after, 1_000).await?;
        found += page.events.len();
        if page.next_after >= page.head || page.next_after <= after {
            return Ok(found);
        }
        after = page.next_after;
    }
}
