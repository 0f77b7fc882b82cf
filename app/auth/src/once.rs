//! A short memory of what was used once, in front of the log: it keeps repetitions off it, and loses
//! nothing that matters in a restart, see [`Once::used`]. Between several issuers the log decides:
//! there the same thing is written under one key, once.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use tabbify_token::LEEWAY;
use tabbify_types::Timestamp;

/// LIMIT: ids remembered at one time. Only holders of registered keys can add one, each for at most
/// two minutes.
const IDS_MAX: usize = 4096;

/// Ids that were used and may not be again.
#[derive(Debug)]
pub(crate) struct Once {
    since: Timestamp,
    until: Mutex<BTreeMap<String, Timestamp>>,
}

/// How an id fared.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// It counts, and is remembered.
    First,
    /// It does not: it was used, or may have been.
    Again,
    /// Nothing can be remembered at the moment, so nothing is accepted.
    Full,
}

impl Once {
    /// Remembers from `since` on.
    pub(crate) const fn new(since: Timestamp) -> Self {
        Self {
            since,
            until: Mutex::new(BTreeMap::new()),
        }
    }

    /// Whether `id`, made at `made` and accepted by nobody from `exp` and the leeway on, is used
    /// for the first time.
    ///
    /// What was made before this memory began may have been used before it: it is refused, so that
    /// a restart opens no window. Times in tokens are whole seconds.
    pub(crate) fn used(&self, id: &str, made: Timestamp, exp: Timestamp, now: Timestamp) -> Use {
        if made.secs() < self.since.secs() {
            return Use::Again;
        }
        let mut until = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        if until.len() >= IDS_MAX {
            until.retain(|_, until| *until > now);
        }
        if until.contains_key(id) {
            return Use::Again;
        }
        if until.len() >= IDS_MAX {
            return Use::Full;
        }
        until.insert(id.to_owned(), exp.plus(LEEWAY));
        Use::First
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: u64) -> Timestamp {
        Timestamp::from_secs(secs)
    }

    #[test]
    fn once_is_once() {
        let once = Once::new(Timestamp::from_millis(1_000_900));
        assert_eq!(once.used("a", at(1000), at(1060), at(1000)), Use::First);
        assert_eq!(once.used("a", at(1000), at(1060), at(1080)), Use::Again);
        assert_eq!(once.used("b", at(999), at(1059), at(1000)), Use::Again);
        assert_eq!(once.used("c", at(1000), at(1060), at(1000)), Use::First);
    }

    #[test]
    fn memory_is_bounded_and_fails_closed() {
        let once = Once::new(at(0));
        for n in 0..IDS_MAX {
            assert_eq!(once.used(&n.to_string(), at(1), at(61), at(1)), Use::First);
        }
        assert_eq!(once.used("more", at(1), at(61), at(90)), Use::Full);
        assert_eq!(once.used("0", at(1), at(61), at(90)), Use::Again);
        assert_eq!(once.used("more", at(61), at(121), at(91)), Use::First);
    }
}
