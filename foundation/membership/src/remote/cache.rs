//! What was resolved and is not known to have changed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tabbify_api::coordinator::{Ask, Change};
use tabbify_api::mesh::PeerRecord;
use tabbify_api::policy::Ports;
use tabbify_types::{AppId, Epoch, HostName, MeshKey, SlotId, Tenant, Timestamp};
use tokio::time::Instant;

use crate::life::LEASE_LIFE;

/// LIMIT: answers that are remembered. When there are more, those that have ended go, then any.
const KNOWN_MAX: usize = 128 * 1024;
/// LIMIT: an answer that is younger than this is not doubted because somebody does not answer there: however
/// many dial whoever is silent, the coordinator is asked no more often.
const DOUBTED_AFTER: Duration = Duration::from_secs(2);
/// LIMIT: slots whose highest epoch is remembered.
const SLOTS_MAX: usize = 128 * 1024;

/// What an answer is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Topic {
    App(AppId),
    Host(HostName),
}

/// An answer that was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Known {
    /// The peer, for the mesh.
    pub(crate) record: PeerRecord,
    /// Ports that may be reached.
    pub(crate) ports: Ports,
    /// The lease as it is signed, if it is an instance's.
    pub(crate) lease: Option<String>,
    /// What it is about.
    pub(crate) topic: Topic,
    /// Whose it is.
    pub(crate) tenant: Tenant,
    /// When the lease ends.
    pub(crate) not_after: Timestamp,
    /// Whether it may have changed.
    pub(crate) doubtful: bool,
    /// When it was asked for, by a clock that nobody sets.
    pub(crate) asked: Instant,
}

impl Known {
    /// Whether it can be used without asking: until it ends if changes are heard, else for half its life.
    pub(crate) fn is_good(&self, now: Timestamp, live: bool) -> bool {
        let sooner = if live { now } else { now.plus(LEASE_LIFE / 2) };
        !self.doubtful && sooner < self.not_after
    }
}

/// The answers, and what they are about.
#[derive(Debug, Default)]
pub(crate) struct Cache {
    known: BTreeMap<Ask, Known>,
    by_topic: BTreeMap<Topic, BTreeSet<Ask>>,
    /// The highest epoch that was seen to have an app's address.
    epochs: BTreeMap<(AppId, SlotId), Epoch>,
    /// Changes that were heard.
    version: u64,
}

impl Cache {
    pub(crate) fn get(&self, ask: &Ask) -> Option<Known> {
        self.known.get(ask).cloned()
    }

    /// Which changes were heard when a question was asked.
    pub(crate) const fn version(&self) -> u64 {
        self.version
    }

    /// Remembers an answer. If something changed since `version`, when it was asked for, it may be old.
    pub(crate) fn put(&mut self, ask: Ask, mut known: Known, version: u64, now: Timestamp) {
        known.doubtful = self.version != version;
        self.remove(&ask);
        if self.known.len() >= KNOWN_MAX {
            let ended = self
                .known
                .iter()
                .filter(|(_, known)| known.not_after <= now);
            let mut out: Vec<Ask> = ended.map(|(ask, _)| *ask).collect();
            if out.is_empty() {
                out.extend(self.known.keys().next().copied());
            }
            for ask in &out {
                self.remove(ask);
            }
        }
        let asked = self.by_topic.entry(known.topic.clone()).or_default();
        asked.insert(ask);
        self.known.insert(ask, known);
    }

    pub(crate) fn remove(&mut self, ask: &Ask) {
        let Some(known) = self.known.remove(ask) else {
            return;
        };
        if let Some(asked) = self.by_topic.get_mut(&known.topic) {
            asked.remove(ask);
            if asked.is_empty() {
                self.by_topic.remove(&known.topic);
            }
        }
    }

    /// Whoever answered there is silent: what was not asked for just now may have changed.
    pub(crate) fn doubt(&mut self, ask: &Ask, now: Instant) {
        if let Some(known) = self.known.get_mut(ask) {
            known.doubtful |= now.saturating_duration_since(known.asked) >= DOUBTED_AFTER;
        }
    }

    /// Whether an app's address may go to this epoch: no newer one was seen to have it.
    pub(crate) fn admits(&mut self, app: AppId, slot: SlotId, epoch: Epoch) -> bool {
        if let Some(seen) = self.epochs.get_mut(&(app, slot)) {
            let admitted = *seen <= epoch;
            *seen = epoch.max(*seen);
            return admitted;
        }
        if self.epochs.len() >= SLOTS_MAX {
            self.epochs.pop_first();
        }
        self.epochs.insert((app, slot), epoch);
        true
    }

    /// Takes note of a change. The key that is nobody's any more, if one is.
    pub(crate) fn heard(&mut self, change: &Change) -> Option<MeshKey> {
        match change {
            Change::Alive | Change::Issuers => return None,
            Change::Reset => {
                for known in self.known.values_mut() {
                    known.doubtful = true;
                }
            }
            Change::Policy { tenant } => {
                // What is not allowed any more must not be used in an outage either.
                let concerned = self
                    .known
                    .iter()
                    .filter(|(ask, known)| matches!(ask, Ask::Key(_)) || known.tenant == *tenant);
                let concerned: Vec<Ask> = concerned.map(|(ask, _)| *ask).collect();
                for ask in &concerned {
                    self.remove(ask);
                }
                // If the tenant is our own, what the others may reach of us is not known any more.
                for known in self.known.values_mut() {
                    known.record.inbound = None;
                }
            }
            Change::App { app, gone } => return self.changed(&Topic::App(*app), *gone),
            Change::Host { host, gone, .. } => {
                return self.changed(&Topic::Host(host.clone()), *gone);
            }
        }
        self.version += 1;
        None
    }

    fn changed(&mut self, topic: &Topic, gone: Option<MeshKey>) -> Option<MeshKey> {
        self.version += 1;
        let asked = self.by_topic.get(topic).cloned().unwrap_or_default();
        for ask in &asked {
            match self.known.get_mut(ask) {
                Some(known) if Some(known.record.key) == gone => self.remove(ask),
                Some(known) => known.doubtful = true,
                None => {}
            }
        }
        gone
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

    fn known(app: AppId, key: u8) -> Known {
        Known {
            record: PeerRecord::unrestricted(MeshKey([key; 32]), Vec::new(), Vec::new()),
            ports: Ports::All,
            lease: None,
            topic: Topic::App(app),
            tenant: Tenant::main(),
            not_after: NOW.plus(LEASE_LIFE),
            doubtful: false,
            asked: Instant::now(),
        }
    }

    fn address(n: u16) -> Ask {
        Ask::Address(Ipv6Addr::new(0xfd5a, 0x1f02, 0, 0, n, 0, 0, 1))
    }

    #[test]
    fn a_change_concerns_what_it_is_about() {
        let (mut cache, app, other) = (Cache::default(), AppId::mint(), AppId::mint());
        cache.put(address(1), known(app, 1), 0, NOW);
        cache.put(address(2), known(app, 2), 0, NOW);
        cache.put(address(3), known(other, 3), 0, NOW);
        let good = |cache: &Cache, n| {
            cache
                .get(&address(n))
                .is_some_and(|it| it.is_good(NOW, true))
        };
        let gone = Some(MeshKey([1; 32]));
        assert_eq!(cache.heard(&Change::App { app, gone }), gone);
        assert_eq!(cache.get(&address(1)), None, "its key is nobody's");
        assert!(cache.get(&address(2)).unwrap().doubtful && !good(&cache, 2));
        assert!(good(&cache, 3));
        cache.heard(&Change::Reset);
        assert!(!good(&cache, 3) && cache.get(&address(3)).is_some());
        let foreign = "other".parse().unwrap();
        cache.heard(&Change::Policy { tenant: foreign });
        let kept = cache.get(&address(3)).unwrap().record;
        assert_eq!((kept.outbound, kept.inbound), (Some(Ports::All), None));
        let tenant = Tenant::main();
        cache.heard(&Change::Policy { tenant });
        assert_eq!(cache.get(&address(3)), None);
        assert!(cache.by_topic.is_empty());
    }

    #[test]
    fn an_answer_that_was_overtaken_is_doubtful() {
        let (mut cache, app) = (Cache::default(), AppId::mint());
        let version = cache.version();
        cache.heard(&Change::App { app, gone: None });
        cache.put(address(1), known(app, 1), version, NOW);
        assert!(!cache.get(&address(1)).unwrap().is_good(NOW, true));
        cache.put(address(1), known(app, 1), cache.version(), NOW);
        assert!(cache.get(&address(1)).unwrap().is_good(NOW, true));
        let late = NOW.plus(LEASE_LIFE);
        assert!(!cache.get(&address(1)).unwrap().is_good(late, true));
        let half = NOW.plus(LEASE_LIFE / 2);
        assert!(!cache.get(&address(1)).unwrap().is_good(half, false));
    }

    #[test]
    fn who_is_silent_is_asked_for_anew_and_not_too_often() {
        let (mut cache, app) = (Cache::default(), AppId::mint());
        cache.put(address(1), known(app, 1), 0, NOW);
        let good = |cache: &Cache| cache.get(&address(1)).unwrap().is_good(NOW, true);
        let asked = cache.get(&address(1)).unwrap().asked;
        cache.doubt(&address(1), asked + DOUBTED_AFTER / 2);
        cache.doubt(&address(2), asked + DOUBTED_AFTER);
        assert!(good(&cache));
        cache.doubt(&address(1), asked + DOUBTED_AFTER);
        assert!(!good(&cache));
    }

    #[test]
    fn epochs_only_grow() {
        let (mut cache, app) = (Cache::default(), AppId::mint());
        let mut at = |epoch| cache.admits(app, SlotId::FIRST, Epoch(epoch));
        assert!(at(3) && at(3) && at(4));
        assert!(!at(3) && !at(1));
        assert!(at(4));
    }
}
