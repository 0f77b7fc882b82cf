//! The log's disk with an object store behind it: an extent that is not there, but whose record is, is
//! read from the store, and everybody above takes it for a file.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Disk, DiskFile, LockAttempt, RealDisk, SyncPoint};
use crate::cold::{self, Blocks, ColdStore, StoredFile};
use crate::extent;

/// Implements [`Disk`].
#[derive(Debug, Clone)]
pub(crate) struct Tiered {
    local: Arc<dyn Disk>,
    blocks: Arc<Blocks>,
}

impl Tiered {
    /// `local`, and behind it `store`; without one, reading what is stored is an error that says so.
    pub(crate) fn new(local: Arc<dyn Disk>, store: Option<&ColdStore>) -> Self {
        Self {
            local,
            blocks: Arc::new(Blocks::of(store)),
        }
    }

    /// The machine's disk.
    pub(crate) fn real(store: Option<&ColdStore>) -> Self {
        Self::new(Arc::new(RealDisk), store)
    }

    /// What is on this machine alone.
    pub(crate) fn local(&self) -> &dyn Disk {
        &*self.local
    }

    pub(crate) const fn blocks(&self) -> &Arc<Blocks> {
        &self.blocks
    }

    /// The stored extent of this name, by its record, if it has one.
    fn stored(&self, path: &Path) -> io::Result<Option<Arc<dyn DiskFile>>> {
        let Some((dir, first)) = path.parent().zip(extent::named(path)) else {
            return Ok(None);
        };
        match cold::read_record(&*self.local, &cold::record_path(dir, first)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
            Ok(stored) => {
                let blocks = Arc::clone(&self.blocks);
                Ok(Some(Arc::new(StoredFile::new(path, stored, blocks))))
            }
        }
    }
}

impl Disk for Tiered {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.local.create(path)
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        match self.local.open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.stored(path)?.ok_or(error)
            }
            opened => opened,
        }
    }

    fn open_to_write(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.local.open_to_write(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.local.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.local.remove(path)
    }

    /// With the extents that are stored, each once.
    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        let mut found = self.local.list(dir)?;
        let records = found.iter().filter_map(|path| cold::record_named(path));
        let stored: Vec<PathBuf> = records.map(|first| extent::path(dir, first)).collect();
        if !stored.is_empty() {
            found.extend(stored);
            found.sort_unstable();
            found.dedup();
        }
        Ok(found)
    }

    fn is_dir(&self, path: &Path) -> bool {
        self.local.is_dir(path)
    }

    fn make_dir(&self, dir: &Path) -> io::Result<()> {
        self.local.make_dir(dir)
    }

    fn sync_dir(&self, dir: &Path, point: SyncPoint) -> io::Result<()> {
        self.local.sync_dir(dir, point)
    }

    fn lock(&self, path: &Path) -> io::Result<LockAttempt> {
        self.local.lock(path)
    }
}
