//! What an endpoint tells about itself and its peers: for `tabbify mesh status` and `explain`.

use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use tabbify_types::MeshKey;

use crate::StackInUse;
use crate::path::{Candidate, Path};

/// Where a peer is reached, and why not better.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PeerStatus {
    /// The peer.
    pub key: MeshKey,
    /// Inner addresses that it may speak from.
    pub addresses: Vec<Ipv6Addr>,
    /// The path that data takes; `None` before anything was heard.
    pub path: Option<Path>,
    /// Its round trip, where probes have measured it.
    pub rtt: Option<Duration>,
    /// Since the last handshake.
    pub handshake: Option<Duration>,
    /// Since when nothing authentic came from the peer; `None` if nothing ever did.
    pub silent: Option<Duration>,
    /// Bytes received in WireGuard messages, as the engine counts them.
    pub bytes_in: u64,
    /// Bytes sent, counted likewise.
    pub bytes_out: u64,
    /// How often the path changed.
    pub changes: u64,
    /// Why there is no direct path, for people; `None` if there is.
    pub why_relayed: Option<&'static str>,
}

/// Our side of every path.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct OwnStatus {
    /// Our key.
    pub key: MeshKey,
    /// Our inner addresses.
    pub addresses: Vec<Ipv6Addr>,
    /// Where the UDP socket is bound.
    pub underlay: SocketAddr,
    /// Which TCP/IP stack is in use.
    pub stack: StackInUse,
    /// Where we may be reached, and how we know.
    pub candidates: Vec<Candidate>,
    /// The NAT in front of us takes another port for every destination.
    pub hard: bool,
    /// Relays that are configured.
    pub relays_configured: u16,
    /// Numbers of those that we are connected to, best first.
    pub relays_connected: Vec<u16>,
}

/// The paths to a peer, and what is known of its side.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Examined {
    /// The one in use first, then those that are proven, best first.
    pub paths: Vec<PathStatus>,
    /// It answers probes; stock WireGuard does not.
    pub speaks: bool,
    /// Its NAT takes another port for every destination, by its own word.
    pub theirs_hard: bool,
    /// It has told where it may be.
    pub called: bool,
    /// It has told how a STUN server sees it, by IPv4.
    pub tells_reflexive: bool,
    /// Attempts to get through a hard NAT by guessing ports.
    pub guesses: u32,
}

/// One path and what speaks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PathStatus {
    /// The path.
    pub path: Path,
    /// How its address is known; none of a relay.
    pub source: Option<Source>,
    /// Data takes it.
    pub in_use: bool,
    /// Since it was last proven to lead both ways.
    pub proven: Option<Duration>,
    /// Since something authentic came on it.
    pub heard: Option<Duration>,
    /// Since it was last asked.
    pub asked: Option<Duration>,
    /// Its round trip, smoothed.
    pub rtt: Option<Duration>,
    /// Questions since the last answer.
    pub unanswered: u32,
}

/// How an outer address of a peer is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// An interface of its machine has it, by its own word.
    Interface,
    /// A STUN server sees it, by its own word.
    Stun,
    /// Its NAT was asked for it, by its own word.
    Mapped,
    /// The resolver's record names it.
    Record,
    /// Datagrams came from it.
    Seen,
}
