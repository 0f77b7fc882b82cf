//! The api-gateway: the vault, where the values of secrets are. (Webhooks are to come.)
//!
//! Plane: substrate. Reading order: `seal` makes a value unreadable, `store` keeps it, `state` is what the
//! log says about it, `vault` does one after the other, `service` is who may ask for what over a
//! connection, `client` the other end of that, for people's requests.
//!
//! ```text
//!   node ──set──▶ service ─▶ sealed, synced ─▶ secret_registered ─▶ the value before it is destroyed
//!   instance ──its key──▶ service ─▶ what its release names ─▶ opened ─▶ the instance
//! ```
//!
//! Spawns one task a connection, one for each change, and one that follows the log; owns no channel but
//! those of a change and of the fold.
//!
//! Invariants:
//! - what the log names can be opened here, whenever the process ends (`tests/it/crash.rs`);
//! - a value is given to instances whose release names it, and to nobody else (`tests/it/who.rs`);
//! - a sealed value opens as what it was sealed as, and as nothing else (`seal`);
//! - what was removed is nowhere on this disk (`tests/it/shred.rs`);
//! - no value stands in an error, a log line or a debug text (`tests/it/silence.rs`).

mod client;
mod error;
mod master;
mod seal;
mod service;
mod state;
mod store;
mod vault;

pub use client::RemoteVault;
pub use error::{Error, StartError};
pub use master::{MasterKey, MasterKeyError};
pub use service::{Peer, Service};
pub use vault::{Deps, Vault};
