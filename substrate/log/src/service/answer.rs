//! Answers: JSON, pages, subscriptions, problem documents.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt as _, stream};
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Frame;
use serde::Serialize;
use tabbify_api::error::PROBLEM_MEDIA_TYPE;
use tabbify_api::log::{HEAD_HEADER, NEXT_AFTER_HEADER, Page, ReadError, Subscribe};
use tabbify_api::{ErrorCode, Problem};
use tabbify_types::Recorded;
use tokio_util::sync::CancellationToken;

use crate::wire::{event, problem, sse};

/// The body of every answer. None breaks off by itself.
pub(super) type Body = UnsyncBoxBody<Bytes, Infallible>;
pub(super) type Answer = Response<Body>;

/// Bytes after which a piece of a streamed body is sent.
const PIECE_LEN: usize = 32 * 1024;
/// A subscription with nothing to say says so.
const HEARTBEAT_EVERY: Duration = Duration::from_secs(15);

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
    let mut add = |name, value| {
        answer
            .headers_mut()
            .insert(name, HeaderValue::from_static(value))
    };
    match problem.code {
        ErrorCode::TokenMissing | ErrorCode::TokenInvalid | ErrorCode::TokenExpired => {
            add(header::WWW_AUTHENTICATE, "Bearer realm=\"tabbify\"");
        }
        ErrorCode::RateLimited | ErrorCode::Unavailable => {
            add(header::RETRY_AFTER, "1");
        }
        _ => {}
    }
    answer
}

fn with_type(media_type: &'static str, body: Body) -> Answer {
    let mut answer = Response::new(body);
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

/// A page, encoded as it is sent.
pub(super) fn page(page: Page) -> Answer {
    let (next_after, head) = (page.next_after.get(), page.head.get());
    let pieces = stream::unfold(page.events.into_iter(), |mut events| async move {
        let mut piece = Vec::new();
        while piece.len() < PIECE_LEN
            && let Some(event) = events.next()
        {
            push_line(&mut piece, &event);
        }
        (!piece.is_empty()).then(|| (Ok(Frame::data(piece.into())), events))
    });
    let mut answer = with_type(
        "application/x-ndjson",
        StreamBody::new(pieces).boxed_unsync(),
    );
    let headers = answer.headers_mut();
    headers.insert(NEXT_AFTER_HEADER, HeaderValue::from(next_after));
    headers.insert(HEAD_HEADER, HeaderValue::from(head));
    answer
}

fn push_line(out: &mut Vec<u8>, event: &Arc<Recorded>) {
    out.extend_from_slice(&event::to_line(event));
    out.push(b'\n');
}

/// A subscription, pulled as fast as the reader reads.
pub(super) fn events(subscription: Box<dyn Subscribe>, closing: CancellationToken) -> Answer {
    let feed = Feed {
        subscription,
        closing,
        ended: false,
    };
    let pieces = stream::unfold(feed, |mut feed| async move {
        let piece = feed.piece().await?;
        Some((Ok(Frame::data(piece.into())), feed))
    });
    with_type("text/event-stream", StreamBody::new(pieces).boxed_unsync())
}

struct Feed {
    subscription: Box<dyn Subscribe>,
    closing: CancellationToken,
    ended: bool,
}

impl Feed {
    /// What there is to send, and with it what comes without waiting. `None` after the end.
    async fn piece(&mut self) -> Option<Vec<u8>> {
        if self.ended {
            return None;
        }
        let first = tokio::select! {
            biased;
            () = self.closing.cancelled() => Err(ReadError::Stopping),
            first = self.subscription.next() => first,
            () = tokio::time::sleep(HEARTBEAT_EVERY) => return Some(sse::HEARTBEAT.to_vec()),
        };
        let mut piece = Vec::new();
        let mut next = Some(first);
        while let Some(delivery) = next.take() {
            match delivery {
                Ok(delivery) => sse::push_delivery(&mut piece, &delivery),
                Err(error) => {
                    sse::push_end(&mut piece, &problem::of_read(&error));
                    self.ended = true;
                    break;
                }
            }
            if piece.len() < PIECE_LEN {
                next = self.subscription.next().now_or_never();
            }
        }
        Some(piece)
    }
}
