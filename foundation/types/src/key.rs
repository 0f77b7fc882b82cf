//! Public keys, as they stand in events, leases and tokens. Private keys never have a type here.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};

use crate::ParseError;

/// A WireGuard public key (X25519, 32 bytes), written as in `wg(8)`: 44 characters of base64.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MeshKey(pub [u8; 32]);

/// An Ed25519 public key (RFC 8032), 32 bytes, written as base64url without padding as in a JWK.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VerifyingKeyBytes(pub [u8; 32]);

/// The `kid` of an Ed25519 key: the first 16 hex digits of the BLAKE3 of its 32 bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SigningKeyId(String);

impl VerifyingKeyBytes {
    /// The key's id.
    #[must_use]
    pub fn id(&self) -> SigningKeyId {
        SigningKeyId(blake3::hash(&self.0).to_hex()[..16].to_owned())
    }
}

impl SigningKeyId {
    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for MeshKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Display for VerifyingKeyBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl fmt::Display for SigningKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for MeshKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MeshKey({self})")
    }
}

impl fmt::Debug for VerifyingKeyBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifyingKeyBytes({self})")
    }
}

fn decode(
    engine: &base64::engine::GeneralPurpose,
    expected: &'static str,
    text: &str,
) -> Result<[u8; 32], ParseError> {
    let wrong = || ParseError::new(expected, text);
    let bytes = engine.decode(text).map_err(|_| wrong())?;
    bytes.try_into().map_err(|_| wrong())
}

impl FromStr for MeshKey {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        decode(
            &STANDARD,
            "a WireGuard public key (44 characters of base64)",
            text,
        )
        .map(Self)
    }
}

impl FromStr for VerifyingKeyBytes {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        decode(
            &URL_SAFE_NO_PAD,
            "an Ed25519 public key (43 characters of base64url)",
            text,
        )
        .map(Self)
    }
}

impl FromStr for SigningKeyId {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if text.len() == 16 && text.bytes().all(hex) {
            Ok(Self(text.to_owned()))
        } else {
            Err(ParseError::new("a key id (16 lower-case hex digits)", text))
        }
    }
}

macro_rules! via_string {
    ($($name:ident),*) => {$(
        impl TryFrom<String> for $name {
            type Error = ParseError;
            fn try_from(text: String) -> Result<Self, ParseError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(key: $name) -> Self {
                key.to_string()
            }
        }
    )*};
}

via_string!(MeshKey, VerifyingKeyBytes, SigningKeyId);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip() {
        let key = MeshKey([7; 32]);
        assert_eq!(key.to_string().len(), 44);
        assert_eq!(key.to_string().parse::<MeshKey>().unwrap(), key);
        let key = VerifyingKeyBytes([9; 32]);
        assert_eq!(key.to_string().parse::<VerifyingKeyBytes>().unwrap(), key);
        assert_eq!(
            key.id().to_string().parse::<SigningKeyId>().unwrap(),
            key.id()
        );
        assert!("AAAA".parse::<MeshKey>().is_err());
        assert!("".parse::<VerifyingKeyBytes>().is_err());
        assert!("ABCDEF0123456789".parse::<SigningKeyId>().is_err());
    }
}
