//! Personal fields: sealed with AES-256-GCM under a key of their subject, which is a file of its own
//! (0600) and can be destroyed. What was sealed then stays in the log for ever and says nothing.
//!
//! ```text
//!   keys/subjects/<BLAKE3 of the subject, 32 hex digits>.<version>      43 characters of base64url
//! ```
//!
//! Issuers that share a log share this directory: whoever makes a key first has made it for all.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use tabbify_process::files;
use tabbify_types::{Base64Url, Sealed};
use zeroize::Zeroizing;

/// LIMIT: a text to be sealed, in bytes.
const TEXT_LEN_MAX: usize = 4096;

const KEY_LEN: usize = 32;

/// Why something is not sealed or not opened.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The key's file cannot be read or made.
    #[error("the key of a subject cannot be used, in {path}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is no such key, or none any more.
    #[error("the key was destroyed")]
    NoKey,
    /// The file does not hold a key, or the text was sealed under another one or for something else.
    #[error("it cannot be opened with the key that is there")]
    Refused,
    /// The text is too long to be one of ours.
    #[error("it is longer than {TEXT_LEN_MAX} bytes")]
    TooLong,
}

/// The keys of subjects.
#[derive(Debug, Clone)]
pub struct Keyring {
    dir: PathBuf,
}

impl Keyring {
    /// The keys in `dir`, which is made (0700) with the first of them.
    #[must_use]
    pub const fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Seals `text` for `subject`. `what` is what it is, such as `password`: sealed for one thing, it
    /// does not open as another.
    ///
    /// # Errors
    /// [`SealError`].
    pub fn seal(
        &self,
        subject: &str,
        version: u32,
        what: &str,
        text: &str,
    ) -> Result<Sealed, SealError> {
        if text.len() > TEXT_LEN_MAX {
            return Err(SealError::TooLong);
        }
        let key = match self.read(subject, version)? {
            Some(key) => key,
            None => self.make(subject, version)?,
        };
        // A subject's key seals a few texts in its life: random nonces do not meet.
        let nonce: [u8; NONCE_LEN] = tabbify_process::random();
        let mut bytes = text.as_bytes().to_vec();
        let bound = bound(subject, version, what);
        cipher(&key)?
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(bound.as_bytes()),
                &mut bytes,
            )
            .map_err(|_| SealError::Refused)?;
        Ok(Sealed {
            subject: subject.to_owned(),
            key_version: version,
            nonce: Base64Url(nonce.to_vec()),
            ciphertext: Base64Url(bytes),
        })
    }

    /// Opens what [`Keyring::seal`] sealed for the same subject and thing.
    ///
    /// # Errors
    /// [`SealError`].
    pub fn open(
        &self,
        subject: &str,
        what: &str,
        sealed: &Sealed,
    ) -> Result<Zeroizing<String>, SealError> {
        if sealed.subject != subject {
            return Err(SealError::Refused);
        }
        let key = self.read(subject, sealed.key_version)?;
        let key = key.ok_or(SealError::NoKey)?;
        let nonce = Nonce::try_assume_unique_for_key(&sealed.nonce.0);
        let nonce = nonce.map_err(|_| SealError::Refused)?;
        let bound = bound(subject, sealed.key_version, what);
        let mut bytes = Zeroizing::new(sealed.ciphertext.0.clone());
        let opened = cipher(&key)?
            .open_in_place(nonce, Aad::from(bound.as_bytes()), &mut bytes)
            .map_err(|_| SealError::Refused)?;
        let text = std::str::from_utf8(opened).map_err(|_| SealError::Refused)?;
        Ok(Zeroizing::new(text.to_owned()))
    }

    /// Destroys the subject's keys up to `version`. Done again, it does nothing.
    ///
    /// # Errors
    /// [`SealError::Io`]; it is then to be done again.
    pub fn destroy(&self, subject: &str, version: u32) -> Result<(), SealError> {
        let mut destroyed = false;
        for version in 1..=version {
            let path = self.path(subject, version);
            match fs::remove_file(&path) {
                Ok(()) => destroyed = true,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(io_error(&path)(error)),
            }
        }
        if destroyed {
            files::sync_dir(&self.dir).map_err(io_error(&self.dir))?;
        }
        Ok(())
    }

    fn path(&self, subject: &str, version: u32) -> PathBuf {
        let name = blake3::hash(subject.as_bytes()).to_hex();
        self.dir.join(format!("{}.{version}", &name[..32]))
    }

    fn read(&self, subject: &str, version: u32) -> Result<Option<Zeroizing<Vec<u8>>>, SealError> {
        let path = self.path(subject, version);
        let text = match files::read_secret(&path) {
            Ok(text) => Zeroizing::new(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io_error(&path)(error)),
        };
        let key = URL_SAFE_NO_PAD.decode(&*text).map(Zeroizing::new);
        let key = key.ok().filter(|key| key.len() == KEY_LEN);
        key.map(Some).ok_or(SealError::Refused)
    }

    /// Makes the key, whole or not at all; gives the one that is there if another issuer was first.
    fn make(&self, subject: &str, version: u32) -> Result<Zeroizing<Vec<u8>>, SealError> {
        files::private_dir(&self.dir).map_err(io_error(&self.dir))?;
        let key: Zeroizing<[u8; KEY_LEN]> = Zeroizing::new(tabbify_process::random());
        let text = Zeroizing::new(URL_SAFE_NO_PAD.encode(*key));
        let suffix = u64::from_le_bytes(tabbify_process::random());
        let fresh = self.dir.join(format!(".{suffix:016x}"));
        files::create_secret(&fresh, text.as_bytes()).map_err(io_error(&fresh))?;
        let path = self.path(subject, version);
        let linked = fs::hard_link(&fresh, &path);
        // Ours by its random name; the first error is the one to report.
        let _ = fs::remove_file(&fresh);
        match linked {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(io_error(&path)(error));
            }
            _ => files::sync_dir(&self.dir).map_err(io_error(&self.dir))?,
        }
        self.read(subject, version)?.ok_or(SealError::NoKey)
    }
}

fn cipher(key: &[u8]) -> Result<LessSafeKey, SealError> {
    let key = UnboundKey::new(&AES_256_GCM, key).map_err(|_| SealError::Refused)?;
    Ok(LessSafeKey::new(key))
}

/// What is authenticated beside the text.
fn bound(subject: &str, version: u32, what: &str) -> String {
    format!("tabbify-sealed-v1\0{what}\0{version}\0{subject}")
}

fn io_error(path: &Path) -> impl Fn(io::Error) -> SealError {
    move |source| SealError::Io {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    const ANNA: &str = "user:anna";

    #[test]
    fn sealed_for_one_subject_and_one_thing() {
        let dir = tempfile::tempdir().unwrap();
        let keyring = Keyring::new(dir.path().join("subjects"));
        let sealed = keyring.seal(ANNA, 1, "email", "anna@example.com").unwrap();
        let written = serde_json::to_string(&sealed).unwrap();
        assert!(!written.contains("example"));
        let read = |subject: &str, what: &str, sealed: &Sealed| {
            keyring
                .open(subject, what, sealed)
                .map(|text| text.to_string())
                .ok()
        };
        assert_eq!(read(ANNA, "email", &sealed).unwrap(), "anna@example.com");
        assert_ne!(
            sealed,
            keyring.seal(ANNA, 1, "email", "anna@example.com").unwrap()
        );

        keyring.seal("user:bob", 1, "email", "b").unwrap();
        let as_bobs = Sealed {
            subject: "user:bob".to_owned(),
            ..sealed.clone()
        };
        assert_eq!(read("user:bob", "email", &sealed), None);
        assert_eq!(read("user:bob", "email", &as_bobs), None);
        assert_eq!(read(ANNA, "password", &sealed), None);
        for at in 0..sealed.ciphertext.0.len() {
            let mut changed = sealed.clone();
            changed.ciphertext.0[at] ^= 1;
            assert_eq!(read(ANNA, "email", &changed), None, "byte {at}");
            changed.ciphertext.0.truncate(at);
            assert_eq!(read(ANNA, "email", &changed), None, "cut at {at}");
        }
        for nonce in [vec![], vec![0; 11], vec![0; 12], vec![0; 24]] {
            let changed = Sealed {
                nonce: Base64Url(nonce),
                ..sealed.clone()
            };
            assert_eq!(read(ANNA, "email", &changed), None);
        }
        assert!(matches!(
            keyring.seal(ANNA, 1, "email", &"x".repeat(TEXT_LEN_MAX + 1)),
            Err(SealError::TooLong)
        ));
    }

    #[test]
    fn a_destroyed_key_is_gone_and_the_next_one_is_another() {
        let dir = tempfile::tempdir().unwrap();
        let keyring = Keyring::new(dir.path().join("subjects"));
        let sealed = keyring.seal(ANNA, 1, "email", "a").unwrap();
        keyring.destroy(ANNA, 1).unwrap();
        keyring.destroy(ANNA, 1).unwrap();
        assert!(matches!(
            keyring.open(ANNA, "email", &sealed),
            Err(SealError::NoKey)
        ));
        let later = keyring.seal(ANNA, 2, "email", "b").unwrap();
        assert_eq!(keyring.open(ANNA, "email", &later).unwrap().as_str(), "b");
        assert!(keyring.open(ANNA, "email", &sealed).is_err());
    }

    #[test]
    fn keys_are_private_and_made_once_for_all() {
        let dir = tempfile::tempdir().unwrap();
        let subjects = dir.path().join("subjects");
        let threads: Vec<_> = (0..8)
            .map(|n| {
                let keyring = Keyring::new(subjects.clone());
                std::thread::spawn(move || keyring.seal(ANNA, 1, "email", &n.to_string()).unwrap())
            })
            .collect();
        let keyring = Keyring::new(subjects.clone());
        for (n, thread) in threads.into_iter().enumerate() {
            let sealed = thread.join().unwrap();
            assert_eq!(
                *keyring.open(ANNA, "email", &sealed).unwrap(),
                n.to_string()
            );
        }
        let files: Vec<_> = fs::read_dir(&subjects)
            .unwrap()
            .map(Result::unwrap)
            .collect();
        assert_eq!(files.len(), 1, "nothing of the making is left");
        assert_eq!(files[0].metadata().unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(&subjects).unwrap().mode() & 0o777, 0o700);
        let name = files[0].file_name().into_string().unwrap();
        assert!(!name.contains("anna"), "{name}");

        for content in ["", "AAAA", "not a key at all"] {
            fs::write(files[0].path(), content).unwrap();
            assert!(matches!(
                keyring.seal(ANNA, 1, "email", "x"),
                Err(SealError::Refused)
            ));
        }
    }
}
