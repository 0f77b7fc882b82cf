//! Decides where apps run, records what machines report, lets machines join, says who holds which
//! address and who may reach it: in this process, and over a network to whoever proves a member's key.
//!
//! Plane: app. Everything but where keys may be reached is a fold of the log. Spawns one essential task,
//! `coordinator`, which folds, plans and appends; the service one task a connection, the client in another
//! process two. Owns one bounded queue a watch.
//!
//! Reading order: [`state`] folds the log, [`app`] is one app in it, [`report`] judges what hosts say,
//! [`plan`] turns each open cause into one batch, [`place`] picks a machine, [`join`] makes machines
//! members, [`leases`] finds who holds what; `shell` does it, [`coordinator`] answers. Over the network:
//! `tls` and `proof` say who is there, `service` asks `member`, which asks the state; `grant` gives leases
//! for spawn tickets, `soft` keeps what is heard now and then, `watch` tells what changed; `remote` is the
//! other end.
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
//! - Instance numbers and epochs only grow (`plan::tests`, property); a machine's number is never
//!   given twice, whoever gives it (`tests/it/join.rs`).
//! - Nothing is answered over the network but to a key that the connection has proven, and only what the
//!   log says about that key (`tests/it/network.rs`).
//! - What an answer or a change costs does not grow with the apps that there are (`tests/it/scale.rs`).

pub mod app;
pub mod config;
pub mod coordinator;
mod grant;
pub mod join;
pub mod leases;
mod limits;
mod member;
pub mod place;
pub mod plan;
mod proof;
mod refusal;
mod remote;
pub mod report;
mod service;
mod shell;
mod soft;
pub mod state;
mod stats;
mod tls;
mod watch;

pub use config::Config;
pub use coordinator::{Coordinator, Health, OUTAGE_GRACE, Options, Signers, StartError};
pub use member::CERTIFICATE_LIFE;
pub use proof::{Binding, MeshSecret};
pub use refusal::Refusal;
pub use remote::{
    Invited, JoinFailed, Membership, RemoteConfig, RemoteCoordinator, RemoteStats, RequestFailed,
    consent, join as join_platform,
};
pub use service::{Admit, ByIssuer, Limits, Service};
pub use soft::REPORT_LIFE;
pub use state::{FoldError, State};
pub use stats::Stats;
pub use tls::{Door, TlsKey, TlsKeyError};
