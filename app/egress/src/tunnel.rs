//! A connection that a program has opened through us, byte for byte, once it is clear whom it is for: on an
//! address that many names share, the first bytes choose among them, and they are held until they are read.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, copy_bidirectional_with_sizes,
};
use tokio::time::timeout;

use crate::opening::{OPENING_LEN_MAX, Opening, QUESTIONS, opening};
use crate::{Connection, Guard, Host, Refused};

/// LIMIT: how long the first bytes may take, once there is one.
const OPENING_WITHIN: Duration = Duration::from_secs(10);
/// LIMIT: questions before a connection begins: each of them once.
const QUESTIONS_MAX: usize = QUESTIONS.len();
/// LIMIT: bytes that wait in each direction.
const BUFFER_LEN: usize = 16 * 1024;

/// How a connection goes on.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// As it is.
    Through,
    /// As requests of HTTP, each of which says whom it is for.
    Requests,
}

/// Reads the first bytes of `client`, and says how they go on. A server that speaks first is one that no bytes
/// of its client choose.
///
/// # Errors
/// What they ask for is not allowed, or cannot be known.
pub(crate) async fn begin<C: AsyncRead + AsyncWrite + Unpin>(
    client: &mut C,
    server: &mut Connection,
    guard: &Guard,
    (host, port): (&Host, u16),
) -> Result<(Bytes, Way), Refused> {
    // Whoever may reach everybody, or everybody at this very address, needs no name.
    if host.name().is_none() || guard.rules().allow_any(port) {
        return Ok((Bytes::new(), Way::Through));
    }
    let unclear = |why| Refused::Unclear {
        host: host.clone(),
        port,
        why,
    };
    let mut head = Vec::new();
    let mut read = first(client, server, &mut head).await;
    for _ in 0..QUESTIONS_MAX {
        if matches!(read, Ok(Opening::Question)) {
            read = match ask(client, server, &mut head).await {
                Ok(()) => first(client, server, &mut head).await,
                Err(error) => Err(error),
            };
        }
    }
    let way = match read {
        Ok(Opening::Other | Opening::Short | Opening::Tls(None)) => Way::Through,
        Ok(Opening::Tls(Some(name))) => {
            let inside = String::from_utf8_lossy(&name).into_owned();
            let meant = inside.parse::<Host>();
            let is_allowed = |meant: &Host| meant == host || guard.rules().allow(meant, port);
            if !meant.is_ok_and(|meant| is_allowed(&meant)) {
                let host = host.clone();
                return Err(Refused::Inside { host, port, inside });
            }
            Way::Through
        }
        Ok(Opening::Http) => Way::Requests,
        Ok(Opening::Http2) => return Err(unclear("HTTP/2 without TLS")),
        Ok(Opening::Broken(why)) => return Err(unclear(why)),
        Ok(Opening::Question) => return Err(unclear("they ask for TLS again and again")),
        Err(error) if error.kind() == io::ErrorKind::TimedOut => {
            return Err(unclear("they are late"));
        }
        // It is gone: the rest ends by itself.
        Err(_) => Way::Through,
    };
    Ok((head.into(), way))
}

/// What `client` says first, if `server` does not.
async fn first<C: AsyncRead + Unpin>(
    client: &mut C,
    server: &Connection,
    head: &mut Vec<u8>,
) -> io::Result<Opening> {
    tokio::select! {
        read = read(client, head) => read,
        () = server.speaks() => Ok(Opening::Other),
    }
}

/// Takes a question out of `head`, and brings `client` its answer, after which it speaks first once more: by TLS or
/// without, as it was answered.
async fn ask<C: AsyncWrite + Unpin>(
    client: &mut C,
    server: &mut Connection,
    head: &mut Vec<u8>,
) -> io::Result<()> {
    let asking = async {
        let question: Vec<u8> = head.drain(..QUESTIONS[0].len()).collect();
        server.write_all(&question).await?;
        let answer = server.read_u8().await?;
        client.write_all(&[answer]).await?;
        client.flush().await
    };
    timeout(OPENING_WITHIN, asking).await?
}

/// Reads until the first bytes are clear, or the end. Some may be there.
async fn read<C: AsyncRead + Unpin>(client: &mut C, head: &mut Vec<u8>) -> io::Result<Opening> {
    if head.is_empty() {
        let mut first = [0; 1];
        if client.read(&mut first).await? == 0 {
            return Ok(Opening::Short);
        }
        head.push(first[0]);
    }
    let reading = async {
        loop {
            match opening(head) {
                Opening::Short => {}
                clear => return Ok(clear),
            }
            let left = OPENING_LEN_MAX - head.len();
            let mut more = (&mut *client).take(u64::try_from(left).unwrap_or(u64::MAX));
            if more.read_buf(head).await? == 0 {
                return Ok(Opening::Short);
            }
        }
    };
    timeout(OPENING_WITHIN, reading).await?
}

/// Passes bytes both ways until both have ended, or either breaks.
pub(crate) async fn pass<A, B>(mut client: A, mut server: B)
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let passed =
        copy_bidirectional_with_sizes(&mut client, &mut server, BUFFER_LEN, BUFFER_LEN).await;
    if let Err(error) = passed {
        tracing::debug!(%error, "a tunnel broke");
    }
}
