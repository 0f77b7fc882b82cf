//! Holds a log against its checkpoints: quickly at every open, completely in an audit.

use std::path::Path;
use std::sync::Arc;

use tabbify_types::Position;

use crate::disk::Disk;
use crate::error::{OpenError, TornTail};
use crate::files::Files;
use crate::frame::FrameHash;
use crate::log::{Log, LogId};
use crate::merkle::{Tree, TreeHash};

use super::walk::{self, Walk};
use super::{Checkpoint, Signed};

/// What an audit has found in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Audited {
    /// The log.
    pub log_id: LogId,
    /// Everything up to this position is intact.
    pub upto: Position,
    /// Number of frames up to there.
    pub frames: u64,
    /// Number of checkpoints that it agrees with.
    pub checkpoints: usize,
    /// The last position that a checkpoint has signed; what follows rests on the chain alone.
    pub signed_upto: Option<Position>,
    /// An interrupted commit behind the last frame; opening cuts it.
    pub torn: Option<TornTail>,
}

/// Verifies the whole log in `dir`: every byte and event, its chain, and its tree against each of
/// `checkpoints`. Changes nothing, and is refused while the log is open. Blocks.
///
/// # Errors
/// [`OpenError`], with the first thing that is wrong.
pub fn audit(dir: &Path, checkpoints: &[Signed]) -> Result<Audited, OpenError> {
    Files::new(None).audit(dir, checkpoints)
}

pub(crate) fn audit_on(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    checkpoints: &[Signed],
) -> Result<Audited, OpenError> {
    let verified = match Log::verify_on(&**disk, dir) {
        Err(OpenError::Missing { dir }) if newest(checkpoints).is_some() => {
            return Err(gone(&dir, checkpoints));
        }
        verified => verified?,
    };
    let tree = compare(disk, dir, verified.head, checkpoints)?;
    Ok(Audited {
        log_id: verified.log_id,
        upto: verified.head,
        frames: tree.size(),
        checkpoints: checkpoints.len(),
        signed_upto: newest(checkpoints),
        torn: verified.torn,
    })
}

/// Verifies the log in `dir`, which another process may have open, up to its newest checkpoint: every
/// byte of every frame, the chain, and the tree. What came after is not looked at. Blocks.
///
/// # Errors
/// [`OpenError`]; `None` if there is no checkpoint.
pub fn audit_open(dir: &Path, checkpoints: &[Signed]) -> Result<Option<Audited>, OpenError> {
    Files::new(None).audit_open(dir, checkpoints)
}

pub(crate) fn audit_open_on(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    checkpoints: &[Signed],
) -> Result<Option<Audited>, OpenError> {
    let Some(upto) = newest(checkpoints) else {
        return Ok(None);
    };
    let log_id = match Walk::begin(Arc::clone(disk), dir) {
        Err(OpenError::Missing { dir }) => return Err(gone(&dir, checkpoints)),
        walk => LogId(walk?.log_id()),
    };
    let tree = compare(disk, dir, upto, checkpoints)?;
    Ok(Some(Audited {
        log_id,
        upto,
        frames: tree.size(),
        checkpoints: checkpoints.len(),
        signed_upto: Some(upto),
        torn: None,
    }))
}

fn newest(checkpoints: &[Signed]) -> Option<Position> {
    checkpoints
        .iter()
        .map(|signed| signed.checkpoint.position)
        .max()
}

fn gone(dir: &Path, checkpoints: &[Signed]) -> OpenError {
    let newest = checkpoints
        .iter()
        .max_by_key(|signed| signed.checkpoint.position);
    match newest {
        Some(signed) => differs(dir, signed, "there is no log"),
        None => OpenError::Missing {
            dir: dir.to_owned(),
        },
    }
}

/// Goes through all frames up to `head` and stops at the first checkpoint that says otherwise.
fn compare(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    head: Position,
    checkpoints: &[Signed],
) -> Result<Tree, OpenError> {
    let mut ordered: Vec<&Signed> = checkpoints.iter().collect();
    ordered.sort_by_key(|signed| signed.checkpoint.position);
    let mut ordered = ordered.into_iter().peekable();
    let mut walk = Walk::begin(Arc::clone(disk), dir)?;
    let (log_id, mut tree) = (LogId(walk.log_id()), Tree::default());
    if let Some(first) = ordered.peek() {
        same_log(dir, log_id, first)?;
    }
    while let Some((frame, _)) = walk.next(head)? {
        let (last, hash) = (frame.header.last(), frame.hash);
        tree.push(TreeHash::of_frame(hash));
        while let Some(signed) = ordered.next_if(|signed| signed.checkpoint.position <= last) {
            same_log(dir, log_id, signed)?;
            agrees(dir, signed, (last, hash), &tree)?;
        }
    }
    match ordered.last() {
        Some(signed) => Err(cut_off(dir, head, signed)),
        None => Ok(tree),
    }
}

fn agrees(
    dir: &Path,
    signed: &Signed,
    (last, hash): (Position, FrameHash),
    tree: &Tree,
) -> Result<(), OpenError> {
    let Checkpoint {
        position,
        frame,
        tree: signed_tree,
        ..
    } = &signed.checkpoint;
    if *position != last {
        return Err(differs(dir, signed, "no frame ends there"));
    }
    if *frame != hash {
        return Err(differs(dir, signed, ANOTHER_FRAME));
    }
    if signed_tree != tree {
        let what = "the frames before are not those that it has signed";
        return Err(differs(dir, signed, what));
    }
    Ok(())
}

const ANOTHER_FRAME: &str = "the frame that ends there is another one";

/// Whether the log that was found may be opened, as far as `signed` can tell: it is that log, it is
/// that long, and the frame that ends where the checkpoint does is the one that the checkpoint names.
/// The chain, which recovery has verified, binds every frame before to that one.
pub(crate) fn hold_against(
    disk: &dyn Disk,
    dir: &Path,
    found: Option<(LogId, Position)>,
    signed: &Signed,
) -> Result<(), OpenError> {
    let Some((log_id, head)) = found else {
        return Err(differs(dir, signed, "there is no log"));
    };
    same_log(dir, log_id, signed)?;
    let checkpoint = &signed.checkpoint;
    if head < checkpoint.position {
        return Err(cut_off(dir, head, signed));
    }
    match walk::frame_ending_at(disk, dir, checkpoint.position) {
        Ok(Some(frame)) if frame == checkpoint.frame => Ok(()),
        Ok(Some(_)) => Err(differs(dir, signed, ANOTHER_FRAME)),
        Ok(None) => Err(differs(dir, signed, "no frame ends there")),
        // An old checkpoint, of an extent that is stored: as one in a place that cannot be reached.
        Err(OpenError::Stored { source, .. }) => {
            tracing::warn!(%source, checkpoint = signed.name, "the log's history is not held against \
                its newest checkpoint this time");
            Ok(())
        }
        Err(error) => Err(error),
    }
}

fn same_log(dir: &Path, found: LogId, signed: &Signed) -> Result<(), OpenError> {
    if found == signed.checkpoint.log_id {
        return Ok(());
    }
    let what = format!(
        "it is log {found}, and the checkpoint is of log {}",
        signed.checkpoint.log_id
    );
    Err(differs(dir, signed, what))
}

fn cut_off(dir: &Path, head: Position, signed: &Signed) -> OpenError {
    differs(dir, signed, format!("it ends at position {head}"))
}

fn differs(dir: &Path, signed: &Signed, what: impl Into<String>) -> OpenError {
    OpenError::Checkpoint {
        dir: dir.to_owned(),
        checkpoint: signed.name.clone(),
        position: signed.checkpoint.position,
        what: what.into(),
    }
}
