//! Proof of possession between a peer and a relay: MACs under keys that only the holders of the two
//! X25519 keys can derive.

use gotatun::x25519::PublicKey;
use tabbify_types::MeshKey;
use zeroize::Zeroizing;

use super::frame::MAC_LEN;
use crate::PrivateKey;

const TO_RELAY: &str = "tabbify mesh relay 1 to relay";
const FROM_RELAY: &str = "tabbify mesh relay 1 from relay";

/// The two keys of a peer and a relay.
pub(super) struct Proofs {
    to_relay: Zeroizing<[u8; 32]>,
    from_relay: Zeroizing<[u8; 32]>,
}

impl Proofs {
    /// At the peer.
    pub(super) fn of_peer(ours: &PrivateKey, relay: MeshKey) -> Option<Self> {
        Self::new(ours, relay, ours.public(), relay)
    }

    /// At the relay.
    pub(super) fn of_relay(ours: &PrivateKey, peer: MeshKey) -> Option<Self> {
        Self::new(ours, peer, peer, ours.public())
    }

    /// `None` for a key of low order, with which everybody has the same secret.
    fn new(ours: &PrivateKey, theirs: MeshKey, peer: MeshKey, relay: MeshKey) -> Option<Self> {
        let shared = ours.secret().diffie_hellman(&PublicKey::from(theirs.0));
        if !shared.was_contributory() {
            return None;
        }
        let mut material = Zeroizing::new(Vec::with_capacity(96));
        material.extend_from_slice(shared.as_bytes());
        material.extend_from_slice(&peer.0);
        material.extend_from_slice(&relay.0);
        Some(Self {
            to_relay: Zeroizing::new(blake3::derive_key(TO_RELAY, &material)),
            from_relay: Zeroizing::new(blake3::derive_key(FROM_RELAY, &material)),
        })
    }

    /// The peer's proof of `parts`.
    pub(super) fn by_peer(&self, parts: &[&[u8]]) -> [u8; MAC_LEN] {
        mac(&self.to_relay, parts)
    }

    /// The relay's proof of `parts`.
    pub(super) fn by_relay(&self, parts: &[&[u8]]) -> [u8; MAC_LEN] {
        mac(&self.from_relay, parts)
    }
}

/// Keyed BLAKE3 over parts of known lengths.
pub(super) fn mac(key: &[u8; 32], parts: &[&[u8]]) -> [u8; MAC_LEN] {
    let mut hasher = blake3::Hasher::new_keyed(key);
    for part in parts {
        hasher.update(&(part.len() as u64).to_be_bytes());
        hasher.update(part);
    }
    *hasher.finalize().as_bytes()
}

/// Compares in constant time.
pub(super) fn is_equal(a: &[u8; MAC_LEN], b: &[u8; MAC_LEN]) -> bool {
    // The comparison of BLAKE3's hashes is.
    blake3::Hash::from_bytes(*a) == blake3::Hash::from_bytes(*b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_and_nobody_else_agree() {
        let keys = [1, 2, 3].map(|n| PrivateKey::from_bytes(&[n; 32]));
        let [peer, relay, thief] = &keys;
        let ours = Proofs::of_peer(peer, relay.public()).unwrap();
        let theirs = Proofs::of_relay(relay, peer.public()).unwrap();
        let parts: &[&[u8]] = &[b"challenge", b"channel"];
        assert_eq!(ours.by_peer(parts), theirs.by_peer(parts));
        assert_eq!(ours.by_relay(parts), theirs.by_relay(parts));
        assert_ne!(ours.by_peer(parts), ours.by_relay(parts));
        assert_ne!(ours.by_peer(parts), ours.by_peer(&[b"challengechannel"]));
        let stolen = Proofs::of_peer(thief, relay.public()).unwrap();
        assert_ne!(stolen.by_peer(parts), theirs.by_peer(parts));
        assert!(Proofs::of_relay(relay, MeshKey([0; 32])).is_none());
        assert!(is_equal(&[1; 32], &[1; 32]) && !is_equal(&[1; 32], &[2; 32]));
    }
}
