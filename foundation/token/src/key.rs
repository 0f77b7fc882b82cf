//! Ed25519 keys: secrets that erase themselves, and public keys that are worth verifying with.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};
use tabbify_types::{SigningKeyId, VerifyingKeyBytes};
use zeroize::Zeroizing;

/// Length of a secret key's text: 32 bytes as base64url without padding.
const SECRET_TEXT_LEN: usize = 43;

/// Why a key cannot be made, read or used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The system gives no random bytes.
    #[error("the system gives no random bytes")]
    Entropy,
    /// Not the text of a secret key. The text itself is not repeated: it may be a secret.
    #[error("it is not a secret key (32 bytes as 43 characters of base64url)")]
    Secret,
    /// Not a point of the curve in its canonical form, or a point of low order, under which one
    /// signature holds for many messages.
    #[error("{0} is not an Ed25519 public key that can be relied on")]
    Public(VerifyingKeyBytes),
}

/// An Ed25519 secret key (the 32-byte seed of RFC 8032). Erased from memory when dropped.
#[derive(Clone)]
pub struct SecretKey(SigningKey);

impl SecretKey {
    /// A new key from the system's random bytes.
    ///
    /// # Errors
    /// [`KeyError::Entropy`].
    pub fn generate() -> Result<Self, KeyError> {
        let mut seed = Zeroizing::new([0; 32]);
        getrandom::fill(seed.as_mut()).map_err(|_| KeyError::Entropy)?;
        Ok(Self::from_seed(&seed))
    }

    /// The key of this seed.
    #[must_use]
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(seed))
    }

    /// Reads what [`SecretKey::to_text`] wrote; one line ending is allowed after it.
    ///
    /// # Errors
    /// [`KeyError::Secret`].
    pub fn from_text(text: &str) -> Result<Self, KeyError> {
        let text = text.strip_suffix('\n').unwrap_or(text);
        if text.len() != SECRET_TEXT_LEN {
            return Err(KeyError::Secret);
        }
        // The decoder asks for room for whole groups of four characters.
        let mut bytes = Zeroizing::new([0; 36]);
        let len = URL_SAFE_NO_PAD
            .decode_slice(text, bytes.as_mut())
            .map_err(|_| KeyError::Secret)?;
        let seed = bytes[..len].first_chunk::<32>().ok_or(KeyError::Secret)?;
        Ok(Self::from_seed(seed))
    }

    /// The key as text for a file of mode 0600: 43 characters of base64url.
    #[must_use]
    pub fn to_text(&self) -> Zeroizing<String> {
        Zeroizing::new(URL_SAFE_NO_PAD.encode(self.0.as_bytes()))
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> VerifyingKeyBytes {
        VerifyingKeyBytes(self.0.verifying_key().to_bytes())
    }

    /// The id under which others know the public half.
    #[must_use]
    pub fn id(&self) -> SigningKeyId {
        self.public().id()
    }

    /// The 64-byte signature of `message`.
    pub(crate) fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }
}

impl fmt::Debug for SecretKey {
    /// Says nothing about the secret, not even its public half.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey(..)")
    }
}

/// A public key that has been checked: a canonical point of the curve, not of low order. Written as
/// its bytes are; checked again when read.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "VerifyingKeyBytes", into = "VerifyingKeyBytes")]
pub struct PublicKey(VerifyingKey);

impl PublicKey {
    /// The key's bytes, as events and documents carry them.
    #[must_use]
    pub fn bytes(&self) -> VerifyingKeyBytes {
        VerifyingKeyBytes(self.0.to_bytes())
    }

    /// Whether `signature` is the one signature that this key makes over `message`.
    pub(crate) fn holds(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        self.0
            .verify_strict(message, &Signature::from_bytes(signature))
            .is_ok()
    }
}

impl TryFrom<VerifyingKeyBytes> for PublicKey {
    type Error = KeyError;

    fn try_from(bytes: VerifyingKeyBytes) -> Result<Self, KeyError> {
        let key = VerifyingKey::from_bytes(&bytes.0).map_err(|_| KeyError::Public(bytes))?;
        let canonical = key.to_edwards().compress().to_bytes() == bytes.0;
        if key.is_weak() || !canonical {
            return Err(KeyError::Public(bytes));
        }
        Ok(Self(key))
    }
}

impl From<PublicKey> for VerifyingKeyBytes {
    fn from(key: PublicKey) -> Self {
        key.bytes()
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.bytes())
    }
}

#[cfg(test)]
mod vectors;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips_and_debug_is_blank() {
        let key = SecretKey::generate().unwrap();
        let text = key.to_text();
        assert_eq!(SecretKey::from_text(&text).unwrap().public(), key.public());
        assert_eq!(
            SecretKey::from_text(&format!("{}\n", *text)).unwrap().id(),
            key.id()
        );
        assert_eq!(format!("{key:?}"), "SecretKey(..)");
        assert_ne!(SecretKey::generate().unwrap().public(), key.public());
    }

    #[test]
    fn bad_secrets_are_refused() {
        let good = SecretKey::from_seed(&[7; 32]).to_text();
        let spare_bits = format!("{}B", &good[..42]);
        for bad in [
            "",
            "AAAA",
            &"A".repeat(42),
            &"A".repeat(44),
            &"+".repeat(43),
            &format!("{}=", *good),
            &format!("{}\n\n", *good),
            &format!(" {}", &good[..42]),
            &"\0".repeat(43),
            &spare_bits,
        ] {
            assert_eq!(
                SecretKey::from_text(bad).unwrap_err(),
                KeyError::Secret,
                "{bad:?}"
            );
        }
    }

    #[test]
    fn weak_and_odd_public_keys_are_refused() {
        let good = SecretKey::from_seed(&[1; 32]).public();
        assert_eq!(PublicKey::try_from(good).unwrap().bytes(), good);
        let mut identity = [0; 32];
        identity[0] = 1;
        let mut minus_one = [0xff; 32];
        minus_one[0] = 0xec;
        minus_one[31] = 0x7f;
        // y = p + 3: decompresses to the point of y = 3, whose canonical text is another one.
        let mut beyond_p = [0xff; 32];
        beyond_p[0] = 0xf0;
        beyond_p[31] = 0x7f;
        // y = 2 is not on the curve.
        let mut off_curve = [0; 32];
        off_curve[0] = 2;
        for bad in [
            [0; 32], identity, minus_one, beyond_p, off_curve, [0xff; 32],
        ] {
            assert!(
                PublicKey::try_from(VerifyingKeyBytes(bad)).is_err(),
                "{bad:?}"
            );
        }
    }

    /// Case 0 of "Taming the many EdDSAs" (Chalkias, Garillot, Nikolaenko 2020): a key and an R of
    /// order 8 and S = 0, which the plain verification equation accepts.
    #[test]
    fn low_order_forgery() {
        use ed25519_dalek::Verifier as _;
        let message = hex("8c93255d71dcab10e8f379c26200f3c7bd5f09d9bc3068d3ef4edeb4853022b6");
        let key = hex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa");
        let r = hex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a");
        let signature: [u8; 64] = [r, vec![0; 32]].concat().try_into().unwrap();
        let key: [u8; 32] = key.try_into().unwrap();
        let loose = VerifyingKey::from_bytes(&key).unwrap();
        loose
            .verify(&message, &Signature::from_bytes(&signature))
            .unwrap();
        assert!(!PublicKey(loose).holds(&message, &signature));
        assert!(PublicKey::try_from(VerifyingKeyBytes(key)).is_err());
    }

    fn hex(text: &str) -> Vec<u8> {
        let digit = |b: u8| u8::try_from(char::from(b).to_digit(16).unwrap_or(0)).unwrap_or(0);
        text.as_bytes()
            .chunks(2)
            .map(|pair| digit(pair[0]) << 4 | digit(pair[1]))
            .collect()
    }
}
