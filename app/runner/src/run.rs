//! The life of a runner, from the lock to the last word.

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use futures_util::FutureExt as _;
use tabbify_api::runner::{Birth, Boot, CONTROL_SOCKET, ExitRecord, Failure};
use tabbify_mesh::{Incoming, Listener, Mesh};
use tabbify_process::{Clock, Importance, SystemClock, Tasks, chain, signals, telemetry, unix};
use tabbify_types::APP_PORT;
use tabbify_types::event::v1::{FailureReason, RuntimeKind};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::attach::Attach;
use crate::control::Control;
use crate::door::Door;
use crate::home::{Home, Secret};
use crate::lease::Leaseholder;
use crate::lock::Lock;
use crate::membership::Joined;
use crate::output::Output;
use crate::ports::Ports;
use crate::runtime::{Entry, Runtime, Start};
use crate::server::{Caller, Server};
use crate::state::{Identity, State};
use crate::traffic::Traffic;
use crate::volume::Volume;
use crate::wasm_http::Limits;
use crate::wasm_http::neighbors::Neighbors;
use crate::{Error, artifact, idle, membership, runtime, secrets, volume};

/// Threads that serve: one app rarely needs more, and a thousand runners share the machine.
const WORKERS: usize = 2;

/// LIMIT: how long a runner that could serve waits until a coordinator has heard where it is.
const FOUND_WITHIN: Duration = Duration::from_secs(2);
/// LIMIT: connections at a time; more wait in the mesh's backlog.
const CONNECTIONS_MAX: usize = 1024;

/// How long a runner that failed stays, so that its supervisor can ask why.
const FAILED_FOR: Duration = Duration::from_secs(10);

/// How long requests may go on after `SIGTERM`, and after a newer instance has taken over.
const TERMINATED_DRAIN: Duration = Duration::from_secs(5);

/// How long what is written may take to be acknowledged by the other end, and by the disk.
const FLUSH_WITHIN: Duration = Duration::from_secs(1);

/// LIMIT: a failure's text, in bytes, as the `app_failed` event has it.
const DETAIL_LEN_MAX: usize = 4 * 1024;

/// LIMIT: how long a container may take to end, once it is asked to: requests have ended by then, and a
/// supervisor kills a runner that is not gone within ten seconds.
const STOP_GRACE_MAX: Duration = Duration::from_secs(5);

/// The image's file in the runner's directory, while it is being started.
const IMAGE_FILE: &str = "image.tar";

/// Exit code of a runner whose app cannot be served.
const EXIT_FAILED: u8 = 1;

/// Exit code of a runner that could not begin.
const EXIT_NOT_BEGUN: u8 = 2;

/// How a life ended.
struct End {
    code: u8,
    failure: Option<Failure>,
}

/// The whole program: lives in `directory` until it is told to stop, and says why it ended.
#[must_use]
pub fn main(directory: &Path) -> ExitCode {
    telemetry::init();
    std::panic::set_hook(Box::new(|panic| tracing::error!(%panic, "panicked")));
    let mut lock = match Lock::take(directory) {
        Ok(lock) => lock,
        Err(error) => {
            // The directory is somebody else's: leave no word in it.
            tracing::error!(error = %chain(&error), "not started");
            return ExitCode::from(EXIT_NOT_BEGUN);
        }
    };
    let home = Home::new(directory);
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let lived = std::panic::catch_unwind(AssertUnwindSafe(|| live(&home, &mut lock, &clock)));
    let end = match lived {
        Ok(Ok(end)) => end,
        Ok(Err(error)) => End {
            code: EXIT_NOT_BEGUN,
            failure: failure(FailureReason::Spawn, chain(&error).to_string()),
        },
        Err(_) => End {
            code: EXIT_FAILED,
            failure: failure(FailureReason::Exited, "the runner panicked".to_owned()),
        },
    };
    if let Some(failure) = &end.failure {
        tracing::error!(reason = ?failure.reason, detail = failure.detail, "failed");
    }
    let record = ExitRecord {
        code: end.code.into(),
        failure: end.failure,
        at: clock.now(),
    };
    if let Err(error) = home.write_exit(&record) {
        tracing::error!(%error, "the exit record cannot be written");
    }
    ExitCode::from(end.code)
}

fn failure(reason: FailureReason, detail: String) -> Option<Failure> {
    Some(Failure { reason, detail })
}

fn live(home: &Home, lock: &mut Lock, clock: &Arc<dyn Clock>) -> Result<End, Error> {
    // Detached: a signal to the supervisor's terminal is none to us. A session leader is refused,
    // and has what it asks for.
    let _ = rustix::process::setsid();
    let (boot, secret) = home.boot()?;
    lock.write_birth(&Birth {
        of: boot.of,
        pid: std::process::id(),
        at: clock.now(),
    })?;
    let workers = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .thread_name("runner")
        .enable_all()
        .build()
        .map_err(Error::Process)?;
    let end = workers.block_on(async {
        let signals = Tasks::new();
        signals::stop_on_signals(&signals).map_err(Error::Process)?;
        let runner = Runner::begin(home, boot, secret, clock)?;
        Ok(Box::pin(runner.run(signals.token())).await)
    });
    // A compilation that is under way would be waited for.
    workers.shutdown_background();
    end
}

/// Why it does not go on.
enum Ended {
    /// The app cannot be served.
    Failed(Failure),
    /// It may not serve any more.
    Unleased(Failure),
}

/// A runner that has joined the mesh and answers its supervisor.
struct Runner {
    boot: Boot,
    tasks: Tasks,
    mesh: Mesh,
    lease: Option<Leaseholder>,
    neighbors: Neighbors,
    output: Output,
    traffic: Traffic,
    state: Arc<State>,
    door: Arc<Door>,
    stop: CancellationToken,
    /// The directory of this runner.
    directory: PathBuf,
    /// What serves, from when it does.
    runtime: OnceLock<Arc<dyn Runtime>>,
    /// What the app keeps, from when it is had; behind what uses it, and so let go after that.
    volume: OnceLock<Volume>,
}

impl Runner {
    fn begin(
        home: &Home,
        boot: Boot,
        secret: Secret,
        clock: &Arc<dyn Clock>,
    ) -> Result<Self, Error> {
        let tasks = Tasks::new();
        let listener = unix::bind(home.directory(), CONTROL_SOCKET).map_err(Error::Control)?;
        let Joined {
            mesh,
            peers,
            coordinator,
        } = membership::join(&boot, clock, &tasks)?;
        let output = Output::open(&boot.logs, boot.of.instance, Arc::clone(clock), &tasks)
            .map_err(|source| Error::Output {
                path: boot.logs.clone(),
                source,
            })?;
        let traffic = Traffic::new(Limits::DEFAULT.requests.into());
        let identity = Identity {
            of: boot.of,
            pid: std::process::id(),
            key: mesh.public_key(),
            underlay: mesh.underlay_addr().map_err(Error::Process)?,
        };
        let state = Arc::new(State::new(identity, traffic.clone()));
        let neighbors = match &coordinator {
            Some(names) => Neighbors::new(boot.of.app, Arc::new(names.clone()), mesh.clone()),
            None => Neighbors::none(boot.of.app),
        };
        let leased = coordinator
            .clone()
            .zip(boot.coordinator.as_ref())
            .map(|(client, at)| {
                // Before anybody can ask: a ticket is wanted.
                state.unleased();
                let grace = Duration::from_millis(at.outage_grace_ms);
                Leaseholder::new(boot.of, boot.woken, client, grace, Arc::clone(&state))
            });
        let (lease, tickets) = leased.unzip();
        let doors = boot.coordinator.as_ref().map(|at| at.doors.clone());
        let doors = doors.unwrap_or_default();
        let runner = Self {
            state,
            boot,
            tasks,
            mesh,
            lease,
            neighbors,
            output,
            traffic,
            door: Arc::default(),
            stop: CancellationToken::new(),
            directory: home.directory().to_owned(),
            runtime: OnceLock::new(),
            volume: OnceLock::new(),
        };
        let control = Arc::new(Control {
            secret,
            state: Arc::clone(&runner.state),
            traffic: runner.traffic.clone(),
            peers,
            coordinator,
            doors: Mutex::new(doors),
            tickets,
            door: Arc::clone(&runner.door),
            stop: runner.stop.clone(),
        });
        let serving = control.serve(listener, runner.tasks.clone());
        runner
            .tasks
            .spawn("control", Importance::Essential, serving);
        Ok(runner)
    }

    /// Serves until told to stop, then ends in order: no new connections, the deadline for open
    /// ones, the app's log, the network.
    async fn run(self, terminated: CancellationToken) -> End {
        let of = self.boot.of;
        tracing::info!(app = %of.app, instance = %of.instance, version = %self.boot.version, "begun");
        let (end, deadline) = tokio::select! {
            ended = self.serve() => match ended {
                Ended::Failed(failure) => (self.fail(failure, &terminated).await, Duration::ZERO),
                Ended::Unleased(failure) => {
                    let failure = Some(failure);
                    (End { code: EXIT_FAILED, failure }, TERMINATED_DRAIN)
                }
            },
            () = self.stop.cancelled() => (End { code: 0, failure: None }, Duration::ZERO),
            () = terminated.cancelled() => (End { code: 0, failure: None }, TERMINATED_DRAIN),
            () = self.ended_inside() => (self.broken(), Duration::ZERO),
        };
        self.state.draining();
        let drained = self.traffic.drain(deadline).await;
        tracing::info!(cut = drained.cut, code = end.code, "ending");
        self.end_runtime().await;
        // Whatever is not out by then has nobody who wants it.
        let _ = tokio::time::timeout(FLUSH_WITHIN, self.output.flush()).await;
        self.mesh.close(FLUSH_WITHIN).await;
        // The control socket and the log's writer are left, and hold nothing back.
        self.tasks.stop();
        end
    }

    /// Ends what runs the app, as far as it is not this process.
    async fn end_runtime(&self) {
        let run = &self.boot.run;
        let cleaned = match self.runtime.get() {
            Some(runtime) => {
                let grace = Duration::from_millis(run.stop_timeout_ms).min(STOP_GRACE_MAX);
                runtime.stop(grace).await;
                return;
            }
            // It may have been cut off while it was being started.
            None => runtime::clean(&self.directory, &self.boot).await,
        };
        if let Err(why) = cleaned {
            tracing::warn!(why, "what runs the app is left to the supervisor");
        }
    }

    /// Gets the lease, if there is a coordinator, and serves the app for as long as it is kept.
    async fn serve(&self) -> Ended {
        let leased = CancellationToken::new();
        let Some(lease) = &self.lease else {
            leased.cancel();
            return Ended::Failed(self.serve_app(&leased).await);
        };
        let holding = async {
            match lease.obtain().await {
                Ok(until) => {
                    tracing::info!("leased");
                    leased.cancel();
                    Ended::Unleased(lease.keep(until).await)
                }
                Err(failure) => Ended::Failed(failure),
            }
        };
        tokio::select! {
            failure = self.serve_app(&leased) => Ended::Failed(failure),
            ended = holding => ended,
        }
    }

    /// Starts the app and serves it: those who come through the doorbell at once, all others once it is `leased`.
    /// Returns only if it cannot be served.
    async fn serve_app(&self, leased: &CancellationToken) -> Failure {
        if !self.starts_alone() {
            leased.cancelled().await;
        }
        let failure = match self.start().await {
            Ok(runtime) => {
                let server = Server::new(Arc::clone(&runtime), self.traffic.clone());
                let ports = self.boot.run.ports.clone();
                let (traffic, tasks) = (self.traffic.clone(), self.tasks.clone());
                let attach = Attach::new(Arc::clone(&runtime), traffic, tasks);
                let raw = self.raw_ports(&runtime);
                self.door.open(server.clone(), raw, ports, attach.clone());
                tokio::select! {
                    failure = self.ended(&*runtime) => failure,
                    failure = self.listen(server, attach, leased) => failure,
                }
            }
            Err(failure) => failure,
        };
        Failure {
            detail: shortened(failure.detail),
            ..failure
        }
    }

    /// Whether the app can be started before anybody knows this runner: its instance has its place, and nothing
    /// that it needs is asked for over the mesh.
    fn starts_alone(&self) -> bool {
        let Boot {
            woken, run, store, ..
        } = &self.boot;
        *woken && run.secrets.is_empty() && store.starts_with("file:")
    }

    /// Serves on the app's addresses. Returns only if it cannot.
    async fn listen(&self, server: Server, attach: Attach, leased: &CancellationToken) -> Failure {
        leased.cancelled().await;
        let listener = match self.mesh.listen(APP_PORT) {
            Ok(listener) => listener,
            Err(error) => {
                return Failure {
                    reason: FailureReason::Spawn,
                    detail: chain(&error).to_string(),
                };
            }
        };
        if let Err(failure) = self.open_ports(server.runtime(), attach) {
            return failure;
        }
        self.be_found().await;
        if self.state.ready() {
            tracing::info!("ready");
        }
        tokio::select! {
            () = self.accept(server, listener) => {}
            never = self.notice_idleness() => match never {},
        }
        // Drained: the supervisor says when to end.
        std::future::pending().await
    }

    /// Waits until others can find this runner: who is ready gets requests at once. A coordinator that is away for
    /// longer holds nobody back; whoever knows us then still reaches us.
    async fn be_found(&self) {
        if let Some(lease) = &self.lease
            && tokio::time::timeout(FOUND_WITHIN, lease.found())
                .await
                .is_err()
        {
            tracing::warn!("no coordinator has heard where this runner is");
        }
    }

    fn raw_ports(&self, runtime: &Arc<dyn Runtime>) -> Ports {
        Ports {
            runtime: Arc::clone(runtime),
            traffic: self.traffic.clone(),
            tasks: self.tasks.clone(),
        }
    }

    /// Takes raw connections, and commands of nodes.
    fn open_ports(&self, runtime: &Arc<dyn Runtime>, attach: Attach) -> Result<(), Failure> {
        let ports = self.raw_ports(runtime);
        ports.open(&self.mesh, &self.boot.run.ports)?;
        attach.open(&self.mesh).map_err(|error| Failure {
            reason: FailureReason::Spawn,
            detail: chain(&error).to_string(),
        })
    }

    async fn notice_idleness(&self) -> Infallible {
        match self.boot.run.idle_after_ms {
            Some(after) => {
                idle::watch(&self.traffic, &self.state, Duration::from_millis(after)).await
            }
            None => std::future::pending().await,
        }
    }

    /// Returns if what runs the app ends by itself while it is to serve.
    async fn ended(&self, runtime: &dyn Runtime) -> Failure {
        let failure = runtime.ended().await;
        if self.state.is_draining() {
            std::future::pending::<()>().await;
        }
        failure
    }

    async fn start(&self) -> Result<Arc<dyn Runtime>, Failure> {
        let (uses, vault) = (&self.boot.run.secrets, self.boot.vault);
        let secrets = secrets::fetch(uses, vault, &self.mesh, &self.tasks).await?;
        self.state.has_secrets(secrets.versions().clone());
        let store = artifact::open(&self.boot.store, &self.mesh, &self.tasks)?;
        let scratch = self.directory.join(IMAGE_FILE);
        let entry = match self.boot.run.runtime {
            RuntimeKind::WasmHttp => Entry::Memory(artifact::fetch(&self.boot, &*store).await?),
            RuntimeKind::Docker | RuntimeKind::Firecracker => {
                Entry::File(artifact::fetch_file(&self.boot, &*store, &scratch).await?)
            }
        };
        drop(store);
        let volume = self.volume().await?;
        let runtime = runtime::start(Start {
            run: self.boot.run.clone(),
            of: self.boot.of,
            engine: self.boot.engine.clone(),
            microvms: self.boot.microvms.clone(),
            cache: self.boot.cache.clone(),
            directory: self.directory.clone(),
            secrets,
            entry,
            output: self.output.clone(),
            tasks: self.tasks.clone(),
            limits: Limits::DEFAULT,
            neighbors: self.neighbors.clone(),
            volume,
        })
        .await?;
        // It may be the store's own, elsewhere; ours is not needed any more.
        let _ = tokio::fs::remove_file(&scratch).await;
        Ok(Arc::clone(self.runtime.get_or_init(|| runtime)))
    }

    /// Has the app's volume, if it has one, for as long as this lives.
    async fn volume(&self) -> Result<Option<PathBuf>, Failure> {
        let Some(volume) = volume::take(&self.boot, &self.directory).await? else {
            return Ok(None);
        };
        let volume = self.volume.get_or_init(|| volume);
        for notice in volume.notices() {
            self.output.platform(&format!("tabbify: {notice}")).await;
        }
        Ok(Some(volume.place().to_owned()))
    }

    /// Takes connections until the runner drains, and then those that were let in before; dropping the
    /// listener refuses new ones.
    async fn accept(&self, server: Server, mut listener: Listener) {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let _listening = self.traffic.listening();
        let mut next = async || {
            let place = Arc::clone(&places).acquire_owned().await.ok()?;
            let incoming = listener.accept().await.ok()?;
            Some((place, incoming))
        };
        let serve = |(place, incoming): (OwnedSemaphorePermit, Incoming)| {
            let server = server.clone().called_by(Caller::of(&incoming));
            let connection = server.connection(incoming.stream);
            self.tasks.spawn("connection", Importance::Detached, async {
                connection.await;
                drop(place);
            });
        };
        loop {
            tokio::select! {
                taken = next() => match taken {
                    Some(taken) => serve(taken),
                    None => return,
                },
                () = self.traffic.closing().cancelled() => break,
            }
        }
        for _ in 0..CONNECTIONS_MAX {
            match next().now_or_never() {
                Some(Some(taken)) => serve(taken),
                _ => return,
            }
        }
    }

    /// Tells everybody who may ask, and stays until somebody has.
    async fn fail(&self, failure: Failure, terminated: &CancellationToken) -> End {
        self.state.failed(failure.clone());
        self.door.shut(&failure.detail);
        let line = format!("tabbify: cannot start: {}", failure.detail);
        self.output.platform(&line).await;
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = terminated.cancelled() => {}
            () = tokio::time::sleep(FAILED_FOR) => {}
        }
        End {
            code: EXIT_FAILED,
            failure: Some(failure),
        }
    }

    /// Returns if a task without which the runner is nothing has ended.
    async fn ended_inside(&self) {
        self.tasks.token().cancelled_owned().await;
    }

    fn broken(&self) -> End {
        let detail = self.tasks.failure().unwrap_or_default();
        End {
            code: EXIT_FAILED,
            failure: failure(FailureReason::Exited, detail),
        }
    }
}

fn shortened(mut text: String) -> String {
    if text.len() > DETAIL_LEN_MAX {
        text.truncate(text.floor_char_boundary(DETAIL_LEN_MAX - '…'.len_utf8()));
        text.push('…');
    }
    text
}
