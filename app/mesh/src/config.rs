//! What a mesh endpoint is given, and its limits.

use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use crate::PrivateKey;

/// Largest inner packet, in bytes: 1500 less the headers of IPv6, UDP and WireGuard.
pub(crate) const MTU: u16 = 1420;

/// What [`Mesh::bind`](crate::Mesh::bind) needs.
#[derive(Debug, Clone)]
pub struct Config {
    /// Our identity.
    pub key: PrivateKey,
    /// Our inner addresses, at least one. Listeners accept on all; dials come from the first.
    pub addresses: Vec<Ipv6Addr>,
    /// Where to bind the UDP socket; port 0 takes a free one.
    pub underlay: SocketAddr,
    /// Limits.
    pub limits: Limits,
}

impl Config {
    /// A configuration with the default limits.
    #[must_use]
    pub fn new(key: PrivateKey, addresses: Vec<Ipv6Addr>, underlay: SocketAddr) -> Self {
        Self {
            key,
            addresses,
            underlay,
            limits: Limits::default(),
        }
    }
}

/// What one endpoint spends at most. The defaults suit a host that serves some hundred apps.
#[derive(Debug, Clone)]
pub struct Limits {
    /// LIMIT: bytes of each TCP connection's buffer, one per direction; also the window, so that
    /// throughput is at most this per round trip. Untouched pages cost nothing.
    pub tcp_buffer_bytes: usize,
    /// LIMIT: connections with one peer, opening and closing ones included. A dial over it is
    /// [`DialError::Busy`](crate::DialError::Busy); the peer's get a reset.
    pub connections_per_peer: usize,
    /// LIMIT: peers with a session at once.
    pub peers: usize,
    /// LIMIT: accepted connections that wait in one listener; beyond it a SYN is dropped, and the
    /// peer repeats it.
    pub backlog: usize,
    /// LIMIT: handshakes per second and source address before a cookie is asked for. All runners of
    /// a host share one address, so it is generous; X25519 bounds a core at about 9,000.
    pub handshakes_per_second: u64,
    /// Deadline of a dial: resolve, handshake and TCP together.
    pub dial_timeout: Duration,
    /// How long a session without connections and without traffic is kept.
    pub idle_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            tcp_buffer_bytes: 256 * 1024,
            connections_per_peer: 512,
            peers: 4096,
            backlog: 128,
            handshakes_per_second: 1000,
            dial_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(180),
        }
    }
}
