//! One request: who asks, what for, from which position on, what is the answer. Errors become problem
//! documents here, once.

use std::str::FromStr;
use std::time::Duration;

use http::{HeaderMap, Method, Request};
use hyper::body::Incoming;
use serde::Serialize;
use tabbify_api::read::{
    APPROVALS_PATH, APPS_PATH, AUDIT_PATH, ApprovalStatus, AuditFilter, BUILDS_PATH, Cursor,
    DEPLOYS_PATH, LEASES_PATH, LIMIT_DEFAULT, Listing, PEERS_PATH, QueryError, ReadScope, Reader,
    STATUS_PATH, TOKENS_PATH, WAIT_MS_DEFAULT, WAIT_MS_MAX, Window,
};
use tabbify_api::{ErrorCode, Problem};
use tabbify_types::{AppId, Position, RequestId};

use super::Shared;
use super::answer::{self, Answer};
use crate::wire::problem;
use crate::wire::query::Query;

type Refusable<T> = Result<T, Box<Problem>>;

/// Parameters of every question.
const COMMON: &[&str] = &["scope", "min_position", "wait_ms"];
/// Parameters of every list, besides.
const LIST: &[&str] = &["limit", "cursor"];

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Question {
    Status,
    Apps,
    App(AppId),
    Versions(AppId),
    Deploys,
    Builds,
    Approvals,
    Peers,
    Leases,
    Tokens,
    Audit,
}

/// A request that may be answered.
struct Asked {
    question: Question,
    scope: ReadScope,
    window: Window,
    query: Query,
    /// What the answer must have folded.
    least: Option<Position>,
}

pub(super) async fn handle(shared: &Shared, request: &Request<Incoming>) -> Answer {
    let id = RequestId::mint();
    let asked = prepare(shared, request).await;
    // Before the answer: its rows are of this position or later.
    let status = shared.model.status();
    let answered = match asked {
        Ok(asked) => reply(shared, asked).await,
        Err(problem) => Err(problem),
    };
    let mut answer = answered.unwrap_or_else(|mut problem| {
        problem.request = Some(id);
        let (method, path) = (request.method(), request.uri().path());
        let (code, detail) = (problem.code.as_str(), &problem.detail);
        if problem.status >= 500 {
            tracing::warn!(request = %id, %method, path, code, detail, "request failed");
        } else {
            tracing::debug!(request = %id, %method, path, code, "request refused");
        }
        answer::refusal(&problem)
    });
    answer::stand(&mut answer, &status);
    answer
}

async fn prepare(shared: &Shared, request: &Request<Incoming>) -> Refusable<Asked> {
    let reader = authorize(shared, request.headers())?;
    let question = Question::at(request.uri().path())?;
    if request.method() != Method::GET {
        let detail = format!("{} takes GET", request.uri().path());
        return Err(problem::plain(ErrorCode::MethodNotAllowed, &detail));
    }
    let text = request.uri().query().unwrap_or_default();
    let query = Query::decode(text, &question.parameters()).map_err(malformed)?;
    let scope = scope(&reader, &query)?;
    let window = Window {
        limit: parsed(&query, "limit")?.unwrap_or(LIMIT_DEFAULT),
        cursor: query.get("cursor").map(|cursor| Cursor(cursor.to_owned())),
    };
    let least = parsed(&query, "min_position")?;
    let wait = parsed(&query, "wait_ms")?.unwrap_or(WAIT_MS_DEFAULT);
    if let Some(position) = least {
        let wait = Duration::from_millis(wait.min(WAIT_MS_MAX));
        let waiting = shared.model.wait_for(position, wait);
        // Whoever waits must not keep the process from ending.
        let waited = tokio::select! {
            waited = waiting => waited,
            () = shared.closing.cancelled() => Err(QueryError::Unavailable {
                detail: "the read node is stopping".to_owned(),
            }),
        };
        waited.map_err(|error| problem::of_query(&error))?;
    }
    Ok(Asked {
        question,
        scope,
        window,
        query,
        least,
    })
}

/// Who the bearer is. Nothing else says who asks.
fn authorize(shared: &Shared, headers: &HeaderMap) -> Refusable<Reader> {
    let presented = tabbify_http::presented(headers)
        .map_err(|twice| problem::plain(ErrorCode::BadRequest, &twice.to_string()))?;
    let token = presented
        .ok_or_else(|| problem::plain(ErrorCode::TokenMissing, "no bearer token came along"))?;
    shared.authorize.authorize(token).map_err(|error| {
        tracing::debug!(%error, "a token is refused");
        problem::of_auth(&error)
    })
}

/// What the reader sees, or the part of it that the question names.
fn scope(reader: &Reader, query: &Query) -> Refusable<ReadScope> {
    let forbidden = |what: &str| {
        let detail = format!("{} may not read {what}", reader.actor);
        problem::plain(ErrorCode::Forbidden, &detail)
    };
    let own = reader.scope.as_ref();
    let own = own.ok_or_else(|| forbidden("the read model"))?;
    match parsed::<ReadScope>(query, "scope")? {
        None => Ok(own.clone()),
        Some(wanted) => {
            let shown = wanted.to_string();
            own.narrowed(wanted).ok_or_else(|| forbidden(&shown))
        }
    }
}

impl Question {
    fn at(path: &str) -> Refusable<Self> {
        let below = path.strip_prefix(APPS_PATH);
        if let Some(below) = below.and_then(|below| below.strip_prefix('/')) {
            let (app, rest) = below.split_once('/').unwrap_or((below, ""));
            let app: AppId = app.parse().map_err(|error| {
                let detail = format!("{error}");
                problem::plain(ErrorCode::BadUuid, &detail)
            })?;
            return match rest {
                "" if !below.ends_with('/') => Ok(Self::App(app)),
                "versions" => Ok(Self::Versions(app)),
                _ => Err(nothing_at(path)),
            };
        }
        Ok(match path {
            STATUS_PATH => Self::Status,
            APPS_PATH => Self::Apps,
            DEPLOYS_PATH => Self::Deploys,
            BUILDS_PATH => Self::Builds,
            APPROVALS_PATH => Self::Approvals,
            PEERS_PATH => Self::Peers,
            LEASES_PATH => Self::Leases,
            TOKENS_PATH => Self::Tokens,
            AUDIT_PATH => Self::Audit,
            _ => return Err(nothing_at(path)),
        })
    }

    /// The names that its query may have.
    fn parameters(self) -> Vec<&'static str> {
        let (list, own): (&[&str], &[&str]) = match self {
            Self::Status | Self::App(_) => (&[], &[]),
            Self::Apps => (LIST, &["name"]),
            Self::Versions(_) | Self::Peers | Self::Tokens => (LIST, &[]),
            Self::Deploys | Self::Builds | Self::Leases => (LIST, &["app"]),
            Self::Approvals => (LIST, &["status"]),
            Self::Audit => (
                LIST,
                &["text", "segment", "key", "type", "actor", "after", "before"],
            ),
        };
        [COMMON, list, own].concat()
    }
}

async fn reply(shared: &Shared, asked: Asked) -> Refusable<Answer> {
    let Asked {
        question,
        scope,
        window,
        query,
        least,
    } = asked;
    let (model, text) = (&shared.model, |name: &str| {
        query.get(name).map(str::to_owned)
    });
    match question {
        Question::Status => answer::json(&model.status(), &shared.answers),
        Question::Apps => list(shared, least, model.apps(scope, text("name"), window).await),
        Question::App(app) => {
            let found = model.app(scope, app).await;
            let found = found.map_err(|error| problem::of_query(&error))?;
            let unknown = || problem::plain(ErrorCode::UnknownApp, &app.to_string());
            let detail = found.ok_or_else(unknown)?;
            has_folded(least, detail.position)?;
            answer::json(&detail, &shared.answers)
        }
        Question::Versions(app) => list(shared, least, model.versions(scope, app, window).await),
        Question::Deploys => {
            let app = parsed(&query, "app")?;
            list(shared, least, model.deploys(scope, app, window).await)
        }
        Question::Builds => {
            let app = parsed(&query, "app")?;
            list(shared, least, model.builds(scope, app, window).await)
        }
        Question::Approvals => {
            let status = query.get("status").map(approval_status).transpose()?;
            list(shared, least, model.approvals(scope, status, window).await)
        }
        Question::Peers => list(shared, least, model.peers(scope, window).await),
        Question::Leases => {
            let app = parsed(&query, "app")?;
            list(shared, least, model.leases(scope, app, window).await)
        }
        Question::Tokens => list(shared, least, model.tokens(scope, window).await),
        Question::Audit => {
            let filter = AuditFilter {
                text: text("text"),
                segment: parsed(&query, "segment")?,
                key: text("key"),
                kind: text("type"),
                actor: text("actor"),
                after: parsed(&query, "after")?,
                before: parsed(&query, "before")?,
            };
            list(shared, least, model.audit(scope, filter, window).await)
        }
    }
}

fn list<T: Serialize>(
    shared: &Shared,
    least: Option<Position>,
    listing: Result<Listing<T>, QueryError>,
) -> Refusable<Answer> {
    let listing = listing.map_err(|error| problem::of_query(&error))?;
    has_folded(least, listing.position)?;
    answer::json(&listing, &shared.answers)
}

/// The model is far enough, or nobody would be here: if this part of it is not, it has stopped.
fn has_folded(least: Option<Position>, position: Position) -> Refusable<()> {
    match least {
        Some(wanted) if wanted > position => {
            let error = QueryError::Stopped { wanted, position };
            Err(problem::of_query(&error))
        }
        _ => Ok(()),
    }
}

fn nothing_at(path: &str) -> Box<Problem> {
    let path: String = path.chars().take(80).collect();
    problem::plain(ErrorCode::NotFound, &path)
}

fn approval_status(word: &str) -> Refusable<ApprovalStatus> {
    let unknown = || {
        let word: String = word.chars().take(80).collect();
        malformed(format!("status={word:?} is not one of an approval"))
    };
    serde_json::from_value(word.into()).map_err(|_| unknown())
}

fn parsed<T: FromStr>(query: &Query, name: &str) -> Refusable<Option<T>>
where
    T::Err: std::fmt::Display,
{
    query.parsed(name).map_err(malformed)
}

fn malformed(detail: String) -> Box<Problem> {
    problem::plain(ErrorCode::BadRequest, &detail)
}
