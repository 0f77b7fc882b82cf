//! The file under a run: pages written front to back, and read in any order.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::page::{self, Kind, PAGE_LEN, Page};
use crate::disk::DiskFile;
use crate::error::OpenError;

/// LIMIT: bytes of pages gathered before they are written, and written before they are written back,
/// so that a commit does not wait long for the disk.
const GATHERED_LEN_MAX: usize = 256 * 1024;
const DIRTY_LEN_MAX: u64 = 1024 * 1024;

/// Why a run cannot be read or written. A run is derived: whoever meets this makes it anew.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    /// Its bytes are not what was written.
    #[error("{run} is damaged at byte {byte}: {what}", run = run.display())]
    Damaged {
        run: PathBuf,
        byte: u64,
        what: &'static str,
    },
    /// The file system refused.
    #[error("cannot {action} {path}", path = path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// It cannot be made: the log that it is made from is not in order.
    #[error("the log is not in order")]
    Log(#[source] Box<OpenError>),
}

impl RunError {
    /// That the log is not in order, if it is that.
    pub(crate) fn of_log(error: OpenError) -> Self {
        match error {
            OpenError::Io {
                action,
                path,
                source,
            } => Self::Io {
                action,
                path,
                source,
            },
            // An object store that is away is no damage.
            OpenError::Stored {
                action,
                path,
                source,
            } => Self::Io {
                action,
                path,
                source: source.into(),
            },
            other => Self::Log(Box::new(other)),
        }
    }

    /// For `map_err`.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io {
            action,
            path: path.to_owned(),
            source,
        }
    }
}

impl From<RunError> for OpenError {
    fn from(error: RunError) -> Self {
        match error {
            RunError::Io {
                action,
                path,
                source,
            } => Self::io(action, &path)(source),
            RunError::Damaged { run, byte, what } => Self::damaged(&run, byte, what),
            RunError::Log(error) => *error,
        }
    }
}

/// Where pages come from.
pub(crate) trait PageSource: fmt::Debug {
    /// The page of this number, intact.
    fn page(&self, number: u32) -> Result<Arc<Page>, RunError>;

    /// What is wrong with that page, as an error.
    fn wrong(&self, number: u32, what: &'static str) -> RunError;
}

/// A file of pages that is being written.
#[derive(Debug)]
pub(crate) struct PageSink {
    file: Arc<dyn DiskFile>,
    path: PathBuf,
    next_page: u32,
    gathered: Vec<u8>,
    dirty: u64,
    /// Set when the log closes: whoever opens it next does this again.
    stop: Arc<AtomicBool>,
}

impl PageSink {
    /// Appends to `file` from page `first` on; what comes before is written by its place.
    pub(crate) fn new(
        file: Arc<dyn DiskFile>,
        path: &Path,
        first: u32,
        stop: Arc<AtomicBool>,
    ) -> Self {
        Self {
            file,
            path: path.to_owned(),
            next_page: first,
            gathered: Vec::with_capacity(GATHERED_LEN_MAX),
            dirty: 0,
            stop,
        }
    }

    /// Number of the page that is appended next.
    pub(crate) const fn next_page(&self) -> u32 {
        self.next_page
    }

    pub(crate) fn append(
        &mut self,
        kind: Kind,
        level: u8,
        count: u16,
        body: &[u8],
    ) -> Result<u32, RunError> {
        let number = self.next_page;
        let next = number.checked_add(1);
        self.next_page = next.ok_or_else(|| {
            RunError::io("extend", &self.path)(io::Error::from(io::ErrorKind::FileTooLarge))
        })?;
        let page = Page::seal(number, kind, level, count, body);
        self.gathered.extend_from_slice(page.bytes());
        if self.gathered.len() >= GATHERED_LEN_MAX {
            self.flush()?;
        }
        Ok(number)
    }

    /// Writes page `number`, which comes before all that are appended.
    pub(crate) fn put(&mut self, number: u32, kind: Kind, body: &[u8]) -> Result<(), RunError> {
        let page = Page::seal(number, kind, 0, 0, body);
        let written = self.file.write_all_at(page.bytes(), page::offset(number));
        written.map_err(RunError::io("write", &self.path))
    }

    fn flush(&mut self) -> Result<(), RunError> {
        if self.stop.load(Ordering::Relaxed) {
            let stopped = io::Error::from(io::ErrorKind::Interrupted);
            return Err(RunError::io("write", &self.path)(stopped));
        }
        let len = self.gathered.len() as u64;
        let from = page::offset(self.next_page) - len;
        let mut written = self.file.write_all_at(&self.gathered, from);
        self.gathered.clear();
        self.dirty += len;
        if written.is_ok() && self.dirty >= DIRTY_LEN_MAX {
            self.dirty = 0;
            written = self.file.write_back();
        }
        written.map_err(RunError::io("write", &self.path))
    }

    /// Everything appended is in the file, and on its way to the disk: whatever of it a loss of power
    /// takes, its checksums show.
    pub(crate) fn finish(mut self) -> Result<Arc<dyn DiskFile>, RunError> {
        self.flush()?;
        let written = self.file.write_back();
        written.map_err(RunError::io("write", &self.path))?;
        Ok(self.file)
    }
}

/// Reads page `number` of `file`.
pub(crate) fn read(file: &dyn DiskFile, number: u32) -> io::Result<Option<Page>> {
    let mut bytes = Box::new([0; PAGE_LEN]);
    file.read_exact_at(&mut bytes[..], page::offset(number))?;
    Ok(Page::check(bytes, number))
}
