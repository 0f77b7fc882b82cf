//! Places in object stores: a directory, or a bucket of a store that speaks S3.

mod s3;

use std::path::{Path as FsPath, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use object_store::ObjectStore;
use object_store::path::Path;
use serde::Deserialize;

use crate::secret::Secret;

/// `objects`: the store that `s3://` places are in.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Objects {
    /// Where it answers: `https://host`, or `http://host:port` on this machine or in the mesh.
    endpoint: Option<String>,
    /// The certificate authorities that count, PEM. Default `/etc/ssl/certs/ca-certificates.crt`.
    authorities: Option<PathBuf>,
    /// Its region, as it calls itself. Default `us-east-1`.
    region: Option<String>,
    /// The id of an access key.
    access_key: Option<Secret>,
    /// The key itself.
    secret_key: Option<Secret>,
}

/// Where objects are to be.
#[derive(Debug)]
pub(crate) enum Place {
    /// A directory, not made yet.
    Directory(PathBuf),
    /// Below a path in a bucket.
    Bucket {
        /// The bucket.
        store: Arc<dyn ObjectStore>,
        /// The path.
        base: Path,
        /// The place, for people.
        shown: String,
    },
}

impl Place {
    /// Reads a place: a path, `file:///…`, or `s3://bucket/path`. `key` says in whose name it is
    /// refused.
    pub(crate) fn read(key: &str, text: &str, objects: &Objects) -> anyhow::Result<Self> {
        let Some((scheme, rest)) = text.split_once("://") else {
            let path = std::path::absolute(text).with_context(|| format!("{key} = {text:?}"))?;
            return Ok(Self::Directory(path));
        };
        match scheme {
            "file" if rest.starts_with('/') => Ok(Self::Directory(rest.into())),
            "s3" => {
                let (bucket, path) = rest.split_once('/').unwrap_or((rest, ""));
                if bucket.is_empty() {
                    bail!("{key} = {text:?} names no bucket: s3://bucket/path");
                }
                let base = Path::parse(path).with_context(|| format!("{key} = {text:?}"))?;
                let store =
                    s3::open(bucket, objects).with_context(|| format!("{key} = {text:?}"))?;
                let shown = text.trim_end_matches('/').to_owned();
                Ok(Self::Bucket { store, base, shown })
            }
            _ => bail!("{key} = {text:?}: it takes a directory, file:///path or s3://bucket/path"),
        }
    }

    /// What goes with the log says nothing of it, and is lost with it.
    pub(crate) fn outside(self, key: &str, log: &FsPath) -> anyhow::Result<Self> {
        match &self {
            Self::Directory(dir) if dir.starts_with(log) => bail!(
                "{key}: {} is within the log's own directory: take another, best on another disk",
                dir.display()
            ),
            _ => Ok(self),
        }
    }
}
