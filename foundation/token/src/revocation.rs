//! What was taken back: single tokens by their ids, and everything that a subject was given up to a
//! moment. A value, folded from the log by whoever follows it; nothing is ever forgotten, since a
//! clock that jumps must not make a revoked token good again.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use tabbify_types::Timestamp;

/// Bytes of a token id's digest that are kept: sixteen a token, however many there are. Two ids with
/// the same digest would only be revoked together.
const DIGEST_LEN: usize = 16;

/// What was revoked so far.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revocations {
    tokens: BTreeSet<TokenDigest>,
    subjects: BTreeMap<String, Timestamp>,
}

/// What is kept of a token's id; written as base64url without padding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
struct TokenDigest([u8; DIGEST_LEN]);

impl Revocations {
    /// Revokes one token; `false` if it was already.
    pub fn revoke(&mut self, jti: &str) -> bool {
        self.tokens.insert(TokenDigest::of(jti))
    }

    /// Revokes everything that `subject` was given in the second `upto` or before; `false` if it was
    /// already.
    pub fn end_sessions(&mut self, subject: &str, upto: Timestamp) -> bool {
        let known = self.subjects.entry(subject.to_owned()).or_default();
        let later = upto > *known;
        *known = upto.max(*known);
        later
    }

    /// Until when everything of `subject` is revoked, if it ever was.
    #[must_use]
    pub fn ended(&self, subject: &str) -> Option<Timestamp> {
        self.subjects.get(subject).copied()
    }

    /// Whether the token `jti` itself was revoked.
    #[must_use]
    pub fn contain(&self, jti: &str) -> bool {
        self.tokens.contains(&TokenDigest::of(jti))
    }

    /// Whether the token `jti` of `subject`, issued at `iat`, was revoked.
    #[must_use]
    pub fn cover(&self, jti: &str, subject: &str, iat: Timestamp) -> bool {
        let ended = self.ended(subject);
        ended.is_some_and(|upto| iat.secs() <= upto.secs()) || self.contain(jti)
    }
}

impl TokenDigest {
    fn of(jti: &str) -> Self {
        let mut digest = [0; DIGEST_LEN];
        digest.copy_from_slice(&blake3::hash(jti.as_bytes()).as_bytes()[..DIGEST_LEN]);
        Self(digest)
    }
}

impl From<TokenDigest> for String {
    fn from(digest: TokenDigest) -> Self {
        URL_SAFE_NO_PAD.encode(digest.0)
    }
}

/// The text is not the digest of a token's id.
#[derive(Debug, thiserror::Error)]
#[error("not a digest (22 characters of base64url)")]
struct NotADigest;

impl TryFrom<String> for TokenDigest {
    type Error = NotADigest;

    fn try_from(text: String) -> Result<Self, NotADigest> {
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| NotADigest)?;
        bytes.try_into().map(Self).map_err(|_| NotADigest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_and_subjects() {
        let at = Timestamp::from_secs;
        let mut revoked = Revocations::default();
        assert!(!revoked.cover("a", "user:anna", at(5)));
        assert!(revoked.revoke("a") && !revoked.revoke("a"));
        assert!(revoked.cover("a", "user:anna", at(5)));
        assert!(!revoked.cover("b", "user:anna", at(5)));

        assert!(revoked.end_sessions("user:anna", at(10)));
        assert!(!revoked.end_sessions("user:anna", at(7)), "it is earlier");
        assert_eq!(revoked.ended("user:anna"), Some(at(10)));
        assert!(revoked.cover("b", "user:anna", at(10)));
        assert!(!revoked.cover("b", "user:anna", at(11)));
        assert!(!revoked.cover("b", "user:ann", at(10)));
    }

    #[test]
    fn what_is_written_is_all_of_it_and_no_token() {
        let mut revoked = Revocations::default();
        for n in 0..100 {
            revoked.revoke(&format!("jti-{n}"));
            revoked.end_sessions(&format!("user:{n}"), Timestamp::from_secs(n));
        }
        let text = serde_json::to_string(&revoked).unwrap();
        assert!(!text.contains("jti"), "{text}");
        assert_eq!(serde_json::from_str::<Revocations>(&text).unwrap(), revoked);
        for bad in [
            "",
            "AAAA",
            "AAAAAAAAAAAAAAAAAAAAAB",
            "!!!!!!!!!!!!!!!!!!!!!!",
        ] {
            let text = format!(r#"{{"tokens":["{bad}"],"subjects":{{}}}}"#);
            assert!(serde_json::from_str::<Revocations>(&text).is_err(), "{bad}");
        }
    }
}
