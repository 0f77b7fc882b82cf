//! What every daemon needs and nothing else: configuration, tracing, named tasks, shutdown in
//! order, a clock, private files, unix sockets in deep directories, projections of the log in memory.
//!
//! Plane: both. Spawns no task by itself but the one of [`signals`]; owns no channel but the watch cell
//! of a [`fold`]. Every task of
//! a daemon goes through [`Tasks`], so that it has a name, an owner and a meaning of its end.

pub mod clock;
pub mod config;
pub mod connect;
pub mod env;
pub mod error;
pub mod files;
pub mod fold;
mod memory;
pub mod signals;
pub mod tasks;
pub mod telemetry;
pub mod unix;

pub use clock::{Clock, ManualClock, SystemClock};
pub use error::chain;
pub use memory::memory_total;
pub use tasks::{Importance, TaskHandle, Tasks};

/// `N` bytes from the operating system's generator.
///
/// # Panics
/// If the operating system has no randomness to give: nothing secure can be done without.
#[must_use]
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the operating system gives random bytes");
    bytes
}
