//! A resolver for tests: everybody who may be known, changed at will.

use std::collections::HashMap;
use std::net::Ipv6Addr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tabbify_api::BoxFuture;
use tabbify_api::mesh::{PeerRecord, ResolveError, Resolver};
use tabbify_types::MeshKey;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Roster(Mutex<HashMap<MeshKey, PeerRecord>>);

impl Roster {
    /// Who is known, to be changed.
    pub(crate) fn records(&self) -> MutexGuard<'_, HashMap<MeshKey, PeerRecord>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a peer known, or known anew.
    pub(crate) fn put(&self, record: PeerRecord) {
        self.records().insert(record.key, record);
    }

    fn find(&self, wanted: impl Fn(&PeerRecord) -> bool) -> Option<PeerRecord> {
        self.records()
            .values()
            .find(|record| wanted(record))
            .cloned()
    }
}

impl Resolver for Roster {
    fn by_address(&self, address: Ipv6Addr) -> BoxFuture<'_, Result<PeerRecord, ResolveError>> {
        let found = self.find(|record| record.addresses.contains(&address));
        Box::pin(async move { found.ok_or(ResolveError::NoLease(address)) })
    }

    fn by_key(&self, key: MeshKey) -> BoxFuture<'_, Result<PeerRecord, ResolveError>> {
        let found = self.find(|record| record.key == key);
        Box::pin(async move { found.ok_or(ResolveError::UnknownKey(key)) })
    }
}
