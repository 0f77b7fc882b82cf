//! Restores a damaged or lost log from copies: joins what is intact in them and in the log itself,
//! frame by frame along the chain, verifies the result as an audit does, and only then puts it in the
//! place of what was there, which is kept.
//!
//! ```text
//!   copies ─┐
//!           ├─▶ the frame that is due and names the one before ─▶ log.restoring ─▶ scan, checkpoints
//!   log ────┘                                                          │ renameat2(EXCHANGE)
//!                                        log ◀─────────────────────────┘ what was there ─▶ log.damaged-1
//! ```
//!
//! Copies go first, in the order in which they are given: a log that somebody has changed and given a
//! chain of its own leaves the way where the copy shows the true one.

mod copy;
mod rebuilt;

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{CWD, RenameFlags};
use rustix::io::Errno;
use tabbify_process::files;
use tabbify_types::Position;

use crate::checkpoint::{Signed, audit};
use crate::cold::{self, ColdStore};
use crate::disk::{Disk, RealDisk};
use crate::error::OpenError;
use crate::extent;
use crate::files::Files;
use crate::frame::FrameHash;
use crate::log::LogId;
use crate::scan::{self, Depth};

use copy::Copy;
use rebuilt::Rebuilt;

/// LIMIT: logs of one name that were moved aside.
const ASIDE_MAX: u32 = 1000;

/// What a restore has done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// The log.
    pub log_id: LogId,
    /// The last position; every event up to it is there and verified.
    pub head: Position,
    /// What was taken from where: the copies in their order, then the log itself.
    pub taken: Vec<Taken>,
    /// Where the damaged files are now; `None` if there were none.
    pub aside: Option<PathBuf>,
    /// The last position that a checkpoint has signed. If it is beyond `head`, what is between is
    /// lost.
    pub signed_upto: Option<Position>,
}

/// What was taken from one place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// The copy.
    pub from: PathBuf,
    /// Number of events.
    pub events: u64,
    /// What in it could not be read, if anything.
    pub unreadable: Option<String>,
}

/// Why nothing has been restored. What was there is as it was.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The log is in use, or a file cannot be used.
    #[error("the log cannot be restored")]
    Open(#[source] OpenError),
    /// Neither the log nor a copy has the first frame.
    #[error("no copy holds the beginning of the log: give one with --from")]
    Nothing,
    /// A copy is not of the log that was signed.
    #[error(
        "{from} is not what checkpoint {checkpoint} has signed up to position {position}: give \
         another copy",
        from = from.display()
    )]
    Differs {
        /// The copy.
        from: PathBuf,
        /// The checkpoint.
        checkpoint: String,
        /// Where it ends.
        position: Position,
    },
    /// Events that a checkpoint has signed are in no copy.
    #[error(
        "the copies end at position {head}, and {signed} was signed: {count} events would be lost; \
         give a newer copy, or accept the loss with --accept-loss", count = signed.get() - head.get()
    )]
    Loss {
        /// How far the copies go.
        head: Position,
        /// What was signed.
        signed: Position,
    },
    /// The copies have nothing that the log has not.
    #[error("there is nothing to restore: the log is intact up to position {head}")]
    Intact {
        /// Its last position.
        head: Position,
    },
}

/// Restores the log in `dir` from `copies`, which are directories of logs, as far as they go. Nothing
/// that `checkpoints` have signed may be lost, unless `accept_loss`. Blocks.
///
/// # Errors
/// [`RestoreError`]; nothing has been changed then.
pub fn restore(
    dir: &Path,
    copies: &[PathBuf],
    checkpoints: &[Signed],
    accept_loss: bool,
) -> Result<Restored, RestoreError> {
    Files::new(None).restore(dir, copies, checkpoints, accept_loss)
}

/// As [`restore`], with an object store behind the disk: what is stored of the log is one more source,
/// and the last.
pub(crate) fn restore_on(
    (disk, store): (&Arc<dyn Disk>, Option<&ColdStore>),
    dir: &Path,
    copies: &[PathBuf],
    checkpoints: &[Signed],
    accept_loss: bool,
) -> Result<Restored, RestoreError> {
    let there = dir.is_dir();
    let _lock = match there {
        true => Some(extent::lock(&RealDisk, dir).map_err(RestoreError::Open)?),
        false => None,
    };
    let own = there.then(|| dir.to_owned());
    let mut sources = Vec::new();
    for from in copies.iter().cloned().chain(own) {
        sources.push(Copy::open(disk, &from).map_err(failed("list", &from))?);
    }
    let newest = checkpoints
        .iter()
        .max_by_key(|signed| signed.checkpoint.position)
        .map(|signed| &signed.checkpoint);
    let log_id = match newest {
        Some(checkpoint) => checkpoint.log_id,
        None => known_id(&mut sources).ok_or(RestoreError::Nothing)?,
    };
    let recalled = Building::beside(dir)?;
    if let Some(store) = store {
        let listed = cold::recall(store, log_id, &recalled.0);
        if listed.map_err(failed("recall", &recalled.0))? > 0 {
            let copy = Copy::open(disk, &recalled.0).map_err(failed("list", &recalled.0))?;
            sources.push(copy.shown_as(store.shown()));
        }
    }
    let building = Building::beside(dir)?;
    let mut rebuilt = Rebuilt::new(&building.0, log_id);
    join(&mut rebuilt, &mut sources, checkpoints)?;
    if let Some(away) = sources.iter_mut().find_map(Copy::away) {
        return Err(RestoreError::Open(away));
    }
    let (head, hash) = rebuilt.finish().map_err(failed("write", &building.0))?;
    if head == Position(0) {
        return Err(RestoreError::Nothing);
    }
    let signed_upto = newest.map(|checkpoint| checkpoint.position);
    if let Some(signed) = signed_upto.filter(|signed| *signed > head && !accept_loss) {
        return Err(RestoreError::Loss { head, signed });
    }
    let reached = |signed: &&Signed| signed.checkpoint.position <= head;
    let reached: Vec<Signed> = checkpoints.iter().filter(reached).cloned().collect();
    // What is put in place is held to the same as what is opened.
    audit(&building.0, &reached).map_err(RestoreError::Open)?;
    let intact = there && is_intact(&**disk, dir, (head, hash));
    let aside = match intact {
        true if signed_upto <= Some(head) => return Err(RestoreError::Intact { head }),
        // All that is left of it is in place already.
        true => None,
        false => building.install(dir, there)?,
    };
    Ok(Restored {
        log_id,
        head,
        taken: sources.into_iter().map(Copy::into_taken).collect(),
        aside,
        signed_upto,
    })
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RestoreError {
    let error = OpenError::io(action, path);
    move |source| RestoreError::Open(error(source))
}

/// The id of the log, from the first copy that has the beginning of one.
fn known_id(sources: &mut [Copy]) -> Option<LogId> {
    sources.iter_mut().find_map(Copy::log_id)
}

/// Takes frames for as long as somebody has the one that is due.
fn join(
    rebuilt: &mut Rebuilt,
    sources: &mut [Copy],
    checkpoints: &[Signed],
) -> Result<(), RestoreError> {
    let ends: HashMap<Position, &Signed> = checkpoints
        .iter()
        .map(|signed| (signed.checkpoint.position, signed))
        .collect();
    loop {
        let (due, previous) = rebuilt.due();
        let has = |source: &mut Copy| Some((source.frame(due, previous)?, source.dir.clone()));
        let Some((frame, from)) = sources.iter_mut().find_map(has) else {
            return Ok(());
        };
        rebuilt
            .push(&frame)
            .map_err(failed("write", rebuilt.dir()))?;
        let signed = ends.get(&frame.last);
        if let Some(signed) = signed.filter(|signed| signed.checkpoint.frame != frame.hash) {
            return Err(RestoreError::Differs {
                from,
                checkpoint: signed.name.clone(),
                position: frame.last,
            });
        }
    }
}

/// Whether the log in `dir`, which is locked, is in order and ends as the restored one does.
fn is_intact(disk: &dyn Disk, dir: &Path, end: (Position, FrameHash)) -> bool {
    let found = scan::scan(disk, dir, Depth::Events);
    let found = found.ok().flatten();
    found.is_some_and(|found| (found.tip.head, found.tip.hash) == end)
}

/// The directory in which the log is put together; gone when it is dropped.
#[derive(Debug)]
struct Building(PathBuf);

impl Building {
    /// In the same directory as the log, so that it can take its place.
    fn beside(dir: &Path) -> Result<Self, RestoreError> {
        let suffix = u64::from_le_bytes(tabbify_process::random());
        let path = sibling(dir, &format!("restoring-{suffix:016x}"));
        files::private_dir(&path).map_err(failed("create", &path))?;
        Ok(Self(path))
    }

    /// Puts it in the place of `dir`; answers where what was there is now.
    fn install(self, dir: &Path, there: bool) -> Result<Option<PathBuf>, RestoreError> {
        files::sync_dir(&self.0).map_err(failed("sync", &self.0))?;
        let aside = match there {
            true => Some(free_name(dir)?),
            false => None,
        };
        match &aside {
            None => fs::rename(&self.0, dir).map_err(failed("create", dir))?,
            // At no moment is there no log, or half of one, under its name.
            Some(aside) => match exchange(&self.0, dir) {
                Ok(()) => fs::rename(&self.0, aside).map_err(failed("move aside", &self.0))?,
                Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                    fs::rename(dir, aside).map_err(failed("move aside", dir))?;
                    fs::rename(&self.0, dir).map_err(failed("create", dir))?;
                }
                Err(error) => return Err(failed("replace", dir)(error)),
            },
        }
        let parent = match dir.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        files::sync_dir(parent).map_err(failed("sync", parent))?;
        Ok(aside)
    }
}

impl Drop for Building {
    fn drop(&mut self) {
        // Ours by its random name; after an install there is nothing of this name any more.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn exchange(one: &Path, other: &Path) -> io::Result<()> {
    match rustix::fs::renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE) {
        Ok(()) => Ok(()),
        // A file system or kernel that cannot.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            Err(io::ErrorKind::Unsupported.into())
        }
        Err(errno) => Err(errno.into()),
    }
}

/// `log.damaged-1`, or the next number.
fn free_name(dir: &Path) -> Result<PathBuf, RestoreError> {
    let names = (1..=ASIDE_MAX).map(|n| sibling(dir, &format!("damaged-{n}")));
    let mut free = names.filter(|name| !name.exists());
    let full = || failed("move aside", dir)(io::ErrorKind::AlreadyExists.into());
    free.next().ok_or_else(full)
}

/// A name in the same directory.
fn sibling(dir: &Path, suffix: &str) -> PathBuf {
    let mut name = dir.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(suffix);
    dir.with_file_name(name)
}
