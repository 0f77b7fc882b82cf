//! Spare sockets: many at once while a hard NAT is to be got through, and the one that did afterwards.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, PoisonError, RwLock};

use bytes::BytesMut;
use socket2::SockRef;
use tabbify_process::{Importance, TaskHandle, Tasks};
use tokio::net::UdpSocket;
use tokio::runtime::Handle;

use super::Inlet;
use crate::path::Path;

/// Numbers of one peer's spare sockets.
const BLOCK: u32 = 256;
/// LIMIT: spare sockets of one endpoint: those of one attempt, and those that were successful.
const SPARES_MAX: usize = 512;
/// Bytes of a datagram that are received; the largest of ours is 1452.
const ROOM: usize = 2048;

#[derive(Debug)]
struct Spare {
    socket: Arc<UdpSocket>,
    reader: TaskHandle,
}

impl Drop for Spare {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// What an underlay was started with.
pub(super) struct Attached {
    pub(super) inlet: Inlet,
    pub(super) tasks: Tasks,
    pub(super) runtime: Handle,
}

#[derive(Debug, Default)]
pub(super) struct Spares(RwLock<HashMap<u32, Spare>>);

impl Spares {
    /// Sends from the socket with this number, which is opened if it is not there.
    pub(super) fn try_send(
        &self,
        number: u32,
        to: SocketAddr,
        bound: SocketAddr,
        datagram: &[u8],
        attached: &Attached,
    ) -> io::Result<()> {
        // Past the runtime, which believes a socket to have no room until it has looked at it for the
        // first time: the first datagram of each, which makes the hole in the NAT, would be lost.
        let sent = |socket: &UdpSocket| match SockRef::from(socket).send_to(datagram, &to.into()) {
            // As if the network had lost it: nobody waits for these sockets.
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(()),
        };
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(spare) = known.get(&number) {
            return sent(&spare.socket);
        }
        drop(known);
        let mut spares = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if spares.len() >= SPARES_MAX {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        // Hard NATs are those of IPv4.
        let ip = match bound.ip() {
            ip if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            ip => ip,
        };
        let socket = std::net::UdpSocket::bind(SocketAddr::new(ip, 0))?;
        socket.set_nonblocking(true)?;
        // A thread without a runtime may be the one that sends.
        let _entered = attached.runtime.enter();
        let socket = Arc::new(UdpSocket::from_std(socket)?);
        let reader = read(Arc::clone(&socket), number, Arc::clone(&attached.inlet));
        let reader = attached
            .tasks
            .spawn("mesh-spare", Importance::Detached, reader);
        let spare = Spare { socket, reader };
        let result = sent(&spare.socket);
        spares.insert(number, spare);
        result
    }

    /// Closes those of the block that begins with `first`, but for these.
    pub(super) fn release(&self, first: u32, keep: &[u32]) {
        let mut spares = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let is_of = |number: u32| number.wrapping_sub(first) < BLOCK;
        spares.retain(|number, _| !is_of(*number) || keep.contains(number));
    }
}

async fn read(socket: Arc<UdpSocket>, number: u32, inlet: Inlet) {
    let mut room = BytesMut::with_capacity(ROOM);
    loop {
        room.clear();
        if !room.try_reclaim(ROOM) {
            room = BytesMut::with_capacity(ROOM);
        }
        // An error is an old ICMP message; the socket lives until it is released.
        if let Ok((_, from)) = socket.recv_buf_from(&mut room).await {
            let from = SocketAddr::new(from.ip().to_canonical(), from.port());
            inlet(Path::Spare(number, from), room.split());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_spare_sends_at_once() {
        let peer = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = peer.local_addr().unwrap();
        let tasks = Tasks::new();
        let inlet: Inlet = Arc::new(|_, _| {});
        let attached = Attached {
            inlet,
            tasks,
            runtime: Handle::current(),
        };
        let spares = Spares::default();
        // Not once has the runtime looked at the socket.
        spares.try_send(7, to, to, b"first", &attached).unwrap();
        peer.set_read_timeout(Some(std::time::Duration::from_secs(20)))
            .unwrap();
        let mut room = [0; 16];
        let (len, _) = peer.recv_from(&mut room).unwrap();
        assert_eq!(&room[..len], b"first");
    }
}
