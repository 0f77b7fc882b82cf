//! What can go wrong at the boundary of the mesh.

use std::io;
use std::net::{SocketAddr, SocketAddrV6};

use tabbify_api::mesh::ResolveError;

use crate::NamespaceError;

/// Why an endpoint or a listener cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum MeshError {
    /// The configuration names no inner address.
    #[error("a mesh endpoint needs at least one address")]
    NoAddress,
    /// The UDP socket cannot be bound.
    #[error("cannot bind the WireGuard socket to {address}")]
    Bind {
        /// Where it should be.
        address: SocketAddr,
        /// What the operating system says.
        #[source]
        source: io::Error,
    },
    /// The kernel's stack was asked for and cannot be had.
    #[error("the kernel's TCP/IP stack cannot be used")]
    Kernel(#[source] NamespaceError),
    /// The thread that carries packets cannot be started.
    #[error("cannot start the thread that carries packets")]
    Thread(#[source] io::Error),
    /// The kernel gives no socket.
    #[error("the kernel gives no socket for the mesh")]
    Socket(#[source] io::Error),
    /// Someone listens on the port, or it is 0.
    #[error("port {0} of the mesh is taken or not a port")]
    Port(u16),
    /// The mesh was dropped.
    #[error("the mesh is closed")]
    Closed,
}

/// Why a dial failed. A gateway answers 502 to all but [`DialError::TimedOut`], which is its 504.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// Nobody answers for the address now.
    #[error("nobody holds a lease for {0}")]
    NoLease(SocketAddrV6),
    /// Policy does not let us reach the port.
    #[error("policy does not allow a connection to {0}: the tenant that it is of can add a rule")]
    Forbidden(SocketAddrV6),
    /// It is not known who answers for the address.
    #[error("{address} cannot be resolved")]
    Resolve {
        /// What was dialed.
        address: SocketAddrV6,
        /// What the resolver says.
        #[source]
        source: ResolveError,
    },
    /// The peer that answers for the address does not answer: no handshake within the deadline, or
    /// no outer address to try.
    #[error("the peer behind {0} does not answer")]
    Unreachable(SocketAddrV6),
    /// The peer answers, and nobody listens on the port.
    #[error("{0} refuses the connection")]
    Refused(SocketAddrV6),
    /// The peer is there, and the connection was not made within the deadline.
    #[error("connecting to {0} took too long")]
    TimedOut(SocketAddrV6),
    /// A limit of this endpoint is reached.
    #[error("too many {what}, limit {limit}")]
    Busy {
        /// What there is too much of.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
    /// The mesh was dropped.
    #[error("the mesh is closed")]
    Closed,
}
