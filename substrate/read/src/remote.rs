//! The read model of another process over HTTP: the same trait, the same answers, the same tests.
//!
//! Spawns one task a connection, which moves its bytes; connections are kept between requests. Nothing
//! here changes anything, so a request whose answer was lost is sent again.

mod connection;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::HeaderMap;
use serde::de::DeserializeOwned;
use tabbify_api::read::{
    APPROVALS_PATH, APPS_PATH, AUDIT_PATH, Answer, AppDetail, AppRow, ApprovalRow, ApprovalStatus,
    AuditFilter, AuditRow, BUILDS_PATH, BuildRow, DEPLOYS_PATH, DeployRow, HEAD_HEADER,
    LAG_MS_HEADER, LEASES_PATH, LeaseRow, Listing, PEERS_PATH, POSITION_HEADER, PeerRow,
    QueryError, ReadModel, ReadScope, ReadStatus, STATUS_PATH, TOKENS_PATH, TokenRow, VersionRow,
    WAIT_MS_MAX, Window,
};
use tabbify_api::{ErrorCode, Problem};
use tabbify_process::Tasks;
use tabbify_process::connect::{Bearer, Connect};
use tabbify_types::{AppId, Position};
use tokio::time::Instant;

use crate::projection::word;
use crate::wire::problem;
use crate::wire::query::Query;
use connection::Connections;

/// A read model that another process serves, as the bearer of a token sees it. Clones are the same one.
///
/// [`ReadScope::Platform`] asks for everything, which a token of a tenant does not get: it is refused,
/// not answered with less.
#[derive(Debug, Clone)]
pub struct RemoteReadModel {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    connections: Connections,
    /// How far the model is, as we have been told last.
    status: Mutex<ReadStatus>,
}

impl RemoteReadModel {
    /// Connects, and asks how far the model is.
    ///
    /// # Errors
    /// What the service says, or [`QueryError::Unavailable`] if it cannot be reached.
    pub async fn connect(
        connect: Arc<dyn Connect>,
        bearer: Bearer,
        tasks: &Tasks,
    ) -> Result<Self, QueryError> {
        let connections = Connections::new(connect, bearer, tasks);
        let (status, _) = get(&connections, STATUS_PATH, &Query::default()).await?;
        let status = Mutex::new(status);
        Ok(Self {
            shared: Arc::new(Shared {
                connections,
                status,
            }),
        })
    }

    /// How far the model is, asked for now.
    ///
    /// # Errors
    /// As [`RemoteReadModel::connect`].
    pub async fn ask_status(&self) -> Result<ReadStatus, QueryError> {
        self.status_with(&Query::default()).await
    }

    async fn status_with(&self, query: &Query) -> Result<ReadStatus, QueryError> {
        let (status, _) = get::<ReadStatus>(&self.shared.connections, STATUS_PATH, query).await?;
        self.told(|told| told.clone_from(&status));
        Ok(status)
    }

    /// Waits in slices that the service allows.
    async fn wait(&self, position: Position, timeout: Duration) -> Result<(), QueryError> {
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
            let query = Query::default()
                .with("min_position", position)
                .with("wait_ms", left.min(WAIT_MS_MAX));
            match self.status_with(&query).await {
                Ok(_) => return Ok(()),
                Err(QueryError::Behind { .. }) if left > WAIT_MS_MAX => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn told(&self, tell: impl FnOnce(&mut ReadStatus)) {
        let status = &self.shared.status;
        tell(&mut status.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Asks one question in a scope.
    async fn ask<T: DeserializeOwned>(
        &self,
        path: &str,
        scope: ReadScope,
        query: Query,
    ) -> Result<T, QueryError> {
        let query = query.with("scope", scope);
        let (answer, headers) = get(&self.shared.connections, path, &query).await?;
        self.told(|status| stands(status, &headers));
        Ok(answer)
    }

    /// Asks for a page.
    fn list<'a, T: DeserializeOwned + 'a>(
        &'a self,
        path: &'static str,
        scope: ReadScope,
        query: Query,
        window: Window,
    ) -> Answer<'a, Listing<T>> {
        Box::pin(async move { self.ask(path, scope, paged(query, window)).await })
    }
}

fn paged(query: Query, window: Window) -> Query {
    let cursor = window.cursor.map(|cursor| cursor.0);
    query.with("limit", window.limit).maybe("cursor", cursor)
}

/// Takes over what the headers of an answer say.
fn stands(status: &mut ReadStatus, headers: &HeaderMap) {
    let number = |name: &str| headers.get(name)?.to_str().ok()?.parse::<u64>().ok();
    let (position, head) = (number(POSITION_HEADER), number(HEAD_HEADER));
    if let (Some(position), Some(head), Some(lag)) = (position, head, number(LAG_MS_HEADER)) {
        (status.position, status.head) = (Position(position), Position(head));
        (status.lag_events, status.lag_ms) = (head.saturating_sub(position), lag);
    }
}

async fn get<T: DeserializeOwned>(
    connections: &Connections,
    path: &str,
    query: &Query,
) -> Result<(T, HeaderMap), QueryError> {
    let path = format!("{path}?{}", query.encode());
    let (parts, bytes) = connections.get(&path).await?;
    if !parts.status.is_success() {
        return Err(problem::to_query(Problem::of_answer(
            parts.status.as_u16(),
            &bytes,
        )));
    }
    let answer = serde_json::from_slice(&bytes);
    let answer = answer.map_err(|error| broken("an answer is not understood", &error))?;
    Ok((answer, parts.headers))
}

fn broken(what: &'static str, error: &dyn fmt::Display) -> QueryError {
    tracing::warn!(%error, "{what}");
    QueryError::Unavailable {
        detail: format!("{what}: {error}"),
    }
}

impl ReadModel for RemoteReadModel {
    fn status(&self) -> ReadStatus {
        let status = self.shared.status.lock();
        status.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn wait_for(&self, position: Position, timeout: Duration) -> Answer<'_, ()> {
        Box::pin(self.wait(position, timeout))
    }

    fn apps(
        &self,
        scope: ReadScope,
        name: Option<String>,
        window: Window,
    ) -> Answer<'_, Listing<AppRow>> {
        let query = Query::default().maybe("name", name);
        self.list(APPS_PATH, scope, query, window)
    }

    fn app(&self, scope: ReadScope, app: AppId) -> Answer<'_, Option<AppDetail>> {
        Box::pin(async move {
            let path = format!("{APPS_PATH}/{app}");
            match self.ask(&path, scope, Query::default()).await {
                Ok(detail) => Ok(Some(detail)),
                Err(QueryError::Refused {
                    code: ErrorCode::UnknownApp,
                    ..
                }) => Ok(None),
                Err(error) => Err(error),
            }
        })
    }

    fn versions(
        &self,
        scope: ReadScope,
        app: AppId,
        window: Window,
    ) -> Answer<'_, Listing<VersionRow>> {
        Box::pin(async move {
            let path = format!("{APPS_PATH}/{app}/versions");
            self.ask(&path, scope, paged(Query::default(), window))
                .await
        })
    }

    fn deploys(
        &self,
        scope: ReadScope,
        app: Option<AppId>,
        window: Window,
    ) -> Answer<'_, Listing<DeployRow>> {
        let query = Query::default().maybe("app", app);
        self.list(DEPLOYS_PATH, scope, query, window)
    }

    fn builds(
        &self,
        scope: ReadScope,
        app: Option<AppId>,
        window: Window,
    ) -> Answer<'_, Listing<BuildRow>> {
        let query = Query::default().maybe("app", app);
        self.list(BUILDS_PATH, scope, query, window)
    }

    fn approvals(
        &self,
        scope: ReadScope,
        status: Option<ApprovalStatus>,
        window: Window,
    ) -> Answer<'_, Listing<ApprovalRow>> {
        let query = Query::default().maybe("status", status.map(|status| word(&status)));
        self.list(APPROVALS_PATH, scope, query, window)
    }

    fn peers(&self, scope: ReadScope, window: Window) -> Answer<'_, Listing<PeerRow>> {
        self.list(PEERS_PATH, scope, Query::default(), window)
    }

    fn leases(
        &self,
        scope: ReadScope,
        app: Option<AppId>,
        window: Window,
    ) -> Answer<'_, Listing<LeaseRow>> {
        let query = Query::default().maybe("app", app);
        self.list(LEASES_PATH, scope, query, window)
    }

    fn tokens(&self, scope: ReadScope, window: Window) -> Answer<'_, Listing<TokenRow>> {
        self.list(TOKENS_PATH, scope, Query::default(), window)
    }

    fn audit(
        &self,
        scope: ReadScope,
        filter: AuditFilter,
        window: Window,
    ) -> Answer<'_, Listing<AuditRow>> {
        let query = Query::default()
            .maybe("text", filter.text)
            .maybe("segment", filter.segment)
            .maybe("key", filter.key)
            .maybe("type", filter.kind)
            .maybe("actor", filter.actor)
            .maybe("after", filter.after)
            .maybe("before", filter.before);
        self.list(AUDIT_PATH, scope, query, window)
    }
}
