//! Lets people in: a WireGuard endpoint that a stock client on a laptop knows as its only peer. It ends
//! every connection of the client, asks policy in the person's name, and goes on for it over the
//! platform's own mesh; keys that apps make at every spawn stay invisible to people (ADR 0021).
//!
//! Plane: app.
//!
//! ```text
//!   laptop ═ WireGuard ═ door ─ SYN: may this person? ─┬─ no: reset
//!                                                      └─ yes: accept ─ dial over the mesh ─ bytes both ways
//!   devices, rules ─ changed ─▶ sessions of devices that are gone, connections that are not allowed: cut
//! ```
//!
//! Reading order: [`config`] is what it is told, `door` says who comes in and where to, `live` knows every
//! connection, `forward` carries one, [`gateway`] puts them together; [`stock`] is what a client is told,
//! [`service`] and [`client`] are how devices are added on this machine.
//!
//! Tasks: `gateway` and `gateway policy` (essential), `gateway connection` per connection, and those of the
//! endpoint. Channels: none of its own.
//!
//! Invariants:
//! 1. Only a recorded device gets an answer to its handshake, and only from its own inner address
//!    (`tests/it/who.rs`).
//! 2. A connection exists only while policy lets the device's person have it: asked at the SYN, again once it
//!    is accepted, and again whenever a device or a rule changes (`tests/it/policy.rs`).
//! 3. Nothing is refused in silence: a reset, or ICMPv6.
//! 4. What one device and all of them hold is limited, see [`Limits`] (`tests/it/limits.rs`).

pub mod client;
pub mod config;
mod door;
mod forward;
pub mod gateway;
mod live;
pub mod service;
mod stats;
pub mod stock;

pub use client::{AskFailed, Client};
pub use config::{Config, Limits};
pub use gateway::{Gateway, StartError};
pub use service::Service;
pub use stats::Stats;
pub use stock::{PREFIXES, StockConfig};
