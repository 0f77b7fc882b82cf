//! An answer's body on its way from the app.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use tabbify_process::chain;

use super::{Idle, Sender};
use crate::runtime::BodyError;
use crate::traffic::Permit;

/// The body, with the connection that it comes on: dropped before its end, it closes that, which tells the
/// app that nobody wants the rest.
pub(super) struct FromApp {
    body: Incoming,
    sender: Option<Sender>,
    idle: Idle,
    _permit: Permit,
}

impl FromApp {
    pub(super) fn new(
        body: Incoming,
        no_body: bool,
        sender: Sender,
        idle: Idle,
        permit: Permit,
    ) -> Self {
        let mut this = Self {
            body,
            sender: Some(sender),
            idle,
            _permit: permit,
        };
        // Who has nothing to read never polls.
        if no_body || this.body.is_end_stream() {
            this.keep();
        }
        this
    }

    fn keep(&mut self) {
        if let Some(sender) = self.sender.take() {
            self.idle.keep(sender);
        }
    }
}

impl HttpBody for FromApp {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
            Some(Ok(frame)) => {
                if self.body.is_end_stream() {
                    self.keep();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => {
                self.sender = None;
                let why = format!("it broke off its answer ({})", chain(&error));
                Poll::Ready(Some(Err(BodyError::App(why))))
            }
            None => {
                self.keep();
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
