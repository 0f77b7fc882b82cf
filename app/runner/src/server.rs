//! HTTP/1.1 over whatever carries bytes: in life streams of the mesh, in tests any other.
//!
//! Callers are the platform's node and other apps. The node has checked who opens the app, so that its
//! `x-tabbify-user` is passed on. An app is told which app calls it, in [`CALLER_HEADER`], if the mesh has
//! proven that it does. Whatever else stands under our prefix, in either direction, is not ours and goes no
//! further.

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
use tabbify_api::apps::{ERROR_HEADER, PLATFORM_HEADER_PREFIX, USER_HEADER};
use tabbify_process::chain;
use tabbify_types::{AppId, AppUla, InstanceUla};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::runtime::{Body, BodyError, RequestError, Runtime};
use crate::traffic::Traffic;

/// LIMIT: bytes of one connection that wait to be read or written, and so of a request's head.
const BUFFER_LEN_MAX: usize = 64 * 1024;

/// LIMIT: how long a connection may be open without a request: a caller's machine that vanished
/// says nothing.
const IDLE_MAX: Duration = Duration::from_secs(600);

/// Header that tells an app which app calls it: its id.
pub const CALLER_HEADER: &str = "x-tabbify-app";

/// Who calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Caller {
    /// The platform, which has checked for whom.
    Platform,
    /// An app, or an instance of one, by the app's address.
    App(Ipv6Addr),
}

impl Caller {
    /// By the inner address, which the mesh has proven.
    fn at(address: Ipv6Addr) -> Self {
        if InstanceUla::try_from(address).is_ok() {
            let [a, b, c, d, e, ..] = address.segments();
            return Self::App(Ipv6Addr::new(a, b, c, d, e, 0, 0, 1));
        }
        match AppUla::try_from(address) {
            Ok(app) => Self::App(app.addr()),
            Err(_) => Self::Platform,
        }
    }

    /// The one header under our prefix that may be passed on.
    fn says(self, headers: &HeaderMap) -> Option<&'static str> {
        let address = match self {
            Self::Platform => return Some(USER_HEADER),
            Self::App(address) => address,
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
}

impl Server {
    /// A server for the app that `runtime` runs.
    #[must_use]
    pub fn new(runtime: Arc<dyn Runtime>, traffic: Traffic) -> Self {
        let caller = Caller::Platform;
        Self {
            runtime,
            traffic,
            caller,
        }
    }

    /// The same for connections from this inner address.
    #[must_use]
    pub fn called_from(self, address: Ipv6Addr) -> Self {
        let caller = Caller::at(address);
        Self { caller, ..self }
    }

    /// Serves one connection to its end: the caller's, the answer that is under way when
    /// [`Traffic::closing`] is cancelled, or at once when [`Traffic::cut`] is.
    pub async fn connection<S>(self, stream: S)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let counted = self.traffic.connect();
        let (closing, cut) = (self.traffic.closing().clone(), self.traffic.cut().clone());
        let service = service_fn(|request| {
            let this = self.clone();
            async move { Ok::<_, Infallible>(this.answer(request).await) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(IDLE_MAX)
            .max_buf_size(BUFFER_LEN_MAX)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let ended = tokio::select! {
            ended = &mut connection => ended,
            () = closing.cancelled() => {
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
    let ours = |name: &&HeaderName| {
        name.as_str().starts_with(PLATFORM_HEADER_PREFIX) && kept != Some(name.as_str())
    };
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

    #[test]
    fn nobody_speaks_for_others() {
        let (app, other) = (AppId::mint(), AppId::mint());
        let headers = |callers: &[AppId]| {
            let mut headers = HeaderMap::new();
            for app in callers {
                let value = HeaderValue::try_from(app.to_string()).unwrap();
                headers.append(CALLER_HEADER, value);
            }
            headers.insert(USER_HEADER, HeaderValue::from_static("user:owner"));
            headers
        };
        let check = |from: Ipv6Addr, callers: &[AppId], expected: Option<&str>| {
            let mut headers = headers(callers);
            let said = Caller::at(from).says(&headers);
            assert_eq!(said, expected, "{from}");
            remove_ours(&mut headers, said);
            let left: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
            assert_eq!(left, expected.into_iter().collect::<Vec<_>>());
        };
        check(HostUla::new(1, 1).addr(), &[app], Some(USER_HEADER));
        let by_app = AppUla::derive(app).addr();
        let by_instance = InstanceUla::derive(app, InstanceId(0x1_0002)).addr();
        for from in [by_app, by_instance] {
            check(from, &[app], Some(CALLER_HEADER));
            check(from, &[other], None);
            check(from, &[], None);
            check(from, &[app, other], None);
        }
    }
}
