//! The docker runtime: the version's image in a container of the machine's engine.
//!
//! ```text
//! engine ─▶ archive ─▶ network ─▶ container ─┬─▶ task `container output`: its lines, into the app's log
//!                         │                  ├─▶ task `container`: its end, whenever that is
//!                         │                  └─▶ healthy ─▶ serve ([`crate::upstream`])
//!                         └─▶ its way out ([`crate::egress`])
//! ```
//! A runner that is killed leaves the container: [`reap`] removes it, before anything else is made of the
//! instance's directory.

mod exec;
pub(crate) mod words;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use tabbify_api::BoxFuture;
use tabbify_api::attach::CommandLine;
use tabbify_api::logs::Stream as LogStream;
use tabbify_api::runner::{Failure, MicroVms};
use tabbify_container::{
    Archive, Container, End, Engine, Enter, Listener, Network, PIDS_MAX, PORT, Reaped, Seen, Spec,
    Stream, healthy,
};
use tabbify_http::{Accept, Origin};
use tabbify_process::connect::Stream as Connected;
use tabbify_process::{Importance, Tasks, chain};
use tabbify_types::event::v1::{FailureReason, ImageConfig, ImagePort, InstanceRef, RunConfig};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use self::words::{failed, failure, unhealthy};
use crate::egress::{self, Egress};
use crate::output::Output;
use crate::runtime::{Body, Entry, OUTSIDE_FILE, RequestError, Runtime, Start};
use crate::secrets::Secrets;
use crate::traffic::Permit;
use crate::upstream::{self, Upstream};
use crate::volume::hand_over;

/// LIMIT: how long the last lines of a container that has ended may take to come.
const OUTPUT_WITHIN: Duration = Duration::from_secs(5);
/// LIMIT: how long the engine may take to remove what was made, before it is left to [`reap`].
const REMOVED_WITHIN: Duration = Duration::from_secs(30);

/// What is the first process of a container that gets secrets.
const ENTER_PROGRAM: &str = "tabbify-guest-init";

/// How the container ended, or why that cannot be known; `None` while it runs.
type Ended = Option<Result<End, String>>;

/// A running container.
pub struct Docker {
    container: Container,
    of: InstanceRef,
    engine: Engine,
    run: RunConfig,
    /// What further commands in it get.
    enter: Option<Enter>,
    /// `None` for a worker.
    upstream: Option<Upstream>,
    ended: watch::Receiver<Ended>,
    printed: CancellationToken,
    tasks: Tasks,
}

impl fmt::Debug for Docker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Docker")
            .field("container", &self.container.id())
            .field("upstream", &self.upstream)
            .finish_non_exhaustive()
    }
}

impl Docker {
    /// Starts the container and returns when it is healthy. Nothing is left of one that is not.
    ///
    /// # Errors
    /// Why it is not.
    pub async fn start(start: Start) -> Result<Self, Failure> {
        let Entry::File(path) = start.entry else {
            return Err(failure(
                FailureReason::Spawn,
                "its image is no file".to_owned(),
            ));
        };
        let Some(image) = start.run.image.clone() else {
            return Err(failure(FailureReason::Spawn, "it has no image".to_owned()));
        };
        let of = start.of;
        let entries = &start.run.egress;
        let egress = Egress::new(entries, &start.neighbors, &start.output, &start.tasks)?;
        let engine = Engine::connect(start.engine.as_deref()).await;
        let engine = engine.map_err(|error| failed(&error))?;
        let archive = open(path, &engine).await?;
        let port = port(&image, &archive);
        let mut spec = spec(of, &start.run, &image, port);
        spec.enter = enter(&start.secrets, start.microvms.as_ref())?;
        let enter = spec.enter.clone();
        spec.volume = volume(start.volume, &start.run, &archive.facts.user).await?;
        let intent = start.directory.join(OUTSIDE_FILE);
        tabbify_process::files::write_atomic(&intent, b"container\n", 0o600).map_err(|error| {
            let detail = format!("{} cannot be written: {error}", intent.display());
            failure(FailureReason::Spawn, detail)
        })?;
        let network = engine
            .network(&spec)
            .await
            .map_err(|error| failed(&error))?;
        match let_out(&network, &egress) {
            Ok(variables) => add_missing(&mut spec.env, variables),
            Err(failure) => {
                // What made it fail matters more than what is left, which the next reaping finds.
                let _ = engine.reap(of).await;
                return Err(failure);
            }
        }
        let made = engine.start_in(network, &archive, &spec).await;
        let container = made.map_err(|error| failed(&error))?;
        let (ended, printed) = watch_over(&container, &start.output, &start.tasks);
        let address = port.map(|port| SocketAddr::new(container.address().into(), port));
        let this = Self {
            upstream: address.map(|address| Upstream::new(address, &start.tasks)),
            container,
            of,
            engine,
            run: start.run,
            enter,
            ended,
            printed,
            tasks: start.tasks,
        };
        match this.healthy(&image, address).await {
            Ok(()) => Ok(this),
            Err(failure) => {
                this.remove().await;
                Err(failure)
            }
        }
    }

    /// Waits until it answers, or, as a worker, runs.
    async fn healthy(
        &self,
        image: &ImageConfig,
        address: Option<SocketAddr>,
    ) -> Result<(), Failure> {
        let Some(address) = address else {
            return Ok(());
        };
        let within = Duration::from_millis(self.run.healthy_within_ms);
        let path = image.health_path.as_deref();
        let seen: Result<(), Seen> = tokio::select! {
            failure = self.failure() => return Err(failure),
            seen = healthy(address, path, within) => seen,
        };
        seen.map_err(|seen| {
            let listening = self.container.listening();
            let detail = unhealthy(address.port(), path, within, &seen, &listening);
            failure(FailureReason::Unhealthy, detail)
        })
    }

    /// Why it has ended, once it has, and its last lines are in the log.
    async fn failure(&self) -> Failure {
        let mut ended = self.ended.clone();
        let ended = match ended.wait_for(Option::is_some).await {
            Ok(ended) => ended.clone(),
            Err(_) => None,
        };
        // A log that does not end must not hide why the app did.
        let _ = tokio::time::timeout(OUTPUT_WITHIN, self.printed.cancelled()).await;
        match ended {
            Some(Ok(end)) => words::ended(&end, self.run.memory),
            Some(Err(why)) => failure(FailureReason::Runtime, why),
            None => failure(
                FailureReason::Runtime,
                "its container is not watched any more".to_owned(),
            ),
        }
    }

    /// Removes all that was made for the instance.
    async fn remove(&self) {
        match tokio::time::timeout(REMOVED_WITHIN, self.engine.reap(self.of)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                tracing::warn!(error = %chain(&error), "the container is left to the supervisor");
            }
            Err(_) => tracing::warn!("the container is left to the supervisor: no answer in time"),
        }
    }
}

impl Runtime for Docker {
    fn serve(
        &self,
        request: http::Request<Body>,
        permit: Permit,
    ) -> BoxFuture<'_, Result<http::Response<Body>, RequestError>> {
        Box::pin(upstream::serve(self.upstream.as_ref(), request, permit))
    }

    fn dial(&self, port: u16) -> BoxFuture<'_, io::Result<Box<dyn Connected>>> {
        let address = SocketAddr::new(self.container.address().into(), port);
        Box::pin(async move {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as Box<dyn Connected>)
        })
    }

    fn exec(
        &self,
        command: Vec<String>,
        output: mpsc::Sender<CommandLine>,
    ) -> BoxFuture<'_, Result<i64, String>> {
        Box::pin(exec::run(
            &self.container,
            command,
            self.enter.as_ref(),
            output,
            &self.tasks,
        ))
    }

    fn ended(&self) -> BoxFuture<'_, Failure> {
        Box::pin(self.failure())
    }

    fn stop(&self, grace: Duration) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            if let Err(error) = self.container.stop(grace).await {
                tracing::warn!(error = %chain(&error), "the container cannot be stopped, removing it");
            }
            // What it says when it is stopped.
            let _ = tokio::time::timeout(OUTPUT_WITHIN, self.printed.cancelled()).await;
            self.remove().await;
        })
    }
}

/// Removes what a dead runner of this instance left in the engine.
///
/// # Errors
/// The engine's.
pub async fn reap(
    of: InstanceRef,
    engine: Option<&str>,
) -> Result<Reaped, tabbify_container::Error> {
    Engine::connect(engine).await?.reap(of).await
}

async fn open(path: PathBuf, engine: &Engine) -> Result<Archive, Failure> {
    let architecture = engine.about().architecture;
    let opened = tokio::task::spawn_blocking(move || Archive::open(&path, architecture)).await;
    match opened {
        Ok(Ok(archive)) => Ok(archive),
        Ok(Err(error)) => Err(failed(&error.into())),
        Err(panic) => Err(failure(
            FailureReason::Image,
            format!("reading it failed: {panic}"),
        )),
    }
}

fn port(image: &ImageConfig, archive: &Archive) -> Option<u16> {
    match image.port {
        ImagePort::Number(port) => Some(port),
        ImagePort::OfImage => Some(archive.facts.port()),
        ImagePort::None => None,
    }
}

fn spec(of: InstanceRef, run: &RunConfig, image: &ImageConfig, port: Option<u16>) -> Spec {
    let mut env = run.env.clone();
    if let Some(port) = port {
        env.insert("PORT".to_owned(), port.to_string());
    }
    let random = tabbify_process::random::<16>();
    Spec {
        of,
        nonce: random.iter().map(|byte| format!("{byte:02x}")).collect(),
        command: image.command.clone(),
        env: env.into_iter().collect(),
        memory: run.memory.bytes(),
        cpus_milli: image.cpus_milli,
        pids: PIDS_MAX,
        read_only: false,
        volume: None,
        enter: None,
    }
}

/// What brings secrets into the container: the init of microVMs, where it is for those or beside this program.
fn enter(secrets: &Secrets, microvms: Option<&MicroVms>) -> Result<Option<Enter>, Failure> {
    if secrets.is_empty() {
        return Ok(None);
    }
    let beside = || {
        let program = std::env::current_exe()?;
        Ok(program.with_file_name(ENTER_PROGRAM))
    };
    let known = microvms.map(|microvms| Ok(microvms.init.clone()));
    let program: std::io::Result<PathBuf> = known.unwrap_or_else(beside);
    let program = program.map_err(|error| failure(FailureReason::Spawn, error.to_string()))?;
    let enter = Enter::new(&program, secrets.variables(), secrets.files());
    let enter = enter.map_err(|error| failure(FailureReason::Secret, chain(&error).to_string()))?;
    Ok(Some(enter))
}

/// Serves the container's way out at the machine's end of its network. The variables by which it is found.
fn let_out(network: &Network, egress: &Egress) -> Result<Vec<(String, String)>, Failure> {
    let listener = network.listen().map_err(|error| {
        let detail = format!(
            "the runner cannot listen on port {PORT} of the container's network: {error}. \
             Leave it free on this machine, and run the platform as root"
        );
        failure(FailureReason::Runtime, detail)
    })?;
    let address = listener.address();
    egress.serve(OfContainer(listener));
    Ok(egress::variables(address))
}

/// The container's connections, as the proxy takes them.
struct OfContainer(Listener);

impl Accept for OfContainer {
    type Stream = TcpStream;

    async fn accept(&self) -> io::Result<(TcpStream, Origin)> {
        let (stream, from) = self.0.accept().await?;
        stream.set_nodelay(true)?;
        Ok((stream, Origin::At(from)))
    }
}

/// What an app says of its variables itself, stands.
fn add_missing(env: &mut Vec<(String, String)>, variables: Vec<(String, String)>) {
    for (name, value) in variables {
        if !env.iter().any(|(said, _)| *said == name) {
            env.push((name, value));
        }
    }
}

/// The instance's volume, in the hands of the image's user the first time.
async fn volume(
    source: Option<PathBuf>,
    run: &RunConfig,
    user: &str,
) -> Result<Option<tabbify_container::Volume>, Failure> {
    let Some((source, used)) = source.zip(run.volume.as_ref()) else {
        return Ok(None);
    };
    let (place, whom) = (source.clone(), user.to_owned());
    let given = tokio::task::spawn_blocking(move || hand_over(&place, &whom)).await;
    given
        .unwrap_or_else(|panic| Err(std::io::Error::other(panic)))
        .map_err(|error| {
            let detail =
                format!("its volume cannot be given to the image's user {user:?}: {error}");
            failure(FailureReason::Volume, detail)
        })?;
    let mount = used.mount.clone();
    Ok(Some(tabbify_container::Volume { source, mount }))
}

/// Watches a container's output and its end: the one is cancelled at its end, the other holds it.
fn watch_over(
    container: &Container,
    output: &Output,
    tasks: &Tasks,
) -> (watch::Receiver<Ended>, CancellationToken) {
    let printed = CancellationToken::new();
    let [stdout, stderr] = [LogStream::Stdout, LogStream::Stderr].map(|of| output.printer(of));
    let (following, done) = (container.clone(), printed.clone().drop_guard());
    tasks.spawn("container output", Importance::Detached, async move {
        let take = |stream: Stream, piece: Bytes| {
            let printer = match stream {
                Stream::Stdout => stdout.clone(),
                Stream::Stderr => stderr.clone(),
            };
            async move { printer.print(&piece).await }
        };
        following.follow(take).await;
        stdout.finish().await;
        stderr.finish().await;
        drop(done);
    });
    let (ended, receiver) = watch::channel(None);
    let waiting = container.clone();
    tasks.spawn("container", Importance::Detached, async move {
        let end = waiting.wait().await;
        // Who does not want to know has stopped it.
        let _ = ended.send(Some(end.map_err(|error| chain(&error).to_string())));
    });
    (receiver, printed)
}
