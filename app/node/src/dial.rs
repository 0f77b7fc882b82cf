//! Step 4, second half: the address of an instance, or of its app → a stream over the mesh. Nobody is
//! asked which machine runs it: the address is derived and dialed.

use std::error::Error as StdError;
use std::fmt;
use std::net::SocketAddrV6;

use tabbify_api::BoxFuture;
use tabbify_mesh::{DialError as MeshDialError, Mesh};
use tabbify_types::{APP_PORT, AppId, AppUla, InstanceId, InstanceUla};
use tokio::io::{AsyncRead, AsyncWrite};

/// A connection to a runner.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// No instance answers for the address now.
    #[error("nobody holds a lease for {0}")]
    NoLease(SocketAddrV6),
    /// Somebody does and cannot be reached.
    #[error("{address} cannot be reached")]
    Unreachable {
        /// What was dialed.
        address: SocketAddrV6,
        /// What the mesh says.
        #[source]
        source: Option<Box<dyn StdError + Send + Sync>>,
    },
    /// The peer is there and nobody listens on the port.
    #[error("{0} refuses the connection")]
    Refused(SocketAddrV6),
    /// No answer in time.
    #[error("connecting to {0} took too long")]
    TimedOut(SocketAddrV6),
    /// As many connections to it as there may be.
    #[error("too many connections to {0}")]
    Busy(SocketAddrV6),
}

/// The seam to the mesh; tests put TCP here.
pub trait Dial: Send + Sync + fmt::Debug {
    /// Connects to `address`.
    fn dial(&self, address: SocketAddrV6) -> BoxFuture<'_, Result<Box<dyn Stream>, DialError>>;
}

impl Dial for Mesh {
    fn dial(&self, address: SocketAddrV6) -> BoxFuture<'_, Result<Box<dyn Stream>, DialError>> {
        Box::pin(async move {
            let unreachable = |source: MeshDialError| DialError::Unreachable {
                address,
                source: Some(Box::new(source)),
            };
            match Self::dial(self, address).await {
                Ok(stream) => Ok(Box::new(stream) as Box<dyn Stream>),
                Err(MeshDialError::NoLease(_) | MeshDialError::Forbidden(_)) => {
                    Err(DialError::NoLease(address))
                }
                Err(MeshDialError::Refused(_)) => Err(DialError::Refused(address)),
                Err(MeshDialError::TimedOut(_)) => Err(DialError::TimedOut(address)),
                Err(MeshDialError::Busy { .. }) => Err(DialError::Busy(address)),
                Err(
                    error @ (MeshDialError::Resolve { .. }
                    | MeshDialError::Unreachable(_)
                    | MeshDialError::Closed),
                ) => Err(unreachable(error)),
            }
        })
    }
}

/// Where an instance of `app` answers; without a number, whichever the app's address leads to.
pub(crate) fn address_of(app: AppId, instance: Option<InstanceId>) -> SocketAddrV6 {
    let address = match instance {
        Some(instance) => InstanceUla::derive(app, instance).addr(),
        None => AppUla::derive(app).addr(),
    };
    SocketAddrV6::new(address, APP_PORT, 0, 0)
}
