//! The file of an image: found, checked and measured before an engine sees any of it.
//!
//! ```text
//! oci-archive     index.json ─▶ (index ─▶) manifest ─┐
//!                                                    ├─▶ config, layers ─▶ checked against the
//! docker-archive  manifest.json ─────────────────────┘    config's digests ─▶ docker-archive of our own
//! ```
//! What an engine gets is written anew ([`repack`]): names, tags and whatever else stands in the file are
//! its author's, who could name another tenant's image.

mod document;
mod index;
mod layer;
mod repack;

use std::fmt;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use self::document::Config;
use self::index::{Index, Span};

/// LIMIT: the file, in bytes: a file of a version has at most as many.
pub const FILE_LEN_MAX: u64 = 2 * 1024 * 1024 * 1024;
/// LIMIT: all layers, unpacked, in bytes.
pub const UNPACKED_LEN_MAX: u64 = 8 * 1024 * 1024 * 1024;
/// LIMIT: layers, as many as the kernel's overlay takes.
pub const LAYERS_MAX: usize = 127;

/// Why a file is no image that can be run here.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The file cannot be read.
    #[error("the image's file cannot be read")]
    Read(#[source] io::Error),
    /// It is no tar.
    #[error("the image's file is no tar archive: {0}. Make one with: docker save, or skopeo copy")]
    NotTar(String),
    /// It is compressed as a whole.
    #[error(
        "the image's file is compressed with {0}. Decompress it first: its layers may be compressed, the file may not"
    )]
    Compressed(&'static str),
    /// It is a tar of something else.
    #[error(
        "the file is no image: it has neither index.json (oci-archive) nor manifest.json \
         (docker-archive). Make one with: docker save, or skopeo copy"
    )]
    NotAnImage,
    /// Something in it is missing or is not what its digest says.
    #[error("the image is damaged: {0}. Make its file anew")]
    Damaged(String),
    /// Several images.
    #[error("the file has {0} images. Save one of them alone")]
    Several(usize),
    /// None of its images runs here.
    #[error(
        "the image is for {found}, and this machine is {here}. Build it with --platform {here}"
    )]
    OtherPlatform {
        /// What it is for.
        found: String,
        /// What the machine is.
        here: String,
    },
    /// It is larger than is taken.
    #[error("the image's {what}: {found}, and at most {max} is taken. Make it smaller")]
    TooLarge {
        /// What of it.
        what: &'static str,
        /// How much it has.
        found: String,
        /// How much it may have.
        max: String,
    },
    /// Nothing says what to run.
    #[error("the image has neither an entrypoint nor a command. Set [runtime] command")]
    NoCommand,
}

impl ArchiveError {
    fn damaged(what: impl Into<String>) -> Self {
        Self::Damaged(what.into())
    }

    pub(crate) fn too_many(what: &'static str, found: u64, max: u64) -> Self {
        let (found, max) = (found.to_string(), max.to_string());
        Self::TooLarge { what, found, max }
    }

    fn too_long(what: &'static str, found: u64, max: u64) -> Self {
        use tabbify_types::ByteSize;
        let (found, max) = (ByteSize(found).to_string(), ByteSize(max).to_string());
        Self::TooLarge { what, found, max }
    }
}

/// A SHA-256, as images name their parts.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sha256(pub [u8; 32]);

impl Sha256 {
    fn of(bytes: &[u8]) -> Self {
        use sha2::Digest as _;
        Self(sha2::Sha256::digest(bytes).into())
    }

    /// Reads `sha256:` and 64 digits; another algorithm is none that an engine takes.
    fn parse(text: &str) -> Result<Self, ArchiveError> {
        let digits = text.strip_prefix("sha256:").unwrap_or_default();
        let mut bytes = [0; 32];
        let plain = digits.len() == 64 && digits.bytes().all(|b| b.is_ascii_hexdigit());
        let parsed = plain.then(|| {
            for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
                let pair = std::str::from_utf8(pair).ok()?;
                *byte = u8::from_str_radix(pair, 16).ok()?;
            }
            Some(Self(bytes))
        });
        let shown: String = text.chars().take(80).collect();
        let error = || ArchiveError::damaged(format!("{shown:?} is no sha256 digest"));
        parsed.flatten().ok_or_else(error)
    }

    /// The 64 digits alone.
    #[must_use]
    pub fn hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What an image says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// What it runs: its entry point and what follows that; empty if it does not say.
    pub command: Vec<String>,
    /// Whom it runs as, in its own words: `1000`, `app:users`; empty for root.
    pub user: String,
    /// The TCP ports that it exposes, sorted.
    pub ports: Vec<u16>,
}

impl Facts {
    /// Where it answers HTTP, if its user does not say: the port that it exposes; of several 8080, or else
    /// the first. Without any, 8080.
    #[must_use]
    pub fn port(&self) -> u16 {
        match self.ports.as_slice() {
            ports if ports.contains(&DEFAULT_PORT) => DEFAULT_PORT,
            [first, ..] => *first,
            [] => DEFAULT_PORT,
        }
    }
}

/// Where an app answers if nothing says otherwise.
const DEFAULT_PORT: u16 = 8080;

/// A layer, checked and measured.
#[derive(Debug, Clone, Copy)]
struct Layer {
    span: Span,
    unpacked_len: u64,
}

/// An image in a file, which has been read and found whole.
#[derive(Debug, Clone)]
pub struct Archive {
    file: Arc<File>,
    id: Sha256,
    config: Vec<u8>,
    layers: Vec<Layer>,
    /// What it says of itself.
    pub facts: Facts,
}

impl Archive {
    /// Reads the file at `path` whole, for a machine whose `architecture` is called so by images: `amd64`.
    /// Blocks.
    ///
    /// # Errors
    /// Why it cannot be run.
    pub fn open(path: &Path, architecture: &str) -> Result<Self, ArchiveError> {
        Self::open_within(path, architecture, UNPACKED_LEN_MAX)
    }

    /// The same, with layers of at most so many bytes, unpacked.
    ///
    /// # Errors
    /// As [`Archive::open`].
    pub fn open_within(
        path: &Path,
        architecture: &str,
        unpacked_len_max: u64,
    ) -> Result<Self, ArchiveError> {
        let file = File::open(path).map_err(ArchiveError::Read)?;
        let len = file.metadata().map_err(ArchiveError::Read)?.len();
        if len > FILE_LEN_MAX {
            return Err(ArchiveError::too_long("file", len, FILE_LEN_MAX));
        }
        let index = Index::read(&file)?;
        let chosen = document::choose(&file, &index, architecture)?;
        let config = Config::parse(&chosen.config)?;
        config.check_platform(architecture)?;
        if config.diff_ids.len() != chosen.layers.len() {
            let (layers, ids) = (chosen.layers.len(), config.diff_ids.len());
            let what = format!("it has {layers} layers and the digests of {ids}");
            return Err(ArchiveError::Damaged(what));
        }
        if chosen.layers.len() > LAYERS_MAX {
            let found = chosen.layers.len() as u64;
            return Err(ArchiveError::too_many("layers", found, LAYERS_MAX as u64));
        }
        let mut layers = Vec::with_capacity(chosen.layers.len());
        let mut room = layer::Room::new(unpacked_len_max);
        for (at, (span, diff_id)) in chosen.layers.iter().zip(&config.diff_ids).enumerate() {
            let unpacked_len = layer::measure(&file, *span, *diff_id, at, &mut room)?;
            layers.push(Layer {
                span: *span,
                unpacked_len,
            });
        }
        Ok(Self {
            file: Arc::new(file),
            id: Sha256::of(&chosen.config),
            config: chosen.config,
            layers,
            facts: config.facts,
        })
    }

    /// The digest of its configuration, which engines call the image's id. It names all of the content.
    #[must_use]
    pub const fn id(&self) -> Sha256 {
        self.id
    }
}
