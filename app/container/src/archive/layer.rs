//! A layer: unpacked as it is read, and never more of it than is allowed.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use flate2::read::MultiGzDecoder;
use sha2::Digest as _;
use tar::{Archive, EntryType, PaxExtensions};

use super::index::Span;
use super::{ArchiveError, Sha256};

/// Bytes that are read at a time.
const CHUNK: usize = 64 * 1024;
/// LIMIT: the extended header of one entry, in bytes: paths and attributes.
const RECORDS_LEN_MAX: u64 = 1024 * 1024;
/// LIMIT: what zstd may keep of what it has unpacked, as a power of two: 128 MiB, what its own tool takes.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// A part of the file, read by position: several may be read at once.
struct Section<F> {
    file: F,
    span: Span,
}

impl<F: AsRef<File>> Read for Section<F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.span.len).unwrap_or(usize::MAX);
        let len = buffer.len().min(left);
        let read = self
            .file
            .as_ref()
            .read_at(&mut buffer[..len], self.span.at)?;
        self.span.at += read as u64;
        self.span.len -= read as u64;
        Ok(read)
    }
}

struct Borrowed<'a>(&'a File);

impl AsRef<File> for Borrowed<'_> {
    fn as_ref(&self) -> &File {
        self.0
    }
}

/// The layer's tar, whatever it is compressed with.
pub(super) fn unpacked(file: &Arc<File>, span: Span) -> io::Result<Box<dyn Read + Send>> {
    let file = Arc::clone(file);
    open(Section { file, span })
}

fn open<'a, F: AsRef<File> + Send + 'a>(
    section: Section<F>,
) -> io::Result<Box<dyn Read + Send + 'a>> {
    let mut begin = [0; 4];
    let there = section.file.as_ref().read_at(&mut begin, section.span.at)?;
    let there = there.min(usize::try_from(section.span.len).unwrap_or(usize::MAX));
    let section = BufReader::with_capacity(CHUNK, section);
    Ok(match &begin[..there] {
        [0x1f, 0x8b, ..] => Box::new(MultiGzDecoder::new(section)),
        [0x28, 0xb5, 0x2f, 0xfd] => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(section)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
            Box::new(decoder)
        }
        _ => Box::new(section),
    })
}

/// What may be unpacked of all layers together.
pub(super) struct Room {
    taken: u64,
    max: u64,
}

impl Room {
    pub(super) const fn new(max: u64) -> Self {
        Self { taken: 0, max }
    }

    fn take(&mut self, len: usize) -> Result<(), ArchiveError> {
        self.taken += len as u64;
        if self.taken > self.max {
            return Err(ArchiveError::too_long(
                "layers, unpacked",
                self.taken,
                self.max,
            ));
        }
        Ok(())
    }
}

/// Reads the layer to its end: how long it is, unpacked, if there is room for it, its digest is `diff_id` and
/// it has nothing that an engine would make larger than it is.
pub(super) fn measure(
    file: &File,
    span: Span,
    diff_id: Sha256,
    at: usize,
    room: &mut Room,
) -> Result<u64, ArchiveError> {
    let number = at + 1;
    let damaged = |error: io::Error| {
        ArchiveError::damaged(format!("layer {number} cannot be unpacked: {error}"))
    };
    let file = Borrowed(file);
    let mut measured = Measured {
        reader: open(Section { file, span }).map_err(damaged)?,
        hasher: sha2::Sha256::new(),
        len: 0,
        room,
        full: None,
    };
    let read = entries(&mut measured).and_then(|()| {
        // What stands behind the end of the tar belongs to the digest as well.
        io::copy(&mut measured, &mut io::sink())
    });
    if let Some(full) = measured.full {
        return Err(full);
    }
    read.map_err(damaged)?;
    if Sha256(measured.hasher.finalize().into()) != diff_id {
        let what = format!("layer {number} is not what its digest {diff_id} says");
        return Err(ArchiveError::Damaged(what));
    }
    Ok(measured.len)
}

/// Looks at every header. A sparse file is as large as it says, with nothing behind it; a size in an extended
/// header makes two readers of one tar see different entries.
fn entries(measured: &mut impl Read) -> io::Result<()> {
    let mut tar = Archive::new(measured);
    for entry in tar.entries()?.raw(true) {
        let entry = entry?;
        match entry.header().entry_type() {
            EntryType::GNUSparse => return Err(io::Error::other("it has a sparse file")),
            EntryType::XHeader | EntryType::XGlobalHeader => {
                let mut records = Vec::new();
                entry.take(RECORDS_LEN_MAX + 1).read_to_end(&mut records)?;
                if records.len() as u64 > RECORDS_LEN_MAX {
                    return Err(io::Error::other(
                        "it has an extended header that is too long",
                    ));
                }
                for record in PaxExtensions::new(&records) {
                    let record = record?;
                    let key = record.key_bytes();
                    if key.starts_with(b"GNU.sparse.") {
                        return Err(io::Error::other("it has a sparse file"));
                    }
                    if key == b"size" {
                        return Err(io::Error::other("it has a file of 8 GiB or more"));
                    }
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// Counts and hashes what is read, while there is room for it.
struct Measured<'a, R> {
    reader: R,
    hasher: sha2::Sha256,
    len: u64,
    room: &'a mut Room,
    full: Option<ArchiveError>,
}

impl<R: Read> Read for Measured<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = buffer.len().min(CHUNK);
        let read = self.reader.read(&mut buffer[..len])?;
        if let Err(full) = self.room.take(read) {
            self.full = Some(full);
            return Err(io::Error::other("it is too large"));
        }
        self.len += read as u64;
        self.hasher.update(&buffer[..read]);
        Ok(read)
    }
}
