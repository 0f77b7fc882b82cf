//! Where an app may connect to, and nowhere else: the rules of `[network] egress`, the addresses that no app
//! reaches whatever its rules say, and a forward proxy for programs that run on a network without a way out.
//!
//! Plane: app; a library of its own, since all three runtimes' traffic goes through it: what a security
//! reviewer reads.
//!
//! ```text
//! program ─▶ Proxy (CONNECT, absolute form) ─┬─▶ tunnel: who is meant inside (SNI, Host) ─┐
//! component ─▶ Client (http, https) ─────────┤                                            ├─▶ Guard ─▶ TCP
//!                                            └─▶ Inside: `.internal`, over the mesh        │
//!                                  rules by name and port ─▶ resolve ─▶ closed ranges ─────┘
//! ```
//!
//! Tasks spawned: `egress` (each connection of a program to the proxy), `egress tunnel` (each that it opened),
//! `egress connection` (each of ours that carries a request). Owns no channel.
//!
//! Invariants:
//! - a connection goes to exactly the address that was checked: a name is resolved once for each;
//! - loopback, private, link-local, shared, metadata, multicast, reserved and the platform's own addresses are
//!   reached by no rule and by no spelling, mapped and translated forms of them included;
//! - on an address that many names share, the name that is asked for inside is one that the rules allow;
//! - whoever is refused is told why, and so are the app's people, in its log.

mod answer;
mod client;
mod error;
mod forward;
mod guard;
mod host;
mod inside;
mod opening;
mod proxy;
mod ranges;
mod resolve;
mod rewind;
mod rules;
mod tunnel;

pub use client::{Client, ClientError};
pub use error::{Refused, RuleError};
pub use guard::{CONNECTIONS_MAX, Connection, Guard};
pub use host::{Host, HostError};
pub use inside::{Inside, Nobody, Tell};
pub use proxy::Proxy;
pub use ranges::closed;
pub use resolve::{ADDRESSES_MAX, Resolve, SystemResolver};
pub use rules::Rules;
