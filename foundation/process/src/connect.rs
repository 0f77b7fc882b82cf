//! How a client reaches a service of another process: a unix socket, TCP, a stream of the mesh.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use tabbify_api::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// A stream of bytes to a service.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// Reaches a service.
pub trait Connect: Send + Sync + fmt::Debug {
    /// A new stream.
    fn connect(&self) -> BoxFuture<'_, io::Result<Box<dyn Stream>>>;
}

/// Gives the token for the next request; asked each time, since tokens end.
pub type Bearer = Arc<dyn Fn() -> String + Send + Sync>;

/// A service on this machine.
#[derive(Debug, Clone)]
pub struct UnixSocket {
    /// The directory of the socket, however deep.
    pub directory: PathBuf,
    /// Its name there.
    pub name: String,
}

impl Connect for UnixSocket {
    fn connect(&self) -> BoxFuture<'_, io::Result<Box<dyn Stream>>> {
        Box::pin(async {
            let stream = crate::unix::connect(&self.directory, &self.name).await?;
            Ok(Box::new(stream) as Box<dyn Stream>)
        })
    }
}

/// A service at an address.
#[derive(Debug, Clone, Copy)]
pub struct TcpSocket {
    /// Where it listens.
    pub address: SocketAddr,
}

impl Connect for TcpSocket {
    fn connect(&self) -> BoxFuture<'_, io::Result<Box<dyn Stream>>> {
        Box::pin(async {
            let stream = TcpStream::connect(self.address).await?;
            // Small requests must not wait for each other's acknowledgment.
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as Box<dyn Stream>)
        })
    }
}
