//! The log is away when a supervisor starts: runners go on, and what was asked for meanwhile is done
//! when it is back.

use std::path::PathBuf;
use std::sync::Arc;

use tabbify_api::log::{EventLog, Line};
use tabbify_process::Tasks;
use tabbify_supervisor::Supervisor;
use tabbify_types::{AppId, Digest};

use crate::support::{App, Machine, Outcome, WATCHDOG, Wrong, instance};

/// A supervisor that reaches the log over a line, and what it ends with.
struct Role {
    supervisor: Supervisor,
    tasks: Tasks,
}

async fn start(machine: &Machine, line: &Arc<Line>) -> Result<Role, Wrong> {
    let (tasks, log): (_, Arc<dyn EventLog>) = (Tasks::new(), Arc::<Line>::clone(line));
    let supervisor = machine.supervisor_in(log, &tasks).await?;
    Ok(Role { supervisor, tasks })
}

impl Role {
    /// Ends it as a stop of the process does; its runners go on.
    async fn end(self) -> Outcome {
        match self.tasks.shutdown(WATCHDOG).await {
            true => Ok(()),
            false => Err("the supervisor does not end".into()),
        }
    }
}

fn snapshot(machine: &Machine) -> PathBuf {
    let data = &machine.config.data_dir;
    data.join("snapshots/supervisor.snapshot")
}

#[tokio::test(flavor = "multi_thread")]
async fn runners_are_kept_while_the_log_is_down() -> Outcome {
    let machine = Machine::new()?;
    let line = Line::to(machine.host_log());
    let first = start(&machine, &line).await?;
    let all = [(); 2].map(|()| instance(AppId::mint(), 1));
    for of in all {
        machine.place(of, App::Hello).await?;
        machine.reported(of, "app_healthy").await?;
    }
    let mut before = machine.processes();
    first.end().await?;

    line.join(None);
    machine.order_stop(all[1]).await?;
    let mut second = start(&machine, &line).await?;
    assert!(second.supervisor.until(|now| now.ready == all.len()).await);
    assert!(!second.supervisor.overview().caught_up);
    let mut after = machine.processes();
    before.sort_unstable();
    after.sort_unstable();
    assert_eq!(before, after, "nothing was started or stopped");

    line.join(Some(machine.host_log()));
    machine.reported(all[1], "app_stopped").await?;
    assert!(second.supervisor.until(|now| now.caught_up).await);
    assert!(second.supervisor.until(|now| now.watched == 1).await);
    assert_eq!(machine.processes(), [machine.pid(all[0])?]);
    second.end().await
}

/// What is stored may be older than what has happened: an instance that has ended meanwhile must not
/// live again, whatever the snapshot says.
#[tokio::test(flavor = "multi_thread")]
async fn an_old_snapshot_revives_nobody() -> Outcome {
    let machine = Machine::new()?;
    let line = Line::to(machine.host_log());
    let [kept, gone] = [(); 2].map(|()| instance(AppId::mint(), 1));
    for of in [kept, gone] {
        machine.place(of, App::Hello).await?;
    }
    let first = start(&machine, &line).await?;
    for of in [kept, gone] {
        machine.reported(of, "app_healthy").await?;
    }
    // As it was when everything was placed and nothing was started yet.
    let stored = |it: &Machine| snapshot(it).exists();
    machine.eventually("it is stored", stored).await?;
    let old = std::fs::read(snapshot(&machine))?;
    machine.order_stop(gone).await?;
    machine.reported(gone, "app_stopped").await?;
    let removed = |it: &Machine| !it.dir(gone).exists();
    machine.eventually("its directory is gone", removed).await?;
    first.end().await?;
    let said = machine.reports_of(gone).await?;

    std::fs::write(snapshot(&machine), old)?;
    line.join(None);
    let mut third = start(&machine, &line).await?;
    assert!(third.supervisor.until(|now| now.ready == 1).await);
    line.join(Some(machine.host_log()));
    assert!(third.supervisor.until(|now| now.caught_up).await);
    // Whatever was begun for the one that has ended has been begun before this.
    let new = instance(AppId::mint(), 1);
    machine.place(new, App::Hello).await?;
    machine.reported(new, "app_healthy").await?;
    let mut running = machine.processes();
    let mut expected = vec![machine.pid(kept)?, machine.pid(new)?];
    running.sort_unstable();
    expected.sort_unstable();
    assert_eq!(running, expected);
    assert_eq!(machine.reports_of(gone).await?, said);
    third.end().await
}

/// The same snapshot, of a program with another version of the fold.
fn of_another_version(snapshot: &[u8]) -> Result<Vec<u8>, Wrong> {
    let text = std::str::from_utf8(snapshot)?;
    let (_, body) = text.split_once('\n').ok_or("a line and the rest")?;
    let body = body.replacen(r#""version":1"#, r#""version":99"#, 1);
    let digest = Digest::of(body.as_bytes());
    Ok(format!("tabbify-fold 1 {digest}\n{body}").into_bytes())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_cannot_be_used_is_made_anew() -> Outcome {
    let (machine, other) = (Machine::new()?, Machine::new()?);
    for it in [&machine, &other] {
        let role = start(it, &Line::to(it.host_log())).await?;
        let of = instance(AppId::mint(), 1);
        it.place(of, App::Hello).await?;
        it.reported(of, "app_healthy").await?;
        role.end().await?;
    }
    let running = machine.processes();
    let good = std::fs::read(snapshot(&machine))?;
    let mut damaged = good.clone();
    damaged[good.len() / 2] ^= 1;
    let line = Line::to(machine.host_log());
    for (what, bytes) in [
        ("of another log", std::fs::read(snapshot(&other))?),
        ("of another version", of_another_version(&good)?),
        ("damaged", damaged),
    ] {
        std::fs::write(snapshot(&machine), &bytes)?;
        let mut role = start(&machine, &line).await?;
        let good = role.supervisor.until(|now| now.caught_up && now.ready == 1);
        assert!(good.await, "{what}");
        role.end().await?;
        assert_eq!(machine.processes(), running, "{what}");
        assert_ne!(std::fs::read(snapshot(&machine))?, bytes, "{what}");
    }
    Ok(())
}
