//! What members say about themselves now and then: where they may be reached, that they live. In memory
//! only, and forgotten unless it is repeated.
//!
//! A report counts for its reporter alone: where a key may be reached is looked up under the machine that
//! holds the key by the log, so that nobody can say it for another.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};

use tabbify_api::coordinator::{CANDIDATES_MAX, Reachable};
use tabbify_types::{HostName, MeshKey, Timestamp};
use tokio::time::Instant;

pub use tabbify_membership::REPORT_LIFE;
/// LIMIT: keys of one machine.
pub(crate) const KEYS_PER_HOST_MAX: usize = 16 * 1024;

/// What was heard, by machine. Only members have a place here, so there are as many as there are numbers.
#[derive(Debug, Default)]
pub(crate) struct Soft(Mutex<BTreeMap<HostName, Heard>>);

#[derive(Debug, Default)]
struct Heard {
    last: Timestamp,
    /// The same by a clock that nobody sets.
    at: Option<Instant>,
    /// When it joined here, by the same clock.
    joined: Option<Instant>,
    keys: BTreeMap<MeshKey, Known>,
}

#[derive(Debug)]
struct Known {
    candidates: Vec<SocketAddr>,
    until: Timestamp,
    /// They are others than whoever asked was told.
    untold: bool,
}

/// What came of a report.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    /// Whether all of it found room.
    pub(crate) fits: bool,
    /// Keys of it that are to be reached elsewhere than was told, until [`Soft::told`] says that it was.
    pub(crate) moved: Vec<MeshKey>,
}

impl Soft {
    /// Takes what `host`, or an instance on it, reports.
    pub(crate) fn report(&self, host: &HostName, keys: Vec<Reachable>, now: Timestamp) -> Taken {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let heard = all.entry(host.clone()).or_default();
        heard.last = heard.last.max(now);
        heard.at = Some(Instant::now());
        let (mut fits, mut moved) = (true, Vec::new());
        for Reachable {
            key,
            mut candidates,
        } in keys
        {
            candidates.truncate(CANDIDATES_MAX);
            if candidates.is_empty() && !heard.keys.contains_key(&key) {
                continue;
            }
            if heard.keys.len() >= KEYS_PER_HOST_MAX && !heard.keys.contains_key(&key) {
                heard.keys.retain(|_, known| known.until > now);
            }
            if heard.keys.len() >= KEYS_PER_HOST_MAX && !heard.keys.contains_key(&key) {
                fits = false;
                continue;
            }
            // What is taken back is forgotten like what is not repeated.
            let until = match candidates.is_empty() {
                true => now,
                false => now.plus(REPORT_LIFE),
            };
            let before = heard.keys.get(&key);
            let untold = before
                .is_none_or(|before| before.untold || !is_same(&before.candidates, &candidates));
            if untold {
                moved.push(key);
            }
            let known = Known {
                candidates,
                until,
                untold,
            };
            heard.keys.insert(key, known);
        }
        Taken { fits, moved }
    }

    /// Whoever asked for the key was told that it is to be reached elsewhere.
    pub(crate) fn told(&self, host: &HostName, key: &MeshKey) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = all.get_mut(host).and_then(|heard| heard.keys.get_mut(key));
        if let Some(known) = known {
            known.untold = false;
        }
    }

    /// Where `key`, which `host` holds, may be reached; none if nothing was heard lately.
    pub(crate) fn candidates(
        &self,
        host: &HostName,
        key: &MeshKey,
        now: Timestamp,
    ) -> Option<Vec<SocketAddr>> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = all.get(host)?.keys.get(key)?;
        (known.until > now).then(|| known.candidates.clone())
    }

    /// When a machine was last heard.
    pub(crate) fn last_heard(&self, host: &HostName) -> Option<Timestamp> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let heard = all.get(host)?;
        heard.at.map(|_| heard.last)
    }

    /// A machine has joined here, or again.
    pub(crate) fn joined(&self, host: &HostName) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(host.clone()).or_default().joined = Some(Instant::now());
    }

    /// Its last sign of life: that it joined, or what it reported since.
    pub(crate) fn sign_of_life(&self, host: &HostName) -> Option<Instant> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let heard = all.get(host)?;
        heard.at.max(heard.joined)
    }

    /// When a machine was last heard by the clock that only ever goes forwards.
    pub(crate) fn heard_at(&self, host: &HostName) -> Option<Instant> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(host)?.at
    }

    /// Forgets a machine.
    pub(crate) fn forget(&self, host: &HostName) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(host);
    }
}

/// Whether they are the same, in any order: which is best may change with every packet.
fn is_same(before: &[SocketAddr], after: &[SocketAddr]) -> bool {
    let has = |all: &[SocketAddr], some: &[SocketAddr]| some.iter().all(|one| all.contains(one));
    has(before, after) && has(after, before)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

    fn key(n: usize) -> MeshKey {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&n.to_be_bytes());
        MeshKey(bytes)
    }

    fn reachable(n: usize, port: u16) -> Reachable {
        Reachable {
            key: key(n),
            candidates: vec![SocketAddr::from(([127, 0, 0, 1], port)); 100],
        }
    }

    #[test]
    fn a_report_counts_for_its_reporter_and_for_a_while() {
        let soft = Soft::default();
        let (box1, box2): (HostName, HostName) = ("box1".parse().unwrap(), "box2".parse().unwrap());
        assert!(soft.report(&box1, vec![reachable(1, 1)], NOW).fits);
        assert!(soft.report(&box2, vec![reachable(1, 2)], NOW).fits);
        let at = |host: &HostName, now: Timestamp| soft.candidates(host, &key(1), now);
        assert_eq!(at(&box1, NOW).unwrap().len(), CANDIDATES_MAX);
        assert_eq!(
            at(&box1, NOW).unwrap()[0].port(),
            1,
            "box2 says nothing for box1"
        );
        assert_eq!(at(&box1, NOW.plus(REPORT_LIFE)), None);
        let later = NOW.plus(REPORT_LIFE / 2);
        assert!(soft.report(&box1, vec![reachable(1, 3)], later).fits);
        assert_eq!(at(&box1, NOW.plus(REPORT_LIFE)).unwrap()[0].port(), 3);
        assert_eq!(soft.last_heard(&box1), Some(later));
        soft.forget(&box1);
        assert_eq!(at(&box1, later), None);
        assert_eq!(soft.last_heard(&box1), None);
    }

    #[test]
    fn a_machine_has_room_for_so_many_keys() {
        let soft = Soft::default();
        let host: HostName = "box1".parse().unwrap();
        for n in 0..KEYS_PER_HOST_MAX {
            assert!(soft.report(&host, vec![reachable(n, 1)], NOW).fits);
        }
        let one_more = || vec![reachable(KEYS_PER_HOST_MAX, 1)];
        assert!(!soft.report(&host, one_more(), NOW).fits);
        assert!(
            soft.report(&host, vec![reachable(0, 2)], NOW).fits,
            "a known one"
        );
        let later = NOW.plus(REPORT_LIFE);
        assert!(soft.report(&host, one_more(), later).fits);
        assert_eq!(soft.candidates(&host, &key(1), later), None);
    }

    #[test]
    fn who_moves_is_told_of_until_it_was() {
        let soft = Soft::default();
        let host: HostName = "box1".parse().unwrap();
        let ports = |ports: &[u16]| {
            let at = |port: &u16| SocketAddr::from(([127, 0, 0, 1], *port));
            let candidates = ports.iter().map(at).collect();
            vec![Reachable {
                key: key(1),
                candidates,
            }]
        };
        let moved = |at: &[u16]| !soft.report(&host, ports(at), NOW).moved.is_empty();
        assert!(!moved(&[]), "nobody knew of any");
        assert!(moved(&[1, 2]) && moved(&[1, 2]), "until it is told");
        soft.told(&host, &key(1));
        assert!(!moved(&[1, 2]) && !moved(&[2, 1]), "the same again");
        assert!(moved(&[1]) && moved(&[1, 2]), "nobody was told of either");
        soft.told(&host, &key(1));
        assert!(moved(&[]));
        assert_eq!(soft.candidates(&host, &key(1), NOW), None);
        soft.told(&host, &key(1));
        assert!(!moved(&[]) && moved(&[1]));
    }
}
