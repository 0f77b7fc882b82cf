//! Durable append: one event a request, each writer on a connection of its own, the next request
//! when the answer is there.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::nats::Nats;
use crate::ours::{InProcess, Ours, in_process};
use crate::postgres::Postgres;
use crate::redis::Redis;
use crate::rows::{Aim, Rows, Times, Turns};
use crate::{Arguments, disk, process};

/// A client of whatever: appends one event and returns when it is told that it is taken.
pub(crate) trait Writer: Send + 'static {
    /// `n` is new every time.
    fn append(&mut self, n: u64) -> impl Future<Output = anyhow::Result<()>> + Send;
}

/// What one turn gave.
#[derive(Debug, Default)]
struct Turn {
    per_second: Turns,
    p50: Turns,
    p99: Turns,
}

impl Turn {
    fn add(&mut self, mut times: Times, took: Duration) {
        let count = u32::try_from(times.len()).unwrap_or(u32::MAX);
        self.per_second.push(f64::from(count) / took.as_secs_f64());
        self.p50.push(times.micros(500));
        self.p99.push(times.micros(990));
    }
}

/// Lets the writers write for a while.
async fn turn<W: Writer>(writers: Vec<W>, span: Duration, into: &mut Turn) -> anyhow::Result<()> {
    let numbers = Arc::new(AtomicU64::new(1));
    let mut writing = JoinSet::new();
    let began = Instant::now();
    for mut writer in writers {
        let numbers = Arc::clone(&numbers);
        writing.spawn(async move {
            // One that is not counted: connections come to be with it.
            writer
                .append(numbers.fetch_add(1, Ordering::Relaxed))
                .await?;
            let mut times = Times::default();
            while began.elapsed() < span {
                let one = Instant::now();
                writer
                    .append(numbers.fetch_add(1, Ordering::Relaxed))
                    .await?;
                times.push(one.elapsed());
            }
            anyhow::Ok(times)
        });
    }
    let mut all = Times::default();
    while let Some(done) = writing.join_next().await {
        all.append(done??);
    }
    into.add(all, began.elapsed());
    Ok(())
}

#[expect(clippy::too_many_lines, reason = "one row after the other")]
pub(crate) async fn measure(arguments: &Arguments, rows: &mut Rows) -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let ours = Ours::start(dir.path()).await?;
    let postgres = Postgres::start().await?;
    let redis = Redis::start().await?;
    let nats = Nats::start().await?;
    let build = match cfg!(debug_assertions) {
        true => "a build with debug assertions, NOT for the record",
        false => "release build",
    };
    rows.note(&format!(
        "ours: tabbify-log, {build}, its service over TCP with signed tokens, chain, conditions, ids \
         and rates on"
    ));
    rows.note(&format!("{postgres}"));
    rows.note(&format!("{redis}"));
    rows.note(&format!("{nats}"));
    let file = disk::prepare(dir.path())?;
    let own_dir = tempfile::tempdir()?;
    // As the roles of `tabbify up` have it.
    let (_log, own) = in_process(own_dir.path())?;
    let span = Duration::from_secs(arguments.seconds);
    for count in [64, 1] {
        let names = ["ours", "postgres", "redis", "jetstream"];
        let [mut a, mut b, mut c, mut d] = names.map(|_| Turn::default());
        let (mut raw, mut inside) = (Turn::default(), Turn::default());
        for _ in 0..arguments.rounds {
            rows.note(&format!(
                "{count} writers, pressure {}",
                process::pressure()
            ));
            turn(ours.writers(count).await?, span, &mut a).await?;
            if count == 1 {
                raw.add(disk::turn(&file, span)?, span);
                turn(vec![InProcess(own.clone())], span, &mut inside).await?;
            }
            turn(postgres.writers(count).await?, span, &mut b).await?;
            turn(redis.writers(count).await?, span, &mut c).await?;
            turn(nats.writers(count).await?, span, &mut d).await?;
        }
        let metric = |what: &str| format!("durable append 256 B, {count} writers, {what}");
        let rate = metric("rate");
        let aims = match count {
            64 => [Aim::Times(2.5), Aim::Times(1.2)],
            _ => [Aim::None, Aim::None],
        };
        let unit = "events/s";
        rows.pair(
            &rate,
            unit,
            &a.per_second,
            ("postgresql", &b.per_second),
            aims[0],
        );
        rows.pair(
            &rate,
            unit,
            &a.per_second,
            ("redis", &c.per_second),
            aims[1],
        );
        let not_durable = ("jetstream, NOT durable", &d.per_second);
        rows.pair(&rate, unit, &a.per_second, not_durable, Aim::None);
        if count == 1 {
            let disk = ("write + fdatasync", &raw.p50);
            rows.pair(&metric("p50"), "µs", &a.p50, disk, Aim::More(80.0));
            let metric = "durable append 256 B, 1 writer in the log's process, p50";
            rows.pair(metric, "µs", &inside.p50, disk, Aim::More(80.0));
            rows.alone("write + fdatasync alone, p99", "µs", &raw.p99, None);
        }
        for (peer, turn) in [("postgresql", &b), ("redis", &c)] {
            rows.pair(&metric("p99"), "µs", &a.p99, (peer, &turn.p99), Aim::None);
            rows.pair(&metric("p50"), "µs", &a.p50, (peer, &turn.p50), Aim::None);
        }
    }
    Ok(())
}
