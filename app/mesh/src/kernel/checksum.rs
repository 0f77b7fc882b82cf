//! The Internet checksum (RFC 1071) of TCP over IPv6 (RFC 8200, section 8.1).

const TCP: u32 = 6;

/// A sum under way: of native-endian words, which is right for one's complement as long as the
/// result is written the same way.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sum(u64);

impl Sum {
    /// Adds bytes; only the last piece may have an odd length.
    pub(crate) fn add(mut self, bytes: &[u8]) -> Self {
        let (words, rest) = bytes.as_chunks::<4>();
        for word in words {
            self.0 += u64::from(u32::from_ne_bytes(*word));
        }
        let (pairs, odd) = rest.as_chunks::<2>();
        for pair in pairs {
            self.0 += u64::from(u16::from_ne_bytes(*pair));
        }
        if let [last] = odd {
            self.0 += u64::from(u16::from_ne_bytes([*last, 0]));
        }
        self
    }

    /// The sum as it is written, not complemented.
    pub(crate) fn fold(self) -> [u8; 2] {
        let mut sum = self.0;
        while sum > 0xffff {
            sum = (sum >> 16) + (sum & 0xffff);
        }
        u16::try_from(sum).unwrap_or(u16::MAX).to_ne_bytes()
    }

    /// The checksum as it is written.
    pub(crate) fn finish(self) -> [u8; 2] {
        self.fold().map(|byte| !byte)
    }
}

/// The sum of the pseudo-header; `addresses` are source and destination as in the packet.
pub(crate) fn pseudo_header(addresses: &[u8], tcp_len: usize) -> Sum {
    let len = u32::try_from(tcp_len).unwrap_or(0);
    Sum::default()
        .add(addresses)
        .add(&len.to_be_bytes())
        .add(&TCP.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 1071, section 3.
    #[test]
    fn the_example_of_the_standard() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(Sum::default().add(&bytes).fold(), [0xdd, 0xf2]);
        assert_eq!(Sum::default().add(&bytes).finish(), [0x22, 0x0d]);
    }

    proptest! {
        #[test]
        fn as_word_by_word(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut sum: u32 = 0;
            for pair in bytes.chunks(2) {
                sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
            }
            while sum > 0xffff {
                sum = (sum & 0xffff) + (sum >> 16);
            }
            let folded = u16::from_be_bytes(Sum::default().add(&bytes).fold());
            prop_assert_eq!(u32::from(folded), sum);
        }
    }
}
