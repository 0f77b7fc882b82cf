//! The index of the events that no run covers yet: those of one extent, in memory.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use tabbify_types::{EventId, Position, Rev};

use super::entry::{KeyHash, Place};

/// Ids and keys of the events of one extent.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    ids: HashMap<EventId, Place>,
    keys: HashMap<u128, History, BuildHasherDefault<AsIs>>,
    /// Keys whose hash another key had first: none, in practice.
    collided: Vec<(u128, History)>,
    /// Every segment once.
    segments: HashSet<Arc<str>>,
}

/// The events of one key in the extent.
#[derive(Debug)]
struct History {
    segment: Arc<str>,
    key: Box<str>,
    rev: Rev,
    positions: Positions,
}

/// Ascending. Most keys of an extent have one event.
#[derive(Debug)]
enum Positions {
    One(Position),
    Many(Vec<Position>),
}

impl Positions {
    fn as_slice(&self) -> &[Position] {
        match self {
            Self::One(position) => std::slice::from_ref(position),
            Self::Many(positions) => positions,
        }
    }

    fn push(&mut self, position: Position) {
        match self {
            Self::One(first) => *self = Self::Many(vec![*first, position]),
            Self::Many(positions) => positions.push(position),
        }
    }
}

impl History {
    fn is(&self, segment: &str, key: &str) -> bool {
        *self.key == *key && *self.segment == *segment
    }
}

impl Memory {
    pub(crate) fn place(&self, id: EventId) -> Option<Place> {
        self.ids.get(&id).copied()
    }

    /// The last revision of a key that has events here.
    pub(crate) fn head(&self, hash: KeyHash, segment: &str, key: &str) -> Option<Rev> {
        let history = self.histories(hash).find(|it| it.is(segment, key))?;
        Some(history.rev)
    }

    /// Positions of events of this hash, after `after` and up to `upto`, at most `limit`, ascending.
    pub(crate) fn positions(
        &self,
        hash: KeyHash,
        after: Position,
        upto: Position,
        limit: usize,
    ) -> Vec<Position> {
        let mut found = Vec::new();
        for history in self.histories(hash) {
            let all = history.positions.as_slice();
            let from = all.partition_point(|position| *position <= after);
            let rest = all[from..].iter().take_while(|position| **position <= upto);
            found.extend(rest.take(limit));
        }
        found.sort_unstable();
        found.truncate(limit);
        found
    }

    fn histories(&self, hash: KeyHash) -> impl Iterator<Item = &History> {
        let collided = self.collided.iter().filter(move |it| it.0 == hash.sort);
        let first = self.keys.get(&hash.sort).into_iter();
        first.chain(collided.map(|(_, history)| history))
    }

    /// Takes the next event of the extent.
    pub(crate) fn insert(
        &mut self,
        hash: KeyHash,
        (segment, key): (&str, &str),
        rev: Rev,
        id: EventId,
        place: Place,
    ) {
        self.ids.insert(id, place);
        let position = place.position;
        let known = match self.keys.get_mut(&hash.sort) {
            Some(first) if first.is(segment, key) => Some(first),
            _ => self
                .collided
                .iter_mut()
                .find(|(sort, history)| *sort == hash.sort && history.is(segment, key))
                .map(|(_, history)| history),
        };
        if let Some(history) = known {
            history.rev = rev;
            history.positions.push(position);
            return;
        }
        let history = History {
            segment: self.segment(segment),
            key: key.into(),
            rev,
            positions: Positions::One(position),
        };
        match self.keys.entry(hash.sort) {
            Entry::Vacant(vacant) => {
                vacant.insert(history);
            }
            Entry::Occupied(_) => self.collided.push((hash.sort, history)),
        }
    }

    fn segment(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.segments.get(text) {
            return Arc::clone(known);
        }
        let new: Arc<str> = text.into();
        self.segments.insert(Arc::clone(&new));
        new
    }
}

/// A hasher for what is a hash already.
#[derive(Debug, Default)]
pub(crate) struct AsIs(u64);

impl Hasher for AsIs {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u128(&mut self, value: u128) {
        let bytes = value.to_le_bytes();
        self.0 = u64::from_le_bytes(std::array::from_fn(|n| bytes[n]));
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
