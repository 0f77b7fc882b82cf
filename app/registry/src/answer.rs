//! What goes back: a file, streamed, or a problem document.

use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{HeaderValue, Response, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use object_store::GetResult;
use tabbify_api::{ErrorCode, Problem};
use tabbify_process::chain;
use tabbify_types::RequestId;

/// Its body: one that breaks off ends in an error, and with it the connection.
pub(crate) type Body = UnsyncBoxBody<Bytes, object_store::Error>;

/// The file as it comes out of the store; `broken` is called if it breaks off.
pub(crate) fn file(got: GetResult, broken: impl Fn() + Send + 'static) -> Response<Body> {
    let len = got.meta.size;
    let key = got.meta.location.clone();
    let frames = got.into_stream().map(move |piece| {
        if let Err(error) = &piece {
            broken();
            tracing::warn!(%key, error = %chain(error), "a file of the store breaks off");
        }
        piece.map(Frame::data)
    });
    let mut answer = Response::new(StreamBody::new(frames).boxed_unsync());
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(len));
    let kind = HeaderValue::from_static("application/octet-stream");
    headers.insert(header::CONTENT_TYPE, kind);
    answer
}

/// A refusal, with the number by which the log knows it.
pub(crate) fn problem(code: ErrorCode, detail: impl Into<String>) -> Response<Body> {
    let mut problem = Problem::new(code, detail);
    let request = RequestId::mint();
    problem.request = Some(request);
    tracing::debug!(role = "registry", %request, code = code.as_str(), detail = problem.detail, "refused");
    let mut answer = tabbify_http::answer::problem(&problem)
        .map(|body| body.map_err(|never| match never {}).boxed_unsync());
    let headers = answer.headers_mut();
    if code == ErrorCode::MethodNotAllowed {
        headers.insert(header::ALLOW, HeaderValue::from_static("GET"));
    }
    answer
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use futures_util::stream;
    use object_store::memory::InMemory;
    use object_store::{GetResultPayload, ObjectStoreExt as _};

    use super::*;

    #[tokio::test]
    async fn a_file_that_breaks_off_is_no_shorter_file() {
        let store = InMemory::new();
        let key = object_store::path::Path::from("apps/1/v1/a");
        store.put(&key, "whole".into()).await.unwrap();
        let mut got = store.get(&key).await.unwrap();
        let lost = Err(object_store::Error::Generic {
            store: "test",
            source: "the disk is gone".into(),
        });
        let pieces = stream::iter([Ok(Bytes::from("wh")), lost]);
        got.payload = GetResultPayload::Stream(pieces.boxed());
        let broken = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&broken);
        let answer = file(got, move || seen.store(true, Ordering::Relaxed));
        assert_eq!(answer.headers()[header::CONTENT_LENGTH], "5");
        let error = answer.into_body().collect().await.unwrap_err();
        assert!(error.to_string().contains("the disk is gone"), "{error}");
        assert!(broken.load(Ordering::Relaxed));
    }
}
