//! From an order to a serving runner, and to its end.

use std::os::unix::fs::PermissionsExt as _;

use tabbify_api::logs::{AppLogs as _, LogQuery};
use tabbify_supervisor::{FileLogs, probe_capabilities};
use tabbify_types::event::v1::FailureReason;
use tabbify_types::{AppId, AppUla, Event, InstanceUla};

use crate::support::{App, Machine, Outcome, instance, kill};

#[tokio::test(flavor = "multi_thread")]
async fn an_order_becomes_a_healthy_runner_and_then_none() -> Outcome {
    let machine = Machine::new()?;
    let mut supervisor = machine.supervisor().await?;
    let of = instance(AppId::mint(), 1);
    machine.place(of, App::Hello).await?;

    let Event::AppStarted(started) = machine.reported(of, "app_started").await? else {
        return Err("not app_started".into());
    };
    assert_eq!(started.app_ula, AppUla::derive(of.app));
    assert_eq!(
        started.instance_ula,
        InstanceUla::derive(of.app, of.instance)
    );
    machine.reported(of, "app_healthy").await?;
    let kinds = ["app_starting", "app_started", "app_healthy"];
    assert_eq!(machine.reports_of(of).await?, kinds);
    assert!(supervisor.until(|now| now.ready == 1).await);
    assert!(machine.candidates.of(started.key) > 0);

    let pid = machine.pid(of)?;
    assert_eq!(machine.processes(), [pid]);
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after_name = stat.rsplit_once(')').ok_or("a stat line")?.1;
    let session = after_name.split_whitespace().nth(3).ok_or("a session")?;
    assert_eq!(session, pid.to_string(), "the runner is not detached");
    let environment = std::fs::read(format!("/proc/{pid}/environ"))?;
    assert_eq!(environment, b"", "the runner inherits an environment");
    let boot = std::fs::metadata(machine.dir(of).join("boot.json"))?;
    assert_eq!(boot.permissions().mode() & 0o777, 0o600);

    machine.order_stop(of).await?;
    machine.reported(of, "app_stopped").await?;
    let all = [&kinds[..], &["instance_drained", "app_stopped"]].concat();
    assert_eq!(machine.reports_of(of).await?, all);
    machine
        .eventually("its directory is gone", |it| !it.dir(of).exists())
        .await?;
    assert!(machine.processes().is_empty());
    assert!(supervisor.until(|now| now.watched == 0).await);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_runner_is_reported_and_its_replacement_runs() -> Outcome {
    let machine = Machine::new()?;
    let _supervisor = machine.supervisor().await?;
    let first = instance(AppId::mint(), 1);
    machine.place(first, App::Hello).await?;
    machine.reported(first, "app_healthy").await?;
    let pid = machine.pid(first)?;
    kill(pid);
    let Event::AppFailed(failed) = machine.reported(first, "app_failed").await? else {
        return Err("not app_failed".into());
    };
    assert_eq!(failed.reason, FailureReason::Exited);
    assert!(failed.detail.contains("SIGKILL"), "{}", failed.detail);
    machine
        .eventually("its directory is gone", |it| !it.dir(first).exists())
        .await?;
    // No zombie: the child was waited for.
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());

    let second = instance(first.app, 2);
    machine.place(second, App::Hello).await?;
    machine.reported(second, "app_healthy").await?;
    assert_eq!(machine.processes(), [machine.pid(second)?]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_cannot_run_fails_with_its_reason_and_its_log() -> Outcome {
    let machine = Machine::new()?;
    let _supervisor = machine.supervisor().await?;
    let of = instance(AppId::mint(), 1);
    machine.place(of, App::Picture).await?;
    let Event::AppFailed(failed) = machine.reported(of, "app_failed").await? else {
        return Err("not app_failed".into());
    };
    assert_eq!(failed.reason, FailureReason::NotAComponent, "{failed:?}");
    assert!(failed.log_tail.contains("cannot start"), "{failed:?}");
    machine
        .eventually("its directory is gone", |it| !it.dir(of).exists())
        .await?;
    assert!(machine.processes().is_empty());
    // What it printed outlives it.
    let logs = FileLogs::new(&machine.config.data_dir);
    let mut reader = logs.open(of.app, LogQuery::default()).await?;
    let line = reader.next().await?.ok_or("a line")?;
    assert!(failed.log_tail.contains(&line.line), "{line:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_runner_program_is_a_failure_to_spawn() -> Outcome {
    let mut machine = Machine::new()?;
    machine.config.runner = machine.home.path().join("no-such-runner");
    let _supervisor = machine.supervisor().await?;
    let of = instance(AppId::mint(), 1);
    machine.place(of, App::Hello).await?;
    let Event::AppFailed(failed) = machine.reported(of, "app_failed").await? else {
        return Err("not app_failed".into());
    };
    assert_eq!(failed.reason, FailureReason::Spawn);
    assert!(failed.detail.contains("no-such-runner"), "{failed:?}");
    machine
        .eventually("its directory is gone", |it| !it.dir(of).exists())
        .await?;
    let capabilities = probe_capabilities(&machine.config.runner, Some(NO_ENGINE), None).await;
    assert!(capabilities.iter().all(|it| !it.works), "{capabilities:?}");
    Ok(())
}

/// Where no engine is, so that no test speaks to the machine's own.
const NO_ENGINE: &str = "unix:///no/engine";

#[tokio::test(flavor = "multi_thread")]
async fn the_real_runner_is_a_capability() -> Outcome {
    let machine = Machine::new()?;
    let capabilities = probe_capabilities(&machine.config.runner, Some(NO_ENGINE), None).await;
    let wasm = capabilities.iter().find(|it| it.runtime == "wasm-http");
    assert!(wasm.is_some_and(|it| it.works), "{capabilities:?}");
    let docker = capabilities.iter().find(|it| it.runtime == "docker");
    let why = docker.map(|it| (it.works, it.detail.contains("/no/engine: no such file")));
    assert_eq!(why, Some((false, true)), "{capabilities:?}");
    Ok(())
}
