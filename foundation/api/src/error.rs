//! What every refusal looks like: a problem document (RFC 9457) with a stable code.

use serde::{Deserialize, Serialize};
use tabbify_types::RequestId;

use crate::log::LogProblem;
use crate::read::ReadProblem;

/// Media type of a [`Problem`].
pub const PROBLEM_MEDIA_TYPE: &str = "application/problem+json";

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $status:literal, $title:literal;)*) => {
        /// Why a request was refused, for programs. Codes never change their meaning.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum ErrorCode {
            $($(#[$doc])* #[serde(rename = $code)] $name,)*
        }

        impl ErrorCode {
            /// Every code.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The code as text.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $code,)* }
            }

            /// The HTTP status that it comes with.
            #[must_use]
            pub const fn status(self) -> u16 {
                match self { $(Self::$name => $status,)* }
            }

            /// What it means, in a few words, for people.
            #[must_use]
            pub const fn title(self) -> &'static str {
                match self { $(Self::$name => $title,)* }
            }

            /// The code that has this text.
            #[must_use]
            pub fn from_code(code: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|known| known.as_str() == code)
            }
        }
    };
}

codes! {
    /// The request is malformed.
    BadRequest = "bad_request", 400, "The request is malformed";
    /// The body is not JSON.
    BadJson = "bad_json", 400, "Not JSON";
    /// An event names a glob where it must name one segment.
    GlobInAppend = "glob_in_append", 400, "One segment, not a glob";
    /// The id in the path is not a UUID.
    BadUuid = "bad_uuid", 400, "Not an app id";
    /// The message's framing can be read in two ways.
    BadFraming = "bad_framing", 400, "The request's framing is ambiguous";
    /// No token came with the request.
    TokenMissing = "token_missing", 401, "Not signed in";
    /// The token is not one of ours, in form or signature.
    TokenInvalid = "token_invalid", 401, "The token is not valid";
    /// The token was one of ours and has ended.
    TokenExpired = "token_expired", 401, "The token has expired";
    /// The token is valid and does not allow this.
    Forbidden = "forbidden", 403, "Not allowed";
    /// No app has this id or host.
    UnknownApp = "unknown_app", 404, "No such app";
    /// Nothing is at this path.
    NotFound = "not_found", 404, "Nothing here";
    /// No consumer of the log has this name.
    UnknownConsumer = "unknown_consumer", 404, "No such consumer";
    /// No parked event is at this position.
    NotParked = "not_parked", 404, "Not parked";
    /// The tenant has no secret of this name.
    SecretMissing = "secret_missing", 404, "No such secret";
    /// The path does not take this method.
    MethodNotAllowed = "method_not_allowed", 405, "Not this method";
    /// The name belongs to another app of the tenant.
    NameTaken = "name_taken", 409, "The name is taken";
    /// The app's address belongs to another app: mint a new id.
    AddressTaken = "address_taken", 409, "The address is taken";
    /// The id belongs to another app or tenant.
    AppMismatch = "app_mismatch", 409, "This is another app";
    /// The version is not in a state that allows this.
    VersionConflict = "version_conflict", 409, "The version does not allow this";
    /// Something else changed at the same time.
    Conflict = "conflict", 409, "Changed at the same time";
    /// The event id is in the log with other content or in another batch.
    IdConflict = "id_conflict", 409, "The event id is taken";
    /// A newer instance holds the slot: this one's lease is not renewed.
    LeaseFenced = "lease_fenced", 409, "A newer instance has taken over";
    /// A batch expects a revision that its key has not reached.
    ExpectAhead = "expect_ahead", 409, "Not that far yet";
    /// The consumer's name belongs to another consumer.
    ConsumerExists = "consumer_exists", 409, "The consumer is another";
    /// There are as many consumers or members as there may be.
    ConsumerLimit = "consumer_limit", 409, "As many as there may be";
    /// The tenant has as many secrets as it may.
    SecretLimit = "secret_limit", 409, "As many secrets as there may be";
    /// The member does not hold the event.
    NotDelivered = "not_delivered", 409, "Not with this member";
    /// The read model has not folded the position that the caller must see.
    Behind = "behind", 409, "Not that far yet";
    /// Too many events of the consumer are parked: somebody must look at them.
    ParkedFull = "parked_full", 409, "Too many events are parked";
    /// A body or a field is over its limit.
    TooLarge = "too_large", 413, "Too large";
    /// An event has more data than one may have.
    EventTooLarge = "event_too_large", 413, "The event is too large";
    /// A batch has more events or bytes than one may have.
    BatchTooLarge = "batch_too_large", 413, "The batch is too large";
    /// The position is beyond the head of the log.
    BeyondHead = "beyond_head", 416, "Beyond the head of the log";
    /// The batch breaks a limit of the log or an event in it is malformed.
    InvalidBatch = "invalid_batch", 422, "The batch is refused";
    /// No such segment: neither one of the catalog nor, with an app's own types, one of a tenant.
    UnknownSegment = "unknown_segment", 422, "No such segment";
    /// The type is known, and this version of it is not.
    UnknownVersion = "unknown_version", 422, "No such version of the type";
    /// What arrived is not what was announced.
    DigestMismatch = "digest_mismatch", 422, "Not what was announced";
    /// The manifest has mistakes.
    InvalidManifest = "invalid_manifest", 422, "The manifest has mistakes";
    /// The manifest asks for what is not built yet.
    NotSupportedYet = "not_supported_yet", 422, "Not supported yet";
    /// The question takes longer than one may.
    TooSlow = "too_slow", 422, "The question is too wide";
    /// Too many requests.
    RateLimited = "rate_limited", 429, "Too many requests";
    /// The tenant appends more events or bytes than it may.
    AppendRate = "append_rate", 429, "The tenant appends too fast";
    /// The request's head is over its limit (RFC 6585).
    HeadTooLarge = "head_too_large", 431, "Too many headers";
    /// Something of ours failed.
    Internal = "internal", 500, "Something of ours failed";
    /// The log's stored bytes are not what was written.
    LogDamaged = "log_damaged", 500, "The log is damaged";
    /// No instance of the app holds a lease.
    NoLease = "no_lease", 502, "The app is not running";
    /// The app's instance does not answer.
    AppUnreachable = "app_unreachable", 502, "The app cannot be reached";
    /// The app failed while it answered.
    AppTrapped = "app_trapped", 502, "The app failed";
    /// The app wanted more memory than it may have.
    AppMemory = "app_memory", 502, "The app is out of memory";
    /// The app ended without an answer.
    AppNoResponse = "app_no_response", 502, "The app did not answer";
    /// The platform is starting or stopping.
    Unavailable = "unavailable", 503, "Try again";
    /// A part of the log is in an object store and cannot be read from there now.
    LogStored = "log_stored", 503, "A part of the log is out of reach";
    /// The projection has stopped before an event that this program does not understand.
    ProjectionStopped = "projection_stopped", 503, "The projection has stopped";
    /// The app used its processor time without progress.
    AppCpu = "app_cpu", 504, "The app took too long";
    /// The app did not answer in time.
    AppTimeout = "app_timeout", 504, "The app did not answer in time";
    /// The log cannot grow: its disk is full.
    LogNoSpace = "log_no_space", 507, "The log cannot grow";
}

/// An error's body (RFC 9457), the same on every interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// `tabbify:error:<code>`.
    #[serde(rename = "type")]
    pub kind: String,
    /// What the code means.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What happened here, with the offending value. Safe to show.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// The stable code.
    pub code: ErrorCode,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
    /// The request, as the logs know it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<RequestId>,
    /// What exactly, for programs, where the log refuses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<LogProblem>,
    /// What exactly, for programs, where the read model refuses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read: Option<ReadProblem>,
}

impl Problem {
    /// A problem with this code.
    #[must_use]
    pub fn new(code: ErrorCode, detail: impl Into<String>) -> Self {
        Self {
            kind: format!("tabbify:error:{}", code.as_str()),
            title: code.title().to_owned(),
            status: code.status(),
            detail: detail.into(),
            code,
            fix: None,
            request: None,
            log: None,
            read: None,
        }
    }

    /// What an answer without success says; something on the way may answer in words of its own.
    #[must_use]
    pub fn of_answer(status: u16, body: &[u8]) -> Self {
        serde_json::from_slice(body).unwrap_or_else(|_| {
            let code = match status {
                400..500 => ErrorCode::BadRequest,
                _ => ErrorCode::Unavailable,
            };
            Self::new(code, format!("status {status} without a problem document"))
        })
    }

    /// The same, with what to do about it.
    #[must_use]
    pub fn with_fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(fix.into());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_distinct_and_round_trip() {
        let mut seen = std::collections::BTreeSet::new();
        for code in ErrorCode::ALL {
            assert!(seen.insert(code.as_str()));
            assert_eq!(ErrorCode::from_code(code.as_str()), Some(*code));
            let json = serde_json::to_string(code).unwrap();
            assert_eq!(json, format!("\"{}\"", code.as_str()));
            assert!((400..600).contains(&code.status()));
        }
    }

    #[test]
    fn an_answer_is_a_problem_in_any_case() {
        let said = Problem::new(ErrorCode::Conflict, "it is taken").with_fix("take another");
        let bytes = serde_json::to_vec(&said).unwrap();
        assert_eq!(Problem::of_answer(409, &bytes), said);
        for (status, body, code) in [
            (404, "<html>", ErrorCode::BadRequest),
            (502, "", ErrorCode::Unavailable),
            (200, "{}", ErrorCode::Unavailable),
        ] {
            let problem = Problem::of_answer(status, body.as_bytes());
            assert_eq!(problem.code, code);
            assert!(problem.detail.contains(&status.to_string()));
        }
    }
}
