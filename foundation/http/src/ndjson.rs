//! Bodies of one JSON object a line, made as long as somebody reads them, and read as they come.

use std::collections::VecDeque;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use futures_util::FutureExt as _;
use futures_util::stream::{self, Stream};
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Body, Frame};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Lines that are there anyway go out together, up to about this many bytes.
const BATCH_LEN: usize = 32 * 1024;

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line<T> {
    /// An object.
    Object(T),
    /// Nothing: keeps a quiet connection alive.
    Blank,
}

/// Where the lines of a body come from. Asked only when the reader takes more, and dropped when they leave.
pub trait Source: Send + 'static {
    /// What the objects are made of.
    type Item: Serialize + Send;
    /// Ends the body in the middle.
    type Error: From<serde_json::Error> + Send + 'static;

    /// The next line; `None` at the end. Safe to cancel.
    fn next(
        &mut self,
    ) -> impl Future<Output = Result<Option<Line<Self::Item>>, Self::Error>> + Send;
}

/// The answer that writes what `source` gives; it is never cached.
#[must_use]
pub fn answer<S: Source>(source: S) -> Response<UnsyncBoxBody<Bytes, S::Error>> {
    let mut answer = Response::new(StreamBody::new(frames(source)).boxed_unsync());
    let headers = answer.headers_mut();
    let ndjson = HeaderValue::from_static("application/x-ndjson");
    headers.insert(CONTENT_TYPE, ndjson);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

fn frames<S: Source>(
    source: S,
) -> impl Stream<Item = Result<Frame<Bytes>, S::Error>> + Send + 'static {
    // `None` once the source has ended: it is not asked again.
    stream::try_unfold(Some(source), |state| async move {
        let Some(mut source) = state else {
            return Ok(None);
        };
        let mut batch = BytesMut::new();
        let mut next = source.next().await;
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
        Ok(Some((Frame::data(batch.freeze()), Some(source))))
    })
}

/// Why there is no next line.
#[derive(Debug, thiserror::Error)]
pub enum ReadError<E> {
    /// The body broke off.
    #[error("the lines broke off")]
    Body(#[source] E),
    /// It ended within a line.
    #[error("the lines ended in the middle of one")]
    Torn,
    /// A line is longer than we take.
    #[error("a line is longer than {0} bytes")]
    TooLong(usize),
    /// A line is not an object of the right shape.
    #[error("a line is not what it should be")]
    Shape(#[source] serde_json::Error),
}

/// Reads lines of at most `len_max` bytes.
#[derive(Debug)]
pub struct Lines<B> {
    body: B,
    len_max: usize,
    partial: BytesMut,
    whole: VecDeque<Bytes>,
    ended: bool,
    /// A line came that is too long: said after the whole ones before it.
    overlong: bool,
}

impl<B: Body<Data = Bytes> + Unpin> Lines<B> {
    /// The lines of `body`.
    #[must_use]
    pub fn new(body: B, len_max: usize) -> Self {
        Self {
            body,
            len_max,
            partial: BytesMut::new(),
            whole: VecDeque::new(),
            ended: false,
            overlong: false,
        }
    }

    /// The next line; `None` at the end. Safe to cancel.
    ///
    /// # Errors
    /// [`ReadError`]; after one there is nothing more to read.
    pub async fn next<T: DeserializeOwned>(
        &mut self,
    ) -> Result<Option<Line<T>>, ReadError<B::Error>> {
        loop {
            if let Some(line) = self.whole.pop_front() {
                if line.trim_ascii().is_empty() {
                    return Ok(Some(Line::Blank));
                }
                let object = serde_json::from_slice(&line).map_err(ReadError::Shape)?;
                return Ok(Some(Line::Object(object)));
            }
            if std::mem::take(&mut self.overlong) {
                return Err(ReadError::TooLong(self.len_max));
            }
            if self.ended {
                return Ok(None);
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    // Trailers say nothing to us.
                    let data = frame.into_data().unwrap_or_default();
                    self.take(data);
                }
                Some(Err(error)) => {
                    self.ended = true;
                    return Err(ReadError::Body(error));
                }
                None => {
                    self.ended = true;
                    if !self.partial.is_empty() {
                        return Err(ReadError::Torn);
                    }
                }
            }
        }
    }

    fn take(&mut self, mut data: Bytes) {
        while let Some(at) = data.iter().position(|byte| *byte == b'\n') {
            let end = data.split_to(at);
            data.advance(1);
            if !self.extend(&end) {
                return;
            }
            self.whole.push_back(self.partial.split().freeze());
        }
        self.extend(&data);
    }

    /// Whether the line may be so long.
    fn extend(&mut self, part: &[u8]) -> bool {
        if self.partial.len() + part.len() > self.len_max {
            (self.ended, self.overlong) = (true, true);
            return false;
        }
        self.partial.extend_from_slice(part);
        true
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;
    use proptest::prelude::*;

    use super::*;

    struct Few(VecDeque<Line<u64>>);

    impl Source for Few {
        type Item = u64;
        type Error = serde_json::Error;

        async fn next(&mut self) -> Result<Option<Line<u64>>, serde_json::Error> {
            Ok(self.0.pop_front())
        }
    }

    async fn read<B: Body<Data = Bytes> + Unpin>(
        body: B,
        len_max: usize,
    ) -> Result<Vec<Line<u64>>, ReadError<B::Error>> {
        let mut lines = Lines::new(body, len_max);
        let mut read = Vec::new();
        while let Some(line) = lines.next().await? {
            read.push(line);
        }
        Ok(read)
    }

    /// The bytes in pieces of `len`.
    fn pieces(
        text: &[u8],
        len: usize,
    ) -> impl Body<Data = Bytes, Error = std::convert::Infallible> + Unpin {
        let pieces: Vec<_> = text
            .chunks(len)
            .map(|piece| Ok(Frame::data(Bytes::copy_from_slice(piece))))
            .collect();
        StreamBody::new(stream::iter(pieces))
    }

    #[tokio::test]
    async fn what_is_written_is_read() {
        let lines = [Line::Object(1), Line::Blank, Line::Object(22)];
        let answer = answer(Few(lines.clone().into()));
        assert_eq!(answer.headers()[CONTENT_TYPE], "application/x-ndjson");
        let text = answer.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(&text[..], b"1\n\n22\n");
        for len in 1..7 {
            assert_eq!(read(pieces(&text, len), 8).await.unwrap(), lines);
        }
    }

    #[tokio::test]
    async fn what_is_torn_long_or_else_is_refused() {
        let full = |text: &'static str| Full::new(Bytes::from_static(text.as_bytes()));
        assert!(matches!(read(full("1\n2"), 8).await, Err(ReadError::Torn)));
        let long = read(full("123456789\n"), 8).await;
        assert!(matches!(long, Err(ReadError::TooLong(8))));
        let mut lines = Lines::new(full("1\n123456789\n2\n"), 8);
        assert_eq!(lines.next::<u64>().await.unwrap(), Some(Line::Object(1)));
        let long = lines.next::<u64>().await;
        assert!(matches!(long, Err(ReadError::TooLong(8))));
        assert_eq!(lines.next::<u64>().await.unwrap(), None);
        let other = read(full("1\n{}\n"), 8).await;
        assert!(matches!(other, Err(ReadError::Shape(_))));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(
            text in proptest::collection::vec(any::<u8>(), 0..200),
            len in 1_usize..50,
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let _ = runtime.block_on(read(pieces(&text, len), 32));
        }
    }
}
