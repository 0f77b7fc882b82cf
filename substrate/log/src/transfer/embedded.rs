//! Export and import of a log in a directory, while nobody has it open.

use std::fs::{self, File};
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use tabbify_types::{Digest, Position};

use super::{Content, Export, ExportFile, Import, TransferError};
use crate::disk::{Disk, DiskFile, Guard, RealDisk, SyncPoint};
use crate::error::OpenError;
use crate::extent::{self, EXTENT_HEADER_LEN, ExtentHeader, Spare};
use crate::files::Files;
use crate::frame::{Frame, FrameHash};
use crate::log::{Log, LogId};
use crate::options::Options;
use crate::record::EventRef;
use crate::scan::{self, Collect, Depth, Scanned};
use crate::spare::next_len;

/// What the log in `dir` holds, by which it is compared with a log of any engine. Verifies it, and is
/// refused while it is open. Blocks.
///
/// # Errors
/// [`OpenError`], as of [`Log::verify`].
pub fn content(dir: &Path) -> Result<Content, OpenError> {
    Files::new(None).content(dir)
}

pub(crate) fn content_on(disk: &Arc<dyn Disk>, dir: &Path) -> Result<Content, OpenError> {
    let source = Source::open(disk, dir)?;
    let mut digest = blake3::Hasher::new();
    let walked = source.walk(|records| {
        digest.update(records);
        Ok(())
    })?;
    walked.map_err(OpenError::io("read", dir))?;
    Ok(Content {
        log_id: LogId(source.found.log_id),
        head: source.found.tip.head,
        digest: Digest(*digest.finalize().as_bytes()),
    })
}

/// Writes the log in `dir`, verified, to a new file. Blocks.
///
/// # Errors
/// [`TransferError`]; there is no file then.
pub fn export_log(dir: &Path, to: &Path) -> Result<Content, TransferError> {
    Files::new(None).export(dir, to)
}

pub(crate) fn export_on(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    to: &Path,
) -> Result<Content, TransferError> {
    let source = Source::open(disk, dir).map_err(TransferError::Log)?;
    let file = ExportFile::create(to)?;
    let write = |source| TransferError::io("write", to)(source);
    let mut export = Export::start(file, LogId(source.found.log_id)).map_err(write)?;
    let walked = source.walk(|records| export.commit(records));
    walked.map_err(TransferError::Log)?.map_err(write)?;
    let (file, content) = export.finish().map_err(write)?;
    file.finish()?;
    Ok(content)
}

/// Makes a log in `dir`, which does not exist or is empty, from an export: all of it, or nothing. The
/// extents are as `options` say. Blocks.
///
/// # Errors
/// [`TransferError`]; there is no log then.
pub fn import_log(from: &Path, dir: &Path, options: &Options) -> Result<Content, TransferError> {
    let taken = fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some());
    if taken || dir.is_file() {
        let dir = dir.to_owned();
        return Err(TransferError::Taken { dir });
    }
    let file = File::open(from).map_err(TransferError::io("open", from))?;
    let mut import = Import::start(BufReader::with_capacity(1 << 20, file))?;
    let part = Part::create(dir)?;
    let mut importer = Importer::new(&part.0, import.log_id(), options);
    let write = |source| TransferError::io("write", &part.0)(source);
    while let Some((frame, bytes)) = import.frame()? {
        importer.frame(&frame, bytes).map_err(write)?;
    }
    importer.finish().map_err(write)?;
    // Ids and revisions too, of which the export's own checksums say nothing.
    Log::verify(&part.0).map_err(TransferError::Log)?;
    part.publish(dir)?;
    Ok(import.content())
}

/// A log that is verified and held, so that nobody changes it meanwhile.
struct Source {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    found: Scanned,
    _lock: Box<dyn Guard>,
}

impl Source {
    fn open(disk: &Arc<dyn Disk>, dir: &Path) -> Result<Self, OpenError> {
        let missing = || OpenError::Missing {
            dir: dir.to_owned(),
        };
        if !dir.is_dir() || extent::list(&**disk, dir)?.is_empty() {
            return Err(missing());
        }
        let lock = extent::lock(&**disk, dir)?;
        let found = scan::scan(&**disk, dir, Depth::Events)?.ok_or_else(missing)?;
        Ok(Self {
            disk: Arc::clone(disk),
            dir: dir.to_owned(),
            found,
            _lock: lock,
        })
    }

    /// Gives the records of every frame to `take`, in order; its error ends the walk.
    fn walk(&self, take: impl FnMut(&[u8]) -> io::Result<()>) -> Result<io::Result<()>, OpenError> {
        let mut records = Records {
            take,
            failed: Ok(()),
        };
        let walked = scan::scan_into(&*self.disk, &self.dir, Depth::Bytes, &mut records);
        match records.failed {
            Err(error) => Ok(Err(error)),
            Ok(()) => walked.map(|_| Ok(())),
        }
    }
}

struct Records<F> {
    take: F,
    failed: io::Result<()>,
}

impl<F: FnMut(&[u8]) -> io::Result<()>> Collect for Records<F> {
    fn frame(&mut self, frame: &Frame<'_>, _: u64) -> Result<(), String> {
        (self.take)(frame.records()).map_err(|error| {
            let what = error.to_string();
            self.failed = Err(error);
            what
        })
    }

    fn event(&mut self, _: &EventRef<'_>, _: u64) -> Result<(), String> {
        Ok(())
    }
}

/// The directory of a log that is being imported, beside its name. Dropped early, it is removed.
struct Part(PathBuf);

impl Part {
    fn create(dir: &Path) -> Result<Self, TransferError> {
        let mut part = dir.as_os_str().to_owned();
        part.push(".importing");
        let part = PathBuf::from(part);
        match fs::remove_dir_all(&part) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(TransferError::io("remove", &part)(error));
            }
            _ => {}
        }
        extent::make_dir(&RealDisk, &part).map_err(TransferError::io("create", &part))?;
        Ok(Self(part))
    }

    /// Gives it its name, for good.
    fn publish(&self, dir: &Path) -> Result<(), TransferError> {
        fs::rename(&self.0, dir).map_err(TransferError::io("rename to", dir))?;
        extent::sync_parents(&RealDisk, dir).map_err(TransferError::io("sync the parents of", dir))
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // Named already, or of no use to anybody.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Writes the frames of an export, as they are, into extents. The log has no name yet: only when all
/// of it is on disk does it get one, so nothing here has to survive a crash.
struct Importer<'a> {
    dir: &'a Path,
    log_id: LogId,
    options: &'a Options,
    active: Option<Active>,
    /// Of the last frame.
    hash: FrameHash,
}

struct Active {
    file: Arc<dyn DiskFile>,
    len: u64,
    end: u64,
}

impl<'a> Importer<'a> {
    fn new(dir: &'a Path, log_id: LogId, options: &'a Options) -> Self {
        Self {
            dir,
            log_id,
            options,
            active: None,
            hash: extent::genesis(log_id.0),
        }
    }

    fn frame(&mut self, frame: &Frame<'_>, bytes: &[u8]) -> io::Result<()> {
        let needed = bytes.len() as u64;
        let active = match self.active.take() {
            Some(active) if active.len - active.end >= needed => active,
            before => self.next(before, frame.header.first, needed)?,
        };
        active.file.write_all_at(bytes, active.end)?;
        let end = active.end + needed;
        self.active = Some(Active { end, ..active });
        self.hash = frame.hash;
        Ok(())
    }

    fn next(&self, before: Option<Active>, first: Position, needed: u64) -> io::Result<Active> {
        let len = match before {
            Some(before) => {
                before.file.sync_data(SyncPoint::Commit)?;
                next_len(before.len, self.options)
            }
            None => self.options.extent_len_first,
        };
        let len = len.max(EXTENT_HEADER_LEN as u64 + needed);
        let spare = Spare::prepare(&RealDisk, self.dir, len, &AtomicBool::new(false))?;
        spare.write_header(&ExtentHeader {
            len,
            first,
            log_id: self.log_id.0,
            previous: self.hash,
        })?;
        let (file, _) = spare.publish(&RealDisk, self.dir, first)?;
        let end = EXTENT_HEADER_LEN as u64;
        Ok(Active { file, len, end })
    }

    fn finish(mut self) -> io::Result<()> {
        // A log without an event has an extent too.
        let active = match self.active.take() {
            Some(active) => active,
            None => self.next(None, Position(1), 0)?,
        };
        active.file.sync_data(SyncPoint::Commit)
    }
}
