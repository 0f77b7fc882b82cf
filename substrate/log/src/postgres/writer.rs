//! The one writer of a log in PostgreSQL: judges what has arrived, writes it in one statement, and
//! answers when the database has, standby included. No timer: a commit is whatever came during the
//! one before.
//!
//! What cannot be known is not answered. When a connection breaks in a commit, the writer connects
//! anew and reads back: the frame is there (then it is committed, and a renewal of the lease makes
//! sure that the standby has it), or it is not (then it is written again), or the epoch is another's
//! (then nothing is acknowledged any more).

use std::sync::Arc;
use std::time::Duration;

use tabbify_api::log::{Append, AppendError, Appended, BATCH_LEN_MAX};
use tabbify_process::chain;
use tabbify_types::{Position, Recorded, Rev};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_postgres::Statement;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};

use super::Shared;
use super::connection::Connection;
use super::error::OpenError;
use super::lease::{self, Term};
use super::past::{self, GroupPast};
use super::rows::{ARRAYS, COLUMNS, Columns, signed};
use super::schema::sql;
use crate::batch;
use crate::frame::{FrameBuilder, FrameHash};
use crate::judge::{Verdict, verdict};
use crate::record::BatchPlace;
use crate::writer::Request;

/// LIMIT: batches in one group, so that a flood of refused ones cannot hold back its answers.
const GROUP_REQUESTS_MAX: usize = 2048;
/// The first pause before connecting again; doubles up to the second.
const PAUSE_FIRST: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// The end of the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tip {
    pub(super) head: Position,
    pub(super) hash: FrameHash,
}

/// Why a writer ends. None of it is an answer to anybody: who waits is told `Stopping`.
#[derive(Debug, thiserror::Error)]
enum Lost {
    #[error("another writer has the epoch")]
    Fenced,
    #[error("the database did not take a commit within {0:?}")]
    Outage(Duration),
    #[error(
        "the database ends at position {found} and this writer at {head}: it has lost events, or another wrote"
    )]
    Diverged { head: Position, found: Position },
}

/// Whether a frame whose commit broke off is there.
#[derive(Debug, PartialEq, Eq)]
enum Resolved {
    Committed,
    NotCommitted,
}

/// What one commit writes, and who waits for it.
struct Group {
    events: Vec<(Arc<Recorded>, BatchPlace)>,
    answers: Vec<(Request, Result<Appended, AppendError>)>,
}

pub(super) struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) queue: mpsc::Receiver<Request>,
    pub(super) session: Session,
    pub(super) term: Term,
    pub(super) tip: Tip,
    pub(super) frame: FrameBuilder,
    /// Its end tells that nothing is appended any more.
    pub(super) durable: watch::Sender<Position>,
}

/// A connection and what was prepared on it.
pub(super) struct Session {
    pub(super) connection: Connection,
    insert: Statement,
}

impl Session {
    pub(super) async fn prepare(connection: Connection, schema: &str) -> Result<Self, OpenError> {
        let arrays: Vec<String> = ARRAYS
            .iter()
            .enumerate()
            .map(|(index, of)| format!("${}::{}[]", index + 8, of.name().trim_start_matches('_')))
            .collect();
        // One statement is one transaction: locked fence, chain, events, notification, or nothing.
        let insert = format!(
            "with fence as (select 1 from %.leader where epoch = $1 and holder = $2 for share), \
             frame as (insert into %.frames (first, last, epoch, previous, hash) \
                select $3, $4, $1, $5, $6 from fence), \
             written as (insert into %.events ({COLUMNS}) \
                select each.* from fence, unnest({}) as each returning 1) \
             select (select count(*) from written), pg_notify($7, ($4::bigint)::text) from fence",
            arrays.join(", ")
        );
        let mut types = vec![
            Type::INT8,
            Type::TEXT,
            Type::INT8,
            Type::INT8,
            Type::BYTEA,
            Type::BYTEA,
            Type::TEXT,
        ];
        types.extend(ARRAYS);
        let insert = connection
            .client
            .prepare_typed(&sql(&insert, schema), &types)
            .await
            .map_err(OpenError::database("prepare an insert"))?;
        Ok(Self { connection, insert })
    }
}

impl Writer {
    /// Until every sender is gone and the queue is empty, or the lead is lost.
    pub(super) async fn run(mut self) {
        match self.lead().await {
            Ok(()) => {
                let released = lease::release(
                    &self.session.connection.client,
                    &self.shared.options.schema,
                    &self.term,
                );
                // Without it the next leader waits for the end of the lease.
                if let Err(error) = released.await {
                    tracing::warn!(error = %chain(&error), "the lead is not given up in time");
                }
            }
            Err(lost) => {
                tracing::error!(%lost, epoch = self.term.epoch, "the log is not led any more");
            }
        }
    }

    async fn lead(&mut self) -> Result<(), Lost> {
        let renew_every = self.shared.options.lease / 3;
        let mut renew_at = Instant::now() + renew_every;
        let mut carried = None;
        loop {
            if Instant::now() >= renew_at {
                self.renew().await?;
                renew_at = Instant::now() + renew_every;
            }
            let first = match carried.take() {
                Some(request) => request,
                None => tokio::select! {
                    request = self.queue.recv() => match request {
                        Some(request) => request,
                        None => return Ok(()),
                    },
                    () = tokio::time::sleep_until(renew_at) => continue,
                },
            };
            let requests;
            (requests, carried) = self.gather(first);
            self.group(requests).await?;
        }
    }

    /// What is waiting, as much as one commit may hold. The second answer opens the next one.
    fn gather(&mut self, first: Request) -> (Vec<Request>, Option<Request>) {
        let mut len = first.len;
        let mut requests = vec![first];
        while requests.len() < GROUP_REQUESTS_MAX {
            let Ok(request) = self.queue.try_recv() else {
                break;
            };
            if len + request.len > BATCH_LEN_MAX {
                return (requests, Some(request));
            }
            len += request.len;
            requests.push(request);
        }
        (requests, None)
    }

    async fn group(&mut self, requests: Vec<Request>) -> Result<(), Lost> {
        let deadline = Instant::now() + self.shared.options.outage_max;
        let batches = requests.iter().map(|request| &request.batch);
        let past = self.load(batches, deadline).await?;
        let mut group = self.judge(requests, past);
        if let Some((first, last)) = group.events.first().zip(group.events.last()) {
            let (first, last) = (first.0.position, last.0.position);
            self.frame.clear();
            for (event, place) in &group.events {
                self.frame.push(event, *place);
            }
            let epoch = self.term.epoch.unsigned_abs();
            let (_, hash) = self.frame.seal(epoch, first, self.tip.head, self.tip.hash);
            let next = Tip { head: last, hash };
            if let Some(full) = self.commit(first, next, &group.events, deadline).await? {
                // Some were judged by what is not written now.
                for (_, answer) in &mut group.answers {
                    *answer = Err(full.clone());
                }
            } else {
                self.tip = next;
                self.shared
                    .remember(group.events.into_iter().map(|(event, _)| event));
                self.durable.send_replace(last);
            }
        }
        for (request, answer) in group.answers {
            drop(request.room);
            // Whoever asked may have gone; the batch is written all the same.
            let _ = request.answer.send(answer);
        }
        Ok(())
    }

    /// What the batches meet; reading is repeated over outages.
    async fn load<'a>(
        &mut self,
        batches: impl Iterator<Item = &'a Append> + Clone,
        deadline: Instant,
    ) -> Result<GroupPast, Lost> {
        loop {
            let loading = GroupPast::load(
                &self.session.connection.client,
                &self.shared.options.schema,
                &self.term,
                self.tip.head,
                batches.clone(),
            );
            match tokio::time::timeout_at(deadline, loading).await {
                Ok(Ok(Some(past))) => return Ok(past),
                Ok(Ok(None)) => return Err(Lost::Fenced),
                Ok(Err(error)) => {
                    tracing::warn!(error = %chain(&error), "the log's database cannot be asked");
                    self.reconnect(None, deadline).await?;
                }
                Err(_) => return Err(Lost::Outage(self.shared.options.outage_max)),
            }
        }
    }

    /// Judges each batch by everything before it, those before it in the group included.
    fn judge(&self, requests: Vec<Request>, mut past: GroupPast) -> Group {
        let mut group = Group {
            events: Vec::new(),
            answers: Vec::with_capacity(requests.len()),
        };
        for mut request in requests {
            let answer = match verdict(&request.batch, &past) {
                Verdict::Answered(answer) => answer,
                Verdict::Write(revs) => Ok(self.take(&mut group, &mut past, &mut request, revs)),
            };
            group.answers.push((request, answer));
        }
        group
    }

    /// Numbers the events of a batch that will be written.
    fn take(
        &self,
        group: &mut Group,
        past: &mut GroupPast,
        request: &mut Request,
        revs: Vec<Rev>,
    ) -> Appended {
        let at = self.shared.options.clock.now();
        let events = std::mem::take(&mut request.batch.events);
        let len = u16::try_from(events.len()).expect("INVARIANT: batch::check has bounded it");
        let mut position = crate::judge::Past::head(past);
        let first = position.next();
        for ((index, event), rev) in (0..len).zip(events).zip(&revs) {
            position = position.next();
            let place = BatchPlace { index, len };
            let event = batch::recorded(event, position, *rev, at, &request.actor);
            let event = Arc::new(event);
            past.add(Arc::clone(&event), place);
            group.events.push((event, place));
        }
        Appended {
            first,
            last: position,
            revs,
        }
    }

    /// Writes a frame and its events. Returns when they are committed for good, or with the refusal
    /// of a database that is full and has written nothing.
    async fn commit(
        &mut self,
        first: Position,
        next: Tip,
        events: &[(Arc<Recorded>, BatchPlace)],
        deadline: Instant,
    ) -> Result<Option<AppendError>, Lost> {
        let mut columns = Columns::default();
        for (event, place) in events {
            columns.push(event, *place);
        }
        let mut pause = PAUSE_FIRST;
        loop {
            let written = self.insert(first, next, &columns);
            match tokio::time::timeout_at(deadline, written).await {
                Err(_) => return Err(Lost::Outage(self.shared.options.outage_max)),
                Ok(Ok(None)) => return Err(Lost::Fenced),
                Ok(Ok(Some(count))) if count == signed(events.len() as u64) => {
                    if !self.session.connection.warned() {
                        return Ok(None);
                    }
                    tracing::warn!("a commit came with a warning; it is looked up again");
                }
                Ok(Ok(Some(count))) => {
                    // One statement writes all or nothing; this is no database that we know.
                    tracing::error!(count, due = events.len(), "a commit of another size");
                    return Err(Lost::Diverged {
                        head: next.head,
                        found: self.tip.head,
                    });
                }
                Ok(Err(error)) if error.code() == Some(&SqlState::DISK_FULL) => {
                    let detail = error.as_db_error().map_or("", |error| error.message());
                    tracing::warn!(detail, "the log cannot grow");
                    let detail = detail.to_owned();
                    return Ok(Some(AppendError::NoSpace { detail }));
                }
                Ok(Err(error)) => {
                    tracing::warn!(error = %chain(&error), "a commit broke off; it is looked up");
                }
            }
            if self.reconnect(Some(next), deadline).await? == Resolved::Committed {
                return Ok(None);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// The number of events written; `None` if the epoch is another's.
    async fn insert(
        &self,
        first: Position,
        next: Tip,
        columns: &Columns<'_>,
    ) -> Result<Option<i64>, tokio_postgres::Error> {
        let (first, last) = (signed(first.get()), signed(next.head.get()));
        let (previous, hash) = (self.tip.hash.0.as_slice(), next.hash.0.as_slice());
        let mut values: Vec<&(dyn ToSql + Sync)> = vec![
            &self.term.epoch,
            &self.term.holder,
            &first,
            &last,
            &previous,
            &hash,
            &self.shared.options.schema,
        ];
        values.extend(columns.arrays());
        let Session { connection, insert } = &self.session;
        let row = connection.client.query_opt(insert, &values).await?;
        Ok(row.map(|row| row.get(0)))
    }

    async fn renew(&mut self) -> Result<(), Lost> {
        let deadline = Instant::now() + self.shared.options.outage_max;
        let options = &self.shared.options;
        let renewing = lease::renew(
            &self.session.connection.client,
            &options.schema,
            &self.term,
            options.lease,
        );
        match tokio::time::timeout_at(deadline, renewing).await {
            Ok(Ok(true)) if !self.session.connection.warned() => Ok(()),
            Ok(Ok(true)) => self.reconnect(None, deadline).await.map(|_| ()),
            Ok(Ok(false)) => Err(Lost::Fenced),
            Ok(Err(error)) => {
                tracing::warn!(error = %chain(&error), "the lead could not be renewed");
                self.reconnect(None, deadline).await.map(|_| ())
            }
            Err(_) => Err(Lost::Outage(options.outage_max)),
        }
    }

    /// Finds the log again after an outage, and whether the frame in flight is in it.
    async fn reconnect(
        &mut self,
        in_flight: Option<Tip>,
        deadline: Instant,
    ) -> Result<Resolved, Lost> {
        let mut pause = PAUSE_FIRST;
        loop {
            match tokio::time::timeout_at(deadline, self.find_again(in_flight)).await {
                Ok(Ok(resolved)) => return resolved,
                Ok(Err(error)) => {
                    tracing::debug!(error = %chain(&error), "the log's database is not back yet");
                }
                Err(_) => return Err(Lost::Outage(self.shared.options.outage_max)),
            }
            if Instant::now() + pause >= deadline {
                return Err(Lost::Outage(self.shared.options.outage_max));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// One try. The outer error may pass; the inner one does not.
    async fn find_again(
        &mut self,
        in_flight: Option<Tip>,
    ) -> Result<Result<Resolved, Lost>, OpenError> {
        let options = &self.shared.options;
        let connection = Connection::open(options, &self.shared.tasks).await?;
        connection.check_server(options.standby).await?;
        let failed = || OpenError::database("find the log's end");
        // A commit of its own, which waits for the standby: what is read behind it is there as well.
        let kept = lease::renew(
            &connection.client,
            &options.schema,
            &self.term,
            options.lease,
        );
        let kept = kept.await.map_err(failed())?;
        if connection.warned() {
            return Err(OpenError::Unreplicated);
        }
        let last = past::last_frame(&connection.client, &options.schema)
            .await
            .map_err(failed())?;
        self.session = Session::prepare(connection, &options.schema).await?;
        if !kept {
            return Ok(Err(Lost::Fenced));
        }
        let found = last.as_ref().map_or(Position(0), |(head, _)| *head);
        let is = |tip: Tip| match &last {
            Some((head, hash)) => *head == tip.head && hash == &tip.hash.0,
            None => tip.head == Position(0),
        };
        Ok(if in_flight.is_some_and(is) {
            Ok(Resolved::Committed)
        } else if is(self.tip) {
            Ok(Resolved::NotCommitted)
        } else {
            Err(Lost::Diverged {
                head: self.tip.head,
                found,
            })
        })
    }
}
