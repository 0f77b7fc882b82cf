//! The two ends of a token: [`Signer`] holds an issuer key, [`Verifier`] knows which issuer keys
//! count. A verifier is a value: whoever follows the log makes a new one when the keys change.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tabbify_types::{SigningKeyId, Timestamp, VerifyingKeyBytes};

use crate::{
    Claims, DocumentType, Kind, PlatformId, PublicKey, Revocations, SecretKey, TokenError, jws,
};

/// How far two clocks may be apart; applied to `exp`, `nbf` and `iat`.
pub const LEEWAY: Duration = Duration::from_secs(30);

/// Signs tokens and documents with an issuer key. Clone it, or share it.
#[derive(Debug, Clone)]
pub struct Signer {
    key: SecretKey,
    platform: PlatformId,
}

impl Signer {
    /// Signs for `platform` with `key`, an issuer key that its root key has endorsed.
    #[must_use]
    pub const fn new(key: SecretKey, platform: PlatformId) -> Self {
        Self { key, platform }
    }

    /// The id of the key, as `kid` names it.
    #[must_use]
    pub fn kid(&self) -> SigningKeyId {
        self.key.id()
    }

    /// The platform it signs for.
    #[must_use]
    pub const fn platform(&self) -> &PlatformId {
        &self.platform
    }

    /// The public half of the key.
    #[must_use]
    pub fn public(&self) -> VerifyingKeyBytes {
        self.key.public()
    }

    /// The token of these claims, with the prefix of its kind.
    ///
    /// # Errors
    /// [`TokenError`] for claims that every verifier would refuse; nothing is signed then.
    pub fn sign(&self, claims: &Claims) -> Result<String, TokenError> {
        if claims.iss != self.platform {
            return Err(TokenError::Issuer);
        }
        claims.check_shape()?;
        let token = jws::seal(&self.key, claims.kind.typ(), claims)?;
        Ok(format!("{}{token}", claims.kind.prefix()))
    }

    /// A signed document, such as a lease.
    ///
    /// # Errors
    /// [`TokenError`] if `document` is not a JSON object or too long.
    pub fn sign_document(
        &self,
        typ: DocumentType,
        document: &impl Serialize,
    ) -> Result<String, TokenError> {
        jws::seal(&self.key, typ.as_str(), document)
    }
}

/// Verifies what the platform's issuer keys signed and what was not revoked since. Clones are cheap.
#[derive(Debug, Clone)]
pub struct Verifier {
    platform: PlatformId,
    keys: BTreeMap<SigningKeyId, PublicKey>,
    revocations: Arc<Revocations>,
}

impl Verifier {
    /// Accepts nothing until it is given keys.
    #[must_use]
    pub fn new(platform: PlatformId) -> Self {
        Self {
            platform,
            keys: BTreeMap::new(),
            revocations: Arc::default(),
        }
    }

    /// The same verifier, accepting `key` too. The caller has checked the root key's endorsement.
    #[must_use]
    pub fn with_key(mut self, key: PublicKey) -> Self {
        self.keys.insert(key.bytes().id(), key);
        self
    }

    /// The same verifier, refusing what was revoked.
    #[must_use]
    pub fn with_revocations(mut self, revocations: Arc<Revocations>) -> Self {
        self.revocations = revocations;
        self
    }

    /// What was revoked: for whoever keeps something open that a token opened.
    #[must_use]
    pub fn revocations(&self) -> &Revocations {
        &self.revocations
    }

    /// The issuer keys that count, by id.
    #[must_use]
    pub const fn keys(&self) -> &BTreeMap<SigningKeyId, PublicKey> {
        &self.keys
    }

    /// The platform whose tokens it accepts.
    #[must_use]
    pub const fn platform(&self) -> &PlatformId {
        &self.platform
    }

    /// The claims of a token of one of `kinds` that is meant for `audience`, if it may be acted on
    /// at `now`.
    ///
    /// # Errors
    /// [`TokenError`], the first rule that it breaks; nothing of its claims is known then.
    pub fn verify(
        &self,
        token: &str,
        kinds: &[Kind],
        audience: &str,
        now: Timestamp,
    ) -> Result<Claims, TokenError> {
        self.check(token, kinds, Some(audience), now)
    }

    /// As [`Verifier::verify`], for whomever the token is meant: for the issuer alone, who renews it.
    ///
    /// # Errors
    /// [`TokenError`].
    pub fn verify_own(
        &self,
        token: &str,
        kinds: &[Kind],
        now: Timestamp,
    ) -> Result<Claims, TokenError> {
        self.check(token, kinds, None, now)
    }

    fn check(
        &self,
        token: &str,
        kinds: &[Kind],
        audience: Option<&str>,
        now: Timestamp,
    ) -> Result<Claims, TokenError> {
        let accept = |typ: &str| kinds.iter().copied().find(|kind| kind.typ() == typ);
        let (prefix, token) = split_prefix(token);
        let opened = jws::open(token, accept, |kid| self.keys.get(kid))?;
        if opened.typ.prefix() != prefix {
            return Err(TokenError::Malformed(
                "its prefix is not the one of its kind",
            ));
        }
        let claims: Claims = opened.payload()?;
        if claims.kind != opened.typ {
            return Err(TokenError::Kind);
        }
        if claims.iss != self.platform {
            return Err(TokenError::Issuer);
        }
        if audience.is_some_and(|audience| claims.aud != audience) {
            return Err(TokenError::Audience);
        }
        claims.check_shape()?;
        check_time(claims.iat, claims.nbf, claims.exp, now)?;
        if self.revocations.cover(&claims.jti, &claims.sub, claims.iat) {
            return Err(TokenError::Revoked);
        }
        Ok(claims)
    }

    /// The content of a signed document. Its own time limits are the caller's to check.
    ///
    /// # Errors
    /// [`TokenError`], the first rule that it breaks.
    pub fn verify_document<T: DeserializeOwned>(
        &self,
        typ: DocumentType,
        document: &str,
    ) -> Result<T, TokenError> {
        let accept = |text: &str| (text == typ.as_str()).then_some(());
        jws::open(document, accept, |kid| self.keys.get(kid))?.payload()
    }
}

/// The prefix of a kind of token, and what follows it. No token begins like a prefix.
fn split_prefix(token: &str) -> (&str, &str) {
    let prefixes = Kind::ALL.into_iter().map(Kind::prefix);
    let mut found = prefixes.filter(|prefix| !prefix.is_empty() && token.starts_with(prefix));
    token.split_at(found.next().map_or(0, str::len))
}

/// Whether `now` is within `[nbf, exp)`, give or take [`LEEWAY`], and not before `iat`.
pub(crate) fn check_time(
    iat: Timestamp,
    nbf: Timestamp,
    exp: Timestamp,
    now: Timestamp,
) -> Result<(), TokenError> {
    if now >= exp.plus(LEEWAY) {
        return Err(TokenError::Expired { at: exp });
    }
    if nbf.max(iat) > now.plus(LEEWAY) {
        return Err(TokenError::NotYet);
    }
    Ok(())
}
