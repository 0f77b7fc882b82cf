//! The files: extents, the spare one, the lock. Every file operation but reading is here.
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
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{FallocateFlags, FlockOperation};
use rustix::io::Errno;
use tabbify_types::Position;

use crate::error::OpenError;
use crate::fields::Fields;
use crate::frame::{FORMAT_VERSION, FrameError, FrameHash, SECTOR};
use crate::options::Faults;

pub(crate) const EXTENT_HEADER_LEN: usize = SECTOR;
const EXTENT_MAGIC: [u8; 8] = *b"tabEXTNT";
const EXTENSION: &str = "extent";
const SPARE: &str = "next.spare";
const LOCK: &str = "lock";
/// Bytes of zeroes written at once; what is unsynced is bounded so that commits do not wait long.
const ZEROES_LEN: usize = 256 * 1024;
const UNSYNCED_LEN_MAX: u64 = 4 * 1024 * 1024;

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
pub(crate) fn list(dir: &Path) -> Result<Vec<(Position, PathBuf)>, OpenError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(OpenError::io("list", dir))? {
        let path = entry.map_err(OpenError::io("list", dir))?.path();
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

fn file_name(first: Position) -> String {
    format!("{:020}.{EXTENSION}", first.get())
}

/// Makes the directory if there is none; its parent is synced, so that it stays.
pub(crate) fn make_dir(dir: &Path) -> Result<(), OpenError> {
    if dir.is_dir() {
        return Ok(());
    }
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(OpenError::io("create", dir))?;
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty());
    sync_dir(parent.unwrap_or_else(|| Path::new(".")))
        .map_err(OpenError::io("sync the parent of", dir))
}

/// The log's directory is ours.
#[derive(Debug)]
pub(crate) struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing is not enough: a child that another thread is just starting has the file open
        // until it executes its program. Closing follows, so a failure here costs only that moment.
        let _ = rustix::fs::flock(&self.0, FlockOperation::Unlock);
    }
}

/// Takes the log for this process, or says who has it.
pub(crate) fn lock(dir: &Path) -> Result<Lock, OpenError> {
    let path = dir.join(LOCK);
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path);
    let mut file = opened.map_err(OpenError::io("open", &path))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => {
            let mut holder = String::new();
            // The text only helps to find the holder; without it the refusal stands.
            let _ = file.read_to_string(&mut holder);
            let holder = match holder.trim() {
                "" => "another process".to_owned(),
                pid => format!("process {pid}"),
            };
            return Err(OpenError::Locked {
                dir: dir.to_owned(),
                holder,
            });
        }
        Err(errno) => return Err(OpenError::io("lock", &path)(errno.into())),
    }
    // Fixed width, so that it replaces what an earlier process wrote.
    let noted = file.write_all_at(format!("{:>10}\n", std::process::id()).as_bytes(), 0);
    noted.map_err(OpenError::io("write", &path))?;
    Ok(Lock(file))
}

/// An allocated file of zeroes that is on disk but not yet part of the log.
#[derive(Debug)]
pub(crate) struct Spare {
    pub(crate) len: u64,
    file: File,
    path: PathBuf,
}

impl Spare {
    /// Makes the spare file anew. Allocates first, so that a full disk is known at once, then
    /// writes the zeroes: a commit into written space changes no metadata and syncs faster.
    pub(crate) fn prepare(
        dir: &Path,
        len: u64,
        faults: &Faults,
        stop: &AtomicBool,
    ) -> io::Result<Self> {
        let path = dir.join(SPARE);
        remove_spare(dir)?;
        (faults.on_allocate)()?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)?;
        match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, len) {
            // A file system that cannot allocate gets the space by the writing below.
            Ok(()) | Err(Errno::OPNOTSUPP) => {}
            Err(errno) => {
                // What was allocated is of more use to others; the refusal is the error to report.
                let _ = fs::remove_file(&path);
                return Err(errno.into());
            }
        }
        let zeroes = vec![0; ZEROES_LEN];
        let (mut written, mut synced) = (0, 0);
        while written < len {
            if stop.load(Ordering::Relaxed) {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let piece = usize::try_from(len - written).map_or(ZEROES_LEN, |n| n.min(ZEROES_LEN));
            file.write_all_at(&zeroes[..piece], written)?;
            written += piece as u64;
            if written - synced >= UNSYNCED_LEN_MAX {
                file.sync_data()?;
                synced = written;
            }
        }
        file.sync_all()?;
        Ok(Self { len, file, path })
    }

    /// Writes the header; the file is still no part of the log.
    pub(crate) fn write_header(&self, header: &ExtentHeader) -> io::Result<()> {
        self.file.write_all_at(&header.encode(), 0)?;
        self.file.sync_data()
    }

    /// Makes it part of the log, as the extent whose first event is `first`.
    pub(crate) fn publish(self, dir: &Path, first: Position) -> io::Result<(File, PathBuf)> {
        let path = dir.join(file_name(first));
        fs::rename(&self.path, &path)?;
        sync_dir(dir)?;
        Ok((self.file, path))
    }
}

/// Removes what an earlier process prepared: only what this one has zeroed is known to be zero.
pub(crate) fn remove_spare(dir: &Path) -> io::Result<()> {
    match fs::remove_file(dir.join(SPARE)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Puts zeroes where a torn frame was, and on disk, before anything is written there again.
pub(crate) fn cut(file: &File, from: u64, to: u64) -> io::Result<()> {
    let len = usize::try_from(to - from).map_err(|_| io::ErrorKind::InvalidInput)?;
    file.write_all_at(&vec![0; len], from)?;
    file.sync_data()
}
