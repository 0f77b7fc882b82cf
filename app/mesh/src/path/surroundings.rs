//! What all agents of an endpoint share about our own side: the addresses that may lead to us, how
//! hard our NAT is, and which relays we are connected to.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use tabbify_types::MeshKey;
use tokio::sync::Notify;

use super::birthday::SPARES;
use super::{Agent, Candidate, Seal, Tag};
use crate::PrivateKey;

/// One state of our side.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Side {
    /// Best first.
    pub(crate) candidates: Vec<Candidate>,
    /// Our NAT takes another port for every destination.
    pub(crate) hard: bool,
    /// Numbers of the relays that we are connected to, best first.
    pub(crate) relays: Vec<u16>,
}

/// Our side now.
#[derive(Debug, Default)]
pub(crate) struct Surroundings {
    /// That of the last call. Begins with the microseconds of the wall clock, so that it is greater
    /// than every one of an earlier process with our key.
    calls: AtomicU64,
    /// The first number of the next agent's spare sockets.
    spares: AtomicU32,
    side: RwLock<Arc<Side>>,
    /// Somebody looks for a better path: our addresses should be fresh.
    pub(crate) wanted: Notify,
    /// There are relays where there were none.
    pub(crate) connected: Notify,
    /// A ping that somebody waits for was answered.
    pub(crate) echoed: Notify,
}

impl Surroundings {
    /// `started` is in microseconds of the wall clock.
    pub(crate) fn new(started: u64) -> Self {
        Self {
            calls: AtomicU64::new(started),
            ..Self::default()
        }
    }

    /// A number greater than all before.
    pub(super) fn number_call(&self) -> u64 {
        self.calls.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// An agent for the peer with this key.
    pub(crate) fn agent(self: &Arc<Self>, ours: &PrivateKey, theirs: MeshKey) -> Agent {
        let spares = self.spares.fetch_add(SPARES, Ordering::Relaxed);
        Agent::new(
            Seal::new(ours, theirs),
            Arc::clone(self),
            Tag::of(theirs),
            spares,
            u64::from_le_bytes(tabbify_process::random()),
        )
    }

    pub(crate) fn side(&self) -> Arc<Side> {
        let side = self.side.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&side)
    }

    /// Changes our side; whether it is another one now.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Side)) -> bool {
        let mut side = self.side.write().unwrap_or_else(PoisonError::into_inner);
        let mut next = Side::clone(&side);
        change(&mut next);
        let differs = **side != next;
        if differs {
            *side = Arc::new(next);
        }
        differs
    }
}
