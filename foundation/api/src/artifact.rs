//! What an upload becomes in the object store (DESIGN section 11), and what its reader verifies.
//!
//! ```text
//! apps/<uuid>/v<N>/tabbify.toml     the manifest with app.id stamped
//! apps/<uuid>/v<N>/<files>          by relative path
//! apps/<uuid>/v<N>/artifact.json    written last: every file with size and digest
//! apps/<uuid>/latest                the newest published number, as text
//! ```

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use tabbify_types::{AppId, Digest, VersionNumber};

/// Where machines with the tag `role:registry` serve artifacts, inside the mesh.
pub const ARTIFACTS_PORT: u16 = 5000;
/// Begins the path of a file, `GET /v1/artifacts/` and then its key in the object store; at most
/// [`LIST_LEN_MAX`] or [`FILE_LEN_MAX`] bytes.
pub const ARTIFACTS_PATH: &str = "/v1/artifacts/";
/// File name of the list, reserved.
pub const ARTIFACT_FILE: &str = "artifact.json";
/// File name of the manifest in every version.
pub const MANIFEST_FILE: &str = "tabbify.toml";
/// LIMIT: `artifact.json`, in bytes: [`FILES_MAX`] files with paths of [`PATH_LEN_MAX`] bytes fit.
pub const LIST_LEN_MAX: u64 = 8 * 1024 * 1024;
/// LIMIT: files in one version.
pub const FILES_MAX: usize = 10_000;
/// LIMIT: one file of a version, in bytes.
pub const FILE_LEN_MAX: u64 = 2 * 1024 * 1024 * 1024;
/// LIMIT: length of a file's path, in bytes.
pub const PATH_LEN_MAX: usize = 512;

/// A relative path of plain parts: no empty part, `.`, `..`, control character or backslash.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ArtifactPath(String);

/// Why a text is not an [`ArtifactPath`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a relative path of plain parts (at most 512 bytes)")]
pub struct ArtifactPathError(String);

impl ArtifactPath {
    /// The path as text, with `/` between parts.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ArtifactPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ArtifactPath {
    type Err = ArtifactPathError;
    fn from_str(text: &str) -> Result<Self, ArtifactPathError> {
        let plain = |part: &str| {
            !part.is_empty()
                && part != "."
                && part != ".."
                && !part.chars().any(|c| c.is_control() || c == '\\')
        };
        if text.len() <= PATH_LEN_MAX && text.split('/').all(plain) {
            Ok(Self(text.to_owned()))
        } else {
            Err(ArtifactPathError(text.chars().take(80).collect()))
        }
    }
}

impl TryFrom<String> for ArtifactPath {
    type Error = ArtifactPathError;
    fn try_from(text: String) -> Result<Self, ArtifactPathError> {
        text.parse()
    }
}

impl From<ArtifactPath> for String {
    fn from(path: ArtifactPath) -> Self {
        path.0
    }
}

/// One file of a version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArtifactFile {
    /// Where it is, below the version's folder.
    pub path: ArtifactPath,
    /// Its length in bytes.
    pub size: u64,
    /// Its BLAKE3 digest.
    pub digest: Digest,
}

/// `artifact.json`: all there is to a version. Its own digest stands in `version_published`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Artifact {
    /// Version of this shape: 1.
    pub format: u16,
    /// The app.
    pub app: AppId,
    /// The version.
    pub version: VersionNumber,
    /// Every file but this one, sorted by path.
    pub files: Vec<ArtifactFile>,
}

/// Key of a version's folder in the object store, without a slash at the end.
#[must_use]
pub fn version_prefix(app: AppId, version: VersionNumber) -> String {
    format!("apps/{app}/v{version}")
}

/// Key of a version's file in the object store.
#[must_use]
pub fn file_key(app: AppId, version: VersionNumber, path: &str) -> String {
    format!("apps/{app}/v{version}/{path}")
}

/// Key of the text that names the newest published version.
#[must_use]
pub fn latest_key(app: AppId) -> String {
    format!("apps/{app}/latest")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        for good in ["app.wasm", "static/a b.css", "ä/ö"] {
            assert_eq!(good.parse::<ArtifactPath>().unwrap().as_str(), good);
        }
        let long = "a".repeat(513);
        for bad in [
            "",
            "/a",
            "a/",
            "a//b",
            "../a",
            "a/./b",
            "a\\b",
            "a\0b",
            long.as_str(),
        ] {
            assert!(bad.parse::<ArtifactPath>().is_err(), "{bad}");
        }
    }
}
