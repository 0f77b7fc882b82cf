//! What a token says: kinds, scopes, claims. Tags in claims authorize; what a peer says about
//! itself never stands here.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tabbify_types::{MeshKey, ParseError, SigningKeyId, Tenant, Timestamp, VerifyingKeyBytes};

use crate::TokenError;

/// LIMIT: a subject, audience or token id, in bytes; a subject becomes the `actor` of events.
const NAME_LEN_MAX: usize = 128;
/// LIMIT: one scope, in bytes.
const SCOPE_LEN_MAX: usize = 128;
/// LIMIT: scopes, tags and addresses of one token, each.
const LIST_LEN_MAX: usize = 64;

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// A platform: the id of its root key. Stands as `iss` in everything it signs and as `aud` in what
/// its owner signs for it.
///
/// The id is a name, not a credential: that a token comes from the platform is shown by an issuer
/// key that the root key has endorsed, never by `iss` alone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PlatformId(SigningKeyId);

impl PlatformId {
    /// The platform of this root key.
    #[must_use]
    pub fn of(root: &VerifyingKeyBytes) -> Self {
        Self(root.id())
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl fmt::Display for PlatformId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for PlatformId {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        text.parse().map(Self)
    }
}

/// Who a token is for, and so what it may be used as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A person.
    User,
    /// An AI client, acting for a person within its scopes.
    Agent,
    /// A machine that wants to join, once.
    Join,
    /// A machine of the platform, bound to its WireGuard key.
    Host,
    /// One instance of an app, bound to its WireGuard key.
    Runner,
    /// A role of the platform.
    Service,
    /// A client of the registry, for one push or pull.
    Registry,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 7] = [
        Self::User,
        Self::Agent,
        Self::Join,
        Self::Host,
        Self::Runner,
        Self::Service,
        Self::Registry,
    ];

    /// The kind as it stands in claims and events.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Agent => "agent",
            Self::Join => "join",
            Self::Host => "host",
            Self::Runner => "runner",
            Self::Service => "service",
            Self::Registry => "registry",
        }
    }

    /// The `typ` of the kind's header.
    #[must_use]
    pub const fn typ(self) -> &'static str {
        match self {
            Self::User => "tabbify-user+jwt",
            Self::Agent => "tabbify-agent+jwt",
            Self::Join => "tabbify-join+jwt",
            Self::Host => "tabbify-host+jwt",
            Self::Runner => "tabbify-runner+jwt",
            Self::Service => "tabbify-service+jwt",
            Self::Registry => "tabbify-registry+jwt",
        }
    }

    /// What stands before a token of the kind that people handle: scanners find a leaked one by it, and
    /// nobody pastes one where the other belongs. Empty for kinds that only programs handle.
    #[must_use]
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::Agent => "tba_",
            Self::Join => "tbj_",
            Self::User | Self::Host | Self::Runner | Self::Service | Self::Registry => "",
        }
    }

    /// LIMIT: the longest life of a token of the kind. An issuer that is tricked or has a fault
    /// cannot make one that lasts longer and is accepted.
    #[must_use]
    pub const fn life_max(self) -> Duration {
        match self {
            Self::User | Self::Host | Self::Service => DAY,
            Self::Agent => Duration::from_secs(366 * 24 * 3600),
            Self::Join | Self::Runner => HOUR,
            Self::Registry => Duration::from_secs(5 * 60),
        }
    }

    /// Whether a token of the kind must name the WireGuard key that it is bound to.
    #[must_use]
    pub const fn must_be_bound(self) -> bool {
        matches!(self, Self::Host | Self::Runner)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Something that a token's holder may do: words of `[a-z0-9-]` joined by colons, such as `deploy`
/// or `apps:read`; or `*`, which is everything. Words after the first may also have `.`, `_` and `/`
/// inside, as the names of repositories do.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Scope(String);

impl Scope {
    /// Everything: the owner's.
    #[must_use]
    pub fn all() -> Self {
        Self("*".to_owned())
    }

    /// See apps, versions, deploys and logs.
    #[must_use]
    pub fn apps_read() -> Self {
        Self("apps:read".to_owned())
    }

    /// Register apps and upload versions.
    #[must_use]
    pub fn apps_write() -> Self {
        Self("apps:write".to_owned())
    }

    /// Put versions into service.
    #[must_use]
    pub fn deploy() -> Self {
        Self("deploy".to_owned())
    }

    /// Send requests to any private app of the tenant.
    #[must_use]
    pub fn app_open() -> Self {
        Self("app:open".to_owned())
    }

    /// Read the tenant's events.
    #[must_use]
    pub fn events_read() -> Self {
        Self("events:read".to_owned())
    }

    /// The scope as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the holder of this scope may do what `wanted` names.
    #[must_use]
    pub fn covers(&self, wanted: &Self) -> bool {
        self.0 == "*" || self == wanted
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Scope {
    type Error = ScopeError;

    fn try_from(text: String) -> Result<Self, ScopeError> {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let first = |word: &str| !word.is_empty() && word.bytes().all(plain);
        let later = |word: &str| {
            let joins = |b: u8| matches!(b, b'.' | b'_' | b'/');
            let ends = [word.bytes().next(), word.bytes().last()];
            ends.into_iter().all(|end| end.is_some_and(plain))
                && word.bytes().all(|b| plain(b) || joins(b))
        };
        let mut words = text.split(':');
        let good =
            text.len() <= SCOPE_LEN_MAX && words.next().is_some_and(first) && words.all(later);
        if good || text == "*" {
            Ok(Self(text))
        } else {
            Err(ScopeError)
        }
    }
}

impl FromStr for Scope {
    type Err = ScopeError;
    fn from_str(text: &str) -> Result<Self, ScopeError> {
        text.to_owned().try_into()
    }
}

impl From<Scope> for String {
    fn from(scope: Scope) -> Self {
        scope.0
    }
}

/// A text is not a scope.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a scope (words of a-z 0-9 - joined by colons, or *)")]
pub struct ScopeError;

/// What the holder must prove to own (RFC 7800): a WireGuard key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Confirmation {
    /// The WireGuard public key.
    pub wg: MeshKey,
}

/// What a join token admits, beside its tags: read by the machine that joins before it knows anybody,
/// and by the coordinator that admits it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinTerms {
    /// The platform's root key, which the machine pins: issuer keys count with its word only.
    pub root: VerifyingKeyBytes,
    /// How the machine knows the coordinator when it dials it: the digest of its TLS key, as the
    /// coordinator writes it.
    pub coordinator: String,
    /// What the machine may be used for, such as `docker`, once it has been seen to work there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub capabilities: Vec<String>,
}

/// The claims of a token. Times are whole seconds, as RFC 7519 writes them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claims {
    /// The platform that issued it.
    pub iss: PlatformId,
    /// Who it is about, such as `user:owner`; the `actor` of what its holder does.
    pub sub: String,
    /// Who may accept it.
    pub aud: String,
    /// Its kind, the same as its header's `typ` says.
    pub kind: Kind,
    /// The tenant it counts in; `system` for the platform's own roles and hosts.
    pub tenant: Tenant,
    /// Tags that the platform gave the subject; policy reads these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// What its holder may do.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scopes: Vec<Scope>,
    /// Mesh addresses that its holder may use as its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ulas: Vec<Ipv6Addr>,
    /// The key that its holder must prove to own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cnf: Option<Confirmation>,
    /// What a join token admits; of no other kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub join: Option<JoinTerms>,
    /// When it was issued.
    #[serde(with = "numeric_date")]
    pub iat: Timestamp,
    /// When it begins.
    #[serde(with = "numeric_date")]
    pub nbf: Timestamp,
    /// When it ends.
    #[serde(with = "numeric_date")]
    pub exp: Timestamp,
    /// Its own id; unique, so that it can be named in events and revoked.
    pub jti: String,
}

impl Claims {
    /// Whether the holder may do what `wanted` names.
    #[must_use]
    pub fn allows(&self, wanted: &Scope) -> bool {
        self.scopes.iter().any(|scope| scope.covers(wanted))
    }

    /// Whether whoever shows the token may: a bound token counts only with proof of its key, which
    /// the connection that it came over gives (`proven`).
    ///
    /// # Errors
    /// [`TokenError::Holder`].
    pub fn check_holder(&self, proven: Option<&MeshKey>) -> Result<(), TokenError> {
        match &self.cnf {
            Some(cnf) if proven != Some(&cnf.wg) => Err(TokenError::Holder),
            _ => Ok(()),
        }
    }

    /// What holds for every token, whoever reads it and when.
    pub(crate) fn check_shape(&self) -> Result<(), TokenError> {
        let names = [&self.sub, &self.aud, &self.jti];
        let terms = self.join.iter();
        let admitted = terms.clone().flat_map(|join| &join.capabilities);
        if !names
            .into_iter()
            .chain(&self.tags)
            .chain(terms.map(|join| &join.coordinator))
            .chain(admitted.clone())
            .all(|text| is_name(text))
        {
            return Err(TokenError::Malformed(
                "a claim is empty, too long or not plain ASCII",
            ));
        }
        let lens = [
            self.scopes.len(),
            self.tags.len(),
            self.ulas.len(),
            admitted.count(),
        ];
        if lens.into_iter().any(|len| len > LIST_LEN_MAX) {
            return Err(TokenError::Malformed("a claim has too many entries"));
        }
        if (self.kind == Kind::Join) != self.join.is_some() {
            return Err(TokenError::Malformed(
                "a join token, and no other, says what it admits",
            ));
        }
        let life = self.kind.life_max().as_secs();
        let begin = self.iat.secs().min(self.nbf.secs());
        if self.exp <= self.nbf || self.exp.secs().saturating_sub(begin) > life {
            return Err(TokenError::Lifetime { kind: self.kind });
        }
        if self.kind.must_be_bound() && self.cnf.is_none() {
            return Err(TokenError::Unbound { kind: self.kind });
        }
        Ok(())
    }
}

/// 1 to 128 visible ASCII characters: such a text can stand in a log line or a header as it is.
pub(crate) fn is_name(text: &str) -> bool {
    (1..=NAME_LEN_MAX).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
}

/// Whole seconds since the Unix epoch; RFC 7519 allows fractions, we neither write nor read them.
pub(crate) mod numeric_date {
    use serde::{Deserialize, Deserializer, Serializer};
    use tabbify_types::Timestamp;

    #[expect(
        clippy::trivially_copy_pass_by_ref,
        reason = "the signature that serde calls"
    )]
    pub(crate) fn serialize<S: Serializer>(time: &Timestamp, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(time.secs())
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Timestamp, D::Error> {
        u64::deserialize(from).map(Timestamp::from_secs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_cover_themselves_and_the_star_everything() {
        let check = |granted: &str, wanted: &str, expected: bool| {
            let (g, w): (Scope, Scope) = (granted.parse().unwrap(), wanted.parse().unwrap());
            assert_eq!(g.covers(&w), expected, "{granted} covers {wanted}");
        };
        check("*", "deploy", true);
        check("*", "*", true);
        check("apps:read", "*", false);
        check("apps:read", "apps:read", true);
        check("apps:read", "apps:readx", false);
        check("apps:read", "apps:write", false);
        check("apps:read", "apps", false);
        check("apps", "apps:read", false);
        check("registry:pull:main/shop", "registry:pull:main/shop2", false);
        let named = [
            Scope::apps_read(),
            Scope::apps_write(),
            Scope::deploy(),
            Scope::app_open(),
            Scope::events_read(),
            "registry:pull:main/some_shop.v2".parse().unwrap(),
        ];
        for scope in named {
            assert_eq!(scope.to_string().parse(), Ok(scope));
        }
    }

    #[test]
    fn bad_scopes_are_refused() {
        let long = "a".repeat(SCOPE_LEN_MAX + 1);
        for bad in [
            "", ":", "a:", ":a", "a::b", "**", "a:*", "*:a", "A", "a b", "a\0", "ä", &long, "a/b",
            "a.b:c", "a:/b", "a:b/", "a:.b", "a:b_", "a:b*", "a:b\n",
        ] {
            assert!(bad.parse::<Scope>().is_err(), "{bad}");
        }
    }

    #[test]
    fn kinds_have_distinct_types_and_limited_lives() {
        let types: std::collections::BTreeSet<_> = Kind::ALL.iter().map(|k| k.typ()).collect();
        assert_eq!(types.len(), Kind::ALL.len());
        for kind in Kind::ALL {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
            assert_eq!(kind.typ(), format!("tabbify-{kind}+jwt"));
            assert!(kind.life_max() >= Duration::from_secs(60));
            // A token begins with `ey`: no prefix can be taken for the beginning of one.
            assert!(kind.prefix().is_empty() || kind.prefix().starts_with("tb"));
        }
    }
}
