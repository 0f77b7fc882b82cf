//! The UDP socket, and the only file that knows how datagrams travel: a later relay or path agent
//! takes its place here.
//!
//! Many datagrams pass in one system call: a *train* is one buffer of datagrams of equal size, of
//! which the last may be shorter (Linux `UDP_SEGMENT` out, `UDP_GRO` in).

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket as StdUdpSocket};
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::sys::socket::{
    self, ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, sockopt,
};
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// LIMIT: bytes of one train; the largest UDP payload is 65,507.
pub(crate) const TRAIN_BYTES_MAX: usize = 65_000;
/// LIMIT: datagrams of one train; that of the oldest kernels with `UDP_SEGMENT`.
pub(crate) const TRAIN_DATAGRAMS_MAX: usize = 64;
/// LIMIT: what the kernel may hold for us, each way, if `net.core.{r,w}mem_max` allows it. With the
/// default of 208 KiB a burst of two connections is lost.
const SOCKET_BUFFER_BYTES: usize = 4 * 1024 * 1024;

#[derive(Debug)]
pub(crate) struct Underlay {
    socket: UdpSocket,
    /// Bound to IPv6, so that IPv4 addresses travel in their mapped form.
    v6: bool,
    /// Cleared when the kernel or the device turns out not to cut trains.
    segments: AtomicBool,
}

/// Where [`Underlay::receive`] puts what arrived.
pub(crate) struct Arrivals {
    buffer: Box<[u8]>,
    control: Vec<u8>,
    len: usize,
    segment: usize,
}

impl Arrivals {
    pub(crate) fn new() -> Self {
        Self {
            buffer: vec![0; 65_536].into_boxed_slice(),
            control: nix::cmsg_space!(i32),
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
    pub(crate) fn bind(address: SocketAddr) -> io::Result<Self> {
        let socket = StdUdpSocket::bind(address)?;
        socket.set_nonblocking(true)?;
        // All three only make it faster, so that a refusal is no error.
        let _ = socket::setsockopt(&socket, sockopt::RcvBuf, &SOCKET_BUFFER_BYTES);
        let _ = socket::setsockopt(&socket, sockopt::SndBuf, &SOCKET_BUFFER_BYTES);
        let _ = socket::setsockopt(&socket, sockopt::UdpGroSegment, &true);
        Ok(Self {
            socket: UdpSocket::from_std(socket)?,
            v6: address.is_ipv6(),
            segments: AtomicBool::new(true),
        })
    }

    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Waits for a train; returns who sent it.
    pub(crate) async fn receive(&self, arrivals: &mut Arrivals) -> io::Result<SocketAddr> {
        self.socket
            .async_io(Interest::READABLE, || self.receive_now(arrivals))
            .await
    }

    fn receive_now(&self, arrivals: &mut Arrivals) -> io::Result<SocketAddr> {
        arrivals.len = 0;
        let mut slices = [IoSliceMut::new(&mut arrivals.buffer)];
        let message = socket::recvmsg::<SockaddrStorage>(
            self.socket.as_raw_fd(),
            &mut slices,
            Some(&mut arrivals.control),
            MsgFlags::empty(),
        )?;
        let segment = message.cmsgs()?.find_map(|control| match control {
            ControlMessageOwned::UdpGroSegments(size) => usize::try_from(size).ok(),
            _ => None,
        });
        let from = message.address.and_then(|address| from_storage(&address));
        arrivals.len = message.bytes;
        arrivals.segment = segment.unwrap_or(message.bytes).max(1);
        from.ok_or_else(|| io::ErrorKind::InvalidData.into())
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
                Err(error) if means_no_offload(&error) => {
                    tracing::info!(%error, "the kernel does not segment UDP, sending one by one");
                    self.segments.store(false, Ordering::Relaxed);
                }
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
        let to = SockaddrStorage::from(match to {
            SocketAddr::V4(v4) if self.v6 => {
                SocketAddr::from((v4.ip().to_ipv6_mapped(), v4.port()))
            }
            to => to,
        });
        let segment = segment.and_then(|segment| u16::try_from(segment).ok());
        let control: Option<[ControlMessage<'_>; 1]> = segment
            .as_ref()
            .map(|segment| [ControlMessage::UdpGsoSegments(segment)]);
        let control = control.as_ref().map_or(&[][..], |control| &control[..]);
        let fd = self.socket.as_raw_fd();
        let send = || {
            let slices = [IoSlice::new(bytes)];
            socket::sendmsg(fd, &slices, control, MsgFlags::empty(), Some(&to))
                .map_err(io::Error::from)
        };
        self.socket
            .async_io(Interest::WRITABLE, send)
            .await
            .map(drop)
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

    async fn pass(segments: bool) -> io::Result<Vec<Vec<u8>>> {
        let (a, b) = (Underlay::bind(loopback())?, Underlay::bind(loopback())?);
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
    async fn one_socket_for_both_families() {
        let both = Underlay::bind(SocketAddr::from(([0; 16], 0))).unwrap();
        let v4 = Underlay::bind(loopback()).unwrap();
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
