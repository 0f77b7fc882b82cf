//! `tabbify log`: looks at the log of a data directory, and mends it, while no `tabbify up` runs on it.

mod transfer;

use std::path::PathBuf;
use std::process::ExitCode;

use tabbify_log::{CheckpointStore, Files, Restored, Usage, Verified};

use crate::audit::{self, Known, Place};
use crate::data_dir::DataDir;
use crate::log_settings::Settings;

/// Its commands.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Check every byte of the log and the chain of its frames; of one in PostgreSQL too
    Verify(transfer::Engine),
    /// How large the log is
    Stat(Where),
    /// Write the log, verified, to a new file
    Export(transfer::Move),
    /// Make a log from an export, where there is none
    Import(transfer::Move),
    /// Put a damaged or lost log together again from copies; what is there is kept beside it
    Restore(Restore),
}

/// Which log.
#[derive(Debug, clap::Args)]
pub(crate) struct Where {
    /// Configuration file of `tabbify up` or of a transaction-node: where the data and stored extents
    /// are
    #[arg(long)]
    config: Option<PathBuf>,
    /// The data directory; default `$XDG_DATA_HOME/tabbify`
    #[arg(long)]
    data_dir: Option<PathBuf>,
}

impl Where {
    /// The log's directory, and its files there and in the store.
    fn find(self) -> anyhow::Result<(PathBuf, Files)> {
        let (configured, settings) = Settings::read(self.config.as_deref())?;
        let data = DataDir::choose(self.data_dir.or(configured))?;
        let files = Files::new(settings.cold_store(&data)?.as_ref());
        Ok((data.log(), files))
    }
}

/// Flags of `restore`.
#[derive(Debug, clap::Args)]
pub(crate) struct Restore {
    /// A copy: a directory with extents of the log; may be given several times
    #[arg(long)]
    from: Vec<PathBuf>,
    /// Go on without events that were signed and that no copy has
    #[arg(long)]
    accept_loss: bool,
    #[command(flatten)]
    place: Place,
}

/// Answers on standard output; damage is an error that names extent and byte.
pub(crate) async fn run(command: Command) -> anyhow::Result<ExitCode> {
    let done = match command {
        Command::Verify(engine) => transfer::verify(engine).await,
        Command::Stat(place) => stat(place).await,
        Command::Export(command) => transfer::export(command).await,
        Command::Import(command) => transfer::import(command).await,
        Command::Restore(command) => mend(command).await,
    };
    audit::exit(done)
}

/// Stat verifies too: what is not intact has no size worth telling.
#[expect(clippy::print_stdout, reason = "a command for people")]
async fn stat(place: Where) -> anyhow::Result<()> {
    let (dir, files) = place.find()?;
    let found = tokio::task::spawn_blocking(move || {
        let found = files.verify(&dir)?;
        anyhow::Ok((found, files.usage(&dir)?))
    });
    let (found, usage) = found.await??;
    println!("{}", stat_text(&found, &usage));
    Ok(())
}

#[expect(clippy::print_stdout, reason = "a command for people")]
async fn mend(command: Restore) -> anyhow::Result<()> {
    let Known {
        data,
        files,
        store,
        trust,
    } = command.place.find().await?;
    let signed = store.all(&trust).await?;
    let (dir, accept) = (data.log(), command.accept_loss);
    let done =
        tokio::task::spawn_blocking(move || files.restore(&dir, &command.from, &signed, accept));
    let done = done.await??;
    println!("{}", restored(&done));
    if done.signed_upto > Some(done.head) {
        println!("{}", given_up(&store, &done).await?);
    }
    Ok(())
}

fn restored(done: &Restored) -> String {
    let mut text = format!("log {} restored to position {}\n", done.log_id, done.head);
    for taken in &done.taken {
        let from = taken.from.display();
        text.push_str(&format!("  {} events from {from}", taken.events));
        if let Some(unreadable) = &taken.unreadable {
            text.push_str(&format!(", of which a part cannot be read: {unreadable}"));
        }
        text.push('\n');
    }
    if let Some(aside) = &done.aside {
        text.push_str(&format!("what was there is in {}\n", aside.display()));
    }
    text + match done.signed_upto {
        None => "there is no checkpoint: whether the end is missing cannot be told",
        Some(signed) if signed > done.head => "events that were signed are lost",
        Some(_) => "nothing that was signed is lost",
    }
}

/// Makes the log usable again after a loss: what was signed beyond it counts no more.
async fn given_up(store: &CheckpointStore, done: &Restored) -> anyhow::Result<String> {
    let count = store.give_up_beyond(done.head).await?;
    Ok(format!(
        "positions {} to {} are given up; the {count} checkpoints of them are in {}/lost",
        done.head.next(),
        done.signed_upto.unwrap_or_default(),
        store.shown()
    ))
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

fn stat_text(found: &Verified, usage: &Usage) -> String {
    let mut text = format!(
        "log      {}\nhead     {}\nframes   {}\nextents  {}\nbytes    {} (allocated ahead)",
        found.log_id, found.head, found.frames, found.extents, usage.local_len
    );
    if usage.stored > 0 {
        text.push_str(&format!(
            "\nstored   {} extents, {} of them only in the object store\n         {} bytes there, of {}",
            usage.stored, usage.only_stored, usage.stored_len, usage.stored_extents_len
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use tabbify_log::{LogId, Options};
    use tabbify_process::SystemClock;

    use super::*;

    #[test]
    fn what_is_stored_is_told_where_there_is_any() {
        let dir = tempfile::tempdir().unwrap();
        let options = Options::new(std::sync::Arc::new(SystemClock));
        let log_id: LogId = tabbify_log::Log::open(dir.path(), options)
            .unwrap()
            .log_id();
        let files = Files::new(None);
        let found = files.verify(dir.path()).unwrap();
        let usage = files.usage(dir.path()).unwrap();
        let text = stat_text(&found, &usage);
        assert!(
            text.starts_with(&format!("log      {log_id}\nhead     0\n")),
            "{text}"
        );
        assert!(!text.contains("stored"), "{text}");
        let stored = Usage {
            stored: 5,
            stored_len: 100,
            stored_extents_len: 700,
            only_stored: 3,
            ..usage
        };
        let text = stat_text(&found, &stored);
        assert!(
            text.ends_with(
                "5 extents, 3 of them only in the object store\n         100 bytes there, of 700"
            ),
            "{text}"
        );
    }
}
