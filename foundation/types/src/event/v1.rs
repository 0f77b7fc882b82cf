//! Version 1 of every event's data, by segment. Append-only: a changed event is a new version with
//! an upcaster (`super::upcast`), and these stay as they are.
//!
//! Unknown fields are ignored on reading, so that a later release may add optional ones.
//! Texts for people have limits that their writers keep; all of an event's data is at most 64 KiB.

mod approvals;
mod apps;
mod auth;
mod builds;
mod chat;
mod deploys;
mod hosts;
mod mesh;
mod platform;
mod sandboxes;
mod secrets;
mod supervisors;
mod webhooks;

pub use approvals::*;
pub use apps::*;
pub use auth::*;
pub use builds::*;
pub use chat::*;
pub use deploys::*;
pub use hosts::*;
pub use mesh::*;
pub use platform::*;
pub use sandboxes::*;
pub use secrets::*;
pub use supervisors::*;
pub use webhooks::*;

use super::Home;

const fn home(segment: &'static str, writer: &'static str) -> Home {
    Home { segment, writer }
}

/// What somebody wants of an app: written by the node, in the name of who asked.
const ASKED: Home = home("tenant_*.apps", "node");
/// What became of an app.
const FACT: Home = home("tenant_*.apps", "coordinator");
/// A copy of what a host must do, in the same batch.
const ORDER: Home = home("platform.hosts.*", "coordinator");
/// What a host says happened, before the coordinator has checked it.
const REPORT: Home = home("platform.hosts.*.reports", "supervisord");
