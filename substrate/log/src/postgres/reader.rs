//! The way out: events from memory when they are recent, else rows by position, a few hundred at a
//! time. Key and types are filtered by the database, segments and scope here, by the one rule.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tabbify_api::log::ReadError;
use tabbify_process::chain;
use tabbify_types::Position;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Row};

use super::Shared;
use super::connection::Connection;
use super::error::OpenError;
use super::rows::{self, COLUMNS, signed};
use super::schema::sql;
use crate::pass::{self, Looked, Room};
use crate::reader::Wanted;

/// LIMIT: connections for reading, all readers together.
const CONNECTIONS_MAX: usize = 4;
/// LIMIT: rows of one answer of the database; at most 16 MiB of data.
const ROWS_MAX: usize = 256;
/// Positions that one question may pass over, where the database filters.
const FILTERED_POSITIONS: u64 = 16 * 1024;
/// Between two tries of a read while the database is away.
const PAUSE: Duration = Duration::from_millis(100);

/// Connections that wait for readers.
#[derive(Debug)]
pub(super) struct Readers {
    idle: Mutex<Vec<Connection>>,
    places: Semaphore,
}

impl Default for Readers {
    fn default() -> Self {
        Self {
            idle: Mutex::default(),
            places: Semaphore::new(CONNECTIONS_MAX),
        }
    }
}

/// Where one pass stops, whichever comes first.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// What it gives.
    pub(super) room: Room,
    /// Positions looked at in the tables.
    pub(super) positions: u64,
}

/// What one reader may have and wants.
#[derive(Debug)]
pub(super) struct Reading {
    wanted: Wanted,
    /// What the database filters.
    key: Option<Vec<u8>>,
    kinds: Vec<String>,
}

impl Reading {
    pub(super) fn new(wanted: Wanted) -> Self {
        let filter = wanted.filter();
        Self {
            key: filter.key.as_ref().map(|key| key.as_bytes().to_vec()),
            kinds: filter.kinds.clone(),
            wanted,
        }
    }

    /// A pass over the events after `after` that are in memory; `None` if the first of them is not.
    pub(super) fn pass_in_memory(
        &mut self,
        shared: &Shared,
        after: Position,
        upto: Position,
        bounds: Bounds,
    ) -> Option<Looked> {
        let recent = |after, wide| shared.recent(after, wide);
        pass::in_memory(recent, &mut self.wanted, (after, upto), bounds.room)
    }

    /// A pass over the events after `after`, up to `upto`, from the tables.
    pub(super) async fn pass_in_tables(
        &mut self,
        shared: &Shared,
        after: Position,
        upto: Position,
        bounds: Bounds,
    ) -> Result<Looked, ReadError> {
        let mut looked = Looked::from(after);
        let end = Position(upto.get().min(after.get().saturating_add(bounds.positions)));
        let wide = if self.is_filtered() {
            FILTERED_POSITIONS
        } else {
            ROWS_MAX as u64
        };
        while looked.upto < end && !looked.fills(bounds.room) {
            let to = Position(end.get().min(looked.upto.get() + wide));
            let rows = self.rows(shared, looked.upto, to).await?;
            self.take(&rows, to, &bounds, &mut looked)?;
        }
        Ok(looked)
    }

    const fn is_filtered(&self) -> bool {
        self.key.is_some() || !self.kinds.is_empty()
    }

    fn take(
        &mut self,
        rows: &[Row],
        to: Position,
        bounds: &Bounds,
        looked: &mut Looked,
    ) -> Result<(), ReadError> {
        for row in rows {
            if looked.fills(bounds.room) {
                return Ok(());
            }
            let (event, _) = rows::decode(row).map_err(|what| damaged(row, what))?;
            let due = looked.upto.next();
            if event.position < due || (event.position != due && !self.is_filtered()) {
                return Err(ReadError::Damaged {
                    detail: format!("position {due} is not there, {} is", event.position),
                });
            }
            looked.upto = event.position;
            if self
                .wanted
                .wants(event.segment.as_str(), &event.kind, &event.key)
            {
                looked.add(Arc::new(event));
            }
        }
        if rows.len() < ROWS_MAX {
            if !self.is_filtered() && looked.upto < to {
                let detail = format!("position {} is not there", looked.upto.next());
                return Err(ReadError::Damaged { detail });
            }
            looked.upto = to;
        }
        Ok(())
    }

    /// The rows after `after`, up to `to`, the first [`ROWS_MAX`] of them. Asked again over outages.
    async fn rows(
        &self,
        shared: &Shared,
        after: Position,
        to: Position,
    ) -> Result<Vec<Row>, ReadError> {
        let deadline = Instant::now() + shared.options.outage_max;
        loop {
            let asked = tokio::time::timeout_at(deadline, self.ask(shared, after, to));
            match asked.await {
                Ok(Ok(rows)) => return Ok(rows),
                Ok(Err(error)) => {
                    tracing::debug!(error = %chain(&error), "the log's database cannot be read");
                    tokio::time::sleep(PAUSE).await;
                }
                Err(_) => return Err(ReadError::Stopping),
            }
        }
    }

    async fn ask(
        &self,
        shared: &Shared,
        after: Position,
        to: Position,
    ) -> Result<Vec<Row>, OpenError> {
        let _place = shared.readers.places.acquire().await;
        let idle = || {
            let mut idle = shared.readers.idle.lock();
            idle.as_mut()
                .unwrap_or_else(|poisoned| poisoned.get_mut())
                .pop()
        };
        let connection = match idle().filter(|connection| !connection.client.is_closed()) {
            Some(connection) => connection,
            None => Connection::open(&shared.options, &shared.tasks).await?,
        };
        let rows = self
            .query(&connection.client, &shared.options.schema, after, to)
            .await
            .map_err(OpenError::database("read events"))?;
        shared
            .readers
            .idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(connection);
        Ok(rows)
    }

    async fn query(
        &self,
        client: &Client,
        schema: &str,
        after: Position,
        to: Position,
    ) -> Result<Vec<Row>, tokio_postgres::Error> {
        let select = format!(
            "select {COLUMNS} from %.events where position > $1 and position <= $2 \
             and ($3::bytea is null or key = $3) and ($4::text[] = '{{}}' or kind = any($4)) \
             order by position limit {ROWS_MAX}"
        );
        let (after, to) = (signed(after.get()), signed(to.get()));
        client
            .query_typed(
                &sql(&select, schema),
                &[
                    (&after, Type::INT8),
                    (&to, Type::INT8),
                    (&self.key, Type::BYTEA),
                    (&self.kinds, Type::TEXT_ARRAY),
                ],
            )
            .await
    }
}

fn damaged(row: &Row, what: &str) -> ReadError {
    ReadError::Damaged {
        detail: format!("position {}: {what}", rows::position(row.get(0))),
    }
}
