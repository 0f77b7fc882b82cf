//! Proof of recovery, on a simulated disk.
//!
//! `enumeration` cuts the power at every moment of a trace, leaves behind everything that a disk may
//! leave, recovers, and cuts the power within the recovery; `mutations` shows that it notices when any
//! one sync is missing; `simulation` plays seeded lives of a log with everything at once; `flips` flips
//! every byte; `cold` takes an object store away. All compare with `model`, the law in its plainest form;
//! `engine` drives the real writer, one commit at a time.

mod cold;
pub(crate) mod engine;
mod enumeration;
mod flips;
mod model;
mod mutations;
pub(crate) mod random;
mod simulation;
mod workload;

use tabbify_process::env;

/// Set by `cargo xtask test --long`.
const LENGTH: &str = "TABBIFY_TEST_LENGTH";

/// What is wrong, in a test.
pub(crate) type Wrong = Box<dyn std::error::Error + Send + Sync>;

/// Whether the long versions are asked for.
pub(crate) fn long() -> bool {
    env::read(LENGTH).is_some_and(|length| length == "long")
}
