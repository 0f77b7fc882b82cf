//! Addresses that no app reaches, whatever it is allowed: its neighbors on this machine and its network, the
//! services of whoever runs the machine, and the platform itself.
//!
//! For version 6 the world is what is handed out as global unicast (2000::/3), less what is special in it; for
//! version 4 it is everything but the registry of special addresses (RFC 6890 and what came after).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A range of version 4, as address and bits, and what it is.
type Range4 = (Ipv4Addr, u32, &'static str);
/// The same of version 6.
type Range6 = (Ipv6Addr, u32, &'static str);

const fn four(a: u8, b: u8, c: u8, d: u8) -> Ipv4Addr {
    Ipv4Addr::new(a, b, c, d)
}

const fn six(a: u16, b: u16, c: u16) -> Ipv6Addr {
    Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0)
}

const CLOSED_4: [Range4; 17] = [
    (four(0, 0, 0, 0), 8, "this network"),
    (four(10, 0, 0, 0), 8, "a private address"),
    (four(100, 64, 0, 0), 10, "a shared address"),
    (four(127, 0, 0, 0), 8, "a loopback address"),
    // Before what is around it: clouds answer here with the machine's own credentials.
    (four(169, 254, 169, 254), 32, "a metadata address"),
    (four(169, 254, 0, 0), 16, "a link-local address"),
    // The same of one cloud, at an address that is public everywhere else.
    (four(168, 63, 129, 16), 32, "a metadata address"),
    (four(172, 16, 0, 0), 12, "a private address"),
    (four(192, 0, 0, 0), 24, "a reserved address"),
    (four(192, 0, 2, 0), 24, "a documentation address"),
    (four(192, 88, 99, 0), 24, "a translated address"),
    (four(192, 168, 0, 0), 16, "a private address"),
    (four(198, 18, 0, 0), 15, "a reserved address"),
    (four(198, 51, 100, 0), 24, "a documentation address"),
    (four(203, 0, 113, 0), 24, "a documentation address"),
    (four(224, 0, 0, 0), 4, "a multicast address"),
    (four(240, 0, 0, 0), 4, "a reserved address"),
];

/// What is closed within, and what is said of what is outside of, global unicast.
const CLOSED_6: [Range6; 12] = [
    // Teredo, ORCHID and other protocols' own.
    (six(0x2001, 0, 0), 23, "a reserved address"),
    (six(0x2001, 0xdb8, 0), 32, "a documentation address"),
    // 6to4: any address of version 4 is in it, and nobody has served it for years.
    (six(0x2002, 0, 0), 16, "a translated address"),
    (six(0x3fff, 0, 0), 20, "a documentation address"),
    (six(0xfd5a, 0x1f00, 0), 30, "an address of the platform"),
    (
        Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),
        128,
        "a metadata address",
    ),
    (
        Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),
        128,
        "a metadata address",
    ),
    (six(0xfc00, 0, 0), 7, "a private address"),
    (six(0xfe80, 0, 0), 10, "a link-local address"),
    (six(0xfec0, 0, 0), 10, "a private address"),
    (six(0xff00, 0, 0), 8, "a multicast address"),
    (Ipv6Addr::LOCALHOST, 128, "a loopback address"),
];

/// The well-known prefix of translators (RFC 6052): the last four bytes are an address of version 4.
const NAT64: Range6 = (six(0x64, 0xff9b, 0), 96, "");
/// What is handed out to the world.
const GLOBAL_6: Range6 = (six(0x2000, 0, 0), 3, "");

/// What an address is, if no app reaches it.
#[must_use]
pub fn closed(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(address) => closed_4(address),
        IpAddr::V6(address) => match address.to_ipv4_mapped() {
            Some(mapped) => closed_4(mapped),
            None => closed_6(address),
        },
    }
}

fn closed_4(address: Ipv4Addr) -> Option<&'static str> {
    let within = |(network, bits, _): &&Range4| {
        (u32::from(address) ^ u32::from(*network)).leading_zeros() >= *bits
    };
    CLOSED_4.iter().find(within).map(|(_, _, what)| *what)
}

fn closed_6(address: Ipv6Addr) -> Option<&'static str> {
    let within = |(network, bits, _): &&Range6| {
        (u128::from(address) ^ u128::from(*network)).leading_zeros() >= *bits
    };
    if within(&&NAT64) {
        let [.., a, b, c, d] = address.octets();
        return closed_4(Ipv4Addr::new(a, b, c, d));
    }
    if let Some((_, _, what)) = CLOSED_6.iter().find(within) {
        return Some(what);
    }
    (!within(&&GLOBAL_6)).then_some("a reserved address")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_no_app_reaches() {
        for (text, what) in [
            ("127.0.0.1", "loopback"),
            ("127.255.255.255", "loopback"),
            ("0.0.0.0", "this network"),
            ("10.0.0.1", "private"),
            ("172.16.0.1", "private"),
            ("172.31.255.255", "private"),
            ("192.168.1.1", "private"),
            ("100.64.0.1", "shared"),
            ("100.100.100.200", "shared"),
            ("169.254.1.1", "link-local"),
            ("169.254.169.254", "metadata"),
            ("168.63.129.16", "metadata"),
            ("192.0.0.192", "reserved"),
            ("198.18.0.1", "reserved"),
            ("198.19.255.255", "reserved"),
            ("224.0.0.1", "multicast"),
            ("239.255.255.250", "multicast"),
            ("255.255.255.255", "reserved"),
            ("192.0.2.1", "documentation"),
            ("198.51.100.1", "documentation"),
            ("203.0.113.7", "documentation"),
            ("::", "reserved"),
            ("::1", "loopback"),
            ("::127.0.0.1", "reserved"),
            ("::ffff:127.0.0.1", "loopback"),
            ("::ffff:169.254.169.254", "metadata"),
            ("::ffff:0:10.0.0.1", "reserved"),
            ("64:ff9b::10.0.0.1", "private"),
            ("64:ff9b::a9fe:a9fe", "metadata"),
            ("64:ff9b:1::8.8.8.8", "reserved"),
            ("2002:7f00:1::", "translated"),
            ("2001::1", "reserved"),
            ("2001:db8::1", "documentation"),
            ("3fff::1", "documentation"),
            ("fd5a:1f00:1:1::1", "platform"),
            ("fd5a:1f02:1:2:3::1", "platform"),
            ("fd00:ec2::254", "metadata"),
            ("fd20:ce::254", "metadata"),
            ("fd12::1", "private"),
            ("fc00::1", "private"),
            ("fe80::1", "link-local"),
            ("fe80::a9fe:a9fe", "link-local"),
            ("fec0::1", "private"),
            ("ff02::1", "multicast"),
            ("100::1", "reserved"),
            ("5f00::1", "reserved"),
            ("4000::1", "reserved"),
            ("1fff::1", "reserved"),
        ] {
            let said = closed(text.parse().unwrap());
            assert!(
                said.is_some_and(|said| said.contains(what)),
                "{text}: {said:?}"
            );
        }
    }

    #[test]
    fn what_is_the_world() {
        for text in [
            "1.1.1.1",
            "8.8.8.8",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.0",
            "169.253.255.255",
            "169.255.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "192.167.255.255",
            "192.169.0.0",
            "198.17.255.255",
            "198.20.0.0",
            "223.255.255.255",
            "::ffff:8.8.8.8",
            "64:ff9b::8.8.8.8",
            "2001:4860:4860::8888",
            "2606:4700::1111",
            "2a00::1",
            "3ffe::1",
            "2001:200::1",
        ] {
            assert_eq!(closed(text.parse().unwrap()), None, "{text}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// No other spelling of an address of version 4 leads anywhere that it does not lead itself.
        #[test]
        fn however_it_is_wrapped(bits in any::<u32>()) {
            let address = Ipv4Addr::from(bits);
            let plain = closed(address.into());
            let translated = u128::from(NAT64.0) | u128::from(bits);
            prop_assert_eq!(closed(address.to_ipv6_mapped().into()), plain);
            prop_assert_eq!(closed(Ipv6Addr::from(translated).into()), plain);
            prop_assert!(closed(Ipv6Addr::from(u128::from(bits)).into()).is_some());
        }

        /// What the standard library knows to be closed is closed here.
        #[test]
        fn no_less_than_the_standard_library_knows(bits in any::<u32>(), high in any::<u128>()) {
            let (four, six) = (Ipv4Addr::from(bits), Ipv6Addr::from(high));
            let known = four.is_private() || four.is_loopback() || four.is_link_local() || four.is_multicast()
                || four.is_broadcast() || four.is_documentation() || four.is_unspecified();
            prop_assert!(!known || closed(four.into()).is_some());
            let known = six.is_unique_local() || six.is_unicast_link_local() || six.is_multicast() || six.is_loopback();
            prop_assert!(!known || closed(six.into()).is_some());
        }
    }
}
