//! How often somebody may fail: budgets by name, in tables that do not grow. Nobody is refused for
//! failures of which none were theirs, unless so many fail at once that they cannot be told apart.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tabbify_types::Timestamp;

/// LIMIT: names whose budgets are kept at one time; others then share one.
const NAMES_MAX: usize = 4096;
/// LIMIT: bytes of a name that count; longer ones are nobody's.
const NAME_LEN_MAX: usize = 160;

/// Budgets of one sort.
#[derive(Debug)]
pub(crate) struct Limiter {
    burst: u32,
    refill: Duration,
    budgets: Mutex<BTreeMap<String, Budget>>,
}

#[derive(Debug, Clone, Copy)]
struct Budget {
    left: u32,
    at: Timestamp,
}

impl Limiter {
    /// `burst` at once, then one every `refill`.
    pub(crate) const fn new(burst: u32, refill: Duration) -> Self {
        Self {
            burst,
            refill,
            budgets: Mutex::new(BTreeMap::new()),
        }
    }

    /// Takes one from the budget of `name`; `false` if nothing is left.
    pub(crate) fn take(&self, name: &str, now: Timestamp) -> bool {
        self.change(name, now, |budget| {
            let allowed = budget.left > 0;
            budget.left = budget.left.saturating_sub(1);
            allowed
        })
    }

    /// Gives one back that was no failure.
    pub(crate) fn give_back(&self, name: &str, now: Timestamp) {
        let burst = self.burst;
        self.change(name, now, |budget| {
            budget.left = budget.left.saturating_add(1).min(burst);
        });
    }

    fn change<T>(&self, name: &str, now: Timestamp, change: impl FnOnce(&mut Budget) -> T) -> T {
        let mut budgets = self.budgets.lock().unwrap_or_else(PoisonError::into_inner);
        let name = name.get(..NAME_LEN_MAX.min(name.len())).unwrap_or_default();
        let known = budgets.contains_key(name);
        if !known && budgets.len() >= NAMES_MAX {
            // A budget that is full again says nothing that a new one would not.
            budgets.retain(|_, budget| self.at(*budget, now).left < self.burst);
        }
        let name = match known || budgets.len() < NAMES_MAX {
            true => name,
            false => "",
        };
        let full = Budget {
            left: self.burst,
            at: now,
        };
        let budget = budgets.entry(name.to_owned()).or_insert(full);
        *budget = self.at(*budget, now);
        change(budget)
    }

    /// The budget as it is by now. What is left of a refill's time is not lost.
    fn at(&self, budget: Budget, now: Timestamp) -> Budget {
        let passed = now.millis().saturating_sub(budget.at.millis());
        let refill = u64::try_from(self.refill.as_millis())
            .unwrap_or(u64::MAX)
            .max(1);
        let left = budget
            .left
            .saturating_add(u32::try_from(passed / refill).unwrap_or(u32::MAX));
        if left >= self.burst {
            return Budget {
                left: self.burst,
                at: now,
            };
        }
        let spent = Duration::from_millis(passed / refill * refill);
        Budget {
            left,
            at: budget.at.plus(spent),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: u64) -> Timestamp {
        Timestamp::from_secs(secs)
    }

    fn allowed(limiter: &Limiter, name: &str, secs: u64) -> usize {
        (0..100).filter(|_| limiter.take(name, at(secs))).count()
    }

    #[test]
    fn budgets_are_each_ones_own_and_refill() {
        let limiter = Limiter::new(20, Duration::from_secs(3));
        assert_eq!(allowed(&limiter, "a", 1000), 20);
        assert_eq!(allowed(&limiter, "b", 1000), 20);
        assert_eq!(allowed(&limiter, "a", 1002), 0);
        assert_eq!(allowed(&limiter, "a", 1003), 1);
        // Two seconds here and one there are three.
        assert_eq!(allowed(&limiter, "a", 1005), 0);
        assert_eq!(allowed(&limiter, "a", 1006), 1);
        assert_eq!(allowed(&limiter, "a", 5000), 20);
        // A clock that goes back gives nothing and takes nothing.
        assert_eq!(allowed(&limiter, "a", 10), 0);
        limiter.give_back("a", at(10));
        assert_eq!(allowed(&limiter, "a", 10), 1);
        for _ in 0..100 {
            limiter.give_back("b", at(1000));
        }
        assert_eq!(
            allowed(&limiter, "b", 1000),
            20,
            "never more than the burst"
        );
    }

    #[test]
    fn the_table_does_not_grow_and_fails_closed() {
        let limiter = Limiter::new(2, Duration::from_secs(10));
        for n in 0..NAMES_MAX {
            assert!(limiter.take(&n.to_string(), at(0)));
        }
        // Those who come too late share one budget.
        let late = (0..100)
            .filter(|n| limiter.take(&format!("late-{n}"), at(0)))
            .count();
        assert_eq!(late, 2);
        let len = || {
            limiter
                .budgets
                .lock()
                .map(|budgets| budgets.len())
                .unwrap_or(0)
        };
        assert!(len() <= NAMES_MAX + 1);
        assert!(
            limiter.take("0", at(0)),
            "who was there before is not touched"
        );
        assert!(limiter.take("another", at(100)));
        assert!(len() < 10);
        assert!(limiter.take(&"é".repeat(500), at(100)));
    }
}
