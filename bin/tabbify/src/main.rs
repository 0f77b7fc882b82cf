//! The server: every long-running role in one program (DESIGN section 3).
//!
//! Role dispatch, nothing else. [`up`] composes the roles, [`platform`] says in which order they
//! start, [`data_dir`] where their files are, [`down`] ends the apps of a data directory.

mod config;
mod contexts;
mod data_dir;
mod down;
mod leases;
mod listen;
mod log;
mod platform;
mod up;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    name = "tabbify",
    version,
    about = "A self-hosted application platform"
)]
struct Arguments {
    #[command(subcommand)]
    role: Role,
}

#[derive(Subcommand)]
enum Role {
    /// Run every role on this machine; an empty data directory becomes a working platform
    Up(up::Arguments),
    /// Stop the apps of a data directory, and `tabbify up` if it runs
    Down(down::Arguments),
    /// Verify or measure the log of a data directory
    #[command(subcommand)]
    Log(log::Command),
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    tabbify_process::telemetry::init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        match arguments.role {
            Role::Up(arguments) => up::run(arguments).await,
            Role::Down(arguments) => down::run(arguments).await,
            Role::Log(command) => log::run(command).await,
        }
    })
}
