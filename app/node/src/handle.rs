//! One request, from its head to its answer: the steps in order.

use std::sync::Arc;
use std::time::Duration;

use http::header::{
    CACHE_CONTROL, CONNECTION, EXPECT, HOST, LOCATION, REFERRER_POLICY, SET_COOKIE,
};
use http::request::Parts;
use http::{HeaderValue, Method, Request, StatusCode, Version};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use tabbify_process::chain;
use tabbify_types::{AppId, RequestId};
use tokio::time::Instant;
use tracing::Instrument as _;

use crate::answer::{self, Answer, Shown, refusal};
use crate::authn::{self, Door, SESSION_COOKIE};
use crate::config::REFUSED_BODY_LEN_MAX;
use crate::error::Refusal;
use crate::forward::{Target, forward};
use crate::listen::{Caller, Connection};
use crate::node::Node;
use crate::rest;
use crate::rest::query::Query;
use crate::route::{Route, route};
use crate::view::{App, View};

/// Header in which every answer names its request.
pub(crate) const REQUEST_HEADER: &str = "x-tabbify-request";

/// How long a refused request's body is read away.
const REFUSED_BODY_WITHIN: Duration = Duration::from_secs(1);

/// Answers a request; refusals are answers too.
pub(crate) async fn handle(
    node: Arc<Node>,
    connection: Connection,
    request: Request<Incoming>,
) -> Answer {
    let id = RequestId::mint();
    let span = tracing::info_span!("request", request = %id);
    walk(&node, &connection, id, request).instrument(span).await
}

async fn walk(
    node: &Arc<Node>,
    connection: &Connection,
    id: RequestId,
    request: Request<Incoming>,
) -> Answer {
    let began = Instant::now();
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let page = Shown::to(request.headers());
    let host = host_of(&request);
    let known = host.as_ref().ok().cloned().flatten();
    let caller = connection.caller(id, known.clone());
    let framed = if connection.verdict.is_ambiguous() {
        Err(Refusal::BadFraming)
    } else {
        host.map(drop)
    };
    let at = match framed {
        Ok(()) => Ok(route(known.as_deref(), &path, &node.urls.base)),
        Err(error) => Err(error),
    };
    let is_rest = matches!(at, Ok(Route::Platform));
    let shown = if is_rest { Shown::Document } else { page };
    let done = match at {
        Ok(at) => Box::pin(step(node, &caller, at, request)).await,
        Err(error) => Err(error),
    };
    let mut answer = done.unwrap_or_else(|error| {
        report(&error);
        refusal(&error, id, shown)
    });
    let headers = answer.headers_mut();
    if let Ok(value) = HeaderValue::from_str(&id.to_string()) {
        headers.insert(REQUEST_HEADER, value);
    }
    if connection.verdict.is_ambiguous() {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    let ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    let status = answer.status().as_u16();
    // The path alone: queries may hold tickets and other secrets.
    tracing::debug!(
        target: "tabbify::event::request",
        %method, path, host = known, status, ms, client = %caller.address.ip(),
    );
    answer
}

/// Failures of ours are for the operator, the rest is the caller's business.
fn report(error: &Refusal) {
    let code = error.code();
    let (status, code) = (code.status(), code.as_str());
    let error = chain(error);
    match status {
        500 => tracing::error!(code, %error, "a request failed"),
        502..=504 => tracing::info!(code, %error, "an app did not answer"),
        _ => tracing::debug!(code, %error, "a request was refused"),
    }
}

/// The host that a request is for: the target's own, else the one `Host` (RFC 9112 3.2).
fn host_of(request: &Request<Incoming>) -> Result<Option<String>, Refusal> {
    if let Some(authority) = request.uri().authority() {
        return Ok(Some(authority.as_str().to_owned()));
    }
    let mut hosts = request.headers().get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(host), None) => match host.to_str() {
            Ok(host) => Ok(Some(host.to_owned())),
            Err(_) => Err(Refusal::BadRequest("the host is not plain text".to_owned())),
        },
        (None, _) if request.version() < Version::HTTP_11 => Ok(None),
        (None, _) => Err(Refusal::BadRequest("the request names no host".to_owned())),
        (Some(_), Some(_)) => Err(Refusal::BadRequest(
            "the request names more than one host".to_owned(),
        )),
    }
}

async fn step(
    node: &Arc<Node>,
    caller: &Caller,
    at: Route<'_>,
    request: Request<Incoming>,
) -> Result<Answer, Refusal> {
    match at {
        Route::Platform => {
            let (parts, mut body) = request.into_parts();
            let done = Box::pin(rest::serve(node, caller, &parts, &mut body)).await;
            if done.is_err() {
                read_away(&parts, &mut body).await;
            }
            done
        }
        Route::Open { tenant, name } => {
            let app = node
                .projection
                .read(|view| view.app_named(&tenant, &name).map(|app| app.id));
            let app = app.ok_or_else(|| Refusal::UnknownApp(name.to_string()))?;
            open(node, app, &request.into_parts().0).await
        }
        Route::Host { tenant, name } => {
            let look = |view: &View| Some(door(view.app_named(&tenant, &name)?, true, &name));
            let door = node.projection.read(look);
            let door = door.ok_or_else(|| Refusal::UnknownApp(name.to_string()));
            let path = request.uri().path().to_owned();
            enter(node, caller, door, path, None, request).await
        }
        Route::Path { app, rest } => {
            let door = node
                .projection
                .read(|view| Some(door(view.app(app)?, false, &app)));
            let door = door.ok_or_else(|| Refusal::UnknownApp(app.to_string()));
            let (path, prefix) = (rest.to_owned(), format!("/app/{app}"));
            enter(node, caller, door, path, Some(prefix), request).await
        }
        Route::BadUuid(text) => Err(Refusal::BadUuid(text.chars().take(80).collect())),
        Route::UnknownHost => {
            let host = caller.host.as_deref().unwrap_or_default();
            Err(Refusal::UnknownApp(host.chars().take(80).collect()))
        }
    }
}

fn door(app: &App, by_host: bool, called: &impl ToString) -> Door {
    Door {
        app: app.id,
        tenant: app.tenant.clone(),
        access: app.access(),
        by_host,
        called: called.to_string(),
    }
}

/// Through the app's door, if the caller may.
async fn enter(
    node: &Arc<Node>,
    caller: &Caller,
    door: Result<Door, Refusal>,
    path: String,
    prefix: Option<String>,
    request: Request<Incoming>,
) -> Result<Answer, Refusal> {
    let admitted = door.and_then(|door| {
        let admitted = authn::admit(&*node.tokens, request.headers(), &door)?;
        Ok((door.app, admitted))
    });
    match admitted {
        Ok((app, admitted)) => {
            let target = Target {
                app,
                path,
                prefix,
                known: admitted.known,
                drop_authorization: admitted.authorization_is_ours,
            };
            Box::pin(forward(node, caller, request, target)).await
        }
        Err(error) => {
            let (parts, mut body) = request.into_parts();
            read_away(&parts, &mut body).await;
            Err(error)
        }
    }
}

/// Exchanges the ticket of a link for a session with one app, and goes to its front page.
async fn open(node: &Node, app: AppId, parts: &Parts) -> Result<Answer, Refusal> {
    // A HEAD request is somebody looking at the link: it must not use it up.
    if parts.method != Method::GET {
        return Err(Refusal::MethodNotAllowed("GET"));
    }
    let query = Query::parse(parts.uri.query(), &["ticket"])?;
    let ticket = query.get("ticket").ok_or(Refusal::TokenMissing)?;
    let session = node.authority.session(ticket, app).await;
    let session = session.map_err(Refusal::Credential)?;
    let left = session
        .expires
        .secs()
        .saturating_sub(node.clock.now().secs());
    let cookie = format!(
        "{SESSION_COOKIE}={}; HttpOnly; SameSite=Lax; Path=/; Max-Age={left}",
        session.token
    );
    let cookie = HeaderValue::try_from(cookie)
        .map_err(|_| Refusal::BadRequest("the session is not a cookie".to_owned()))?;
    let mut answer = answer::empty(StatusCode::SEE_OTHER);
    let headers = answer.headers_mut();
    headers.insert(SET_COOKIE, cookie);
    headers.insert(LOCATION, HeaderValue::from_static("/"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    Ok(answer)
}

/// Reads what a refused caller still sends, within limits: a connection that is closed with bytes
/// unread is reset, and the refusal may be lost with it. Not for callers that wait to be asked.
async fn read_away(parts: &Parts, body: &mut Incoming) {
    let long = body.size_hint().lower() > REFUSED_BODY_LEN_MAX as u64;
    if long || parts.headers.contains_key(EXPECT) {
        return;
    }
    let reading = async {
        let mut len = 0;
        while let Some(Ok(frame)) = body.frame().await {
            len += frame.data_ref().map_or(0, bytes::Bytes::len);
            if len > REFUSED_BODY_LEN_MAX {
                return;
            }
        }
    };
    // Either way there is nothing more to do for them.
    let _ = tokio::time::timeout(REFUSED_BODY_WITHIN, reading).await;
}
