//! A log as one file, to move between engines: positions, ids, revisions, times, actors, causes,
//! traces and data stay what they are. The format: docs/protocols/log-export.md.
//!
//! ```text
//!   engine ─▶ records of each commit ─▶ Export: whole batches, a MiB a frame ─▶ file
//!   file   ─▶ Import: every frame and the chain verified                     ─▶ empty engine
//! ```
//!
//! An export does not depend on the engine, nor on how its commits were grouped: two logs of the same
//! events give the same file. The digest of the content is of the event records alone.

mod embedded;
mod export;
mod file;
mod import;

use std::io;
use std::path::PathBuf;

use tabbify_types::{Digest, Position};

use crate::frame::FRAME_HEADER_LEN;
use crate::log::LogId;

pub use embedded::{content, export_log, import_log};
pub(crate) use embedded::{content_on, export_on};
pub(crate) use export::Export;
pub(crate) use file::ExportFile;
pub(crate) use import::Import;

/// The format that this version writes, and the newest that it reads.
pub(crate) const FORMAT_VERSION: u16 = 1;
/// Bytes of the first and of the last block.
pub(crate) const BLOCK_LEN: usize = 512;
pub(crate) const START_MAGIC: [u8; 8] = *b"tabEXPRT";
pub(crate) const END_MAGIC: [u8; 8] = *b"tabEXEND";

/// What a log holds, whatever the engine and the grouping of its commits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// The log.
    pub log_id: LogId,
    /// Its last position.
    pub head: Position,
    /// BLAKE3 of the event records in position order, as docs/protocols/log-format.md has them.
    pub digest: Digest,
}

/// Why a log was not moved. The file or engine that was to be written holds nothing of it.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The export is not what was written, or not all of it.
    #[error("the export is damaged at byte {byte}: {what}")]
    Damaged {
        /// Where in the file.
        byte: u64,
        /// What is there.
        what: String,
    },
    /// A newer program wrote it.
    #[error(
        "the export has format {version}, and this program reads up to {FORMAT_VERSION}; upgrade it"
    )]
    Newer {
        /// Its format.
        version: u16,
    },
    /// There is a log already where one is to be made.
    #[error("{dir} holds something already; import into a directory that does not exist", dir = dir.display())]
    Taken {
        /// The directory.
        dir: PathBuf,
    },
    /// The embedded log cannot be read or written.
    #[error("the log cannot be moved")]
    Log(#[source] crate::OpenError),
    /// The log in PostgreSQL cannot be read or written.
    #[error("the log in PostgreSQL cannot be moved")]
    Postgres(#[source] crate::postgres::OpenError),
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
}

impl TransferError {
    pub(crate) fn damaged(byte: u64, what: impl Into<String>) -> Self {
        Self::Damaged {
            byte,
            what: what.into(),
        }
    }

    /// For `map_err`.
    pub(crate) fn io(
        action: &'static str,
        path: &std::path::Path,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }
}

const _: () = assert!(FRAME_HEADER_LEN <= BLOCK_LEN, "a header is read in one go");

#[cfg(test)]
mod tests;
