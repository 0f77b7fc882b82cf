//! How much memory guests may have: each one what the manifest says, all of them a multiple of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use wasmtime::ResourceLimiter;

/// LIMIT: what all requests of an app may have at a time, as a multiple of what one may have.
const ALL_FACTOR: u64 = 8;

/// LIMIT: the same, at least, in bytes: small apps serve many requests at a time.
const ALL_MIN: u64 = 512 * 1024 * 1024;

/// LIMIT: entries of one table.
pub(super) const TABLE_ELEMENTS_MAX: usize = 100_000;

/// LIMIT: core instances, and tables, of one guest; its memories are fewer.
pub(super) const PARTS_MAX: usize = 256;

/// What all guests of an app share.
#[derive(Debug)]
pub(super) struct Pot {
    free: AtomicU64,
}

impl Pot {
    pub(super) fn new(one: u64) -> Self {
        let all = one.saturating_mul(ALL_FACTOR).max(ALL_MIN);
        Self {
            free: AtomicU64::new(all),
        }
    }

    fn take(&self, bytes: u64) -> bool {
        let less = |free: u64| free.checked_sub(bytes);
        self.free
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less)
            .is_ok()
    }

    fn give_back(&self, bytes: u64) {
        self.free.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// Who refused memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// The guest's own limit.
    Own,
    /// The limit of all guests together.
    Shared,
}

/// What one guest has taken.
#[derive(Debug)]
pub(super) struct Memory {
    pot: Arc<Pot>,
    max: u64,
    used: u64,
    growing: u64,
    refused: Option<Refused>,
}

impl Memory {
    pub(super) fn new(pot: Arc<Pot>, max: u64) -> Self {
        Self {
            pot,
            max,
            used: 0,
            growing: 0,
            refused: None,
        }
    }

    /// Whether the guest was refused memory, and by what. Guests rarely survive that: the trap
    /// that follows is explained by it.
    pub(super) const fn refused(&self) -> Option<Refused> {
        self.refused
    }

    pub(super) const fn max(&self) -> u64 {
        self.max
    }
}

impl ResourceLimiter for Memory {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false); // The guest's own declaration forbids it.
        }
        let more = desired.saturating_sub(current) as u64;
        let refused = if self.used.saturating_add(more) > self.max {
            Some(Refused::Own)
        } else if !self.pot.take(more) {
            Some(Refused::Shared)
        } else {
            self.used += more;
            self.growing = more;
            None
        };
        self.refused = refused.or(self.refused);
        Ok(refused.is_none())
    }

    fn memory_grow_failed(&mut self, _: wasmtime::Error) -> wasmtime::Result<()> {
        // The system had none to give, though we would have.
        let failed = std::mem::take(&mut self.growing);
        self.used -= failed;
        self.pot.give_back(failed);
        Ok(())
    }

    fn table_growing(
        &mut self,
        _: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        Ok(desired <= maximum.unwrap_or(usize::MAX).min(TABLE_ELEMENTS_MAX))
    }

    fn instances(&self) -> usize {
        PARTS_MAX
    }

    fn tables(&self) -> usize {
        PARTS_MAX
    }

    fn memories(&self) -> usize {
        PARTS_MAX
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.pot.give_back(self.used);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn one_guest_and_all_of_them() {
        let one = 128 * MIB as u64; // 1 GiB for all.
        let pot = Arc::new(Pot::new(one));
        let guest = || Memory::new(Arc::clone(&pot), one);
        let mut first = guest();
        assert!(first.memory_growing(0, 100 * MIB, None).unwrap());
        assert!(!first.memory_growing(100 * MIB, 129 * MIB, None).unwrap());
        assert_eq!(first.refused(), Some(Refused::Own));
        assert!(first.memory_growing(100 * MIB, 128 * MIB, None).unwrap());

        let mut others: Vec<Memory> = (0..7).map(|_| guest()).collect();
        for other in &mut others {
            assert!(other.memory_growing(0, 128 * MIB, None).unwrap());
        }
        let mut last = guest();
        assert!(!last.memory_growing(0, MIB, None).unwrap());
        assert_eq!(last.refused(), Some(Refused::Shared));
        drop(first);
        assert!(last.memory_growing(0, MIB, None).unwrap());
        drop((others, last));
        assert_eq!(pot.free.load(Ordering::Relaxed), 8 * one);
    }

    #[test]
    fn a_growth_that_failed_is_given_back() {
        let pot = Arc::new(Pot::new(MIB as u64));
        let mut guest = Memory::new(Arc::clone(&pot), MIB as u64);
        assert!(guest.memory_growing(0, MIB, None).unwrap());
        guest
            .memory_grow_failed(wasmtime::Error::msg("no memory"))
            .unwrap();
        assert!(guest.memory_growing(0, MIB, None).unwrap());
        // A declared maximum is the guest's own business.
        assert!(!guest.memory_growing(0, 2 * MIB, Some(MIB)).unwrap());
        assert_eq!(guest.refused(), None);
    }
}
