//! In: segments of one flow that follow each other become one packet that stands for them all, as the
//! kernel's own receive offload makes it. Every packet was authenticated and its outline read before.

use std::ops::DerefMut;

use super::checksum::pseudo_header;
use super::frame::{
    ACK, ADDRESSES, CHECKSUM, FLAGS, IPV6_LEN, PSH, SEQUENCE, Tcp, VNET_LEN, u32_at, vnet,
};

/// LIMIT: packets of one run.
pub(crate) const RUN_MAX: usize = 64;
/// LIMIT: bytes of what one packet can stand for: its length is a 16-bit field.
const PAYLOAD_MAX: usize = u16::MAX as usize;

/// The packets that are written as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    /// How many.
    pub(crate) packets: usize,
    /// Bytes of the headers, which only the first one shows.
    pub(crate) headers: usize,
    /// What goes in front.
    pub(crate) vnet: [u8; VNET_LEN],
}

/// Takes the longest run from the beginning, and makes the first packet's header speak for all of it.
/// `None` if the first packet is not TCP. Packets end where their headers say.
pub(crate) fn run<P: DerefMut<Target = [u8]>>(packets: &mut [P]) -> Option<Run> {
    let (first, rest) = packets.split_first_mut()?;
    let outline = Tcp::of(first)?;
    let (headers, segment) = (outline.headers, outline.len - outline.headers);
    let (mut n, mut payload, mut pushed) = (1, segment, first[FLAGS] & PSH != 0);
    if segment > 0 && first[FLAGS] & !PSH == ACK {
        for packet in rest.iter().take(RUN_MAX - 1) {
            let Some(next) = Tcp::of(packet).filter(|next| next.headers == headers) else {
                break;
            };
            let len = next.len - headers;
            let follows = !pushed
                && payload == n * segment
                && (1..=segment).contains(&len)
                && headers - IPV6_LEN + payload + len <= PAYLOAD_MAX
                && is_next(first, packet, headers, payload);
            if !follows {
                break;
            }
            payload += len;
            n += 1;
            pushed = packet[FLAGS] & PSH != 0;
        }
    }
    let tcp_len = headers - IPV6_LEN + payload;
    let payload_len = u16::try_from(tcp_len).ok()?;
    first[4..6].copy_from_slice(&payload_len.to_be_bytes());
    if pushed {
        first[FLAGS] |= PSH;
    }
    // What the kernel expects of a checksum that is still to be completed.
    let sum = pseudo_header(&first[ADDRESSES], tcp_len).fold();
    first[CHECKSUM..CHECKSUM + 2].copy_from_slice(&sum);
    Some(Run {
        packets: n,
        headers,
        vnet: vnet(headers, (n > 1).then_some(segment)),
    })
}

/// Whether `packet` continues `first` after `payload` bytes and differs in nothing that the kernel
/// would have to be told of: not in its flow, acknowledgment, window or options.
fn is_next(first: &[u8], packet: &[u8], headers: usize, payload: usize) -> bool {
    const AFTER_SEQUENCE: usize = SEQUENCE + 4;
    const AFTER_CHECKSUM: usize = CHECKSUM + 2;
    let ahead = u32_at(packet, SEQUENCE).wrapping_sub(u32_at(first, SEQUENCE));
    usize::try_from(ahead).is_ok_and(|ahead| ahead == payload)
        && first[..4] == packet[..4]
        && first[6..SEQUENCE] == packet[6..SEQUENCE]
        && first[AFTER_SEQUENCE..FLAGS] == packet[AFTER_SEQUENCE..FLAGS]
        && (first[FLAGS] ^ packet[FLAGS]) & !PSH == 0
        && first[FLAGS + 1..CHECKSUM] == packet[FLAGS + 1..CHECKSUM]
        && first[AFTER_CHECKSUM..headers] == packet[AFTER_CHECKSUM..headers]
}

#[cfg(test)]
mod tests;
