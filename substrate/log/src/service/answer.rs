//! Answers: JSON, pages, subscriptions, problem documents.

use std::convert::Infallible;

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Frame;
use serde::Serialize;
use tabbify_api::error::PROBLEM_MEDIA_TYPE;
use tabbify_api::log::{
    HEAD_HEADER, LogProblem, NEXT_AFTER_HEADER, Page, SESSION_PROTOCOL, STREAM_MEDIA_TYPE,
    Subscribe,
};
use tabbify_api::{ErrorCode, Problem};
use tabbify_types::Recorded;
use tokio_util::sync::CancellationToken;

use super::bearer::Watch;
use super::feed::{self, Form, PIECE_LEN};
use crate::wire::{binary, event};

/// The body of every answer. None breaks off by itself.
pub(super) type Body = UnsyncBoxBody<Bytes, Infallible>;
pub(super) type Answer = Response<Body>;

/// `value` as JSON. Never cached: it is true of this caller, now.
pub(super) fn json(value: &impl Serialize) -> Answer {
    let bytes = serde_json::to_vec(value).expect("INVARIANT: our own shapes serialize");
    with_type("application/json", Full::new(bytes.into()).boxed_unsync())
}

/// Nothing to say but that it is done.
pub(super) fn done() -> Answer {
    let mut answer = Response::new(Full::default().boxed_unsync());
    *answer.status_mut() = StatusCode::NO_CONTENT;
    answer
}

pub(super) fn refusal(problem: &Problem) -> Answer {
    let bytes = serde_json::to_vec(problem).expect("INVARIANT: our own shapes serialize");
    let mut answer = with_type(PROBLEM_MEDIA_TYPE, Full::new(bytes.into()).boxed_unsync());
    // Every code has a valid status, which a test of the contract holds.
    *answer.status_mut() =
        StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = answer.headers_mut();
    match problem.code {
        ErrorCode::TokenMissing | ErrorCode::TokenInvalid | ErrorCode::TokenExpired => {
            let value = HeaderValue::from_static("Bearer realm=\"tabbify\"");
            headers.insert(header::WWW_AUTHENTICATE, value);
        }
        ErrorCode::RateLimited | ErrorCode::Unavailable | ErrorCode::AppendRate => {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds(problem)));
        }
        _ => {}
    }
    answer
}

/// How long to wait, as the header can say it.
fn seconds(problem: &Problem) -> u64 {
    match problem.log {
        Some(LogProblem::Rate { retry_after_ms, .. }) => retry_after_ms.div_ceil(1_000).max(1),
        _ => 1,
    }
}

fn with_type(media_type: &'static str, body: Body) -> Answer {
    let mut answer = Response::new(body);
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

/// A page, encoded as it is sent: as frames, or as lines of JSON.
pub(super) fn page(page: Page, as_frames: bool) -> Answer {
    let (media_type, push): (_, fn(&mut Vec<u8>, &Recorded)) = match as_frames {
        true => (STREAM_MEDIA_TYPE, binary::push_event),
        false => ("application/x-ndjson", push_line),
    };
    let (next_after, head) = (page.next_after.get(), page.head.get());
    let pieces = stream::unfold(page.events.into_iter(), move |mut events| async move {
        let mut piece = Vec::new();
        while piece.len() < PIECE_LEN
            && let Some(event) = events.next()
        {
            push(&mut piece, &event);
        }
        (!piece.is_empty()).then(|| (Ok(Frame::data(piece.into())), events))
    });
    let mut answer = with_type(media_type, StreamBody::new(pieces).boxed_unsync());
    let headers = answer.headers_mut();
    headers.insert(NEXT_AFTER_HEADER, HeaderValue::from(next_after));
    headers.insert(HEAD_HEADER, HeaderValue::from(head));
    answer
}

fn push_line(out: &mut Vec<u8>, event: &Recorded) {
    out.extend_from_slice(&event::to_line(event));
    out.push(b'\n');
}

/// A subscription, pulled as fast as the reader reads.
pub(super) fn events(
    subscription: Box<dyn Subscribe>,
    form: Form,
    watch: Watch,
    closing: CancellationToken,
) -> Answer {
    let pieces = feed::pieces(subscription, form, watch, closing);
    with_type(form.media_type, StreamBody::new(pieces).boxed_unsync())
}

/// The connection goes over to the protocol of sessions.
pub(super) fn switching() -> Answer {
    let mut answer = Response::new(Full::default().boxed_unsync());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = answer.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static(SESSION_PROTOCOL));
    answer
}
