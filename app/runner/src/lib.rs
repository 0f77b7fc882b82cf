//! The runner: one app, one runtime, one detached process that outlives its supervisor.
//!
//! Plane: app. The program is [`run::main`]; this library exists so that tests reach its parts.
//!
//! ```text
//! lock ─▶ boot ─▶ control socket ─▶ mesh ─▶ lease ─▶ secrets, artifact ─▶ runtime ─▶ serve ─▶ drain ─▶ exit record
//! ```
//!
//! Tasks spawned: `control` (one) and `control connection` (each caller), `accept` (one),
//! `connection` (each of the node's), `guest` (each request of a wasm app), `output` (one, writes
//! what the app prints); of an app in a container `container` and `container output` (one each), `app
//! connection` and `upgraded` (each of ours to it), `command end` (each that is given up); of any `raw port` (each)
//! and `raw connection` (each), `attach` (one), `attached` and `command` (each of a node's); of one in a machine `machine output`, `machine egress`, and those of
//! `tabbify_microvm`; with a coordinator also its client's and `candidates` (one). One thread of its
//! own: `epoch`, while wasm runs.
//! Channels owned: what the app prints, bounded by [`output::QUEUE_LINES`], spawn tickets, one at a time, and
//! how a container ended.
//!
//! Invariants:
//! - the lock on `birth.json` is held from before the first line of `run` to the end of the process;
//! - with a coordinator, nothing is fetched or served without a lease of the key that was made here, and
//!   nothing is served on once a newer instance has it; but a runner that is woken is served at its machine's
//!   door, which the lease of its instance names, before that;
//! - a volume has one holder, and what mounts it is gone with it;
//! - the values of secrets are in memory alone, and in nothing that is shown or logged;
//! - nothing of a tenant's code runs before its digest has been verified;
//! - a body of any size passes in constant memory, and a cut body never looks complete;
//! - what the app uses (memory, processor, log disk, connections) has a limit, named `LIMIT` here.

pub mod artifact;
mod attach;
pub mod control;
pub mod docker;
pub mod door;
pub mod egress;
pub mod errands;
pub mod error;
pub mod home;
pub mod idle;
pub mod lease;
pub mod lock;
mod membership;
pub mod microvm;
pub mod output;
pub mod peers;
mod ports;
pub mod run;
pub mod runtime;
pub mod secrets;
pub mod server;
pub mod state;
mod to_service;
pub mod traffic;
pub mod upstream;
pub mod volume;
pub mod wasm_http;

pub use error::Error;
