//! Devices over HTTP/1.1 on a unix socket: whoever can open it holds the platform's data directory, and
//! asks in the owner's name.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use serde::de::DeserializeOwned;
use tabbify_api::device::{BODY_LEN_MAX, DEVICES_PATH, DeviceOrder, DeviceRemoval, REMOVE_PATH};
use tabbify_api::{ErrorCode, Problem};
use tabbify_http::{Handle, Limits, Server, answer};
use tabbify_process::Tasks;
use tabbify_types::RequestId;
use tokio::net::UnixListener;

use crate::gateway::Gateway;

/// LIMIT: connections at once; bytes of one connection that wait to be read or written, and so of a
/// request's head; how long a connection may be open without a request, or take for a request's head; how
/// long the reader of an answer may take nothing of it.
const LIMITS: Limits = Limits {
    connections: 16,
    buffer_len: 16 * 1024,
    idle: Duration::from_secs(20),
    stalled: Some(Duration::from_secs(20)),
};
/// LIMIT: how long a body may take to arrive.
const BODY_WITHIN: Duration = Duration::from_secs(10);
/// `GET` the [`Stats`](crate::Stats).
pub const STATS_PATH: &str = "/v1/devices/stats";

type Answer = Response<Full<Bytes>>;

/// Serves a gateway's devices.
#[derive(Clone)]
pub struct Service {
    requests: Arc<Inner>,
    server: Server,
}

struct Inner {
    gateway: Gateway,
    by: String,
}

impl Service {
    /// A service whose requests are made in the name of `by`; it ends with `tasks`.
    #[must_use]
    pub fn new(gateway: Gateway, by: String, tasks: &Tasks) -> Self {
        Self {
            requests: Arc::new(Inner { gateway, by }),
            server: Server::new("gateway service", LIMITS, tasks),
        }
    }

    /// Serves over a unix socket until the tasks end. Its permissions are the caller's.
    pub async fn serve_unix(self, listener: UnixListener) {
        let requests = self.requests;
        self.server
            .serve(listener, |_| Requests(Arc::clone(&requests)))
            .await;
    }
}

/// Those of one connection.
struct Requests(Arc<Inner>);

impl Handle for Requests {
    type Body = Full<Bytes>;

    async fn handle(&self, request: Request<Incoming>) -> Answer {
        let id = RequestId::mint();
        match route(&self.0, request).await {
            Ok(answer) => answer,
            Err(mut problem) => {
                problem.request = Some(id);
                let (code, detail) = (problem.code.as_str(), &problem.detail);
                tracing::debug!(request = %id, code, detail, "request refused");
                answer::problem(&problem)
            }
        }
    }
}

async fn route(inner: &Inner, request: Request<Incoming>) -> Result<Answer, Box<Problem>> {
    let (parts, incoming) = request.into_parts();
    let devices = inner.gateway.devices();
    let by = || inner.by.clone();
    match (parts.uri.path(), parts.method) {
        (DEVICES_PATH, Method::GET) => {
            let all = devices.all();
            let all = all.map_err(|unknown| plain(ErrorCode::Unavailable, &unknown.to_string()))?;
            Ok(answer::json(&all))
        }
        (DEVICES_PATH, Method::POST) => {
            let order: DeviceOrder = body(incoming).await?;
            let device = devices.add(order, by()).await.map_err(Box::new)?;
            Ok(answer::json(&inner.gateway.connection(device)))
        }
        (REMOVE_PATH, Method::POST) => {
            let removal: DeviceRemoval = body(incoming).await?;
            let device = devices.remove(removal, by()).await.map_err(Box::new)?;
            Ok(answer::json(&device))
        }
        (STATS_PATH, Method::GET) => Ok(answer::json(&inner.gateway.stats())),
        (path @ (DEVICES_PATH | REMOVE_PATH | STATS_PATH), method) => {
            let text = format!("{path} does not take {method}");
            Err(plain(ErrorCode::MethodNotAllowed, &text))
        }
        (path, _) => Err(plain(ErrorCode::NotFound, path)),
    }
}

async fn body<T: DeserializeOwned>(incoming: Incoming) -> Result<T, Box<Problem>> {
    let whole = Limited::new(incoming, BODY_LEN_MAX).collect();
    let whole = tokio::time::timeout(BODY_WITHIN, whole).await;
    let whole = whole.map_err(|_| plain(ErrorCode::BadRequest, "the body takes too long"))?;
    let bytes = whole.map_err(|error| match error.is::<LengthLimitError>() {
        true => {
            let text = format!("the body is longer than {BODY_LEN_MAX} bytes");
            plain(ErrorCode::TooLarge, &text)
        }
        false => plain(ErrorCode::BadRequest, "the body breaks off"),
    })?;
    serde_json::from_slice(&bytes.to_bytes())
        .map_err(|error| plain(ErrorCode::BadJson, &error.to_string()))
}

fn plain(code: ErrorCode, detail: &str) -> Box<Problem> {
    Box::new(Problem::new(code, detail))
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service")
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}
