//! Secrets: what callers set goes on to the vault, with their own token. Nothing here can read a value
//! back; names and versions come from the vault, and from the view which apps use them.

use http::StatusCode;
use hyper::body::{Body as _, Incoming};
use tabbify_api::auth::{Verified, scope};
use tabbify_api::secrets::{SecretValue, SecretView, VALUE_LEN_MAX};
use tabbify_types::SecretName;
use zeroize::Zeroizing;

use super::{Call, body};
use crate::answer::{self, Answer};
use crate::error::Refusal;

/// `GET /v1/secrets`.
pub(crate) async fn list(call: Call<'_>) -> Result<Answer, Refusal> {
    let known = call.caller(scope::SECRETS_READ)?;
    let list = call.node.vault.list(call.bearer()?).await;
    let mut list = list.map_err(refused)?;
    for view in &mut list.secrets {
        used_by(call, &known, view);
    }
    Ok(answer::json(StatusCode::OK, &list))
}

/// `PUT /v1/secrets/{name}`: the body is the value, whatever its bytes.
pub(crate) async fn set(
    call: Call<'_>,
    incoming: &mut Incoming,
    name: SecretName,
) -> Result<Answer, Refusal> {
    let known = call.caller(scope::SECRETS_WRITE)?;
    let value = value(call, incoming).await?;
    let set = call.node.vault.set(call.bearer()?, name, value).await;
    let mut view = set.map_err(refused)?;
    used_by(call, &known, &mut view);
    let status = match view.created == view.changed {
        true => StatusCode::CREATED,
        false => StatusCode::OK,
    };
    Ok(answer::json(status, &view))
}

/// `DELETE /v1/secrets/{name}`.
pub(crate) async fn remove(call: Call<'_>, name: SecretName) -> Result<Answer, Refusal> {
    call.caller(scope::SECRETS_WRITE)?;
    let removed = call.node.vault.remove(call.bearer()?, name).await;
    removed.map_err(refused)?;
    Ok(answer::empty(StatusCode::NO_CONTENT))
}

/// The whole body, kept in one place that is erased.
async fn value(call: Call<'_>, incoming: &mut Incoming) -> Result<SecretValue, Refusal> {
    let too_large = || Refusal::TooLarge {
        what: "the value",
        limit: VALUE_LEN_MAX as u64,
    };
    if incoming.size_hint().lower() > VALUE_LEN_MAX as u64 {
        return Err(too_large());
    }
    // As long as it gets: growing would leave copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(VALUE_LEN_MAX));
    while let Some(data) = body::next(call, incoming).await? {
        if bytes.len() + data.len() > VALUE_LEN_MAX {
            return Err(too_large());
        }
        bytes.extend_from_slice(&data);
    }
    Ok(SecretValue::new(std::mem::take(&mut bytes)))
}

fn used_by(call: Call<'_>, known: &Verified, view: &mut SecretView) {
    let projection = &call.node.projection;
    view.apps = projection.read(|seen| seen.users_of(&known.tenant, &view.name));
}

fn refused(problem: tabbify_api::Problem) -> Refusal {
    Refusal::Vault(Box::new(problem))
}
