//! Segments: dotted names that say where an event lives, and the globs that select them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{HostName, ParseError, Tenant};

/// LIMIT: longest segment name or glob, in bytes.
pub const SEGMENT_LEN_MAX: usize = 128;

/// A literal segment, such as `platform.auth` or `tenant_main.apps`: parts of `[a-z0-9_-]`,
/// joined by dots.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Segment(String);

/// A pattern over segments: `*` stands for any run of characters within one part, and a last part
/// `**` for any rest. `tenant_*.chat` selects every tenant's chat; `**` selects everything.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SegmentGlob(String);

fn valid(text: &str, glob: bool) -> bool {
    if text.is_empty() || text.len() > SEGMENT_LEN_MAX {
        return false;
    }
    let parts: Vec<&str> = text.split('.').collect();
    parts.iter().enumerate().all(|(i, part)| {
        if glob && *part == "**" {
            return i + 1 == parts.len();
        }
        !part.is_empty()
            && !part.contains("**")
            && part.bytes().all(|b| {
                b.is_ascii_lowercase()
                    || b.is_ascii_digit()
                    || b == b'_'
                    || b == b'-'
                    || (glob && b == b'*')
            })
    })
}

impl Segment {
    /// The segment as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// `platform`: what is true of the platform as a whole.
    #[must_use]
    pub fn platform() -> Self {
        Self("platform".to_owned())
    }

    /// `platform.auth`: tenants, people, keys, tokens.
    #[must_use]
    pub fn auth() -> Self {
        Self("platform.auth".to_owned())
    }

    /// `platform.mesh.peers`: networks, hosts, leases, claimed addresses.
    #[must_use]
    pub fn peers() -> Self {
        Self("platform.mesh.peers".to_owned())
    }

    /// `platform.supervisors`: machines that can run apps.
    #[must_use]
    pub fn supervisors() -> Self {
        Self("platform.supervisors".to_owned())
    }

    /// `platform.hosts.<host>`: what that host must do.
    #[must_use]
    pub fn host(host: &HostName) -> Self {
        Self(format!("platform.hosts.{host}"))
    }

    /// `platform.hosts.<host>.reports`: what that host says happened.
    #[must_use]
    pub fn host_reports(host: &HostName) -> Self {
        Self(format!("platform.hosts.{host}.reports"))
    }

    /// `tenant_<slug>.apps`: the life of a tenant's apps.
    #[must_use]
    pub fn apps(tenant: &Tenant) -> Self {
        Self(format!("tenant_{tenant}.apps"))
    }

    /// `tenant_<slug>.secrets`: names and versions of a tenant's secrets.
    #[must_use]
    pub fn secrets(tenant: &Tenant) -> Self {
        Self(format!("tenant_{tenant}.secrets"))
    }

    /// The tenant whose segment this is; `None` for the platform's own.
    #[must_use]
    pub fn tenant(&self) -> Option<Tenant> {
        let first = self.0.split('.').next()?;
        first.strip_prefix("tenant_")?.parse().ok()
    }
}

impl SegmentGlob {
    /// The glob as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Every segment.
    #[must_use]
    pub fn all() -> Self {
        Self("**".to_owned())
    }

    /// The apps segments of every tenant.
    #[must_use]
    pub fn all_apps() -> Self {
        Self("tenant_*.apps".to_owned())
    }

    /// The secrets segments of every tenant.
    #[must_use]
    pub fn all_secrets() -> Self {
        Self("tenant_*.secrets".to_owned())
    }

    /// Everything of one tenant.
    #[must_use]
    pub fn of_tenant(tenant: &Tenant) -> Self {
        Self(format!("tenant_{tenant}.**"))
    }

    /// The reports of every host.
    #[must_use]
    pub fn all_host_reports() -> Self {
        Self("platform.hosts.*.reports".to_owned())
    }

    /// Whether `segment` is selected.
    #[must_use]
    pub fn matches(&self, segment: &Segment) -> bool {
        let mut parts = segment.0.split('.');
        for pattern in self.0.split('.') {
            if pattern == "**" {
                return parts.next().is_some();
            }
            match parts.next() {
                Some(part) if part_matches(pattern.as_bytes(), part.as_bytes()) => {}
                _ => return false,
            }
        }
        parts.next().is_none()
    }

    /// Whether everything that `narrower` selects is selected by this glob too, decided part by
    /// part: a `*` of the narrower glob must fall into a `*` of this one. Never true wrongly; false
    /// only where one `*` would have to be split over several.
    #[must_use]
    pub fn covers(&self, narrower: &Self) -> bool {
        let mut parts = narrower.0.split('.');
        for pattern in self.0.split('.') {
            if pattern == "**" {
                return parts.next().is_some();
            }
            match parts.next() {
                // As text, a `*` of the narrower part is a character that only a `*` here takes.
                Some(part) if part != "**" && part_matches(pattern.as_bytes(), part.as_bytes()) => {
                }
                _ => return false,
            }
        }
        parts.next().is_none()
    }
}

/// Greedy match with one backtrack point: linear in practice, quadratic at worst over 128 bytes.
fn part_matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        if p < pattern.len() && pattern[p] == b'*' {
            star = Some((p, t));
            p += 1;
        } else if p < pattern.len() && pattern[p] == text[t] {
            p += 1;
            t += 1;
        } else if let Some((star_p, star_t)) = star {
            p = star_p + 1;
            t = star_t + 1;
            star = Some((star_p, t));
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|b| *b == b'*')
}

impl From<&Segment> for SegmentGlob {
    fn from(segment: &Segment) -> Self {
        Self(segment.0.clone())
    }
}

macro_rules! text {
    ($name:ident, $glob:literal, $expected:literal) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = ParseError;
            fn from_str(text: &str) -> Result<Self, ParseError> {
                if valid(text, $glob) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(ParseError::new($expected, text))
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = ParseError;
            fn try_from(text: String) -> Result<Self, ParseError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.0
            }
        }
    };
}

text!(
    Segment,
    false,
    "a segment (parts of a-z 0-9 _ - joined by dots, at most 128 bytes)"
);
text!(
    SegmentGlob,
    true,
    "a segment glob (a segment in which * matches within a part and a last ** the rest)"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_select() {
        let check = |glob: &str, segment: &str, expected: bool| {
            let (g, s): (SegmentGlob, Segment) = (glob.parse().unwrap(), segment.parse().unwrap());
            assert_eq!(g.matches(&s), expected, "{glob} on {segment}");
        };
        check("tenant_*.chat", "tenant_main.chat", true);
        check("tenant_*.chat", "tenant_main.apps", false);
        check("tenant_*.chat", "tenant_main.chat.x", false);
        check(
            "platform.hosts.*.reports",
            "platform.hosts.box1.reports",
            true,
        );
        check("platform.hosts.*.reports", "platform.hosts.box1", false);
        check("platform.**", "platform.mesh.peers", true);
        check("platform.**", "platform", false);
        check("**", "platform", true);
        check("a*b*c", "aXbXbc".to_lowercase().as_str(), true);
        check("a*b*c", "abcx", false);
    }

    #[test]
    fn globs_cover() {
        let check = |wide: &str, narrow: &str, expected: bool| {
            let (w, n): (SegmentGlob, SegmentGlob) =
                (wide.parse().unwrap(), narrow.parse().unwrap());
            assert_eq!(w.covers(&n), expected, "{wide} over {narrow}");
        };
        check("**", "**", true);
        check("**", "tenant_*.apps", true);
        check("tenant_*.apps", "tenant_*.apps", true);
        check("tenant_*.apps", "tenant_main.apps", true);
        check("tenant_*.apps", "tenant_m*n.apps", true);
        check("tenant_*.apps", "*.apps", false);
        check("tenant_*.apps", "tenant_main.*", false);
        check("tenant_main.*", "tenant_main.**", false);
        check("platform.**", "platform.hosts.*", true);
        check("platform.**", "platform.**", true);
        check("platform.**", "platform", false);
        check("platform.**", "**", false);
        check("platform", "platform.mesh", false);
        check("a*c", "abc", true);
        check("abc", "a*c", false);
    }

    #[test]
    fn bad_names_are_refused() {
        for bad in [
            "",
            ".",
            "a.",
            "A",
            "a b",
            "a..b",
            "tenant_*.chat",
            &"a".repeat(129),
        ] {
            assert!(bad.parse::<Segment>().is_err(), "{bad}");
        }
        for bad in ["**.a", "a.***", "a.b**"] {
            assert!(bad.parse::<SegmentGlob>().is_err(), "{bad}");
        }
        let apps = Segment::apps(&Tenant::main());
        assert_eq!(apps.tenant(), Some(Tenant::main()));
        assert_eq!(Segment::auth().tenant(), None);
    }
}
