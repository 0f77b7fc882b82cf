//! The relay: passes datagrams between peers that cannot reach each other. It sees public keys and
//! sizes only; what it passes is sealed by WireGuard.
//!
//! ```text
//! peer ─ UDP: frames ──────────────▶ Relay ─ the peer with that tag, over whichever it was last heard on
//!      └ TLS ─ WebSocket: messages ─▶   │      UDP: at once     TLS: one bounded queue per peer
//!                                      └ answers STUN requests on its UDP sockets
//! ```
//! Both ends prove that they hold their keys: by a MAC whose key only the two can derive, over a fresh
//! challenge, and over TLS also over what makes the connection itself unique, so that no certificate
//! authority is needed and nobody in between can take a connection over.
//! `docs/protocols/relay.md` says what is on the wire.
//!
//! Tasks: `relay-udp` per UDP socket, `relay-accept` per TLS listener (essential), `relay-client` per
//! TLS connection, `relay-lookup` per peer that begins, `relay-sweep`. Channels: one queue of two lanes
//! per TLS connection, bounded, the oldest is dropped first.

mod bucket;
pub(crate) mod client;
mod clients;
mod frame;
mod proof;
mod queue;
mod server;
mod stats;
mod tls;
mod udp;

pub use client::{RelayServer, RelayTls};
pub use server::{Relay, RelayError, RelayLimits};
pub use stats::RelayStats;

pub(crate) use frame::{FRAME, HEADER_LEN};
