//! The thread that stores closed extents, and removes from the local disk the oldest that are stored.
//!
//! Each step leaves the log readable, whatever ends it: an object without a record is nothing, a record
//! beside its extent is not used, and an extent goes only when its record is on disk and the object has
//! just been read back and is byte for byte the extent.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tabbify_process::chain;
use tabbify_types::Position;

use super::objects::{Object, ObjectsError, Put};
use super::{Cold, ColdError, DRAFT, Stored, read_record, record_path};
use crate::disk::{DiskFile, SyncPoint, Tiered};
use crate::error::OpenError;
use crate::extent;
use crate::log::Shared;
use crate::scan::{self, Tip};

/// LIMIT: blocks that are compared at once.
const COMPARE_BLOCKS: usize = 16;
/// Pause before something that failed is tried again; doubles up to the second.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_LAST: Duration = Duration::from_secs(600);

/// What a step has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Done {
    /// An extent was stored or removed; there may be more to do.
    More,
    /// There was nothing to do.
    Idle,
    /// The store or the disk has refused it.
    Refused,
}

/// Why a step has done nothing.
#[derive(Debug)]
enum Trouble {
    /// It is tried again.
    Passing { what: String, path: PathBuf },
    /// The log is damaged, or what was written of it may not be on disk.
    Final(OpenError),
}

impl Trouble {
    /// For `map_err`.
    fn passing(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |error| Self::Passing {
            what: chain(&error).to_string(),
            path,
        }
    }
}

impl From<OpenError> for Trouble {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Stored { path, source, .. } => Self::Passing {
                what: source.to_string(),
                path,
            },
            // Too many open files, no memory; what the disk itself says has a number.
            OpenError::Io { path, source, .. } if source.raw_os_error().is_none() => {
                Self::passing(&path)(source)
            }
            error => Self::Final(error),
        }
    }
}

/// Stores and removes until the log closes; an error is damage, or a failed sync.
pub(crate) fn keep(shared: &Shared) -> Result<(), OpenError> {
    let (index, mut retry) = (&shared.index, RETRY_FIRST);
    while let Some(turn) = index.turn() {
        match step(shared)? {
            Done::More => retry = RETRY_FIRST,
            Done::Idle => index.wait_after(turn),
            Done::Refused => {
                index.pause(retry);
                retry = (retry * 2).min(RETRY_LAST);
            }
        }
    }
    Ok(())
}

/// One extent.
pub(crate) fn step(shared: &Shared) -> Result<Done, OpenError> {
    let Some((cold, tiered)) = &shared.cold else {
        return Ok(Done::Idle);
    };
    match (Keeper {
        cold,
        tiered,
        shared,
    })
    .step()
    {
        Ok(true) => Ok(Done::More),
        Ok(false) => Ok(Done::Idle),
        Err(Trouble::Final(error)) => Err(error),
        Err(Trouble::Passing { .. }) if shared.index.turn().is_none() => Ok(Done::Idle),
        Err(Trouble::Passing { what, path }) => {
            tracing::warn!(what, extent = %path.display(), store = cold.store.shown(),
                "an extent is not stored; it stays, and it is tried again");
            Ok(Done::Refused)
        }
    }
}

/// A closed extent of the local disk.
#[derive(Debug)]
struct Closed {
    first: Position,
    path: PathBuf,
    len: u64,
    /// The extent behind it.
    next: PathBuf,
    is_stored: bool,
}

struct Keeper<'a> {
    cold: &'a Cold,
    tiered: &'a Tiered,
    shared: &'a Shared,
}

impl Keeper<'_> {
    /// Stores the oldest extent that is not; when all are, removes the oldest if there are too many
    /// bytes. Whether it has done anything.
    fn step(&self) -> Result<bool, Trouble> {
        let (closed, local_len) = self.closed()?;
        if let Some(extent) = closed.iter().find(|extent| !extent.is_stored) {
            self.store(extent)?;
            return Ok(true);
        }
        match closed.first() {
            Some(oldest) if local_len > self.cold.local_len => {
                self.remove(oldest)?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// The extents of the local disk that runs cover, the oldest first, and the bytes of all extents
    /// there. What no run covers stays: the next start has to read it.
    fn closed(&self) -> Result<(Vec<Closed>, u64), Trouble> {
        let (local, dir) = (self.tiered.local(), &*self.shared.dir);
        let sealed = self.shared.index.sealed_upto();
        let all = extent::list(self.tiered, dir)?;
        let names = local.list(dir).map_err(Trouble::passing(dir))?;
        let names: BTreeSet<PathBuf> = names.into_iter().collect();
        let (mut closed, mut local_len) = (Vec::new(), 0);
        for (at, (first, path)) in all.iter().enumerate() {
            if !names.contains(path) {
                continue;
            }
            let len = local.open(path).and_then(|file| file.len());
            let len = len.map_err(Trouble::passing(path))?;
            local_len += len;
            if let Some((_, next)) = all.get(at + 1).filter(|(next, _)| *next <= sealed.next()) {
                closed.push(Closed {
                    first: *first,
                    path: path.clone(),
                    len,
                    next: next.clone(),
                    is_stored: names.contains(&record_path(dir, *first)),
                });
            }
        }
        Ok((closed, local_len))
    }

    /// Verifies an extent, puts it into the store, reads it back, and writes its record.
    fn store(&self, extent: &Closed) -> Result<(), Trouble> {
        let (local, path) = (self.tiered.local(), &extent.path);
        let header = scan::header(local, path)?;
        let before = Tip {
            head: Position(extent.first.get().saturating_sub(1)),
            hash: header.previous,
            epoch: 0,
        };
        let entry = scan::closed(local, path, header.log_id, before, &mut ())?;
        if scan::header(self.tiered, &extent.next)?.previous != entry.hash {
            let what = "the extent behind it does not go on from it";
            return Err(OpenError::damaged(path, u64::from(entry.end), what).into());
        }
        let file = local.open(path).map_err(Trouble::passing(path))?;
        let read = |buf: &mut [u8], at| file.read_exact_at(buf, at);
        let compressed = Stored::compress(&header, entry.last, read);
        let (stored, parts) = compressed.map_err(Trouble::passing(path))?;
        let objects = self.cold.store.objects();
        let put = |put| {
            let parts = parts.clone();
            let written = objects.put(
                &stored.name(),
                Object { parts, put },
                self.tiered.blocks().stop(),
            );
            written.map_err(|error| Trouble::Passing {
                what: match error {
                    ObjectsError::Unreachable(detail) => detail,
                    ObjectsError::Missing => "the store has no such place".to_owned(),
                },
                path: path.clone(),
            })
        };
        put(Put::Create)?;
        if self.is_whole(&stored, path, &*file)? {
            return self.record(&stored);
        }
        // One of this name was there, and was not whole.
        put(Put::Replace)?;
        if self.is_whole(&stored, path, &*file)? {
            return self.record(&stored);
        }
        Err(Trouble::Passing {
            what: "the store gives other bytes than it was given".to_owned(),
            path: path.clone(),
        })
    }

    /// Whether the object is there and is, byte for byte, the extent.
    fn is_whole(&self, stored: &Stored, path: &Path, file: &dyn DiskFile) -> Result<bool, Trouble> {
        let count = stored.block_count();
        for start in (0..count).step_by(COMPARE_BLOCKS) {
            let end = count.min(start + COMPARE_BLOCKS);
            let blocks = match self.tiered.blocks().fetch(stored, path, start..end) {
                Ok(blocks) => blocks,
                Err(error) => match ColdError::within(&error) {
                    Some(ColdError::Missing { .. } | ColdError::Damaged { .. }) => {
                        return Ok(false);
                    }
                    _ => return Err(Trouble::passing(path)(error)),
                },
            };
            let mut at = Stored::place_of(start);
            for block in blocks {
                let mut bytes = vec![0; block.len()];
                let read = file.read_exact_at(&mut bytes, at);
                read.map_err(Trouble::passing(path))?;
                if bytes != block {
                    let what = "it is not what was stored of it, which is intact";
                    return Err(OpenError::damaged(path, at, what).into());
                }
                at += block.len() as u64;
            }
        }
        Ok(true)
    }

    /// Says, for good, that an extent is stored.
    fn record(&self, stored: &Stored) -> Result<(), Trouble> {
        let (local, dir) = (self.tiered.local(), &*self.shared.dir);
        let (draft, path) = (dir.join(DRAFT), record_path(dir, stored.first));
        match local.remove(&draft) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Trouble::passing(&draft)(error));
            }
            _ => {}
        }
        let written = local.create(&draft).and_then(|file| {
            file.write_all_at(&stored.encode(), 0)?;
            Ok(file)
        });
        let file = written.map_err(Trouble::passing(&draft))?;
        let synced = file.sync_data(SyncPoint::StoredRecord);
        synced
            .map_err(OpenError::io("sync", &draft))
            .map_err(Trouble::Final)?;
        let named = local.rename(&draft, &path);
        named.map_err(Trouble::passing(&path))?;
        // From here on the record is seen, and an extent may be removed because of it: whether it is
        // on disk must not be left open.
        let synced = local.sync_dir(dir, SyncPoint::StoredName);
        synced
            .map_err(OpenError::io("sync", dir))
            .map_err(Trouble::Final)?;
        tracing::debug!(first = %stored.first, last = %stored.last, object = stored.name(), "extent stored");
        Ok(())
    }

    /// Removes a stored extent from the local disk, if the object is still what it was.
    fn remove(&self, extent: &Closed) -> Result<(), Trouble> {
        let (local, path) = (self.tiered.local(), &extent.path);
        let stored = match read_record(local, &record_path(&self.shared.dir, extent.first)) {
            Ok(stored) => stored,
            Err(error) => match ColdError::within(&error) {
                Some(ColdError::Record { .. }) => return self.store(extent),
                _ => return Err(Trouble::passing(path)(error)),
            },
        };
        let file = local.open(path).map_err(Trouble::passing(path))?;
        if stored.len != extent.len || !self.is_whole(&stored, path, &*file)? {
            return self.store(extent);
        }
        drop(file);
        local.remove(path).map_err(Trouble::passing(path))?;
        // Readers that have it open go on; nobody keeps it open for later.
        self.shared.files.forget(path);
        tracing::debug!(extent = %path.display(), "only in the object store from here on");
        Ok(())
    }
}
