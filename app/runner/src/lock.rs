//! The lock for life: an exclusive `flock` on `birth.json`. Locked means alive, so there is no
//! stale process id to be mistaken for somebody else's.
//!
//! A supervisor takes it before it forks and hands it down as descriptor 0: no moment passes in
//! which a runner exists and is not locked. A runner started by hand takes it itself.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rustix::fs::{FlockOperation, OFlags, fcntl_getfl, flock, fstat};
use rustix::io::{Errno, FdFlags, fcntl_setfd};
use tabbify_api::runner::{BIRTH_FILE, Birth};

use crate::Error;

/// The held lock. The system frees it when the process ends, however it ends.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

impl Lock {
    /// Confirms the lock on `directory/birth.json` that standard input brought, or takes it.
    ///
    /// # Errors
    /// [`Error::Held`] if another process has it; otherwise what the file system said.
    pub fn take(directory: &Path) -> Result<Self, Error> {
        let path = directory.join(BIRTH_FILE);
        let failed = |source: io::Error| Error::Lock {
            path: path.clone(),
            source,
        };
        let named = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        let inherited = rustix::stdio::stdin();
        let file = if same_file(inherited, &named).map_err(failed)? {
            adopt(inherited, &path)?
        } else {
            named
        };
        // On the descriptor that already has the lock this changes nothing; on any other it
        // succeeds only if nobody has it.
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { file }),
            Err(Errno::WOULDBLOCK) => Err(Error::Held(directory.to_path_buf())),
            Err(errno) => Err(failed(errno.into())),
        }
    }

    /// Writes who has the lock into the locked file itself: a rename would leave the lock behind.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn write_birth(&mut self, birth: &Birth) -> Result<(), Error> {
        let mut bytes = serde_json::to_vec(birth).map_err(|e| Error::Birth(e.into()))?;
        bytes.push(b'\n');
        self.file
            .set_len(0)
            .and_then(|()| self.file.rewind())
            .and_then(|()| self.file.write_all(&bytes))
            .and_then(|()| self.file.sync_all())
            .map_err(Error::Birth)
    }
}

/// Makes descriptor 0 ours: not inherited by any child, and a handle to write through.
fn adopt(inherited: BorrowedFd<'_>, path: &Path) -> Result<File, Error> {
    let failed = |source: io::Error| Error::Lock {
        path: path.to_path_buf(),
        source,
    };
    let flags = fcntl_getfl(inherited).map_err(|e| failed(e.into()))?;
    if flags & OFlags::RWMODE != OFlags::RDWR {
        return Err(Error::LockReadOnly(path.to_path_buf()));
    }
    fcntl_setfd(inherited, FdFlags::CLOEXEC).map_err(|e| failed(e.into()))?;
    // A duplicate belongs to the same open file, and so to the same lock.
    inherited
        .try_clone_to_owned()
        .map(File::from)
        .map_err(failed)
}

fn same_file(a: BorrowedFd<'_>, b: &File) -> io::Result<bool> {
    let b = fstat(b.as_fd())?;
    // A closed standard input is no file of ours.
    Ok(fstat(a).is_ok_and(|a| (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)))
}

#[cfg(test)]
mod tests {
    use tabbify_types::event::v1::InstanceRef;
    use tabbify_types::{AppId, InstanceId, Timestamp};

    use super::*;

    #[test]
    fn one_holder_and_the_record_keeps_its_inode() {
        let dir = tempfile::tempdir().unwrap();
        let mut lock = Lock::take(dir.path()).unwrap();
        let before = std::fs::metadata(dir.path().join(BIRTH_FILE)).unwrap();
        let mut birth = Birth {
            of: InstanceRef {
                app: AppId::mint(),
                instance: InstanceId(1),
            },
            pid: 1_000_000,
            at: Timestamp::from_secs(1),
        };
        lock.write_birth(&birth).unwrap();
        birth.pid = 7;
        lock.write_birth(&birth).unwrap();
        let text = std::fs::read(dir.path().join(BIRTH_FILE)).unwrap();
        assert_eq!(serde_json::from_slice::<Birth>(&text).unwrap(), birth);
        let after = std::fs::metadata(dir.path().join(BIRTH_FILE)).unwrap();
        assert_eq!(
            std::os::unix::fs::MetadataExt::ino(&before),
            std::os::unix::fs::MetadataExt::ino(&after)
        );

        assert!(matches!(Lock::take(dir.path()), Err(Error::Held(_))));
        drop(lock);
        Lock::take(dir.path()).unwrap();
    }
}
