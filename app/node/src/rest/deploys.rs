//! Deploys: ask for one, list them, wait on one.

use std::time::Duration;

use http::StatusCode;
use hyper::body::Incoming;
use tabbify_api::apps::{DeployList, Operation, RequestDeploy, WAIT_SECS_MAX};
use tabbify_api::auth::{Verified, scope};
use tabbify_api::log::{Append, AppendError};
use tabbify_types::event::v1::DeployRequested;
use tabbify_types::{AppId, DeployId, EventId, NewEvent, Segment};

use super::{Call, body, event, may, may_on};
use crate::answer::{self, Answer};
use crate::config::JSON_LEN_MAX;
use crate::error::Refusal;
use crate::view::View;

/// `POST /v1/deploys`: the intent, once per id however often it is sent.
pub(crate) async fn request(call: Call<'_>, incoming: &mut Incoming) -> Result<Answer, Refusal> {
    let known = call.known()?;
    let wanted: RequestDeploy = body::json(call, incoming, JSON_LEN_MAX).await?;
    may_on(&known, scope::DEPLOY, wanted.app)?;
    if wanted.id.uuid().get_version_num() != 7 {
        return Err(Refusal::NotV7(wanted.id.to_string()));
    }
    let version = wanted.version;
    let published = call.app(&known, wanted.app, |app| app.version(version).is_some())?;
    if !published {
        let what = "is not published";
        return Err(Refusal::VersionConflict { version, what });
    }
    // The event's id follows from the deploy's, so the log itself knows a repetition.
    let id = EventId::from_uuid(wanted.id.uuid()).derived("deploy_requested");
    let requested = DeployRequested {
        app: wanted.app,
        deploy: wanted.id,
        version,
    };
    let segment = Segment::apps(&known.tenant);
    let made = event(NewEvent::with_id(
        id,
        segment,
        wanted.app,
        &requested.into(),
    ))?;
    match call.append(&known, Append::of(vec![made])).await {
        Ok(appended) => call.seen(&appended).await?,
        Err(AppendError::IdConflict { .. }) => {
            let what = format!("{} is the id of another deploy", wanted.id);
            return Err(Refusal::Conflict(what));
        }
        Err(error) => return Err(Refusal::Append(error)),
    }
    let look = |view: &View| operation(call, view, &known, wanted.id);
    let found = call.node.projection.read(look).ok_or(Refusal::ViewLags)?;
    Ok(answer::json(StatusCode::ACCEPTED, &found))
}

/// `GET /v1/deploys?app=`.
pub(crate) fn list(call: Call<'_>) -> Result<Answer, Refusal> {
    let known = call.known()?;
    let query = call.query(&["app"])?;
    let text = query
        .get("app")
        .ok_or_else(|| Refusal::BadRequest("app= is missing".to_owned()))?;
    let app: AppId = text
        .parse()
        .map_err(|_| Refusal::BadUuid(text.chars().take(80).collect()))?;
    may_on(&known, scope::APPS_READ, app)?;
    let deploys = call.app(&known, app, |app| app.operations(&call.node.urls))?;
    Ok(answer::json(StatusCode::OK, &DeployList { deploys }))
}

/// `GET /v1/deploys/{id}?wait_s=&seen=`: at once if there are more steps than `seen` or it has
/// ended, else when that is so, at the latest after `wait_s`.
pub(crate) async fn wait(call: Call<'_>, deploy: DeployId) -> Result<Answer, Refusal> {
    let known = call.known()?;
    match of_tenant(call, &known, deploy) {
        Some(app) => may_on(&known, scope::APPS_READ, app)?,
        None => may(&known, scope::APPS_READ)?,
    }
    let query = call.query(&["wait_s", "seen"])?;
    let wait_s = query
        .parsed::<u64>("wait_s")?
        .unwrap_or(0)
        .min(WAIT_SECS_MAX);
    let seen = query.parsed::<usize>("seen")?.unwrap_or(0);
    let look = |view: &View| operation(call, view, &known, deploy);
    let now = |found: Option<Operation>| found.ok_or_else(|| Refusal::NotFound(deploy.to_string()));
    let projection = &call.node.projection;
    let mut found = now(projection.read(look))?;
    if wait_s > 0 {
        let moved = projection.find(|view| {
            let found = look(view)?;
            (found.steps.len() > seen || found.status.is_final()).then_some(found)
        });
        let moved = tokio::time::timeout(Duration::from_secs(wait_s), moved);
        found = match call.leash(known.clone()).hold(moved).await? {
            Ok(moved) => moved,
            Err(_) => now(projection.read(look))?,
        };
    }
    Ok(answer::json(StatusCode::OK, &found))
}

/// The app of a deploy, if it is of the caller's tenant.
fn of_tenant(call: Call<'_>, known: &Verified, deploy: DeployId) -> Option<AppId> {
    call.node.projection.read(|view| {
        let app = view.app_of_deploy(deploy)?;
        (app.tenant == known.tenant).then_some(app.id)
    })
}

/// A deploy of the caller's tenant; those of others do not exist.
fn operation(call: Call<'_>, view: &View, known: &Verified, deploy: DeployId) -> Option<Operation> {
    let app = view
        .app_of_deploy(deploy)
        .filter(|app| app.tenant == known.tenant)?;
    app.operation(deploy, &call.node.urls)
}
