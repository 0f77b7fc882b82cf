//! `tabbify log verify | export | import`, of the embedded log or of one in PostgreSQL. The digest of
//! the content, which all three print, is the same on both sides of a move.
#![expect(clippy::print_stdout, reason = "commands for people")]

use std::path::PathBuf;
use std::sync::Arc;

use tabbify_log::transfer::{self, Content};
use tabbify_log::{Files, Options, postgres};
use tabbify_process::SystemClock;

use super::{Where, verified};
use crate::log_settings::{Postgres, Settings};
use crate::secret::Secret;

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
    Embedded(PathBuf, Files),
    Postgres(Box<postgres::Options>),
}

impl Engine {
    fn choose(self) -> anyhow::Result<Chosen> {
        let clock = Arc::new(SystemClock);
        if let Some(reference) = self.postgres {
            let connection = Secret(reference);
            let postgres = Postgres::of(connection, Some(self.schema), self.without_standby);
            return Ok(Chosen::Postgres(Box::new(postgres.options(clock)?)));
        }
        // A transaction-node's configuration may say that its log is in PostgreSQL.
        let (_, settings) = Settings::read(self.place.config.as_deref())?;
        if let Some(postgres) = settings.postgres {
            return Ok(Chosen::Postgres(Box::new(postgres.options(clock)?)));
        }
        let (dir, files) = self.place.find()?;
        Ok(Chosen::Embedded(dir, files))
    }
}

/// `tabbify log verify`.
pub(crate) async fn verify(engine: Engine) -> anyhow::Result<()> {
    match engine.choose()? {
        Chosen::Embedded(dir, files) => {
            let found = tokio::task::spawn_blocking(move || {
                let found = files.verify(&dir)?;
                let content = files.content(&dir)?;
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
        Chosen::Embedded(dir, files) => {
            tokio::task::spawn_blocking(move || files.export(&dir, &to)).await??
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
        Chosen::Embedded(dir, _) => {
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
