//! The entries of one tar: POSIX.1-1988 and ustar headers, GNU long names, PAX records (POSIX.1-2001).
//!
//! Extended headers are read here and not by the `tar` crate, which holds a long name of any length in
//! memory.

use std::io::Read as _;

use tar::{Archive, EntryType, Header, PaxExtensions};

use crate::limits::{EXTENSION_LEN_MAX, PATH_LEN_MAX};
use crate::slice::Slice;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    /// A name for the file that `link` names.
    Link,
    Symlink,
    Directory,
    Fifo,
    /// Block or character.
    Device,
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// As it is written.
    pub(crate) path: Vec<u8>,
    /// Where a link points, as it is written.
    pub(crate) link: Vec<u8>,
    pub(crate) kind: Kind,
    pub(crate) meta: Meta,
    /// Where its content is in the tar.
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

/// What an inode has beside its content.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Meta {
    /// Permission bits with set-id and sticky.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds since 1970.
    pub(crate) mtime: u64,
    /// Sorted by name.
    pub(crate) xattrs: Vec<(String, Vec<u8>)>,
}

/// What stands before a header, for it.
#[derive(Debug, Default)]
struct Extension {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<u64>,
    xattrs: Vec<(String, Vec<u8>)>,
}

/// Gives each entry of `tar` to `take`, in order. `E` is the caller's, made of a sentence for what is
/// wrong with the tar itself.
pub(crate) fn read<E>(
    tar: &Slice,
    wrong: impl Fn(String) -> E,
    mut take: impl FnMut(Entry) -> Result<(), E>,
) -> Result<(), E> {
    let mut archive = Archive::new(tar.clone());
    let entries = archive.entries_with_seek();
    let entries = entries.map_err(|error| wrong(error.to_string()))?;
    let mut extension = Extension::default();
    for entry in entries.raw(true) {
        let mut entry = entry.map_err(|error| wrong(error.to_string()))?;
        let kind = entry.header().entry_type();
        let len = entry.header().entry_size();
        let len = len.map_err(|error| wrong(error.to_string()))?;
        if matches!(
            kind,
            EntryType::GNULongName
                | EntryType::GNULongLink
                | EntryType::XHeader
                | EntryType::XGlobalHeader
        ) {
            if len > EXTENSION_LEN_MAX {
                let text = format!("an extended header of {len} bytes, over {EXTENSION_LEN_MAX}");
                return Err(wrong(text));
            }
            let mut text = Vec::new();
            let read = entry.read_to_end(&mut text);
            read.map_err(|error| wrong(error.to_string()))?;
            extension.add(kind, text).map_err(&wrong)?;
            continue;
        }
        let offset = entry.raw_file_position();
        let extension = std::mem::take(&mut extension);
        let found = whole(entry.header(), extension, offset, len).map_err(&wrong)?;
        if tar.part(found.offset, found.len).is_none() {
            return Err(wrong(format!("{} is cut off", shown(&found.path))));
        }
        take(found)?;
    }
    Ok(())
}

/// For messages.
pub(crate) fn shown(name: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(name)
        .escape_debug()
        .take(120)
        .collect();
    if text.is_empty() {
        "(no name)".to_owned()
    } else {
        text
    }
}

impl Extension {
    fn add(&mut self, kind: EntryType, mut text: Vec<u8>) -> Result<(), String> {
        match kind {
            EntryType::GNULongName | EntryType::GNULongLink => {
                while text.last() == Some(&0) {
                    text.pop();
                }
                if kind == EntryType::GNULongName {
                    self.path = Some(text);
                } else {
                    self.link = Some(text);
                }
                Ok(())
            }
            EntryType::XHeader => self.pax(&text),
            // Global records are comments in practice (`git archive`); none of them names an entry.
            _ => Ok(()),
        }
    }

    fn pax(&mut self, text: &[u8]) -> Result<(), String> {
        for record in PaxExtensions::new(text) {
            let record = record.map_err(|error| error.to_string())?;
            let key = record.key_bytes();
            let value = record.value_bytes();
            let number = || -> Result<u64, String> {
                let text = std::str::from_utf8(value).ok();
                // Times have fractions.
                let whole = text.and_then(|text| text.split('.').next());
                let number = whole.and_then(|whole| whole.parse().ok());
                number.ok_or_else(|| format!("{} is no number", shown(value)))
            };
            match key {
                b"path" => self.path = Some(value.to_vec()),
                b"linkpath" => self.link = Some(value.to_vec()),
                b"uid" => self.uid = Some(number()?),
                b"gid" => self.gid = Some(number()?),
                // Times before 1970 are of no use to anybody.
                b"mtime" => self.mtime = Some(number().unwrap_or(0)),
                b"size" => return Err("a file of 8 GiB or more".to_owned()),
                _ if key.starts_with(b"GNU.sparse.") => return Err("a sparse file".to_owned()),
                _ => self.xattr(key, value),
            }
        }
        Ok(())
    }

    /// Keeps what a squashfs can hold and an overlay does not read as its own.
    fn xattr(&mut self, key: &[u8], value: &[u8]) {
        let name = key.strip_prefix(b"SCHILY.xattr.".as_slice());
        let Some(name) = name.and_then(|name| std::str::from_utf8(name).ok()) else {
            return;
        };
        let kept = ["user.", "security.", "trusted."];
        let kept = kept.iter().any(|space| name.starts_with(space));
        let of_overlay = ["user.overlay.", "trusted.overlay."];
        let of_overlay = of_overlay.iter().any(|space| name.starts_with(space));
        if !kept || of_overlay || name.len() > 255 || name.contains('=') {
            return;
        }
        self.xattrs.retain(|(other, _)| other != name);
        self.xattrs.push((name.to_owned(), value.to_vec()));
    }
}

/// A header with what stood before it.
fn whole(header: &Header, before: Extension, offset: u64, len: u64) -> Result<Entry, String> {
    let path = before.path.unwrap_or_else(|| header.path_bytes().into());
    let name = shown(&path);
    let kind = match header.entry_type() {
        EntryType::Regular | EntryType::Continuous => Kind::File,
        EntryType::Link => Kind::Link,
        EntryType::Symlink => Kind::Symlink,
        EntryType::Directory => Kind::Directory,
        EntryType::Fifo => Kind::Fifo,
        EntryType::Char | EntryType::Block => Kind::Device,
        EntryType::GNUSparse => return Err(format!("{name} is a sparse file")),
        other => {
            return Err(format!(
                "{name} is of type {:?}",
                char::from(other.as_byte())
            ));
        }
    };
    // A directory of the oldest tars is a file whose name ends so.
    let kind = match kind {
        Kind::File if path.ends_with(b"/") => Kind::Directory,
        kind => kind,
    };
    let link = before
        .link
        .or_else(|| header.link_name_bytes().map(Into::into));
    let link = link.unwrap_or_default();
    if path.len() > PATH_LEN_MAX || link.len() > PATH_LEN_MAX {
        return Err(format!(
            "{name} has a path of more than {PATH_LEN_MAX} bytes"
        ));
    }
    let field = |found: std::io::Result<u64>| found.map_err(|error| format!("{name}: {error}"));
    let id = |before: Option<u64>, found: std::io::Result<u64>| {
        let id = before.map_or_else(|| field(found), Ok)?;
        u32::try_from(id).map_err(|_| format!("{name} has the owner {id}, over 32 bits"))
    };
    let mut xattrs = before.xattrs;
    xattrs.sort();
    let mode = header.mode().map_err(|error| format!("{name}: {error}"))?;
    let meta = Meta {
        mode: mode & 0o7777,
        uid: id(before.uid, header.uid())?,
        gid: id(before.gid, header.gid())?,
        mtime: before.mtime.map_or_else(|| field(header.mtime()), Ok)?,
        xattrs,
    };
    // Only files have content; what stands behind other headers is skipped with them.
    let len = if kind == Kind::File { len } else { 0 };
    Ok(Entry {
        path,
        link,
        kind,
        meta,
        offset,
        len,
    })
}
