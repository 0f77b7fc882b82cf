//! The two bodies of a request, watched: every frame that passes is progress, and a response that
//! its guest did not complete never looks complete.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::oneshot;
use wasmtime_wasi_http::p2::body::HyperOutgoingBody;

use super::meter::Meter;
use super::{Verdict, is_failed};
use crate::runtime::BodyError;
use crate::traffic::Permit;

/// A request's body on its way, to the guest or from it to another app.
pub(super) struct Watched<B> {
    pub(super) body: B,
    pub(super) meter: Arc<Meter>,
}

impl<B: HttpBody<Data = Bytes> + Unpin> HttpBody for Watched<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        self.meter.progress();
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl From<BodyError> for wasmtime_wasi_http::Error {
    fn from(error: BodyError) -> Self {
        match error {
            BodyError::Caller(error) => Self::Hyper(error),
            BodyError::App(_) => Self::HttpProtocolError,
        }
    }
}

/// A response's body on its way from the guest.
///
/// Dropping it tells the guest's task whether the caller got everything, in which case the guest
/// may finish its work, or has gone.
pub(super) struct FromGuest {
    pub(super) body: HyperOutgoingBody,
    pub(super) meter: Arc<Meter>,
    pub(super) verdict: Verdict,
    /// Bytes that the caller still expects, where the head says how many there are.
    pub(super) expected: Option<u64>,
    pub(super) ended: bool,
    pub(super) answered: Option<oneshot::Sender<()>>,
    /// Held until the caller has the answer; the guest's task holds its own.
    pub(super) _permit: Arc<Permit>,
}

impl HttpBody for FromGuest {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let failed = |why: &str| Poll::Ready(Some(Err(BodyError::App(why.to_owned()))));
        match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
            Some(Ok(frame)) => {
                self.meter.progress();
                match frame.data_ref() {
                    Some(data) => {
                        let len = data.len() as u64;
                        self.expected = self.expected.map(|left| left.saturating_sub(len));
                    }
                    None => self.ended = true, // Trailers are last.
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => failed(&error.to_string()),
            None => {
                // The guest's end closes the body, too; only its verdict tells why it ended.
                if self.expected != Some(0) && is_failed(&self.verdict) {
                    return failed("it did not complete its answer");
                }
                self.ended = true;
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for FromGuest {
    fn drop(&mut self) {
        // A connection stops polling at the last expected byte, and never polls an empty body.
        let complete = self.ended || self.expected == Some(0) || self.body.is_end_stream();
        if let (true, Some(answered)) = (complete, self.answered.take()) {
            // The guest may have ended before.
            let _ = answered.send(());
        }
    }
}
