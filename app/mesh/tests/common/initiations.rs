//! Handshake initiations as a flood has them. Included by the test of it and by the bench.

use std::sync::Arc;

use gotatun::noise::Tunn;
use gotatun::noise::index_table::IndexTable;
use gotatun::noise::rate_limiter::RateLimiter;
use gotatun::packet::Packet;
use gotatun::x25519::{PublicKey, StaticSecret};
use tabbify_types::MeshKey;

/// Made with the right public key, so that to look at one takes arithmetic; from keys that nobody knows.
pub(crate) fn strangers(to: MeshKey, number: usize) -> Vec<Vec<u8>> {
    let to = PublicKey::from(to.0);
    let limiter = Arc::new(RateLimiter::new(&to, 1));
    let stranger = || {
        let secret = StaticSecret::from(tabbify_process::random::<32>());
        let (indices, limiter) = (IndexTable::from_os_rng(), Arc::clone(&limiter));
        let mut tunn = Tunn::new(secret, to, None, None, indices, limiter);
        let initiation: Packet = tunn.format_handshake_initiation(true)?.into();
        Some(initiation.to_vec())
    };
    (0..number).filter_map(|_| stranger()).collect()
}

/// As long, and with the first byte of one; the rest is noise.
pub(crate) fn noise(number: usize) -> Vec<Vec<u8>> {
    let noise = || {
        let mut bytes = tabbify_process::random::<148>();
        bytes[..4].copy_from_slice(&[1, 0, 0, 0]);
        bytes.to_vec()
    };
    (0..number).map(|_| noise()).collect()
}
