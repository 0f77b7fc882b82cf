//! Whether an app answers, and if not, what is seen of it instead.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

/// LIMIT: how long one attempt may take.
const ATTEMPT_MAX: Duration = Duration::from_secs(5);
/// Pauses between attempts: short at first, since most apps are there in no time.
const PAUSE_MIN: Duration = Duration::from_millis(5);
/// LIMIT: the same.
const PAUSE_MAX: Duration = Duration::from_millis(250);

/// What was seen last of an app that is not there yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// Nobody takes connections there.
    Nobody,
    /// It took a connection, and did not answer in time, or not in HTTP.
    Mute,
    /// It answers, and not that it is healthy.
    Status(StatusCode),
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nobody => f.write_str("nobody listens there"),
            Self::Mute => f.write_str("it takes connections and does not answer"),
            Self::Status(status) => write!(f, "it answers {status}"),
        }
    }
}

/// Returns when the app at `address` takes a connection, or, with a `path`, answers it with 2xx.
///
/// # Errors
/// What was seen last, after `within`.
pub async fn healthy(
    address: SocketAddr,
    path: Option<&str>,
    within: Duration,
) -> Result<(), Seen> {
    let mut last = Seen::Nobody;
    let trying = async {
        let mut pause = PAUSE_MIN;
        loop {
            match timeout(ATTEMPT_MAX, attempt(address, path)).await {
                Ok(Ok(())) => return,
                Ok(Err(seen)) => last = seen,
                // One that does not even refuse: nobody has the address yet.
                Err(_) if path.is_none() => last = Seen::Nobody,
                Err(_) => last = Seen::Mute,
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    };
    timeout(within, trying).await.map_err(|_| last)
}

async fn attempt(address: SocketAddr, path: Option<&str>) -> Result<(), Seen> {
    let connected = TcpStream::connect(address).await;
    let stream = connected.map_err(|_| Seen::Nobody)?;
    let Some(path) = path else { return Ok(()) };
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|_| Seen::Mute)?;
    let request = Request::get(path)
        .header(header::HOST, address.to_string())
        .header(header::USER_AGENT, "tabbify-health")
        .body(Empty::<Bytes>::new())
        .map_err(|_| Seen::Mute)?;
    let mut answered = std::pin::pin!(sender.send_request(request));
    let answered = tokio::select! {
        answered = &mut answered => answered,
        // It may have brought the answer and ended in one go.
        _ = connection => answered.await,
    };
    let status = answered.map_err(|_| Seen::Mute)?.status();
    match status.is_success() {
        true => Ok(()),
        false => Err(Seen::Status(status)),
    }
}
