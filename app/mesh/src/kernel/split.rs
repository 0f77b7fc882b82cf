//! Out: one packet of the kernel's stack, often standing for many, becomes segments with headers and
//! checksums of their own. The packet comes from our kernel, but is read as if it were hostile.

use std::net::Ipv6Addr;

use bytes::{BufMut as _, BytesMut};

use super::checksum::pseudo_header;
use super::frame::{
    ADDRESSES, CHECKSUM, CWR, DESTINATION, FIN, FLAGS, IPV6_LEN, PSH, SEQUENCE, Tcp, u32_at,
};
use crate::config::MTU;

/// LIMIT: segments of one packet: what fits into one train of UDP datagrams, which the device's
/// `gso_max_segs` keeps the kernel to.
pub(crate) const SEGMENTS_MAX: usize = 44;
/// Segments are padded to a multiple of this, as WireGuard has it, to hide their length a little.
const PADDING: usize = 16;
/// Room that [`split`] needs at most.
pub(crate) const ROOM: usize = SEGMENTS_MAX * (MTU as usize + PADDING);

/// Why a packet is not split.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SplitError {
    /// A segment would not fit into the mesh's packets.
    TooLong,
    /// There would be more than [`SEGMENTS_MAX`].
    TooMany,
}

/// Writes the segments of `packet`, addressed to `to`, behind each other into `room`, each padded, and
/// hands them to `take` one by one. `room` must be empty.
pub(crate) fn split(
    packet: &[u8],
    tcp: Tcp,
    segment: Option<usize>,
    to: Ipv6Addr,
    room: &mut BytesMut,
    mut take: impl FnMut(BytesMut),
) -> Result<(), SplitError> {
    let (headers, payload) = packet[..tcp.len].split_at(tcp.headers);
    let segment = segment.unwrap_or(payload.len()).max(1);
    if headers.len() + segment.min(payload.len()) > usize::from(MTU) {
        return Err(SplitError::TooLong);
    }
    // A packet without payload is one segment, too.
    let n = payload.len().div_ceil(segment).max(1);
    if n > SEGMENTS_MAX {
        return Err(SplitError::TooMany);
    }
    let sequence = u32_at(headers, SEQUENCE);
    for i in 0..n {
        let begin = i * segment;
        let piece = &payload[begin..payload.len().min(begin + segment)];
        room.put_slice(headers);
        room.put_slice(piece);
        let mut flags = headers[FLAGS];
        if i > 0 {
            flags &= !CWR;
        }
        if i + 1 < n {
            flags &= !(FIN | PSH);
        }
        let ahead = u32::try_from(begin).unwrap_or(0);
        finish(room, to, sequence.wrapping_add(ahead), flags);
        let len = room.len();
        let padded = len.next_multiple_of(PADDING).min(usize::from(MTU));
        room.put_bytes(0, padded.saturating_sub(len));
        take(room.split());
    }
    Ok(())
}

/// Sets what differs from the packet that the segment is of, and the checksum.
fn finish(segment: &mut [u8], to: Ipv6Addr, sequence: u32, flags: u8) {
    let tcp_len = segment.len() - IPV6_LEN;
    let payload_len = u16::try_from(tcp_len).unwrap_or(0);
    segment[4..6].copy_from_slice(&payload_len.to_be_bytes());
    segment[DESTINATION].copy_from_slice(&to.octets());
    segment[SEQUENCE..SEQUENCE + 4].copy_from_slice(&sequence.to_be_bytes());
    segment[FLAGS] = flags;
    segment[CHECKSUM..CHECKSUM + 2].fill(0);
    let sum = pseudo_header(&segment[ADDRESSES], tcp_len).add(&segment[IPV6_LEN..]);
    segment[CHECKSUM..CHECKSUM + 2].copy_from_slice(&sum.finish());
}
