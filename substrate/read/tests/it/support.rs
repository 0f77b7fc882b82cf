//! A small vocabulary for the stories in this binary.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::value::RawValue;
use tabbify_api::log::{Append, EventLog, LogScope};
use tabbify_api::read::{ReadModel as _, ReadScope};
use tabbify_log::{Log, Options};
use tabbify_process::{SystemClock, Tasks};
use tabbify_read::{Config, ReadNode};
use tabbify_types::{
    AppId, DeployId, Event, EventId, NewEvent, Position, Segment, SegmentGlob, Tenant,
};

pub(crate) type Wrong = Box<dyn std::error::Error + Send + Sync>;
pub(crate) type Outcome = Result<(), Wrong>;

/// Long enough for any machine; a test that waits so long has failed.
pub(crate) const WATCHDOG: Duration = Duration::from_secs(60);

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

/// A read node with its tasks.
pub(crate) struct Running {
    pub(crate) node: ReadNode,
    tasks: Tasks,
}

impl Running {
    pub(crate) async fn start(dir: &Path, log: &Arc<dyn EventLog>) -> Result<Self, Wrong> {
        let tasks = Tasks::new();
        let config = Config {
            dir: dir.to_owned(),
        };
        let clock = Arc::new(SystemClock);
        let node = ReadNode::start(config, Arc::clone(log), clock, &tasks).await?;
        Ok(Self { node, tasks })
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
