//! Step 5: the request to the app and its answer back, both streamed.
//!
//! Buffered at most: what hyper holds per connection and direction (`HEAD_LEN_MAX`); TCP windows
//! apart. A caller that goes away drops the future or the body here, and with it the connection to
//! the app.

use std::sync::Arc;
use std::time::Duration;

use http::header::CONTENT_LENGTH;
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::{Body as _, Incoming};
use tabbify_api::apps::{ERROR_HEADER, runner_error};
use tabbify_api::auth::Verified;
use tabbify_types::AppId;

use crate::answer::Answer;
use crate::body::{AnswerBody, Progress, RequestBody, RequestState};
use crate::error::Refusal;
use crate::headers::{self, Onward};
use crate::leash::Leash;
use crate::listen::Caller;
use crate::node::Node;
use crate::pool::{Take, Upstream};
use crate::tunnel;

/// LIMIT: bytes of a runner's explanation.
const RUNNER_TEXT_LEN_MAX: usize = 4 * 1024;
/// How long it may take; it comes with the head.
const RUNNER_TEXT_WITHIN: Duration = Duration::from_secs(1);

/// Where a request goes, and as what.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) app: AppId,
    /// Path at the app.
    pub(crate) path: String,
    /// Where the app's root is, if it was addressed under the platform's own host.
    pub(crate) prefix: Option<String>,
    /// Who asks, if they are the app's to know: with their token ends what it opened.
    pub(crate) known: Option<Verified>,
    pub(crate) drop_authorization: bool,
}

/// What the ends of an exchange share.
#[derive(Debug)]
struct Passage {
    progress: Arc<Progress>,
    leash: Leash,
}

/// Sends `request` to the app and gives back what the app answers.
///
/// # Errors
/// Those of a connection or an answer that does not come, before any of the answer was passed on.
pub(crate) async fn forward(
    node: &Arc<Node>,
    caller: &Caller,
    mut request: Request<Incoming>,
    target: Target,
) -> Result<Answer, Refusal> {
    let method = request.method().clone();
    if matches!(method, Method::CONNECT | Method::TRACE) {
        let methods = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";
        return Err(Refusal::MethodNotAllowed(methods));
    }
    let upgrade = (request.version() == Version::HTTP_11)
        .then(|| tabbify_http::wanted_upgrade(request.headers()))
        .flatten();
    let caller_side = upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
    let passage = Passage {
        progress: Arc::new(Progress::new()),
        leash: Leash::of(&node.tokens, target.known.clone()),
    };
    let onward = onward_request(node, caller, request, &target, upgrade.as_ref(), &passage)?;

    let (mut answer, upstream) = exchange(node, target.app, onward, &passage).await?;
    let Passage { progress, leash } = passage;
    let said = answer.headers().get(ERROR_HEADER);
    if let Some(code) = said
        .and_then(|value| value.to_str().ok())
        .and_then(runner_error)
    {
        let detail = runner_said(answer.into_body()).await;
        if detail.is_some() && progress.request() == RequestState::Done {
            node.pool.put_back(upstream);
        }
        let detail = detail.unwrap_or_else(|| code.title().to_owned());
        return Err(Refusal::Runner { code, detail });
    }
    let by_path = target.prefix.is_some();
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
        let Some(caller_side) = caller_side else {
            return Err(Refusal::UpstreamAnswer(
                "changed the protocol without being asked",
            ));
        };
        let headers = headers::to_caller(answer.headers(), by_path, true);
        let app_side = hyper::upgrade::on(&mut answer);
        let sides = (caller_side, app_side, upstream);
        tunnel::run(node, caller, sides, progress, leash);
        let mut switching = crate::answer::empty(StatusCode::SWITCHING_PROTOCOLS);
        *switching.headers_mut() = headers;
        return Ok(switching);
    }
    let (parts, body) = answer.into_parts();
    let pool = Arc::clone(&node.pool);
    let idle = node.config.timeouts.idle;
    let body = AnswerBody::new(body, upstream, pool, progress, idle, leash);
    let mut answer = Response::new(body.boxed_unsync());
    *answer.status_mut() = parts.status;
    *answer.headers_mut() = headers::to_caller(&parts.headers, by_path, false);
    Ok(answer)
}

/// The short text with which a runner explains why it answers in the app's place.
async fn runner_said(body: Incoming) -> Option<String> {
    let collected = Limited::new(body, RUNNER_TEXT_LEN_MAX).collect();
    let bytes = tokio::time::timeout(RUNNER_TEXT_WITHIN, collected)
        .await
        .ok()?
        .ok()?
        .to_bytes();
    let text = std::str::from_utf8(&bytes).ok()?.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

fn onward_request(
    node: &Node,
    caller: &Caller,
    request: Request<Incoming>,
    target: &Target,
    upgrade: Option<&HeaderValue>,
    passage: &Passage,
) -> Result<Request<RequestBody>, Refusal> {
    let (parts, body) = request.into_parts();
    let path = match parts.uri.query() {
        Some(query) => PathAndQuery::try_from(format!("{}?{query}", target.path)),
        None => PathAndQuery::try_from(target.path.as_str()),
    };
    let path = path.map_err(|_| Refusal::BadRequest("the path is malformed".to_owned()))?;
    let onward = Onward {
        client: caller.address.ip(),
        host: caller.host.as_deref().unwrap_or(&node.urls.base),
        user: target.known.as_ref().map(|known| known.subject.as_str()),
        prefix: target.prefix.as_deref(),
        drop_authorization: target.drop_authorization,
        upgrade,
    };
    let mut headers = headers::to_app(&parts.headers, &onward);
    if body.size_hint().exact().is_none() {
        // Framing is hyper's alone: a length that came with HTTP/2 is the body's own by then.
        headers.remove(CONTENT_LENGTH);
    }
    let idle = node.config.timeouts.idle;
    let (progress, leash) = (Arc::clone(&passage.progress), passage.leash.clone());
    let mut request = Request::new(RequestBody::new(body, progress, idle, leash));
    *request.method_mut() = parts.method;
    *request.uri_mut() = Uri::from(path);
    *request.headers_mut() = headers;
    Ok(request)
}

/// Why an attempt gave no answer.
struct Refused {
    error: Refusal,
    /// The request, if nothing of it has left.
    unsent: Option<Box<Request<RequestBody>>>,
}

/// One request and the head of its answer, and the connection that they went over.
///
/// The app may close a connection under our hands: a kept one that it was tired of, a new one because it is
/// about to end. What never left is sent again, and so is what may be done twice without harm (RFC 9110
/// 9.2.2): once on a new connection instead of a kept one, and once to another instance instead of one that
/// breaks off a new connection.
async fn exchange(
    node: &Node,
    app: AppId,
    mut request: Request<RequestBody>,
    passage: &Passage,
) -> Result<(Response<Incoming>, Upstream), Refusal> {
    let mut upstream = node.upstream(app, Take::Any).await?;
    let mut went_elsewhere = false;
    loop {
        let (kept, at) = (upstream.was_kept(), upstream.at());
        let spare = spare_of(&request, &passage.progress);
        let refused = match attempt(node, upstream, request, passage).await {
            Ok(answered) => return Ok(answered),
            Err(refused) => refused,
        };
        let broke = matches!(&refused.error, Refusal::Upstream(error) if !error.is_parse());
        let was_sent = refused.unsent.is_none();
        let again = refused.unsent.map(|request| *request).or(spare);
        let Some(again) = again.filter(|_| broke && !went_elsewhere) else {
            return Err(refused.error);
        };
        request = again;
        upstream = if kept {
            node.upstream(app, Take::New).await?
        } else {
            went_elsewhere = true;
            let another = node.upstream_but(app, at, was_sent).await;
            another.map_err(|_| refused.error)?
        };
    }
}

/// A copy of a request that is safe to repeat and has no body.
fn spare_of(
    request: &Request<RequestBody>,
    progress: &Arc<Progress>,
) -> Option<Request<RequestBody>> {
    let safe = matches!(
        *request.method(),
        Method::GET | Method::HEAD | Method::OPTIONS
    );
    if !safe || !request.body().is_end_stream() {
        return None;
    }
    let mut spare = Request::new(RequestBody::empty(Arc::clone(progress)));
    *spare.method_mut() = request.method().clone();
    *spare.uri_mut() = request.uri().clone();
    *spare.headers_mut() = request.headers().clone();
    Some(spare)
}

async fn attempt(
    node: &Node,
    mut upstream: Upstream,
    request: Request<RequestBody>,
    Passage { progress, leash }: &Passage,
) -> Result<(Response<Incoming>, Upstream), Refused> {
    progress.touch();
    let within = node.config.timeouts.first_byte;
    let sent = tokio::select! {
        biased;
        revoked = leash.cut() => {
            let error = revoked.into();
            return Err(Refused { error, unsent: None });
        }
        sent = upstream.sender.try_send_request(request) => sent,
        () = progress.stalled(within) => {
            // Whoever was waited for is to blame.
            let error = match progress.request() {
                RequestState::AwaitsCaller => Refusal::BodyStalled(within),
                RequestState::Flowing | RequestState::Done | RequestState::Broken => {
                    Refusal::FirstByte(within)
                }
            };
            return Err(Refused { error, unsent: None });
        }
    };
    match sent {
        Ok(answer) => Ok((answer, upstream)),
        Err(mut refused) => {
            let unsent = refused.take_message().map(Box::new);
            let error = refused.into_error();
            let error = match progress.request() {
                RequestState::Broken => Refusal::BodyBrokeOff(error),
                RequestState::Flowing | RequestState::AwaitsCaller | RequestState::Done => {
                    Refusal::Upstream(error)
                }
            };
            Err(Refused { error, unsent })
        }
    }
}
