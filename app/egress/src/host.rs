//! The name or address of a host, in the one form in which names are compared.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

/// LIMIT: bytes of a name (RFC 1035, section 2.3.4), without the dot of an absolute one.
const NAME_LEN_MAX: usize = 253;
/// LIMIT: bytes of a label, by the same.
const LABEL_LEN_MAX: usize = 63;

/// Whom a program wants to reach.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Host {
    /// A name in lower case, without the dot of an absolute one.
    Name(String),
    /// A literal address.
    Address(IpAddr),
}

/// Why a text names no host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// It is neither a name nor an address.
    #[error("{0:?} names no host")]
    NotAHost(String),
    /// It is a name in letters that the domain name system does not have.
    #[error("{0:?} has letters beyond ASCII. Write it in its xn-- form")]
    NotAscii(String),
    /// It is an address in a form that some programs take for one, and others for a name.
    #[error("{0:?} is an address in a form of its own. Write it with four decimal numbers")]
    Numeric(String),
}

impl Host {
    /// The name, if it is one.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Name(name) => Some(name),
            Self::Address(_) => None,
        }
    }
}

impl FromStr for Host {
    type Err = HostError;

    /// A name, or an address; one of version 6 may stand in brackets (RFC 3986, section 3.2.2).
    fn from_str(text: &str) -> Result<Self, HostError> {
        let shown = || text.chars().take(80).collect::<String>();
        if let Some(inside) = text.strip_prefix('[') {
            let address = inside.strip_suffix(']').map(str::parse::<Ipv6Addr>);
            return match address {
                Some(Ok(address)) => Ok(Self::Address(address.to_canonical())),
                _ => Err(HostError::NotAHost(shown())),
            };
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::Address(address.to_canonical()));
        }
        if !text.is_ascii() {
            return Err(HostError::NotAscii(shown()));
        }
        let lower = text.to_ascii_lowercase();
        let name = lower.strip_suffix('.').unwrap_or(&lower);
        if name.len() > NAME_LEN_MAX || !name.split('.').all(is_label) {
            return Err(HostError::NotAHost(shown()));
        }
        if ends_in_number(name) {
            return Err(HostError::Numeric(shown()));
        }
        Ok(Self::Name(name.to_owned()))
    }
}

/// Letters, digits, `-` within, and the `_` of service names.
pub(crate) fn is_label(label: &str) -> bool {
    (1..=LABEL_LEN_MAX).contains(&label.len())
        && !label.starts_with('-')
        && !label.ends_with('-')
        && label
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte))
}

/// Whether resolvers may take a name for an address, as `inet_aton` does with `127.1`, `0x7f000001` and
/// `2130706433`.
fn ends_in_number(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or_default();
    match last.strip_prefix("0x") {
        Some(digits) => digits.bytes().all(|byte| byte.is_ascii_hexdigit()),
        None => last.bytes().all(|byte| byte.is_ascii_digit()),
    }
}

impl fmt::Display for Host {
    /// As in an authority: an address of version 6 stands in brackets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Address(IpAddr::V4(address)) => address.fmt(f),
            Self::Address(IpAddr::V6(address)) => write!(f, "[{address}]"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_form_for_each() {
        let check = |text: &str, expected: &str| {
            assert_eq!(
                text.parse::<Host>().unwrap().to_string(),
                expected,
                "{text}"
            );
        };
        check("API.Stripe.com", "api.stripe.com");
        check("api.stripe.com.", "api.stripe.com");
        check("xn--MNCHEN-3ya.de", "xn--mnchen-3ya.de");
        check("_dmarc.example.com", "_dmarc.example.com");
        check("8.8.8.8", "8.8.8.8");
        check("2001:4860:0:0::8888", "[2001:4860::8888]");
        check("[2001:4860::8888]", "[2001:4860::8888]");
        check("[::ffff:8.8.8.8]", "8.8.8.8");
        check("db", "db");
    }

    #[test]
    fn what_names_no_host() {
        let long = format!("{}.com", "a".repeat(64));
        let longer = "a.".repeat(127) + "com";
        for text in [
            "",
            ".",
            "..",
            "a..b",
            "-a.com",
            "a-.com",
            "a b",
            "a/b",
            "a:80",
            "a@b",
            "%61.com",
            "a\0b",
            "*.a.com",
            "example.com..",
            "[::1",
            "::1]",
            "[127.0.0.1]",
            "[fe80::1%eth0]",
            "fe80::1%1",
            &long,
            &longer,
        ] {
            assert!(
                matches!(text.parse::<Host>(), Err(HostError::NotAHost(_))),
                "{text}"
            );
        }
        for text in ["münchen.de", "ＧＯＯＧＬＥ.com", "１２７.0.0.1", "a。com"] {
            assert!(
                matches!(text.parse::<Host>(), Err(HostError::NotAscii(_))),
                "{text}"
            );
        }
        for text in [
            "127.1",
            "2130706433",
            "0x7f000001",
            "0x7f.1",
            "0177.0.0.1",
            "127.0.0.1.",
            "256.1.1.1",
            "a.1",
            "0x",
        ] {
            assert!(
                matches!(text.parse::<Host>(), Err(HostError::Numeric(_))),
                "{text}"
            );
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_text(text in "\\PC{0,40}|[0-9a-fA-Fx.:\\[\\]%-]{0,40}") {
            if let Ok(host) = text.parse::<Host>() {
                prop_assert_eq!(host.to_string().parse::<Host>().unwrap(), host);
            }
        }
    }
}
