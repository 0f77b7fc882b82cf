//! HTTP/1.1 over whatever carries bytes: in life streams of the mesh, in tests any other.
//!
//! Callers are the platform's nodes, other apps, and whoever else policy lets in: machines that a rule names,
//! gateways of people's devices. A node has checked who opens the app, so that its `x-tabbify-user` is passed
//! on; a node is who the platform's word for its key calls one. An app is told which app calls it, in
//! [`CALLER_HEADER`], if the mesh has proven that it does. Whatever else stands under our prefix, however it
//! is spelled and in either direction, is not ours and goes no further.

use std::convert::Infallible;
use std::net::Ipv6Addr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tabbify_api::ErrorCode;
use tabbify_api::apps::{ERROR_HEADER, USER_HEADER, is_platform_header};
use tabbify_api::runner::Visitor;
use tabbify_process::chain;
use tabbify_types::{AppId, AppUla, InstanceUla};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

use crate::runtime::{Body, BodyError, RequestError, Runtime};
use crate::traffic::{Connection, Traffic};

/// LIMIT: bytes of one connection that wait to be read or written, and so of a request's head.
const BUFFER_LEN_MAX: usize = 64 * 1024;

/// LIMIT: how long a connection may be open without a request: a caller's machine that vanished
/// says nothing.
const IDLE_MAX: Duration = Duration::from_secs(600);

/// LIMIT: how long the first request of a new connection may take once connections are closed: it was let in,
/// and is on its way.
const FIRST_WITHIN: Duration = Duration::from_secs(1);

/// Header that tells an app which app calls it: its id.
pub const CALLER_HEADER: &str = "x-tabbify-app";

/// Who calls, as the mesh has proven it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caller {
    /// A node of the platform, which has checked for whom.
    Node,
    /// An app, or an instance of one, by the app's address.
    App(Ipv6Addr),
    /// Anybody else that policy lets in.
    Other,
}

impl Caller {
    /// Who opened a connection of the mesh.
    #[must_use]
    pub fn of(incoming: &tabbify_mesh::Incoming) -> Self {
        Self::at(*incoming.remote.ip(), incoming.is_node)
    }

    /// Who came through the machine's doorbell.
    #[must_use]
    pub fn visitor(visitor: &Visitor) -> Self {
        Self::at(*visitor.remote.ip(), visitor.is_node)
    }

    /// By the inner address, and whether the platform calls whoever has it a node.
    fn at(address: Ipv6Addr, is_node: bool) -> Self {
        if InstanceUla::try_from(address).is_ok() {
            let [a, b, c, d, e, ..] = address.segments();
            return Self::App(Ipv6Addr::new(a, b, c, d, e, 0, 0, 1));
        }
        match AppUla::try_from(address) {
            Ok(app) => Self::App(app.addr()),
            Err(_) if is_node => Self::Node,
            Err(_) => Self::Other,
        }
    }

    /// The one header under our prefix that may be passed on.
    fn says(self, headers: &HeaderMap) -> Option<&'static str> {
        let address = match self {
            Self::Node => return Some(USER_HEADER),
            Self::App(address) => address,
            Self::Other => return None,
        };
        let mut told = headers.get_all(CALLER_HEADER).iter();
        let (Some(told), None) = (told.next(), told.next()) else {
            return None;
        };
        let app: AppId = told.to_str().ok()?.parse().ok()?;
        (AppUla::derive(app).addr() == address).then_some(CALLER_HEADER)
    }
}

/// Serves an app's connections.
#[derive(Debug, Clone)]
pub struct Server {
    runtime: Arc<dyn Runtime>,
    traffic: Traffic,
    caller: Caller,
    /// Whether a connection is for one request.
    once: bool,
}

impl Server {
    /// A server for the app that `runtime` runs. Until it is said who calls, nobody's word counts.
    #[must_use]
    pub fn new(runtime: Arc<dyn Runtime>, traffic: Traffic) -> Self {
        Self {
            runtime,
            traffic,
            caller: Caller::Other,
            once: false,
        }
    }

    /// The same for one request a connection: who came through the machine's doorbell comes directly the next
    /// time.
    #[must_use]
    pub fn once(self) -> Self {
        Self { once: true, ..self }
    }

    /// What runs the app.
    #[must_use]
    pub const fn runtime(&self) -> &Arc<dyn Runtime> {
        &self.runtime
    }

    /// The same for connections of this caller.
    #[must_use]
    pub fn called_by(self, caller: Caller) -> Self {
        Self { caller, ..self }
    }

    /// Serves one connection to its end: the caller's, the answer that is under way when
    /// [`Traffic::closing`] is cancelled, or at once when [`Traffic::cut`] is.
    pub fn connection<S>(self, stream: S) -> impl Future<Output = ()> + Send + use<S>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        // From now on, not from when it is first polled: a drain must not miss it.
        let counted = self.traffic.connect();
        self.counted(stream, counted)
    }

    async fn counted<S>(self, stream: S, counted: Connection)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (closing, cut) = (self.traffic.closing().clone(), self.traffic.cut().clone());
        let (begun, keeps) = (CancellationToken::new(), !self.once);
        let service = service_fn(|request| {
            begun.cancel();
            let this = self.clone();
            async move {
                let mut answer = this.answer(request).await;
                if this.traffic.is_leaving() && answer.status() != StatusCode::SWITCHING_PROTOCOLS {
                    let close = HeaderValue::from_static("close");
                    answer.headers_mut().insert(header::CONNECTION, close);
                }
                Ok::<_, Infallible>(answer)
            }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(IDLE_MAX)
            .max_buf_size(BUFFER_LEN_MAX)
            .keep_alive(keeps)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        let mut connection = std::pin::pin!(connection);
        let ended = tokio::select! {
            ended = &mut connection => ended,
            () = closing.cancelled() => {
                tokio::select! {
                    _ = &mut connection => return,
                    () = begun.cancelled() => {}
                    () = cut.cancelled() => {}
                    () = tokio::time::sleep(FIRST_WITHIN) => {}
                }
                connection.as_mut().graceful_shutdown();
                tokio::select! {
                    ended = &mut connection => ended,
                    () = cut.cancelled() => Ok(()),
                }
            }
        };
        if let Err(error) = ended {
            // The caller has gone, or the app failed in the middle; both are told elsewhere.
            tracing::debug!(error = %chain(&error), "connection ended early");
        }
        drop(counted);
    }

    async fn answer(&self, mut request: Request<Incoming>) -> Response<Body> {
        let Some(permit) = self.traffic.begin() else {
            return refusal(&RequestError::new(
                ErrorCode::Unavailable,
                "The app is serving as many requests as it can. Try again.",
            ));
        };
        if request.method() == Method::CONNECT {
            return refusal(&RequestError::new(
                ErrorCode::MethodNotAllowed,
                "An app is not a proxy: CONNECT is not served.",
            ));
        }
        let said = self.caller.says(request.headers());
        remove_ours(request.headers_mut(), said);
        let request = request.map(|body| {
            body.map_err(BodyError::Caller)
                .map_frame(without_ours)
                .boxed_unsync()
        });
        match self.runtime.serve(request, permit).await {
            Ok(mut response) => {
                remove_ours(response.headers_mut(), None);
                response.map(|body| body.map_frame(without_ours).boxed_unsync())
            }
            Err(error) => {
                tracing::debug!(code = error.code.as_str(), "request failed");
                refusal(&error)
            }
        }
    }
}

/// An answer that is not the app's: the node makes a page or a problem document of it.
fn refusal(error: &RequestError) -> Response<Body> {
    let text = Bytes::from(format!("{}\n", error.detail));
    let body = Full::new(text).map_err(|never| match never {});
    let mut response = Response::new(body.boxed_unsync());
    // Every code has a valid status, which a test of the contract holds.
    *response.status_mut() =
        StatusCode::from_u16(error.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(
        HeaderName::from_static(ERROR_HEADER),
        HeaderValue::from_static(error.code.as_str()),
    );
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    response
}

/// Removes every header under the platform's prefix but `kept`.
fn remove_ours(headers: &mut HeaderMap, kept: Option<&str>) {
    let ours =
        |name: &&HeaderName| is_platform_header(name.as_str()) && kept != Some(name.as_str());
    let names: Vec<HeaderName> = headers.keys().filter(ours).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}

/// The same for trailers.
fn without_ours(frame: Frame<Bytes>) -> Frame<Bytes> {
    match frame.into_trailers() {
        Ok(mut trailers) => {
            remove_ours(&mut trailers, None);
            Frame::trailers(trailers)
        }
        Err(data) => data,
    }
}

#[cfg(test)]
mod tests {
    use tabbify_types::{HostUla, InstanceId};

    use super::*;

    /// What is left of the headers that a caller sends who claims to be `callers`, and to speak for the owner.
    fn left(caller: Caller, callers: &[AppId]) -> Vec<String> {
        let mut headers = HeaderMap::new();
        for app in callers {
            let value = HeaderValue::try_from(app.to_string()).unwrap();
            headers.append(CALLER_HEADER, value);
        }
        let owner = HeaderValue::from_static("user:owner");
        for name in [
            USER_HEADER,
            "x_tabbify_user",
            "x-tabbify_user",
            "x.tabbify.user",
            "x_tabbify_app",
            "x-tabbify-anything",
        ] {
            headers.insert(HeaderName::from_static(name), owner.clone());
        }
        let said = caller.says(&headers);
        remove_ours(&mut headers, said);
        let left = headers.keys().map(|name| name.as_str().to_owned());
        left.collect()
    }

    #[test]
    fn nobody_speaks_for_others() {
        let (app, other) = (AppId::mint(), AppId::mint());
        let check = |from: Ipv6Addr, is_node: bool, callers: &[AppId], expected: Option<&str>| {
            let left = left(Caller::at(from, is_node), callers);
            let expected: Vec<&str> = expected.into_iter().collect();
            assert_eq!(left, expected, "{from} {is_node}");
        };
        let machine = HostUla::new(1, 1).addr();
        check(machine, true, &[app], Some(USER_HEADER));
        check(machine, false, &[app], None);
        let by_app = AppUla::derive(app).addr();
        let by_instance = InstanceUla::derive(app, InstanceId(0x1_0002)).addr();
        for from in [by_app, by_instance] {
            check(from, false, &[app], Some(CALLER_HEADER));
            check(from, false, &[other], None);
            check(from, false, &[], None);
            check(from, false, &[app, other], None);
            // An app is an app, whatever else is said of it.
            check(from, true, &[other], None);
        }
    }
}
