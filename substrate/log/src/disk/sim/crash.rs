//! What a loss of power may leave of a [`State`].
//!
//! Four models of what happens to the changes of one file that no sync has made durable: all are on
//! disk; none is; none but one, whole or torn at any 512 bytes, its first part or its last; all up to
//! one that is torn. Names that no sync of their directory has made durable may each be there or not.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::state::{Change, Content, Names, Node, State, Stored};
use crate::proof::random::Random;

/// A disk writes this much or nothing.
const SECTOR: usize = 512;
/// Up to so many changes of names, every subset of them is tried.
const SUBSETS_MAX: usize = 4;

/// How closely torn files are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Detail {
    /// Each file torn at every 512 bytes.
    Fine,
    /// Extents so; of the files of the index, which can be made again, half.
    Coarse,
}

fn is_extent(path: &Path) -> bool {
    path.extension()
        .is_some_and(|extension| extension == "extent")
}

/// A disk as it is found after a loss of power: files with their content, and directories; and the
/// object store, which has lost nothing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Image {
    names: BTreeMap<PathBuf, Option<Arc<Vec<u8>>>>,
    objects: Stored,
}

impl Image {
    fn new(objects: &Stored, names: &Names, content: impl Fn(usize) -> Arc<Vec<u8>>) -> Self {
        let mut image = BTreeMap::new();
        for (path, node) in names {
            // A name in a directory that is not there is nowhere.
            let above = path.ancestors().skip(1);
            if above
                .into_iter()
                .all(|dir| names.get(dir) == Some(&Node::Dir))
            {
                let content = match node {
                    Node::Dir => None,
                    Node::File(file) => Some(content(*file)),
                };
                image.insert(path.clone(), content);
            }
        }
        Self {
            names: image,
            objects: Arc::clone(objects),
        }
    }

    /// The state of a disk that is found like this.
    pub(crate) fn state(&self) -> State {
        let mut state = State {
            objects: Arc::clone(&self.objects),
            ..State::default()
        };
        for (path, content) in &self.names {
            let node = match content {
                None => Node::Dir,
                Some(bytes) => {
                    state.files.push(Content {
                        seen: Arc::clone(bytes),
                        durable: Arc::clone(bytes),
                        ..Content::default()
                    });
                    Node::File(state.files.len() - 1)
                }
            };
            state.durable.insert(path.clone(), node);
        }
        state.seen = state.durable.clone();
        state
    }

    /// Tells images apart.
    pub(crate) fn hash(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        for (name, object) in self.objects.iter() {
            // A name has the hash of its object.
            hasher.update(name.as_bytes());
            hasher.update(&(object.len() as u64).to_le_bytes());
        }
        for (path, content) in &self.names {
            let name = path.as_os_str().as_encoded_bytes();
            hasher.update(&(name.len() as u64).to_le_bytes());
            hasher.update(name);
            let bytes = content.as_ref().map_or(&[] as &[u8], |bytes| bytes);
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        }
        *hasher.finalize().as_bytes()
    }

    /// The names of its files, for a report.
    pub(crate) fn files(&self) -> Vec<(&Path, usize)> {
        self.names
            .iter()
            .filter_map(|(path, bytes)| Some((path.as_path(), bytes.as_ref()?.len())))
            .collect()
    }
}

impl State {
    /// What programs see, with every change on disk: a machine that goes on, or was lucky.
    pub(crate) fn image(&self) -> Image {
        Image::new(&self.objects, &self.seen, |file| {
            Arc::clone(&self.files[file].seen)
        })
    }

    /// What is left when of every change that was not synced only the first `len` bytes are.
    pub(crate) fn torn(&self, len: usize) -> Image {
        Image::new(&self.objects, &self.durable, |file| {
            let file = &self.files[file];
            let mut bytes = file.durable.as_ref().clone();
            for change in &file.dirty {
                change.apply(&mut bytes, 0..change.len().min(len));
            }
            Arc::new(bytes)
        })
    }

    /// Every image that the models allow, each once.
    pub(crate) fn crashes(&self, detail: Detail) -> Vec<Image> {
        let contents: Vec<Vec<Arc<Vec<u8>>>> = self.contents(detail);
        let (mut images, mut known) = (Vec::new(), HashSet::new());
        let mut add = |image: Image| {
            if known.insert(image.hash()) {
                images.push(image);
            }
        };
        let (durable, seen) = (&self.durable, &self.seen);
        for names in self.names() {
            // Parts of files under names that are all as they were, or all as they are now.
            let varied = if names == *durable || names == *seen {
                self.varied(&names)
            } else {
                Vec::new()
            };
            for others in [Content::lucky, Content::unlucky] {
                add(Image::new(&self.objects, &names, |file| {
                    others(&self.files[file])
                }));
                for one in &varied {
                    for content in &contents[*one] {
                        add(Image::new(&self.objects, &names, |file| {
                            if file == *one {
                                Arc::clone(content)
                            } else {
                                others(&self.files[file])
                            }
                        }));
                    }
                }
            }
        }
        images
    }

    /// What may be on disk of each file.
    fn contents(&self, detail: Detail) -> Vec<Vec<Arc<Vec<u8>>>> {
        let mut index = vec![false; self.files.len()];
        for (path, node) in self.durable.iter().chain(&self.seen) {
            if let Node::File(file) = node {
                index[*file] |= path.extension().is_some_and(|it| it == "run");
            }
        }
        let files = self.files.iter().zip(index);
        let crashes = |(file, index): (&Content, bool)| match detail {
            Detail::Coarse if index => file.halves(),
            _ => file.crashes(),
        };
        files.map(crashes).collect()
    }

    /// The files of which parts may be on disk. What else is as it was a moment before was varied
    /// then.
    fn varied(&self, names: &Names) -> Vec<usize> {
        let file = |(path, node): (&PathBuf, &Node)| match node {
            Node::File(file) if self.touched == Some(*file) || is_extent(path) => Some(*file),
            _ => None,
        };
        names.iter().filter_map(file).collect()
    }

    /// The names that may be on disk.
    fn names(&self) -> Vec<Names> {
        let count = self.dirty.len();
        let subsets: Vec<Vec<bool>> = if count <= SUBSETS_MAX {
            let bit = |set: usize| move |n: usize| set & (1 << n) != 0;
            (0..1_usize << count)
                .map(|set| (0..count).map(bit(set)).collect())
                .collect()
        } else {
            let upto = |n: usize| (0..count).map(|at| at < n).collect();
            let only = |n: usize| (0..count).map(|at| at == n).collect();
            let but = |n: usize| (0..count).map(|at| at != n).collect();
            let all = (0..=count).map(upto).chain((0..count).map(only));
            all.chain((0..count).map(but)).collect()
        };
        let applied = |subset: Vec<bool>| {
            let mut names = self.durable.clone();
            for (change, _) in self.dirty.iter().zip(subset).filter(|(_, kept)| *kept) {
                change.apply(&mut names);
            }
            names
        };
        subsets.into_iter().map(applied).collect()
    }

    /// One image, by chance: each 512 bytes of each change and each name is kept or not.
    pub(crate) fn crash(&self, random: &mut Random) -> Image {
        let mut names = self.durable.clone();
        let fate = random.below(4);
        for change in &self.dirty {
            if kept(fate, random) {
                change.apply(&mut names);
            }
        }
        let mut contents = Vec::new();
        for file in &self.files {
            let mut bytes = file.durable.as_ref().clone();
            for change in &file.dirty {
                for part in sectors(change) {
                    if kept(fate, random) {
                        change.apply(&mut bytes, part);
                    }
                }
            }
            contents.push(Arc::new(bytes));
        }
        Image::new(&self.objects, &names, |file| Arc::clone(&contents[file]))
    }
}

/// Nothing, everything, or by the toss of a coin.
fn kept(fate: u64, random: &mut Random) -> bool {
    match fate {
        0 => false,
        1 => true,
        _ => random.chance(1, 2),
    }
}

/// The parts of a change that a disk writes or does not.
fn sectors(change: &Change) -> Vec<Range<usize>> {
    let mut cuts = cuts(change);
    cuts.push(change.len());
    let mut start = 0;
    let part = |end| {
        let part = start..end;
        start = end;
        part
    };
    cuts.into_iter().map(part).collect()
}

/// Where a change may be torn.
fn cuts(change: &Change) -> Vec<usize> {
    let Change::Bytes(at, bytes) = change else {
        return Vec::new();
    };
    let first = (at + 1).next_multiple_of(SECTOR);
    let cuts = (first..at + bytes.len()).step_by(SECTOR);
    cuts.map(|cut| cut - at).collect()
}

impl Content {
    fn lucky(&self) -> Arc<Vec<u8>> {
        Arc::clone(&self.seen)
    }

    fn unlucky(&self) -> Arc<Vec<u8>> {
        Arc::clone(&self.durable)
    }

    /// Nothing, everything, or half of the last change.
    fn halves(&self) -> Vec<Arc<Vec<u8>>> {
        let mut half = self.seen.as_ref().clone();
        if let Some((last, earlier)) = self.dirty.split_last() {
            half.clone_from(&self.durable);
            for change in earlier {
                change.apply_whole(&mut half);
            }
            last.apply(&mut half, 0..last.len() / 2);
        }
        vec![self.unlucky(), self.lucky(), Arc::new(half)]
    }

    /// What may be on disk, each once.
    fn crashes(&self) -> Vec<Arc<Vec<u8>>> {
        let changes = &self.dirty;
        let mut found = vec![self.unlucky()];
        if changes.is_empty() {
            return found;
        }
        let mut known = HashSet::from([blake3::hash(&self.durable)]);
        let mut add = |bytes: Vec<u8>| {
            if known.insert(blake3::hash(&bytes)) {
                found.push(Arc::new(bytes));
            }
        };
        add(self.seen.as_ref().clone());
        for (n, change) in changes.iter().enumerate() {
            let mut before = self.durable.as_ref().clone();
            for earlier in &changes[..n] {
                earlier.apply_whole(&mut before);
            }
            for base in [self.durable.as_ref(), &before] {
                let len = change.len();
                let torn = cuts(change).into_iter().flat_map(|cut| [0..cut, cut..len]);
                for part in std::iter::once(0..len).chain(torn) {
                    let mut bytes = base.clone();
                    change.apply(&mut bytes, part);
                    add(bytes);
                }
            }
        }
        found
    }
}
