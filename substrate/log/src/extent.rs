//! The files: extents, the spare one, the lock, and what is done with them; see also `disk`.
//!
//! ```text
//!   lock                            flock of the one opener; its text names the process
//!   00000000000000000001.extent     named by the position of its first event
//!   00000000000000004711.extent
//!   next.spare                      zeroes, allocated and synced ahead; renamed when its turn comes
//! ```
//!
//! An extent starts with one sector; frames follow without gaps, and behind them it is all zero.
//!
//! ```text
//!     0 ├ magic "tabEXTNT"                  8 bytes    magic, version and checksum keep their
//!     8 ├ format version, u16                          place in every version
//!    10 ├ header length, u16 = 512
//!    12 ├ 0                                 4 bytes
//!    16 ├ extent length, u64                the file is exactly this long
//!    24 ├ first position, u64
//!    32 ├ log id                            16 bytes
//!    48 ├ hash of the last frame before     32 bytes; for position 1 BLAKE3 of the log id
//!    80 ├ 0
//!   508 ├ crc32c of bytes 0..508, u32
//!   512 ┘
//! ```

use std::ffi::OsStr;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tabbify_types::Position;

use crate::disk::{Disk, DiskFile, Guard, LockAttempt, SyncPoint};
use crate::error::OpenError;
use crate::fields::Fields;
use crate::frame::{FORMAT_VERSION, FRAME_LEN_MAX, FrameError, FrameHash, SECTOR};

pub(crate) const EXTENT_HEADER_LEN: usize = SECTOR;
const EXTENT_MAGIC: [u8; 8] = *b"tabEXTNT";
const EXTENSION: &str = "extent";
const SPARE: &str = "next.spare";
const LOCK: &str = "lock";
/// Bytes of zeroes written at once; what is not written back is bounded so that commits do not wait
/// long for the disk.
const ZEROES_LEN: usize = 256 * 1024;
const DIRTY_LEN_MAX: u64 = 4 * 1024 * 1024;

/// The hash that the first frame names.
pub(crate) fn genesis(log_id: [u8; 16]) -> FrameHash {
    FrameHash(*blake3::hash(&log_id).as_bytes())
}

/// The first sector of an extent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ExtentHeader {
    pub(crate) len: u64,
    pub(crate) first: Position,
    pub(crate) log_id: [u8; 16],
    pub(crate) previous: FrameHash,
}

impl ExtentHeader {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(EXTENT_HEADER_LEN);
        bytes.extend_from_slice(&EXTENT_MAGIC);
        bytes.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes.extend_from_slice(&u16::try_from(EXTENT_HEADER_LEN).unwrap_or(0).to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&self.len.to_le_bytes());
        bytes.extend_from_slice(&self.first.get().to_le_bytes());
        bytes.extend_from_slice(&self.log_id);
        bytes.extend_from_slice(&self.previous.0);
        bytes.resize(EXTENT_HEADER_LEN - 4, 0);
        bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, FrameError> {
        let Some(bytes) = bytes.get(..EXTENT_HEADER_LEN) else {
            return Err(FrameError::Header("an extent without a whole header"));
        };
        if bytes[..8] != EXTENT_MAGIC {
            return Err(FrameError::Header("no extent magic"));
        }
        let (covered, sum) = bytes.split_at(EXTENT_HEADER_LEN - 4);
        if crc32c::crc32c(covered).to_le_bytes() != sum {
            return Err(FrameError::Header(
                "an extent header that contradicts its checksum",
            ));
        }
        Self::fields(&covered[8..]).unwrap_or(Err(FrameError::Header(
            "an extent header of malformed fields",
        )))
    }

    fn fields(bytes: &[u8]) -> Option<Result<Self, FrameError>> {
        let mut fields = Fields::new(bytes);
        let (version, header_len) = (fields.u16()?, fields.u16()?);
        if version > FORMAT_VERSION {
            return Some(Err(FrameError::Newer(version)));
        }
        let gap = fields.array::<4>()?;
        let header = Self {
            len: fields.u64()?,
            first: Position(fields.u64()?),
            log_id: fields.array()?,
            previous: FrameHash(fields.array()?),
        };
        let rest = fields.bytes(EXTENT_HEADER_LEN - 80 - 4)?;
        let sound = version == FORMAT_VERSION
            && usize::from(header_len) == EXTENT_HEADER_LEN
            && gap == [0; 4]
            && rest.iter().all(|byte| *byte == 0)
            && header.first.get() > 0;
        sound.then_some(Ok(header))
    }
}

/// The extents of `dir` in order, each with the position that its name gives.
pub(crate) fn list(disk: &dyn Disk, dir: &Path) -> Result<Vec<(Position, PathBuf)>, OpenError> {
    let mut found = Vec::new();
    for path in disk.list(dir).map_err(OpenError::io("list", dir))? {
        if path.extension() != Some(OsStr::new(EXTENSION)) {
            continue;
        }
        match named(&path) {
            Some(first) => found.push((first, path)),
            None => return Err(OpenError::damaged(&path, 0, "its name is not a position")),
        }
    }
    found.sort();
    Ok(found)
}

/// The position that an extent's name gives.
pub(crate) fn named(path: &Path) -> Option<Position> {
    let name = path.file_name()?.to_str()?;
    let number = path.file_stem()?.to_str()?.parse().ok()?;
    Some(Position(number)).filter(|first| file_name(*first) == name)
}

/// Where the extent is whose first event is at `first`.
pub(crate) fn path(dir: &Path, first: Position) -> PathBuf {
    dir.join(file_name(first))
}

/// The name of the extent whose first event is at `first`.
pub(crate) fn file_name(first: Position) -> String {
    format!("{:020}.{EXTENSION}", first.get())
}

/// Makes the directory if there is none, and those above it.
pub(crate) fn make_dir(disk: &dyn Disk, dir: &Path) -> io::Result<()> {
    if disk.is_dir(dir) {
        return Ok(());
    }
    if let Some(parent) = parent(dir) {
        make_dir(disk, parent)?;
    }
    match disk.make_dir(dir) {
        // Somebody else has just made it.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && disk.is_dir(dir) => Ok(()),
        made => made,
    }
}

/// Makes certain that a new log is found again. All the directories above it, since an earlier
/// process may have made some of them and ended before it could do this.
pub(crate) fn sync_parents(disk: &dyn Disk, dir: &Path) -> io::Result<()> {
    let mut below = dir;
    while let Some(above) = parent(below) {
        match disk.sync_dir(above, SyncPoint::LogDirectory) {
            // Where we may not even look, the operator has made what is there.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(()),
            synced => synced?,
        }
        below = above;
    }
    Ok(())
}

/// The directory that holds `path`; of a relative path's first name, the working directory.
fn parent(path: &Path) -> Option<&Path> {
    let here = Path::new(".");
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Some(here).filter(|_| path != here),
        parent => parent,
    }
}

/// Takes the log for this process, or says who has it.
pub(crate) fn lock(disk: &dyn Disk, dir: &Path) -> Result<Box<dyn Guard>, OpenError> {
    let path = dir.join(LOCK);
    match disk.lock(&path).map_err(OpenError::io("lock", &path))? {
        LockAttempt::Ours(guard) => Ok(guard),
        LockAttempt::HeldBy(holder) => Err(OpenError::Locked {
            dir: dir.to_owned(),
            holder,
        }),
    }
}

/// An allocated file of zeroes that is not yet part of the log.
#[derive(Debug)]
pub(crate) struct Spare {
    pub(crate) len: u64,
    file: Arc<dyn DiskFile>,
    path: PathBuf,
}

impl Spare {
    /// Makes the spare file anew. Allocates first, so that a full disk is known at once, then
    /// writes the zeroes: a commit into written space changes no metadata and syncs faster.
    pub(crate) fn prepare(
        disk: &dyn Disk,
        dir: &Path,
        len: u64,
        stop: &AtomicBool,
    ) -> io::Result<Self> {
        remove_spare(disk, dir)?;
        let path = dir.join(SPARE);
        let file = disk.create(&path)?;
        match zero(&*file, len, stop) {
            Ok(()) => Ok(Self { len, file, path }),
            Err(error) => {
                // What was allocated is of more use to others; the refusal is the error to report.
                let _ = disk.remove(&path);
                Err(error)
            }
        }
    }

    /// Writes the header and syncs it with the zeroes; the file is still no part of the log.
    pub(crate) fn write_header(&self, header: &ExtentHeader) -> io::Result<()> {
        self.file.write_all_at(&header.encode(), 0)?;
        self.file.sync_data(SyncPoint::ExtentContent)
    }

    /// Makes it part of the log, as the extent whose first event is `first`.
    pub(crate) fn publish(
        self,
        disk: &dyn Disk,
        dir: &Path,
        first: Position,
    ) -> io::Result<(Arc<dyn DiskFile>, PathBuf)> {
        let path = dir.join(file_name(first));
        disk.rename(&self.path, &path)?;
        disk.sync_dir(dir, SyncPoint::ExtentName)?;
        Ok((self.file, path))
    }
}

fn zero(file: &dyn DiskFile, len: u64, stop: &AtomicBool) -> io::Result<()> {
    file.allocate(len)?;
    let zeroes = vec![0; ZEROES_LEN];
    let (mut written, mut clean) = (0, 0);
    while written < len {
        if stop.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let piece = usize::try_from(len - written).map_or(ZEROES_LEN, |n| n.min(ZEROES_LEN));
        file.write_all_at(&zeroes[..piece], written)?;
        written += piece as u64;
        if written - clean >= DIRTY_LEN_MAX || written == len {
            file.write_back()?;
            clean = written;
        }
    }
    Ok(())
}

/// Removes what an earlier process prepared: only what this one has zeroed is known to be zero.
pub(crate) fn remove_spare(disk: &dyn Disk, dir: &Path) -> io::Result<()> {
    match disk.remove(&dir.join(SPARE)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Makes certain that the end of the log is on disk as recovery found it, before anybody is told of
/// it. The process before may have ended between a write and its sync, or because a sync failed: what
/// is read then may be in memory alone, and counted as written. So the last frame is written again,
/// each byte as it is, and behind it as many zeroes as a frame may be long: over a torn one, and over
/// one whose removal may not have reached the disk.
pub(crate) fn settle(
    file: &dyn DiskFile,
    frame: Option<Range<u64>>,
    end: u64,
    len: u64,
) -> io::Result<()> {
    let size = |len: u64| usize::try_from(len).map_err(|_| io::ErrorKind::InvalidInput);
    if let Some(Range { start, end }) = frame {
        let mut bytes = vec![0; size(end - start)?];
        file.read_exact_at(&mut bytes, start)?;
        file.write_all_at(&bytes, start)?;
    }
    let behind = len.saturating_sub(end).min(FRAME_LEN_MAX as u64);
    if behind > 0 {
        file.write_all_at(&vec![0; size(behind)?], end)?;
    }
    file.sync_data(SyncPoint::RecoveredTail)
}

/// Whether an error says that there is no space, which passes, and not that the disk has failed.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}
