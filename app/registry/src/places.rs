//! How many connections one caller has: no app takes those of all.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Connections by caller; a caller without one has no entry.
#[derive(Debug)]
pub(crate) struct Places {
    each_max: usize,
    taken: Mutex<BTreeMap<IpAddr, usize>>,
}

/// One of a caller's connections; its place is free again when this is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    places: Arc<Places>,
    caller: IpAddr,
}

impl Places {
    pub(crate) fn new(each_max: usize) -> Arc<Self> {
        let taken = Mutex::default();
        Arc::new(Self { each_max, taken })
    }

    /// A place for one more connection, unless the caller has as many as it may.
    pub(crate) fn take(self: &Arc<Self>, caller: IpAddr) -> Option<Place> {
        let mut taken = self.taken();
        let count = taken.entry(caller).or_default();
        if *count >= self.each_max {
            return None;
        }
        *count += 1;
        drop(taken);
        let places = Arc::clone(self);
        Some(Place { places, caller })
    }

    fn taken(&self) -> MutexGuard<'_, BTreeMap<IpAddr, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        if let Some(count) = taken.get_mut(&self.caller) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.caller);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_its_own_and_gives_them_back() {
        let places = Places::new(2);
        let (one, other): (IpAddr, IpAddr) = ("::1".parse().unwrap(), "::2".parse().unwrap());
        let first = places.take(one);
        let second = places.take(one);
        assert!(first.is_some() && second.is_some() && places.take(one).is_none());
        assert!(places.take(other).is_some());
        drop(first);
        assert!(places.take(one).is_some());
        drop(second);
        assert!(places.taken().is_empty(), "nobody is remembered");
    }
}
