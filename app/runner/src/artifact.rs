//! Fetches the version's entry file from the object store, and believes nothing unverified.

use bytes::Bytes;
use object_store::local::LocalFileSystem;
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt as _};
use tabbify_api::artifact::{ARTIFACT_FILE, Artifact, file_key};
use tabbify_api::runner::{Boot, Failure};
use tabbify_types::Digest;
use tabbify_types::event::v1::FailureReason;

/// LIMIT: `artifact.json`, in bytes: 10,000 files with paths of 512 bytes fit.
const LIST_LEN_MAX: u64 = 8 * 1024 * 1024;

/// LIMIT: the entry file, in bytes. It is compiled in memory.
const ENTRY_LEN_MAX: u64 = 256 * 1024 * 1024;

/// The entry file of the version that `boot` names, whole and exactly as published.
///
/// # Errors
/// [`FailureReason::Artifact`] with what is missing or does not match.
pub async fn fetch(boot: &Boot) -> Result<Bytes, Failure> {
    let store = open(&boot.store)?;
    let (app, version) = (boot.of.app, boot.version);
    let list = file_key(app, version, ARTIFACT_FILE);
    let bytes = get(&store, &list, LIST_LEN_MAX).await?;
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
    let bytes = get(&store, &key, ENTRY_LEN_MAX).await?;
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

fn open(url: &str) -> Result<LocalFileSystem, Failure> {
    let path = url
        .strip_prefix("file://")
        .filter(|path| path.starts_with('/'))
        .ok_or_else(|| failure(format!("the object store {url:?} is not a file:///… URL")))?;
    let path = percent_encoding::percent_decode_str(path)
        .decode_utf8()
        .map_err(|_| failure(format!("the object store {url:?} is not UTF-8")))?;
    LocalFileSystem::new_with_prefix(path.as_ref())
        .map_err(|error| failure(format!("the object store {url} cannot be opened: {error}")))
}

async fn get(store: &impl ObjectStore, key: &str, len_max: u64) -> Result<Bytes, Failure> {
    let unreadable = |error: object_store::Error| match error {
        object_store::Error::NotFound { .. } => {
            failure(format!("{key} is not in the object store"))
        }
        error => failure(format!("{key} cannot be read: {error}")),
    };
    let got = store.get(&Key::from(key)).await.map_err(unreadable)?;
    if got.meta.size > len_max {
        return Err(failure(format!(
            "{key} has {} bytes, more than {len_max}",
            got.meta.size
        )));
    }
    got.bytes().await.map_err(unreadable)
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

fn failure(detail: String) -> Failure {
    Failure {
        reason: FailureReason::Artifact,
        detail,
    }
}
