//! Root file systems by image: each made once, verified before use, the least recently used removed.
//!
//! ```text
//! <directory>/<id>.<form>.squashfs   the file system        .sum    its length and BLAKE3
//!            /<id>.<form>.lock       held while it is made  .part   what is being made
//!            /<id>.<form>.used       the number of its last use
//!            /uses.lock              held while a use is numbered
//! ```
//! A user of a file system holds a shared lock on it; one that somebody holds is not removed. Uses are numbered,
//! since the times of files are as coarse as the kernel's tick: two uses in one tick would have no order.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::error::{ImageError, Result};
use crate::image::Image;
use crate::squashfs;

/// Which way of making a file system its name stands for. To be raised when the same image would give
/// another one.
const FORM: u32 = 1;
/// How file systems, and the numbers of their last uses, end.
const SQUASHFS: &str = "squashfs";
const USED: &str = "used";

/// Root file systems in a directory of this machine, for any number of processes at once.
#[derive(Debug, Clone)]
pub struct Cache {
    directory: PathBuf,
    bytes_max: u64,
}

/// A root file system in use.
#[derive(Debug)]
pub struct Root {
    path: PathBuf,
    /// Its lock keeps the file where it is.
    _held: File,
}

impl Root {
    /// The squashfs.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// The files of one image.
struct Files {
    squashfs: PathBuf,
    sum: PathBuf,
    lock: PathBuf,
    part: PathBuf,
    used: PathBuf,
}

impl Cache {
    /// A cache in `directory`, which is made if it is missing. LIMIT: `bytes_max`, beyond what is in
    /// use at the moment.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn open(directory: &Path, bytes_max: u64) -> Result<Self> {
        tabbify_process::files::private_dir(directory)
            .map_err(ImageError::io("make", directory))?;
        Ok(Self {
            directory: directory.to_owned(),
            bytes_max,
        })
    }

    /// The root file system of `image`, made now if it is not there or is damaged. Waits for another
    /// process that is making it.
    ///
    /// # Errors
    /// What is wrong with a layer; `sqfstar` missing or failing; those of the file system.
    pub fn root(&self, image: &Image) -> Result<Root> {
        let files = self.files(&image.id().hex());
        if let Some(root) = self.open_root(&files)? {
            return Ok(root);
        }
        let _lock = locked(&files.lock)?;
        // Whoever had the lock before may have made it.
        if let Some(root) = self.open_root(&files)? {
            return Ok(root);
        }
        let made = self.make(image, &files);
        if made.is_err() {
            // What is there of it is of no use; the first error is the one to report.
            let _ = fs::remove_file(&files.part);
        }
        made?;
        let root = self.open_root(&files)?;
        self.shrink()?;
        root.ok_or_else(|| ImageError::damaged("the root file system", "it changed as it was made"))
    }

    fn make(&self, image: &Image, files: &Files) -> Result<()> {
        // A maker that died may have left its own.
        remove(&files.part)?;
        let flat = image.flatten(&self.directory)?;
        squashfs::make(&flat, &files.part)?;
        let mut file = File::open(&files.part).map_err(ImageError::io("open", &files.part))?;
        file.sync_all()
            .map_err(ImageError::io("sync", &files.part))?;
        let sum = sum(&mut file).map_err(ImageError::io("read", &files.part))?;
        // The sum first: a file without its sum is made again, one with an old sum is as well.
        tabbify_process::files::write_atomic(&files.sum, sum.as_bytes(), 0o600)
            .map_err(ImageError::io("write", &files.sum))?;
        fs::rename(&files.part, &files.squashfs).map_err(ImageError::io("rename", &files.part))?;
        tabbify_process::files::sync_dir(&self.directory)
            .map_err(ImageError::io("sync", &self.directory))?;
        tracing::info!(image = %image.id(), "made the root file system of an image");
        Ok(())
    }

    fn files(&self, id: &str) -> Files {
        let file = |ending: &str| self.directory.join(format!("{id}.{FORM}.{ending}"));
        Files {
            squashfs: file(SQUASHFS),
            sum: file("sum"),
            lock: file("lock"),
            part: file("part"),
            used: file(USED),
        }
    }

    /// The file system, if it is whole; that is a use of it.
    fn open_root(&self, files: &Files) -> Result<Option<Root>> {
        let root = open(files)?;
        if root.is_some() {
            self.count(files)?;
        }
        Ok(root)
    }

    /// Numbers a use, after all that were before it.
    fn count(&self, files: &Files) -> Result<()> {
        let _lock = locked(&self.directory.join("uses.lock"))?;
        let last = self.found(USED)?.iter().map(|path| use_of(path)).max();
        let number = last.unwrap_or_default().saturating_add(1).to_string();
        tabbify_process::files::write_atomic(&files.used, number.as_bytes(), 0o600)
            .map_err(ImageError::io("write", &files.used))
    }

    /// Its files with this ending.
    fn found(&self, ending: &str) -> Result<Vec<PathBuf>> {
        let unreadable = || ImageError::io("read", &self.directory);
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.directory).map_err(unreadable())? {
            let path = entry.map_err(unreadable())?.path();
            if path.extension().is_some_and(|found| found == ending) {
                found.push(path);
            }
        }
        Ok(found)
    }

    /// Removes the least recently used that nobody uses, until the rest fits.
    fn shrink(&self) -> Result<()> {
        let mut found = Vec::new();
        for path in self.found(SQUASHFS)? {
            // Another process may remove it at this moment.
            if let Ok(metadata) = fs::metadata(&path) {
                found.push((use_of(&path.with_extension(USED)), metadata.len(), path));
            }
        }
        found.sort();
        let mut total: u64 = found.iter().map(|(_, len, _)| len).sum();
        for (_, len, path) in found {
            if total <= self.bytes_max {
                break;
            }
            if remove_unused(&path)? {
                total -= len;
            }
        }
        Ok(())
    }
}

/// The file system, if it is whole.
fn open(files: &Files) -> Result<Option<Root>> {
    let mut file = match File::open(&files.squashfs) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(ImageError::io("open", &files.squashfs))?,
    };
    flock(&file, FlockOperation::LockShared)
        .map_err(|error| ImageError::io("lock", &files.squashfs)(error.into()))?;
    let known = fs::read_to_string(&files.sum).unwrap_or_default();
    let found = sum(&mut file).map_err(ImageError::io("read", &files.squashfs))?;
    if known != found {
        tracing::warn!(file = %files.squashfs.display(), "a cached root file system is damaged and is made again");
        return Ok(None);
    }
    // It may have been removed, or replaced, between the opening and the lock.
    if !is_still(&file, &files.squashfs) {
        return Ok(None);
    }
    Ok(Some(Root {
        path: files.squashfs.clone(),
        _held: file,
    }))
}

fn is_still(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let same = |a: &fs::Metadata, b: &fs::Metadata| a.ino() == b.ino() && a.dev() == b.dev();
    matches!((file.metadata(), fs::metadata(path)), (Ok(a), Ok(b)) if same(&a, &b))
}

/// The number of the last use; one that is not known was before all others.
fn use_of(path: &Path) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.parse().unwrap_or_default()
}

/// Length and digest in one line.
fn sum(file: &mut File) -> io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    let mut chunk = vec![0; 256 << 10];
    let mut len = 0;
    loop {
        let count = file.read(&mut chunk)?;
        if count == 0 {
            break;
        }
        hasher.update(&chunk[..count]);
        len += count as u64;
    }
    Ok(format!("{len} {}\n", hasher.finalize().to_hex()))
}

/// A lock file, once nobody else has it.
fn locked(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).write(true);
    let file = options.open(path).map_err(ImageError::io("open", path))?;
    flock(&file, FlockOperation::LockExclusive)
        .map_err(|error| ImageError::io("lock", path)(error.into()))?;
    Ok(file)
}

/// Whether it is gone.
fn remove_unused(path: &Path) -> Result<bool> {
    let Ok(file) = File::open(path) else {
        return Ok(true);
    };
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        return Ok(false);
    }
    remove(path)?;
    remove(&path.with_extension("sum"))?;
    remove(&path.with_extension(USED))?;
    // The lock file stays: another process may wait for it at this moment. It is empty.
    Ok(true)
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(ImageError::io("remove", path)(error))
        }
        _ => Ok(()),
    }
}
