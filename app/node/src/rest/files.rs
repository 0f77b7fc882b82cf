//! Uploading one file of a reserved version.

use http::StatusCode;
use hyper::body::{Body as _, Incoming};
use tabbify_api::artifact::ArtifactPath;
use tabbify_api::auth::scope;
use tabbify_types::{AppId, Digest, VersionNumber};

use super::stored::{self, Upload};
use super::{Call, body};
use crate::answer::{self, Answer};
use crate::error::Refusal;

/// `PUT /v1/apps/{id}/versions/{n}/files/{*path}`: streamed into the store, counted and hashed on
/// the way. A file that is cut off or is not what was announced leaves nothing; sending one again is
/// fine until the version is published.
pub(crate) async fn put(
    call: Call<'_>,
    incoming: &mut Incoming,
    app: AppId,
    version: VersionNumber,
    path: ArtifactPath,
) -> Result<Answer, Refusal> {
    let known = call.caller_on(scope::APPS_WRITE, app)?;
    let published = call.app(&known, app, |app| app.version(version).is_some())?;
    if published {
        let what = "is published, and what is published never changes";
        return Err(Refusal::VersionConflict { version, what });
    }
    let announced = stored::announced(call.node, app, version).await?;
    let announced = announced.ok_or(Refusal::VersionConflict {
        version,
        what: "was not reserved",
    })?;
    let Some((size, digest)) = announced.file(&path) else {
        return Err(Refusal::BadRequest(format!(
            "{path} was not announced for v{version}"
        )));
    };
    let wrong_size = |arrived: u64| Refusal::DigestMismatch {
        path: path.clone(),
        announced: format!("{size} bytes"),
        arrived: format!("{arrived} bytes"),
    };
    if let Some(coming) = incoming
        .size_hint()
        .exact()
        .filter(|coming| *coming != size)
    {
        return Err(wrong_size(coming));
    }
    let _permit = call.node.uploads.acquire().await;
    let mut upload = Upload::new(call.node, app, version, &path);
    let mut hasher = blake3::Hasher::new();
    let leash = call.leash(known);
    while let Some(data) = leash.hold(body::next(call, incoming)).await?? {
        hasher.update(&data);
        if hasher.count() > size {
            return Err(wrong_size(hasher.count()));
        }
        upload.write(&data).await?;
    }
    if hasher.count() != size {
        return Err(wrong_size(hasher.count()));
    }
    let arrived = Digest(*hasher.finalize().as_bytes());
    if arrived != digest {
        return Err(Refusal::DigestMismatch {
            path: path.clone(),
            announced: digest.to_string(),
            arrived: arrived.to_string(),
        });
    }
    upload.finish().await?;
    Ok(answer::empty(StatusCode::NO_CONTENT))
}
