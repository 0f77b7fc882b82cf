//! A peer's connection to a relay over TLS.

use std::io;
use std::sync::Arc;

use bytes::BytesMut;
use futures_util::{SinkExt as _, StreamExt as _};
use tabbify_types::MeshKey;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls13_signature,
};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{
    ClientConfig, DigitallySignedStruct, Error, PeerIncompatible, SignatureScheme, version,
};
use tokio_tungstenite::tungstenite::Message as WsMessage;
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use super::RelayTls;
use crate::PrivateKey;
use crate::path::Tag;
use crate::relay::frame::{CHALLENGE_LEN, Message};
use crate::relay::proof::{self, Proofs};
use crate::relay::queue::Queue;
use crate::relay::tls::{
    HANDSHAKE_TIMEOUT, TlsError, binding, next, prepare, read, websocket, write,
};

/// One that the relay has welcomed.
pub(super) struct Connection(WebSocketStream<TlsStream<TcpStream>>);

/// Connects, and proves who we are; fails if the other end is not the relay with this key.
pub(super) async fn connect(
    key: &PrivateKey,
    relay: MeshKey,
    server: &RelayTls,
) -> Result<Connection, TlsError> {
    let greet = Box::pin(greet(key, relay, server));
    let greeted = tokio::time::timeout(HANDSHAKE_TIMEOUT, greet).await;
    greeted.map_err(|_| TlsError::Silent)?
}

async fn greet(
    key: &PrivateKey,
    relay: MeshKey,
    server: &RelayTls,
) -> Result<Connection, TlsError> {
    let proofs = Proofs::of_peer(key, relay).ok_or(TlsError::Proof)?;
    let name = ServerName::try_from(server.name.clone()).map_err(io::Error::other)?;
    let tcp = TcpStream::connect(server.address).await?;
    prepare(&tcp)?;
    let connector = TlsConnector::from(Arc::new(config().map_err(io::Error::other)?));
    let tls = connector.connect(name, tcp).await?;
    let binding = binding(tls.get_ref().1)?;
    let request = format!("ws://{}/relay", server.name);
    let (mut socket, _) = client_async_with_config(request, tls, Some(websocket())).await?;
    let asked = next(&mut socket).await?;
    let Some(Message::Challenge(asked)) = Message::decode(&asked) else {
        return Err(TlsError::Protocol);
    };
    let challenge: [u8; CHALLENGE_LEN] = tabbify_process::random();
    let parts: &[&[u8]] = &[b"tls", &asked, &challenge, &binding];
    let prove = Message::Prove {
        key: key.public().0,
        challenge,
        mac: proofs.by_peer(parts),
    };
    socket.send(WsMessage::binary(prove.encode())).await?;
    let welcome = next(&mut socket).await?;
    match Message::decode(&welcome) {
        Some(Message::Welcome(mac)) if proof::is_equal(&proofs.by_relay(parts), &mac) => {
            Ok(Connection(socket))
        }
        Some(Message::Welcome(_)) => Err(TlsError::Proof),
        _ => Err(TlsError::Protocol),
    }
}

impl Connection {
    /// Sends what is in the queue and hands on what comes, until the connection ends: why it did.
    pub(super) async fn run(
        self,
        queue: &Queue,
        inlet: &(impl Fn(Tag, BytesMut) + Send + Sync),
    ) -> TlsError {
        let (sink, stream) = self.0.split();
        let take = |message: &[u8]| {
            if let Some(Message::Data { tag, payload }) = Message::decode(message) {
                inlet(tag, BytesMut::from(payload));
            }
        };
        let ended = tokio::select! {
            ended = write(sink, queue) => ended,
            ended = read(stream, take) => ended,
        };
        ended.err().unwrap_or(TlsError::Ended)
    }
}

fn config() -> Result<ClientConfig, Error> {
    let provider = Arc::new(ring::default_provider());
    let verifier = AnyCertificate(provider.signature_verification_algorithms);
    Ok(
        ClientConfig::builder_with_provider(provider as Arc<CryptoProvider>)
            .with_protocol_versions(&[&version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth(),
    )
}

/// Accepts every certificate: who the relay is, is proven afterwards, over the connection's own value.
/// That the other end holds the certificate's key is still checked, as TLS wants it.
#[derive(Debug)]
struct AnyCertificate(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::PeerIncompatible(
            PeerIncompatible::ServerDoesNotSupportTls12Or13,
        ))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}
