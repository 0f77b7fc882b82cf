//! One request: what is asked, by whom, the answer. Errors become problem documents here, once.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body as _, Incoming};
use serde::Serialize;
use tabbify_api::auth::Caller;
use tabbify_api::secrets::{RELEASE_PATH, Release, SECRETS_PATH, SecretValue, VALUE_LEN_MAX};
use tabbify_http::answer;
use tabbify_process::chain;
use tabbify_types::{RequestId, SecretName};
use zeroize::Zeroizing;

use super::Peer;
use crate::error::Error;
use crate::vault::Vault;

/// LIMIT: how long a value may take to arrive.
const BODY_WITHIN: Duration = Duration::from_secs(10);
/// Bytes of JSON beside the value of each secret, at most: its name, its version, the names of fields.
const ENTRY_LEN: usize = 128;

type Answer = Response<Full<Bytes>>;

pub(super) async fn handle(vault: &Vault, peer: Peer, request: Request<Incoming>) -> Answer {
    let id = RequestId::mint();
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    match route(vault, peer, request).await {
        Ok(answer) => answer,
        Err(error) => {
            let mut problem = error.problem();
            problem.request = Some(id);
            let code = problem.code.as_str();
            if problem.status >= 500 {
                tracing::warn!(request = %id, %method, path, code, error = %chain(&error), "request failed");
            } else {
                tracing::debug!(request = %id, %method, path, code, error = %chain(&error), "request refused");
            }
            answer::problem(&problem)
        }
    }
}

async fn route(vault: &Vault, peer: Peer, request: Request<Incoming>) -> Result<Answer, Error> {
    let (parts, incoming) = request.into_parts();
    let (method, path) = (&parts.method, parts.uri.path());
    if path == RELEASE_PATH {
        only(method, &[Method::GET], "GET")?;
        return Ok(release(&vault.release(&peer).await?));
    }
    let token = tabbify_http::presented(&parts.headers);
    let token = token.map_err(|_| Error::Malformed("authorization comes twice"))?;
    let caller = Caller {
        token: token.unwrap_or_default(),
        proven: peer.proven,
        source: "vault",
    };
    if path == SECRETS_PATH {
        only(method, &[Method::GET], "GET")?;
        return Ok(json(StatusCode::OK, &vault.list(caller).await?));
    }
    let name = path.strip_prefix(SECRETS_PATH);
    let name = name.and_then(|rest| rest.strip_prefix('/'));
    let name = name.ok_or(Error::NoSuchPath)?.parse::<SecretName>();
    let name = name.map_err(|_| Error::Malformed("the path has no name of a secret"))?;
    only(method, &[Method::PUT, Method::DELETE], "PUT, DELETE")?;
    if *method == Method::DELETE {
        vault.remove(caller, name).await?;
        let mut answer = Response::new(Full::default());
        *answer.status_mut() = StatusCode::NO_CONTENT;
        return Ok(answer);
    }
    // Nobody who may not sends us anything.
    vault.may_set(caller)?;
    let (view, is_new) = vault.set(caller, name, value(incoming).await?).await?;
    let status = match is_new {
        true => StatusCode::CREATED,
        false => StatusCode::OK,
    };
    Ok(json(status, &view))
}

fn only(method: &Method, allowed: &[Method], shown: &'static str) -> Result<(), Error> {
    match allowed.contains(method) {
        true => Ok(()),
        false => Err(Error::Method(shown)),
    }
}

/// The whole body, kept in one place that is erased.
async fn value(mut body: Incoming) -> Result<SecretValue, Error> {
    if body.size_hint().lower() > VALUE_LEN_MAX as u64 {
        return Err(Error::ValueTooLong);
    }
    // As long as it gets: growing would leave copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(VALUE_LEN_MAX));
    let whole = async {
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| Error::Malformed("the body broke off"))?;
            let Ok(data) = frame.into_data() else {
                continue;
            };
            if bytes.len() + data.len() > VALUE_LEN_MAX {
                return Err(Error::ValueTooLong);
            }
            bytes.extend_from_slice(&data);
        }
        Ok(())
    };
    let late = |_| Error::Malformed("the body did not arrive in time");
    tokio::time::timeout(BODY_WITHIN, whole)
        .await
        .map_err(late)??;
    Ok(SecretValue::new(std::mem::take(&mut bytes)))
}

/// The values on their way out, in one place that is erased once it is sent.
fn release(release: &Release) -> Answer {
    let values = release.secrets.iter();
    let values: usize = values.map(|it| it.value.reveal().len() / 3 * 4 + 4).sum();
    let len = values + (release.secrets.len() + 1) * ENTRY_LEN;
    let mut bytes = Zeroizing::new(Vec::with_capacity(len));
    serde_json::to_writer(&mut *bytes, release).expect("INVARIANT: our own shapes serialize");
    answer::typed("application/json", Full::new(Bytes::from_owner(bytes)))
}

fn json(status: StatusCode, value: &impl Serialize) -> Answer {
    let mut answer = answer::json(value);
    *answer.status_mut() = status;
    answer
}

#[cfg(test)]
mod tests {
    use tabbify_api::secrets::Resolved;
    use tabbify_types::SecretVersion;

    use super::*;

    #[test]
    fn an_answer_fits_where_it_is_written() {
        for (count, len) in [(0, 0), (1, 0), (3, 5), (1, VALUE_LEN_MAX)] {
            let secrets = (0..count).map(|n| Resolved {
                name: format!("{n:a<63}").parse().unwrap(),
                version: SecretVersion(u32::MAX),
                value: SecretValue::new(vec![0; len]),
            });
            let found = Release {
                secrets: secrets.collect(),
            };
            let written = serde_json::to_vec(&found).unwrap().len();
            assert!(written <= count * (len / 3 * 4 + 4) + (count + 1) * ENTRY_LEN);
        }
    }
}
