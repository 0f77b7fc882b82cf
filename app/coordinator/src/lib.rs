//! Decides where apps run, records what machines report, lets machines join, says who holds which
//! address and who may reach it: in this process, and over a network to whoever proves a member's key.
//!
//! Plane: app. Everything but where keys may be reached is a fold of the log. Spawns two essential tasks,
//! `coordinator`, which folds, plans and appends, and `coordinator-machines`, which says that a machine is
//! lost or back; the service one task a connection. Owns one bounded queue a watch.
//!
//! Reading order: [`state`] folds the log, [`app`] is one app in it, [`report`] judges what hosts say,
//! [`plan`] turns each open cause into one batch, [`place`] picks a machine, [`join`] makes machines
//! members, [`device`] lets people's machines in behind a gateway, [`leases`] finds who holds what; `shell`
//! does it, [`coordinator`] answers. [`trouble`] is what is wrong with machines, [`standing`] says so in the
//! log, `machines` decides when; `plan::relocate` moves apps away. `resolver` answers the mesh of the same
//! process. Over the network:
//! `service` lets in whoever has proven a key and asks `member`, which asks the state; `grant` gives leases
//! for spawn tickets, `soft` keeps what is heard now and then, `watch` tells what changed. The other end,
//! and what the two have in common, is `foundation/membership`.
//!
//! ```text
//!   deploy_requested ─┐                       ┌─▶ tenant_*.apps          facts
//!                     ├─▶ state ─▶ plan ─▶ one batch ─▶ platform.mesh.peers     leases
//!   …hosts.*.reports ─┘     │                 └─▶ platform.hosts.<host>  orders
//!                           └─▶ member ─▶ service ═ TLS, proof ═ remote
//! ```
//!
//! Invariants:
//! - A cause (a deploy request, a valid report) is answered by exactly one batch: its ids derive
//!   from the cause's, and it is written only if nothing else has happened to the app meanwhile.
//!   So a crash, a repetition or a second coordinator does nothing twice (`tests/it/log.rs`).
//! - A host can only speak about instances that were placed on it, and only forwards in their life
//!   (`plan::tests::what_cannot_be_true_is_refused`).
//! - What a machine had that is lost or has left is ordered to end there, and its leases are released, in
//!   the batch that places it elsewhere (`plan::tests::a_lost_machine_s_apps_go_elsewhere`).
//! - Instance numbers and epochs only grow (`plan::tests`, property); a machine's number is never
//!   given twice, whoever gives it (`tests/it/join.rs`).
//! - Nothing is answered over the network but to a key that the connection has proven, and only what the
//!   log says about that key (`tests/it/network.rs`).
//! - What an answer or a change costs does not grow with the apps that there are (`tests/it/scale.rs`).

pub mod app;
pub mod config;
pub mod coordinator;
pub mod device;
mod grant;
pub mod join;
pub mod leases;
mod limits;
mod machines;
mod member;
mod names;
pub mod place;
pub mod plan;
mod refusal;
pub mod report;
mod resident;
mod resolver;
mod service;
mod shell;
mod soft;
pub mod standing;
pub mod state;
mod stats;
pub mod trouble;
mod watch;

pub use config::Config;
pub use coordinator::{
    Coordinator, Health, LOST_AFTER, OUTAGE_GRACE, Options, Signers, StartError,
};
pub use member::CERTIFICATE_LIFE;
pub use names::NamesOf;
pub use place::OVERCOMMIT_PERCENT;
pub use refusal::Refusal;
pub use service::{Admit, ByIssuer, Limits, Service, host_order};
pub use soft::REPORT_LIFE;
pub use state::{FoldError, State};
pub use stats::Stats;
// The other end, for who composes both.
pub use tabbify_membership::{
    Binding, Door, Invited, JoinFailed, Leased, Membership, MeshSecret, RemoteConfig,
    RemoteCoordinator, RemoteStats, RequestFailed, TlsKey, TlsKeyError, consent, join_platform,
};
