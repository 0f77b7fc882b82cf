//! An app served over TCP on a free port, and a client for it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tabbify_api::logs::LogLine;
use tabbify_api::runner::Failure;
use tabbify_process::{Importance, SystemClock, Tasks};
use tabbify_runner::output::Output;
use tabbify_runner::runtime::{self, Entry, Start};
use tabbify_runner::secrets::Secrets;
use tabbify_runner::server::{Caller, Server};
use tabbify_runner::traffic::Traffic;
use tabbify_runner::wasm_http::Limits;
use tabbify_runner::wasm_http::neighbors::Neighbors;
use tabbify_types::event::v1::{InstanceRef, RunConfig, RuntimeKind};
use tabbify_types::{AppId, ByteSize, InstanceId};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use crate::wasm::{Package, component};

/// No test waits longer for anything.
pub(crate) const WATCHDOG: Duration = Duration::from_secs(60);

pub(crate) type ClientBody = UnsyncBoxBody<Bytes, std::io::Error>;
pub(crate) type Client = http1::SendRequest<ClientBody>;

/// An app that is being served.
pub(crate) struct App {
    pub(crate) traffic: Traffic,
    pub(crate) tasks: Tasks,
    pub(crate) server: Server,
    address: SocketAddr,
    output: Output,
    logs: tempfile::TempDir,
}

/// How an instance of an app runs, unless a test says otherwise.
pub(crate) fn run_config() -> RunConfig {
    RunConfig {
        runtime: RuntimeKind::WasmHttp,
        entry: "app.wasm".into(),
        memory: ByteSize::mib(64),
        env: [("GREETING".to_owned(), "good day".to_owned())].into(),
        stop_timeout_ms: 1000,
        healthy_within_ms: 10_000,
        image: None,
        secrets: BTreeMap::new(),
        egress: Vec::new(),
        idle_after_ms: None,
        volume: None,
        ports: Vec::new(),
    }
}

pub(crate) async fn serve(package: Package) -> anyhow::Result<App> {
    serve_with(package, Limits::DEFAULT).await
}

pub(crate) async fn serve_with(package: Package, limits: Limits) -> anyhow::Result<App> {
    let app = start(component(package)?, run_config(), limits).await?;
    app.map_err(|failure| anyhow::anyhow!("{failure:?}"))
}

/// Starts an app from any bytes; the inner result is the runtime's word on them.
pub(crate) async fn start(
    entry: Bytes,
    run: RunConfig,
    limits: Limits,
) -> anyhow::Result<Result<App, Failure>> {
    start_having(Has::default(), entry, run, limits).await
}

/// The same, with ways to other apps.
pub(crate) async fn start_among(
    neighbors: Neighbors,
    entry: Bytes,
    run: RunConfig,
    limits: Limits,
) -> anyhow::Result<Result<App, Failure>> {
    let has = Has {
        neighbors: Some(neighbors),
        ..Has::default()
    };
    start_having(has, entry, run, limits).await
}

/// What an app has besides itself.
#[derive(Debug, Default)]
pub(crate) struct Has {
    /// Ways to other apps; without, there are none.
    pub(crate) neighbors: Option<Neighbors>,
    /// The directory of its volume.
    pub(crate) volume: Option<PathBuf>,
    /// The machine's cache; without, one of its own.
    pub(crate) cache: Option<PathBuf>,
}

/// The same, with what it has.
pub(crate) async fn start_having(
    has: Has,
    entry: Bytes,
    run: RunConfig,
    limits: Limits,
) -> anyhow::Result<Result<App, Failure>> {
    let tasks = Tasks::new();
    let logs = tempfile::tempdir()?;
    let output = Output::open(logs.path(), InstanceId(1), Arc::new(SystemClock), &tasks)?;
    let traffic = Traffic::new(limits.requests.into());
    let start = Start {
        run,
        secrets: Secrets::default(),
        of: InstanceRef {
            app: AppId::mint(),
            instance: InstanceId(1),
        },
        engine: None,
        microvms: None,
        cache: has.cache.unwrap_or_else(|| logs.path().join("cache")),
        directory: logs.path().to_owned(),
        entry: Entry::Memory(entry),
        output: output.clone(),
        tasks: tasks.clone(),
        limits,
        neighbors: has
            .neighbors
            .unwrap_or_else(|| Neighbors::none(AppId::mint())),
        volume: has.volume,
    };
    let runtime = match runtime::start(start).await {
        Ok(runtime) => runtime,
        Err(failure) => return Ok(Err(failure)),
    };
    let server = Server::new(runtime, traffic.clone());
    let serving = server.clone();
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let address = listener.local_addr()?;
    let owner = tasks.clone();
    tasks.spawn("accept", Importance::Detached, async move {
        while let Ok((stream, _)) = listener.accept().await {
            let connection = server.clone().called_by(Caller::Node).connection(stream);
            owner.spawn("connection", Importance::Detached, connection);
        }
    });
    Ok(Ok(App {
        traffic,
        tasks,
        server: serving,
        address,
        output,
        logs,
    }))
}

impl App {
    pub(crate) async fn connect(&self) -> anyhow::Result<Client> {
        client(TcpStream::connect(self.address).await?, &self.tasks).await
    }

    /// One GET on a connection of its own.
    pub(crate) async fn get(&self, path: &str) -> anyhow::Result<Response<Incoming>> {
        let mut client = self.connect().await?;
        Ok(watched(client.send_request(get(path)?)).await??)
    }

    /// What the app printed so far.
    pub(crate) async fn lines(&self) -> anyhow::Result<Vec<LogLine>> {
        self.output.flush().await;
        lines(&self.logs.path().join("1.ndjson"))
    }

    /// Returns when nothing is under way.
    pub(crate) async fn idle(&self) -> anyhow::Result<()> {
        watched(async {
            while self.traffic.counts().active > 0 {
                tokio::task::yield_now().await;
            }
        })
        .await
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.tasks.stop();
    }
}

/// A client on any stream.
pub(crate) async fn client<S>(stream: S, tasks: &Tasks) -> anyhow::Result<Client>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (client, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tasks.spawn("client", Importance::Detached, async {
        // Its errors come out of the requests.
        let _ = connection.await;
    });
    Ok(client)
}

pub(crate) fn get(path: &str) -> anyhow::Result<Request<ClientBody>> {
    let empty = Empty::new().map_err(|never| match never {});
    request("GET", path, empty.boxed_unsync())
}

pub(crate) fn request(
    method: &str,
    path: &str,
    body: ClientBody,
) -> anyhow::Result<Request<ClientBody>> {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "app.localhost");
    Ok(request.body(body)?)
}

/// A body whose chunks the test sends.
pub(crate) fn sent_body() -> (mpsc::Sender<Bytes>, ClientBody) {
    let (sender, mut receiver) = mpsc::channel(1);
    let chunks = futures_util::stream::poll_fn(move |cx| {
        let chunk = receiver.poll_recv(cx);
        chunk.map(|chunk| chunk.map(|bytes| Ok(Frame::data(bytes))))
    });
    (
        sender,
        http_body_util::StreamBody::new(chunks).boxed_unsync(),
    )
}

pub(crate) async fn text(response: Response<Incoming>) -> anyhow::Result<String> {
    let body = watched(response.into_body().collect()).await?;
    Ok(String::from_utf8(body?.to_bytes().to_vec())?)
}

/// The lines in an app's log; none if it never printed.
pub(crate) fn lines(path: &Path) -> anyhow::Result<Vec<LogLine>> {
    let text = std::fs::read_to_string(path)?;
    let parsed = text.lines().map(serde_json::from_str);
    parsed
        .collect::<Result<_, _>>()
        .context("a line of the log")
}

/// Ends what never ends.
pub(crate) async fn watched<T>(future: impl Future<Output = T>) -> anyhow::Result<T> {
    tokio::time::timeout(WATCHDOG, future)
        .await
        .context("the watchdog barked")
}
