//! The mesh: a WireGuard overlay inside the process, with [`listen`](Mesh::listen) and [`dial`](Mesh::dial).
//!
//! Plane: app. A library; the node, every runner and the supervisor hold one [`Mesh`] each, with a
//! key of its own. The engine is the published crate `gotatun`; no cryptography is written here.
//!
//! Two TCP/IP stacks stand behind one interface, see [`Mesh::stack`]: the kernel's, in a network
//! namespace of the endpoint's own, and `smoltcp` where that cannot be had. They share everything but
//! what is right of the session:
//!
//! ```text
//! UDP socket ─ mesh-read ─┬─ inbox ─ mesh-peer (one per remote key) ─┬─ Stream, Listener
//!              underlay   │   bounded   session: WireGuard ─ smoltcp │   under the session's lock
//!                         └─ queue ─ mesh-verify ─ mesh-lookup       └─ UDP socket
//!                             bounded   who may talk: the Resolver
//!
//! UDP socket ─ mesh-data ─┬─ session: WireGuard ─ TUN ─ kernel ─ Stream, Listener
//!              thread     └─ queue ─ mesh-verify ─ mesh-lookup, mesh-peer: handshakes and timers
//! ```
//!
//! Tasks: `mesh-read` and `mesh-verify` (essential), one `mesh-peer` per session, `mesh-lookup` per
//! handshake that a peer begins (at most 64), `mesh-survey` for our own addresses, `mesh-relay` per
//! relay (at most 4), `mesh-spare` per spare socket (at most 512). Channels: the queue of handshakes,
//! one inbox per peer, one queue per relay over TLS, one backlog per listener; all bounded. With the
//! kernel's stack two threads, `mesh-data` and `mesh-netns`, which end with the endpoint.
//!
//! Invariants:
//! 1. A peer has a session only if the [`Resolver`](tabbify_api::mesh::Resolver) knows its key; it is
//!    asked again at every handshake that the peer begins.
//! 2. An inner packet reaches the stack only if its source is an address that its sender owns and its
//!    destination is ours.
//! 3. Where a peer is, is learned only from authenticated data that cannot be a replay; a path that
//!    was proven is left only for one that is proven too, or when it is lost.
//! 4. A connection stays with the key that it began with: an app's address may move, its connections
//!    do not.
//! 5. No queue, buffer, timeout or table is without a limit, see [`Limits`].
//!
//! The resolver must name all inner addresses of a peer in every record of it: the last record is
//! what incoming packets are checked against.
//!
//! Which way datagrams take is decided per peer by a path agent (`path`), and what a way is made of
//! (the socket, spare sockets, relays over UDP and TLS) is the `underlay`'s affair: see
//! `docs/protocols/path.md` and `docs/protocols/relay.md`. The relay itself is [`Relay`], a library
//! over sockets that are given.

mod acknowledged;
mod config;
mod device;
mod dispatch;
mod doorbell;
mod doubt;
mod endpoint;
mod error;
mod explain;
mod gate;
mod intake;
mod kernel;
mod key;
mod listener;
mod mesh;
mod packet;
mod path;
mod peer;
mod ping;
mod portmap;
mod relay;
mod review;
mod session;
mod stack;
mod stats;
mod status;
mod stream;
mod stun;
mod survey;
mod underlay;
mod upnp;

pub use config::{Config, Limits, StackChoice, StackInUse};
pub use doorbell::Doorbell;
pub use error::{DialError, MeshError};
pub use explain::{Explanation, explain};
pub use gate::Gate;
pub use kernel::NamespaceError;
pub use key::{KeyError, PrivateKey};
pub use listener::{Incoming, Listener};
pub use mesh::Mesh;
pub use path::{Candidate, CandidateKind, Path, TAG_LEN, Tag};
pub use ping::{Pinged, Reached};
pub use relay::{Relay, RelayError, RelayLimits, RelayServer, RelayStats, RelayTls};
pub use stats::Stats;
pub use status::{Examined, OwnStatus, PathStatus, PeerStatus, Source};
pub use stream::Stream;
