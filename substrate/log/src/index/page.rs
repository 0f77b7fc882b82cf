//! A page of a run file: 4 KiB with its own checksum, which also binds the page to its place.
//!
//! ```text
//!     0 ├ crc32c of the page's number and of bytes 4..4096, u32
//!     4 ├ kind, u8
//!     5 ├ level, u8                  0 is a leaf; see tree.rs
//!     6 ├ count of entries, u16
//!     8 ├ entries, then 0
//!  4096 ┘
//! ```
//!
//! All numbers of a run file are big-endian: keys compare as bytes.

use crate::fields::size;

pub(crate) const PAGE_LEN: usize = 4096;
const PAGE_HEADER_LEN: usize = 8;
/// Bytes of a page that hold entries.
pub(crate) const BODY_LEN: usize = PAGE_LEN - PAGE_HEADER_LEN;

/// What a page is part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Header = 1,
    Filter = 2,
    Ids = 3,
    Keys = 4,
    Spans = 5,
    Extents = 6,
}

/// A page that agrees with its checksum.
#[derive(Debug)]
pub(crate) struct Page(Box<[u8; PAGE_LEN]>);

impl Page {
    /// Makes page `number` of a run file.
    pub(crate) fn seal(number: u32, kind: Kind, level: u8, count: u16, body: &[u8]) -> Self {
        let mut bytes = Box::new([0; PAGE_LEN]);
        bytes[4] = kind as u8;
        bytes[5] = level;
        bytes[6..8].copy_from_slice(&count.to_be_bytes());
        bytes[PAGE_HEADER_LEN..PAGE_HEADER_LEN + body.len()].copy_from_slice(body);
        let sum = checksum(number, &bytes);
        bytes[..4].copy_from_slice(&sum.to_be_bytes());
        Self(bytes)
    }

    /// Takes bytes from a file; `None` if they are not what was written as page `number`.
    pub(crate) fn check(bytes: Box<[u8; PAGE_LEN]>, number: u32) -> Option<Self> {
        let sum = checksum(number, &bytes).to_be_bytes();
        (bytes[..4] == sum).then_some(Self(bytes))
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &*self.0
    }

    pub(crate) fn is(&self, kind: Kind) -> bool {
        self.0[4] == kind as u8
    }

    pub(crate) fn level(&self) -> u8 {
        self.0[5]
    }

    pub(crate) fn body(&self) -> &[u8] {
        &self.0[PAGE_HEADER_LEN..]
    }

    /// Its entries, each `width` bytes; `None` if so many do not fit.
    pub(crate) fn entries(&self, width: usize) -> Option<&[u8]> {
        let count = usize::from(u16::from_be_bytes([self.0[6], self.0[7]]));
        self.body().get(..count.checked_mul(width)?)
    }
}

fn checksum(number: u32, bytes: &[u8; PAGE_LEN]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&number.to_be_bytes()), &bytes[4..])
}

/// Where page `number` starts in its file.
pub(crate) fn offset(number: u32) -> u64 {
    (size(number) * PAGE_LEN) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flip_and_another_place_are_seen() {
        let page = Page::seal(7, Kind::Keys, 2, 3, b"some entries");
        let bytes: [u8; PAGE_LEN] = page.bytes().try_into().unwrap();
        let read = Page::check(Box::new(bytes), 7).unwrap();
        assert!(read.is(Kind::Keys) && !read.is(Kind::Ids) && read.level() == 2);
        assert_eq!(read.entries(4).unwrap(), b"some entries");
        assert!(read.entries(2000).is_none());
        assert!(Page::check(Box::new(bytes), 8).is_none());
        for at in 0..PAGE_LEN {
            let mut flipped = bytes;
            flipped[at] ^= 1 << (at % 8);
            assert!(Page::check(Box::new(flipped), 7).is_none(), "byte {at}");
        }
    }
}
