//! Artifacts in the object store: what was announced, what arrived, what was published.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStoreExt as _, PutPayload};
use tabbify_api::apps::ReserveVersion;
use tabbify_api::artifact::{ArtifactFile, ArtifactPath, file_key, latest_key};
use tabbify_process::{Importance, Tasks, chain};
use tabbify_types::{AppId, Digest, VersionNumber};

use crate::config::{ANNOUNCED_MAX, FILE_LIST_LEN_MAX, PART_LEN};
use crate::error::Refusal;
use crate::node::Node;

/// File name, below a version's folder, of the list that was announced; gone once it is published.
pub(crate) const RESERVED_FILE: &str = ".reserved.json";

/// What was announced for one version. Never changes, so it may be remembered.
#[derive(Debug)]
pub(crate) struct Announced {
    files: HashMap<ArtifactPath, (u64, Digest)>,
}

impl Announced {
    fn of(files: &[ArtifactFile]) -> Self {
        let pairs = files
            .iter()
            .map(|file| (file.path.clone(), (file.size, file.digest)));
        Self {
            files: pairs.collect(),
        }
    }

    /// Size and digest of a file.
    pub(crate) fn file(&self, path: &ArtifactPath) -> Option<(u64, Digest)> {
        self.files.get(path).copied()
    }

    /// Whether `files` are these, in any order.
    pub(crate) fn is(&self, files: &[ArtifactFile]) -> bool {
        files.len() == self.files.len() && Self::of(files).files == self.files
    }
}

fn failed(path: &Path) -> impl FnOnce(object_store::Error) -> Refusal {
    let path = path.clone();
    move |source| Refusal::Store { path, source }
}

fn key(app: AppId, version: VersionNumber, file: &str) -> Path {
    Path::from(file_key(app, version, file))
}

/// Writes an object at once.
pub(crate) async fn put(node: &Node, path: &Path, bytes: impl Into<Bytes>) -> Result<(), Refusal> {
    let payload = PutPayload::from_bytes(bytes.into());
    node.store.put(path, payload).await.map_err(failed(path))?;
    Ok(())
}

/// Reads a small object; `None` if there is none.
async fn get(node: &Node, path: &Path, len_max: u64) -> Result<Option<Bytes>, Refusal> {
    let found = match node.store.get(path).await {
        Err(object_store::Error::NotFound { .. }) => return Ok(None),
        found => found.map_err(failed(path))?,
    };
    if found.meta.size > len_max {
        return Err(Refusal::Damaged(path.clone()));
    }
    Ok(Some(found.bytes().await.map_err(failed(path))?))
}

/// Stores the list of a new version.
pub(crate) async fn put_reserved(
    node: &Node,
    app: AppId,
    version: VersionNumber,
    files: &[ArtifactFile],
) -> Result<(), Refusal> {
    let list = ReserveVersion {
        files: files.to_vec(),
    };
    let bytes = serde_json::to_vec(&list).expect("our own shapes serialize");
    put(node, &key(app, version, RESERVED_FILE), bytes).await?;
    remember(node, app, version, Arc::new(Announced::of(files)));
    Ok(())
}

/// The list of a version that is not published yet; `None` if it was never announced.
pub(crate) async fn announced(
    node: &Node,
    app: AppId,
    version: VersionNumber,
) -> Result<Option<Arc<Announced>>, Refusal> {
    let remembered = {
        let known = node
            .announced
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let found = known.iter().find(|(of, _)| *of == (app, version));
        found.map(|(_, announced)| Arc::clone(announced))
    };
    if remembered.is_some() {
        return Ok(remembered);
    }
    let path = key(app, version, RESERVED_FILE);
    let Some(bytes) = get(node, &path, FILE_LIST_LEN_MAX as u64).await? else {
        return Ok(None);
    };
    let list: ReserveVersion =
        serde_json::from_slice(&bytes).map_err(|_| Refusal::Damaged(path))?;
    let announced = Arc::new(Announced::of(&list.files));
    remember(node, app, version, Arc::clone(&announced));
    Ok(Some(announced))
}

fn remember(node: &Node, app: AppId, version: VersionNumber, announced: Arc<Announced>) {
    let mut known = node
        .announced
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    known.retain(|(of, _)| *of != (app, version));
    if known.len() == ANNOUNCED_MAX {
        known.pop_front();
    }
    known.push_back(((app, version), announced));
}

/// Forgets the list of a version that is published.
pub(crate) async fn drop_reserved(node: &Node, app: AppId, version: VersionNumber) {
    node.announced
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .retain(|(of, _)| *of != (app, version));
    let path = key(app, version, RESERVED_FILE);
    match node.store.delete(&path).await {
        Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
        // Harmless: the version is published, and nobody reads the list any more.
        Err(error) => tracing::warn!(%path, error = %chain(&error), "a list was not removed"),
    }
}

/// Whether what is stored of `file` is what was announced: it is read back and hashed.
pub(crate) async fn verify(
    node: &Node,
    app: AppId,
    version: VersionNumber,
    file: &ArtifactFile,
) -> Result<(), Refusal> {
    let path = key(app, version, file.path.as_str());
    let mismatch = |arrived: String| Refusal::DigestMismatch {
        path: file.path.clone(),
        announced: file.digest.to_string(),
        arrived,
    };
    let found = match node.store.get(&path).await {
        Err(object_store::Error::NotFound { .. }) => return Err(mismatch("nothing".to_owned())),
        found => found.map_err(failed(&path))?,
    };
    let mut hasher = blake3::Hasher::new();
    let mut chunks = found.into_stream();
    while let Some(chunk) = chunks.next().await {
        hasher.update(&chunk.map_err(failed(&path))?);
    }
    let digest = Digest(*hasher.finalize().as_bytes());
    if digest == file.digest && hasher.count() == file.size {
        Ok(())
    } else {
        Err(mismatch(digest.to_string()))
    }
}

/// A file of a version, whole; it must be there.
pub(crate) async fn read(
    node: &Node,
    app: AppId,
    version: VersionNumber,
    file: &str,
    len_max: u64,
) -> Result<Bytes, Refusal> {
    let path = key(app, version, file);
    let found = get(node, &path, len_max).await?;
    found.ok_or(Refusal::Damaged(path))
}

/// Writes a file of a version at once.
pub(crate) async fn write(
    node: &Node,
    app: AppId,
    version: VersionNumber,
    file: &str,
    bytes: Bytes,
) -> Result<(), Refusal> {
    put(node, &key(app, version, file), bytes).await
}

/// Names the newest published version.
pub(crate) async fn put_latest(
    node: &Node,
    app: AppId,
    version: VersionNumber,
) -> Result<(), Refusal> {
    put(node, &Path::from(latest_key(app)), version.to_string()).await
}

/// A file on its way into the store. Nothing of it is visible before [`Upload::finish`]; dropping it
/// leaves nothing behind.
#[derive(Debug)]
pub(crate) struct Upload<'a> {
    node: &'a Node,
    path: Path,
    buffer: BytesMut,
    /// There once the file is longer than one part.
    parts: Option<Parts>,
}

impl<'a> Upload<'a> {
    pub(crate) fn new(
        node: &'a Node,
        app: AppId,
        version: VersionNumber,
        file: &ArtifactPath,
    ) -> Self {
        Self {
            node,
            path: key(app, version, file.as_str()),
            buffer: BytesMut::new(),
            parts: None,
        }
    }

    /// Takes the next bytes; waits while a part is stored, and with it the caller who sends them.
    pub(crate) async fn write(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= PART_LEN {
            self.store_part().await
        } else {
            Ok(())
        }
    }

    async fn store_part(&mut self) -> Result<(), Refusal> {
        if self.parts.is_none() {
            let begun = self.node.store.put_multipart(&self.path).await;
            let upload = begun.map_err(failed(&self.path))?;
            self.parts = Some(Parts {
                upload: Some(upload),
                tasks: self.node.tasks.clone(),
            });
        }
        let part = self.buffer.split().freeze();
        let parts = self.parts.as_mut().expect("made above");
        let stored = parts.upload().put_part(PutPayload::from_bytes(part)).await;
        stored.map_err(failed(&self.path))
    }

    /// Makes the file visible.
    pub(crate) async fn finish(mut self) -> Result<(), Refusal> {
        if self.parts.is_none() {
            return put(self.node, &self.path, self.buffer.freeze()).await;
        }
        if !self.buffer.is_empty() {
            self.store_part().await?;
        }
        let mut parts = self.parts.expect("checked above");
        let completed = parts.upload().complete().await;
        completed.map_err(failed(&self.path))?;
        parts.upload = None;
        Ok(())
    }
}

/// The stored parts of an unfinished file; removed when dropped.
#[derive(Debug)]
struct Parts {
    upload: Option<Box<dyn MultipartUpload>>,
    tasks: Tasks,
}

impl Parts {
    fn upload(&mut self) -> &mut dyn MultipartUpload {
        &mut **self.upload.as_mut().expect("taken only at the end")
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        let Some(mut upload) = self.upload.take() else {
            return;
        };
        let abort = async move {
            if let Err(error) = upload.abort().await {
                tracing::warn!(error = %chain(&error), "parts of an upload were not removed");
            }
        };
        self.tasks
            .spawn("abort upload", Importance::Detached, abort);
    }
}
