//! Checkpoints: what the log was, signed and kept elsewhere. The chain shows that nothing in the log
//! has been changed; that nothing has been cut off its end, and that it is not another log with a
//! chain of its own, only a checkpoint outside its directory can show.
//!
//! ```text
//!   tabbify/62640abc84ca9d1f     origin: whose log (C2SP tlog-checkpoint)
//!   4711                         frames: the size of the tree
//!   Zm9v…=                       root of the tree
//!   log 3f2a…                    id of the log
//!   position 9001                last event of the last frame
//!   frame YmFy…=                 hash of that frame: the end of the chain
//!   peaks cXV4…= …               the tree's peaks, from which whoever trusts this goes on
//!
//!   — tabbify/62640abc84ca9d1f …  signature of the log's key, for which the root key vouches
//! ```
//!
//! Reading order: `trust` says whose word counts, `store` where checkpoints are, `walk` goes through
//! the frames in their files, `publisher` writes checkpoints, `audit` holds a log against them,
//! `proof` shows somebody else that an event is in it. The form: docs/protocols/checkpoints.md.

mod audit;
mod proof;
mod publisher;
mod store;
mod trust;
pub(crate) mod walk;

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tabbify_token::{PlatformId, SecretKey, note};
use tabbify_types::Position;

use crate::frame::FrameHash;
use crate::log::LogId;
use crate::merkle::{Tree, TreeHash};

pub use audit::{Audited, audit, audit_open};
pub(crate) use audit::{audit_on, audit_open_on, hold_against};
pub(crate) use proof::prove_on;
pub use proof::{Proof, ProofError, Proven, prove};
pub use publisher::{PublishError, Publisher};
pub use store::{CheckpointStore, StoreError};
pub use trust::{Anchor, Certificate, LogKey, LogKeyError, Trust, TrustError};

/// First part of an origin; the platform's id follows.
const ORIGIN: &str = "tabbify/";

/// What a log was when it was this long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// The platform whose log it is.
    pub platform: PlatformId,
    /// The log.
    pub log_id: LogId,
    /// The last event.
    pub position: Position,
    /// Its frame's hash, the end of the chain.
    pub(crate) frame: FrameHash,
    /// All frames up to that one.
    pub(crate) tree: Tree,
}

/// A checkpoint whose signature holds, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// What it says.
    pub checkpoint: Checkpoint,
    /// The whole note.
    pub note: String,
    /// Where it is, for people.
    pub name: String,
}

/// Why a text is not a checkpoint that can be relied on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointError {
    /// Not the form of a checkpoint.
    #[error("it is not a checkpoint: {0}")]
    Malformed(&'static str),
    /// Of another platform.
    #[error("it is of {found}, not of {expected}")]
    Origin {
        /// Whose it is.
        found: String,
        /// Whose it must be.
        expected: String,
    },
    /// The note around it is not one, or nobody who counts has signed it.
    #[error("its signature cannot be relied on")]
    Note(#[source] tabbify_token::NoteError),
}

impl Checkpoint {
    /// Number of frames, each one commit.
    #[must_use]
    pub const fn frames(&self) -> u64 {
        self.tree.size()
    }

    pub(crate) fn root(&self) -> (u64, TreeHash) {
        (self.tree.size(), self.tree.root())
    }

    /// What is signed.
    fn text(&self) -> String {
        let (frames, root) = self.root();
        let mut text = format!(
            "{origin}\n{frames}\n{root}\nlog {log}\nposition {position}\nframe {frame}\npeaks",
            origin = origin(&self.platform),
            log = self.log_id,
            position = self.position,
            frame = STANDARD.encode(self.frame.0),
        );
        for peak in self.tree.peaks() {
            // Writing to a String does not fail.
            let _ = write!(text, " {peak}");
        }
        text.push('\n');
        text
    }

    /// The checkpoint as a note, signed by the log's key.
    pub(crate) fn sign(self, key: &SecretKey, name: &str) -> Result<Signed, CheckpointError> {
        let note = note::sign(&self.text(), &origin(&self.platform), key);
        Ok(Signed {
            note: note.map_err(CheckpointError::Note)?,
            checkpoint: self,
            name: name.to_owned(),
        })
    }

    /// Reads a signed note. `name` says where it was, for people.
    ///
    /// # Errors
    /// [`CheckpointError`]; nothing in it counts then.
    pub fn open(note: &str, trust: &Trust, name: &str) -> Result<Signed, CheckpointError> {
        let origin = origin(trust.platform());
        let first = note.lines().next().unwrap_or_default();
        if first != origin {
            return Err(CheckpointError::Origin {
                found: first.chars().take(80).collect(),
                expected: origin,
            });
        }
        let opened = note::open(note, &origin, trust.keys());
        let (text, _) = opened.map_err(CheckpointError::Note)?;
        Ok(Signed {
            checkpoint: Self::read(text, trust.platform().clone())?,
            note: note.to_owned(),
            name: name.to_owned(),
        })
    }

    fn read(text: &str, platform: PlatformId) -> Result<Self, CheckpointError> {
        let mut lines = text.lines().skip(1);
        let mut next = |what| lines.next().ok_or(CheckpointError::Malformed(what));
        let frames = number(next("it has no size")?)?;
        let root = hash(next("it has no root")?)?;
        let log_id = log_id(field(next("it names no log")?, "log ")?)?;
        let position = number(field(next("it names no position")?, "position ")?)?;
        let frame = hash(field(next("it names no frame")?, "frame ")?)?;
        let peaks = field(next("it has no peaks")?, "peaks ")?;
        if lines.next().is_some() {
            return Err(CheckpointError::Malformed("it has lines of a later form"));
        }
        let peaks: Vec<TreeHash> = peaks.split(' ').map(hash).collect::<Result<_, _>>()?;
        let tree = Tree::from_peaks(frames, peaks)
            .filter(|tree| tree.size() > 0 && tree.root() == root)
            .ok_or(CheckpointError::Malformed("its peaks are not of its tree"))?;
        // Every frame has an event.
        if position < frames {
            return Err(CheckpointError::Malformed("more frames than events"));
        }
        Ok(Self {
            platform,
            log_id,
            position: Position(position),
            frame: FrameHash(frame.0),
            tree,
        })
    }
}

/// The name under which the log of a platform signs.
pub(crate) fn origin(platform: &PlatformId) -> String {
    format!("{ORIGIN}{platform}")
}

fn field<'t>(line: &'t str, name: &'static str) -> Result<&'t str, CheckpointError> {
    line.strip_prefix(name)
        .ok_or(CheckpointError::Malformed("its lines are not those due"))
}

/// A decimal number as it is written: no sign, no leading zero.
fn number(text: &str) -> Result<u64, CheckpointError> {
    let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let number = text.parse().ok().filter(|_| plain);
    number
        .filter(|_| text == "0" || !text.starts_with('0'))
        .ok_or(CheckpointError::Malformed("a number that is not one"))
}

fn hash(text: &str) -> Result<TreeHash, CheckpointError> {
    text.parse()
        .map_err(|_| CheckpointError::Malformed("a hash that is not one"))
}

fn log_id(text: &str) -> Result<LogId, CheckpointError> {
    let mut id = [0; 16];
    let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    if text.len() != 2 * id.len() || !text.bytes().all(hex) {
        return Err(CheckpointError::Malformed("a log id that is not one"));
    }
    for (byte, digits) in id.iter_mut().zip(text.as_bytes().chunks(2)) {
        let digits = std::str::from_utf8(digits).unwrap_or_default();
        *byte = u8::from_str_radix(digits, 16).unwrap_or_default();
    }
    Ok(LogId(id))
}

#[cfg(test)]
mod tests;
