//! Who may call this runner: the list from the boot document, replaced by `SetPeers`.

use std::net::Ipv6Addr;
use std::sync::{PoisonError, RwLock};

use tabbify_api::BoxFuture;
use tabbify_api::mesh::{PeerRecord, ResolveError, Resolver};
use tabbify_types::MeshKey;

/// The list, as the mesh asks for it.
#[derive(Debug, Default)]
pub struct Peers(RwLock<Vec<PeerRecord>>);

impl Peers {
    /// A list to begin with.
    #[must_use]
    pub fn new(peers: Vec<PeerRecord>) -> Self {
        Self(RwLock::new(peers))
    }

    /// Replaces the list. A peer that is no longer in it can make no new session.
    pub fn set(&self, peers: Vec<PeerRecord>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = peers;
    }

    fn find(&self, is: impl Fn(&PeerRecord) -> bool) -> Option<PeerRecord> {
        let peers = self.0.read().unwrap_or_else(PoisonError::into_inner);
        peers.iter().find(|peer| is(peer)).cloned()
    }
}

impl Resolver for Peers {
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
    async fn only_the_listed() {
        let node = PeerRecord {
            key: MeshKey([1; 32]),
            addresses: vec!["fd5a:1f00:1:1::1".parse().unwrap()],
            endpoints: vec![],
        };
        let peers = Peers::default();
        assert!(peers.by_key(node.key).await.is_err());
        peers.set(vec![node.clone()]);
        assert_eq!(peers.by_key(node.key).await.unwrap(), node);
        assert_eq!(peers.by_address(node.addresses[0]).await.unwrap(), node);
        assert!(peers.by_key(MeshKey([2; 32])).await.is_err());
        peers.set(vec![]);
        assert!(peers.by_address(node.addresses[0]).await.is_err());
    }
}
