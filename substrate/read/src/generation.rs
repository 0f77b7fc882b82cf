//! The files of the read model: numbered generations, one of them current.
//!
//! ```text
//!   dir/lock  dir/CURRENT → "read-0000000002.sqlite"
//!   dir/read-0000000002.sqlite (-wal, -shm)   served and folded
//!   dir/read-0000000003.sqlite                a rebuild beside it; current once it has caught up
//! ```
//!
//! A file is never renamed: its write-ahead log goes by its name. What is not current when the node
//! starts is what a crash left of a rebuild, and is removed.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use tabbify_process::files;

use crate::error::ReadNodeError;

const CURRENT: &str = "CURRENT";
const LOCK: &str = "lock";
const PREFIX: &str = "read-";
const SUFFIX: &str = ".sqlite";

/// The directory, held by this process alone.
#[derive(Debug)]
pub(crate) struct Generations {
    dir: PathBuf,
    _lock: File,
}

impl Generations {
    /// Takes the directory, making it (0700) if it is not there.
    pub(crate) fn open(dir: &Path) -> Result<Self, ReadNodeError> {
        files::private_dir(dir).map_err(ReadNodeError::io("make", dir))?;
        let path = dir.join(LOCK);
        let lock = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(ReadNodeError::io("open", &path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(ReadNodeError::Locked {
                    dir: dir.to_owned(),
                });
            }
            Err(TryLockError::Error(source)) => {
                return Err(ReadNodeError::io("lock", path)(source));
            }
        }
        Ok(Self {
            dir: dir.to_owned(),
            _lock: lock,
        })
    }

    /// The current file, if there is one. An unreadable pointer is as good as none: everything is
    /// rebuilt from the log.
    pub(crate) fn current(&self) -> Result<Option<PathBuf>, ReadNodeError> {
        let path = self.dir.join(CURRENT);
        let name = match fs::read_to_string(&path) {
            Ok(name) => name,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => String::new(),
            Err(error) => return Err(ReadNodeError::io("read", path)(error)),
        };
        let current = self.dir.join(name.trim());
        let known = number(name.trim()).is_some() && current.is_file();
        if !known {
            tracing::warn!(path = %path.display(), "the read model's pointer leads nowhere");
        }
        Ok(known.then_some(current))
    }

    /// The path of a generation that is not there yet.
    pub(crate) fn fresh(&self) -> Result<PathBuf, ReadNodeError> {
        let last = self.names()?.iter().filter_map(|name| number(name)).max();
        let next = last.unwrap_or(0).saturating_add(1);
        Ok(self.dir.join(format!("{PREFIX}{next:010}{SUFFIX}")))
    }

    /// From here on `path` is the current file.
    pub(crate) fn make_current(&self, path: &Path) -> Result<(), ReadNodeError> {
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        let pointer = self.dir.join(CURRENT);
        files::write_atomic(&pointer, name, 0o600).map_err(ReadNodeError::io("write", pointer))
    }

    /// From here on no file is current: the next opening begins from zero.
    pub(crate) fn forget_current(&self) -> Result<(), ReadNodeError> {
        let pointer = self.dir.join(CURRENT);
        fs::remove_file(&pointer).map_err(ReadNodeError::io("remove", pointer))
    }

    /// Removes every generation but these. Readers that have one open keep it until they are done.
    pub(crate) fn keep_only(&self, kept: &[&Path]) -> Result<(), ReadNodeError> {
        for name in self.names()? {
            let generation = name.split_once(SUFFIX).map(|(stem, _)| stem);
            let is_kept = kept.iter().any(|path| {
                let kept = path.file_stem().and_then(|stem| stem.to_str());
                kept.is_some() && kept == generation
            });
            if !is_kept {
                let path = self.dir.join(&name);
                fs::remove_file(&path).map_err(ReadNodeError::io("remove", path))?;
            }
        }
        Ok(())
    }

    /// Names of generations and of what SQLite keeps beside them.
    fn names(&self) -> Result<Vec<String>, ReadNodeError> {
        let listed = ReadNodeError::io("list", &self.dir);
        let mut names = Vec::new();
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) => return Err(listed(error)),
        };
        for entry in entries {
            let entry = entry.map_err(ReadNodeError::io("list", &self.dir))?;
            let name = entry.file_name();
            if let Some(name) = name.to_str()
                && name.starts_with(PREFIX)
                && name.contains(SUFFIX)
            {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }
}

/// The number in the name of a generation, or of a file beside it.
fn number(name: &str) -> Option<u64> {
    let (digits, _) = name.strip_prefix(PREFIX)?.split_once(SUFFIX)?;
    let plain = digits.len() == 10 && digits.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| digits.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generations_count_up_and_the_pointer_is_the_truth() {
        let dir = tempfile::tempdir().unwrap();
        let files = Generations::open(dir.path()).unwrap();
        assert!(matches!(
            Generations::open(dir.path()),
            Err(ReadNodeError::Locked { .. })
        ));
        assert_eq!(files.current().unwrap(), None);
        let first = files.fresh().unwrap();
        fs::write(&first, "").unwrap();
        fs::write(first.with_extension("sqlite-wal"), "").unwrap();
        files.make_current(&first).unwrap();
        let second = files.fresh().unwrap();
        assert!(second > first);
        fs::write(&second, "").unwrap();
        assert_eq!(files.current().unwrap(), Some(first));

        files.make_current(&second).unwrap();
        files.keep_only(&[&second]).unwrap();
        assert_eq!(files.names().unwrap().len(), 1);
        assert_eq!(files.current().unwrap(), Some(second));
    }

    #[test]
    fn a_pointer_that_leads_nowhere_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let files = Generations::open(dir.path()).unwrap();
        let hostile: &[&[u8]] = &[b"", b"../../etc/passwd", b"read-1.sqlite", &[0xff, 0xfe]];
        for bytes in hostile {
            fs::write(dir.path().join(CURRENT), bytes).unwrap();
            assert_eq!(files.current().unwrap(), None, "{bytes:?}");
        }
    }
}
