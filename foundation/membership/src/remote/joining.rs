//! A machine joins: what it reads from its token before it knows anybody, and what it believes after.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::Method;
use serde::{Deserialize, Serialize};
use tabbify_api::coordinator::{
    EndorsedKey, Helpers, HostCertificate, HostKey, HostLease, HostToken, JOIN_PATH, JoinRequest,
    Joined,
};
use tabbify_http::Client;
use tabbify_process::connect::Connect;
use tabbify_process::{Clock, Tasks, memory_total};
use tabbify_token::{
    Claims, DocumentType, Kind, PlatformId, SecretKey, Signer, TOKEN_LEN_MAX, TokenError,
};
use tabbify_types::event::v1::Capability;
use tabbify_types::{Digest, HostName, MeshKey, Timestamp, VerifyingKeyBytes};

use super::check::{Root, clocks_differ};
use super::{ANSWER_WITHIN, RequestFailed, answer, request};
use crate::proof::MeshSecret;
use crate::tls::{Door, TlsKeyError};

/// Why a machine has not joined.
#[derive(Debug, thiserror::Error)]
pub enum JoinFailed {
    /// The text is no join token.
    #[error("it is not a join token: {0}")]
    Token(&'static str),
    /// The root key cannot be one.
    #[error("the platform's root key is not a key that can be relied on")]
    Root,
    /// TLS cannot be spoken.
    #[error("TLS cannot be spoken")]
    Tls(#[source] TlsKeyError),
    /// The coordinator refuses, or cannot be asked.
    #[error("the coordinator gives this machine no certificate")]
    Request(#[source] RequestFailed),
    /// What it answers is not signed by the platform that the token names.
    #[error("the coordinator's answer is refused: {what}")]
    Answer {
        /// What of it.
        what: &'static str,
        /// Why.
        #[source]
        source: TokenError,
    },
    /// The certificate is another's.
    #[error("the certificate is not this machine's: {0}")]
    Certificate(&'static str),
    /// The clocks are apart.
    #[error("{0}")]
    Clock(String),
    /// Something cannot be signed.
    #[error("the signing key's consent cannot be made")]
    Sign(#[source] TokenError),
}

/// What a join token tells the machine that has it. The token came to it by a way that the operator
/// trusts; only the coordinator can tell whether it still counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invited {
    /// The name that the machine will have.
    pub host: HostName,
    /// The root key to pin.
    pub root: VerifyingKeyBytes,
    /// The digest of the coordinator's TLS key, to pin.
    pub pin: Digest,
    /// When the token ends.
    pub expires: Timestamp,
}

impl Invited {
    /// Reads a join token.
    ///
    /// # Errors
    /// [`JoinFailed::Token`].
    pub fn read(token: &str) -> Result<Self, JoinFailed> {
        let wrong = JoinFailed::Token;
        if token.len() > TOKEN_LEN_MAX {
            return Err(wrong("it is too long"));
        }
        let bare = token.strip_prefix(Kind::Join.prefix());
        let bare = bare.ok_or_else(|| wrong("it does not begin like one"))?;
        let payload = bare
            .split('.')
            .nth(1)
            .ok_or_else(|| wrong("it has no payload"))?;
        let payload = URL_SAFE_NO_PAD.decode(payload);
        let payload = payload.map_err(|_| wrong("its payload is not base64url"))?;
        let claims: Claims =
            serde_json::from_slice(&payload).map_err(|_| wrong("it does not say what one says"))?;
        let host = claims.sub.strip_prefix("host:");
        let host = host.and_then(|host| host.parse().ok());
        let terms = claims.join.ok_or_else(|| wrong("it admits nothing"))?;
        Ok(Self {
            host: host.ok_or_else(|| wrong("it names no machine"))?,
            root: terms.root,
            pin: terms
                .coordinator
                .parse()
                .map_err(|_| wrong("it pins no key of a coordinator"))?,
            expires: claims.exp,
        })
    }
}

/// What a member knows; it keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// The platform's root key.
    pub root: VerifyingKeyBytes,
    /// Its issuer keys, each with the root key's word.
    pub issuers: Vec<EndorsedKey>,
    /// The machine's certificate, as it is signed.
    pub signed: String,
    /// What it says.
    pub certificate: HostCertificate,
    /// The machines that run roles of the platform.
    pub system: Vec<HostLease>,
    /// What the machine shows to the platform's services.
    #[serde(default)]
    pub token: Option<HostToken>,
    /// What helps it to find other members, as the coordinator says it.
    #[serde(default)]
    pub helpers: Helpers,
}

/// Joins with a token: the coordinator behind `connect` must have the key that the token pins, and its
/// answer must be signed by whom the token's root key has endorsed.
///
/// # Errors
/// [`JoinFailed`].
pub async fn join(
    connect: Arc<dyn Connect>,
    token: &str,
    secret: MeshSecret,
    signing: &SecretKey,
    capabilities: Vec<Capability>,
    clock: &dyn Clock,
    tasks: &Tasks,
) -> Result<Membership, JoinFailed> {
    let invited = Invited::read(token)?;
    let root = Root::new(invited.root)?;
    let key = secret.public();
    let door = Door::new(connect, invited.pin, secret).map_err(JoinFailed::Tls)?;
    let request_body = JoinRequest {
        token: token.to_owned(),
        capabilities,
        memory: memory_total(),
        signing: signing.public(),
        consent: consent(root.platform(), key, signing)?,
    };
    let body = serde_json::to_vec(&request_body).expect("INVARIANT: our own shapes serialize");
    let client = Client::new("coordinator join", Arc::new(door), ANSWER_WITHIN, tasks);
    let request = request(&Method::POST, JOIN_PATH, body.into());
    let answered = answer::<Joined>(&client, request).await;
    let joined = answered.map_err(JoinFailed::Request)?;
    let expected = Expected {
        host: Some(invited.host),
        key,
        signing: signing.public(),
    };
    checked(&root, joined, &expected, clock.now())
}

/// A signing key's word that it speaks for a WireGuard key.
///
/// # Errors
/// [`JoinFailed::Sign`].
pub fn consent(
    platform: &PlatformId,
    key: MeshKey,
    signing: &SecretKey,
) -> Result<String, JoinFailed> {
    let signer = Signer::new(signing.clone(), platform.clone());
    let consent = signer.sign_document(DocumentType::HostKey, &HostKey { key });
    consent.map_err(JoinFailed::Sign)
}

/// Whose certificate it must be.
pub(super) struct Expected {
    pub(super) host: Option<HostName>,
    pub(super) key: MeshKey,
    pub(super) signing: VerifyingKeyBytes,
}

pub(super) fn checked(
    root: &Root,
    joined: Joined,
    expected: &Expected,
    now: Timestamp,
) -> Result<Membership, JoinFailed> {
    let verifier = root.verifier(&joined.issuers);
    let opened = verifier.verify_document(DocumentType::HostCertificate, &joined.certificate);
    let certificate: HostCertificate = opened.map_err(|source| JoinFailed::Answer {
        what: "the certificate",
        source,
    })?;
    if certificate.key != expected.key || certificate.signing != expected.signing {
        return Err(JoinFailed::Certificate("it has another key"));
    }
    let host = expected.host.as_ref();
    if host.is_some_and(|host| *host != certificate.host) {
        return Err(JoinFailed::Certificate("it has another name"));
    }
    if let Some(why) = clocks_differ(now, joined.now) {
        return Err(JoinFailed::Clock(why));
    }
    if certificate.not_after <= now {
        return Err(JoinFailed::Certificate("it has ended"));
    }
    let system = joined.system.iter();
    let system = system.map(|text| verifier.verify_document(DocumentType::HostLease, text));
    let system: Result<Vec<HostLease>, TokenError> = system.collect();
    Ok(Membership {
        root: root.key_bytes(),
        issuers: joined.issuers,
        signed: joined.certificate,
        certificate,
        system: system.map_err(|source| JoinFailed::Answer {
            what: "a lease of the platform",
            source,
        })?,
        token: joined.token,
        helpers: joined.helpers,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{ProptestConfig, any, proptest};

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_text_is_taken_for_a_token(text in any::<String>(), payload in any::<Vec<u8>>()) {
            proptest::prop_assert!(Invited::read(&text).is_err());
            let framed = format!("tbj_{}.{}.{}", text, URL_SAFE_NO_PAD.encode(payload), text);
            proptest::prop_assert!(Invited::read(&framed).is_err());
        }
    }
}
