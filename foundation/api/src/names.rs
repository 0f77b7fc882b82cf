//! Names inside the mesh: `<app>.<tenant>.internal` is an app, `<machine>.internal` a machine.
//!
//! An app's name stands for its id, and its id for its address: what a name means changes only when the
//! app is another one, and who answers there is not asked here ([`crate::mesh`] says). Whoever asks sees
//! what policy lets it reach: a name that is nobody's and one that is none of its business look alike.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use tabbify_types::{AppName, HostName, ParseError, Tenant};

use crate::BoxFuture;

/// `POST` a [`NameAsk`] to the coordinator for a [`Named`].
pub const NAME_PATH: &str = "/v1/coordinator/name";

/// The domain of every name. It is reserved for private use, so that no resolver of the Internet has it.
pub const INTERNAL: &str = "internal";

/// LIMIT: bytes of a name as text: three labels of at most 63 bytes and two dots.
pub const MESH_NAME_LEN_MAX: usize = 253;

/// A name inside the mesh.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum MeshName {
    /// `<app>.<tenant>.internal`.
    App {
        /// The app's name, as it stands now.
        app: AppName,
        /// Its tenant.
        tenant: Tenant,
    },
    /// `<machine>.internal`.
    Host(HostName),
}

impl MeshName {
    /// Whether a text ends like a name inside the mesh, be it a well-formed one or not: then it is no
    /// name of the Internet either.
    #[must_use]
    pub fn is_meant(host: &str) -> bool {
        let host = host.strip_suffix('.').unwrap_or(host);
        let at = host.len().saturating_sub(INTERNAL.len());
        let is_internal = |end: &str| end.eq_ignore_ascii_case(INTERNAL);
        host.get(at..).is_some_and(is_internal)
            && (at == 0 || host.as_bytes().get(at - 1) == Some(&b'.'))
    }
}

impl fmt::Display for MeshName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::App { app, tenant } => write!(f, "{app}.{tenant}.{INTERNAL}"),
            Self::Host(host) => write!(f, "{host}.{INTERNAL}"),
        }
    }
}

impl FromStr for MeshName {
    type Err = ParseError;

    /// In upper or lower case, with or without the dot of an absolute name (RFC 4343, RFC 1034 3.1).
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let wrong = || ParseError {
            expected: "a name inside the mesh (<app>.<tenant>.internal, or <machine>.internal)",
            text: text.chars().take(80).collect(),
        };
        if text.len() > MESH_NAME_LEN_MAX {
            return Err(wrong());
        }
        let lower = text.to_ascii_lowercase();
        let labels: Vec<&str> = lower
            .strip_suffix('.')
            .unwrap_or(&lower)
            .split('.')
            .collect();
        match labels[..] {
            [app, tenant, INTERNAL] => Ok(Self::App {
                app: app.parse().map_err(|_| wrong())?,
                tenant: tenant.parse().map_err(|_| wrong())?,
            }),
            [host, INTERNAL] => Ok(Self::Host(host.parse().map_err(|_| wrong())?)),
            _ => Err(wrong()),
        }
    }
}

impl TryFrom<String> for MeshName {
    type Error = ParseError;

    fn try_from(text: String) -> Result<Self, ParseError> {
        text.parse()
    }
}

impl From<MeshName> for String {
    fn from(name: MeshName) -> Self {
        name.to_string()
    }
}

/// Which name, or whose.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NameAsk {
    /// What has this name.
    Name(MeshName),
    /// The name of what has this address: of an app, an instance of one, or a machine.
    Address(Ipv6Addr),
}

impl fmt::Display for NameAsk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Address(address) => address.fmt(f),
        }
    }
}

/// A name and its address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    /// The name.
    pub name: MeshName,
    /// The address: of an app, that of its primary instance.
    pub address: Ipv6Addr,
}

/// Why a name leads nowhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nobody has it, or nobody whom the asker may reach: which of both is not told.
    #[error("nobody is called {0}")]
    Unknown(NameAsk),
    /// Nobody can be asked.
    #[error("names cannot be asked for: {0}")]
    Unreachable(String),
}

/// Answers what a name means, for one asker.
///
/// Law: [`Named::address`] of an app is derived from its id alone; an answer names what was asked for;
/// an answer may be remembered for as long as the app is registered.
pub trait Names: Send + Sync + fmt::Debug {
    /// What has the name, or the name of what has the address.
    fn find(&self, ask: NameAsk) -> BoxFuture<'_, Result<Named, NameError>>;
}

/// No names at all: for an end of the mesh that has nobody to ask.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoNames;

impl Names for NoNames {
    fn find(&self, _: NameAsk) -> BoxFuture<'_, Result<Named, NameError>> {
        let why = "this process has no coordinator to ask".to_owned();
        Box::pin(async { Err(NameError::Unreachable(why)) })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_of_apps_and_machines() {
        let shop: MeshName = "shop.main.internal".parse().unwrap();
        let expected = MeshName::App {
            app: "shop".parse().unwrap(),
            tenant: Tenant::main(),
        };
        assert_eq!(shop, expected);
        for same in [
            "Shop.MAIN.internal",
            "shop.main.internal.",
            "SHOP.main.INTERNAL.",
        ] {
            assert_eq!(same.parse::<MeshName>().unwrap(), shop, "{same}");
        }
        let host: MeshName = "box-2.internal".parse().unwrap();
        assert_eq!(host, MeshName::Host("box-2".parse().unwrap()));
        assert_eq!(serde_json::to_string(&host).unwrap(), r#""box-2.internal""#);
        let long = format!("{}.main.internal", "a".repeat(64));
        for bad in [
            "",
            ".",
            "internal",
            ".internal",
            "shop",
            "shop.main",
            "a.b.main.internal",
            "shop..internal",
            "shop.main.internal..",
            "shop.main.internal.com",
            "-shop.main.internal",
            "shop.1main.internal",
            "shop.main.internal:80",
            "sh op.main.internal",
            "ſhop.main.internal",
            &long,
        ] {
            assert!(bad.parse::<MeshName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_meant_to_be_inside() {
        for meant in [
            "shop.main.internal",
            "a.b.c.INTERNAL.",
            "internal",
            "-.internal",
            "ä.internal",
        ] {
            assert!(MeshName::is_meant(meant), "{meant}");
        }
        for other in [
            "",
            ".",
            "example.com",
            "myinternal",
            "internal.example.com",
            "shop.internal.de",
        ] {
            assert!(!MeshName::is_meant(other), "{other}");
        }
    }

    #[test]
    fn shapes() {
        let name = NameAsk::Name("shop.main.internal".parse().unwrap());
        let text = serde_json::to_string(&name).unwrap();
        assert_eq!(text, r#"{"name":"shop.main.internal"}"#);
        let address = NameAsk::Address("fd5a:1f02:1:2:3::1".parse().unwrap());
        for ask in [name, address] {
            let text = serde_json::to_string(&ask).unwrap();
            assert_eq!(serde_json::from_str::<NameAsk>(&text).unwrap(), ask);
        }
        for bad in [
            "{}",
            r#"{"name":"shop"}"#,
            r#"{"name":""}"#,
            r#"{"address":"x"}"#,
            "null",
        ] {
            assert!(serde_json::from_str::<NameAsk>(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Any text is refused or is a name that its text stands for, and never one of the Internet.
        #[test]
        fn any_text(text in "(\\PC{0,20}|[a-zA-Z0-9.-]{0,20})(\\.internal\\.?)?") {
            if let Ok(name) = text.parse::<MeshName>() {
                prop_assert!(MeshName::is_meant(&text));
                prop_assert_eq!(name.to_string().parse::<MeshName>().unwrap(), name);
            }
        }
    }
}
