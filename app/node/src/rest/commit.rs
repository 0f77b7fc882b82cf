//! Publishing a version: everything is there and fits together, so it becomes a release.
//!
//! ```text
//!   verify files ─▶ read manifest ─▶ artifact.json ─▶ version_published ─▶ latest ─▶ forget the list
//!                                                     └ from here on it is published
//! ```
//! Each step may be repeated: a commit that broke off after any of them is simply sent again.

use bytes::Bytes;
use http::StatusCode;
use hyper::body::Incoming;
use tabbify_api::apps::{CommitVersion, VersionView};
use tabbify_api::artifact::{ARTIFACT_FILE, Artifact, ArtifactFile, MANIFEST_FILE};
use tabbify_api::auth::{Verified, scope};
use tabbify_api::log::{Append, AppendError};
use tabbify_manifest::{Detected, Manifest, Resolved, WASM_ENTRY, not_supported_yet};
use tabbify_types::event::v1::VersionPublished;
use tabbify_types::{AppId, AppName, Digest, EventId, NewEvent, Segment, VersionNumber};

use super::{Call, body, event, stored};
use crate::answer::{self, Answer};
use crate::config::{FILE_LIST_LEN_MAX, MANIFEST_LEN_MAX};
use crate::error::Refusal;

/// `POST /v1/apps/{id}/versions/{n}/commit`.
pub(crate) async fn commit(
    call: Call<'_>,
    incoming: &mut Incoming,
    app: AppId,
    version: VersionNumber,
) -> Result<Answer, Refusal> {
    let known = call.caller_on(scope::APPS_WRITE, app)?;
    let name = call.app(&known, app, |app| app.name.clone())?;
    let CommitVersion { mut files } = body::json(call, incoming, FILE_LIST_LEN_MAX).await?;
    files.sort_by(|a, b| a.path.cmp(&b.path));
    let artifact = Artifact {
        format: 1,
        app,
        version,
        files,
    };
    let bytes = serde_json::to_vec(&artifact).expect("our own shapes serialize");
    let digest = Digest::of(&bytes);
    if let Some(view) = published(call, &known, app, version)? {
        return again(call, &view, digest).await;
    }
    let announced = stored::announced(call.node, app, version).await?;
    let announced = announced.ok_or(Refusal::VersionConflict {
        version,
        what: "was not reserved",
    })?;
    if !announced.is(&artifact.files) {
        return Err(Refusal::OtherFiles);
    }
    for file in &artifact.files {
        stored::verify(call.node, app, version, file).await?;
    }
    let text = stored::read(call.node, app, version, MANIFEST_FILE, MANIFEST_LEN_MAX).await?;
    let resolved = manifest(&text, app, &name, &artifact.files)?;
    let release = VersionPublished {
        app,
        version,
        artifact: digest,
        config: Digest::of(&text),
        access: resolved.access,
        run: resolved.run_config(),
        secrets: resolved
            .secrets
            .values()
            .map(|secret| secret.name.clone())
            .collect(),
        placement: resolved.placement(),
        further: resolved.further(),
    };
    let view = publish(call, &known, release, bytes.into()).await?;
    Ok(answer::json(StatusCode::OK, &view))
}

fn published(
    call: Call<'_>,
    known: &Verified,
    app: AppId,
    version: VersionNumber,
) -> Result<Option<VersionView>, Refusal> {
    call.app(known, app, |app| app.version(version))
}

/// A commit of what is published already: the same is fine, anything else is not.
async fn again(call: Call<'_>, view: &VersionView, digest: Digest) -> Result<Answer, Refusal> {
    let version = view.version;
    if view.artifact != digest {
        let what = "is published with other files";
        return Err(Refusal::VersionConflict { version, what });
    }
    let _guard = call.node.publishing(view.app).await;
    settle(call, view.app, version).await?;
    Ok(answer::json(StatusCode::OK, view))
}

async fn publish(
    call: Call<'_>,
    known: &Verified,
    release: VersionPublished,
    artifact: Bytes,
) -> Result<VersionView, Refusal> {
    let (app, version) = (release.app, release.version);
    let _guard = call.node.publishing(app).await;
    stored::write(call.node, app, version, ARTIFACT_FILE, artifact).await?;
    // The same for every repetition, so that a version is published once.
    let id = EventId::from_uuid(app.uuid()).derived(&format!("version_published v{version}"));
    let segment = Segment::apps(&known.tenant);
    let made = event(NewEvent::with_id(id, segment, app, &release.into()))?;
    match call.append(known, Append::of(vec![made])).await {
        Ok(appended) => call.seen(&appended).await?,
        Err(AppendError::IdConflict { .. }) => {
            let what = "is published with other content";
            return Err(Refusal::VersionConflict { version, what });
        }
        Err(error) => return Err(Refusal::Append(error)),
    }
    settle(call, app, version).await?;
    published(call, known, app, version)?.ok_or(Refusal::ViewLags)
}

/// What follows from a publication. `latest` is written from the view, which only goes forward, and
/// under the app's lock: so it never goes back.
async fn settle(call: Call<'_>, app: AppId, version: VersionNumber) -> Result<(), Refusal> {
    let latest = call
        .node
        .projection
        .read(|view| view.app(app).and_then(|app| app.latest()));
    if let Some(latest) = latest {
        stored::put_latest(call.node, app, latest).await?;
    }
    stored::drop_reserved(call.node, app, version).await;
    Ok(())
}

/// What the uploaded manifest asks for, if it is this app's and all of it can be done.
fn manifest(
    text: &[u8],
    app: AppId,
    name: &AppName,
    files: &[ArtifactFile],
) -> Result<Resolved, Refusal> {
    let text = std::str::from_utf8(text)
        .map_err(|_| Refusal::ManifestContent(format!("{MANIFEST_FILE} is not UTF-8")))?;
    let manifest = Manifest::parse(text, MANIFEST_FILE)
        .map_err(Refusal::InvalidManifest)?
        .manifest;
    match manifest.app.id {
        Some(id) if id == app => {}
        Some(id) => {
            let what = format!("{MANIFEST_FILE} belongs to app {id}, and this is {app}");
            return Err(Refusal::AppMismatch(what));
        }
        None => {
            let what = format!("{MANIFEST_FILE} does not say app.id = \"{app}\"");
            return Err(Refusal::AppMismatch(what));
        }
    }
    if manifest.app.name != *name {
        let what = format!(
            "{MANIFEST_FILE} names {}, and this app is {name}",
            manifest.app.name
        );
        return Err(Refusal::AppMismatch(what));
    }
    let missing: Vec<String> = not_supported_yet(&manifest)
        .iter()
        .map(ToString::to_string)
        .collect();
    if !missing.is_empty() {
        return Err(Refusal::NotSupportedYet(missing.join("\n")));
    }
    let listed = |path: &str| files.iter().any(|file| file.path.as_str() == path);
    let detected = if listed(WASM_ENTRY) {
        Detected::Component {
            path: WASM_ENTRY.to_owned(),
        }
    } else {
        Detected::Nothing
    };
    let resolved = manifest
        .resolve(&detected)
        .map_err(Refusal::InvalidManifest)?;
    let entry = resolved.entry();
    if !entry.is_empty() && !listed(entry) {
        return Err(Refusal::ManifestContent(format!(
            "{entry} is not among the files"
        )));
    }
    Ok(resolved)
}

#[cfg(test)]
mod tests {
    use super::*;

    const APP: &str = "0191e7c2-1111-7222-8333-444455556666";
    const OTHER: &str = "0191e7c2-1111-7222-8333-444455556667";

    #[test]
    fn manifests() {
        let check = |text: &str, entry: &str, expected: Result<(), (&str, &str)>| {
            let files = [MANIFEST_FILE, entry].map(|path| ArtifactFile {
                path: path.parse().unwrap(),
                size: 1,
                digest: Digest::of(b"x"),
            });
            let app = APP.parse().unwrap();
            let text = text.replace("APP", APP).replace("OTHER", OTHER);
            let found = manifest(text.as_bytes(), app, &"shop".parse().unwrap(), &files);
            match (found, expected) {
                (Ok(resolved), Ok(())) => assert_eq!(resolved.run_config().entry, "app.wasm"),
                (Err(error), Err((code, part))) => {
                    assert_eq!(error.code().as_str(), code, "{error}");
                    assert!(error.to_string().contains(part), "{error}");
                }
                (found, expected) => panic!("{text}: {found:?}, expected {expected:?}"),
            }
        };
        let good = "[app]\nname = \"shop\"\nid = \"APP\"\n[build]\nwasm = \"x.wasm\"\n";
        check(good, "app.wasm", Ok(()));
        // Without [build]: the component that was uploaded.
        check("[app]\nname = \"shop\"\nid = \"APP\"\n", "app.wasm", Ok(()));
        check(
            good,
            "other.wasm",
            Err(("invalid_manifest", "app.wasm is not among")),
        );
        let foreign = good.replace("APP", "OTHER");
        check(&foreign, "app.wasm", Err(("app_mismatch", OTHER)));
        let unstamped = good.replace("id = \"APP\"", "");
        check(&unstamped, "app.wasm", Err(("app_mismatch", "app.id")));
        check(
            &good.replace("shop", "shoe"),
            "app.wasm",
            Err(("app_mismatch", "shoe")),
        );
        let unknown = format!("{good}[runtime]\nmemry = \"1GiB\"\n");
        check(&unknown, "app.wasm", Err(("invalid_manifest", "memry")));
        let later = format!("{good}[network]\negress = [\"any\"]\n[events]\nemit = [\"chat\"]\n");
        check(&later, "app.wasm", Err(("not_supported_yet", "emit")));
        check(
            "[app",
            "app.wasm",
            Err(("invalid_manifest", "tabbify.toml:1")),
        );
    }
}
