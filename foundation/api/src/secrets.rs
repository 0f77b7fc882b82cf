//! Secrets: who hands a value over, and to whom it is given. Names and versions are events
//! (`tenant_*.secrets`); a value goes into the vault and comes out to instances of the apps that name it,
//! and nowhere else: no answer to a person, and no event, has one.
//!
//! Of people, at the node and, the same, at the vault:
//!
//! | method and path | body → answer | scope |
//! |---|---|---|
//! | `GET /v1/secrets` | → [`SecretList`] | `secrets:read` |
//! | `PUT /v1/secrets/{name}` | the value's bytes → [`SecretView`] (201, or 200 for a new version) | `secrets:write` |
//! | `DELETE /v1/secrets/{name}` | → 204 | `secrets:write` |
//!
//! Of instances, at the vault, over their own mesh:
//!
//! | method and path | answer | who |
//! |---|---|---|
//! | `GET /v1/vault/release` | [`Release`] | an instance that holds a lease: known by the key that its connection has proven |

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use tabbify_types::{AppName, SecretName, SecretVersion, Timestamp};
use zeroize::{Zeroize as _, Zeroizing};

use crate::auth::Caller;
use crate::{BoxFuture, Problem};

/// Path of a tenant's secrets; a slash and a name follow for one of them.
pub const SECRETS_PATH: &str = "/v1/secrets";
/// Path at which an instance gets the secrets of its release.
pub const RELEASE_PATH: &str = "/v1/vault/release";
/// Where the machine with the tag `role:api-gateway` has its vault, inside the mesh.
pub const VAULT_PORT: u16 = 8702;
/// LIMIT: one value, in bytes: a chain of certificates fits, and so do most variables of a process.
pub const VALUE_LEN_MAX: usize = 64 * 1024;
/// LIMIT: secrets of one tenant.
pub const SECRETS_MAX: usize = 1000;
/// LIMIT: the values of one release together, in bytes.
pub const RELEASE_VALUES_LEN_MAX: usize = 256 * 1024;
/// LIMIT: a [`Release`] as JSON, in bytes: its values, as base64, and as many names as a release may have.
pub const RELEASE_LEN_MAX: usize = 512 * 1024;

/// The value of a secret on its way: not shown, and erased from memory when dropped. In JSON it is base64
/// (RFC 4648 section 4).
#[derive(Clone, PartialEq, Eq)]
pub struct SecretValue(Vec<u8>);

impl SecretValue {
    /// Takes the bytes.
    #[must_use]
    pub const fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// The bytes.
    #[must_use]
    pub fn reveal(&self) -> &[u8] {
        &self.0
    }

    /// The bytes, for whoever sends them on: they are erased when the last user of the whole is gone.
    #[must_use]
    pub fn into_bytes(mut self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(std::mem::take(&mut self.0))
    }
}

impl Drop for SecretValue {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for SecretValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretValue(..)")
    }
}

impl Serialize for SecretValue {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text = Zeroizing::new(STANDARD.encode(&self.0));
        serializer.serialize_str(&text)
    }
}

impl<'de> Deserialize<'de> for SecretValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Zeroizing::new(String::deserialize(deserializer)?);
        // The message has nothing of the text.
        let wrong = |_| de::Error::custom("a secret's value is not base64");
        STANDARD.decode(&*text).map(Self).map_err(wrong)
    }
}

/// A secret as its tenant's people see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretView {
    /// Its name.
    pub name: SecretName,
    /// The version of its value.
    pub version: SecretVersion,
    /// When it was registered.
    pub created: Timestamp,
    /// When it got this value.
    pub changed: Timestamp,
    /// Apps whose serving or newest version names it, as the node knows them; by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub apps: Vec<AppName>,
}

/// `GET /v1/secrets`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretList {
    /// Every secret of the tenant, by name.
    pub secrets: Vec<SecretView>,
}

/// What the vault gives an instance: exactly what its release names, each in its newest version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// By name, each once.
    pub secrets: Vec<Resolved>,
}

/// A secret with its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolved {
    /// Its name.
    pub name: SecretName,
    /// The version of the value.
    pub version: SecretVersion,
    /// The value.
    pub value: SecretValue,
}

/// The vault, as the node uses it: values go in, and none comes out. A caller is whom the vault itself
/// takes the token for; what it does is recorded in the caller's name.
pub trait Vault: Send + Sync + fmt::Debug {
    /// Gives a secret of the caller's tenant a value: its first, or the next version. Once it has
    /// answered, the value is on disk and the version in the log.
    fn set<'a>(
        &'a self,
        caller: Caller<'a>,
        name: SecretName,
        value: SecretValue,
    ) -> BoxFuture<'a, Result<SecretView, Problem>>;

    /// The secrets of the caller's tenant.
    fn list<'a>(&'a self, caller: Caller<'a>) -> BoxFuture<'a, Result<SecretList, Problem>>;

    /// Forgets a secret of the caller's tenant: the keys of its value are destroyed.
    fn remove<'a>(
        &'a self,
        caller: Caller<'a>,
        name: SecretName,
    ) -> BoxFuture<'a, Result<(), Problem>>;
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{ProptestConfig, any, proptest};

    use super::*;

    #[test]
    fn a_value_is_bytes_and_not_shown() {
        let release = Release {
            secrets: vec![Resolved {
                name: "api-key".parse().unwrap(),
                version: SecretVersion(3),
                value: SecretValue::new(b"sekrit\xff".to_vec()),
            }],
        };
        let json = serde_json::to_string(&release).unwrap();
        let expected = r#"{"secrets":[{"name":"api-key","version":3,"value":"c2Vrcml0/w=="}]}"#;
        assert_eq!(json, expected);
        assert_eq!(serde_json::from_str::<Release>(&json).unwrap(), release);
        assert!(!format!("{release:?}").contains("sekrit"));
        for bad in [
            r#""c2Vrcml0/w""#,
            r#""c2Vrcml0_w==""#,
            "[1]",
            "1",
            r#""""x"#,
        ] {
            let error = serde_json::from_str::<SecretValue>(bad).unwrap_err();
            assert!(!error.to_string().contains("c2V"), "{error}");
        }
    }

    /// The most that a release may have fits where it is read.
    #[test]
    fn the_largest_release_fits() {
        let each = RELEASE_VALUES_LEN_MAX / 256;
        let secrets = (0..256).map(|n| Resolved {
            name: format!("{n:a<63}").parse().unwrap(),
            version: SecretVersion(u32::MAX),
            value: SecretValue::new(vec![0; each]),
        });
        let release = Release {
            secrets: secrets.collect(),
        };
        assert!(serde_json::to_vec(&release).unwrap().len() <= RELEASE_LEN_MAX);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_value_comes_back(bytes in any::<Vec<u8>>()) {
            let json = serde_json::to_string(&SecretValue::new(bytes.clone())).unwrap();
            let read: SecretValue = serde_json::from_str(&json).unwrap();
            proptest::prop_assert_eq!(read.reveal(), bytes);
        }

        #[test]
        fn no_text_panics(text in any::<String>()) {
            let _ = serde_json::from_str::<SecretValue>(&text);
            let _ = serde_json::from_str::<Release>(&text);
        }
    }
}
