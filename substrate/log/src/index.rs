//! What is kept in memory about all events: heads, ids, and where each frame lies.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::Path;
use std::sync::Arc;

use tabbify_types::{EventId, Position, Rev};

use crate::fields::size;
use crate::record::BatchPlace;

/// Heads per (segment, key) and the place of every id. Owned by the writer.
#[derive(Debug, Default)]
pub(crate) struct Index {
    heads: HashMap<String, HashMap<String, Rev>>,
    ids: HashMap<EventId, Place>,
}

/// Where an id is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) position: Position,
    pub(crate) batch: BatchPlace,
}

impl Index {
    /// The last revision under a key; 0 if there is none.
    pub(crate) fn head(&self, segment: &str, key: &str) -> Rev {
        self.heads
            .get(segment)
            .and_then(|keys| keys.get(key))
            .copied()
            .unwrap_or_default()
    }

    pub(crate) fn place(&self, id: EventId) -> Option<Place> {
        self.ids.get(&id).copied()
    }

    /// Takes the next event of a key and answers its revision.
    pub(crate) fn advance(&mut self, segment: &str, key: &str) -> Rev {
        if !self.heads.contains_key(segment) {
            self.heads.insert(segment.to_owned(), HashMap::new());
        }
        let keys = self
            .heads
            .get_mut(segment)
            .expect("INVARIANT: inserted above");
        if let Some(rev) = keys.get_mut(key) {
            *rev = rev.next();
            return *rev;
        }
        keys.insert(key.to_owned(), Rev(1));
        Rev(1)
    }

    /// Remembers an id; refuses one that is known.
    pub(crate) fn insert(&mut self, id: EventId, place: Place) -> Result<(), &'static str> {
        match self.ids.entry(id) {
            Entry::Occupied(_) => Err("an event id that is in the log already"),
            Entry::Vacant(vacant) => {
                vacant.insert(place);
                Ok(())
            }
        }
    }
}

/// Where every frame lies. Read by readers, extended by the writer after each sync.
#[derive(Debug, Default)]
pub(crate) struct Frames {
    extents: Vec<Arc<Path>>,
    frames: Vec<FrameAt>,
}

#[derive(Debug, Clone, Copy)]
struct FrameAt {
    first: Position,
    extent: usize,
    offset: u32,
    len: u32,
}

/// Neighboring frames of one extent, to be read at once.
#[derive(Debug)]
pub(crate) struct Span {
    pub(crate) extent: Arc<Path>,
    pub(crate) offset: u64,
    pub(crate) len: usize,
}

impl Frames {
    /// The frames that follow are in this file.
    pub(crate) fn push_extent(&mut self, path: &Path) {
        self.extents.push(path.into());
    }

    pub(crate) fn push(&mut self, first: Position, offset: u32, len: u32) {
        let extent = self.extents.len().checked_sub(1);
        let extent = extent.expect("INVARIANT: an extent is pushed before its frames");
        self.frames.push(FrameAt {
            first,
            extent,
            offset,
            len,
        });
    }

    pub(crate) const fn extent_count(&self) -> usize {
        self.extents.len()
    }

    pub(crate) const fn len(&self) -> usize {
        self.frames.len()
    }

    /// The frame with `position` and those after it, as long as all are within `len_max` bytes.
    pub(crate) fn span(&self, position: Position, len_max: usize) -> Option<Span> {
        let at = self
            .frames
            .partition_point(|frame| frame.first <= position)
            .checked_sub(1)?;
        let start = self.frames[at];
        let mut len = size(start.len);
        for frame in &self.frames[at + 1..] {
            if frame.extent != start.extent || len + size(frame.len) > len_max {
                break;
            }
            len += size(frame.len);
        }
        let extent = Arc::clone(&self.extents[start.extent]);
        Some(Span {
            extent,
            offset: u64::from(start.offset),
            len,
        })
    }
}
