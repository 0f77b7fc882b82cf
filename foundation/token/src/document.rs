//! Signed things that are not tokens: documents of the issuer, proofs of the owner, and the root
//! key's word for an issuer key.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use tabbify_types::{SigningKeyId, Timestamp, VerifyingKeyBytes};

use crate::claims::{is_name, numeric_date};
use crate::verifier::check_time;
use crate::{PlatformId, PublicKey, SecretKey, TokenError, jws};

/// LIMIT: the longest life of an owner proof; it is used at once or not at all.
pub const OWNER_PROOF_LIFE_MAX: Duration = Duration::from_secs(60);

/// What the root key signs, before the 32 bytes of the issuer key: no other signature of ours can
/// begin with it, since a compact JWS never has a NUL.
const ENDORSEMENT_PREFIX: &[u8] = b"tabbify-issuer-key-v1\0";

/// Types of documents that are signed: by issuer keys, and two by the key of a machine. A closed list,
/// so that no document can be given the type of a token or of another document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DocumentType {
    /// The platform's word that a key answers for an instance: `api::mesh::Lease`.
    Lease,
    /// What an invited person registers with: [`crate::Invitation`].
    Invitation,
    /// The platform's word for a machine: `api::coordinator::HostCertificate`.
    HostCertificate,
    /// The platform's word that a key answers for a machine: `api::coordinator::HostLease`.
    HostLease,
    /// A machine's word, under its certificate, that an instance may have its lease:
    /// `api::coordinator::SpawnTicket`. Signed by the machine's own key.
    SpawnTicket,
    /// A machine's signing key says which WireGuard key it speaks for: `api::coordinator::HostKey`.
    /// Signed by the machine's own key.
    HostKey,
}

impl DocumentType {
    /// The `typ` of its header.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Lease => "tabbify-lease+jwt",
            Self::Invitation => "tabbify-invitation+jwt",
            Self::HostCertificate => "tabbify-host-certificate+jwt",
            Self::HostLease => "tabbify-host-lease+jwt",
            Self::SpawnTicket => "tabbify-spawn-ticket+jwt",
            Self::HostKey => "tabbify-host-key+jwt",
        }
    }
}

const OWNER_PROOF_TYP: &str = "tabbify-owner-proof+jwt";

/// A person's statement "I am here now", signed by a key that the platform knows as theirs, and
/// exchanged for a token. Counts once: whoever accepts it remembers `jti` until `exp` + leeway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OwnerProof {
    /// The platform that it is for, so that another platform cannot use it.
    pub aud: PlatformId,
    /// Who signs in, such as `user:owner`.
    pub sub: String,
    /// When it was made.
    #[serde(with = "numeric_date")]
    pub iat: Timestamp,
    /// When it ends; at most [`OWNER_PROOF_LIFE_MAX`] after `iat`.
    #[serde(with = "numeric_date")]
    pub exp: Timestamp,
    /// Never used before.
    pub jti: String,
}

impl OwnerProof {
    /// A proof of the longest life, from `now` on. `jti` is any unique text of at most 128
    /// characters; a UUID will do.
    #[must_use]
    pub fn new(aud: PlatformId, sub: &str, jti: &str, now: Timestamp) -> Self {
        let iat = Timestamp::from_secs(now.secs());
        let exp = iat.plus(OWNER_PROOF_LIFE_MAX);
        Self {
            aud,
            sub: sub.to_owned(),
            iat,
            exp,
            jti: jti.to_owned(),
        }
    }

    /// The proof as text, signed.
    ///
    /// # Errors
    /// [`TokenError`] for a proof that nobody would accept.
    pub fn sign(&self, key: &SecretKey) -> Result<String, TokenError> {
        self.check_shape()?;
        jws::seal(key, OWNER_PROOF_TYP, self)
    }

    /// The proof and the id of the key that signed it. `key` gives the keys that count; whether
    /// that key is `sub`'s, and whether `jti` is new, is the caller's to check.
    ///
    /// # Errors
    /// [`TokenError`], the first rule that it breaks.
    pub fn verify<'k>(
        proof: &str,
        platform: &PlatformId,
        now: Timestamp,
        key: impl FnOnce(&SigningKeyId) -> Option<&'k PublicKey>,
    ) -> Result<(Self, SigningKeyId), TokenError> {
        let accept = |typ: &str| (typ == OWNER_PROOF_TYP).then_some(());
        let opened = jws::open(proof, accept, key)?;
        let proof: Self = opened.payload()?;
        if proof.aud != *platform {
            return Err(TokenError::Audience);
        }
        proof.check_shape()?;
        check_time(proof.iat, proof.iat, proof.exp, now)?;
        Ok((proof, opened.kid))
    }

    fn check_shape(&self) -> Result<(), TokenError> {
        if !is_name(&self.sub) || !is_name(&self.jti) {
            return Err(TokenError::Malformed(
                "a claim is empty, too long or not plain ASCII",
            ));
        }
        let life = self.exp.secs().saturating_sub(self.iat.secs());
        if life == 0 || life > OWNER_PROOF_LIFE_MAX.as_secs() {
            return Err(TokenError::Lifetime {
                kind: crate::Kind::User,
            });
        }
        Ok(())
    }
}

/// The root key's word that `issuer` may sign tokens: base64url of a raw signature.
#[must_use]
pub fn endorse_issuer(root: &SecretKey, issuer: &VerifyingKeyBytes) -> String {
    URL_SAFE_NO_PAD.encode(root.sign(&endorsed(issuer)))
}

/// Checks what [`endorse_issuer`] wrote.
///
/// # Errors
/// [`TokenError::Signature`] if it is anything else.
pub fn verify_endorsement(
    root: &PublicKey,
    issuer: &VerifyingKeyBytes,
    signature: &str,
) -> Result<(), TokenError> {
    let bytes = URL_SAFE_NO_PAD
        .decode(signature)
        .map_err(|_| TokenError::Signature)?;
    let bytes = bytes
        .as_slice()
        .try_into()
        .map_err(|_| TokenError::Signature)?;
    if root.holds(&endorsed(issuer), bytes) {
        Ok(())
    } else {
        Err(TokenError::Signature)
    }
}

fn endorsed(issuer: &VerifyingKeyBytes) -> Vec<u8> {
    [ENDORSEMENT_PREFIX, &issuer.0].concat()
}
