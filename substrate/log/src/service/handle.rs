//! One request: who asks, what for, what is the answer. Errors become problem documents here, once.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::{Body as _, Incoming};
use serde::de::DeserializeOwned;
use serde_json::error::Category;
use tabbify_api::log::{
    APPEND_PATH, Append, BODY_LEN_MAX, CONSUMERS_PATH, EVENTS_PATH, HEAD_PATH, Head, LogScope,
    ReadError, SESSION_PATH, SESSION_PROTOCOL, SUBSCRIBE_PATH, VERIFY_PATH,
};
use tabbify_api::{ErrorCode, Problem};
use tabbify_process::Importance;
use tabbify_types::{RequestId, SegmentGlob};
use tokio::sync::SemaphorePermit;

use super::answer::{self, Answer};
use super::bearer::{self, LastSeen, Watch};
use super::feed::{self, Form};
use super::session::Session;
use super::{Shared, consumers};
use crate::wire::query::Query;
use crate::wire::{binary, problem};

/// LIMIT: how long a body may take to arrive.
const BODY_WITHIN: Duration = Duration::from_secs(30);

pub(super) async fn handle(
    shared: &Shared,
    last_seen: &LastSeen,
    request: Request<Incoming>,
) -> Answer {
    let id = RequestId::mint();
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    match route(shared, last_seen, request).await {
        Ok(answer) => answer,
        Err(mut problem) => {
            problem.request = Some(id);
            let (code, detail) = (problem.code.as_str(), &problem.detail);
            if problem.status >= 500 {
                tracing::warn!(request = %id, %method, path, code, detail, "request failed");
            } else {
                tracing::debug!(request = %id, %method, path, code, "request refused");
            }
            answer::refusal(&problem)
        }
    }
}

async fn route(
    shared: &Shared,
    last_seen: &LastSeen,
    request: Request<Incoming>,
) -> Result<Answer, Box<Problem>> {
    let token = bearer::token(request.headers())?;
    let scope = last_seen.scope(&*shared.authorize, shared.believed_for, token);
    let scope = scope.map_err(|error| bearer::refused(&error))?;
    let path = request.uri().path().to_owned();
    if let Some(rest) = path.strip_prefix(CONSUMERS_PATH)
        && (rest.is_empty() || rest.starts_with('/'))
    {
        return consumers::route(shared, scope, rest, request).await;
    }
    match &*path {
        APPEND_PATH => {
            only(&request, &Method::POST)?;
            append(shared, scope, request).await
        }
        SESSION_PATH => {
            only(&request, &Method::GET)?;
            session(shared, scope, request)
        }
        EVENTS_PATH => {
            only(&request, &Method::GET)?;
            events(shared, scope, &request).await
        }
        SUBSCRIBE_PATH => {
            only(&request, &Method::GET)?;
            subscribe(shared, scope, &request)
        }
        HEAD_PATH => {
            only(&request, &Method::GET)?;
            let position = shared.engine.client(scope).head();
            Ok(answer::json(&Head { position }))
        }
        VERIFY_PATH => verify(shared, scope, &request),
        _ => Err(problem::plain(ErrorCode::NotFound, &path)),
    }
}

/// Watches over the token of a request that goes on.
fn watch(
    shared: &Shared,
    scope: &LogScope,
    request: &Request<Incoming>,
) -> Result<Watch, Box<Problem>> {
    let token = bearer::token(request.headers())?.to_owned();
    let authorize = shared.authorize.clone();
    Ok(Watch::new(
        authorize,
        shared.believed_for,
        token,
        scope.clone(),
    ))
}

pub(super) fn only(request: &Request<Incoming>, method: &Method) -> Result<(), Box<Problem>> {
    if request.method() == method {
        return Ok(());
    }
    let detail = format!("{} takes {method}", request.uri().path());
    Err(problem::plain(ErrorCode::MethodNotAllowed, &detail))
}

async fn append(
    shared: &Shared,
    scope: LogScope,
    request: Request<Incoming>,
) -> Result<Answer, Box<Problem>> {
    let (bytes, _room) = body(shared, request).await?;
    let batch = parse::<Append>(&bytes).map_err(|problem| glob_in(&bytes).unwrap_or(problem))?;
    drop(bytes);
    let appended = shared.engine.client(scope).append(batch).await;
    appended
        .map(|appended| answer::json(&appended))
        .map_err(|error| problem::of_append(&error))
}

/// What is wrong with a batch that is not understood, if it is a glob where a segment must stand.
fn glob_in(bytes: &[u8]) -> Option<Box<Problem>> {
    let batch: serde_json::Value = serde_json::from_slice(bytes).ok()?;
    let parts = ["events", "expect"].into_iter();
    let parts = parts
        .filter_map(|part| batch.get(part)?.as_array())
        .flatten();
    let mut names = parts.filter_map(|part| part.get("segment")?.as_str());
    let wrong = names.find_map(|name| binary::one_segment(name).err())?;
    (wrong.code == ErrorCode::GlobInAppend).then_some(wrong)
}

/// Goes over to a session of appends.
fn session(
    shared: &Shared,
    scope: LogScope,
    mut request: Request<Incoming>,
) -> Result<Answer, Box<Problem>> {
    let asked = request.headers().get(header::UPGRADE);
    if asked.is_none_or(|protocol| protocol != SESSION_PROTOCOL) {
        let detail = format!("this path is for an upgrade to {SESSION_PROTOCOL}");
        return Err(bad_request(&detail));
    }
    let place = shared.server.place();
    let place =
        place.ok_or_else(|| problem::plain(ErrorCode::Unavailable, "too many connections"))?;
    let session = Session {
        watch: watch(shared, &scope, &request)?,
        log: shared.engine.client(scope),
        bodies: shared.bodies.clone(),
        closing: shared.closing.clone(),
        place,
    };
    let serving = session.run(hyper::upgrade::on(&mut request));
    shared
        .tasks
        .spawn("log session", Importance::Detached, serving);
    Ok(answer::switching())
}

/// Starts a verification, or says how far the last one is. For whoever may read everything: it
/// tells about everything.
fn verify(
    shared: &Shared,
    scope: LogScope,
    request: &Request<Incoming>,
) -> Result<Answer, Box<Problem>> {
    let all = SegmentGlob::all();
    if !scope.read.iter().any(|glob| glob.covers(&all)) {
        let (actor, glob) = (scope.actor, all);
        return Err(problem::of_read(&ReadError::Forbidden { actor, glob }));
    }
    let verification = match *request.method() {
        Method::POST => shared.verifier.start(&shared.tasks),
        Method::GET => shared.verifier.last().ok_or_else(|| {
            problem::plain(
                ErrorCode::NotFound,
                "no verification has run; POST begins one",
            )
        })?,
        _ => {
            let detail = format!("{VERIFY_PATH} takes GET, POST");
            return Err(problem::plain(ErrorCode::MethodNotAllowed, &detail));
        }
    };
    Ok(answer::json(&verification))
}

async fn events(
    shared: &Shared,
    scope: LogScope,
    request: &Request<Incoming>,
) -> Result<Answer, Box<Problem>> {
    let Query {
        after,
        limit,
        filter,
    } = query(request)?;
    let page = shared.engine.client(scope).read(filter, after, limit).await;
    let as_frames = feed::accepts_frames(request.headers());
    page.map(|page| answer::page(page, as_frames))
        .map_err(|error| problem::of_read(&error))
}

fn subscribe(
    shared: &Shared,
    scope: LogScope,
    request: &Request<Incoming>,
) -> Result<Answer, Box<Problem>> {
    let Query { after, filter, .. } = query(request)?;
    let after = match request.headers().get("last-event-id") {
        None => after,
        Some(id) => {
            let position = id.to_str().ok().and_then(|id| id.parse().ok());
            position.ok_or_else(|| bad_request("last-event-id is not a position"))?
        }
    };
    let watch = watch(shared, &scope, request)?;
    let form = Form::of(request.headers());
    let subscription = shared.engine.client(scope).subscribe(filter, after);
    let subscription = subscription.map_err(|error| problem::of_read(&error))?;
    let closing = shared.closing.clone();
    Ok(answer::events(subscription, form, watch, closing))
}

pub(super) fn query(request: &Request<Incoming>) -> Result<Query, Box<Problem>> {
    let text = request.uri().query().unwrap_or_default();
    Query::decode(text).map_err(|wrong| bad_request(&wrong))
}

pub(super) fn bad_request(detail: &str) -> Box<Problem> {
    problem::plain(ErrorCode::BadRequest, detail)
}

/// The body as JSON, and its place among the bodies that may be worked on.
pub(super) async fn json<T: DeserializeOwned>(
    shared: &Shared,
    request: Request<Incoming>,
) -> Result<(T, SemaphorePermit<'_>), Box<Problem>> {
    let (bytes, room) = body(shared, request).await?;
    Ok((parse(&bytes)?, room))
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Box<Problem>> {
    serde_json::from_slice(bytes).map_err(|error| match error.classify() {
        Category::Syntax | Category::Eof | Category::Io => {
            let detail = format!("the body is not JSON: {error}");
            problem::plain(ErrorCode::BadJson, &detail)
        }
        Category::Data => bad_request(&format!("the body is not understood: {error}")),
    })
}

async fn body(
    shared: &Shared,
    request: Request<Incoming>,
) -> Result<(Bytes, SemaphorePermit<'_>), Box<Problem>> {
    let too_large = || {
        let detail = format!("the body has more than {BODY_LEN_MAX} bytes");
        problem::plain(ErrorCode::TooLarge, &detail)
    };
    let body = request.into_body();
    // Without an announced length it may become as long as it can.
    let len = body.size_hint().upper().unwrap_or(BODY_LEN_MAX as u64);
    let len = u32::try_from(len).map_err(|_| too_large())?;
    if len as usize > BODY_LEN_MAX {
        return Err(too_large());
    }
    let stopping = || problem::plain(ErrorCode::Unavailable, "the log is stopping");
    let room = shared.bodies.acquire_many(len).await;
    let room = room.map_err(|_| stopping())?;
    let received = tokio::time::timeout(BODY_WITHIN, Limited::new(body, BODY_LEN_MAX).collect());
    let received = received
        .await
        .map_err(|_| bad_request("the body did not arrive in time"))?;
    match received {
        Ok(received) => Ok((received.to_bytes(), room)),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => Err(too_large()),
        Err(_) => Err(bad_request("the body broke off")),
    }
}
