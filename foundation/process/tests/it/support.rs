//! A small vocabulary for the stories in this binary.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tabbify_api::log::{Append, EventLog, Filter, LogScope};
use tabbify_log::{Log, Options};
use tabbify_process::SystemClock;
use tabbify_process::fold::{Fold, pairs};
use tabbify_types::{EventId, NewEvent, Position, Recorded, Rev, SegmentGlob};

pub(crate) type Wrong = Box<dyn std::error::Error + Send + Sync>;
pub(crate) type Outcome = Result<(), Wrong>;

/// Long enough for any machine; a test that waits so long has failed.
pub(crate) const WATCHDOG: Duration = Duration::from_secs(60);

/// Everything that every event has said, so that no two histories have the same state.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Diary {
    #[serde(with = "pairs")]
    pub(crate) said: BTreeMap<(String, Rev), (Position, String)>,
    pub(crate) count: u64,
}

/// An event that the diary cannot take.
#[derive(Debug, thiserror::Error)]
#[error("nobody may say {0}")]
pub(crate) struct Unspeakable(String);

impl Fold for Diary {
    const NAME: &'static str = "diary";
    const VERSION: u32 = 1;
    type News = String;
    type Error = Unspeakable;

    fn filter(&self) -> Filter {
        diary_filter()
    }

    fn apply(&mut self, event: &Recorded) -> Result<String, Unspeakable> {
        let text = event.data.get().to_owned();
        if text.contains("unspeakable") {
            return Err(Unspeakable(text));
        }
        let key = (event.key.clone(), event.rev);
        self.said.insert(key, (event.position, text.clone()));
        self.count += 1;
        Ok(text)
    }
}

pub(crate) fn diary_filter() -> Filter {
    Filter::segments(["tenant_*.chat".parse().expect("a glob")])
}

/// The same fold, of another program.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct NewerDiary(pub(crate) Diary);

impl Fold for NewerDiary {
    const NAME: &'static str = Diary::NAME;
    const VERSION: u32 = Diary::VERSION + 1;
    type News = String;
    type Error = Unspeakable;

    fn filter(&self) -> Filter {
        self.0.filter()
    }

    fn apply(&mut self, event: &Recorded) -> Result<String, Unspeakable> {
        self.0.apply(event)
    }
}

pub(crate) fn open_log(dir: &Path) -> Result<Log, Wrong> {
    Ok(Log::open(dir, Options::new(Arc::new(SystemClock)))?)
}

pub(crate) fn client(log: &Log) -> Arc<dyn EventLog> {
    log.client(LogScope {
        actor: "user:owner".to_owned(),
        write: vec![SegmentGlob::all()],
        read: vec![SegmentGlob::all()],
    })
}

/// Says something in a room; what is said elsewhere is not for the diary.
pub(crate) async fn say(
    log: &dyn EventLog,
    segment: &str,
    room: &str,
    text: &str,
) -> Result<Position, Wrong> {
    let data = serde_json::to_string(&BTreeMap::from([("text", text)]))?;
    let event = NewEvent {
        id: EventId::mint(),
        segment: segment.parse()?,
        key: room.to_owned(),
        kind: "x.said".to_owned(),
        version: 1,
        cause: None,
        trace: None,
        data: RawValue::from_string(data)?,
    };
    Ok(log.append(Append::of(vec![event])).await?.last)
}
