//! A subscription on its way out, in the form that its reader asked for. It is pulled as fast as the
//! reader reads: what the connection does not take is not read from the log.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt as _, Stream, stream};
use http::{HeaderMap, header};
use hyper::body::Frame;
use tabbify_api::Problem;
use tabbify_api::log::{Delivery, ReadError, STREAM_MEDIA_TYPE, Subscribe};
use tokio_util::sync::CancellationToken;

use super::bearer::Watch;
use crate::wire::{binary, frames, problem, sse};

/// Bytes after which a piece of a streamed body is sent.
pub(super) const PIECE_LEN: usize = 32 * 1024;
/// A subscription with nothing to say says so.
const HEARTBEAT_EVERY: Duration = Duration::from_secs(15);

/// How deliveries become bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Form {
    pub(super) media_type: &'static str,
    delivery: fn(&mut Vec<u8>, &Delivery),
    end: fn(&mut Vec<u8>, &Problem),
    heartbeat: &'static [u8],
}

/// For browsers.
const SSE: Form = Form {
    media_type: "text/event-stream",
    delivery: sse::push_delivery,
    end: sse::push_end,
    heartbeat: sse::HEARTBEAT,
};

/// For services.
const FRAMES: Form = Form {
    media_type: STREAM_MEDIA_TYPE,
    delivery: binary::push_delivery,
    end: frames::push_end,
    heartbeat: frames::HEARTBEAT,
};

impl Form {
    /// What the reader asks for.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        if accepts_frames(headers) { FRAMES } else { SSE }
    }
}

/// Whether the reader names frames among what it accepts.
pub(super) fn accepts_frames(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT).iter();
    let mut types = accepted
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|range| range.split(';').next());
    types.any(|media_type| media_type.trim() == STREAM_MEDIA_TYPE)
}

/// The subscription's bytes, to its end: the token's, the service's, or the log's.
pub(super) fn pieces(
    subscription: Box<dyn Subscribe>,
    form: Form,
    watch: Watch,
    closing: CancellationToken,
) -> impl Stream<Item = Result<Frame<Bytes>, std::convert::Infallible>> + Send {
    let feed = Feed {
        subscription,
        form,
        watch,
        closing,
        ended: false,
    };
    stream::unfold(feed, |mut feed| async move {
        let piece = feed.piece().await?;
        Some((Ok(Frame::data(piece.into())), feed))
    })
}

struct Feed {
    subscription: Box<dyn Subscribe>,
    form: Form,
    watch: Watch,
    closing: CancellationToken,
    ended: bool,
}

impl Feed {
    /// What there is to send, and with it what comes without waiting. `None` after the end.
    async fn piece(&mut self) -> Option<Vec<u8>> {
        if self.ended {
            return None;
        }
        let mut piece = Vec::new();
        let first = tokio::select! {
            biased;
            () = self.closing.cancelled() => {
                let stopping = problem::of_read(&ReadError::Stopping);
                return Some(self.end(piece, &stopping));
            }
            problem = self.watch.ended() => return Some(self.end(piece, &problem)),
            first = self.subscription.next() => first,
            () = tokio::time::sleep(HEARTBEAT_EVERY) => return Some(self.form.heartbeat.to_vec()),
        };
        let mut next = Some(first);
        while let Some(delivery) = next.take() {
            match delivery {
                Ok(delivery) => (self.form.delivery)(&mut piece, &delivery),
                Err(error) => return Some(self.end(piece, &problem::of_read(&error))),
            }
            if piece.len() < PIECE_LEN {
                next = self.subscription.next().now_or_never();
            }
        }
        Some(piece)
    }

    fn end(&mut self, mut piece: Vec<u8>, why: &Problem) -> Vec<u8> {
        self.ended = true;
        (self.form.end)(&mut piece, why);
        piece
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn frames_are_for_whoever_names_them() {
        let check = |accept: &[&'static str], expected: bool| {
            let mut headers = HeaderMap::new();
            for value in accept {
                headers.append(header::ACCEPT, HeaderValue::from_static(value));
            }
            assert_eq!(accepts_frames(&headers), expected, "{accept:?}");
        };
        check(&[], false);
        check(&["*/*"], false);
        check(&["text/event-stream"], false);
        check(&["application/vnd.tabbify.log-stream"], true);
        check(
            &[
                "text/html",
                "application/json, application/vnd.tabbify.log-stream;q=0.9",
            ],
            true,
        );
    }
}
