//! Why a request is refused, and the one mapping from there to codes (and so to statuses).

use std::time::Duration;

use object_store::path::Path;
use tabbify_api::artifact::ArtifactPath;
use tabbify_api::auth::AuthError;
use tabbify_api::log::{AppendError, ReadError};
use tabbify_api::logs::LogsError;
use tabbify_api::{ErrorCode, Problem};
use tabbify_manifest::ManifestErrors;
use tabbify_types::event::EventError;
use tabbify_types::{AppName, AppUla, RequestId, VersionNumber};

use crate::dial::DialError;

/// Why a request is refused. Displays are safe to show; sources go to the log alone.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    /// A field, query or body does not parse.
    #[error("{0}")]
    BadRequest(String),
    /// The path has something else than an app id.
    #[error("{0:?} is not an app id (a hyphenated UUID)")]
    BadUuid(String),
    /// A new app's id is not a UUID v7.
    #[error("{0} is not a UUID of version 7")]
    NotV7(String),
    /// See `framing.rs`.
    #[error("the head gives the body's length more than once, or in two ways")]
    BadFraming,
    /// No credential.
    #[error("this needs a token")]
    TokenMissing,
    /// A credential that does not hold.
    #[error("the credential is refused")]
    Credential(#[source] AuthError),
    /// A credential that does not reach.
    #[error("the token does not have the scope {0:?}")]
    Scope(&'static str),
    /// No such app for this caller.
    #[error("no app {0:?} is known here")]
    UnknownApp(String),
    /// No such thing.
    #[error("nothing is at {0:?}")]
    NotFound(String),
    /// Another method.
    #[error("this path takes {0}")]
    MethodNotAllowed(&'static str),
    /// The name is another app's.
    #[error("app {0:?} exists and has another id")]
    NameTaken(AppName),
    /// The address is another app's.
    #[error("{0} is or was the address of another app")]
    AddressTaken(AppUla),
    /// The id, or the manifest, is another app's.
    #[error("{0}")]
    AppMismatch(String),
    /// The version is not in a state for this.
    #[error("v{version} {what}")]
    VersionConflict {
        /// Which.
        version: VersionNumber,
        /// What state it is in.
        what: &'static str,
    },
    /// Others were faster, again and again.
    #[error("{0}")]
    Conflict(String),
    /// Over a limit.
    #[error("{what} is over {limit} bytes")]
    TooLarge {
        /// What is.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// A file is not what was announced.
    #[error("{path}: announced {announced}, {arrived} arrived")]
    DigestMismatch {
        /// Which file.
        path: ArtifactPath,
        /// Length or digest as announced.
        announced: String,
        /// Length or digest of what came, or that nothing did.
        arrived: String,
    },
    /// The lists of files at reserve and commit differ.
    #[error("the list of files is not the one that was announced")]
    OtherFiles,
    /// The manifest has mistakes; each with its line.
    #[error("{0}")]
    InvalidManifest(ManifestErrors),
    /// The manifest contradicts the upload.
    #[error("{0}")]
    ManifestContent(String),
    /// The manifest asks for what this version cannot do.
    #[error("{0}")]
    NotSupportedYet(String),
    /// The body did not arrive whole.
    #[error("the request's body broke off")]
    BodyBrokeOff(#[source] hyper::Error),
    /// The body did not go on.
    #[error("no more of the request's body came within {} s", .0.as_secs())]
    BodyStalled(Duration),
    /// The log did not take an event.
    #[error("the log refuses the event")]
    Append(#[source] AppendError),
    /// An event cannot be written as JSON within its limit.
    #[error("{0}")]
    Event(#[source] EventError),
    /// The object store failed.
    #[error("the object store failed at {path}")]
    Store {
        /// The key.
        path: Path,
        /// How.
        #[source]
        source: object_store::Error,
    },
    /// What the object store holds is not what was put there.
    #[error("the object at {0} is damaged")]
    Damaged(Path),
    /// The log cannot be read.
    #[error("the events cannot be read")]
    Log(#[source] ReadError),
    /// The vault says no, in words that are safe to show.
    #[error("{}", .0.detail)]
    Vault(Box<Problem>),
    /// An instance of an app says no, in words that are safe to show.
    #[error("{}", .0.detail)]
    Instance(Box<Problem>),
    /// The app has no such raw port.
    #[error("the app has no [[port]] with number {port}{}", ports_of(.ports))]
    NoPort {
        /// The port.
        port: u16,
        /// Those that it has.
        ports: Vec<u16>,
    },
    /// The app's output cannot be read.
    #[error("the app's output cannot be read")]
    Logs(#[source] LogsError),
    /// The view did not catch up in time.
    #[error("the view of the log lags behind")]
    ViewLags,
    /// The app's address leads nowhere.
    #[error("the app has no connection to give")]
    Dial(#[source] DialError),
    /// The connection to the app broke before its answer began.
    #[error("the connection to the app broke before it answered")]
    Upstream(#[source] hyper::Error),
    /// The app sent what is not an answer to this request.
    #[error("the app {0}")]
    UpstreamAnswer(&'static str),
    /// The app's answer did not begin in time.
    #[error("the app did not begin its answer within {} s", .0.as_secs())]
    FirstByte(Duration),
    /// The runner answered in the app's place.
    #[error("{detail}")]
    Runner {
        /// Why.
        code: ErrorCode,
        /// What it says about it.
        detail: String,
    },
}

impl Refusal {
    /// The code, and with it the status.
    pub(crate) fn code(&self) -> ErrorCode {
        match self {
            Self::BadRequest(_) | Self::NotV7(_) | Self::BodyBrokeOff(_) => ErrorCode::BadRequest,
            Self::BodyStalled(_) => ErrorCode::BadRequest,
            Self::BadUuid(_) => ErrorCode::BadUuid,
            Self::BadFraming => ErrorCode::BadFraming,
            Self::TokenMissing => ErrorCode::TokenMissing,
            Self::Credential(error) => credential(error),
            Self::Scope(_) => ErrorCode::Forbidden,
            Self::UnknownApp(_) => ErrorCode::UnknownApp,
            Self::NotFound(_) => ErrorCode::NotFound,
            Self::MethodNotAllowed(_) => ErrorCode::MethodNotAllowed,
            Self::NameTaken(_) => ErrorCode::NameTaken,
            Self::AddressTaken(_) => ErrorCode::AddressTaken,
            Self::AppMismatch(_) => ErrorCode::AppMismatch,
            Self::VersionConflict { .. } => ErrorCode::VersionConflict,
            Self::Conflict(_) => ErrorCode::Conflict,
            Self::TooLarge { .. } => ErrorCode::TooLarge,
            Self::DigestMismatch { .. } | Self::OtherFiles => ErrorCode::DigestMismatch,
            Self::InvalidManifest(_) | Self::ManifestContent(_) => ErrorCode::InvalidManifest,
            Self::NotSupportedYet(_) => ErrorCode::NotSupportedYet,
            Self::Append(error) => append(error),
            Self::Event(error) => event(error),
            Self::Store { .. } | Self::Damaged(_) | Self::Logs(_) => ErrorCode::Internal,
            Self::Vault(problem) | Self::Instance(problem) => problem.code,
            Self::NoPort { .. } => ErrorCode::NotFound,
            Self::Log(error) => read(error),
            Self::ViewLags => ErrorCode::Unavailable,
            Self::Dial(error) => dial(error),
            Self::Upstream(_) | Self::UpstreamAnswer(_) => ErrorCode::AppUnreachable,
            Self::FirstByte(_) => ErrorCode::AppTimeout,
            Self::Runner { code, .. } => *code,
        }
    }

    /// What the caller can do about it.
    fn fix(&self) -> Option<String> {
        let fix = match self {
            Self::TokenMissing => "Run: tcli open (a browser), or send a bearer token",
            Self::Credential(AuthError::Expired(_)) => {
                "Sign in again; tcli does so by itself, programs with: tcli token"
            }
            Self::Credential(AuthError::Replayed) => "Run: tcli open, for a new link",
            Self::NameTaken(name) => {
                return Some(format!("Yours? tcli push --app {name}. New? Rename it"));
            }
            Self::AddressTaken(_) => "Mint a new id",
            Self::AppMismatch(_) => "Use the tabbify.lock of this app, or remove it for a new app",
            Self::VersionConflict { .. } | Self::OtherFiles => "Push again",
            Self::DigestMismatch { .. } => "Upload the file again",
            Self::Dial(DialError::NoLease(_)) => "Run: tcli status",
            Self::Runner { .. } => "Run: tcli logs",
            Self::Vault(problem) | Self::Instance(problem) => return problem.fix.clone(),
            _ => return None,
        };
        Some(fix.to_owned())
    }

    /// Seconds after which it may be worth to try again.
    pub(crate) fn retry_after(&self) -> Option<u32> {
        match self.code() {
            ErrorCode::RateLimited => Some(60),
            ErrorCode::Unavailable => Some(1),
            _ => None,
        }
    }

    /// What the caller reads.
    pub(crate) fn problem(&self, request: RequestId) -> Problem {
        let detail = match self {
            // These say no more than what the caller did; the rest of their kind names our insides.
            Self::Credential(error) => match error {
                AuthError::Expired(_) | AuthError::Replayed | AuthError::RateLimited => {
                    error.to_string()
                }
                AuthError::Invalid(_) | AuthError::Unavailable(_) => self.to_string(),
            },
            _ => self.to_string(),
        };
        let mut problem = Problem::new(self.code(), detail);
        problem.fix = self.fix();
        problem.request = Some(request);
        problem
    }
}

fn ports_of(ports: &[u16]) -> String {
    let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
    match ports.is_empty() {
        true => ", and none at all".to_owned(),
        false => format!("; it has {}", ports.join(", ")),
    }
}

const fn credential(error: &AuthError) -> ErrorCode {
    match error {
        AuthError::Invalid(_) | AuthError::Replayed => ErrorCode::TokenInvalid,
        AuthError::Expired(_) => ErrorCode::TokenExpired,
        AuthError::RateLimited => ErrorCode::RateLimited,
        AuthError::Unavailable(_) => ErrorCode::Unavailable,
    }
}

const fn append(error: &AppendError) -> ErrorCode {
    match error {
        AppendError::Conflict { .. } | AppendError::IdConflict { .. } => ErrorCode::Conflict,
        AppendError::EventTooLarge { .. } | AppendError::BatchTooLarge { .. } => {
            ErrorCode::TooLarge
        }
        AppendError::Rate { .. } => ErrorCode::AppendRate,
        // What the node appends is the node's to get right.
        AppendError::Invalid { .. }
        | AppendError::ExpectAhead { .. }
        | AppendError::UnknownSegment { .. }
        | AppendError::UnknownVersion { .. }
        | AppendError::Refused { .. }
        | AppendError::Forbidden { .. } => ErrorCode::Internal,
        AppendError::Stopping | AppendError::NoSpace { .. } => ErrorCode::Unavailable,
    }
}

const fn read(error: &ReadError) -> ErrorCode {
    match error {
        ReadError::BeyondHead { .. } | ReadError::Forbidden { .. } => ErrorCode::BadRequest,
        ReadError::Damaged { .. } | ReadError::Refused { .. } => ErrorCode::Internal,
        ReadError::Stored { .. } | ReadError::Stopping => ErrorCode::Unavailable,
    }
}

const fn event(error: &EventError) -> ErrorCode {
    match error {
        // The only data of free size in our events is the manifest's: too much of it.
        EventError::Data { .. } => ErrorCode::TooLarge,
        EventError::Version { .. } => ErrorCode::Internal,
    }
}

const fn dial(error: &DialError) -> ErrorCode {
    match error {
        DialError::NoLease(_) => ErrorCode::NoLease,
        DialError::Unreachable { .. } | DialError::Refused(_) => ErrorCode::AppUnreachable,
        DialError::TimedOut(_) => ErrorCode::AppTimeout,
        DialError::Busy(_) => ErrorCode::Unavailable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_show_what_the_caller_did_and_hide_our_insides() {
        let request = RequestId::mint();
        let check = |error: Refusal, status: u16, code: &str, shown: &str, hidden: &str| {
            let problem = error.problem(request);
            assert_eq!((problem.status, problem.code.as_str()), (status, code));
            assert_eq!(problem.request, Some(request));
            let json = serde_json::to_string(&problem).unwrap();
            assert!(json.contains(shown), "{json}");
            assert!(hidden.is_empty() || !json.contains(hidden), "{json}");
        };
        check(
            Refusal::BadUuid("nope".to_owned()),
            400,
            "bad_uuid",
            "nope",
            "",
        );
        let invalid = AuthError::Invalid("kid 12 is unknown".to_owned());
        check(
            Refusal::Credential(invalid),
            401,
            "token_invalid",
            "refused",
            "kid",
        );
        check(Refusal::Scope("deploy"), 403, "forbidden", "deploy", "");
        let source = object_store::Error::NotImplemented {
            operation: "secret".to_owned(),
            implementer: "x".to_owned(),
        };
        let path = Path::from("apps/1/latest");
        check(
            Refusal::Store { path, source },
            500,
            "internal",
            "apps/1",
            "secret",
        );
        let runner = Refusal::Runner {
            code: ErrorCode::AppCpu,
            detail: "it loops".to_owned(),
        };
        check(runner, 504, "app_cpu", "it loops", "");
        let name = "shop".parse().unwrap();
        check(
            Refusal::NameTaken(name),
            409,
            "name_taken",
            "--app shop",
            "",
        );
    }
}
