//! Catching up: every event of a log from the first to the last, every byte verified on its way.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use tabbify_api::log::{Delivery, EventLog, Filter};
use tabbify_log::Log;
use tabbify_types::Position;
use tokio::time::Instant;

use crate::ours::{EVENTS_OF_KEY, Ours, filled, in_process};
use crate::postgres::Postgres;
use crate::rows::{Aim, Rows};
use crate::{Arguments, process};

const EVENTS: u64 = 1_000_000;

pub(crate) async fn measure(arguments: &Arguments, rows: &mut Rows) -> anyhow::Result<()> {
    let count = EVENTS.min(arguments.events);
    let dir = tempfile::tempdir()?;
    filled(dir.path(), count).await?;
    let postgres = Postgres::start().await?;
    postgres.fill(count, (count / EVENTS_OF_KEY).max(1)).await?;
    let [mut replayed, mut inside, mut outside, mut peer] = [const { Vec::new() }; 4];
    for _ in 0..arguments.rounds {
        let (replay, subscription) = in_this_process(dir.path(), count).await?;
        replayed.push(replay);
        inside.push(subscription);
        peer.push(
            per_second(count, async {
                anyhow::ensure!(
                    postgres.read_all().await? == count,
                    "postgresql has other events"
                );
                Ok(())
            })
            .await?,
        );
        let ours = Ours::start(dir.path()).await?;
        let client = ours.client().await?;
        outside.push(per_second(count, catch_up(&client, count)).await?);
    }
    rows.note(&format!("read, pressure {}", process::pressure()));
    let metric = |where_from: &str| format!("catch-up read of {count} events, {where_from}");
    let name = ("postgresql, SELECT in order", &peer);
    let unit = "events/s";
    let replay = metric("in process, as replay does");
    rows.pair(&replay, unit, &replayed, name, Aim::Times(4.0));
    let subscription = metric("in process, by a subscription");
    rows.pair(&subscription, unit, &inside, name, Aim::None);
    rows.pair(
        &metric("over the network"),
        "events/s",
        &outside,
        name,
        Aim::None,
    );
    Ok(())
}

/// The rates of a replay and of a subscription.
async fn in_this_process(dir: &Path, count: u64) -> anyhow::Result<(f64, f64)> {
    let (log, client) = in_process(dir)?;
    let replaying = Arc::clone(&log);
    let replay = async move {
        let pass = tokio::task::spawn_blocking(move || replay(&replaying, count));
        pass.await?
    };
    let replayed = per_second(count, replay).await?;
    let subscribed = per_second(count, catch_up(&*client, count)).await?;
    log.close().await;
    Ok((replayed, subscribed))
}

/// Every event as it lies in its frame, each looked at.
fn replay(log: &Log, count: u64) -> anyhow::Result<()> {
    let (mut due, mut wrong) = (Position(1), false);
    log.replay(Position(0), Position(count), |event| {
        wrong |= event.position != due || event.data.len() != 256;
        due = due.next();
        ControlFlow::Continue(())
    })?;
    anyhow::ensure!(
        !wrong && due.get() == count + 1,
        "other events, up to {due}"
    );
    Ok(())
}

async fn per_second(
    count: u64,
    work: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<f64> {
    let began = Instant::now();
    work.await?;
    let count = u32::try_from(count)?;
    Ok(f64::from(count) / began.elapsed().as_secs_f64())
}

/// A subscription from the beginning to the last event, each looked at.
async fn catch_up(client: &dyn EventLog, count: u64) -> anyhow::Result<()> {
    let mut subscription = client.subscribe(Filter::default(), Position(0))?;
    let mut due = Position(1);
    loop {
        match subscription.next().await? {
            Delivery::Event(event) => {
                anyhow::ensure!(
                    event.position == due && event.data.get().len() == 256,
                    "the wrong event at {due}"
                );
                due = due.next();
            }
            Delivery::CaughtUp(at) => {
                anyhow::ensure!(at.get() == count, "caught up at {at}");
                return Ok(());
            }
            Delivery::Progress(_) => {}
        }
    }
}
