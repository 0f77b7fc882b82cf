//! Whole answers of our services: JSON, and problems (RFC 9457). Never cached: each is true of its caller, now.

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, Response, StatusCode};
use http_body_util::Full;
use serde::Serialize;
use tabbify_api::Problem;
use tabbify_api::error::PROBLEM_MEDIA_TYPE;
use tabbify_api::log::LogProblem;

/// When to try again, in seconds, where the problem does not know better.
const LATER_S: u64 = 3;

/// An answer of this media type.
pub fn typed<B>(media_type: &'static str, body: B) -> Response<B> {
    let mut answer = Response::new(body);
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

/// A document of ours as JSON.
///
/// # Panics
/// If it is a map with keys that are no text, which no document of ours is.
pub fn json(document: &impl Serialize) -> Response<Full<Bytes>> {
    typed("application/json", Full::new(bytes_of(document)))
}

/// A problem with its status: on 401 it says how to sign in, on 429 and 503 when to try again.
///
/// # Panics
/// Never: a problem is plain data.
#[must_use]
pub fn problem(problem: &Problem) -> Response<Full<Bytes>> {
    let mut answer = typed(PROBLEM_MEDIA_TYPE, Full::new(bytes_of(problem)));
    // Every code has a valid status, which a test of the contract holds.
    *answer.status_mut() =
        StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let says = match problem.status {
        401 => {
            let how = HeaderValue::from_static("Bearer realm=\"tabbify\"");
            Some((WWW_AUTHENTICATE, how))
        }
        429 | 503 => Some((RETRY_AFTER, HeaderValue::from(later(problem)))),
        _ => None,
    };
    answer.headers_mut().extend(says);
    answer
}

/// In seconds, as the header can say it.
fn later(problem: &Problem) -> u64 {
    match problem.log {
        Some(LogProblem::Rate { retry_after_ms, .. }) => retry_after_ms.div_ceil(1_000).max(1),
        _ => LATER_S,
    }
}

fn bytes_of(document: &impl Serialize) -> Bytes {
    let bytes = serde_json::to_vec(document);
    bytes.expect("INVARIANT: our own shapes serialize").into()
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use tabbify_api::ErrorCode;

    use super::*;

    #[tokio::test]
    async fn a_problem_says_what_next() {
        let answer = |code| problem(&Problem::new(code, "why"));
        let says = |code, name| answer(code).headers().get(name).cloned();
        let how = says(ErrorCode::TokenExpired, WWW_AUTHENTICATE).unwrap();
        assert_eq!(how, "Bearer realm=\"tabbify\"");
        for code in [ErrorCode::RateLimited, ErrorCode::Unavailable] {
            assert_eq!(says(code, RETRY_AFTER).unwrap(), "3", "{code:?}");
        }
        let missing = answer(ErrorCode::NotFound);
        assert_eq!(missing.status(), StatusCode::NOT_FOUND);
        assert_eq!(missing.headers()[CONTENT_TYPE], PROBLEM_MEDIA_TYPE);
        assert_eq!(missing.headers()[CACHE_CONTROL], "no-store");
        assert_eq!(missing.headers().len(), 2);
        let body = missing.into_body().collect().await.unwrap().to_bytes();
        let said: Problem = serde_json::from_slice(&body).unwrap();
        assert_eq!(
            (said.code, said.detail.as_str()),
            (ErrorCode::NotFound, "why")
        );
    }
}
