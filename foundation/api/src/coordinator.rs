//! The coordinator over a network: joining, leases, resolving, what changes.
//!
//! Every connection has proven a WireGuard key before its first request
//! (docs/protocols/coordinator.md): who asks is that key, and nothing in a request says otherwise.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use serde::{Deserialize, Serialize};
use tabbify_types::event::v1::{AllowRule, Capability};
use tabbify_types::{
    AppId, ByteSize, HostName, HostUla, InstanceId, MeshKey, Position, Tenant, Timestamp,
    VerifyingKeyBytes,
};

use crate::mesh::Changed;
use crate::policy::Ports;

/// `POST` a [`JoinRequest`] for a [`Joined`].
pub const JOIN_PATH: &str = "/v1/coordinator/join";
/// `POST` a [`CertificateRequest`] for a [`Joined`]: a member's certificate, anew.
pub const CERTIFICATE_PATH: &str = "/v1/coordinator/certificate";
/// `POST` a [`LeaseRequest`] for a [`SignedLease`].
pub const LEASE_PATH: &str = "/v1/coordinator/lease";
/// `POST` an [`Ask`] for a [`Resolved`].
pub const RESOLVE_PATH: &str = "/v1/coordinator/resolve";
/// `POST` a [`WatchRequest`] for lines of JSON, a [`Told`] each, without end.
pub const WATCH_PATH: &str = "/v1/coordinator/watch";
/// `POST` a [`Report`], also as a sign of life, for a [`Heard`].
pub const REPORT_PATH: &str = "/v1/coordinator/report";
/// `POST` without a body: a machine takes itself out of the mesh.
pub const LEAVE_PATH: &str = "/v1/coordinator/leave";
/// `GET` the list of [`EndorsedKey`], oldest first.
pub const ISSUERS_PATH: &str = "/v1/coordinator/issuers";

/// LIMIT: body of a request, in bytes.
pub const BODY_LEN_MAX: usize = 128 * 1024;
/// LIMIT: keys in one [`Report`].
pub const REPORT_KEYS_MAX: usize = 512;
/// LIMIT: outer addresses of one key; the rest of a report is dropped.
pub const CANDIDATES_MAX: usize = 16;
/// LIMIT: capabilities that a machine may name when it joins.
pub const CAPABILITIES_MAX: usize = 32;

/// A machine that wants to join.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinRequest {
    /// The join token; it is the joining key's from here on.
    pub token: String,
    /// What the machine has seen work on itself. Counts as far as the token allows it.
    #[serde(default)]
    pub capabilities: Vec<Capability>,
    /// The memory that it has for apps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<ByteSize>,
    /// The key that the machine will sign spawn tickets with.
    pub signing: VerifyingKeyBytes,
    /// A [`HostKey`], signed by that key.
    pub consent: String,
}

impl fmt::Debug for JoinRequest {
    /// Without the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinRequest")
            .field("signing", &self.signing)
            .finish_non_exhaustive()
    }
}

/// A member that wants a new certificate.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CertificateRequest {
    /// The key that the machine will sign spawn tickets with.
    pub signing: VerifyingKeyBytes,
    /// A [`HostKey`], signed by that key.
    pub consent: String,
}

/// A signing key says which WireGuard key it speaks for; the other way round is said by the
/// connection, which has proven that key. Signed as a JWS of type `tabbify-host-key+jwt`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostKey {
    /// The WireGuard key.
    pub key: MeshKey,
}

/// What a machine has joined: all that it needs to dial the platform without asking anybody else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joined {
    /// A [`HostCertificate`], signed.
    pub certificate: String,
    /// The keys that sign for the platform, each with the root key's word.
    pub issuers: Vec<EndorsedKey>,
    /// [`HostLease`]s of the machines that run roles of the platform, signed.
    pub system: Vec<String>,
    /// A token of kind `host`, bound to the machine's WireGuard key: what it shows to the platform's
    /// services over the mesh. A new one comes with every certificate; none where auth is away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<HostToken>,
    /// What helps members to find each other.
    #[serde(default)]
    pub helpers: Helpers,
    /// The coordinator's time, so that a clock that is off is found out.
    pub now: Timestamp,
}

/// A machine's token and its end.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostToken {
    /// The token.
    pub token: String,
    /// When it ends.
    pub expires: Timestamp,
}

impl fmt::Debug for HostToken {
    /// Without the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostToken")
            .field("expires", &self.expires)
            .finish_non_exhaustive()
    }
}

/// Where the platform's relays and STUN servers are. An unspecified IP address (`0.0.0.0`, `::`) stands
/// for the one that the coordinator was reached at.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Helpers {
    /// Relays, best first.
    #[serde(default)]
    pub relays: Vec<RelayAt>,
    /// STUN servers beside the relays, which answer it on their UDP ports, too.
    #[serde(default)]
    pub stun: Vec<SocketAddr>,
}

/// A relay as its clients find it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayAt {
    /// Its key: what makes it the one that is meant.
    pub key: MeshKey,
    /// Where it relays over UDP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub udp: Option<SocketAddr>,
    /// Where it relays over TLS, for whoever has no UDP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<SocketAddr>,
    /// The name that it is asked for by (SNI) over TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

impl Helpers {
    /// The same for a member that reached the coordinator at `at`.
    #[must_use]
    pub fn seen_from(mut self, at: IpAddr) -> Self {
        let place = |address: &mut SocketAddr| {
            if address.ip().is_unspecified() {
                address.set_ip(at);
            }
        };
        for relay in &mut self.relays {
            relay.udp.iter_mut().for_each(place);
            relay.tls.iter_mut().for_each(place);
        }
        self.stun.iter_mut().for_each(place);
        self
    }
}

/// An issuer key with the root key's word for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndorsedKey {
    /// The key.
    pub public: VerifyingKeyBytes,
    /// The root key's signature, as in `issuer_key_rotated`.
    pub signature: String,
}

/// The platform's word for a machine: what its signing key says about apps that were placed on it
/// counts, and about nothing else. A JWS of type `tabbify-host-certificate+jwt`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostCertificate {
    /// The machine.
    pub host: HostName,
    /// The tenant whose apps it may run; `system` for all.
    pub tenant: Tenant,
    /// Tags that its join token claimed.
    pub tags: Vec<String>,
    /// Its address.
    pub address: HostUla,
    /// Its WireGuard key.
    pub key: MeshKey,
    /// Its signing key.
    pub signing: VerifyingKeyBytes,
    /// When it ends.
    pub not_after: Timestamp,
}

/// The platform's word that a key answers for a machine's address. A JWS of type
/// `tabbify-host-lease+jwt`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostLease {
    /// The machine.
    pub host: HostName,
    /// Its address.
    pub address: HostUla,
    /// The tenant whose apps it may run; `system` for all.
    pub tenant: Tenant,
    /// Tags that its join token claimed, such as `role:auth`.
    pub tags: Vec<String>,
    /// Its WireGuard key.
    pub key: MeshKey,
    /// Where its WireGuard socket may be reached: soft state, best first.
    pub candidates: Vec<SocketAddr>,
    /// When the lease ends.
    pub not_after: Timestamp,
}

/// A machine's word that whoever shows it first may have the lease of an instance that was placed
/// there. A JWS of type `tabbify-spawn-ticket+jwt`, signed by the machine's signing key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpawnTicket {
    /// The app.
    pub app: AppId,
    /// The instance.
    pub instance: InstanceId,
    /// When it ends; a few minutes after the spawn.
    pub not_after: Timestamp,
}

/// An instance that wants its lease.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeaseRequest {
    /// How it was spawned; without, the lease that the key has is renewed.
    #[serde(default)]
    pub spawn: Option<Spawn>,
}

impl fmt::Debug for LeaseRequest {
    /// Without the ticket.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = if self.spawn.is_some() {
            "spawned"
        } else {
            "renewed"
        };
        write!(f, "LeaseRequest({how})")
    }
}

/// What a runner is spawned with.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spawn {
    /// The machine's [`HostCertificate`].
    pub certificate: String,
    /// A [`SpawnTicket`], signed by its key.
    pub ticket: String,
}

impl fmt::Debug for Spawn {
    /// Without the ticket.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Spawn(..)")
    }
}

/// A lease, renewed at half of its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedLease {
    /// A [`Lease`](crate::mesh::Lease), signed.
    pub lease: String,
    /// The coordinator's time: what is left of the lease is its end less this, whatever the clock of whoever
    /// gets it shows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub now: Option<Timestamp>,
}

/// Whose lease is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ask {
    /// Who answers at an address: to reach it.
    Address(Ipv6Addr),
    /// Who has a key: it wants to reach whoever asks.
    Key(MeshKey),
}

impl fmt::Display for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Key(key) => write!(f, "key {key}"),
        }
    }
}

/// The answer to an [`Ask`], if policy lets the two talk: by an address, if the asker may reach
/// something there; by a key, if either may reach something of the other, or the asker is a relay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolved {
    /// The lease.
    pub lease: ResolvedLease,
    /// Ports that may be reached: of whoever was asked for at an address; of the asker, by a key.
    pub ports: Ports,
    /// The other way round: of the asker, by an address; of whoever was asked for, by a key. None is
    /// not told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reverse: Option<Ports>,
    /// The tenants whose rules say so: those of the two. Of no other tenant does a change of rules concern
    /// them; none is not told.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules_of: Vec<Tenant>,
    /// The coordinator's time, so that a clock that is off is found out.
    pub now: Timestamp,
}

/// A lease of either sort, signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResolvedLease {
    /// Of an instance: a [`Lease`](crate::mesh::Lease).
    App(String),
    /// Of a machine: a [`HostLease`].
    Host(String),
}

/// Begins a watch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WatchRequest {
    /// What changed up to here is known already.
    #[serde(default)]
    pub after: Option<Position>,
}

/// A line of a watch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// What changed up to here has been told.
    pub position: Position,
    /// What changed.
    pub change: Change,
}

/// What changed, of what the watcher has asked for: it asks again when it needs it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// Too much, or the watch is new: nothing that was resolved before counts any more.
    Reset,
    /// Nothing; the connection is alive.
    Alive,
    /// Who answers for an app.
    App {
        /// The app.
        app: AppId,
        /// A key that has no lease any more: its sessions end.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        gone: Option<MeshKey>,
    },
    /// A machine.
    Host {
        /// The machine.
        host: HostName,
        /// Its address.
        address: HostUla,
        /// A key that is not the machine's any more: its sessions end.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        gone: Option<MeshKey>,
    },
    /// Who may reach what is the tenant's.
    Policy {
        /// The tenant.
        tenant: Tenant,
    },
    /// The issuer keys.
    Issuers,
}

impl Change {
    /// What it means for whoever has sessions with those that it is about.
    #[must_use]
    pub fn of_sessions(&self) -> Option<Changed> {
        match self {
            Self::Alive | Self::Issuers | Self::App { gone: None, .. } => None,
            Self::App {
                gone: Some(key), ..
            }
            | Self::Host {
                gone: Some(key), ..
            } => Some(Changed::Gone(*key)),
            Self::Policy { tenant } => Some(Changed::Rules(tenant.clone())),
            // It may have other tags, and so reach other things.
            Self::Host {
                gone: None,
                address,
                ..
            } => Some(Changed::Machine(address.addr())),
            Self::Reset => Some(Changed::Everything),
        }
    }
}

/// Where keys may be reached, from whoever runs them: a machine, of its own key and of instances that
/// were placed on it; an instance, of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// The keys; none is a sign of life alone.
    #[serde(default)]
    pub keys: Vec<Reachable>,
}

/// Where one key may be reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reachable {
    /// The key.
    pub key: MeshKey,
    /// Outer addresses, best first; none takes it back.
    pub candidates: Vec<SocketAddr>,
}

/// The answer to a [`Report`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heard {
    /// The coordinator's time.
    pub now: Timestamp,
    /// The report is forgotten unless it is repeated within this time, in milliseconds.
    pub again_within_ms: u64,
}

/// Who may reach what is a tenant's, as a person asks for it: all rules, not those to add.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyOrder {
    /// The tenant.
    pub tenant: Tenant,
    /// All its rules from here on.
    pub allow: Vec<AllowRule>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_helper_without_an_address_is_where_the_coordinator_is() {
        let at: SocketAddr = "0.0.0.0:3478".parse().unwrap();
        let other: SocketAddr = "192.0.2.9:3478".parse().unwrap();
        let relay = RelayAt {
            key: MeshKey([7; 32]),
            udp: Some(at),
            tls: Some("[::]:443".parse().unwrap()),
            name: None,
        };
        let helpers = Helpers {
            relays: vec![relay],
            stun: vec![other],
        };
        let seen = helpers.seen_from("198.51.100.1".parse().unwrap());
        assert_eq!(
            seen.relays[0].udp,
            Some("198.51.100.1:3478".parse().unwrap())
        );
        assert_eq!(
            seen.relays[0].tls,
            Some("198.51.100.1:443".parse().unwrap())
        );
        assert_eq!(seen.stun, [other]);
        let token = HostToken {
            token: "sekrit".to_owned(),
            expires: Timestamp::from_secs(1),
        };
        assert!(!format!("{token:?}").contains("sekrit"));
    }

    #[test]
    fn shapes_are_strict_and_secrets_are_not_shown() {
        let asked = Ask::Address("fd5a:1f02:1:2:3::1".parse().unwrap());
        let text = serde_json::to_string(&asked).unwrap();
        assert_eq!(text, r#"{"address":"fd5a:1f02:1:2:3::1"}"#);
        assert_eq!(serde_json::from_str::<Ask>(&text).unwrap(), asked);
        for bad in [
            "{}",
            "null",
            r#"{"address":"x"}"#,
            r#"{"key":"x"}"#,
            r#"{"address":"::1","key":"x"}"#,
        ] {
            assert!(serde_json::from_str::<Ask>(bad).is_err(), "{bad}");
        }
        assert!(serde_json::from_str::<LeaseRequest>(r#"{"host":"box"}"#).is_err());
        let spawn = Spawn {
            certificate: "sekrit".to_owned(),
            ticket: "sekrit".to_owned(),
        };
        let request = LeaseRequest { spawn: Some(spawn) };
        assert!(!format!("{request:?} {:?}", request.spawn).contains("sekrit"));
    }
}
