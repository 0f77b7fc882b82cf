//! Signed notes (C2SP signed-note): a text for people, and below it who vouches for it. The log's
//! checkpoints have this form, and so does the root key's word for the key that signs them.
//!
//! ```text
//!   tabbify/62640abc84ca9d1f          text: lines, each ended by a newline
//!   …
//!                                     an empty line
//!   — tabbify/62640abc84ca9d1f x08go…  em dash, name of the key, base64 of key id and signature
//! ```
//!
//! A note may have signatures of others, such as witnesses: they are passed over. One that claims to
//! be ours must hold.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use sha2::{Digest as _, Sha256};
use tabbify_types::VerifyingKeyBytes;

use crate::{PublicKey, SecretKey, TokenError};

/// LIMIT: a note, in bytes. Checked before anything else.
pub const NOTE_LEN_MAX: usize = 64 * 1024;
/// LIMIT: signatures of one note.
pub const NOTE_SIGNATURES_MAX: usize = 32;

/// What the root key signs, before the 32 bytes of the log's key: no other signature of ours begins
/// with it.
const ENDORSEMENT_PREFIX: &[u8] = b"tabbify-log-key-v1\0";
/// The algorithm byte of Ed25519 in a key id.
const ED25519: u8 = 1;
const KEY_ID_LEN: usize = 4;
const DASH: &str = "\u{2014} ";

/// Why a note is not accepted, or not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoteError {
    /// Longer than any note of ours.
    #[error("the note is {len} bytes long, at most {NOTE_LEN_MAX}")]
    TooLong {
        /// Its length in bytes.
        len: usize,
    },
    /// Not the form of a signed note.
    #[error("the note is malformed: {0}")]
    Malformed(&'static str),
    /// None of the keys that count has signed it.
    #[error("the note is not signed by a key of {name} that is known here")]
    UnknownKey {
        /// The name that a signature must have.
        name: String,
    },
    /// A signature that claims to be of a key that counts does not hold.
    #[error("the signature of {name} does not hold")]
    Signature {
        /// The name that it has.
        name: String,
    },
}

/// Signs `text`, one line or more of plain UTF-8 that each end in a newline, as `name`.
///
/// # Errors
/// [`NoteError`] for a note that nobody would accept.
pub fn sign(text: &str, name: &str, key: &SecretKey) -> Result<String, NoteError> {
    check_text(text)?;
    if !is_name(name) {
        return Err(NoteError::Malformed("a name with a space or a plus"));
    }
    let id = key_id(name, &key.public());
    let signature = STANDARD.encode([&id[..], &key.sign(text.as_bytes())].concat());
    let note = format!("{text}\n{DASH}{name} {signature}\n");
    check_len(&note)?;
    Ok(note)
}

/// The text of a note that one of `keys` has signed as `name`, and that key.
///
/// # Errors
/// [`NoteError`], the first rule that it breaks.
pub fn open<'n, 'k>(
    note: &'n str,
    name: &str,
    keys: &'k [PublicKey],
) -> Result<(&'n str, &'k PublicKey), NoteError> {
    check_len(note)?;
    let (text, signatures) = split(note)?;
    check_text(text)?;
    let mut signer = None;
    for (count, line) in signatures.lines().enumerate() {
        if count >= NOTE_SIGNATURES_MAX {
            return Err(NoteError::Malformed("too many signatures"));
        }
        let (signed_as, id, signature) = signature_of(line)?;
        let known = keys.iter().find(|key| key_id(name, &key.bytes()) == id);
        let Some(key) = known.filter(|_| signed_as == name) else {
            continue;
        };
        let signature = signature.first_chunk().filter(|_| signature.len() == 64);
        if !signature.is_some_and(|signature| key.holds(text.as_bytes(), signature)) {
            return Err(NoteError::Signature {
                name: name.to_owned(),
            });
        }
        signer = Some(key);
    }
    let unknown = || NoteError::UnknownKey {
        name: name.to_owned(),
    };
    Ok((text, signer.ok_or_else(unknown)?))
}

/// The text before the last empty line, and the lines behind it.
fn split(note: &str) -> Result<(&str, &str), NoteError> {
    let at = note
        .rfind("\n\n")
        .ok_or(NoteError::Malformed("no empty line before the signatures"))?;
    let (text, signatures) = (&note[..=at], &note[at + 2..]);
    if signatures.is_empty() || !signatures.ends_with('\n') {
        return Err(NoteError::Malformed("it breaks off in its signatures"));
    }
    Ok((text, signatures))
}

/// Name, key id and signature of a line.
fn signature_of(line: &str) -> Result<(&str, [u8; KEY_ID_LEN], Vec<u8>), NoteError> {
    let wrong = NoteError::Malformed("a line that is not a signature");
    let parts = line
        .strip_prefix(DASH)
        .and_then(|line| line.split_once(' '));
    let Some((name, encoded)) = parts.filter(|(name, _)| is_name(name)) else {
        return Err(wrong);
    };
    let Ok(bytes) = STANDARD.decode(encoded) else {
        return Err(wrong);
    };
    match bytes.split_first_chunk() {
        Some((id, signature)) if !signature.is_empty() => Ok((name, *id, signature.to_vec())),
        _ => Err(wrong),
    }
}

fn check_len(note: &str) -> Result<(), NoteError> {
    match note.len() {
        len if len > NOTE_LEN_MAX => Err(NoteError::TooLong { len }),
        _ => Ok(()),
    }
}

fn check_text(text: &str) -> Result<(), NoteError> {
    if text.is_empty() || !text.ends_with('\n') {
        return Err(NoteError::Malformed("a text without a last newline"));
    }
    if text.bytes().any(|byte| byte < 0x20 && byte != b'\n') {
        return Err(NoteError::Malformed("a control character"));
    }
    Ok(())
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(|c: char| c.is_whitespace() || c.is_control() || c == '+')
}

/// The first four bytes of SHA-256 over name, newline, algorithm and key.
fn key_id(name: &str, key: &VerifyingKeyBytes) -> [u8; KEY_ID_LEN] {
    let mut hash = Sha256::new();
    hash.update(name.as_bytes());
    hash.update([b'\n', ED25519]);
    hash.update(key.0);
    let digest: [u8; 32] = hash.finalize().into();
    let mut id = [0; KEY_ID_LEN];
    id.copy_from_slice(&digest[..KEY_ID_LEN]);
    id
}

/// The root key's word that `log` may sign checkpoints: base64url of a raw signature.
#[must_use]
pub fn endorse_log_key(root: &SecretKey, log: &VerifyingKeyBytes) -> String {
    URL_SAFE_NO_PAD.encode(root.sign(&endorsed(log)))
}

/// Checks what [`endorse_log_key`] wrote.
///
/// # Errors
/// [`TokenError::Signature`] if it is anything else.
pub fn verify_log_key(
    root: &PublicKey,
    log: &VerifyingKeyBytes,
    signature: &str,
) -> Result<(), TokenError> {
    let bytes = URL_SAFE_NO_PAD
        .decode(signature)
        .map_err(|_| TokenError::Signature)?;
    match bytes.as_slice().try_into() {
        Ok(bytes) if root.holds(&endorsed(log), bytes) => Ok(()),
        _ => Err(TokenError::Signature),
    }
}

fn endorsed(log: &VerifyingKeyBytes) -> Vec<u8> {
    [ENDORSEMENT_PREFIX, &log.0].concat()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

    use super::*;

    const NAME: &str = "tabbify/62640abc84ca9d1f";

    fn key(seed: u8) -> (SecretKey, PublicKey) {
        let secret = SecretKey::from_seed(&[seed; 32]);
        let public = PublicKey::try_from(secret.public()).expect("a key of ours");
        (secret, public)
    }

    /// The example in the documentation of Go's `sumdb/note`, where the format comes from.
    #[test]
    fn published_vector() {
        let note = "If you think cryptography is the answer to your problem,\n\
                    then you don't know what your problem is.\n\
                    \n\
                    \u{2014} PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n";
        let verifier = STANDARD
            .decode("ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW")
            .unwrap();
        let bytes = VerifyingKeyBytes(verifier[1..].try_into().unwrap());
        assert_eq!(key_id("PeterNeumann", &bytes), [0xc7, 0x4f, 0x20, 0xa3]);
        let keys = [PublicKey::try_from(bytes).unwrap()];
        let (text, by) = open(note, "PeterNeumann", &keys).unwrap();
        assert!(text.ends_with("your problem is.\n") && *by == keys[0]);
        let signer = STANDARD
            .decode("AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz")
            .unwrap();
        let secret = SecretKey::from_seed(signer[1..].first_chunk().unwrap());
        assert_eq!(sign(text, "PeterNeumann", &secret).unwrap(), note);
    }

    #[test]
    fn other_signatures_are_passed_over() {
        let ((secret, public), (witness, _)) = (key(1), key(2));
        let ours = sign("a\nb\n", NAME, &secret).unwrap();
        let theirs = sign("a\nb\n", "witness.example", &witness).unwrap();
        let line = theirs.lines().last().unwrap();
        for note in [
            format!("{ours}{line}\n"),
            ours.replace("\n\n", &format!("\n\n{line}\n")),
        ] {
            assert_eq!(
                open(&note, NAME, std::slice::from_ref(&public)).unwrap().0,
                "a\nb\n"
            );
        }
        assert!(matches!(
            open(&theirs, NAME, &[public]),
            Err(NoteError::UnknownKey { .. })
        ));
    }

    #[test]
    fn bad_notes_are_refused() {
        let ((secret, public), (other, _)) = (key(1), key(2));
        let good = sign("a\n\nb\n", NAME, &secret).unwrap();
        let keys = [public];
        assert_eq!(open(&good, NAME, &keys).unwrap().0, "a\n\nb\n");
        let unknown = sign("a\n\nb\n", NAME, &other).unwrap();
        for bad in [
            String::new(),
            "\n\n".to_owned(),
            good.replace("b\n", "c\n"),
            good.replace("b\n", "b\r\n"),
            good.replace("a\n", ""),
            good.replace(NAME, "tabbify/other"),
            good.replace('\u{2014}', "-"),
            good.trim_end().to_owned(),
            format!("{good}\n"),
            format!("{good}x\n"),
            format!(
                "{}{}",
                good,
                "\u{2014} w AAAAAAA=\n".repeat(NOTE_SIGNATURES_MAX)
            ),
            format!("{good}{}", "x".repeat(NOTE_LEN_MAX)),
            unknown,
        ] {
            assert!(open(&bad, NAME, &keys).is_err(), "{bad:?}");
        }
        for text in ["", "a", "a\n\tb\n", "a\r\n"] {
            assert!(sign(text, NAME, &secret).is_err(), "{text:?}");
        }
        for name in ["", "a b", "a+b", "a\nb"] {
            assert!(sign("a\n", name, &secret).is_err(), "{name:?}");
        }
    }

    #[test]
    fn the_root_key_vouches_for_one_key() {
        let ((root, root_public), (log, _), (other, other_public)) = (key(1), key(2), key(3));
        let word = endorse_log_key(&root, &log.public());
        verify_log_key(&root_public, &log.public(), &word).unwrap();
        assert!(verify_log_key(&root_public, &other.public(), &word).is_err());
        assert!(verify_log_key(&other_public, &log.public(), &word).is_err());
        // The same root key's word for an issuer is another word.
        let issuer = crate::endorse_issuer(&root, &log.public());
        assert!(verify_log_key(&root_public, &log.public(), &issuer).is_err());
        for bad in ["", "AAAA", &word[1..], &format!("{word}A")] {
            assert!(
                verify_log_key(&root_public, &log.public(), bad).is_err(),
                "{bad:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let (_, public) = key(1);
            let text = String::from_utf8_lossy(&bytes);
            prop_assert!(open(&text, NAME, &[public]).is_err());
        }

        #[test]
        fn one_changed_byte_is_refused(at in any::<proptest::sample::Index>(), mask in 1_u8..128) {
            let (secret, public) = key(1);
            let good = sign("one\ntwo\n", NAME, &secret).expect("a note");
            let mut bytes = good.clone().into_bytes();
            let at = at.index(bytes.len());
            bytes[at] ^= mask;
            let text = String::from_utf8_lossy(&bytes);
            // Spare bits are refused by the decoder, so there is one text for each signature.
            prop_assert!(open(&text, NAME, std::slice::from_ref(&public)).is_err());
            prop_assert_eq!(open(&good, NAME, &[public]).map(|found| found.0), Ok("one\ntwo\n"));
        }
    }
}
