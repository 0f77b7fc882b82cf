//! Files that readers have open: one descriptor for an extent, however many read it.

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use super::{Disk, DiskFile};

/// LIMIT: files kept open for reading; the one used least recently goes. A reader that still uses it
/// keeps it open until its read is done.
const OPEN_FILES_MAX: usize = 64;

type Entry = (Arc<Path>, Arc<dyn DiskFile>);

/// The most recently used first.
#[derive(Debug)]
pub(crate) struct OpenFiles {
    disk: Arc<dyn Disk>,
    files: Mutex<VecDeque<Entry>>,
}

impl OpenFiles {
    pub(crate) fn new(disk: Arc<dyn Disk>) -> Self {
        Self {
            disk,
            files: Mutex::default(),
        }
    }

    /// Where the files are.
    pub(crate) fn disk(&self) -> Arc<dyn Disk> {
        Arc::clone(&self.disk)
    }

    /// The file at `path`, for reading.
    pub(crate) fn get(&self, path: &Arc<Path>) -> io::Result<Arc<dyn DiskFile>> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let known = files.iter().position(|(known, _)| known == path);
        let entry = match known.and_then(|at| files.remove(at)) {
            Some(entry) => entry,
            None => (Arc::clone(path), self.disk.open(path)?),
        };
        let file = Arc::clone(&entry.1);
        files.push_front(entry);
        files.truncate(OPEN_FILES_MAX);
        Ok(file)
    }

    /// Whoever comes from here on has the file at `path` opened again.
    pub(crate) fn forget(&self, path: &Path) {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        files.retain(|(known, _)| **known != *path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::RealDisk;

    #[test]
    fn a_file_is_opened_once_and_the_oldest_goes() {
        let dir = tempfile::tempdir().unwrap();
        let files = OpenFiles::new(Arc::new(RealDisk));
        let path = |n: usize| -> Arc<Path> { dir.path().join(n.to_string()).into() };
        for n in 0..=OPEN_FILES_MAX {
            std::fs::write(path(n), [1, 2, 3]).unwrap();
        }
        let first = files.get(&path(0)).unwrap();
        assert!(Arc::ptr_eq(&first, &files.get(&path(0)).unwrap()));
        for n in 1..=OPEN_FILES_MAX {
            files.get(&path(n)).unwrap();
        }
        // Whoever has it goes on with it; whoever comes later has it opened again.
        let mut buf = [0; 2];
        first.read_exact_at(&mut buf, 1).unwrap();
        assert_eq!(buf, [2, 3]);
        assert!(!Arc::ptr_eq(&first, &files.get(&path(0)).unwrap()));
        assert_eq!(files.files.lock().unwrap().len(), OPEN_FILES_MAX);
        let missing: Arc<Path> = dir.path().join("missing").into();
        assert!(files.get(&missing).is_err());
    }
}
