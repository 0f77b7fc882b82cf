//! Fetches the version's entry file from the object store, and believes nothing unverified.

mod mesh;

use std::fmt;

use bytes::Bytes;
use object_store::local::LocalFileSystem;
use object_store::path::Path as Key;
use object_store::{GetOptions, ObjectStore};
use tabbify_api::BoxFuture;
use tabbify_api::artifact::{ARTIFACT_FILE, Artifact, LIST_LEN_MAX, file_key};
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
    let listed = artifact
        .files
        .iter()
        .find(|file| file.path.as_str() == entry)
        .ok_or_else(|| failure(format!("{list} does not list the entry {entry:?}")))?;
    let key = file_key(app, version, entry);
    let bytes = store.get(&key, ENTRY_LEN_MAX).await?;
    if bytes.len() as u64 != listed.size {
        return Err(failure(format!(
            "{key} has {} bytes and was published with {}",
            bytes.len(),
            listed.size
        )));
    }
    verify(&key, &bytes, listed.digest)?;
    Ok(bytes)
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
}

fn verify(key: &str, bytes: &[u8], published: Digest) -> Result<(), Failure> {
    let found = Digest::of(bytes);
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
