//! One request: who asks, what for, what is the answer. Errors become problem documents here, once.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, header};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::{Body as _, Incoming};
use serde::de::DeserializeOwned;
use tabbify_api::log::{
    APPEND_PATH, BODY_LEN_MAX, CONSUMERS_PATH, EVENTS_PATH, HEAD_PATH, Head, LogScope,
    SUBSCRIBE_PATH,
};
use tabbify_api::{ErrorCode, Problem};
use tabbify_types::RequestId;
use tokio::sync::SemaphorePermit;

use super::answer::{self, Answer};
use super::{Shared, consumers};
use crate::wire::problem;
use crate::wire::query::Query;

/// LIMIT: how long a body may take to arrive.
const BODY_WITHIN: Duration = Duration::from_secs(30);

pub(super) async fn handle(shared: &Shared, request: Request<Incoming>) -> Answer {
    let id = RequestId::mint();
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    match route(shared, request).await {
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

async fn route(shared: &Shared, request: Request<Incoming>) -> Result<Answer, Box<Problem>> {
    let scope = authorize(shared, request.headers())?;
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
        _ => Err(problem::plain(ErrorCode::NotFound, &path)),
    }
}

/// The scope of the bearer. Nothing else says who asks.
fn authorize(shared: &Shared, headers: &HeaderMap) -> Result<LogScope, Box<Problem>> {
    let missing = || problem::plain(ErrorCode::TokenMissing, "no bearer token came along");
    let value = headers.get(header::AUTHORIZATION).ok_or_else(missing)?;
    let (scheme, token) = value
        .to_str()
        .ok()
        .and_then(|value| value.split_once(' '))
        .ok_or_else(missing)?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(missing());
    }
    let scope = shared.authorize.authorize(token.trim());
    scope.map_err(|error| {
        tracing::debug!(%error, "a token is refused");
        problem::of_auth(&error)
    })
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
    let (batch, _room) = json(shared, request).await?;
    let appended = shared.engine.client(scope).append(batch).await;
    appended
        .map(|appended| answer::json(&appended))
        .map_err(|error| problem::of_append(&error))
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
    page.map(answer::page)
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
    let subscription = shared.engine.client(scope).subscribe(filter, after);
    subscription
        .map(|subscription| answer::events(subscription, shared.closing.clone()))
        .map_err(|error| problem::of_read(&error))
}

pub(super) fn query(request: &Request<Incoming>) -> Result<Query, Box<Problem>> {
    let text = request.uri().query().unwrap_or_default();
    Query::decode(text).map_err(|wrong| bad_request(&wrong))
}

pub(super) fn bad_request(detail: &str) -> Box<Problem> {
    problem::plain(ErrorCode::BadRequest, detail)
}

/// The body as JSON, and its place among the bodies that may be worked on.
pub(super) async fn json<'a, T: DeserializeOwned>(
    shared: &'a Shared,
    request: Request<Incoming>,
) -> Result<(T, SemaphorePermit<'a>), Box<Problem>> {
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
    let bytes: Bytes = match received {
        Ok(received) => received.to_bytes(),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => return Err(too_large()),
        Err(_) => return Err(bad_request("the body broke off")),
    };
    let value = serde_json::from_slice(&bytes);
    let value = value.map_err(|error| bad_request(&format!("the body is not understood: {error}")));
    Ok((value?, room))
}
