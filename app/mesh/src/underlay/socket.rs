//! A UDP socket that passes trains.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::sys::socket::{
    self, ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, sockopt,
};

use super::Train;

/// LIMIT: what the kernel may hold for us, each way, if `net.core.{r,w}mem_max` allows it. With the
/// default of 208 KiB a burst of two connections is lost.
const SOCKET_BUFFER_BYTES: usize = 4 * 1024 * 1024;

#[derive(Debug)]
pub(crate) struct Socket {
    socket: UdpSocket,
    /// Bound to IPv6, so that IPv4 addresses travel in their mapped form.
    v6: bool,
    /// Cleared when the kernel or the device turns out not to cut trains.
    segments: AtomicBool,
}

impl Socket {
    pub(crate) fn bind(address: SocketAddr) -> io::Result<Self> {
        Self::over(UdpSocket::bind(address)?)
    }

    /// Takes a bound socket.
    pub(crate) fn over(socket: UdpSocket) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        // All three only make it faster, so that a refusal is no error.
        let _ = socket::setsockopt(&socket, sockopt::RcvBuf, &SOCKET_BUFFER_BYTES);
        let _ = socket::setsockopt(&socket, sockopt::SndBuf, &SOCKET_BUFFER_BYTES);
        let _ = socket::setsockopt(&socket, sockopt::UdpGroSegment, &true);
        let v6 = socket.local_addr()?.is_ipv6();
        Ok(Self {
            socket,
            v6,
            segments: AtomicBool::new(true),
        })
    }

    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Takes a train if one is there.
    pub(crate) fn try_receive(&self, room: &mut [u8]) -> io::Result<Train> {
        let mut control = nix::cmsg_space!(i32);
        let mut slices = [IoSliceMut::new(room)];
        let message = socket::recvmsg::<SockaddrStorage>(
            self.socket.as_raw_fd(),
            &mut slices,
            Some(&mut control),
            MsgFlags::empty(),
        )?;
        let segment = message.cmsgs()?.find_map(|control| match control {
            ControlMessageOwned::UdpGroSegments(size) => usize::try_from(size).ok(),
            _ => None,
        });
        let from = message.address.and_then(|address| from_storage(&address));
        Ok(Train {
            from: from.ok_or(io::ErrorKind::InvalidData)?,
            len: message.bytes,
            segment: segment.unwrap_or(message.bytes).max(1),
        })
    }

    /// Sends datagrams, all of `segment` bytes, the last may be shorter, at once if the kernel can;
    /// how many were taken.
    pub(crate) fn try_send(
        &self,
        to: SocketAddr,
        datagrams: &[IoSlice<'_>],
        segment: usize,
    ) -> io::Result<usize> {
        let to = self.storage(to);
        if datagrams.len() > 1 && self.segments.load(Ordering::Relaxed) {
            match self.send(&to, datagrams, Some(segment)) {
                Ok(()) => return Ok(datagrams.len()),
                Err(error) if self.must_uncouple(&error) => {}
                Err(error) => return Err(error),
            }
        }
        let mut taken = 0;
        for datagram in datagrams.chunks(1) {
            match self.send(&to, datagram, None) {
                Ok(()) => taken += 1,
                Err(error) if taken == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok(taken)
    }

    fn send(
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
        let fd = self.socket.as_raw_fd();
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

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
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
    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;

    fn loopback() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 0))
    }

    /// The datagrams of the next train.
    fn receive(socket: &Socket) -> (SocketAddr, Vec<Vec<u8>>) {
        let mut room = vec![0; 65_536];
        loop {
            match socket.try_receive(&mut room) {
                Ok(train) => {
                    let datagrams = room[..train.len].chunks(train.segment);
                    return (train.from, datagrams.map(<[u8]>::to_vec).collect());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    poll(&mut [PollFd::new(socket, PollFlags::IN)], None).unwrap();
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    #[test]
    fn trains_are_cut_where_they_were_coupled() {
        for segments in [true, false] {
            let (a, b) = (
                Socket::bind(loopback()).unwrap(),
                Socket::bind(loopback()).unwrap(),
            );
            a.segments.store(segments, Ordering::Relaxed);
            let train: Vec<u8> = (0..=254).cycle().take(20 * 1452 + 100).collect();
            let slices: Vec<IoSlice<'_>> = train.chunks(1452).map(IoSlice::new).collect();
            let mut rest = &slices[..];
            while !rest.is_empty() {
                let taken = a.try_send(b.local_addr().unwrap(), rest, 1452).unwrap();
                rest = &rest[taken..];
            }
            let mut got = Vec::new();
            while got.len() < 21 {
                let (from, datagrams) = receive(&b);
                assert_eq!(from, a.local_addr().unwrap());
                got.extend(datagrams);
            }
            assert_eq!(got.concat(), train);
            let lens: Vec<usize> = got.iter().map(Vec::len).collect();
            assert_eq!(lens[..20], [1452; 20]);
            assert_eq!(lens[20], 100);
        }
    }

    #[test]
    fn one_socket_for_both_families() {
        let both = Socket::bind(SocketAddr::from(([0; 16], 0))).unwrap();
        let v4 = Socket::bind(loopback()).unwrap();
        let port = both.local_addr().unwrap().port();
        let to = SocketAddr::from(([127, 0, 0, 1], port));
        v4.try_send(to, &[IoSlice::new(b"there")], 5).unwrap();
        let (from, _) = receive(&both);
        assert_eq!(from, v4.local_addr().unwrap());
        both.try_send(from, &[IoSlice::new(b"back")], 4).unwrap();
        assert_eq!(receive(&v4), (to, vec![b"back".to_vec()]));
    }
}
