//! Reading stored extents: block by block, each held against its hash, through a bounded cache.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::format::{BLOCK_LEN, Stored};
use super::objects::{Objects, ObjectsError};
use super::{ColdError, ColdStore};
use crate::disk::{DiskFile, SyncPoint};
use crate::extent::EXTENT_HEADER_LEN;

/// LIMIT: blocks kept in memory, 32 MiB of them, over all extents.
const CACHE_MAX: usize = 128;
/// LIMIT: blocks of one request, so that it is answered in time.
const FETCH_MAX: usize = 16;
/// How long a store that did not answer is not asked again: whoever reads is told at once, and a commit
/// waits for it once and not for each batch.
const AWAY_FOR: Duration = Duration::from_secs(2);

/// Digest of an index, and a block's number.
type Key = ([u8; 32], usize);

/// Reads blocks.
#[derive(Debug)]
pub(crate) struct Blocks {
    objects: Option<Arc<dyn Objects>>,
    /// The most recently used first.
    cache: Mutex<VecDeque<(Key, Arc<Vec<u8>>)>>,
    /// Until when the store is not asked, and what it said.
    away: Mutex<Option<(Instant, String)>>,
    /// Set when the log closes: nobody waits for a store then.
    stop: Arc<AtomicBool>,
}

impl Blocks {
    /// Those of a store; of none there are errors that say so.
    pub(crate) fn of(store: Option<&ColdStore>) -> Self {
        Self {
            objects: store.map(ColdStore::objects),
            cache: Mutex::default(),
            away: Mutex::default(),
            stop: Arc::default(),
        }
    }

    /// Set, it ends whatever waits for the store.
    pub(crate) const fn stop(&self) -> &Arc<AtomicBool> {
        &self.stop
    }

    /// Fills `buf` with the bytes of the extent from `offset` on.
    fn read(&self, stored: &Stored, extent: &Path, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset.checked_add(buf.len() as u64);
        if end.is_none_or(|end| end > stored.len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut at = usize::try_from(offset).map_err(io::Error::other)?;
        let mut rest = buf;
        while !rest.is_empty() {
            let number = at / BLOCK_LEN;
            let block = match self.cached((stored.digest, number)) {
                Some(block) => block,
                None => {
                    let last = (at + rest.len() - 1) / BLOCK_LEN;
                    self.fetch_missing(stored, extent, number..last + 1)?
                }
            };
            let within = &block[at % BLOCK_LEN..];
            let len = within.len().min(rest.len());
            let (taken, behind) = rest.split_at_mut(len);
            taken.copy_from_slice(&within[..len]);
            (rest, at) = (behind, at + len);
        }
        Ok(())
    }

    fn cached(&self, key: Key) -> Option<Arc<Vec<u8>>> {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let at = cache.iter().position(|(known, _)| *known == key)?;
        let entry = cache.remove(at)?;
        let block = Arc::clone(&entry.1);
        cache.push_front(entry);
        Some(block)
    }

    /// Fetches the first of `wanted`, and with it those behind it that are not in memory either.
    /// Answers the first.
    fn fetch_missing(
        &self,
        stored: &Stored,
        extent: &Path,
        wanted: Range<usize>,
    ) -> io::Result<Arc<Vec<u8>>> {
        let first = wanted.start;
        let known = {
            let cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
            let is_known = |number: usize| {
                let key = (stored.digest, number);
                cache.iter().any(|(known, _)| *known == key)
            };
            let end = wanted.end.min(first + FETCH_MAX);
            (first + 1..end)
                .find(|number| is_known(*number))
                .unwrap_or(end)
        };
        let fetched = self.fetch(stored, extent, first..known)?;
        let fetched: Vec<_> = fetched.into_iter().map(Arc::new).collect();
        let answer = fetched.first().map(Arc::clone);
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        for (number, block) in (first..known).zip(fetched).rev() {
            cache.push_front(((stored.digest, number), block));
        }
        cache.truncate(CACHE_MAX);
        answer.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    /// Reads blocks from the store, past the cache.
    pub(super) fn fetch(
        &self,
        stored: &Stored,
        extent: &Path,
        blocks: Range<usize>,
    ) -> io::Result<Vec<Vec<u8>>> {
        let Some(objects) = &self.objects else {
            let extent = extent.to_owned();
            return Err(ColdError::NoStore { extent }.into());
        };
        let (object, store) = (stored.name(), objects.shown().to_owned());
        let range = stored.range_of(blocks.clone());
        let range = range.ok_or(io::ErrorKind::UnexpectedEof)?;
        let unreachable = |detail| ColdError::Unreachable {
            object: object.clone(),
            store: store.clone(),
            detail,
        };
        if let Some(detail) = self.is_away() {
            return Err(unreachable(detail).into());
        }
        let bytes = match objects.get(&object, range, &self.stop) {
            Ok(bytes) => bytes,
            Err(ObjectsError::Missing) => {
                return Err(ColdError::Missing { object, store }.into());
            }
            Err(ObjectsError::Unreachable(detail)) => {
                self.went_away(&detail);
                return Err(unreachable(detail).into());
            }
        };
        let mut rest: &[u8] = &bytes;
        let mut found = Vec::with_capacity(blocks.len());
        for number in blocks {
            let (raw, behind) = stored.block(number, rest).map_err(|what| {
                let (object, store) = (object.clone(), store.clone());
                let (byte, what) = (stored.offset_of(number), what.to_owned());
                ColdError::Damaged {
                    object,
                    store,
                    byte,
                    what,
                }
            })?;
            found.push(raw);
            rest = behind;
        }
        Ok(found)
    }

    fn is_away(&self) -> Option<String> {
        let away = self.away.lock().unwrap_or_else(PoisonError::into_inner);
        let (until, detail) = away.as_ref()?;
        (Instant::now() < *until).then(|| detail.clone())
    }

    fn went_away(&self, detail: &str) {
        let until = Instant::now() + AWAY_FOR;
        let mut away = self.away.lock().unwrap_or_else(PoisonError::into_inner);
        *away = Some((until, detail.to_owned()));
    }
}

/// An extent that is read from the store: a file for everybody above.
#[derive(Debug)]
pub(crate) struct StoredFile {
    extent: Box<Path>,
    stored: Stored,
    blocks: Arc<Blocks>,
}

impl StoredFile {
    pub(crate) fn new(extent: &Path, stored: Stored, blocks: Arc<Blocks>) -> Self {
        Self {
            extent: extent.into(),
            stored,
            blocks,
        }
    }
}

/// What is stored is never written.
fn read_only() -> io::Error {
    io::ErrorKind::ReadOnlyFilesystem.into()
}

impl DiskFile for StoredFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.stored.len)
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        // The first sector is in the record: a start needs nothing else of a sealed extent.
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let sector = start
            .checked_add(buf.len())
            .filter(|end| *end <= EXTENT_HEADER_LEN);
        if let Some(end) = sector {
            buf.copy_from_slice(&self.stored.header[start..end]);
            return Ok(());
        }
        self.blocks.read(&self.stored, &self.extent, buf, offset)
    }

    fn write_all_at(&self, _bytes: &[u8], _offset: u64) -> io::Result<()> {
        Err(read_only())
    }

    fn allocate(&self, _len: u64) -> io::Result<()> {
        Err(read_only())
    }

    fn write_back(&self) -> io::Result<()> {
        Err(read_only())
    }

    fn sync_data(&self, _point: SyncPoint) -> io::Result<()> {
        Err(read_only())
    }
}

#[cfg(test)]
mod tests;
