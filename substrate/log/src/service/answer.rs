//! Answers: JSON, pages, subscriptions, problem documents.

use std::convert::Infallible;

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use serde::Serialize;
use tabbify_api::Problem;
use tabbify_api::log::{
    HEAD_HEADER, NEXT_AFTER_HEADER, Page, SESSION_PROTOCOL, STREAM_MEDIA_TYPE, Subscribe,
};
use tabbify_http::answer;
use tabbify_types::Recorded;
use tokio_util::sync::CancellationToken;

use super::bearer::Watch;
use super::feed::{self, Form, PIECE_LEN};
use crate::wire::{binary, event};

/// The body of every answer. None breaks off by itself.
pub(super) type Body = UnsyncBoxBody<Bytes, Infallible>;
pub(super) type Answer = Response<Body>;

/// `value` as JSON.
pub(super) fn json(value: &impl Serialize) -> Answer {
    answer::json(value).map(BodyExt::boxed_unsync)
}

/// Nothing to say but that it is done.
pub(super) fn done() -> Answer {
    let mut answer = Response::new(Full::default().boxed_unsync());
    *answer.status_mut() = StatusCode::NO_CONTENT;
    answer
}

pub(super) fn refusal(problem: &Problem) -> Answer {
    answer::problem(problem).map(BodyExt::boxed_unsync)
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
    let mut answer = answer::typed(media_type, StreamBody::new(pieces).boxed_unsync());
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
    answer::typed(form.media_type, StreamBody::new(pieces).boxed_unsync())
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
