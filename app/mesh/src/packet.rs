//! The little that is read from an inner packet before the stack gets it: whose it says it is, for
//! whom, and whether it opens a TCP connection. Takes hostile bytes.

use std::net::Ipv6Addr;
use std::ops::Range;

/// Where the source address is.
pub(crate) const SOURCE: Range<usize> = 8..24;
const IPV6_HEADER_LEN: usize = 40;
const TCP_HEADER_LEN: usize = 20;
const NEXT_HEADER: usize = 6;
const TCP: u8 = 6;
const TCP_FLAGS: usize = 13;
const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// What the headers of an inner packet say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Inner {
    pub(crate) source: Ipv6Addr,
    pub(crate) destination: Ipv6Addr,
    /// TCP is right behind the header.
    pub(crate) is_tcp: bool,
    /// Bytes of it, without what follows.
    pub(crate) len: usize,
    /// Set for a first SYN.
    pub(crate) opening: Option<Ports>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ports {
    pub(crate) source: u16,
    pub(crate) destination: u16,
}

/// Reads the headers; `None` if these bytes are not an IPv6 packet. Bytes after it are WireGuard's
/// padding.
pub(crate) fn parse(bytes: &[u8]) -> Option<Inner> {
    let header = bytes.first_chunk::<IPV6_HEADER_LEN>()?;
    if header[0] >> 4 != 6 {
        return None;
    }
    let payload_len = usize::from(u16::from_be_bytes([header[4], header[5]]));
    let payload = bytes.get(IPV6_HEADER_LEN..IPV6_HEADER_LEN + payload_len)?;
    let source: [u8; 16] = header[SOURCE].try_into().ok()?;
    let destination: [u8; 16] = header[24..40].try_into().ok()?;
    let is_tcp = header[NEXT_HEADER] == TCP;
    let opening = if is_tcp { opening(payload) } else { None };
    Some(Inner {
        source: source.into(),
        destination: destination.into(),
        is_tcp,
        len: IPV6_HEADER_LEN + payload_len,
        opening,
    })
}

/// Whether whoever gets one of our packets answers it: everything but an acknowledgment alone, of which
/// nothing comes back (RFC 9293, section 3.10.7.4).
pub(crate) fn wants_answer(packet: &[u8]) -> bool {
    let Some(header) = packet.first_chunk::<IPV6_HEADER_LEN>() else {
        return true;
    };
    let payload_len = usize::from(u16::from_be_bytes([header[4], header[5]]));
    let segment = &packet[IPV6_HEADER_LEN..];
    match segment.first_chunk::<TCP_HEADER_LEN>() {
        Some(tcp) if header[NEXT_HEADER] == TCP => {
            let header_len = usize::from(tcp[12] >> 4) * 4;
            payload_len > header_len || tcp[TCP_FLAGS] & (SYN | FIN) != 0
        }
        _ => true,
    }
}

fn opening(segment: &[u8]) -> Option<Ports> {
    let header = segment.first_chunk::<TCP_HEADER_LEN>()?;
    (header[TCP_FLAGS] & (SYN | ACK | RST) == SYN).then(|| Ports {
        source: u16::from_be_bytes([header[0], header[1]]),
        destination: u16::from_be_bytes([header[2], header[3]]),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn syn() -> Vec<u8> {
        let mut packet = vec![0; 60];
        packet[0] = 0x60;
        packet[5] = 20;
        packet[6] = TCP;
        packet[8..24].copy_from_slice(&Ipv6Addr::new(0xfd5a, 1, 0, 0, 0, 0, 0, 1).octets());
        packet[24..40].copy_from_slice(&Ipv6Addr::new(0xfd5a, 2, 0, 0, 0, 0, 0, 1).octets());
        packet[40..44].copy_from_slice(&[0xc0, 0x01, 0x22, 0x1a]);
        packet[53] = SYN;
        packet
    }

    #[test]
    fn reads_a_syn() {
        let inner = parse(&syn()).unwrap();
        assert_eq!(inner.source, "fd5a:1::1".parse::<Ipv6Addr>().unwrap());
        assert_eq!(inner.destination, "fd5a:2::1".parse::<Ipv6Addr>().unwrap());
        assert_eq!(
            inner.opening,
            Some(Ports {
                source: 0xc001,
                destination: 8730
            })
        );
        let mut padded = syn();
        padded.extend([0; 12]);
        assert_eq!(parse(&padded), Some(inner));
    }

    #[test]
    fn an_acknowledgment_alone_is_not_answered() {
        let mut packet = syn();
        packet[52] = 5 << 4;
        assert!(wants_answer(&packet), "a SYN");
        packet[53] = ACK;
        assert!(!wants_answer(&packet));
        packet.extend([0; 8]);
        assert!(!wants_answer(&packet), "padding");
        packet[5] += 1;
        assert!(wants_answer(&packet), "a byte");
        packet[5] -= 1;
        packet[53] = ACK | FIN;
        assert!(wants_answer(&packet));
        packet[NEXT_HEADER] = 58;
        assert!(wants_answer(&packet), "no TCP");
    }

    #[test]
    fn refuses_what_is_not_whole() {
        for len in 0..60 {
            assert_eq!(parse(&syn()[..len]), None, "{len}");
        }
        let mut packet = syn();
        packet[0] = 0x45;
        assert_eq!(parse(&packet), None);
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = (parse(&bytes), wants_answer(&bytes));
        }

        #[test]
        fn perturbed_never_panics(at in 0usize..60, to in any::<u8>(), len in 0usize..=60) {
            let mut packet = syn();
            packet[at] = to;
            let _ = parse(&packet[..len]);
        }
    }
}
