//! Answers that are the node's own: JSON, problem documents, the small pages that browsers get.

use bytes::Bytes;
use http::header::{
    ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE,
};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty, Full};
use serde::Serialize;
use tabbify_api::Problem;
use tabbify_api::error::PROBLEM_MEDIA_TYPE;
use tabbify_types::RequestId;

use crate::error::Refusal;

/// Why a body ends early; hyper closes the connection on it.
pub(crate) type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// The body of every answer.
pub(crate) type Body = UnsyncBoxBody<Bytes, BodyError>;

/// An answer.
pub(crate) type Answer = Response<Body>;

/// A body of these bytes.
pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// No body.
pub(crate) fn nothing() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// An answer without a body.
pub(crate) fn empty(status: StatusCode) -> Answer {
    let mut answer = Response::new(nothing());
    *answer.status_mut() = status;
    answer
}

/// `value` as JSON. Never cached: it is true of this caller, now.
pub(crate) fn json(status: StatusCode, value: &impl Serialize) -> Answer {
    let bytes = serde_json::to_vec(value).expect("our own shapes serialize");
    with_type(status, "application/json", bytes)
}

fn with_type(status: StatusCode, media_type: &'static str, bytes: Vec<u8>) -> Answer {
    let mut answer = Response::new(full(bytes));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

/// How a refusal is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shown {
    /// As a problem document.
    Document,
    /// As a small page.
    Page,
}

impl Shown {
    /// A page for who asks for HTML, as browsers do when they navigate.
    pub(crate) fn to(headers: &HeaderMap) -> Self {
        let accepts = headers.get_all(http::header::ACCEPT).iter();
        let html = accepts
            .filter_map(|value| value.to_str().ok())
            .any(|value| {
                let mut kinds = value
                    .split(',')
                    .map(|kind| kind.split(';').next().unwrap_or(kind));
                kinds.any(|kind| kind.trim().eq_ignore_ascii_case("text/html"))
            });
        if html { Self::Page } else { Self::Document }
    }
}

/// A refusal.
pub(crate) fn refusal(error: &Refusal, request: RequestId, shown: Shown) -> Answer {
    let problem = error.problem(request);
    let status = StatusCode::from_u16(problem.status).expect("every error code has a valid status");
    let mut answer = match shown {
        Shown::Document => {
            let bytes = serde_json::to_vec(&problem).expect("our own shapes serialize");
            with_type(status, PROBLEM_MEDIA_TYPE, bytes)
        }
        Shown::Page => {
            let mut answer = with_type(
                status,
                "text/html; charset=utf-8",
                page(&problem).into_bytes(),
            );
            let policy = HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'");
            answer.headers_mut().insert(CONTENT_SECURITY_POLICY, policy);
            answer
        }
    };
    let headers = answer.headers_mut();
    if status == StatusCode::UNAUTHORIZED {
        let challenge = match error {
            Refusal::TokenMissing => HeaderValue::from_static("Bearer realm=\"tabbify\""),
            _ => HeaderValue::from_static("Bearer realm=\"tabbify\", error=\"invalid_token\""),
        };
        headers.insert(WWW_AUTHENTICATE, challenge);
    }
    if let Some(seconds) = error.retry_after() {
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    if let Refusal::MethodNotAllowed(methods) = error {
        headers.insert(ALLOW, HeaderValue::from_static(methods));
    }
    answer
}

/// A page without anything to load: what happened, what to do, and what to tell the operator.
fn page(problem: &Problem) -> String {
    let (title, detail) = (escaped(&problem.title), escaped(&problem.detail));
    let fix = problem.fix.as_deref().map_or_else(String::new, |fix| {
        format!("<p><strong>{}</strong></p>", escaped(fix))
    });
    let request = problem
        .request
        .map_or_else(String::new, |request| request.to_string());
    let (status, code) = (problem.status, problem.code.as_str());
    format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>{title}</title>\
         <style>:root{{color-scheme:light dark}}\
         body{{font:16px/1.5 system-ui,sans-serif;max-width:36rem;margin:15vh auto;padding:0 1rem}}\
         small{{opacity:.7}}</style></head><body><main><h1>{title}</h1><p>{detail}</p>{fix}\
         <p><small>{status} {code} · request {request}</small></p></main></body></html>\n"
    )
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            _ => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_escape_what_the_caller_sent() {
        let error = Refusal::BadUuid("<script>alert('x')</script>".to_owned());
        let html = page(&error.problem(RequestId::mint()));
        assert!(
            !html.contains("<script") && html.contains("&lt;script&gt;"),
            "{html}"
        );
    }

    #[test]
    fn who_gets_a_page() {
        let check = |accept: &'static str, expected: Shown| {
            let mut headers = HeaderMap::new();
            headers.insert(http::header::ACCEPT, HeaderValue::from_static(accept));
            assert_eq!(Shown::to(&headers), expected, "{accept}");
        };
        check("text/html,application/xhtml+xml,*/*;q=0.8", Shown::Page);
        check("application/json, Text/HTML;q=0.1", Shown::Page);
        check("*/*", Shown::Document);
        check("application/json", Shown::Document);
        assert_eq!(Shown::to(&HeaderMap::new()), Shown::Document);
    }

    #[test]
    fn refusals_carry_what_the_status_asks_for() {
        let id = RequestId::mint();
        let answer = refusal(&Refusal::TokenMissing, id, Shown::Document);
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
        assert_eq!(
            answer.headers()[WWW_AUTHENTICATE],
            "Bearer realm=\"tabbify\""
        );
        assert_eq!(answer.headers()[CONTENT_TYPE], PROBLEM_MEDIA_TYPE);
        let answer = refusal(&Refusal::MethodNotAllowed("GET"), id, Shown::Document);
        assert_eq!(answer.headers()[ALLOW], "GET");
        let answer = refusal(&Refusal::ViewLags, id, Shown::Page);
        assert_eq!(answer.headers()[RETRY_AFTER], "1");
    }
}
