//! The project's own commands, run as `cargo xtask <command>`.
//!
//! Reading order: [`demo`] is what a newcomer runs, [`test`] is what CI runs, [`bench`] measures,
//! [`setup`] installs what they need.
#![expect(clippy::print_stdout, reason = "a command for people")]

mod bench;
mod demo;
mod run;
mod setup;
mod test;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Tabbify's own commands")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build everything, start a platform, push examples/hello-wasm, show where it answers
    Demo {
        /// Exit after the first good answer
        #[arg(long)]
        once: bool,
    },
    /// The inner loop: format, lints, unit tests, tidy
    Check,
    /// Every check there is; what CI runs
    Test {
        /// The long versions of the chaos and memory tests
        #[arg(long)]
        long: bool,
    },
    /// Measure ours beside what people would run instead, and print the table
    Bench {
        /// What to measure: log, mesh
        name: String,
        /// Fail when a ratio's aim does not hold
        #[arg(long)]
        check: bool,
        /// For the measuring program, behind `--`
        #[arg(last = true)]
        more: Vec<String>,
    },
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Demo { once } => demo::demo(once),
        Command::Check => test::check(),
        Command::Test { long } => test::test(long),
        Command::Bench { name, check, more } => bench::bench(&name, check, &more),
    }
}
