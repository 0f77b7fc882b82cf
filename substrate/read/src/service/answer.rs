//! Answers: JSON, problem documents, and how far the model is.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderValue, Response, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use serde::Serialize;
use tabbify_api::read::{HEAD_HEADER, LAG_MS_HEADER, POSITION_HEADER, ReadStatus};
use tabbify_api::{ErrorCode, Problem};
use tabbify_http::answer;
use tokio::sync::Semaphore;

use crate::wire::problem;

/// The body of every answer. None breaks off by itself.
pub(super) type Body = UnsyncBoxBody<Bytes, Infallible>;
pub(super) type Answer = Response<Body>;

/// Bytes of a piece of a body: what a connection holds when it has taken the last one.
const PIECE_LEN: usize = 32 * 1024;

/// `value` as JSON, if there is room for it among the answers that wait to be read. Never cached: it is
/// true of this caller, now.
pub(super) fn json(
    value: &impl Serialize,
    answers: &Arc<Semaphore>,
) -> Result<Answer, Box<Problem>> {
    let bytes = serde_json::to_vec(value).expect("INVARIANT: our own shapes serialize");
    let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    let room = Arc::clone(answers).try_acquire_many_owned(len);
    let room = room.map_err(|_| {
        let detail = "too many answers wait to be read";
        problem::plain(ErrorCode::Unavailable, detail)
    })?;
    let pieces = stream::unfold((Bytes::from(bytes), room), |(mut rest, room)| async move {
        let piece = rest.split_to(rest.len().min(PIECE_LEN));
        (!piece.is_empty()).then(|| (Ok(Frame::data(piece)), (rest, room)))
    });
    let body = StreamBody::new(pieces).boxed_unsync();
    let mut answer = answer::typed("application/json", body);
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(len));
    Ok(answer)
}

pub(super) fn refusal(problem: &Problem) -> Answer {
    let mut answer = answer::problem(problem).map(BodyExt::boxed_unsync);
    if problem.code == ErrorCode::MethodNotAllowed {
        let get = HeaderValue::from_static("GET");
        answer.headers_mut().insert(header::ALLOW, get);
    }
    answer
}

/// Says how far the model is.
pub(super) fn stand(answer: &mut Answer, status: &ReadStatus) {
    let headers = answer.headers_mut();
    headers.insert(POSITION_HEADER, HeaderValue::from(status.position.get()));
    headers.insert(HEAD_HEADER, HeaderValue::from(status.head.get()));
    headers.insert(LAG_MS_HEADER, HeaderValue::from(status.lag_ms));
}
