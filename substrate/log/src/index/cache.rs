//! Pages of run files in memory: a fixed number of them, whatever the length of the log.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::page::{PAGE_LEN, Page};

/// LIMIT: bytes of pages kept in memory, over all runs.
pub(crate) const CACHE_LEN_MAX: usize = 32 * 1024 * 1024;

/// A page of a run; runs are numbered as they are opened, and never alike.
type Key = (u64, u32);

/// Keeps the pages that are used, by the clock rule: the hand passes, and a page that has not been
/// used since it last passed goes.
#[derive(Debug)]
pub(crate) struct PageCache {
    slots_max: usize,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    places: HashMap<Key, usize>,
    slots: Vec<Slot>,
    hand: usize,
}

#[derive(Debug)]
struct Slot {
    key: Key,
    page: Arc<Page>,
    used: bool,
}

impl PageCache {
    /// A cache of at most `len` bytes of pages, at least one page.
    pub(crate) fn new(len: usize) -> Self {
        Self {
            slots_max: (len / PAGE_LEN).max(1),
            held: Mutex::default(),
        }
    }

    pub(crate) fn get(&self, key: Key) -> Option<Arc<Page>> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let place = *held.places.get(&key)?;
        let slot = &mut held.slots[place];
        slot.used = true;
        Some(Arc::clone(&slot.page))
    }

    pub(crate) fn put(&self, key: Key, page: Arc<Page>) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.places.contains_key(&key) {
            return;
        }
        let slot = Slot {
            key,
            page,
            used: false,
        };
        let place = held.slots.len();
        if place < self.slots_max {
            held.places.insert(key, place);
            held.slots.push(slot);
            return;
        }
        let place = held.victim();
        let gone = std::mem::replace(&mut held.slots[place], slot);
        held.places.remove(&gone.key);
        held.places.insert(key, place);
    }
}

impl Held {
    /// The slot to take; ends within two rounds, since the first clears every mark.
    fn victim(&mut self) -> usize {
        loop {
            let place = self.hand;
            self.hand = (self.hand + 1) % self.slots.len();
            if !std::mem::take(&mut self.slots[place].used) {
                return place;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::page::Kind;
    use super::*;

    #[test]
    fn it_is_bounded_and_keeps_what_is_used() {
        let cache = PageCache::new(4 * PAGE_LEN);
        let page = |n: u8| Arc::new(Page::seal(0, Kind::Ids, 0, 1, &[n]));
        cache.put((1, 0), page(0));
        for n in 1..200 {
            cache.put((1, u32::from(n)), page(n));
            let hot = cache.get((1, 0));
            assert_eq!(hot.map(|page| page.body()[0]), Some(0), "after {n}");
            let held = cache.held.lock().unwrap();
            assert!(held.slots.len() <= 4 && held.places.len() == held.slots.len());
        }
        let last = cache.get((1, 199));
        assert_eq!(last.map(|page| page.body()[0]), Some(199));
        assert!(cache.get((2, 0)).is_none() && cache.get((1, 1)).is_none());
    }
}
