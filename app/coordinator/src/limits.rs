//! How much somebody may ask: budgets by name, in a table that does not grow.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// LIMIT: names whose budgets are kept at one time; those that come then share one.
const NAMES_MAX: usize = 4096;

/// Budgets of one sort.
#[derive(Debug)]
pub(crate) struct Limiter<K> {
    burst: u32,
    refill: Duration,
    budgets: Mutex<BTreeMap<Option<K>, Budget>>,
}

#[derive(Debug, Clone, Copy)]
struct Budget {
    left: u32,
    /// Up to when it was filled again.
    at: Instant,
}

impl<K: Ord + Clone> Limiter<K> {
    /// `burst` at once, then one every `refill`.
    pub(crate) const fn new(burst: u32, refill: Duration) -> Self {
        Self {
            burst,
            refill,
            budgets: Mutex::new(BTreeMap::new()),
        }
    }

    /// Takes one from the budget of `name`; false if nothing is left.
    pub(crate) fn take(&self, name: &K) -> bool {
        let now = Instant::now();
        let mut budgets = self.budgets.lock().unwrap_or_else(PoisonError::into_inner);
        let mut name = Some(name.clone());
        if !budgets.contains_key(&name) && budgets.len() >= NAMES_MAX {
            // A budget that is full again says nothing that a new one would not.
            budgets.retain(|_, budget| self.filled(*budget, now).left < self.burst);
            if budgets.len() >= NAMES_MAX {
                name = None;
            }
        }
        let full = Budget {
            left: self.burst,
            at: now,
        };
        let budget = budgets.entry(name).or_insert(full);
        *budget = self.filled(*budget, now);
        let allowed = budget.left > 0;
        budget.left = budget.left.saturating_sub(1);
        allowed
    }

    /// The budget as it is by now. What is left of a refill's time is not lost.
    fn filled(&self, budget: Budget, now: Instant) -> Budget {
        let refill = self.refill.as_nanos().max(1);
        let passed = now.saturating_duration_since(budget.at).as_nanos() / refill;
        let passed = u32::try_from(passed).unwrap_or(u32::MAX);
        let left = budget.left.saturating_add(passed);
        if left >= self.burst {
            return Budget {
                left: self.burst,
                at: now,
            };
        }
        Budget {
            left,
            at: budget.at + self.refill * passed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_budget_is_spent_and_filled_again() {
        let limiter = Limiter::new(3, Duration::from_secs(1));
        let taken = |name: u32| (0..10).filter(|_| limiter.take(&name)).count();
        assert_eq!(taken(1), 3);
        assert_eq!(taken(2), 3, "each has its own");
        tokio::time::advance(Duration::from_millis(2_500)).await;
        assert_eq!(taken(1), 2);
        tokio::time::advance(Duration::from_millis(500)).await;
        assert_eq!(taken(1), 1, "the half second was not lost");
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!(taken(1), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn names_without_end_share_a_budget() {
        let limiter = Limiter::new(1, Duration::from_secs(1));
        let names = u32::try_from(NAMES_MAX).unwrap();
        assert!((0..names).all(|name| limiter.take(&name)));
        assert!(limiter.take(&names));
        assert!(!limiter.take(&(names + 1)), "the table does not grow");
        assert!(limiter.budgets.lock().unwrap().len() <= NAMES_MAX + 1);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(limiter.take(&(names + 2)), "there is room again");
    }
}
