//! The private issuer keys of this machine, and which of them signs: the newest that counts in the log.
//!
//! A rotated key lies beside the first one, as `issuer-<kid>.key`, before the log hears of it; issuers
//! that share the directory find it there when the log says that it counts.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use tabbify_process::{chain, env, files};
use tabbify_token::{KeyError, PlatformId, PublicKey, SecretKey, Signer};
use tabbify_types::SigningKeyId;
use zeroize::Zeroizing;

use crate::keys::{ISSUER_FILE, Keys, KeysError, read_key};

/// Where a secret key is: the key itself never stands in a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyRef {
    /// `file:<path>`: a file that only its owner can read.
    File(PathBuf),
    /// `env:<NAME>`: a variable of the environment.
    Env(String),
}

impl KeyRef {
    /// Reads the key.
    ///
    /// # Errors
    /// [`KeysError`].
    pub fn read(&self) -> Result<SecretKey, KeysError> {
        match self {
            Self::File(path) => read_key(path),
            Self::Env(name) => {
                let path = PathBuf::from(format!("env:{name}"));
                let Some(text) = env::read(name).map(Zeroizing::new) else {
                    return Err(KeysError::Missing { path });
                };
                let malformed = |source| KeysError::Malformed { path, source };
                SecretKey::from_text(&text).map_err(malformed)
            }
        }
    }
}

impl std::str::FromStr for KeyRef {
    type Err = KeyError;

    /// A text that is not a reference may be the key itself, so it is not repeated.
    fn from_str(text: &str) -> Result<Self, KeyError> {
        match text.split_once(':') {
            Some(("file", path)) if !path.is_empty() => Ok(Self::File(PathBuf::from(path))),
            Some(("env", name)) if !name.is_empty() => Ok(Self::Env(name.to_owned())),
            _ => Err(KeyError::Secret),
        }
    }
}

/// The issuer keys that this machine has.
#[derive(Debug)]
pub struct IssuerKeys {
    dir: Option<PathBuf>,
    found: Mutex<Found>,
}

#[derive(Debug, Default)]
struct Found {
    keys: BTreeMap<SigningKeyId, SecretKey>,
    /// Looked for and not there: asked once for each key that comes to count.
    missing: BTreeSet<SigningKeyId>,
}

impl IssuerKeys {
    /// These keys and no others; they are rotated by whoever keeps them.
    #[must_use]
    pub fn given(keys: impl IntoIterator<Item = SecretKey>) -> Self {
        let keys = keys.into_iter().map(|key| (key.id(), key)).collect();
        Self {
            dir: None,
            found: Mutex::new(Found {
                keys,
                missing: BTreeSet::new(),
            }),
        }
    }

    /// The issuer key of `keys`, and those that come into its directory.
    #[must_use]
    pub fn of(keys: &Keys) -> Self {
        Self {
            dir: keys.dir.clone(),
            ..Self::given([keys.issuer.clone()])
        }
    }

    /// Every key that this machine has, those whose files are newest first: for whoever must sign
    /// before the log has said which of them counts.
    #[must_use]
    pub fn all(&self) -> Vec<SecretKey> {
        let mut files = self.dir.as_deref().map(rotated_files).unwrap_or_default();
        files.sort_by_key(|(changed, _)| std::cmp::Reverse(*changed));
        let mut keys: Vec<SecretKey> = files
            .iter()
            .filter_map(|(_, path)| {
                let read = read_key(path).inspect_err(|error| {
                    tracing::warn!(role = "auth", error = %chain(error), "an issuer key cannot be read");
                });
                read.ok()
            })
            .collect();
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        for key in found.keys.values() {
            if keys.iter().all(|known| known.id() != key.id()) {
                keys.push(key.clone());
            }
        }
        keys
    }

    /// The newest of `counting` (oldest first) that this machine has.
    pub(crate) fn signer(&self, platform: &PlatformId, counting: &[PublicKey]) -> Option<Signer> {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        let mut newest_first = counting.iter().rev().map(|key| key.bytes().id());
        let key = newest_first.find_map(|kid| self.find(&mut found, &kid))?;
        Some(Signer::new(key, platform.clone()))
    }

    fn find(&self, found: &mut Found, kid: &SigningKeyId) -> Option<SecretKey> {
        if let Some(key) = found.keys.get(kid) {
            return Some(key.clone());
        }
        if !found.missing.insert(kid.clone()) {
            return None;
        }
        let dir = self.dir.as_deref()?;
        let mut files = [rotated_file(dir, kid), dir.join(ISSUER_FILE)].into_iter();
        let key = files.find_map(|path| match read_key(&path) {
            Ok(key) => (key.id() == *kid).then_some(key),
            Err(KeysError::Missing { .. }) => None,
            Err(error) => {
                tracing::warn!(role = "auth", error = %chain(&error), "an issuer key cannot be read");
                None
            }
        })?;
        found.missing.remove(kid);
        found.keys.insert(kid.clone(), key.clone());
        Some(key)
    }

    /// Makes a key that nobody knows of yet and puts it where every issuer of this directory finds it.
    pub(crate) fn make(&self) -> Result<SecretKey, KeysError> {
        let key = SecretKey::generate().map_err(KeysError::Generate)?;
        if let Some(dir) = &self.dir {
            let path = rotated_file(dir, &key.id());
            let mut text = key.to_text();
            text.push('\n');
            let made = files::create_secret(&path, text.as_bytes());
            made.map_err(|source| KeysError::Io { path, source })?;
        }
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.keys.insert(key.id(), key.clone());
        Ok(key)
    }

    /// Removes the files of rotated keys that the log has known and that count no more; others may be
    /// about to count.
    pub(crate) fn tidy(&self, retired: &BTreeSet<SigningKeyId>) -> std::io::Result<()> {
        let Some(dir) = &self.dir else {
            return Ok(());
        };
        for kid in retired {
            match fs::remove_file(rotated_file(dir, kid)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        files::sync_dir(dir)
    }
}

fn rotated_file(dir: &Path, kid: &SigningKeyId) -> PathBuf {
    dir.join(format!("issuer-{kid}.key"))
}

/// The files of rotated keys, with the times at which they were made.
fn rotated_files(dir: &Path) -> Vec<(SystemTime, PathBuf)> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let rotated = entries.filter(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        name.starts_with("issuer-") && name.ends_with(".key")
    });
    let dated =
        rotated.filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())));
    dated.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("issuer.key");
        let key = SecretKey::generate().unwrap();
        files::create_secret(&path, key.to_text().as_bytes()).unwrap();
        let reference: KeyRef = format!("file:{}", path.display()).parse().unwrap();
        assert_eq!(reference.read().unwrap().id(), key.id());
        for bad in [
            "",
            "file:",
            "env:",
            "key.pem",
            &key.to_text(),
            "https://example.com/key",
        ] {
            let error = bad.parse::<KeyRef>().unwrap_err();
            assert!(bad.is_empty() || !error.to_string().contains(bad));
        }
        let absent: KeyRef = "env:TABBIFY_NO_SUCH_KEY".parse().unwrap();
        assert!(matches!(absent.read(), Err(KeysError::Missing { .. })));
        // HOME is there and is no key.
        let wrong: KeyRef = "env:PATH".parse().unwrap();
        assert!(matches!(wrong.read(), Err(KeysError::Malformed { .. })));
    }

    #[test]
    fn the_newest_key_that_is_here_signs() {
        let data = tempfile::tempdir().unwrap();
        let keys = Keys::open(&data.path().join("keys")).unwrap();
        let mine = IssuerKeys::of(&keys);
        let other = IssuerKeys::of(&keys);
        let platform = PlatformId::of(&keys.root.public());
        let public = |key: &SecretKey| PublicKey::try_from(key.public()).unwrap();
        let kid = |keys: &IssuerKeys, counting: &[PublicKey]| {
            keys.signer(&platform, counting).map(|signer| signer.kid())
        };
        let (first, elsewhere) = (
            public(&keys.issuer),
            public(&SecretKey::generate().unwrap()),
        );
        assert_eq!(
            kid(&mine, std::slice::from_ref(&first)),
            Some(keys.issuer.id())
        );
        assert_eq!(
            kid(&mine, &[first.clone(), elsewhere.clone()]),
            Some(keys.issuer.id())
        );
        assert_eq!(kid(&mine, std::slice::from_ref(&elsewhere)), None);

        let second = mine.make().unwrap();
        let counting = [first, public(&second)];
        assert_eq!(kid(&mine, &counting), Some(second.id()));
        assert_eq!(
            kid(&other, &counting),
            Some(second.id()),
            "found in the directory"
        );
        let all: Vec<_> = other.all().iter().map(SecretKey::id).collect();
        assert_eq!(all, [second.id(), keys.issuer.id()], "the newest first");
        let all: Vec<_> = mine.all().iter().map(SecretKey::id).collect();
        assert_eq!(all, [second.id(), keys.issuer.id()], "each once");
        mine.tidy(&BTreeSet::from([second.id()])).unwrap();
        assert_eq!(
            kid(&IssuerKeys::of(&keys), &counting),
            Some(keys.issuer.id())
        );
        assert_eq!(
            Keys::open(&data.path().join("keys")).unwrap().issuer.id(),
            keys.issuer.id()
        );
    }
}
