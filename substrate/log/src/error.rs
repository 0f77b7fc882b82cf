//! Why a log cannot be opened. Appending and reading have their errors in `tabbify_api::log`.

use std::io;
use std::path::{Path, PathBuf};

use tabbify_types::Position;

use crate::cold::ColdError;
use crate::frame::FORMAT_VERSION;

/// Why a log cannot be opened or verified. Nothing has been changed on disk.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process, or this one, has the log open.
    #[error("{dir} is in use by {holder}", dir = dir.display())]
    Locked {
        /// The log's directory.
        dir: PathBuf,
        /// Who has it, such as `process 812`.
        holder: String,
    },
    /// There is nothing to verify.
    #[error("{dir} holds no log", dir = dir.display())]
    Missing {
        /// The directory.
        dir: PathBuf,
    },
    /// The bytes are not what was written, and it is not a torn tail. Restore from a copy.
    #[error("{extent} is damaged at byte {byte}: {what}", extent = extent.display())]
    Damaged {
        /// The file.
        extent: PathBuf,
        /// Where in it.
        byte: u64,
        /// What is there.
        what: String,
    },
    /// The log is not what a checkpoint says that it was: events were cut off its end, or it has
    /// another history. Restore it from a copy.
    #[error(
        "{dir} is not what checkpoint {checkpoint} has signed up to position {position}: {what}. \
         Run: tabbify log restore",
        dir = dir.display()
    )]
    Checkpoint {
        /// The log's directory.
        dir: PathBuf,
        /// The checkpoint's name.
        checkpoint: String,
        /// The last position that it has signed.
        position: Position,
        /// How the log differs.
        what: String,
    },
    /// A newer program wrote it.
    #[error("{extent} has format {version}, and this program reads up to {FORMAT_VERSION}; upgrade it", extent = extent.display())]
    Newer {
        /// The file.
        extent: PathBuf,
        /// Its format.
        version: u16,
    },
    /// The file system refused.
    #[error("cannot {action} {path}", path = path.display())]
    Io {
        /// What was tried: a verb.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A closed extent is in an object store and cannot be read from there.
    #[error("cannot {action} {path}", path = path.display())]
    Stored {
        /// What was tried: a verb.
        action: &'static str,
        /// The extent.
        path: PathBuf,
        /// Why not, and what to do.
        #[source]
        source: ColdError,
    },
}

impl OpenError {
    pub(crate) fn damaged(extent: &Path, byte: u64, what: impl Into<String>) -> Self {
        Self::Damaged {
            extent: extent.to_owned(),
            byte,
            what: what.into(),
        }
    }

    /// For `map_err`. What an object store says is told apart from what a disk says.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| {
            let path = path.to_owned();
            match ColdError::within(&source).cloned() {
                Some(source) => Self::Stored {
                    action,
                    path,
                    source,
                },
                None => Self::Io {
                    action,
                    path,
                    source,
                },
            }
        }
    }
}

/// The end of a commit that a crash interrupted before it was answered. Opening the log cuts it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TornTail {
    /// The file.
    pub extent: PathBuf,
    /// First byte of the unfinished frame.
    pub from: u64,
    /// First byte after what had reached the disk, rounded up to a sector.
    pub to: u64,
}
