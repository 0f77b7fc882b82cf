//! The tree against the vectors that Certificate Transparency's implementations share, and against
//! the definitions of the RFC, taken literally.
#![expect(
    clippy::cast_possible_truncation,
    reason = "numbers of leaves that a test can make"
)]

use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};
use proptest::sample::Index;

use super::*;

/// The eight leaves of the vectors.
const LEAVES: [&str; 8] = [
    "",
    "00",
    "10",
    "2021",
    "3031",
    "40414243",
    "5051525354555657",
    "606162636465666768696a6b6c6d6e6f",
];
/// Roots of the trees of 0 to 8 of them.
const ROOTS: [&str; 9] = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
];

fn hex(text: &str) -> Vec<u8> {
    let digit = |b: u8| u8::try_from(char::from(b).to_digit(16).unwrap_or(0)).unwrap_or(0);
    text.as_bytes()
        .chunks(2)
        .map(|pair| digit(pair[0]) << 4 | digit(pair[1]))
        .collect()
}

fn hash(text: &str) -> TreeHash {
    TreeHash(hex(text).try_into().expect("32 bytes of a vector"))
}

fn leaves(texts: &[&str]) -> Vec<TreeHash> {
    texts
        .iter()
        .map(|leaf| TreeHash::leaf(&hex(leaf)))
        .collect()
}

fn tree(leaves: &[TreeHash]) -> Tree {
    let mut tree = Tree::default();
    leaves.iter().for_each(|leaf| tree.push(*leaf));
    tree
}

fn proof(prover: Option<Prover>, leaves: &[TreeHash]) -> Vec<TreeHash> {
    let mut prover = prover.expect("a proof is possible");
    leaves.iter().for_each(|leaf| prover.push(*leaf));
    prover.finish().expect("all leaves are there")
}

/// Numbered leaves.
fn many(count: u64) -> Vec<TreeHash> {
    (0..count)
        .map(|n| TreeHash::leaf(&n.to_be_bytes()))
        .collect()
}

/// MTH of section 2.1.1, word for word.
fn defined(leaves: &[TreeHash]) -> TreeHash {
    match leaves {
        [] => hash(ROOTS[0]),
        [one] => *one,
        more => {
            let k = more.len().next_power_of_two() / 2;
            TreeHash::node(defined(&more[..k]), defined(&more[k..]))
        }
    }
}

#[test]
fn published_roots() {
    for (size, root) in ROOTS.iter().enumerate() {
        let grown = tree(&leaves(&LEAVES[..size]));
        assert_eq!(grown.root(), hash(root), "{size} leaves");
        assert_eq!(grown.peaks.len() as u32, (size as u64).count_ones());
    }
}

#[test]
fn published_inclusion_proofs() {
    let cases: [(u64, u64, &[&str]); 4] = [
        (
            0,
            8,
            &[
                "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
                "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
                "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
            ],
        ),
        (
            5,
            8,
            &[
                "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
                "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
                "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
            ],
        ),
        (2, 3, &[ROOTS[2]]),
        (
            1,
            5,
            &[
                ROOTS[1],
                "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
                "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
            ],
        ),
    ];
    let all = leaves(&LEAVES);
    for (index, size, path) in cases {
        let path: Vec<TreeHash> = path.iter().map(|text| hash(text)).collect();
        let made = proof(Prover::inclusion(index, size), &all);
        assert_eq!(made, path, "leaf {index} of {size}");
        let (at, root) = (index as usize, hash(ROOTS[size as usize]));
        assert!(includes((size, root), index, all[at], &path));
    }
}

#[test]
fn published_consistency_proofs() {
    let cases: [(u64, u64, &[&str]); 4] = [
        (1, 1, &[]),
        (
            1,
            8,
            &[
                "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
                "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
                "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
            ],
        ),
        (
            6,
            8,
            &[
                "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
                "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
                "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
            ],
        ),
        (
            2,
            5,
            &[
                "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
                "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
            ],
        ),
    ];
    let all = leaves(&LEAVES);
    let root = |size: u64| (size, hash(ROOTS[size as usize]));
    for (before, size, path) in cases {
        let path: Vec<TreeHash> = path.iter().map(|text| hash(text)).collect();
        let made = proof(Prover::consistency(before, size), &all);
        assert_eq!(made, path, "{before} in {size}");
        assert!(extends(root(before), root(size), &path));
    }
}

#[test]
fn every_proof_of_small_trees_holds_and_no_other() {
    const SIZE_MAX: u64 = 33;
    let all = many(SIZE_MAX);
    let roots: Vec<TreeHash> = (0..=all.len()).map(|n| tree(&all[..n]).root()).collect();
    for size in 1..=SIZE_MAX {
        let whole = (size, roots[size as usize]);
        assert_eq!(whole.1, defined(&all[..size as usize]), "{size} leaves");
        for index in 0..size {
            let path = proof(Prover::inclusion(index, size), &all);
            let leaf = all[index as usize];
            assert!(includes(whole, index, leaf, &path), "{index} of {size}");
            let other = (index + 1) % size;
            assert!(other == index || !includes(whole, other, leaf, &path));
            assert!(!includes(whole, index, TreeHash::leaf(b"x"), &path));
            assert!(!includes((size, TreeHash::leaf(b"x")), index, leaf, &path));
            let longer = [&path[..], &[leaf]].concat();
            assert!(!includes(whole, index, leaf, &longer));
            if let Some((_, shorter)) = path.split_last() {
                let shorter = &path[..shorter.len()];
                assert!(!includes(whole, index, leaf, shorter));
            }
        }
        for before in 1..=size {
            let first = (before, roots[before as usize]);
            let path = proof(Prover::consistency(before, size), &all);
            assert!(extends(first, whole, &path), "{before} in {size}");
            assert!(!extends((before, TreeHash::leaf(b"x")), whole, &path));
            assert!(!extends(first, (size, TreeHash::leaf(b"x")), &path));
            assert!(!extends(first, whole, &[&path[..], &[first.1]].concat()));
            for at in 0..path.len() {
                let mut changed = path.clone();
                changed[at] = TreeHash::leaf(b"x");
                assert!(!extends(first, whole, &changed), "{before} in {size}");
            }
        }
    }
}

#[test]
fn what_cannot_be_proven_has_no_proof() {
    assert!(Prover::inclusion(3, 3).is_none());
    assert!(Prover::consistency(0, 3).is_none());
    assert!(Prover::consistency(4, 3).is_none());
    let root = tree(&many(3)).root();
    assert!(!includes((3, root), 3, root, &[]));
    assert!(!includes((0, root), 0, root, &[]));
    assert!(!extends((0, root), (3, root), &[]));
    assert!(!extends((4, root), (3, root), &[]));
    assert!(!extends((2, root), (3, root), &[]));
    let mut short = Prover::inclusion(0, 3).expect("a proof is possible");
    short.push(root);
    assert!(short.finish().is_none());
    assert!(Tree::from_peaks(3, vec![root]).is_none());
}

proptest! {
    #[test]
    fn a_tree_goes_on_from_its_peaks(before in 0_usize..200, more in 0_usize..200) {
        let all = many((before + more) as u64);
        let half = tree(&all[..before]);
        let again = Tree::from_peaks(half.size(), half.peaks().to_vec());
        let mut again = again.expect("its own peaks");
        prop_assert_eq!(&again, &half);
        all[before..].iter().for_each(|leaf| again.push(*leaf));
        prop_assert_eq!(again.root(), defined(&all));
        prop_assert_eq!(again, tree(&all));
    }

    #[test]
    fn proofs_of_any_size(size in 1_u64..400, at in any::<Index>(), from in any::<Index>()) {
        let all = many(size);
        let whole = (size, tree(&all).root());
        let index = at.index(all.len());
        let path = proof(Prover::inclusion(index as u64, size), &all);
        prop_assert!(includes(whole, index as u64, all[index], &path));
        let before = from.index(all.len()) + 1;
        let first = (before as u64, tree(&all[..before]).root());
        let path = proof(Prover::consistency(before as u64, size), &all);
        prop_assert!(extends(first, whole, &path));
    }

    #[test]
    fn no_numbers_panic(a in any::<u64>(), b in any::<u64>(), len in 0_usize..70) {
        let path = many(len as u64);
        let hash = TreeHash::leaf(b"x");
        prop_assert!(!includes((a, hash), b, hash, &path[..len.min(3)]) || a == 1);
        prop_assert!(!extends((a, hash), (b, hash), &path) || a == b);
        let text = String::from_utf8_lossy(&a.to_be_bytes()).into_owned();
        prop_assert!(text.parse::<TreeHash>().is_err());
    }
}
