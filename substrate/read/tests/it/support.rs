//! A small vocabulary for the stories in this binary.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::value::RawValue;
use tabbify_api::BoxFuture;
use tabbify_api::auth::AuthError;
use tabbify_api::log::{
    Append, AppendError, Appended, EventLog, Filter, LogScope, Page, ReadError, Subscribe,
};
use tabbify_api::read::{Authorize, QueryError, ReadModel, ReadScope, Reader};
use tabbify_log::{Log, Options};
use tabbify_process::connect::UnixSocket;
use tabbify_process::{Importance, SystemClock, Tasks, unix};
use tabbify_read::{Config, ReadNode, RemoteReadModel, Service};
use tabbify_types::{
    AppId, DeployId, Event, EventId, NewEvent, Position, Recorded, Segment, SegmentGlob, Tenant,
    Timestamp,
};
use tempfile::TempDir;

pub(crate) type Wrong = Box<dyn std::error::Error + Send + Sync>;
pub(crate) type Outcome = Result<(), Wrong>;

/// Long enough for any machine; a test that waits so long has failed.
pub(crate) const WATCHDOG: Duration = Duration::from_secs(60);

/// Whether the long versions were asked for (`cargo xtask test --long`).
#[expect(
    clippy::disallowed_methods,
    reason = "tests take their length from the environment"
)]
pub(crate) fn long() -> bool {
    std::env::var("TABBIFY_TEST_LENGTH").is_ok_and(|length| length == "long")
}

/// A log that the test writes as `user:owner`.
pub(crate) fn open_log(dir: &Path) -> Result<(Log, Arc<dyn EventLog>), Wrong> {
    let log = Log::open(dir, Options::new(Arc::new(SystemClock)))?;
    let client = client(&log, "user:owner");
    Ok((log, client))
}

pub(crate) fn client(log: &Log, actor: &str) -> Arc<dyn EventLog> {
    log.client(LogScope {
        actor: actor.to_owned(),
        write: vec![SegmentGlob::all()],
        read: vec![SegmentGlob::all()],
    })
}

/// A read node with its tasks, and how it is asked.
pub(crate) struct Running {
    pub(crate) node: ReadNode,
    /// The node itself, or a client of its service.
    pub(crate) model: Arc<dyn ReadModel>,
    pub(crate) tasks: Tasks,
    _socket: Option<TempDir>,
}

impl Running {
    pub(crate) async fn start(dir: &Path, log: &Arc<dyn EventLog>) -> Result<Self, Wrong> {
        let tasks = Tasks::new();
        let config = Config {
            dir: dir.to_owned(),
        };
        let clock = Arc::new(SystemClock);
        let node = ReadNode::start(config, Arc::clone(log), clock, &tasks).await?;
        Ok(Self {
            model: Arc::new(node.clone()),
            node,
            tasks,
            _socket: None,
        })
    }

    /// The same, asked in this way.
    pub(crate) async fn start_as(
        way: Way,
        dir: &Path,
        log: &Arc<dyn EventLog>,
    ) -> Result<Self, Wrong> {
        let mut running = Self::start(dir, log).await?;
        if way == Way::OverHttp {
            let served = Served::start(&running.node, &running.tasks)?;
            running.model = Arc::new(served.remote("platform").await?);
            running._socket = Some(served.socket);
        }
        Ok(running)
    }

    /// Stops it; the directory is free then.
    pub(crate) async fn stop(self) -> Outcome {
        match self.tasks.shutdown(WATCHDOG).await {
            true => Ok(()),
            false => Err("the read node did not stop".into()),
        }
    }

    pub(crate) async fn reach(&self, position: Position) -> Outcome {
        Ok(self.node.wait_for(position, WATCHDOG).await?)
    }
}

/// How a read model is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    InProcess,
    OverHttp,
}

/// A read node behind a service on a unix socket.
pub(crate) struct Served {
    pub(crate) socket: TempDir,
    tasks: Tasks,
}

impl Served {
    pub(crate) fn start(node: &ReadNode, tasks: &Tasks) -> Result<Self, Wrong> {
        let service = Service::new(Arc::new(node.clone()), Arc::new(Tokens), tasks);
        let socket = tempfile::tempdir()?;
        let serving = service.serve_unix(unix::bind(socket.path(), "read.sock")?);
        tasks.spawn("read service", Importance::Essential, serving);
        let tasks = tasks.clone();
        Ok(Self { socket, tasks })
    }

    /// A client whose token is of this scope.
    pub(crate) async fn remote(&self, token: &str) -> Result<RemoteReadModel, QueryError> {
        let socket = UnixSocket {
            directory: self.socket.path().to_owned(),
            name: "read.sock".to_owned(),
        };
        let token = token.to_owned();
        let bearer = Arc::new(move || token.clone());
        RemoteReadModel::connect(Arc::new(socket), bearer, &self.tasks).await
    }

    pub(crate) async fn stream(&self) -> Result<tokio::net::UnixStream, Wrong> {
        Ok(unix::connect(self.socket.path(), "read.sock").await?)
    }
}

/// Tokens that are what they allow: `platform`, `tenant:<slug>`, or `nothing`.
#[derive(Debug)]
struct Tokens;

impl Authorize for Tokens {
    fn authorize(&self, token: &str) -> Result<Reader, AuthError> {
        let scope = match token {
            "nothing" => None,
            "old" => return Err(AuthError::Expired(Timestamp::from_secs(1))),
            token => Some(
                token
                    .parse()
                    .map_err(|_| AuthError::Invalid(token.to_owned()))?,
            ),
        };
        let actor = format!("user:{token}");
        Ok(Reader { actor, scope })
    }
}

/// A log as a newer program has written it: events of the type `x.newer_<type>` are read as `<type>` of
/// version 9.
#[derive(Debug)]
pub(crate) struct Newer(pub(crate) Arc<dyn EventLog>);

fn newer(event: Arc<Recorded>) -> Arc<Recorded> {
    match event.kind.strip_prefix("x.newer_") {
        None => event,
        Some(kind) => Arc::new(Recorded {
            kind: kind.to_owned(),
            version: 9,
            ..Recorded::clone(&event)
        }),
    }
}

impl EventLog for Newer {
    fn append(&self, batch: Append) -> BoxFuture<'_, Result<Appended, AppendError>> {
        self.0.append(batch)
    }

    fn read(
        &self,
        filter: Filter,
        after: Position,
        limit: usize,
    ) -> BoxFuture<'_, Result<Page, ReadError>> {
        Box::pin(async move {
            let everything = Filter::default();
            let mut page = self.0.read(everything, after, limit).await?;
            page.events = page.events.into_iter().map(newer).collect();
            page.events.retain(|event| filter.matches(event));
            Ok(page)
        })
    }

    fn subscribe(&self, filter: Filter, after: Position) -> Result<Box<dyn Subscribe>, ReadError> {
        self.0.subscribe(filter, after)
    }

    fn head(&self) -> Position {
        self.0.head()
    }
}

pub(crate) async fn append(
    log: &Arc<dyn EventLog>,
    events: Vec<NewEvent>,
) -> Result<Position, Wrong> {
    let mut last = Position(0);
    let mut events = events.into_iter().peekable();
    while events.peek().is_some() {
        let batch = events.by_ref().take(1000).collect();
        last = log.append(Append::of(batch)).await?.last;
    }
    Ok(last)
}

pub(crate) fn segment(text: &str) -> Segment {
    text.parse().expect("a literal segment of a test")
}

pub(crate) fn tenant(text: &str) -> Tenant {
    text.parse().expect("a tenant of a test")
}

pub(crate) fn scope(text: &str) -> ReadScope {
    ReadScope::Tenant(tenant(text))
}

/// An event of the catalog.
pub(crate) fn event(place: &str, key: impl ToString, event: impl Into<Event>) -> NewEvent {
    NewEvent::new(segment(place), key, &event.into()).expect("an event of a test fits")
}

/// An event of any type, version and data.
pub(crate) fn raw(place: &str, key: &str, kind: &str, version: u16, data: &str) -> NewEvent {
    NewEvent {
        id: EventId::mint(),
        segment: segment(place),
        key: key.to_owned(),
        kind: kind.to_owned(),
        version,
        cause: None,
        trace: None,
        data: RawValue::from_string(data.to_owned()).expect("JSON of a test"),
    }
}

/// The app with this number, the same in every run.
pub(crate) fn app(number: u128) -> AppId {
    AppId::from_uuid(uuid_of(0x0191_e7c2_0000_7000_8000_0000_0000_0000 + number))
}

/// The deploy with this number, the same in every run.
pub(crate) fn deploy(number: u128) -> DeployId {
    DeployId::from_uuid(uuid_of(0x0191_e7c3_0000_7000_8000_0000_0000_0000 + number))
}

pub(crate) fn uuid_of(bits: u128) -> uuid::Uuid {
    uuid::Uuid::from_u128(bits)
}
