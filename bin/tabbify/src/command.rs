//! What `tabbify` can be told, and which module does it.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::{
    audit, auth, coordinator, doctor, down, invite, join, log, mesh, read_node, relay, role,
    supervisord, token, transaction_node, up,
};

#[derive(Parser)]
#[command(
    name = "tabbify",
    version,
    about = "A self-hosted application platform"
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run every role on this machine; an empty data directory becomes a working platform
    Up(up::Arguments),
    /// Stop the apps of a data directory, and `tabbify up` if it runs
    Down(down::Arguments),
    /// Make a platform of an empty data directory, for roles that run alone
    Init(token::Init),
    /// Write what a role that runs alone shows to the log
    Token(token::Arguments),
    /// Run the event log alone
    TransactionNode(role::Arguments),
    /// Run the read model alone
    ReadNode(role::Arguments),
    /// Run the issuer alone, or make a new key for it
    Auth(auth::Arguments),
    /// Run the coordinator alone: where machines join, and ask who holds which address
    Coordinator(role::Arguments),
    /// Write a token with which a machine may join, once
    Invite(invite::Arguments),
    /// Make this machine a supervisor of a platform, with the token of `tabbify invite`
    Join(join::Arguments),
    /// Run the apps that are placed on this machine, which has joined a platform
    Supervisord(role::Arguments),
    /// Relay between members without a direct path, on a machine that has joined with the tag role:relay
    Relay(role::Arguments),
    /// What this machine can run, what it lacks for the rest, and how to get that
    Doctor(doctor::Arguments),
    /// How this machine reaches others, and why not better
    #[command(subcommand)]
    Mesh(mesh::Command),
    /// Check the log against what was signed of it, and prove events to others
    #[command(subcommand)]
    Audit(audit::Command),
    /// Verify, measure, move or restore the log of a data directory
    #[command(subcommand)]
    Log(log::Command),
}

/// Roles that a link to this program may be named after.
const LINKS: [&str; 6] = [
    "transaction-node",
    "read-node",
    "auth",
    "coordinator",
    "supervisord",
    "relay",
];

/// Does what the command line says.
pub(crate) async fn run(line: impl Iterator<Item = OsString>) -> anyhow::Result<ExitCode> {
    match Arguments::parse_from(with_role(line)).command {
        Command::Up(arguments) => up::run(arguments).await?,
        Command::Down(arguments) => down::run(arguments).await?,
        Command::Init(arguments) => token::init(arguments).await?,
        Command::Token(arguments) => token::run(arguments).await?,
        Command::TransactionNode(arguments) => transaction_node::run(arguments).await?,
        Command::ReadNode(arguments) => read_node::run(arguments).await?,
        Command::Auth(arguments) => auth::run(arguments).await?,
        Command::Coordinator(arguments) => coordinator::run(arguments).await?,
        Command::Invite(arguments) => invite::run(arguments).await?,
        Command::Join(arguments) => join::run(arguments).await?,
        Command::Supervisord(arguments) => supervisord::run(arguments).await?,
        Command::Relay(arguments) => relay::run(arguments).await?,
        Command::Doctor(arguments) => return doctor::run(arguments).await,
        Command::Mesh(command) => return mesh::run(command).await,
        Command::Audit(command) => return audit::run(command).await,
        Command::Log(command) => return log::run(command).await,
    }
    Ok(ExitCode::SUCCESS)
}

/// The line with the role that the program's own name says, if it was called by a role's name.
fn with_role(mut line: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let program = line.next().unwrap_or_default();
    let name = Path::new(&program).file_name();
    let role = LINKS.into_iter().find(|link| name == Some(link.as_ref()));
    let role = role.map(OsString::from);
    std::iter::once(program).chain(role).chain(line).collect()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
        let parsed = |line: &[&str]| Arguments::try_parse_from(line).is_ok();
        assert!(parsed(&["tabbify", "auth", "--data-dir", "d"]));
        assert!(parsed(&["tabbify", "auth", "rotate", "--data-dir", "d"]));
        assert!(!parsed(&["tabbify", "auth", "--config", "f", "rotate"]));
    }

    #[test]
    fn a_link_named_after_a_role_starts_it() {
        let line = |words: &[&str]| {
            let line = with_role(words.iter().map(OsString::from));
            let words = line.iter().map(|word| word.to_string_lossy().into_owned());
            words.collect::<Vec<_>>().join(" ")
        };
        assert_eq!(
            line(&["/opt/transaction-node", "--config", "f"]),
            "/opt/transaction-node transaction-node --config f"
        );
        assert_eq!(line(&["tabbify", "up"]), "tabbify up");
        assert_eq!(line(&[]), "");
    }
}
