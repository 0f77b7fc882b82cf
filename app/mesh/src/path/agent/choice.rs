//! The choice among the paths that an agent knows.

use std::net::SocketAddr;

use smoltcp::time::{Duration, Instant};

use super::{Agent, STALE, TRUST};
use crate::path::known::Known;
use crate::path::surroundings::Side;
use crate::path::{CandidateKind, Path};

/// LIMIT: paths of one peer that are kept in mind.
const PATHS_MAX: usize = 48;
/// A path of the same class must be faster by this share and this much to be worth a change.
const FASTER_PERCENT: u32 = 70;
const FASTER: Duration = Duration::from_millis(5);

impl Agent {
    /// Chooses the best of the proven paths, if it is better than that in use.
    pub(super) fn choose(&mut self, now: Instant) {
        let best = self
            .paths
            .iter()
            .filter(|known| self.is_fit(known.path, now))
            .min_by_key(|known| (known.is_held(now), known.rank()));
        let Some(best) = best else { return };
        // A relay that is there is good enough not to be left for what was lost a moment ago.
        let is_good = |current: &Path| match current {
            Path::Relayed(..) => self.is_sure(*current, now),
            Path::Direct(_) | Path::Spare(..) => self.is_fit(*current, now),
        };
        let Some(current) = self.current.filter(is_good) else {
            let path = best.path;
            return self.adopt(path);
        };
        if best.path == current || best.is_held(now) {
            return;
        }
        let Some(used) = self.known(current) else {
            return;
        };
        let is_better = best.class() < used.class()
            || (best.class() == used.class() && is_much_faster(best.rtt, used.rtt));
        if is_better {
            let path = best.path;
            self.adopt(path);
        }
    }

    /// Whether a path may be chosen: proven not long ago, over a relay that we have.
    pub(super) fn is_fit(&self, path: Path, now: Instant) -> bool {
        let is_there = match path {
            Path::Relayed(relay, _) => self.around.side().relays.contains(&relay),
            Path::Direct(_) | Path::Spare(..) => true,
        };
        is_there
            && self
                .known(path)
                .is_some_and(|known| known.is_proven(TRUST, now))
    }

    pub(super) fn adopt(&mut self, path: Path) {
        if self.current == Some(path) {
            return;
        }
        self.meet(path);
        tracing::debug!(from = ?self.current, to = ?path, "path changes");
        if self.current.is_some() {
            self.changes += 1;
        }
        self.current = Some(path);
        self.trust();
        if path.is_relayed() {
            self.next_round = None;
        } else {
            self.failures = 0;
        }
    }

    /// Whether data on it needs no company.
    pub(super) fn is_sure(&self, path: Path, now: Instant) -> bool {
        match path {
            Path::Relayed(relay, _) => self.around.side().relays.contains(&relay),
            Path::Direct(_) | Path::Spare(..) => self
                .known(path)
                .is_some_and(|known| known.is_heard(STALE, now)),
        }
    }

    /// The relay to use: a proven one before the others, the fastest first.
    pub(super) fn relay(&self, side: &Side, now: Instant) -> Option<Path> {
        let rank = |path: &Path| {
            let known = self
                .known(*path)
                .filter(|known| known.is_proven(TRUST, now));
            let held = self.known(*path).is_some_and(|known| known.is_held(now));
            (held, known.is_none(), known.and_then(|known| known.rtt))
        };
        let relays = side.relays.iter().map(|n| Path::Relayed(*n, self.tag));
        relays.min_by_key(rank)
    }

    /// The peer's address as a STUN server sees it; IPv4, for there are no hard NATs elsewhere.
    pub(super) fn reflexive(&self) -> Option<SocketAddr> {
        let mut theirs = self.theirs.iter();
        let found = theirs.find(|candidate| {
            candidate.kind == CandidateKind::Reflexive && candidate.address.is_ipv4()
        });
        found.map(|candidate| candidate.address)
    }

    /// Takes over what record and call tell.
    pub(super) fn learn(&mut self) {
        for known in &mut self.paths {
            known.told = false;
        }
        let called = self.theirs.iter().map(|candidate| candidate.address);
        let told: Vec<SocketAddr> = self.record.iter().copied().chain(called).collect();
        for address in told {
            if let Some(known) = self.meet(Path::Direct(address)) {
                known.told = true;
            }
        }
    }

    /// The path, known from now on; `None` if there are too many, of which none can be forgotten.
    pub(super) fn meet(&mut self, path: Path) -> Option<&mut Known> {
        if let Some(at) = self.paths.iter().position(|known| known.path == path) {
            return self.paths.get_mut(at);
        }
        if self.paths.len() >= PATHS_MAX {
            let current = self.current;
            let idle = self.paths.iter().position(|known| {
                !known.told && known.proven.is_none() && Some(known.path) != current
            });
            self.paths.remove(idle?);
        }
        self.paths.push(Known::new(path, false));
        self.paths.last_mut()
    }

    pub(super) fn known(&self, path: Path) -> Option<&Known> {
        self.paths.iter().find(|known| known.path == path)
    }

    pub(super) fn known_mut(&mut self, path: Path) -> Option<&mut Known> {
        self.paths.iter_mut().find(|known| known.path == path)
    }
}

fn is_much_faster(new: Option<Duration>, old: Option<Duration>) -> bool {
    match (new, old) {
        (Some(new), Some(old)) => new + FASTER < old * FASTER_PERCENT / 100,
        _ => false,
    }
}
