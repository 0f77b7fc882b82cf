//! Refusals on the wire: every error of a question as a problem document, and back.

use tabbify_api::auth::AuthError;
use tabbify_api::read::{QueryError, ReadProblem};
use tabbify_api::{ErrorCode, Problem};

/// The parts of a question that a refusal can name; what is not one of these is `the question`.
const PARTS: &[&str] = &[
    "limit", "cursor", "name", "text", "key", "type", "actor", "segment",
];

/// A problem without more to it than its detail.
pub(crate) fn plain(code: ErrorCode, detail: &str) -> Box<Problem> {
    Box::new(Problem::new(code, detail))
}

pub(crate) fn of_query(error: &QueryError) -> Box<Problem> {
    let (code, read) = match error {
        QueryError::Invalid { what, detail } => {
            let (what, why) = ((*what).to_owned(), detail.clone());
            (ErrorCode::BadRequest, ReadProblem::Invalid { what, why })
        }
        QueryError::TooSlow { limit_ms } => {
            let limit_ms = *limit_ms;
            (ErrorCode::TooSlow, ReadProblem::TooSlow { limit_ms })
        }
        QueryError::Behind { wanted, position } => {
            let (wanted, position) = (*wanted, *position);
            (ErrorCode::Behind, ReadProblem::Behind { wanted, position })
        }
        QueryError::Stopped { wanted, position } => {
            let (wanted, position) = (*wanted, *position);
            let read = ReadProblem::Behind { wanted, position };
            (ErrorCode::ProjectionStopped, read)
        }
        QueryError::Unavailable { detail } => return plain(ErrorCode::Unavailable, detail),
        QueryError::Refused { code, detail } => return plain(*code, detail),
    };
    let mut problem = plain(code, &error.to_string());
    problem.read = Some(read);
    problem
}

pub(crate) fn to_query(problem: Problem) -> QueryError {
    let (code, detail) = (problem.code, problem.detail);
    match problem.read {
        Some(ReadProblem::Invalid { what, why }) => {
            let what = PARTS.iter().copied().find(|part| **part == what);
            QueryError::Invalid {
                what: what.unwrap_or("the question"),
                detail: why,
            }
        }
        Some(ReadProblem::TooSlow { limit_ms }) => QueryError::TooSlow { limit_ms },
        Some(ReadProblem::Behind { wanted, position }) => match code {
            ErrorCode::ProjectionStopped => QueryError::Stopped { wanted, position },
            _ => QueryError::Behind { wanted, position },
        },
        None if (400..500).contains(&code.status()) && code != ErrorCode::RateLimited => {
            QueryError::Refused { code, detail }
        }
        None => QueryError::Unavailable { detail },
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

#[cfg(test)]
mod tests {
    use tabbify_types::Position;

    use super::*;

    #[test]
    fn errors_survive_the_wire() {
        let (wanted, position) = (Position(9), Position(8));
        let detail = || "a detail".to_owned();
        for (error, status, code) in [
            (
                QueryError::Invalid {
                    what: "limit",
                    detail: detail(),
                },
                400,
                "bad_request",
            ),
            (QueryError::TooSlow { limit_ms: 5 }, 422, "too_slow"),
            (QueryError::Behind { wanted, position }, 409, "behind"),
            (
                QueryError::Stopped { wanted, position },
                503,
                "projection_stopped",
            ),
            (
                QueryError::Unavailable { detail: detail() },
                503,
                "unavailable",
            ),
            (
                QueryError::Refused {
                    code: ErrorCode::TokenExpired,
                    detail: detail(),
                },
                401,
                "token_expired",
            ),
        ] {
            let problem = of_query(&error);
            assert_eq!((problem.status, problem.code.as_str()), (status, code));
            let json = serde_json::to_string(&problem).unwrap();
            assert_eq!(to_query(serde_json::from_str(&json).unwrap()), error);
        }
        // What a newer service names is still a refusal.
        let mut problem = *plain(ErrorCode::BadRequest, "x");
        problem.read = Some(ReadProblem::Invalid {
            what: "color".to_owned(),
            why: detail(),
        });
        let what = "the question";
        let detail = detail();
        assert_eq!(to_query(problem), QueryError::Invalid { what, detail });
    }
}
