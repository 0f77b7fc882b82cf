//! The registry: hands the files of an app's versions to the app's own instances.
//!
//! Plane: app. A service over whatever carries connections, in life the mesh, whose inner source address
//! says who asks: the mesh has checked on every packet that its sender owns it. Reading order: `path` is
//! what is asked for and by whom it may be, `service` serves, `answer` is what goes back, `places` how much
//! one caller may have.
//!
//! ```text
//!   GET /v1/artifacts/apps/<id>/v<N>/<file>  from [address of that app] ─▶ the object store, streamed
//! ```
//!
//! Spawns one task a connection; owns no channel.
//!
//! Invariants:
//! - an instance reads the versions of its own app and nothing else (`tests/it`);
//! - no path leads out of a version's folder (`path`, property);
//! - a file of any size passes in constant memory, and one that breaks off never looks complete.

mod answer;
mod path;
mod places;
mod service;
mod stats;

pub use service::{Limits, Service};
pub use stats::Stats;
