//! A resolver that knows whom it was told: where the peers of an end are listed, and in tests.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;
use std::sync::{PoisonError, RwLock};

use tabbify_types::MeshKey;

use super::{PeerRecord, ResolveError, Resolver};
use crate::BoxFuture;

/// Peers by key, changed at will. Who is no longer in it makes no new session.
#[derive(Debug, Default)]
pub struct Roster(RwLock<BTreeMap<MeshKey, PeerRecord>>);

impl Roster {
    /// One that knows these.
    #[must_use]
    pub fn of(peers: impl IntoIterator<Item = PeerRecord>) -> Self {
        let roster = Self::default();
        roster.set(peers);
        roster
    }

    /// Knows these from here on, and nobody else.
    pub fn set(&self, peers: impl IntoIterator<Item = PeerRecord>) {
        let peers = peers.into_iter().map(|peer| (peer.key, peer)).collect();
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = peers;
    }

    /// Knows this one, too, or anew.
    pub fn put(&self, peer: PeerRecord) {
        let mut peers = self.0.write().unwrap_or_else(PoisonError::into_inner);
        peers.insert(peer.key, peer);
    }

    /// Forgets this one.
    pub fn remove(&self, key: MeshKey) {
        let mut peers = self.0.write().unwrap_or_else(PoisonError::into_inner);
        peers.remove(&key);
    }

    /// The first by key that is as wanted.
    pub fn find(&self, wanted: impl Fn(&PeerRecord) -> bool) -> Option<PeerRecord> {
        let peers = self.0.read().unwrap_or_else(PoisonError::into_inner);
        peers.values().find(|peer| wanted(peer)).cloned()
    }
}

impl Resolver for Roster {
    fn by_address(&self, address: Ipv6Addr) -> BoxFuture<'_, Result<PeerRecord, ResolveError>> {
        let found = self.find(|peer| peer.addresses.contains(&address));
        Box::pin(async move { found.ok_or(ResolveError::NoLease(address)) })
    }

    fn by_key(&self, key: MeshKey) -> BoxFuture<'_, Result<PeerRecord, ResolveError>> {
        let found = self.find(|peer| peer.key == key);
        Box::pin(async move { found.ok_or(ResolveError::UnknownKey(key)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_those_that_are_in_it() {
        let peer = PeerRecord::unrestricted(
            MeshKey([1; 32]),
            vec!["fd5a:1f00:1:1::1".parse().unwrap()],
            Vec::new(),
        );
        let (key, address) = (peer.key, peer.addresses[0]);
        let roster = Roster::default();
        assert!(roster.by_key(key).await.is_err());
        roster.put(peer.clone());
        assert_eq!(roster.by_key(key).await.unwrap(), peer);
        assert_eq!(roster.by_address(address).await.unwrap(), peer);
        assert!(roster.by_key(MeshKey([2; 32])).await.is_err());
        roster.set([]);
        assert!(roster.by_address(address).await.is_err());
        let roster = Roster::of([peer]);
        roster.remove(key);
        assert!(roster.by_key(key).await.is_err());
    }
}
