//! The gateway as others hold it: started over the platform's mesh, it serves until the tasks end.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use tabbify_api::device::{Connection, Device, Devices};
use tabbify_mesh::{Listener, Mesh, MeshError, StackChoice};
use tabbify_process::{Importance, Tasks};
use tabbify_types::{DeviceUla, MeshKey, Position};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::door::Door;
use crate::forward::carry;
use crate::live::Live;
use crate::stats::{Counters, Stats, count};
use crate::stock;

/// Why the gateway cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Clients cannot be told where it is.
    #[error(
        "the gateway listens on {0}, which no client can be told: say in `endpoint` how it is reached, as host:port"
    )]
    NoEndpoint(SocketAddr),
    /// What clients would be told is no place.
    #[error("{0:?} is not an endpoint of the gateway, such as `gate.example.org:51820`")]
    Endpoint(String),
    /// The WireGuard endpoint cannot be had.
    #[error("the gateway's WireGuard endpoint cannot be started")]
    Mesh(#[source] MeshError),
    /// The socket has no address.
    #[error("the gateway's socket does not say where it is")]
    Socket(#[source] std::io::Error),
}

/// A gateway that runs. Clones are the same one.
#[derive(Clone)]
pub struct Gateway(Arc<Inner>);

struct Inner {
    front: Mesh,
    door: Arc<Door>,
    listen: SocketAddr,
    endpoint: String,
}

impl Gateway {
    /// Whether clients can be told how to reach a gateway that listens there: before anything is made.
    ///
    /// # Errors
    /// [`StartError::Endpoint`], [`StartError::NoEndpoint`].
    pub fn check(listen: SocketAddr, endpoint: Option<&str>) -> Result<(), StartError> {
        match endpoint {
            Some(endpoint) if !stock::is_endpoint(endpoint) => {
                Err(StartError::Endpoint(endpoint.to_owned()))
            }
            None if listen.ip().is_unspecified() => Err(StartError::NoEndpoint(listen)),
            _ => Ok(()),
        }
    }

    /// Binds the WireGuard socket and serves recorded devices until `tasks` end: their connections go on
    /// over `mesh`, as far as `devices` allows them.
    ///
    /// To apps everything that devices say comes from whoever `mesh` is: it must be nobody's whose word about
    /// people counts ([`PeerRecord::is_node`](tabbify_api::mesh::PeerRecord::is_node)).
    ///
    /// # Errors
    /// [`StartError`].
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(
        config: Config,
        devices: Arc<dyn Devices>,
        mesh: Mesh,
        tasks: &Tasks,
    ) -> Result<Self, StartError> {
        Self::check(config.listen, config.endpoint.as_deref())?;
        let door = Arc::new(Door {
            devices,
            live: Live::new(config.limits.connections),
            counters: Arc::new(Counters::default()),
        });
        let front = front(&config, &door, tasks).map_err(StartError::Mesh)?;
        let listen = front.underlay_addr().map_err(StartError::Socket)?;
        let endpoint = config.endpoint.unwrap_or_else(|| listen.to_string());
        let listener = front.listen_all().map_err(StartError::Mesh)?;
        let (kept, carried) = (
            front.clone(),
            accept(listener, Arc::clone(&door), mesh, tasks.clone()),
        );
        tasks.spawn("gateway", Importance::Essential, async move {
            // It serves for as long as the tasks last, whoever still holds it.
            let _kept = kept;
            carried.await;
        });
        let watched = watch(Arc::clone(&door), tasks.token());
        tasks.spawn("gateway policy", Importance::Essential, watched);
        Ok(Self(Arc::new(Inner {
            front,
            door,
            listen,
            endpoint,
        })))
    }

    /// Its key, which clients know.
    #[must_use]
    pub fn public_key(&self) -> MeshKey {
        self.0.front.public_key()
    }

    /// Where its socket is.
    #[must_use]
    pub fn listen(&self) -> SocketAddr {
        self.0.listen
    }

    /// How clients reach it.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        &self.0.endpoint
    }

    /// Who may come.
    #[must_use]
    pub fn devices(&self) -> &Arc<dyn Devices> {
        &self.0.door.devices
    }

    /// What the client on a device is told.
    #[must_use]
    pub fn connection(&self, device: Device) -> Connection {
        Connection {
            device,
            gateway: self.public_key(),
            endpoint: self.0.endpoint.clone(),
        }
    }

    /// The counters.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let Door { live, counters, .. } = &*self.0.door;
        counters.snapshot(self.0.front.stats().sessions, live.len())
    }

    /// The counters of the WireGuard endpoint: what was dropped before it came to a connection.
    #[must_use]
    pub fn wire_stats(&self) -> tabbify_mesh::Stats {
        self.0.front.stats()
    }
}

/// An endpoint must have an address; this number is no device's, and policy lets nobody there.
const OWN: DeviceUla = DeviceUla::new(0);

/// The endpoint that clients talk to.
fn front(config: &Config, door: &Arc<Door>, tasks: &Tasks) -> Result<Mesh, MeshError> {
    let own = vec![OWN.addr()];
    let mut front = tabbify_mesh::Config::new(config.key.clone(), own, config.listen);
    front.stack = StackChoice::Userspace;
    front.gate = Some(Arc::clone(door) as _);
    front.limits.peers = config.limits.devices;
    front.limits.connections_per_peer = config.limits.connections_per_device;
    front.limits.backlog = config.limits.backlog;
    front.limits.tcp_buffer_bytes = config.limits.tcp_buffer_bytes;
    Mesh::bind(front, Arc::clone(door) as _, tasks)
}

/// Takes connections until the tasks end.
async fn accept(mut listener: Listener, door: Arc<Door>, mesh: Mesh, tasks: Tasks) {
    let stop = tasks.token();
    loop {
        let incoming = tokio::select! {
            incoming = listener.accept() => incoming,
            () = stop.cancelled() => return,
        };
        let Ok(incoming) = incoming else { return };
        let Some(place) = door.live.enter(incoming.peer, incoming.local) else {
            count(&door.counters.refused_full);
            incoming.stream.reset();
            continue;
        };
        // What was allowed at the SYN may have been taken back before it had a place to be cut from.
        if !door
            .allows(&incoming.peer, &incoming.local)
            .unwrap_or_default()
        {
            count(&door.counters.refused);
            incoming.stream.reset();
            continue;
        }
        let (mesh, door) = (mesh.clone(), Arc::clone(&door));
        tasks.spawn("gateway connection", Importance::Detached, async move {
            carry(incoming, place, &mesh, &door.counters).await;
        });
    }
}

/// Cuts what is not allowed any more, whenever that may have changed.
async fn watch(door: Arc<Door>, stop: CancellationToken) {
    let mut after = Position::default();
    loop {
        after = tokio::select! {
            changed = door.devices.changed(after) => changed,
            () = stop.cancelled() => return,
        };
        // What is not known now was allowed before, and stays so until it is known otherwise.
        door.live
            .keep(|device, to| door.allows(device, to).unwrap_or(true));
    }
}

impl fmt::Debug for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gateway")
            .field("listen", &self.0.listen)
            .field("endpoint", &self.0.endpoint)
            .finish_non_exhaustive()
    }
}
