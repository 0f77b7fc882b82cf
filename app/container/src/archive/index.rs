//! What stands where in a tar: names and spans, without the content.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek as _, SeekFrom};
use std::os::unix::fs::FileExt as _;

use tar::{Archive, EntryType, PaxExtensions};

use super::ArchiveError;

/// LIMIT: entries of an image's file: three for each layer, and some of its own.
const ENTRIES_MAX: usize = 4096;
/// LIMIT: a name in it, in bytes.
const NAME_LEN_MAX: usize = 1024;
/// LIMIT: a record that holds a long name, in bytes; extended attributes stand there, too.
const RECORD_LEN_MAX: u64 = 64 * 1024;
/// LIMIT: links that are followed from one name: savers make one for a layer that is there twice.
const LINKS_MAX: usize = 4;
/// How gzip, zstd, xz and bzip2 begin.
const COMPRESSED: [(&[u8], &str); 4] = [
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\xfd7zXZ\0", "xz"),
    (b"BZh", "bzip2"),
];

/// Where some bytes of the file are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) at: u64,
    pub(super) len: u64,
}

impl Span {
    /// The whole of it, of `max` bytes at most.
    pub(super) fn bytes(self, file: &File, what: &str, max: u64) -> Result<Vec<u8>, ArchiveError> {
        if self.len > max {
            let what = format!("{what} has {} bytes, more than {max}", self.len);
            return Err(ArchiveError::Damaged(what));
        }
        let len = usize::try_from(self.len).map_err(|_| ArchiveError::damaged(what))?;
        let mut bytes = vec![0; len];
        file.read_exact_at(&mut bytes, self.at)
            .map_err(ArchiveError::Read)?;
        Ok(bytes)
    }
}

enum Entry {
    File(Span),
    Link(String),
}

/// The names in a file.
pub(super) struct Index(HashMap<String, Entry>);

impl Index {
    /// Reads every header.
    pub(super) fn read(file: &File) -> Result<Self, ArchiveError> {
        let mut begin = Vec::new();
        let mut reader = BufReader::new(file);
        reader
            .seek(SeekFrom::Start(0))
            .map_err(ArchiveError::Read)?;
        (&mut reader)
            .take(8)
            .read_to_end(&mut begin)
            .map_err(ArchiveError::Read)?;
        if let Some((_, name)) = COMPRESSED
            .iter()
            .find(|(magic, _)| begin.starts_with(magic))
        {
            return Err(ArchiveError::Compressed(name));
        }
        reader
            .seek(SeekFrom::Start(0))
            .map_err(ArchiveError::Read)?;
        let mut archive = Archive::new(reader);
        let len = file.metadata().map_err(ArchiveError::Read)?.len();
        let not_tar = |error: std::io::Error| ArchiveError::NotTar(error.to_string());
        let mut entries = HashMap::new();
        let raw = archive.entries_with_seek().map_err(not_tar)?.raw(true);
        let mut long = Long::default();
        for (count, entry) in raw.enumerate() {
            let mut entry = entry.map_err(not_tar)?;
            if count >= ENTRIES_MAX {
                let max = ENTRIES_MAX as u64;
                return Err(ArchiveError::too_many("entries", max + 1, max));
            }
            let kind = entry.header().entry_type();
            if long.take(kind, &mut entry)? {
                continue;
            }
            let Long { name, link } = std::mem::take(&mut long);
            let name = plain(&name.unwrap_or_else(|| entry.header().path_bytes().into_owned()))?;
            let span = Span {
                at: entry.raw_file_position(),
                len: entry.header().entry_size().map_err(not_tar)?,
            };
            let found = match kind {
                EntryType::Regular | EntryType::Continuous => {
                    if span.at.checked_add(span.len).is_none_or(|end| end > len) {
                        let what = format!("it ends in the middle of {name:?}");
                        return Err(ArchiveError::Damaged(what));
                    }
                    Entry::File(span)
                }
                EntryType::Symlink | EntryType::Link => {
                    let inline = || entry.header().link_name_bytes().unwrap_or_default();
                    let target = plain(&link.unwrap_or_else(|| inline().into_owned()))?;
                    // A hard link names its target from the top, a symbolic one from where it stands.
                    let from = if kind == EntryType::Link {
                        ""
                    } else {
                        name.as_str()
                    };
                    Entry::Link(resolved(from, &target))
                }
                // Folders, and what no image's file has.
                _ => continue,
            };
            entries.insert(resolved("", &name), found);
        }
        Ok(Self(entries))
    }

    /// Where a file is, through the links to it.
    pub(super) fn get(&self, name: &str) -> Option<Span> {
        let mut name = resolved("", name);
        for _ in 0..=LINKS_MAX {
            match self.0.get(&name)? {
                Entry::File(span) => return Some(*span),
                Entry::Link(target) => name.clone_from(target),
            }
        }
        None
    }
}

/// Names that do not fit a header stand in a record before it: two forms of GNU's, and PAX.
#[derive(Default)]
struct Long {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

impl Long {
    /// Whether the entry is such a record.
    fn take(&mut self, kind: EntryType, record: &mut impl Read) -> Result<bool, ArchiveError> {
        let place = match kind {
            EntryType::GNULongName => &mut self.name,
            EntryType::GNULongLink => &mut self.link,
            EntryType::XHeader => return self.take_pax(record).map(|()| true),
            EntryType::XGlobalHeader => return Ok(true),
            _ => return Ok(false),
        };
        let mut name = read_record(record)?;
        name.pop_if(|last| *last == 0);
        *place = Some(name);
        Ok(true)
    }

    fn take_pax(&mut self, record: &mut impl Read) -> Result<(), ArchiveError> {
        let record = read_record(record)?;
        for extension in PaxExtensions::new(&record) {
            let extension = extension.map_err(|error| ArchiveError::NotTar(error.to_string()))?;
            let place = match extension.key_bytes() {
                b"path" => &mut self.name,
                b"linkpath" => &mut self.link,
                _ => continue,
            };
            *place = Some(extension.value_bytes().to_vec());
        }
        Ok(())
    }
}

fn read_record(record: &mut impl Read) -> Result<Vec<u8>, ArchiveError> {
    let mut bytes = Vec::new();
    let read = record.take(RECORD_LEN_MAX + 1).read_to_end(&mut bytes);
    read.map_err(|error| ArchiveError::NotTar(error.to_string()))?;
    let len = bytes.len() as u64;
    if len > RECORD_LEN_MAX {
        return Err(ArchiveError::too_many("longest name", len, RECORD_LEN_MAX));
    }
    Ok(bytes)
}

fn plain(name: &[u8]) -> Result<String, ArchiveError> {
    if name.len() > NAME_LEN_MAX {
        let (found, max) = (name.len() as u64, NAME_LEN_MAX as u64);
        return Err(ArchiveError::too_many("longest name", found, max));
    }
    let text = std::str::from_utf8(name);
    let text = text.map_err(|_| ArchiveError::damaged("a name in it is not UTF-8"))?;
    Ok(text.to_owned())
}

/// A path without `.` and `..`, relative to the folder of `from`. Nothing is ever written there: names only
/// find each other.
fn resolved(from: &str, path: &str) -> String {
    let folder = from.rsplit_once('/').map_or("", |(folder, _)| folder);
    let mut parts: Vec<&str> = Vec::new();
    for part in folder.split('/').chain(path.split('/')) {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_find_each_other() {
        for (from, path, expected) in [
            ("", "./index.json", "index.json"),
            ("a/layer.tar", "../b/layer.tar", "b/layer.tar"),
            ("a/layer.tar", "../../../etc/passwd", "etc/passwd"),
            ("", "/blobs//sha256/x", "blobs/sha256/x"),
            ("", "..", ""),
        ] {
            assert_eq!(resolved(from, path), expected, "{from} {path}");
        }
    }
}
