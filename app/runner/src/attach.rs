//! Commands in the app, for nodes alone: they have checked who asks, and recorded it
//! (`tabbify_api::attach`).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use tabbify_api::attach::{ATTACH_PORT, CommandLine, EXEC_PATH, RUN_COMMAND_LEN_MAX, RunCommand};
use tabbify_api::{ErrorCode, Problem};
use tabbify_http::ndjson::{self, Line, Source};
use tabbify_http::{Handle, Limits, Server, answer};
use tabbify_mesh::{Listener, Mesh, MeshError};
use tabbify_process::{Importance, Tasks};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::runtime::Runtime;
use crate::traffic::Traffic;

/// LIMIT: commands at a time.
const COMMANDS_MAX: usize = 8;
/// LIMIT: pieces of output that wait to be taken; then the command waits.
const PIECES_MAX: usize = 4;
/// LIMIT: how long a command may run.
const COMMAND_WITHIN: Duration = Duration::from_secs(3600);
/// How long a command may say nothing before an empty line shows that somebody is there.
const QUIET_MAX: Duration = Duration::from_secs(15);
/// LIMIT: what connections hold.
const LIMITS: Limits = Limits {
    connections: COMMANDS_MAX * 2,
    buffer_len: 64 * 1024,
    idle: Duration::from_secs(30),
    stalled: Some(Duration::from_secs(60)),
};

type BodyError = Box<dyn std::error::Error + Send + Sync>;
type Body = UnsyncBoxBody<Bytes, BodyError>;

/// Runs commands in the app. Clones share their limits.
#[derive(Debug, Clone)]
pub(crate) struct Attach {
    runtime: Arc<dyn Runtime>,
    traffic: Traffic,
    tasks: Tasks,
    server: Server,
    places: Arc<Semaphore>,
}

impl Attach {
    /// For the app that `runtime` runs.
    pub(crate) fn new(runtime: Arc<dyn Runtime>, traffic: Traffic, tasks: Tasks) -> Self {
        Self {
            runtime,
            traffic,
            server: Server::new("attached", LIMITS, &tasks),
            places: Arc::new(Semaphore::new(COMMANDS_MAX)),
            tasks,
        }
    }

    /// Serves nodes from now on, until the app is drained.
    ///
    /// # Errors
    /// If somebody listens there already.
    pub(crate) fn open(self, mesh: &Mesh) -> Result<(), MeshError> {
        let listener = mesh.listen(ATTACH_PORT)?;
        let tasks = self.tasks.clone();
        tasks.spawn("attach", Importance::Detached, self.accept(listener));
        Ok(())
    }

    async fn accept(self, mut listener: Listener) {
        let closing = self.traffic.closing().clone();
        let next = async {
            while let Ok(incoming) = listener.accept().await {
                // Apps of the tenant may reach every port of each other, and are no nodes.
                if !incoming.is_node {
                    incoming.stream.reset();
                    continue;
                }
                let connection = self.server.clone();
                let connection = connection.connection(incoming.stream, Requests(self.clone()));
                self.tasks
                    .spawn("attached", Importance::Detached, connection);
            }
        };
        closing.run_until_cancelled(next).await;
    }

    /// The same of a node that came through the machine's doorbell: for one command.
    pub(crate) async fn visit<S>(self, caller: S)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let server = self.server.clone();
        server.connection(caller, Visitor(Requests(self))).await;
    }
}

/// Those of one connection.
struct Requests(Attach);

/// The same of a connection that a drain waits for, and which so ends with its first answer.
struct Visitor(Requests);

impl Handle for Visitor {
    type Body = Body;

    async fn handle(&self, request: Request<Incoming>) -> Response<Body> {
        let mut response = self.0.handle(request).await;
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(header::CONNECTION, close);
        response
    }
}

impl Handle for Requests {
    type Body = Body;

    async fn handle(&self, request: Request<Incoming>) -> Response<Body> {
        let begun = self.begin(request).await;
        begun.unwrap_or_else(|problem| {
            let refusal = answer::problem(&problem);
            refusal.map(|body| body.map_err(|never| match never {}).boxed_unsync())
        })
    }
}

impl Requests {
    async fn begin(&self, request: Request<Incoming>) -> Result<Response<Body>, Problem> {
        if request.uri().path() != EXEC_PATH || request.method() != Method::POST {
            return Err(Problem::new(ErrorCode::NotFound, "nothing is at this path"));
        }
        let place = Arc::clone(&self.0.places)
            .try_acquire_owned()
            .map_err(|_| {
                let detail = format!("{COMMANDS_MAX} commands run in the app already");
                Problem::new(ErrorCode::RateLimited, detail).with_fix("Wait until one has ended")
            })?;
        let body = Limited::new(request.into_body(), RUN_COMMAND_LEN_MAX);
        let body = body.collect().await.map_err(|_| malformed())?.to_bytes();
        let wanted: RunCommand = serde_json::from_slice(&body).map_err(|_| malformed())?;
        if !wanted.is_sound() {
            return Err(malformed());
        }
        let (sender, lines) = mpsc::channel(PIECES_MAX);
        let running = self.0.clone().run(wanted, sender, place);
        self.0.tasks.spawn("command", Importance::Detached, running);
        Ok(ndjson::answer(Said(lines)))
    }
}

fn malformed() -> Problem {
    Problem::new(ErrorCode::BadRequest, "the body is no command")
}

impl Attach {
    /// One command, to its end or to that of who wants it. An app with one is not idle.
    async fn run(
        self,
        wanted: RunCommand,
        lines: mpsc::Sender<CommandLine>,
        place: OwnedSemaphorePermit,
    ) {
        let Some(_permit) = self.traffic.begin() else {
            let why = "the instance serves as many requests as it may: try again";
            // Whoever has left does not want to know.
            let _ = lines.send(CommandLine::Failed(why.to_owned())).await;
            return;
        };
        let executing = self.runtime.exec(wanted.command, lines.clone());
        let ended = tokio::time::timeout(COMMAND_WITHIN, executing);
        let last = tokio::select! {
            ended = ended => match ended {
                Ok(Ok(code)) => CommandLine::Ended(code),
                Ok(Err(why)) => CommandLine::Failed(why),
                Err(_) => CommandLine::Failed(format!(
                    "it ran for {} s, which is as long as one may, and was ended",
                    COMMAND_WITHIN.as_secs()
                )),
            },
            () = self.traffic.cut().cancelled() => {
                CommandLine::Failed("the instance that it ran in ends".to_owned())
            }
        };
        // Whoever has left does not want to know.
        let _ = lines.send(last).await;
        drop(place);
    }
}

struct Said(mpsc::Receiver<CommandLine>);

impl Source for Said {
    type Item = CommandLine;
    type Error = BodyError;

    async fn next(&mut self) -> Result<Option<Line<CommandLine>>, BodyError> {
        match tokio::time::timeout(QUIET_MAX, self.0.recv()).await {
            Ok(line) => Ok(line.map(Line::Object)),
            Err(_) => Ok(Some(Line::Blank)),
        }
    }
}
