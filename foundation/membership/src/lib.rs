//! A member's end of the coordinator, for whoever asks it over a network: a machine, an instance of an
//! app, a public edge. The coordinator itself uses [`proof`] and [`TlsKey`], the other ends of the same.
//!
//! Plane: vocabulary of the app plane. Reading order: [`proof`] says who is there, `tls` to whom,
//! `remote` asks, believes only what the platform has signed, remembers it and hears what changes.
//!
//! Spawns two tasks for each [`RemoteCoordinator`], `coordinator-watch` and `coordinator-report`, and one a
//! connection; owns one bounded channel, of keys that are nobody's any more.

mod life;
pub mod proof;
mod remote;
mod tls;

pub use life::{LEASE_LIFE, REPORT_LIFE};
pub use proof::{Binding, MeshSecret};
pub use remote::{
    Invited, JoinFailed, Leased, Membership, RemoteConfig, RemoteCoordinator, RemoteStats,
    RequestFailed, consent, join as join_platform,
};
pub use tls::{Door, TlsKey, TlsKeyError};
