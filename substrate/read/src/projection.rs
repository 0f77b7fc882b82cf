//! What a projection is, and which there are.

mod approvals;
mod apps;
mod audit;
mod builds;
mod deploys;
mod peers;
mod tokens;

use rusqlite::Transaction;
use tabbify_types::event::EventError;
use tabbify_types::{Event, Position, Recorded, Segment, Timestamp};

/// Every projection, in the order in which the content digest takes them.
pub(crate) const ALL: &[&dyn Projection] = &[
    &apps::Apps,
    &deploys::Deploys,
    &builds::Builds,
    &peers::Peers,
    &tokens::Tokens,
    &approvals::Approvals,
    &audit::Audit,
];

/// A fold of the log into tables of its own.
///
/// **Law.**
/// 1. The rows follow from the events that the projection claims, in position order, and from nothing
///    else: no clock, no randomness, no table of another projection. So folding a prefix and then the
///    rest, in any batches, with or without a restart between them, leaves the same rows.
/// 2. `apply` gets each claimed event once, inside the transaction that also stores the position.
/// 3. It decodes before it writes: when it fails with [`FoldError::Event`], it has written nothing.
/// 4. It accepts every history. What makes no sense (a step of a deploy that nobody requested, an app
///    of another tenant) changes nothing and is no error.
/// 5. An event counts only where it belongs ([`Projection::reads`]): what stands elsewhere, such as a
///    host's reports, can neither change rows nor stop the projection.
pub(crate) trait Projection: Sync {
    /// Its name, for status and for its row in the store; never reused for another shape.
    fn name(&self) -> &'static str;

    /// What creates its tables, in an empty file.
    fn schema(&self) -> &'static str;

    /// Its tables. All of their columns are part of the content digest.
    fn tables(&self) -> &'static [Table];

    /// Which events it folds.
    fn claims(&self) -> Claims;

    /// Whether claimed events of this segment count.
    fn reads(&self, segment: &Segment) -> bool;

    /// Folds one claimed event.
    fn apply(&self, tx: &Transaction<'_>, recorded: &Recorded) -> Result<(), FoldError>;
}

/// A table of a projection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Table {
    pub(crate) name: &'static str,
    /// The columns of its key, which order its rows in the digest.
    pub(crate) key: &'static str,
}

/// Which types a projection folds.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Claims {
    /// All, known or not.
    Every,
    /// These. An unknown version of one of them stops the projection.
    Types(&'static [&'static str]),
}

impl Claims {
    pub(crate) fn include(self, kind: &str) -> bool {
        match self {
            Self::Every => true,
            Self::Types(types) => types.contains(&kind),
        }
    }
}

/// Why an event could not be folded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FoldError {
    /// This program does not understand the event: the projection stops before it.
    #[error(transparent)]
    Event(#[from] EventError),
    /// The store failed: nothing of the batch counts.
    #[error(transparent)]
    Sql(#[from] rusqlite::Error),
}

/// One event of a tenant on its way into the tables.
pub(crate) struct Entry<'a> {
    pub(crate) tx: &'a Transaction<'a>,
    /// Whose segment speaks: rows are keyed by that, not by what the event says.
    pub(crate) tenant: &'a str,
    pub(crate) recorded: &'a Recorded,
}

/// How writing rows ends.
pub(crate) type Folded = rusqlite::Result<()>;

/// Decodes an event of a tenant's segment and folds it; what is not of the catalog, or of no tenant,
/// changes nothing.
pub(crate) fn fold_of_tenant(
    tx: &Transaction<'_>,
    recorded: &Recorded,
    fold: impl FnOnce(&Entry<'_>, &Event) -> Folded,
) -> Result<(), FoldError> {
    let (Some(event), Some(tenant)) = (recorded.event()?, recorded.segment.tenant()) else {
        return Ok(());
    };
    let tenant = tenant.as_str();
    let entry = Entry {
        tx,
        tenant,
        recorded,
    };
    Ok(fold(&entry, &event)?)
}

/// Whether `segment` is `tenant_<slug>.<part>`.
pub(crate) fn is_of_tenant(segment: &Segment, part: &str) -> bool {
    segment.tenant().is_some()
        && segment
            .as_str()
            .split_once('.')
            .is_some_and(|(_, rest)| rest == part)
}

/// A number as SQLite keeps it, which ends at 2^63 - 1: what is beyond stays there.
pub(crate) fn int(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// A position as SQLite keeps it.
pub(crate) fn place(position: Position) -> i64 {
    int(position.get())
}

/// A time as SQLite keeps it: milliseconds since the Unix epoch.
pub(crate) fn millis(at: Timestamp) -> i64 {
    int(at.millis())
}

/// A word of the vocabulary, such as `wasm-http`, as it stands in JSON but without its quotes.
pub(crate) fn word(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        // Only unit variants are given here, and each is a string in JSON.
        other => unreachable!("{other:?} is not a word"),
    }
}

/// A part of an event as a JSON text.
pub(crate) fn json(part: &impl serde::Serialize) -> String {
    serde_json::to_string(part).expect("what was read from JSON is JSON")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn claims_are_of_the_catalog_and_names_are_distinct() {
        let (mut names, mut tables) = (BTreeSet::new(), BTreeSet::new());
        for projection in ALL {
            assert!(names.insert(projection.name()));
            for table in projection.tables() {
                assert!(tables.insert(table.name), "{} twice", table.name);
                assert!(projection.schema().contains(table.name));
            }
            if let Claims::Types(types) = projection.claims() {
                for kind in types {
                    assert!(Event::KINDS.contains(kind), "{kind}");
                }
            }
        }
    }
}
