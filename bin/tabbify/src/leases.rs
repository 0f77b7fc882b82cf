//! From a signed lease to a peer that may be dialed: the node's view of the mesh.
//!
//! The lease is verified with the issuer keys from the log before anything is dialed; what a
//! coordinator says without the issuer's signature counts for nothing.

use std::net::Ipv6Addr;
use std::sync::Arc;

use tabbify_api::BoxFuture;
use tabbify_api::mesh::{Lease, Leases, PeerRecord, ResolveError, Resolver};
use tabbify_auth::Auth;
use tabbify_process::Clock;
use tabbify_token::DocumentType;
use tabbify_types::{AppUla, InstanceUla, MeshKey};

/// Resolves addresses through signed leases.
#[derive(Debug)]
pub(crate) struct LeaseResolver {
    pub(crate) leases: Arc<dyn Leases>,
    pub(crate) auth: Auth,
    pub(crate) clock: Arc<dyn Clock>,
}

impl LeaseResolver {
    fn check(&self, address: Ipv6Addr, signed: &str) -> Result<PeerRecord, ResolveError> {
        let refused = |why: String| ResolveError::Refused(why);
        let lease: Lease = self
            .auth
            .verifier()
            .verify_document(DocumentType::Lease, signed)
            .map_err(|error| refused(error.to_string()))?;
        if lease.not_after <= self.clock.now() {
            return Err(refused(format!("it ended at {}", lease.not_after)));
        }
        let app = AppUla::derive(lease.app).addr();
        let instance = InstanceUla::derive(lease.app, lease.instance).addr();
        if address != app && address != instance {
            return Err(refused(format!("it is for {app} and {instance}")));
        }
        Ok(PeerRecord {
            key: lease.key,
            addresses: vec![app, instance],
            endpoints: lease.candidates,
        })
    }
}

impl Resolver for LeaseResolver {
    fn by_address(&self, address: Ipv6Addr) -> BoxFuture<'_, Result<PeerRecord, ResolveError>> {
        Box::pin(async move {
            let signed = self.leases.resolve(address).await?;
            self.check(address, &signed)
        })
    }

    /// Nobody calls the node over the mesh yet: runners only answer.
    fn by_key(&self, key: MeshKey) -> BoxFuture<'_, Result<PeerRecord, ResolveError>> {
        Box::pin(async move { Err(ResolveError::UnknownKey(key)) })
    }
}
