//! What a process tells about its end of the mesh, over a socket in its own data directory.
//!
//! Every long-running process with an end of the mesh serves it at `<data>/mesh.sock`, whose directory
//! is its user's alone: who may connect may ask. `tabbify mesh status | ping | explain` ask there.
//! Times are in microseconds or milliseconds, as the field's name says.

use std::net::{Ipv6Addr, SocketAddr};

use serde::{Deserialize, Serialize};
use tabbify_types::MeshKey;

use crate::Problem;
use crate::names::MeshName;

/// Name of the socket, in the process's data directory.
pub const MESH_SOCKET: &str = "mesh.sock";
/// `GET` an [`EndpointStatus`].
pub const STATUS_PATH: &str = "/v1/mesh/status";
/// `POST` a [`PingRequest`] for lines of JSON, a [`PingLine`] each, as they come.
pub const PING_PATH: &str = "/v1/mesh/ping";
/// `POST` an [`ExplainRequest`] for an [`Explained`].
pub const EXPLAIN_PATH: &str = "/v1/mesh/explain";

/// LIMIT: bytes of a request.
pub const ENDPOINT_BODY_LEN_MAX: usize = 4 * 1024;
/// LIMIT: round trips of one [`PingRequest`].
pub const PINGS_MAX: u32 = 10_000;
/// LIMIT: the shortest time between two pings, in milliseconds: they are probes, not a load.
pub const PING_INTERVAL_MS_MIN: u64 = 50;
/// LIMIT: the longest time between two pings, and for an answer, in milliseconds.
pub const PING_MS_MAX: u64 = 60_000;

/// One end of the mesh and the peers that it talks to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointStatus {
    /// Our side.
    pub own: OwnSide,
    /// The peers with a session, by name and then by key.
    pub peers: Vec<PeerView>,
    /// Counters since the process began, by name.
    pub counters: Vec<(String, u64)>,
}

/// Our side of every path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnSide {
    /// Our WireGuard key.
    pub key: MeshKey,
    /// Our inner addresses.
    pub addresses: Vec<Ipv6Addr>,
    /// Where the UDP socket is bound.
    pub underlay: SocketAddr,
    /// Which TCP/IP stack serves it: `kernel`, `kernel (rootless)` or `user space`.
    pub stack: String,
    /// Why it is not the kernel's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why_not_kernel: Option<String>,
    /// Where we may be reached from outside, best first.
    pub candidates: Vec<CandidateView>,
    /// What is known of the NAT in front of us.
    pub nat: Nat,
    /// Relays: how many are configured.
    pub relays_configured: u16,
    /// Numbers of those that we are connected to, best first.
    pub relays_connected: Vec<u16>,
}

/// An outer address, and how it is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CandidateView {
    /// The address.
    pub address: SocketAddr,
    /// How its owner knows it.
    pub from: CandidateFrom,
}

/// How the owner of an outer address knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CandidateFrom {
    /// An interface of the machine has it.
    Interface,
    /// A STUN server sees it.
    Stun,
    /// The NAT was asked for it.
    Mapped,
    /// The coordinator's record names it.
    Record,
    /// It was seen as the source of datagrams.
    Seen,
}

/// What is known of the NAT in front of an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Nat {
    /// Nobody outside has told how we are seen: no STUN server is configured, or none answers.
    Unknown,
    /// We are seen with an address of our own.
    Open,
    /// It keeps one port for all destinations: hole punching works.
    Easy,
    /// It takes another port for every destination (symmetric).
    Hard,
}

/// One peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerView {
    /// Its WireGuard key.
    pub key: MeshKey,
    /// Its name, where it could be asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<MeshName>,
    /// Inner addresses that it may speak from.
    pub addresses: Vec<Ipv6Addr>,
    /// The path that data takes; none before anything was heard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathView>,
    /// The round trip of that path, smoothed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_us: Option<u64>,
    /// Since the last handshake.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handshake_age_ms: Option<u64>,
    /// Since something authentic came last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub silent_ms: Option<u64>,
    /// Bytes of inner packets received in this session's keys.
    pub bytes_in: u64,
    /// Bytes of inner packets sent.
    pub bytes_out: u64,
    /// How often the path changed.
    pub changes: u64,
    /// Why there is no direct path; none if there is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why_relayed: Option<String>,
}

/// A way to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PathView {
    /// From our socket to an address.
    Direct(SocketAddr),
    /// From a socket that was opened to get through a hard NAT, to an address.
    Spare(SocketAddr),
    /// Through the relay with this number.
    Relay(u16),
}

/// Asks for round trips to a peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PingRequest {
    /// An inner address, or a name inside the mesh.
    pub to: String,
    /// How many; at most [`PINGS_MAX`].
    pub count: u32,
    /// From one to the next.
    pub interval_ms: u64,
    /// How long an answer may take.
    pub timeout_ms: u64,
}

/// What became of a ping.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PingLine {
    /// Who is asked.
    To {
        /// The inner address.
        address: Ipv6Addr,
        /// The key that answers for it.
        key: MeshKey,
        /// Its name, where it could be asked for.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<MeshName>,
    },
    /// There were no keys yet: how long the handshake took.
    Handshake {
        /// From the first initiation to its response.
        took_us: u64,
    },
    /// An answer came.
    Answer {
        /// Which one, from 1.
        seq: u32,
        /// From the probe to its answer.
        rtt_us: u64,
        /// The path of both.
        path: PathView,
    },
    /// None came in time.
    Lost {
        /// Which one.
        seq: u32,
        /// The path that was tried.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        path: Option<PathView>,
    },
    /// Nothing more follows, for this reason; without, all was done.
    Failed {
        /// Why.
        problem: Problem,
    },
}

/// Asks how a peer is reached, and why not better.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExplainRequest {
    /// An inner address, a name inside the mesh, or the beginning of a key.
    pub peer: String,
}

/// How a peer is reached, and why not better.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explained {
    /// Our side.
    pub own: OwnSide,
    /// The peer, as in the status.
    pub peer: PeerView,
    /// Whether it answers probes; stock WireGuard does not.
    pub probes: bool,
    /// What the peer says of its NAT.
    pub their_nat: Nat,
    /// Every path that is known, the best first.
    pub tried: Vec<TriedPath>,
    /// In words: what stands in the way of a direct path. Empty if there is one.
    pub why_not_direct: Vec<String>,
    /// In words: what could be done about it.
    pub advice: Vec<String>,
}

/// One path and what speaks for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TriedPath {
    /// The path.
    pub path: PathView,
    /// How its address is known; none of a relay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<CandidateFrom>,
    /// Data takes it.
    pub in_use: bool,
    /// Since it was last proven to lead both ways.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proven_ms: Option<u64>,
    /// Since something authentic came on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heard_ms: Option<u64>,
    /// Since it was last asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked_ms: Option<u64>,
    /// Its round trip, smoothed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_us: Option<u64>,
    /// Questions since the last answer.
    pub unanswered: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes() {
        let check = |line: &PingLine, expected: &str| {
            let text = serde_json::to_string(line).unwrap();
            assert_eq!(text, expected);
            assert_eq!(&serde_json::from_str::<PingLine>(&text).unwrap(), line);
        };
        let direct = PathView::Direct("192.0.2.1:4000".parse().unwrap());
        let (seq, rtt_us) = (1, 1234);
        let path = direct;
        check(
            &PingLine::Answer { seq, rtt_us, path },
            r#"{"answer":{"seq":1,"rtt_us":1234,"path":{"direct":"192.0.2.1:4000"}}}"#,
        );
        let path = Some(PathView::Relay(2));
        check(
            &PingLine::Lost { seq, path },
            r#"{"lost":{"seq":1,"path":{"relay":2}}}"#,
        );
        let strict = r#"{"to":"x","count":1,"interval_ms":1,"timeout_ms":1,"flood":true}"#;
        assert!(serde_json::from_str::<PingRequest>(strict).is_err());
    }
}
