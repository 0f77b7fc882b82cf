//! The UDP socket, and the only file that knows how datagrams travel: a later relay or path agent
//! takes its place here.
//!
//! Many datagrams pass in one system call: a *train* is one buffer of datagrams of equal size, of
//! which the last may be shorter (Linux `UDP_SEGMENT` out, `UDP_GRO` in).

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket as StdUdpSocket};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::sys::socket::{
    self, ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, sockopt,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// LIMIT: bytes of one train; the largest UDP payload is 65,507.
pub(crate) const TRAIN_BYTES_MAX: usize = 65_000;
/// LIMIT: datagrams of one train; that of the oldest kernels with `UDP_SEGMENT`.
pub(crate) const TRAIN_DATAGRAMS_MAX: usize = 64;
/// Bytes that a received train takes at most.
pub(crate) const TRAIN_ROOM: usize = 65_536;
/// LIMIT: how long, in milliseconds and each time, a thread waits for room in the socket, and how
/// often before it drops a train.
const ROOM_WAIT_MS: u8 = 50;
const ROOM_WAITS_MAX: usize = 4;
/// LIMIT: what the kernel may hold for us, each way, if `net.core.{r,w}mem_max` allows it. With the
/// default of 208 KiB a burst of two connections is lost.
const SOCKET_BUFFER_BYTES: usize = 4 * 1024 * 1024;

#[derive(Debug)]
pub(crate) struct Underlay {
    socket: Socket,
    /// Bound to IPv6, so that IPv4 addresses travel in their mapped form.
    v6: bool,
    /// Cleared when the kernel or the device turns out not to cut trains.
    segments: AtomicBool,
}

/// Who waits for the socket.
#[derive(Debug)]
enum Socket {
    /// The runtime.
    Watched(UdpSocket),
    /// A thread of its own: the runtime would be woken for every train, for nothing.
    Alone(StdUdpSocket),
}

/// Room for what the kernel says about a train.
pub(crate) struct Control(Vec<u8>);

impl Default for Control {
    fn default() -> Self {
        Self(nix::cmsg_space!(i32))
    }
}

/// What was sent of a train.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Sent {
    pub(crate) datagrams: usize,
    pub(crate) bytes: usize,
}

/// Where [`Underlay::receive`] puts what arrived.
pub(crate) struct Arrivals {
    buffer: Box<[u8]>,
    control: Control,
    len: usize,
    segment: usize,
}

impl Arrivals {
    pub(crate) fn new() -> Self {
        Self {
            buffer: vec![0; TRAIN_ROOM].into_boxed_slice(),
            control: Control::default(),
            len: 0,
            segment: 1,
        }
    }

    /// Whether it was a datagram without content.
    pub(crate) const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The datagrams of the train that arrived last.
    pub(crate) fn datagrams(&self) -> impl Iterator<Item = &[u8]> {
        self.buffer[..self.len].chunks(self.segment)
    }
}

impl Underlay {
    /// The same, for the runtime to wait for.
    pub(crate) fn watched(mut self) -> io::Result<Self> {
        if let Socket::Alone(socket) = self.socket {
            self.socket = Socket::Watched(UdpSocket::from_std(socket)?);
        }
        Ok(self)
    }

    /// A socket for a thread that calls [`Self::receive_now`].
    pub(crate) fn bind(address: SocketAddr) -> io::Result<Self> {
        let socket = StdUdpSocket::bind(address)?;
        socket.set_nonblocking(true)?;
        // All three only make it faster, so that a refusal is no error.
        let _ = socket::setsockopt(&socket, sockopt::RcvBuf, &SOCKET_BUFFER_BYTES);
        let _ = socket::setsockopt(&socket, sockopt::SndBuf, &SOCKET_BUFFER_BYTES);
        let _ = socket::setsockopt(&socket, sockopt::UdpGroSegment, &true);
        Ok(Self {
            socket: Socket::Alone(socket),
            v6: address.is_ipv6(),
            segments: AtomicBool::new(true),
        })
    }

    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        match &self.socket {
            Socket::Watched(socket) => socket.local_addr(),
            Socket::Alone(socket) => socket.local_addr(),
        }
    }

    /// Waits for a train; returns who sent it.
    pub(crate) async fn receive(&self, arrivals: &mut Arrivals) -> io::Result<SocketAddr> {
        let receive = || {
            arrivals.len = 0;
            let (from, len, segment) =
                self.receive_now(&mut arrivals.buffer, &mut arrivals.control)?;
            (arrivals.len, arrivals.segment) = (len, segment);
            Ok(from)
        };
        self.when(Interest::READABLE, receive).await
    }

    /// Does it when the socket is ready; at once, ready or not, if the runtime does not watch it.
    async fn when<T>(
        &self,
        interest: Interest,
        mut act: impl FnMut() -> io::Result<T>,
    ) -> io::Result<T> {
        match &self.socket {
            Socket::Watched(socket) => socket.async_io(interest, act).await,
            Socket::Alone(_) => act(),
        }
    }

    /// Takes a train if one is there: who sent it, its bytes, those of each datagram but the last. For
    /// a thread that waits for the socket itself.
    pub(crate) fn receive_now(
        &self,
        buffer: &mut [u8],
        control: &mut Control,
    ) -> io::Result<(SocketAddr, usize, usize)> {
        let mut slices = [IoSliceMut::new(buffer)];
        let message = socket::recvmsg::<SockaddrStorage>(
            self.as_fd().as_raw_fd(),
            &mut slices,
            Some(&mut control.0),
            MsgFlags::empty(),
        )?;
        let segment = message.cmsgs()?.find_map(|control| match control {
            ControlMessageOwned::UdpGroSegments(size) => usize::try_from(size).ok(),
            _ => None,
        });
        let from = message.address.and_then(|address| from_storage(&address));
        let from = from.ok_or(io::ErrorKind::InvalidData)?;
        Ok((from, message.bytes, segment.unwrap_or(message.bytes).max(1)))
    }

    /// Sends a train of datagrams of `segment` bytes, waiting while the kernel has no room.
    pub(crate) async fn send(
        &self,
        to: SocketAddr,
        train: &[u8],
        segment: usize,
    ) -> io::Result<()> {
        if train.len() > segment && self.segments.load(Ordering::Relaxed) {
            match self.send_one(to, train, Some(segment)).await {
                Err(error) if self.must_uncouple(&error) => {}
                result => return result,
            }
        }
        for datagram in train.chunks(segment.max(1)) {
            self.send_one(to, datagram, None).await?;
        }
        Ok(())
    }

    async fn send_one(
        &self,
        to: SocketAddr,
        bytes: &[u8],
        segment: Option<usize>,
    ) -> io::Result<()> {
        let to = self.storage(to);
        let send = || self.try_send(&to, &[IoSlice::new(bytes)], segment);
        self.when(Interest::WRITABLE, send).await
    }

    /// The same for a thread that may wait, and for datagrams that lie apart: all of `segment` bytes,
    /// the last may be shorter. Tells how many were sent.
    pub(crate) fn send_now(&self, to: SocketAddr, train: &[IoSlice<'_>], segment: usize) -> Sent {
        let to = self.storage(to);
        let bytes = |datagrams: &[IoSlice<'_>]| datagrams.iter().map(|slice| slice.len()).sum();
        let all = Sent {
            datagrams: train.len(),
            bytes: bytes(train),
        };
        if train.len() > 1 && self.segments.load(Ordering::Relaxed) {
            match self.send_waiting(&to, train, Some(segment)) {
                Ok(()) => return all,
                Err(error) if self.must_uncouple(&error) => {}
                Err(_) => return Sent::default(),
            }
        }
        let mut sent = Sent::default();
        for datagram in train.chunks(1) {
            if self.send_waiting(&to, datagram, None).is_ok() {
                sent.datagrams += 1;
                sent.bytes += bytes(datagram);
            }
        }
        sent
    }

    fn send_waiting(
        &self,
        to: &SockaddrStorage,
        train: &[IoSlice<'_>],
        segment: Option<usize>,
    ) -> io::Result<()> {
        let mut waits = 0;
        loop {
            match self.try_send(to, train, segment) {
                Err(error)
                    if error.kind() == io::ErrorKind::WouldBlock && waits < ROOM_WAITS_MAX =>
                {
                    waits += 1;
                    let mut fds = [PollFd::new(self, PollFlags::OUT)];
                    let timeout = Timespec {
                        tv_sec: 0,
                        tv_nsec: i64::from(ROOM_WAIT_MS) * 1_000_000,
                    };
                    // Whatever it says, the next attempt shows.
                    let _ = poll(&mut fds, Some(&timeout));
                }
                sent => return sent,
            }
        }
    }

    fn try_send(
        &self,
        to: &SockaddrStorage,
        train: &[IoSlice<'_>],
        segment: Option<usize>,
    ) -> io::Result<()> {
        let segment = segment.and_then(|segment| u16::try_from(segment).ok());
        let control: Option<[ControlMessage<'_>; 1]> = segment
            .as_ref()
            .map(|segment| [ControlMessage::UdpGsoSegments(segment)]);
        let control = control.as_ref().map_or(&[][..], |control| &control[..]);
        let fd = self.as_fd().as_raw_fd();
        socket::sendmsg(fd, train, control, MsgFlags::empty(), Some(to))?;
        Ok(())
    }

    fn storage(&self, to: SocketAddr) -> SockaddrStorage {
        SockaddrStorage::from(match to {
            SocketAddr::V4(v4) if self.v6 => {
                SocketAddr::from((v4.ip().to_ipv6_mapped(), v4.port()))
            }
            to => to,
        })
    }

    /// Whether a train failed where single datagrams would not.
    fn must_uncouple(&self, error: &io::Error) -> bool {
        // The path takes no datagrams of this size: alone, each is cut by the kernel.
        if error.raw_os_error() == Some(Errno::EMSGSIZE as i32) {
            return true;
        }
        let never = means_no_offload(error);
        if never {
            tracing::info!(%error, "the kernel does not segment UDP, sending one by one");
            self.segments.store(false, Ordering::Relaxed);
        }
        never
    }
}

impl AsFd for Underlay {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Socket::Watched(socket) => socket.as_fd(),
            Socket::Alone(socket) => socket.as_fd(),
        }
    }
}

fn means_no_offload(error: &io::Error) -> bool {
    // EIO: the device computes no checksums; EINVAL and EOPNOTSUPP: the kernel knows no segments.
    [Errno::EIO, Errno::EINVAL, Errno::EOPNOTSUPP]
        .iter()
        .any(|errno| error.raw_os_error() == Some(*errno as i32))
}

fn from_storage(address: &SockaddrStorage) -> Option<SocketAddr> {
    if let Some(v4) = address.as_sockaddr_in() {
        return Some(SocketAddr::V4(SocketAddrV4::from(*v4)));
    }
    let v6 = SocketAddrV6::from(*address.as_sockaddr_in6()?);
    // One peer has one spelling, whatever family our socket has.
    Some(match v6.ip().to_ipv4_mapped() {
        Some(v4) => SocketAddr::from((v4, v6.port())),
        None => SocketAddr::V6(v6),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bind(address: SocketAddr) -> io::Result<Underlay> {
        Underlay::bind(address)?.watched()
    }

    async fn pass(segments: bool) -> io::Result<Vec<Vec<u8>>> {
        let (a, b) = (bind(loopback())?, bind(loopback())?);
        a.segments.store(segments, Ordering::Relaxed);
        let train: Vec<u8> = (0..=254).cycle().take(20 * 1452 + 100).collect();
        a.send(b.local_addr()?, &train, 1452).await?;
        let (mut arrivals, mut got) = (Arrivals::new(), Vec::new());
        while got.len() < 21 {
            assert_eq!(b.receive(&mut arrivals).await?, a.local_addr()?);
            got.extend(arrivals.datagrams().map(<[u8]>::to_vec));
        }
        assert_eq!(got.concat(), train);
        Ok(got)
    }

    fn loopback() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 0))
    }

    #[tokio::test]
    async fn trains_are_cut_where_they_were_coupled() {
        for segments in [true, false] {
            let lens: Vec<usize> = pass(segments).await.unwrap().iter().map(Vec::len).collect();
            assert_eq!(lens[..20], [1452; 20]);
            assert_eq!(lens[20], 100);
        }
    }

    #[tokio::test]
    async fn a_thread_sends_what_lies_apart() {
        for segments in [true, false] {
            let (a, b) = (
                Underlay::bind(loopback()).unwrap(),
                bind(loopback()).unwrap(),
            );
            a.segments.store(segments, Ordering::Relaxed);
            let datagrams = [vec![1; 100], vec![2; 100], vec![3; 7]];
            let slices: Vec<IoSlice<'_>> = datagrams.iter().map(|d| IoSlice::new(d)).collect();
            let sent = a.send_now(b.local_addr().unwrap(), &slices, 100);
            assert_eq!((sent.datagrams, sent.bytes), (3, 207));
            let (mut arrivals, mut got) = (Arrivals::new(), Vec::new());
            while got.len() < 3 {
                b.receive(&mut arrivals).await.unwrap();
                got.extend(arrivals.datagrams().map(<[u8]>::to_vec));
            }
            assert_eq!(got, datagrams);
        }
    }

    #[tokio::test]
    async fn one_socket_for_both_families() {
        let both = bind(SocketAddr::from(([0; 16], 0))).unwrap();
        let v4 = bind(loopback()).unwrap();
        let port = both.local_addr().unwrap().port();
        let mut arrivals = Arrivals::new();
        let to = SocketAddr::from(([127, 0, 0, 1], port));
        v4.send(to, b"there", 5).await.unwrap();
        let from = both.receive(&mut arrivals).await.unwrap();
        assert_eq!(from, v4.local_addr().unwrap());
        both.send(from, b"back", 4).await.unwrap();
        assert_eq!(v4.receive(&mut arrivals).await.unwrap(), to);
    }
}
