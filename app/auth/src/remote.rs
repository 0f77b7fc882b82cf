//! Auth in another process: tokens are checked here, offline, from the log; what must be issued is
//! asked for over HTTP.
//!
//! Spawns one task a connection; connections are kept between requests. None is sent twice; who asks
//! decides.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, header};
use http_body_util::Full;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tabbify_api::auth::issue::{
    ADMIT_PATH, Admission, AdmitRequest, Caller, Issuer, RENEW_PATH, RequestError, SESSIONS_PATH,
    SessionRequest, TICKETS_PATH, TOKENS_PATH, TicketRequest, TokenOrder, TokenRecord,
};
use tabbify_api::auth::people::{
    ACCEPT_PATH, AcceptRequest, END_SESSIONS_PATH, ERASE_PATH, INVITATIONS_PATH, InviteRequest,
    Invited, LOGIN_PATH, LoginRequest, PASSWORD_PATH, PasswordRequest, People, ROLES_PATH,
    RoleRequest, SubjectRequest,
};
use tabbify_api::auth::{
    AuthError, Authority, Identity, IssuedToken, PlatformId, SOURCE_HEADER, TOKEN_PATH,
    TokenRequest,
};
use tabbify_api::{BoxFuture, Problem};
use tabbify_http::{Again, Client};
pub use tabbify_process::connect::{Connect, Stream, UnixSocket};
use tabbify_process::{Tasks, chain};
use tabbify_types::AppId;

use crate::checker::Checker;

/// LIMIT: bytes of an answer: the list of a tenant's tokens is the longest.
const ANSWER_LEN_MAX: usize = 2 * 1024 * 1024;
/// LIMIT: how long a request may take from connecting to the last byte of its answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// Auth as another process has it. Clones are the same one.
#[derive(Debug, Clone)]
pub struct RemoteAuthority {
    checker: Checker,
    client: Client,
}

impl RemoteAuthority {
    /// Checks with `checker` and asks over `connect`.
    #[must_use]
    pub fn new(checker: Checker, connect: Arc<dyn Connect>, tasks: &Tasks) -> Self {
        Self {
            checker,
            client: Client::new("auth client", connect, ANSWER_WITHIN, tasks),
        }
    }

    /// Checks tokens of every kind, and tells of revocations.
    #[must_use]
    pub fn checker(&self) -> Checker {
        self.checker.clone()
    }

    async fn post<T: DeserializeOwned>(
        &self,
        caller: Caller<'_>,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, RequestError> {
        read(&self.ask(caller, Method::POST, path, encoded(body)).await?)
    }

    /// As [`RemoteAuthority::post`], where the answer is that it is done.
    async fn tell(
        &self,
        caller: Caller<'_>,
        path: &str,
        body: &impl Serialize,
    ) -> Result<(), RequestError> {
        self.ask(caller, Method::POST, path, encoded(body))
            .await
            .map(drop)
    }

    async fn ask(
        &self,
        caller: Caller<'_>,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Bytes, RequestError> {
        let request = head(caller, method, path, body)?;
        let asking = self.client.ask(request, Again::Never, ANSWER_LEN_MAX);
        let answered = tokio::time::timeout(ANSWER_WITHIN, asking).await;
        let answered = answered.map_err(|_| unreachable("it does not answer in time"))?;
        let (parts, received) =
            answered.map_err(|error| unreachable(&chain(&error).to_string()))?;
        if parts.status.is_success() {
            return Ok(received);
        }
        let problem = Problem::of_answer(parts.status.as_u16(), &received);
        Err(RequestError::of(problem))
    }
}

fn head(
    caller: Caller<'_>,
    method: Method,
    path: &str,
    body: Bytes,
) -> Result<Request<Full<Bytes>>, RequestError> {
    let malformed =
        |_| RequestError::BadRequest("the token or the source is not plain text".to_owned());
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "auth")
        .header(
            SOURCE_HEADER,
            HeaderValue::try_from(caller.source).map_err(malformed)?,
        );
    if !caller.token.is_empty() {
        let bearer = tabbify_http::bearer(caller.token).map_err(malformed)?;
        request = request.header(header::AUTHORIZATION, bearer);
    }
    let request = request.body(Full::new(body));
    request.map_err(|error| RequestError::BadRequest(error.to_string()))
}

fn encoded(body: &impl Serialize) -> Bytes {
    serde_json::to_vec(body)
        .expect("INVARIANT: our own shapes serialize")
        .into()
}

fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, RequestError> {
    serde_json::from_slice(bytes).map_err(|_| unreachable("its answer is not understood"))
}

fn unreachable(why: &str) -> RequestError {
    tracing::warn!(role = "auth", why, "auth cannot be asked");
    AuthError::Unavailable(format!("auth cannot be asked: {why}")).into()
}

/// Whoever has no caller's token has only their own refusal to hear.
fn auth_error(error: RequestError) -> AuthError {
    match error {
        RequestError::Caller(error) => error,
        RequestError::Forbidden(why)
        | RequestError::BadRequest(why)
        | RequestError::Conflict(why)
        | RequestError::NotFound(why) => AuthError::Invalid(why),
    }
}

impl Authority for RemoteAuthority {
    fn platform(&self) -> PlatformId {
        PlatformId(self.checker.verifier().platform().to_string())
    }

    fn jwks(&self) -> serde_json::Value {
        self.checker.jwks()
    }

    fn exchange(&self, proof: &str) -> BoxFuture<'_, Result<IssuedToken, AuthError>> {
        let request = TokenRequest {
            proof: proof.to_owned(),
        };
        Box::pin(async move {
            let issued = self.post(Caller::bearer(""), TOKEN_PATH, &request).await;
            issued.map_err(auth_error)
        })
    }

    fn verify(&self, token: &str) -> Result<Identity, AuthError> {
        self.checker.identity(token)
    }

    fn ticket<'a>(
        &'a self,
        identity: &'a Identity,
        app: AppId,
    ) -> BoxFuture<'a, Result<IssuedToken, AuthError>> {
        let request = TicketRequest {
            identity: identity.clone(),
            app,
        };
        Box::pin(async move {
            let ticket = self.post(Caller::bearer(""), TICKETS_PATH, &request).await;
            ticket.map_err(auth_error)
        })
    }

    fn session<'a>(
        &'a self,
        ticket: &'a str,
        app: AppId,
    ) -> BoxFuture<'a, Result<IssuedToken, AuthError>> {
        let request = SessionRequest {
            ticket: ticket.to_owned(),
            app,
        };
        Box::pin(async move {
            let session = self.post(Caller::bearer(""), SESSIONS_PATH, &request).await;
            session.map_err(auth_error)
        })
    }

    fn verify_session(&self, session: &str, app: AppId) -> Result<Identity, AuthError> {
        self.checker.session(session, app)
    }
}

impl Issuer for RemoteAuthority {
    fn issue<'a>(
        &'a self,
        caller: Caller<'a>,
        order: TokenOrder,
    ) -> BoxFuture<'a, Result<IssuedToken, RequestError>> {
        Box::pin(async move { self.post(caller, TOKENS_PATH, &order).await })
    }

    fn renew<'a>(&'a self, caller: Caller<'a>) -> BoxFuture<'a, Result<IssuedToken, RequestError>> {
        Box::pin(async move {
            read(
                &self
                    .ask(caller, Method::POST, RENEW_PATH, Bytes::new())
                    .await?,
            )
        })
    }

    fn revoke<'a>(
        &'a self,
        caller: Caller<'a>,
        jti: &'a str,
    ) -> BoxFuture<'a, Result<(), RequestError>> {
        Box::pin(async move {
            let path = format!("{TOKENS_PATH}/{jti}");
            self.ask(caller, Method::DELETE, &path, Bytes::new())
                .await
                .map(drop)
        })
    }

    fn tokens<'a>(
        &'a self,
        caller: Caller<'a>,
    ) -> BoxFuture<'a, Result<Vec<TokenRecord>, RequestError>> {
        Box::pin(async move {
            read(
                &self
                    .ask(caller, Method::GET, TOKENS_PATH, Bytes::new())
                    .await?,
            )
        })
    }

    fn admit<'a>(
        &'a self,
        caller: Caller<'a>,
        request: AdmitRequest,
    ) -> BoxFuture<'a, Result<Admission, RequestError>> {
        Box::pin(async move { self.post(caller, ADMIT_PATH, &request).await })
    }
}

impl People for RemoteAuthority {
    fn login<'a>(
        &'a self,
        caller: Caller<'a>,
        request: LoginRequest,
    ) -> BoxFuture<'a, Result<IssuedToken, RequestError>> {
        Box::pin(async move { self.post(caller, LOGIN_PATH, &request).await })
    }

    fn change_password<'a>(
        &'a self,
        caller: Caller<'a>,
        request: PasswordRequest,
    ) -> BoxFuture<'a, Result<(), RequestError>> {
        Box::pin(async move { self.tell(caller, PASSWORD_PATH, &request).await })
    }

    fn invite<'a>(
        &'a self,
        caller: Caller<'a>,
        request: InviteRequest,
    ) -> BoxFuture<'a, Result<Invited, RequestError>> {
        Box::pin(async move { self.post(caller, INVITATIONS_PATH, &request).await })
    }

    fn accept<'a>(
        &'a self,
        caller: Caller<'a>,
        request: AcceptRequest,
    ) -> BoxFuture<'a, Result<IssuedToken, RequestError>> {
        Box::pin(async move { self.post(caller, ACCEPT_PATH, &request).await })
    }

    fn set_role<'a>(
        &'a self,
        caller: Caller<'a>,
        request: RoleRequest,
    ) -> BoxFuture<'a, Result<(), RequestError>> {
        Box::pin(async move { self.tell(caller, ROLES_PATH, &request).await })
    }

    fn end_sessions<'a>(
        &'a self,
        caller: Caller<'a>,
        request: SubjectRequest,
    ) -> BoxFuture<'a, Result<(), RequestError>> {
        Box::pin(async move { self.tell(caller, END_SESSIONS_PATH, &request).await })
    }

    fn erase<'a>(
        &'a self,
        caller: Caller<'a>,
        request: SubjectRequest,
    ) -> BoxFuture<'a, Result<(), RequestError>> {
        Box::pin(async move { self.tell(caller, ERASE_PATH, &request).await })
    }
}
