//! Other apps, by name: where a guest's requests to `http://<app>.<tenant>.internal/…` go. Over the
//! runner's own mesh, which proves who calls and keeps out who may not, so that the app's code holds no
//! secret for it. Both bodies stream.
//!
//! A request costs a connection of its own: the session underneath is kept, so that it costs one round
//! trip of the mesh.

use std::fmt;
use std::net::SocketAddrV6;
use std::sync::Arc;

use http::uri::{PathAndQuery, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri};
use tabbify_api::apps::PLATFORM_HEADER_PREFIX;
use tabbify_api::names::{MeshName, NameAsk, NameError, Names, NoNames};
use tabbify_mesh::{DialError, Mesh, Stream};
use tabbify_types::{APP_PORT, AppId, AppUla};
use tokio::sync::Semaphore;
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody};

use super::exchange::{Answered, Exchange, NotSent, Patience};
use super::meter::Meter;
use crate::server::CALLER_HEADER;

/// LIMIT: requests to other apps at a time, of all guests of this runner.
const REQUESTS_MAX: usize = 256;

/// The ways to other apps. Clones share their limits.
#[derive(Clone)]
pub struct Neighbors {
    names: Arc<dyn Names>,
    mesh: Option<Mesh>,
    own: AppId,
    places: Arc<Semaphore>,
}

impl Neighbors {
    /// Those of `own`, by `names`, over its `mesh`.
    #[must_use]
    pub fn new(own: AppId, names: Arc<dyn Names>, mesh: Mesh) -> Self {
        Self {
            names,
            mesh: Some(mesh),
            own,
            places: Arc::new(Semaphore::new(REQUESTS_MAX)),
        }
    }

    /// No way to anybody.
    #[must_use]
    pub fn none(own: AppId) -> Self {
        Self {
            names: Arc::new(NoNames),
            mesh: None,
            own,
            places: Arc::new(Semaphore::new(REQUESTS_MAX)),
        }
    }
}

impl fmt::Debug for Neighbors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Neighbors")
            .field("own", &self.own)
            .field("names", &self.names)
            .finish_non_exhaustive()
    }
}

/// Whether a request is for another app, well named or not.
pub(super) fn is_meant(uri: &Uri) -> bool {
    uri.host().is_some_and(MeshName::is_meant)
}

impl Neighbors {
    /// Sends `request`, whose host [`is_meant`], and gives the head of the answer.
    pub(super) async fn send(
        &self,
        request: Request<WasiBody>,
        options: Option<RequestOptions>,
        meter: Arc<Meter>,
    ) -> Result<Answered, NotSent> {
        let patience = Patience::of(options);
        let place = Arc::clone(&self.places).try_acquire_owned();
        let place = place.map_err(|_| {
            let why = format!("more than {REQUESTS_MAX} requests to other apps at a time");
            NotSent::new(Error::ConnectionLimitReached, why)
        })?;
        let name = name_of(&request)?;
        let dialing = async {
            let dialed = self.dial(&name, APP_PORT).await;
            dialed.map_err(|error| NotSent::new(code(&error), error.to_string()))
        };
        let stream = patience.connect(dialing).await?;
        let exchange = Exchange {
            stream: Box::new(stream),
            patience,
            meter,
            place: Some(place),
        };
        exchange.send(self.onward(request), &name).await
    }

    /// A connection to another app, at its own port for requests or another one that it has.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn dial(&self, name: &MeshName, port: u16) -> Result<Stream, Unreached> {
        let found = self.names.find(NameAsk::Name(name.clone())).await;
        let named = found.map_err(|error| match error {
            NameError::Unknown(_) => Unreached::Nobody,
            NameError::Unreachable(why) => Unreached::Unasked(why),
        })?;
        // A machine is none of an app's business, even one that serves it its artifacts.
        let address = AppUla::try_from(named.address).map_err(|_| Unreached::Nobody)?;
        if address == AppUla::derive(self.own) {
            return Err(Unreached::Itself);
        }
        let mesh = self.mesh.as_ref().ok_or(Unreached::NoMesh)?;
        let dialed = mesh.dial(SocketAddrV6::new(address.addr(), port, 0, 0));
        dialed.await.map_err(Unreached::Dial)
    }

    /// The request as the other app gets it.
    fn onward(&self, request: Request<WasiBody>) -> Request<WasiBody> {
        let (mut parts, body) = request.into_parts();
        let path = parts.uri.path_and_query().cloned();
        parts.uri = Uri::from(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
        self.sign(&mut parts.headers);
        Request::from_parts(parts, body)
    }

    /// Makes the headers of a request say who calls, which is ours to say; and what else is ours is not the
    /// app's to send.
    pub(crate) fn sign(&self, headers: &mut HeaderMap) {
        remove_ours(headers);
        if let Ok(own) = HeaderValue::try_from(self.own.to_string()) {
            headers.insert(CALLER_HEADER, own);
        }
    }
}

/// Why another app is not reached.
#[derive(Debug, thiserror::Error)]
pub enum Unreached {
    /// Nobody has the name, or nobody whom this app may reach.
    #[error("there is no such app, or it may not be reached from here")]
    Nobody,
    /// Nobody can be asked who has it.
    #[error("{0}")]
    Unasked(String),
    /// It is the app itself.
    #[error("an app that calls itself would wait for itself")]
    Itself,
    /// There is no network of apps here.
    #[error("this runner has no mesh")]
    NoMesh,
    /// It does not answer.
    #[error("{}", tabbify_process::chain(.0))]
    Dial(DialError),
}

/// What the guest is told.
fn code(error: &Unreached) -> Error {
    match error {
        Unreached::Nobody => Error::DestinationNotFound,
        Unreached::Unasked(_) => Error::DnsTimeout,
        Unreached::Itself => Error::LoopDetected,
        Unreached::NoMesh => Error::DestinationUnavailable,
        Unreached::Dial(error) => match error {
            DialError::NoLease(_) | DialError::Unreachable(_) | DialError::Resolve { .. } => {
                Error::DestinationUnavailable
            }
            DialError::Refused(_) | DialError::Forbidden(_) => Error::ConnectionRefused,
            DialError::TimedOut(_) => Error::ConnectionTimeout,
            DialError::Busy { .. } => Error::ConnectionLimitReached,
            DialError::Closed => Error::ConnectionTerminated,
        },
    }
}

/// The app that a request is for.
fn name_of(request: &Request<WasiBody>) -> Result<MeshName, NotSent> {
    let uri = request.uri();
    if matches!(*request.method(), Method::CONNECT | Method::TRACE) {
        let why = format!("{} is not for apps", request.method());
        return Err(NotSent::new(Error::HttpRequestMethodInvalid, why));
    }
    if uri.scheme() != Some(&Scheme::HTTP) {
        let why = "inside the mesh it is http://, which the mesh encrypts";
        return Err(NotSent::new(Error::TlsProtocolError, why));
    }
    if !matches!(uri.port_u16(), None | Some(80 | APP_PORT)) {
        let why = "apps answer at port 80 alone";
        return Err(NotSent::new(Error::ConnectionRefused, why));
    }
    let named = uri.host().unwrap_or_default().parse::<MeshName>();
    named.map_err(|error| NotSent::new(Error::DestinationNotFound, error.to_string()))
}

/// Nothing under the platform's prefix is the guest's to send, whichever way it is written: many programs
/// take `_` for `-`.
fn remove_ours(headers: &mut HeaderMap) {
    let ours = |name: &&HeaderName| {
        name.as_str()
            .replace('_', "-")
            .starts_with(PLATFORM_HEADER_PREFIX)
    };
    let names: Vec<HeaderName> = headers.keys().filter(ours).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt as _, Empty};

    use super::*;

    fn request(method: Method, uri: &str) -> Request<WasiBody> {
        let empty = Empty::new().map_err(|never| match never {});
        let request = Request::builder().method(method).uri(uri);
        request.body(empty.boxed_unsync()).unwrap()
    }

    #[test]
    fn who_is_meant() {
        let meant = |uri: &str| is_meant(&uri.parse().unwrap());
        assert!(meant("http://shop.main.internal/x") && meant("http://x.INTERNAL:81/"));
        assert!(!meant("http://example.com/shop.main.internal") && !meant("/x"));
        let name = |method, uri: &str| name_of(&request(method, uri));
        for uri in [
            "http://shop.main.internal",
            "http://Shop.main.internal:80/a?b",
            "http://shop.main.internal.:8730/",
        ] {
            assert_eq!(
                name(Method::GET, uri).unwrap().to_string(),
                "shop.main.internal"
            );
        }
        let refused = |method, uri: &str| format!("{:?}", name(method, uri).unwrap_err().code);
        let there = "http://shop.main.internal/";
        assert_eq!(refused(Method::CONNECT, there), "HttpRequestMethodInvalid");
        assert_eq!(
            refused(Method::GET, "https://shop.main.internal/"),
            "TlsProtocolError"
        );
        assert_eq!(
            refused(Method::GET, "http://shop.main.internal:22/"),
            "ConnectionRefused"
        );
        assert_eq!(
            refused(Method::GET, "http://a.b.main.internal/"),
            "DestinationNotFound"
        );
    }

    #[test]
    fn what_is_ours_is_not_sent() {
        let mut headers = HeaderMap::new();
        for name in [
            "x-tabbify-user",
            "X_Tabbify_User",
            "x-tabbify-app",
            "x-mine",
            "cookie",
        ] {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            headers.insert(name, HeaderValue::from_static("1"));
        }
        remove_ours(&mut headers);
        let mut left: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["cookie", "x-mine"]);
    }
}
