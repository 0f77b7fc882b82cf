//! The file system of an image in memory: directories of names, names of nodes, files as ranges of
//! layers. A hard link is a second name of one node.

use std::collections::BTreeMap;

use crate::limits::{DEPTH_MAX, HOPS_MAX, Limits, NAME_LEN_MAX};
use crate::slice::Slice;
use crate::tarball::Meta;

/// A node's place in the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct NodeId(usize);

impl NodeId {
    pub(crate) const fn index(self) -> usize {
        self.0
    }
}

/// One inode.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) meta: Meta,
    pub(crate) body: Body,
    /// Of a directory: the layer that last removed from it what lies below that layer; 0 is none.
    pub(crate) pruned: usize,
}

/// What it is.
#[derive(Debug)]
pub(crate) enum Body {
    Directory(BTreeMap<Box<[u8]>, Name>),
    File(Slice),
    Symlink(Box<[u8]>),
    Fifo,
}

/// A name in a directory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Name {
    pub(crate) node: NodeId,
    /// The layer that put it there last, counted from 1.
    pub(crate) layer: usize,
}

/// The whole.
#[derive(Debug)]
pub(crate) struct Tree {
    nodes: Vec<Node>,
    nodes_max: usize,
    entries_left: usize,
    name_bytes_left: usize,
}

impl Tree {
    /// With a root directory and nothing in it.
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            nodes: vec![Node {
                meta: implied(),
                body: Body::Directory(BTreeMap::new()),
                pruned: 0,
            }],
            nodes_max: limits.entries,
            entries_left: limits.entries,
            name_bytes_left: limits.name_bytes,
        }
    }

    pub(crate) const fn root(&self) -> NodeId {
        NodeId(0)
    }

    pub(crate) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0]
    }

    pub(crate) fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id.0]
    }

    /// Nodes that were ever made.
    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// The names in a directory; nothing if it is none.
    pub(crate) fn names(&self, id: NodeId) -> Option<&BTreeMap<Box<[u8]>, Name>> {
        match &self.node(id).body {
            Body::Directory(names) => Some(names),
            _ => None,
        }
    }

    pub(crate) fn names_mut(&mut self, id: NodeId) -> Option<&mut BTreeMap<Box<[u8]>, Name>> {
        match &mut self.node_mut(id).body {
            Body::Directory(names) => Some(names),
            _ => None,
        }
    }

    pub(crate) fn lookup(&self, directory: NodeId, name: &[u8]) -> Option<Name> {
        self.names(directory)?.get(name).copied()
    }

    /// Counts an entry of a layer, also one that adds nothing, such as a whiteout.
    pub(crate) fn entry(&mut self) -> Result<(), String> {
        let left = self.entries_left.checked_sub(1);
        self.entries_left = left.ok_or_else(|| self.too_many())?;
        Ok(())
    }

    fn too_many(&self) -> String {
        format!("the image has more than {} entries", self.nodes_max)
    }

    /// A new node, without a name as yet.
    pub(crate) fn add(&mut self, meta: Meta, body: Body) -> Result<NodeId, String> {
        if self.nodes.len() >= self.nodes_max {
            return Err(self.too_many());
        }
        let xattrs = meta
            .xattrs
            .iter()
            .map(|(name, value)| name.len() + value.len());
        let target = match &body {
            Body::Symlink(target) => target.len(),
            _ => 0,
        };
        self.hold(xattrs.sum::<usize>() + target)?;
        self.nodes.push(Node {
            meta,
            body,
            pruned: 0,
        });
        Ok(NodeId(self.nodes.len() - 1))
    }

    /// Names `node` in `directory`; what had the name loses it.
    pub(crate) fn put(&mut self, directory: NodeId, name: &[u8], put: Name) -> Result<(), String> {
        if self.lookup(directory, name).is_none() {
            self.hold(name.len())?;
        }
        let names = self
            .names_mut(directory)
            .ok_or("its parent is no directory")?;
        names.insert(name.into(), put);
        Ok(())
    }

    /// The directory at a path, from the root. Symbolic links are followed inside the tree. What is
    /// missing is made if `layer` is given, and else the answer is `None`.
    pub(crate) fn directory(
        &mut self,
        path: &[&[u8]],
        layer: Option<usize>,
    ) -> Result<Option<NodeId>, String> {
        // Where we are, from the root on, for `..` in a link's target.
        let mut above: Vec<NodeId> = vec![self.root()];
        let mut ahead: Vec<Box<[u8]>> = path.iter().rev().map(|name| (*name).into()).collect();
        let mut hops = 0;
        while let Some(name) = ahead.pop() {
            let here = above.last().copied().unwrap_or_else(|| self.root());
            if &*name == b".." {
                above.pop();
                if above.is_empty() {
                    return Err("a symbolic link on its path leaves the image".to_owned());
                }
                continue;
            }
            let found = match (self.lookup(here, &name), layer) {
                (Some(found), _) => found.node,
                (None, None) => return Ok(None),
                (None, Some(layer)) => {
                    let node = self.add(implied(), Body::Directory(BTreeMap::new()))?;
                    self.put(here, &name, Name { node, layer })?;
                    node
                }
            };
            match &self.node(found).body {
                Body::Directory(_) => above.push(found),
                Body::Symlink(target) => {
                    hops += 1;
                    if hops > HOPS_MAX {
                        return Err("its path has a loop of symbolic links".to_owned());
                    }
                    if target.starts_with(b"/") {
                        above.truncate(1);
                    }
                    let parts = components(target).rev().map(Box::from);
                    ahead.extend(parts);
                }
                Body::File(_) | Body::Fifo => {
                    return Err("a part of its path is a file".to_owned());
                }
            }
            if above.len() > DEPTH_MAX || ahead.len() > 4 * DEPTH_MAX {
                return Err(format!("its path is deeper than {DEPTH_MAX}"));
            }
        }
        Ok(above.last().copied())
    }

    /// Counts what is held in memory for the image's people.
    fn hold(&mut self, bytes: usize) -> Result<(), String> {
        let left = self.name_bytes_left.checked_sub(bytes);
        self.name_bytes_left = left.ok_or("the names of the image are too long altogether")?;
        Ok(())
    }
}

/// The metadata of a directory that no entry describes.
fn implied() -> Meta {
    Meta {
        mode: 0o755,
        ..Meta::default()
    }
}

/// The names of a path, without empty ones and `.`.
fn components(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/')
        .filter(|name| !name.is_empty() && *name != b".")
}

/// The names of an entry's path, which must stay below the root and be names that Linux takes.
pub(crate) fn entry_path(path: &[u8]) -> Result<Vec<&[u8]>, String> {
    if path.starts_with(b"/") {
        return Err("its path is absolute".to_owned());
    }
    let names: Vec<&[u8]> = components(path).collect();
    if names.len() > DEPTH_MAX {
        return Err(format!("its path is deeper than {DEPTH_MAX}"));
    }
    for name in &names {
        if *name == b".." {
            return Err("its path leaves the image".to_owned());
        }
        if name.len() > NAME_LEN_MAX {
            return Err(format!("a name in its path is over {NAME_LEN_MAX} bytes"));
        }
        if name.contains(&0) {
            return Err("its path has a zero byte".to_owned());
        }
    }
    Ok(names)
}
