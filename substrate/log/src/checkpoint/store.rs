//! Where checkpoints are kept: a directory or a bucket that is not the log's, best on another machine.
//!
//! ```text
//!   keys/<root id>-<key id>.json             the root key's word for a key that signs
//!   history/00000000000000009001.checkpoint  named by its last position; never written again
//!   lost/…                                   what an operator has given up in a restore
//! ```

use std::path::Path as FsPath;
use std::sync::Arc;

use futures_util::TryStreamExt as _;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _, PutMode, PutPayload};
use tabbify_process::files;
use tabbify_token::note::NOTE_LEN_MAX;
use tabbify_types::Position;

use super::trust::CERTIFICATE_LEN_MAX;
use super::{Anchor, Certificate, Checkpoint, CheckpointError, Signed, Trust};

/// LIMIT: the newest checkpoints, all of which are kept: a minute under load.
pub(crate) const RECENT_MAX: usize = 64;
/// Of the older ones each is kept that is at least this part of its distance from the head away from
/// the one kept before it. So their number grows with the logarithm of the log: at most 377 for 2⁶⁴.
const SPARSE: u64 = 8;
const EXTENSION: &str = ".checkpoint";

/// Keeps checkpoints. Clones keep them in the same place.
#[derive(Debug, Clone)]
pub struct CheckpointStore {
    store: Arc<dyn ObjectStore>,
    base: Path,
    shown: String,
}

/// Why checkpoints cannot be written or relied on.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The place cannot be used.
    #[error("cannot {action} {place}")]
    Store {
        /// What was tried: a verb.
        action: &'static str,
        /// On what.
        place: String,
        /// Why not.
        #[source]
        source: object_store::Error,
    },
    /// The directory cannot be made.
    #[error("cannot make the directory {place}")]
    Directory {
        /// Which.
        place: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// What is kept there is not a checkpoint that can be relied on. Move it away if you know how it
    /// came there.
    #[error("{place} cannot be relied on")]
    Checkpoint {
        /// Which.
        place: String,
        /// Why not.
        #[source]
        source: CheckpointError,
    },
    /// A checkpoint of the same position says something else: somebody continues another log with
    /// our key.
    #[error("{place} was published with other content: two logs claim the same positions")]
    Fork {
        /// Which.
        place: String,
    },
}

impl CheckpointStore {
    /// Keeps them below `base` in `store`; `shown` names the place for people.
    #[must_use]
    pub fn new(store: Arc<dyn ObjectStore>, base: Path, shown: &str) -> Self {
        Self {
            store,
            base,
            shown: shown.trim_end_matches('/').to_owned(),
        }
    }

    /// Keeps them in a directory, which is made if it is missing.
    ///
    /// # Errors
    /// [`StoreError::Directory`], [`StoreError::Store`].
    pub fn local(dir: &FsPath) -> Result<Self, StoreError> {
        let place = dir.display().to_string();
        files::private_dir(dir).map_err(|source| StoreError::Directory {
            place: place.clone(),
            source,
        })?;
        let store = LocalFileSystem::new_with_prefix(dir).map_err(|source| StoreError::Store {
            action: "use",
            place: place.clone(),
            source,
        })?;
        // A checkpoint that is lost with the power is one that was never there.
        let store = Arc::new(store.with_fsync(true));
        Ok(Self::new(store, Path::default(), &place))
    }

    /// The place, for people.
    #[must_use]
    pub fn shown(&self) -> &str {
        &self.shown
    }

    /// Every key that the root key vouches for here. A certificate that does not count is passed over
    /// with a warning: it can take nothing away.
    ///
    /// # Errors
    /// [`StoreError::Store`].
    pub async fn trust(&self, anchor: Anchor) -> Result<Trust, StoreError> {
        let mut trust = Trust::new(anchor);
        for name in self.list("keys").await? {
            let at = self.at("keys", &name);
            let Some(bytes) = self.read(&at, CERTIFICATE_LEN_MAX).await? else {
                continue;
            };
            let place = self.name(&at);
            match serde_json::from_slice::<Certificate>(&bytes) {
                Ok(certificate) => {
                    if let Err(error) = trust.add(&certificate) {
                        tracing::warn!(place, %error, "a certificate does not count");
                    }
                }
                Err(error) => tracing::warn!(place, %error, "not a certificate"),
            }
        }
        Ok(trust)
    }

    /// Keeps a certificate.
    ///
    /// # Errors
    /// [`StoreError::Store`].
    pub async fn certify(&self, certificate: &Certificate) -> Result<(), StoreError> {
        let at = self.at("keys", &certificate.file_name());
        let text = serde_json::to_vec_pretty(certificate);
        let text = text.expect("INVARIANT: three texts are JSON");
        // One name has one root, one key, and so one signature.
        self.create(&at, text).await.map(drop)
    }

    /// The checkpoint of the greatest position.
    ///
    /// # Errors
    /// [`StoreError`]; one that cannot be relied on is not passed over for an older one.
    pub async fn newest(&self, trust: &Trust) -> Result<Option<Signed>, StoreError> {
        match self.positions().await?.last() {
            Some(position) => self.checkpoint(*position, trust).await,
            None => Ok(None),
        }
    }

    /// Every checkpoint, in position order.
    ///
    /// # Errors
    /// [`StoreError`], of the first that cannot be relied on.
    pub async fn all(&self, trust: &Trust) -> Result<Vec<Signed>, StoreError> {
        let mut all = Vec::new();
        for position in self.positions().await? {
            all.extend(self.checkpoint(position, trust).await?);
        }
        Ok(all)
    }

    /// Positions with a checkpoint, in order.
    pub(crate) async fn positions(&self) -> Result<Vec<Position>, StoreError> {
        let names = self.list("history").await?;
        let mut positions: Vec<Position> = names.iter().filter_map(|name| named(name)).collect();
        positions.sort_unstable();
        Ok(positions)
    }

    /// `None` if it has just been thinned out.
    async fn checkpoint(
        &self,
        position: Position,
        trust: &Trust,
    ) -> Result<Option<Signed>, StoreError> {
        let at = self.at("history", &file_name(position));
        let Some(bytes) = self.read(&at, NOTE_LEN_MAX).await? else {
            return Ok(None);
        };
        let place = self.name(&at);
        let wrong = |what| StoreError::Checkpoint {
            place: place.clone(),
            source: what,
        };
        let text = std::str::from_utf8(&bytes)
            .map_err(|_| wrong(CheckpointError::Malformed("it is not text")))?;
        let signed = Checkpoint::open(text, trust, &place).map_err(wrong)?;
        if signed.checkpoint.position != position {
            let what = "its name is of another position";
            return Err(wrong(CheckpointError::Malformed(what)));
        }
        Ok(Some(signed))
    }

    /// The name that a checkpoint of `position` has here.
    pub(crate) fn name_of(&self, position: Position) -> String {
        self.name(&self.at("history", &file_name(position)))
    }

    /// Keeps a checkpoint. One that is there already must say the same, whoever signed it.
    pub(crate) async fn publish(&self, signed: &Signed, trust: &Trust) -> Result<(), StoreError> {
        let position = signed.checkpoint.position;
        let at = self.at("history", &file_name(position));
        if self.create(&at, signed.note.clone().into_bytes()).await? {
            return Ok(());
        }
        match self.checkpoint(position, trust).await? {
            Some(there) if there.checkpoint == signed.checkpoint => Ok(()),
            _ => Err(StoreError::Fork {
                place: self.name(&at),
            }),
        }
    }

    /// Removes checkpoints that others stand for.
    pub(crate) async fn thin(&self) -> Result<(), StoreError> {
        for position in superfluous(&self.positions().await?) {
            let at = self.at("history", &file_name(position));
            match self.store.delete(&at).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                Err(source) => return Err(self.error("remove", &at, source)),
            }
        }
        Ok(())
    }

    /// Gives up the checkpoints beyond `head`, after a loss that no copy makes good: they are moved
    /// below `lost`. Answers how many there were.
    ///
    /// # Errors
    /// [`StoreError::Store`].
    pub async fn give_up_beyond(&self, head: Position) -> Result<usize, StoreError> {
        let mut count = 0;
        for position in self.positions().await? {
            if position <= head {
                continue;
            }
            let name = file_name(position);
            let (from, to) = (self.at("history", &name), self.at("lost", &name));
            let moved = self.store.rename(&from, &to).await;
            moved.map_err(|source| self.error("move", &from, source))?;
            count += 1;
        }
        Ok(count)
    }

    async fn list(&self, part: &str) -> Result<Vec<String>, StoreError> {
        let below = self.base.clone().join(part);
        let found: Result<Vec<_>, _> = self.store.list(Some(&below)).try_collect().await;
        let found = found.map_err(|source| self.error("list", &below, source))?;
        let name = |meta: &object_store::ObjectMeta| meta.location.filename().map(str::to_owned);
        Ok(found.iter().filter_map(name).collect())
    }

    /// The content of an object; `None` if it is not there.
    async fn read(&self, at: &Path, len_max: usize) -> Result<Option<Vec<u8>>, StoreError> {
        let got = match self.store.get(at).await {
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            got => got.map_err(|source| self.error("read", at, source))?,
        };
        if got.meta.size > len_max as u64 {
            return Err(StoreError::Checkpoint {
                place: self.name(at),
                source: CheckpointError::Malformed("it is longer than any of ours"),
            });
        }
        let bytes = got.bytes().await;
        let bytes = bytes.map_err(|source| self.error("read", at, source))?;
        Ok(Some(bytes.to_vec()))
    }

    /// Writes an object that is not there; `false` if it is.
    async fn create(&self, at: &Path, bytes: Vec<u8>) -> Result<bool, StoreError> {
        let payload = PutPayload::from(bytes);
        match self
            .store
            .put_opts(at, payload, PutMode::Create.into())
            .await
        {
            Ok(_) => Ok(true),
            Err(object_store::Error::AlreadyExists { .. }) => Ok(false),
            Err(source) => Err(self.error("write", at, source)),
        }
    }

    fn at(&self, part: &str, name: &str) -> Path {
        self.base.clone().join(part).join(name)
    }

    fn name(&self, at: &Path) -> String {
        let below = at.as_ref().strip_prefix(self.base.as_ref());
        let below = below.unwrap_or_else(|| at.as_ref()).trim_start_matches('/');
        format!("{}/{below}", self.shown)
    }

    fn error(&self, action: &'static str, at: &Path, source: object_store::Error) -> StoreError {
        StoreError::Store {
            action,
            place: self.name(at),
            source,
        }
    }
}

fn file_name(position: Position) -> String {
    format!("{:020}{EXTENSION}", position.get())
}

fn named(name: &str) -> Option<Position> {
    let number = name.strip_suffix(EXTENSION)?.parse().ok()?;
    Some(Position(number)).filter(|position| file_name(*position) == name)
}

/// Those of `positions`, in ascending order, that are neither recent, nor the first, nor far enough
/// from the one kept before. The older of two stays, so that what is kept today is not crowded out
/// tomorrow.
fn superfluous(positions: &[Position]) -> Vec<Position> {
    let recent = positions.len().saturating_sub(RECENT_MAX);
    let (Some(first), Some(head)) = (positions.first(), positions.last()) else {
        return Vec::new();
    };
    let (mut kept, mut superfluous) = (*first, Vec::new());
    for position in positions[..recent].iter().skip(1) {
        let gap = position.get() - kept.get();
        if gap.saturating_mul(SPARSE) < head.get() - position.get() {
            superfluous.push(*position);
        } else {
            kept = *position;
        }
    }
    superfluous
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_bounded_and_reaches_back() {
        let mut kept: Vec<Position> = Vec::new();
        for n in 1..=20_000_u64 {
            kept.push(Position(n * 1000));
            if n % RECENT_MAX as u64 == 0 {
                let gone = superfluous(&kept);
                kept.retain(|position| !gone.contains(position));
            }
        }
        assert!(kept.len() < 2 * RECENT_MAX + 80, "{}", kept.len());
        assert_eq!(kept[0], Position(1000));
        let head = kept[kept.len() - 1].get();
        assert_eq!(head, 20_000_000);
        for pair in kept.windows(2) {
            let (gap, age) = (pair[1].get() - pair[0].get(), head - pair[0].get());
            // Wider than the rule by what was between two when the rule asked for more.
            assert!(gap <= 1000 || gap * SPARSE <= 3 * age, "{pair:?}");
        }
        assert!(superfluous(&kept[..RECENT_MAX]).is_empty());
        assert!(superfluous(&[]).is_empty());
    }

    #[test]
    fn names_are_of_one_form() {
        assert_eq!(named(&file_name(Position(9001))), Some(Position(9001)));
        for bad in [
            "",
            "9001.checkpoint",
            ".checkpoint",
            "x.checkpoint",
            "00000000000000009001",
        ] {
            assert_eq!(named(bad), None, "{bad}");
        }
    }
}
