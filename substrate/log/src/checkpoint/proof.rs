//! A proof that an event is in the log, for somebody who has nothing but the platform's id or root
//! key: the frame, the path from it to the root of the tree, the checkpoint that signs the root, and
//! the root key's word for the key that signed it.
//!
//! ```text
//!   event ∈ frame ─hash─▶ leaf ─path─▶ root ∈ checkpoint ◀─signs─ log key ◀─vouches─ root key
//! ```
//!
//! The frame is one commit: it also holds the events that were committed with this one.

use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use tabbify_token::PlatformId;
use tabbify_types::{Position, Recorded};

use crate::disk::Disk;
use crate::error::OpenError;
use crate::files::Files;
use crate::frame::{FRAME_LEN_MAX, Frame};
use crate::log::LogId;
use crate::merkle::{self, Prover, TreeHash};

use super::trust::TrustError;
use super::walk::Walk;
use super::{Anchor, Certificate, Checkpoint, CheckpointError, Signed, Trust};

/// LIMIT: a proof as text, in bytes: a frame of the greatest length, and room for the rest.
const PROOF_LEN_MAX: usize = 2 * FRAME_LEN_MAX;
/// LIMIT: hashes of a path; a tree of 2⁶⁴ leaves has 64, and consistency one more.
const PATH_LEN_MAX: usize = 65;
/// The form of a proof.
const FORMAT: &str = "tabbify-audit-proof-1";

/// A proof, as JSON.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proof {
    format: String,
    position: Position,
    event: Box<RawValue>,
    /// Bytes of the frame, base64.
    frame: String,
    /// Which leaf of the tree it is, from 0.
    index: u64,
    path: Vec<String>,
    /// The signed note.
    checkpoint: String,
    certificates: Vec<Certificate>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    since: Option<Since>,
}

/// A proof that the log goes on from an earlier checkpoint, which somebody has kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Since {
    /// The earlier checkpoint, a signed note.
    checkpoint: String,
    path: Vec<String>,
}

/// What a proof proves.
#[derive(Debug, Clone)]
pub struct Proven {
    /// The platform whose key has signed.
    pub platform: PlatformId,
    /// The log.
    pub log_id: LogId,
    /// The event, from the frame.
    pub event: Recorded,
    /// Up to where the checkpoint signs the log.
    pub signed_upto: Position,
    /// The earlier checkpoint that the log goes on from, if the proof has one: its note and position.
    pub since: Option<(String, Position)>,
}

/// Why there is no proof, or why it proves nothing.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    /// The position is not signed yet, or not there.
    #[error(
        "position {position} is not in the log that the checkpoint signs, which ends at {upto}"
    )]
    Beyond {
        /// What was asked for.
        position: Position,
        /// Where the checkpoint ends.
        upto: Position,
    },
    /// The log cannot be read.
    #[error("the log cannot be read")]
    Log(#[source] OpenError),
    /// The log is not the one that was signed.
    #[error("the log does not agree with checkpoint {0}; run: tabbify audit verify")]
    Differs(String),
    /// Not the form of a proof.
    #[error("it is not a proof: {0}")]
    Malformed(String),
    /// A certificate in it does not count.
    #[error("a certificate in it does not count")]
    Certificate(#[source] TrustError),
    /// A checkpoint in it does not count.
    #[error("a checkpoint in it does not count")]
    Checkpoint(#[source] CheckpointError),
    /// The frame is not whole.
    #[error("its frame is not one: {0}")]
    Frame(&'static str),
    /// The event is not the one in the frame.
    #[error("its event is not the one at that position of the frame")]
    Event,
    /// The path does not lead from the frame to the signed root.
    #[error("its frame is not in the log that the checkpoint signs")]
    NotIncluded,
    /// The path does not lead from the earlier checkpoint to the later one.
    #[error("the checkpoint does not go on from the earlier one")]
    NotExtended,
}

/// Proves that the event at `position` is in the log in `dir`, up to the checkpoint `signed`, and that
/// the log goes on from `since`. The log may be open elsewhere. Blocks.
///
/// # Errors
/// [`ProofError`].
pub fn prove(
    dir: &Path,
    position: Position,
    signed: &Signed,
    since: Option<&Signed>,
    certificates: Vec<Certificate>,
) -> Result<Proof, ProofError> {
    Files::new(None).prove(dir, position, signed, since, certificates)
}

pub(crate) fn prove_on(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    position: Position,
    (signed, since): (&Signed, Option<&Signed>),
    certificates: Vec<Certificate>,
) -> Result<Proof, ProofError> {
    let upto = signed.checkpoint.position;
    if position == Position(0) || position > upto {
        return Err(ProofError::Beyond { position, upto });
    }
    let (size, root) = signed.checkpoint.root();
    let differs = || ProofError::Differs(signed.name.clone());
    let (frame, index) = find(disk, dir, position)?;
    let mut inclusion = Prover::inclusion(index, size).ok_or_else(differs)?;
    let before = since.map(|since| since.checkpoint.frames());
    let mut consistency = match before {
        Some(before) => Some(Prover::consistency(before, size).ok_or(ProofError::NotExtended)?),
        None => None,
    };
    let mut walk = Walk::begin(Arc::clone(disk), dir).map_err(ProofError::Log)?;
    while let Some((frame, _)) = walk.next(upto).map_err(ProofError::Log)? {
        let leaf = TreeHash::of_frame(frame.hash);
        inclusion.push(leaf);
        if let Some(consistency) = &mut consistency {
            consistency.push(leaf);
        }
    }
    let path = inclusion.finish().ok_or_else(differs)?;
    let decoded = Frame::decode(&frame).map_err(|error| ProofError::Frame(error.what()))?;
    let leaf = TreeHash::of_frame(decoded.hash);
    if !merkle::includes((size, root), index, leaf, &path) {
        return Err(differs());
    }
    let since = match (since, consistency) {
        (Some(since), Some(consistency)) => Some(Since {
            checkpoint: since.note.clone(),
            path: texts(&consistency.finish().ok_or_else(differs)?),
        }),
        _ => None,
    };
    let event = event_at(&decoded, position)?;
    let event = serde_json::value::to_raw_value(&event);
    Ok(Proof {
        format: FORMAT.to_owned(),
        position,
        event: event.map_err(|_| ProofError::Event)?,
        frame: STANDARD.encode(&frame),
        index,
        path: texts(&path),
        checkpoint: signed.note.clone(),
        certificates,
        since,
    })
}

/// The bytes of the frame that holds `position`, and how many frames are before it.
fn find(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    position: Position,
) -> Result<(Vec<u8>, u64), ProofError> {
    let mut walk = Walk::begin(Arc::clone(disk), dir).map_err(ProofError::Log)?;
    let mut index = 0;
    while let Some((frame, bytes)) = walk.next(position).map_err(ProofError::Log)? {
        if frame.header.last() >= position {
            return Ok((bytes.to_vec(), index));
        }
        index += 1;
    }
    Err(ProofError::Beyond {
        position,
        upto: walk.end().0,
    })
}

fn event_at(frame: &Frame<'_>, position: Position) -> Result<Recorded, ProofError> {
    for event in frame.events() {
        let event = event.map_err(ProofError::Frame)?;
        if event.position == position {
            return event.to_recorded().map_err(ProofError::Frame);
        }
    }
    Err(ProofError::Event)
}

fn texts(path: &[TreeHash]) -> Vec<String> {
    path.iter().map(ToString::to_string).collect()
}

fn hashes(path: &[String]) -> Result<Vec<TreeHash>, ProofError> {
    if path.len() > PATH_LEN_MAX {
        return Err(malformed("a path that is longer than any"));
    }
    path.iter()
        .map(|text| text.parse())
        .collect::<Result<_, _>>()
        .map_err(|_| malformed("a path with something that is not a hash"))
}

fn malformed(what: &str) -> ProofError {
    ProofError::Malformed(what.to_owned())
}

impl Proof {
    /// Reads a proof; what it says is checked by [`Proof::check`].
    ///
    /// # Errors
    /// [`ProofError::Malformed`].
    pub fn read(text: &[u8]) -> Result<Self, ProofError> {
        if text.len() > PROOF_LEN_MAX {
            return Err(malformed("it is longer than any"));
        }
        let proof: Self = serde_json::from_slice(text)
            .map_err(|error| ProofError::Malformed(error.to_string()))?;
        if proof.format != FORMAT {
            return Err(malformed("its format is not one that this program reads"));
        }
        Ok(proof)
    }

    /// Checks every link of the proof for somebody who knows the platform. Needs nothing else.
    ///
    /// # Errors
    /// [`ProofError`], the first link that does not hold.
    pub fn check(&self, anchor: Anchor) -> Result<Proven, ProofError> {
        let mut trust = Trust::new(anchor);
        for certificate in &self.certificates {
            trust.add(certificate).map_err(ProofError::Certificate)?;
        }
        let open = |note: &str| Checkpoint::open(note, &trust, "of the proof");
        let signed = open(&self.checkpoint).map_err(ProofError::Checkpoint)?;
        let checkpoint = signed.checkpoint;

        let bytes = STANDARD.decode(&self.frame);
        let bytes = bytes.map_err(|_| ProofError::Frame("it is not base64"))?;
        let frame = Frame::decode(&bytes).map_err(|error| ProofError::Frame(error.what()))?;
        let path = hashes(&self.path)?;
        let leaf = TreeHash::of_frame(frame.hash);
        let whole = usize::try_from(frame.header.len).is_ok_and(|len| len == bytes.len());
        if !whole || !merkle::includes(checkpoint.root(), self.index, leaf, &path) {
            return Err(ProofError::NotIncluded);
        }
        let event = event_at(&frame, self.position)?;
        if !same(&event, &self.event) {
            return Err(ProofError::Event);
        }
        let since = match &self.since {
            None => None,
            Some(since) => {
                let earlier = open(&since.checkpoint).map_err(ProofError::Checkpoint)?;
                let earlier = earlier.checkpoint;
                let path = hashes(&since.path)?;
                if earlier.log_id != checkpoint.log_id
                    || !merkle::extends(earlier.root(), checkpoint.root(), &path)
                {
                    return Err(ProofError::NotExtended);
                }
                Some((since.checkpoint.clone(), earlier.position))
            }
        };
        Ok(Proven {
            platform: checkpoint.platform,
            log_id: checkpoint.log_id,
            event,
            signed_upto: checkpoint.position,
            since,
        })
    }
}

/// Whether a text says what the event is, whatever its spaces and the order of its fields.
fn same(event: &Recorded, text: &RawValue) -> bool {
    let Ok(expected) = serde_json::to_string(event) else {
        return false;
    };
    let value = |text: &str| serde_json::from_str::<Value>(text);
    match (value(&expected), value(text.get())) {
        (Ok(expected), Ok(found)) => expected == found,
        // Nested deeper than a value may be: it must be the same text.
        _ => expected == text.get(),
    }
}
