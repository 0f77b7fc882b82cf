//! Whose word counts: the root key names the platform and vouches for the keys that sign checkpoints,
//! each by a certificate that anybody may have.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use tabbify_process::files;
use tabbify_token::{KeyError, PlatformId, PublicKey, SecretKey, note};
use tabbify_types::{ParseError, VerifyingKeyBytes};

/// LIMIT: bytes of a certificate file.
pub(crate) const CERTIFICATE_LEN_MAX: usize = 4096;

/// What a person knows of a platform: its root key, or its id, which is made from that key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Anchor {
    /// The root key itself.
    Root(VerifyingKeyBytes),
    /// The id.
    Platform(PlatformId),
}

impl Anchor {
    /// The platform.
    #[must_use]
    pub fn platform(&self) -> PlatformId {
        match self {
            Self::Root(root) => PlatformId::of(root),
            Self::Platform(id) => id.clone(),
        }
    }

    fn admits(&self, root: &VerifyingKeyBytes) -> bool {
        match self {
            Self::Root(known) => known == root,
            Self::Platform(id) => PlatformId::of(root) == *id,
        }
    }
}

impl fmt::Display for Anchor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root(root) => root.fmt(f),
            Self::Platform(id) => id.fmt(f),
        }
    }
}

impl FromStr for Anchor {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        match text.parse() {
            Ok(root) => Ok(Self::Root(root)),
            Err(_) => text.parse().map(Self::Platform),
        }
    }
}

/// The root key's word for a key that signs checkpoints. Public; kept beside the checkpoints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Certificate {
    /// The root key.
    pub root: VerifyingKeyBytes,
    /// The key that signs checkpoints.
    pub log_key: VerifyingKeyBytes,
    /// What the root key says of it: base64url of an Ed25519 signature.
    pub signature: String,
}

/// Why a certificate does not count.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    /// Its root key is another platform's.
    #[error("its root key is that of platform {found}, not of {expected}")]
    OtherPlatform {
        /// Whose root key it has.
        found: PlatformId,
        /// Whose it must be.
        expected: PlatformId,
    },
    /// A key of it cannot be relied on.
    #[error("it has a key that cannot be relied on")]
    Key(#[source] KeyError),
    /// The root key has not signed it.
    #[error("the root key has not signed it")]
    Signature,
}

impl Certificate {
    /// The log's key, if the root key that `anchor` names vouches for it.
    fn check(&self, anchor: &Anchor) -> Result<PublicKey, TrustError> {
        if !anchor.admits(&self.root) {
            return Err(TrustError::OtherPlatform {
                found: PlatformId::of(&self.root),
                expected: anchor.platform(),
            });
        }
        let root = PublicKey::try_from(self.root).map_err(TrustError::Key)?;
        note::verify_log_key(&root, &self.log_key, &self.signature)
            .map_err(|_| TrustError::Signature)?;
        PublicKey::try_from(self.log_key).map_err(TrustError::Key)
    }

    /// Name of its file: unique for root and key.
    pub(crate) fn file_name(&self) -> String {
        format!("{}-{}.json", self.root.id(), self.log_key.id())
    }
}

/// A platform and the keys that sign checkpoints for it.
#[derive(Debug, Clone)]
pub struct Trust {
    anchor: Anchor,
    platform: PlatformId,
    keys: Vec<PublicKey>,
    certificates: Vec<Certificate>,
}

impl Trust {
    /// Knows the platform and no key yet.
    #[must_use]
    pub fn new(anchor: Anchor) -> Self {
        Self {
            platform: anchor.platform(),
            anchor,
            keys: Vec::new(),
            certificates: Vec::new(),
        }
    }

    /// Takes a key for which the root key vouches.
    ///
    /// # Errors
    /// [`TrustError`]; the key does not count then.
    pub fn add(&mut self, certificate: &Certificate) -> Result<(), TrustError> {
        let key = certificate.check(&self.anchor)?;
        if !self.keys.contains(&key) {
            self.keys.push(key);
            self.certificates.push(certificate.clone());
        }
        Ok(())
    }

    /// The platform.
    #[must_use]
    pub const fn platform(&self) -> &PlatformId {
        &self.platform
    }

    /// The certificates of the keys that count: what somebody else needs to trust them.
    #[must_use]
    pub fn certificates(&self) -> &[Certificate] {
        &self.certificates
    }

    pub(crate) fn keys(&self) -> &[PublicKey] {
        &self.keys
    }
}

/// The key that signs a log's checkpoints, and the root key's word for it.
#[derive(Debug, Clone)]
pub struct LogKey {
    pub(crate) secret: SecretKey,
    certificate: Certificate,
}

/// Why there is no key for checkpoints.
#[derive(Debug, thiserror::Error)]
pub enum LogKeyError {
    /// The file cannot be read or made.
    #[error("the key file {path} cannot be used", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is not a key, or no key can be made.
    #[error("{path} does not hold a key; move it away and a new one is made", path = path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: KeyError,
    },
}

impl LogKey {
    /// The key in `path` (0600), made if there is none: unlike other keys it may be made anew at any
    /// time, since the root key vouches for each.
    ///
    /// # Errors
    /// [`LogKeyError`].
    pub fn load_or_create(path: &Path, root: &SecretKey) -> Result<Self, LogKeyError> {
        let io_error = |source| LogKeyError::Io {
            path: path.to_owned(),
            source,
        };
        let key_error = |source| LogKeyError::Key {
            path: path.to_owned(),
            source,
        };
        let read = match files::read_secret(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            read => Some(read.map_err(io_error)?),
        };
        let secret = match read {
            Some(bytes) => {
                // A key that is made is on disk before it is used, so this one is whole.
                let text = String::from_utf8(bytes).map_err(|_| key_error(KeyError::Secret))?;
                SecretKey::from_text(&text).map_err(key_error)?
            }
            None => {
                let secret = SecretKey::generate().map_err(key_error)?;
                let mut text = secret.to_text();
                text.push('\n');
                files::create_secret(path, text.as_bytes()).map_err(io_error)?;
                secret
            }
        };
        Ok(Self::certified(secret, root))
    }

    /// The root key's word for it.
    #[must_use]
    pub const fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// A key of the caller's.
    #[must_use]
    pub fn certified(secret: SecretKey, root: &SecretKey) -> Self {
        let log_key = secret.public();
        let certificate = Certificate {
            root: root.public(),
            log_key,
            signature: note::endorse_log_key(root, &log_key),
        };
        Self {
            secret,
            certificate,
        }
    }
}
