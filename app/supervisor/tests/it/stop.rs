//! Ends of a supervisor: its runners go on, until somebody stops them all.

use std::time::Duration;

use tabbify_supervisor::{Error, StopReport, stop_all_runners};
use tabbify_types::{AppId, Event};

use crate::support::{App, Machine, Outcome, instance};

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_leaves_runners_and_stop_all_ends_them() -> Outcome {
    let mut machine = Machine::new()?;
    let drain = Duration::from_secs(1);
    let nothing = stop_all_runners(&machine.config.data_dir, drain).await?;
    assert_eq!(nothing, StopReport::default());

    let _supervisor = machine.supervisor().await?;
    let mut all = [(); 2].map(|()| instance(AppId::mint(), 1));
    all.sort();
    for of in all {
        machine.place(of, App::Hello).await?;
    }
    for of in all {
        machine.reported(of, "app_healthy").await?;
    }
    let in_use = stop_all_runners(&machine.config.data_dir, drain).await;
    assert!(matches!(in_use, Err(Error::InUse { .. })), "{in_use:?}");
    assert_eq!(machine.processes().len(), 2);

    assert!(machine.tasks.shutdown(Duration::from_secs(10)).await);
    assert_eq!(machine.tasks.failure(), None);
    assert_eq!(machine.processes().len(), 2);
    let report = stop_all_runners(&machine.config.data_dir, drain).await?;
    assert_eq!(report.stopped, all);
    assert!(
        report.killed.is_empty() && report.failed.is_empty(),
        "{report:?}"
    );
    assert!(machine.processes().is_empty());

    // What the log desires is as it was: the next supervisor says that they have ended.
    machine.tasks = tabbify_process::Tasks::new();
    let _supervisor = machine.supervisor().await?;
    let Event::AppFailed(failed) = machine.reported(all[0], "app_failed").await? else {
        return Err("not app_failed".into());
    };
    assert!(failed.detail.contains("exit code 0"), "{failed:?}");
    Ok(())
}
