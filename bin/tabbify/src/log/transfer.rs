//! `tabbify log verify | export | import`, of the embedded log or of one in PostgreSQL. The digest of
//! the content, which all three print, is the same on both sides of a move.
#![expect(clippy::print_stdout, reason = "commands for people")]

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use tabbify_log::transfer::{self, Content};
use tabbify_log::{Log, Options, postgres};
use tabbify_process::{SystemClock, env};

use super::{Where, verified};
use crate::data_dir::DataDir;

/// Which log, in which engine.
#[derive(Debug, clap::Args)]
pub(crate) struct Engine {
    #[command(flatten)]
    place: Where,
    /// The log in PostgreSQL instead; where its connection string is: env:NAME or file:PATH
    #[arg(long, value_name = "REFERENCE", conflicts_with = "data_dir")]
    postgres: Option<String>,
    /// The schema of that log
    #[arg(long, default_value = "tabbify_log", requires = "postgres")]
    schema: String,
    /// Take a database that has no synchronous standby
    #[arg(long, requires = "postgres")]
    without_standby: bool,
}

/// Which log, and the file that it goes to or comes from.
#[derive(Debug, clap::Args)]
pub(crate) struct Move {
    /// The export
    file: PathBuf,
    #[command(flatten)]
    engine: Engine,
}

enum Chosen {
    Embedded(PathBuf),
    Postgres(Box<postgres::Options>),
}

impl Engine {
    fn choose(self) -> anyhow::Result<Chosen> {
        let Some(reference) = self.postgres else {
            let dir = DataDir::choose(self.place.data_dir)?.log();
            return Ok(Chosen::Embedded(dir));
        };
        let conninfo = secret(&reference)?;
        let options = postgres::Options::new(conninfo.trim(), Arc::new(SystemClock))?;
        let standby = if self.without_standby {
            postgres::Standby::Missed
        } else {
            postgres::Standby::Required
        };
        let options = options.schema(&self.schema)?.standby(standby);
        Ok(Chosen::Postgres(Box::new(options)))
    }
}

/// A secret never stands on a command line, where every user of the machine can read it.
fn secret(reference: &str) -> anyhow::Result<String> {
    match reference.split_once(':') {
        Some(("env", name)) => {
            env::read(name).with_context(|| format!("the variable {name} is not set"))
        }
        Some(("file", path)) => std::fs::read_to_string(path).with_context(|| path.to_owned()),
        _ => bail!(
            "--postgres takes env:NAME or file:PATH, the place of a connection string, not the \
             string itself: it may hold a password"
        ),
    }
}

/// `tabbify log verify`.
pub(crate) async fn verify(engine: Engine) -> anyhow::Result<()> {
    match engine.choose()? {
        Chosen::Embedded(dir) => {
            let found = tokio::task::spawn_blocking(move || {
                let found = Log::verify(&dir)?;
                let content = transfer::content(&dir)?;
                anyhow::Ok((found, content))
            });
            let (found, content) = found.await??;
            println!("{}\ncontent  {}", verified(&found), content.digest);
        }
        Chosen::Postgres(options) => {
            let found = postgres::Engine::verify(*options).await?;
            let Content {
                log_id,
                head,
                digest,
            } = found.content;
            let (commits, epoch) = (found.frames, found.epoch);
            println!(
                "log {log_id} verified to position {head}; {commits} commits, epoch {epoch}\n\
                 content  {digest}"
            );
        }
    }
    Ok(())
}

/// `tabbify log export`.
pub(crate) async fn export(command: Move) -> anyhow::Result<()> {
    let file = command.file;
    let to = file.clone();
    let content = match command.engine.choose()? {
        Chosen::Embedded(dir) => {
            tokio::task::spawn_blocking(move || transfer::export_log(&dir, &to)).await??
        }
        Chosen::Postgres(options) => postgres::Engine::export(*options, &to).await?,
    };
    told(&content, &format!("exported to {}", file.display()));
    Ok(())
}

/// `tabbify log import`.
pub(crate) async fn import(command: Move) -> anyhow::Result<()> {
    let file = command.file;
    let from = file.clone();
    let content = match command.engine.choose()? {
        Chosen::Embedded(dir) => {
            let options = Options::new(Arc::new(SystemClock));
            let importing =
                tokio::task::spawn_blocking(move || transfer::import_log(&from, &dir, &options));
            importing.await??
        }
        Chosen::Postgres(options) => postgres::Engine::import(*options, &from).await?,
    };
    told(&content, &format!("imported from {}", file.display()));
    Ok(())
}

fn told(content: &Content, what: &str) {
    let Content {
        log_id,
        head,
        digest,
    } = content;
    println!("log {log_id} to position {head} {what}\ncontent  {digest}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_string_is_only_referred_to() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "host=/tmp\n").unwrap();
        let reference = format!("file:{}", file.path().display());
        assert_eq!(secret(&reference).unwrap(), "host=/tmp\n");
        let refused = secret("host=/tmp password=hunter2")
            .unwrap_err()
            .to_string();
        assert!(!refused.contains("hunter2"), "{refused}");
        for missing in [
            "file:/nowhere/at/all",
            "env:TABBIFY_THERE_IS_NO_SUCH",
            "x:y",
            "",
        ] {
            assert!(secret(missing).is_err(), "{missing}");
        }
    }
}
