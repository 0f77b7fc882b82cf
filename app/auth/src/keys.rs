//! The platform's secret keys on disk: one directory (0700) with one file (0600) for each.
//!
//! The directory appears whole or not at all: it is filled under another name and renamed, so a
//! crash during the first start leaves nothing that looks like keys.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use tabbify_process::files;
use tabbify_token::{KeyError, SecretKey};
use zeroize::Zeroizing;

/// File of the key that endorses issuer keys and signs nothing else.
pub const ROOT_FILE: &str = "root.key";
/// File of the key that signs tokens and leases.
pub const ISSUER_FILE: &str = "issuer.key";
/// File of the key with which `tcli` of the same user signs in.
pub const OWNER_FILE: &str = "owner.key";

/// The platform's secret keys.
#[derive(Debug, Clone)]
pub struct Keys {
    /// Endorses issuer keys; its public half names the platform.
    pub root: SecretKey,
    /// Signs tokens and leases.
    pub issuer: SecretKey,
    /// Signs the owner in.
    pub owner: SecretKey,
    /// Where they are, if they are in a directory: rotated issuer keys and the keys of subjects are
    /// put there.
    pub dir: Option<PathBuf>,
}

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The directory can be entered by others.
    #[error("{path} has mode {mode:04o} and must be its owner's only. Run: chmod 700 {path}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// Some keys are there and this one is not. It is not made anew: tokens and accounts of the
    /// platform depend on the old one.
    #[error("{path} is missing while other keys are there; restore it from a backup")]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// A file or directory cannot be read or made.
    #[error("the key file or directory {path} cannot be used")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file is not a key.
    #[error("{path} does not hold a key")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: KeyError,
    },
    /// No new key can be made.
    #[error("no new key can be made")]
    Generate(#[source] KeyError),
}

impl Keys {
    /// Reads the keys in `dir`; makes them first if `dir` is empty or not there.
    ///
    /// # Errors
    /// [`KeysError`]; a directory that had something in it is then unchanged.
    pub fn open(dir: &Path) -> Result<Self, KeysError> {
        if is_vacant(dir)? {
            generate(dir)?;
        }
        let mode = fs::metadata(dir).map_err(io_error(dir))?.mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(KeysError::Directory {
                path: dir.to_owned(),
                mode,
            });
        }
        let read = |name: &str| read_key(&dir.join(name));
        Ok(Self {
            root: read(ROOT_FILE)?,
            issuer: read(ISSUER_FILE)?,
            owner: read(OWNER_FILE)?,
            dir: Some(dir.to_owned()),
        })
    }
}

fn is_vacant(dir: &Path) -> Result<bool, KeysError> {
    match fs::read_dir(dir) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(io_error(dir)(error)),
    }
}

fn generate(dir: &Path) -> Result<(), KeysError> {
    let parent = match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    files::private_dir(parent).map_err(io_error(parent))?;
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    let suffix = u64::from_le_bytes(tabbify_process::random());
    let fresh = parent.join(format!(".{name}.{suffix:016x}"));
    let made = fill(&fresh).and_then(|()| match fs::rename(&fresh, dir) {
        // Somebody else was first; theirs are the keys.
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(false),
        renamed => renamed.map(|()| true).map_err(io_error(dir)),
    });
    if !matches!(made, Ok(true)) {
        // Ours by its random name, and used by nobody; the first error is the one to report.
        let _ = fs::remove_dir_all(&fresh);
    }
    made?;
    files::sync_dir(parent).map_err(io_error(parent))
}

fn fill(fresh: &Path) -> Result<(), KeysError> {
    files::private_dir(fresh).map_err(io_error(fresh))?;
    for name in [ROOT_FILE, ISSUER_FILE, OWNER_FILE] {
        let key = SecretKey::generate().map_err(KeysError::Generate)?;
        let mut text = key.to_text();
        text.push('\n');
        let path = fresh.join(name);
        files::create_secret(&path, text.as_bytes()).map_err(io_error(&path))?;
    }
    Ok(())
}

pub(crate) fn read_key(path: &Path) -> Result<SecretKey, KeysError> {
    let malformed = |source| KeysError::Malformed {
        path: path.to_owned(),
        source,
    };
    let bytes = match files::read_secret(path) {
        Ok(bytes) => Zeroizing::new(bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(KeysError::Missing {
                path: path.to_owned(),
            });
        }
        Err(error) => return Err(io_error(path)(error)),
    };
    let text = std::str::from_utf8(&bytes).map_err(|_| malformed(KeyError::Secret))?;
    SecretKey::from_text(text).map_err(malformed)
}

fn io_error(path: &Path) -> impl Fn(io::Error) -> KeysError {
    move |source| KeysError::Io {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use tabbify_process::chain;

    use super::*;

    fn chmod(path: &Path, mode: u32) -> io::Result<()> {
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
    }

    #[test]
    fn made_once_private_and_read_back() {
        let data = tempfile::tempdir().unwrap();
        let dir = data.path().join("deep/keys");
        let first = Keys::open(&dir).unwrap();
        let again = Keys::open(&dir).unwrap();
        assert_eq!(first.root.public(), again.root.public());
        assert_eq!(first.issuer.public(), again.issuer.public());
        assert_eq!(first.owner.public(), again.owner.public());
        assert_ne!(first.root.public(), first.issuer.public());
        assert_ne!(first.issuer.public(), first.owner.public());
        assert_eq!(fs::metadata(&dir).unwrap().mode() & 0o777, 0o700);
        for name in [ROOT_FILE, ISSUER_FILE, OWNER_FILE] {
            assert_eq!(fs::metadata(dir.join(name)).unwrap().mode() & 0o777, 0o600);
        }
        let left = fs::read_dir(dir.parent().unwrap()).unwrap().count();
        assert_eq!(left, 1, "nothing of the making is left");
        let other = Keys::open(&data.path().join("other")).unwrap();
        assert_ne!(
            first.root.public(),
            other.root.public(),
            "no default secret"
        );
    }

    #[test]
    fn an_empty_directory_is_filled() {
        let data = tempfile::tempdir().unwrap();
        let dir = data.path().join("keys");
        fs::create_dir(&dir).unwrap();
        Keys::open(&dir).unwrap();
        assert_eq!(fs::metadata(&dir).unwrap().mode() & 0o777, 0o700);
    }

    #[test]
    fn wide_modes_are_refused_with_the_fix() {
        let data = tempfile::tempdir().unwrap();
        let dir = data.path().join("keys");
        Keys::open(&dir).unwrap();
        let owner = dir.join(OWNER_FILE);
        for mode in [0o640, 0o604, 0o620] {
            chmod(&owner, mode).unwrap();
            let text = chain(&Keys::open(&dir).unwrap_err()).to_string();
            assert!(
                text.contains(&format!("chmod 600 {}", owner.display())),
                "{text}"
            );
        }
        chmod(&owner, 0o600).unwrap();
        chmod(&dir, 0o750).unwrap();
        let text = Keys::open(&dir).unwrap_err().to_string();
        assert!(
            text.contains(&format!("chmod 700 {}", dir.display())),
            "{text}"
        );
    }

    #[test]
    fn lost_and_damaged_keys_are_not_made_anew() {
        let data = tempfile::tempdir().unwrap();
        let dir = data.path().join("keys");
        Keys::open(&dir).unwrap();
        let issuer = dir.join(ISSUER_FILE);
        for content in ["", "AAAA", "not a key\n", "\0"] {
            fs::write(&issuer, content).unwrap();
            assert!(
                matches!(Keys::open(&dir), Err(KeysError::Malformed { .. })),
                "{content:?}"
            );
        }
        fs::remove_file(&issuer).unwrap();
        assert!(matches!(Keys::open(&dir), Err(KeysError::Missing { .. })));
        assert!(!issuer.exists());
    }
}
