//! The proof that the tables hold what was committed: every commit is put together again from its
//! rows, and must have the hash that the chain gives it. In windows, so memory is bounded.

use std::collections::VecDeque;

use tabbify_api::log::BATCH_LEN_MAX;
use tabbify_process::Tasks;
use tabbify_types::{Digest, Position, Recorded};
use tokio_postgres::{GenericClient, IsolationLevel, Row, Transaction};

use super::connection::Connection;
use super::error::OpenError;
use super::options::Options;
use super::rows::{self, COLUMNS, signed};
use super::schema::{self, sql};
use super::writer::Tip;
use crate::extent;
use crate::frame::{FrameBuilder, FrameHash};
use crate::log::LogId;
use crate::record::BatchPlace;
use crate::transfer::Content;

/// LIMIT: rows of one answer: events, at most 16 MiB of data, and commits.
const EVENTS_MAX: i64 = 256;
const FRAMES_MAX: i64 = 4096;

/// What [`super::Engine::verify`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// What the log holds, as of every engine.
    pub content: Content,
    /// Number of commits.
    pub frames: u64,
    /// Epoch of the last leader.
    pub epoch: u64,
}

/// Verifies the log of `options` as it is at one moment, whoever leads it.
pub(super) async fn verify(options: &Options) -> Result<Verified, OpenError> {
    let tasks = Tasks::new();
    let mut connection = Connection::open(options, &tasks).await?;
    let transaction = snapshot(&mut connection).await?;
    let log_id = found(&transaction, &options.schema).await?;
    let mut digest = blake3::Hasher::new();
    let walked = walk(&transaction, &options.schema, log_id, |records| {
        digest.update(records);
        Ok(())
    })
    .await?;
    check_keys(&transaction, &options.schema).await?;
    let epoch = sql("select epoch from %.leader", &options.schema);
    let epoch = transaction.query_one(&epoch, &[]).await;
    let epoch: i64 = epoch.map_err(OpenError::database("read the epoch"))?.get(0);
    Ok(Verified {
        content: Content {
            log_id,
            head: walked.head,
            digest: Digest(*digest.finalize().as_bytes()),
        },
        frames: walked.frames,
        epoch: epoch.unsigned_abs(),
    })
}

/// The tables as they are now, whatever is committed meanwhile.
pub(super) async fn snapshot(connection: &mut Connection) -> Result<Transaction<'_>, OpenError> {
    let transaction = connection
        .client
        .build_transaction()
        .isolation_level(IsolationLevel::RepeatableRead)
        .read_only(true)
        .start();
    transaction
        .await
        .map_err(OpenError::database("begin to read"))
}

pub(super) async fn found(client: &impl GenericClient, schema: &str) -> Result<LogId, OpenError> {
    let found = schema::find(client, schema).await?;
    found.ok_or_else(|| OpenError::Missing {
        schema: schema.to_owned(),
    })
}

/// The end of a walk.
pub(super) struct Walked {
    pub(super) head: Position,
    pub(super) frames: u64,
}

/// Verifies the chain from the first commit on, and gives the records of each to `take`.
pub(super) async fn walk(
    client: &impl GenericClient,
    schema: &str,
    log_id: LogId,
    take: impl FnMut(&[u8]) -> Result<(), OpenError>,
) -> Result<Walked, OpenError> {
    let start = Tip {
        head: Position(0),
        hash: extent::genesis(log_id.0),
    };
    walk_from(client, schema, start, None, take).await
}

/// Verifies the commits with the events after `after`, up to `upto` or a little further; answers the
/// last position that is verified. `None` if the log has no such commit.
pub(super) async fn piece(
    client: &impl GenericClient,
    schema: &str,
    log_id: LogId,
    after: Position,
    upto: Position,
) -> Result<Option<Position>, OpenError> {
    let begin = "select this.first, before.hash from %.frames this \
         left join %.frames before on before.last = this.first - 1 \
         where this.last > $1 order by this.first limit 1";
    let row = client
        .query_opt(&sql(begin, schema), &[&signed(after.get())])
        .await;
    let Some(row) = row.map_err(OpenError::database("find a commit"))? else {
        return Ok(None);
    };
    let first = rows::position(row.get(0));
    let hash = match row.get::<_, Option<&[u8]>>(1) {
        Some(hash) => hash.try_into().map(FrameHash).ok(),
        None => (first == Position(1)).then(|| extent::genesis(log_id.0)),
    };
    let Some(hash) = hash else {
        return Err(OpenError::damaged(first, "the commit here follows none"));
    };
    let head = Position(first.get().saturating_sub(1));
    let start = Tip { head, hash };
    let walked = walk_from(client, schema, start, Some(upto), |_| Ok(())).await?;
    Ok(Some(walked.head))
}

async fn walk_from(
    client: &impl GenericClient,
    schema: &str,
    start: Tip,
    upto: Option<Position>,
    mut take: impl FnMut(&[u8]) -> Result<(), OpenError>,
) -> Result<Walked, OpenError> {
    let mut events = Events {
        read: start.head,
        ready: VecDeque::new(),
    };
    let mut frame = FrameBuilder::default();
    let mut walked = Walked {
        head: start.head,
        frames: 0,
    };
    let mut hash = start.hash;
    loop {
        let frames = frames(client, schema, walked.head).await?;
        for row in &frames {
            if upto.is_some_and(|upto| walked.head >= upto) {
                return Ok(walked);
            }
            let (due, last) = (walked.head.next(), rows::position(row.get(1)));
            if rows::position(row.get(0)) != due {
                return Err(OpenError::damaged(due, "no commit begins here"));
            }
            if row.get::<_, &[u8]>(3) != hash.0 {
                return Err(OpenError::damaged(
                    due,
                    "the commit here does not follow the one before it",
                ));
            }
            frame.clear();
            for position in due.get()..=last.get() {
                let (event, place) = events.next(client, schema, Position(position)).await?;
                frame.push(&event, place);
                if frame.records().len() > BATCH_LEN_MAX {
                    return Err(OpenError::damaged(
                        due,
                        "a commit of more bytes than one may have",
                    ));
                }
            }
            take(frame.records())?;
            let epoch: i64 = row.get(2);
            let (_, sealed) = frame.seal(epoch.unsigned_abs(), due, walked.head, hash);
            if row.get::<_, &[u8]>(4) != sealed.0 {
                let what = format!("the commit up to {last} is not what was written");
                return Err(OpenError::damaged(due, what));
            }
            hash = FrameHash(sealed.0);
            walked.head = last;
            walked.frames += 1;
        }
        if frames.is_empty() {
            events.end(client, schema, walked.head).await?;
            return Ok(walked);
        }
    }
}

async fn frames(
    client: &impl GenericClient,
    schema: &str,
    after: Position,
) -> Result<Vec<Row>, OpenError> {
    let select = format!(
        "select first, last, epoch, previous, hash from %.frames where first > $1 \
         order by first limit {FRAMES_MAX}"
    );
    let rows = client
        .query(&sql(&select, schema), &[&signed(after.get())])
        .await;
    rows.map_err(OpenError::database("read commits"))
}

/// Events in position order.
struct Events {
    read: Position,
    ready: VecDeque<Row>,
}

impl Events {
    /// The event at `due`.
    async fn next(
        &mut self,
        client: &impl GenericClient,
        schema: &str,
        due: Position,
    ) -> Result<(Recorded, BatchPlace), OpenError> {
        if self.ready.is_empty() {
            self.fill(client, schema).await?;
        }
        let Some(row) = self.ready.pop_front() else {
            return Err(OpenError::damaged(due, "no event is here"));
        };
        let (event, place) = rows::decode(&row).map_err(|what| OpenError::damaged(due, what))?;
        if event.position != due {
            return Err(OpenError::damaged(due, "no event is here"));
        }
        if !fits_a_record(&event) {
            return Err(OpenError::damaged(
                due,
                "an event of a text that is too long",
            ));
        }
        self.read = due;
        Ok((event, place))
    }

    async fn fill(&mut self, client: &impl GenericClient, schema: &str) -> Result<(), OpenError> {
        let select = format!(
            "select {COLUMNS} from %.events where position > $1 order by position limit {EVENTS_MAX}"
        );
        let rows = client
            .query(&sql(&select, schema), &[&signed(self.read.get())])
            .await;
        self.ready = rows.map_err(OpenError::database("read events"))?.into();
        Ok(())
    }

    /// Nothing may stand behind the last commit.
    async fn end(
        &mut self,
        client: &impl GenericClient,
        schema: &str,
        head: Position,
    ) -> Result<(), OpenError> {
        if self.ready.is_empty() {
            self.fill(client, schema).await?;
        }
        if self.ready.is_empty() {
            Ok(())
        } else {
            Err(OpenError::damaged(
                head.next(),
                "an event behind the last commit",
            ))
        }
    }
}

/// A row may have been changed to what no batch could hold; a record has one byte for a text's length.
fn fits_a_record(event: &Recorded) -> bool {
    let texts = [
        event.segment.as_str().len(),
        event.key.len(),
        event.kind.len(),
        event.actor.len(),
        event.trace.as_ref().map_or(0, String::len),
    ];
    texts.into_iter().all(|len| len <= usize::from(u8::MAX))
        && event.data.get().len() <= tabbify_types::envelope::DATA_LEN_MAX
}

/// Revisions count from 1 without a gap under every key, and an id stands once: the tables see to
/// it, unless somebody took their constraints away.
pub(super) async fn check_keys(client: &impl GenericClient, schema: &str) -> Result<(), OpenError> {
    let failed = || OpenError::database("check keys and ids");
    let revs = "select max(position) from %.events group by segment, key \
         having min(rev) <> 1 or max(rev) <> count(*) or count(distinct rev) <> count(*) limit 1";
    let wrong = client.query_opt(&sql(revs, schema), &[]).await;
    if let Some(row) = wrong.map_err(failed())? {
        let position = rows::position(row.get(0));
        return Err(OpenError::damaged(
            position,
            "the revisions of its key have a gap",
        ));
    }
    let ids = "select max(position) from %.events group by id having count(*) > 1 limit 1";
    let wrong = client.query_opt(&sql(ids, schema), &[]).await;
    if let Some(row) = wrong.map_err(failed())? {
        let position = rows::position(row.get(0));
        return Err(OpenError::damaged(position, "its id is in the log twice"));
    }
    Ok(())
}
