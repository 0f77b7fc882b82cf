//! `kill -9` at every step that an action leaves something at, and at moments that chance chooses. The
//! supervisor is a process of its own here, as it is where it runs; its runners are real and outlive it.
//!
//! A story (two instances, one after the other, as a deploy has them) is told by a child, which is killed in
//! the middle of it; then a supervisor of this process finds what is left. After it has reconciled once, what
//! runs is what is desired: one process and one lock for each instance that is to run, and of the others
//! neither process nor lock, socket or directory. Then the story is told to its end, and everything was said
//! once.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use tabbify_api::runner::{BIRTH_FILE, CONTROL_SOCKET};
use tabbify_process::env;
use tabbify_supervisor::failpoint::{self, Point};
use tabbify_types::AppId;
use tabbify_types::event::v1::InstanceRef;
use tokio::process::Command;

use crate::support::{App, Machine, Outcome, WATCHDOG, Wrong, instance, processes_below};

/// What the child is told.
pub(crate) const HOME: &str = "TABBIFY_TEST_HOME";
pub(crate) const APP: &str = "TABBIFY_TEST_APP";
pub(crate) const POINT: &str = "TABBIFY_TEST_POINT";
/// Set by `cargo xtask test --long`.
const LENGTH: &str = "TABBIFY_TEST_LENGTH";

/// When the child is killed.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Moment {
    /// At the nth passing of a point, by itself.
    At(Point, u16),
    /// After so long, by us.
    After(Duration),
}

/// The test that is the child here.
const CHILD: &str = "points::supervisor_child";

/// Everything that is reported of an instance that was run and stopped, in order.
const LIFE: [&str; 5] = [
    "app_starting",
    "app_started",
    "app_healthy",
    "instance_drained",
    "app_stopped",
];

/// Places an instance, unless that was done before the crash.
async fn place(machine: &Machine, of: InstanceRef) -> Outcome {
    if !machine.ordered().await?.0.contains(&of) {
        machine.place(of, App::Hello).await?;
    }
    Ok(())
}

/// Orders the end of an instance, unless that was done before the crash.
async fn end(machine: &Machine, of: InstanceRef) -> Outcome {
    if !machine.ordered().await?.1.contains(&of) {
        machine.order_stop(of).await?;
    }
    machine.reported(of, "app_stopped").await?;
    machine
        .eventually("its directory is gone", |it| !it.dir(of).exists())
        .await
}

/// A deploy beside another, and the end of both; it goes on where it was left.
async fn story(machine: &Machine, app: AppId) -> Outcome {
    let (first, second) = (instance(app, 1), instance(app, 2));
    for of in [first, second] {
        place(machine, of).await?;
        machine.reported(of, "app_healthy").await?;
    }
    end(machine, first).await?;
    end(machine, second).await
}

/// The child: a supervisor in a process of its own, for as long as it is let.
#[tokio::test(flavor = "multi_thread")]
async fn supervisor_child() -> Outcome {
    let (Some(home), Some(app)) = (env::read(HOME), env::read(APP)) else {
        // Not a child: there is nothing to tell.
        return Ok(());
    };
    if let Some((point, nth)) = env::read(POINT)
        .as_deref()
        .and_then(|at| at.split_once(' '))
    {
        let point = Point::ALL.get(point.parse::<usize>()?);
        failpoint::arm(*point.ok_or("no such point")?, nth.parse()?);
    }
    let machine = Machine::at(Path::new(&home))?;
    let _supervisor = machine.supervisor().await?;
    story(&machine, app.parse()?).await
}

/// Runs the child, a test of this binary, until its moment; how it ended.
pub(crate) async fn crash(
    test: &str,
    home: &Path,
    app: AppId,
    moment: Moment,
) -> Result<ExitStatus, Wrong> {
    let said = File::options()
        .create(true)
        .append(true)
        .open(home.join("child.log"))?;
    let mut child = Command::new(std::env::current_exe()?);
    child
        .args([test, "--exact", "--nocapture"])
        .env(HOME, home)
        .env(APP, app.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::from(said.try_clone()?))
        .stderr(Stdio::from(said))
        .kill_on_drop(true);
    if let Moment::At(point, nth) = moment {
        let index = Point::ALL.iter().position(|it| *it == point);
        child.env(POINT, format!("{} {nth}", index.ok_or("a point")?));
    }
    let mut child = child.spawn()?;
    if let Moment::After(time) = moment {
        // The moment is the fault that is injected; nothing waits for it.
        tokio::time::sleep(time).await;
        // It may have come to its end before.
        let _ = child.start_kill();
    }
    let ended = tokio::time::timeout(WATCHDOG, child.wait()).await;
    let status = ended.map_err(|_| format!("{moment:?}: the child does not end"))??;
    if status.success() || status.signal() == Some(9) {
        return Ok(status);
    }
    let said = std::fs::read_to_string(home.join("child.log"))?;
    Err(format!("{moment:?}: the child ended with {status}:\n{said}").into())
}

/// Waits until what runs on the machine is what is desired, and nothing else is there.
async fn as_desired(machine: &Machine) -> Outcome {
    let (placed, stopped) = machine.ordered().await?;
    let desired: BTreeSet<InstanceRef> = placed.difference(&stopped).copied().collect();
    for of in &desired {
        machine.reported(*of, "app_healthy").await?;
    }
    for of in &stopped {
        machine.reported(*of, "app_stopped").await?;
    }
    let what = format!("{desired:?} run, and nothing else is there");
    machine
        .eventually(&what, |it| {
            differs(it, &desired).is_ok_and(|diff| diff.is_none())
        })
        .await
        .map_err(|error| format!("{error}: {:?}", differs(machine, &desired)).into())
}

/// What of the machine is not as it is desired, if anything.
fn differs(machine: &Machine, desired: &BTreeSet<InstanceRef>) -> Result<Option<String>, Wrong> {
    let runners = machine.config.data_dir.join("runners");
    let mut found = BTreeSet::new();
    let apps: BTreeSet<AppId> = desired.iter().map(|of| of.app).collect();
    for app in std::fs::read_dir(&runners)? {
        let app = app?;
        let id: AppId = app.file_name().to_str().ok_or("text")?.parse()?;
        if !apps.contains(&id) {
            return Ok(Some(format!("{} is left", app.path().display())));
        }
        for one in std::fs::read_dir(app.path())? {
            let number: u32 = one?.file_name().to_str().ok_or("text")?.parse()?;
            found.insert(instance(id, number));
        }
    }
    if found != *desired {
        return Ok(Some(format!("directories of {found:?}")));
    }
    for of in desired {
        let dir = machine.dir(*of);
        let holders = processes_below(&dir);
        let birth = File::open(dir.join(BIRTH_FILE))?;
        let is_free = flock(&birth, FlockOperation::NonBlockingLockShared).is_ok();
        if holders.as_slice() != [machine.pid(*of)?]
            || is_free
            || !dir.join(CONTROL_SOCKET).exists()
        {
            let path = dir.display();
            return Ok(Some(format!(
                "{path}: processes {holders:?}, lock free {is_free}"
            )));
        }
    }
    let (all, wanted) = (machine.processes().len(), desired.len());
    Ok((all != wanted).then(|| format!("{all} processes, not {wanted}")))
}

/// A supervisor of this process finds what the crashes have left, and brings the story to its end.
async fn reconcile(home: &Path, app: AppId) -> Outcome {
    let machine = Machine::at(home)?;
    let mut supervisor = machine.supervisor().await?;
    as_desired(&machine).await?;
    let (placed, stopped) = machine.ordered().await?;
    let living = placed.len() - stopped.len();
    if !supervisor.until(|now| now.watched == living).await {
        return Err("the supervisor has ended".into());
    }
    story(&machine, app).await?;
    as_desired(&machine).await?;
    for of in [instance(app, 1), instance(app, 2)] {
        let said = machine.reports_of(of).await?;
        assert_eq!(said, LIFE, "{of:?}: each once, in this order");
    }
    Ok(())
}

/// The crash at each of these moments, each on a machine of its own.
async fn enumerate(moments: &[(Point, u16)]) -> Outcome {
    for (point, nth) in moments {
        let (home, app) = (tempfile::tempdir()?, AppId::mint());
        let _ended = Ended(home.path());
        let wrong = |error: Wrong| -> Wrong { format!("{point:?}, passing {nth}: {error}").into() };
        let moment = Moment::At(*point, *nth);
        let status = crash(CHILD, home.path(), app, moment)
            .await
            .map_err(wrong)?;
        assert_eq!(
            status.signal(),
            Some(9),
            "{point:?} is not passed {nth} times"
        );
        reconcile(home.path(), app).await.map_err(wrong)?;
    }
    Ok(())
}

/// Takes the runners along whatever a failing test leaves.
pub(crate) struct Ended<'a>(pub(crate) &'a Path);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        for pid in processes_below(self.0) {
            crate::support::kill(pid);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_every_step_of_a_spawn() -> Outcome {
    let steps = Point::ALL.iter().take_while(|point| **point <= Point::Met);
    let first: Vec<_> = steps.map(|point| (*point, 1)).collect();
    enumerate(&first).await?;
    // Beside a living instance.
    enumerate(&[(Point::Locked, 2), (Point::Spawned, 2)]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_every_step_of_an_end() -> Outcome {
    let end = Point::BeforeDrain..=Point::Removed;
    let steps = Point::ALL.iter().filter(|point| end.contains(point));
    let first: Vec<_> = steps.map(|point| (*point, 1)).collect();
    enumerate(&first).await?;
    // The last one of its app.
    enumerate(&[(Point::BeforeStop, 2), (Point::InstanceRemoved, 2)]).await
}

/// Of each instance four batches are reported: the intent, that it runs, that it is drained, that it ended.
#[tokio::test(flavor = "multi_thread")]
async fn killed_before_and_after_everything_that_is_said() -> Outcome {
    let reports = [1, 2, 5, 6, 8];
    let each = reports.map(|nth| [(Point::BeforeReport, nth), (Point::Reported, nth)]);
    enumerate(each.as_flattened()).await
}

/// Whether `cargo xtask test --long` runs this.
pub(crate) fn long() -> bool {
    env::read(LENGTH).is_some_and(|length| length == "long")
}

/// A linear congruential generator (Knuth, MMIX): a run is repeated by its printed seed.
pub(crate) struct Chance(pub(crate) u64);

impl Chance {
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005);
        self.0 = self.0.wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }

    /// One of these points, or any time within a story that takes about so long.
    pub(crate) fn moment(&mut self, points: &[Point], micros: u64) -> Result<Moment, Wrong> {
        if self.below(3) == 0 {
            return Ok(Moment::After(Duration::from_micros(self.below(micros))));
        }
        let point = usize::try_from(self.below(points.len() as u64))?;
        let nth = u16::try_from(1 + self.below(2))?;
        Ok(Moment::At(points[point], nth))
    }
}

/// One crash after the other on the same machine, wherever chance puts them.
#[tokio::test(flavor = "multi_thread")]
async fn killed_by_chance_again_and_again() -> Outcome {
    let schedules = if long() { 1_000 } else { 4 };
    // In a story in which nobody is idle, the rest is not passed.
    let of_a_life = &Point::ALL[..Point::Removed as usize];
    for _ in 0..schedules {
        let seed = u64::from_le_bytes(tabbify_process::random());
        let (home, app, mut chance) = (tempfile::tempdir()?, AppId::mint(), Chance(seed));
        let _ended = Ended(home.path());
        let mut moments = Vec::new();
        for _ in 0..1 + chance.below(5) {
            moments.push(chance.moment(of_a_life, 1_500_000)?);
        }
        println!("seed {seed}: {moments:?}");
        let wrong = |error: Wrong| -> Wrong { format!("seed {seed}, {moments:?}: {error}").into() };
        for moment in &moments {
            let ended = crash(CHILD, home.path(), app, *moment)
                .await
                .map_err(wrong)?;
            if ended.success() {
                // The story has come to its end.
                break;
            }
        }
        reconcile(home.path(), app).await.map_err(wrong)?;
    }
    Ok(())
}
