//! Where connections come from: the sockets that a service listens on.

use std::future::Future;
use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

/// The other end of a connection, as the socket tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// A process of this machine that may open our unix socket.
    Local,
    /// Whoever has this address.
    At(SocketAddr),
}

/// Listens.
pub trait Accept: Send + Sync + 'static {
    /// What a connection is made of.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// The next connection. Dropping the future loses none.
    fn accept(&self) -> impl Future<Output = io::Result<(Self::Stream, Origin)>> + Send;
}

impl Accept for UnixListener {
    type Stream = UnixStream;

    async fn accept(&self) -> io::Result<(UnixStream, Origin)> {
        let (stream, _) = Self::accept(self).await?;
        Ok((stream, Origin::Local))
    }
}

impl Accept for TcpListener {
    type Stream = TcpStream;

    async fn accept(&self) -> io::Result<(TcpStream, Origin)> {
        let (stream, address) = Self::accept(self).await?;
        // The end of a message must not wait for the acknowledgment of its beginning.
        stream.set_nodelay(true)?;
        Ok((stream, Origin::At(address)))
    }
}
