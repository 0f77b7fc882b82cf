//! A stream whose beginning was read, and is read once more.

use std::io::Cursor;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, join, split};

/// Gives `head`, and then what `stream` gives; what is written goes to `stream`.
pub(crate) fn rewind<S>(
    head: Bytes,
    stream: S,
) -> impl AsyncRead + AsyncWrite + Unpin + Send + use<S>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let (from, to) = split(stream);
    join(Cursor::new(head).chain(from), to)
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    #[tokio::test]
    async fn nothing_is_lost_or_read_twice() {
        let world = join(&b"world"[..], tokio::io::sink());
        let mut stream = rewind(Bytes::from_static(b"hello, "), world);
        let mut first = [0; 3];
        stream.read_exact(&mut first).await.unwrap();
        let mut rest = String::new();
        stream.read_to_string(&mut rest).await.unwrap();
        assert_eq!((&first[..], rest.as_str()), (&b"hel"[..], "lo, world"));
    }
}
