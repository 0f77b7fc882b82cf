//! Apps: register, list, look.

use http::StatusCode;
use hyper::body::Incoming;
use tabbify_api::apps::{AppList, AppView, RegisterApp};
use tabbify_api::auth::{Verified, scope};
use tabbify_api::log::{Append, AppendError, Expect};
use tabbify_types::event::v1::{AppAddressClaimed, AppNameClaimed, AppRegistered};
use tabbify_types::{AppId, AppUla, NewEvent, Segment};

use super::{Call, body, event, may_on};
use crate::answer::{self, Answer};
use crate::config::JSON_LEN_MAX;
use crate::error::Refusal;

/// `GET /v1/apps`.
pub(crate) fn list(call: Call<'_>) -> Result<Answer, Refusal> {
    let known = call.known()?;
    if !known.allows_on_some(scope::APPS_READ) {
        return Err(Refusal::Scope(scope::APPS_READ));
    }
    let urls = &call.node.urls;
    let apps = call.node.projection.read(|view| {
        let apps = view.apps_of(&known.tenant);
        let seen = apps.filter(|app| known.allows_on(scope::APPS_READ, app.id));
        seen.map(|app| app.view(urls)).collect()
    });
    Ok(answer::json(StatusCode::OK, &AppList { apps }))
}

/// `GET /v1/apps/{id}`.
pub(crate) fn get(call: Call<'_>, app: AppId) -> Result<Answer, Refusal> {
    let known = call.caller_on(scope::APPS_READ, app)?;
    let view = call.app(&known, app, |app| app.view(&call.node.urls))?;
    Ok(answer::json(StatusCode::OK, &view))
}

/// `POST /v1/apps`: claims the name, the address and the id in one batch. The log's expectations
/// decide between callers; the view only tells what a conflict was about.
pub(crate) async fn register(call: Call<'_>, incoming: &mut Incoming) -> Result<Answer, Refusal> {
    let known = call.known()?;
    let wanted: RegisterApp = body::json(call, incoming, JSON_LEN_MAX).await?;
    may_on(&known, scope::APPS_WRITE, wanted.id)?;
    if wanted.id.uuid().get_version_num() != 7 {
        return Err(Refusal::NotV7(wanted.id.to_string()));
    }
    if let Some(view) = registered(call, &known, &wanted)? {
        return Ok(answer::json(StatusCode::OK, &view));
    }
    match call.append(&known, registration(&known, &wanted)?).await {
        Ok(appended) => {
            call.seen(&appended).await?;
            let view = registered(call, &known, &wanted)?.ok_or(Refusal::ViewLags)?;
            Ok(answer::json(StatusCode::CREATED, &view))
        }
        Err(AppendError::Conflict { key, .. }) => {
            // Somebody was faster: see who, and whether it was this very registration.
            call.up_to_date().await?;
            match registered(call, &known, &wanted)? {
                Some(view) => Ok(answer::json(StatusCode::OK, &view)),
                None if key == AppUla::derive(wanted.id).to_string() => {
                    Err(Refusal::AddressTaken(AppUla::derive(wanted.id)))
                }
                None => Err(Refusal::NameTaken(wanted.name)),
            }
        }
        Err(error) => Err(Refusal::Append(error)),
    }
}

fn registration(known: &Verified, wanted: &RegisterApp) -> Result<Append, Refusal> {
    let (app, name) = (wanted.id, wanted.name.clone());
    let address = AppUla::derive(app);
    let (apps, peers) = (Segment::apps(&known.tenant), Segment::peers());
    let name_key = format!("name/{name}");
    let named = AppNameClaimed {
        name: name.clone(),
        app,
    };
    let addressed = AppAddressClaimed { address, app };
    let registered = AppRegistered {
        app,
        tenant: known.tenant.clone(),
        name,
        address,
    };
    // The one that the view reads comes last, so that its position is the batch's.
    let events = vec![
        event(NewEvent::new(apps.clone(), &name_key, &named.into()))?,
        event(NewEvent::new(peers.clone(), address, &addressed.into()))?,
        event(NewEvent::new(apps.clone(), app, &registered.into()))?,
    ];
    Ok(Append::of(events)
        .expecting(apps.clone(), name_key, Expect::None)
        .expecting(peers, address.to_string(), Expect::None)
        .expecting(apps, app.to_string(), Expect::None))
}

/// The app, if it is registered as wanted; `None` if its id and name are free in the view.
fn registered(
    call: Call<'_>,
    known: &Verified,
    wanted: &RegisterApp,
) -> Result<Option<AppView>, Refusal> {
    let id = wanted.id;
    call.node.projection.read(|view| match view.app(id) {
        Some(app) if app.tenant != known.tenant => Err(Refusal::AppMismatch(format!(
            "{id} is the id of another app"
        ))),
        Some(app) if app.name != wanted.name => {
            let (name, wanted) = (&app.name, &wanted.name);
            let what = format!(
                "{id} is the id of app {name:?}, not of {wanted:?}",
                name = name.as_str(),
                wanted = wanted.as_str()
            );
            Err(Refusal::AppMismatch(what))
        }
        Some(app) => Ok(Some(app.view(&call.node.urls))),
        None if view.app_named(&known.tenant, &wanted.name).is_some() => {
            Err(Refusal::NameTaken(wanted.name.clone()))
        }
        None => Ok(None),
    })
}
