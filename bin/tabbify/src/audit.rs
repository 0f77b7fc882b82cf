//! `tabbify audit`: whether the log is what was signed, and proofs of it for others.
//!
//! Exit codes: 0 in order, 1 it could not be looked at, 2 usage, 3 it is not what was signed.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use tabbify_log::transfer::TransferError;
use tabbify_log::{
    Anchor, Audited, Checkpoint, CheckpointStore, ColdError, Files, OpenError, Proof, ProofError,
    Signed, StoreError, Trust, postgres,
};
use tabbify_process::files;
use tabbify_token::SecretKey;
use tabbify_types::Position;

use crate::checkpoints;
use crate::data_dir::DataDir;
use crate::log_settings::Settings;

/// The log, a checkpoint or a proof is not what it must be.
pub(crate) const MISMATCH: u8 = 3;

/// Its commands.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Check the whole log: every byte, its chain, its tree, and every checkpoint
    Verify(Place),
    /// Print a proof that an event is in the log, for somebody who knows only the platform
    Prove(Prove),
    /// Check a proof, offline
    Check(Check),
}

/// Which log, and whose.
#[derive(Debug, clap::Args)]
pub(crate) struct Place {
    /// Configuration file of `tabbify up` or of a transaction-node: where data, checkpoints and stored
    /// extents are
    #[arg(long)]
    config: Option<PathBuf>,
    /// The data directory [default: $XDG_DATA_HOME/tabbify]
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// Where the checkpoints are [default: as configured, else in the data directory]
    #[arg(long)]
    checkpoints: Option<String>,
    /// Id or root key of the platform [default: that of the data directory's keys]
    #[arg(long)]
    platform: Option<Anchor>,
}

/// Flags of `prove`.
#[derive(Debug, clap::Args)]
pub(crate) struct Prove {
    /// Which event
    position: u64,
    /// A checkpoint that you have kept: also prove that the log goes on from it
    #[arg(long)]
    since: Option<PathBuf>,
    #[command(flatten)]
    place: Place,
}

/// Flags of `check`.
#[derive(Debug, clap::Args)]
pub(crate) struct Check {
    /// The proof, as `tabbify audit prove` printed it
    proof: PathBuf,
    /// Id or root key of the platform, from somebody whom you trust
    #[arg(long)]
    platform: Anchor,
    /// A checkpoint that you have kept: the proof must go on from it
    #[arg(long)]
    since: Option<PathBuf>,
}

/// Answers on standard output.
pub(crate) async fn run(command: Command) -> anyhow::Result<ExitCode> {
    let done = match command {
        Command::Verify(place) => verify(place).await,
        Command::Prove(command) => prove_position(command).await,
        Command::Check(command) => check(&command),
    };
    exit(done)
}

/// What is wrong with the log itself has an exit code of its own.
#[expect(clippy::print_stderr, reason = "a command for people")]
pub(crate) fn exit(done: anyhow::Result<()>) -> anyhow::Result<ExitCode> {
    match done {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) if is_mismatch(&error) => {
            eprintln!("{error:#}");
            Ok(ExitCode::from(MISMATCH))
        }
        Err(error) => Err(error),
    }
}

fn is_mismatch(error: &anyhow::Error) -> bool {
    if let Some(error) = error.downcast_ref::<OpenError>() {
        return differs(error);
    }
    if let Some(error) = error.downcast_ref::<ProofError>() {
        return match error {
            ProofError::Log(error) => differs(error),
            ProofError::Beyond { .. } => false,
            _ => true,
        };
    }
    if let Some(error) = error.downcast_ref::<TransferError>() {
        return match error {
            TransferError::Log(error) => differs(error),
            TransferError::Postgres(error) => is_damage(error),
            _ => false,
        };
    }
    if let Some(error) = error.downcast_ref::<postgres::OpenError>() {
        return is_damage(error);
    }
    matches!(
        error.downcast_ref::<StoreError>(),
        Some(StoreError::Checkpoint { .. } | StoreError::Fork { .. })
    )
}

const fn is_damage(error: &postgres::OpenError) -> bool {
    matches!(error, postgres::OpenError::Damaged { .. })
}

/// Whether the log is not what was written, rather than out of reach.
const fn differs(error: &OpenError) -> bool {
    match error {
        OpenError::Damaged { .. } | OpenError::Checkpoint { .. } => true,
        OpenError::Stored { source, .. } => match source {
            ColdError::Missing { .. } | ColdError::Damaged { .. } | ColdError::Record { .. } => {
                true
            }
            ColdError::NoStore { .. } | ColdError::Unreachable { .. } | ColdError::Newer { .. } => {
                false
            }
        },
        OpenError::Locked { .. }
        | OpenError::Missing { .. }
        | OpenError::Newer { .. }
        | OpenError::Io { .. } => false,
    }
}

/// A log and what is known of it.
pub(crate) struct Known {
    pub(crate) data: DataDir,
    pub(crate) files: Files,
    pub(crate) store: CheckpointStore,
    pub(crate) trust: Trust,
}

impl Place {
    /// Finds the log, its checkpoints, and whose word counts.
    pub(crate) async fn find(self) -> anyhow::Result<Known> {
        let (configured, mut settings) = Settings::read(self.config.as_deref())?;
        let data = DataDir::choose(self.data_dir.or(configured))?;
        if !data.path().is_dir() {
            bail!("{} is not there: nothing to look at", data.path().display());
        }
        let anchor = match self.platform {
            Some(anchor) => anchor,
            None => own(&data)?,
        };
        settings.checkpoints = self.checkpoints.or(settings.checkpoints);
        let store = checkpoints::store(&data, &settings)?;
        let trust = store.trust(anchor).await?;
        let files = Files::new(settings.cold_store(&data)?.as_ref());
        Ok(Known {
            data,
            files,
            store,
            trust,
        })
    }
}

/// The platform whose keys are in the data directory.
fn own(data: &DataDir) -> anyhow::Result<Anchor> {
    let path = data.keys().join(tabbify_auth::keys::ROOT_FILE);
    let bytes = files::read_secret(&path).with_context(|| {
        format!(
            "{} says whose log it is, and cannot be read; or give --platform",
            path.display()
        )
    })?;
    let text = String::from_utf8(bytes).with_context(|| path.display().to_string())?;
    let root = SecretKey::from_text(&text).with_context(|| path.display().to_string())?;
    Ok(Anchor::Root(root.public()))
}

#[expect(clippy::print_stdout, reason = "a command for people")]
async fn verify(place: Place) -> anyhow::Result<()> {
    let Known {
        data,
        files,
        store,
        trust,
    } = place.find().await?;
    let signed = store.all(&trust).await?;
    let dir = data.log();
    let (audited, holder) = tokio::task::spawn_blocking(move || match files.audit(&dir, &signed) {
        Err(OpenError::Locked { dir, holder }) => match files.audit_open(&dir, &signed)? {
            Some(audited) => Ok((audited, Some(holder))),
            None => Err(OpenError::Locked { dir, holder }),
        },
        audited => Ok((audited?, None)),
    })
    .await??;
    println!("{}", audited_text(&audited, &store));
    if let Some(holder) = holder {
        println!(
            "it is in use by {holder}: what came after that checkpoint was not looked at. \
             For the whole log, stop it and run this again"
        );
    }
    Ok(())
}

fn audited_text(audited: &Audited, store: &CheckpointStore) -> String {
    let Audited {
        log_id,
        upto,
        frames,
        checkpoints,
        ..
    } = audited;
    let signed = match audited.signed_upto {
        Some(signed) => format!(
            "it agrees with every checkpoint in {} ({checkpoints}), the last of position {signed}",
            store.shown()
        ),
        None => format!(
            "{} has no checkpoint: whether its end was cut off cannot be told",
            store.shown()
        ),
    };
    let torn = match &audited.torn {
        Some(_) => "\nan unfinished commit behind it will be cut when the log is opened",
        None => "",
    };
    format!("log {log_id} verified to position {upto}, {frames} commits\n{signed}{torn}")
}

#[expect(clippy::print_stdout, reason = "a command for people")]
async fn prove_position(command: Prove) -> anyhow::Result<()> {
    let Known {
        data,
        files,
        store,
        trust,
    } = command.place.find().await?;
    let newest = store.newest(&trust).await?;
    let newest = newest.with_context(|| {
        format!(
            "{} has no checkpoint, and nothing is proven without one",
            store.shown()
        )
    })?;
    let since = match &command.since {
        Some(path) => Some(kept(path, &trust)?),
        None => None,
    };
    let position = Position(command.position);
    let certificates = trust.certificates().to_vec();
    let proof = tokio::task::spawn_blocking(move || {
        let dir = data.log();
        files.prove(&dir, position, &newest, since.as_ref(), certificates)
    })
    .await??;
    println!("{}", serde_json::to_string_pretty(&proof)?);
    Ok(())
}

/// A checkpoint that somebody has kept in a file.
fn kept(path: &std::path::Path, trust: &Trust) -> anyhow::Result<Signed> {
    let shown = path.display().to_string();
    let note = std::fs::read_to_string(path).with_context(|| shown.clone())?;
    Checkpoint::open(&note, trust, &shown).with_context(|| shown)
}

#[expect(clippy::print_stdout, reason = "a command for people")]
fn check(command: &Check) -> anyhow::Result<()> {
    let shown = || command.proof.display().to_string();
    let text = std::fs::read(&command.proof).with_context(shown)?;
    let proven = Proof::read(&text)?.check(command.platform.clone())?;
    if let Some(path) = &command.since {
        let held = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        if proven.since.as_ref().is_none_or(|(note, _)| *note != held) {
            return Err(ProofError::NotExtended.into());
        }
    }
    println!("{}", serde_json::to_string(&proven.event)?);
    println!(
        "position {} is in log {} of platform {}, which is signed to position {}",
        proven.event.position, proven.log_id, proven.platform, proven.signed_upto
    );
    if let Some((_, position)) = &proven.since {
        println!("and goes on from what was signed to position {position}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_the_log_has_its_own_exit_code() {
        let at = PathBuf::from("x");
        let damaged = OpenError::Damaged {
            extent: at.clone(),
            byte: 1,
            what: "bytes".to_owned(),
        };
        let missing = || OpenError::Missing { dir: at.clone() };
        assert!(is_mismatch(&damaged.into()));
        assert!(is_mismatch(&ProofError::Event.into()));
        let in_rows = || postgres::OpenError::Damaged {
            position: Position(7),
            what: "another hash".to_owned(),
        };
        assert!(is_mismatch(&in_rows().into()));
        assert!(is_mismatch(&TransferError::Postgres(in_rows()).into()));
        let away = postgres::OpenError::Missing {
            schema: "tabbify_log".to_owned(),
        };
        assert!(!is_mismatch(&away.into()));
        let stored = |source| OpenError::Stored {
            action: "read",
            path: at.clone(),
            source,
        };
        let extent = at.clone();
        assert!(!is_mismatch(&stored(ColdError::NoStore { extent }).into()));
        let (object, store) = ("o".to_owned(), "s".to_owned());
        assert!(is_mismatch(
            &stored(ColdError::Missing { object, store }).into()
        ));
        assert!(!is_mismatch(&missing().into()));
        assert!(!is_mismatch(&ProofError::Log(missing()).into()));
        assert!(!is_mismatch(&anyhow::anyhow!("something else")));
    }
}
