//! TCP/IP in the kernel, for a mesh that is a process's own: a TUN device in a network namespace that
//! nobody else has, sockets made in there, and one thread between the device and the UDP socket.
//!
//! ```text
//! Stream, Listener = kernel sockets ─ namespace ─ TUN ─ mesh-data (Pump) ─ UDP socket
//!                                       mesh-netns                │
//!                                  makes sockets in there     sessions, under their locks
//! ```
//! A session differs from one of the user-space stack only in that its [`Link`] takes the place of
//! the stack: everything about keys, paths, timers and who may speak is the same code.

pub(crate) mod alias;
pub(crate) mod checksum;
pub(crate) mod conn;
mod frame;
pub(crate) mod link;
mod merge;
mod namespace;
mod netlink;
mod pump;
mod reset;
mod split;
mod sys;

use std::collections::HashMap;
use std::net::Ipv6Addr;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use gotatun::packet::Packet;
use rustix::event::{EventfdFlags, eventfd};
use tabbify_process::Importance;
use tokio::sync::{mpsc, oneshot};

pub(crate) use alias::Alias;
pub(crate) use conn::{KernelStream, Place};
pub(crate) use link::Link;
pub use namespace::NamespaceError;
use namespace::{Namespace, Sockets};
use pump::Pump;

use crate::dispatch::Handshake;
use crate::endpoint::Endpoint;
use crate::peer::Peer;
use crate::stats::Counters;

/// What the endpoint keeps of it.
pub(crate) struct Kernel {
    pub(crate) sockets: Sockets,
    pub(crate) rootless: bool,
    /// Sessions by the number in their aliases; as many as there are peers.
    links: RwLock<HashMap<u64, Arc<Peer>>>,
    next: AtomicU64,
    /// The device, until the endpoint stops.
    tun: RwLock<Option<Arc<OwnedFd>>>,
}

impl Kernel {
    /// Makes a namespace with these addresses.
    pub(crate) fn open(
        addresses: Arc<[Ipv6Addr]>,
        buffer_bytes: usize,
    ) -> Result<Self, NamespaceError> {
        let namespace = Namespace::open(addresses, buffer_bytes)?;
        Ok(Self {
            sockets: namespace.sockets,
            rootless: namespace.rootless,
            links: RwLock::default(),
            next: AtomicU64::new(0),
            tun: RwLock::new(Some(Arc::new(namespace.tun))),
        })
    }

    /// A link with a number that no other had.
    pub(crate) fn link(&self) -> Link {
        Link::new(self.next.fetch_add(1, Ordering::Relaxed))
    }

    pub(crate) fn add(&self, number: u64, peer: &Arc<Peer>) {
        let mut links = self.links.write().unwrap_or_else(PoisonError::into_inner);
        links.insert(number, Arc::clone(peer));
    }

    pub(crate) fn remove(&self, number: u64) {
        let mut links = self.links.write().unwrap_or_else(PoisonError::into_inner);
        links.remove(&number);
    }

    fn tun(&self) -> Option<Arc<OwnedFd>> {
        let tun = self.tun.read().unwrap_or_else(PoisonError::into_inner);
        tun.clone()
    }

    /// Gives packets to the namespace that did not come through the socket.
    pub(crate) fn write(&self, packets: &mut [Packet], counters: &Counters) {
        if packets.is_empty() {
            return;
        }
        if let Some(tun) = self.tun() {
            pump::write(&tun, packets, counters);
        }
    }

    fn close(&self) {
        self.sockets.close();
        self.tun
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
    }

    pub(crate) fn linked(&self, alias: Alias) -> Option<Arc<Peer>> {
        let links = self.links.read().unwrap_or_else(PoisonError::into_inner);
        links.get(&alias.link).cloned()
    }
}

/// Starts the thread and the task that speaks for it.
pub(crate) fn start(
    endpoint: &Arc<Endpoint>,
    handshakes: mpsc::Sender<Handshake>,
) -> std::io::Result<()> {
    let tun = endpoint.kernel.as_ref().and_then(Kernel::tun);
    let tun = tun.ok_or(std::io::ErrorKind::NotConnected)?;
    let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
    let pump = Pump::new(Arc::clone(endpoint), tun, Arc::clone(&stop), handshakes);
    let (alive, ended) = oneshot::channel::<()>();
    std::thread::Builder::new()
        .name("mesh-data".to_owned())
        .spawn(move || {
            let _alive = alive;
            pump.run();
        })?;
    let stops = Stops {
        endpoint: Arc::clone(endpoint),
        event: stop,
    };
    let task = async move {
        tokio::select! {
            _ = ended => tracing::error!("the mesh carries nothing any more"),
            () = stops.endpoint.stop.cancelled() => {}
        }
    };
    endpoint
        .tasks
        .spawn("mesh-read", Importance::Essential, task);
    Ok(())
}

/// However the task ends, the threads end too, and with them the namespace.
struct Stops {
    endpoint: Arc<Endpoint>,
    event: Arc<OwnedFd>,
}

impl Drop for Stops {
    fn drop(&mut self) {
        self.endpoint.stop.cancel();
        let _ = rustix::io::write(&*self.event, &1_u64.to_ne_bytes());
        if let Some(kernel) = &self.endpoint.kernel {
            kernel.close();
        }
    }
}
