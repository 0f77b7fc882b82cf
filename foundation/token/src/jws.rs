//! The compact form (RFC 7515 section 7.1) with one algorithm (RFC 8037): nothing else is read.
//!
//! ```text
//!   base64url(header) . base64url(payload) . base64url(signature)
//!   └──────── what is signed, as text ───┘   64 bytes, verify_strict
//!   header = {"alg":"EdDSA","kid":"<16 hex digits>","typ":"tabbify-…+jwt"}
//! ```

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tabbify_types::SigningKeyId;

use crate::{PublicKey, SecretKey, TokenError};

/// LIMIT: a token or signed document as text, in bytes. Checked before anything is decoded.
pub const TOKEN_LEN_MAX: usize = 8 * 1024;

const ALGORITHM: &str = "EdDSA";

/// Unknown fields are refused, so `crit`, `jwk`, `jku`, `x5u`, `b64` and whatever comes next cannot
/// change how a token is read. Absent fields get their own error below.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header<'a> {
    #[serde(borrow)]
    alg: Option<Cow<'a, str>>,
    #[serde(borrow)]
    kid: Option<Cow<'a, str>>,
    #[serde(borrow)]
    typ: Option<Cow<'a, str>>,
}

/// Signs `payload`, a JSON object, as a document of type `typ`.
pub(crate) fn seal(
    key: &SecretKey,
    typ: &str,
    payload: &impl Serialize,
) -> Result<String, TokenError> {
    let kid = key.id();
    let header = Header {
        alg: Some(ALGORITHM.into()),
        kid: Some(kid.as_str().into()),
        typ: Some(typ.into()),
    };
    let encode = |json: serde_json::Result<Vec<u8>>| {
        json.map(|json| URL_SAFE_NO_PAD.encode(json))
            .map_err(|_| TokenError::Malformed("the payload cannot be written as JSON"))
    };
    let mut token = encode(serde_json::to_vec(&header))?;
    token.push('.');
    token.push_str(&encode(serde_json::to_vec(payload))?);
    let signature = key.sign(token.as_bytes());
    token.push('.');
    token.push_str(&URL_SAFE_NO_PAD.encode(signature));
    check_len(&token)?;
    Ok(token)
}

/// A token whose signature holds; its payload is still bytes.
#[derive(Debug)]
pub(crate) struct Opened<K> {
    /// What `accept` made of `typ`.
    pub(crate) typ: K,
    /// The key that signed it.
    pub(crate) kid: SigningKeyId,
    payload: Vec<u8>,
}

/// Reads and verifies. `accept` says which types are wanted, `key` gives the keys that count.
pub(crate) fn open<'k, K>(
    token: &str,
    accept: impl FnOnce(&str) -> Option<K>,
    key: impl FnOnce(&SigningKeyId) -> Option<&'k PublicKey>,
) -> Result<Opened<K>, TokenError> {
    check_len(token)?;
    let (signed, header, payload, signature) = split(token)?;
    let header = decode(header)?;
    let header: Header<'_> = object(&header, "its header is not the JSON object it must be")?;
    if header.alg.as_deref() != Some(ALGORITHM) {
        return Err(TokenError::Algorithm);
    }
    let typ = header
        .typ
        .as_deref()
        .and_then(accept)
        .ok_or(TokenError::Kind)?;
    let kid: SigningKeyId = header
        .kid
        .as_deref()
        .and_then(|kid| kid.parse().ok())
        .ok_or(TokenError::UnknownKey)?;
    let public = key(&kid).ok_or(TokenError::UnknownKey)?;
    let payload = decode(payload)?;
    let signature = decode(signature)?;
    let signature: &[u8; 64] = signature
        .as_slice()
        .try_into()
        .map_err(|_| TokenError::Signature)?;
    if !public.holds(signed.as_bytes(), signature) {
        return Err(TokenError::Signature);
    }
    Ok(Opened { typ, kid, payload })
}

impl<K> Opened<K> {
    /// The payload, as a JSON object of this shape.
    pub(crate) fn payload<T: DeserializeOwned>(&self) -> Result<T, TokenError> {
        object(
            &self.payload,
            "its payload is not the JSON object it must be",
        )
    }
}

fn check_len(token: &str) -> Result<(), TokenError> {
    if token.len() > TOKEN_LEN_MAX {
        return Err(TokenError::TooLong {
            len: token.len(),
            max: TOKEN_LEN_MAX,
        });
    }
    Ok(())
}

/// What is signed, then the three parts.
fn split(token: &str) -> Result<(&str, &str, &str, &str), TokenError> {
    let parts = || {
        let (signed, signature) = token.rsplit_once('.')?;
        let (header, payload) = signed.split_once('.')?;
        (!payload.contains('.')).then_some((signed, header, payload, signature))
    };
    parts().ok_or(TokenError::Malformed("it has not exactly three parts"))
}

/// Canonical only: the engine refuses padding, other alphabets, white space and spare bits.
fn decode(part: &str) -> Result<Vec<u8>, TokenError> {
    URL_SAFE_NO_PAD
        .decode(part)
        .map_err(|_| TokenError::Malformed("a part is not canonical base64url"))
}

/// serde would also take a struct's fields from a JSON array; only an object is one here.
fn object<'a, T: Deserialize<'a>>(json: &'a [u8], wrong: &'static str) -> Result<T, TokenError> {
    if json.first() != Some(&b'{') {
        return Err(TokenError::Malformed(wrong));
    }
    serde_json::from_slice(json).map_err(|_| TokenError::Malformed(wrong))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 8037 appendix A.4 and A.5: the key, the signing input and the signature. Its header has
    /// no `kid` and no `typ`, so our reader refuses the whole; the parts are checked one by one.
    #[test]
    fn published_vector() {
        let key = SecretKey::from_text("nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A").unwrap();
        assert_eq!(
            key.public().to_string(),
            "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"
        );
        let signed = "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc";
        let signature = "hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt\
                         9g7sVvpAr_MuM0KAg";
        assert_eq!(
            URL_SAFE_NO_PAD.encode(key.sign(signed.as_bytes())),
            signature
        );
        let public = PublicKey::try_from(key.public()).unwrap();
        let bytes = decode(signature).unwrap();
        assert!(public.holds(signed.as_bytes(), bytes.first_chunk().unwrap()));
        let whole = format!("{signed}.{signature}");
        assert_eq!(
            open(&whole, |_| Some(()), |_| Some(&public)).unwrap_err(),
            TokenError::Kind
        );
    }

    #[test]
    fn sealed_is_opened() {
        let key = SecretKey::from_seed(&[3; 32]);
        let public = PublicKey::try_from(key.public()).unwrap();
        let token = seal(&key, "a+jwt", &serde_json::json!({"x": 1})).unwrap();
        let opened = open(
            &token,
            |typ| (typ == "a+jwt").then_some(()),
            |_| Some(&public),
        )
        .unwrap();
        assert_eq!(opened.kid, key.id());
        assert_eq!(opened.payload::<serde_json::Value>().unwrap()["x"], 1);
        let long = "x".repeat(TOKEN_LEN_MAX);
        assert!(matches!(
            seal(&key, "a+jwt", &long),
            Err(TokenError::TooLong { .. })
        ));
    }
}
