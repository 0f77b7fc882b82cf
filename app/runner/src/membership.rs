//! A runner on the network: the mesh, with a key made in memory, and the coordinator, if there is one, to
//! which the same key is proven.

use std::sync::Arc;
use std::time::Duration;

use tabbify_api::coordinator::{Helpers, RelayAt};
use tabbify_api::mesh::{Leases as _, Resolver};
use tabbify_api::runner::{Boot, CoordinatorAt, DoorAt, Place};
use tabbify_membership::{Door, MeshSecret, RemoteConfig, RemoteCoordinator};
use tabbify_mesh::{Config, Mesh, PrivateKey, RelayServer, RelayTls};
use tabbify_process::connect::{Connect, TcpSocket, UnixSocket};
use tabbify_process::{Clock, Importance, Tasks};
use tabbify_types::{AppUla, Digest, InstanceUla};
use zeroize::Zeroizing;

use crate::Error;
use crate::peers::Peers;

/// What a runner has on the network.
pub(crate) struct Joined {
    pub(crate) mesh: Mesh,
    pub(crate) peers: Arc<Peers>,
    pub(crate) coordinator: Option<RemoteCoordinator>,
}

/// Joins the mesh on the addresses of the app and of the instance.
pub(crate) fn join(boot: &Boot, clock: &Arc<dyn Clock>, tasks: &Tasks) -> Result<Joined, Error> {
    let (key, secret) = make_key();
    let (app, instance) = (boot.of.app, boot.of.instance);
    let addresses = vec![
        AppUla::derive(app).addr(),
        InstanceUla::derive(app, instance).addr(),
    ];
    let mut config = Config::new(key, addresses, boot.underlay);
    let mut peers = Peers::new(boot.peers.clone());
    let mut coordinator = None;
    if let Some(at) = &boot.coordinator {
        let client = open(at, &secret, clock, tasks)?;
        config = helped(config, &at.helpers, at.ask_nat);
        peers = peers.asking(Arc::new(client.clone()));
        coordinator = Some(client);
    }
    let peers = Arc::new(peers);
    let resolver: Arc<dyn Resolver> = Arc::<Peers>::clone(&peers);
    let mesh = Mesh::bind(config, resolver, tasks).map_err(Error::Mesh)?;
    if let Some(client) = &coordinator {
        report_candidates(&mesh, client, tasks);
    }
    Ok(Joined {
        mesh,
        peers,
        coordinator,
    })
}

/// A WireGuard key, made here: for the mesh, and for what it proves to the coordinator. It never touches
/// a disk.
fn make_key() -> (PrivateKey, MeshSecret) {
    let bytes = Zeroizing::new(tabbify_process::random::<32>());
    let key = PrivateKey::from_bytes(&bytes);
    (key, MeshSecret::from_bytes(&bytes))
}

/// The coordinator behind its doors, for whoever holds `secret`.
fn open(
    at: &CoordinatorAt,
    secret: &MeshSecret,
    clock: &Arc<dyn Clock>,
    tasks: &Tasks,
) -> Result<RemoteCoordinator, Error> {
    if at.doors.is_empty() {
        return Err(Error::NoDoor);
    }
    let mut doors = Vec::new();
    for (connect, pin) in places(&at.doors)? {
        let opened = Door::new(connect, pin, secret.clone());
        doors.push(opened.map_err(Error::Door)?);
    }
    let config = RemoteConfig {
        root: at.root,
        issuers: at.issuers.clone(),
        outage_grace: Duration::from_millis(at.outage_grace_ms),
    };
    RemoteCoordinator::start(doors, config, Arc::clone(clock), tasks).map_err(Error::Coordinator)
}

/// The coordinator is behind these doors now.
pub(crate) fn move_to(coordinator: &RemoteCoordinator, doors: &[DoorAt]) -> Result<(), Error> {
    coordinator.move_to(places(doors)?).map_err(Error::Door)
}

/// Ways to the coordinator, each with the pin of who is behind it.
type Places = Vec<(Arc<dyn Connect>, Digest)>;

fn places(doors: &[DoorAt]) -> Result<Places, Error> {
    let places = doors.iter().map(|door| Ok((connect(&door.at)?, door.pin)));
    places.collect()
}

fn connect(place: &Place) -> Result<Arc<dyn Connect>, Error> {
    match place {
        Place::Tcp(address) => Ok(Arc::new(TcpSocket { address: *address })),
        Place::Unix(path) => {
            let name = path.file_name().and_then(|name| name.to_str());
            match (path.parent(), name) {
                (Some(directory), Some(name)) => Ok(Arc::new(UnixSocket {
                    directory: directory.to_owned(),
                    name: name.to_owned(),
                })),
                _ => Err(Error::Socket(path.clone())),
            }
        }
    }
}

/// Makes the mesh's endpoint find relays and STUN servers.
fn helped(mut config: Config, helpers: &Helpers, ask_nat: bool) -> Config {
    config.relays = helpers.relays.iter().map(relay).collect();
    config.stun.clone_from(&helpers.stun);
    config.ask_nat = ask_nat;
    config
}

fn relay(at: &RelayAt) -> RelayServer {
    let tls = at.tls.map(|address| RelayTls {
        address,
        name: at.name.clone().unwrap_or_else(|| address.ip().to_string()),
    });
    RelayServer {
        key: at.key,
        udp: at.udp,
        tls,
    }
}

/// Tells the coordinator where we may be reached, now and whenever that changes.
fn report_candidates(mesh: &Mesh, coordinator: &RemoteCoordinator, tasks: &Tasks) {
    let (key, mut candidates) = (mesh.public_key(), mesh.candidates());
    let coordinator = coordinator.clone();
    tasks.spawn("candidates", Importance::Detached, async move {
        loop {
            let known = candidates.borrow_and_update().clone();
            // None yet is not none any more: nothing is to be taken back.
            if !known.is_empty() {
                coordinator.report_candidates(key, known);
            }
            if candidates.changed().await.is_err() {
                return;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use tabbify_types::MeshKey;

    use super::*;

    #[test]
    fn one_key_for_both() {
        let (key, secret) = make_key();
        assert_eq!(key.public(), secret.public());
        assert_ne!(make_key().0.public(), key.public());
    }

    #[test]
    fn where_a_coordinator_is() {
        connect(&Place::Unix("/run/tabbify/coordinator.sock".into())).unwrap();
        connect(&Place::Tcp(([127, 0, 0, 1], 1).into())).unwrap();
        for bad in ["/", "..", ""] {
            let error = connect(&Place::Unix(bad.into())).unwrap_err();
            assert!(
                error.to_string().contains("is not the path of a socket"),
                "{bad}"
            );
        }
    }

    #[test]
    fn a_relay_without_a_name_is_asked_for_by_its_address() {
        let at = RelayAt {
            key: MeshKey([7; 32]),
            udp: None,
            tls: Some(([192, 0, 2, 1], 443).into()),
            name: None,
        };
        assert_eq!(relay(&at).tls.unwrap().name, "192.0.2.1");
        let named = RelayAt {
            name: Some("relay.example.com".to_owned()),
            ..at
        };
        assert_eq!(relay(&named).tls.unwrap().name, "relay.example.com");
    }
}
