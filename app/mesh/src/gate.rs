//! Where an endpoint answers for addresses that are not its own: a gateway, which ends the connections
//! of its peers and goes on for them itself. Which it takes is its [`Gate`]'s to say; a connection that
//! it refuses is reset, and what is no TCP is answered in ICMPv6 (RFC 4443): nothing meets silence.

use std::fmt;
use std::net::{Ipv6Addr, SocketAddrV6};

use bytes::BytesMut;
use smoltcp::time::{Duration, Instant};
use tabbify_types::MeshKey;

use crate::kernel::checksum::Sum;
use crate::packet::Inner;
use crate::stack::{Door, Doors};

/// Says what is taken, for peers and addresses. It is asked under a session's lock: it must not wait.
pub trait Gate: Send + Sync + fmt::Debug {
    /// Whether the endpoint stands for `address`; packets for all others are dropped.
    fn covers(&self, address: Ipv6Addr) -> bool;

    /// Whether `peer` may open a connection to `to` now; otherwise it gets a reset.
    fn admits(&self, peer: MeshKey, to: SocketAddrV6) -> bool;

    /// Whether `peer` may know that somebody is at `to`; otherwise that is prohibited to it.
    fn shows(&self, peer: MeshKey, to: Ipv6Addr) -> bool;
}

/// Nobody is behind any port.
pub(crate) struct Shut;

impl Doors for Shut {
    fn knock(&self, _: u16) -> Door {
        Door::Closed
    }
}

/// LIMIT: answers in ICMPv6 to one peer in a second (RFC 4443, section 2.4 f).
const ANSWERS_PER_SECOND: u32 = 200;
const SECOND: Duration = Duration::from_secs(1);
/// LIMIT: bytes of an error message: what every link takes (RFC 4443, section 2.4 c).
const ERROR_LEN_MAX: usize = 1280;

const IPV6_LEN: usize = 40;
const ICMP_LEN: usize = 8;
const HOP_LIMIT: u8 = 64;
const ICMP: u8 = 58;
const UNREACHABLE: u8 = 1;
const PROHIBITED: u8 = 1;
const NO_PORT: u8 = 4;
const ECHO_REQUEST: u8 = 128;
const ECHO_REPLY: u8 = 129;

/// Answers what is no TCP, within limits.
#[derive(Debug)]
pub(crate) struct Replies {
    since: Instant,
    given: u32,
}

impl Replies {
    pub(crate) const fn new(now: Instant) -> Self {
        Self {
            since: now,
            given: 0,
        }
    }

    /// The answer to a packet whose source is checked and whose destination is covered, if it gets one:
    /// an echo, that there is no such port, or, unless the peer is shown who is there, that this is
    /// prohibited.
    pub(crate) fn answer(
        &mut self,
        packet: &[u8],
        inner: &Inner,
        shows: impl FnOnce() -> bool,
        now: Instant,
    ) -> Option<BytesMut> {
        let packet = packet.get(..inner.len)?;
        let payload = packet.get(IPV6_LEN..)?;
        let kind = (packet[6] == ICMP).then(|| payload.first().copied());
        // Nobody answers an error, and so two never talk about each other's for ever.
        if kind.is_some_and(|kind| kind.is_none_or(|kind| kind < ECHO_REQUEST)) {
            return None;
        }
        if now >= self.since + SECOND {
            (self.since, self.given) = (now, 0);
        }
        if self.given >= ANSWERS_PER_SECOND {
            return None;
        }
        self.given += 1;
        let shown = shows();
        Some(match kind {
            Some(Some(ECHO_REQUEST)) if shown && payload.len() >= ICMP_LEN => {
                let mut message = BytesMut::from(payload);
                message[0] = ECHO_REPLY;
                wrap(message, inner)
            }
            _ => {
                let room = ERROR_LEN_MAX - IPV6_LEN - ICMP_LEN;
                let quoted = &packet[..packet.len().min(room)];
                let mut message = BytesMut::zeroed(ICMP_LEN);
                message[0] = UNREACHABLE;
                message[1] = if shown { NO_PORT } else { PROHIBITED };
                message.extend_from_slice(quoted);
                wrap(message, inner)
            }
        })
    }
}

/// Puts an ICMPv6 message into a packet that goes back to where `inner` came from.
fn wrap(mut message: BytesMut, inner: &Inner) -> BytesMut {
    let len = u16::try_from(message.len()).unwrap_or(u16::MAX);
    let mut packet = BytesMut::zeroed(IPV6_LEN);
    packet[0] = 6 << 4;
    packet[4..6].copy_from_slice(&len.to_be_bytes());
    (packet[6], packet[7]) = (ICMP, HOP_LIMIT);
    packet[8..24].copy_from_slice(&inner.destination.octets());
    packet[24..40].copy_from_slice(&inner.source.octets());
    message[2..4].fill(0);
    let sum = Sum::default()
        .add(&packet[8..40])
        .add(&u32::from(len).to_be_bytes())
        .add(&u32::from(ICMP).to_be_bytes())
        .add(&message)
        .finish();
    message[2..4].copy_from_slice(&sum);
    packet.extend_from_slice(&message);
    packet
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::packet;

    const THEM: Ipv6Addr = Ipv6Addr::new(0xfd5a, 0x1f01, 0, 1, 0, 0, 0, 1);
    const THERE: Ipv6Addr = Ipv6Addr::new(0xfd5a, 0x1f02, 1, 2, 3, 0, 0, 1);

    fn packet(next_header: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; IPV6_LEN];
        packet[0] = 6 << 4;
        let len = u16::try_from(payload.len()).unwrap();
        packet[4..6].copy_from_slice(&len.to_be_bytes());
        packet[6] = next_header;
        packet[8..24].copy_from_slice(&THEM.octets());
        packet[24..40].copy_from_slice(&THERE.octets());
        packet.extend(payload);
        packet
    }

    fn answer(replies: &mut Replies, packet: &[u8], shown: bool, now: Instant) -> Option<Vec<u8>> {
        let inner = packet::parse(packet)?;
        let answer = replies.answer(packet, &inner, || shown, now)?;
        Some(answer.to_vec())
    }

    /// The checksum over everything leaves nothing.
    fn is_right(answer: &[u8]) -> bool {
        let message = &answer[IPV6_LEN..];
        let len = u32::try_from(message.len()).unwrap();
        let sum = Sum::default()
            .add(&answer[8..40])
            .add(&len.to_be_bytes())
            .add(&u32::from(ICMP).to_be_bytes())
            .add(message);
        sum.finish() == [0, 0]
    }

    #[test]
    fn an_echo_comes_back_and_the_rest_is_told_why_not() {
        let now = Instant::from_secs(1);
        let replies = &mut Replies::new(now);
        let mut ask = |next_header, payload: &[u8], shown| {
            answer(replies, &packet(next_header, payload), shown, now)
        };
        let echo = [ECHO_REQUEST, 0, 9, 9, 1, 2, 3, 4, b'a', b'b', b'c'];
        let reply = ask(ICMP, &echo, true).unwrap();
        assert!(is_right(&reply));
        assert_eq!(
            (&reply[8..24], &reply[24..40]),
            (&THERE.octets()[..], &THEM.octets()[..])
        );
        assert_eq!((reply[40], reply[41]), (ECHO_REPLY, 0));
        assert_eq!(reply[44..], echo[4..]);

        let refused = ask(ICMP, &echo, false).unwrap();
        assert!(is_right(&refused));
        assert_eq!((refused[40], refused[41]), (UNREACHABLE, PROHIBITED));
        assert_eq!(refused[48..], packet(ICMP, &echo));

        let udp = [0xc0, 1, 0, 53, 0, 8, 0, 0];
        let no_port = ask(17, &udp, true).unwrap();
        assert!(is_right(&no_port));
        assert_eq!((no_port[40], no_port[41]), (UNREACHABLE, NO_PORT));
        let long = ask(17, &[7; 1380], true).unwrap();
        assert!(is_right(&long));
        assert_eq!(long.len(), ERROR_LEN_MAX);

        // Errors are not answered, nor is what has no type, nor what is too short an echo to be one.
        assert_eq!(ask(ICMP, &[UNREACHABLE, 4, 0, 0, 0, 0, 0, 0], true), None);
        assert_eq!(ask(ICMP, &[], true), None);
        let short = ask(ICMP, &[ECHO_REQUEST, 0, 0], true).unwrap();
        assert_eq!(short[40], UNREACHABLE);
    }

    #[test]
    fn answers_are_bounded() {
        let now = Instant::from_secs(1);
        let mut replies = Replies::new(now);
        let udp = packet(17, &[0; 8]);
        let given = |replies: &mut Replies, now| {
            let answers = (0..1000).filter(|_| answer(replies, &udp, true, now).is_some());
            u32::try_from(answers.count()).unwrap()
        };
        assert_eq!(given(&mut replies, now), ANSWERS_PER_SECOND);
        assert_eq!(
            given(&mut replies, now + Duration::from_secs(1)),
            ANSWERS_PER_SECOND
        );
    }

    proptest! {
        #[test]
        fn whatever_comes_the_answer_is_whole(next in any::<u8>(), payload in proptest::collection::vec(any::<u8>(), 0..1400), shown: bool) {
            let now = Instant::from_secs(1);
            if let Some(answer) = answer(&mut Replies::new(now), &packet(next, &payload), shown, now) {
                prop_assert!(is_right(&answer));
                let read = packet::parse(&answer).unwrap();
                prop_assert_eq!((read.source, read.destination, read.len), (THERE, THEM, answer.len()));
                prop_assert!(answer.len() <= ERROR_LEN_MAX.max(IPV6_LEN + payload.len()));
            }
        }
    }
}
