//! Makes runs: from the events of one extent, or from neighboring runs by merging them. A merge sees
//! the entries of both sides next to each other, so it checks what no single extent can show: that
//! no id occurs twice, and that the revisions of every key go on without a gap.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tabbify_types::{Position, Rev};

use super::Over;
use super::entry::{
    Entry, ExtentEntry, HashKey, IdEntry, KeyEntry, Locator, Place, SpanEntry, offset32, spread,
};
use super::filter::{self, FilterBuilder};
use super::page::Kind;
use super::pages::{PageSink, RunError};
use super::run::{self, Run, RunHeader};
use super::tree::{self, Entries, TreeBuilder};
use crate::error::OpenError;
use crate::frame::{Frame, FrameHash};
use crate::record::EventRef;
use crate::scan::Collect;

/// Names a run has while it is written, by who writes it; removed at every open.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Draft {
    /// The index of an extent that has just been closed.
    Sealed,
    /// Neighbors made one.
    Merged,
    /// What was damaged, made anew.
    Healed,
}

impl Draft {
    const fn name(self) -> &'static str {
        match self {
            Self::Sealed => "sealed.run",
            Self::Merged => "merged.run",
            Self::Healed => "healed.run",
        }
    }
}

/// Bytes of frames between two entries of the table that finds them.
pub(crate) const SPAN_LEN: u64 = 64 * 1024;

/// What is to be indexed of one closed extent.
#[derive(Debug)]
pub(crate) struct Gathered {
    hash: HashKey,
    ids: Vec<IdEntry>,
    keys: Vec<KeyEntry>,
    spans: Vec<SpanEntry>,
    /// The least and the greatest id.
    within: (u128, u128),
}

impl Collect for Gathered {
    fn frame(&mut self, frame: &Frame<'_>, offset: u64) -> Result<(), String> {
        push_span(&mut self.spans, frame.header.first, offset32(offset)?);
        Ok(())
    }

    fn event(&mut self, event: &EventRef<'_>, offset: u64) -> Result<(), String> {
        let (number, position) = (event.id.uuid().as_u128(), event.position);
        let (least, greatest) = self.within;
        self.within = (least.min(number), greatest.max(number));
        let batch = event.place;
        self.ids.push(IdEntry {
            id: spread(event.id),
            place: Place { position, batch },
        });
        self.keys.push(KeyEntry {
            hash: (self.hash)(event.segment, event.key),
            position,
            rev: event.rev,
            at: Locator::of(event.bytes, offset)?,
        });
        Ok(())
    }
}

impl Gathered {
    pub(crate) const fn new(hash: HashKey) -> Self {
        Self {
            hash,
            ids: Vec::new(),
            keys: Vec::new(),
            spans: Vec::new(),
            within: (u128::MAX, 0),
        }
    }

    /// Sorts, and finds what cannot be in one extent, which is at `path`.
    pub(crate) fn sort(&mut self, path: &Path) -> Result<(), OpenError> {
        self.ids.sort_unstable_by_key(Entry::order);
        self.keys.sort_unstable_by_key(Entry::order);
        let mut order = Order::default();
        let ids = self.ids.iter().try_for_each(|entry| order.id(entry));
        let keys = self.keys.iter().try_for_each(|entry| order.key(entry));
        ids.and(keys).map_err(|Disorder { position, what }| {
            let of_it = self.keys.iter().find(|entry| entry.position == position);
            let byte = of_it.map_or(0, |entry| u64::from(entry.at.offset));
            OpenError::damaged(path, byte, format!("position {position}: {what}"))
        })
    }
}

/// Notes a frame if it is some distance behind the one that was noted last.
pub(crate) fn push_span(spans: &mut Vec<SpanEntry>, first: Position, offset: u32) {
    let due = |last: &SpanEntry| u64::from(offset.saturating_sub(last.offset)) >= SPAN_LEN;
    if spans.last().is_none_or(due) {
        spans.push(SpanEntry { first, offset });
    }
}

/// Entries that contradict each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Disorder {
    pub(crate) position: Position,
    pub(crate) what: &'static str,
}

/// Looks at sorted entries one after the other.
#[derive(Debug, Default)]
pub(crate) struct Order {
    id: Option<u128>,
    sort: u128,
    /// The keys of this hash, and their last revisions: one of them, in practice.
    revs: Vec<(u32, Rev)>,
}

impl Order {
    fn id(&mut self, entry: &IdEntry) -> Result<(), Disorder> {
        let position = entry.place.position;
        if self.id.replace(entry.id) == Some(entry.id) {
            let what = "an event id that is in the log already";
            return Err(Disorder { position, what });
        }
        Ok(())
    }

    fn key(&mut self, entry: &KeyEntry) -> Result<(), Disorder> {
        if self.sort != entry.hash.sort {
            self.sort = entry.hash.sort;
            self.revs.clear();
        }
        let check = entry.hash.check;
        let Some((_, last)) = self.revs.iter_mut().find(|(known, _)| *known == check) else {
            // What is before these entries is not known here.
            self.revs.push((check, entry.rev));
            return Ok(());
        };
        let due = last.next();
        *last = entry.rev;
        if entry.rev == due {
            return Ok(());
        }
        Err(Disorder {
            position: entry.position,
            what: "a revision that does not follow the one before",
        })
    }
}

/// What a run says besides its entries.
#[derive(Debug, Clone, Copy)]
struct About {
    first: Position,
    last: Position,
    tip: (FrameHash, u64),
    tier: u8,
    ids_within: (u128, u128),
    id_count: u64,
    /// At least as many as there are different keys.
    key_count: u64,
}

/// Makes the run of one extent. `gathered` has been sorted.
pub(crate) fn of_extent(
    over: &Over,
    draft: Draft,
    gathered: &Gathered,
    extent: ExtentEntry,
) -> Result<Run, RunError> {
    let mut key_count = 0;
    let mut last = None;
    for entry in &gathered.keys {
        key_count += u64::from(last.replace(entry.hash.sort) != Some(entry.hash.sort));
    }
    let about = About {
        first: extent.first,
        last: extent.last,
        tip: (extent.hash, extent.epoch),
        tier: 0,
        ids_within: gathered.within,
        id_count: gathered.ids.len() as u64,
        key_count,
    };
    let mut builder = Builder::create(over, draft, about)?;
    let (mut ids, mut keys) = (gathered.ids.iter(), gathered.keys.iter());
    let (mut spans, mut extents) = (gathered.spans.iter(), [extent].into_iter());
    builder.ids(|| Ok(ids.next().copied()))?;
    builder.keys(|| Ok(keys.next().copied()))?;
    builder.spans(|| Ok(spans.next().copied()))?;
    builder.extents(|| Ok(extents.next()))?;
    builder.finish(over)
}

/// Makes one run of neighbors. `disorder` tells what is wrong with the log if it is.
pub(crate) fn merged(
    over: &Over,
    runs: &[Arc<Run>],
    disorder: impl Fn(Disorder) -> RunError,
) -> Result<Option<Run>, RunError> {
    let Some((first, last)) = runs.first().zip(runs.last()) else {
        return Ok(None);
    };
    let headers = || runs.iter().map(|run| &run.header);
    let count = |header: &RunHeader| header.last.get() - header.first.get() + 1;
    let tier = headers().map(|it| it.tier).max().unwrap_or(0);
    let about = About {
        first: first.header.first,
        last: last.header.last,
        tip: last.header.tip,
        tier: if headers().all(|it| it.tier == tier) {
            tier.saturating_add(1)
        } else {
            tier
        },
        ids_within: headers().fold((u128::MAX, 0), |(least, greatest), it| {
            (least.min(it.ids_within.0), greatest.max(it.ids_within.1))
        }),
        id_count: headers().map(count).sum(),
        key_count: headers().map(|it| it.key_count).sum(),
    };
    let mut builder = Builder::create(over, Draft::Merged, about)?;
    let mut order = Order::default();
    let mut ids = Merge::<IdEntry>::new(runs)?;
    builder.ids(|| {
        let next = ids.next()?;
        next.iter()
            .try_for_each(|entry| order.id(entry))
            .map_err(&disorder)?;
        Ok(next)
    })?;
    let mut keys = Merge::<KeyEntry>::new(runs)?;
    builder.keys(|| {
        let next = keys.next()?;
        next.iter()
            .try_for_each(|entry| order.key(entry))
            .map_err(&disorder)?;
        Ok(next)
    })?;
    let mut spans = Merge::<SpanEntry>::new(runs)?;
    builder.spans(|| spans.next())?;
    let mut extents = Merge::<ExtentEntry>::new(runs)?;
    builder.extents(|| extents.next())?;
    builder.finish(over).map(Some)
}

/// The entries of several runs in one order.
struct Merge<'a, E> {
    runs: Vec<(Entries<'a, Run>, Position, Option<E>)>,
    heap: BinaryHeap<Reverse<((u128, u64), usize)>>,
}

impl<'a, E: Entry> Merge<'a, E> {
    fn new(runs: &'a [Arc<Run>]) -> Result<Self, RunError> {
        let mut merge = Self {
            runs: Vec::with_capacity(runs.len()),
            heap: BinaryHeap::with_capacity(runs.len()),
        };
        for (index, run) in runs.iter().enumerate() {
            let run: &'a Run = run;
            let entries = run.tree::<E, Run>(run).all();
            merge.runs.push((entries, run.header.first, None));
            merge.advance(index)?;
        }
        Ok(merge)
    }

    /// Takes the waiting entry of a run and waits with its next one.
    fn advance(&mut self, index: usize) -> Result<Option<E>, RunError> {
        let (entries, base, waiting) = &mut self.runs[index];
        let next = entries.next(|bytes| E::decode(bytes, *base))?;
        if let Some(next) = &next {
            self.heap.push(Reverse((next.order(), index)));
        }
        Ok(std::mem::replace(waiting, next))
    }

    fn next(&mut self) -> Result<Option<E>, RunError> {
        match self.heap.pop() {
            Some(Reverse((_, index))) => self.advance(index),
            None => Ok(None),
        }
    }
}

/// A run that is being written, part after part.
struct Builder {
    path: PathBuf,
    sink: PageSink,
    header: RunHeader,
}

impl Builder {
    fn create(over: &Over, draft: Draft, about: About) -> Result<Self, RunError> {
        let (disk, path) = (&*over.disk, over.dir.join(draft.name()));
        super::remove(disk, &path).map_err(RunError::io("remove", &path))?;
        let file = disk.create(&path).map_err(RunError::io("create", &path))?;
        let id_filter = filter::Region::for_hashes(1, about.id_count);
        let keys_start = id_filter.start + id_filter.pages;
        let key_filter = filter::Region::for_hashes(keys_start, about.key_count);
        let first_page = key_filter.start + key_filter.pages;
        let none = tree::Region::default();
        Ok(Self {
            sink: PageSink::new(file, &path, first_page, Arc::clone(&over.stop)),
            path,
            header: RunHeader {
                log_id: over.log_id,
                first: about.first,
                last: about.last,
                tip: about.tip,
                tier: about.tier,
                ids_within: about.ids_within,
                key_count: about.key_count,
                pages: first_page,
                id_filter,
                key_filter,
                ids: none,
                keys: none,
                spans: none,
                extents: none,
            },
        })
    }

    fn ids(
        &mut self,
        mut next: impl FnMut() -> Result<Option<IdEntry>, RunError>,
    ) -> Result<(), RunError> {
        let mut filter = FilterBuilder::new(self.header.id_filter);
        self.header.ids = self.tree(|sink| {
            let entry = next()?;
            if let Some(entry) = &entry {
                filter.add(entry.id, sink)?;
            }
            Ok(entry)
        })?;
        filter.finish(&mut self.sink)
    }

    fn keys(
        &mut self,
        mut next: impl FnMut() -> Result<Option<KeyEntry>, RunError>,
    ) -> Result<(), RunError> {
        let mut filter = FilterBuilder::new(self.header.key_filter);
        self.header.keys = self.tree(|sink| {
            let entry = next()?;
            if let Some(entry) = &entry {
                filter.add(entry.hash.sort, sink)?;
            }
            Ok(entry)
        })?;
        filter.finish(&mut self.sink)
    }

    fn spans(
        &mut self,
        mut next: impl FnMut() -> Result<Option<SpanEntry>, RunError>,
    ) -> Result<(), RunError> {
        self.header.spans = self.tree(|_| next())?;
        Ok(())
    }

    fn extents(
        &mut self,
        mut next: impl FnMut() -> Result<Option<ExtentEntry>, RunError>,
    ) -> Result<(), RunError> {
        self.header.extents = self.tree(|_| next())?;
        Ok(())
    }

    fn tree<E: Entry>(
        &mut self,
        mut next: impl FnMut(&mut PageSink) -> Result<Option<E>, RunError>,
    ) -> Result<tree::Region, RunError> {
        let mut tree = TreeBuilder::new(E::SHAPE, &self.sink);
        while let Some(entry) = next(&mut self.sink)? {
            tree.push(&entry.encode(self.header.first), &mut self.sink)?;
        }
        tree.finish(&mut self.sink)
    }

    /// The header comes last: a run without one was not finished.
    fn finish(mut self, over: &Over) -> Result<Run, RunError> {
        let (disk, dir) = (&*over.disk, &*over.dir);
        self.header.pages = self.sink.next_page();
        self.sink.put(0, Kind::Header, &self.header.encode())?;
        let file = self.sink.finish()?;
        let path = run::path(dir, self.header.first, self.header.last);
        // Its name is not synced: a run that is gone after a loss of power is made again.
        disk.rename(&self.path, &path)
            .map_err(RunError::io("name", &path))?;
        Ok(Run::of(self.header, &path, file))
    }
}
