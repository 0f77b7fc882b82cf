//! Does one action, idempotently. Third step of the path: log → desired → plan → [`Hands`].

use std::io;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;
use tabbify_api::doorbell::DoorAsk;
use tabbify_api::log::{Append, AppendError, EventLog};
use tabbify_api::runner::Boot;
use tabbify_process::chain;
use tabbify_types::event::v1::InstanceRef;
use tabbify_types::{Position, Segment};
use tokio::process::{Child, Command};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use crate::control::{Connection, Secret};
use crate::failpoint::{Point, pass};
use crate::logs::log_tail;
use crate::pid::{Holder, Process, holder};
use crate::plan::{Drain, Life};
use crate::report::{LOG_TAIL_LEN_MAX, Report};
use crate::runner_dir::{Prepared, RunnerDir};
use crate::state::Placed;
use crate::{Config, Error};

/// LIMIT: how long a runner may take to end after it was asked to: after SIGTERM it drains for 5 s.
const STOP_WITHIN: Duration = Duration::from_secs(10);
/// LIMIT: how long the kernel may take to end a killed process.
const KILL_WITHIN: Duration = Duration::from_secs(10);
/// LIMIT: how long removing a dead runner's container may take.
const CLEAN_WITHIN: Duration = Duration::from_secs(120);
/// How often the coordinator is asked whether it has read that an instance is idle, and the pause between.
const TELL_ATTEMPTS: usize = 40;
const TELL_AGAIN: Duration = Duration::from_millis(50);
/// LIMIT: processes being started or ended at once.
const ACTIONS_MAX: usize = 32;

/// What actions work with.
#[derive(Debug)]
pub(crate) struct Hands {
    pub(crate) config: Config,
    pub(crate) log: Arc<dyn EventLog>,
    reports: Segment,
    permits: Semaphore,
}

/// Why a process is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Because {
    /// Its instance was placed here.
    Placed,
    /// Its instance is asleep, and somebody waits for it.
    Wanted,
}

/// What came of a spawn.
#[derive(Debug)]
pub(crate) enum Spawned {
    /// Our child runs.
    Child(Child),
    /// It cannot run: why, for people.
    Never(String),
    /// Somebody lives there, or has lived there, after all.
    Other(Life),
}

impl Hands {
    pub(crate) fn new(config: Config, log: Arc<dyn EventLog>) -> Self {
        Self {
            reports: Segment::host_reports(&config.host),
            config,
            log,
            permits: Semaphore::new(ACTIONS_MAX),
        }
    }

    pub(crate) fn dir(&self, of: InstanceRef) -> RunnerDir {
        RunnerDir::new(&self.config.runners_dir(), of)
    }

    /// Appends reports as one batch; the position at which they are.
    pub(crate) async fn report(
        &self,
        placed: &Placed,
        reports: &[Report],
    ) -> Result<Position, Error> {
        let of = InstanceRef {
            app: placed.app.app,
            instance: placed.app.instance,
        };
        let mut tail = String::new();
        if reports.iter().any(|said| matches!(said, Report::Failed(_))) {
            let directory = self.config.logs_dir(of);
            let read = move || log_tail(&directory, of.instance, LOG_TAIL_LEN_MAX);
            // A log that cannot be read must not keep the failure from being reported.
            tail = tokio::task::spawn_blocking(read).await.unwrap_or_default();
        }
        let events: Result<Vec<_>, _> = reports
            .iter()
            .map(|report| report.event(&self.reports, placed, &tail))
            .collect();
        let events = events.map_err(Error::Event)?;
        pass(Point::BeforeReport);
        let mut pause = Duration::from_millis(50);
        loop {
            match self.log.append(Append::of(events.clone())).await {
                Ok(appended) => {
                    pass(Point::Reported);
                    return Ok(appended.last);
                }
                // It may or may not be written: the same ids make the repetition safe. Whoever
                // stops us drops this future.
                Err(AppendError::Stopping) => sleep(pause).await,
                Err(error) => return Err(Error::Report(error)),
            }
            pause = (pause * 2).min(Duration::from_secs(5));
        }
    }

    /// Intent, directory, lock, process: in this order, so that at no moment a process exists
    /// whose intent is not durable or whose lock is free.
    pub(crate) async fn spawn(&self, placed: &Placed) -> Result<Spawned, Error> {
        pass(Point::BeforeIntent);
        self.report(placed, &[Report::Starting]).await?;
        pass(Point::Intended);
        self.start(placed, Because::Placed).await
    }

    /// A process for an instance that is asleep: it has its place, and nobody needs to be asked or told first.
    pub(crate) async fn wake(&self, placed: &Placed) -> Result<Spawned, Error> {
        pass(Point::BeforeWake);
        self.start(placed, Because::Wanted).await
    }

    async fn start(&self, placed: &Placed, because: Because) -> Result<Spawned, Error> {
        let _permit = self.permits.acquire().await;
        let dir = self.dir(InstanceRef {
            app: placed.app.app,
            instance: placed.app.instance,
        });
        let boot = Boot {
            woken: because == Because::Wanted,
            ..self.boot(placed)
        };
        let prepared = {
            let dir = dir.clone();
            tokio::task::spawn_blocking(move || dir.prepare(&boot)).await
        };
        match prepared.unwrap_or_else(|panic| Err(io::Error::other(panic))) {
            Ok(Some(prepared)) => match exec(&self.config.runner, &dir, prepared) {
                Ok(child) => {
                    pass(match because {
                        Because::Placed => Point::Spawned,
                        Because::Wanted => Point::Woken,
                    });
                    Ok(Spawned::Child(child))
                }
                Err(error) => Ok(Spawned::Never(chain(&error).to_string())),
            },
            Ok(None) => dir
                .life()
                .map(Spawned::Other)
                .map_err(Error::file(dir.path())),
            Err(error) => {
                let error = Error::file(dir.path())(error);
                Ok(Spawned::Never(chain(&error).to_string()))
            }
        }
    }

    fn boot(&self, placed: &Placed) -> Boot {
        let app = placed.app.clone();
        let of = InstanceRef {
            app: app.app,
            instance: app.instance,
        };
        Boot {
            of,
            tenant: app.tenant,
            name: None,
            deploy: app.deploy,
            version: app.version,
            slot: app.slot,
            epoch: app.epoch,
            artifact: app.artifact,
            run: app.run,
            store: self.config.store.clone(),
            vault: self.config.vault,
            logs: self.config.logs_dir(of),
            cache: self.config.cache_dir(),
            volumes: Some(self.config.volumes_dir()),
            engine: self.config.engine.clone(),
            microvms: self.config.microvms.clone(),
            underlay: self.config.underlay,
            peers: self.config.peers.clone(),
            coordinator: self
                .config
                .identity
                .as_ref()
                .map(crate::Identity::coordinator),
            woken: false,
            secret: Secret::mint().to_text(),
        }
    }

    /// Makes sure that callers of an idle instance are sent to the doorbell.
    pub(crate) async fn tell(&self, of: InstanceRef) -> Result<(), Error> {
        pass(Point::BeforeTold);
        let doors = self.config.doors.as_ref().ok_or(Error::NotTold)?;
        for _ in 0..TELL_ATTEMPTS {
            let said = doors.ask(DoorAsk { of, guest: None }).await;
            if said.map_err(Error::Door)?.is_idle {
                pass(Point::Told);
                return Ok(());
            }
            sleep(TELL_AGAIN).await;
        }
        Err(Error::NotTold)
    }

    /// Lets an idle runner take no more requests. One that has something to do again goes on.
    pub(crate) async fn sleep(&self, of: InstanceRef, deadline: Duration) -> Result<Drain, Error> {
        pass(Point::BeforeSleep);
        let mut connection = Connection::open(&self.dir(of)).await?;
        Ok(match connection.sleep(deadline).await? {
            Some((finished, cut)) => {
                pass(Point::Asleep);
                Drain::Done { finished, cut }
            }
            None => Drain::Untried,
        })
    }

    /// Drains a runner. One that cannot be drained is no error: it is stopped next.
    pub(crate) async fn drain(&self, of: InstanceRef, deadline: Duration) -> Drain {
        let dir = self.dir(of);
        pass(Point::BeforeDrain);
        match drain(&dir, deadline).await {
            Ok((finished, cut)) => {
                pass(Point::Drained);
                Drain::Done { finished, cut }
            }
            Err(error) => {
                let path = dir.path().display();
                tracing::warn!(%path, error = %chain(&error), "a runner could not be drained");
                Drain::Refused
            }
        }
    }

    /// Ends a runner's process; returns once it has ended.
    pub(crate) async fn stop(&self, of: InstanceRef) -> Result<(), Error> {
        let _permit = self.permits.acquire().await;
        pass(Point::BeforeStop);
        stop(&self.dir(of)).await?;
        pass(Point::Ended);
        Ok(())
    }

    /// Removes the directory of a dead runner.
    pub(crate) async fn remove(&self, of: InstanceRef) -> Result<(), Error> {
        let dir = self.dir(of);
        let path = dir.path().to_owned();
        pass(Point::BeforeRemove);
        let engine = self.config.engine.as_deref();
        clean(&self.config.runner, &dir, engine).await?;
        let removed = tokio::task::spawn_blocking(move || dir.remove()).await;
        removed
            .unwrap_or_else(|panic| Err(io::Error::other(panic)))
            .map_err(Error::file(path))?;
        pass(Point::Removed);
        Ok(())
    }
}

/// Removes what the dead runner of an image left in its engine: a container outlives who started it. The
/// runner program does that, which knows engines.
async fn clean(program: &Path, dir: &RunnerDir, engine: Option<&str>) -> Result<(), Error> {
    match dir.boot() {
        Ok(boot) if boot.run.image.is_none() => return Ok(()),
        Ok(_) => {}
        // Without a boot document nothing was ever started.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        // One that cannot be read says nothing of what was: that is looked for by the instance's name.
        Err(error) => {
            let path = dir.path().display();
            tracing::warn!(%path, %error, "a boot document cannot be read; what it started is looked for");
        }
    }
    let cleaning = Command::new(program)
        .arg("--clean")
        .arg(dir.path())
        .args(engine)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .status();
    let failed = |detail: String| Error::Unclean {
        path: dir.path().to_owned(),
        detail,
    };
    match timeout(CLEAN_WITHIN, cleaning).await {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(failed(format!("{} --clean: {status}", program.display()))),
        Ok(Err(error)) => Err(failed(format!("{}: {error}", program.display()))),
        Err(_) => Err(failed(
            "the container engine does not answer in time".to_owned(),
        )),
    }
}

/// Starts the runner: the lock is its standard input, everything else of ours closes on exec.
fn exec(program: &Path, dir: &RunnerDir, prepared: Prepared) -> Result<Child, Error> {
    let spawn = || -> io::Result<Child> {
        Command::new(program)
            .arg(dir.path())
            .env_clear()
            .current_dir(dir.path())
            .stdin(Stdio::from(prepared.lock))
            .stdout(Stdio::from(prepared.log.try_clone()?))
            .stderr(Stdio::from(prepared.log))
            .spawn()
    };
    spawn().map_err(|source| Error::Spawn {
        path: program.to_owned(),
        source,
    })
}

/// Lets a runner finish what it has begun: how many requests it finished, and how many it cut.
pub(crate) async fn drain(dir: &RunnerDir, deadline: Duration) -> Result<(u64, u64), Error> {
    Connection::open(dir).await?.drain(deadline).await
}

/// How a runner was stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stopped {
    /// It had ended before.
    Before,
    /// It ended when it was asked to.
    Politely,
    /// It had to be killed.
    Killed,
}

/// Ends the runner that holds the lock, and returns once it has ended. Asks over the control
/// socket, or with SIGTERM where that does not answer, and kills what stays. Signals go to the
/// process that was seen to hold the lock, through a descriptor, so they can hit nobody else.
pub(crate) async fn stop(dir: &RunnerDir) -> Result<Stopped, Error> {
    let file = || Error::file(dir.path());
    let process = match holder(dir).map_err(file())? {
        Holder::Nobody => return Ok(Stopped::Before),
        Holder::Unknown => {
            let path = dir.path().to_owned();
            return Err(Error::Unidentified { path });
        }
        Holder::Process(process) => process,
    };
    let asked = match Connection::open(dir).await {
        Ok(mut connection) => connection.stop().await,
        Err(error) => Err(error),
    };
    if let Err(error) = asked {
        tracing::warn!(path = %dir.path().display(), pid = process.pid, error = %chain(&error), "a runner cannot be asked to stop, sending it SIGTERM");
        process.signal(Signal::TERM).map_err(file())?;
    }
    pass(Point::AskedToStop);
    if timeout(STOP_WITHIN, process.ended()).await.is_ok() {
        return Ok(Stopped::Politely);
    }
    kill(dir, &process).await
}

async fn kill(dir: &RunnerDir, process: &Process) -> Result<Stopped, Error> {
    tracing::warn!(path = %dir.path().display(), pid = process.pid, "a runner does not stop, killing it");
    process
        .signal(Signal::KILL)
        .map_err(Error::file(dir.path()))?;
    match timeout(KILL_WITHIN, process.ended()).await {
        Ok(()) => Ok(Stopped::Killed),
        Err(_) => Err(Error::Immortal {
            path: dir.path().to_owned(),
        }),
    }
}
