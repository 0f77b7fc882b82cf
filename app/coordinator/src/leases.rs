//! Who answers for an address: found in the state, completed with outer addresses, signed.

use std::collections::BTreeMap;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tabbify_api::mesh::Lease;
use tabbify_types::event::v1::LeaseGranted;
use tabbify_types::{AppUla, InstanceId, InstanceUla, MeshKey, Timestamp};

use crate::state::State;

/// How long a lease lasts; its holder renews at half of it.
pub const LEASE_LIFE: Duration = Duration::from_secs(10 * 60);

/// LIMIT: outer addresses of one instance; the rest of a report is dropped.
const CANDIDATES_MAX: usize = 16;
/// LIMIT: keys whose outer addresses are remembered. Instances that end give theirs back.
const KEYS_MAX: usize = 8192;

/// The lease behind an address: of the primary for an app's, of the instance for an instance's.
#[must_use]
pub fn find(state: &State, address: Ipv6Addr) -> Option<&LeaseGranted> {
    let (app_address, instance) = match InstanceUla::try_from(address) {
        Ok(_) => split(address),
        Err(_) => (AppUla::try_from(address).ok()?.addr(), None),
    };
    let app = state.apps.get(state.addresses.get(&app_address)?)?;
    let instance = match instance {
        Some(instance) => instance,
        None => app.serving.as_ref()?.primary,
    };
    app.leases.get(&instance)
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

/// Outer addresses, as supervisors report them: soft state, never in the log.
#[derive(Debug, Default)]
pub(crate) struct Candidates(Mutex<BTreeMap<MeshKey, Vec<SocketAddr>>>);

impl Candidates {
    /// Remembers where `key` may be reached. `in_use` is asked when there is no room.
    pub(crate) fn put(
        &self,
        key: MeshKey,
        mut candidates: Vec<SocketAddr>,
        in_use: impl Fn(&MeshKey) -> bool,
    ) {
        candidates.truncate(CANDIDATES_MAX);
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if candidates.is_empty() {
            known.remove(&key);
            return;
        }
        if known.len() >= KEYS_MAX && !known.contains_key(&key) {
            known.retain(|key, _| in_use(key));
        }
        if known.len() < KEYS_MAX || known.contains_key(&key) {
            known.insert(key, candidates);
        } else {
            tracing::warn!(role = "coordinator", peer = %key, "no room for its outer addresses");
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
