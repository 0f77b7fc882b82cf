//! The files of a log that nobody has open: those of its directory, and behind them the object store
//! that has the closed extents which are not there any more. What looks at a log, proves or moves it
//! goes through these.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tabbify_types::Position;

use crate::checkpoint::{self, Audited, Certificate, Proof, ProofError, Signed};
use crate::cold::{self, ColdStore};
use crate::disk::{Disk, Tiered};
use crate::error::OpenError;
use crate::extent;
use crate::log::{Log, Verified};
use crate::restore::{self, RestoreError, Restored};
use crate::transfer::{self, Content, TransferError};

/// Where the files of logs are. Clones are the same.
#[derive(Debug, Clone)]
pub struct Files {
    disk: Arc<Tiered>,
    store: Option<ColdStore>,
}

/// What a log takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Bytes in its directory: extents, allocated ahead, and the index.
    pub local_len: u64,
    /// Extents that are in an object store, whether or not they are in the directory too.
    pub stored: usize,
    /// Bytes of the objects.
    pub stored_len: u64,
    /// Bytes that the stored extents have.
    pub stored_extents_len: u64,
    /// Stored extents that are not in the directory any more.
    pub only_stored: usize,
}

impl Files {
    /// On this machine, and in `store` if there is one. Without, whatever is stored cannot be read,
    /// which is an error where it is needed.
    #[must_use]
    pub fn new(store: Option<&ColdStore>) -> Self {
        Self {
            disk: Arc::new(Tiered::real(store)),
            store: store.cloned(),
        }
    }

    fn disk(&self) -> Arc<dyn Disk> {
        Arc::clone(&self.disk) as _
    }

    /// As [`Log::verify`]; what is stored is read and verified too.
    ///
    /// # Errors
    /// [`OpenError`], with the first thing that is wrong.
    pub fn verify(&self, dir: &Path) -> Result<Verified, OpenError> {
        Log::verify_on(&*self.disk, dir)
    }

    /// As [`audit`](crate::audit).
    ///
    /// # Errors
    /// [`OpenError`], with the first thing that is wrong.
    pub fn audit(&self, dir: &Path, checkpoints: &[Signed]) -> Result<Audited, OpenError> {
        checkpoint::audit_on(&self.disk(), dir, checkpoints)
    }

    /// As [`audit_open`](crate::audit_open).
    ///
    /// # Errors
    /// [`OpenError`]; `None` if there is no checkpoint.
    pub fn audit_open(
        &self,
        dir: &Path,
        checkpoints: &[Signed],
    ) -> Result<Option<Audited>, OpenError> {
        checkpoint::audit_open_on(&self.disk(), dir, checkpoints)
    }

    /// As [`prove`](crate::prove).
    ///
    /// # Errors
    /// [`ProofError`].
    pub fn prove(
        &self,
        dir: &Path,
        position: Position,
        newest: &Signed,
        since: Option<&Signed>,
        certificates: Vec<Certificate>,
    ) -> Result<Proof, ProofError> {
        checkpoint::prove_on(&self.disk(), dir, position, (newest, since), certificates)
    }

    /// As [`transfer::content`].
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn content(&self, dir: &Path) -> Result<Content, OpenError> {
        transfer::content_on(&self.disk(), dir)
    }

    /// As [`transfer::export_log`].
    ///
    /// # Errors
    /// [`TransferError`]; there is no file then.
    pub fn export(&self, dir: &Path, to: &Path) -> Result<Content, TransferError> {
        transfer::export_on(&self.disk(), dir, to)
    }

    /// As [`restore`](crate::restore()), with what the store has of the log as the last source. All of
    /// the log is on the local disk afterwards; what is stored of it the log finds stored when it is
    /// opened.
    ///
    /// # Errors
    /// [`RestoreError`]; nothing has been changed then.
    pub fn restore(
        &self,
        dir: &Path,
        copies: &[PathBuf],
        checkpoints: &[Signed],
        accept_loss: bool,
    ) -> Result<Restored, RestoreError> {
        let from = (&self.disk(), self.store.as_ref());
        restore::restore_on(from, dir, copies, checkpoints, accept_loss)
    }

    /// What the log in `dir`, which may be open, takes.
    ///
    /// # Errors
    /// [`OpenError`], if the directory or a record in it cannot be read.
    pub fn usage(&self, dir: &Path) -> Result<Usage, OpenError> {
        let (disk, mut usage) = (self.disk.local(), Usage::default());
        let names = disk.list(dir).map_err(OpenError::io("list", dir))?;
        for path in &names {
            let len = match disk.open(path).and_then(|file| file.len()) {
                // It has just been removed, by the process that has the log open.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                len => len.map_err(OpenError::io("open", path))?,
            };
            usage.local_len += len;
            let Some(first) = cold::record_named(path) else {
                continue;
            };
            let stored = cold::read_record(disk, path).map_err(OpenError::io("read", path))?;
            usage.stored += 1;
            usage.stored_len += stored.object_len();
            usage.stored_extents_len += stored.len;
            usage.only_stored += usize::from(!names.contains(&extent::path(dir, first)));
        }
        Ok(usage)
    }
}
