//! An HTTP client that streams both ways, one connection a request.

use std::convert::Infallible;

use anyhow::Context as _;
use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Channel, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// A body to send.
pub type SendBody = BoxBody<Bytes, Infallible>;

/// The sending half of a [`streaming`] body.
pub type Sender = http_body_util::channel::Sender<Bytes, Infallible>;

/// A body that is there at once.
pub fn full(bytes: impl Into<Bytes>) -> SendBody {
    Full::new(bytes.into()).boxed()
}

/// A body that is sent chunk by chunk; two chunks may wait.
#[must_use]
pub fn streaming() -> (Sender, SendBody) {
    let (sender, body) = Channel::new(2);
    (sender, body.boxed())
}

/// Sends `request` to `authority` (`127.0.0.1:port`) and gives the response once its head is there.
///
/// # Errors
/// If the connection or the protocol fails.
pub async fn send(
    authority: &str,
    request: Request<SendBody>,
) -> anyhow::Result<Response<Incoming>> {
    let stream = TcpStream::connect(authority)
        .await
        .with_context(|| authority.to_owned())?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    #[expect(
        clippy::disallowed_methods,
        reason = "a test client outlives no process"
    )]
    tokio::spawn(async move {
        // An error also reaches the request; there it is seen.
        let _ = connection.with_upgrades().await;
    });
    Ok(sender.send_request(request).await?)
}

/// The whole body as text.
///
/// # Errors
/// If it breaks off.
pub async fn text(response: Response<Incoming>) -> anyhow::Result<String> {
    let bytes = response.into_body().collect().await?.to_bytes();
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
