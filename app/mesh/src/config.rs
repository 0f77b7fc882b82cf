//! What a mesh endpoint is given, and its limits.

use std::fmt;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crate::PrivateKey;
use crate::gate::Gate;
use crate::relay::RelayServer;

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
    /// Relays to be reachable through, best first; at most four are used. Peers must use one of
    /// them, too.
    pub relays: Vec<RelayServer>,
    /// STUN servers that tell where we are seen, beside the relays; two at different addresses show
    /// how hard our NAT is.
    pub stun: Vec<SocketAddr>,
    /// Ask the NAT for a port (PCP, NAT-PMP, UPnP).
    pub ask_nat: bool,
    /// Which TCP/IP stack serves it.
    pub stack: StackChoice,
    /// Answers for addresses that are not ours as well, on every port: see
    /// [`Mesh::listen_all`](crate::Mesh::listen_all). The stack is the one in user space then, whatever is
    /// chosen: the kernel's would answer for no port without a listener of its own.
    pub gate: Option<Arc<dyn Gate>>,
    /// Limits.
    pub limits: Limits,
}

impl Config {
    /// A configuration with the default limits, and the stack that the system allows.
    #[must_use]
    pub fn new(key: PrivateKey, addresses: Vec<Ipv6Addr>, underlay: SocketAddr) -> Self {
        Self {
            key,
            addresses,
            underlay,
            relays: Vec::new(),
            stun: Vec::new(),
            ask_nat: false,
            stack: StackChoice::default(),
            gate: None,
            limits: Limits::default(),
        }
    }
}

/// Which TCP/IP stack an endpoint is to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StackChoice {
    /// The kernel's where the system allows it, else the one in user space.
    #[default]
    Auto,
    /// The kernel's, or none.
    Kernel,
    /// The one in user space.
    Userspace,
}

/// Which TCP/IP stack an endpoint uses, and why not the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StackInUse {
    /// The kernel's, in a network namespace of the endpoint's own; the preferred one.
    Kernel {
        /// It is in a user namespace, for want of the right to do without.
        rootless: bool,
    },
    /// The one in user space.
    Userspace {
        /// Why it is not the kernel's, for people.
        reason: String,
    },
}

impl fmt::Display for StackInUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kernel { rootless: false } => f.write_str("kernel"),
            Self::Kernel { rootless: true } => f.write_str("kernel (rootless)"),
            Self::Userspace { reason } => write!(f, "user space ({reason})"),
        }
    }
}

/// What one endpoint spends at most. The defaults suit a host that serves some hundred apps.
#[derive(Debug, Clone)]
pub struct Limits {
    /// LIMIT: bytes of each TCP connection's buffer, one per direction; also the window, so that
    /// throughput is at most about this per round trip. Untouched pages cost nothing. The kernel is
    /// given twice as much, for it counts its bookkeeping as well.
    pub tcp_buffer_bytes: usize,
    /// LIMIT: connections with one peer, opening and closing ones included. A dial over it is
    /// [`DialError::Busy`](crate::DialError::Busy); the peer's get a reset.
    pub connections_per_peer: usize,
    /// LIMIT: peers with a session at once.
    pub peers: usize,
    /// LIMIT: accepted connections that wait in one listener; beyond it a SYN is dropped, and the
    /// peer repeats it.
    pub backlog: usize,
    /// LIMIT: handshakes per second, of all strangers together, before a cookie is asked for. Each costs
    /// an X25519 and a question to the resolver; who is asked for a cookie is a second late.
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
            handshakes_per_second: 250,
            dial_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(180),
        }
    }
}
