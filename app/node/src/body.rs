//! Bodies on their way through: passed on frame by frame, watched for progress. Nothing is
//! gathered here; a side that does not read stops the other one by TCP's own windows.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep};

use crate::answer::BodyError;
use crate::headers;
use crate::leash::{Leash, PolledLeash, Revoked};
use crate::pool::{Pool, Upstream};

/// How an exchange goes, seen from all its ends.
#[derive(Debug)]
pub(crate) struct Progress(Mutex<State>);

#[derive(Debug)]
struct State {
    /// When a byte last moved, in either direction.
    moved: Instant,
    request: RequestState,
}

/// How far the request's body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RequestState {
    /// The app has not asked for more.
    Flowing,
    /// The app would take more and the caller has sent no more yet.
    AwaitsCaller,
    /// All of it was handed on.
    Done,
    /// The caller broke it off.
    Broken,
}

impl Progress {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(State {
            moved: Instant::now(),
            request: RequestState::Flowing,
        }))
    }

    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn touch(&self) {
        self.with(|state| state.moved = Instant::now());
    }

    pub(crate) fn moved(&self) -> Instant {
        self.with(|state| state.moved)
    }

    pub(crate) fn request(&self) -> RequestState {
        self.with(|state| state.request)
    }

    fn set_request(&self, request: RequestState) {
        self.with(|state| state.request = request);
    }

    /// Returns once nothing has moved for `span`.
    pub(crate) async fn stalled(&self, span: Duration) {
        loop {
            let deadline = self.moved() + span;
            if deadline <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(deadline).await;
        }
    }
}

/// Nothing moved for too long.
#[derive(Debug, thiserror::Error)]
#[error("nothing moved for {} s", .0.as_secs())]
pub(crate) struct Stalled(Duration);

/// Ready once nothing has moved for `span`; its timer is there only while a body waits.
#[derive(Debug)]
struct Idle {
    span: Duration,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Idle {
    fn poll(&mut self, cx: &mut Context<'_>, progress: &Progress) -> Poll<Stalled> {
        loop {
            let deadline = progress.moved() + self.span;
            let sleep = self
                .sleep
                .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
            ready!(sleep.as_mut().poll(cx));
            // The timer may be from before the last byte.
            if deadline <= Instant::now() {
                return Poll::Ready(Stalled(self.span));
            }
            sleep.as_mut().reset(deadline);
        }
    }
}

/// A request's body on its way to the app.
#[derive(Debug)]
pub(crate) struct RequestBody {
    /// `None` for a request that is sent without a body.
    inner: Option<Incoming>,
    progress: Arc<Progress>,
    idle: Idle,
    leash: PolledLeash,
}

impl RequestBody {
    pub(crate) fn new(
        inner: Incoming,
        progress: Arc<Progress>,
        idle: Duration,
        leash: Leash,
    ) -> Self {
        if inner.is_end_stream() {
            progress.set_request(RequestState::Done);
        }
        let idle = Idle {
            span: idle,
            sleep: None,
        };
        Self {
            inner: Some(inner),
            progress,
            idle,
            leash: leash.polled(),
        }
    }

    pub(crate) fn empty(progress: Arc<Progress>) -> Self {
        progress.set_request(RequestState::Done);
        let idle = Idle {
            span: Duration::MAX,
            sleep: None,
        };
        Self {
            inner: None,
            progress,
            idle,
            leash: Leash::default().polled(),
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let Some(inner) = &mut this.inner else {
            return Poll::Ready(None);
        };
        if this.leash.is_cut() {
            this.progress.set_request(RequestState::Broken);
            return Poll::Ready(Some(Err(Revoked.into())));
        }
        match Pin::new(&mut *inner).poll_frame(cx) {
            Poll::Pending => {
                this.progress.set_request(RequestState::AwaitsCaller);
                let ended = ready!(waited(&mut this.leash, &mut this.idle, cx, &this.progress));
                this.progress.set_request(RequestState::Broken);
                Poll::Ready(Some(Err(ended)))
            }
            Poll::Ready(Some(Ok(frame))) => {
                this.progress.touch();
                this.progress.set_request(if inner.is_end_stream() {
                    RequestState::Done
                } else {
                    RequestState::Flowing
                });
                Poll::Ready(Some(Ok(with_trailers(frame, headers::trailers_to_app))))
            }
            Poll::Ready(Some(Err(error))) => {
                this.progress.set_request(RequestState::Broken);
                Poll::Ready(Some(Err(error.into())))
            }
            Poll::Ready(None) => {
                this.progress.set_request(RequestState::Done);
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let nothing = || SizeHint::with_exact(0);
        self.inner.as_ref().map_or_else(nothing, Body::size_hint)
    }
}

/// Why there is nothing more to wait for.
fn waited(
    leash: &mut PolledLeash,
    idle: &mut Idle,
    cx: &mut Context<'_>,
    progress: &Progress,
) -> Poll<BodyError> {
    match leash.poll(cx) {
        Poll::Ready(revoked) => Poll::Ready(revoked.into()),
        Poll::Pending => idle.poll(cx, progress).map(BodyError::from),
    }
}

fn with_trailers(frame: Frame<Bytes>, change: impl Fn(HeaderMap) -> HeaderMap) -> Frame<Bytes> {
    match frame.into_trailers() {
        Ok(trailers) => Frame::trailers(change(trailers)),
        Err(frame) => frame,
    }
}

/// An answer's body on its way to the caller. Holds the connection to the app: at the end of the
/// body it goes back to the pool, and a body that is dropped before takes it down, so that the app
/// learns at once that nobody listens. It breaks off when the caller's token is revoked.
#[derive(Debug)]
pub(crate) struct AnswerBody {
    inner: Incoming,
    upstream: Option<Upstream>,
    pool: Arc<Pool>,
    progress: Arc<Progress>,
    idle: Idle,
    leash: PolledLeash,
}

impl AnswerBody {
    pub(crate) fn new(
        inner: Incoming,
        upstream: Upstream,
        pool: Arc<Pool>,
        progress: Arc<Progress>,
        idle: Duration,
        leash: Leash,
    ) -> Self {
        let idle = Idle {
            span: idle,
            sleep: None,
        };
        let mut this = Self {
            inner,
            upstream: Some(upstream),
            pool,
            progress,
            idle,
            leash: leash.polled(),
        };
        this.release_at_end();
        this
    }

    fn release_at_end(&mut self) {
        if self.inner.is_end_stream() {
            self.release();
        }
    }

    fn release(&mut self) {
        let Some(upstream) = self.upstream.take() else {
            return;
        };
        match self.progress.request() {
            RequestState::Done => self.pool.put_back(upstream),
            // The app has answered and still gets the rest of the request.
            RequestState::Flowing | RequestState::AwaitsCaller => upstream.let_go(),
            RequestState::Broken => drop(upstream),
        }
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        if this.leash.is_cut() {
            return Poll::Ready(Some(Err(Revoked.into())));
        }
        match Pin::new(&mut this.inner).poll_frame(cx) {
            Poll::Pending => {
                let ended = ready!(waited(&mut this.leash, &mut this.idle, cx, &this.progress));
                Poll::Ready(Some(Err(ended)))
            }
            Poll::Ready(Some(Ok(frame))) => {
                this.progress.touch();
                // A caller that knows the length does not ask for the end.
                this.release_at_end();
                Poll::Ready(Some(Ok(with_trailers(frame, headers::trailers_to_caller))))
            }
            Poll::Ready(Some(Err(error))) => {
                tracing::debug!(%error, "the app broke off its answer");
                Poll::Ready(Some(Err(error.into())))
            }
            Poll::Ready(None) => {
                this.release();
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
