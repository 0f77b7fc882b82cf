//! This machine as a member of the mesh: a certificate and a token that are renewed in time, the
//! coordinator, and one WireGuard endpoint on the machine's address for every role of the process.
//!
//! ```text
//!   membership.json ─┐                      ┌─▶ certificate, token, who runs which role
//!                    ├─▶ Member ─ renewal ──┤
//!   coordinator ─────┘      │               └─▶ membership.json, for the next start
//!                           └─▶ Mesh on [host_ula]: services of this machine, the way to those of others
//! ```
//!
//! Spawns two tasks: `membership` renews, `mesh candidates` says where the endpoint may be reached.

mod kept;
mod renewal;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde::Deserialize;
use tabbify_api::BoxFuture;
use tabbify_api::coordinator::Helpers;
use tabbify_api::mesh::{Leases as _, Resolver};
use tabbify_api::policy::{NODE_TAG, ROLE_TAG};
use tabbify_api::runner::{CoordinatorAt, DoorAt, Place};
use tabbify_membership::{Door, Membership, MeshSecret, RemoteConfig, RemoteCoordinator};
use tabbify_mesh::{Mesh, MeshError, PrivateKey, RelayServer, RelayTls};
use tabbify_process::connect::{Bearer, Connect, Stream};
use tabbify_process::{Clock, Importance, Tasks, files};
use tabbify_token::{PlatformId, SecretKey};
use tabbify_types::{Digest, MeshKey};

pub(crate) use self::kept::{Again, Kept};
use self::renewal::Keeping;
use crate::data_dir::DataDir;
use crate::listen::{self, Taken, Transport};
use crate::mesh_status;
use crate::over_mesh::MeshSocket;
use crate::way::{Named, Way};

/// How long what is known of others counts while no coordinator can be reached.
const OUTAGE_GRACE: Duration = Duration::from_secs(24 * 3600);

/// How the process's WireGuard endpoint meets the network.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Section {
    /// Where it binds, over UDP; port 0 takes a free one. Runners bind beside it, on free ports.
    pub(crate) underlay: Option<SocketAddr>,
    /// Whether to ask the NAT for a port (PCP, NAT-PMP, UPnP). Default: no.
    pub(crate) ask_nat: bool,
}

/// What a member begins with.
pub(crate) struct Beginning {
    /// The way to the coordinator.
    pub(crate) way: Way,
    /// The digest of the coordinator's TLS key.
    pub(crate) pin: Digest,
    /// What was kept of before; whoever has nothing yet is told by [`Member::asked`].
    pub(crate) membership: Membership,
    /// Whether what is renewed is kept for the next start.
    pub(crate) is_kept: bool,
    /// Who resolves, if that is not the coordinator over the way to it.
    pub(crate) resolver: Option<Arc<dyn Resolver>>,
}

impl Beginning {
    /// Of a machine that has joined: nobody needs to be asked.
    pub(crate) fn again(kept: Kept) -> Self {
        Self {
            way: Way::Remote(Named::known_at(kept.coordinator, kept.known)),
            pin: kept.pin,
            membership: kept.membership,
            is_kept: true,
            resolver: None,
        }
    }
}

/// See the module. Clones are the same one.
#[derive(Debug, Clone)]
pub(crate) struct Member(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    coordinator: RemoteCoordinator,
    mesh: Mesh,
    signing: SecretKey,
    current: RwLock<Membership>,
    way: Way,
    pin: Digest,
    at: CoordinatorAt,
    underlay: SocketAddr,
    clock: Arc<dyn Clock>,
}

/// A machine's own keys, of which the mesh knows the public halves.
pub(crate) struct Secrets {
    /// WireGuard's.
    pub(crate) mesh: PrivateKey,
    /// The same, for proofs of possession.
    pub(crate) proof: MeshSecret,
    /// What spawn tickets are signed with.
    pub(crate) signing: SecretKey,
}

impl Secrets {
    /// Those of a data directory; makes them if they are not there.
    pub(crate) fn load_or_create(data: &DataDir) -> anyhow::Result<Self> {
        let path = data.node_key();
        let shown = || path.display().to_string();
        Ok(Self {
            mesh: PrivateKey::load_or_create(&path).with_context(shown)?,
            proof: MeshSecret::read(&path).with_context(shown)?,
            signing: signing_key(&data.host_key())?,
        })
    }

    /// The key that the machine is known by.
    pub(crate) fn key(&self) -> MeshKey {
        self.mesh.public()
    }
}

/// The key that signs spawn tickets on this machine.
fn signing_key(path: &Path) -> anyhow::Result<SecretKey> {
    let shown = || path.display().to_string();
    match files::read_secret(path) {
        Ok(bytes) => {
            let text = String::from_utf8(bytes).ok().with_context(shown)?;
            Ok(SecretKey::from_text(&text).with_context(shown)?)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let key = SecretKey::generate()?;
            files::write_atomic(path, key.to_text().as_bytes(), 0o600).with_context(shown)?;
            Ok(key)
        }
        Err(error) => Err(error).with_context(shown),
    }
}

impl Member {
    /// Binds the endpoint on the machine's address and goes on being a member until the tasks end. Nobody
    /// needs to be reached for that, but whoever looks up a name that was never known here.
    pub(crate) async fn start(
        data: &DataDir,
        beginning: Beginning,
        secrets: Secrets,
        section: &Section,
        clock: &Arc<dyn Clock>,
        tasks: &Tasks,
    ) -> anyhow::Result<Self> {
        let Beginning {
            way,
            pin,
            membership,
            is_kept,
            resolver,
        } = beginning;
        let key = secrets.key();
        if membership.certificate.key != key {
            let path = data.node_key();
            let path = path.display();
            bail!("{path} is not the key that joined. Put it back, or run `tabbify join` again");
        }
        let door = Door::new(Arc::new(way.clone()), pin, secrets.proof)?;
        let config = RemoteConfig {
            root: membership.root,
            issuers: membership.issuers.clone(),
            outage_grace: OUTAGE_GRACE,
        };
        let coordinator = RemoteCoordinator::start(vec![door], config, Arc::clone(clock), tasks)?;
        let places = way.find(tasks).await?;
        let (seen_at, underlay) = surroundings(&places, section.underlay);
        let helpers = membership.helpers.clone().seen_from(seen_at);
        let addresses = vec![membership.certificate.address.addr()];
        let mut config = tabbify_mesh::Config::new(secrets.mesh, addresses, underlay);
        config.relays = relays(&helpers);
        config.stun.clone_from(&helpers.stun);
        config.ask_nat = section.ask_nat;
        let resolver = resolver.unwrap_or_else(|| Arc::new(coordinator.clone()));
        let mesh = Mesh::bind(config, resolver, tasks).map_err(|error| unbound(error, underlay))?;
        mesh_status::serve(data, &mesh, Arc::new(coordinator.clone()), tasks)?;
        let at = CoordinatorAt {
            doors: Vec::new(),
            root: membership.root,
            issuers: membership.issuers.clone(),
            outage_grace_ms: u64::try_from(OUTAGE_GRACE.as_millis()).unwrap_or(u64::MAX),
            helpers,
            ask_nat: section.ask_nat,
        };
        let this = Self(Arc::new(Inner {
            coordinator,
            mesh,
            signing: secrets.signing,
            current: RwLock::new(membership),
            way,
            pin,
            at,
            underlay,
            clock: Arc::clone(clock),
        }));
        let kept = match (is_kept, &this.0.way) {
            (true, Way::Remote(coordinator)) => Some(Keeping {
                data: data.clone(),
                coordinator: coordinator.clone(),
                pin,
            }),
            _ => None,
        };
        this.begin(kept, tasks);
        Ok(this)
    }

    fn begin(&self, kept: Option<Keeping>, tasks: &Tasks) {
        let (renewing, stop) = (self.clone(), tasks.token());
        tasks.spawn("membership", Importance::Essential, async move {
            let _ = stop.run_until_cancelled(renewing.renew(kept)).await;
        });
        let (reporting, stop) = (self.clone(), tasks.token());
        tasks.spawn("mesh candidates", Importance::Detached, async move {
            let _ = stop.run_until_cancelled(reporting.report()).await;
        });
    }

    /// What a coordinator says now of the machine that has these keys, which is a member already.
    pub(crate) async fn asked(
        way: &Way,
        pin: Digest,
        config: RemoteConfig,
        secrets: &Secrets,
        clock: &Arc<dyn Clock>,
        tasks: &Tasks,
    ) -> anyhow::Result<Membership> {
        let door = Door::new(Arc::new(way.clone()), pin, secrets.proof.clone())?;
        // Its tasks end with the question.
        let asking = tasks.child();
        let coordinator = RemoteCoordinator::start(vec![door], config, Arc::clone(clock), &asking);
        let membership = coordinator?.certificate(&secrets.signing).await;
        asking.stop();
        Ok(membership?)
    }

    /// The coordinator.
    pub(crate) fn coordinator(&self) -> &RemoteCoordinator {
        &self.0.coordinator
    }

    /// The endpoint.
    pub(crate) fn mesh(&self) -> &Mesh {
        &self.0.mesh
    }

    /// The machine's signing key.
    pub(crate) fn signing(&self) -> &SecretKey {
        &self.0.signing
    }

    /// What is known now.
    pub(crate) fn current(&self) -> Membership {
        let current = self.0.current.read();
        current.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether the platform calls this machine a public edge.
    pub(crate) fn is_node(&self) -> bool {
        let tags = self.current().certificate.tags;
        tags.iter().any(|tag| tag == NODE_TAG)
    }

    /// The platform.
    pub(crate) fn platform(&self) -> PlatformId {
        PlatformId::of(&self.0.at.root)
    }

    /// The machine's address.
    pub(crate) fn address(&self) -> Ipv6Addr {
        self.current().certificate.address.addr()
    }

    /// Where runners of this machine find the coordinator, as it was looked up last.
    pub(crate) fn coordinator_at(&self) -> CoordinatorAt {
        let (issuers, pin) = (self.current().issuers, self.0.pin);
        let doors = self.0.way.places().into_iter();
        CoordinatorAt {
            doors: doors.map(|at| DoorAt { at, pin }).collect(),
            issuers,
            ..self.0.at.clone()
        }
    }

    /// Where runners of this machine bind their WireGuard sockets.
    pub(crate) fn runner_underlay(&self) -> SocketAddr {
        SocketAddr::new(self.0.underlay.ip(), 0)
    }

    /// The machine's token, as it is at each request.
    pub(crate) fn bearer(&self) -> Bearer {
        let this = self.clone();
        Arc::new(move || {
            let token = this.current().token;
            token.map(|token| token.token).unwrap_or_default()
        })
    }

    /// The machines that run a role, by address.
    pub(crate) fn machines(&self, role: &str) -> Vec<Ipv6Addr> {
        machines(&self.current(), role)
    }

    /// The way to a role's service, on whichever machine runs it.
    pub(crate) fn service(&self, role: &'static str, port: u16) -> Arc<dyn Connect> {
        let member = self.clone();
        Arc::new(OfRole { member, role, port })
    }

    /// From now on, that is known.
    fn learn(&self, membership: Membership) {
        let current = &self.0.current;
        *current.write().unwrap_or_else(PoisonError::into_inner) = membership;
    }

    /// Says where the endpoint may be reached, and again when that changes.
    async fn report(&self) {
        let (coordinator, key) = (&self.0.coordinator, self.0.mesh.public_key());
        let mut candidates = self.0.mesh.candidates();
        loop {
            let now = candidates.borrow_and_update().clone();
            coordinator.report_candidates(key, now);
            if candidates.changed().await.is_err() {
                return;
            }
        }
    }
}

/// A role's service, on the machine that runs it now; the first that answers, if several do.
#[derive(Debug)]
struct OfRole {
    member: Member,
    role: &'static str,
    port: u16,
}

impl Connect for OfRole {
    fn connect(&self) -> BoxFuture<'_, io::Result<Box<dyn Stream>>> {
        Box::pin(async {
            let none = format!("no machine has the tag {ROLE_TAG}{}", self.role);
            let mut failed = io::Error::new(io::ErrorKind::NotFound, none);
            for machine in self.member.machines(self.role) {
                let socket = MeshSocket {
                    mesh: self.member.mesh().clone(),
                    address: SocketAddrV6::new(machine, self.port, 0, 0),
                };
                match socket.connect().await {
                    Ok(stream) => return Ok(stream),
                    Err(error) => failed = error,
                }
            }
            Err(failed)
        })
    }
}

fn machines(membership: &Membership, role: &str) -> Vec<Ipv6Addr> {
    let has = |tag: &String| tag.strip_prefix(ROLE_TAG) == Some(role);
    let of = membership.system.iter();
    of.filter(|lease| lease.tags.iter().any(has))
        .map(|lease| lease.address.addr())
        .collect()
}

/// How the coordinator's host is seen from here, and where to bind unless it is said: where it is told
/// through loopback, nothing beyond that needs to reach us.
fn surroundings(places: &[Place], configured: Option<SocketAddr>) -> (IpAddr, SocketAddr) {
    let seen_at = places.iter().find_map(|place| match place {
        Place::Tcp(address) => Some(address.ip()),
        Place::Unix(_) => None,
    });
    let seen_at = seen_at.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let any: IpAddr = match seen_at {
        ip if ip.is_loopback() => ip,
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    (
        seen_at,
        configured.unwrap_or_else(|| SocketAddr::new(any, 0)),
    )
}

/// Relays as the mesh takes them.
pub(crate) fn relays(helpers: &Helpers) -> Vec<RelayServer> {
    let relays = helpers.relays.iter();
    relays
        .map(|relay| RelayServer {
            key: relay.key,
            udp: relay.udp,
            tls: relay.tls.map(|address| RelayTls {
                address,
                name: relay
                    .name
                    .clone()
                    .unwrap_or_else(|| address.ip().to_string()),
            }),
        })
        .collect()
}

/// Why there is no endpoint; who has the port, if that is why.
fn unbound(error: MeshError, underlay: SocketAddr) -> anyhow::Error {
    match &error {
        MeshError::Bind { source, .. } if source.kind() == io::ErrorKind::AddrInUse => {
            listen::taken(Taken::of("[mesh] underlay", Transport::Udp, underlay))
        }
        _ => error.into(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use tabbify_api::coordinator::{HostCertificate, HostLease, HostToken};
    use tabbify_types::{HostUla, Tenant, Timestamp, VerifyingKeyBytes};

    use super::*;

    pub(crate) const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

    pub(crate) fn membership(token: Option<u64>) -> Membership {
        let (host, tenant) = ("box2".parse().unwrap(), Tenant::system());
        let lease = |index: u16, tags: &[&str]| HostLease {
            host: "box1".parse().unwrap(),
            address: HostUla::new(1, index),
            tenant: Tenant::system(),
            tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
            key: MeshKey([1; 32]),
            candidates: Vec::new(),
            not_after: NOW,
        };
        Membership {
            root: VerifyingKeyBytes([3; 32]),
            issuers: Vec::new(),
            signed: "signed".to_owned(),
            certificate: HostCertificate {
                host,
                tenant,
                tags: Vec::new(),
                address: HostUla::new(1, 2),
                key: MeshKey([2; 32]),
                signing: VerifyingKeyBytes([4; 32]),
                not_after: NOW.plus(Duration::from_secs(24 * 3600)),
            },
            system: vec![
                lease(1, &["role:transaction-node", "role:auth"]),
                lease(3, &["role:auth"]),
            ],
            token: token.map(|life| HostToken {
                token: "tbh".to_owned(),
                expires: NOW.plus(Duration::from_secs(life)),
            }),
            helpers: Helpers::default(),
        }
    }

    #[test]
    fn a_role_is_where_its_tag_is() {
        let membership = membership(None);
        let at = |index: u16| HostUla::new(1, index).addr();
        assert_eq!(machines(&membership, "transaction-node"), [at(1)]);
        assert_eq!(machines(&membership, "auth"), [at(1), at(3)]);
        assert!(machines(&membership, "node").is_empty());
    }

    #[test]
    fn bound_beyond_loopback_only_if_the_coordinator_is_there() {
        let tcp = |text: &str| vec![Place::Tcp(text.parse().unwrap())];
        let of = |places: &[Place]| surroundings(places, None).1.to_string();
        assert_eq!(
            of(&[Place::Unix("/x/coordinator.sock".into())]),
            "127.0.0.1:0"
        );
        assert_eq!(of(&tcp("127.0.0.1:8888")), "127.0.0.1:0");
        assert_eq!(of(&tcp("198.51.100.2:8888")), "0.0.0.0:0");
        assert_eq!(of(&tcp("[2001:db8::1]:8888")), "[::]:0");
        let said = "192.0.2.1:51820".parse().unwrap();
        assert_eq!(surroundings(&tcp("127.0.0.1:1"), Some(said)).1, said);
    }

    #[test]
    fn the_signing_key_is_made_once() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("host.key");
        let key = signing_key(&path).unwrap();
        assert_eq!(signing_key(&path).unwrap().id(), key.id());
        std::fs::write(&path, "half a k").unwrap();
        assert!(signing_key(&path).is_err());
    }
}
