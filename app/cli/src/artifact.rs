//! What is uploaded: each file opened once, listed with size and digest, and the component checked
//! before anybody is bothered with it.

use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::path::Path;

use tabbify_api::artifact::{ArtifactFile, ArtifactPath, FILE_LEN_MAX};
use tabbify_types::Digest;

use crate::error::{Code, Failure, Result};
use crate::output;

/// How a component begins: magic, version 13, layer 1 (the component model's binary format).
const COMPONENT: [u8; 8] = *b"\0asm\x0d\0\x01\0";
/// How every WebAssembly file begins.
const MAGIC: [u8; 4] = *b"\0asm";
/// Version and layer of a core module.
const CORE: [u8; 4] = [1, 0, 0, 0];

/// One file to upload.
#[derive(Debug)]
pub(crate) struct Item {
    pub(crate) listed: ArtifactFile,
    pub(crate) content: Content,
}

/// Where its bytes come from.
#[derive(Debug)]
pub(crate) enum Content {
    Bytes(Vec<u8>),
    /// Opened before it was listed: a build that replaces the file does not change what is sent.
    File(File),
}

impl Item {
    pub(crate) fn bytes(path: &str, bytes: Vec<u8>) -> Self {
        let size = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let listed = ArtifactFile {
            path: plain(path),
            size,
            digest: Digest::of(&bytes),
        };
        Self {
            listed,
            content: Content::Bytes(bytes),
        }
    }

    /// The component at `file`, to be uploaded as `path`. `named` says which key names it, and where.
    pub(crate) fn component(path: &str, file: &Path, named: &str) -> Result<Self> {
        Self::file(path, file, named, &COMPONENTS)
    }

    /// The file of an image at `file`, as above. What is in it, the platform's machines look at.
    pub(crate) fn image(path: &str, file: &Path, named: &str) -> Result<Self> {
        Self::file(path, file, named, &IMAGES)
    }

    fn file(path: &str, file: &Path, named: &str, form: &Form) -> Result<Self> {
        let shown = file.display();
        let failure = |code, what: String| Failure::new(code, format!("{shown} {what} ({named})."));
        let unreadable =
            |error: io::Error| failure(form.missing, format!("cannot be read: {error}"));
        let mut opened = match File::open(file) {
            Ok(opened) => opened,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let failure = failure(form.missing, "is not there".to_owned());
                return Err(failure.fix(form.make));
            }
            Err(error) => return Err(unreadable(error)),
        };
        if !opened.metadata().map_err(unreadable)?.is_file() {
            return Err(failure(form.missing, "is not a file".to_owned()));
        }
        let mut begin = Vec::new();
        (&opened)
            .take(8)
            .read_to_end(&mut begin)
            .map_err(unreadable)?;
        (form.check)(&begin).map_err(|wrong| failure(form.wrong, wrong.what).fix(wrong.fix))?;
        opened.rewind().map_err(unreadable)?;
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(&opened).map_err(unreadable)?;
        let size = hasher.count();
        if size > FILE_LEN_MAX {
            let (size, max) = (output::size(size), output::size(FILE_LEN_MAX));
            let what = format!("has {size}, and {max} are allowed");
            return Err(failure(form.wrong, what));
        }
        let digest = Digest(*hasher.finalize().as_bytes());
        let listed = ArtifactFile {
            path: plain(path),
            size,
            digest,
        };
        Ok(Self {
            listed,
            content: Content::File(opened),
        })
    }
}

/// What is asked of a file, and said if it is not so.
struct Form {
    missing: Code,
    wrong: Code,
    make: &'static str,
    check: fn(&[u8]) -> std::result::Result<(), Wrong>,
}

const COMPONENTS: Form = Form {
    missing: Code::NoComponent,
    wrong: Code::NotAComponent,
    make: "Build it first, or name the command that does in build.command.",
    check: check_preamble,
};

const IMAGES: Form = Form {
    missing: Code::NoImage,
    wrong: Code::NotAnImage,
    make: "Save it first: docker save -o <file> <image>",
    check: check_archive,
};

/// How files begin that are compressed as a whole, which no machine takes.
const COMPRESSED: [(&[u8], &str); 4] = [
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\xfd7zXZ\0", "xz"),
    (b"BZh", "bzip2"),
];

fn check_archive(begin: &[u8]) -> std::result::Result<(), Wrong> {
    let compressed = COMPRESSED
        .iter()
        .find(|(magic, _)| begin.starts_with(magic));
    let what = match compressed {
        Some((_, name)) => format!("is compressed with {name}"),
        None if begin.is_empty() => "is empty".to_owned(),
        None => return Ok(()),
    };
    let fix = "Save it as a plain tar file: its layers may be compressed, the file may not.";
    Err(Wrong { what, fix })
}

fn plain(path: &str) -> ArtifactPath {
    path.parse().expect("the paths of our own files are plain")
}

/// Why a file is not a component, and what to do about it.
#[derive(Debug)]
struct Wrong {
    what: String,
    fix: &'static str,
}

fn check_preamble(begin: &[u8]) -> std::result::Result<(), Wrong> {
    if begin == COMPONENT {
        return Ok(());
    }
    let fix = "Build it for wasm32-wasip2, whose output is a component.";
    if !begin.starts_with(&MAGIC) {
        let hex: Vec<String> = begin.iter().map(|byte| format!("{byte:02x}")).collect();
        let begins = if hex.is_empty() {
            "is empty".to_owned()
        } else {
            hex.join(" ")
        };
        let what = match hex.len() {
            0 => "is empty".to_owned(),
            _ => format!("is not WebAssembly: it begins with {begins}"),
        };
        return Err(Wrong { what, fix });
    }
    if begin[4..] == CORE {
        let what = "is a core WebAssembly module, not a component".to_owned();
        return Err(Wrong { what, fix });
    }
    let what = "is WebAssembly of a form that is not a component's".to_owned();
    Err(Wrong {
        what,
        fix: "Build it with current tools; a component has version 13, layer 1.",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archives() {
        let check = |begin: &[u8], part: &str| {
            let wrong = check_archive(begin).unwrap_err();
            assert!(wrong.what.contains(part), "{begin:?}: {}", wrong.what);
        };
        check_archive(b"index.js").unwrap();
        check(b"\x1f\x8b\x08\0\0\0\0\0", "with gzip");
        check(b"BZh91AY&", "with bzip2");
        check(b"", "is empty");
    }

    #[test]
    fn preambles() {
        let check = |begin: &[u8], part: &str| {
            let wrong = check_preamble(begin).unwrap_err();
            assert!(wrong.what.contains(part), "{begin:?}: {}", wrong.what);
        };
        check_preamble(&COMPONENT).unwrap();
        check(b"\0asm\x01\0\0\0", "core WebAssembly module");
        check(b"\0asm\x0a\0\x01\0", "of a form");
        check(b"\0asm", "of a form");
        check(b"\x7fELF\x02\x01\x01\0", "7f 45 4c 46");
        check(b"\0as", "not WebAssembly");
        check(b"", "is empty");
    }
}
