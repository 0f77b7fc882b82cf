//! The log in PostgreSQL: the same law, on more than one machine.
//!
//! ```text
//!  append ─▶ queue ─▶ writer: judge by what the tables hold ─▶ one statement:      ─▶ answers
//!                                                             fence, chain, events
//!                                                                  │ commit, standby included
//!  subscribe ◀── recent events in memory, or rows by position ◀── durable position (watch)
//!                                                                  ▲ NOTIFY wakes, else a poll
//!                                                             followers in other processes
//! ```
//!
//! Invariants:
//! 1. One writer: whoever commits has locked the epoch row and found its own epoch there.
//! 2. The writer gives the positions, from 1 without a gap; no sequence, no other writer.
//! 3. An acknowledged commit is on a synchronous standby; without one the engine refuses to start.
//! 4. What is not known to be committed is not acknowledged: it is read back, or `Stopping`.
//! 5. Every commit continues a chain of hashes, as the embedded engine's frames do.
//!
//! Spawns the writer or the follower, and one task a connection. Reading order: `schema` is the
//! tables, `rows` an event in them, `lease` who leads, `past` what a batch meets, `writer` the commit,
//! `reader` and `subscription` the way out, `follow` the way out elsewhere, `verify` the proof.
//! Why so: docs/adr/0012-postgresql-engine.md.

mod client;
mod connection;
mod error;
mod follow;
mod lease;
mod options;
mod past;
mod reader;
mod rows;
mod schema;
mod subscription;
mod transfer;
mod verify;
mod writer;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use tabbify_api::BoxFuture;
use tabbify_api::log::{EventLog, LogEngine, LogScope, ReadError};
use tabbify_process::{Importance, Tasks, chain};
use tabbify_types::{Position, Recorded};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::Instant;

use self::connection::Connection;
use self::lease::{Election, Term};
use self::reader::Readers;
use self::writer::{Session, Tip, Writer};
use crate::client::Client;
use crate::extent;
use crate::frame::{FrameBuilder, FrameHash};
use crate::log::LogId;
use crate::recent::Recent;
use crate::writer::{QUEUE_LEN_MAX, QUEUE_REQUESTS_MAX, Request};

pub use self::error::OpenError;
pub use self::options::{Options, Standby};
pub use self::verify::Verified;

/// How long a candidate waits at most before it asks again who leads.
const ELECT_EVERY: Duration = Duration::from_millis(500);

/// A log in PostgreSQL, led or followed by this process. Dropping it ends that in the background;
/// [`Engine::close`] waits for it.
pub struct Engine {
    shared: Arc<Shared>,
}

impl Engine {
    /// Opens the log to lead it: makes it if the schema holds none, waits until nobody leads, and
    /// takes appends from then on. When the lead or the database is lost for too long, the engine
    /// stops ([`Engine::stopped`]) and is opened again.
    ///
    /// # Errors
    /// [`OpenError`]; [`OpenError::Led`] if another leader has not ended in time.
    pub async fn lead(options: Options) -> Result<Self, OpenError> {
        let tasks = Tasks::new();
        let mut connection = Connection::open(&options, &tasks).await?;
        connection.check_server(options.standby).await?;
        let log_id = make(&mut connection, &options.schema).await?;
        let term = elect(&connection, &options).await?;
        if connection.warned() {
            return Err(OpenError::Unreplicated);
        }
        let last = past::last_frame(&connection.client, &options.schema).await;
        let last = last.map_err(OpenError::database("find the log's end"))?;
        let tip = match last {
            None => Tip {
                head: Position(0),
                hash: extent::genesis(log_id.0),
            },
            Some((head, hash)) => Tip {
                head,
                hash: FrameHash(hash.try_into().map_err(|_| {
                    OpenError::damaged(head, "its commit has a hash of another length")
                })?),
            },
        };
        let session = Session::prepare(connection, &options.schema).await?;
        let (requests, queue) = mpsc::channel(QUEUE_REQUESTS_MAX);
        let (durable, reading) = watch::channel(tip.head);
        let shared = Shared::new(options, log_id, Some(requests), reading, tasks);
        let writer = Writer {
            shared: Arc::clone(&shared),
            queue,
            session,
            term,
            tip,
            frame: FrameBuilder::default(),
            durable,
        };
        shared
            .tasks
            .spawn("log writer", Importance::Detached, writer.run());
        Ok(Self { shared })
    }

    /// Opens the log to read it, while another process leads. Appends are answered `Stopping`.
    ///
    /// # Errors
    /// [`OpenError`]; [`OpenError::Missing`] if nobody has made the log yet.
    pub async fn follow(options: Options) -> Result<Self, OpenError> {
        let tasks = Tasks::new();
        let connection = Connection::open(&options, &tasks).await?;
        let found = schema::find(&connection.client, &options.schema).await?;
        let log_id = found.ok_or_else(|| OpenError::Missing {
            schema: options.schema.clone(),
        })?;
        let head = follow::listen(&connection, &options.schema).await?;
        let (durable, reading) = watch::channel(head);
        let shared = Shared::new(options, log_id, None, reading, tasks);
        let following = follow::run(Arc::clone(&shared), connection, durable);
        shared
            .tasks
            .spawn("log follower", Importance::Detached, following);
        Ok(Self { shared })
    }

    /// Verifies the log without leading it: the chain of its commits over every event.
    ///
    /// # Errors
    /// [`OpenError`], with the first thing that is wrong.
    pub async fn verify(options: Options) -> Result<Verified, OpenError> {
        verify::verify(&options).await
    }

    /// The log as `scope` may use it.
    #[must_use]
    pub fn client(&self, scope: LogScope) -> Arc<dyn EventLog> {
        Arc::new(Client::new(Arc::clone(&self.shared), scope))
    }

    /// The last durable position.
    #[must_use]
    pub fn head(&self) -> Position {
        self.shared.head()
    }

    /// Which log this is.
    #[must_use]
    pub fn log_id(&self) -> LogId {
        self.shared.log_id
    }

    /// Returns when the writer or the follower has ended: after [`Engine::close`], or because it
    /// failed. Whoever owns the engine watches this as an essential task.
    pub async fn stopped(&self) {
        let mut durable = self.shared.durable.clone();
        // The task drops the sending side last of all.
        while durable.changed().await.is_ok() {}
    }

    /// Takes no more appends, writes what is queued, and returns when the lead is given up. Appends
    /// from here on, and readers at the head, get `Stopping`.
    pub async fn close(&self) {
        self.shared.stop();
        self.stopped().await;
    }
}

impl LogEngine for Engine {
    fn client(&self, scope: LogScope) -> Arc<dyn EventLog> {
        Self::client(self, scope)
    }

    fn head(&self) -> Position {
        Self::head(self)
    }

    fn verify(
        &self,
        after: Position,
        upto: Position,
    ) -> BoxFuture<'_, Result<Position, ReadError>> {
        Box::pin(verify_piece(&self.shared, after, upto))
    }
}

/// Verifies the chain over a piece of the log, on a session of its own.
async fn verify_piece(
    shared: &Shared,
    after: Position,
    upto: Position,
) -> Result<Position, ReadError> {
    let schema = &shared.options.schema;
    let found = match Connection::open(&shared.options, &shared.tasks).await {
        Ok(connection) => {
            verify::piece(&connection.client, schema, shared.log_id, after, upto).await
        }
        Err(error) => Err(error),
    };
    match found {
        Ok(Some(verified)) => Ok(verified.min(upto)),
        Ok(None) => Ok(upto),
        Err(OpenError::Damaged { position, what }) => Err(ReadError::Damaged {
            detail: format!("position {position}: {what}"),
        }),
        Err(error) => {
            tracing::warn!(error = %chain(&error), "the log cannot be verified");
            Err(ReadError::Stopping)
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.shared.stop();
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine")
            .field("log_id", &self.shared.log_id)
            .field("head", &self.shared.head())
            .finish_non_exhaustive()
    }
}

/// Finds the log in the schema, or makes one with an id of its own.
async fn make(connection: &mut Connection, name: &str) -> Result<LogId, OpenError> {
    if let Some(found) = schema::find(&connection.client, name).await? {
        return Ok(found);
    }
    let failed = || OpenError::database("make the log's tables");
    let transaction = connection.client.transaction().await.map_err(failed())?;
    let log_id = LogId(tabbify_process::random());
    let log_id = schema::create(&transaction, name, log_id).await?;
    transaction.commit().await.map_err(failed())?;
    Ok(log_id)
}

/// Waits until nobody leads, and then leads.
async fn elect(connection: &Connection, options: &Options) -> Result<Term, OpenError> {
    let failed = || OpenError::database("be elected");
    let name: [u8; 8] = tabbify_process::random();
    let name: String = name.iter().map(|byte| format!("{byte:02x}")).collect();
    let holder = format!("process {} ({name})", std::process::id());
    let started = Instant::now();
    loop {
        let tried = lease::elect(&connection.client, &options.schema, &holder, options.lease);
        match tried.await.map_err(failed())? {
            Election::Won(term) => return Ok(term),
            Election::Lost { holder, remaining } => {
                let waited = started.elapsed();
                if waited >= options.elect_within {
                    return Err(OpenError::Led { holder, waited });
                }
                tracing::info!(holder, ?remaining, "waiting for the lead of the log");
                tokio::time::sleep(remaining.clamp(Duration::from_millis(1), ELECT_EVERY)).await;
            }
        }
    }
}

/// What clients, readers and the writer have in common.
#[derive(Debug)]
struct Shared {
    options: Options,
    log_id: LogId,
    /// Taken when the log stops; the writer ends when the last clone is gone.
    requests: Mutex<Option<mpsc::Sender<Request>>>,
    /// Bytes of batches that may wait, as permits.
    room: Arc<Semaphore>,
    durable: watch::Receiver<Position>,
    recent: RwLock<Recent>,
    readers: Readers,
    /// Cancelled when the engine is closed.
    tasks: Tasks,
}

impl Shared {
    fn new(
        options: Options,
        log_id: LogId,
        requests: Option<mpsc::Sender<Request>>,
        durable: watch::Receiver<Position>,
        tasks: Tasks,
    ) -> Arc<Self> {
        Arc::new(Self {
            options,
            log_id,
            requests: Mutex::new(requests),
            room: Arc::new(Semaphore::new(QUEUE_LEN_MAX)),
            durable,
            recent: RwLock::default(),
            readers: Readers::default(),
            tasks,
        })
    }

    fn head(&self) -> Position {
        *self.durable.borrow()
    }

    /// The way into the writer; `None` once the log stops.
    fn requests(&self) -> Option<mpsc::Sender<Request>> {
        self.requests
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn stop(&self) {
        self.requests
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        self.tasks.stop();
    }

    /// Keeps events that have just become durable.
    fn remember(&self, events: impl Iterator<Item = Arc<Recorded>>) {
        let mut recent = self.recent.write().unwrap_or_else(PoisonError::into_inner);
        events.for_each(|event| recent.push(event));
    }

    /// Up to `limit` events after `after`, if the first of them is still in memory.
    fn recent(&self, after: Position, limit: usize) -> Option<Vec<Arc<Recorded>>> {
        let recent = self.recent.read().unwrap_or_else(PoisonError::into_inner);
        recent.after(after, limit)
    }
}
