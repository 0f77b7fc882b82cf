//! Which object store, and what stays out of it.

use std::io;
use std::path::Path;
use std::sync::Arc;

use object_store::ObjectStore;
use object_store::local::LocalFileSystem;
use tabbify_process::files;

use super::objects::{Objects, Remote};

/// An object store that has, or is to have, closed extents of logs. Clones are the same one.
#[derive(Debug, Clone)]
pub struct ColdStore(Arc<dyn Objects>);

impl ColdStore {
    /// Objects below `base` in `store`; `shown` names the place for people. What is put there must
    /// survive when `store` says that it is written.
    ///
    /// # Errors
    /// No thread for it can be started.
    pub fn new(
        store: Arc<dyn ObjectStore>,
        base: object_store::path::Path,
        shown: &str,
    ) -> io::Result<Self> {
        let remote = Remote::new(store, base, shown)?;
        Ok(Self(Arc::new(remote)))
    }

    /// Objects in a directory, which is made if it is missing: of another disk, or a mounted share.
    ///
    /// # Errors
    /// It cannot be made or used.
    pub fn local(dir: &Path) -> io::Result<Self> {
        files::private_dir(dir)?;
        let store = LocalFileSystem::new_with_prefix(dir).map_err(io::Error::other)?;
        // What is removed here because it is there must be on that disk.
        let store = Arc::new(store.with_fsync(true));
        Self::new(
            store,
            object_store::path::Path::default(),
            &dir.display().to_string(),
        )
    }

    /// The place, for people.
    #[must_use]
    pub fn shown(&self) -> &str {
        self.0.shown()
    }

    #[cfg(test)]
    pub(crate) fn of(objects: Arc<dyn Objects>) -> Self {
        Self(objects)
    }

    pub(crate) fn objects(&self) -> Arc<dyn Objects> {
        Arc::clone(&self.0)
    }
}

/// What becomes of closed extents.
#[derive(Debug, Clone)]
pub struct Cold {
    pub(crate) store: ColdStore,
    /// Bytes of extents that stay on the local disk.
    pub(crate) local_len: u64,
}

impl Cold {
    /// They are put into `store`, and the oldest that are there are removed from the local disk while
    /// more than `local_len` bytes of extents are on it. The extents that the log still needs to have
    /// by it stay: the one that is written, and those that are not indexed yet.
    #[must_use]
    pub const fn new(store: ColdStore, local_len: u64) -> Self {
        Self { store, local_len }
    }
}
