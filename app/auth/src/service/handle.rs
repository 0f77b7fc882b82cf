//! One request: what is asked, by whom, the answer. Errors become problem documents here, once.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tabbify_api::auth::issue::{
    ADMIT_PATH, API_AUDIENCE, Caller, RENEW_PATH, RequestError, SESSIONS_PATH, SessionRequest,
    TICKETS_PATH, TOKENS_PATH, TicketRequest, VALIDATE_PATH, ValidateRequest,
};
use tabbify_api::auth::people::{
    ACCEPT_PATH, END_SESSIONS_PATH, ERASE_PATH, INVITATIONS_PATH, LOGIN_PATH, PASSWORD_PATH,
    ROLES_PATH,
};
use tabbify_api::auth::{
    Authority as _, Issuer as _, JWKS_PATH, People as _, SOURCE_HEADER, TOKEN_PATH, TokenRequest,
};
use tabbify_api::{ErrorCode, Problem};
use tabbify_http::answer;
use tabbify_token::Kind;
use tabbify_types::RequestId;

use super::Peer;
use crate::authority::Auth;
use crate::checker::{refused, verified};

/// LIMIT: a request's body, in bytes: two tokens and some.
const BODY_LEN_MAX: usize = 32 * 1024;
/// LIMIT: how long a body may take to arrive.
const BODY_WITHIN: Duration = Duration::from_secs(10);
/// LIMIT: a source as a role says it, in bytes.
const SOURCE_LEN_MAX: usize = 128;

type Answer = Response<Full<Bytes>>;

pub(super) async fn handle(auth: &Auth, peer: &Peer, request: Request<Incoming>) -> Answer {
    let id = RequestId::mint();
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    match route(auth, peer, request).await {
        Ok(answer) => answer,
        Err(mut problem) => {
            problem.request = Some(id);
            let (code, detail) = (problem.code.as_str(), &problem.detail);
            if problem.status >= 500 {
                tracing::warn!(request = %id, %method, path, code, detail, "request failed");
            } else {
                tracing::debug!(request = %id, %method, path, code, "request refused");
            }
            answer::problem(&problem)
        }
    }
}

#[expect(clippy::too_many_lines, reason = "a table of paths reads best whole")]
async fn route(
    auth: &Auth,
    peer: &Peer,
    request: Request<Incoming>,
) -> Result<Answer, Box<Problem>> {
    let (parts, incoming) = request.into_parts();
    let (method, path) = (&parts.method, parts.uri.path());
    let source = source(peer, &parts.headers)?;
    let token = tabbify_http::presented(&parts.headers)
        .map_err(|twice| plain(ErrorCode::BadRequest, &twice.to_string()))?;
    let caller = Caller {
        token: token.unwrap_or_default(),
        proven: peer.proven,
        source: &source,
    };
    // What needs somebody known: their token is looked at by what they ask.
    let known = || match token {
        Some(_) => Ok(caller),
        None => Err(plain(ErrorCode::TokenMissing, "no bearer token came along")),
    };
    match path {
        JWKS_PATH => {
            only(method, &Method::GET, path)?;
            Ok(answer::json(&auth.jwks()))
        }
        TOKEN_PATH => {
            only(method, &Method::POST, path)?;
            let TokenRequest { proof } = body(incoming).await?;
            let issued = auth.exchange_from(&proof, &source).await;
            said(issued.map_err(RequestError::from))
        }
        LOGIN_PATH => {
            only(method, &Method::POST, path)?;
            said(auth.login(caller, body(incoming).await?).await)
        }
        PASSWORD_PATH => {
            only(method, &Method::POST, path)?;
            done(auth.change_password(caller, body(incoming).await?).await)
        }
        ACCEPT_PATH => {
            only(method, &Method::POST, path)?;
            said(auth.accept(caller, body(incoming).await?).await)
        }
        INVITATIONS_PATH => {
            only(method, &Method::POST, path)?;
            said(auth.invite(known()?, body(incoming).await?).await)
        }
        ROLES_PATH => {
            only(method, &Method::POST, path)?;
            done(auth.set_role(known()?, body(incoming).await?).await)
        }
        END_SESSIONS_PATH => {
            only(method, &Method::POST, path)?;
            done(auth.end_sessions(known()?, body(incoming).await?).await)
        }
        ERASE_PATH => {
            only(method, &Method::POST, path)?;
            done(auth.erase(known()?, body(incoming).await?).await)
        }
        TOKENS_PATH if *method == Method::GET => said(auth.tokens(known()?).await),
        TOKENS_PATH => {
            only(method, &Method::POST, path)?;
            said(auth.issue(known()?, body(incoming).await?).await)
        }
        RENEW_PATH => {
            only(method, &Method::POST, path)?;
            said(auth.renew(known()?).await)
        }
        ADMIT_PATH => {
            only(method, &Method::POST, path)?;
            said(auth.admit(known()?, body(incoming).await?).await)
        }
        VALIDATE_PATH => {
            only(method, &Method::POST, path)?;
            said(validate(auth, &caller, &body(incoming).await?))
        }
        TICKETS_PATH => {
            only(method, &Method::POST, path)?;
            if !peer.trusted {
                return Err(plain(
                    ErrorCode::Forbidden,
                    "tickets are the node's to ask for",
                ));
            }
            let TicketRequest { identity, app } = body(incoming).await?;
            let ticket = auth.ticket(&identity, app).await;
            said(ticket.map_err(RequestError::from))
        }
        SESSIONS_PATH => {
            only(method, &Method::POST, path)?;
            let SessionRequest { ticket, app } = body(incoming).await?;
            let session = auth.session(&ticket, app).await;
            said(auth.0.counted(&caller, session.map_err(RequestError::from)))
        }
        _ => match path
            .strip_prefix(TOKENS_PATH)
            .and_then(|rest| rest.strip_prefix('/'))
        {
            Some(jti) => {
                only(method, &Method::DELETE, path)?;
                done(auth.revoke(known()?, jti).await)
            }
            None => Err(plain(ErrorCode::NotFound, path)),
        },
    }
}

/// What a token says, for whoever got it from somebody and cannot follow the log.
fn validate(
    auth: &Auth,
    caller: &Caller<'_>,
    request: &ValidateRequest,
) -> Result<tabbify_api::auth::Verified, RequestError> {
    let audience = request.audience.as_deref().unwrap_or(API_AUDIENCE);
    let inner = &auth.0;
    let verifier = inner.checker.verifier();
    let checked = verifier
        .verify(&request.token, &Kind::ALL, audience, inner.now())
        .and_then(|claims| {
            claims.check_holder(request.key.as_ref())?;
            Ok(verified(claims))
        });
    inner.counted(caller, checked.map_err(|error| refused(&error).into()))
}

/// Where the request comes from: a role says it for those whom it asks for.
fn source(peer: &Peer, headers: &HeaderMap) -> Result<String, Box<Problem>> {
    let Some(said) = headers.get(SOURCE_HEADER).filter(|_| peer.trusted) else {
        return Ok(peer.source.clone());
    };
    let said = said
        .to_str()
        .ok()
        .filter(|said| said.len() <= SOURCE_LEN_MAX);
    let said = said.ok_or_else(|| plain(ErrorCode::BadRequest, "the source is no address"))?;
    Ok(said.to_owned())
}

fn only(method: &Method, allowed: &Method, path: &str) -> Result<(), Box<Problem>> {
    if method == allowed {
        return Ok(());
    }
    let detail = format!("{path} takes {allowed}");
    Err(plain(ErrorCode::MethodNotAllowed, &detail))
}

fn plain(code: ErrorCode, detail: &str) -> Box<Problem> {
    Box::new(Problem::new(code, detail))
}

async fn body<T: DeserializeOwned>(incoming: Incoming) -> Result<T, Box<Problem>> {
    let bad = |detail: &str| plain(ErrorCode::BadRequest, detail);
    let received = Limited::new(incoming, BODY_LEN_MAX).collect();
    let received = tokio::time::timeout(BODY_WITHIN, received).await;
    let received = received.map_err(|_| bad("the body did not arrive in time"))?;
    let bytes = match received {
        Ok(received) => received.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => {
            let detail = format!("the body has more than {BODY_LEN_MAX} bytes");
            return Err(plain(ErrorCode::TooLarge, &detail));
        }
        Err(_) => return Err(bad("the body broke off")),
    };
    // What serde says may repeat what was sent, and that may be a password.
    serde_json::from_slice(&bytes).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        bad(&format!(
            "the body is not what this path takes, at line {line}, column {column}"
        ))
    })
}

fn said<T: Serialize>(answer: Result<T, RequestError>) -> Result<Answer, Box<Problem>> {
    match answer {
        Ok(value) => Ok(answer::json(&value)),
        Err(error) => Err(Box::new(error.problem())),
    }
}

fn done(answer: Result<(), RequestError>) -> Result<Answer, Box<Problem>> {
    answer.map_err(|error| Box::new(error.problem()))?;
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = StatusCode::NO_CONTENT;
    Ok(answer)
}
