//! Closed extents in an object store: they are compressed and put there as soon as they are sealed, and
//! beyond some bytes on the local disk the oldest are kept there alone. Nothing above the disk knows.
//!
//! ```text
//!   …0001.extent ─▶ compress ─▶ put ─▶ read back, compare ─▶ …0001.cold, synced ─▶ remove …0001.extent
//!                                                            (record)              (beyond the limit)
//!   reading …0001.extent: the file, or by its record blocks of the object, through a bounded cache
//! ```
//!
//! Reading order: `store` is where, `format` the bytes, `objects` the requests, `blocks` the way back,
//! `keep` the way there; `disk::tiered` puts them under the log. The form: docs/protocols/log-format.md.

mod blocks;
mod format;
mod keep;
pub(crate) mod objects;
mod store;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use tabbify_process::files;
use tabbify_types::Position;

pub(crate) use blocks::{Blocks, StoredFile};
use format::{FormatError, INDEX_LEN_MAX, Stored};
pub(crate) use keep::keep;
#[cfg(test)]
pub(crate) use keep::{Done, step};
use objects::ObjectsError;
pub use store::{Cold, ColdStore};

use crate::disk::Disk;
use crate::log::LogId;

/// Extension of a record.
const EXTENSION: &str = "cold";
/// A record that is being written; of no meaning to anybody.
const DRAFT: &str = "draft.cold";

/// Why a stored extent cannot be read. The log goes on: only what is in that extent is out of reach.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ColdError {
    /// The extent is in an object store, and this program was told of none.
    #[error(
        "{extent} is in an object store, and none is configured: use the configuration whose \
         [log.cold] names it",
        extent = extent.display()
    )]
    NoStore {
        /// The extent.
        extent: PathBuf,
    },
    /// The store does not answer.
    #[error(
        "{object} cannot be reached: {detail}. Nothing is lost: see to {store}, and read again"
    )]
    Unreachable {
        /// The object.
        object: String,
        /// Its store.
        store: String,
        /// What the store says.
        detail: String,
    },
    /// The store has no such object any more.
    #[error(
        "{object} is missing in {store}: put it back, or run: tabbify log restore --from <a copy>"
    )]
    Missing {
        /// The object.
        object: String,
        /// Its store.
        store: String,
    },
    /// The object is not what was stored.
    #[error(
        "{object} in {store} is damaged at byte {byte}: {what}. Put a good copy in its place, or run: \
         tabbify log restore --from <a copy>"
    )]
    Damaged {
        /// The object.
        object: String,
        /// Its store.
        store: String,
        /// Where in it.
        byte: u64,
        /// What is there.
        what: String,
    },
    /// What says where the extent is stored is not what was written.
    #[error(
        "{record} is damaged: {what}. Run: tabbify log restore --from <the object store, or a copy>",
        record = record.display()
    )]
    Record {
        /// The file.
        record: PathBuf,
        /// What is there.
        what: String,
    },
    /// A newer program stored it.
    #[error("{record} has format {version}, which a newer program writes; upgrade this one", record = record.display())]
    Newer {
        /// The file.
        record: PathBuf,
        /// Its format.
        version: u16,
    },
}

impl ColdError {
    /// Whether a store that was seen to makes it readable again, rather than a copy of the extent.
    #[must_use]
    pub const fn passes(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::NoStore { .. })
    }

    /// The cold error that a file error is, if it is one.
    pub(crate) fn within(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }
}

impl From<ColdError> for io::Error {
    fn from(error: ColdError) -> Self {
        Self::other(error)
    }
}

/// Where the record of the extent is whose first event is at `first`.
pub(crate) fn record_path(dir: &Path, first: Position) -> PathBuf {
    dir.join(format!("{:020}.{EXTENSION}", first.get()))
}

/// The position that a record's name gives; `None` if it is not the name of one.
pub(crate) fn record_named(path: &Path) -> Option<Position> {
    let number = path.file_name()?.to_str()?.strip_suffix(EXTENSION)?;
    let first = Position(number.strip_suffix('.')?.parse().ok()?);
    (record_path(path.parent()?, first) == *path).then_some(first)
}

/// Reads a record.
pub(crate) fn read_record(disk: &dyn Disk, path: &Path) -> io::Result<Stored> {
    let file = disk.open(path)?;
    let damaged = |what: &str| ColdError::Record {
        record: path.to_owned(),
        what: what.to_owned(),
    };
    let len = usize::try_from(file.len()?).unwrap_or(usize::MAX);
    if len > INDEX_LEN_MAX {
        return Err(damaged("it is longer than any of ours").into());
    }
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, 0)?;
    let stored = Stored::decode(&bytes).map_err(|error| match error {
        FormatError::Damaged(what) => damaged(what),
        FormatError::Newer(version) => ColdError::Newer {
            record: path.to_owned(),
            version,
        },
    })?;
    if record_named(path) != Some(stored.first) {
        return Err(damaged("it is of another extent than its name says").into());
    }
    Ok(stored)
}

/// Writes the record of every extent that `store` has of log `log_id` into a directory, so that the
/// log can be read there as far as the store has it. Answers how many there are; of two objects of
/// one extent both are intact, so either will do.
///
/// # Errors
/// The store does not answer, or the directory cannot be written.
pub(crate) fn recall(store: &ColdStore, log_id: LogId, dir: &Path) -> io::Result<usize> {
    let objects = store.objects();
    let failed = |name: &str, error: ObjectsError| -> io::Error {
        match error {
            ObjectsError::Missing => ColdError::Missing {
                object: name.to_owned(),
                store: objects.shown().to_owned(),
            },
            ObjectsError::Unreachable(detail) => ColdError::Unreachable {
                object: name.to_owned(),
                store: objects.shown().to_owned(),
                detail,
            },
        }
        .into()
    };
    let prefix = format::prefix(log_id);
    let listed = objects
        .list(&prefix)
        .map_err(|error| failed(&prefix, error))?;
    let mut count = 0;
    for (name, len) in listed {
        let from = len.saturating_sub(INDEX_LEN_MAX as u64);
        let tail = objects.get(&name, from..len, &AtomicBool::new(false));
        let tail = tail.map_err(|error| failed(&name, error))?;
        match Stored::of_tail(&tail) {
            Ok(stored) if stored.name() == name => {
                files::write_atomic(&record_path(dir, stored.first), &stored.encode(), 0o600)?;
                count += 1;
            }
            // It may be the damaged one of two; what is missing then shows.
            _ => tracing::warn!(object = name, "not a stored extent of this log"),
        }
    }
    Ok(count)
}
