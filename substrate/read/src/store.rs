//! One file of the read model: opened, judged, folded into.
//!
//! INVARIANT: the rows and the position that they stand at are written by the same transaction, so
//! that every state a crash can leave is the fold of a prefix of the log.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, Transaction, TransactionBehavior, params};
use tabbify_types::{Digest, Position, Recorded, Timestamp};

use crate::digest;
use crate::error::ReadNodeError;
use crate::projection::{self, FoldError, Projection, millis, place};

/// Version of the tables. Another one in a file means another file, built from position 0.
pub(crate) const SCHEMA: i64 = 1;

/// Bytes of a page: SQLite's own default, of which every file here is made.
const PAGE_LEN: u64 = 4096;
/// How long a write waits for a lock that another connection holds.
const BUSY: Duration = Duration::from_secs(5);
/// LIMIT: prepared statements that the writer keeps; there are fewer.
const STATEMENTS_MAX: usize = 96;

const META: &str = "
CREATE TABLE meta (
  one INTEGER PRIMARY KEY CHECK (one = 1), position INTEGER NOT NULL, tip BLOB NOT NULL,
  at INTEGER NOT NULL
) STRICT;
INSERT INTO meta (one, position, tip, at) VALUES (1, 0, x'', 0);
CREATE TABLE projections (
  name TEXT NOT NULL PRIMARY KEY, position INTEGER NOT NULL, stopped TEXT
) STRICT, WITHOUT ROWID;
";

/// A file, open for folding.
#[derive(Debug)]
pub(crate) struct Store {
    conn: Connection,
    path: PathBuf,
    position: Position,
    tip: Vec<u8>,
    tip_at: Timestamp,
    states: Vec<State>,
}

/// Where one projection stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) name: &'static str,
    /// Every event up to here is in its tables.
    pub(crate) position: Position,
    /// Why it does not go on.
    pub(crate) stopped: Option<String>,
}

/// A file as it was found.
pub(crate) enum Found {
    /// Of this program's tables.
    Usable(Store),
    /// Not: its tables are of another version, or it is damaged.
    Unusable(String),
}

impl Store {
    /// Makes the file, at position 0.
    pub(crate) fn create(path: &Path) -> Result<Self, ReadNodeError> {
        let mut conn = connect(path).map_err(ReadNodeError::sqlite("create", path))?;
        let made = |conn: &mut Connection| {
            let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
            tx.execute_batch(META)?;
            for projection in projection::ALL {
                tx.execute_batch(projection.schema())?;
                tx.execute(
                    "INSERT INTO projections (name, position) VALUES (?1, 0)",
                    [projection.name()],
                )?;
            }
            tx.pragma_update(None, "user_version", SCHEMA)?;
            tx.commit()
        };
        made(&mut conn).map_err(ReadNodeError::sqlite("create", path))?;
        Self::load(conn, path).map_err(ReadNodeError::sqlite("read", path))
    }

    /// Opens a file that is there.
    pub(crate) fn open(path: &Path) -> Result<Found, ReadNodeError> {
        // SQLite takes what is missing of its last page for zeros.
        let len = fs::metadata(path).map_err(ReadNodeError::io("read", path))?;
        if len.len() % PAGE_LEN != 0 {
            return Ok(Found::Unusable(
                "it was cut in the middle of a page".to_owned(),
            ));
        }
        let opened = connect(path).and_then(|conn| {
            let schema: i64 = conn.pragma_query_value(None, "user_version", |row| row.get(0))?;
            if schema != SCHEMA {
                return Ok(Err(schema));
            }
            Self::load(conn, path).map(Ok)
        });
        match opened.map_err(ReadNodeError::sqlite("open", path)) {
            Ok(Ok(store)) => Ok(Found::Usable(store)),
            Ok(Err(schema)) => Ok(Found::Unusable(format!(
                "its tables are of version {schema}, this program's are {SCHEMA}"
            ))),
            // A file without its tables, or with other rows in them, is as bad as a damaged one.
            Err(error) if !error.is_of_machine() => {
                Ok(Found::Unusable(tabbify_process::chain(&error).to_string()))
            }
            Err(error) => Err(error),
        }
    }

    fn load(conn: Connection, path: &Path) -> rusqlite::Result<Self> {
        let (position, tip, at) =
            conn.query_row("SELECT position, tip, at FROM meta", [], |row| {
                Ok((Position(row.get(0)?), row.get(1)?, row.get(2)?))
            })?;
        let mut states = Vec::with_capacity(projection::ALL.len());
        for projection in projection::ALL {
            states.push(conn.query_row(
                "SELECT position, stopped FROM projections WHERE name = ?1",
                [projection.name()],
                |row| {
                    Ok(State {
                        name: projection.name(),
                        position: Position(row.get(0)?),
                        stopped: row.get(1)?,
                    })
                },
            )?);
        }
        Ok(Self {
            conn,
            path: path.to_owned(),
            position,
            tip,
            tip_at: Timestamp::from_millis(at),
            states,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Every event up to here has been folded, or has stopped a projection.
    pub(crate) fn position(&self) -> Position {
        self.position
    }

    /// When the log took the last event that is folded.
    pub(crate) fn tip_at(&self) -> Timestamp {
        self.tip_at
    }

    pub(crate) fn states(&self) -> &[State] {
        &self.states
    }

    /// Whether `recorded`, which the log has at this file's position, is what was folded there.
    pub(crate) fn is_tip(&self, recorded: &Recorded) -> bool {
        recorded.position == self.position && fingerprint(recorded) == self.tip
    }

    /// Folds the events that come next, all of them in one transaction.
    pub(crate) fn fold(&mut self, events: &[Arc<Recorded>]) -> Result<(), ReadNodeError> {
        let Some(last) = events.last() else {
            return Ok(());
        };
        let mut wanted = self.position;
        for event in events {
            wanted = wanted.next();
            if event.position != wanted {
                let got = event.position;
                return Err(ReadNodeError::Gap { wanted, got });
            }
        }
        let (mut states, tip) = (self.states.clone(), fingerprint(last));
        let folded = in_transaction(&mut self.conn, |tx| {
            for event in events {
                for (projection, state) in projection::ALL.iter().zip(&mut states) {
                    if state.stopped.is_none() {
                        fold_one(tx, *projection, state, event)?;
                    }
                }
            }
            store_states(tx, &states)?;
            tx.prepare_cached(
                "UPDATE meta SET position = ?1, tip = ?2, at = ?3 WHERE position = ?4",
            )?
            .execute(params![
                place(last.position),
                tip,
                millis(last.at),
                place(self.position)
            ])
        });
        // Nobody else may have folded into this file meanwhile; the directory is locked, so this is
        // a check of ourselves.
        if folded.map_err(ReadNodeError::sqlite("fold into", &self.path))? != 1 {
            return Err(ReadNodeError::Moved {
                path: self.path.clone(),
                position: self.position,
            });
        }
        (self.position, self.tip, self.tip_at) = (last.position, tip, last.at);
        self.states = states;
        Ok(())
    }

    /// Folds events into one projection that had stopped, up to where the others are; `upto` is how
    /// far the log has been looked at for it.
    pub(crate) fn resume(
        &mut self,
        name: &str,
        events: &[Arc<Recorded>],
        upto: Position,
    ) -> Result<(), ReadNodeError> {
        let mut states = self.states.clone();
        let mut both = projection::ALL.iter().zip(&mut states);
        let Some((projection, state)) = both.find(|(_, state)| state.name == name) else {
            return Ok(());
        };
        let limit = self.position;
        state.stopped = None;
        let resumed = in_transaction(&mut self.conn, |tx| {
            for event in events {
                let due = event.position > state.position && event.position <= limit;
                if due && state.stopped.is_none() {
                    fold_one(tx, *projection, state, event)?;
                }
            }
            if state.stopped.is_none() {
                state.position = state.position.max(upto.min(limit));
            }
            store_states(tx, std::slice::from_ref(state))
        });
        resumed.map_err(ReadNodeError::sqlite("fold into", &self.path))?;
        self.states = states;
        Ok(())
    }

    /// The digest of the content.
    pub(crate) fn digest(&mut self) -> Result<Digest, ReadNodeError> {
        let digest = self.conn.transaction().and_then(|tx| digest::of(&tx));
        digest.map_err(ReadNodeError::sqlite("read", &self.path))
    }

    /// Closes the file; what SQLite keeps beside it goes away with its last connection.
    pub(crate) fn close(self) -> Result<(), ReadNodeError> {
        let path = self.path;
        self.conn
            .close()
            .map_err(|(_, source)| ReadNodeError::sqlite("close", path)(source))
    }
}

/// Opens a connection that writes.
///
/// `synchronous = NORMAL` loses the last commits with the power, never the file: what is lost is
/// folded again from the log, which is where it is durable.
fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let conn = Connection::open(path)?;
    conn.busy_timeout(BUSY)?;
    conn.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
    conn.pragma_update(None, "trusted_schema", false)?;
    conn.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(()))?;
    conn.pragma_update(None, "synchronous", "normal")?;
    // LIMIT: 32 MiB of pages in memory, and what stays of the write-ahead log after a checkpoint.
    conn.pragma_update(None, "cache_size", -32 * 1024)?;
    conn.pragma_update_and_check(None, "journal_size_limit", 64 * 1024 * 1024, |_| Ok(()))?;
    Ok(conn)
}

fn in_transaction<T>(
    conn: &mut Connection,
    work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
) -> rusqlite::Result<T> {
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let done = work(&tx)?;
    tx.commit()?;
    Ok(done)
}

/// Folds an event into one projection, or stops the projection before it.
fn fold_one(
    tx: &Transaction<'_>,
    projection: &dyn Projection,
    state: &mut State,
    event: &Recorded,
) -> rusqlite::Result<()> {
    if projection.claims().include(&event.kind) && projection.reads(&event.segment) {
        match projection.apply(tx, event) {
            Ok(()) => {}
            Err(FoldError::Sql(error)) => return Err(error),
            Err(FoldError::Event(error)) => {
                let reason = format!("position {}: {error}", event.position);
                tracing::error!(
                    projection = state.name,
                    position = event.position.get(),
                    reason,
                    "projection stopped; the others go on"
                );
                state.stopped = Some(reason);
                return Ok(());
            }
        }
    }
    state.position = event.position;
    Ok(())
}

fn store_states(tx: &Transaction<'_>, states: &[State]) -> rusqlite::Result<()> {
    let mut update =
        tx.prepare_cached("UPDATE projections SET position = ?2, stopped = ?3 WHERE name = ?1")?;
    for state in states {
        update.execute(params![state.name, place(state.position), state.stopped])?;
    }
    Ok(())
}

/// Tells whether two logs have the same event at a position.
fn fingerprint(event: &Recorded) -> Vec<u8> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(event.id.uuid().as_bytes());
    hasher.update(&event.at.millis().to_le_bytes());
    hasher.update(event.data.get().as_bytes());
    hasher.finalize().as_bytes().to_vec()
}
