//! `tabbify.toml` and `tabbify.lock`: text in, values out.
//!
//! Foundation of both planes. Pure: no filesystem, no clock, no async, no task.
//!
//! ```text
//!   text ─tree─▶ Node tree ─legacy─▶ today's form ─read─▶ Manifest ─resolve─▶ Resolved ─▶ RunConfig
//!                with lines          and its notes        as written          all defaults
//! ```
//!
//! Invariants: every mistake of a file is reported in one run, each with key, line and fix; no key
//! is ever ignored; a key whose feature is not built yet is refused by name ([`not_supported_yet`]);
//! no text makes this crate panic; whatever [`Manifest::parse`] upgrades, it also gives as text that
//! parses to the same manifest without a note.

mod cron;
mod egress;
mod init;
mod legacy;
pub mod limits;
mod lock;
mod manifest;
mod problem;
mod read;
mod resolved;
mod schema;
mod section;
mod stamp;
mod support;
mod tree;
mod value;

pub use cron::Cron;
pub use egress::Egress;
pub use init::{Detected, init_template};
pub use lock::{Lock, LockEntry};
pub use manifest::{
    App, Build, Command, Cpus, Delivery, Deploy, Events, Health, Lifecycle, Manifest, Parsed, Port,
    Runtime, Schedule, Secret, Snapshots, Supervisor, Volume,
};
pub use problem::{ManifestErrors, Note, Problem};
pub use resolved::{
    DEFAULT_HEALTHY_WITHIN, DEFAULT_PORT, DEFAULT_STOP_TIMEOUT, HttpPort, IMAGE_ENTRY, Resolved,
    Running, Target, WASM_ENTRY,
};
pub use stamp::{StampError, stamp};
pub use support::not_supported_yet;
