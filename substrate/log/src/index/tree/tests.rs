//! Trees against a sorted map, and against bytes that nobody has written.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;

use proptest::prelude::*;

use super::super::page;
use super::*;
use crate::disk::{Disk as _, RealDisk};

const SHAPE: Shape = Shape {
    kind: Kind::Ids,
    width: 300,
    key_len: 2,
};

/// Pages in memory.
#[derive(Debug)]
struct Pages(Vec<Arc<Page>>);

impl PageSource for Pages {
    fn page(&self, number: u32) -> Result<Arc<Page>, RunError> {
        let page = usize::try_from(number).ok().and_then(|n| self.0.get(n));
        page.cloned().ok_or_else(|| self.wrong(number, "missing"))
    }

    fn wrong(&self, number: u32, what: &'static str) -> RunError {
        RunError::Damaged {
            run: "memory".into(),
            byte: page::offset(number),
            what,
        }
    }
}

/// A tree of these keys, whose entries end with their key again.
fn tree(keys: &BTreeMap<u16, ()>) -> (Pages, Region) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tree");
    let file = RealDisk.create(&path).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let mut sink = PageSink::new(Arc::clone(&file), &path, 1, stop);
    let mut builder = TreeBuilder::new(SHAPE, &sink);
    for key in keys.keys() {
        let mut entry = vec![0; SHAPE.width];
        entry[..2].copy_from_slice(&key.to_be_bytes());
        entry[298..].copy_from_slice(&key.to_be_bytes());
        builder.push(&entry, &mut sink).unwrap();
    }
    let region = builder.finish(&mut sink).unwrap();
    sink.put(0, Kind::Header, &[]).unwrap();
    let pages = sink.next_page();
    sink.finish().unwrap();
    let read = |number| super::super::pages::read(&*file, number).unwrap();
    let pages = (0..pages).map(|number| Arc::new(read(number).expect("a good page")));
    (Pages(pages.collect()), region)
}

fn key_of(entry: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(entry.get(298..)?.try_into().ok()?))
}

fn open<'a>(pages: &'a Pages, region: &Region) -> Tree<'a, Pages> {
    Tree {
        shape: SHAPE,
        region: *region,
        source: pages,
    }
}

fn all(mut entries: Entries<'_, Pages>) -> Result<Vec<u16>, RunError> {
    let mut found = Vec::new();
    while let Some(key) = entries.next(key_of)? {
        found.push(key);
    }
    Ok(found)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]
    #[test]
    fn it_is_a_sorted_map(
        keys in prop::collection::btree_map(any::<u16>(), Just(()), 0..1500),
        asked in prop::collection::vec(any::<u16>(), 50),
    ) {
        let (pages, region) = tree(&keys);
        prop_assert!(all(open(&pages, &region).all()).unwrap().iter().eq(keys.keys()));
        // Also the keys themselves, and their neighbors.
        let near = keys.keys().flat_map(|key| [*key, key.wrapping_add(1), key.wrapping_sub(1)]);
        for key in asked.into_iter().chain(near.take(300)).chain([0, u16::MAX]) {
            let found = open(&pages, &region).floor(&key.to_be_bytes(), key_of).unwrap();
            prop_assert_eq!(found, keys.range(..=key).next_back().map(|it| *it.0));
            let mut entries = open(&pages, &region).from(&key.to_be_bytes()).unwrap();
            let first = entries.next(key_of).unwrap();
            prop_assert_eq!(first, keys.range(key..).next().map(|it| *it.0));
        }
        let from = open(&pages, &region).from(&1000_u16.to_be_bytes()).unwrap();
        prop_assert!(all(from).unwrap().iter().eq(keys.range(1000..).map(|it| it.0)));
    }

    /// Pages that agree with their checksums and hold anything: an answer or an error, at once.
    #[test]
    fn hostile_pages_end(
        changes in prop::collection::vec((any::<u16>(), 4_usize..page::PAGE_LEN, any::<u8>()), 1..40),
        region in (any::<u8>(), any::<u8>(), any::<u8>()),
        original in any::<bool>(),
        key in any::<u16>(),
    ) {
        let keys = (0..900_u16).map(|n| (n.wrapping_mul(71), ())).collect();
        let (mut pages, mut true_region) = tree(&keys);
        let count = pages.0.len();
        for (number, at, to) in changes {
            let number = usize::from(number) % count;
            let mut bytes: Box<[u8; page::PAGE_LEN]> =
                Box::new(pages.0[number].bytes().try_into().unwrap());
            // Level, count and the first children are what a tree is made of.
            bytes[if at % 2 == 0 { 4 + at % 20 } else { at }] = to;
            let number32 = u32::try_from(number).unwrap();
            let sum = crc32c::crc32c_append(crc32c::crc32c(&number32.to_be_bytes()), &bytes[4..]);
            bytes[..4].copy_from_slice(&sum.to_be_bytes());
            pages.0[number] = Arc::new(Page::check(bytes, number32).unwrap());
        }
        if !original {
            let (start, end, root) = region;
            true_region = Region { start: start.into(), end: end.into(), root: root.into() };
        }
        let _ = open(&pages, &true_region).floor(&key.to_be_bytes(), key_of);
        let _ = all(open(&pages, &true_region).all());
        if let Ok(entries) = open(&pages, &true_region).from(&key.to_be_bytes()) {
            let _ = all(entries);
        }
    }
}
