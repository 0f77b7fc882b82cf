//! What the batches of one group meet: read from the tables in one go, then kept true while the
//! group grows. There is one writer, so nothing changes in between.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use tabbify_api::log::{Append, AppendError};
use tabbify_types::{EventId, Position, Recorded, Rev, Segment};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Error, Row};

use super::lease::Term;
use super::rows::{self, COLUMNS};
use super::schema::sql;
use crate::index::Place;
use crate::judge::Past;
use crate::record::BatchPlace;

/// The log as the next batch of a group finds it.
#[derive(Debug)]
pub(super) struct GroupPast {
    head: Position,
    revs: HashMap<Segment, HashMap<String, Rev>>,
    /// Of every id of the group that is known.
    places: HashMap<EventId, Place>,
    /// The events of known batches that the group may repeat.
    recorded: BTreeMap<Position, Arc<Recorded>>,
}

impl GroupPast {
    /// Reads what is known of the keys and ids of `batches`, behind `head`; `None` if the term has
    /// ended: who has lost the lead refuses nothing either.
    pub(super) async fn load(
        client: &Client,
        schema: &str,
        term: &Term,
        head: Position,
        batches: impl Iterator<Item = &Append> + Clone,
    ) -> Result<Option<Self>, Error> {
        let ids: Vec<_> = batches
            .clone()
            .flat_map(|batch| batch.events.iter().map(|event| event.id.uuid()))
            .collect();
        let mut revs: HashMap<Segment, HashMap<String, Rev>> = HashMap::new();
        for batch in batches {
            let written = batch
                .events
                .iter()
                .map(|event| (&event.segment, &event.key));
            let expected = batch
                .expect
                .iter()
                .map(|expect| (&expect.segment, &expect.key));
            for (segment, key) in written.chain(expected) {
                if !revs.contains_key(segment) {
                    revs.insert(segment.clone(), HashMap::new());
                }
                if let Some(keys) = revs.get_mut(segment)
                    && !keys.contains_key(key)
                {
                    keys.insert(key.clone(), Rev(0));
                }
            }
        }
        let (segments, keys): (Vec<&str>, Vec<&[u8]>) = revs
            .iter()
            .flat_map(|(segment, keys)| keys.keys().map(|key| (segment.as_str(), key.as_bytes())))
            .unzip();
        let heads = sql(
            "select asked.segment, asked.key, last.rev \
             from unnest($1::text[], $2::bytea[]) as asked (segment, key), \
             lateral (select rev from %.events where segment = asked.segment collate \"C\" \
                and key = asked.key order by rev desc limit 1) as last",
            schema,
        );
        let known = format!("select {COLUMNS} from %.events where id = any($1)");
        let known = sql(&known, schema);
        let fence = sql(
            "select 1 from %.leader where epoch = $1 and holder = $2",
            schema,
        );
        let asked: [&(dyn ToSql + Sync); 2] = [&segments, &keys];
        let named: [&(dyn ToSql + Sync); 1] = [&ids];
        let mine: [&(dyn ToSql + Sync); 2] = [&term.epoch, &term.holder];
        // All are under way at once.
        let (heads, known, fence) = tokio::try_join!(
            client.query(&heads, &asked),
            client.query(&known, &named),
            client.query_opt(&fence, &mine),
        )?;
        if fence.is_none() {
            return Ok(None);
        }
        let mut past = Self {
            head,
            revs,
            places: HashMap::new(),
            recorded: BTreeMap::new(),
        };
        past.add_heads(&heads);
        past.add_known(&known);
        Ok(Some(past))
    }

    fn add_heads(&mut self, heads: &[Row]) {
        for row in heads {
            let (segment, key): (&str, &[u8]) = (row.get(0), row.get(1));
            let rev: i64 = row.get(2);
            let keys = segment
                .parse::<Segment>()
                .ok()
                .and_then(|segment| self.revs.get_mut(&segment));
            // They are the ones that were asked for.
            if let Some(rev_of) = std::str::from_utf8(key)
                .ok()
                .zip(keys)
                .and_then(|(key, keys)| keys.get_mut(key))
            {
                *rev_of = Rev(u64::try_from(rev).unwrap_or(0));
            }
        }
    }

    fn add_known(&mut self, known: &[Row]) {
        for row in known {
            match rows::decode(row) {
                Ok((event, batch)) => self.know(Arc::new(event), batch),
                Err(what) => {
                    // The id is known and its content is not: the batch gets no answer that could be
                    // wrong, since `recorded` then comes short.
                    let position = rows::position(row.get(0));
                    tracing::error!(what, %position, "a row of the log is damaged");
                    let batch = BatchPlace { index: 0, len: 1 };
                    self.places
                        .insert(EventId::from_uuid(row.get(4)), Place { position, batch });
                }
            }
        }
    }

    fn know(&mut self, event: Arc<Recorded>, batch: BatchPlace) {
        let position = event.position;
        self.places.insert(event.id, Place { position, batch });
        self.recorded.insert(position, event);
    }

    /// The next event of the log is this one.
    pub(super) fn add(&mut self, event: Arc<Recorded>, batch: BatchPlace) {
        self.head = event.position;
        let keys = self.revs.get_mut(&event.segment);
        let last = keys
            .and_then(|keys| keys.get_mut(&event.key))
            .expect("INVARIANT: the keys of every batch of the group were loaded");
        *last = event.rev;
        self.know(event, batch);
    }
}

impl Past for GroupPast {
    fn head(&self) -> Position {
        self.head
    }

    fn rev(&self, segment: &str, key: &str) -> Result<Rev, AppendError> {
        let segment = segment.parse::<Segment>().ok();
        let keys = segment.and_then(|segment| self.revs.get(&segment));
        Ok(keys
            .and_then(|keys| keys.get(key))
            .copied()
            .unwrap_or_default())
    }

    fn place(&self, id: EventId) -> Result<Option<Place>, AppendError> {
        Ok(self.places.get(&id).copied())
    }

    /// All of a batch that is repeated whole has its ids in the group, and so was loaded.
    fn recorded(&self, first: Position, count: usize) -> Result<Vec<Arc<Recorded>>, AppendError> {
        let last = Position(first.get() + count as u64 - 1);
        let found: Vec<_> = self
            .recorded
            .range(first..=last)
            .map(|(_, event)| Arc::clone(event))
            .collect();
        if found.len() == count {
            return Ok(found);
        }
        tracing::error!(position = %first, "cannot compare a repeated batch");
        Err(AppendError::Stopping)
    }
}

/// The last commit: where the chain goes on.
pub(super) async fn last_frame(
    client: &Client,
    schema: &str,
) -> Result<Option<(Position, Vec<u8>)>, Error> {
    let last = "select last, hash from %.frames order by first desc limit 1";
    let row = client.query_opt(&sql(last, schema), &[]).await?;
    Ok(row.map(|row| (rows::position(row.get(0)), row.get(1))))
}
