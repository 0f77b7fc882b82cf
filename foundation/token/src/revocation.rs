//! What was taken back: single tokens by their ids, and everything that a subject was given up to a
//! moment. A value, folded from the log by whoever follows it; nothing is ever forgotten, since a
//! clock that jumps must not make a revoked token good again.

use std::collections::{BTreeMap, BTreeSet};

use tabbify_types::Timestamp;

/// Bytes of a token id's digest that are kept: sixteen a token, however many there are. Two ids with
/// the same digest would only be revoked together.
const DIGEST_LEN: usize = 16;

/// What was revoked so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Revocations {
    tokens: BTreeSet<[u8; DIGEST_LEN]>,
    subjects: BTreeMap<String, Timestamp>,
}

impl Revocations {
    /// Revokes one token; `false` if it was already.
    pub fn revoke(&mut self, jti: &str) -> bool {
        self.tokens.insert(digest(jti))
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
        self.tokens.contains(&digest(jti))
    }

    /// Whether the token `jti` of `subject`, issued at `iat`, was revoked.
    #[must_use]
    pub fn cover(&self, jti: &str, subject: &str, iat: Timestamp) -> bool {
        let ended = self.ended(subject);
        ended.is_some_and(|upto| iat.secs() <= upto.secs()) || self.contain(jti)
    }
}

fn digest(jti: &str) -> [u8; DIGEST_LEN] {
    let mut digest = [0; DIGEST_LEN];
    digest.copy_from_slice(&blake3::hash(jti.as_bytes()).as_bytes()[..DIGEST_LEN]);
    digest
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
}
