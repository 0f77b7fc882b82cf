//! Where apps of one runtime are started, and a running one.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use tabbify_api::logs::LogLine;
use tabbify_api::runner::{Acceleration, Failure, MicroVms};
use tabbify_api::secrets::{Release, Resolved, SecretValue};
use tabbify_process::{Importance, SystemClock, Tasks};
use tabbify_runner::output::Output;
use tabbify_runner::runtime::{self, Entry, Runtime, Start};
use tabbify_runner::secrets::Secrets;
use tabbify_runner::server::{Caller, Server};
use tabbify_runner::traffic::Traffic;
use tabbify_runner::wasm_http::Limits;
use tabbify_runner::wasm_http::neighbors::Neighbors;
use tabbify_testing::dockerd::Dockerd;
use tabbify_testing::guest;
use tabbify_testing::image::Image;
use tabbify_types::event::v1::{
    ImageConfig, ImagePort, InstanceRef, RunConfig, RuntimeKind, SecretDelivery, SecretUse,
};
use tabbify_types::{AppId, ByteSize, InstanceId, SecretVersion};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};

use super::Kind;
use crate::harness::{Client, ClientBody, client, get, lines, run_config, watched};
use crate::wasm::{Package, component};

/// What the vault has for the app, and no manifest.
pub(super) const SECRET: (&str, &str) = ("API_KEY", "sekrit = \"quoted\"");

/// Where apps of one runtime are started.
pub(super) struct Site {
    pub(super) kind: Kind,
    dir: TempDir,
    engine: Option<String>,
    microvms: Option<MicroVms>,
    /// The component, or the program of the image.
    app: Bytes,
}

/// A running app, and the server before it.
pub(super) struct App {
    pub(super) kind: Kind,
    pub(super) runtime: Arc<dyn Runtime>,
    pub(super) traffic: Traffic,
    pub(super) directory: PathBuf,
    tasks: Tasks,
    address: SocketAddr,
    output: Output,
}

/// What came of a start.
pub(super) struct Tried {
    pub(super) app: Result<App, Failure>,
    output: Output,
    directory: PathBuf,
}

impl Site {
    pub(super) fn wasm_http() -> anyhow::Result<Self> {
        Self::new(Kind::WasmHttp, component(Package::Conform)?)
    }

    pub(super) fn docker(dockerd: &Dockerd) -> anyhow::Result<Self> {
        let site = Self::new(Kind::Docker, program()?)?;
        Ok(Self {
            engine: Some(dockerd.address()),
            // Of these, containers with secrets take the init.
            microvms: Some(MicroVms {
                kernel: "/nonexistent".into(),
                modules: None,
                init: guest::init()?,
                monitor: None,
                acceleration: Acceleration::Tcg,
            }),
            ..site
        })
    }

    pub(super) fn microvm(made_of: MicroVms) -> anyhow::Result<Self> {
        let site = Self::new(Kind::Microvm, program()?)?;
        Ok(Self {
            microvms: Some(made_of),
            ..site
        })
    }

    fn new(kind: Kind, app: Bytes) -> anyhow::Result<Self> {
        Ok(Self {
            kind,
            dir: tempfile::tempdir()?,
            engine: None,
            microvms: None,
            app,
        })
    }

    /// The app that answers.
    pub(super) async fn serving(&self) -> anyhow::Result<App> {
        self.start(&["serve"], |_, _| {}).await?.app()
    }

    /// The image of the app with nothing but its program.
    pub(super) fn image(&self, words: &[&str]) -> Image {
        let command: Vec<&str> = ["/bin/app"].iter().chain(words).copied().collect();
        Image::default()
            .empty()
            .with("Entrypoint", serde_json::json!(command))
            .file("bin/app", 0o755, self.app.to_vec())
    }

    /// Starts the app so that it does this.
    pub(super) async fn start(
        &self,
        words: &[&str],
        change: impl FnOnce(&mut RunConfig, &mut ImageConfig),
    ) -> anyhow::Result<Tried> {
        let entry = match self.kind {
            Kind::WasmHttp => Entry::Memory(self.app.clone()),
            Kind::Docker | Kind::Microvm => {
                // Several may be started at once.
                let path = self.dir.path().join(format!("{}.tar", AppId::mint()));
                self.image(words).save_oci(&path)?;
                Entry::File(path)
            }
        };
        self.start_entry(entry, change).await
    }

    /// A file of the site's own.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts whatever this is.
    pub(super) async fn start_entry(
        &self,
        entry: Entry,
        change: impl FnOnce(&mut RunConfig, &mut ImageConfig),
    ) -> anyhow::Result<Tried> {
        let mut run = self.config();
        let mut image = ImageConfig {
            command: Vec::new(),
            port: ImagePort::OfImage,
            health_path: None,
            cpus_milli: 1000,
        };
        change(&mut run, &mut image);
        if self.kind != Kind::WasmHttp {
            run.image = Some(image);
        }
        let of = InstanceRef {
            app: AppId::mint(),
            instance: InstanceId(1),
        };
        let directory = self.dir.path().join(of.app.to_string());
        std::fs::create_dir(&directory)?;
        let tasks = Tasks::new();
        let output = Output::open(&directory, of.instance, Arc::new(SystemClock), &tasks)?;
        let limits = Limits {
            cpu: Duration::from_millis(500),
            ..Limits::DEFAULT
        };
        let started = runtime::start(Start {
            secrets: secrets(&run)?,
            run,
            of,
            engine: self.engine.clone(),
            microvms: self.microvms.clone(),
            cache: self.dir.path().join("cache"),
            directory: directory.clone(),
            entry,
            output: output.clone(),
            tasks: tasks.clone(),
            limits,
            neighbors: Neighbors::none(of.app),
            volume: None,
        });
        let app = match Box::pin(watched(started)).await? {
            Ok(runtime) => {
                let app = App::serve(self.kind, runtime, directory.clone(), output.clone(), tasks);
                Ok(app.await?)
            }
            Err(failure) => Err(failure),
        };
        Ok(Tried {
            app,
            output,
            directory,
        })
    }

    fn config(&self) -> RunConfig {
        let (variable, _) = SECRET;
        let used = SecretUse {
            name: "api-key".parse().expect("it is a name"),
            delivery: SecretDelivery::Env,
        };
        RunConfig {
            runtime: match self.kind {
                Kind::WasmHttp => RuntimeKind::WasmHttp,
                Kind::Docker => RuntimeKind::Docker,
                Kind::Microvm => RuntimeKind::Firecracker,
            },
            memory: ByteSize::mib(64),
            healthy_within_ms: 60_000,
            secrets: [(variable.to_owned(), used)].into(),
            ..run_config()
        }
    }

    /// No process works in the site's directory, and no app has left anything there but its log.
    pub(super) fn nothing_is_left(&self) -> anyhow::Result<()> {
        let here = self.dir.path().canonicalize()?;
        for process in std::fs::read_dir("/proc")? {
            let path = process?.path();
            let below =
                std::fs::read_link(path.join("cwd")).is_ok_and(|cwd| cwd.starts_with(&here));
            ensure!(!below, "{} is left", path.display());
        }
        for entry in std::fs::read_dir(&here)? {
            let machine = entry?.path().join("machine");
            ensure!(!machine.exists(), "{} is left", machine.display());
        }
        Ok(())
    }
}

/// The app's program, linked statically.
fn program() -> anyhow::Result<Bytes> {
    Ok(guest::program("conform/server.rs")?.into())
}

fn secrets(run: &RunConfig) -> anyhow::Result<Secrets> {
    let resolved = run.secrets.values().map(|used| Resolved {
        name: used.name.clone(),
        version: SecretVersion(1),
        value: SecretValue::new(SECRET.1.as_bytes().to_vec()),
    });
    let release = Release {
        secrets: resolved.collect(),
    };
    Secrets::new(&run.secrets, release).map_err(|failure| anyhow::anyhow!("{failure:?}"))
}

impl Tried {
    /// The app, which has started.
    pub(super) fn app(self) -> anyhow::Result<App> {
        self.app.map_err(|failure| anyhow::anyhow!("{failure:?}"))
    }

    /// Why it has not.
    pub(super) fn failure(&self) -> anyhow::Result<&Failure> {
        match &self.app {
            Ok(app) => anyhow::bail!("it started: {:?}", app.runtime),
            Err(failure) => {
                let machine = self.directory.join("machine");
                ensure!(!machine.exists(), "{} is left", machine.display());
                Ok(failure)
            }
        }
    }

    /// What it has printed.
    pub(super) async fn lines(&self) -> anyhow::Result<Vec<LogLine>> {
        self.output.flush().await;
        lines(&self.directory.join("1.ndjson"))
    }
}

impl App {
    async fn serve(
        kind: Kind,
        runtime: Arc<dyn Runtime>,
        directory: PathBuf,
        output: Output,
        tasks: Tasks,
    ) -> anyhow::Result<Self> {
        let traffic = Traffic::new(Limits::DEFAULT.requests.into());
        let server = Server::new(Arc::clone(&runtime), traffic.clone());
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let owner = tasks.clone();
        tasks.spawn("accept", Importance::Detached, async move {
            while let Ok((stream, _)) = listener.accept().await {
                let connection = server.clone().called_by(Caller::Node).connection(stream);
                owner.spawn("connection", Importance::Detached, connection);
            }
        });
        Ok(Self {
            kind,
            runtime,
            traffic,
            directory,
            tasks,
            address,
            output,
        })
    }

    /// A connection without anything of HTTP on it yet.
    pub(super) async fn stream(&self) -> anyhow::Result<TcpStream> {
        Ok(TcpStream::connect(self.address).await?)
    }

    pub(super) async fn connect(&self) -> anyhow::Result<Client> {
        client(self.stream().await?, &self.tasks).await
    }

    /// One request on a connection of its own.
    pub(super) async fn send(
        &self,
        request: Request<ClientBody>,
    ) -> anyhow::Result<Response<Incoming>> {
        let mut client = self.connect().await?;
        Ok(watched(client.send_request(request)).await??)
    }

    pub(super) async fn get(&self, path: &str) -> anyhow::Result<Response<Incoming>> {
        self.send(get(path)?).await
    }

    /// The whole answer to a GET, which is 200.
    pub(super) async fn text(&self, path: &str) -> anyhow::Result<String> {
        let answer = self.get(path).await?;
        let status = answer.status();
        let text = crate::harness::text(answer).await?;
        ensure!(status == 200, "{path}: {status} {text}");
        Ok(text)
    }

    /// What the app printed so far.
    pub(super) async fn lines(&self) -> anyhow::Result<Vec<LogLine>> {
        self.output.flush().await;
        lines(&self.directory.join("1.ndjson"))
    }

    /// Returns when nothing is under way.
    pub(super) async fn idle(&self) -> anyhow::Result<()> {
        watched(async {
            while self.traffic.counts().active > 0 {
                tokio::task::yield_now().await;
            }
        })
        .await
    }

    /// A client's task, on the app's.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn("client", Importance::Detached, task);
    }

    /// Why it has ended.
    pub(super) async fn ended(&self) -> anyhow::Result<Failure> {
        watched(self.runtime.ended()).await
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.tasks.stop();
    }
}
