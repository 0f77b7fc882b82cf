//! The master key: what wraps the data keys of all values. It is made here or given, never a default.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tabbify_process::files;
use zeroize::Zeroizing;

/// Bytes of a key of AES-256.
pub(crate) const KEY_LEN: usize = 32;
/// Bytes of a master key's id.
pub(crate) const KEY_ID_LEN: usize = 8;
/// Length of a master key's text: 32 bytes as base64url without padding.
const TEXT_LEN: usize = 43;
/// What a key's id is derived for (BLAKE3 `derive_key`): the id says nothing about the key.
const ID_CONTEXT: &str = "tabbify 2026-11-23 vault master key id v1";

/// Why there is no master key.
#[derive(Debug, thiserror::Error)]
pub enum MasterKeyError {
    /// The file cannot be read or made.
    #[error("the vault's master key cannot be used, in {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The text is not one; it is not repeated, for it may be another secret.
    #[error("it is not a master key (32 bytes as 43 characters of base64url)")]
    Text,
}

/// Wraps data keys. Erased from memory when dropped; clones are the same key.
#[derive(Clone)]
pub struct MasterKey {
    bytes: Zeroizing<[u8; KEY_LEN]>,
    id: [u8; KEY_ID_LEN],
}

impl MasterKey {
    /// A fresh key.
    #[must_use]
    pub fn generate() -> Self {
        Self::from_bytes(Zeroizing::new(tabbify_process::random()))
    }

    fn from_bytes(bytes: Zeroizing<[u8; KEY_LEN]>) -> Self {
        let derived = blake3::derive_key(ID_CONTEXT, &*bytes);
        let mut id = [0; KEY_ID_LEN];
        id.copy_from_slice(&derived[..KEY_ID_LEN]);
        Self { bytes, id }
    }

    /// Reads the text of a key; white space around it is allowed.
    ///
    /// # Errors
    /// [`MasterKeyError::Text`].
    pub fn from_text(text: &str) -> Result<Self, MasterKeyError> {
        let text = text.trim();
        if text.len() != TEXT_LEN {
            return Err(MasterKeyError::Text);
        }
        let decoded = URL_SAFE_NO_PAD.decode(text).map(Zeroizing::new);
        let decoded = decoded.map_err(|_| MasterKeyError::Text)?;
        let mut bytes = Zeroizing::new([0; KEY_LEN]);
        if decoded.len() != KEY_LEN {
            return Err(MasterKeyError::Text);
        }
        bytes.copy_from_slice(&decoded);
        Ok(Self::from_bytes(bytes))
    }

    /// The key as text, as [`MasterKey::from_text`] reads it.
    #[must_use]
    pub fn to_text(&self) -> Zeroizing<String> {
        Zeroizing::new(URL_SAFE_NO_PAD.encode(*self.bytes))
    }

    /// The key in a file that only its owner may read (0600); where there is none, a new one is made and
    /// is on disk when this returns.
    ///
    /// # Errors
    /// [`MasterKeyError`].
    pub fn load_or_create(path: &Path) -> Result<Self, MasterKeyError> {
        let io = |source| MasterKeyError::Io {
            path: path.to_owned(),
            source,
        };
        match files::read_secret(path).map(Zeroizing::new) {
            Ok(text) => {
                let text = std::str::from_utf8(&text).map_err(|_| MasterKeyError::Text)?;
                Self::from_text(text)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let made = Self::generate();
                files::create_secret(path, made.to_text().as_bytes()).map_err(io)?;
                Ok(made)
            }
            Err(error) => Err(io(error)),
        }
    }

    pub(crate) fn bytes(&self) -> &[u8; KEY_LEN] {
        &self.bytes
    }

    /// What a wrapped key says it is wrapped with: room for a second master key beside this one.
    pub(crate) const fn id(&self) -> [u8; KEY_ID_LEN] {
        self.id
    }
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MasterKey(..)")
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

    use super::*;

    #[test]
    fn made_once_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("master.key");
        let made = MasterKey::load_or_create(&path).unwrap();
        let read = MasterKey::load_or_create(&path).unwrap();
        assert_eq!((made.bytes(), made.id()), (read.bytes(), read.id()));
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_ne!(MasterKey::generate().id(), made.id());
        assert_eq!(format!("{made:?}"), "MasterKey(..)");
        let wide = std::fs::Permissions::from_mode(0o644);
        std::fs::set_permissions(&path, wide).unwrap();
        let refused = MasterKey::load_or_create(&path).unwrap_err();
        assert!(matches!(refused, MasterKeyError::Io { .. }), "{refused}");
    }

    #[test]
    fn other_texts_are_refused_and_not_repeated() {
        let good = MasterKey::generate().to_text();
        let spaced = format!(" {}\n", *good);
        assert_eq!(*MasterKey::from_text(&spaced).unwrap().to_text(), *good);
        for bad in [
            "",
            "hunter2",
            &good[1..],
            &format!("{}A", *good),
            &"!".repeat(43),
        ] {
            let refused = MasterKey::from_text(bad).unwrap_err();
            assert!(bad.is_empty() || !refused.to_string().contains(bad));
        }
    }
}
