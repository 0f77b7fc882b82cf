//! The read model: what the log says, folded into tables and searchable, as read-node offers it.
//!
//! **Law.** Every row follows from the log alone: a model rebuilt from position 0 holds the same rows.
//! An answer says up to where its rows are folded ([`Listing::position`]); a caller that must see its
//! own write waits for that position first ([`ReadModel::wait_for`]).
//!
//! Every question carries a [`ReadScope`]. A tenant's scope shows rows of that tenant alone; what
//! belongs to the platform (machines, the events of `platform.*`) is shown to [`ReadScope::Platform`].
//!
//! Pages follow a key that never changes, so that walking them while events arrive shows each row that
//! was there at the start exactly once.

mod rows;

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tabbify_types::{AppId, ParseError, Position, SegmentGlob, Tenant};

pub use rows::{
    AppDetail, AppRow, ApprovalRow, ApprovalStatus, AuditRow, BuildRow, BuildStatus, DeployRow,
    InstanceRow, InstanceState, LeaseRow, PeerRow, StepRow, SupervisorRow, SupervisorState,
    TokenRow, VersionRow,
};

use crate::auth::AuthError;
use crate::{BoxFuture, ErrorCode};

/// `GET` the [`ReadStatus`].
///
/// Every path below takes `GET` and these parameters: `min_position`, a position that the answer must
/// have folded; `wait_ms`, how long to wait for it, [`WAIT_MS_DEFAULT`] unless told and at most
/// [`WAIT_MS_MAX`]; `scope`, which narrows what the token shows: `platform`, or `tenant:<slug>`. Lists
/// take `limit` (1 to [`ROWS_MAX`], [`LIMIT_DEFAULT`] unless told) and `cursor`, and answer with a
/// [`Listing`]. Every answer, refusals included, has [`POSITION_HEADER`] and its neighbors.
pub const STATUS_PATH: &str = "/v1/read/status";
/// `GET` apps. Query: `name`, a part of it. Below it: `/<app>` is one [`AppDetail`], and
/// `/<app>/versions` are its versions.
pub const APPS_PATH: &str = "/v1/read/apps";
/// `GET` deploys. Query: `app`.
pub const DEPLOYS_PATH: &str = "/v1/read/deploys";
/// `GET` builds. Query: `app`.
pub const BUILDS_PATH: &str = "/v1/read/builds";
/// `GET` approvals. Query: `status`.
pub const APPROVALS_PATH: &str = "/v1/read/approvals";
/// `GET` machines.
pub const PEERS_PATH: &str = "/v1/read/peers";
/// `GET` leases. Query: `app`.
pub const LEASES_PATH: &str = "/v1/read/leases";
/// `GET` tokens.
pub const TOKENS_PATH: &str = "/v1/read/tokens";
/// `GET` events on record. Query: the fields of [`AuditFilter`].
pub const AUDIT_PATH: &str = "/v1/read/audit";

/// Header of every answer: [`ReadStatus::position`] as the answer was begun.
pub const POSITION_HEADER: &str = "x-tabbify-position";
/// Header of every answer: [`ReadStatus::head`].
pub const HEAD_HEADER: &str = "x-tabbify-head";
/// Header of every answer: [`ReadStatus::lag_ms`].
pub const LAG_MS_HEADER: &str = "x-tabbify-lag-ms";

/// LIMIT: rows of one page.
pub const ROWS_MAX: usize = 500;
/// LIMIT: a search text, in bytes.
pub const TEXT_LEN_MAX: usize = 256;
/// LIMIT: words of a search text.
pub const WORDS_MAX: usize = 16;
/// LIMIT: a cursor, in bytes.
pub const CURSOR_LEN_MAX: usize = 512;
/// LIMIT: bytes of the rows of one page, as they are stored. A page that would have more is shorter, but
/// has at least one row.
pub const PAGE_LEN_MAX: usize = 2 * 1024 * 1024;
/// LIMIT: how long one request waits for a position, in milliseconds; a longer wait is cut to this.
pub const WAIT_MS_MAX: u64 = 30_000;
/// How long a request with a position waits for it, in milliseconds.
pub const WAIT_MS_DEFAULT: u64 = 2_000;
/// Rows of a page for whoever names no limit.
pub const LIMIT_DEFAULT: usize = 100;
/// LIMIT: steps kept of one deploy.
pub const STEPS_MAX: usize = 64;

/// Whose rows a caller sees. Whoever asks decides it from the caller's token, never from the request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReadScope {
    /// Everything: for callers that may read every segment of the log.
    Platform,
    /// The rows of one tenant.
    Tenant(Tenant),
}

impl ReadScope {
    /// This scope narrowed to `wanted`, unless that shows more.
    #[must_use]
    pub fn narrowed(&self, wanted: Self) -> Option<Self> {
        (*self == Self::Platform || *self == wanted).then_some(wanted)
    }
}

impl fmt::Display for ReadScope {
    /// As the parameter `scope` has it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Platform => f.write_str("platform"),
            Self::Tenant(tenant) => write!(f, "tenant:{tenant}"),
        }
    }
}

impl FromStr for ReadScope {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        if text == "platform" {
            return Ok(Self::Platform);
        }
        let tenant = text.strip_prefix("tenant:").map(str::parse);
        let wrong = || ParseError {
            expected: "a scope (platform, or tenant:<slug>)",
            text: text.chars().take(80).collect(),
        };
        tenant.ok_or_else(wrong)?.map(Self::Tenant)
    }
}

/// Who asks, as its token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reader {
    /// The token's subject.
    pub actor: String,
    /// What it sees; nothing at all, if the token is for something else.
    pub scope: Option<ReadScope>,
}

/// Says what the bearer of a token may see. Offline: called once a request.
pub trait Authorize: Send + Sync + fmt::Debug {
    /// Who the bearer is.
    ///
    /// # Errors
    /// [`AuthError`], if the token is not valid.
    fn authorize(&self, token: &str) -> Result<Reader, AuthError>;
}

/// Where a page begins: the `next` of the page before. Its content is the model's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Cursor(pub String);

/// Which page to answer with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// Rows, from 1 to [`ROWS_MAX`].
    pub limit: usize,
    /// After this; the first page if there is none.
    #[serde(default)]
    pub cursor: Option<Cursor>,
}

impl Window {
    /// The first page, of `limit` rows.
    #[must_use]
    pub const fn first(limit: usize) -> Self {
        Self {
            limit,
            cursor: None,
        }
    }
}

/// A page of rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing<T> {
    /// The rows. A page may be short, even empty, and still have a `next`.
    pub rows: Vec<T>,
    /// The page after this one, if there may be more.
    pub next: Option<Cursor>,
    /// Every event up to here is in these rows. For a projection that has stopped, this stands still.
    pub position: Position,
}

/// Why a question has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// Something in the question breaks a limit or is not of this model.
    #[error("{what} is refused: {detail}")]
    Invalid {
        /// Which part of the question.
        what: &'static str,
        /// Why, with the limit.
        detail: String,
    },
    /// It would take longer than a question may.
    #[error("the question took longer than {limit_ms} ms; narrow it")]
    TooSlow {
        /// The limit.
        limit_ms: u64,
    },
    /// The model has not come as far as the caller waits for.
    #[error("the read model is at position {position}, not yet at {wanted}")]
    Behind {
        /// What was asked for.
        wanted: Position,
        /// How far it is.
        position: Position,
    },
    /// The projection that would answer has stopped before the position that the caller must see.
    #[error("the projection has stopped at position {position}, before {wanted}")]
    Stopped {
        /// What was asked for.
        wanted: Position,
        /// How far it is.
        position: Position,
    },
    /// The store cannot be read now, or its service cannot be reached.
    #[error("the read model cannot be read: {detail}")]
    Unavailable {
        /// What it said.
        detail: String,
    },
    /// The service refuses the request as such, such as for its token. The same request would be
    /// refused again.
    #[error("the read model's service refuses: {}: {detail}", code.as_str())]
    Refused {
        /// Why, for programs.
        code: ErrorCode,
        /// Why, for people.
        detail: String,
    },
}

/// What exactly the read model refuses: carried by a [`Problem`](crate::Problem), so that a client over
/// the network has the error that it would have in process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReadProblem {
    /// [`QueryError::Invalid`].
    Invalid {
        /// Which part of the question.
        what: String,
        /// Why, with the limit.
        why: String,
    },
    /// [`QueryError::TooSlow`].
    TooSlow {
        /// The limit.
        limit_ms: u64,
    },
    /// [`QueryError::Behind`] and [`QueryError::Stopped`].
    Behind {
        /// What was asked for.
        wanted: Position,
        /// How far it is.
        position: Position,
    },
}

/// How far the read model is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadStatus {
    /// Every event up to here is folded, but for projections that have stopped.
    pub position: Position,
    /// The last durable position of the log.
    pub head: Position,
    /// Events between the two.
    pub lag_events: u64,
    /// How old the content may be, at most, in milliseconds; 0 when everything is folded.
    pub lag_ms: u64,
    /// Each projection.
    pub projections: Vec<ProjectionStatus>,
    /// How far a rebuild beside the content that is served has come, while there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rebuilding: Option<Position>,
    /// Why nothing is folded at the moment, if nothing is. What was folded is still served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped: Option<String>,
}

/// One projection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProjectionStatus {
    /// Its name.
    pub name: String,
    /// Every event up to here is in it.
    pub position: Position,
    /// Why it does not go on, if it does not: an event that this program does not understand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped: Option<String>,
}

/// Which events on record; everything that is given must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditFilter {
    /// Words that must all occur in type, key, actor or data; a word that ends in `*` stands for every
    /// word that begins so. At most [`TEXT_LEN_MAX`] bytes and [`WORDS_MAX`] words.
    #[serde(default)]
    pub text: Option<String>,
    /// In these segments.
    #[serde(default)]
    pub segment: Option<SegmentGlob>,
    /// About exactly this.
    #[serde(default)]
    pub key: Option<String>,
    /// Of exactly this type.
    #[serde(default, rename = "type")]
    pub kind: Option<String>,
    /// Written by exactly this actor.
    #[serde(default)]
    pub actor: Option<String>,
    /// After this position.
    #[serde(default)]
    pub after: Option<Position>,
    /// Before this position.
    #[serde(default)]
    pub before: Option<Position>,
}

/// An answer that comes later.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, QueryError>>;

/// What can be asked of the read model. Each question takes at most a few seconds, or is
/// [`QueryError::TooSlow`].
pub trait ReadModel: Send + Sync + fmt::Debug {
    /// How far it is; over a network, as far as this client has been told.
    fn status(&self) -> ReadStatus;

    /// Waits until every event up to `position` is folded, at most for `timeout`.
    fn wait_for(&self, position: Position, timeout: Duration) -> Answer<'_, ()>;

    /// Apps that were not destroyed, by tenant and name; only those whose name contains `name`, if it
    /// is given.
    fn apps(
        &self,
        scope: ReadScope,
        name: Option<String>,
        window: Window,
    ) -> Answer<'_, Listing<AppRow>>;

    /// An app, unless there is none in the scope.
    fn app(&self, scope: ReadScope, app: AppId) -> Answer<'_, Option<AppDetail>>;

    /// Published versions of an app, newest first.
    fn versions(
        &self,
        scope: ReadScope,
        app: AppId,
        window: Window,
    ) -> Answer<'_, Listing<VersionRow>>;

    /// Deploys, of one app or of all, newest first.
    fn deploys(
        &self,
        scope: ReadScope,
        app: Option<AppId>,
        window: Window,
    ) -> Answer<'_, Listing<DeployRow>>;

    /// Builds, of one app or of all, newest first.
    fn builds(
        &self,
        scope: ReadScope,
        app: Option<AppId>,
        window: Window,
    ) -> Answer<'_, Listing<BuildRow>>;

    /// Approvals, of one standing or of all, newest first.
    fn approvals(
        &self,
        scope: ReadScope,
        status: Option<ApprovalStatus>,
        window: Window,
    ) -> Answer<'_, Listing<ApprovalRow>>;

    /// Machines by name. They belong to the platform: a tenant sees none.
    fn peers(&self, scope: ReadScope, window: Window) -> Answer<'_, Listing<PeerRow>>;

    /// Leases by app and instance, of one app or of all.
    fn leases(
        &self,
        scope: ReadScope,
        app: Option<AppId>,
        window: Window,
    ) -> Answer<'_, Listing<LeaseRow>>;

    /// Tokens, newest first. A tenant sees those of its people.
    fn tokens(&self, scope: ReadScope, window: Window) -> Answer<'_, Listing<TokenRow>>;

    /// Events on record, newest first.
    fn audit(
        &self,
        scope: ReadScope,
        filter: AuditFilter,
        window: Window,
    ) -> Answer<'_, Listing<AuditRow>>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_round_trip_and_never_widen() {
        let tenant = |slug: &str| ReadScope::Tenant(slug.parse().unwrap());
        for scope in [ReadScope::Platform, tenant("main"), tenant("platform")] {
            assert_eq!(scope.to_string().parse::<ReadScope>().unwrap(), scope);
            assert_eq!(ReadScope::Platform.narrowed(scope.clone()), Some(scope));
        }
        for bad in ["", "tenant", "tenant:", "tenant:A", "main", "Platform", "*"] {
            assert!(bad.parse::<ReadScope>().is_err(), "{bad}");
        }
        assert_eq!(
            tenant("main").narrowed(tenant("main")),
            Some(tenant("main"))
        );
        assert_eq!(tenant("main").narrowed(tenant("other")), None);
        assert_eq!(tenant("main").narrowed(ReadScope::Platform), None);
    }
}
