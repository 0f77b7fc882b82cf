//! What a simulated disk is at one moment: every file and every name twice, as programs see it and as
//! it is on disk, and the changes that lie between.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Node {
    Dir,
    /// A file, by its place in [`State::files`].
    File(usize),
}

pub(crate) type Names = BTreeMap<PathBuf, Node>;

/// One change of a file.
#[derive(Debug)]
pub(crate) enum Change {
    Len(usize),
    Bytes(usize, Vec<u8>),
}

impl Change {
    /// What becomes of `bytes` when the part `range` of this change reaches them. A length is whole.
    pub(crate) fn apply(&self, bytes: &mut Vec<u8>, range: Range<usize>) {
        match self {
            Self::Len(len) => bytes.resize(bytes.len().max(*len), 0),
            Self::Bytes(at, new) => {
                let (start, end) = (at + range.start, at + range.end);
                if bytes.len() < end {
                    bytes.resize(end, 0);
                }
                bytes[start..end].copy_from_slice(&new[range]);
            }
        }
    }

    pub(crate) const fn len(&self) -> usize {
        match self {
            Self::Len(_) => 0,
            Self::Bytes(_, new) => new.len(),
        }
    }

    pub(crate) fn apply_whole(&self, bytes: &mut Vec<u8>) {
        self.apply(bytes, 0..self.len());
    }
}

/// One file. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Content {
    /// As programs see it.
    pub(crate) seen: Arc<Vec<u8>>,
    /// As it is on disk for certain.
    pub(crate) durable: Arc<Vec<u8>>,
    /// What the next sync writes.
    pub(crate) dirty: Vec<Arc<Change>>,
}

impl Content {
    pub(super) fn change(&mut self, change: Change) {
        change.apply_whole(Arc::make_mut(&mut self.seen));
        self.dirty.push(Arc::new(change));
    }

    pub(super) fn sync(&mut self) {
        let durable = Arc::make_mut(&mut self.durable);
        for change in self.dirty.drain(..) {
            change.apply_whole(durable);
        }
    }
}

/// A change of names that is not on disk yet.
#[derive(Debug, Clone)]
pub(crate) enum NameChange {
    Add(PathBuf, Node),
    Remove(PathBuf),
    Rename(PathBuf, PathBuf, Node),
}

impl NameChange {
    /// The directory whose sync makes it durable; the engine renames within one directory.
    pub(super) fn dir(&self) -> Option<&Path> {
        match self {
            Self::Add(path, _) | Self::Remove(path) | Self::Rename(path, ..) => path.parent(),
        }
    }

    pub(crate) fn apply(&self, names: &mut Names) {
        match self {
            Self::Add(path, node) => {
                names.insert(path.clone(), *node);
            }
            Self::Remove(path) => {
                names.remove(path);
            }
            Self::Rename(from, to, node) => {
                names.remove(from);
                names.insert(to.clone(), *node);
            }
        }
    }
}

/// Everything about a disk at one moment. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct State {
    pub(crate) files: Vec<Content>,
    pub(crate) seen: Names,
    pub(crate) durable: Names,
    pub(crate) dirty: Vec<NameChange>,
    /// The file that was changed last.
    pub(crate) touched: Option<usize>,
    /// What is in the object store.
    pub(crate) objects: Stored,
}

/// Objects by their names.
pub(crate) type Stored = Arc<BTreeMap<String, Arc<Vec<u8>>>>;

impl Default for State {
    fn default() -> Self {
        let root = Names::from([(PathBuf::from("/"), Node::Dir)]);
        Self {
            files: Vec::new(),
            seen: root.clone(),
            durable: root,
            dirty: Vec::new(),
            touched: None,
            objects: Stored::default(),
        }
    }
}

impl State {
    pub(super) fn name(&mut self, change: NameChange) {
        change.apply(&mut self.seen);
        self.dirty.push(change);
    }

    pub(super) fn file(&self, path: &Path) -> io::Result<usize> {
        match self.seen.get(path) {
            Some(Node::File(file)) => Ok(*file),
            Some(Node::Dir) => Err(io::ErrorKind::IsADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// Whether a file has a name that ends in `suffix`.
    pub(super) fn is_named(&self, file: usize, suffix: &str) -> bool {
        let mut names = self.seen.iter();
        names.any(|(path, node)| {
            *node == Node::File(file) && path.to_string_lossy().ends_with(suffix)
        })
    }

    /// Bytes that files with a name take.
    pub(super) fn used(&self) -> usize {
        let len = |node: &Node| match node {
            Node::File(file) => self.files[*file].seen.len(),
            Node::Dir => 0,
        };
        self.seen.values().map(len).sum()
    }

    /// The names below `dir` that end in `suffix`, with what programs see.
    pub(crate) fn ending_in(&self, suffix: &str) -> BTreeMap<PathBuf, Arc<Vec<u8>>> {
        let mut found = BTreeMap::new();
        for (path, node) in &self.seen {
            if let Node::File(file) = node
                && path.to_string_lossy().ends_with(suffix)
            {
                found.insert(path.clone(), Arc::clone(&self.files[*file].seen));
            }
        }
        found
    }
}

impl Content {
    /// A sync fails.
    pub(super) fn forsake(&mut self, kept: usize) {
        let durable = Arc::make_mut(&mut self.durable);
        for change in self.dirty.drain(..) {
            change.apply(durable, 0..change.len().min(kept));
        }
    }
}
