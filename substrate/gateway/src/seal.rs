//! Sealing: AES-256-GCM under a data key of the value's own, which the master key wraps. Pure.
//!
//! ```text
//!   key    "TBK1"  id of the master key (8)  nonce (12)  wrapped data key (32)  tag (16)
//!   value  "TBV1"                            nonce (12)  sealed value           tag (16)
//! ```
//!
//! Both are bound to tenant, name and version: a record that is put in the place of another does not open.

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use tabbify_api::secrets::{SecretValue, VALUE_LEN_MAX};
use tabbify_types::{SecretName, SecretVersion, Tenant};
use zeroize::{Zeroize as _, Zeroizing};

use crate::master::{KEY_ID_LEN, KEY_LEN, MasterKey};

const TAG_LEN: usize = 16;
const KEY_MAGIC: &[u8; 4] = b"TBK1";
const VALUE_MAGIC: &[u8; 4] = b"TBV1";
/// Bytes of a record's wrapped key.
pub(crate) const KEY_RECORD_LEN: usize =
    KEY_MAGIC.len() + KEY_ID_LEN + NONCE_LEN + KEY_LEN + TAG_LEN;
/// LIMIT: bytes of a record's sealed value.
pub(crate) const VALUE_RECORD_LEN_MAX: usize =
    VALUE_MAGIC.len() + NONCE_LEN + VALUE_LEN_MAX + TAG_LEN;

/// What a value is the value of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct About {
    pub(crate) tenant: Tenant,
    pub(crate) name: SecretName,
    pub(crate) version: SecretVersion,
}

/// A sealed value: without either part, the other says nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sealed {
    pub(crate) key: Vec<u8>,
    pub(crate) value: Vec<u8>,
}

/// Why a record does not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OpenError {
    /// It is not as long as one, or does not begin as one.
    #[error("it is not a record of the vault")]
    Form,
    /// Another master key has wrapped its key.
    #[error("its key is wrapped with another master key")]
    OtherKey,
    /// It was changed, or sealed as something else.
    #[error("it was changed, or belongs elsewhere")]
    Refused,
}

/// Seals a value that is no longer than one may be.
pub(crate) fn seal(master: &MasterKey, about: &About, value: &[u8]) -> Sealed {
    let data_key: Zeroizing<[u8; KEY_LEN]> = Zeroizing::new(tabbify_process::random());
    let mut key = KEY_MAGIC.to_vec();
    key.extend_from_slice(&master.id());
    put(&mut key, master.bytes(), about, "key", &*data_key);
    let mut sealed = VALUE_MAGIC.to_vec();
    put(&mut sealed, &data_key, about, "value", value);
    Sealed { key, value: sealed }
}

/// Opens what [`seal`] sealed with the same master key about the same thing.
pub(crate) fn open(
    master: &MasterKey,
    about: &About,
    sealed: &Sealed,
) -> Result<SecretValue, OpenError> {
    let key = sealed.key.strip_prefix(KEY_MAGIC).ok_or(OpenError::Form)?;
    let (id, key) = key.split_at_checked(KEY_ID_LEN).ok_or(OpenError::Form)?;
    if sealed.key.len() != KEY_RECORD_LEN || sealed.value.len() > VALUE_RECORD_LEN_MAX {
        return Err(OpenError::Form);
    }
    if id != master.id() {
        return Err(OpenError::OtherKey);
    }
    let unwrapped = take(key, master.bytes(), about, "key")?;
    let mut data_key = Zeroizing::new([0; KEY_LEN]);
    data_key.copy_from_slice(&unwrapped);
    let value = sealed.value.strip_prefix(VALUE_MAGIC);
    let opened = take(value.ok_or(OpenError::Form)?, &data_key, about, "value")?;
    Ok(SecretValue::new(opened.to_vec()))
}

/// Appends nonce, sealed bytes and tag.
fn put(out: &mut Vec<u8>, key: &[u8; KEY_LEN], about: &About, part: &str, plain: &[u8]) {
    // A data key seals once; a master key wraps no more in its life than random nonces bear.
    let nonce: [u8; NONCE_LEN] = tabbify_process::random();
    out.extend_from_slice(&nonce);
    // As long as it gets, so that no copy of the plain bytes is left behind by growing.
    let mut bytes = Vec::with_capacity(plain.len() + TAG_LEN);
    bytes.extend_from_slice(plain);
    let aad = bound(about, part);
    cipher(key)
        .seal_in_place_append_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(aad.as_bytes()),
            &mut bytes,
        )
        .expect("INVARIANT: AES-GCM seals up to 64 GiB, and no value is so long");
    out.append(&mut bytes);
}

fn take(
    sealed: &[u8],
    key: &[u8; KEY_LEN],
    about: &About,
    part: &str,
) -> Result<Zeroizing<Vec<u8>>, OpenError> {
    let (nonce, sealed) = sealed.split_at_checked(NONCE_LEN).ok_or(OpenError::Form)?;
    let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| OpenError::Form)?;
    let mut bytes = Zeroizing::new(sealed.to_vec());
    let aad = bound(about, part);
    let opened = cipher(key).open_in_place(nonce, Aad::from(aad.as_bytes()), &mut bytes);
    let len = opened.map_err(|_| OpenError::Refused)?.len();
    bytes[len..].zeroize();
    bytes.truncate(len);
    Ok(bytes)
}

fn cipher(key: &[u8; KEY_LEN]) -> LessSafeKey {
    let key = UnboundKey::new(&AES_256_GCM, key);
    LessSafeKey::new(key.expect("INVARIANT: a key of AES-256 has 32 bytes"))
}

/// What is authenticated beside the bytes. No name has a NUL.
fn bound(about: &About, part: &str) -> String {
    let About {
        tenant,
        name,
        version,
    } = about;
    format!("tabbify-vault-v1\0{part}\0{tenant}\0{name}\0{version}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{ProptestConfig, any, prop, proptest};

    use super::*;

    fn about(tenant: &str, name: &str, version: u32) -> About {
        About {
            tenant: tenant.parse().unwrap(),
            name: name.parse().unwrap(),
            version: SecretVersion(version),
        }
    }

    fn text(opened: Result<SecretValue, OpenError>) -> Result<String, OpenError> {
        opened.map(|value| String::from_utf8_lossy(value.reveal()).into_owned())
    }

    #[test]
    fn it_opens_as_what_it_is_and_as_nothing_else() {
        let master = MasterKey::generate();
        let mine = about("main", "api-key", 1);
        let sealed = seal(&master, &mine, b"sekrit");
        assert_eq!(text(open(&master, &mine, &sealed)).unwrap(), "sekrit");
        for part in [&sealed.key, &sealed.value] {
            assert!(!part.windows(6).any(|bytes| bytes == b"sekrit"));
        }
        assert_ne!(seal(&master, &mine, b"sekrit"), sealed, "a key of its own");
        for other in [
            about("other", "api-key", 1),
            about("main", "api-kez", 1),
            about("main", "api-key", 2),
            about("main", "api-key", 11),
        ] {
            assert_eq!(open(&master, &other, &sealed), Err(OpenError::Refused));
        }
        let stranger = MasterKey::generate();
        assert_eq!(open(&stranger, &mine, &sealed), Err(OpenError::OtherKey));
        // One that claims to be the other.
        let mut posing = sealed;
        posing.key[4..12].copy_from_slice(&stranger.id());
        assert_eq!(open(&stranger, &mine, &posing), Err(OpenError::Refused));
        assert_eq!(
            text(open(&master, &mine, &seal(&master, &mine, b""))).unwrap(),
            ""
        );
    }

    #[test]
    fn parts_of_two_records_are_no_record() {
        let master = MasterKey::generate();
        let mine = about("main", "api-key", 1);
        let (one, two) = (seal(&master, &mine, b"one"), seal(&master, &mine, b"two"));
        let mixed = Sealed {
            key: one.key.clone(),
            value: two.value,
        };
        assert_eq!(open(&master, &mine, &mixed), Err(OpenError::Refused));
        let swapped = Sealed {
            key: one.value,
            value: one.key,
        };
        assert_eq!(open(&master, &mine, &swapped), Err(OpenError::Form));
    }

    #[test]
    fn every_changed_bit_and_every_cut_is_refused() {
        let master = MasterKey::generate();
        let mine = about("main", "api-key", 1);
        let sealed = seal(&master, &mine, b"sekrit");
        for at in 0..sealed.key.len() {
            let mut changed = sealed.clone();
            changed.key[at] ^= 1;
            assert!(open(&master, &mine, &changed).is_err(), "key byte {at}");
            changed.key.truncate(at);
            assert_eq!(open(&master, &mine, &changed), Err(OpenError::Form));
        }
        for at in 0..sealed.value.len() {
            let mut changed = sealed.clone();
            changed.value[at] ^= 1;
            assert!(open(&master, &mine, &changed).is_err(), "value byte {at}");
            changed.value.truncate(at);
            assert!(open(&master, &mine, &changed).is_err(), "cut at {at}");
        }
        let mut longer = sealed;
        longer.value.push(0);
        assert_eq!(open(&master, &mine, &longer), Err(OpenError::Refused));
        longer.value.resize(VALUE_RECORD_LEN_MAX + 1, 0);
        assert_eq!(open(&master, &mine, &longer), Err(OpenError::Form));
    }

    #[test]
    fn records_are_as_long_as_they_say() {
        let largest = vec![7; VALUE_LEN_MAX];
        let sealed = seal(&MasterKey::generate(), &about("a", "b", 1), &largest);
        assert_eq!(sealed.key.len(), KEY_RECORD_LEN);
        assert_eq!(sealed.value.len(), VALUE_RECORD_LEN_MAX);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_value_comes_back(value in prop::collection::vec(any::<u8>(), 0..1000)) {
            let (master, mine) = (MasterKey::generate(), about("main", "a", 1));
            let opened = open(&master, &mine, &seal(&master, &mine, &value)).unwrap();
            proptest::prop_assert_eq!(opened.reveal(), value);
        }

        #[test]
        fn no_bytes_panic_or_open(
            key in prop::collection::vec(any::<u8>(), 0..100),
            value in prop::collection::vec(any::<u8>(), 0..100),
        ) {
            let (master, mine) = (MasterKey::generate(), about("main", "a", 1));
            let plain = Sealed { key: key.clone(), value: value.clone() };
            proptest::prop_assert!(open(&master, &mine, &plain).is_err());
            let mut begun = seal(&master, &mine, b"x");
            begun.value.splice(4.., value);
            proptest::prop_assert!(open(&master, &mine, &begun).is_err());
            begun.key.splice(12.., key);
            proptest::prop_assert!(open(&master, &mine, &begun).is_err());
        }
    }
}
