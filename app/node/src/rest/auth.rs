//! Signing in, and opening an app in a browser: what `Authority` answers, as HTTP.

use http::StatusCode;
use hyper::body::Incoming;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use tabbify_api::apps::OpenLink;
use tabbify_api::auth::{TokenRequest, scope};
use tabbify_types::AppId;

use super::{Call, body};
use crate::answer::{self, Answer};
use crate::config::JSON_LEN_MAX;
use crate::error::Refusal;
use crate::route::OPEN_PATH;

/// `POST /v1/auth/token`.
pub(crate) async fn token(call: Call<'_>, incoming: &mut Incoming) -> Result<Answer, Refusal> {
    let request: TokenRequest = body::json(call, incoming, JSON_LEN_MAX).await?;
    let issued = call.node.authority.exchange(&request.proof).await;
    Ok(answer::json(
        StatusCode::OK,
        &issued.map_err(Refusal::Credential)?,
    ))
}

/// `GET /v1/jwks`.
pub(crate) fn jwks(call: Call<'_>) -> Answer {
    answer::json(StatusCode::OK, &call.node.authority.jwks())
}

/// `GET /v1/whoami`.
pub(crate) fn whoami(call: Call<'_>) -> Result<Answer, Refusal> {
    Ok(answer::json(StatusCode::OK, &call.known()?.identity()))
}

/// `POST /v1/apps/{id}/open`.
pub(crate) async fn open(call: Call<'_>, app: AppId) -> Result<Answer, Refusal> {
    let known = call.caller_on(scope::APP_OPEN, app)?;
    let urls = &call.node.urls;
    let url = call.app(&known, app, |app| urls.app(&app.tenant, &app.name))?;
    let ticket = call.node.authority.ticket(&known.identity(), app).await;
    let ticket = ticket.map_err(Refusal::Credential)?;
    let text = utf8_percent_encode(&ticket.token, NON_ALPHANUMERIC);
    let link = OpenLink {
        url: format!("{url}{OPEN_PATH}?ticket={text}"),
        expires: ticket.expires,
    };
    Ok(answer::json(StatusCode::OK, &link))
}
