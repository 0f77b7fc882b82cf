//! Decides where apps run, records what machines report, and hands out leases.
//!
//! Plane: app. Everything but the outer addresses of instances is a fold of the log. Spawns one
//! essential task, `coordinator`, which folds, plans and appends; owns no channel. Reading order:
//! [`state`] folds the log, [`app`] is one app in it, [`report`] judges what hosts say, [`plan`]
//! turns each open cause into one batch, [`place`] picks a machine, [`join`] makes this machine a
//! member, [`leases`] signs, [`coordinator`] is the shell that does it.
//!
//! ```text
//!   deploy_requested ─┐                       ┌─▶ tenant_*.apps          facts
//!                     ├─▶ state ─▶ plan ─▶ one batch ─▶ platform.mesh.peers     leases
//!   …hosts.*.reports ─┘                       └─▶ platform.hosts.<host>  orders
//! ```
//!
//! Invariants:
//! - A cause (a deploy request, a valid report) is answered by exactly one batch: its ids derive
//!   from the cause's, and it is written only if nothing else has happened to the app meanwhile.
//!   So a crash, a repetition or a second coordinator does nothing twice (`tests/it/main.rs`).
//! - A host can only speak about instances that were placed on it, and only forwards in their life
//!   (`plan::tests::what_cannot_be_true_is_refused`).
//! - Instance numbers and epochs only grow (`plan::tests`, property).

pub mod app;
pub mod config;
pub mod coordinator;
pub mod join;
pub mod leases;
pub mod place;
pub mod plan;
pub mod report;
pub mod state;

pub use config::Config;
pub use coordinator::{Coordinator, StartError};
pub use state::{FoldError, State};
