//! Step 2: bearer or session → who the caller is, and whether they may.

use http::header::{AUTHORIZATION, COOKIE};
use http::{HeaderMap, HeaderValue};
use tabbify_api::apps::TOKEN_HEADER;
use tabbify_api::auth::issue::{API_AUDIENCE, session_audience};
use tabbify_api::auth::{AuthError, Revocations, Verified, scope};
use tabbify_types::event::v1::Access;
use tabbify_types::{AppId, Tenant};

use crate::error::Refusal;

/// Name of the cookie that holds a browser's session with one app.
pub(crate) const SESSION_COOKIE: &str = "tabbify_session";

/// Kinds of tokens whose holders may call the node.
const CALLERS: &[&str] = &["user", "agent"];

/// LIMIT: session cookies that are tried; a neighbor that plants more only shuts itself out.
const SESSIONS_MAX: usize = 4;

/// What decides who may open an app.
#[derive(Debug)]
pub(crate) struct Door {
    pub(crate) app: AppId,
    pub(crate) tenant: Tenant,
    pub(crate) access: Access,
    /// Whether the app was addressed by its own host: only there does its session count.
    pub(crate) by_host: bool,
    /// What to call the app to a caller who may not know it.
    pub(crate) called: String,
}

/// An opened door.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Admitted {
    /// The caller, if they belong to the app's tenant.
    pub(crate) known: Option<Verified>,
    /// Whether `Authorization` holds a credential of ours, which the app must not get.
    pub(crate) authorization_is_ours: bool,
}

/// The caller of a REST call.
///
/// # Errors
/// [`Refusal::TokenMissing`], [`Refusal::Credential`].
pub(crate) fn caller(tokens: &dyn Revocations, headers: &HeaderMap) -> Result<Verified, Refusal> {
    check(tokens, token(headers)?).map_err(Refusal::Credential)
}

/// The token of a REST call, whatever it is worth.
///
/// # Errors
/// [`Refusal::TokenMissing`].
pub(crate) fn token(headers: &HeaderMap) -> Result<&str, Refusal> {
    match token_header(headers)? {
        Some(token) => Ok(token),
        None => bearer(headers)?.ok_or(Refusal::TokenMissing),
    }
}

fn check(tokens: &dyn Revocations, token: &str) -> Result<Verified, AuthError> {
    tokens.check(token, CALLERS, API_AUDIENCE, None)
}

/// Whether a request may go to an app.
///
/// Our token is looked for in `X-Tabbify-Token`, then in the app's session, then in
/// `Authorization`, which may as well be the app's own.
///
/// # Errors
/// [`Refusal::TokenMissing`], [`Refusal::Credential`], [`Refusal::Scope`]; [`Refusal::UnknownApp`] for an
/// app of another tenant, so that nobody learns what others have.
pub(crate) fn admit(
    tokens: &dyn Revocations,
    headers: &HeaderMap,
    door: &Door,
) -> Result<Admitted, Refusal> {
    let token = token_header(headers)?
        .map(|token| check(tokens, token).map_err(Refusal::Credential))
        .transpose()?;
    let session = door
        .by_host
        .then(|| session(tokens, headers, door.app))
        .flatten();
    let bearer = bearer(headers)?.map(|token| check(tokens, token));
    let authorization_is_ours = matches!(bearer, Some(Ok(_) | Err(AuthError::Expired(_))));

    let admitted = |known| Admitted {
        known,
        authorization_is_ours,
    };
    let of_tenant = |known: &Verified| known.tenant == door.tenant;
    let by_session = token.is_none() && matches!(session, Some(Ok(_)));
    let found = match (token, session, bearer) {
        (Some(known), _, _) | (None, Some(Ok(known)), _) | (None, _, Some(Ok(known))) => Ok(known),
        (None, _, Some(Err(error))) | (None, Some(Err(error)), None) => {
            Err(Refusal::Credential(error))
        }
        (None, None, None) => Err(Refusal::TokenMissing),
    };
    match door.access {
        // A name is told only to the caller's own tenant: in another it would mean someone else.
        Access::Public => Ok(admitted(found.ok().filter(of_tenant))),
        Access::Private => {
            let known = found?;
            if !of_tenant(&known) {
                return Err(Refusal::UnknownApp(door.called.clone()));
            }
            if !by_session && !known.allows_on(scope::APP_OPEN, door.app) {
                return Err(Refusal::Scope(scope::APP_OPEN));
            }
            Ok(admitted(Some(known)))
        }
    }
}

/// Our token where it cannot be mistaken for the app's.
fn token_header(headers: &HeaderMap) -> Result<Option<&str>, Refusal> {
    let mut values = headers.get_all(TOKEN_HEADER).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => text(value).map(Some),
        (Some(_), Some(_)) => Err(Refusal::BadRequest(format!("{TOKEN_HEADER} comes twice"))),
    }
}

fn text(value: &HeaderValue) -> Result<&str, Refusal> {
    let refused = || AuthError::Invalid("not plain text".to_owned());
    value.to_str().map_err(|_| Refusal::Credential(refused()))
}

/// A bearer token in `Authorization` (RFC 6750 2.1), which may come once (RFC 9110 5.3).
fn bearer(headers: &HeaderMap) -> Result<Option<&str>, Refusal> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let value = match (values.next(), values.next()) {
        (None, _) => return Ok(None),
        (Some(value), None) => value.to_str().ok(),
        (Some(_), Some(_)) => {
            return Err(Refusal::BadRequest("authorization comes twice".to_owned()));
        }
    };
    let parts = value.and_then(|value| value.split_once([' ', '\t']));
    Ok(parts
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim()))
}

/// The session among the cookies: the first that holds, else why the last one does not.
fn session(
    tokens: &dyn Revocations,
    headers: &HeaderMap,
    app: AppId,
) -> Option<Result<Verified, AuthError>> {
    let audience = session_audience(app);
    let mut refused = None;
    let cookies = headers.get_all(COOKIE).iter();
    let values = cookies
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .filter_map(|cookie| cookie.trim().split_once('='))
        .filter(|(name, _)| *name == SESSION_COOKIE);
    for (_, value) in values.take(SESSIONS_MAX) {
        match tokens.check(value, CALLERS, &audience, None) {
            Ok(known) => return Some(Ok(known)),
            Err(error) => refused = Some(Err(error)),
        }
    }
    refused
}

#[cfg(test)]
mod tests;
