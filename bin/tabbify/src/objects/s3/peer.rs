//! A bucket for tests: the requests that the log makes, each held to its signature (AWS Signature
//! Version 4, computed here from what arrived), with S3's own answers.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, request};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use ring::{digest, hmac};
use tabbify_http::{Handle, Limits, Server};
use tabbify_process::{Importance, Tasks};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::rustls::{self, ServerConfig};

pub(super) const ACCESS_KEY: &str = "TEST-ACCESS-KEY";
pub(super) const SECRET_KEY: &str = "a secret of the tests";
const LIMITS: Limits = Limits {
    connections: 64,
    buffer_len: 64 * 1024,
    idle: Duration::from_secs(60),
    stalled: None,
};

/// One bucket. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(super) struct Peer(Arc<Mutex<Bucket>>);

#[derive(Debug, Default)]
pub(super) struct Bucket {
    /// Objects by their paths, `/bucket/key`.
    pub(super) objects: BTreeMap<String, Bytes>,
    /// Requests whose signature was not that of what arrived.
    pub(super) forged: usize,
    /// Answers that say that it is too busy, before others.
    pub(super) busy: usize,
}

impl Peer {
    /// Serves on a free port of this machine; answers the endpoint.
    pub(super) async fn serve(&self, tasks: &Tasks) -> std::io::Result<String> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let endpoint = format!("http://{}", listener.local_addr()?);
        let (server, peer) = (Server::new("bucket", LIMITS, tasks), self.clone());
        tasks.spawn("bucket service", Importance::Detached, async move {
            server.serve(listener, move |_| peer.clone()).await;
        });
        Ok(endpoint)
    }

    /// The same over TLS. Puts `authority.pem`, and `store.pem` with `store.key` that it has vouched
    /// for, into `dir`.
    pub(super) async fn serve_tls(&self, dir: &Path, tasks: &Tasks) -> anyhow::Result<String> {
        let mut authority = CertificateParams::new(Vec::new())?;
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority_key = KeyPair::generate()?;
        let pem = authority.self_signed(&authority_key)?.pem();
        std::fs::write(dir.join("authority.pem"), pem)?;
        let authority = Issuer::new(authority, authority_key);
        let mut store = CertificateParams::new(vec!["127.0.0.1".to_owned()])?;
        store
            .distinguished_name
            .push(DnType::CommonName, "store of a test");
        let key = KeyPair::generate()?;
        let certificate = store.signed_by(&key, &authority)?;
        std::fs::write(dir.join("store.pem"), certificate.pem())?;
        std::fs::write(dir.join("store.key"), key.serialize_pem())?;
        let chain = vec![certificate.der().clone()];
        let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(anyhow::Error::msg)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        let tls = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let endpoint = format!("https://{}", listener.local_addr()?);
        let (server, peer) = (Server::new("bucket", LIMITS, tasks), self.clone());
        tasks.spawn("bucket service", Importance::Detached, async move {
            let begin = |server: Server, stream, _| {
                let (tls, peer) = (tls.clone(), peer.clone());
                async move {
                    // A client that does not trust the store leaves here.
                    if let Ok(stream) = tls.accept(stream).await {
                        server.connection(stream, peer).await;
                    }
                }
            };
            server.accept(listener, begin).await;
        });
        Ok(endpoint)
    }

    pub(super) fn bucket(&self) -> MutexGuard<'_, Bucket> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, head: &request::Parts, body: Bytes) -> Response<Full<Bytes>> {
        let mut bucket = self.bucket();
        if !is_signed(head, &body) {
            bucket.forged += 1;
            return status(StatusCode::FORBIDDEN);
        }
        if bucket.busy > 0 {
            bucket.busy -= 1;
            return status(StatusCode::SERVICE_UNAVAILABLE);
        }
        let path = head.uri.path().to_owned();
        let header = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok());
        match head.method {
            Method::GET
                if head
                    .uri
                    .query()
                    .is_some_and(|query| query.contains("list-type=2")) =>
            {
                list(&bucket, head)
            }
            Method::GET | Method::HEAD => match bucket.objects.get(&path) {
                None => status(StatusCode::NOT_FOUND),
                Some(object) => get(object, header("range")),
            },
            Method::PUT if header("x-amz-copy-source").is_some() => {
                let from = header("x-amz-copy-source").unwrap_or_default();
                let from = format!("/{}", from.trim_start_matches('/'));
                let Some(object) = bucket.objects.get(&from).cloned() else {
                    return status(StatusCode::NOT_FOUND);
                };
                bucket.objects.insert(path, object);
                text("<CopyObjectResult><ETag>\"1\"</ETag></CopyObjectResult>".to_owned())
            }
            Method::PUT => {
                if header("if-none-match").is_some() && bucket.objects.contains_key(&path) {
                    return status(StatusCode::PRECONDITION_FAILED);
                }
                bucket.objects.insert(path, body);
                status(StatusCode::OK)
            }
            Method::DELETE => {
                bucket.objects.remove(&path);
                status(StatusCode::NO_CONTENT)
            }
            _ => status(StatusCode::METHOD_NOT_ALLOWED),
        }
    }
}

impl Handle for Peer {
    type Body = Full<Bytes>;

    async fn handle(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (head, body) = request.into_parts();
        match body.collect().await {
            Ok(body) => self.answer(&head, body.to_bytes()),
            Err(_) => status(StatusCode::BAD_REQUEST),
        }
    }
}

fn with_status(status: StatusCode, body: Bytes) -> Response<Full<Bytes>> {
    let response = Response::builder()
        .status(status)
        .header("etag", "\"1\"")
        .header("last-modified", "Sun, 22 Nov 2026 22:00:00 GMT");
    response
        .body(Full::new(body))
        .expect("INVARIANT: these headers are well-formed")
}

fn status(status: StatusCode) -> Response<Full<Bytes>> {
    with_status(status, Bytes::new())
}

fn text(text: String) -> Response<Full<Bytes>> {
    with_status(StatusCode::OK, text.into())
}

fn get(object: &Bytes, range: Option<&str>) -> Response<Full<Bytes>> {
    let Some(range) = range else {
        return with_status(StatusCode::OK, object.clone());
    };
    let bounds = range
        .strip_prefix("bytes=")
        .and_then(|range| range.split_once('-'));
    let parsed =
        bounds.and_then(|(from, to)| Some((from.parse().ok()?, to.parse::<usize>().ok()?)));
    let Some((from, to)) = parsed.filter(|(from, _)| *from < object.len()) else {
        return status(StatusCode::RANGE_NOT_SATISFIABLE);
    };
    let end = object.len().min(to.saturating_add(1));
    let mut response = with_status(StatusCode::PARTIAL_CONTENT, object.slice(from..end));
    let shown = format!("bytes {from}-{}/{}", end - 1, object.len());
    if let Ok(value) = shown.parse() {
        response.headers_mut().insert("content-range", value);
    }
    response
}

fn list(bucket: &Bucket, head: &request::Parts) -> Response<Full<Bytes>> {
    let query = head.uri.query().unwrap_or_default();
    let prefix = query
        .split('&')
        .find_map(|pair| pair.strip_prefix("prefix="));
    let prefix = prefix.unwrap_or_default().replace("%2F", "/");
    let below = format!("{}/", head.uri.path().trim_end_matches('/'));
    let mut xml = String::from("<ListBucketResult><IsTruncated>false</IsTruncated>");
    for (path, object) in &bucket.objects {
        let Some(key) = path
            .strip_prefix(&below)
            .filter(|key| key.starts_with(&prefix))
        else {
            continue;
        };
        // Writing to a String does not fail.
        let _ = write!(
            xml,
            "<Contents><Key>{key}</Key><Size>{}</Size><ETag>\"1\"</ETag>\
             <LastModified>2026-11-22T22:00:00.000Z</LastModified></Contents>",
            object.len()
        );
    }
    text(xml + "</ListBucketResult>")
}

fn hex(bytes: impl AsRef<[u8]>) -> String {
    bytes
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn sha256(bytes: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, bytes))
}

/// Whether the request is what was signed, with the key that we know.
fn is_signed(head: &request::Parts, body: &Bytes) -> bool {
    expected(head, body).is_some_and(|(expected, signature)| expected == signature)
}

/// The signature that the request must have, and the one it has.
fn expected(head: &request::Parts, body: &Bytes) -> Option<(String, String)> {
    let header = |name: &str| head.headers.get(name)?.to_str().ok();
    let authorization = header("authorization")?.strip_prefix("AWS4-HMAC-SHA256 ")?;
    let field = |name: &str| {
        let mut fields = authorization.split(',').map(str::trim);
        fields.find_map(|field| field.strip_prefix(name)?.strip_prefix('='))
    };
    let (credential, signed) = (field("Credential")?, field("SignedHeaders")?);
    let (key, scope) = credential.split_once('/')?;
    let payload = header("x-amz-content-sha256")?;
    if key != ACCESS_KEY || payload != sha256(body) {
        return None;
    }
    let mut canonical = format!("{}\n{}\n", head.method, head.uri.path());
    let mut query: Vec<&str> = head
        .uri
        .query()
        .map_or(Vec::new(), |query| query.split('&').collect());
    query.sort_unstable();
    canonical.push_str(&query.join("&"));
    canonical.push('\n');
    for name in signed.split(';') {
        canonical.push_str(&format!("{name}:{}\n", header(name)?.trim()));
    }
    canonical.push_str(&format!("\n{signed}\n{payload}"));
    let to_sign = format!(
        "AWS4-HMAC-SHA256\n{}\n{scope}\n{}",
        header("x-amz-date")?,
        sha256(canonical.as_bytes())
    );
    let secret = format!("AWS4{SECRET_KEY}").into_bytes();
    let key = scope
        .split('/')
        .fold(secret, |key, part| sign(&key, part.as_bytes()));
    Some((
        hex(sign(&key, to_sign.as_bytes())),
        field("Signature")?.to_owned(),
    ))
}

fn sign(key: &[u8], text: &[u8]) -> Vec<u8> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    hmac::sign(&key, text).as_ref().to_vec()
}
