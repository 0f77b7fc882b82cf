//! The coordinator as the mesh of its own process has it: nothing is signed, for nothing crosses a wire.

use std::net::Ipv6Addr;
use std::sync::Arc;

use tabbify_api::BoxFuture;
use tabbify_api::coordinator::Ask;
use tabbify_api::mesh::{Changed, Changes, PeerRecord, ResolveError, Resolver};
use tabbify_api::policy::NODE_TAG;
use tabbify_types::event::v1::InstanceRef;
use tabbify_types::{AppUla, InstanceUla, MeshKey};

use crate::coordinator::Coordinator;
use crate::leases::Holder;
use crate::member::{Talk, Target};
use crate::refusal::Refusal;
use crate::watch::Watch;

/// Answers one member of the mesh.
#[derive(Debug)]
struct Own {
    coordinator: Coordinator,
    key: MeshKey,
}

/// A watch of that member's.
#[derive(Debug)]
struct Watching(Watch);

impl Coordinator {
    /// Resolves for the member that has `key`: what it may know, and what changes of that. The same rules
    /// count as over the network.
    #[must_use]
    pub fn resolver(&self, key: MeshKey) -> Arc<dyn Resolver> {
        let coordinator = self.clone();
        Arc::new(Own { coordinator, key })
    }
}

impl Own {
    async fn find(&self, ask: Ask) -> Result<PeerRecord, ResolveError> {
        let found = self.coordinator.find(|| self.look(ask)).await;
        found.map_err(|refusal| refused(ask, &refusal))
    }

    fn look(&self, ask: Ask) -> Result<PeerRecord, Refusal> {
        let Talk {
            target,
            ports,
            reverse,
            rules_of,
        } = self.coordinator.talk(&self.key, ask)?;
        let (holder, addresses, is_node) = match &target {
            Target::Door(granted, machine) => {
                let holder = Holder::Host(machine);
                let (app, instance) = (granted.app, granted.instance);
                return Ok(PeerRecord {
                    key: machine.key,
                    addresses: vec![machine.address.addr()],
                    endpoints: self.coordinator.candidates(holder).unwrap_or_default(),
                    outbound: Some(ports),
                    inbound: None,
                    is_node: false,
                    rules_of,
                    door: Some(InstanceRef { app, instance }),
                });
            }
            Target::Instance(granted) => {
                let app = AppUla::derive(granted.app).addr();
                let instance = InstanceUla::derive(granted.app, granted.instance).addr();
                (Holder::Instance(granted), vec![app, instance], false)
            }
            Target::Host(peer) => {
                let is_node = peer.tags.iter().any(|tag| tag == NODE_TAG);
                (Holder::Host(peer), vec![peer.address.addr()], is_node)
            }
        };
        let (outbound, inbound) = match ask {
            Ask::Address(_) => (ports, reverse),
            Ask::Key(_) => (reverse, ports),
        };
        // Whoever calls us needs not be found; whom we call does.
        let endpoints = match (self.coordinator.candidates(holder), ask, holder) {
            (Some(endpoints), ..) => endpoints,
            (None, Ask::Address(_), Holder::Instance(_)) => {
                return Err(self.coordinator.unheard(ask));
            }
            (None, ..) => Vec::new(),
        };
        Ok(PeerRecord {
            key: holder.key(),
            addresses,
            endpoints,
            outbound: Some(outbound),
            inbound: Some(inbound),
            is_node,
            rules_of,
            door: None,
        })
    }
}

fn refused(ask: Ask, refusal: &Refusal) -> ResolveError {
    match (refusal, ask) {
        (Refusal::NoLease(_) | Refusal::Denied(_), Ask::Address(address)) => {
            ResolveError::NoLease(address)
        }
        (Refusal::NoLease(_) | Refusal::Denied(_), Ask::Key(key)) => ResolveError::UnknownKey(key),
        (Refusal::Unavailable(why), _) => ResolveError::Unreachable(why.clone()),
        _ => ResolveError::Refused(refusal.to_string()),
    }
}

impl Resolver for Own {
    fn by_address(&self, address: Ipv6Addr) -> BoxFuture<'_, Result<PeerRecord, ResolveError>> {
        Box::pin(self.find(Ask::Address(address)))
    }

    fn by_key(&self, key: MeshKey) -> BoxFuture<'_, Result<PeerRecord, ResolveError>> {
        Box::pin(self.find(Ask::Key(key)))
    }

    fn changes(&self) -> Option<Box<dyn Changes>> {
        let watch = self.coordinator.watch_own(&self.key);
        match watch {
            Ok(watch) => Some(Box::new(Watching(watch))),
            Err(refusal) => {
                tracing::warn!(role = "coordinator", %refusal, "changes are not heard");
                None
            }
        }
    }
}

impl Changes for Watching {
    fn next(&mut self) -> BoxFuture<'_, Option<Changed>> {
        Box::pin(async {
            loop {
                let told = self.0.next().await?;
                if let Some(changed) = told.change.of_sessions() {
                    return Some(changed);
                }
            }
        })
    }
}
