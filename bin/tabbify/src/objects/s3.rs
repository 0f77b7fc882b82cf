//! A store that speaks S3, over our own HTTP client. Requests are signed; what is in between may change
//! nothing, and over `https` read nothing either.

use std::fmt;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http::header::HOST;
use http::uri::Authority;
use http::{HeaderValue, Method, Request, Response, Uri};
use http_body_util::{BodyExt as _, Full};
use object_store::aws::AmazonS3Builder;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
};
use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig};
use tabbify_api::BoxFuture;
use tabbify_http::{Again, AnswerError, Client};
use tabbify_process::Tasks;
use tabbify_process::connect::{Connect, Stream};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore};

use super::Objects;

/// LIMIT: how long the head of an answer may take: a put is answered when it is on the store's disks.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// LIMIT: bytes of an answer: a page of a list, or blocks of an extent.
const ANSWER_LEN_MAX: usize = 64 * 1024 * 1024;
/// LIMIT: how often, and for how long, a request that a busy store refuses is sent again; whoever asked
/// waits for the log.
const RETRIES_MAX: usize = 3;
const RETRY_WITHIN: Duration = Duration::from_secs(8);
const REGION: &str = "us-east-1";
/// Where Debian and its kin keep the authorities that the machine trusts.
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Opens a bucket.
pub(super) fn open(bucket: &str, objects: &Objects) -> anyhow::Result<Arc<dyn ObjectStore>> {
    let Objects {
        endpoint: Some(endpoint),
        authorities,
        region,
        access_key: Some(access_key),
        secret_key: Some(secret_key),
    } = objects
    else {
        bail!("a bucket takes objects.endpoint, objects.access_key and objects.secret_key");
    };
    let uri: Uri = endpoint
        .parse()
        .with_context(|| format!("objects.endpoint = {endpoint:?}"))?;
    let (authority, tls) = match (uri.scheme_str(), uri.authority()) {
        (Some("http"), Some(authority)) if uri.path() == "/" => (authority.clone(), None),
        (Some("https"), Some(authority)) if uri.path() == "/" => {
            let path = authorities
                .as_deref()
                .unwrap_or_else(|| Path::new(AUTHORITIES));
            let tls = tls(path).with_context(|| format!("objects.authorities = {path:?}"))?;
            (authority.clone(), Some(tls))
        }
        _ => bail!("objects.endpoint = {endpoint:?}: it takes https://host or http://host:port"),
    };
    let store = AmazonS3Builder::new()
        .with_bucket_name(bucket)
        .with_endpoint(endpoint.trim_end_matches('/'))
        .with_region(region.as_deref().unwrap_or(REGION))
        .with_access_key_id(access_key.read("objects.access_key")?)
        .with_secret_access_key(secret_key.read("objects.secret_key")?)
        .with_allow_http(true)
        // One object a request: not every store removes several.
        .with_disable_bulk_delete(true)
        .with_retry(RetryConfig {
            backoff: BackoffConfig::default(),
            max_retries: RETRIES_MAX,
            retry_timeout: RETRY_WITHIN,
        })
        .with_http_connector(Connector { authority, tls });
    Ok(Arc::new(store.build()?))
}

/// TLS 1.3 with a store that one of these authorities vouches for.
fn tls(authorities: &Path) -> anyhow::Result<TlsConnector> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(authorities)? {
        roots.add(certificate?)?;
    }
    if roots.is_empty() {
        bail!("it holds no certificate");
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let config = config.with_root_certificates(roots).with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// Makes clients of one store.
struct Connector {
    authority: Authority,
    tls: Option<TlsConnector>,
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.authority.fmt(f)
    }
}

impl HttpConnector for Connector {
    fn connect(&self, _options: &ClientOptions) -> object_store::Result<HttpClient> {
        let host = HeaderValue::from_str(self.authority.as_str());
        let host = host.map_err(|source| object_store::Error::Generic {
            store: "S3",
            source: Box::new(source),
        })?;
        let connect = Arc::new(Host {
            authority: self.authority.clone(),
            tls: self.tls.clone(),
        });
        Ok(HttpClient::new(Service {
            client: Client::new("object store client", connect, ANSWER_WITHIN, &Tasks::new()),
            host,
        }))
    }
}

/// A host by its name or address; names are looked up for each connection.
struct Host {
    authority: Authority,
    tls: Option<TlsConnector>,
}

impl Connect for Host {
    fn connect(&self) -> BoxFuture<'_, io::Result<Box<dyn Stream>>> {
        Box::pin(async {
            let host = self
                .authority
                .host()
                .trim_start_matches('[')
                .trim_end_matches(']');
            let usual = if self.tls.is_some() { 443 } else { 80 };
            let port = self.authority.port_u16().unwrap_or(usual);
            let stream = TcpStream::connect((host, port)).await?;
            stream.set_nodelay(true)?;
            let Some(tls) = &self.tls else {
                return Ok(Box::new(stream) as Box<dyn Stream>);
            };
            let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
            let stream = tls.connect(name, stream).await?;
            Ok(Box::new(stream) as Box<dyn Stream>)
        })
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.authority.fmt(f)
    }
}

struct Service {
    client: Client,
    /// As it was signed.
    host: HeaderValue,
}

impl Service {
    async fn answer(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let (mut head, body) = request.into_parts();
        let target = head
            .uri
            .path_and_query()
            .map_or("/", |target| target.as_str());
        head.uri = target
            .parse()
            .map_err(|error| HttpError::new(HttpErrorKind::Unknown, error))?;
        head.headers.insert(HOST, self.host.clone());
        let body: Bytes = body.collect().await?.to_bytes();
        // Whatever the log writes there has one content under one name.
        let again = match head.method {
            Method::POST => Again::Never,
            _ => Again::Harmless,
        };
        let request = Request::from_parts(head, Full::new(body));
        let answered = self.client.ask(request, again, ANSWER_LEN_MAX).await;
        let (head, body) = answered.map_err(|error| {
            let kind = match &error {
                AnswerError::Connect(_) => HttpErrorKind::Connect,
                AnswerError::Late => HttpErrorKind::Timeout,
                AnswerError::Broken(_) => HttpErrorKind::Interrupted,
                AnswerError::TooLong { .. } => HttpErrorKind::Decode,
            };
            HttpError::new(kind, error)
        })?;
        Ok(Response::from_parts(head, body.into()))
    }
}

impl HttpService for Service {
    fn call<'s, 'f>(
        &'s self,
        request: HttpRequest,
    ) -> Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'f>>
    where
        's: 'f,
        Self: 'f,
    {
        Box::pin(self.answer(request))
    }
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service")
            .field("host", &self.host)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
impl Objects {
    /// Nothing but what counts without being said.
    pub(crate) fn shown_defaults() -> Self {
        Self {
            authorities: Some(AUTHORITIES.into()),
            region: Some(REGION.to_owned()),
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod peer;
#[cfg(test)]
mod tests;
