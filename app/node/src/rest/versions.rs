//! Reserving a version: a number that is nobody else's, and the list of what will be uploaded.

use std::collections::BTreeSet;

use http::StatusCode;
use hyper::body::Incoming;
use tabbify_api::apps::{ReserveVersion, ReservedVersion};
use tabbify_api::artifact::{ARTIFACT_FILE, ArtifactFile, FILE_LEN_MAX, FILES_MAX, MANIFEST_FILE};
use tabbify_api::auth::{Verified, scope};
use tabbify_api::log::{Append, AppendError, Expect};
use tabbify_types::event::v1::VersionReserved;
use tabbify_types::{AppId, NewEvent, Rev, Segment, VersionNumber};

use super::stored::{self, RESERVED_FILE};
use super::{Call, body, event};
use crate::answer::{self, Answer};
use crate::config::{FILE_LIST_LEN_MAX, MANIFEST_LEN_MAX, RESERVE_ATTEMPTS_MAX};
use crate::error::Refusal;
use crate::view::versions_key;

/// `POST /v1/apps/{id}/versions`.
pub(crate) async fn reserve(
    call: Call<'_>,
    incoming: &mut Incoming,
    app: AppId,
) -> Result<Answer, Refusal> {
    let known = call.caller_on(scope::APPS_WRITE, app)?;
    call.app(&known, app, |_| ())?;
    let wanted: ReserveVersion = body::json(call, incoming, FILE_LIST_LEN_MAX).await?;
    check(&wanted.files)?;
    let version = number(call, &known, app).await?;
    // After the number: a list without one could be overwritten by whoever gets it.
    stored::put_reserved(call.node, app, version, &wanted.files).await?;
    let reserved = ReservedVersion { app, version };
    Ok(answer::json(StatusCode::CREATED, &reserved))
}

/// Takes the next number. Two at once get different ones: the log lets only one batch through at a
/// revision, and the other looks again.
async fn number(call: Call<'_>, caller: &Verified, app: AppId) -> Result<VersionNumber, Refusal> {
    let (segment, key) = (Segment::apps(&caller.tenant), versions_key(app));
    for _ in 0..RESERVE_ATTEMPTS_MAX {
        let look = call.node.projection.read(|view| {
            let app = view.app(app)?;
            Some((app.reserved, app.versions_rev))
        });
        let (last, rev) = look.ok_or_else(|| Refusal::UnknownApp(app.to_string()))?;
        let version = last.next();
        let reserved = VersionReserved { app, version };
        let made = event(NewEvent::new(segment.clone(), &key, &reserved.into()))?;
        let expect = match rev {
            Rev(0) => Expect::None,
            rev => Expect::Rev(rev),
        };
        let batch = Append::of(vec![made]).expecting(segment.clone(), key.as_str(), expect);
        match call.append(caller, batch).await {
            Ok(appended) => {
                call.seen(&appended).await?;
                return Ok(version);
            }
            Err(AppendError::Conflict { .. }) => call.up_to_date().await?,
            Err(error) => return Err(Refusal::Append(error)),
        }
    }
    let what = "others push this app at the same time, again and again";
    Err(Refusal::Conflict(what.to_owned()))
}

/// Whether an upload of these files can be stored and run.
fn check(files: &[ArtifactFile]) -> Result<(), Refusal> {
    let wrong = |what: String| Err(Refusal::BadRequest(what));
    if files.len() > FILES_MAX {
        return wrong(format!("{} files, at most {FILES_MAX}", files.len()));
    }
    let mut paths: BTreeSet<&str> = BTreeSet::new();
    for file in files {
        let path = file.path.as_str();
        if matches!(path, ARTIFACT_FILE | RESERVED_FILE) {
            return wrong(format!("{path} is the platform's own file"));
        }
        if !paths.insert(path) {
            return wrong(format!("{path} is listed twice"));
        }
        let limit = if path == MANIFEST_FILE {
            MANIFEST_LEN_MAX
        } else {
            FILE_LEN_MAX
        };
        if file.size > limit {
            return Err(Refusal::TooLarge {
                what: "a file",
                limit,
            });
        }
    }
    if !paths.contains(MANIFEST_FILE) {
        return wrong(format!("{MANIFEST_FILE} is not listed"));
    }
    // A file cannot be a folder as well.
    for path in &paths {
        for (slash, _) in path.match_indices('/') {
            if paths.contains(&path[..slash]) {
                return wrong(format!("{} is a file and a folder", &path[..slash]));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tabbify_types::Digest;

    use super::*;

    #[test]
    fn lists() {
        let file = |path: &str, size: u64| ArtifactFile {
            path: path.parse().unwrap(),
            size,
            digest: Digest::of(b""),
        };
        let check = |files: &[(&str, u64)], expected: Option<&str>| {
            let files: Vec<_> = files.iter().map(|(path, size)| file(path, *size)).collect();
            let found = super::check(&files).map_err(|error| error.to_string());
            match expected {
                None => assert!(found.is_ok(), "{found:?}"),
                Some(part) => assert!(found.unwrap_err().contains(part)),
            }
        };
        let manifest = (MANIFEST_FILE, 10);
        check(
            &[manifest, ("app.wasm", FILE_LEN_MAX), ("a/b", 0), ("a/c", 0)],
            None,
        );
        check(&[("app.wasm", 1)], Some("tabbify.toml is not listed"));
        check(&[manifest, manifest], Some("listed twice"));
        check(&[manifest, (ARTIFACT_FILE, 1)], Some("platform's own"));
        check(&[manifest, (RESERVED_FILE, 1)], Some("platform's own"));
        check(
            &[manifest, ("x", FILE_LEN_MAX + 1)],
            Some("over 2147483648 bytes"),
        );
        check(
            &[(MANIFEST_FILE, MANIFEST_LEN_MAX + 1)],
            Some("over 262144 bytes"),
        );
        check(
            &[manifest, ("a", 1), ("a/b", 1)],
            Some("a is a file and a folder"),
        );
        let many: Vec<_> = (0..=FILES_MAX).map(|n| file(&n.to_string(), 1)).collect();
        assert!(super::check(&many).is_err());
    }
}
