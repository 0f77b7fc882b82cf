//! The answer to a connection whose session has ended: a reset (RFC 9293, section 3.5.2) that the
//! kernel takes for its peer's. TCP would otherwise repeat itself for minutes, to nobody.

use super::checksum::pseudo_header;
use super::frame::{
    ACK, ACKNOWLEDGMENT, ADDRESSES, CHECKSUM, DATA_OFFSET, DESTINATION, FIN, FLAGS, IPV6_LEN, RST,
    SEQUENCE, SOURCE, SYN, TCP_LEN_MIN, Tcp, VNET_LEN, u32_at, vnet,
};

const LEN: usize = IPV6_LEN + TCP_LEN_MIN;
const HOP_LIMIT: u8 = 64;
const TCP: u8 = 6;

/// The frame to write to the device; `None` if the packet is itself a reset.
pub(crate) fn reset(packet: &[u8], tcp: Tcp) -> Option<[u8; VNET_LEN + LEN]> {
    let flags = packet[FLAGS];
    if flags & RST != 0 {
        return None;
    }
    let mut frame = [0; VNET_LEN + LEN];
    frame[..VNET_LEN].copy_from_slice(&vnet(LEN, None));
    let answer = &mut frame[VNET_LEN..];
    answer[0] = 6 << 4;
    answer[5] = u8::try_from(TCP_LEN_MIN).unwrap_or(0);
    (answer[6], answer[7]) = (TCP, HOP_LIMIT);
    answer[SOURCE].copy_from_slice(&packet[DESTINATION]);
    answer[DESTINATION].copy_from_slice(&packet[SOURCE]);
    answer[IPV6_LEN..IPV6_LEN + 2].copy_from_slice(&packet[IPV6_LEN + 2..IPV6_LEN + 4]);
    answer[IPV6_LEN + 2..IPV6_LEN + 4].copy_from_slice(&packet[IPV6_LEN..IPV6_LEN + 2]);
    // It has to be just where the kernel expects the next byte.
    let sequence = if flags & ACK == 0 {
        0
    } else {
        u32_at(packet, ACKNOWLEDGMENT)
    };
    let taken = tcp.len - tcp.headers + (flags & (SYN | FIN)).count_ones() as usize;
    let taken = u32::try_from(taken).unwrap_or(0);
    let acknowledgment = u32_at(packet, SEQUENCE).wrapping_add(taken);
    answer[SEQUENCE..SEQUENCE + 4].copy_from_slice(&sequence.to_be_bytes());
    answer[ACKNOWLEDGMENT..ACKNOWLEDGMENT + 4].copy_from_slice(&acknowledgment.to_be_bytes());
    answer[DATA_OFFSET] = 5 << 4;
    answer[FLAGS] = RST | ACK;
    let sum = pseudo_header(&answer[ADDRESSES], TCP_LEN_MIN).fold();
    answer[CHECKSUM..CHECKSUM + 2].copy_from_slice(&sum);
    Some(frame)
}
