//! Step 1, beside the parser: refuses heads whose framing can be read in two ways (RFC 9112 6.1,
//! 6.3), as request smuggling needs them.
//!
//! hyper repairs such heads (it drops `Content-Length` beside `Transfer-Encoding` and merges equal
//! lengths) before a service can see them. So the bytes are followed here on their way in, far
//! enough to see each head as it was sent. This never decides where a message ends: a head that is
//! misjudged here costs a refusal or a missed one, and hyper's repair stays underneath.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::config::HEAD_LEN_MAX;

/// Follows HTTP/1 framing and remembers whether a head was ambiguous.
#[derive(Debug)]
pub(crate) struct Framing {
    state: State,
    ambiguous: bool,
}

#[derive(Debug)]
enum State {
    /// Within a head, which is kept until it is whole.
    Head(Vec<u8>),
    /// Bytes of a body of known length that are still to come.
    Body(u64),
    /// Within the size line of a chunk.
    ChunkSize { size: u64, extension: bool },
    /// Bytes of a chunk, with its line end, that are still to come.
    Chunk(u64),
    /// Within the trailer section; whether the current line has a character.
    Trailer { line_has_text: bool },
    /// Not HTTP/1, refused, or beyond what is followed: hyper alone decides.
    Off,
}

impl Framing {
    pub(crate) const fn new() -> Self {
        Self {
            state: State::Head(Vec::new()),
            ambiguous: false,
        }
    }

    /// Whether a head so far could be read in two ways. Stays true: the connection is lost.
    #[cfg(test)]
    const fn is_ambiguous(&self) -> bool {
        self.ambiguous
    }

    /// Takes the next bytes of the connection.
    pub(crate) fn feed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let used = match &mut self.state {
                State::Head(head) => {
                    let used = take_head(head, bytes);
                    if is_whole(head) {
                        let head = std::mem::take(head);
                        self.head(&head);
                    } else if head.len() > HEAD_LEN_MAX {
                        self.state = State::Off;
                    }
                    used
                }
                State::Body(left) => {
                    let used = skip(left, bytes);
                    if *left == 0 {
                        self.state = State::Head(Vec::new());
                    }
                    used
                }
                State::Chunk(left) => {
                    let used = skip(left, bytes);
                    if *left == 0 {
                        self.state = State::ChunkSize {
                            size: 0,
                            extension: false,
                        };
                    }
                    used
                }
                State::ChunkSize { size, extension } => {
                    let next = chunk_size(*size, *extension, bytes[0]);
                    self.state = next;
                    1
                }
                State::Trailer { line_has_text } => {
                    match (bytes[0], *line_has_text) {
                        (b'\n', false) => self.state = State::Head(Vec::new()),
                        (b'\n', true) => *line_has_text = false,
                        (b'\r', _) => {}
                        _ => *line_has_text = true,
                    }
                    1
                }
                State::Off => return,
            };
            bytes = &bytes[used..];
        }
    }

    fn head(&mut self, head: &[u8]) {
        let mut lines = head.split(|b| *b == b'\n').map(<[u8]>::trim_ascii);
        if lines.next().is_none_or(|line| line.starts_with(b"PRI * ")) {
            self.state = State::Off;
            return;
        }
        let (mut lengths, mut codings, mut length) = (0_u32, 0_u32, Some(0_u64));
        let mut plain = true;
        for line in lines {
            let Some(colon) = line.iter().position(|b| *b == b':') else {
                continue;
            };
            let (name, value) = (line[..colon].trim_ascii(), line[colon + 1..].trim_ascii());
            if name.eq_ignore_ascii_case(b"content-length") {
                lengths += 1;
                length = decimal(value);
                plain &= length.is_some();
            } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
                codings += 1;
                plain &= value.eq_ignore_ascii_case(b"chunked");
            }
        }
        if !plain || lengths + codings > 1 {
            self.ambiguous = true;
            self.state = State::Off;
        } else if codings == 1 {
            self.state = State::ChunkSize {
                size: 0,
                extension: false,
            };
        } else {
            self.state = match length {
                Some(0) => State::Head(Vec::new()),
                Some(length) => State::Body(length),
                None => State::Off,
            };
        }
    }
}

/// Moves bytes of a head, up to its end, into `head`; empty lines before it are not part of it.
fn take_head(head: &mut Vec<u8>, bytes: &[u8]) -> usize {
    for (used, byte) in bytes.iter().enumerate() {
        if head.is_empty() && matches!(byte, b'\r' | b'\n') {
            continue;
        }
        head.push(*byte);
        if *byte == b'\n' && is_whole(head) {
            return used + 1;
        }
    }
    bytes.len()
}

fn is_whole(head: &[u8]) -> bool {
    head.ends_with(b"\n\r\n") || head.ends_with(b"\n\n")
}

fn skip(left: &mut u64, bytes: &[u8]) -> usize {
    let used = usize::try_from(*left)
        .unwrap_or(usize::MAX)
        .min(bytes.len());
    *left -= used as u64;
    used
}

fn chunk_size(size: u64, extension: bool, byte: u8) -> State {
    match byte {
        b'\n' if size == 0 => State::Trailer {
            line_has_text: false,
        },
        // The chunk's own CR LF is part of what is skipped.
        b'\n' => size.checked_add(2).map_or(State::Off, State::Chunk),
        _ if extension => State::ChunkSize { size, extension },
        b'\r' | b' ' | b'\t' => State::ChunkSize { size, extension },
        b';' => State::ChunkSize {
            size,
            extension: true,
        },
        _ => match (char::from(byte).to_digit(16), size.checked_mul(16)) {
            (Some(digit), Some(size)) => State::ChunkSize {
                size: size + u64::from(digit),
                extension,
            },
            _ => State::Off,
        },
    }
}

fn decimal(value: &[u8]) -> Option<u64> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// What a connection's service learns about its framing.
#[derive(Debug, Clone, Default)]
pub(crate) struct Verdict(Arc<AtomicBool>);

impl Verdict {
    /// Whether a head on this connection could be read in two ways.
    pub(crate) fn is_ambiguous(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// A connection whose incoming bytes are followed.
#[derive(Debug)]
pub(crate) struct Watched<S> {
    stream: S,
    framing: Framing,
    verdict: Verdict,
}

impl<S> Watched<S> {
    pub(crate) fn new(stream: S) -> (Self, Verdict) {
        let verdict = Verdict::default();
        let watched = Self {
            stream,
            framing: Framing::new(),
            verdict: verdict.clone(),
        };
        (watched, verdict)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        self.framing.feed(&buf.filled()[before..]);
        if self.framing.ambiguous {
            self.verdict.0.store(true, Ordering::Release);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
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

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn judge(bytes: &[u8]) -> Framing {
        let mut framing = Framing::new();
        framing.feed(bytes);
        framing
    }

    #[test]
    fn ambiguous_heads() {
        for (head, expected) in [
            ("Content-Length: 3", false),
            ("Transfer-Encoding: chunked", false),
            ("Transfer-Encoding: Chunked", false),
            ("Content-Length: 3\r\nTransfer-Encoding: chunked", true),
            ("transfer-encoding: chunked\r\ncontent-length: 3", true),
            ("Content-Length: 3\r\nContent-Length: 3", true),
            ("Content-Length: 3\r\nContent-Length: 4", true),
            ("Content-Length: 3, 3", true),
            ("Content-Length: +3", true),
            ("Content-Length:", true),
            ("Transfer-Encoding: gzip, chunked", true),
            (
                "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
                true,
            ),
            ("Transfer-Encoding: xchunked", true),
            ("X-Content-Length: 3\r\nContent-Length: 3", false),
        ] {
            let bytes = format!("POST / HTTP/1.1\r\nHost: a\r\n{head}\r\n\r\n");
            assert_eq!(judge(bytes.as_bytes()).is_ambiguous(), expected, "{head}");
        }
    }

    #[test]
    fn a_body_is_not_a_head() {
        let evil = "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n";
        let sized = format!(
            "POST / HTTP/1.1\r\nContent-Length: {}\r\n\r\n{evil}",
            evil.len()
        );
        assert!(!judge(sized.as_bytes()).is_ambiguous());
        let chunked = format!(
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{:x};a=b\r\n{evil}\r\n0\r\nA: b\r\n\r\n",
            evil.len()
        );
        assert!(!judge(chunked.as_bytes()).is_ambiguous());
        // The head after each of them is seen.
        for first in [sized, chunked] {
            let both = format!("{first}GET / HTTP/1.1\r\n{evil}");
            assert!(judge(both.as_bytes()).is_ambiguous(), "{both}");
        }
    }

    #[test]
    fn http2_is_left_alone() {
        let mut framing = judge(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        framing.feed(b"X\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n");
        assert!(!framing.is_ambiguous());
    }

    /// A plain message with a body of `len` bytes, sized or chunked by `chunk`.
    fn message(len: usize, chunk: Option<usize>) -> Vec<u8> {
        let body: Vec<u8> = (0..len).map(|i| b"\r\n:0aC"[i % 6]).collect();
        match chunk {
            None => {
                let mut bytes =
                    format!("PUT / HTTP/1.1\r\nContent-Length: {len}\r\n\r\n").into_bytes();
                bytes.extend(body);
                bytes
            }
            Some(chunk) => {
                let mut bytes = b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
                for part in body.chunks(chunk) {
                    bytes.extend(format!("{:X}\r\n", part.len()).into_bytes());
                    bytes.extend(part);
                    bytes.extend(b"\r\n");
                }
                bytes.extend(b"0\r\n\r\n");
                bytes
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_fine(parts in proptest::collection::vec(any::<Vec<u8>>(), 0..8)) {
            let mut framing = Framing::new();
            for part in parts {
                framing.feed(&part);
            }
        }

        #[test]
        fn messages_are_followed_however_they_arrive(
            messages in proptest::collection::vec((0_usize..200, proptest::option::of(1_usize..50)), 0..6),
            cut in 1_usize..40,
        ) {
            let mut bytes: Vec<u8> =
                messages.into_iter().flat_map(|(len, chunk)| message(len, chunk)).collect();
            let mut framing = Framing::new();
            bytes.chunks(cut).for_each(|part| framing.feed(part));
            prop_assert!(!framing.is_ambiguous());
            prop_assert!(matches!(&framing.state, State::Head(head) if head.is_empty()));
            bytes.extend(b"GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n");
            let mut framing = Framing::new();
            bytes.chunks(cut).for_each(|part| framing.feed(part));
            prop_assert!(framing.is_ambiguous());
        }
    }
}
