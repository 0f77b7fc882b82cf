//! A Bloom filter in pages: says "not here" without a look at the entries. The page of a hash is
//! given by its upper bits, so that sorted hashes fill the pages one after the other and no more than
//! one is in memory; within it one line of 64 bytes, so that a question costs one miss.

use super::page::Kind;
use super::pages::{PageSink, PageSource, RunError};

/// Bits per entry: one question in a hundred is answered with a needless look.
const BITS: u64 = 12;
/// Bits set per entry, all in one line.
const PROBES: u32 = 6;
const LINE_LEN: usize = 64;
/// Lines of a page: 63 of 64 bytes, and the rest is unused.
const LINES: usize = 63;
const PAGE_BITS: u64 = (LINES * LINE_LEN * 8) as u64;

/// Pages from `start` on, which come one after the other. None, and everything may be here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Region {
    pub(crate) start: u32,
    pub(crate) pages: u32,
}

impl Region {
    /// Room for this many hashes; at most as many pages as a run can have, and then with more
    /// needless looks.
    pub(crate) fn for_hashes(start: u32, hashes: u64) -> Self {
        let pages = hashes.saturating_mul(BITS).div_ceil(PAGE_BITS);
        let pages = u32::try_from(pages).unwrap_or(u32::MAX / 8);
        Self { start, pages }
    }

    /// Which page of the region; grows with the hash.
    fn page_of(self, hash: u128) -> u32 {
        let upper = (hash >> 96) * u128::from(self.pages);
        u32::try_from(upper >> 32).expect("INVARIANT: a product with a 32-bit fraction, shifted")
    }

    /// Whether an entry of this hash may be in the run.
    pub(crate) fn may_hold(self, hash: u128, source: &impl PageSource) -> Result<bool, RunError> {
        if self.pages == 0 {
            return Ok(true);
        }
        let number = self.start + self.page_of(hash);
        let page = source.page(number)?;
        if !page.is(Kind::Filter) {
            return Err(source.wrong(number, "a page of another kind"));
        }
        let body = page.body();
        Ok(bits(hash).all(|(byte, bit)| body[byte] & bit != 0))
    }
}

/// The bits of a hash: byte and mask.
fn bits(hash: u128) -> impl Iterator<Item = (usize, u8)> {
    let bytes = hash.to_le_bytes();
    let low = u64::from_le_bytes(std::array::from_fn(|n| bytes[n]));
    let mixed = low.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let line = (usize::from(bytes[8]) << 8 | usize::from(bytes[9])) % LINES;
    (0..PROBES).map(move |probe| {
        let [lower, upper, ..] = (mixed >> (10 * probe)).to_le_bytes();
        let bit = usize::from(lower) | usize::from(upper & 1) << 8;
        (line * LINE_LEN + bit / 8, 1 << (bit % 8))
    })
}

/// Fills the pages of a region, from hashes that come in order.
#[derive(Debug)]
pub(crate) struct FilterBuilder {
    region: Region,
    page: u32,
    body: Vec<u8>,
}

impl FilterBuilder {
    pub(crate) fn new(region: Region) -> Self {
        Self {
            region,
            page: 0,
            body: vec![0; LINES * LINE_LEN],
        }
    }

    pub(crate) fn add(&mut self, hash: u128, sink: &mut PageSink) -> Result<(), RunError> {
        if self.region.pages == 0 {
            return Ok(());
        }
        let page = self.region.page_of(hash);
        while self.page < page {
            self.write(sink)?;
        }
        for (byte, bit) in bits(hash) {
            self.body[byte] |= bit;
        }
        Ok(())
    }

    fn write(&mut self, sink: &mut PageSink) -> Result<(), RunError> {
        sink.put(self.region.start + self.page, Kind::Filter, &self.body)?;
        self.body.fill(0);
        self.page += 1;
        Ok(())
    }

    pub(crate) fn finish(mut self, sink: &mut PageSink) -> Result<(), RunError> {
        while self.page < self.region.pages {
            self.write(sink)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    use super::super::page::Page;
    use super::*;
    use crate::disk::{Disk as _, DiskFile, RealDisk};

    #[derive(Debug)]
    struct InFile(Arc<dyn DiskFile>);

    impl PageSource for InFile {
        fn page(&self, number: u32) -> Result<Arc<Page>, RunError> {
            let page = super::super::pages::read(&*self.0, number).unwrap();
            page.map(Arc::new)
                .ok_or_else(|| self.wrong(number, "flipped"))
        }

        fn wrong(&self, number: u32, what: &'static str) -> RunError {
            let run = "filter".into();
            let byte = super::super::page::offset(number);
            RunError::Damaged { run, byte, what }
        }
    }

    fn hash(n: u64) -> u128 {
        let hash = blake3::hash(&n.to_be_bytes());
        u128::from_be_bytes(std::array::from_fn(|at| hash.as_bytes()[at]))
    }

    #[test]
    fn what_is_there_is_never_denied_and_little_else_is_claimed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("filter");
        let file = RealDisk.create(&path).unwrap();
        let mut hashes: Vec<u128> = (0..20_000).map(hash).collect();
        hashes.sort_unstable();
        let region = Region::for_hashes(1, hashes.len() as u64);
        let stop = Arc::new(AtomicBool::new(false));
        let mut sink = PageSink::new(Arc::clone(&file), &path, 1 + region.pages, stop);
        let mut builder = FilterBuilder::new(region);
        for hash in &hashes {
            builder.add(*hash, &mut sink).unwrap();
        }
        builder.finish(&mut sink).unwrap();
        sink.finish().unwrap();
        let pages = InFile(file);
        let may = |hash| region.may_hold(hash, &pages).unwrap();
        assert!(hashes.iter().all(|hash| may(*hash)));
        let wrong = (20_000..40_000).filter(|n| may(hash(*n))).count();
        assert!(wrong < 400, "{wrong} of 20000 are claimed");
        assert!(Region::for_hashes(1, 0).may_hold(7, &pages).unwrap());
    }
}
