//! The firecracker runtime: the version's image in a virtual machine of its own.
//!
//! ```text
//! archive ─▶ image, its root file system (cached) ─▶ machine ─┬─▶ task `machine output`: what it prints, into
//!                                                             │   the app's log
//!                                                             └─▶ listens, healthy ─▶ serve ([`crate::upstream`])
//! ```
//! A machine ends with the runner, however that ends: it is a process that the kernel binds to ours. What is then
//! left is a directory in the runner's own.

mod words;

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tabbify_api::BoxFuture;
use tabbify_api::attach::{CommandLine, PIECE_LEN_MAX, Piece};
use tabbify_api::logs;
use tabbify_api::runner::Failure;
use tabbify_container::{Seen, healthy};
use tabbify_image::{Cache, Config, Image, ImageError, Limits, Platform, Root};
use tabbify_microvm::order::Process;
use tabbify_microvm::{
    App, Assets, Chunk, Ending, Machine, PROXY_PORT, Qemu, Source, Vm, VmError, signal_number,
};
use tabbify_process::connect::Stream;
use tabbify_process::{Importance, SystemClock, Tasks, chain};
use tabbify_types::ByteSize;
use tabbify_types::event::v1::{FailureReason, ImageConfig, ImagePort};
use tokio::net::TcpStream;
use tokio::sync::mpsc::{self, Receiver};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::docker::words::{failure, unhealthy};
use crate::egress::{self, Egress};
use crate::output::Output;
use crate::runtime::{Body, Entry, OUTSIDE_FILE, RequestError, Runtime, Start};
use crate::traffic::Permit;
use crate::upstream::{self, Upstream};

/// What [`OUTSIDE_FILE`] has in it of one.
pub(crate) const OUTSIDE: &str = "machine\n";
/// The machine's directory, in the runner's.
const DIRECTORY: &str = "machine";
/// LIMIT: root file systems that are kept on a machine, beyond those in use.
const ROOTS_LEN_MAX: u64 = 8 << 30;
/// What a guest's own kernel takes of its memory: the app is not to pay for it.
const OF_THE_KERNEL: ByteSize = ByteSize::mib(96);
/// LIMIT: processors of a machine; more than an app may have.
const PROCESSORS_MAX: u64 = 64;
/// LIMIT: how long the last lines of a machine that has ended may take to come.
const OUTPUT_WITHIN: Duration = Duration::from_secs(5);
/// LIMIT: how long the guest may take to end after its app has, before the machine is.
const RESET_WITHIN: Duration = Duration::from_secs(2);
/// LIMIT: how long whoever comes to a raw port waits for the app to listen there.
const LISTENS_WITHIN: Duration = Duration::from_secs(1);
/// Where an app answers if nothing says otherwise.
const DEFAULT_PORT: u16 = 8080;
const SIGTERM: i32 = 15;

/// A running machine.
pub struct Microvm {
    vm: Vm,
    /// `None` for a worker.
    upstream: Option<Upstream>,
    stop_signal: i32,
    memory: ByteSize,
    began: Instant,
    printed: CancellationToken,
    /// Whoever has it keeps it in the cache.
    _root: Root,
}

impl fmt::Debug for Microvm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Microvm")
            .field("vm", &self.vm)
            .field("upstream", &self.upstream)
            .finish_non_exhaustive()
    }
}

impl Microvm {
    /// Boots the machine and returns when its app is healthy. Nothing is left of one that is not.
    ///
    /// # Errors
    /// Why it is not.
    pub async fn start(start: Start) -> Result<Self, Failure> {
        let spawn = |why: &str| failure(FailureReason::Spawn, why.to_owned());
        let Entry::File(path) = &start.entry else {
            return Err(spawn("its image is no file"));
        };
        let Some(wanted) = start.run.image.clone() else {
            return Err(spawn("it has no image"));
        };
        let Some(made_of) = &start.microvms else {
            let why = "this machine has nothing to make microVMs of. Run there: tabbify doctor";
            return Err(failure(FailureReason::Runtime, why.to_owned()));
        };
        let entries = &start.run.egress;
        let egress = Egress::new(entries, &start.neighbors, &start.output, &start.tasks)?;
        let (config, root) = read(path.clone(), start.cache.join("roots")).await?;
        let port = port(&wanted, &config);
        let app = app(&start, &wanted, &config, port)?;
        let stop_signal = stop_signal(&config)?;
        let machine = machine(&start, &wanted, root.path(), port);
        let intent = start.directory.join(OUTSIDE_FILE);
        tabbify_process::files::write_atomic(&intent, OUTSIDE.as_bytes(), 0o600)
            .map_err(|error| spawn(&format!("{} cannot be written: {error}", intent.display())))?;
        let assets = Assets::new(made_of, start.cache.join("microvm"));
        let qemu = Qemu::new(assets, made_of.acceleration);
        let began = Instant::now();
        let booted = Vm::boot(&qemu, &machine, app, &SystemClock, &start.tasks).await;
        let (vm, output) = booted.map_err(|error| words::failed(&error))?;
        let_out(&vm, egress, &start.tasks);
        let mut this = Self {
            vm,
            upstream: None,
            stop_signal,
            memory: start.run.memory,
            began,
            printed: follow(output, &start.output, &start.tasks),
            _root: root,
        };
        let within = Duration::from_millis(start.run.healthy_within_ms);
        match this
            .healthy(port, wanted.health_path.as_deref(), within)
            .await
        {
            Ok(address) => {
                this.upstream = address.map(|address| Upstream::new(address, &start.tasks));
                Ok(this)
            }
            Err(failure) => {
                this.vm.kill().await;
                // What it said of it is to be in the log before the reason is told.
                let _ = timeout(OUTPUT_WITHIN, this.printed.cancelled()).await;
                Err(failure)
            }
        }
    }

    /// Waits until it answers, or, as a worker, runs; where it answers.
    async fn healthy(
        &self,
        port: Option<u16>,
        path: Option<&str>,
        within: Duration,
    ) -> Result<Option<SocketAddr>, Failure> {
        let Some(port) = port else {
            return Ok(None);
        };
        tokio::select! {
            failure = self.failure() => Err(failure),
            address = self.answers(port, path, within) => address.map(Some),
        }
    }

    async fn answers(
        &self,
        port: u16,
        path: Option<&str>,
        within: Duration,
    ) -> Result<SocketAddr, Failure> {
        let end = Instant::now() + within;
        let seen = match self.vm.listening(port, within).await {
            Ok(address) => {
                // Whoever listens may be asked; before, the monitor would take the question for it.
                let left = end.saturating_duration_since(Instant::now());
                match path {
                    None => return Ok(address),
                    Some(_) => match healthy(address, path, left).await {
                        Ok(()) => return Ok(address),
                        Err(seen) => seen,
                    },
                }
            }
            Err(VmError::NotListening { .. }) => Seen::Nobody,
            // It has ended, and that is told by whoever waits for its end.
            Err(VmError::Over) => return std::future::pending().await,
            Err(error) => return Err(words::failed(&error)),
        };
        // A guest that does not answer is one of which nothing is known to listen.
        let listening = self.vm.listeners().await.unwrap_or_default();
        let detail = unhealthy(port, path, within, &seen, &listening);
        Err(failure(FailureReason::Unhealthy, detail))
    }

    /// Why it has ended, once it has, and its last lines are in the log.
    async fn failure(&self) -> Failure {
        let ending = self.vm.wait().await;
        let ran_for = self.began.elapsed();
        // A log that does not end must not hide why the app did.
        let _ = timeout(OUTPUT_WITHIN, self.printed.cancelled()).await;
        words::ended(&ending, self.memory, ran_for)
    }
}

impl Runtime for Microvm {
    fn serve(
        &self,
        request: http::Request<Body>,
        permit: Permit,
    ) -> BoxFuture<'_, Result<http::Response<Body>, RequestError>> {
        Box::pin(upstream::serve(self.upstream.as_ref(), request, permit))
    }

    fn ended(&self) -> BoxFuture<'_, Failure> {
        Box::pin(self.failure())
    }

    fn dial(&self, port: u16) -> BoxFuture<'_, io::Result<Box<dyn Stream>>> {
        Box::pin(async move {
            // Before it listens, the monitor would take the connection for it.
            let found = self.vm.listening(port, LISTENS_WITHIN).await;
            let refused = |error| io::Error::new(io::ErrorKind::ConnectionRefused, error);
            let stream = TcpStream::connect(found.map_err(refused)?).await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as Box<dyn Stream>)
        })
    }

    fn exec(
        &self,
        command: Vec<String>,
        output: mpsc::Sender<CommandLine>,
    ) -> BoxFuture<'_, Result<i64, String>> {
        Box::pin(run(&self.vm, command, output))
    }

    fn stop(&self, grace: Duration) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let stopping = self.vm.stop(self.stop_signal, grace);
            let ending = match timeout(grace + RESET_WITHIN, stopping).await {
                Ok(ending) => ending,
                Err(_) => self.vm.kill().await,
            };
            if ending == Ending::Killed {
                tracing::warn!("the machine did not end by itself, and was ended");
            }
            // What it said when it was stopped.
            let _ = timeout(OUTPUT_WITHIN, self.printed.cancelled()).await;
        })
    }
}

/// Whether what was made for the runner of this directory is a machine, and nothing in an engine.
pub(crate) fn is_made_by(directory: &Path) -> bool {
    let said = std::fs::read_to_string(directory.join(OUTSIDE_FILE));
    said.is_ok_and(|said| said == OUTSIDE)
}

/// Runs a command beside the app; its exit code.
async fn run(
    vm: &Vm,
    command: Vec<String>,
    output: mpsc::Sender<CommandLine>,
) -> Result<i64, String> {
    let gone = || "nobody wants to know what it prints any more".to_owned();
    let said = |error: VmError| chain(&error).to_string();
    let mut exec = vm.exec(command).await.map_err(said)?;
    loop {
        let printed = tokio::select! {
            printed = exec.output() => printed,
            () = output.closed() => return Err(gone()),
        };
        let Some(chunk) = printed else { break };
        for piece in chunk.bytes.chunks(PIECE_LEN_MAX) {
            let piece = Piece(piece.to_vec());
            let line = match chunk.source {
                Source::Stdout => CommandLine::Stdout(piece),
                Source::Stderr => CommandLine::Stderr(piece),
            };
            output.send(line).await.map_err(|_| gone())?;
        }
    }
    let end = exec.end().await.map_err(said)?;
    Ok(words::code(end.status))
}

/// Removes what a dead runner left of its machine.
///
/// # Errors
/// What may be left.
pub async fn reap(directory: &Path) -> Result<(), String> {
    let machine = directory.join(DIRECTORY);
    let reaped = tokio::task::spawn_blocking(move || tabbify_microvm::reap(&machine)).await;
    match reaped {
        Ok(reaped) => reaped.map_err(|error| chain(&error).to_string()),
        Err(panic) => Err(panic.to_string()),
    }
}

/// The image's configuration and its root file system, which is made the first time.
async fn read(path: PathBuf, roots: PathBuf) -> Result<(Config, Root), Failure> {
    let read = move || {
        let image = Image::open(&path, &Platform::here(), Limits::default())?;
        let root = Cache::open(&roots, ROOTS_LEN_MAX)?.root(&image)?;
        Ok::<_, ImageError>((image.config().clone(), root))
    };
    let read = tokio::task::spawn_blocking(read).await;
    match read {
        Ok(Ok(read)) => Ok(read),
        Ok(Err(error)) => Err(words::unreadable(&error)),
        Err(panic) => {
            let detail = format!("reading it failed: {panic}");
            Err(failure(FailureReason::Image, detail))
        }
    }
}

/// Of several ports the usual one, or else the first, as in a container.
fn port(wanted: &ImageConfig, config: &Config) -> Option<u16> {
    match wanted.port {
        ImagePort::Number(port) => Some(port),
        ImagePort::None => None,
        ImagePort::OfImage if config.ports.contains(&DEFAULT_PORT) => Some(DEFAULT_PORT),
        ImagePort::OfImage => Some(config.ports.first().copied().unwrap_or(DEFAULT_PORT)),
    }
}

fn stop_signal(config: &Config) -> Result<i32, Failure> {
    let Some(named) = &config.stop_signal else {
        return Ok(SIGTERM);
    };
    signal_number(named).ok_or_else(|| {
        let detail = format!("its STOPSIGNAL {named:?} is no signal");
        failure(FailureReason::Image, detail)
    })
}

/// What runs in the machine: as the image says, and over that as the manifest does.
fn app(
    start: &Start,
    wanted: &ImageConfig,
    config: &Config,
    port: Option<u16>,
) -> Result<App, Failure> {
    let command = config.command(&wanted.command);
    let command = command.map_err(|error| words::unreadable(&error))?;
    let mut env = start.run.env.clone();
    if let Some(port) = port {
        env.insert("PORT".to_owned(), port.to_string());
    }
    // What an app says of its variables itself, stands.
    let proxy = SocketAddr::from((Ipv4Addr::LOCALHOST, PROXY_PORT));
    for (name, value) in egress::variables(proxy) {
        let is_said = config.env.iter().any(|(said, _)| *said == name);
        if !is_said {
            env.entry(name).or_insert(value);
        }
    }
    // They go to the guest over the machine's own channel, and to no disk.
    let secrets = start.secrets.variables();
    env.extend(secrets.map(|(name, value)| (name.to_owned(), value.to_owned())));
    let of_image = config
        .env
        .iter()
        .filter(|(name, _)| !env.contains_key(name));
    let of_image: Vec<(String, String)> = of_image.cloned().collect();
    Ok(App {
        process: Process {
            command,
            env: of_image.into_iter().chain(env).collect(),
            user: config.user.clone(),
            working_dir: config.working_dir.clone(),
        },
        hostname: format!("{}-{}", start.of.app, start.of.instance),
        // Files in memory are memory that the app does not have otherwise.
        scratch: ByteSize(start.run.memory.bytes() / 2),
        volume: start.run.volume.as_ref().map(|volume| volume.mount.clone()),
        files: start
            .secrets
            .files()
            .map(|(name, content)| (name.to_owned(), content.to_vec()))
            .collect(),
    })
}

fn machine(start: &Start, wanted: &ImageConfig, root: &Path, port: Option<u16>) -> Machine {
    // Parts of a processor are whole ones here.
    let processors = u64::from(wanted.cpus_milli).div_ceil(1000);
    let processors = processors.clamp(1, PROCESSORS_MAX);
    let memory = start
        .run
        .memory
        .bytes()
        .saturating_add(OF_THE_KERNEL.bytes());
    let mut ports: Vec<u16> = port.into_iter().chain(start.run.ports.clone()).collect();
    ports.sort_unstable();
    ports.dedup();
    Machine {
        directory: start.directory.join(DIRECTORY),
        root: root.to_owned(),
        volume: start.volume.clone(),
        memory: ByteSize(memory),
        processors: u8::try_from(processors).unwrap_or(u8::MAX),
        way_out: true,
        ports,
    }
}

/// Serves what the guest's programs connect to, for as long as it lives.
fn let_out(vm: &Vm, egress: Egress, tasks: &Tasks) {
    let Some(mut connections) = vm.connections() else {
        return;
    };
    tasks.spawn("machine egress", Importance::Detached, async move {
        while let Some(connection) = connections.recv().await {
            egress.connection(connection);
        }
    });
}

/// Puts what the app prints into its log; cancelled when all of it is there.
fn follow(mut from: Receiver<Chunk>, output: &Output, tasks: &Tasks) -> CancellationToken {
    let printed = CancellationToken::new();
    let done = printed.clone().drop_guard();
    let both = [logs::Stream::Stdout, logs::Stream::Stderr];
    let [stdout, stderr] = both.map(|of| output.printer(of));
    tasks.spawn("machine output", Importance::Detached, async move {
        while let Some(chunk) = from.recv().await {
            match chunk.source {
                Source::Stdout => stdout.print(&chunk.bytes).await,
                Source::Stderr => stderr.print(&chunk.bytes).await,
            }
        }
        stdout.finish().await;
        stderr.finish().await;
        drop(done);
    });
    printed
}
