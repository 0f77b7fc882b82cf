//! The node: the one public listener. REST, uploads, and the proxy to every app.
//!
//! Plane: app. A request's path, one file a step:
//!
//! ```text
//!   listen ─▶ handle ─▶ route ─▶ authn ─┬▶ forward ─▶ replicas ─▶ pool ─▶ dial ─▶ runner
//!   framing                             └▶ rest ─▶ log, object store, view
//! ```
//!
//! Tasks: `node projection` (essential: follows the log), `node pool` (closes old connections), and
//! detached ones per connection, upstream, tunnel and aborted upload. Owns no channel but the fold's,
//! which tells how far the view is.
//!
//! Invariants:
//! - No credential or cookie of ours reaches an app, and no `x-tabbify-*` of a caller.
//! - Bodies are never gathered on the way to or from an app.
//! - What a handler answers follows from events in the log: nothing is kept here that a restart
//!   would lose.
//! - What a token opened ends when the token is revoked, also in the middle of a body.
//! - A request goes to an instance that serves by the log; one that has left gets no new request, and
//!   finishes those that it has. Nothing is sent twice because an instance could not be dialed.
//! - With the log away, what was known is served, and nothing is taken that would have to be written.
//! - Nothing listens beyond loopback.

mod answer;
mod authn;
mod body;
pub mod config;
pub mod dial;
mod error;
mod forward;
mod framing;
mod handle;
mod headers;
mod leash;
mod listen;
mod machine_logs;
mod node;
mod pool;
mod projection;
mod replicas;
mod rest;
mod route;
mod server;
mod tunnel;
mod view;

pub use config::{Config, Timeouts};
pub use dial::{Dial, DialError, Stream};
pub use node::Deps;
pub use pool::PoolStats;
pub use server::{BindError, PoolWatch, Server};
