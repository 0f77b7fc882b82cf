//! Directories that somebody has damaged, and runners that nobody placed.

use std::sync::Arc;

use tabbify_api::log::LogScope;
use tabbify_api::runner::{BIRTH_FILE, BOOT_FILE, EXIT_FILE};
use tabbify_log::{Log, Options};
use tabbify_process::SystemClock;
use tabbify_types::event::v1::FailureReason;
use tabbify_types::{AppId, Event, SegmentGlob};

use crate::support::{App, Machine, Outcome, instance, kill};

#[tokio::test(flavor = "multi_thread")]
async fn a_runner_with_a_damaged_birth_record_is_found_by_its_lock() -> Outcome {
    let machine = Machine::new()?;
    let supervisor = machine.supervisor().await?;
    let of = instance(AppId::mint(), 1);
    machine.place(of, App::Hello).await?;
    machine.reported(of, "app_healthy").await?;
    let pid = machine.pid(of)?;
    supervisor.abort();
    std::fs::write(machine.dir(of).join(BIRTH_FILE), b"\xff\x00{")?;
    let mut supervisor = machine.supervisor().await?;
    assert!(supervisor.until(|now| now.ready == 1).await);
    assert_eq!(machine.processes(), [pid]);
    kill(pid);
    machine.reported(of, "app_failed").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runner_with_a_damaged_boot_document_goes_on_and_can_be_stopped() -> Outcome {
    let machine = Machine::new()?;
    let supervisor = machine.supervisor().await?;
    let of = instance(AppId::mint(), 1);
    machine.place(of, App::Hello).await?;
    machine.reported(of, "app_healthy").await?;
    let pid = machine.pid(of)?;
    supervisor.abort();
    std::fs::write(machine.dir(of).join(BOOT_FILE), b"not json")?;
    let mut supervisor = machine.supervisor().await?;
    assert!(supervisor.until(|now| now.watched == 1).await);
    assert_eq!(machine.processes(), [pid]);
    machine.order_stop(of).await?;
    // Its secret is lost, so it is asked with a signal.
    machine.reported(of, "app_stopped").await?;
    machine
        .eventually("nothing is left", |it| {
            it.processes().is_empty() && !it.dir(of).exists()
        })
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_exit_record_is_still_an_end() -> Outcome {
    let machine = Machine::new()?;
    let of = instance(AppId::mint(), 1);
    machine.place(of, App::Hello).await?;
    std::fs::create_dir_all(machine.dir(of))?;
    std::fs::write(machine.dir(of).join(EXIT_FILE), b"{\"code\":")?;
    let _supervisor = machine.supervisor().await?;
    let Event::AppFailed(failed) = machine.reported(of, "app_failed").await? else {
        return Err("not app_failed".into());
    };
    assert_eq!(failed.reason, FailureReason::Exited);
    assert!(machine.processes().is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runner_that_nobody_placed_is_left_alone() -> Outcome {
    let machine = Machine::new()?;
    let supervisor = machine.supervisor().await?;
    let of = instance(AppId::mint(), 1);
    machine.place(of, App::Hello).await?;
    machine.reported(of, "app_healthy").await?;
    let pid = machine.pid(of)?;
    supervisor.abort();

    // Another log, as after a restore of an old backup.
    let options = Options::new(Arc::new(SystemClock));
    let other = Log::open(&machine.home.path().join("other"), options)?;
    let everything = vec![SegmentGlob::all()];
    let client = other.client(LogScope {
        actor: "host:box1".to_owned(),
        write: everything.clone(),
        read: everything,
    });
    let mut supervisor = machine.supervisor_with(client).await?;
    assert!(supervisor.until(|now| now.caught_up).await);
    assert_eq!(supervisor.overview().watched, 0);
    assert_eq!(machine.processes(), [pid]);
    supervisor.abort();

    // With the right log again, it is adopted as if nothing had been.
    let mut supervisor = machine.supervisor().await?;
    assert!(supervisor.until(|now| now.ready == 1).await);
    assert_eq!(machine.processes(), [pid]);
    Ok(())
}
