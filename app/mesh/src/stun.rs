//! STUN binding, and no more of it (RFC 8489): a request asks where it seems to come from, the answer
//! says so. Both sides, sans-IO; takes hostile bytes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Bytes of a transaction's name.
const TRANSACTION_LEN: usize = 12;
const HEADER_LEN: usize = 20;
const COOKIE: [u8; 4] = 0x2112_A442_u32.to_be_bytes();
const REQUEST: [u8; 2] = [0x00, 0x01];
const RESPONSE: [u8; 2] = [0x01, 0x01];
const ERROR: [u8; 2] = [0x01, 0x11];
const MAPPED_ADDRESS: u16 = 0x0001;
const ERROR_CODE: u16 = 0x0009;
const UNKNOWN_ATTRIBUTES: u16 = 0x000a;
const XOR_MAPPED_ADDRESS: u16 = 0x0020;
/// Attributes from here on may be ignored by who does not know them.
const OPTIONAL: u16 = 0x8000;
const FAMILY_V4: u8 = 1;
const FAMILY_V6: u8 = 2;
/// LIMIT: bytes of a message; a binding needs no more.
const MESSAGE_LEN_MAX: usize = 548;
/// LIMIT: unknown attributes that an error names.
const UNKNOWN_MAX: usize = 8;

/// Names a request, so that its answer is known.
pub(crate) type Transaction = [u8; TRANSACTION_LEN];

/// A binding request.
pub(crate) fn request(transaction: &Transaction) -> Vec<u8> {
    message(REQUEST, transaction, &[])
}

/// The server's answer to `bytes`, which came from `from`; `None` if they are no binding request.
pub(crate) fn answer(bytes: &[u8], from: SocketAddr) -> Option<Vec<u8>> {
    let (kind, transaction, attributes) = header(bytes)?;
    if kind != REQUEST {
        return None;
    }
    let unknown: Vec<u16> = Attributes(attributes)
        .map(|(kind, _)| kind)
        .filter(|kind| *kind < OPTIONAL)
        .take(UNKNOWN_MAX)
        .collect();
    if unknown.is_empty() {
        let value = xor_address(from, &transaction);
        return Some(message(
            RESPONSE,
            &transaction,
            &attribute(XOR_MAPPED_ADDRESS, &value),
        ));
    }
    // Section 6.3.1: what must be understood and is not, is refused by name.
    let mut body = attribute(ERROR_CODE, &[0, 0, 4, 20]);
    let names: Vec<u8> = unknown.into_iter().flat_map(u16::to_be_bytes).collect();
    body.extend(attribute(UNKNOWN_ATTRIBUTES, &names));
    Some(message(ERROR, &transaction, &body))
}

/// What an answer says: to which request, and where that seemed to come from; `None` if it is none.
pub(crate) fn mapped(bytes: &[u8]) -> Option<(Transaction, SocketAddr)> {
    let (kind, transaction, attributes) = header(bytes)?;
    if kind != RESPONSE {
        return None;
    }
    let mut plain = None;
    for (kind, value) in Attributes(attributes) {
        match kind {
            XOR_MAPPED_ADDRESS => {
                let address = read_address(value, Some(&transaction))?;
                return Some((transaction, address));
            }
            // Of servers from before RFC 5389.
            MAPPED_ADDRESS => plain = read_address(value, None),
            _ => {}
        }
    }
    plain.map(|address| (transaction, address))
}

/// Kind, transaction and attributes of a well-formed message.
fn header(bytes: &[u8]) -> Option<([u8; 2], Transaction, &[u8])> {
    let header = bytes.first_chunk::<HEADER_LEN>()?;
    let body = &bytes[HEADER_LEN..];
    let len = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let is_right = header[0] & 0xc0 == 0
        && header[4..8] == COOKIE
        && len == body.len()
        && len.is_multiple_of(4)
        && bytes.len() <= MESSAGE_LEN_MAX;
    if !is_right {
        return None;
    }
    let transaction = header[8..].try_into().ok()?;
    Some(([header[0], header[1]], transaction, body))
}

/// Kinds and values, until the end or what is none.
struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (head, rest) = self.0.split_first_chunk::<4>()?;
        let kind = u16::from_be_bytes([head[0], head[1]]);
        let len = usize::from(u16::from_be_bytes([head[2], head[3]]));
        let value = rest.get(..len)?;
        self.0 = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

fn message(kind: [u8; 2], transaction: &Transaction, body: &[u8]) -> Vec<u8> {
    let len = u16::try_from(body.len()).expect("our bodies are short");
    let mut message = Vec::with_capacity(HEADER_LEN + body.len());
    message.extend(kind);
    message.extend(len.to_be_bytes());
    message.extend(COOKIE);
    message.extend(transaction);
    message.extend(body);
    message
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let len = u16::try_from(value.len()).expect("our attributes are short");
    let mut attribute = Vec::with_capacity(4 + value.len());
    attribute.extend(kind.to_be_bytes());
    attribute.extend(len.to_be_bytes());
    attribute.extend(value);
    attribute.resize(attribute.len().next_multiple_of(4), 0);
    attribute
}

/// What an address is combined with: so that no NAT that looks for addresses in data changes it.
fn mask(transaction: &Transaction) -> [u8; 16] {
    let mut mask = [0; 16];
    mask[..4].copy_from_slice(&COOKIE);
    mask[4..].copy_from_slice(transaction);
    mask
}

fn xor_address(address: SocketAddr, transaction: &Transaction) -> Vec<u8> {
    let mask = mask(transaction);
    let (family, octets) = match address.ip().to_canonical() {
        IpAddr::V4(ip) => (FAMILY_V4, ip.octets().to_vec()),
        IpAddr::V6(ip) => (FAMILY_V6, ip.octets().to_vec()),
    };
    let port = address.port().to_be_bytes();
    let mut value = vec![0, family, port[0] ^ mask[0], port[1] ^ mask[1]];
    value.extend(octets.iter().zip(mask).map(|(octet, mask)| octet ^ mask));
    value
}

fn read_address(value: &[u8], transaction: Option<&Transaction>) -> Option<SocketAddr> {
    let mask = transaction.map_or([0; 16], mask);
    let (head, octets) = value.split_first_chunk::<4>()?;
    let port = u16::from_be_bytes([head[2] ^ mask[0], head[3] ^ mask[1]]);
    let clear: Vec<u8> = octets
        .iter()
        .zip(mask)
        .map(|(octet, mask)| octet ^ mask)
        .collect();
    let ip = match (head[1], octets.len()) {
        (FAMILY_V4, 4) => IpAddr::from(Ipv4Addr::from(*clear.first_chunk::<4>()?)),
        (FAMILY_V6, 16) => IpAddr::from(Ipv6Addr::from(*clear.first_chunk::<16>()?)),
        _ => return None,
    };
    Some(SocketAddr::new(ip.to_canonical(), port))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 5769, section 2.2: the header and the address of its sample response.
    #[test]
    fn published_vector() {
        let transaction = [
            0xb7, 0xe7, 0xa7, 0x01, 0xbc, 0x34, 0xd6, 0x86, 0xfa, 0x87, 0xdf, 0xae,
        ];
        let value = [0x00, 0x01, 0xa1, 0x47, 0xe1, 0x12, 0xa6, 0x43];
        let bytes = message(
            RESPONSE,
            &transaction,
            &attribute(XOR_MAPPED_ADDRESS, &value),
        );
        let address = "192.0.2.1:32853".parse().unwrap();
        assert_eq!(mapped(&bytes), Some((transaction, address)));
        assert_eq!(xor_address(address, &transaction), value);
        // Section 2.3, the same for IPv6.
        let value = [
            0x00, 0x02, 0xa1, 0x47, 0x01, 0x13, 0xa9, 0xfa, 0xa5, 0xd3, 0xf1, 0x79, 0xbc, 0x25,
            0xf4, 0xb5, 0xbe, 0xd2, 0xb9, 0xd9,
        ];
        let address = "[2001:db8:1234:5678:11:2233:4455:6677]:32853"
            .parse()
            .unwrap();
        assert_eq!(xor_address(address, &transaction), value);
        assert_eq!(read_address(&value, Some(&transaction)), Some(address));
    }

    #[test]
    fn what_must_be_understood_is_refused_by_name() {
        let from = SocketAddr::from(([192, 0, 2, 1], 7));
        let body = attribute(0x0006, b"user");
        let refusal = answer(&message(REQUEST, &[1; 12], &body), from).unwrap();
        let (kind, transaction, attributes) = header(&refusal).unwrap();
        assert_eq!((kind, transaction), (ERROR, [1; 12]));
        let all: Vec<_> = Attributes(attributes).collect();
        assert_eq!(all[0], (ERROR_CODE, &[0, 0, 4, 20][..]));
        assert_eq!(all[1], (UNKNOWN_ATTRIBUTES, &[0, 6][..]));
        assert_eq!(mapped(&refusal), None);
        // What may be ignored is.
        let body = attribute(0x8022, b"software");
        let response = answer(&message(REQUEST, &[1; 12], &body), from).unwrap();
        assert_eq!(mapped(&response), Some(([1; 12], from)));
    }

    #[test]
    fn no_wireguard_message_is_taken_for_one() {
        for kind in 1..=4u8 {
            let mut message = vec![0; 148];
            message[0] = kind;
            // Not even one whose sender chose the cookie as its index.
            message[4..8].copy_from_slice(&COOKIE);
            assert!(mapped(&message).is_none() && answer(&message, ([0; 4], 0).into()).is_none());
        }
    }

    proptest! {
        #[test]
        fn the_server_tells_where_a_request_comes_from(
            transaction in any::<Transaction>(),
            ip in prop_oneof![any::<[u8; 4]>().prop_map(IpAddr::from), any::<[u8; 16]>().prop_map(IpAddr::from)],
            port in any::<u16>(),
        ) {
            let from = SocketAddr::new(ip.to_canonical(), port);
            let request = request(&transaction);
            prop_assert!(mapped(&request).is_none());
            let response = answer(&request, from).unwrap();
            prop_assert_eq!(mapped(&response), Some((transaction, from)));
            prop_assert!(answer(&response, from).is_none(), "servers do not answer each other");
        }

        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200), genuine in any::<bool>()) {
            let mut bytes = bytes;
            if genuine && bytes.len() >= HEADER_LEN {
                bytes.truncate(HEADER_LEN + (bytes.len() - HEADER_LEN) / 4 * 4);
                let len = u16::try_from(bytes.len() - HEADER_LEN).unwrap();
                bytes[0] &= 1;
                bytes[1] = 1;
                bytes[2..4].copy_from_slice(&len.to_be_bytes());
                bytes[4..8].copy_from_slice(&COOKIE);
            }
            let _ = mapped(&bytes);
            let _ = answer(&bytes, SocketAddr::from(([192, 0, 2, 1], 1)));
        }

        #[test]
        fn perturbed_never_panics(at in 0usize..32, to in any::<u8>(), len in 0usize..=32) {
            let from = SocketAddr::from(([192, 0, 2, 1], 1));
            let mut response = answer(&request(&[5; 12]), from).unwrap();
            response[at] = to;
            let _ = mapped(&response[..len]);
        }
    }
}
