//! The archive as a whole: where each of its parts is.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

use crate::error::{ImageError, Result};
use crate::limits::{DOCUMENT_LEN_MAX, PARTS_MAX};
use crate::slice::Slice;
use crate::tarball::{self, Kind, shown};

/// LIMIT: links from name to name inside an archive; `docker save` makes one.
const ALIAS_HOPS_MAX: usize = 4;

/// The parts of an archive by name.
#[derive(Debug)]
pub(crate) struct Parts {
    files: BTreeMap<String, Slice>,
    /// Older engines write a layer once, and symbolic links to it.
    aliases: BTreeMap<String, String>,
}

impl Parts {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(ImageError::io("open", path))?;
        let whole = Slice::whole(Arc::new(file)).map_err(ImageError::io("read", path))?;
        refuse_compressed(&whole, path)?;
        let mut parts = Self {
            files: BTreeMap::new(),
            aliases: BTreeMap::new(),
        };
        let not_a_tar = |why: String| ImageError::NotAnImage { why };
        tarball::read(&whole, not_a_tar, |entry| {
            if parts.files.len() + parts.aliases.len() >= PARTS_MAX {
                return Err(ImageError::TooLarge {
                    what: "the number of files in the archive".to_owned(),
                    limit: PARTS_MAX as u64,
                });
            }
            let directory = |name: &str| {
                name.rsplit_once('/')
                    .map_or("", |(above, _)| above)
                    .to_owned()
            };
            let wrong = || ImageError::NotAnImage {
                why: format!("the name {} in it is unusable", shown(&entry.path)),
            };
            match entry.kind {
                Kind::File => {
                    let name = plain("", &entry.path).ok_or_else(wrong)?;
                    let content = whole.part(entry.offset, entry.len).ok_or_else(wrong)?;
                    // Two parts of one name, and two readers that differ: neither is believed.
                    if parts.files.insert(name, content).is_some() {
                        return Err(wrong());
                    }
                }
                Kind::Symlink | Kind::Link => {
                    let name = plain("", &entry.path).ok_or_else(wrong)?;
                    let base = match entry.kind {
                        Kind::Link => String::new(),
                        _ => directory(&name),
                    };
                    let target = plain(&base, &entry.link).ok_or_else(wrong)?;
                    parts.aliases.insert(name, target);
                }
                Kind::Directory => {}
                Kind::Fifo | Kind::Device => return Err(wrong()),
            }
            Ok(())
        })?;
        Ok(parts)
    }

    /// A part of that name.
    pub(crate) fn get(&self, name: &str) -> Option<&Slice> {
        let mut name = name;
        for _ in 0..=ALIAS_HOPS_MAX {
            match self.aliases.get(name) {
                Some(target) => name = target,
                None => return self.files.get(name),
            }
        }
        None
    }

    /// A part that is there to be read into memory.
    pub(crate) fn document(&self, name: &str) -> Result<Option<Vec<u8>>> {
        self.get(name)
            .map(|part| document(name, part.clone()))
            .transpose()
    }
}

/// The bytes of a manifest or a config.
pub(crate) fn document(name: &str, mut part: Slice) -> Result<Vec<u8>> {
    if part.len() > DOCUMENT_LEN_MAX {
        return Err(ImageError::TooLarge {
            what: format!("{name}, in bytes,"),
            limit: DOCUMENT_LEN_MAX,
        });
    }
    let mut bytes = Vec::new();
    part.read_to_end(&mut bytes)
        .map_err(|error| ImageError::damaged(name, error.to_string()))?;
    Ok(bytes)
}

/// A relative name without `.` and `..`, seen from `base`; `None` if it leaves the archive.
fn plain(base: &str, name: &[u8]) -> Option<String> {
    let name = std::str::from_utf8(name).ok()?;
    if name.starts_with('/') || name.contains('\0') {
        return None;
    }
    let mut parts: Vec<&str> = base.split('/').filter(|part| !part.is_empty()).collect();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}

fn refuse_compressed(whole: &Slice, path: &Path) -> Result<()> {
    let mut magic = Vec::new();
    let read = whole.clone().take(6).read_to_end(&mut magic);
    read.map_err(ImageError::io("read", path))?;
    let (with, command) = match magic.as_slice() {
        [0x1f, 0x8b, ..] => ("gzip", "gzip -d image.tar.gz"),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => ("zstd", "zstd -d image.tar.zst"),
        [0xfd, b'7', b'z', b'X', b'Z', 0] => ("xz", "xz -d image.tar.xz"),
        [b'B', b'Z', b'h', ..] => ("bzip2", "bzip2 -d image.tar.bz2"),
        _ => return Ok(()),
    };
    Err(ImageError::Compressed { with, command })
}
