//! Mints and verifies: generates the platform's keys, signs people in, opens apps in browsers.
//!
//! Plane: app. All state but two short memories of what was used once is a fold of `platform` and
//! `platform.auth`. Spawns one essential task, `auth-follow`, which keeps that fold current; owns
//! one watch channel, from which every verification takes its snapshot. Reading order: [`keys`] on
//! disk, [`bootstrap`] writes the first events, [`state`] folds them, [`authority`] answers.
//!
//! Invariants:
//! - No secret exists that was not generated here or put here by the operator; a key file that
//!   others can read is refused (`keys::tests`).
//! - An issuer key counts only with the root key's signature (`state::tests`); the two newest count.
//! - A proof or ticket is accepted once, also across a restart (`tests/it/main.rs`).
//! - A token is recorded (`token_issued`) before anybody has it.

pub mod authority;
pub mod bootstrap;
pub mod keys;
mod once;
pub mod state;

pub use authority::{Auth, StartError};
pub use bootstrap::{BootstrapError, OWNER, bootstrap};
pub use keys::{Keys, KeysError};
pub use state::{FoldError, State};
