//! Mints and verifies: generates the platform's keys, signs people in, opens apps in browsers, lets
//! machines join, takes back what it gave.
//!
//! Plane: app. All state but short memories (what was used once, who failed how often) is a fold of
//! `platform` and `platform.auth`, with a snapshot on disk to start with while the log is away. Spawns
//! one essential task, `auth-follow`, which keeps that fold current, and `auth-refusals`, which writes
//! down now and then how many sign-ins were refused; the service one task a connection. Owns one watch
//! cell: how often something was revoked.
//!
//! ```text
//!  keys, bootstrap ─▶ state ─▶ checker ─▶ authority ─▶ asker ─▶ issue, admit, people, rotate ─▶ service
//!                                 └──────────────────────────────────────▶ remote, in another process
//! ```
//!
//! Invariants:
//! - No secret exists that was not generated here or put here by the operator; a key file that
//!   others can read is refused (`keys::tests`).
//! - An issuer key counts only with the root key's signature (`state::tests`); the two newest count.
//! - A proof, ticket, invitation or join token counts once, also across a restart and between several
//!   issuers on one log (`tests/it`).
//! - A token is recorded (`token_issued`) before anybody has it; a ticket is not a token yet.
//! - What is revoked is refused by every checker that has heard of it, and none forgets it.
//! - Nobody gets a token for more than they may do themselves (`tests/it/policy.rs`).
//! - Passwords and mail addresses are in the log only sealed under keys that can be destroyed
//!   (`keyring::tests`).

pub mod keys;

pub mod bootstrap;

pub mod state;

mod checker;

mod keyring;
mod limits;
mod once;
mod password;
mod refusals;

pub mod authority;
mod issuers;

mod asker;

mod admit;
mod issue;
mod people;
pub mod rotate;

mod service;

mod remote;

pub use authority::{Auth, Config, StartError};
pub use bootstrap::{BootstrapError, OWNER, bootstrap};
pub use checker::{Checker, FollowError};
pub use issuers::{IssuerKeys, KeyRef};
pub use keyring::{Keyring, SealError};
pub use keys::{Keys, KeysError};
pub use password::Cost;
pub use remote::{Connect, RemoteAuthority, Stream, UnixSocket};
pub use rotate::RotateError;
pub use service::{Peer, Service};
pub use state::{FoldError, State};
