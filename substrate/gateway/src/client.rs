//! The vault in another process, as the node uses it: values go in, with the callers' own tokens.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::Full;
use serde::de::DeserializeOwned;
use tabbify_api::auth::Caller;
use tabbify_api::secrets::{SECRETS_PATH, SecretList, SecretValue, SecretView, Vault};
use tabbify_api::{BoxFuture, ErrorCode, Problem};
use tabbify_http::{Again, Client};
use tabbify_process::connect::Connect;
use tabbify_process::{Tasks, chain};
use tabbify_types::SecretName;

/// LIMIT: bytes of an answer: the list of a tenant's secrets is the longest.
const ANSWER_LEN_MAX: usize = 512 * 1024;
/// LIMIT: how long a request may take from connecting to the last byte of its answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// A vault that is reached over a connection. Clones are the same one.
#[derive(Debug, Clone)]
pub struct RemoteVault {
    client: Client,
}

impl RemoteVault {
    /// The vault behind `connect`.
    #[must_use]
    pub fn new(connect: Arc<dyn Connect>, tasks: &Tasks) -> Self {
        Self {
            client: Client::new("vault client", connect, ANSWER_WITHIN, tasks),
        }
    }

    async fn ask(
        &self,
        caller: Caller<'_>,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Bytes, Problem> {
        let malformed = |_| Problem::new(ErrorCode::TokenInvalid, "the token is not plain text");
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "vault");
        if !caller.token.is_empty() {
            let bearer = tabbify_http::bearer(caller.token).map_err(malformed)?;
            request = request.header(header::AUTHORIZATION, bearer);
        }
        let request = request.body(Full::new(body));
        let request = request.expect("INVARIANT: the names of secrets are paths");
        // A change that was lost with its connection may have been made: who asked decides.
        let asking = self.client.ask(request, Again::Never, ANSWER_LEN_MAX);
        let answered = tokio::time::timeout(ANSWER_WITHIN, asking).await;
        let answered = answered.map_err(|_| unreachable("it does not answer in time"))?;
        let (parts, received) =
            answered.map_err(|error| unreachable(&chain(&error).to_string()))?;
        if parts.status.is_success() {
            return Ok(received);
        }
        Err(Problem::of_answer(parts.status.as_u16(), &received))
    }
}

fn unreachable(why: &str) -> Problem {
    tracing::warn!(role = "api-gateway", why, "the vault cannot be asked");
    Problem::new(ErrorCode::Unavailable, "the vault cannot be asked now")
}

fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Box<Problem>> {
    let unclear = |_| Box::new(unreachable("its answer is not understood"));
    serde_json::from_slice(bytes).map_err(unclear)
}

fn path(name: &SecretName) -> String {
    format!("{SECRETS_PATH}/{name}")
}

impl Vault for RemoteVault {
    fn set<'a>(
        &'a self,
        caller: Caller<'a>,
        name: SecretName,
        value: SecretValue,
    ) -> BoxFuture<'a, Result<SecretView, Problem>> {
        Box::pin(async move {
            let body = Bytes::from_owner(value.into_bytes());
            let answer = self.ask(caller, Method::PUT, &path(&name), body).await?;
            read(&answer).map_err(|problem| *problem)
        })
    }

    fn list<'a>(&'a self, caller: Caller<'a>) -> BoxFuture<'a, Result<SecretList, Problem>> {
        Box::pin(async move {
            let none = Bytes::new();
            let answer = self.ask(caller, Method::GET, SECRETS_PATH, none).await?;
            read(&answer).map_err(|problem| *problem)
        })
    }

    fn remove<'a>(
        &'a self,
        caller: Caller<'a>,
        name: SecretName,
    ) -> BoxFuture<'a, Result<(), Problem>> {
        Box::pin(async move {
            let (path, none) = (path(&name), Bytes::new());
            self.ask(caller, Method::DELETE, &path, none)
                .await
                .map(drop)
        })
    }
}
