//! `tcli`: from a folder with an app to a URL, and everything a person asks about it afterwards.
//!
//! App plane, client side. Synchronous, one thread; it speaks to the node alone, over the contract
//! in `tabbify-api`, and links no daemon code.
//!
//! Reading order: [`args`] is what can be asked, [`command`] does it; [`folder`] is the project on
//! disk, [`signin`] the credentials, [`http`] one request with its retries, [`client`] the contract
//! as methods, [`watch`] a deploy until its end; [`progress`] and [`output`] are all that prints.
//!
//! Invariants: results go to standard output and everything else to standard error; with `--json`
//! standard output is one document (or NDJSON for `logs`); every failure says what, why and what
//! next, and has an exit code that says whose fault it is; `--plan` changes nothing at all.

mod args;
mod artifact;
mod client;
mod clock;
mod command;
mod env;
mod error;
mod files;
mod folder;
mod http;
mod output;
mod progress;
mod server;
mod signin;
mod watch;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    let cli = match args::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return output::usage(&error),
    };
    let json = cli.global.json;
    match command::run(cli) {
        Ok(exit) => exit.into(),
        Err(failure) => output::failure(json, &failure),
    }
}
