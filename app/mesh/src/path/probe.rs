//! Probes: the messages of two path agents to each other, sealed with keys that only the holders of
//! the two WireGuard keys can make. Takes hostile bytes.
//!
//! ```text
//! 0xd1 · version · 0 · 0 │ hint 8 │ nonce 24 │ sealed: kind 1, content │ tag 16
//! ```
//! The hint says whose message it is to someone who expects it; to others it is a number. Whoever
//! has no session with that hint drops the probe without any arithmetic.

use std::net::{IpAddr, SocketAddr};

use chacha20poly1305::aead::{AeadInPlace as _, KeyInit as _};
use chacha20poly1305::{Key, Tag, XChaCha20Poly1305, XNonce};
use gotatun::x25519::PublicKey;
use tabbify_types::MeshKey;
use zeroize::Zeroizing;

use super::{Candidate, CandidateKind};
use crate::PrivateKey;

/// The first byte of a probe; no WireGuard message begins with it.
pub(crate) const PROBE: u8 = 0xd1;
const VERSION: u8 = 1;
const HEADER: [u8; 4] = [PROBE, VERSION, 0, 0];
pub(crate) const HINT_LEN: usize = 8;
const NONCE_LEN: usize = 24;
const TAG_LEN: usize = 16;
const CLEAR_LEN: usize = HEADER.len() + HINT_LEN;
const SEALED_AT: usize = CLEAR_LEN + NONCE_LEN;
/// LIMIT: bytes of a probe; more is not looked at.
const PROBE_LEN_MAX: usize = 1024;
/// LIMIT: addresses in one call.
pub(crate) const CANDIDATES_MAX: usize = 16;
/// Bytes of an address: what it is, IPv6 or IPv4-mapped, port.
const ADDRESS_LEN: usize = 19;

const PING: u8 = 1;
const PONG: u8 = 2;
const CALL: u8 = 3;
const FLAG_ANSWER: u8 = 1;
const FLAG_HARD: u8 = 2;

const KEY_CONTEXT: &str = "tabbify mesh path probe 1 key";
const HINT_CONTEXT: &str = "tabbify mesh path probe 1 hint";

/// Says whose a probe is.
pub(crate) type Hint = [u8; HINT_LEN];

/// What agents say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Message {
    /// Does this path lead to you?
    Ping {
        /// Random: comes back in the pong.
        id: u64,
    },
    /// It does.
    Pong {
        /// That of the ping.
        id: u64,
        /// Where the ping came from, if no relay brought it.
        seen: Option<SocketAddr>,
    },
    /// This is where I may be; look for me there now.
    Call(Call),
}

/// See [`Message::Call`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Call {
    /// Greater than that of every earlier one from the same key.
    pub(crate) number: u64,
    /// Tell me where you may be.
    pub(crate) answer: bool,
    /// My NAT takes another port for every destination.
    pub(crate) hard: bool,
    /// At most [`CANDIDATES_MAX`].
    pub(crate) candidates: Vec<Candidate>,
}

/// Seals for one peer and opens what it sealed for us.
pub(crate) struct Seal {
    outward: XChaCha20Poly1305,
    inward: XChaCha20Poly1305,
    outward_hint: Hint,
    inward_hint: Hint,
}

/// The hint of a probe; `None` if these bytes are none.
pub(crate) fn hint(bytes: &[u8]) -> Option<Hint> {
    let is_probe = bytes.len() <= PROBE_LEN_MAX
        && bytes.len() > SEALED_AT + TAG_LEN
        && bytes.starts_with(&HEADER);
    if !is_probe {
        return None;
    }
    bytes.get(HEADER.len()..CLEAR_LEN)?.try_into().ok()
}

impl Seal {
    /// That of two keys. Of a key of low order, which has no secrets with anybody, nothing is
    /// accepted later, since no session is made with one.
    pub(crate) fn new(ours: &PrivateKey, theirs: MeshKey) -> Self {
        let shared = ours.secret().diffie_hellman(&PublicKey::from(theirs.0));
        let derive = |context: &str, sender: MeshKey, receiver: MeshKey| {
            let mut material = Zeroizing::new(Vec::with_capacity(96));
            material.extend_from_slice(shared.as_bytes());
            material.extend_from_slice(&sender.0);
            material.extend_from_slice(&receiver.0);
            Zeroizing::new(blake3::derive_key(context, &material))
        };
        let us = ours.public();
        let cipher = |key: Zeroizing<[u8; 32]>| XChaCha20Poly1305::new(Key::from_slice(&*key));
        let hint = |derived: Zeroizing<[u8; 32]>| {
            let mut hint = [0; HINT_LEN];
            hint.copy_from_slice(&derived[..HINT_LEN]);
            hint
        };
        Self {
            outward: cipher(derive(KEY_CONTEXT, us, theirs)),
            inward: cipher(derive(KEY_CONTEXT, theirs, us)),
            outward_hint: hint(derive(HINT_CONTEXT, us, theirs)),
            inward_hint: hint(derive(HINT_CONTEXT, theirs, us)),
        }
    }

    /// What the peer's probes are known by.
    pub(crate) const fn inward_hint(&self) -> Hint {
        self.inward_hint
    }

    /// Seals with a nonce that was never used: 24 random bytes.
    pub(crate) fn seal(&self, message: &Message, nonce: [u8; NONCE_LEN]) -> Vec<u8> {
        let mut probe = Vec::with_capacity(SEALED_AT + 64);
        probe.extend_from_slice(&HEADER);
        probe.extend_from_slice(&self.outward_hint);
        probe.extend_from_slice(&nonce);
        encode(message, &mut probe);
        let (clear, sealed) = probe.split_at_mut(SEALED_AT);
        let tag = self
            .outward
            .encrypt_in_place_detached(XNonce::from_slice(&nonce), &clear[..CLEAR_LEN], sealed)
            .expect("a probe is far shorter than what the cipher takes");
        probe.extend_from_slice(&tag);
        probe
    }

    /// What the peer sealed; `None` for everything else.
    pub(crate) fn open(&self, probe: &[u8]) -> Option<Message> {
        if hint(probe)? != self.inward_hint {
            return None;
        }
        let (clear, sealed) = probe.split_at(SEALED_AT);
        let (sealed, tag) = sealed.split_at(sealed.len().checked_sub(TAG_LEN)?);
        let mut content = sealed.to_vec();
        self.inward
            .decrypt_in_place_detached(
                XNonce::from_slice(&clear[CLEAR_LEN..]),
                &clear[..CLEAR_LEN],
                &mut content,
                Tag::from_slice(tag),
            )
            .ok()?;
        decode(&content)
    }
}

fn encode(message: &Message, into: &mut Vec<u8>) {
    match message {
        Message::Ping { id } => {
            into.push(PING);
            into.extend_from_slice(&id.to_be_bytes());
            // As long as its answer: who forges a source gains nothing.
            into.extend_from_slice(&[0; ADDRESS_LEN]);
        }
        Message::Pong { id, seen } => {
            into.push(PONG);
            into.extend_from_slice(&id.to_be_bytes());
            match seen {
                Some(address) => put_address(into, 1, *address),
                None => into.extend_from_slice(&[0; ADDRESS_LEN]),
            }
        }
        Message::Call(call) => {
            into.push(CALL);
            into.extend_from_slice(&call.number.to_be_bytes());
            let answer = if call.answer { FLAG_ANSWER } else { 0 };
            let hard = if call.hard { FLAG_HARD } else { 0 };
            into.push(answer | hard);
            for candidate in call.candidates.iter().take(CANDIDATES_MAX) {
                let what = match candidate.kind {
                    CandidateKind::Local => 1,
                    CandidateKind::Reflexive => 2,
                    CandidateKind::Mapped => 3,
                };
                put_address(into, what, candidate.address);
            }
        }
    }
}

/// Reads what was sealed. Bytes behind what is known belong to a later version.
fn decode(content: &[u8]) -> Option<Message> {
    let (kind, rest) = content.split_first()?;
    let (number, rest) = rest.split_first_chunk()?;
    let number = u64::from_be_bytes(*number);
    match *kind {
        PING => Some(Message::Ping { id: number }),
        PONG => {
            let (what, address) = address(rest.first_chunk()?);
            let seen = (what != 0).then_some(address);
            Some(Message::Pong { id: number, seen })
        }
        CALL => {
            let (flags, rest) = rest.split_first()?;
            let mut candidates = Vec::new();
            for entry in rest.as_chunks().0.iter().take(CANDIDATES_MAX) {
                let (what, address) = address(entry);
                let kind = match what {
                    1 => CandidateKind::Local,
                    2 => CandidateKind::Reflexive,
                    3 => CandidateKind::Mapped,
                    _ => continue,
                };
                candidates.push(Candidate { address, kind });
            }
            Some(Message::Call(Call {
                number,
                answer: flags & FLAG_ANSWER != 0,
                hard: flags & FLAG_HARD != 0,
                candidates,
            }))
        }
        _ => None,
    }
}

fn put_address(into: &mut Vec<u8>, what: u8, address: SocketAddr) {
    let ip = match address.ip() {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    };
    into.push(what);
    into.extend_from_slice(&ip.octets());
    into.extend_from_slice(&address.port().to_be_bytes());
}

fn address(entry: &[u8; ADDRESS_LEN]) -> (u8, SocketAddr) {
    let mut octets = [0; 16];
    octets.copy_from_slice(&entry[1..17]);
    let port = u16::from_be_bytes([entry[17], entry[18]]);
    let ip = IpAddr::from(octets).to_canonical();
    (entry[0], SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pair() -> (Seal, Seal) {
        let (a, b) = (
            PrivateKey::from_bytes(&[1; 32]),
            PrivateKey::from_bytes(&[2; 32]),
        );
        (Seal::new(&a, b.public()), Seal::new(&b, a.public()))
    }

    fn addresses() -> impl Strategy<Value = SocketAddr> {
        let v4 = (any::<[u8; 4]>(), any::<u16>()).prop_map(SocketAddr::from);
        let v6 = (any::<[u8; 16]>(), any::<u16>())
            .prop_map(|(ip, port)| SocketAddr::new(IpAddr::from(ip).to_canonical(), port));
        prop_oneof![v4, v6]
    }

    fn messages() -> impl Strategy<Value = Message> {
        let candidate = (addresses(), 0..3).prop_map(|(address, kind)| Candidate {
            address,
            kind: match kind {
                0 => CandidateKind::Local,
                1 => CandidateKind::Reflexive,
                _ => CandidateKind::Mapped,
            },
        });
        let candidates = proptest::collection::vec(candidate, 0..=CANDIDATES_MAX);
        prop_oneof![
            any::<u64>().prop_map(|id| Message::Ping { id }),
            (any::<u64>(), proptest::option::of(addresses()))
                .prop_map(|(id, seen)| Message::Pong { id, seen }),
            (any::<u64>(), any::<bool>(), any::<bool>(), candidates).prop_map(
                |(number, answer, hard, candidates)| {
                    Message::Call(Call {
                        number,
                        answer,
                        hard,
                        candidates,
                    })
                }
            ),
        ]
    }

    #[test]
    fn a_reflection_is_refused_and_a_pong_is_no_longer_than_its_ping() {
        let (a, b) = pair();
        let ping = a.seal(&Message::Ping { id: 7 }, [9; NONCE_LEN]);
        assert_eq!(a.open(&ping), None);
        assert_eq!(b.open(&ping), Some(Message::Ping { id: 7 }));
        let seen = Some(SocketAddr::from(([192, 0, 2, 1], 9)));
        let pong = b.seal(&Message::Pong { id: 7, seen }, [8; NONCE_LEN]);
        assert!(pong.len() <= ping.len());
    }

    proptest! {
        #[test]
        fn what_is_sealed_is_opened(message in messages(), nonce in any::<[u8; NONCE_LEN]>()) {
            let (a, b) = pair();
            let probe = a.seal(&message, nonce);
            prop_assert_eq!(hint(&probe), Some(b.inward_hint()));
            prop_assert_eq!(b.open(&probe), Some(message));
        }

        #[test]
        fn what_is_changed_is_refused(message in messages(), at in any::<prop::sample::Index>(), bit in 0..8u8) {
            let (a, b) = pair();
            let mut probe = a.seal(&message, [3; NONCE_LEN]);
            let at = at.index(probe.len());
            probe[at] ^= 1_u8 << bit;
            prop_assert_eq!(b.open(&probe), None);
        }

        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300), genuine in any::<bool>()) {
            let (a, _) = pair();
            let mut bytes = bytes;
            if genuine && bytes.len() >= CLEAR_LEN {
                bytes[..4].copy_from_slice(&HEADER);
                bytes[4..CLEAR_LEN].copy_from_slice(&a.inward_hint());
            }
            prop_assert_eq!(a.open(&bytes), None);
            let _ = decode(&bytes);
        }
    }
}
