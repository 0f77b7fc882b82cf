//! The private half of a WireGuard identity. A runner makes one in memory at spawn and it never
//! touches a disk; a host keeps one in a file with mode 0600.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use gotatun::x25519::{PublicKey, StaticSecret};
use tabbify_process::files;
use tabbify_types::MeshKey;
use zeroize::Zeroizing;

/// A WireGuard private key. Wiped when dropped; its `Debug` is blank.
#[derive(Clone)]
pub struct PrivateKey(StaticSecret);

/// Why a key file gives no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read or made.
    #[error("the key file {} cannot be used", path.display())]
    File {
        /// The key file.
        path: PathBuf,
        /// What the file system says.
        #[source]
        source: io::Error,
    },
    /// The file has other content.
    #[error(
        "{} is not a WireGuard private key (one line of 44 characters of base64, as `wg genkey` writes)",
        path.display()
    )]
    Content {
        /// The key file.
        path: PathBuf,
    },
}

impl PrivateKey {
    /// A new key, from the operating system's generator.
    #[must_use]
    pub fn generate() -> Self {
        let bytes = Zeroizing::new(tabbify_process::random::<32>());
        Self::from_bytes(&bytes)
    }

    /// The key with these 32 bytes.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; 32]) -> Self {
        Self(StaticSecret::from(*bytes))
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> MeshKey {
        MeshKey(PublicKey::from(&self.0).to_bytes())
    }

    /// The key as `wg genkey` writes it and configurations of WireGuard have it.
    #[must_use]
    pub fn to_text(&self) -> Zeroizing<String> {
        Zeroizing::new(STANDARD.encode(Zeroizing::new(self.0.to_bytes())))
    }

    /// The key in `path`, in the format of `wg genkey`; makes the file, with mode 0600, if it is not
    /// there.
    ///
    /// # Errors
    /// If the file cannot be read or made, is readable by others, or holds something else.
    pub fn load_or_create(path: &Path) -> Result<Self, KeyError> {
        match files::read_secret(path) {
            Ok(text) => Self::parse(path, &Zeroizing::new(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::create(path),
            Err(source) => Err(KeyError::File {
                path: path.to_owned(),
                source,
            }),
        }
    }

    fn create(path: &Path) -> Result<Self, KeyError> {
        let key = Self::generate();
        let mut text = key.to_text();
        text.push('\n');
        // Written whole beside it and renamed: a crash never leaves a torn identity.
        files::write_atomic(path, text.as_bytes(), 0o600).map_err(|source| KeyError::File {
            path: path.to_owned(),
            source,
        })?;
        Ok(key)
    }

    fn parse(path: &Path, text: &[u8]) -> Result<Self, KeyError> {
        let wrong = || KeyError::Content {
            path: path.to_owned(),
        };
        let bytes = STANDARD.decode(text.trim_ascii()).map_err(|_| wrong())?;
        let bytes = Zeroizing::new(bytes);
        let bytes: &[u8; 32] = bytes.as_slice().try_into().map_err(|_| wrong())?;
        Ok(Self::from_bytes(bytes))
    }

    pub(crate) const fn secret(&self) -> &StaticSecret {
        &self.0
    }

    /// Whether `peer` can be talked to in secret: a low-order point would make the shared secret a
    /// constant that everybody knows.
    pub(crate) fn contributes(&self, peer: MeshKey) -> bool {
        self.0
            .diffie_hellman(&PublicKey::from(peer.0))
            .was_contributory()
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey")
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn file_is_private_and_stable() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mesh.key");
        let key = PrivateKey::load_or_create(&path).unwrap();
        assert_eq!(
            PrivateKey::load_or_create(&path).unwrap().public(),
            key.public()
        );
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);

        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(
            PrivateKey::load_or_create(&path),
            Err(KeyError::File { .. })
        ));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::write(&path, "half a k").unwrap();
        assert!(matches!(
            PrivateKey::load_or_create(&path),
            Err(KeyError::Content { .. })
        ));
        assert_eq!(
            std::fs::read(&path).unwrap(),
            b"half a k",
            "a bad file is left alone"
        );
    }

    #[test]
    fn rfc_7748_vector() {
        let alice: [u8; 32] = [
            0x77, 0x07, 0x6d, 0x0a, 0x73, 0x18, 0xa5, 0x7d, 0x3c, 0x16, 0xc1, 0x72, 0x51, 0xb2,
            0x66, 0x45, 0xdf, 0x4c, 0x2f, 0x87, 0xeb, 0xc0, 0x99, 0x2a, 0xb1, 0x77, 0xfb, 0xa5,
            0x1d, 0xb9, 0x2c, 0x2a,
        ];
        let public = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";
        assert_eq!(PrivateKey::from_bytes(&alice).public().to_string(), public);
    }

    #[test]
    fn tells_nothing_and_refuses_low_order() {
        let key = PrivateKey::generate();
        assert_eq!(format!("{key:?}"), "PrivateKey");
        assert!(!key.contributes(MeshKey([0; 32])));
        assert!(key.contributes(PrivateKey::generate().public()));
    }
}
