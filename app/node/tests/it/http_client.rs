//! A caller: one connection, or raw bytes.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tabbify_process::{Importance, Tasks};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

pub(crate) type Body = UnsyncBoxBody<Bytes, anyhow::Error>;

/// Nothing in these tests takes longer unless it hangs.
pub(crate) const WATCHDOG: Duration = Duration::from_secs(20);

/// `future`, or a failure that says it hung.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> Result<T> {
    let done = tokio::time::timeout(WATCHDOG, future).await;
    done.with_context(|| format!("{what}: hung"))
}

/// Waits until `condition` holds.
pub(crate) async fn until(what: &str, condition: impl AsyncFn() -> bool) -> Result<()> {
    soon(what, async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) async fn of(response: Response<Incoming>) -> Result<Self> {
        let (parts, body) = response.into_parts();
        let body = soon("an answer's body", body.collect()).await??.to_bytes();
        Ok(Self {
            status: parts.status,
            headers: parts.headers,
            body,
        })
    }

    pub(crate) fn json(&self) -> Result<Value> {
        let text = String::from_utf8_lossy(&self.body);
        serde_json::from_slice(&self.body).with_context(|| format!("{}: {text}", self.status))
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Status and `code` of a problem document, whose shape is checked.
    pub(crate) fn problem(&self) -> Result<(u16, String)> {
        let problem: tabbify_api::Problem = serde_json::from_slice(&self.body)
            .with_context(|| format!("{}: {}", self.status, self.text()))?;
        anyhow::ensure!(problem.status == self.status.as_u16(), "{problem:?}");
        anyhow::ensure!(self.headers["content-type"] == "application/problem+json");
        let request = problem.request.context("the request's id")?.to_string();
        anyhow::ensure!(self.headers["x-tabbify-request"] == request.as_str());
        Ok((problem.status, problem.code.as_str().to_owned()))
    }
}

/// A kept connection to the node.
pub(crate) struct Client {
    pub(crate) sender: SendRequest<Body>,
}

impl Client {
    pub(crate) async fn connect(tasks: &Tasks, node: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(node).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tasks.spawn("client", Importance::Detached, async move {
            let _ = connection.with_upgrades().await;
        });
        Ok(Self { sender })
    }

    pub(crate) async fn send(&mut self, request: Request<Body>) -> Result<Response<Incoming>> {
        self.sender.ready().await?;
        Ok(soon("an answer's head", self.sender.send_request(request)).await??)
    }
}

pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// A body that is written frame by frame; ends when the sender is dropped.
pub(crate) fn channel() -> (mpsc::Sender<Frame<Bytes>>, Body) {
    let (sender, receiver) = mpsc::channel::<Frame<Bytes>>(1);
    let frames = stream::unfold(receiver, |mut receiver| async {
        let frame = receiver.recv().await?;
        Some((Ok::<_, anyhow::Error>(frame), receiver))
    });
    (sender, StreamBody::new(frames).boxed_unsync())
}

/// A raw connection.
pub(crate) struct Raw(pub(crate) TcpStream);

impl Raw {
    pub(crate) async fn connect(node: SocketAddr) -> Result<Self> {
        Ok(Self(TcpStream::connect(node).await?))
    }

    pub(crate) async fn write(&mut self, bytes: impl AsRef<[u8]>) -> Result<()> {
        Ok(self.0.write_all(bytes.as_ref()).await?)
    }

    /// Everything until the node closes.
    pub(crate) async fn rest(&mut self) -> Result<String> {
        let mut bytes = Vec::new();
        // A reset after the answer is as good as an end.
        let _ = soon("the end of a connection", self.0.read_to_end(&mut bytes)).await?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Bytes until `end` has come.
    pub(crate) async fn read_until(&mut self, end: &str) -> Result<String> {
        let mut bytes = Vec::new();
        let reading = async {
            while !bytes.ends_with(end.as_bytes()) {
                bytes.push(self.0.read_u8().await?);
            }
            Ok::<_, std::io::Error>(())
        };
        soon(end, reading).await??;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}
