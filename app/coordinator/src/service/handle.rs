//! One request of a proven key: what is asked, the answer. Refusals become problem documents here, once.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderValue, Method, Request, Response, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tabbify_api::auth::IssuedToken;
use tabbify_api::auth::issue::AdmitRequest;
use tabbify_api::coordinator::{
    Ask, BODY_LEN_MAX, CAPABILITIES_MAX, CERTIFICATE_PATH, CertificateRequest, HostCertificate,
    HostToken, ISSUERS_PATH, JOIN_PATH, JoinRequest, Joined, LEASE_PATH, LEAVE_PATH, LeaseRequest,
    REPORT_PATH, RESOLVE_PATH, Report, SignedLease, Told, WATCH_PATH, WatchRequest,
};
use tabbify_api::doorbell::{DOOR_PATH, DoorAsk};
use tabbify_api::names::{NAME_PATH, NameAsk};
use tabbify_api::{ErrorCode, Problem};
use tabbify_http::{Handle, answer};
use tabbify_process::chain;
use tabbify_types::{MeshKey, RequestId};

use super::Shared;
use crate::member::Seen;
use crate::refusal::Refusal;
use crate::stats::count;
use crate::watch::Watch;

/// LIMIT: how long a body may take to arrive.
const BODY_WITHIN: Duration = Duration::from_secs(10);
/// How often a watch says that it lives.
pub(crate) const ALIVE_EVERY: Duration = Duration::from_secs(15);

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// Answers one connection.
pub(crate) struct Handler {
    shared: Arc<Shared>,
    key: MeshKey,
    source: IpAddr,
}

impl Handler {
    pub(crate) const fn new(shared: Arc<Shared>, key: MeshKey, source: IpAddr) -> Self {
        Self {
            shared,
            key,
            source,
        }
    }
}

impl Handle for Handler {
    type Body = UnsyncBoxBody<Bytes, Infallible>;

    async fn handle(&self, request: Request<Incoming>) -> Answer {
        let id = RequestId::mint();
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        match self.route(request).await {
            Ok(answer) => answer,
            Err(mut problem) => {
                problem.request = Some(id);
                let (code, detail) = (problem.code.as_str(), &problem.detail);
                let key = self.key;
                if problem.status >= 500 {
                    tracing::debug!(request = %id, %key, %method, path, code, detail, "no answer");
                } else {
                    tracing::info!(request = %id, %key, %method, path, code, "request refused");
                }
                refusal(&problem)
            }
        }
    }
}

impl Handler {
    async fn route(&self, request: Request<Incoming>) -> Result<Answer, Box<Problem>> {
        let counters = &self.shared.coordinator.0.counters;
        if !self.shared.by_key.take(&self.key) {
            count(&counters.limited);
            return Err(refused(&Refusal::RateLimited));
        }
        let (parts, incoming) = request.into_parts();
        let path = parts.uri.path();
        let wanted = match path {
            ISSUERS_PATH => Method::GET,
            JOIN_PATH | CERTIFICATE_PATH | LEASE_PATH | NAME_PATH | RESOLVE_PATH | DOOR_PATH
            | WATCH_PATH | REPORT_PATH | LEAVE_PATH => Method::POST,
            _ => return Err(Box::new(Problem::new(ErrorCode::NotFound, path))),
        };
        if parts.method != wanted {
            let detail = format!("{path} takes {wanted}");
            return Err(Box::new(Problem::new(ErrorCode::MethodNotAllowed, detail)));
        }
        let coordinator = &self.shared.coordinator;
        match path {
            JOIN_PATH => {
                let joined = self.join(body(incoming).await?).await;
                let counter = match &joined {
                    Ok(_) => &counters.joined,
                    Err(_) => &counters.not_joined,
                };
                count(counter);
                self.said(joined)
            }
            CERTIFICATE_PATH => {
                let certified = self.certify(body(incoming).await?).await;
                self.said(certified)
            }
            LEASE_PATH => {
                let lease = self.lease(body(incoming).await?).await;
                self.said(lease)
            }
            NAME_PATH => {
                let ask: NameAsk = body(incoming).await?;
                let named = coordinator.find(|| coordinator.name_for(&self.key, &ask));
                self.said(named.await)
            }
            RESOLVE_PATH => {
                let ask: Ask = body(incoming).await?;
                let resolved = coordinator.find(|| coordinator.resolve_for(&self.key, ask));
                self.said(resolved.await)
            }
            DOOR_PATH => {
                let ask: DoorAsk = body(incoming).await?;
                let said = coordinator.find(|| coordinator.at_door(&self.key, ask));
                self.said(said.await)
            }
            REPORT_PATH => {
                let report: Report = body(incoming).await?;
                let heard = coordinator.find(|| coordinator.report(&self.key, &report));
                self.said(heard.await)
            }
            WATCH_PATH => {
                let request: WatchRequest = body(incoming).await?;
                let watch = coordinator.find(|| coordinator.watch(&self.key, request.after));
                match watch.await {
                    Ok(watch) => Ok(self.lines(watch)),
                    Err(refusal) => Err(self.refused(&refusal)),
                }
            }
            LEAVE_PATH => self.said(coordinator.left(&self.key).await),
            _ => self.said(coordinator.issuers()),
        }
    }

    async fn join(&self, request: JoinRequest) -> Result<Joined, Refusal> {
        if !self.shared.joins.take(&self.source) {
            count(&self.shared.coordinator.0.counters.limited);
            return Err(Refusal::RateLimited);
        }
        if request.capabilities.len() > CAPABILITIES_MAX {
            let text = format!("more than {CAPABILITIES_MAX} capabilities");
            return Err(Refusal::Invalid(text));
        }
        let coordinator = &self.shared.coordinator;
        // Before the token is used up.
        coordinator.check_consent(&self.key, request.signing, &request.consent)?;
        coordinator.foresee(&request.token, self.key).await?;
        let admit = AdmitRequest {
            token: request.token,
            key: self.key,
        };
        let admission = self.shared.admit.admit(admit).await;
        let admission = admission.map_err(Refusal::Token)?;
        let seen = Seen {
            capabilities: request.capabilities,
            memory: request.memory,
        };
        let certified = coordinator.admit(admission, seen, request.signing).await?;
        Ok(self.with_token(certified).await)
    }

    async fn certify(&self, request: CertificateRequest) -> Result<Joined, Refusal> {
        let coordinator = &self.shared.coordinator;
        let signing = request.signing;
        coordinator.check_consent(&self.key, signing, &request.consent)?;
        let certified = coordinator.find(|| coordinator.certify(&self.key, signing));
        Ok(self.with_token(certified.await?).await)
    }

    /// What a machine is told, with a token for the platform's services. Without auth it is told
    /// nevertheless, and asks again.
    async fn with_token(&self, (certificate, joined): (HostCertificate, Joined)) -> Joined {
        let token = match self.shared.admit.host_token(&certificate).await {
            Ok(IssuedToken { token, expires }) => Some(HostToken { token, expires }),
            Err(error) => {
                tracing::warn!(error = %chain(&error), host = %certificate.host, "no token");
                None
            }
        };
        Joined { token, ..joined }
    }

    async fn lease(&self, request: LeaseRequest) -> Result<SignedLease, Refusal> {
        let coordinator = &self.shared.coordinator;
        let counters = &coordinator.0.counters;
        let lease = match &request.spawn {
            Some(spawn) => coordinator.spawned(&self.key, spawn).await,
            None => coordinator.find(|| coordinator.renewed(&self.key)).await,
        };
        count(match &lease {
            Ok(_) => &counters.granted,
            Err(Refusal::Fenced) => &counters.fenced,
            Err(_) => &counters.not_granted,
        });
        lease
    }

    fn said<T: Serialize>(&self, answer: Result<T, Refusal>) -> Result<Answer, Box<Problem>> {
        match answer {
            Ok(value) => {
                let bytes =
                    serde_json::to_vec(&value).expect("INVARIANT: our own shapes serialize");
                Ok(answer::typed(
                    "application/json",
                    Full::from(bytes).boxed_unsync(),
                ))
            }
            Err(refusal) => Err(self.refused(&refusal)),
        }
    }

    fn refused(&self, refusal: &Refusal) -> Box<Problem> {
        if matches!(refusal, Refusal::NotAMember) {
            count(self.strangers());
        }
        refused(refusal)
    }

    fn strangers(&self) -> &AtomicU64 {
        &self.shared.coordinator.0.counters.strangers
    }

    /// The lines of a watch, until it is ended, the key is nobody's any more, or the tasks end.
    fn lines(&self, watch: Watch) -> Answer {
        let (shared, key) = (Arc::clone(&self.shared), self.key);
        let closing = shared.tasks.token();
        let lines = stream::unfold(watch, move |watch| {
            let (shared, closing) = (Arc::clone(&shared), closing.clone());
            async move {
                let told = tokio::select! {
                    told = tokio::time::timeout(ALIVE_EVERY, watch.next()) => told,
                    () = closing.cancelled() => return None,
                };
                let told = match told {
                    Ok(told) => told?,
                    Err(_) if shared.coordinator.is_member(&key) => watch.alive(),
                    Err(_) => return None,
                };
                Some((Ok::<_, Infallible>(Frame::data(line(&told))), watch))
            }
        });
        let mut answer = Response::new(StreamBody::new(lines).boxed_unsync());
        let media_type = HeaderValue::from_static("application/x-ndjson");
        answer
            .headers_mut()
            .insert(header::CONTENT_TYPE, media_type);
        answer
    }
}

fn line(told: &Told) -> Bytes {
    let mut line = serde_json::to_vec(told).expect("INVARIANT: our own shapes serialize");
    line.push(b'\n');
    line.into()
}

fn refused(refusal: &Refusal) -> Box<Problem> {
    Box::new(refusal.problem())
}

async fn body<T: DeserializeOwned>(incoming: Incoming) -> Result<T, Box<Problem>> {
    let bad = |detail: String| Box::new(Problem::new(ErrorCode::BadRequest, detail));
    let received = Limited::new(incoming, BODY_LEN_MAX).collect();
    let received = tokio::time::timeout(BODY_WITHIN, received).await;
    let received = received.map_err(|_| bad("the body did not arrive in time".to_owned()))?;
    let bytes = match received {
        Ok(received) => received.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => {
            let detail = format!("the body has more than {BODY_LEN_MAX} bytes");
            return Err(Box::new(Problem::new(ErrorCode::TooLarge, detail)));
        }
        Err(_) => return Err(bad("the body broke off".to_owned())),
    };
    // What serde says may repeat what was sent, and that may be a token.
    serde_json::from_slice(&bytes).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        bad(format!(
            "the body is not what this path takes, at line {line}, column {column}"
        ))
    })
}

fn refusal(problem: &Problem) -> Answer {
    answer::problem(problem).map(BodyExt::boxed_unsync)
}
