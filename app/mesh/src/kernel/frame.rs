//! What passes through the TUN device: a packet, behind the header that says what the kernel leaves
//! to us or may leave undone (`struct virtio_net_hdr`, virtio 1.2 section 5.1.6, native byte order).

use std::net::Ipv6Addr;
use std::ops::Range;

/// The header in front of every packet.
pub(crate) const VNET_LEN: usize = 10;
pub(crate) const IPV6_LEN: usize = 40;
pub(crate) const ADDRESSES: Range<usize> = 8..40;
pub(crate) const SOURCE: Range<usize> = 8..24;
pub(crate) const DESTINATION: Range<usize> = 24..40;
/// Offsets from the beginning of the IPv6 header.
pub(crate) const SEQUENCE: usize = IPV6_LEN + 4;
pub(crate) const ACKNOWLEDGMENT: usize = IPV6_LEN + 8;
pub(crate) const DATA_OFFSET: usize = IPV6_LEN + 12;
pub(crate) const FLAGS: usize = IPV6_LEN + 13;
pub(crate) const CHECKSUM: usize = IPV6_LEN + 16;
pub(crate) const TCP_LEN_MIN: usize = 20;

pub(crate) const FIN: u8 = 0x01;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
pub(crate) const PSH: u8 = 0x08;
pub(crate) const ACK: u8 = 0x10;
pub(crate) const CWR: u8 = 0x80;

const NEEDS_CHECKSUM: u8 = 1;
const SEGMENTS_TCPV6: u8 = 4;
const SEGMENTS_ECN: u8 = 0x80;
const NEXT_HEADER: usize = 6;
const TCP: u8 = 6;
/// From the beginning of the TCP header.
const CHECKSUM_IN_TCP: u16 = 16;

/// A TCP packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tcp {
    /// Bytes of the IPv6 and TCP headers together.
    pub(crate) headers: usize,
    /// Bytes of the packet, without what follows it.
    pub(crate) len: usize,
}

impl Tcp {
    /// The outline of an IPv6 packet with TCP right behind the header; `None` for all else.
    pub(crate) fn of(packet: &[u8]) -> Option<Self> {
        let header = packet.get(..IPV6_LEN + TCP_LEN_MIN)?;
        if header[0] >> 4 != 6 || header[NEXT_HEADER] != TCP {
            return None;
        }
        let len = IPV6_LEN + usize::from(u16::from_be_bytes([header[4], header[5]]));
        let headers = IPV6_LEN + usize::from(header[DATA_OFFSET] >> 4) * 4;
        let whole = headers >= IPV6_LEN + TCP_LEN_MIN && headers <= len && len <= packet.len();
        whole.then_some(Self { headers, len })
    }
}

pub(crate) fn address(packet: &[u8], at: Range<usize>) -> Option<Ipv6Addr> {
    let octets: [u8; 16] = packet.get(at)?.try_into().ok()?;
    Some(octets.into())
}

pub(crate) fn u32_at(packet: &[u8], at: usize) -> u32 {
    packet
        .get(at..at + 4)
        .and_then(|bytes| bytes.try_into().ok())
        .map_or(0, u32::from_be_bytes)
}

/// What the header of a packet from the kernel asks for: cutting into segments with this payload.
/// `None` if we never said that we could do it. That checksums are missing is not read: we compute
/// all of them.
pub(crate) fn segment_len(vnet: &[u8; VNET_LEN]) -> Option<Option<usize>> {
    let size = usize::from(u16::from_ne_bytes([vnet[4], vnet[5]]));
    match vnet[1] & !SEGMENTS_ECN {
        0 => Some(None),
        SEGMENTS_TCPV6 if size > 0 => Some(Some(size)),
        _ => None,
    }
}

/// The header for a packet that the kernel may take for verified; with `segment`, for one that stands
/// for many of this payload.
pub(crate) fn vnet(headers: usize, segment: Option<usize>) -> [u8; VNET_LEN] {
    let u16_of = |n: usize| u16::try_from(n).unwrap_or(0).to_ne_bytes();
    let mut vnet = [0; VNET_LEN];
    vnet[0] = NEEDS_CHECKSUM;
    if let Some(segment) = segment {
        vnet[1] = SEGMENTS_TCPV6;
        vnet[2..4].copy_from_slice(&u16_of(headers));
        vnet[4..6].copy_from_slice(&u16_of(segment));
    }
    vnet[6..8].copy_from_slice(&u16_of(IPV6_LEN));
    vnet[8..10].copy_from_slice(&CHECKSUM_IN_TCP.to_ne_bytes());
    vnet
}
