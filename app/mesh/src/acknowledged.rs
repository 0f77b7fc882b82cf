//! Mends a fault of smoltcp 0.14 that stalls a busy connection for good.
//!
//! After a retransmission timeout smoltcp rewinds the sequence number that it puts into bare
//! acknowledgments. The peer has received more by then, finds such a segment outside its window, and
//! ignores the acknowledgment in it. If both sides time out at once, as after a pause of the machine,
//! neither ever hears the other again.
//!
//! What the peer expects next is what its acknowledgments say, those included that smoltcp ignored;
//! a bare acknowledgment carries that, if it is further than what smoltcp put there.

use std::collections::HashMap;

const SOURCE: usize = 8;
const DESTINATION: usize = 24;
const TCP: usize = 40;
const SEQUENCE: usize = TCP + 4;
const ACKNOWLEDGMENT: usize = TCP + 8;
const CHECKSUM: usize = TCP + 16;
const HEADERS_LEN: usize = TCP + 20;
const ACK: u8 = 0x10;
const SYN_FIN: u8 = 0x03;

/// Our address, the peer's, our port, the peer's: as in a packet that we send.
pub(crate) type Flow = [u8; 36];

/// How much of each flow the peer has acknowledged. Flows are opened and closed with connections,
/// which bounds them.
#[derive(Debug, Default)]
pub(crate) struct Acknowledged(HashMap<Flow, Option<u32>>);

impl Acknowledged {
    pub(crate) fn open(&mut self, flow: Flow) {
        self.0.insert(flow, None);
    }

    pub(crate) fn close(&mut self, flow: &Flow) {
        self.0.remove(flow);
    }

    /// Looks at a packet from the peer.
    pub(crate) fn hear(&mut self, packet: &[u8]) {
        let Some(segment) = Segment::of(packet) else {
            return;
        };
        let mut flow = [0; 36];
        flow[..16].copy_from_slice(&packet[DESTINATION..TCP]);
        flow[16..32].copy_from_slice(&packet[SOURCE..DESTINATION]);
        flow[32..34].copy_from_slice(&packet[TCP + 2..TCP + 4]);
        flow[34..].copy_from_slice(&packet[TCP..TCP + 2]);
        if let Some(known) = self.0.get_mut(&flow)
            && known.is_none_or(|known| is_after(segment.acknowledgment, known))
        {
            *known = Some(segment.acknowledgment);
        }
    }

    /// Mends a packet for the peer.
    pub(crate) fn mend(&self, packet: &mut [u8]) {
        let Some(segment) = Segment::of(packet).filter(|segment| segment.is_bare) else {
            return;
        };
        let flow = packet
            .get(SOURCE..SOURCE + 36)
            .and_then(|flow| self.0.get(flow));
        if let Some(Some(expected)) = flow
            && is_after(*expected, segment.sequence)
        {
            packet[SEQUENCE..SEQUENCE + 4].copy_from_slice(&expected.to_be_bytes());
            let old = u16_at(packet, CHECKSUM);
            let new = replace_in_checksum(old, segment.sequence, *expected);
            packet[CHECKSUM..CHECKSUM + 2].copy_from_slice(&new.to_be_bytes());
        }
    }
}

struct Segment {
    sequence: u32,
    acknowledgment: u32,
    /// It takes no room in the sequence.
    is_bare: bool,
}

impl Segment {
    /// The segment in a packet that [`crate::packet::parse`] let pass, if it acknowledges anything.
    fn of(packet: &[u8]) -> Option<Self> {
        let end = TCP + usize::from(u16_at(packet.get(..HEADERS_LEN)?, 4));
        let (next_header, offset, flags) = (packet[6], packet[TCP + 12] >> 4, packet[TCP + 13]);
        if next_header != 6 || flags & ACK == 0 {
            return None;
        }
        Some(Self {
            sequence: u32_at(packet, SEQUENCE),
            acknowledgment: u32_at(packet, ACKNOWLEDGMENT),
            is_bare: end == TCP + usize::from(offset) * 4 && flags & SYN_FIN == 0,
        })
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) << 16 | u32::from(u16_at(bytes, at + 2))
}

/// In the sense of sequence numbers, which wrap around.
fn is_after(a: u32, b: u32) -> bool {
    a != b && a.wrapping_sub(b) < 1 << 31
}

/// The checksum after one aligned value was replaced by another (RFC 1624).
fn replace_in_checksum(checksum: u16, old: u32, new: u32) -> u16 {
    let words = |n: u32| [n >> 16, n & 0xffff];
    let mut sum = u32::from(!checksum);
    for (old, new) in words(old).into_iter().zip(words(new)) {
        sum += (!old & 0xffff) + new;
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn checksum(packet: &[u8]) -> u16 {
        let mut sum: u32 = packet[8..]
            .chunks(2)
            .map(|b| u32::from(u16_at(&[b[0], b[1]], 0)))
            .sum();
        sum += u32::from(packet[5]) + 6;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !u16::try_from(sum).unwrap_or(0)
    }

    /// From 1 to 2 or the other way, without payload.
    fn bare(from: u8, to: u8, sequence: u32, acknowledgment: u32) -> Vec<u8> {
        let mut packet = vec![0; 60];
        (packet[0], packet[5], packet[6]) = (0x60, 20, 6);
        (packet[23], packet[39], packet[41], packet[43]) = (from, to, from, to);
        packet[44..48].copy_from_slice(&sequence.to_be_bytes());
        packet[48..52].copy_from_slice(&acknowledgment.to_be_bytes());
        (packet[52], packet[53]) = (5 << 4, ACK);
        let sum = checksum(&packet);
        packet[56..58].copy_from_slice(&sum.to_be_bytes());
        packet
    }

    fn flow(packet: &[u8]) -> Flow {
        packet[8..44].try_into().unwrap()
    }

    #[test]
    fn only_bare_segments_of_open_flows_and_only_forward() {
        let mut acknowledged = Acknowledged::default();
        let (theirs, ours) = (bare(2, 1, 0, 5000), bare(1, 2, 4000, 77));
        acknowledged.hear(&theirs);
        let mut packet = ours.clone();
        acknowledged.mend(&mut packet);
        assert_eq!(packet, ours, "not open");

        acknowledged.open(flow(&ours));
        acknowledged.hear(&theirs);
        acknowledged.hear(&bare(2, 1, 0, 4500));
        acknowledged.mend(&mut packet);
        assert_eq!(packet, bare(1, 2, 5000, 77));

        for (at, to) in [(53, ACK | 1), (53, ACK | 2), (53, 4), (52, 4 << 4), (6, 17)] {
            let mut other = ours.clone();
            other[at] = to;
            let before = other.clone();
            acknowledged.mend(&mut other);
            assert_eq!(other, before);
        }
        let mut ahead = bare(1, 2, 6000, 77);
        acknowledged.mend(&mut ahead);
        assert_eq!(ahead, bare(1, 2, 6000, 77));
        acknowledged.close(&flow(&ours));
        let mut packet = ours.clone();
        acknowledged.mend(&mut packet);
        assert_eq!(packet, ours);
    }

    proptest! {
        #[test]
        fn the_checksum_stays_right(sequence in any::<u32>(), ahead in 1u32..1 << 31, ack in any::<u32>()) {
            let mut acknowledged = Acknowledged::default();
            let mut packet = bare(1, 2, sequence, ack);
            acknowledged.open(flow(&packet));
            acknowledged.hear(&bare(2, 1, 0, sequence.wrapping_add(ahead)));
            acknowledged.mend(&mut packet);
            prop_assert_eq!(u32_at(&packet, SEQUENCE), sequence.wrapping_add(ahead));
            // Over everything, a right checksum leaves nothing.
            prop_assert_eq!(checksum(&packet), 0);
        }

        #[test]
        fn never_panics(mut bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let mut acknowledged = Acknowledged::default();
            if let Some(first) = bytes.get(8..44) {
                acknowledged.open(first.try_into().unwrap());
            }
            acknowledged.hear(&bytes);
            acknowledged.mend(&mut bytes);
        }
    }
}
