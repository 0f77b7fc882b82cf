//! Who may call this runner: whoever the coordinator knows, or the list from the boot document, replaced
//! by `SetPeers`, where there is no coordinator or it cannot be reached.

use std::net::Ipv6Addr;
use std::sync::Arc;

use tabbify_api::BoxFuture;
use tabbify_api::mesh::{Changed, Changes, PeerRecord, ResolveError, Resolver, Roster};
use tabbify_types::MeshKey;

/// Who may call, as the mesh asks for it.
#[derive(Debug, Default)]
pub struct Peers {
    listed: Arc<Roster>,
    coordinator: Option<Arc<dyn Resolver>>,
}

impl Peers {
    /// A list to begin with.
    #[must_use]
    pub fn new(peers: Vec<PeerRecord>) -> Self {
        let this = Self::default();
        this.set(peers);
        this
    }

    /// The same; but what `coordinator` says comes first.
    #[must_use]
    pub fn asking(self, coordinator: Arc<dyn Resolver>) -> Self {
        Self {
            coordinator: Some(coordinator),
            ..self
        }
    }

    /// Replaces the list. A peer that is no longer in it can make no new session.
    pub fn set(&self, peers: Vec<PeerRecord>) {
        self.listed.set(peers);
    }

    /// What the coordinator says, and only if it says nothing, the list.
    async fn find(
        &self,
        asked: Option<BoxFuture<'_, Result<PeerRecord, ResolveError>>>,
        unknown: ResolveError,
        is: impl Fn(&PeerRecord) -> bool,
    ) -> Result<PeerRecord, ResolveError> {
        let unknown = match asked {
            None => unknown,
            Some(asked) => match asked.await {
                Err(unreachable @ ResolveError::Unreachable(_)) => unreachable,
                answered => return answered,
            },
        };
        self.listed.find(is).ok_or(unknown)
    }
}

impl Resolver for Peers {
    fn by_address(&self, address: Ipv6Addr) -> BoxFuture<'_, Result<PeerRecord, ResolveError>> {
        let asked = self.coordinator.as_ref();
        let asked = asked.map(|coordinator| coordinator.by_address(address));
        let is = move |peer: &PeerRecord| peer.addresses.contains(&address);
        Box::pin(self.find(asked, ResolveError::NoLease(address), is))
    }

    fn by_key(&self, key: MeshKey) -> BoxFuture<'_, Result<PeerRecord, ResolveError>> {
        let asked = self.coordinator.as_ref();
        let asked = asked.map(|coordinator| coordinator.by_key(key));
        let is = move |peer: &PeerRecord| peer.key == key;
        Box::pin(self.find(asked, ResolveError::UnknownKey(key), is))
    }

    fn doubt(&self, address: Ipv6Addr) {
        if let Some(coordinator) = &self.coordinator {
            coordinator.doubt(address);
        }
    }

    fn changes(&self) -> Option<Box<dyn Changes>> {
        let heard = self.coordinator.as_ref()?.changes()?;
        let listed = Arc::clone(&self.listed);
        Some(Box::new(Struck { heard, listed }))
    }
}

/// Whoever is gone by the coordinator's word is struck off the list as well: no outage brings it back.
#[derive(Debug)]
struct Struck {
    heard: Box<dyn Changes>,
    listed: Arc<Roster>,
}

impl Changes for Struck {
    fn next(&mut self) -> BoxFuture<'_, Option<Changed>> {
        Box::pin(async {
            let changed = self.heard.next().await;
            if let Some(Changed::Gone(gone)) = changed {
                self.listed.remove(gone);
            }
            changed
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, PoisonError};

    use super::*;

    fn node() -> PeerRecord {
        let host = "fd5a:1f00:1:1::1".parse().unwrap();
        PeerRecord::unrestricted(MeshKey([1; 32]), vec![host], vec![])
    }

    #[tokio::test]
    async fn only_the_listed() {
        let node = node();
        let peers = Peers::default();
        assert!(peers.by_key(node.key).await.is_err());
        peers.set(vec![node.clone()]);
        assert_eq!(peers.by_key(node.key).await.unwrap(), node);
        assert_eq!(peers.by_address(node.addresses[0]).await.unwrap(), node);
        assert!(peers.by_key(MeshKey([2; 32])).await.is_err());
        peers.set(vec![]);
        assert!(peers.by_address(node.addresses[0]).await.is_err());
        assert!(peers.changes().is_none());
    }

    /// Says the same to every question.
    #[derive(Debug)]
    struct Says(Mutex<Result<PeerRecord, ResolveError>>);

    impl Says {
        fn now(&self, answer: Result<PeerRecord, ResolveError>) {
            *self.0.lock().unwrap() = answer;
        }

        fn answer(&self) -> BoxFuture<'_, Result<PeerRecord, ResolveError>> {
            let answer = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let answer = answer.clone();
            Box::pin(async move { answer })
        }
    }

    impl Resolver for Says {
        fn by_address(&self, _: Ipv6Addr) -> BoxFuture<'_, Result<PeerRecord, ResolveError>> {
            self.answer()
        }

        fn by_key(&self, _: MeshKey) -> BoxFuture<'_, Result<PeerRecord, ResolveError>> {
            self.answer()
        }

        fn changes(&self) -> Option<Box<dyn Changes>> {
            Some(Box::new(Once(Some(Changed::Gone(MeshKey([1; 32]))))))
        }
    }

    #[derive(Debug)]
    struct Once(Option<Changed>);

    impl Changes for Once {
        fn next(&mut self) -> BoxFuture<'_, Option<Changed>> {
            let next = self.0.take();
            Box::pin(async move { next })
        }
    }

    #[tokio::test]
    async fn the_list_counts_while_the_coordinator_is_away() {
        let (node, away) = (node(), ResolveError::Unreachable("away".to_owned()));
        let says = Arc::new(Says(Mutex::new(Err(away.clone()))));
        let coordinator: Arc<dyn Resolver> = Arc::<Says>::clone(&says);
        let peers = Peers::new(vec![node.clone()]).asking(coordinator);
        assert_eq!(peers.by_key(node.key).await.unwrap(), node);
        assert_eq!(peers.by_key(MeshKey([2; 32])).await, Err(away.clone()));

        let refused = ResolveError::UnknownKey(node.key);
        says.now(Err(refused.clone()));
        assert_eq!(
            peers.by_key(node.key).await,
            Err(refused),
            "its word counts"
        );
        let elsewhere = PeerRecord {
            endpoints: vec![([192, 0, 2, 1], 1).into()],
            ..node.clone()
        };
        says.now(Ok(elsewhere.clone()));
        assert_eq!(
            peers.by_address(node.addresses[0]).await.unwrap(),
            elsewhere
        );

        let mut changes = peers.changes().unwrap();
        assert_eq!(changes.next().await, Some(Changed::Gone(node.key)));
        says.now(Err(away.clone()));
        assert_eq!(peers.by_key(node.key).await, Err(away), "it was struck off");
    }
}
