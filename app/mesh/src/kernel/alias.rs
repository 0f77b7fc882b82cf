//! The addresses under which the kernel's stack knows the peers.
//!
//! One stack serves all peers, and two of them may speak from one address: the old and the new
//! instance of an app. So each session gives every address of its peer an alias that was never used
//! before and never will be again, and a connection is between our address and an alias: it cannot
//! change its key (invariant 4), and the way out of the namespace is read off the packet.

use std::net::Ipv6Addr;

/// Aliases are `fd5a:ffff::/32`, which no app, instance or host is in (DESIGN section 4). They never
/// leave this process and its namespace.
const PREFIX: [u16; 2] = [0xfd5a, 0xffff];
pub(crate) const PREFIX_LEN: u8 = 32;

/// Names one address of the peer of one session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Alias {
    /// The session's number; 48 bits of it.
    pub(crate) link: u64,
    /// Which of the peer's addresses.
    pub(crate) name: u16,
}

impl Alias {
    /// The route to all of them.
    pub(crate) const fn network() -> Ipv6Addr {
        Ipv6Addr::new(PREFIX[0], PREFIX[1], 0, 0, 0, 0, 0, 0)
    }

    pub(crate) const fn address(self) -> Ipv6Addr {
        let [_, _, a, b, c, d, e, f] = self.link.to_be_bytes();
        let high = u16::from_be_bytes([a, b]);
        let middle = u16::from_be_bytes([c, d]);
        let low = u16::from_be_bytes([e, f]);
        Ipv6Addr::new(PREFIX[0], PREFIX[1], high, middle, low, self.name, 0, 1)
    }

    pub(crate) const fn of(address: Ipv6Addr) -> Option<Self> {
        let [first, second, high, middle, low, name, 0, 1] = address.segments() else {
            return None;
        };
        if first != PREFIX[0] || second != PREFIX[1] {
            return None;
        }
        let link = (high as u64) << 32 | (middle as u64) << 16 | low as u64;
        Some(Self { link, name })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn round_trip(link in 0u64..1 << 48, name in any::<u16>()) {
            let alias = Alias { link, name };
            prop_assert_eq!(Alias::of(alias.address()), Some(alias));
        }

        #[test]
        fn only_aliases_are(bits in any::<u128>()) {
            let address = Ipv6Addr::from(bits);
            if let Some(alias) = Alias::of(address) {
                prop_assert_eq!(alias.address(), address);
            }
        }
    }

    #[test]
    fn no_address_of_the_platform_is_one() {
        for other in [
            "fd5a:1f02:1:2:3::1",
            "fd5a:1f00:1:2::1",
            "fd5a:ffff::",
            "::1",
            "ff02::2",
        ] {
            assert_eq!(Alias::of(other.parse().unwrap()), None, "{other}");
        }
    }
}
