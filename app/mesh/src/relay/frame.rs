//! What peers and relays say to each other: frames in UDP datagrams, messages in a WebSocket. Takes
//! hostile bytes.

use std::io::IoSlice;

use crate::path::{TAG_LEN, Tag};

/// The first byte of a frame; neither WireGuard nor STUN nor a probe begins with it.
pub(crate) const FRAME: u8 = 0xd2;
/// Bytes before what is relayed in a datagram. Few enough that a full WireGuard datagram fits into
/// 1500 bytes of IPv4 with it: 20 + 8 + 18 + 1452.
pub(crate) const HEADER_LEN: usize = 2 + TOKEN_LEN + TAG_LEN;
/// Bytes before what is relayed in a message.
pub(super) const MESSAGE_HEADER_LEN: usize = 1 + TAG_LEN;
pub(super) const TOKEN_LEN: usize = 8;
pub(super) const NONCE_LEN: usize = 16;
pub(super) const COOKIE_LEN: usize = 16;
pub(super) const MAC_LEN: usize = 32;
pub(super) const CHALLENGE_LEN: usize = 32;
/// LIMIT: bytes of one relayed datagram.
pub(super) const PAYLOAD_LEN_MAX: usize = 2048;
/// A hello is as long as the longest answer to who has not proven to be where it says.
const HELLO_LEN: usize = 2 + 32 + NONCE_LEN;

const HELLO: u8 = 1;
const COOKIE: u8 = 2;
const PROVE: u8 = 3;
const WELCOME: u8 = 4;
const KEEP: u8 = 5;
const KEPT: u8 = 6;
const DATA: u8 = 16;

/// Makes a registration a little harder to forge for who is not on the way.
pub(super) type Token = [u8; TOKEN_LEN];

/// A frame in a UDP datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Frame<'a> {
    /// To the relay: this is my key.
    Hello {
        key: [u8; 32],
        nonce: [u8; NONCE_LEN],
    },
    /// From the relay: prove that you are where you say.
    Cookie {
        nonce: [u8; NONCE_LEN],
        cookie: [u8; COOKIE_LEN],
    },
    /// To the relay: I am, and I hold the key.
    Prove {
        key: [u8; 32],
        nonce: [u8; NONCE_LEN],
        cookie: [u8; COOKIE_LEN],
        mac: [u8; MAC_LEN],
    },
    /// From the relay: you are known here, and I hold my key.
    Welcome {
        nonce: [u8; NONCE_LEN],
        token: Token,
        mac: [u8; MAC_LEN],
    },
    /// To the relay: keep me known, and the NATs between us open.
    Keep { token: Token },
    /// From the relay.
    Kept { token: Token },
    /// To the relay: for who has this tag. From the relay: from who has it.
    Data {
        token: Token,
        tag: Tag,
        payload: &'a [u8],
    },
}

/// Takes the next bytes of a fixed length.
fn take<'a, const N: usize>(bytes: &mut &'a [u8]) -> Option<&'a [u8; N]> {
    let (head, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(head)
}

impl<'a> Frame<'a> {
    pub(super) fn decode(bytes: &'a [u8]) -> Option<Self> {
        let mut rest = bytes;
        let [FRAME, kind] = *take(&mut rest)? else {
            return None;
        };
        let frame = match kind {
            HELLO => {
                let (key, nonce) = (*take(&mut rest)?, *take(&mut rest)?);
                Self::Hello { key, nonce }
            }
            COOKIE => {
                let (nonce, cookie) = (*take(&mut rest)?, *take(&mut rest)?);
                Self::Cookie { nonce, cookie }
            }
            PROVE => Self::Prove {
                key: *take(&mut rest)?,
                nonce: *take(&mut rest)?,
                cookie: *take(&mut rest)?,
                mac: *take(&mut rest)?,
            },
            WELCOME => Self::Welcome {
                nonce: *take(&mut rest)?,
                token: *take(&mut rest)?,
                mac: *take(&mut rest)?,
            },
            KEEP => Self::Keep {
                token: *take(&mut rest)?,
            },
            KEPT => Self::Kept {
                token: *take(&mut rest)?,
            },
            DATA => {
                let (token, tag) = (*take(&mut rest)?, Tag(*take(&mut rest)?));
                let payload = std::mem::take(&mut rest);
                if payload.is_empty() || payload.len() > PAYLOAD_LEN_MAX {
                    return None;
                }
                Self::Data {
                    token,
                    tag,
                    payload,
                }
            }
            _ => return None,
        };
        rest.is_empty().then_some(frame)
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![FRAME, 0];
        bytes[1] = match self {
            Self::Hello { key, nonce } => {
                bytes.extend(key);
                bytes.extend(nonce);
                debug_assert_eq!(bytes.len(), HELLO_LEN);
                HELLO
            }
            Self::Cookie { nonce, cookie } => {
                bytes.extend(nonce);
                bytes.extend(cookie);
                COOKIE
            }
            Self::Prove {
                key,
                nonce,
                cookie,
                mac,
            } => {
                bytes.extend(key);
                bytes.extend(nonce);
                bytes.extend(cookie);
                bytes.extend(mac);
                PROVE
            }
            Self::Welcome { nonce, token, mac } => {
                bytes.extend(nonce);
                bytes.extend(token);
                bytes.extend(mac);
                WELCOME
            }
            Self::Keep { token } => {
                bytes.extend(token);
                KEEP
            }
            Self::Kept { token } => {
                bytes.extend(token);
                KEPT
            }
            Self::Data {
                token,
                tag,
                payload,
            } => {
                bytes.extend(token);
                bytes.extend(tag.0);
                bytes.extend(*payload);
                DATA
            }
        };
        bytes
    }
}

/// The header of a relayed datagram.
pub(super) fn header(token: Token, tag: Tag) -> [u8; HEADER_LEN] {
    let mut header = [0; HEADER_LEN];
    header[0] = FRAME;
    header[1] = DATA;
    header[2..2 + TOKEN_LEN].copy_from_slice(&token);
    header[2 + TOKEN_LEN..].copy_from_slice(&tag.0);
    header
}

/// Lays datagrams behind each other, each with the header before it.
pub(super) fn wrap(header: &[u8; HEADER_LEN], datagrams: &[IoSlice<'_>], into: &mut Vec<u8>) {
    into.clear();
    for datagram in datagrams {
        into.extend_from_slice(header);
        into.extend_from_slice(datagram);
    }
}

/// A message in a WebSocket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Message<'a> {
    /// From the relay, first of all.
    Challenge([u8; CHALLENGE_LEN]),
    /// To the relay.
    Prove {
        key: [u8; 32],
        challenge: [u8; CHALLENGE_LEN],
        mac: [u8; MAC_LEN],
    },
    /// From the relay.
    Welcome([u8; MAC_LEN]),
    /// As [`Frame::Data`].
    Data { tag: Tag, payload: &'a [u8] },
}

impl<'a> Message<'a> {
    pub(super) fn decode(bytes: &'a [u8]) -> Option<Self> {
        let mut rest = bytes;
        let [kind] = *take(&mut rest)?;
        let message = match kind {
            COOKIE => Self::Challenge(*take(&mut rest)?),
            PROVE => Self::Prove {
                key: *take(&mut rest)?,
                challenge: *take(&mut rest)?,
                mac: *take(&mut rest)?,
            },
            WELCOME => Self::Welcome(*take(&mut rest)?),
            DATA => {
                let tag = Tag(*take(&mut rest)?);
                let payload = std::mem::take(&mut rest);
                if payload.is_empty() || payload.len() > PAYLOAD_LEN_MAX {
                    return None;
                }
                Self::Data { tag, payload }
            }
            _ => return None,
        };
        rest.is_empty().then_some(message)
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(MESSAGE_HEADER_LEN + 128);
        match self {
            Self::Challenge(challenge) => {
                bytes.push(COOKIE);
                bytes.extend(challenge);
            }
            Self::Prove {
                key,
                challenge,
                mac,
            } => {
                bytes.push(PROVE);
                bytes.extend(key);
                bytes.extend(challenge);
                bytes.extend(mac);
            }
            Self::Welcome(mac) => {
                bytes.push(WELCOME);
                bytes.extend(mac);
            }
            Self::Data { tag, payload } => {
                bytes.push(DATA);
                bytes.extend(tag.0);
                bytes.extend(*payload);
            }
        }
        bytes
    }
}

/// Whether a relayed datagram goes before others: handshakes and probes decide whether anything else
/// can follow, and are small.
pub(super) fn is_urgent(payload: &[u8]) -> bool {
    const WIREGUARD_DATA: u8 = 4;
    payload.first() != Some(&WIREGUARD_DATA)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frames() -> impl Strategy<Value = (u8, [u8; 32], [u8; 16], [u8; 8], Vec<u8>)> {
        let payload = proptest::collection::vec(any::<u8>(), 1..200);
        (
            0u8..7,
            any::<[u8; 32]>(),
            any::<[u8; 16]>(),
            any::<[u8; 8]>(),
            payload,
        )
    }

    #[test]
    fn who_has_proven_nothing_gets_no_more_than_it_sent() {
        let hello = Frame::Hello {
            key: [1; 32],
            nonce: [2; 16],
        }
        .encode();
        let cookie = Frame::Cookie {
            nonce: [2; 16],
            cookie: [3; 16],
        }
        .encode();
        assert!(cookie.len() <= hello.len());
    }

    #[test]
    fn a_full_datagram_fits_into_ethernet() {
        assert!(20 + 8 + HEADER_LEN + 32 + usize::from(crate::config::MTU) <= 1500);
    }

    #[test]
    fn only_transport_data_waits() {
        assert!(!is_urgent(&[4, 0, 0, 0]));
        assert!(is_urgent(&[1]) && is_urgent(&[2]) && is_urgent(&[0xd1]));
    }

    proptest! {
        #[test]
        fn frames_come_back((kind, key, nonce, small, payload) in frames()) {
            let (mac, cookie) = (key, nonce);
            let frame = match kind {
                0 => Frame::Hello { key, nonce },
                1 => Frame::Cookie { nonce, cookie },
                2 => Frame::Prove { key, nonce, cookie, mac },
                3 => Frame::Welcome { nonce, token: small, mac },
                4 => Frame::Keep { token: small },
                5 => Frame::Kept { token: small },
                _ => Frame::Data { token: small, tag: Tag(small), payload: &payload },
            };
            let bytes = frame.encode();
            prop_assert_eq!(Frame::decode(&bytes), Some(frame));
            prop_assert_eq!(Frame::decode(&bytes[..bytes.len().min(HEADER_LEN) - 1]), None);
        }

        #[test]
        fn messages_come_back((kind, key, _, small, payload) in frames()) {
            let message = match kind % 4 {
                0 => Message::Challenge(key),
                1 => Message::Prove { key, challenge: key, mac: key },
                2 => Message::Welcome(key),
                _ => Message::Data { tag: Tag(small), payload: &payload },
            };
            let bytes = message.encode();
            prop_assert_eq!(Message::decode(&bytes), Some(message));
        }

        #[test]
        fn a_train_is_wrapped_piece_by_piece(lens in proptest::collection::vec(1usize..100, 1..20)) {
            let datagrams: Vec<Vec<u8>> = lens.iter().map(|len| vec![7; *len]).collect();
            let slices: Vec<IoSlice<'_>> = datagrams.iter().map(|d| IoSlice::new(d)).collect();
            let (header, mut train) = (header([1; 8], Tag([2; 8])), Vec::new());
            wrap(&header, &slices, &mut train);
            let mut rest = &train[..];
            for datagram in &datagrams {
                let (frame, later) = rest.split_at(HEADER_LEN + datagram.len());
                let expected = Frame::Data { token: [1; 8], tag: Tag([2; 8]), payload: datagram };
                prop_assert_eq!(Frame::decode(frame), Some(expected));
                rest = later;
            }
            prop_assert!(rest.is_empty());
        }

        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 0u8..20) {
            let _ = Frame::decode(&bytes);
            let _ = Message::decode(&bytes);
            let mut bytes = bytes;
            if bytes.len() > 1 {
                (bytes[0], bytes[1]) = (FRAME, kind);
                let _ = Frame::decode(&bytes);
                bytes[0] = kind;
                let _ = Message::decode(&bytes);
            }
        }
    }
}
