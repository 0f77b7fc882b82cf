//! A state on disk. It is for speed and for starting while the log is down: what cannot be used is
//! ignored, and everything is folded again.
//!
//! ```text
//!   <dir>/<name>.snapshot:  "tabbify-fold 1 " digest of the rest "\n" { JSON: Stored }
//! ```

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tabbify_api::log::Filter;
use tabbify_types::{Digest, EventId, Position, Timestamp};

use super::Fold;
use crate::files;

/// LIMIT: bytes of a snapshot. A larger state is not stored, and is folded anew at every start.
pub const SNAPSHOT_LEN_MAX: usize = 64 * 1024 * 1024;

/// Begins every snapshot; the number is the version of this format.
const MAGIC: &str = "tabbify-fold 1 ";
/// Length of the digest and the line end that follow.
const DIGEST_LEN: usize = 64;

/// What stands in a snapshot. `S` is the state, or the bytes of one on the way in.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Stored<S> {
    name: String,
    version: u32,
    filter: Filter,
    pub(super) position: Position,
    pub(super) tip: Option<Tip>,
    pub(super) as_of: Timestamp,
    pub(super) state: S,
}

/// The last event in a state: tells whether a log is the one that was folded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Tip {
    pub(super) position: Position,
    pub(super) id: EventId,
}

/// Where the snapshots of one fold are.
#[derive(Debug, Clone)]
pub(super) struct Place {
    dir: PathBuf,
    name: String,
}

impl Place {
    pub(super) fn new<F: Fold>(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            name: format!("{}.snapshot", F::NAME),
        }
    }

    pub(super) fn path(&self) -> PathBuf {
        self.dir.join(&self.name)
    }

    /// Makes the directory, and removes what a crash has left half-written.
    pub(super) fn prepare(&self) -> io::Result<()> {
        files::private_dir(&self.dir)?;
        let temporary = format!(".{}.", self.name);
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(&temporary) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    /// The bytes that are there, if any are; not more than one too many.
    pub(super) fn read(&self) -> io::Result<Option<Vec<u8>>> {
        let file = match File::open(self.path()) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut bytes = Vec::new();
        file.take(SNAPSHOT_LEN_MAX as u64 + 1)
            .read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    }

    /// Replaces the snapshot, durably.
    pub(super) fn write(&self, bytes: &[u8]) -> io::Result<()> {
        files::write_atomic(&self.path(), bytes, 0o600)
    }

    pub(super) fn remove(&self) -> io::Result<()> {
        fs::remove_file(self.path())
    }
}

/// A state as it is stored.
pub(super) fn encode<F: Fold>(
    state: &F,
    position: Position,
    tip: Option<Tip>,
    as_of: Timestamp,
) -> Result<Vec<u8>, String> {
    let stored = Stored {
        name: F::NAME.to_owned(),
        version: F::VERSION,
        filter: state.filter(),
        position,
        tip,
        as_of,
        state,
    };
    let body = serde_json::to_vec(&stored).map_err(|error| error.to_string())?;
    let head = format!("{MAGIC}{}\n", Digest::of(&body));
    if head.len() + body.len() > SNAPSHOT_LEN_MAX {
        return Err(format!("it has more than {SNAPSHOT_LEN_MAX} bytes"));
    }
    Ok([head.as_bytes(), &body].concat())
}

/// The state in `bytes`, or why it cannot be used; `initial` says what is being folded.
pub(super) fn decode<F: Fold>(bytes: &[u8], initial: &F) -> Result<Stored<F>, String> {
    if bytes.len() > SNAPSHOT_LEN_MAX {
        return Err(format!("it has more than {SNAPSHOT_LEN_MAX} bytes"));
    }
    let body = body(bytes).ok_or("it is damaged")?;
    let stored: Stored<Box<RawValue>> = understood(body)?;
    if stored.name != F::NAME || stored.version != F::VERSION {
        let (name, version) = (stored.name, stored.version);
        let (ours, our_version) = (F::NAME, F::VERSION);
        return Err(format!(
            "it is of {name} version {version}, not {ours} version {our_version}"
        ));
    }
    if stored.filter != initial.filter() {
        return Err("it is of other events".to_owned());
    }
    Ok(Stored {
        name: stored.name,
        version: stored.version,
        filter: stored.filter,
        position: stored.position,
        tip: stored.tip,
        as_of: stored.as_of,
        state: understood(stored.state.get().as_bytes())?,
    })
}

/// What the digest covers, if it holds.
fn body(bytes: &[u8]) -> Option<&[u8]> {
    let rest = bytes.strip_prefix(MAGIC.as_bytes())?;
    let (digest, rest) = rest.split_at_checked(DIGEST_LEN)?;
    let digest: Digest = std::str::from_utf8(digest).ok()?.parse().ok()?;
    let body = rest.strip_prefix(b"\n")?;
    (Digest::of(body) == digest).then_some(body)
}

fn understood<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, String> {
    serde_json::from_slice(bytes).map_err(|error| format!("it is not understood: {error}"))
}

#[cfg(test)]
mod tests;
