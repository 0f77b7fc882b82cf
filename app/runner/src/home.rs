//! A runner's directory: the boot document at its beginning, the exit record at its end.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tabbify_api::runner::{BOOT_FILE, Boot, EXIT_FILE, ExitRecord};
use tabbify_process::files;

use crate::Error;

/// LIMIT: the boot document, in bytes.
const BOOT_LEN_MAX: u64 = 1024 * 1024;

/// The directory that the supervisor made for this runner.
#[derive(Debug, Clone)]
pub struct Home {
    directory: PathBuf,
}

/// The secret that proves both sides of the control socket to each other.
#[derive(Clone)]
pub struct Secret([u8; 32]);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl Secret {
    /// Reads the form of [`Boot::secret`].
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        bytes.try_into().ok().map(Self)
    }

    /// The key for keyed BLAKE3.
    #[must_use]
    pub const fn key(&self) -> &[u8; 32] {
        &self.0
    }
}

impl Home {
    /// The home in `directory`.
    #[must_use]
    pub fn new(directory: &Path) -> Self {
        Self {
            directory: directory.to_path_buf(),
        }
    }

    /// The directory itself.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Reads the boot document and its secret.
    ///
    /// # Errors
    /// If it is not there, too large or not a boot document.
    pub fn boot(&self) -> Result<(Boot, Secret), Error> {
        let path = self.directory.join(BOOT_FILE);
        let read = || {
            let mut bytes = Vec::new();
            let file = File::open(&path)?;
            file.take(BOOT_LEN_MAX + 1).read_to_end(&mut bytes)?;
            if bytes.len() as u64 > BOOT_LEN_MAX {
                let text = format!("it is larger than {BOOT_LEN_MAX} bytes");
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
            Ok(bytes)
        };
        let bytes = match read() {
            Ok(bytes) => bytes,
            Err(source) => return Err(Error::ReadBoot { path, source }),
        };
        let boot: Boot = match serde_json::from_slice(&bytes) {
            Ok(boot) => boot,
            Err(source) => return Err(Error::ParseBoot { path, source }),
        };
        match Secret::from_text(&boot.secret) {
            Some(secret) => Ok((boot, secret)),
            None => Err(Error::Secret(path)),
        }
    }

    /// Writes the runner's last word, whole or not at all.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn write_exit(&self, record: &ExitRecord) -> io::Result<()> {
        let bytes = serde_json::to_vec(record)?;
        files::write_atomic(&self.directory.join(EXIT_FILE), &bytes, 0o600)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_boot_documents_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::new(dir.path());
        assert!(matches!(home.boot(), Err(Error::ReadBoot { .. })));
        let path = dir.path().join(BOOT_FILE);
        for bad in ["", "{}", "not json", "[1]"] {
            std::fs::write(&path, bad).unwrap();
            assert!(matches!(home.boot(), Err(Error::ParseBoot { .. })), "{bad}");
        }
        std::fs::write(&path, vec![b' '; 1024 * 1024 + 1]).unwrap();
        let error = home.boot().unwrap_err();
        let text = tabbify_process::chain(&error).to_string();
        assert!(text.contains("larger than"), "{text}");
    }

    #[test]
    fn secrets_are_32_bytes_and_never_shown() {
        let secret = Secret::from_text(&URL_SAFE_NO_PAD.encode([7; 32])).unwrap();
        assert_eq!(secret.key(), &[7; 32]);
        assert_eq!(format!("{secret:?}"), "Secret(…)");
        for bad in ["", "AAAA", &URL_SAFE_NO_PAD.encode([7; 33]), "%%%"] {
            assert!(Secret::from_text(bad).is_none(), "{bad}");
        }
    }
}
