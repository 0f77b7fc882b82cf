//! Answers of one JSON object a line, as long as the caller listens.

use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::FutureExt as _;
use futures_util::stream::{self, Stream};
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Response};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use serde::Serialize;

use crate::answer::{Answer, BodyError};
use crate::leash::Leash;

/// Lines that are there anyway go out together, up to about this many bytes.
const BATCH_LEN: usize = 32 * 1024;

/// One line.
#[derive(Debug)]
pub(crate) enum Line<T> {
    /// An object.
    Object(T),
    /// Nothing: keeps a quiet connection alive.
    Blank,
}

/// Where the lines come from. Asked only when the caller takes more, and dropped when they leave.
pub(crate) trait Source: Send + 'static {
    /// What the objects are made of.
    type Item: Serialize + Send;

    /// The next line; `None` at the end. Safe to cancel.
    fn next(&mut self) -> impl Future<Output = Result<Option<Line<Self::Item>>, BodyError>> + Send;
}

/// The answer that writes what `source` gives, until the caller's token is revoked.
pub(crate) fn answer(source: impl Source, leash: Leash) -> Answer {
    let mut answer = Response::new(StreamBody::new(frames(source, leash)).boxed_unsync());
    let headers = answer.headers_mut();
    let ndjson = HeaderValue::from_static("application/x-ndjson");
    headers.insert(CONTENT_TYPE, ndjson);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

fn frames<S: Source>(
    source: S,
    leash: Leash,
) -> impl Stream<Item = Result<Frame<Bytes>, BodyError>> + Send + 'static {
    // `None` once the source has ended: it is not asked again.
    stream::try_unfold(Some((source, leash)), |state| async move {
        let Some((mut source, leash)) = state else {
            return Ok(None);
        };
        let mut batch = BytesMut::new();
        let mut next = leash.hold(source.next()).await?;
        loop {
            let Some(line) = next? else {
                let last = (!batch.is_empty()).then(|| (Frame::data(batch.freeze()), None));
                return Ok(last);
            };
            if let Line::Object(object) = line {
                let mut out = batch.writer();
                serde_json::to_writer(&mut out, &object)?;
                batch = out.into_inner();
            }
            batch.put_u8(b'\n');
            if batch.len() >= BATCH_LEN {
                break;
            }
            match source.next().now_or_never() {
                Some(more) => next = more,
                None => break,
            }
        }
        Ok(Some((Frame::data(batch.freeze()), Some((source, leash)))))
    })
}
