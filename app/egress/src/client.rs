//! Connections of the runner's own, for programs that ask for requests and not for bytes: plain, or with TLS by
//! the authorities that this machine trusts.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::uri::Scheme;
use tabbify_process::connect::Stream;
use tokio::sync::OnceCell;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::{Guard, Host, Refused};

/// LIMIT: how long a TLS handshake may take.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);

/// Opens connections that the rules allow. Clones share limits and trust.
#[derive(Clone)]
pub struct Client {
    guard: Guard,
    tls: Arc<OnceCell<TlsConnector>>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("guard", &self.guard)
            .finish_non_exhaustive()
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The way there is closed, or leads nowhere.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// Whom this machine trusts is not known.
    #[error(
        "this machine has no certificates of authorities: {0}. Install them (Debian: ca-certificates)"
    )]
    Trust(String),
    /// TLS is none, or not with whom it should be.
    #[error("{host} is not reached by TLS: {source}")]
    Tls {
        /// Who was to be there.
        host: Host,
        /// What is wrong.
        source: io::Error,
    },
}

impl ClientError {
    /// The line of the app's log.
    #[must_use]
    pub fn line(&self) -> String {
        match self {
            Self::Refused(refused) => refused.line(),
            Self::Trust(_) | Self::Tls { .. } => format!("tabbify: {self}."),
        }
    }
}

impl Client {
    /// One that trusts whom the machine trusts, which is read when it is first needed.
    #[must_use]
    pub fn new(guard: Guard) -> Self {
        let tls = Arc::new(OnceCell::new());
        Self { guard, tls }
    }

    /// One that trusts these authorities.
    ///
    /// # Errors
    /// If TLS cannot be had.
    pub fn trusting(guard: Guard, roots: RootCertStore) -> Result<Self, ClientError> {
        let tls = Arc::new(OnceCell::new_with(Some(connector(roots)?)));
        Ok(Self { guard, tls })
    }

    /// A connection for requests of HTTP/1.1 to `host`.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn open(
        &self,
        scheme: &Scheme,
        host: &Host,
        port: u16,
    ) -> Result<Box<dyn Stream>, ClientError> {
        let stream = self.guard.connect(host, port).await?;
        if *scheme != Scheme::HTTPS {
            return Ok(Box::new(stream));
        }
        let failed = |source| ClientError::Tls {
            host: host.clone(),
            source,
        };
        let name = match host {
            Host::Name(name) => ServerName::try_from(name.clone())
                .map_err(|error| failed(io::Error::other(error)))?,
            Host::Address(address) => ServerName::from(*address),
        };
        let tls = self.tls.get_or_try_init(trusted).await?;
        let shaken = timeout(HANDSHAKE_WITHIN, tls.connect(name, stream)).await;
        let late = |_| failed(io::ErrorKind::TimedOut.into());
        let stream = shaken.map_err(late)?.map_err(failed)?;
        Ok(Box::new(stream))
    }
}

/// Reads whom the machine trusts: files, and many of them.
async fn trusted() -> Result<TlsConnector, ClientError> {
    let reading = tokio::task::spawn_blocking(rustls_native_certs::load_native_certs);
    let read = reading
        .await
        .map_err(|panic| ClientError::Trust(panic.to_string()))?;
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(read.certs);
    if added == 0 {
        let why = read
            .errors
            .first()
            .map_or_else(|| "none was found".to_owned(), ToString::to_string);
        return Err(ClientError::Trust(why));
    }
    connector(roots)
}

fn connector(roots: RootCertStore) -> Result<TlsConnector, ClientError> {
    let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| ClientError::Trust(error.to_string()))?;
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}
