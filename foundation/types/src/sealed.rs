//! Personal data as events carry it: sealed under its subject's key, which `subject_erased`
//! destroys. Opaque here: this crate has no cryptography.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use crate::ParseError;

/// Bytes, written as base64url without padding.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Base64Url(pub Vec<u8>);

/// A sealed text. The log's hash is over this form, so that its chain outlives the key.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Sealed {
    /// Whose key: a pseudonym such as `user:anna`, never a mail address or another's number.
    pub subject: String,
    /// Which of the subject's keys, from 1.
    pub key_version: u32,
    /// Used once with that key.
    pub nonce: Base64Url,
    /// The sealed text with its authentication tag.
    pub ciphertext: Base64Url,
}

impl fmt::Display for Base64Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(&self.0))
    }
}

impl fmt::Debug for Base64Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Base64Url({} bytes)", self.0.len())
    }
}

impl FromStr for Base64Url {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let decoded = URL_SAFE_NO_PAD.decode(text);
        let wrong = |_| ParseError::new("bytes as base64url without padding", text);
        decoded.map(Self).map_err(wrong)
    }
}

impl TryFrom<String> for Base64Url {
    type Error = ParseError;
    fn try_from(text: String) -> Result<Self, ParseError> {
        text.parse()
    }
}

impl From<Base64Url> for String {
    fn from(bytes: Base64Url) -> Self {
        bytes.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_spelling() {
        let bytes = Base64Url(vec![0xfb, 0xff, 1, 2]);
        assert_eq!(bytes.to_string(), "-_8BAg");
        assert_eq!("-_8BAg".parse::<Base64Url>().unwrap(), bytes);
        assert_eq!(format!("{bytes:?}"), "Base64Url(4 bytes)");
        // Padding, another alphabet, bits beyond the last byte, half a byte.
        for bad in ["-_8BAg==", "+/8BAg", "-_8BAh", "-", "ä"] {
            assert!(bad.parse::<Base64Url>().is_err(), "{bad}");
        }
    }
}
