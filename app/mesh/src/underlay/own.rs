//! The underlay of an endpoint that has a UDP socket of its own.

use std::fmt;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::{Arc, OnceLock};

use tabbify_process::{Importance, Tasks};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::spares::{Attached, Spares};
use super::{Inlet, Opened, Socket, Train, Underlay};
use crate::PrivateKey;
use crate::path::{Path, Surroundings};
use crate::relay::client::{Arrived, Link, RelayServer};
use crate::relay::{FRAME, HEADER_LEN};

/// LIMIT: relays that one endpoint is connected to.
const RELAYS_MAX: usize = 4;

/// See the module.
pub(crate) struct Own {
    socket: Socket,
    bound: SocketAddr,
    /// By number; those whose key is none are left out.
    links: Vec<(u16, Link)>,
    spares: Spares,
    around: Arc<Surroundings>,
    attached: OnceLock<Attached>,
}

impl Own {
    /// Binds the socket, and gets ready to use these relays.
    pub(crate) fn bind(
        address: SocketAddr,
        key: &PrivateKey,
        relays: &[RelayServer],
        around: Arc<Surroundings>,
    ) -> io::Result<Self> {
        let socket = Socket::bind(address)?;
        let bound = socket.local_addr()?;
        let relays = relays.iter().take(RELAYS_MAX).cloned();
        let links = (0..).zip(relays).filter_map(|(number, server)| {
            let link = Link::new(key, server)?;
            Some((number, link))
        });
        Ok(Self {
            socket,
            bound,
            links: links.collect(),
            spares: Spares::default(),
            around,
            attached: OnceLock::new(),
        })
    }

    fn link(&self, number: u16) -> Option<&Link> {
        let mut links = self.links.iter();
        links.find_map(|(known, link)| (*known == number).then_some(link))
    }

    /// Tells the agents which relays we are connected to: those over UDP first.
    fn tell(&self) {
        let connected = |udp: bool| {
            let links = self.links.iter();
            links.filter_map(move |(number, link)| {
                (link.is_connected() && link.is_udp() == udp).then_some(*number)
            })
        };
        let relays: Vec<u16> = connected(true).chain(connected(false)).collect();
        let is_connected = !relays.is_empty();
        if self.around.change(|side| side.relays = relays) && is_connected {
            self.around.connected.notify_waiters();
        }
    }
}

impl Underlay for Own {
    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.bound)
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn start(self: Arc<Self>, inlet: Inlet, tasks: &Tasks, stop: &CancellationToken) {
        let attached = Attached {
            inlet: Arc::clone(&inlet),
            tasks: tasks.clone(),
            runtime: Handle::current(),
        };
        if self.attached.set(attached).is_err() {
            return;
        }
        for at in 0..self.links.len() {
            let (this, inlet, stop) = (Arc::clone(&self), Arc::clone(&inlet), stop.clone());
            tasks.spawn("mesh-relay", Importance::Detached, async move {
                let (number, link) = &this.links[at];
                let inlet = |tag, datagram| inlet(Path::Relayed(*number, tag), datagram);
                Box::pin(link.run(&this.socket, inlet, || this.tell(), stop)).await;
            });
        }
    }

    fn try_receive(&self, room: &mut [u8]) -> io::Result<Train> {
        self.socket.try_receive(room)
    }

    fn open(&self, from: SocketAddr, datagram: &[u8]) -> Opened {
        if datagram.first() != Some(&FRAME) {
            return Opened::Datagram(Path::Direct(from), 0);
        }
        let mut links = self.links.iter();
        let Some((number, link)) = links.find(|(_, link)| link.udp() == Some(from)) else {
            // Not from a relay of ours: whoever gets it finds that it is nothing.
            return Opened::Datagram(Path::Direct(from), 0);
        };
        match link.receive(datagram, &self.socket) {
            Arrived::Datagram(tag) => Opened::Datagram(Path::Relayed(*number, tag), HEADER_LEN),
            Arrived::Nothing => Opened::Ours,
        }
    }

    fn try_send(&self, path: Path, datagrams: &[IoSlice<'_>], segment: usize) -> io::Result<usize> {
        match path {
            Path::Direct(to) => self.socket.try_send(to, datagrams, segment),
            Path::Relayed(number, tag) => self
                .link(number)
                .ok_or(io::ErrorKind::NotConnected)?
                .try_send(tag, datagrams, segment, &self.socket),
            Path::Spare(number, to) => {
                let attached = self.attached.get().ok_or(io::ErrorKind::NotConnected)?;
                for datagram in datagrams {
                    self.spares
                        .try_send(number, to, self.bound, datagram, attached)?;
                }
                Ok(datagrams.len())
            }
        }
    }

    fn release(&self, first: u32, keep: &[u32]) {
        self.spares.release(first, keep);
    }

    fn doubt(&self) {
        for (_, link) in &self.links {
            link.doubt();
        }
    }
}

impl fmt::Debug for Own {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Own")
            .field("bound", &self.bound)
            .field("relays", &self.links.len())
            .finish_non_exhaustive()
    }
}
