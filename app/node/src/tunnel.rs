//! After 101: two streams of bytes that are passed on until one side ends. What is said on them
//! (WebSocket or other) is nobody's business here.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tabbify_process::Importance;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional_with_sizes};

use crate::body::Progress;
use crate::config::TUNNEL_BUFFER_LEN;
use crate::dial::Stream;
use crate::leash::{Leash, Revoked};
use crate::listen::Caller;
use crate::node::Node;
use crate::pool::Upstream;

/// LIMIT: how long a raw connection may be silent: those of databases rest for long.
const RAW_IDLE_MAX: Duration = Duration::from_secs(3600);

/// Joins the two sides in a task of their own, which counts as the caller's connection until it
/// ends. Ends with either side, with the caller's token, at shutdown, or when nothing has moved for
/// the idle time.
pub(crate) fn run(
    node: &Node,
    caller: &Caller,
    (caller_side, app_side, upstream): (OnUpgrade, OnUpgrade, Upstream),
    progress: Arc<Progress>,
    leash: Leash,
) {
    let permit = Arc::clone(&caller.permit);
    let timeouts = node.config.timeouts.clone();
    let token = node.tasks.token();
    let request = caller.request;
    let tunnel = async move {
        let joined = async {
            let both = futures_util::future::try_join(caller_side, app_side);
            let switching = tokio::time::timeout(timeouts.head, both).await;
            let (caller_side, app_side) = switching
                .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
                .map_err(io::Error::other)?;
            let mut caller_side = Moving::new(caller_side, &progress);
            let mut app_side = Moving::new(app_side, &progress);
            copy_bidirectional_with_sizes(
                &mut caller_side,
                &mut app_side,
                TUNNEL_BUFFER_LEN,
                TUNNEL_BUFFER_LEN,
            )
            .await
        };
        tokio::select! {
            ended = joined => match ended {
                Ok((sent, received)) => {
                    tracing::debug!(%request, sent, received, "a tunnel ended");
                }
                Err(error) => tracing::debug!(%request, %error, "a tunnel broke"),
            },
            () = progress.stalled(timeouts.idle) => {
                tracing::debug!(%request, "a tunnel was idle for too long");
            }
            Revoked = leash.cut() => tracing::info!(%request, "a tunnel ends with its token"),
            () = token.cancelled() => {}
        }
        // Until here: hyper hands the stream over only if its connection may end by itself.
        drop((upstream, permit));
    };
    node.tasks.spawn("tunnel", Importance::Detached, tunnel);
}

/// The same for the bytes of a raw port: `app_side` is a connection of the app's own.
pub(crate) fn raw(
    node: &Node,
    caller: &Caller,
    caller_side: OnUpgrade,
    mut app_side: Box<dyn Stream>,
    leash: Leash,
) {
    let permit = Arc::clone(&caller.permit);
    let within = node.config.timeouts.head;
    let token = node.tasks.token();
    let request = caller.request;
    let tunnel = async move {
        let progress = Progress::new();
        let joined = async {
            let caller_side = tokio::time::timeout(within, caller_side).await;
            let caller_side = caller_side
                .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
                .map_err(io::Error::other)?;
            let mut caller_side = Moving::new(caller_side, &progress);
            let mut app_side = Moving {
                stream: &mut app_side,
                progress: &progress,
            };
            let len = TUNNEL_BUFFER_LEN;
            copy_bidirectional_with_sizes(&mut caller_side, &mut app_side, len, len).await
        };
        tokio::select! {
            ended = joined => match ended {
                Ok((sent, received)) => {
                    tracing::debug!(%request, sent, received, "a raw connection ended");
                }
                Err(error) => tracing::debug!(%request, %error, "a raw connection broke"),
            },
            () = progress.stalled(RAW_IDLE_MAX) => {
                tracing::debug!(%request, "a raw connection was idle for too long");
            }
            Revoked = leash.cut() => {
                tracing::info!(%request, "a raw connection ends with its token");
            }
            () = token.cancelled() => {}
        }
        drop(permit);
    };
    node.tasks.spawn("tunnel", Importance::Detached, tunnel);
}

/// A side of a tunnel that notes when bytes come out of it.
#[derive(Debug)]
struct Moving<'a, S> {
    stream: S,
    progress: &'a Progress,
}

impl<'a> Moving<'a, TokioIo<Upgraded>> {
    fn new(stream: Upgraded, progress: &'a Progress) -> Self {
        Self {
            stream: TokioIo::new(stream),
            progress,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Moving<'_, S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        self.progress.touch();
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Moving<'_, S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
