//! The supervisor ends at any moment, and the next one goes on: nothing is lost, nothing is twice.

use std::time::Duration;

use tabbify_process::random;
use tabbify_supervisor::Supervisor;
use tabbify_types::event::v1::{AppStarting, FailureReason};
use tabbify_types::{AppId, Event};
use tokio::time::Instant;

use crate::support::{App, Machine, Outcome, Wrong, instance, kill};

/// What a crash of the process would do, and what its restart does.
async fn crash(machine: &Machine, supervisor: Supervisor) -> Result<Supervisor, Wrong> {
    supervisor.abort();
    machine.supervisor().await
}

#[tokio::test(flavor = "multi_thread")]
async fn living_runners_are_adopted_and_can_still_be_stopped() -> Outcome {
    let machine = Machine::new()?;
    let supervisor = machine.supervisor().await?;
    let all = [(); 3].map(|()| instance(AppId::mint(), 1));
    for of in all {
        machine.place(of, App::Hello).await?;
    }
    let mut keys = Vec::new();
    for of in all {
        machine.reported(of, "app_healthy").await?;
        if let Event::AppStarted(started) = machine.reported(of, "app_started").await? {
            keys.push(started.key);
        }
    }
    let mut before = machine.processes();
    let told: Vec<u32> = keys.iter().map(|key| machine.candidates.of(*key)).collect();

    let began = Instant::now();
    let mut supervisor = crash(&machine, supervisor).await?;
    assert!(supervisor.until(|now| now.ready == all.len()).await);
    assert!(
        began.elapsed() < Duration::from_secs(1),
        "{:?}",
        began.elapsed()
    );
    let mut after = machine.processes();
    before.sort_unstable();
    after.sort_unstable();
    assert_eq!(before, after);
    for (key, told) in keys.iter().zip(told) {
        assert!(
            machine.candidates.of(*key) > told,
            "candidates are told again"
        );
    }

    // It holds on to them: an end is seen, and an order is obeyed.
    kill(machine.pid(all[0])?);
    machine.reported(all[0], "app_failed").await?;
    machine.order_stop(all[1]).await?;
    machine.reported(all[1], "app_stopped").await?;
    let kinds = machine.reports_of(all[1]).await?;
    assert_eq!(
        kinds.iter().filter(|kind| *kind == "app_started").count(),
        1
    );
    assert!(kinds.contains(&"instance_drained".to_owned()), "{kinds:?}");
    assert_eq!(machine.processes(), [machine.pid(all[2])?]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runner_that_dies_unwatched_is_reported_by_the_next_supervisor() -> Outcome {
    let machine = Machine::new()?;
    let supervisor = machine.supervisor().await?;
    let of = instance(AppId::mint(), 1);
    machine.place(of, App::Hello).await?;
    machine.reported(of, "app_healthy").await?;
    supervisor.abort();
    kill(machine.pid(of)?);
    let _supervisor = machine.supervisor().await?;
    let Event::AppFailed(failed) = machine.reported(of, "app_failed").await? else {
        return Err("not app_failed".into());
    };
    assert_eq!(failed.reason, FailureReason::Exited);
    machine
        .eventually("its directory is gone", |it| !it.dir(of).exists())
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_intent_without_a_process_is_carried_out() -> Outcome {
    let machine = Machine::new()?;
    let of = instance(AppId::mint(), 1);
    machine.place(of, App::Hello).await?;
    let intent = Event::from(AppStarting { of });
    machine.append(machine.reports(), of.app, &intent).await?;
    let _supervisor = machine.supervisor().await?;
    machine.reported(of, "app_healthy").await?;
    assert_eq!(machine.processes(), [machine.pid(of)?]);
    Ok(())
}

/// Crashes at moments that nobody chose, from the order to the end of the stop.
#[tokio::test(flavor = "multi_thread")]
async fn crashes_at_any_moment_lose_and_double_nothing() -> Outcome {
    let machine = Machine::new()?;
    let app = AppId::mint();
    let mut supervisor = machine.supervisor().await?;
    for round in 1..=4 {
        let of = instance(app, round);
        machine.place(of, App::Hello).await?;
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..4 {
            supervisor = crash_soon(&machine, supervisor).await?;
            seen.extend(machine.processes());
        }
        machine.reported(of, "app_healthy").await?;
        let pid = machine.pid(of)?;
        assert_eq!(machine.processes(), [pid], "round {round}");
        seen.insert(pid);
        assert_eq!(seen.len(), 1, "round {round}: one process ever: {seen:?}");

        machine.order_stop(of).await?;
        for _ in 0..4 {
            supervisor = crash_soon(&machine, supervisor).await?;
        }
        machine.reported(of, "app_stopped").await?;
        machine
            .eventually("nothing is left", |it| {
                it.processes().is_empty() && !it.dir(of).exists()
            })
            .await?;
        let mut kinds = machine.reports_of(of).await?;
        kinds.sort();
        let before = kinds.len();
        kinds.dedup();
        assert_eq!(kinds.len(), before, "round {round}: said twice: {kinds:?}");
    }
    Ok(())
}

async fn crash_soon(machine: &Machine, supervisor: Supervisor) -> Result<Supervisor, Wrong> {
    let [a, b] = random();
    // The moment is the fault that is injected; nothing waits for it.
    let micros = u64::from(u16::from_le_bytes([a, b]));
    tokio::time::sleep(Duration::from_micros(micros)).await;
    crash(machine, supervisor).await
}
