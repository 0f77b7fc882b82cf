//! `supervisord`: what the log says must run on this machine, against what does.
//!
//! Plane: app. Pure control: no log line of an app passes through here, no request but one that wakes an app,
//! and runners live on without it. Reading order: [`state`] folds the log into what is desired, [`plan`] decides,
//! [`supervise`] drives, [`act`] does one thing at a time, [`watch`] holds on to one living runner;
//! both use [`runner_dir`] (files and the lock), [`control`] (the socket) and [`pid`] (processes);
//! [`identity`] signs the tickets that runners get their leases for; [`exit`] tells how a process ended that
//! is not our child; [`failpoint`] is where tests end the process.
//! [`doorbell`] holds those who come for what is asleep, until it is awake;
//! [`logs`] reads what apps print; [`volumes`] are what they keep; [`stop_all`] needs no supervisor.
//!
//! Tasks: `supervisor` (essential), and per runner a `runner-watch` and at most one
//! `runner-action` (detached), which end with it. Channel: one bounded queue of news to the loop.
//!
//! Invariants, each held by a test:
//! 1. The intent (`app_starting`) is durable before a process is spawned.
//! 2. A runner's lock is held from before its process exists until its end: locked ⇔ alive. An
//!    instance is spawned only by who holds its lock, and never again once it was seen to live.
//! 3. A runner that nobody placed is reported in the log of this process and left alone.
//! 4. Every report has an id derived from its placement, so that saying it twice says it once.
//! 5. A spawn ticket touches no disk: it goes to a runner that has proven itself on its control socket, and
//!    only to one that was placed here.
//! 6. What is desired is stored on disk: started while the log is away, it adopts what lives, and does
//!    nothing else before the log has said what has happened meanwhile.

mod act;
mod capability;
mod config;
mod control;
mod doorbell;
mod error;
mod exit;
#[doc(hidden)]
pub mod failpoint;
mod identity;
mod logs;
mod news;
mod pid;
mod plan;
mod report;
mod runner_dir;
mod state;
mod stop_all;
mod supervise;
mod supervisor;
mod tracked;
mod volumes;
mod watch;

pub use capability::probe_capabilities;
pub use config::Config;
pub use doorbell::{Doorbell, Guest};
pub use error::Error;
pub use identity::{Certificate, Identity, Whereabouts};
pub use logs::{FileLogs, LogService};
pub use stop_all::{StopReport, stop_all_runners};
pub use supervisor::{Overview, Supervisor};
pub use volumes::FileVolumes;
