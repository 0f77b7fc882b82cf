//! What an app keeps on machines: asked of each that it was ever placed on, and removed there.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http::header::HOST;
use http::{Method, Request, StatusCode};
use http_body_util::Full;
use tabbify_api::apps::{Operation, OperationStatus};
use tabbify_api::artifact::MANIFEST_FILE;
use tabbify_api::auth::{Verified, scope};
use tabbify_api::volumes::{VolumeList, VolumeView, path_at_machine};
use tabbify_api::{ErrorCode, Problem};
use tabbify_http::{Again, Client};
use tabbify_manifest::Manifest;
use tabbify_process::chain;
use tabbify_types::{AppId, HostName, HostUla, VersionNumber};

use super::{Call, stored};
use crate::answer::{self, Answer};
use crate::config::MANIFEST_LEN_MAX;
use crate::error::Refusal;
use crate::machine_logs::Machine;
use crate::view::View;

/// LIMIT: how long a machine may take; removing a directory of many files takes some time.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);
/// LIMIT: what one says of a volume, in bytes.
const ANSWER_LEN_MAX: usize = 16 * 1024;

/// `GET /v1/apps/{id}/volumes`.
pub(crate) async fn list(call: Call<'_>, app: AppId) -> Result<Answer, Refusal> {
    let known = call.caller_on(scope::APPS_READ, app)?;
    let machines = machines(call, &known, app)?;
    let asked = machines.into_iter().map(|(host, address)| async move {
        let said = ask(call, Method::GET, app, host.clone(), address).await;
        (host, said)
    });
    let mut list = VolumeList::default();
    for (host, said) in join_all(asked).await {
        match said {
            Ok(found) => list.volumes.extend(found),
            Err(problem) => {
                tracing::info!(%host, why = problem.detail, "a machine shows no volumes");
                list.silent.push(host);
            }
        }
    }
    Ok(answer::json(StatusCode::OK, &list))
}

/// `DELETE /v1/apps/{id}/volumes/{machine}`.
pub(crate) async fn remove(
    call: Call<'_>,
    app: AppId,
    machine: HostName,
) -> Result<Answer, Refusal> {
    let known = call.caller_on(scope::VOLUMES_WRITE, app)?;
    let machines = machines(call, &known, app)?;
    let found = machines.into_iter().find(|(host, _)| *host == machine);
    let Some((host, address)) = found else {
        return Err(Refusal::NotFound(format!("a volume on {machine}")));
    };
    unused(call, &known, app).await?;
    tracing::info!(%app, %machine, by = known.subject, "a volume is removed");
    let removed = ask(call, Method::DELETE, app, host, address).await;
    removed.map_err(|problem| Refusal::Instance(Box::new(problem)))?;
    Ok(answer::empty(StatusCode::NO_CONTENT))
}

/// Refuses while the app is in service with its volume. Its machine knows only whether an instance has it now:
/// one that sleeps, or that has crashed and is about to be replaced, has none and needs it all the same.
async fn unused(call: Call<'_>, known: &Verified, app: AppId) -> Result<(), Refusal> {
    call.up_to_date().await?;
    let urls = &call.node.urls;
    let versions = call.app(known, app, |app| {
        in_service(app.view(urls).serving, &app.operations(urls))
    })?;
    for version in versions {
        let text = stored::read(call.node, app, version, MANIFEST_FILE, MANIFEST_LEN_MAX).await?;
        if has_volume(&String::from_utf8_lossy(&text)) {
            let detail = format!("v{version}, which serves or is to serve, has the volume");
            let fix = "Push a version without [runtime] volume first";
            let problem = Problem::new(ErrorCode::Conflict, detail).with_fix(fix);
            return Err(Refusal::Instance(Box::new(problem)));
        }
    }
    Ok(())
}

/// The versions of which there are instances, or will be. `operations` are the newest first. What the last
/// good one of them put into service stays there, whether something of it runs now or not.
fn in_service(serving: Option<VersionNumber>, operations: &[Operation]) -> BTreeSet<VersionNumber> {
    let is_good = |operation: &&Operation| operation.status == OperationStatus::Succeeded;
    let under_way = operations.iter().filter(|it| !it.status.is_final());
    let good = operations.iter().find(is_good);
    let versions = under_way.chain(good).map(|operation| operation.version);
    versions.chain(serving).collect()
}

/// Whether a version with this manifest has a volume. One that this program cannot read any more may have one.
fn has_volume(manifest: &str) -> bool {
    let parsed = Manifest::parse(manifest, MANIFEST_FILE);
    !parsed.is_ok_and(|parsed| parsed.manifest.runtime.volume.is_none())
}

fn machines(
    call: Call<'_>,
    known: &Verified,
    app: AppId,
) -> Result<Vec<(HostName, HostUla)>, Refusal> {
    call.app_in_view(known, app, View::machines_of)
}

/// What a machine says, in the form of its own supervisor.
async fn ask(
    call: Call<'_>,
    method: Method,
    app: AppId,
    host: HostName,
    address: HostUla,
) -> Result<Option<VolumeView>, Problem> {
    let node = call.node;
    if host == node.host {
        return match method {
            Method::DELETE => node.volumes.remove(app).await.map(|()| None),
            _ => node.volumes.look(app).await,
        };
    }
    let (dial, tasks) = (Arc::clone(&node.dial), node.tasks.clone());
    let machine = Machine {
        host: host.clone(),
        address,
        dial,
        tasks: tasks.clone(),
    };
    let client = Client::new("volume client", Arc::new(machine), ANSWER_WITHIN, &tasks);
    let request = Request::builder()
        .method(method)
        .uri(path_at_machine(app))
        .header(HOST, "supervisor")
        .body(Full::<Bytes>::default())
        .expect("INVARIANT: an id is part of a path");
    let silent = |why: String| {
        let problem = Problem::new(ErrorCode::Unavailable, format!("{host} is silent: {why}"));
        problem.with_fix("Run: tcli machines list")
    };
    let answer = client.ask(request, Again::Harmless, ANSWER_LEN_MAX).await;
    let (parts, bytes) = answer.map_err(|error| silent(chain(&error).to_string()))?;
    match parts.status {
        StatusCode::OK => {
            let view = serde_json::from_slice(&bytes);
            view.map(Some)
                .map_err(|_| silent("its answer is not understood".to_owned()))
        }
        StatusCode::NO_CONTENT | StatusCode::NOT_FOUND => Ok(None),
        status => Err(Problem::of_answer(status.as_u16(), &bytes)),
    }
}

#[cfg(test)]
mod tests {
    use tabbify_types::DeployId;

    use super::*;

    fn operation(version: u32, status: OperationStatus) -> Operation {
        Operation {
            operation: DeployId::mint(),
            app: AppId::mint(),
            status,
            steps: Vec::new(),
            version: VersionNumber(version),
            url: None,
            error: None,
            log_tail: String::new(),
        }
    }

    #[test]
    fn what_is_in_service_awake_or_not() {
        use OperationStatus::{AwaitingApproval, Failed, Running, Succeeded, Superseded};
        let check = |serving: Option<u32>, history: &[(u32, OperationStatus)], expected: &[u32]| {
            let history: Vec<_> = history.iter().map(|(n, how)| operation(*n, *how)).collect();
            let found = in_service(serving.map(VersionNumber), &history);
            let expected = expected.iter().copied().map(VersionNumber);
            assert_eq!(found, expected.collect(), "{history:?}");
        };
        check(None, &[], &[]);
        check(Some(1), &[(1, Succeeded)], &[1]);
        // It has crashed, and comes back.
        check(None, &[(1, Succeeded)], &[1]);
        check(None, &[(2, Failed), (1, Succeeded)], &[1]);
        check(None, &[(1, Failed)], &[]);
        // A version without a volume has taken over.
        check(Some(2), &[(2, Succeeded), (1, Succeeded)], &[2]);
        check(Some(2), &[(1, Running), (2, Succeeded)], &[1, 2]);
        let waiting = [(3, AwaitingApproval), (2, Superseded), (1, Succeeded)];
        check(Some(1), &waiting, &[1, 3]);
        // Its own deploy is forgotten, after many that failed.
        check(Some(1), &[(3, Failed), (2, Failed)], &[1]);
    }

    #[test]
    fn which_manifests_have_a_volume() {
        let with =
            |rest: &str| format!("[app]\nname = \"shop\"\n[build]\nwasm = \"x.wasm\"\n{rest}");
        assert!(!has_volume(&with("")));
        assert!(!has_volume(&with("[runtime]\nmemory = \"64MiB\"\n")));
        assert!(has_volume(&with(
            "[runtime]\nvolume = { mount = \"/data\" }\n"
        )));
        assert!(has_volume(&with("[runtime]\nvolumn = 1\n")));
        assert!(has_volume("[app"));
    }
}
