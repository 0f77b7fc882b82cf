//! Containers of a Docker engine, as the platform runs them.
//!
//! Plane: app; a library of its own since the engine's API is a heavy dependency, and builder and sandboxes
//! run containers, too.
//!
//! ```text
//! Archive::open ─▶ Engine::start ─▶ Container ─▶ healthy, follow, exec, usage ─▶ wait ─▶ stop ─▶ remove
//!  checked, and      image, network,                                                      Engine::reap
//!  made anew         limits, no way out                                              after a runner's death
//! ```
//!
//! Spawns no task and owns no channel but the one between an archive and the engine that loads it.
//!
//! Invariants:
//! - an engine sees nothing of an image's file but checked content under names of ours;
//! - every container has a limit on memory, processor time, processes, output and `/tmp`, rights that end
//!   where its files do, and a network on which it and this machine are alone, whose ports are closed to it but
//!   the one at which its runner listens;
//! - all that is made for an instance has its labels, so that it is found after whoever made it has died.

mod archive;
mod container;
mod engine;
mod enter;
mod error;
mod exec;
mod health;
mod image;
mod listening;
mod network;
mod output;
mod reap;
mod spec;

pub use archive::{
    Archive, ArchiveError, FILE_LEN_MAX, Facts, LAYERS_MAX, Sha256, UNPACKED_LEN_MAX,
};
pub use container::{Container, End, seconds};
pub use engine::{About, DEFAULT_ADDRESS, Engine};
pub use enter::{Enter, EnterError};
pub use error::Error;
pub use exec::{Executed, OUTPUT_LEN_MAX, Running, RunningHandle, Usage};
pub use health::{Seen, healthy};
pub use image::Image;
pub use network::{Listener, Network, PORT};
pub use output::Stream;
pub use reap::Reaped;
pub use spec::{PIDS_MAX, Spec, Volume};
