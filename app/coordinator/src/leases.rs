//! Who answers for an address: found in the state, completed with outer addresses, signed.

use std::collections::BTreeMap;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::{Mutex, PoisonError};

use tabbify_api::coordinator::{Ask, CANDIDATES_MAX, HostLease};
use tabbify_api::mesh::Lease;
use tabbify_api::policy::{Party, Who};
use tabbify_types::event::v1::{LeaseGranted, PeerJoined};
use tabbify_types::{AppId, AppUla, HostName, InstanceId, InstanceUla, MeshKey, Timestamp};

use crate::join::tenant_of;
use crate::state::State;

pub use tabbify_membership::LEASE_LIFE;

/// LIMIT: keys whose outer addresses are remembered. Instances that end give theirs back.
const KEYS_MAX: usize = 8192;

/// Whoever holds an address or a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder<'a> {
    /// An instance of an app.
    Instance(&'a LeaseGranted),
    /// A machine.
    Host(&'a PeerJoined),
}

impl Holder<'_> {
    /// Its WireGuard key.
    #[must_use]
    pub const fn key(&self) -> MeshKey {
        match self {
            Self::Instance(lease) => lease.key,
            Self::Host(peer) => peer.key,
        }
    }

    /// The machine it runs on, or is.
    #[must_use]
    pub const fn host(&self) -> &HostName {
        match self {
            Self::Instance(lease) => &lease.host,
            Self::Host(peer) => &peer.host,
        }
    }

    /// What policy knows of it.
    #[must_use]
    pub fn party(&self) -> Party {
        match self {
            Self::Instance(lease) => Party {
                who: Who::App(lease.app),
                tenant: lease.tenant.clone(),
                tags: Vec::new(),
            },
            Self::Host(peer) => Party {
                who: Who::Host(peer.host.clone()),
                tenant: tenant_of(&peer.tags),
                tags: peer.tags.clone(),
            },
        }
    }
}

/// Who is asked for.
#[must_use]
pub fn holder(state: &State, ask: Ask) -> Option<Holder<'_>> {
    match ask {
        Ask::Key(key) => with_key(state, &key),
        Ask::Address(address) => match state.host_addresses.get(&address) {
            Some(host) => state.hosts.get(host).map(Holder::Host),
            None => find(state, address).map(Holder::Instance),
        },
    }
}

fn with_key<'a>(state: &'a State, key: &MeshKey) -> Option<Holder<'a>> {
    if let Some(host) = state.host_keys.get(key) {
        return state.hosts.get(host).map(Holder::Host);
    }
    let of = state.keys.get(key)?;
    let lease = state.apps.get(&of.app)?.leases.get(&of.instance)?;
    (lease.key == *key).then_some(Holder::Instance(lease))
}

/// The lease behind an address: of the primary for an app's, of the instance for an instance's.
#[must_use]
pub fn find(state: &State, address: Ipv6Addr) -> Option<&LeaseGranted> {
    let (app_address, instance) = parts(address)?;
    let app = state.apps.get(state.addresses.get(&app_address)?)?;
    let instance = match instance {
        Some(instance) => instance,
        None => app.serving.as_ref()?.primary,
    };
    app.leases.get(&instance)
}

/// The app that has an address, or whose instance has it.
#[must_use]
pub fn app_behind(state: &State, address: Ipv6Addr) -> Option<AppId> {
    let (app_address, _) = parts(address)?;
    state.addresses.get(&app_address).copied()
}

/// The app's address behind an address of it or of an instance of it, and which instance.
fn parts(address: Ipv6Addr) -> Option<(Ipv6Addr, Option<InstanceId>)> {
    match InstanceUla::try_from(address) {
        Ok(_) => Some(split(address)),
        Err(_) => Some((AppUla::try_from(address).ok()?.addr(), None)),
    }
}

/// An instance address as its app's address and its number; see `tabbify_types::ula`.
fn split(address: Ipv6Addr) -> (Ipv6Addr, Option<InstanceId>) {
    let [a, b, c, d, e, high, low, _] = address.segments();
    let number = (u32::from(high) << 16) | u32::from(low);
    (
        Ipv6Addr::new(a, b, c, d, e, 0, 0, 1),
        Some(InstanceId(number)),
    )
}

/// Outer addresses, as the supervisor of this process reports them: soft state, never in the log. What
/// comes over the network is kept apart, see [`crate::soft`].
#[derive(Debug, Default)]
pub(crate) struct Candidates(Mutex<BTreeMap<MeshKey, Vec<SocketAddr>>>);

impl Candidates {
    /// Remembers where `key` may be reached; whether that is elsewhere than before. `in_use` is asked when there
    /// is no room.
    pub(crate) fn put(
        &self,
        key: MeshKey,
        mut candidates: Vec<SocketAddr>,
        in_use: impl Fn(&MeshKey) -> bool,
    ) -> bool {
        candidates.truncate(CANDIDATES_MAX);
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if candidates.is_empty() {
            return known.remove(&key).is_some();
        }
        if known.len() >= KEYS_MAX && !known.contains_key(&key) {
            known.retain(|key, _| in_use(key));
        }
        if known.len() < KEYS_MAX || known.contains_key(&key) {
            let before = known.insert(key, candidates.clone());
            before.is_none_or(|before| before != candidates)
        } else {
            tracing::warn!(role = "coordinator", peer = %key, "no room for its outer addresses");
            false
        }
    }

    pub(crate) fn get(&self, key: &MeshKey) -> Option<Vec<SocketAddr>> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(key)
            .cloned()
    }
}

/// The lease as it is signed, from `now` on.
pub(crate) fn lease(granted: LeaseGranted, candidates: Vec<SocketAddr>, now: Timestamp) -> Lease {
    Lease {
        app: granted.app,
        tenant: granted.tenant,
        slot: granted.slot,
        epoch: granted.epoch,
        instance: granted.instance,
        key: granted.key,
        host: granted.host,
        candidates,
        not_after: now.plus(LEASE_LIFE),
        door: None,
    }
}

/// The same while the instance is idle: it names its machine's doorbell.
pub(crate) fn door_lease(
    granted: LeaseGranted,
    machine: &PeerJoined,
    candidates: Vec<SocketAddr>,
    now: Timestamp,
) -> Lease {
    Lease {
        key: machine.key,
        door: Some(machine.address),
        ..lease(granted, candidates, now)
    }
}

/// The machine whose doorbell stands for an instance, if it is idle.
pub(crate) fn door<'a>(state: &'a State, granted: &LeaseGranted) -> Option<&'a PeerJoined> {
    let app = state.apps.get(&granted.app)?;
    let instance = app.instances.get(&granted.instance)?;
    let machine = instance.idle.then(|| state.hosts.get(&granted.host));
    machine.flatten()
}

/// The same of a machine.
pub(crate) fn host_lease(
    peer: PeerJoined,
    candidates: Vec<SocketAddr>,
    now: Timestamp,
) -> HostLease {
    HostLease {
        tenant: tenant_of(&peer.tags),
        host: peer.host,
        address: peer.address,
        tags: peer.tags,
        key: peer.key,
        candidates,
        not_after: now.plus(LEASE_LIFE),
    }
}

#[cfg(test)]
mod tests {
    use tabbify_types::AppId;

    use super::*;

    #[test]
    fn an_instance_address_leads_to_its_app() {
        let app: AppId = "0191e7c2-1111-7222-8333-444455556666".parse().unwrap();
        for number in [1, 7, 0x0001_0000, 0xfffe_fffd, u32::MAX] {
            let address = InstanceUla::derive(app, InstanceId(number)).addr();
            let expected = (AppUla::derive(app).addr(), Some(InstanceId(number)));
            assert_eq!(split(address), expected);
        }
    }

    #[test]
    fn outer_addresses_are_bounded() {
        let candidates = Candidates::default();
        let one: SocketAddr = "127.0.0.1:1".parse().unwrap();
        let key = |n: usize| {
            let mut bytes = [0; 32];
            bytes[..8].copy_from_slice(&n.to_be_bytes());
            MeshKey(bytes)
        };
        for n in 0..KEYS_MAX {
            candidates.put(key(n), vec![one; 100], |_| true);
        }
        assert_eq!(candidates.get(&key(0)).unwrap().len(), CANDIDATES_MAX);
        candidates.put(key(KEYS_MAX), vec![one], |_| true);
        assert_eq!(candidates.get(&key(KEYS_MAX)), None);
        candidates.put(key(KEYS_MAX), vec![one], |known| *known != key(0));
        assert_eq!(candidates.get(&key(KEYS_MAX)), Some(vec![one]));
        assert_eq!(candidates.get(&key(0)), None);
        candidates.put(key(1), Vec::new(), |_| true);
        assert_eq!(candidates.get(&key(1)), None);
    }
}
