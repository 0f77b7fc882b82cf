//! Fetches the version's entry file from the object store, and believes nothing unverified.

mod mesh;

use std::fmt;
use std::io;
use std::path::{Path as FilePath, PathBuf};

use bytes::Bytes;
use object_store::local::LocalFileSystem;
use object_store::path::Path as Key;
use object_store::{GetOptions, ObjectStore};
use tabbify_api::BoxFuture;
use tabbify_api::artifact::{
    ARTIFACT_FILE, Artifact, ArtifactFile, FILE_LEN_MAX, LIST_LEN_MAX, file_key,
};
use tabbify_api::runner::{Boot, Failure};
use tabbify_mesh::Mesh;
use tabbify_process::Tasks;
use tabbify_types::Digest;
use tabbify_types::event::v1::FailureReason;

use mesh::OverMesh;

/// LIMIT: the entry file, in bytes. It is compiled in memory.
const ENTRY_LEN_MAX: u64 = 256 * 1024 * 1024;

/// Where the files of versions are.
pub trait Store: Send + Sync + fmt::Debug {
    /// The whole of a file, at most `len_max` bytes.
    fn get<'a>(&'a self, key: &'a str, len_max: u64) -> BoxFuture<'a, Result<Bytes, Failure>>;

    /// Where the whole of a file is, of at most `len_max` bytes: in the store, or at `scratch`, where it
    /// was copied without being held in memory.
    fn file<'a>(
        &'a self,
        key: &'a str,
        len_max: u64,
        scratch: &'a FilePath,
    ) -> BoxFuture<'a, Result<PathBuf, Failure>>;
}

/// Opens the store at a `file:///…` URL, or one of the platform's at `mesh:[address]:port` over the
/// runner's own mesh.
///
/// # Errors
/// [`FailureReason::Artifact`] with what is wrong with it.
pub fn open(url: &str, mesh: &Mesh, tasks: &Tasks) -> Result<Box<dyn Store>, Failure> {
    if let Some(address) = url.strip_prefix("mesh:") {
        let address = address.parse();
        let address = address.map_err(|_| {
            failure(format!(
                "the object store {url:?} is not a mesh:[address]:port URL"
            ))
        })?;
        return Ok(Box::new(OverMesh::new(mesh.clone(), address, tasks)));
    }
    Ok(Box::new(open_directory(url)?))
}

/// The entry file of the version that `boot` names, whole and exactly as published.
///
/// # Errors
/// [`FailureReason::Artifact`] with what is missing or does not match.
pub async fn fetch(boot: &Boot, store: &dyn Store) -> Result<Bytes, Failure> {
    let listed = entry(boot, store).await?;
    let key = file_key(boot.of.app, boot.version, &boot.run.entry);
    let bytes = store.get(&key, ENTRY_LEN_MAX).await?;
    check_len(&key, bytes.len() as u64, &listed)?;
    verify(&key, &bytes, listed.digest)?;
    Ok(bytes)
}

/// The same in a file: the store's own, or a copy at `scratch`, which is then the caller's to remove.
///
/// # Errors
/// As [`fetch`].
pub async fn fetch_file(
    boot: &Boot,
    store: &dyn Store,
    scratch: &FilePath,
) -> Result<PathBuf, Failure> {
    let listed = entry(boot, store).await?;
    let key = file_key(boot.of.app, boot.version, &boot.run.entry);
    let path = store.file(&key, FILE_LEN_MAX, scratch).await?;
    let hashing = {
        let path = path.clone();
        tokio::task::spawn_blocking(move || hash(&path))
    };
    let unreadable = |error| failure(format!("{key} cannot be read: {error}"));
    let hashed = hashing
        .await
        .unwrap_or_else(|panic| Err(io::Error::other(panic)));
    let (len, digest) = hashed.map_err(unreadable)?;
    check_len(&key, len, &listed)?;
    compare(&key, digest, listed.digest)?;
    Ok(path)
}

/// What the version's list says of its entry.
async fn entry(boot: &Boot, store: &dyn Store) -> Result<ArtifactFile, Failure> {
    let (app, version) = (boot.of.app, boot.version);
    let list = file_key(app, version, ARTIFACT_FILE);
    let bytes = store.get(&list, LIST_LEN_MAX).await?;
    verify(&list, &bytes, boot.artifact)?;
    let artifact: Artifact = serde_json::from_slice(&bytes)
        .map_err(|error| failure(format!("{list} is not a list of files: {error}")))?;
    if artifact.format != 1 || artifact.app != app || artifact.version != version {
        return Err(failure(format!(
            "{list} is of another app, version or format ({}, v{}, format {})",
            artifact.app, artifact.version, artifact.format
        )));
    }
    let entry = &boot.run.entry;
    let mut files = artifact.files.into_iter();
    files
        .find(|file| file.path.as_str() == entry)
        .ok_or_else(|| failure(format!("{list} does not list the entry {entry:?}")))
}

fn check_len(key: &str, len: u64, listed: &ArtifactFile) -> Result<(), Failure> {
    if len == listed.size {
        return Ok(());
    }
    let published = listed.size;
    Err(failure(format!(
        "{key} has {len} bytes and was published with {published}"
    )))
}

/// Length and digest of a file. Blocks.
fn hash(path: &FilePath) -> io::Result<(u64, Digest)> {
    let mut hasher = blake3::Hasher::new();
    let len = io::copy(&mut std::fs::File::open(path)?, &mut hasher)?;
    Ok((len, Digest(*hasher.finalize().as_bytes())))
}

/// Opens a directory of this machine by its URL.
///
/// # Errors
/// [`FailureReason::Artifact`] with what is wrong with it.
pub fn open_directory(url: &str) -> Result<LocalFileSystem, Failure> {
    let path = url
        .strip_prefix("file://")
        .filter(|path| path.starts_with('/'))
        .ok_or_else(|| {
            failure(format!(
                "the object store {url:?} is neither a file:///… URL nor a mesh:… one"
            ))
        })?;
    let path = percent_encoding::percent_decode_str(path)
        .decode_utf8()
        .map_err(|_| failure(format!("the object store {url:?} is not UTF-8")))?;
    LocalFileSystem::new_with_prefix(path.as_ref())
        .map_err(|error| failure(format!("the object store {url} cannot be opened: {error}")))
}

impl Store for LocalFileSystem {
    fn get<'a>(&'a self, key: &'a str, len_max: u64) -> BoxFuture<'a, Result<Bytes, Failure>> {
        let unreadable = move |error: object_store::Error| match error {
            object_store::Error::NotFound { .. } => missing(key),
            error => failure(format!("{key} cannot be read: {error}")),
        };
        Box::pin(async move {
            let path = Key::from(key);
            let got = self.get_opts(&path, GetOptions::default()).await;
            let got = got.map_err(unreadable)?;
            if got.meta.size > len_max {
                return Err(too_long(key, got.meta.size, len_max));
            }
            got.bytes().await.map_err(unreadable)
        })
    }

    fn file<'a>(
        &'a self,
        key: &'a str,
        len_max: u64,
        _scratch: &'a FilePath,
    ) -> BoxFuture<'a, Result<PathBuf, Failure>> {
        Box::pin(async move {
            let path = self.path_to_filesystem(&Key::from(key));
            let path = path.map_err(|error| failure(format!("{key} has no path: {error}")))?;
            match tokio::fs::metadata(&path).await {
                Ok(found) if found.len() > len_max => Err(too_long(key, found.len(), len_max)),
                Ok(_) => Ok(path),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Err(missing(key)),
                Err(error) => Err(failure(format!("{key} cannot be read: {error}"))),
            }
        })
    }
}

fn verify(key: &str, bytes: &[u8], published: Digest) -> Result<(), Failure> {
    compare(key, Digest::of(bytes), published)
}

fn compare(key: &str, found: Digest, published: Digest) -> Result<(), Failure> {
    if found == published {
        Ok(())
    } else {
        Err(failure(format!(
            "{key} has digest {found} and was published with {published}"
        )))
    }
}

fn missing(key: &str) -> Failure {
    failure(format!("{key} is not in the object store"))
}

fn too_long(key: &str, len: u64, len_max: u64) -> Failure {
    failure(format!("{key} has {len} bytes, more than {len_max}"))
}

fn failure(detail: String) -> Failure {
    Failure {
        reason: FailureReason::Artifact,
        detail,
    }
}
