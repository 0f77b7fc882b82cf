//! Where everything is: the last revision of every key, the place of every id, the events of every
//! key, and the frames of every position, in memory that does not grow with the log.
//!
//! ```text
//!   positions   1 ················· 9000 │ ····· 9400 │ 9401 ·····
//!               runs: sorted files,      │ closed     │ active
//!               made of closed extents   │ extents    │ extent
//!               and merged over time     │ in memory, until a run covers them
//! ```
//!
//! Only the writer adds, to memory. `keeper` turns closed extents into runs and merges neighbors, on
//! threads of their own. A run is derived data: one that is missing, damaged or of another version is
//! made from the extents again, whoever comes across it.

mod build;
mod cache;
mod entry;
mod filter;
mod found;
mod heal;
mod keeper;
mod memory;
pub(crate) mod page;
mod pages;
mod run;
mod tree;

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use tabbify_types::{EventId, Position, Rev};

pub(crate) use cache::CACHE_LEN_MAX;
pub(crate) use entry::{ExtentEntry, HashKey, KeyHash, Locator, Place, spread};
pub(crate) use found::FoundRuns;
pub(crate) use heal::sealed;
pub(crate) use keeper::Duty;
pub(crate) use run::Run;

use crate::disk::Disk;
use crate::error::OpenError;
use crate::extent;
use crate::frame::Frame;
use crate::record::EventRef;
use crate::scan::{self, Collect, Tip};

use cache::PageCache;
use entry::{KeyEntry, SpanEntry};
use memory::Memory;
use pages::RunError;

/// LIMIT: closed extents whose index is in memory, if they are [`SEAL_LEN`] together; the writer waits
/// for their runs before it closes another. With [`EXTENT_EVENTS_MAX`] it bounds what is in memory.
const CLOSED_MAX: usize = 2;
/// Bytes of closed extents from which on they become runs: a start reads less than this in no time,
/// and a run takes more room than an extent of a few KiB.
pub(crate) const SEAL_LEN: u64 = 1024 * 1024;
/// LIMIT: events of one extent; the next one opens early. Only events of a few bytes come near.
pub(crate) const EXTENT_EVENTS_MAX: u64 = 512 * 1024;
/// LIMIT: runs that are made anew for one question.
const HEALS_MAX: usize = 64;

/// What the index is over.
#[derive(Debug, Clone)]
pub(crate) struct Over {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) dir: PathBuf,
    pub(crate) log_id: [u8; 16],
    pub(crate) hash: HashKey,
    /// LIMIT: bytes of pages of runs kept in memory.
    pub(crate) cache_len: usize,
    /// [`SEAL_LEN`], or less in tests.
    pub(crate) seal_len: u64,
    /// Set when the log closes.
    pub(crate) stop: Arc<AtomicBool>,
}

/// The index of an open log. The writer adds to it, readers ask it.
#[derive(Debug)]
pub(crate) struct Index {
    over: Over,
    /// What was sealed when the log was opened: bytes that were not read then.
    sealed_at_start: Position,
    cache: PageCache,
    parts: RwLock<Parts>,
    /// One run is made anew at a time, and one is sealed.
    healing: Mutex<()>,
    sealing: Mutex<()>,
    work: Mutex<Work>,
    changed: Condvar,
}

/// In position order, without a gap.
#[derive(Debug)]
struct Parts {
    runs: Arc<Vec<Arc<Run>>>,
    closed: VecDeque<Arc<Part>>,
    active: Part,
}

/// The index of one extent that no run covers.
#[derive(Debug)]
pub(crate) struct Part {
    first: Position,
    path: Arc<Path>,
    memory: Memory,
    spans: Vec<SpanEntry>,
    /// Where the record of each durable event is, from `first` on.
    records: Vec<Locator>,
    /// Where its last durable frame ends.
    end: u64,
}

/// What the threads of the index wait for.
#[derive(Debug, Default)]
struct Work {
    stopped: bool,
    /// Grows whenever there may be something to do.
    turn: u64,
    /// Why closed extents stay in memory.
    stuck: Option<String>,
    /// Everything that was sealed at the start has been verified.
    scrubbed: bool,
}

/// Where to start reading for a position.
#[derive(Debug, Clone)]
pub(crate) struct Located {
    pub(crate) extent: Arc<Path>,
    /// A frame starts here, and it or one behind it has the position.
    pub(crate) offset: u64,
    /// Behind the last frame that may be read.
    pub(crate) end: u64,
}

/// One event of a key.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) position: Position,
    /// Where exactly, if the index knows it.
    pub(crate) at: Option<(Arc<Path>, Locator)>,
}

impl Parts {
    /// The oldest closed extent, if it is to become a run.
    fn to_seal(&self, seal_len: u64) -> Option<&Arc<Part>> {
        let len: u64 = self.closed.iter().map(|part| part.end).sum();
        self.closed.front().filter(|_| len >= seal_len)
    }
}

impl Part {
    pub(crate) fn new(first: Position, path: &Path) -> Self {
        Self {
            first,
            path: path.into(),
            memory: Memory::default(),
            spans: Vec::new(),
            records: Vec::new(),
            end: extent::EXTENT_HEADER_LEN as u64,
        }
    }

    /// A durable frame.
    pub(crate) fn frame(&mut self, first: Position, offset: u64, len: u64) {
        let at = u32::try_from(offset).expect("INVARIANT: extents are at most 64 MiB");
        build::push_span(&mut self.spans, first, at);
        self.end = offset + len;
    }

    /// The event at a position, if it is durable and in this extent.
    fn found(&self, position: Position) -> Found {
        let index = position.get().checked_sub(self.first.get());
        let index = index.and_then(|index| usize::try_from(index).ok());
        let at = index.and_then(|index| self.records.get(index));
        Found {
            position,
            at: at.map(|at| (Arc::clone(&self.path), *at)),
        }
    }

    /// Takes what is in the extent already.
    pub(crate) const fn collect(&mut self, hash: HashKey) -> Reading<'_> {
        Reading { part: self, hash }
    }

    /// Reads the closed extent after `before`.
    pub(crate) fn read(over: &Over, path: &Path, before: Tip) -> Result<(Self, Tip), OpenError> {
        let mut part = Self::new(before.head.next(), path);
        let mut reading = part.collect(over.hash);
        let extent = scan::closed(&*over.disk, path, over.log_id, before, &mut reading)?;
        Ok((part, Tip::after(&extent)))
    }

    fn located(&self, position: Position) -> Option<Located> {
        let at = self.spans.partition_point(|span| span.first <= position);
        let span = self.spans[..at].last()?;
        Some(Located {
            extent: Arc::clone(&self.path),
            offset: u64::from(span.offset),
            end: self.end,
        })
    }
}

/// A part that is being filled from its extent.
#[derive(Debug)]
pub(crate) struct Reading<'a> {
    part: &'a mut Part,
    hash: HashKey,
}

impl Collect for Reading<'_> {
    fn frame(&mut self, frame: &Frame<'_>, offset: u64) -> Result<(), String> {
        let len = u64::from(frame.header.len);
        self.part.frame(frame.header.first, offset, len);
        Ok(())
    }

    fn event(&mut self, event: &EventRef<'_>, offset: u64) -> Result<(), String> {
        let EventRef {
            position, id, rev, ..
        } = *event;
        let (hash, text) = (
            (self.hash)(event.segment, event.key),
            (event.segment, event.key),
        );
        let memory = &mut self.part.memory;
        if memory.place(id).is_some() {
            return Err("an event id that is in the log already".to_owned());
        }
        let before = memory.head(hash, text.0, text.1);
        if let Some(due) = before.map(Rev::next).filter(|due| *due != rev) {
            return Err(format!("position {position}: revision {rev}, not {due}"));
        }
        let batch = event.place;
        memory.insert(hash, text, rev, id, Place { position, batch });
        self.part.records.push(Locator::of(event.bytes, offset)?);
        Ok(())
    }
}

/// Why no other extent may be closed now.
#[derive(Debug)]
pub(crate) enum NoRoom {
    /// The disk refuses the runs of the closed ones.
    Refused(String),
    /// The log is closing.
    Stopping,
}

impl Index {
    /// The index of a log of which `runs` and `closed` cover everything before `active`.
    pub(crate) fn new(
        over: Over,
        runs: Vec<Arc<Run>>,
        closed: VecDeque<Arc<Part>>,
        active: Part,
    ) -> Self {
        Self {
            sealed_at_start: runs.last().map_or(Position(0), |run| run.header.last),
            cache: PageCache::new(over.cache_len),
            over,
            parts: RwLock::new(Parts {
                runs: Arc::new(runs),
                closed,
                active,
            }),
            healing: Mutex::default(),
            sealing: Mutex::default(),
            work: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    pub(crate) const fn over(&self) -> &Over {
        &self.over
    }

    /// The last position that a run covered when the log was opened.
    pub(crate) const fn sealed_at_start(&self) -> Position {
        self.sealed_at_start
    }

    /// The last position that a run covers.
    pub(crate) fn sealed_upto(&self) -> Position {
        let parts = self.parts();
        parts.runs.last().map_or(Position(0), |run| run.header.last)
    }

    /// All that was sealed at the start has been read and verified.
    pub(crate) fn scrubbed(&self) {
        self.work().scrubbed = true;
        self.changed.notify_all();
    }

    fn parts(&self) -> RwLockReadGuard<'_, Parts> {
        self.parts.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn parts_mut(&self) -> RwLockWriteGuard<'_, Parts> {
        self.parts.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn runs(&self) -> Arc<Vec<Arc<Run>>> {
        Arc::clone(&self.parts().runs)
    }

    /// The hash of a key, for [`Index::history`].
    pub(crate) fn hash(&self, segment: &str, key: &str) -> KeyHash {
        (self.over.hash)(segment, key)
    }

    /// The last revision under a key; 0 if there is none.
    pub(crate) fn head(&self, segment: &str, key: &str) -> Result<Rev, OpenError> {
        self.head_of(self.hash(segment, key), segment, key)
    }

    fn head_of(&self, hash: KeyHash, segment: &str, key: &str) -> Result<Rev, OpenError> {
        let known = self.in_memory(|memory| memory.head(hash, segment, key));
        if let Some(rev) = known {
            return Ok(rev);
        }
        let rev = self.newest(|run| Ok(run.head(hash, &self.cache)?.map(|entry| entry.rev)))?;
        Ok(rev.unwrap_or_default())
    }

    /// Where an id is; `None` if it is nowhere.
    pub(crate) fn place(&self, id: EventId) -> Result<Option<Place>, OpenError> {
        let known = self.in_memory(|memory| memory.place(id));
        if known.is_some() {
            return Ok(known);
        }
        self.newest(|run| run.place(id, &self.cache))
    }

    /// What the newest part in memory says that has something to say.
    fn in_memory<T>(&self, ask: impl FnMut(&Memory) -> Option<T>) -> Option<T> {
        let parts = self.parts();
        let closed = parts.closed.iter().rev().map(|part| &part.memory);
        [&parts.active.memory]
            .into_iter()
            .chain(closed)
            .find_map(ask)
    }

    /// What the newest run says that has something to say.
    fn newest<T>(
        &self,
        ask: impl Fn(&Run) -> Result<Option<T>, RunError>,
    ) -> Result<Option<T>, OpenError> {
        self.ask(|runs| {
            for run in runs.iter().rev() {
                if let Some(answer) = ask(run).map_err(|error| (Arc::clone(run), error))? {
                    return Ok(Some(answer));
                }
            }
            Ok(None)
        })
    }

    /// An answer of the runs. One that is damaged is made anew, and all are asked again.
    fn ask<T>(
        &self,
        ask: impl Fn(&[Arc<Run>]) -> Result<T, (Arc<Run>, RunError)>,
    ) -> Result<T, OpenError> {
        for _ in 0..HEALS_MAX {
            match ask(&self.runs()) {
                Ok(answer) => return Ok(answer),
                Err((run, error)) => self.heal(&run, &error)?,
            }
        }
        let source = io::Error::other("its index is damaged as soon as it is made");
        Err(OpenError::io("read", &self.over.dir)(source))
    }

    /// Takes the next event of the log, which is pending, with its revision.
    pub(crate) fn insert(&self, (segment, key): (&str, &str), rev: Rev, id: EventId, place: Place) {
        let hash = self.hash(segment, key);
        let memory = &mut self.parts_mut().active.memory;
        memory.insert(hash, (segment, key), rev, id, place);
    }

    /// A frame of the active extent has become durable, with the records of its events.
    pub(crate) fn committed(&self, first: Position, offset: u64, len: u64, records: &[Locator]) {
        let active = &mut self.parts_mut().active;
        active.frame(first, offset, len);
        active.records.extend_from_slice(records);
    }

    /// Waits until another extent may be closed, while closed ones are turned into runs.
    pub(crate) fn room(&self) -> Result<(), NoRoom> {
        let mut work = self.work();
        while self.is_full() {
            if let Some(why) = &work.stuck {
                return Err(NoRoom::Refused(why.clone()));
            }
            if work.stopped {
                return Err(NoRoom::Stopping);
            }
            work = self
                .changed
                .wait(work)
                .unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }

    fn is_full(&self) -> bool {
        let parts = self.parts();
        parts.closed.len() >= CLOSED_MAX && parts.to_seal(self.over.seal_len).is_some()
    }

    /// Goes on in the extent at `path`, whose first event is `first`.
    pub(crate) fn next_extent(&self, first: Position, path: &Path) {
        let mut parts = self.parts_mut();
        let before = std::mem::replace(&mut parts.active, Part::new(first, path));
        // One without an event is replaced by the next, under the same name.
        if before.first < first {
            parts.closed.push_back(Arc::new(before));
        }
        drop(parts);
        self.wake();
    }

    /// Where to start reading for a durable position.
    pub(crate) fn locate(&self, position: Position) -> Result<Located, OpenError> {
        let nowhere = || {
            let what = format!("no frame holds position {position}");
            OpenError::damaged(&self.over.dir, 0, what)
        };
        let parts = self.parts();
        if position >= parts.active.first {
            return parts.active.located(position).ok_or_else(nowhere);
        }
        if let Some(part) = parts
            .closed
            .iter()
            .rev()
            .find(|part| position >= part.first)
        {
            return part.located(position).ok_or_else(nowhere);
        }
        drop(parts);
        self.ask(|runs| {
            let at = runs.partition_point(|run| run.header.first <= position);
            let Some(run) = runs[..at].last() else {
                return Ok(None);
            };
            let located = run.locate(position, &self.cache);
            let (span, extent) = located.map_err(|error| (Arc::clone(run), error))?;
            Ok(Some(Located {
                extent: self.path(extent.first),
                offset: u64::from(span.offset),
                end: u64::from(extent.end),
            }))
        })?
        .ok_or_else(nowhere)
    }

    fn path(&self, first: Position) -> Arc<Path> {
        extent::path(&self.over.dir, first).into()
    }

    /// Events of the keys of a hash after `after` and up to `upto`, in position order, at most
    /// `limit`. Events of another key may be among them.
    pub(crate) fn history(
        &self,
        hash: KeyHash,
        after: Position,
        upto: Position,
        limit: usize,
    ) -> Result<Vec<Found>, OpenError> {
        // One look at the parts: what is sealed meanwhile is in the memory or in the runs of it.
        let parts = self.parts();
        let unsealed = parts
            .closed
            .front()
            .map_or(parts.active.first, |it| it.first);
        let closed = parts.closed.iter().map(|part| &**part);
        let mut recent = Vec::new();
        for part in closed.chain([&parts.active]) {
            let room = limit - recent.len();
            let positions = part.memory.positions(hash, after, upto, room);
            recent.extend(positions.into_iter().map(|position| part.found(position)));
        }
        drop(parts);
        let mut found = Vec::new();
        if after.next() < unsealed {
            let upto = upto.min(Position(unsealed.get() - 1));
            found = self.ask(|runs| self.sealed(runs, hash, (after, upto), limit))?;
        }
        let room = limit - found.len();
        found.extend(recent.into_iter().take(room));
        Ok(found)
    }

    fn sealed(
        &self,
        runs: &[Arc<Run>],
        hash: KeyHash,
        within: (Position, Position),
        limit: usize,
    ) -> Result<Vec<Found>, (Arc<Run>, RunError)> {
        let mut found = Vec::new();
        for run in runs {
            let broken = |error| (Arc::clone(run), error);
            let room = limit - found.len();
            if room == 0 {
                break;
            }
            if run.header.last <= within.0 || run.header.first > within.1 {
                continue;
            }
            let mut entries = Vec::new();
            run.history(hash, within, room, &self.cache, &mut entries)
                .map_err(broken)?;
            self.name_extents(run, &entries, &mut found)
                .map_err(broken)?;
        }
        Ok(found)
    }

    /// Adds entries of a run with the extents that they are in.
    fn name_extents(
        &self,
        run: &Run,
        entries: &[KeyEntry],
        found: &mut Vec<Found>,
    ) -> Result<(), RunError> {
        let mut extent: Option<(Position, Arc<Path>)> = None;
        for entry in entries {
            let path = match &extent {
                Some((last, path)) if entry.position <= *last => Arc::clone(path),
                _ => {
                    let (_, within) = run.locate(entry.position, &self.cache)?;
                    let path = self.path(within.first);
                    extent = Some((within.last, Arc::clone(&path)));
                    path
                }
            };
            found.push(Found {
                position: entry.position,
                at: Some((path, entry.at)),
            });
        }
        Ok(())
    }

    /// The end of what runs cover.
    fn sealed_tip(runs: &[Arc<Run>], log_id: [u8; 16]) -> Tip {
        runs.last()
            .map_or_else(|| Tip::genesis(log_id), |run| run.tip())
    }
}

/// Removes a file that may not be there.
fn remove(disk: &dyn Disk, path: &Path) -> io::Result<()> {
    match disk.remove(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
