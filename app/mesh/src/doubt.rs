//! Which answers of the resolver count. One that was asked for before something changed may be from before
//! that change, if it concerns whom it is about; and none may undo one that was asked for later.
//!
//! Questions and changes are put in one order. Whoever asks takes a place in it first; whoever acts on the
//! answer looks, under the lock that it acts under, whether a change that concerns it came behind that place.

use std::collections::VecDeque;
use std::net::Ipv6Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tabbify_api::mesh::{Changed, PeerRecord};
use tabbify_types::{MeshKey, Tenant};

/// LIMIT: changes that are remembered. Who asked before the oldest of them asks again.
const CHANGES_MAX: usize = 256;

/// A place in the order of questions and changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Asked(u64);

/// The changes, in order with the questions.
#[derive(Debug)]
pub(crate) struct Doubts {
    /// Our own addresses, where they are known.
    ours: Option<Arc<[Ipv6Addr]>>,
    order: Mutex<Order>,
}

#[derive(Debug, Default)]
struct Order {
    last: u64,
    changes: VecDeque<(Asked, Changed)>,
    /// The newest change that is not remembered any more.
    forgotten: Asked,
}

/// What of a peer says which changes concern it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Concern<'a> {
    pub(crate) key: MeshKey,
    /// None where they are not known.
    pub(crate) addresses: Option<&'a [Ipv6Addr]>,
    /// Empty where they are not known.
    pub(crate) rules_of: &'a [Tenant],
}

impl<'a> Concern<'a> {
    pub(crate) fn of(record: &'a PeerRecord) -> Self {
        Self {
            key: record.key,
            addresses: Some(&record.addresses),
            rules_of: &record.rules_of,
        }
    }

    /// Of whoever has the key, of whom nothing else is known.
    pub(crate) const fn of_key(key: MeshKey) -> Self {
        Self {
            key,
            addresses: None,
            rules_of: &[],
        }
    }
}

impl Doubts {
    pub(crate) fn new(ours: Option<Arc<[Ipv6Addr]>>) -> Self {
        Self {
            ours,
            order: Mutex::default(),
        }
    }

    /// Somebody is about to ask.
    pub(crate) fn ask(&self) -> Asked {
        let mut order = self.order();
        order.last += 1;
        Asked(order.last)
    }

    /// Something is not as it was answered before. Whoever acts on a change says so first.
    pub(crate) fn add(&self, changed: Changed) {
        let mut order = self.order();
        order.last += 1;
        let at = Asked(order.last);
        if order.changes.len() >= CHANGES_MAX
            && let Some((oldest, _)) = order.changes.pop_front()
        {
            order.forgotten = oldest;
        }
        order.changes.push_back((at, changed));
    }

    /// Whether nothing that concerns it has changed since it was asked.
    pub(crate) fn is_current(&self, asked: Asked, concern: Concern<'_>) -> bool {
        let order = self.order();
        let since = order.changes.iter().rev();
        let mut since = since.take_while(|(at, _)| *at > asked);
        asked > order.forgotten && !since.any(|(_, changed)| self.concerns(changed, concern))
    }

    /// Whether what is known of the peer may be otherwise after this change.
    pub(crate) fn concerns(&self, changed: &Changed, peer: Concern<'_>) -> bool {
        match changed {
            Changed::Gone(key) => *key == peer.key,
            Changed::Rules(tenant) => peer.rules_of.is_empty() || peer.rules_of.contains(tenant),
            Changed::Machine(address) => match (peer.addresses, &self.ours) {
                (Some(theirs), Some(ours)) => theirs.contains(address) || ours.contains(address),
                (_, _) => true,
            },
            Changed::Everything => true,
        }
    }

    fn order(&self) -> MutexGuard<'_, Order> {
        self.order.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inner(n: u16) -> Ipv6Addr {
        Ipv6Addr::new(0xfd5a, 0x1f00, 1, n, 0, 0, 0, 1)
    }

    fn tenant(slug: &str) -> Tenant {
        slug.parse().unwrap()
    }

    fn record(n: u8, rules_of: &[&str]) -> PeerRecord {
        let addresses = vec![inner(n.into())];
        PeerRecord {
            rules_of: rules_of.iter().map(|slug| tenant(slug)).collect(),
            ..PeerRecord::unrestricted(MeshKey([n; 32]), addresses, Vec::new())
        }
    }

    #[test]
    fn a_change_overtakes_what_it_concerns() {
        let doubts = Doubts::new(Some(vec![inner(9)].into()));
        let (peer, shy) = (record(1, &["main", "system"]), record(2, &[]));
        let check = |changed: Changed, of_peer: bool, of_shy: bool| {
            let before = doubts.ask();
            doubts.add(changed.clone());
            let after = doubts.ask();
            for (record, is_concerned) in [(&peer, of_peer), (&shy, of_shy)] {
                let concern = Concern::of(record);
                let is_current = doubts.is_current(before, concern);
                assert_eq!(is_current, !is_concerned, "{changed:?} {record:?}");
                assert!(doubts.is_current(after, concern), "{changed:?} {record:?}");
            }
            // Of whom nothing is known, everything but another's end may be about.
            let nobody = Concern::of_key(MeshKey([3; 32]));
            let is_end = matches!(changed, Changed::Gone(_));
            assert_eq!(doubts.is_current(before, nobody), is_end);
        };
        check(Changed::Gone(peer.key), true, false);
        check(Changed::Rules(tenant("main")), true, true);
        check(Changed::Rules(tenant("other")), false, true);
        check(Changed::Machine(inner(1)), true, false);
        check(Changed::Machine(inner(5)), false, false);
        check(Changed::Machine(inner(9)), true, true);
        check(Changed::Everything, true, true);
    }

    #[test]
    fn who_asked_too_long_ago_asks_again() {
        let doubts = Doubts::new(None);
        let peer = record(1, &["main"]);
        let before = doubts.ask();
        for n in 0..CHANGES_MAX {
            doubts.add(Changed::Gone(MeshKey([7; 32])));
            assert!(doubts.is_current(before, Concern::of(&peer)), "{n}");
        }
        doubts.add(Changed::Gone(MeshKey([7; 32])));
        assert!(!doubts.is_current(before, Concern::of(&peer)));
        assert!(doubts.is_current(doubts.ask(), Concern::of(&peer)));
    }
}
