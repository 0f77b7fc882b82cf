//! How datagrams travel: the seam between sessions and networks. A session names a [`Path`]; what lies
//! under it (our own UDP socket, a spare one, a relay over UDP or TLS) is the [`Underlay`]'s affair, so
//! that a keeper of one port for a whole host can take the place of a socket per endpoint.
//!
//! Many datagrams pass in one system call: a *train* is datagrams of equal size, of which the last may
//! be shorter (Linux `UDP_SEGMENT` out, `UDP_GRO` in).

use std::fmt;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use bytes::BytesMut;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tabbify_process::Tasks;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio_util::sync::CancellationToken;

use crate::path::Path;

mod own;
mod socket;
mod spares;

pub(crate) use own::Own;
pub(crate) use socket::Socket;

/// LIMIT: bytes of one train; the largest UDP payload is 65,507.
pub(crate) const TRAIN_BYTES_MAX: usize = 65_000;
/// LIMIT: datagrams of one train; that of the oldest kernels with `UDP_SEGMENT`.
pub(crate) const TRAIN_DATAGRAMS_MAX: usize = 64;
/// Bytes that a received train takes at most.
pub(crate) const TRAIN_ROOM: usize = 65_536;
/// LIMIT: how long, in milliseconds and each time, a thread waits for room in the socket, and how
/// often before it drops a train.
const ROOM_WAIT_MS: u8 = 50;
pub(crate) const ROOM_WAITS_MAX: usize = 4;

/// A train that arrived.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Train {
    pub(crate) from: SocketAddr,
    pub(crate) len: usize,
    /// Bytes of each datagram but the last.
    pub(crate) segment: usize,
}

/// What a datagram that arrived is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Opened {
    /// It came on this path; what was sent begins at this byte.
    Datagram(Path, usize),
    /// The underlay's own, and done with.
    Ours,
}

/// Takes datagrams that do not come through the descriptor: each with its path.
pub(crate) type Inlet = Arc<dyn Fn(Path, BytesMut) + Send + Sync>;

/// Carries datagrams on paths. Nothing here waits.
pub(crate) trait Underlay: Send + Sync + fmt::Debug {
    /// Where the socket is bound.
    fn local_addr(&self) -> io::Result<SocketAddr>;

    /// Readable when a train is there, writable when there is room for one.
    fn descriptor(&self) -> BorrowedFd<'_>;

    /// Begins to carry what does not come through the descriptor, until `stop`.
    fn start(self: Arc<Self>, inlet: Inlet, tasks: &Tasks, stop: &CancellationToken);

    /// Takes a train if one is there.
    fn try_receive(&self, room: &mut [u8]) -> io::Result<Train>;

    /// Says what a datagram of a train is.
    fn open(&self, from: SocketAddr, datagram: &[u8]) -> Opened;

    /// Sends datagrams, all of `segment` bytes, the last may be shorter; how many were taken, at
    /// least one. As lossy as the network.
    fn try_send(&self, path: Path, datagrams: &[IoSlice<'_>], segment: usize) -> io::Result<usize>;

    /// Closes the spare sockets of the block that begins with `first`, but for these.
    fn release(&self, first: u32, keep: &[u32]);

    /// Somebody doubts that the relays are there: asks them.
    fn doubt(&self);
}

/// What was sent of a train.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Sent {
    pub(crate) datagrams: usize,
    pub(crate) bytes: usize,
}

impl Sent {
    fn add(&mut self, datagrams: &[IoSlice<'_>]) {
        self.datagrams += datagrams.len();
        self.bytes += datagrams
            .iter()
            .map(|datagram| datagram.len())
            .sum::<usize>();
    }
}

/// Sends a train, for a thread that may wait so often.
pub(crate) fn send_now(
    underlay: &dyn Underlay,
    path: Path,
    train: &[IoSlice<'_>],
    segment: usize,
    waits: usize,
) -> Sent {
    let (mut sent, mut rest, mut waits) = (Sent::default(), train, waits);
    while !rest.is_empty() {
        match underlay.try_send(path, rest, segment) {
            Ok(taken) => {
                let (done, later) = rest.split_at(taken.clamp(1, rest.len()));
                sent.add(done);
                rest = later;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && waits > 0 => {
                waits -= 1;
                let mut fds = [PollFd::from_borrowed_fd(
                    underlay.descriptor(),
                    PollFlags::OUT,
                )];
                let timeout = Timespec {
                    tv_sec: 0,
                    tv_nsec: i64::from(ROOM_WAIT_MS) * 1_000_000,
                };
                // Whatever it says, the next attempt shows.
                let _ = poll(&mut fds, Some(&timeout));
            }
            Err(_) => break,
        }
    }
    sent
}

/// A descriptor that the runtime watches: a copy of its own, so that it is open for as long.
#[expect(unsafe_code, reason = "the runtime must not watch a closed descriptor")]
pub(crate) fn watch(descriptor: BorrowedFd<'_>) -> io::Result<AsyncFd<OwnedFd>> {
    let descriptor = descriptor.try_clone_to_owned()?;
    // SAFETY: an `OwnedFd` names one open descriptor until it is dropped.
    Ok(unsafe { AsyncFd::register(descriptor) }?)
}

/// An underlay that the runtime waits for.
#[derive(Debug)]
pub(crate) struct Watched {
    underlay: Arc<dyn Underlay>,
    descriptor: AsyncFd<OwnedFd>,
}

impl Watched {
    pub(crate) fn new(underlay: Arc<dyn Underlay>) -> io::Result<Self> {
        let descriptor = watch(underlay.descriptor())?;
        Ok(Self {
            underlay,
            descriptor,
        })
    }

    /// Waits for a train.
    pub(crate) async fn receive(&self, room: &mut [u8]) -> io::Result<Train> {
        let receive = |_: &OwnedFd| self.underlay.try_receive(room);
        self.descriptor.async_io(Interest::READABLE, receive).await
    }

    /// Sends a train, waiting while there is no room.
    pub(crate) async fn send(&self, path: Path, train: &[IoSlice<'_>], segment: usize) -> Sent {
        let (mut sent, mut rest) = (Sent::default(), train);
        while !rest.is_empty() {
            let send = |_: &OwnedFd| self.underlay.try_send(path, rest, segment);
            match self.descriptor.async_io(Interest::WRITABLE, send).await {
                Ok(taken) => {
                    let (done, later) = rest.split_at(taken.clamp(1, rest.len()));
                    sent.add(done);
                    rest = later;
                }
                // An earlier ICMP message, a missing route.
                Err(error) => {
                    tracing::trace!(?path, %error, "datagrams not sent");
                    break;
                }
            }
        }
        sent
    }
}
