//! The real engine on a simulated disk, one commit at a time: no thread of its own, so that the same
//! steps are the same run.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use futures_util::FutureExt as _;
use serde_json::value::RawValue;
use tabbify_api::BoxFuture;
use tabbify_api::log::{Append, AppendError, EventLog, Filter, LogEngine, LogScope};
use tabbify_process::ManualClock;
use tabbify_types::{EventId, NewEvent, Position, Recorded, SegmentGlob, Timestamp};
use tokio::task::unconstrained;
use uuid::Uuid;

use super::Wrong;
use super::model::Answer;
use crate::cold::{self, Cold, ColdStore, Done};
use crate::disk::Tiered;
use crate::disk::sim::{SimDisk, SimObjects};
use crate::error::OpenError;
use crate::log::{Log, Shared};
use crate::options::Options;
use crate::writer::{Step, Writer};

/// Where the log is on the disk; the directories above are made with it.
pub(crate) const DIR: &str = "/data/log";
/// Segments that the proofs write.
pub(crate) const SEGMENTS: [&str; 3] = ["tenant_a.apps", "tenant_b.apps", "tenant_b.builds"];

/// How logs are opened here: extents of this many bytes.
pub(crate) fn options(disk: &SimDisk, extent_len: u64) -> Options {
    let clock = ManualClock::at(Timestamp::from_secs(1_700_000_000));
    let mut options = Options::new(Arc::new(clock))
        .extent_lens(extent_len, extent_len)
        .on_failed_sync(|_| {});
    options.disk = Arc::new(disk.clone());
    options.spare_ahead = false;
    options.new_log_id = || *b"a log of a proof";
    // Whatever may go into the store goes there alone, when it is told to.
    options.cold = Some(Cold::new(store(disk), 0));
    options
}

/// The object store of a disk.
pub(crate) fn store(disk: &SimDisk) -> ColdStore {
    ColdStore::of(Arc::new(SimObjects(disk.clone())))
}

/// The disk as the log sees it, with what is stored.
pub(crate) fn tiered(disk: &SimDisk) -> Tiered {
    Tiered::new(Arc::new(disk.clone()), Some(&store(disk)))
}

/// Closed extents become runs from so many bytes on: any, or none of a proof's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Seal {
    Always,
    #[default]
    Never,
}

/// Everybody may do everything.
pub(crate) fn scope() -> LogScope {
    let all = vec![SegmentGlob::all()];
    LogScope {
        actor: "proof".to_owned(),
        write: all.clone(),
        read: all,
    }
}

/// An event of this id, with so many bytes of data.
pub(crate) fn event(id: u128, segment: &str, key: &str, data_len: usize) -> NewEvent {
    let text = "x".repeat(data_len);
    NewEvent {
        id: EventId::from_uuid(Uuid::from_u128(id)),
        segment: segment.parse().expect("a segment of a test"),
        key: key.to_owned(),
        kind: "x.proven".to_owned(),
        version: 1,
        cause: None,
        trace: None,
        data: RawValue::from_string(format!("{{\"x\":\"{text}\"}}")).expect("JSON of a test"),
    }
}

/// An open log whose writer works when it is told to.
pub(crate) struct Engine {
    log: Log,
    shared: Arc<Shared>,
    /// Gone when the disk has failed.
    writer: Option<Writer>,
    client: Arc<dyn EventLog>,
}

impl Engine {
    pub(crate) fn open(disk: &SimDisk, extent_len: u64) -> Result<Self, OpenError> {
        Self::open_sealing(disk, extent_len, Seal::Never)
    }

    /// With an index in files.
    pub(crate) fn open_sealing(
        disk: &SimDisk,
        extent_len: u64,
        seal: Seal,
    ) -> Result<Self, OpenError> {
        let mut options = options(disk, extent_len);
        if seal == Seal::Always {
            options.seal_len = 0;
        }
        let opened = Log::open_in_steps(Path::new(DIR), options)?;
        let (log, shared, writer) = opened;
        Ok(Self {
            client: log.client(scope()),
            log,
            shared,
            writer: Some(writer),
        })
    }

    pub(crate) fn head(&self) -> Position {
        self.log.head()
    }

    pub(crate) fn client(&self) -> &Arc<dyn EventLog> {
        &self.client
    }

    /// Puts a batch into the writer's queue.
    pub(crate) fn submit(&self, batch: Append) -> Waiting {
        let client = Arc::clone(&self.client);
        // Polled by hand, so the runtime must not tell it to make room for others.
        let append = unconstrained(async move { client.append(batch).await });
        let mut waiting = Waiting(Box::pin(append));
        // The first poll goes as far as the queue, which has room.
        let early = waiting.answer();
        if let Some(answer) = early {
            waiting.0 = Box::pin(std::future::ready(answer));
        }
        waiting
    }

    /// One commit.
    pub(crate) fn step(&mut self) -> Step {
        // Threads would go on with the index meanwhile.
        if self.shared.index.keep_now().is_err() {
            self.writer = None;
        }
        let Some(writer) = &mut self.writer else {
            return Step::Failed;
        };
        let step = writer.step(&self.shared);
        if step == Step::Failed {
            self.writer = None;
        }
        step
    }

    /// One closed extent is stored or removed, as the thread for that does it.
    pub(crate) fn cool(&self) -> Result<Done, OpenError> {
        cold::step(&self.shared)
    }

    /// Appends one batch and waits for its answer.
    pub(crate) fn append(&mut self, batch: Append) -> Answer {
        let mut waiting = self.submit(batch);
        loop {
            if let Some(answer) = waiting.answer() {
                return answer;
            }
            if self.step() == Step::Idle {
                return Err(AppendError::Stopping);
            }
        }
    }

    /// Everything there is.
    pub(crate) async fn read_all(&self) -> Result<Vec<Arc<Recorded>>, Wrong> {
        let (mut after, mut all) = (Position(0), Vec::new());
        loop {
            let page = self.client.read(Filter::default(), after, 1000).await?;
            all.extend(page.events);
            if page.next_after >= page.head {
                return Ok(all);
            }
            after = page.next_after;
        }
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine")
            .field("head", &self.head())
            .finish_non_exhaustive()
    }
}

/// Gives clients of the engine to what is built on a log.
#[derive(Debug, Clone)]
pub(crate) struct Clients(pub(crate) Arc<Shared>);

impl LogEngine for Clients {
    fn client(&self, scope: LogScope) -> Arc<dyn EventLog> {
        Arc::new(crate::client::Client::new(Arc::clone(&self.0), scope))
    }
}

impl Engine {
    pub(crate) fn clients(&self) -> Clients {
        Clients(Arc::clone(&self.shared))
    }
}

/// An append that has been submitted.
pub(crate) struct Waiting(BoxFuture<'static, Answer>);

impl Waiting {
    /// Its answer, if it is there; asked no more then.
    pub(crate) fn answer(&mut self) -> Option<Answer> {
        (&mut self.0).now_or_never()
    }
}
