//! The event log (DESIGN section 5): the embedded engine, one directory of extent files and one
//! writer; durable consumers; the log over HTTP.
//!
//! Plane: substrate. Threads: one writer per open [`Log`], which blocks in `fdatasync`, and for a
//! moment one that prepares the next extent; history is read on tokio's blocking pool. Tasks: none for
//! the log itself; [`Consumers`] one that writes their states, [`Service`] and [`RemoteLog`] one a
//! connection and one a session of appends. Owns the bounded queue into the writer and the watch cell of the durable position.
//!
//! ```text
//!  append ─▶ queue ─▶ writer: judge against the tip ─▶ frame ─▶ pwrite ─▶ fdatasync ─▶ answers
//!                                                                             │
//!  subscribe ◀── recent events in memory, or frames from files ◀── durable position (watch)
//! ```
//!
//! Invariants:
//! 1. An answered append is on disk; positions are gapless from 1, revisions per (segment, key).
//! 2. Bytes below the durable position never change; nobody reads above it.
//! 3. Only a tail that is provably torn is cut; any other damage refuses to open.
//! 4. A failed write or sync ends the process and is never retried.
//! 5. A reader costs the writer nothing, however slow it is.
//! 6. A consumer skips no event, whatever crashes, and keeps the order of each key.
//! 7. Over the network the log answers as it does in process; the actor comes from the token alone.
//! 8. A log that is not what its newest checkpoint has signed does not open.
//!
//! Reading order: `fields`, `record` and `frame` are the bytes, `disk` the file system, `extent` the
//! files on it, `cold` the object store behind them, `scan` and `tail` what opening does with them,
//! `index` what is kept in memory, `batch` and `judge` what may be appended, `writer` the commit and
//! `spare` its next file, `reader` and `subscription` the way out, `client` who may, `log` the handle on
//! it all, `merkle` and `checkpoint` what is signed of it, `restore` how it is put together again,
//! `files` a log that nobody has open, `consumers` the work that is handed out and acknowledged, `rate`
//! how fast a tenant may append, `wire` what crosses a network, `service` and `remote` its two ends,
//! `postgres` the same log in a database on several machines, and `transfer` the move between the two.
//! The format: docs/protocols/log-format.md. The network: docs/protocols/log-http.md.

mod fields;
mod record;

mod frame;

mod disk;
mod extent;

mod cold;

mod scan;
mod tail;

mod index;
mod keepers;
mod opening;
mod scrub;
mod verify;

mod batch;
mod judge;
mod scope;

mod spare;
mod writer;

mod marks;
mod pass;
mod reader;
mod recent;
mod subscription;

mod client;

mod log;

mod checkpoint;
mod merkle;
mod restore;

mod files;

mod consumers;

mod rate;

mod wire;

mod service;

mod remote;

pub mod postgres;

pub mod transfer;

mod error;
mod options;

#[cfg(test)]
mod proof;

pub use checkpoint::{
    Anchor, Audited, Certificate, Checkpoint, CheckpointError, CheckpointStore, LogKey,
    LogKeyError, Proof, ProofError, Proven, PublishError, Publisher, Signed, StoreError, Trust,
    TrustError, audit, audit_open, prove,
};
pub use cold::{Cold, ColdError, ColdStore};
pub use consumers::{Consumers, ConsumersError};
pub use error::{OpenError, TornTail};
pub use files::{Files, Usage};
pub use log::{Log, LogId, Verified};
pub use options::Options;
pub use rate::{RateLimited, Rates};
pub use record::EventRef;
pub use remote::{Bearer, Connect, RemoteLog, Stream, UnixSocket};
pub use restore::{RestoreError, Restored, Taken, restore};
pub use service::Service;
