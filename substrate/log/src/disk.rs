//! Everything the engine does with a file system, behind one seam: the machine's own in production,
//! a simulated one in the proofs, which loses power at every moment.
//!
//! What a [`Disk`] promises is what POSIX does, and no more. What is written is seen at once by
//! whoever reads, and survives a loss of power when a sync has returned: the content and length of a
//! file by [`DiskFile::sync_data`], the names in a directory by [`Disk::sync_dir`]. Until then each
//! 512 bytes of each write, each new name, rename and removal may be on disk or not, in any order.

mod open_files;
mod real;
#[cfg(test)]
pub(crate) mod sim;
mod tiered;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(crate) use open_files::OpenFiles;
pub(crate) use real::RealDisk;
pub(crate) use tiered::Tiered;

/// A file system, as far as the engine needs one.
pub(crate) trait Disk: fmt::Debug + Send + Sync {
    /// A new file for reading and writing, of mode 0600; an error if the name is taken.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;

    /// A file that is there, for reading.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;

    /// A file that is there, for reading and writing.
    fn open_to_write(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;

    /// Gives a file another name, at once for whoever looks; one that is there is replaced.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// What is in a directory, in no order.
    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>>;

    /// Whether there is a directory of this name.
    fn is_dir(&self, path: &Path) -> bool;

    /// Makes one directory, of mode 0700, in one that is there.
    fn make_dir(&self, dir: &Path) -> io::Result<()>;

    /// Returns when the names in `dir` are on disk.
    fn sync_dir(&self, dir: &Path, point: SyncPoint) -> io::Result<()>;

    /// Takes the lock file at `path`, made if it is missing, for this opener alone.
    fn lock(&self, path: &Path) -> io::Result<LockAttempt>;
}

/// An open file. Threads may use it at the same time.
pub(crate) trait DiskFile: fmt::Debug + Send + Sync {
    /// Its length in bytes.
    fn len(&self) -> io::Result<u64>;

    /// Fills `buf` with the bytes from `offset` on; an error if there are fewer.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes all of `bytes` at `offset`.
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Reserves space for `len` bytes, which is also the file's length then, or says that there is
    /// none. Where a file system cannot reserve, writing the bytes does.
    fn allocate(&self, len: u64) -> io::Result<()>;

    /// Writes back what has been written so far, so that a later sync is quick. No promise: whatever
    /// must be on disk takes a sync. An error is one of the disk, and is not told again.
    fn write_back(&self) -> io::Result<()>;

    /// Returns when the content and the length of the file are on disk.
    fn sync_data(&self, point: SyncPoint) -> io::Result<()>;
}

/// What became of [`Disk::lock`].
#[derive(Debug)]
pub(crate) enum LockAttempt {
    /// It is ours until this is dropped.
    Ours(Box<dyn Guard>),
    /// Somebody else has it: a text such as `process 812`.
    HeldBy(String),
}

/// Frees a lock when it is dropped.
pub(crate) trait Guard: fmt::Debug + Send {}

/// Where the engine syncs. Each is used at one place in the code and promises one thing, and the
/// proofs show for each that without it an acknowledged event can be lost, or the log not be opened
/// (`proof::mutations`). What only helps speed is [`DiskFile::write_back`], and needs none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum SyncPoint {
    /// The directories above a new log.
    LogDirectory,
    /// The content of a new extent, before it has its name.
    ExtentContent,
    /// The name of a new extent, before a frame is written to it.
    ExtentName,
    /// A frame, before its batches are answered and shown.
    Commit,
    /// The last extent as recovery found it, before anybody is told of its events.
    RecoveredTail,
    /// The names of the extents as recovery found them.
    RecoveredNames,
    /// The record of a stored extent, before it has its name.
    StoredRecord,
    /// The name of that record, before the extent is removed.
    StoredName,
}

#[cfg(test)]
impl SyncPoint {
    /// All of them.
    pub(crate) const ALL: [Self; 8] = [
        Self::LogDirectory,
        Self::ExtentContent,
        Self::ExtentName,
        Self::Commit,
        Self::RecoveredTail,
        Self::RecoveredNames,
        Self::StoredRecord,
        Self::StoredName,
    ];
}
