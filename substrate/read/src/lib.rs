//! The read node: what the log says, folded into tables on disk that can be asked and searched
//! (DESIGN sections 3 and 5).
//!
//! Plane: substrate. Tasks: `read-node`, detached, follows the log and is the only writer; one for each
//! connection of [`Service`] and [`RemoteReadModel`]. Questions run on tokio's blocking pool. Owns a queue
//! of one for rebuilds and the watch cell of the progress.
//!
//! ```text
//!  log ─ pages ─▶ follow ─ one transaction: rows + position ─▶ read-<n>.sqlite (WAL)
//!                                                                   │ a few readers
//!  ReadModel::{apps, deploys, builds, peers, tokens, approvals, audit …} ◀─┘
//! ```
//!
//! Invariants:
//! 1. Rows and position are of one transaction: what a crash leaves is the fold of a prefix.
//! 2. Folding again from position 0 gives the same content digest, however the log was cut.
//! 3. An event that a projection does not understand stops that projection before it, with the reason
//!    in the status; the others go on. A newer program takes it up from there.
//! 4. A tenant's question is answered from rows whose tenant is that one and from no others.
//! 5. A file that is not the fold of a prefix of this log is never served, unless the log cannot be
//!    asked: then what is there is served, its age is told, and it is judged when the log is back.
//! 6. Over the network it answers as it does in process; what a caller sees comes from the token alone.
//!
//! Reading order: `projection` says what a fold is and each of its modules is one, `store` applies
//! them to a file, `generation` says which file, `follow` drives it, `progress` tells how far it is,
//! `pool` and `query` answer, `node` is the handle on it all, `wire` what crosses a network, `service` and
//! `remote` its two ends.

mod config;
mod error;

mod digest;
mod projection;
mod store;

mod generation;

mod follow;
mod progress;

mod pool;
mod query;

mod node;

mod wire;

mod service;

mod remote;

pub use config::Config;
pub use error::ReadNodeError;
pub use follow::Rebuilt;
pub use node::ReadNode;
pub use remote::RemoteReadModel;
pub use service::Service;
