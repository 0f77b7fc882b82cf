//! A TCP connection inside the mesh, as the rest of the program sees one.

use std::fmt;
use std::io::{self, IoSlice};
use std::net::SocketAddrV6;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tabbify_types::MeshKey;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};

use crate::kernel::KernelStream;
use crate::peer::Peer;
use crate::stack::{ConnId, Dialed};

/// A connection to a peer. It has the manners of a kernel's TCP stream: writes fill a bounded
/// buffer and then wait; shutdown sends FIN after what was written, and reading goes on; dropping it
/// sends the rest and FIN, or a reset if something that arrived was never read.
///
/// A peer that goes silent with something outstanding ends it with [`io::ErrorKind::TimedOut`]
/// within a minute; a reset, with [`io::ErrorKind::ConnectionReset`].
pub struct Stream(Kind);

enum Kind {
    User(UserStream),
    Kernel(KernelStream),
    Own(OwnStream),
}

impl Stream {
    pub(crate) const fn user(stream: UserStream) -> Self {
        Self(Kind::User(stream))
    }

    pub(crate) const fn kernel(stream: KernelStream) -> Self {
        Self(Kind::Kernel(stream))
    }

    pub(crate) const fn own(stream: OwnStream) -> Self {
        Self(Kind::Own(stream))
    }

    /// The key at the other end.
    #[must_use]
    pub fn peer(&self) -> MeshKey {
        match &self.0 {
            Kind::User(stream) => stream.peer.key,
            Kind::Kernel(stream) => stream.peer(),
            Kind::Own(stream) => stream.key,
        }
    }

    /// Ends the connection at once: the peer gets a reset, and what was written may be lost.
    pub fn reset(self) {
        match self.0 {
            Kind::User(stream) => stream.abort(),
            Kind::Kernel(stream) => stream.abort(),
            Kind::Own(stream) => drop(stream),
        }
    }

    /// Our end and the peer's, while there is a connection.
    #[must_use]
    pub fn endpoints(&self) -> Option<(SocketAddrV6, SocketAddrV6)> {
        match &self.0 {
            Kind::User(stream) => stream.peer.session().stack.endpoints(stream.id),
            Kind::Kernel(stream) => stream.endpoints(),
            Kind::Own(stream) => Some(stream.ends),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.get_mut().0 {
            Kind::User(stream) => stream.poll_read(cx, buf),
            Kind::Kernel(stream) => stream.poll_read(cx, buf),
            Kind::Own(stream) => Pin::new(&mut stream.io).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().0 {
            Kind::User(stream) => stream.poll_write_vectored(cx, bufs),
            Kind::Kernel(stream) => stream.poll_write_vectored(cx, bufs),
            Kind::Own(stream) => Pin::new(&mut stream.io).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // What is written is on its way already.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().0 {
            Kind::User(stream) => stream.close(),
            Kind::Kernel(stream) => stream.close(),
            Kind::Own(stream) => return Pin::new(&mut stream.io).poll_shutdown(cx),
        }
        Poll::Ready(Ok(()))
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream")
            .field("peer", &self.peer())
            .field("endpoints", &self.endpoints())
            .finish()
    }
}

/// One inside this process: to its own doorbell.
pub(crate) struct OwnStream {
    io: DuplexStream,
    key: MeshKey,
    /// Our end and the other.
    ends: (SocketAddrV6, SocketAddrV6),
}

impl OwnStream {
    pub(crate) const fn new(
        io: DuplexStream,
        key: MeshKey,
        ends: (SocketAddrV6, SocketAddrV6),
    ) -> Self {
        Self { io, key, ends }
    }
}

/// One in the session's own stack.
pub(crate) struct UserStream {
    peer: Arc<Peer>,
    id: ConnId,
}

impl UserStream {
    pub(crate) const fn new(peer: Arc<Peer>, id: ConnId) -> Self {
        Self { peer, id }
    }

    pub(crate) fn poll_connect(&self, cx: &mut Context<'_>) -> Poll<Dialed> {
        self.peer.session().stack.poll_connect(self.id, cx.waker())
    }

    fn poll_read(&self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = self
            .peer
            .session()
            .stack
            .poll_read(self.id, buf, cx.waker());
        let reopens_window = ready!(read)?;
        if reopens_window {
            self.peer.kick();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write_vectored(
        &self,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = self
            .peer
            .session()
            .stack
            .poll_write(self.id, bufs, cx.waker());
        if written.is_ready() {
            self.peer.kick();
        }
        written
    }

    fn close(&self) {
        self.peer.session().stack.close(self.id);
        self.peer.kick();
    }

    /// Being dropped then, it lets go of what is ended already.
    fn abort(self) {
        self.peer.session().stack.abort(self.id);
    }
}

impl Drop for UserStream {
    fn drop(&mut self) {
        let now = self.peer.epoch.now();
        self.peer.session().stack.release(self.id, now);
        self.peer.kick();
    }
}
