//! A stream whose other end must take what is written to it, if not fast, then at all.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// Ends with [`io::ErrorKind::TimedOut`] when writing has not moved for too long, if that is limited.
#[derive(Debug)]
pub(crate) struct Patient<S> {
    stream: S,
    limit: Option<Duration>,
    /// Since writing does not move.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S> Patient<S> {
    pub(crate) const fn new(stream: S, limit: Option<Duration>) -> Self {
        Self {
            stream,
            limit,
            stalled: None,
        }
    }

    /// Passes on what writing says; while that is nothing, the time runs.
    fn watched<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let Some(limit) = self.limit else {
            return written;
        };
        let until = || Box::pin(tokio::time::sleep_until(Instant::now() + limit));
        let stalled = self.stalled.get_or_insert_with(until);
        ready!(stalled.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.watched(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.watched(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.watched(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.watched(cx, shut)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_takes_nothing_ends_the_connection() {
        let limit = Duration::from_secs(20);
        let (near, mut far) = tokio::io::duplex(8);
        let mut near = Patient::new(near, Some(limit));
        // However slow, as long as something moves.
        let reading = async {
            let mut byte = [0; 4];
            for _ in 0..6 {
                tokio::time::sleep(limit / 2).await;
                far.read_exact(&mut byte).await?;
            }
            Ok::<_, io::Error>(far)
        };
        let (written, read) = tokio::join!(near.write_all(&[7; 24]), reading);
        written.unwrap();
        let _far = read.unwrap();
        let began = Instant::now();
        let stalled = near.write_all(&[7; 24]).await.unwrap_err();
        assert_eq!(stalled.kind(), io::ErrorKind::TimedOut);
        assert!(began.elapsed() >= limit && began.elapsed() < limit * 2);
    }
}
