//! Refusals on the wire: every error of the log as a problem document, and back.
//!
//! One exhaustive match for each direction of going out; coming in, a code that is not the log's
//! own means that the request as such failed: no token, too long, not understood.

use tabbify_api::auth::AuthError;
use tabbify_api::consumers::{ConsumerError, ConsumerName};
use tabbify_api::log::{AppendError, LogProblem, ReadError};
use tabbify_api::{ErrorCode, Problem};

fn about(code: ErrorCode, detail: impl ToString, log: LogProblem) -> Box<Problem> {
    let mut problem = plain(code, &detail.to_string());
    problem.log = Some(log);
    problem
}

/// A problem without more to it than its detail.
pub(crate) fn plain(code: ErrorCode, detail: &str) -> Box<Problem> {
    Box::new(Problem::new(code, detail))
}

pub(crate) fn of_append(error: &AppendError) -> Box<Problem> {
    match error {
        AppendError::Conflict {
            segment,
            key,
            actual,
        } => {
            let (segment, key, rev) = (segment.clone(), key.clone(), *actual);
            let log = LogProblem::Conflict { segment, key, rev };
            about(ErrorCode::Conflict, error, log)
        }
        AppendError::IdConflict { id } => about(
            ErrorCode::IdConflict,
            error,
            LogProblem::IdConflict { id: *id },
        ),
        AppendError::ExpectAhead {
            segment,
            key,
            expected,
            actual,
        } => {
            let log = LogProblem::ExpectAhead {
                segment: segment.clone(),
                key: key.clone(),
                expected: *expected,
                rev: *actual,
            };
            about(ErrorCode::ExpectAhead, error, log)
        }
        AppendError::Invalid { detail } => plain(ErrorCode::InvalidBatch, detail),
        AppendError::EventTooLarge { detail } => plain(ErrorCode::EventTooLarge, detail),
        AppendError::BatchTooLarge { detail } => plain(ErrorCode::BatchTooLarge, detail),
        AppendError::UnknownSegment { segment } => {
            let segment = segment.clone();
            let log = LogProblem::UnknownSegment { segment };
            about(ErrorCode::UnknownSegment, error, log)
        }
        AppendError::UnknownVersion {
            kind,
            version,
            newest,
        } => {
            let (kind, version, newest) = (kind.clone(), *version, *newest);
            let log = LogProblem::UnknownVersion {
                kind,
                version,
                newest,
            };
            about(ErrorCode::UnknownVersion, error, log)
        }
        AppendError::Rate {
            tenant,
            retry_after_ms,
        } => {
            let (tenant, retry_after_ms) = (tenant.clone(), *retry_after_ms);
            let log = LogProblem::Rate {
                tenant,
                retry_after_ms,
            };
            about(ErrorCode::AppendRate, error, log)
        }
        AppendError::Forbidden { actor, segment } => {
            let (actor, segment) = (actor.clone(), segment.clone());
            let log = LogProblem::MayNotWrite { actor, segment };
            about(ErrorCode::Forbidden, error, log)
        }
        AppendError::Refused { code, detail } => plain(*code, detail),
        AppendError::NoSpace { detail } => plain(ErrorCode::LogNoSpace, detail),
        AppendError::Stopping => plain(ErrorCode::Unavailable, &error.to_string()),
    }
}

pub(crate) fn to_append(problem: Problem) -> AppendError {
    let Problem {
        code, detail, log, ..
    } = problem;
    match (code, log) {
        (_, Some(LogProblem::Conflict { segment, key, rev })) => AppendError::Conflict {
            segment,
            key,
            actual: rev,
        },
        (
            _,
            Some(LogProblem::ExpectAhead {
                segment,
                key,
                expected,
                rev,
            }),
        ) => AppendError::ExpectAhead {
            segment,
            key,
            expected,
            actual: rev,
        },
        (_, Some(LogProblem::IdConflict { id })) => AppendError::IdConflict { id },
        (_, Some(LogProblem::MayNotWrite { actor, segment })) => {
            AppendError::Forbidden { actor, segment }
        }
        (_, Some(LogProblem::UnknownSegment { segment })) => {
            AppendError::UnknownSegment { segment }
        }
        (
            _,
            Some(LogProblem::UnknownVersion {
                kind,
                version,
                newest,
            }),
        ) => AppendError::UnknownVersion {
            kind,
            version,
            newest,
        },
        (
            _,
            Some(LogProblem::Rate {
                tenant,
                retry_after_ms,
            }),
        ) => AppendError::Rate {
            tenant,
            retry_after_ms,
        },
        (ErrorCode::InvalidBatch, _) => AppendError::Invalid { detail },
        (ErrorCode::EventTooLarge, _) => AppendError::EventTooLarge { detail },
        (ErrorCode::BatchTooLarge, _) => AppendError::BatchTooLarge { detail },
        (ErrorCode::LogNoSpace, _) => AppendError::NoSpace { detail },
        (code, _) if is_final(code) => AppendError::Refused { code, detail },
        _ => AppendError::Stopping,
    }
}

pub(crate) fn of_read(error: &ReadError) -> Box<Problem> {
    match error {
        ReadError::BeyondHead { after, head } => {
            let (after, head) = (*after, *head);
            let log = LogProblem::BeyondHead { after, head };
            about(ErrorCode::BeyondHead, error, log)
        }
        ReadError::Forbidden { actor, glob } => {
            let (actor, glob) = (actor.clone(), glob.clone());
            let log = LogProblem::MayNotRead { actor, glob };
            about(ErrorCode::Forbidden, error, log)
        }
        ReadError::Refused { code, detail } => plain(*code, detail),
        ReadError::Damaged { detail } => plain(ErrorCode::LogDamaged, detail),
        ReadError::Stored { detail } => plain(ErrorCode::LogStored, detail),
        ReadError::Stopping => plain(ErrorCode::Unavailable, &error.to_string()),
    }
}

pub(crate) fn to_read(problem: Problem) -> ReadError {
    match (problem.code, problem.log) {
        (_, Some(LogProblem::BeyondHead { after, head })) => ReadError::BeyondHead { after, head },
        (_, Some(LogProblem::MayNotRead { actor, glob })) => ReadError::Forbidden { actor, glob },
        (ErrorCode::LogDamaged, _) => ReadError::Damaged {
            detail: problem.detail,
        },
        (ErrorCode::LogStored, _) => ReadError::Stored {
            detail: problem.detail,
        },
        (code, _) if is_final(code) => ReadError::Refused {
            code,
            detail: problem.detail,
        },
        _ => ReadError::Stopping,
    }
}

pub(crate) fn of_consumer(error: &ConsumerError) -> Box<Problem> {
    match error {
        ConsumerError::Unknown { .. } => plain(ErrorCode::UnknownConsumer, &error.to_string()),
        ConsumerError::Exists { .. } => plain(ErrorCode::ConsumerExists, &error.to_string()),
        ConsumerError::NotDelivered { positions } => {
            let positions = positions.clone();
            let log = LogProblem::NotDelivered { positions };
            about(ErrorCode::NotDelivered, error, log)
        }
        ConsumerError::NotParked { position } => {
            let position = *position;
            about(
                ErrorCode::NotParked,
                error,
                LogProblem::NotParked { position },
            )
        }
        ConsumerError::ParkedFull { parked } => {
            let parked = *parked;
            about(
                ErrorCode::ParkedFull,
                error,
                LogProblem::ParkedFull { parked },
            )
        }
        ConsumerError::TooMany { what, max } => {
            let (what, max) = (what.clone(), *max);
            about(
                ErrorCode::ConsumerLimit,
                error,
                LogProblem::TooMany { what, max },
            )
        }
        ConsumerError::Invalid { detail } => plain(ErrorCode::BadRequest, detail),
        ConsumerError::Forbidden { actor, glob } => {
            let (actor, glob) = (actor.clone(), glob.clone());
            let log = LogProblem::MayNotRead { actor, glob };
            about(ErrorCode::Forbidden, error, log)
        }
        ConsumerError::Read(error) => of_read(error),
        ConsumerError::Storage { detail } => plain(ErrorCode::Internal, detail),
    }
}

/// The error of a call that named the consumer `name`.
pub(crate) fn to_consumer(problem: Problem, name: &ConsumerName) -> ConsumerError {
    let name = name.clone();
    let detail = problem.detail.clone();
    match (problem.code, &problem.log) {
        (ErrorCode::UnknownConsumer, _) => ConsumerError::Unknown { name },
        (ErrorCode::ConsumerExists, _) => ConsumerError::Exists { name },
        (ErrorCode::Internal, _) => ConsumerError::Storage { detail },
        (_, Some(LogProblem::NotDelivered { positions })) => ConsumerError::NotDelivered {
            positions: positions.clone(),
        },
        (_, Some(LogProblem::NotParked { position })) => ConsumerError::NotParked {
            position: *position,
        },
        (_, Some(LogProblem::ParkedFull { parked })) => {
            ConsumerError::ParkedFull { parked: *parked }
        }
        (_, Some(LogProblem::TooMany { what, max })) => ConsumerError::TooMany {
            what: what.clone(),
            max: *max,
        },
        (_, Some(LogProblem::MayNotRead { actor, glob })) => ConsumerError::Forbidden {
            actor: actor.clone(),
            glob: glob.clone(),
        },
        (ErrorCode::BadRequest, _) => ConsumerError::Invalid { detail },
        _ => ConsumerError::Read(to_read(problem)),
    }
}

pub(crate) fn of_auth(error: &AuthError) -> Box<Problem> {
    let code = match error {
        AuthError::Invalid(_) | AuthError::Replayed => ErrorCode::TokenInvalid,
        AuthError::Expired(_) => ErrorCode::TokenExpired,
        AuthError::RateLimited => ErrorCode::RateLimited,
        AuthError::Unavailable(_) => ErrorCode::Unavailable,
    };
    // The class is enough: why a token is not believed is for the log.
    plain(code, code.title())
}

/// Whether the same request would be refused again: the caller's fault, and not for the moment.
fn is_final(code: ErrorCode) -> bool {
    (400..500).contains(&code.status()) && code != ErrorCode::RateLimited
}

/// Whether it was the token that was refused, so that another may do.
pub(crate) const fn is_about_token(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::TokenMissing | ErrorCode::TokenInvalid | ErrorCode::TokenExpired
    )
}

#[cfg(test)]
mod tests {
    use tabbify_types::{EventId, Position, Rev};

    use super::*;

    fn carried(problem: &Problem) -> Problem {
        let json = serde_json::to_string(problem).expect("a problem serializes");
        serde_json::from_str(&json).expect("a problem parses")
    }

    fn check_append(error: &AppendError, status: u16) {
        let problem = of_append(error);
        assert_eq!(problem.status, status, "{error}");
        assert_eq!(to_append(carried(&problem)), *error);
    }

    #[test]
    fn errors_of_append_survive_the_wire() {
        let segment = || "tenant_main.apps".parse().expect("a literal segment");
        let key = || "a\0".to_owned();
        let conflict = AppendError::Conflict {
            segment: segment(),
            key: key(),
            actual: Rev(3),
        };
        let ahead = AppendError::ExpectAhead {
            segment: segment(),
            key: key(),
            expected: Rev(9),
            actual: Rev(3),
        };
        let version = AppendError::UnknownVersion {
            kind: "app_started".to_owned(),
            version: 9,
            newest: 1,
        };
        let rate = AppendError::Rate {
            tenant: tabbify_types::Tenant::main(),
            retry_after_ms: 1_234,
        };
        let forbidden = AppendError::Forbidden {
            actor: "x".to_owned(),
            segment: segment(),
        };
        let id = EventId::mint();
        check_append(&conflict, 409);
        check_append(&ahead, 409);
        check_append(&AppendError::IdConflict { id }, 409);
        check_append(&AppendError::UnknownSegment { segment: segment() }, 422);
        check_append(&version, 422);
        check_append(&rate, 429);
        check_append(&forbidden, 403);
        check_append(&AppendError::Stopping, 503);
    }

    #[test]
    fn what_is_told_in_words_survives_the_wire() {
        let detail = || "how much, and the limit".to_owned();
        check_append(&AppendError::Invalid { detail: detail() }, 422);
        check_append(&AppendError::EventTooLarge { detail: detail() }, 413);
        check_append(&AppendError::BatchTooLarge { detail: detail() }, 413);
        check_append(&AppendError::NoSpace { detail: detail() }, 507);
        let (code, detail) = (ErrorCode::TokenExpired, detail());
        check_append(&AppendError::Refused { code, detail }, 401);
        let busy = to_append(Problem::new(ErrorCode::RateLimited, "slow"));
        assert_eq!(busy, AppendError::Stopping);
    }

    #[test]
    fn errors_of_reading_survive_the_wire() {
        let glob = || "tenant_*.apps".parse().expect("a glob");
        for (error, status) in [
            (
                ReadError::BeyondHead {
                    after: Position(9),
                    head: Position(8),
                },
                416,
            ),
            (
                ReadError::Forbidden {
                    actor: "x".to_owned(),
                    glob: glob(),
                },
                403,
            ),
            (
                ReadError::Refused {
                    code: ErrorCode::TokenExpired,
                    detail: "ended".to_owned(),
                },
                401,
            ),
            (
                ReadError::Damaged {
                    detail: "at byte 512".to_owned(),
                },
                500,
            ),
            (
                ReadError::Stored {
                    detail: "the store is away".to_owned(),
                },
                503,
            ),
            (ReadError::Stopping, 503),
        ] {
            let problem = of_read(&error);
            assert_eq!(problem.status, status, "{error}");
            assert_eq!(to_read(carried(&problem)), error);
        }
    }

    #[test]
    fn errors_of_consumers_survive_the_wire() {
        let name: ConsumerName = "placer".parse().expect("a name");
        for (error, code) in [
            (
                ConsumerError::Unknown { name: name.clone() },
                "unknown_consumer",
            ),
            (
                ConsumerError::Exists { name: name.clone() },
                "consumer_exists",
            ),
            (
                ConsumerError::NotDelivered {
                    positions: vec![Position(3), Position(9)],
                },
                "not_delivered",
            ),
            (
                ConsumerError::NotParked {
                    position: Position(7),
                },
                "not_parked",
            ),
            (ConsumerError::ParkedFull { parked: 10_000 }, "parked_full"),
            (
                ConsumerError::TooMany {
                    what: "members".to_owned(),
                    max: 64,
                },
                "consumer_limit",
            ),
            (
                ConsumerError::Invalid {
                    detail: "65 globs".to_owned(),
                },
                "bad_request",
            ),
            (
                ConsumerError::Forbidden {
                    actor: "x".to_owned(),
                    glob: "**".parse().expect("a glob"),
                },
                "forbidden",
            ),
            (
                ConsumerError::Read(ReadError::BeyondHead {
                    after: Position(9),
                    head: Position(8),
                }),
                "beyond_head",
            ),
            (ConsumerError::Read(ReadError::Stopping), "unavailable"),
            (
                ConsumerError::Storage {
                    detail: "full".to_owned(),
                },
                "internal",
            ),
        ] {
            let problem = of_consumer(&error);
            assert_eq!(problem.code.as_str(), code, "{error}");
            assert_eq!(to_consumer(carried(&problem), &name), error);
        }
        let (code, detail) = (ErrorCode::TokenExpired, "ended".to_owned());
        let refused = ReadError::Refused { code, detail };
        let back = to_consumer(*of_read(&refused), &name);
        assert_eq!(back, ConsumerError::Read(refused));
    }
}
