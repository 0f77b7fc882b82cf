//! Connections that read: a few, on the blocking pool, each question with a deadline.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use rusqlite::{Connection, OpenFlags, Transaction};
use tabbify_api::read::QueryError;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::error::{ReadNodeError, is_damage};

/// LIMIT: questions at once; others wait in order.
const READERS_MAX: usize = 4;
/// How long a reader waits for a lock. A writer never blocks readers; recovery of a file does.
const BUSY: Duration = Duration::from_secs(1);
/// Steps of SQLite's machine between two looks at the deadline: well under a millisecond.
const STEPS_BETWEEN_LOOKS: i32 = 10_000;
/// LIMIT: prepared statements that a connection keeps.
const STATEMENTS_MAX: usize = 64;

/// Reads the file it points to.
#[derive(Debug, Clone)]
pub(crate) struct Pool {
    permits: Arc<Semaphore>,
    idle: Arc<Mutex<Idle>>,
    damaged: Arc<Notify>,
    time_max: Duration,
}

#[derive(Debug)]
struct Idle {
    path: PathBuf,
    connections: Vec<Connection>,
}

impl Pool {
    pub(crate) fn new(path: &Path, time_max: Duration) -> Self {
        Self {
            permits: Arc::new(Semaphore::new(READERS_MAX)),
            idle: Arc::new(Mutex::new(Idle {
                path: path.to_owned(),
                connections: Vec::new(),
            })),
            damaged: Arc::default(),
            time_max,
        }
    }

    /// Reads `path` from now on. Questions under way end with the file that they began with.
    pub(crate) fn point_to(&self, path: &Path) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        path.clone_into(&mut idle.path);
        idle.connections.clear();
        // What was found in the file before says nothing about this one.
        let _ = self.damaged.notified().now_or_never();
    }

    /// Waits until a question has come upon damage in the file that is read now.
    pub(crate) async fn damage_seen(&self) {
        self.damaged.notified().await;
    }

    /// A connection of its own to the file that is read now, for work without a deadline.
    pub(crate) fn connect(&self) -> Result<Connection, ReadNodeError> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let path = idle.path.clone();
        drop(idle);
        connect(&path).map_err(ReadNodeError::sqlite("open", path))
    }

    /// Asks one question, in a transaction of its own: everything it reads is of one moment.
    pub(crate) async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Transaction<'_>) -> Result<T, Asked> + Send + 'static,
    ) -> Result<T, QueryError> {
        let deadline = Instant::now() + self.time_max;
        let waited = tokio::time::timeout_at(deadline, Arc::clone(&self.permits).acquire_owned());
        let permit = waited.await.map_err(|_| self.too_slow())?;
        let permit = permit.map_err(|_| unavailable("the read node has ended"))?;
        let pool = self.clone();
        // If the caller goes away, the question still ends at its deadline and gives both back.
        tokio::task::spawn_blocking(move || pool.answer(permit, deadline, question))
            .await
            .map_err(|_| unavailable("a question panicked"))?
    }

    fn answer<T>(
        &self,
        permit: OwnedSemaphorePermit,
        deadline: Instant,
        question: impl FnOnce(&Transaction<'_>) -> Result<T, Asked>,
    ) -> Result<T, QueryError> {
        let _permit = permit;
        let (path, idle) = self.take();
        let mut conn = match idle {
            Some(conn) => conn,
            None => connect(&path).map_err(|error| self.refused(&error))?,
        };
        let asked = ask_on(&mut conn, deadline, question);
        self.give_back(&path, conn);
        asked.map_err(|error| match error {
            Asked::Refused(error) => error,
            Asked::Sql(error) => {
                self.tell_damage(&path, &error);
                self.refused(&error)
            }
        })
    }

    /// Has the file built again, unless another is read by now.
    pub(crate) fn tell_damage(&self, path: &Path, error: &rusqlite::Error) {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if is_damage(error) && idle.path == path {
            tracing::error!(path = %path.display(), %error, "a question found the read model damaged");
            self.damaged.notify_one();
        }
    }

    fn take(&self) -> (PathBuf, Option<Connection>) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        (idle.path.clone(), idle.connections.pop())
    }

    fn give_back(&self, path: &Path, conn: Connection) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.path == path {
            idle.connections.push(conn);
        }
    }

    fn refused(&self, error: &rusqlite::Error) -> QueryError {
        if error.sqlite_error_code() == Some(rusqlite::ErrorCode::OperationInterrupted) {
            return self.too_slow();
        }
        unavailable(&tabbify_process::chain(error).to_string())
    }

    fn too_slow(&self) -> QueryError {
        QueryError::TooSlow {
            limit_ms: u64::try_from(self.time_max.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

/// Why a question was not answered.
#[derive(Debug)]
pub(crate) enum Asked {
    /// The store said so.
    Sql(rusqlite::Error),
    /// The question is not one.
    Refused(QueryError),
}

impl From<rusqlite::Error> for Asked {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error)
    }
}

impl From<QueryError> for Asked {
    fn from(error: QueryError) -> Self {
        Self::Refused(error)
    }
}

fn unavailable(detail: &str) -> QueryError {
    QueryError::Unavailable {
        detail: detail.to_owned(),
    }
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags)?;
    conn.busy_timeout(BUSY)?;
    conn.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
    conn.pragma_update(None, "query_only", true)?;
    conn.pragma_update(None, "trusted_schema", false)?;
    Ok(conn)
}

fn ask_on<T>(
    conn: &mut Connection,
    deadline: Instant,
    question: impl FnOnce(&Transaction<'_>) -> Result<T, Asked>,
) -> Result<T, Asked> {
    let is_late = move || Instant::now() >= deadline;
    conn.progress_handler(STEPS_BETWEEN_LOOKS, Some(is_late))?;
    let answer = conn.transaction().map_err(Asked::from).and_then(|tx| {
        let answer = question(&tx)?;
        tx.finish()?;
        Ok(answer)
    });
    conn.progress_handler(0, None::<fn() -> bool>)?;
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("a.sqlite");
        let made = Connection::open(&path)
            .and_then(|conn| conn.execute_batch("CREATE TABLE t (n INTEGER)"));
        made.expect("a file with a table");
        (dir, path)
    }

    #[tokio::test]
    async fn an_endless_question_ends_at_its_deadline_and_the_next_one_is_answered() {
        let (_dir, path) = file();
        let pool = Pool::new(&path, Duration::from_millis(50));
        let endless = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c)
                       SELECT count(*) FROM c";
        let slow = pool.ask(move |tx| Ok(tx.query_row(endless, [], |row| row.get::<_, i64>(0))?));
        assert_eq!(slow.await, Err(QueryError::TooSlow { limit_ms: 50 }));
        let count = pool
            .ask(|tx| Ok(tx.query_row("SELECT count(*) FROM t", [], |row| row.get::<_, i64>(0))?));
        assert_eq!(count.await, Ok(0));
    }

    #[tokio::test]
    async fn a_reader_cannot_write_and_a_panic_takes_nothing_along() {
        let (_dir, path) = file();
        let pool = Pool::new(&path, Duration::from_secs(20));
        for _ in 0..=READERS_MAX {
            let panics = pool.ask(|_| -> Result<(), Asked> { panic!("a bug in a question") });
            assert!(matches!(panics.await, Err(QueryError::Unavailable { .. })));
        }
        let write = pool.ask(|tx| Ok(tx.execute("INSERT INTO t VALUES (1)", [])?));
        assert!(matches!(write.await, Err(QueryError::Unavailable { .. })));
    }
}
