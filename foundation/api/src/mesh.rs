//! Who may be dialed, and who may speak from an address: leases, and how they are resolved.

mod roster;

use std::fmt;
use std::net::{Ipv6Addr, SocketAddr};

use serde::{Deserialize, Serialize};
use tabbify_types::event::v1::InstanceRef;
use tabbify_types::{
    AppId, Epoch, HostName, HostUla, InstanceId, MeshKey, SlotId, Tenant, Timestamp,
};

use crate::BoxFuture;
use crate::policy::Ports;

pub use roster::Roster;

/// The platform's word that a key answers for an instance of an app, signed by the issuer as a JWS
/// of type `tabbify-lease+jwt`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The app.
    pub app: AppId,
    /// Its tenant.
    pub tenant: Tenant,
    /// The slot that the instance fills.
    pub slot: SlotId,
    /// Fences earlier holders of the slot.
    pub epoch: Epoch,
    /// The instance.
    pub instance: InstanceId,
    /// Its WireGuard key.
    pub key: MeshKey,
    /// The machine it runs on.
    pub host: HostName,
    /// Where the WireGuard socket of that key may be reached: soft state, best first.
    pub candidates: Vec<SocketAddr>,
    /// When the lease ends.
    pub not_after: Timestamp,
    /// The instance is idle, and this is where the doorbell of its machine is ([`crate::doorbell`]): the key and
    /// the candidates are the machine's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub door: Option<HostUla>,
}

/// A peer as the mesh needs it: a key, the inner addresses it may speak from, the outer ones to try.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerRecord {
    /// Its WireGuard key.
    pub key: MeshKey,
    /// Inner addresses that it may use as source; checked on every packet.
    pub addresses: Vec<Ipv6Addr>,
    /// Outer addresses to try, best first; empty for a peer that only ever calls us.
    pub endpoints: Vec<SocketAddr>,
    /// Ports of the peer that we may reach; none if that is not known yet: then the peer decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outbound: Option<Ports>,
    /// Ports of ours that the peer may reach; none if that is not known yet: then its key is looked up
    /// before its first connection, and if that does not tell, it may reach nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inbound: Option<Ports>,
    /// The platform's word for the key names it a public edge (the tag `role:node`): what it says about the
    /// person that it speaks for counts. What anybody else says about people does not.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_node: bool,
    /// The tenants whose rules say what the two may reach of each other: the peer's and ours. None if that
    /// is not known: then every change of rules may concern the two.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules_of: Vec<Tenant>,
    /// Who was asked for is this instance, which is idle, and the peer is its machine, whose doorbell wakes it
    /// ([`crate::doorbell`]). What may be reached is that of the instance then, and nothing is said of what the
    /// machine is or may reach.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub door: Option<InstanceRef>,
}

impl PeerRecord {
    /// A peer that may reach every port of ours, and we every one of its: one that whoever runs us has
    /// named, with no policy between us. It speaks for nobody but itself.
    #[must_use]
    pub const fn unrestricted(
        key: MeshKey,
        addresses: Vec<Ipv6Addr>,
        endpoints: Vec<SocketAddr>,
    ) -> Self {
        Self {
            key,
            addresses,
            endpoints,
            outbound: Some(Ports::All),
            inbound: Some(Ports::All),
            is_node: false,
            rules_of: Vec::new(),
            door: None,
        }
    }

    /// The same as a public edge, which speaks for people.
    #[must_use]
    pub fn node(self) -> Self {
        Self {
            is_node: true,
            ..self
        }
    }

    /// Whether neither may reach anything of the other any more: a session of the two ends.
    #[must_use]
    pub fn is_forbidden(&self) -> bool {
        let nothing = |ports: &Option<Ports>| ports.as_ref().is_some_and(Ports::is_nothing);
        nothing(&self.outbound) && nothing(&self.inbound)
    }
}

/// Why an address leads nowhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// Nobody holds a lease for it.
    #[error("no lease for {0}")]
    NoLease(Ipv6Addr),
    /// No peer has this key.
    #[error("no peer has the key {0}")]
    UnknownKey(MeshKey),
    /// The answer is not signed as it must be.
    #[error("the lease is refused: {0}")]
    Refused(String),
    /// The coordinator cannot be asked.
    #[error("the coordinator cannot be reached: {0}")]
    Unreachable(String),
}

/// Answers who is behind an address or a key. Nobody gets a full roster.
pub trait Resolver: Send + Sync + fmt::Debug {
    /// The peer that answers for `address` now: an app's primary, an instance, or a host.
    fn by_address(&self, address: Ipv6Addr) -> BoxFuture<'_, Result<PeerRecord, ResolveError>>;

    /// The peer that has `key`, when it calls us. Only a relay is told of one with which neither may reach
    /// anything of the other ([`PeerRecord::is_forbidden`]); to all others there is no such peer.
    fn by_key(&self, key: MeshKey) -> BoxFuture<'_, Result<PeerRecord, ResolveError>>;

    /// Whoever answers for `address` is silent where it was said to be: if that is remembered from before, it is
    /// asked for anew the next time.
    fn doubt(&self, _address: Ipv6Addr) {}

    /// What changes from now on of what was answered; none where nothing ever does, or nobody tells.
    fn changes(&self) -> Option<Box<dyn Changes>> {
        None
    }
}

/// What is not as a resolver answered before. Who is concerned and has a living session is looked up again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changed {
    /// The key is nobody's any more: its sessions end at once.
    Gone(MeshKey),
    /// The rules of a tenant: whoever they may concern ([`PeerRecord::rules_of`]).
    Rules(Tenant),
    /// The machine at this address, such as its tags; everybody, if the address is our own.
    Machine(Ipv6Addr),
    /// More than was told one by one: everybody.
    Everything,
}

/// Tells changes as they happen. A teller that falls behind says [`Changed::Everything`].
pub trait Changes: Send + fmt::Debug {
    /// The next one; none if no more are told. Safe to cancel.
    fn next(&mut self) -> BoxFuture<'_, Option<Changed>>;
}

/// Hands out signed leases: the coordinator, in process now, over TLS later.
pub trait Leases: Send + Sync + fmt::Debug {
    /// The signed lease (compact JWS) of the instance that `address` means now.
    fn resolve(&self, address: Ipv6Addr) -> BoxFuture<'_, Result<String, ResolveError>>;

    /// Reports where an instance's WireGuard socket may be reached: after spawn and on adoption.
    fn report_candidates(&self, key: MeshKey, candidates: Vec<SocketAddr>);
}
