//! One layer on top of those below it (OCI image specification, layer: changes and whiteouts).
//!
//! A whiteout is of what lies below, so that it does not matter where in the layer it stands.

use std::collections::BTreeMap;

use crate::error::{ImageError, Result};
use crate::slice::Slice;
use crate::tarball::{self, Entry, Kind, shown};
use crate::tree::{Body, Name, NodeId, Tree, entry_path};

/// `.wh.<name>`: the name of the layers below is gone.
const WHITEOUT: &[u8] = b".wh.";
/// All names of the layers below are gone from this directory.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Other names that begin so are notes of a union file system to itself.
const INTERNAL: &[u8] = b".wh..wh.";

/// Adds the entries of layer `number`, counted from 1.
pub(crate) fn apply(tree: &mut Tree, number: usize, tar: &Slice) -> Result<()> {
    let damaged = |why: String| ImageError::damaged(format!("layer {number}"), why);
    tarball::read(tar, damaged, |entry| {
        let path = entry.path.clone();
        let taken = tree.entry().and_then(|()| take(tree, number, tar, entry));
        taken.map_err(|why| ImageError::Refused {
            layer: number,
            entry: shown(&path),
            why,
        })
    })
}

fn take(tree: &mut Tree, layer: usize, tar: &Slice, entry: Entry) -> Result<(), String> {
    let path = entry_path(&entry.path)?;
    let Some((name, parents)) = path.split_last() else {
        // The root itself: it has an owner and a mode like any directory.
        return match entry.kind {
            Kind::Directory => {
                let root = tree.root();
                tree.node_mut(root).meta = entry.meta;
                Ok(())
            }
            _ => Err("it would replace the root".to_owned()),
        };
    };
    if let Some(hidden) = name.strip_prefix(WHITEOUT) {
        return whiteout(tree, layer, parents, name, hidden);
    }
    let directory = tree.directory(parents, Some(layer))?;
    let directory = directory.ok_or("its parent is missing")?;
    let node = match entry.kind {
        Kind::Directory => {
            let there = tree.lookup(directory, name).map(|there| there.node);
            match there.filter(|there| tree.names(*there).is_some()) {
                // What is in it stays.
                Some(there) => {
                    tree.node_mut(there).meta = entry.meta;
                    there
                }
                None => tree.add(entry.meta, Body::Directory(BTreeMap::new()))?,
            }
        }
        Kind::File => {
            let content = tar.part(entry.offset, entry.len).ok_or("it is cut off")?;
            tree.add(entry.meta, Body::File(content))?
        }
        Kind::Symlink => {
            if entry.link.is_empty() || entry.link.contains(&0) {
                return Err("it points nowhere".to_owned());
            }
            tree.add(entry.meta, Body::Symlink(entry.link.into()))?
        }
        Kind::Fifo => tree.add(entry.meta, Body::Fifo)?,
        Kind::Link => linked(tree, &entry.link)?,
        Kind::Device => return Err("it is a device".to_owned()),
    };
    tree.put(directory, name, Name { node, layer })
}

/// The node that a hard link names, in this layer or below.
fn linked(tree: &mut Tree, target: &[u8]) -> Result<NodeId, String> {
    let to = shown(target);
    let path = entry_path(target).map_err(|why| format!("it links to {to}: {why}"))?;
    let missing = || format!("it links to {to}, which is not there");
    let (name, parents) = path.split_last().ok_or_else(missing)?;
    let directory = tree.directory(parents, None)?.ok_or_else(missing)?;
    let found = tree.lookup(directory, name).ok_or_else(missing)?;
    match tree.node(found.node).body {
        Body::Directory(_) => Err(format!("it links to {to}, which is a directory")),
        _ => Ok(found.node),
    }
}

fn whiteout(
    tree: &mut Tree,
    layer: usize,
    parents: &[&[u8]],
    name: &[u8],
    hidden: &[u8],
) -> Result<(), String> {
    if name != OPAQUE && name.starts_with(INTERNAL) {
        return Ok(());
    }
    if matches!(hidden, b"" | b"." | b"..") {
        return Err("it is a whiteout of nothing".to_owned());
    }
    let Some(directory) = tree.directory(parents, None)? else {
        return Ok(()); // nothing is there to hide
    };
    if name == OPAQUE {
        prune(tree, directory, layer);
        return Ok(());
    }
    if let Some(found) = tree.lookup(directory, hidden)
        && !survives(tree, found, layer)
        && let Some(names) = tree.names_mut(directory)
    {
        names.remove(hidden);
    }
    Ok(())
}

/// Whether a name is still there when what lies below `layer` is gone; under it that is carried out.
fn survives(tree: &mut Tree, name: Name, layer: usize) -> bool {
    prune(tree, name.node, layer) || name.layer == layer
}

/// Removes from a directory what lies below `layer`, and says whether anything is left in it. As deep
/// as a path may be, and once for each layer: what is below it does not come back.
fn prune(tree: &mut Tree, directory: NodeId, layer: usize) -> bool {
    let node = tree.node_mut(directory);
    let before = std::mem::replace(&mut node.pruned, layer);
    let Body::Directory(names) = &mut node.body else {
        return false;
    };
    if before == layer {
        return !names.is_empty();
    }
    let mut names = std::mem::take(names);
    names.retain(|_, found| survives(tree, *found, layer));
    let left = !names.is_empty();
    tree.node_mut(directory).body = Body::Directory(names);
    left
}
