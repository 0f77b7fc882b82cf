//! The relay: passes datagrams between members that have no direct path, beside the coordinator in
//! `tabbify up` or as `tabbify relay` on a machine of its own. It sees keys and sizes, and nothing else.

use std::fmt::Write as _;
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use tabbify_api::coordinator::RelayAt;
use tabbify_api::mesh::Resolver;
use tabbify_api::policy::RELAY_TAG;
use tabbify_mesh::{PrivateKey, Relay, RelayLimits};
use tabbify_process::Tasks;
use tokio::net::TcpListener;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::listen::{Taken, Transport};
use crate::member::{self, Again, Kept};
use crate::role;

/// The name in the certificate where none is configured: it proves nothing, keys do.
const NAME: &str = "relay.invalid";

/// `[relay]`: without `udp` and `listen` there is none.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Section {
    /// Where it relays over UDP, and answers STUN. `0.0.0.0` stands for every address of the machine:
    /// members then use the one that they reach the coordinator at.
    udp: Option<SocketAddr>,
    /// Where it relays over TLS, best on port 443, for members that have no UDP.
    listen: Option<SocketAddr>,
    /// Where members find `udp`, if that is elsewhere, such as behind a NAT.
    public_udp: Option<SocketAddr>,
    /// The same for `listen`.
    public_listen: Option<SocketAddr>,
    /// The name that members ask for over TLS (SNI); proxies on the way may look at it.
    name: Option<String>,
}

/// A relay whose sockets are bound, so that members can be told of it before it knows them.
pub(crate) struct Bound {
    key: PrivateKey,
    section: Section,
    udp: Option<UdpSocket>,
    tls: Option<TcpListener>,
}

impl Section {
    /// Whether it can be one, before anything is made.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        self.name
            .as_deref()
            .map_or(Ok(()), |name| certificate(name).map(drop))
    }

    /// Takes the sockets; nothing if none is configured.
    pub(crate) async fn bind(&self, key: &Path) -> anyhow::Result<Option<Bound>> {
        if self.udp.is_none() && self.listen.is_none() {
            return Ok(None);
        }
        let udp = self.udp.map(|at| {
            let taken = Taken::of("[relay] udp", Transport::Udp, at);
            UdpSocket::bind(at).map_err(|error| taken.or(error))
        });
        let tls = match self.listen {
            Some(at) => {
                let taken = Taken::of("[relay] listen", Transport::Tcp, at);
                Some(
                    TcpListener::bind(at)
                        .await
                        .map_err(|error| taken.or(error))?,
                )
            }
            None => None,
        };
        let shown = || key.display().to_string();
        Ok(Some(Bound {
            key: PrivateKey::load_or_create(key).with_context(shown)?,
            section: self.clone(),
            udp: udp.transpose()?,
            tls,
        }))
    }
}

impl Bound {
    /// How members find it.
    pub(crate) fn at(&self) -> anyhow::Result<RelayAt> {
        let udp = self.udp.as_ref().map(UdpSocket::local_addr).transpose()?;
        let tls = self.tls.as_ref().map(TcpListener::local_addr).transpose()?;
        Ok(RelayAt {
            key: self.key.public(),
            udp: self.section.public_udp.or(udp),
            tls: self.section.public_listen.or(tls),
            name: self.section.name.clone(),
        })
    }

    /// Relays between members, whom `resolver` knows by their keys, until the tasks end.
    pub(crate) fn start(self, resolver: Arc<dyn Resolver>, tasks: &Tasks) -> anyhow::Result<Relay> {
        let relay = Relay::new(self.key, resolver, RelayLimits::default(), tasks);
        if let Some(socket) = self.udp {
            relay.serve_udp(socket)?;
        }
        if let Some(listener) = self.tls {
            let name = self.section.name.as_deref().unwrap_or(NAME);
            relay.serve_tls(listener, certificate(name)?);
        }
        Ok(relay)
    }
}

/// `tabbify relay`: relays until a signal, on a machine that has joined with the tag `role:relay`.
pub(crate) async fn run(arguments: role::Arguments) -> anyhow::Result<()> {
    let config = arguments.config::<Config>()?;
    let data = arguments.data_dir(None)?;
    let kept = Kept::read(&data)?;
    let host = kept.membership.certificate.host.clone();
    ensure!(
        kept.membership
            .certificate
            .tags
            .iter()
            .any(|tag| tag == RELAY_TAG),
        "{host} joined without the tag {RELAY_TAG}, so the coordinator tells it of nobody. Run there: \
         tabbify invite {host} --tag {RELAY_TAG} --no-apps, and here: tabbify join <coordinator> --no-run"
    );
    let bound = config.relay.bind(&data.relay_key()).await?;
    let bound = bound.context(
        "[relay] has neither udp nor listen: say where it relays (docs/operating/relay.toml)",
    )?;
    let at = bound.at()?;
    let again = Again::start(&data, kept, &config.mesh).await?;
    let member = &again.member;
    let _relay = bound.start(Arc::new(member.coordinator().clone()), &again.tasks)?;
    let said = format!(
        "relay · {host} · platform {}\n{}",
        member.platform(),
        table(&at)
    );
    again.serve(&said).await
}

/// What the coordinator's configuration says of a relay.
fn table(at: &RelayAt) -> String {
    let mut text = format!("[[coordinator.relays]]\nkey = \"{}\"\n", at.key);
    let places = [("udp", at.udp), ("tls", at.tls)];
    for (name, place) in places {
        if let Some(place) = place {
            let _ = writeln!(text, "{name} = \"{place}\"");
        }
    }
    if let Some(name) = &at.name {
        let _ = writeln!(text, "name = \"{name}\"");
    }
    text
}

/// The file of a relay on a machine of its own: `[relay]` and `[mesh]`.
#[derive(Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Config {
    relay: Section,
    mesh: member::Section,
}

/// A certificate of a moment, for the middle of the network to look at.
fn certificate(name: &str) -> anyhow::Result<Arc<ServerConfig>> {
    let made = rcgen::generate_simple_self_signed(vec![name.to_owned()])
        .context("[relay] name is no name of a server")?;
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], PrivateKeyDer::Pkcs8(key))?;
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn members_are_told_where_it_is() {
        let home = tempfile::tempdir().unwrap();
        let key = home.path().join("relay.key");
        assert!(Section::default().bind(&key).await.unwrap().is_none());
        let loopback: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let public: SocketAddr = "192.0.2.1:443".parse().unwrap();
        let section = Section {
            udp: Some(loopback),
            listen: Some(loopback),
            public_listen: Some(public),
            name: Some("relay.example.com".to_owned()),
            ..Section::default()
        };
        let bound = section.bind(&key).await.unwrap().unwrap();
        let at = bound.at().unwrap();
        assert_ne!(at.udp.unwrap().port(), 0);
        assert_eq!(at.tls, Some(public));
        assert_eq!(at.name.as_deref(), Some("relay.example.com"));
        let taken = Section {
            udp: at.udp,
            ..Section::default()
        };
        let refused = taken.bind(&key).await.err().unwrap();
        let said = format!("{refused:#}");
        assert!(said.contains("Set another [relay] udp"), "{said}");
        let tasks = Tasks::new();
        let nobody = Arc::new(Nobody);
        assert_eq!(bound.start(nobody, &tasks).unwrap().key(), at.key);
        tasks.shutdown(std::time::Duration::from_secs(5)).await;
        // The key is the same after a restart.
        let again = taken.bind(&key).await.unwrap().unwrap();
        assert_eq!(again.at().unwrap().key, at.key);
    }

    #[test]
    fn what_it_says_of_itself_is_what_the_coordinator_reads() {
        let at = RelayAt {
            key: PrivateKey::generate().public(),
            udp: Some("192.0.2.1:3478".parse().unwrap()),
            tls: Some("[2001:db8::1]:443".parse().unwrap()),
            name: Some("relay.example.com".to_owned()),
        };
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("coordinator.toml");
        std::fs::write(&file, table(&at)).unwrap();
        let read: crate::coordinator::Config =
            tabbify_process::config::load(Some(&file), &[]).unwrap();
        assert_eq!(read.relays(), [at]);
    }

    #[test]
    fn the_documented_example_is_a_configuration() {
        let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/operating");
        let file = examples.join("relay.toml");
        let config: Config = tabbify_process::config::load(Some(&file), &[]).unwrap();
        assert!(config.relay.udp.is_some() && config.relay.listen.is_some());
    }

    #[derive(Debug)]
    struct Nobody;

    impl Resolver for Nobody {
        fn by_address(
            &self,
            address: std::net::Ipv6Addr,
        ) -> tabbify_api::BoxFuture<
            '_,
            Result<tabbify_api::mesh::PeerRecord, tabbify_api::mesh::ResolveError>,
        > {
            Box::pin(async move { Err(tabbify_api::mesh::ResolveError::NoLease(address)) })
        }

        fn by_key(
            &self,
            key: tabbify_types::MeshKey,
        ) -> tabbify_api::BoxFuture<
            '_,
            Result<tabbify_api::mesh::PeerRecord, tabbify_api::mesh::ResolveError>,
        > {
            Box::pin(async move { Err(tabbify_api::mesh::ResolveError::UnknownKey(key)) })
        }
    }
}
