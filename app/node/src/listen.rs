//! Step 1: accept, limits, and what every request learns from its connection.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tabbify_process::{Importance, Tasks};
use tabbify_types::RequestId;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::config::{H2_STREAMS_MAX, H2_WINDOW, HEAD_LEN_MAX, HEADERS_MAX};
use crate::framing::{Verdict, Watched};
use crate::handle::handle;
use crate::node::Node;

/// How long to wait after the system could not give a connection, such as without descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The answer to a connection over the limit. Written without waiting: whoever floods us gets no
/// task of ours.
const FULL: &[u8] = b"HTTP/1.1 429 Too Many Requests\r\nconnection: close\r\nretry-after: 1\r\n\
    content-type: application/problem+json\r\ncontent-length: 141\r\n\r\n\
    {\"type\":\"tabbify:error:rate_limited\",\"title\":\"Too many requests\",\"status\":429,\
    \"detail\":\"too many connections are open\",\"code\":\"rate_limited\"}";

/// What a connection tells each of its requests.
#[derive(Debug, Clone)]
pub(crate) struct Connection {
    address: SocketAddr,
    permit: Arc<OwnedSemaphorePermit>,
    pub(crate) verdict: Verdict,
}

/// Who sends a request, and under which name it is known.
#[derive(Debug)]
pub(crate) struct Caller {
    pub(crate) request: RequestId,
    pub(crate) address: SocketAddr,
    /// The host that the request is for, as it was given.
    pub(crate) host: Option<String>,
    /// The connection's place among the allowed ones.
    pub(crate) permit: Arc<OwnedSemaphorePermit>,
}

impl Connection {
    pub(crate) fn caller(&self, request: RequestId, host: Option<String>) -> Caller {
        Caller {
            request,
            address: self.address,
            host,
            permit: Arc::clone(&self.permit),
        }
    }
}

/// Accepts until `shutdown` is cancelled.
pub(crate) async fn accept(
    listener: TcpListener,
    node: Arc<Node>,
    permits: Arc<Semaphore>,
    shutdown: CancellationToken,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.cancelled() => return,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else {
            let _ = stream.try_write(FULL);
            continue;
        };
        let serving = serve(
            stream,
            address,
            Arc::clone(&node),
            Arc::new(permit),
            shutdown.clone(),
        );
        node.tasks
            .spawn("connection", Importance::Detached, serving);
    }
}

async fn serve(
    stream: TcpStream,
    address: SocketAddr,
    node: Arc<Node>,
    permit: Arc<OwnedSemaphorePermit>,
    shutdown: CancellationToken,
) {
    // Small frames must not wait for each other's acknowledgement.
    let _ = stream.set_nodelay(true);
    let (stream, verdict) = Watched::new(stream);
    let connection = Connection {
        address,
        permit,
        verdict,
    };
    let began = AtomicBool::new(false);
    let service = service_fn(|request: Request<Incoming>| {
        began.store(true, Ordering::Relaxed);
        let (node, connection) = (Arc::clone(&node), connection.clone());
        async move { Ok::<_, Infallible>(handle(node, connection, request).await) }
    });
    let builder = builder(&node);
    let serving = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(serving);
    // hyper's own timer starts once it knows the protocol; this one bounds the time until then.
    let first = tokio::time::sleep(node.config.timeouts.head);
    tokio::pin!(first);
    let mut waits_for_first = true;
    let mut draining = false;
    let ended = loop {
        tokio::select! {
            ended = serving.as_mut() => break ended,
            () = &mut first, if waits_for_first => {
                waits_for_first = false;
                if !began.load(Ordering::Relaxed) {
                    tracing::debug!(%address, "no request came in time");
                    return;
                }
            }
            () = shutdown.cancelled(), if !draining => {
                draining = true;
                serving.as_mut().graceful_shutdown();
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%address, %error, "a connection broke");
    }
}

/// Runs the streams of HTTP/2 connections as tasks of ours.
#[derive(Debug, Clone)]
struct Streams(Tasks);

impl<F> Executor<F> for Streams
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        self.0.spawn("h2 stream", Importance::Detached, stream);
    }
}

fn builder(node: &Node) -> Builder<Streams> {
    let timeouts = &node.config.timeouts;
    let mut builder = Builder::new(Streams(node.tasks.clone()));
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(timeouts.head)
        .max_buf_size(HEAD_LEN_MAX)
        .max_headers(HEADERS_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(timeouts.head)
        .keep_alive_timeout(timeouts.head)
        .max_concurrent_streams(H2_STREAMS_MAX)
        .initial_stream_window_size(H2_WINDOW)
        .initial_connection_window_size(4 * H2_WINDOW)
        .max_send_buf_size(HEAD_LEN_MAX)
        .max_header_list_size(u32::try_from(HEAD_LEN_MAX).expect("the limit is a small constant"));
    builder
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_over_the_limit_is_well_formed() {
        let text = std::str::from_utf8(FULL).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .unwrap();
        assert_eq!(length.parse::<usize>().unwrap(), body.len());
        let problem: tabbify_api::Problem = serde_json::from_str(body).unwrap();
        assert_eq!(problem.code, tabbify_api::ErrorCode::RateLimited);
    }
}
