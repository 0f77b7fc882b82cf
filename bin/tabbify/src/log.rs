//! `tabbify log`: looks at the log of a data directory while no `tabbify up` runs on it.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use tabbify_log::{Log, Verified};

use crate::data_dir::DataDir;

/// Its commands.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Check every byte of the log and the chain of its frames
    Verify(Where),
    /// How large the log is
    Stat(Where),
}

/// Which log.
#[derive(Debug, clap::Args)]
pub(crate) struct Where {
    /// The data directory; default `$XDG_DATA_HOME/tabbify`
    #[arg(long)]
    data_dir: Option<PathBuf>,
}

/// Answers on standard output; damage is an error that names extent and byte.
#[expect(clippy::print_stdout, reason = "a command for people")]
pub(crate) async fn run(command: Command) -> anyhow::Result<()> {
    let (Command::Verify(place) | Command::Stat(place)) = &command;
    let dir = DataDir::choose(place.data_dir.clone())?.log();
    let read = dir.clone();
    // Stat verifies too: what is not intact has no size worth telling.
    let found = tokio::task::spawn_blocking(move || Log::verify(&read)).await??;
    match command {
        Command::Verify(_) => println!("{}", verified(&found)),
        Command::Stat(_) => println!("{}", stat(&dir, &found)?),
    }
    Ok(())
}

fn verified(found: &Verified) -> String {
    let torn = match &found.torn {
        Some(_) => "; an unfinished commit behind it will be cut when the log is opened",
        None => "",
    };
    format!(
        "log {} verified to position {}{torn}",
        found.log_id, found.head
    )
}

fn stat(dir: &Path, found: &Verified) -> anyhow::Result<String> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        bytes += entry?.metadata()?.len();
    }
    Ok(format!(
        "log      {}\nhead     {}\nframes   {}\nextents  {}\nbytes    {bytes} (allocated ahead)",
        found.log_id, found.head, found.frames, found.extents
    ))
}
