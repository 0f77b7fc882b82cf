//! Why the read model could not start, fold or rebuild.

use std::io;
use std::path::PathBuf;

use tabbify_api::log::ReadError;
use tabbify_types::Position;

/// Why the read node stopped folding, or did not start.
#[derive(Debug, thiserror::Error)]
pub enum ReadNodeError {
    /// A file or directory of it.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Another process uses the directory.
    #[error("{} is in use by another read node", dir.display())]
    Locked {
        /// The directory.
        dir: PathBuf,
    },
    /// The store refused.
    #[error("cannot {action} the read model {}", path.display())]
    Sqlite {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What SQLite said.
        #[source]
        source: rusqlite::Error,
    },
    /// The log cannot be read.
    #[error("cannot read the log after {after}")]
    Log {
        /// From where.
        after: Position,
        /// What it said.
        #[source]
        source: ReadError,
    },
    /// The log showed an event that is not the next one: it was opened with a scope that does not
    /// cover every segment.
    #[error(
        "the log showed position {got} where {wanted} is next; the read node must see every event"
    )]
    Gap {
        /// The position that is next.
        wanted: Position,
        /// The position that came.
        got: Position,
    },
    /// Another process has written into the file.
    #[error("{} is not where this process left it, at {position}", path.display())]
    Moved {
        /// The file.
        path: PathBuf,
        /// Where it was left.
        position: Position,
    },
    /// A question came upon damage in the file.
    #[error("{} is damaged", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// A fold panicked; its transaction was rolled back.
    #[error("a fold panicked after {after}")]
    Panicked {
        /// The last position before the batch.
        after: Position,
    },
    /// A rebuild did not come to its end; what was served before still is.
    #[error("the rebuild did not finish: {reason}")]
    Unfinished {
        /// Why.
        reason: String,
    },
    /// The read node is stopping.
    #[error("the read node is stopping")]
    Stopping,
}

impl ReadNodeError {
    pub(crate) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }

    pub(crate) fn sqlite(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(rusqlite::Error) -> Self {
        let path = path.into();
        move |source| Self::Sqlite {
            action,
            path,
            source,
        }
    }

    /// Whether the file itself is damaged, so that only a rebuild helps.
    pub(crate) fn is_damage(&self) -> bool {
        match self {
            Self::Sqlite { source, .. } => is_damage(source),
            Self::Damaged { .. } => true,
            _ => false,
        }
    }

    /// Whether the machine is at fault, such as a full disk: then the file may be fine.
    pub(crate) fn is_of_machine(&self) -> bool {
        use rusqlite::ErrorCode::{
            CannotOpen, DatabaseBusy, DatabaseLocked, DiskFull, OutOfMemory, PermissionDenied,
            ReadOnly, SystemIoFailure,
        };
        let Self::Sqlite { source, .. } = self else {
            return true;
        };
        matches!(
            source.sqlite_error_code(),
            Some(
                CannotOpen
                    | DatabaseBusy
                    | DatabaseLocked
                    | DiskFull
                    | OutOfMemory
                    | PermissionDenied
                    | ReadOnly
                    | SystemIoFailure
            )
        )
    }

    /// Whether the log may be there later: it is away, or a token has ended.
    pub(crate) fn is_away(&self) -> bool {
        let Self::Log { source, .. } = self else {
            return false;
        };
        matches!(
            source,
            ReadError::Stopping | ReadError::Stored { .. } | ReadError::Refused { .. }
        )
    }

    /// Whether trying again is of no use.
    pub(crate) fn is_final(&self) -> bool {
        use ReadError::{Damaged, Forbidden};
        match self {
            Self::Log { source, .. } => matches!(source, Forbidden { .. } | Damaged { .. }),
            Self::Gap { .. } => true,
            _ => false,
        }
    }
}

/// Whether SQLite says that a file is damaged.
pub(crate) fn is_damage(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
    matches!(
        error.sqlite_error_code(),
        Some(DatabaseCorrupt | NotADatabase)
    )
}
