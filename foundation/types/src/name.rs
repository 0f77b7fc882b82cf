//! Names that people choose: tenants, apps, hosts, consumers. Each is a DNS label, or safe in a path.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::ParseError;

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $expected:literal, $valid:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = ParseError;
            fn from_str(text: &str) -> Result<Self, ParseError> {
                let valid: fn(&str) -> bool = $valid;
                if valid(text) {
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
            fn from(name: $name) -> Self {
                name.0
            }
        }
    };
}

name!(
    /// A tenant's slug: `[a-z][a-z0-9-]{0,31}`; `system` is the platform's own.
    Tenant,
    "a tenant (a letter a-z, then up to 31 of a-z 0-9 -)",
    |text| text.len() <= 32
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
);
name!(
    /// An app's name, unique in its tenant: a lower-case DNS label without `--` (RFC 1035 2.3.1).
    AppName,
    "an app name (1 to 63 of a-z 0-9 -, starting and ending with a letter or digit, without --)",
    dns_label
);
name!(
    /// A machine's name, as the coordinator knows it: a DNS label like an app's name.
    HostName,
    "a host name (1 to 63 of a-z 0-9 -, starting and ending with a letter or digit, without --)",
    dns_label
);
name!(
    /// The name that a person gives to a device, unique among the person's: a DNS label like an app's name.
    DeviceName,
    "a device name (1 to 63 of a-z 0-9 -, starting and ending with a letter or digit, without --)",
    dns_label
);
name!(
    /// A secret's name, unique in its tenant.
    SecretName,
    "a secret name (1 to 63 of letters, digits, . _ and -, starting with a letter or digit)",
    |text| text.len() <= 63
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
);
name!(
    /// A domain of an app's own: a host name in lower case (RFC 1123 2.1), punycode included.
    DomainName,
    "a domain (labels of 1 to 63 of a-z 0-9 -, at least two, joined by dots, at most 253 bytes)",
    |text| text.len() <= 253 && text.contains('.') && text.split('.').all(label)
);
name!(
    /// Names a consumer for as long as the log is kept, such as `placer`. Also names its file.
    ConsumerName,
    "a consumer's name (1 to 64 of a-z 0-9 _ -)",
    plain
);
name!(
    /// Names one member of a consumer: a process, or one of its workers.
    MemberName,
    "a member's name (1 to 64 of a-z 0-9 _ -)",
    plain
);

impl Tenant {
    /// The first tenant of every platform.
    #[must_use]
    pub fn main() -> Self {
        Self("main".to_owned())
    }

    /// The platform's own: its roles, and hosts that may run apps of every tenant.
    #[must_use]
    pub fn system() -> Self {
        Self("system".to_owned())
    }
}

fn plain(text: &str) -> bool {
    let byte = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-".contains(&b);
    (1..=64).contains(&text.len()) && text.bytes().all(byte)
}

fn dns_label(text: &str) -> bool {
    label(text) && !text.contains("--")
}

fn label(text: &str) -> bool {
    let edge = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    (1..=63).contains(&text.len())
        && text.bytes().all(|b| edge(&b) || b == b'-')
        && text.as_bytes().first().is_some_and(edge)
        && text.as_bytes().last().is_some_and(edge)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["a", "shop", "shop-2", "0x"] {
            assert_eq!(good.parse::<AppName>().unwrap().to_string(), good);
        }
        let long = "a".repeat(64);
        for bad in ["", "-a", "a-", "a--b", "A", "a.b", "ä", long.as_str()] {
            assert!(bad.parse::<AppName>().is_err(), "{bad}");
        }
        assert_eq!("main".parse::<Tenant>().unwrap(), Tenant::main());
        for bad in ["", "1a", "A", &"a".repeat(33)] {
            assert!(bad.parse::<Tenant>().is_err(), "{bad}");
        }
        for good in ["api-key", "API_KEY", "0.x"] {
            assert_eq!(good.parse::<SecretName>().unwrap().to_string(), good);
        }
        for bad in ["", "-a", "a b", "a/b", &"a".repeat(64)] {
            assert!(bad.parse::<SecretName>().is_err(), "{bad}");
        }
        for good in ["www.shop.de", "xn--bcher-kva.example", "a.b"] {
            assert_eq!(good.parse::<DomainName>().unwrap().to_string(), good);
        }
        let long = format!("{}de", "a.".repeat(126));
        for bad in [
            "", "shop", "a..b", ".a", "a.", "A.de", "-a.de", "a.b:80", &long,
        ] {
            assert!(bad.parse::<DomainName>().is_err(), "{bad}");
        }
        for good in ["a", "placer", "push-0191e7c2-1111", &"x".repeat(64)] {
            let name: ConsumerName = good.parse().unwrap();
            assert_eq!(name.to_string(), good);
            let json = serde_json::to_string(&name).unwrap();
            assert_eq!(serde_json::from_str::<ConsumerName>(&json).unwrap(), name);
        }
        let long = "x".repeat(65);
        for bad in ["", ".", "..", "a/b", "A", "a b", "a.b", "é", &long] {
            assert!(bad.parse::<ConsumerName>().is_err(), "{bad}");
            assert!(bad.parse::<MemberName>().is_err(), "{bad}");
        }
    }
}
