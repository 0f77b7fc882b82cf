//! Refused sign-ins, counted, and now and then written down: who is under attack can be seen in the
//! log, and nobody can fill the log by attacking.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use tabbify_types::Timestamp;
use tabbify_types::event::v1::SignInsRefused;

/// LIMIT: subjects that are counted by themselves until the next writing; the others are counted
/// together. So many events are written at once at most, and two for each way of signing in.
const SUBJECTS_MAX: usize = 64;

/// The counts since the last writing.
#[derive(Debug, Default)]
pub(crate) struct Refusals(Mutex<BTreeMap<(&'static str, Option<String>), Count>>);

#[derive(Debug, Clone, Copy)]
struct Count {
    all: u64,
    limited: u64,
    from: Timestamp,
    upto: Timestamp,
}

impl Refusals {
    /// Counts one refusal of `how`. `subject` is one that there is: what strangers type as their name
    /// may be anything, such as a password in the wrong field. `limited` ones were not looked at.
    pub(crate) fn count(
        &self,
        how: &'static str,
        subject: Option<&str>,
        limited: bool,
        now: Timestamp,
    ) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut key = (how, subject.map(str::to_owned));
        if counts.len() >= SUBJECTS_MAX && !counts.contains_key(&key) {
            key.1 = None;
        }
        let none = Count {
            all: 0,
            limited: 0,
            from: now,
            upto: now,
        };
        let count = counts.entry(key).or_insert(none);
        count.all += 1;
        count.limited += u64::from(limited);
        count.upto = now.max(count.upto);
    }

    /// What was counted, and begins anew.
    pub(crate) fn take(&self) -> Vec<SignInsRefused> {
        let counts = {
            let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *counts)
        };
        let events = counts
            .into_iter()
            .map(|((how, subject), count)| SignInsRefused {
                how: how.to_owned(),
                subject,
                count: count.all,
                limited: count.limited,
                from: count.from,
                upto: count.upto,
            });
        events.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_a_few_events() {
        let refusals = Refusals::default();
        let at = Timestamp::from_secs;
        for n in 0..10_000 {
            refusals.count(
                "password",
                Some(&format!("user:{}", n % 1000)),
                n % 2 == 0,
                at(n),
            );
            refusals.count("proof", None, false, at(n));
        }
        let events = refusals.take();
        assert!(events.len() <= SUBJECTS_MAX + 2, "{}", events.len());
        assert_eq!(events.iter().map(|event| event.count).sum::<u64>(), 20_000);
        assert_eq!(events.iter().map(|event| event.limited).sum::<u64>(), 5000);
        let proofs = events.iter().find(|event| event.how == "proof").unwrap();
        assert_eq!((proofs.from, proofs.upto), (at(0), at(9999)));
        assert!(refusals.take().is_empty());
    }
}
