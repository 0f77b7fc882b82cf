//! The server: every long-running role in one program (DESIGN section 3).
//!
//! Role dispatch, nothing else: [`command`] knows the roles. [`up`] composes all of them,
//! [`platform`] says in which order they start, [`substrate`] is the log of this process, [`role`]
//! what roles that run alone have in common, [`member`] this machine in the mesh, [`way`] how it finds
//! the coordinator, [`over_mesh`] the services there, [`join`] how other machines come to it, [`authorize`] who may do what over their sockets,
//! [`gateway`] where people's devices come in, [`data_dir`] where files are, [`down`] ends the apps of a data directory.

mod api_gateway;
mod audit;
mod auth;
mod authorize;
mod checkpoints;
mod command;
mod config;
mod contexts;
mod coordinator;
mod data_dir;
mod doctor;
mod down;
mod gateway;
mod gateway_devices;
mod invite;
mod join;
mod listen;
mod log;
mod log_line;
mod log_settings;
mod member;
mod mesh;
mod mesh_status;
mod microvms;
mod objects;
mod over_mesh;
mod own_token;
mod platform;
mod read_node;
mod relay;
mod role;
mod secret;
mod substrate;
mod supervisord;
mod token;
mod transaction_node;
mod up;
mod way;

use std::process::ExitCode;
use std::time::Duration;

fn main() -> anyhow::Result<ExitCode> {
    tabbify_process::telemetry::init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let ended = runtime.block_on(command::run(std::env::args_os()));
    // A look-up of a name cannot be stopped, and nobody waits for its answer any more.
    runtime.shutdown_timeout(Duration::from_secs(1));
    ended
}
