//! TLS 1.3 with a raw public key (RFC 7250): the server is known by the digest of its key, which a join
//! token pins. There are no names, no dates and no authorities that could be wrong.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tabbify_process::connect::{Connect, Stream};
use tabbify_process::files;
use tabbify_types::Digest;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::crypto::{
    CryptoProvider, ring as provider, verify_tls13_signature_with_raw_key,
};
use tokio_rustls::rustls::pki_types::{
    CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime,
};
use tokio_rustls::rustls::server::AlwaysResolvesServerRawPublicKeys;
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{
    self, CertificateError, ClientConfig, ConnectionCommon, DigitallySignedStruct,
    PeerIncompatible, ServerConfig, SignatureScheme,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};
use zeroize::Zeroizing;

use crate::proof::{self, Binding, MeshSecret};

/// The protocol that is spoken inside (RFC 7301): other services may share the port.
const PROTOCOL: &[u8] = b"tabbify-coordinator/1";
/// Label of the exporter that binds a proof to its connection (RFC 8446 section 7.5).
const EXPORTER: &[u8] = b"EXPORTER-tabbify-coordinator-proof-v1";
/// Names go nowhere: a key is pinned. Rustls wants one.
const SERVER_NAME: &str = "coordinator.invalid";

/// Why there is no TLS key.
#[derive(Debug, thiserror::Error)]
pub enum TlsKeyError {
    /// The file cannot be read or made.
    #[error("the TLS key cannot be read or made")]
    File(#[source] io::Error),
    /// The file has other content.
    #[error("it is not a TLS key of the coordinator (one line of base64)")]
    Content,
    /// The library does not take the key.
    #[error("the key cannot be used for TLS")]
    Tls(#[source] rustls::Error),
    /// The system gives no random bytes.
    #[error("the system gives no random bytes")]
    Entropy,
}

/// The coordinator's TLS key (Ed25519). Members pin its digest.
#[derive(Clone)]
pub struct TlsKey {
    acceptor: TlsAcceptor,
    pin: Digest,
}

impl TlsKey {
    /// The key in a file that only its owner can read; makes it if it is not there.
    ///
    /// # Errors
    /// [`TlsKeyError`].
    pub fn load_or_create(path: &Path) -> Result<Self, TlsKeyError> {
        let text = match files::read_secret(path) {
            Ok(text) => Zeroizing::new(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let made = Self::make()?;
                // Written whole beside it and renamed: a crash never leaves half a key.
                files::write_atomic(path, made.as_bytes(), 0o600).map_err(TlsKeyError::File)?;
                Zeroizing::new(made.as_bytes().to_vec())
            }
            Err(error) => return Err(TlsKeyError::File(error)),
        };
        let der = STANDARD.decode(text.trim_ascii());
        Self::of(&Zeroizing::new(der.map_err(|_| TlsKeyError::Content)?))
    }

    fn make() -> Result<Zeroizing<String>, TlsKeyError> {
        let random = ring::rand::SystemRandom::new();
        let made = ring::signature::Ed25519KeyPair::generate_pkcs8(&random);
        let made = made.map_err(|_| TlsKeyError::Entropy)?;
        let mut text = Zeroizing::new(STANDARD.encode(made.as_ref()));
        text.push('\n');
        Ok(text)
    }

    fn of(der: &[u8]) -> Result<Self, TlsKeyError> {
        let der = PrivatePkcs8KeyDer::from(der);
        let key = provider::sign::any_eddsa_type(&der).map_err(|_| TlsKeyError::Content)?;
        let public = key.public_key().ok_or(TlsKeyError::Content)?;
        let pin = Digest::of(public.as_ref());
        let public = CertificateDer::from(public.as_ref().to_vec());
        let certified = Arc::new(CertifiedKey::new(vec![public], key));
        let config = ServerConfig::builder_with_provider(engine())
            .with_protocol_versions(&[&TLS13])
            .map_err(TlsKeyError::Tls)?
            .with_no_client_auth();
        let resolver = AlwaysResolvesServerRawPublicKeys::new(certified);
        let mut config = config.with_cert_resolver(Arc::new(resolver));
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        Ok(Self {
            acceptor: TlsAcceptor::from(Arc::new(config)),
            pin,
        })
    }

    /// The digest of the public half, as join tokens name it.
    #[must_use]
    pub const fn pin(&self) -> Digest {
        self.pin
    }

    /// Speaks TLS with whoever has connected; gives what binds a proof to this connection.
    ///
    /// # Errors
    /// Those of the stream and of TLS.
    pub async fn accept<S>(&self, stream: S) -> io::Result<(server::TlsStream<S>, Binding)>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let stream = self.acceptor.accept(stream).await?;
        let binding = binding(stream.get_ref().1)?;
        Ok((stream, binding))
    }
}

impl fmt::Debug for TlsKey {
    /// Says nothing about the private half.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TlsKey({})", self.pin)
    }
}

/// Reaches a coordinator: TLS with the pinned key, then the proof of our own.
#[derive(Clone)]
pub struct Door {
    connect: Arc<dyn Connect>,
    connector: TlsConnector,
    pin: Digest,
    secret: MeshSecret,
}

impl Door {
    /// The coordinator behind `connect` whose TLS key has the digest `pin`, for whoever holds `secret`.
    ///
    /// # Errors
    /// [`TlsKeyError::Tls`].
    pub fn new(
        connect: Arc<dyn Connect>,
        pin: Digest,
        secret: MeshSecret,
    ) -> Result<Self, TlsKeyError> {
        let config = ClientConfig::builder_with_provider(engine())
            .with_protocol_versions(&[&TLS13])
            .map_err(TlsKeyError::Tls)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Pinned(pin)));
        let mut config = config.with_no_client_auth();
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        config.enable_sni = false;
        Ok(Self {
            connect,
            connector: TlsConnector::from(Arc::new(config)),
            pin,
            secret,
        })
    }

    /// The WireGuard key that it proves.
    #[must_use]
    pub fn key(&self) -> tabbify_types::MeshKey {
        self.secret.public()
    }

    pub(crate) const fn secret(&self) -> &MeshSecret {
        &self.secret
    }

    async fn open(&self) -> io::Result<client::TlsStream<Box<dyn Stream>>> {
        let stream = self.connect.connect().await?;
        let name = ServerName::try_from(SERVER_NAME).map_err(io::Error::other)?;
        let connected = self.connector.connect(name, stream).await;
        let mut stream = connected.map_err(|error| self.explained(error))?;
        let binding = binding(stream.get_ref().1)?;
        proof::give(&mut stream, &self.secret, &binding).await?;
        Ok(stream)
    }

    /// The wrong key is what a person must hear of.
    fn explained(&self, error: io::Error) -> io::Error {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
        if !matches!(inner, Some(rustls::Error::InvalidCertificate(_))) {
            return error;
        }
        let text = format!(
            "the coordinator has another key than {}, which the join token names: \
             somebody else answers there, or its key was made anew",
            self.pin
        );
        io::Error::new(io::ErrorKind::PermissionDenied, text)
    }
}

impl Connect for Door {
    fn connect(&self) -> tabbify_api::BoxFuture<'_, io::Result<Box<dyn Stream>>> {
        Box::pin(async { Ok(Box::new(self.open().await?) as Box<dyn Stream>) })
    }
}

impl fmt::Debug for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Door")
            .field("connect", &self.connect)
            .field("pin", &self.pin)
            .finish_non_exhaustive()
    }
}

/// Accepts the one key with this digest.
#[derive(Debug)]
struct Pinned(Digest);

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if Digest::of(end_entity) == self.0 {
            return Ok(ServerCertVerified::assertion());
        }
        let wrong = CertificateError::ApplicationVerificationFailure;
        Err(rustls::Error::InvalidCertificate(wrong))
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let key = SubjectPublicKeyInfoDer::from(cert.as_ref());
        let algorithms = provider::default_provider().signature_verification_algorithms;
        verify_tls13_signature_with_raw_key(message, &key, dss, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

fn engine() -> Arc<CryptoProvider> {
    Arc::new(provider::default_provider())
}

fn binding<D>(connection: &ConnectionCommon<D>) -> io::Result<Binding> {
    let exported = connection.export_keying_material([0; 32], EXPORTER, None);
    exported.map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_key_is_private_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("coordinator.key");
        let key = TlsKey::load_or_create(&path).unwrap();
        assert_eq!(TlsKey::load_or_create(&path).unwrap().pin(), key.pin());
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let other = TlsKey::load_or_create(&dir.path().join("other.key")).unwrap();
        assert_ne!(other.pin(), key.pin());
        assert_eq!(format!("{key:?}"), format!("TlsKey({})", key.pin()));

        for bad in ["", "AAAA", "half a k", &STANDARD.encode([0x30; 83])] {
            std::fs::write(&path, bad).unwrap();
            let refused = TlsKey::load_or_create(&path).unwrap_err();
            assert!(matches!(refused, TlsKeyError::Content), "{bad}");
            assert_eq!(std::fs::read(&path).unwrap(), bad.as_bytes(), "left alone");
        }
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        let refused = TlsKey::load_or_create(&path).unwrap_err();
        assert!(matches!(refused, TlsKeyError::File(_)));
    }
}
