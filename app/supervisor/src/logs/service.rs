//! Gives the lines of this machine's apps to the node, over whatever connects the two. Who may connect is
//! the listener's to say: lines are shown to whoever asks here.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use tabbify_api::logs::{AppLogs, FOUND_HEADER, LogLine, LogQuery, LogReader};
use tabbify_api::volumes::{AppVolumes, app_of};
use tabbify_api::{ErrorCode, Problem};
use tabbify_http::ndjson::{self, Line, Source};
use tabbify_http::{Handle, Limits, Server};
use tabbify_process::{Tasks, chain};
use tabbify_types::AppId;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

/// LIMIT: connections at once: each node that shows logs has one for each reader.
const CONNECTIONS_MAX: usize = 256;
/// LIMIT: bytes of one connection that wait to be read or written, and so of a request's head.
const BUFFER_LEN_MAX: usize = 64 * 1024;
/// LIMIT: how long a connection may be open without a request.
const IDLE_MAX: Duration = Duration::from_secs(30);
/// How long a followed log may say nothing before an empty line shows that we are there.
const QUIET_MAX: Duration = Duration::from_secs(15);

type Body = UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

/// Serves the logs of a machine. Clones share the limits.
#[derive(Debug, Clone)]
pub struct LogService {
    logs: Arc<dyn AppLogs>,
    volumes: Option<Arc<dyn AppVolumes>>,
    server: Server,
    stop: CancellationToken,
}

impl LogService {
    /// Serves `logs`, until `tasks` end: what is followed ends with them.
    #[must_use]
    pub fn new(logs: Arc<dyn AppLogs>, tasks: &Tasks) -> Self {
        let limits = Limits {
            connections: CONNECTIONS_MAX,
            buffer_len: BUFFER_LEN_MAX,
            idle: IDLE_MAX,
            // A reader may pause for as long as it likes: lines are read from disk when it goes on.
            stalled: None,
        };
        Self {
            logs,
            volumes: None,
            server: Server::new("log reader", limits, tasks),
            stop: tasks.token(),
        }
    }

    /// The same, which also shows `volumes`, and removes them.
    #[must_use]
    pub fn with_volumes(self, volumes: Arc<dyn AppVolumes>) -> Self {
        Self {
            volumes: Some(volumes),
            ..self
        }
    }

    /// Serves one connection to its end.
    pub fn connection<S>(self, stream: S) -> impl Future<Output = ()> + Send + use<S>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let requests = Requests {
            logs: self.logs,
            volumes: self.volumes,
            stop: self.stop,
        };
        self.server.connection(stream, requests)
    }
}

struct Requests {
    logs: Arc<dyn AppLogs>,
    volumes: Option<Arc<dyn AppVolumes>>,
    stop: CancellationToken,
}

impl Handle for Requests {
    type Body = Body;

    async fn handle(&self, request: Request<Incoming>) -> Response<Body> {
        if let Some((volumes, app)) = self.volumes.as_ref().zip(app_of(request.uri().path())) {
            return volume(&**volumes, request.method(), app).await;
        }
        let asked = LogQuery::read(request.uri().path(), request.uri().query());
        let Some((app, query)) = asked.filter(|_| request.method() == Method::GET) else {
            return problem(ErrorCode::NotFound, "nothing is at this path");
        };
        match self.logs.open(app, query).await {
            Ok(reader) => {
                let found = HeaderValue::from(reader.found());
                let stop = self.stop.clone();
                let mut answer = ndjson::answer(Followed { reader, stop });
                answer.headers_mut().insert(FOUND_HEADER, found);
                answer
            }
            Err(error) => {
                let error = chain(&error).to_string();
                tracing::error!(%app, error, "an app's output cannot be read");
                problem(ErrorCode::Unavailable, "the lines cannot be read now")
            }
        }
    }
}

async fn volume(volumes: &dyn AppVolumes, method: &Method, app: AppId) -> Response<Body> {
    let done = match *method {
        Method::GET => match volumes.look(app).await {
            Ok(Some(view)) => Ok(tabbify_http::answer::json(&view)),
            Ok(None) => Err(Problem::new(
                ErrorCode::NotFound,
                "the app has no volume here",
            )),
            Err(problem) => Err(problem),
        },
        Method::DELETE => volumes.remove(app).await.map(|()| {
            let mut answer = Response::new(Full::default());
            *answer.status_mut() = StatusCode::NO_CONTENT;
            answer
        }),
        _ => Err(Problem::new(ErrorCode::MethodNotAllowed, "GET, DELETE")),
    };
    let answer = done.unwrap_or_else(|problem| tabbify_http::answer::problem(&problem));
    answer.map(|body| body.map_err(|never| match never {}).boxed_unsync())
}

struct Followed {
    reader: Box<dyn LogReader>,
    stop: CancellationToken,
}

impl Source for Followed {
    type Item = LogLine;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    async fn next(&mut self) -> Result<Option<Line<LogLine>>, Self::Error> {
        let next = tokio::time::timeout(QUIET_MAX, self.reader.next());
        match self.stop.run_until_cancelled(next).await {
            Some(Ok(line)) => Ok(line?.map(Line::Object)),
            Some(Err(_)) => Ok(Some(Line::Blank)),
            None => Ok(None),
        }
    }
}

fn problem(code: ErrorCode, detail: &str) -> Response<Body> {
    let answer = tabbify_http::answer::problem(&Problem::new(code, detail));
    answer.map(|body| body.map_err(|never| match never {}).boxed_unsync())
}
