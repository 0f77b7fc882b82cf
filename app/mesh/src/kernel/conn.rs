//! A connection in the kernel's stack: an ordinary socket, made in the namespace and used from
//! anywhere, which counts as one of its peer's connections while somebody holds it.

use std::io::{self, IoSlice};
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{Shutdown, bind, connect, getpeername, listen, shutdown, sockopt};
use tabbify_types::MeshKey;
use tokio::io::{Interest, ReadBuf};
use tokio::net::{TcpListener, TcpStream};

use super::link::ConnNumber;
use crate::peer::Peer;

/// As in the user-space stack: an open connection without traffic asks this often whether its peer
/// lives.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// LIMIT: questions without answer, which makes two minutes.
const KEEP_ALIVES_MAX: u32 = 8;

/// The socket, and whether its peer was given up.
#[derive(Debug)]
pub(crate) struct Conn {
    tcp: TcpStream,
    lost: AtomicBool,
}

impl Conn {
    /// Wakes everybody who waits for the connection; they get [`io::ErrorKind::TimedOut`].
    pub(crate) fn abort(&self) {
        self.lost.store(true, Ordering::Release);
        let _ = shutdown(&self.tcp, Shutdown::Both);
    }

    fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }
}

/// One of the connections that a session may have.
pub(crate) struct Place {
    peer: Arc<Peer>,
    number: ConnNumber,
}

impl Place {
    pub(crate) const fn new(peer: Arc<Peer>, number: ConnNumber) -> Self {
        Self { peer, number }
    }

    pub(crate) fn key(&self) -> MeshKey {
        self.peer.key
    }

    /// Whether the session still is what it was when the place was taken.
    fn occupy(&self, conn: &Arc<Conn>) -> bool {
        let mut session = self.peer.session();
        let link = session.link.as_mut();
        link.is_some_and(|link| link.occupy(self.number, conn))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(link) = &mut self.peer.session().link {
            link.leave(self.number);
        }
        self.peer.kick();
    }
}

pub(crate) struct KernelStream {
    // Closed before the place is given up: a session without places may be forgotten.
    conn: Arc<Conn>,
    place: Place,
    local: SocketAddrV6,
    remote: SocketAddrV6,
}

impl KernelStream {
    /// Takes a connected socket.
    pub(crate) fn accepted(
        tcp: TcpStream,
        place: Place,
        local: SocketAddrV6,
        remote: SocketAddrV6,
    ) -> io::Result<Self> {
        prepare(&tcp)?;
        Self::new(tcp, place, local, remote)
    }

    /// Begins to connect a fresh socket to the alias `to` of `remote`. The route says from where.
    pub(crate) fn begin(
        socket: OwnedFd,
        place: Place,
        to: Ipv6Addr,
        remote: SocketAddrV6,
    ) -> io::Result<Self> {
        prepare(&socket)?;
        match connect(&socket, &SocketAddrV6::new(to, remote.port(), 0, 0)) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(error) => return Err(error.into()),
        }
        let tcp = TcpStream::from_std(socket.into())?;
        let local = v6(tcp.local_addr()?)?;
        Self::new(tcp, place, local, remote)
    }

    fn new(
        tcp: TcpStream,
        place: Place,
        local: SocketAddrV6,
        remote: SocketAddrV6,
    ) -> io::Result<Self> {
        let lost = AtomicBool::new(false);
        let conn = Arc::new(Conn { tcp, lost });
        if !place.occupy(&conn) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(Self {
            conn,
            place,
            local,
            remote,
        })
    }

    /// Waits until the connection that was begun is made.
    pub(crate) async fn connected(&self) -> io::Result<()> {
        let tcp = &self.conn.tcp;
        loop {
            tcp.writable().await?;
            if self.conn.is_lost() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            if let Some(error) = tcp.take_error()? {
                return Err(error);
            }
            // Being ready may be a mistake; having a peer is not.
            let is_connected = tcp.try_io(Interest::WRITABLE, || match getpeername(tcp) {
                Err(Errno::NOTCONN) => Err(io::ErrorKind::WouldBlock.into()),
                other => Ok(other.map(drop)?),
            });
            match is_connected {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                connected => return connected,
            }
        }
    }

    pub(crate) fn peer(&self) -> MeshKey {
        self.place.peer.key
    }

    pub(crate) fn endpoints(&self) -> Option<(SocketAddrV6, SocketAddrV6)> {
        (!self.conn.is_lost()).then_some((self.local, self.remote))
    }

    /// What the operating system's word means here.
    fn mean(&self, error: io::Error) -> io::Error {
        if self.conn.is_lost() {
            io::ErrorKind::TimedOut.into()
        } else {
            error
        }
    }

    pub(crate) fn poll_read(
        &self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            ready!(self.conn.tcp.poll_read_ready(cx))?;
            match self.conn.tcp.try_read_buf(buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(0) if self.conn.is_lost() => {
                    return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                }
                read => return Poll::Ready(read.map(drop).map_err(|error| self.mean(error))),
            }
        }
    }

    pub(crate) fn poll_write_vectored(
        &self,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.conn.tcp.poll_write_ready(cx))?;
            match self.conn.tcp.try_write_vectored(bufs) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written.map_err(|error| self.mean(error))),
            }
        }
    }

    /// The next to be closed is the last that holds the socket.
    pub(crate) fn abort(self) {
        let _ = sockopt::set_socket_linger(&self.conn.tcp, Some(Duration::ZERO));
    }

    pub(crate) fn close(&self) {
        // A connection that has ended already has nothing to say.
        let _ = shutdown(&self.conn.tcp, Shutdown::Write);
    }
}

/// Makes a listener of a fresh socket, on all our addresses.
pub(crate) fn listener(socket: OwnedFd, port: u16, backlog: usize) -> io::Result<TcpListener> {
    // A port whose last connections still wind down can be taken again; one with a listener cannot.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    bind(
        &socket,
        &SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, port, 0, 0),
    )?;
    listen(&socket, i32::try_from(backlog.max(1)).unwrap_or(i32::MAX))?;
    TcpListener::from_std(socket.into())
}

/// Refuses a connection that the kernel has accepted: the peer gets a reset.
pub(crate) fn refuse(tcp: TcpStream) {
    let _ = sockopt::set_socket_linger(&tcp, Some(Duration::ZERO));
    drop(tcp);
}

/// The namespace has no other addresses.
pub(crate) fn v6(address: SocketAddr) -> io::Result<SocketAddrV6> {
    match address {
        SocketAddr::V6(v6) => Ok(SocketAddrV6::new(*v6.ip(), v6.port(), 0, 0)),
        SocketAddr::V4(_) => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn prepare(socket: impl AsFd) -> io::Result<()> {
    sockopt::set_tcp_nodelay(&socket, true)?;
    sockopt::set_socket_keepalive(&socket, true)?;
    sockopt::set_tcp_keepidle(&socket, KEEP_ALIVE)?;
    sockopt::set_tcp_keepintvl(&socket, KEEP_ALIVE)?;
    sockopt::set_tcp_keepcnt(&socket, KEEP_ALIVES_MAX)?;
    Ok(())
}
