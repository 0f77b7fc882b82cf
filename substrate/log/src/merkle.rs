//! The tree over frames: RFC 9162 section 2.1 (as RFC 6962 before it), SHA-256, one leaf for each
//! frame in order, whose content is the frame's 32-byte hash.
//!
//! ```text
//!   leaf = SHA-256(0 ‖ frame hash)      node = SHA-256(1 ‖ left ‖ right)
//!
//!            root of 7                  A tree that grows is kept as its peaks: the roots of the
//!          ┌────┴─────┐                 whole subtrees that the bits of its size name, 7 = 4 + 2 + 1.
//!       ┌──┴──┐     ┌─┴─┐               Adding a leaf costs one or two hashes on average, the root
//!      ┌┴┐   ┌┴┐   ┌┴┐  │               one hash for each peak, and nothing else is kept.
//!      0 1   2 3   4 5  6
//! ```

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256};

use crate::frame::FrameHash;

/// A hash of the tree, written as 44 characters of base64.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct TreeHash(pub(crate) [u8; 32]);

impl TreeHash {
    /// The leaf of a frame.
    pub(crate) fn of_frame(frame: FrameHash) -> Self {
        Self::leaf(&frame.0)
    }

    fn leaf(content: &[u8]) -> Self {
        Self::hash([&[0], content, &[]])
    }

    fn node(left: Self, right: Self) -> Self {
        Self::hash([&[1], &left.0, &right.0])
    }

    fn hash(parts: [&[u8]; 3]) -> Self {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update(part);
        }
        Self(hash.finalize().into())
    }
}

impl fmt::Display for TreeHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for TreeHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TreeHash({self})")
    }
}

/// A text is not 32 bytes of base64.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NotAHash;

impl FromStr for TreeHash {
    type Err = NotAHash;
    fn from_str(text: &str) -> Result<Self, NotAHash> {
        let bytes = STANDARD.decode(text).map_err(|_| NotAHash)?;
        bytes.try_into().map(Self).map_err(|_| NotAHash)
    }
}

/// A tree that grows. Its peaks are all that is kept: at most 64 hashes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Tree {
    size: u64,
    peaks: Vec<TreeHash>,
}

impl Tree {
    /// A tree of `size` leaves with these peaks, the largest first; `None` if their number is wrong.
    pub(crate) fn from_peaks(size: u64, peaks: Vec<TreeHash>) -> Option<Self> {
        let count = u32::try_from(peaks.len()).ok()?;
        (count == size.count_ones()).then_some(Self { size, peaks })
    }

    pub(crate) const fn size(&self) -> u64 {
        self.size
    }

    pub(crate) fn peaks(&self) -> &[TreeHash] {
        &self.peaks
    }

    pub(crate) fn push(&mut self, leaf: TreeHash) {
        let mut hash = leaf;
        // As many peaks become one as the size has ones at its end: an addition with carry.
        for _ in 0..self.size.trailing_ones() {
            let left = self.peaks.pop();
            let left = left.expect("INVARIANT: one peak for each bit of the size");
            hash = TreeHash::node(left, hash);
        }
        self.peaks.push(hash);
        self.size += 1;
    }

    /// The hash of the whole tree; of an empty one that of nothing.
    pub(crate) fn root(&self) -> TreeHash {
        let mut peaks = self.peaks.iter().rev().copied();
        let last = peaks.next().unwrap_or_else(|| TreeHash::hash([&[]; 3]));
        peaks.fold(last, |right, left| TreeHash::node(left, right))
    }
}

/// Where a tree of `len` leaves, at least two, divides: the greatest power of two below.
const fn split(len: u64) -> u64 {
    1 << (u64::BITS - 1 - (len - 1).leading_zeros())
}

/// The subtrees whose hashes prove that a leaf is in a tree, from the leaf upwards (section 2.1.3.1).
fn inclusion_ranges(index: u64, size: u64) -> Vec<Range<u64>> {
    let (mut low, mut high) = (0, size);
    let mut ranges = Vec::new();
    while high - low > 1 {
        let middle = low + split(high - low);
        if index < middle {
            ranges.push(middle..high);
            high = middle;
        } else {
            ranges.push(low..middle);
            low = middle;
        }
    }
    ranges.reverse();
    ranges
}

/// The subtrees whose hashes prove that a tree begins with its first `before` leaves, of which there
/// is at least one (section 2.1.4.1).
fn consistency_ranges(before: u64, size: u64) -> Vec<Range<u64>> {
    let (mut low, mut high, mut whole) = (0, size, true);
    let mut ranges = Vec::new();
    while before != high {
        let middle = low + split(high - low);
        if before <= middle {
            ranges.push(middle..high);
            high = middle;
        } else {
            ranges.push(low..middle);
            (low, whole) = (middle, false);
        }
    }
    if !whole {
        ranges.push(low..high);
    }
    ranges.reverse();
    ranges
}

/// Makes a proof in one pass over the leaves, with a few hashes for each subtree that is wanted.
#[derive(Debug)]
pub(crate) struct Prover {
    wanted: Vec<(Range<u64>, Tree)>,
    next: u64,
}

impl Prover {
    /// Of the leaf `index` in the tree of the first `size` leaves; `None` if it is not among them.
    pub(crate) fn inclusion(index: u64, size: u64) -> Option<Self> {
        (index < size).then(|| Self::of(inclusion_ranges(index, size)))
    }

    /// That the tree of the first `size` leaves begins with that of the first `before`; `None` if
    /// that one is greater, or empty.
    pub(crate) fn consistency(before: u64, size: u64) -> Option<Self> {
        (0 < before && before <= size).then(|| Self::of(consistency_ranges(before, size)))
    }

    fn of(ranges: Vec<Range<u64>>) -> Self {
        let wanted = ranges.into_iter().map(|range| (range, Tree::default()));
        Self {
            wanted: wanted.collect(),
            next: 0,
        }
    }

    /// Takes the next leaf, from the first on.
    pub(crate) fn push(&mut self, leaf: TreeHash) {
        let of_leaf = |(range, _): &&mut (Range<u64>, Tree)| range.contains(&self.next);
        // The subtrees of one proof do not overlap.
        if let Some((_, tree)) = self.wanted.iter_mut().find(of_leaf) {
            tree.push(leaf);
        }
        self.next += 1;
    }

    /// The proof; `None` if leaves are missing.
    pub(crate) fn finish(self) -> Option<Vec<TreeHash>> {
        let done = |(range, tree): (Range<u64>, Tree)| {
            (tree.size == range.end - range.start).then(|| tree.root())
        };
        self.wanted.into_iter().map(done).collect()
    }
}

/// Whether `path` proves that `leaf` is the leaf `index` of the tree (section 2.1.3.2).
pub(crate) fn includes(
    (size, root): (u64, TreeHash),
    index: u64,
    leaf: TreeHash,
    path: &[TreeHash],
) -> bool {
    if index >= size {
        return false;
    }
    let (mut at, mut last, mut hash) = (index, size - 1, leaf);
    for sibling in path {
        if last == 0 {
            return false;
        }
        if at & 1 == 1 || at == last {
            hash = TreeHash::node(*sibling, hash);
            while at & 1 == 0 && at != 0 {
                (at, last) = (at >> 1, last >> 1);
            }
        } else {
            hash = TreeHash::node(hash, *sibling);
        }
        (at, last) = (at >> 1, last >> 1);
    }
    last == 0 && hash == root
}

/// Whether `path` proves that the second tree begins with the first (section 2.1.4.2).
pub(crate) fn extends(
    (before, before_root): (u64, TreeHash),
    (size, root): (u64, TreeHash),
    path: &[TreeHash],
) -> bool {
    if before == 0 || before > size {
        return false;
    }
    if before == size {
        return path.is_empty() && before_root == root;
    }
    // A first tree that is a whole subtree of the second is its own first node.
    let start = [before_root];
    let mut nodes = start
        .iter()
        .filter(|_| before.is_power_of_two())
        .chain(path);
    let Some(first) = nodes.next().copied() else {
        return false;
    };
    let odd = (before - 1).trailing_ones();
    let (mut at, mut last) = ((before - 1) >> odd, (size - 1) >> odd);
    let (mut old, mut new) = (first, first);
    for sibling in nodes {
        if last == 0 {
            return false;
        }
        if at & 1 == 1 || at == last {
            (old, new) = (TreeHash::node(*sibling, old), TreeHash::node(*sibling, new));
            while at & 1 == 0 && at != 0 {
                (at, last) = (at >> 1, last >> 1);
            }
        } else {
            new = TreeHash::node(new, *sibling);
        }
        (at, last) = (at >> 1, last >> 1);
    }
    last == 0 && old == before_root && new == root
}

#[cfg(test)]
mod tests;
