//! The world outside: where a guest's requests go that `[network] egress` allows, with TLS made here.

use std::io;
use std::sync::Arc;

use http::header::HOST;
use http::uri::{PathAndQuery, Scheme};
use http::{HeaderValue, Method, Request, Uri};
use tabbify_egress::{Client, ClientError, Host, Refused};
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody};

use super::exchange::{Answered, Exchange, NotSent, Patience};
use super::meter::Meter;

/// Sends `request` to the host that it names, if that is allowed, and gives the head of the answer. Why not is a
/// line of the app's log as it stands.
pub(super) async fn send(
    client: &Client,
    mut request: Request<WasiBody>,
    options: Option<RequestOptions>,
    meter: Arc<Meter>,
) -> Result<Answered, NotSent> {
    let patience = Patience::of(options);
    let (scheme, host, port) = target(&request)?;
    let stream = patience.connect(async {
        let opened = client.open(&scheme, &host, port).await;
        opened.map_err(|error| NotSent::new(code(&error), error.line()))
    });
    let stream = stream.await.map_err(in_words)?;
    let is_usual =
        (scheme == Scheme::HTTP && port == 80) || (scheme == Scheme::HTTPS && port == 443);
    let authority = match is_usual {
        true => host.to_string(),
        false => format!("{host}:{port}"),
    };
    let path = request.uri().path_and_query().cloned();
    *request.uri_mut() = Uri::from(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
    // INVARIANT: the server reads the name that was checked.
    let named = HeaderValue::try_from(&authority);
    let named =
        named.map_err(|error| NotSent::new(Error::HttpRequestUriInvalid, error.to_string()))?;
    request.headers_mut().insert(HOST, named);
    let exchange = Exchange {
        stream,
        patience,
        meter,
        place: None,
    };
    exchange.send(request, &authority).await.map_err(in_words)
}

/// As the platform's lines begin and end.
fn in_words(not: NotSent) -> NotSent {
    if not.why.starts_with("tabbify: ") {
        return not;
    }
    NotSent {
        why: format!("tabbify: {}.", not.why),
        ..not
    }
}

/// Whom a request is for.
fn target(request: &Request<WasiBody>) -> Result<(Scheme, Host, u16), NotSent> {
    let uri = request.uri();
    if matches!(*request.method(), Method::CONNECT | Method::TRACE) {
        let why = format!("tabbify: {} is not passed on.", request.method());
        return Err(NotSent::new(Error::HttpRequestMethodInvalid, why));
    }
    let scheme = uri.scheme().cloned().unwrap_or(Scheme::HTTPS);
    let usual = match scheme.as_str() {
        "http" => 80,
        "https" => 443,
        other => {
            let why = format!("tabbify: {other}:// is not spoken here: http and https are.");
            return Err(NotSent::new(Error::HttpRequestUriInvalid, why));
        }
    };
    let authority = uri.authority();
    let has_user = authority.is_some_and(|authority| authority.as_str().contains('@'));
    let host = uri.host().unwrap_or_default().parse::<Host>();
    match host {
        Ok(host) if !has_user => Ok((scheme, host, uri.port_u16().unwrap_or(usual))),
        Ok(_) => {
            let why = "tabbify: a name and password in a URL are not passed on.";
            Err(NotSent::new(Error::HttpRequestUriInvalid, why))
        }
        Err(error) => {
            let refused = Refused::NotAHost(error);
            Err(NotSent::new(Error::HttpRequestDenied, refused.line()))
        }
    }
}

/// What the guest is told.
fn code(error: &ClientError) -> Error {
    match error {
        ClientError::Refused(refused) if refused.is_forbidden() => Error::HttpRequestDenied,
        ClientError::Refused(Refused::Busy(_)) => Error::ConnectionLimitReached,
        ClientError::Refused(Refused::Late { .. }) => Error::ConnectionTimeout,
        ClientError::Refused(Refused::Unreachable { source, .. }) => match source.kind() {
            io::ErrorKind::ConnectionRefused => Error::ConnectionRefused,
            io::ErrorKind::TimedOut => Error::ConnectionTimeout,
            _ => Error::DestinationUnavailable,
        },
        ClientError::Refused(_) => Error::DestinationNotFound,
        ClientError::Trust(_) => Error::TlsCertificateError,
        ClientError::Tls { .. } => Error::TlsProtocolError,
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt as _, Empty};

    use super::*;

    fn read(method: Method, uri: &str) -> Result<String, String> {
        let empty = Empty::new().map_err(|never| match never {});
        let request = Request::builder().method(method).uri(uri);
        let request = request.body(empty.boxed_unsync()).unwrap();
        let target = target(&request);
        let target = target.map(|(scheme, host, port)| format!("{scheme} {host} {port}"));
        target.map_err(|not| not.why)
    }

    #[test]
    fn whom_a_request_is_for() {
        let check =
            |uri: &str, expected: &str| assert_eq!(read(Method::GET, uri).unwrap(), expected);
        check("http://Example.com/x", "http example.com 80");
        check("https://example.com./x", "https example.com 443");
        check("https://example.com:8443/x", "https example.com 8443");
        check("http://[2606:4700::1111]/", "http [2606:4700::1111] 80");
        let refused = |method, uri: &str, part: &str| {
            let why = read(method, uri).unwrap_err();
            assert!(
                why.starts_with("tabbify: ") && why.contains(part),
                "{uri}: {why}"
            );
        };
        refused(Method::CONNECT, "http://example.com/", "CONNECT");
        refused(Method::GET, "ftp://example.com/", "ftp://");
        refused(Method::GET, "http://user:secret@example.com/", "password");
        refused(Method::GET, "http://0x7f.1/", "four decimal numbers");
        refused(Method::GET, "/x", "names no host");
    }
}
