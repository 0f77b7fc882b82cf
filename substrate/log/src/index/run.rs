//! A run: the sorted, checksummed index of the events of some neighboring closed extents, in a file
//! that never changes. It is derived from the extents and can be made from them again.
//!
//! ```text
//!   page 0          header
//!   then            filter of the ids · filter of the keys
//!   then            ids · keys · spans · extents, each a tree: see entry.rs
//! ```

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tabbify_types::{EventId, Position};

use super::cache::PageCache;
use super::entry::{
    Entry, ExtentEntry, IdEntry, KeyEntry, KeyHash, Place, SpanEntry, relative, spread,
};
use super::filter;
use super::page::{BODY_LEN, Kind, PAGE_LEN, Page};
use super::pages::{self, PageSource, RunError};
use super::tree::{self, Tree};
use crate::disk::{Disk, DiskFile};
use crate::fields::Fields;
use crate::frame::FrameHash;
use crate::scan::Tip;

const MAGIC: [u8; 8] = *b"tabINDEX";
/// The format that this version writes, and the only one that it reads: another is made anew.
const FORMAT: u16 = 1;
const EXTENSION: &str = "run";

/// What page 0 says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RunHeader {
    pub(crate) log_id: [u8; 16],
    /// The first and the last position that it covers.
    pub(crate) first: Position,
    pub(crate) last: Position,
    /// Hash of the last frame, and the epoch of its writer.
    pub(crate) tip: (FrameHash, u64),
    /// How often its entries have been merged.
    pub(crate) tier: u8,
    /// The least and the greatest id, as numbers.
    pub(crate) ids_within: (u128, u128),
    /// Different keys, or more.
    pub(crate) key_count: u64,
    pub(crate) pages: u32,
    pub(crate) id_filter: filter::Region,
    pub(crate) key_filter: filter::Region,
    pub(crate) ids: tree::Region,
    pub(crate) keys: tree::Region,
    pub(crate) spans: tree::Region,
    pub(crate) extents: tree::Region,
}

impl RunHeader {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(BODY_LEN);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&FORMAT.to_be_bytes());
        bytes.push(self.tier);
        bytes.extend_from_slice(&self.log_id);
        for number in [
            self.first.get(),
            self.last.get(),
            self.tip.1,
            self.key_count,
        ] {
            bytes.extend_from_slice(&number.to_be_bytes());
        }
        bytes.extend_from_slice(&self.tip.0.0);
        for number in [self.ids_within.0, self.ids_within.1] {
            bytes.extend_from_slice(&number.to_be_bytes());
        }
        bytes.extend_from_slice(&self.pages.to_be_bytes());
        for filter::Region { start, pages } in [self.id_filter, self.key_filter] {
            bytes.extend_from_slice(&start.to_be_bytes());
            bytes.extend_from_slice(&pages.to_be_bytes());
        }
        for tree::Region { start, end, root } in [self.ids, self.keys, self.spans, self.extents] {
            for number in [start, end, root] {
                bytes.extend_from_slice(&number.to_be_bytes());
            }
        }
        bytes
    }

    /// `None` for bytes that this version has not written.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields::new(bytes);
        let known = fields.array()? == MAGIC && fields.array()? == FORMAT.to_be_bytes();
        let (tier, log_id) = (fields.u8()?, fields.array()?);
        let mut numbers = [0; 4];
        for number in &mut numbers {
            *number = u64::from_be_bytes(fields.array()?);
        }
        let [first, last, epoch, key_count] = numbers;
        let hash = FrameHash(fields.array()?);
        let mut u128 = || fields.array().map(u128::from_be_bytes);
        let ids_within = (u128()?, u128()?);
        let mut u32 = || fields.array().map(u32::from_be_bytes);
        let pages = u32()?;
        let mut filter = || {
            let (start, pages) = (u32()?, u32()?);
            Some(filter::Region { start, pages })
        };
        let (id_filter, key_filter) = (filter()?, filter()?);
        let mut tree = || {
            let (start, end, root) = (u32()?, u32()?, u32()?);
            Some(tree::Region { start, end, root })
        };
        let (ids, keys, spans, extents) = (tree()?, tree()?, tree()?, tree()?);
        let fits = |start: u32, end: u32| start > 0 && start <= end && end <= pages;
        let filters = [id_filter, key_filter].into_iter();
        let trees = [ids, keys, spans, extents].into_iter();
        let sound = known
            && first > 0
            && first <= last
            && last - first < super::entry::RUN_EVENTS_MAX
            && filters
                .map(|it| (it.start, it.start.checked_add(it.pages)))
                .all(|(start, end)| end.is_some_and(|end| fits(start, end)))
            && trees
                .map(|it| (it.start, it.end))
                .all(|(start, end)| fits(start, end));
        sound.then_some(Self {
            log_id,
            first: Position(first),
            last: Position(last),
            tip: (hash, epoch),
            tier,
            ids_within,
            key_count,
            pages,
            id_filter,
            key_filter,
            ids,
            keys,
            spans,
            extents,
        })
    }
}

/// The name of the run over these positions.
pub(crate) fn path(dir: &Path, first: Position, last: Position) -> PathBuf {
    dir.join(format!(
        "{:020}-{:020}.{EXTENSION}",
        first.get(),
        last.get()
    ))
}

/// The positions that the name of a run gives; `None` if it is not the name of one.
pub(crate) fn named(path: &Path) -> Option<(Position, Position)> {
    let stem = path.file_name()?.to_str()?.strip_suffix(EXTENSION)?;
    let (first, last) = stem.strip_suffix('.')?.split_once('-')?;
    let (first, last) = (Position(first.parse().ok()?), Position(last.parse().ok()?));
    (self::path(path.parent()?, first, last) == *path).then_some((first, last))
}

/// An open run.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) header: RunHeader,
    pub(crate) path: PathBuf,
    /// Names its pages in the cache.
    number: u64,
    file: Arc<dyn DiskFile>,
}

impl Run {
    /// Opens the run at `path`, believing its header alone.
    pub(crate) fn open(disk: &dyn Disk, path: &Path) -> Result<Self, RunError> {
        let opened = disk.open(path).and_then(|file| {
            let (len, header) = (file.len()?, pages::read(&*file, 0)?);
            Ok((file, len, header))
        });
        let (file, len, page) = opened.map_err(RunError::io("open", path))?;
        let wrong = |what| RunError::Damaged {
            run: path.to_owned(),
            byte: 0,
            what,
        };
        let page = page.filter(|page| page.is(Kind::Header));
        let header = page.and_then(|page| RunHeader::decode(page.body()));
        let header = header.ok_or_else(|| wrong("no header of this version"))?;
        if len != u64::from(header.pages) * PAGE_LEN as u64 {
            return Err(wrong("a file of another length"));
        }
        if named(path) != Some((header.first, header.last)) {
            return Err(wrong("other positions than its name says"));
        }
        Ok(Self::of(header, path, file))
    }

    pub(crate) fn of(header: RunHeader, path: &Path, file: Arc<dyn DiskFile>) -> Self {
        static OPENED: AtomicU64 = AtomicU64::new(0);
        Self {
            header,
            path: path.to_owned(),
            number: OPENED.fetch_add(1, Ordering::Relaxed),
            file,
        }
    }

    /// Its pages through a cache.
    pub(crate) const fn through<'a>(&'a self, cache: &'a PageCache) -> Cached<'a> {
        Cached { run: self, cache }
    }

    /// Where an id is.
    pub(crate) fn place(&self, id: EventId, cache: &PageCache) -> Result<Option<Place>, RunError> {
        let number = id.uuid().as_u128();
        let (least, greatest) = self.header.ids_within;
        if number < least || number > greatest {
            return Ok(None);
        }
        let (pages, id) = (self.through(cache), spread(id));
        if !self.header.id_filter.may_hold(id, &pages)? {
            return Ok(None);
        }
        let found = self.floor::<IdEntry>(&pages, &id.to_be_bytes())?;
        Ok(found
            .filter(|entry| entry.id == id)
            .map(|entry| entry.place))
    }

    /// The last event of a key.
    pub(crate) fn head(
        &self,
        hash: KeyHash,
        cache: &PageCache,
    ) -> Result<Option<KeyEntry>, RunError> {
        let pages = self.through(cache);
        if !self.header.key_filter.may_hold(hash.sort, &pages)? {
            return Ok(None);
        }
        let mut upto = self.header.last;
        loop {
            let key = KeyEntry::key(hash.sort, upto, self.header.first);
            let found = self.floor::<KeyEntry>(&pages, &key)?;
            let Some(entry) = found.filter(|it| it.hash.sort == hash.sort) else {
                return Ok(None);
            };
            if entry.hash.check == hash.check {
                return Ok(Some(entry));
            }
            // Another key of this hash: what we look for is before it, or nowhere.
            if entry.position <= self.header.first {
                return Ok(None);
            }
            upto = Position(entry.position.get() - 1);
        }
    }

    /// Adds the events of a key after `after` and up to `upto`, in order, until `found` has `limit`.
    pub(crate) fn history(
        &self,
        hash: KeyHash,
        (after, upto): (Position, Position),
        limit: usize,
        cache: &PageCache,
        found: &mut Vec<KeyEntry>,
    ) -> Result<(), RunError> {
        let (pages, base) = (self.through(cache), self.header.first);
        if !self.header.key_filter.may_hold(hash.sort, &pages)? {
            return Ok(());
        }
        let from = KeyEntry::key(hash.sort, after.next().max(base), base);
        let mut entries = self.tree::<KeyEntry, _>(&pages).from(&from)?;
        while found.len() < limit {
            let entry = entries.next(|bytes| KeyEntry::decode(bytes, base))?;
            let of_hash = |it: &KeyEntry| it.hash.sort == hash.sort && it.position <= upto;
            let Some(entry) = entry.filter(of_hash) else {
                break;
            };
            if entry.hash.check == hash.check {
                found.push(entry);
            }
        }
        Ok(())
    }

    /// Where to start reading for a position, and the extent that it is in.
    pub(crate) fn locate(
        &self,
        position: Position,
        cache: &PageCache,
    ) -> Result<(SpanEntry, ExtentEntry), RunError> {
        let pages = self.through(cache);
        let key = relative(position, self.header.first).to_be_bytes();
        let span = self.floor::<SpanEntry>(&pages, &key)?;
        let extent = self.floor::<ExtentEntry>(&pages, &key)?;
        let of_one = span.zip(extent).filter(|(span, extent)| {
            span.first >= extent.first && span.offset < extent.end && position <= extent.last
        });
        of_one.ok_or_else(|| pages.wrong(self.header.spans.root, "spans and extents that disagree"))
    }

    /// The end of what it covers.
    pub(crate) const fn tip(&self) -> Tip {
        Tip {
            head: self.header.last,
            hash: self.header.tip.0,
            epoch: self.header.tip.1,
        }
    }

    /// Its tier, and how many events it covers.
    pub(crate) const fn size(&self) -> (u8, u64) {
        let header = &self.header;
        (header.tier, header.last.get() - header.first.get() + 1)
    }

    /// The extents that it covers.
    pub(crate) fn extents(&self) -> Result<Vec<ExtentEntry>, RunError> {
        let base = self.header.first;
        let mut entries = self.tree::<ExtentEntry, _>(self).all();
        let mut extents = Vec::new();
        while let Some(extent) = entries.next(|bytes| ExtentEntry::decode(bytes, base))? {
            extents.push(extent);
        }
        Ok(extents)
    }

    fn floor<E: Entry>(&self, pages: &Cached<'_>, key: &[u8]) -> Result<Option<E>, RunError> {
        let base = self.header.first;
        self.tree::<E, _>(pages)
            .floor(key, |bytes| E::decode(bytes, base))
    }

    /// One of its trees, with pages from `source`.
    pub(crate) const fn tree<'a, E: Entry, S>(&self, source: &'a S) -> Tree<'a, S> {
        let region = match E::SHAPE.kind {
            Kind::Ids => self.header.ids,
            Kind::Keys => self.header.keys,
            Kind::Spans => self.header.spans,
            _ => self.header.extents,
        };
        Tree {
            shape: E::SHAPE,
            region,
            source,
        }
    }

    fn read(&self, number: u32) -> Result<Arc<Page>, RunError> {
        let read = pages::read(&*self.file, number).map_err(RunError::io("read", &self.path))?;
        let page = read.ok_or_else(|| self.wrong(number, "a page that contradicts its checksum"));
        page.map(Arc::new)
    }

    fn wrong(&self, number: u32, what: &'static str) -> RunError {
        RunError::Damaged {
            run: self.path.clone(),
            byte: super::page::offset(number),
            what,
        }
    }
}

/// A run read through the cache: what is looked up.
#[derive(Debug)]
pub(crate) struct Cached<'a> {
    run: &'a Run,
    cache: &'a PageCache,
}

impl PageSource for Cached<'_> {
    fn page(&self, number: u32) -> Result<Arc<Page>, RunError> {
        let key = (self.run.number, number);
        if let Some(page) = self.cache.get(key) {
            return Ok(page);
        }
        let page = self.run.read(number)?;
        self.cache.put(key, Arc::clone(&page));
        Ok(page)
    }

    fn wrong(&self, number: u32, what: &'static str) -> RunError {
        self.run.wrong(number, what)
    }
}

/// A run read past the cache: what is read once, front to back.
impl PageSource for Run {
    fn page(&self, number: u32) -> Result<Arc<Page>, RunError> {
        self.read(number)
    }

    fn wrong(&self, number: u32, what: &'static str) -> RunError {
        Self::wrong(self, number, what)
    }
}
