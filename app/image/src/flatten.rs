//! The merged layers as one tar, sorted by path: the same image gives the same bytes.

use std::collections::BTreeMap;
use std::io::{self, Write};

use tar::{Builder, EntryType, Header};

use crate::slice::Slice;
use crate::tarball::Meta;
use crate::tree::{Body, Name, NodeId, Tree};

/// LIMIT: a name in a header; longer ones stand in a record before it.
const HEADER_NAME_LEN: usize = 100;

/// The file system of an image, its files in spooled layers that go with it.
#[derive(Debug)]
pub struct Flat {
    tree: Tree,
}

/// A name that is still to be written.
struct Next {
    path: Vec<u8>,
    node: NodeId,
}

impl Flat {
    pub(crate) const fn new(tree: Tree) -> Self {
        Self { tree }
    }

    /// The mode, user and group of the root directory, which is not in the tar.
    #[must_use]
    pub fn root_owner(&self) -> (u32, u32, u32) {
        let meta = &self.tree.node(self.tree.root()).meta;
        (meta.mode, meta.uid, meta.gid)
    }

    /// Writes everything but the root itself.
    ///
    /// # Errors
    /// Those of `out`, and of reading the spooled layers.
    pub fn write_to(&self, out: impl Write) -> io::Result<()> {
        let mut out = Builder::new(out);
        let shared = self.shared();
        let mut first: BTreeMap<NodeId, Vec<u8>> = BTreeMap::new();
        let mut ahead = Vec::new();
        self.below(self.tree.root(), b"", &mut ahead);
        while let Some(Next { path, node }) = ahead.pop() {
            if let Some(to) = first.get(&node) {
                write(&mut out, &path, Form::Link(to), &self.tree.node(node).meta)?;
                continue;
            }
            if shared[node.index()] {
                first.insert(node, path.clone());
            }
            let form = match &self.tree.node(node).body {
                Body::Directory(_) => Form::Directory,
                Body::File(content) => Form::File(content.clone()),
                Body::Symlink(target) => Form::Symlink(target),
                Body::Fifo => Form::Fifo,
            };
            write(&mut out, &path, form, &self.tree.node(node).meta)?;
            self.below(node, &path, &mut ahead);
        }
        out.into_inner()?.flush()
    }

    /// Puts the names of a directory on the stack, the first on top.
    fn below(&self, node: NodeId, path: &[u8], ahead: &mut Vec<Next>) {
        let names = self.tree.names(node).into_iter().flatten().rev();
        ahead.extend(names.map(|(name, found): (_, &Name)| {
            let mut below = path.to_vec();
            if !below.is_empty() {
                below.push(b'/');
            }
            below.extend_from_slice(name);
            Next {
                path: below,
                node: found.node,
            }
        }));
    }

    /// Which nodes have more than one name.
    fn shared(&self) -> Vec<bool> {
        let mut seen = vec![false; self.tree.len()];
        let mut shared = vec![false; self.tree.len()];
        let mut ahead = vec![self.tree.root()];
        while let Some(node) = ahead.pop() {
            for name in self.tree.names(node).into_iter().flat_map(BTreeMap::values) {
                let at = name.node.index();
                if std::mem::replace(&mut seen[at], true) {
                    shared[at] = true;
                }
                ahead.push(name.node);
            }
        }
        shared
    }
}

enum Form<'a> {
    Directory,
    File(Slice),
    Symlink(&'a [u8]),
    Fifo,
    Link(&'a [u8]),
}

fn write(
    out: &mut Builder<impl Write>,
    path: &[u8],
    form: Form<'_>,
    meta: &Meta,
) -> io::Result<()> {
    let mut header = Header::new_ustar();
    header.set_mode(meta.mode);
    header.set_uid(u64::from(meta.uid));
    header.set_gid(u64::from(meta.gid));
    header.set_mtime(meta.mtime);
    let (kind, link, content) = match form {
        Form::Directory => (EntryType::Directory, None, None),
        Form::File(content) => (EntryType::Regular, None, Some(content)),
        Form::Symlink(target) => (EntryType::Symlink, Some(target), None),
        Form::Fifo => (EntryType::Fifo, None, None),
        Form::Link(to) => (EntryType::Link, Some(to), None),
    };
    header.set_entry_type(kind);
    header.set_size(content.as_ref().map_or(0, Slice::len));

    let mut records: Vec<(String, &[u8])> = Vec::new();
    if !fits(&mut header.as_old_mut().name, path) {
        records.push(("path".to_owned(), path));
    }
    if let Some(link) = link
        && !fits(&mut header.as_old_mut().linkname, link)
    {
        records.push(("linkpath".to_owned(), link));
    }
    if kind != EntryType::Link {
        let xattrs = meta.xattrs.iter();
        records.extend(xattrs.map(|(name, value)| (format!("SCHILY.xattr.{name}"), &value[..])));
    }
    if !records.is_empty() {
        let records = records.iter().map(|(key, value)| (key.as_str(), *value));
        out.append_pax_extensions(records)?;
    }
    header.set_cksum();
    match content {
        Some(content) => out.append(&header, content),
        None => out.append(&header, io::empty()),
    }
}

/// Writes a name into a header's field as far as it goes, and says whether it went whole.
fn fits(field: &mut [u8; HEADER_NAME_LEN], name: &[u8]) -> bool {
    let count = name.len().min(field.len());
    field[..count].copy_from_slice(&name[..count]);
    name.len() <= field.len()
}
