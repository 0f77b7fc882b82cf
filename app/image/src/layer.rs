//! One layer, from the archive to a plain tar whose bytes are known to be the ones that the image names.

use std::fs::File;
use std::io::{self, Read, Write as _};
use std::path::Path;
use std::sync::Arc;

use flate2::read::MultiGzDecoder;

use crate::digest::Hashing;
use crate::error::{ImageError, Result};
use crate::limits::Limits;
use crate::manifest::Layer;
use crate::slice::Slice;

/// LIMIT: memory of a zstd decoder, as a power of two: what `zstd --long` asks for at most.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;
/// Bytes that are copied at once.
const CHUNK_LEN: usize = 256 << 10;

/// How a layer is compressed. Its first bytes say so, whatever the manifest calls it: the digests tell
/// whether it is the right one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compression {
    None,
    Gzip,
    Zstd,
}

/// The tar of layer `number`, counted from 1. `bytes_left` is what all further layers may have.
pub(crate) fn spool(
    number: usize,
    layer: &Layer,
    directory: &Path,
    limits: &Limits,
    bytes_left: &mut u64,
) -> Result<Slice> {
    let damaged = |why: String| ImageError::damaged(format!("layer {number}"), why);
    let unreadable = |error: io::Error| damaged(error.to_string());
    let compression = compression(&layer.content).map_err(unreadable)?;
    let too_large = |bytes: u64| {
        if bytes > *bytes_left {
            return Some(("the sum of its layers, in bytes,", limits.bytes));
        }
        let paid = bytes.saturating_sub(Limits::RATIO_FREE) / limits.ratio;
        (paid > layer.content.len()).then_some(("what a layer expands to", limits.ratio))
    };
    let refuse = |(what, limit): (&str, u64)| ImageError::TooLarge {
        what: what.to_owned(),
        limit,
    };

    // An uncompressed layer stays where it is and is only read through.
    let mut spooled = match compression {
        Compression::None => None,
        _ => Some(tempfile::tempfile_in(directory).map_err(ImageError::io("write in", directory))?),
    };
    let mut compressed = Hashing::new(layer.content.clone());
    let mut plain = Hashing::new(decoder(compression, &mut compressed).map_err(unreadable)?);
    let mut chunk = vec![0; CHUNK_LEN];
    loop {
        let count = plain.read(&mut chunk).map_err(unreadable)?;
        if count == 0 {
            break;
        }
        if let Some(over) = too_large(plain.len()) {
            return Err(refuse(over));
        }
        if let Some(file) = &mut spooled {
            let written = file.write_all(&chunk[..count]);
            written.map_err(ImageError::io("write in", directory))?;
        }
    }
    *bytes_left -= plain.len();
    if plain.digest() != layer.diff {
        return Err(damaged("its content has another digest".to_owned()));
    }
    // What stands behind the compressed stream is still part of what was digested.
    io::copy(&mut compressed, &mut io::sink()).map_err(unreadable)?;
    if layer
        .digest
        .is_some_and(|digest| digest != compressed.digest())
    {
        return Err(damaged("its digest is another".to_owned()));
    }
    match spooled {
        None => Ok(layer.content.clone()),
        Some(file) => whole(file, directory),
    }
}

fn whole(file: File, directory: &Path) -> Result<Slice> {
    Slice::whole(Arc::new(file)).map_err(ImageError::io("read in", directory))
}

fn compression(content: &Slice) -> io::Result<Compression> {
    let mut magic = Vec::new();
    content.clone().take(4).read_to_end(&mut magic)?;
    Ok(match magic.as_slice() {
        [0x1f, 0x8b, ..] => Compression::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd] => Compression::Zstd,
        _ => Compression::None,
    })
}

fn decoder<'a, R: Read + 'a>(compression: Compression, from: R) -> io::Result<Box<dyn Read + 'a>> {
    Ok(match compression {
        Compression::None => Box::new(from),
        Compression::Gzip => Box::new(MultiGzDecoder::new(from)),
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::new(from)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
            Box::new(decoder)
        }
    })
}
