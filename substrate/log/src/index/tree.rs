//! A sorted table of entries of one width in pages: leaves in order, and above them, level by level,
//! the first key and the number of each page below. Written once, front to back, holding one page
//! per level in memory; read page by page, believing none of them further than its checksum.

use std::sync::Arc;

use super::page::{BODY_LEN, Kind, Page};
use super::pages::{PageSink, PageSource, RunError};
use crate::fields::Fields;

/// What the entries of a tree look like.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) kind: Kind,
    /// Bytes of an entry, and of the key at its start.
    pub(crate) width: usize,
    pub(crate) key_len: usize,
}

/// LIMIT: levels of a tree; with more than fifty entries a page, ten are never needed.
const LEVELS_MAX: usize = 10;
/// Bytes of a page number behind a key, above the leaves.
const CHILD_LEN: usize = 4;

impl Shape {
    /// Bytes of an entry on a page of this level.
    const fn width_at(&self, level: u8) -> usize {
        if level == 0 {
            self.width
        } else {
            self.key_len + CHILD_LEN
        }
    }
}

/// Where a tree is in its file: pages from `start` up to `end`, of which `root` is one. No pages,
/// no entries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Region {
    pub(crate) start: u32,
    pub(crate) end: u32,
    pub(crate) root: u32,
}

/// Writes a tree.
#[derive(Debug)]
pub(crate) struct TreeBuilder {
    shape: Shape,
    /// The page that is being filled, of each level.
    levels: Vec<Vec<u8>>,
    start: u32,
}

impl TreeBuilder {
    /// Its pages are the next of `sink`, which gets no others until [`TreeBuilder::finish`].
    pub(crate) fn new(shape: Shape, sink: &PageSink) -> Self {
        Self {
            shape,
            levels: vec![Vec::with_capacity(BODY_LEN)],
            start: sink.next_page(),
        }
    }

    /// Adds an entry, whose key is not below the one before.
    pub(crate) fn push(&mut self, entry: &[u8], sink: &mut PageSink) -> Result<(), RunError> {
        self.add(0, entry, sink)
    }

    fn add(&mut self, level: usize, entry: &[u8], sink: &mut PageSink) -> Result<(), RunError> {
        if self.levels[level].len() + entry.len() > BODY_LEN {
            self.flush(level, sink)?;
        }
        self.levels[level].extend_from_slice(entry);
        Ok(())
    }

    /// Writes the page of this level and notes it in the level above.
    fn flush(&mut self, level: usize, sink: &mut PageSink) -> Result<u32, RunError> {
        let number = self.write(level, sink)?;
        let mut above = self.levels[level][..self.shape.key_len].to_vec();
        above.extend_from_slice(&number.to_be_bytes());
        self.levels[level].clear();
        if self.levels.len() == level + 1 {
            self.levels.push(Vec::with_capacity(BODY_LEN));
        }
        self.add(level + 1, &above, sink)?;
        Ok(number)
    }

    fn write(&self, level: usize, sink: &mut PageSink) -> Result<u32, RunError> {
        let height = u8::try_from(level).expect("INVARIANT: a tree of u32 pages is not so high");
        let body = &self.levels[level];
        let count = body.len() / self.shape.width_at(height);
        let count = u16::try_from(count).expect("INVARIANT: a page has fewer than 4096 entries");
        sink.append(self.shape.kind, height, count, body)
    }

    pub(crate) fn finish(mut self, sink: &mut PageSink) -> Result<Region, RunError> {
        let (start, mut level) = (self.start, 0);
        if self.levels[0].is_empty() {
            return Ok(Region::default());
        }
        while level + 1 < self.levels.len() {
            self.flush(level, sink)?;
            level += 1;
        }
        let root = self.write(level, sink)?;
        Ok(Region {
            start,
            end: sink.next_page(),
            root,
        })
    }
}

/// Reads a tree.
#[derive(Debug)]
pub(crate) struct Tree<'a, S> {
    pub(crate) shape: Shape,
    pub(crate) region: Region,
    pub(crate) source: &'a S,
}

/// An entry of a tree: its page, and which one of the page.
#[derive(Debug)]
struct Spot {
    page: Arc<Page>,
    number: u32,
    slot: usize,
}

impl<'a, S: PageSource> Tree<'a, S> {
    /// The last entry whose key is not above `key`.
    pub(crate) fn floor<T>(
        &self,
        key: &[u8],
        decode: impl FnOnce(&[u8]) -> Option<T>,
    ) -> Result<Option<T>, RunError> {
        let Some(spot) = self.floor_spot(key)? else {
            return Ok(None);
        };
        let entries = self.entries(&spot.page, spot.number)?;
        let entry = entries.chunks_exact(self.shape.width).nth(spot.slot);
        match entry.and_then(decode) {
            Some(value) => Ok(Some(value)),
            None => Err(self.wrong(spot.number, "an entry of malformed fields")),
        }
    }

    fn floor_spot(&self, key: &[u8]) -> Result<Option<Spot>, RunError> {
        if self.region == Region::default() {
            return Ok(None);
        }
        let (mut number, mut due) = (self.region.root, None);
        for _ in 0..LEVELS_MAX {
            let page = self.page(number)?;
            let level = page.level();
            if due.is_some_and(|due| due != level) {
                return Err(self.wrong(number, "a page of another level"));
            }
            let (width, key_len) = (self.shape.width_at(level), self.shape.key_len);
            let entries = self.entries(&page, number)?;
            let Some(slot) = last_not_above(entries, width, key) else {
                return Ok(None);
            };
            let Some(below) = level.checked_sub(1) else {
                return Ok(Some(Spot { page, number, slot }));
            };
            let child = entries.get(slot * width + key_len..).unwrap_or_default();
            let Some(child) = Fields::new(child).array() else {
                return Err(self.wrong(number, "an entry that is cut off"));
            };
            (number, due) = (u32::from_be_bytes(child), Some(below));
        }
        Err(self.wrong(number, "too many levels"))
    }

    /// Its entries from the first whose key is not below `key` on, which may be an error.
    pub(crate) fn from(self, key: &[u8]) -> Result<Entries<'a, S>, RunError> {
        let Some(mut spot) = self.floor_spot(key)? else {
            return Ok(self.all());
        };
        let entries = self.entries(&spot.page, spot.number)?;
        let entry = entries.chunks_exact(self.shape.width).nth(spot.slot);
        if entry.is_some_and(|entry| !entry.starts_with(key)) {
            spot.slot += 1;
        }
        Ok(Entries {
            number: spot.number + 1,
            page: Some(spot),
            tree: self,
        })
    }

    /// All its entries.
    pub(crate) fn all(self) -> Entries<'a, S> {
        Entries {
            // The first page of a tree is its first leaf.
            number: self.region.start,
            page: None,
            tree: self,
        }
    }

    fn page(&self, number: u32) -> Result<Arc<Page>, RunError> {
        if !(self.region.start..self.region.end).contains(&number) {
            return Err(self.wrong(number, "a page outside its tree"));
        }
        let page = self.source.page(number)?;
        if page.is(self.shape.kind) {
            Ok(page)
        } else {
            Err(self.wrong(number, "a page of another kind"))
        }
    }

    fn entries<'p>(&self, page: &'p Page, number: u32) -> Result<&'p [u8], RunError> {
        let entries = page.entries(self.shape.width_at(page.level()));
        entries.ok_or_else(|| self.wrong(number, "more entries than fit"))
    }

    fn wrong(&self, number: u32, what: &'static str) -> RunError {
        self.source.wrong(number, what)
    }
}

/// Among sorted entries, the last whose key is not above `key`.
fn last_not_above(entries: &[u8], width: usize, key: &[u8]) -> Option<usize> {
    let (mut low, mut high) = (0, entries.len() / width);
    while low < high {
        let middle = low.midpoint(high);
        if entries[middle * width..][..key.len()] <= *key {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low.checked_sub(1)
}

/// The entries of a tree in order.
#[derive(Debug)]
pub(crate) struct Entries<'a, S> {
    tree: Tree<'a, S>,
    /// The leaf that is being read, and its next entry.
    page: Option<Spot>,
    /// The page after it.
    number: u32,
}

impl<S: PageSource> Entries<'_, S> {
    /// The next entry, if there is one.
    pub(crate) fn next<T>(
        &mut self,
        decode: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Option<T>, RunError> {
        loop {
            if let Some(spot) = &mut self.page {
                let entries = self.tree.entries(&spot.page, spot.number)?;
                let at = spot.slot * self.tree.shape.width;
                if let Some(entry) = entries.get(at..).filter(|rest| !rest.is_empty()) {
                    spot.slot += 1;
                    let decoded = decode(&entry[..self.tree.shape.width]);
                    let wrong = || self.tree.wrong(self.number, "an entry of malformed fields");
                    return decoded.map(Some).ok_or_else(wrong);
                }
            }
            if self.number >= self.tree.region.end {
                return Ok(None);
            }
            let (page, number) = (self.tree.page(self.number)?, self.number);
            self.number += 1;
            // Between the leaves are the pages above them.
            self.page = (page.level() == 0).then_some(Spot {
                page,
                number,
                slot: 0,
            });
        }
    }
}

#[cfg(test)]
mod tests;
