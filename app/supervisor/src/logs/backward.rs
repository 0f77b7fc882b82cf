//! Reads the lines of a file from its end to its beginning.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use super::LINE_LEN_MAX;

const BLOCK_LEN: usize = 64 * 1024;

/// Calls `take` with the offset and the bytes of each whole line, the last one first, until it
/// returns false. What follows the last line end is no whole line. Of a line that is longer than
/// [`LINE_LEN_MAX`] only the end is given, which is then not JSON.
pub(super) fn lines(file: &File, mut take: impl FnMut(u64, &[u8]) -> bool) -> io::Result<()> {
    let mut start = file.metadata()?.len();
    // The bytes from `start` to the end of the line that is being looked at.
    let mut held: Vec<u8> = Vec::new();
    let mut whole = false;
    while start > 0 {
        let len = usize::try_from(start).map_or(BLOCK_LEN, |left| left.min(BLOCK_LEN));
        start -= len as u64;
        let mut block = vec![0; len];
        file.read_exact_at(&mut block, start)?;
        block.append(&mut held);
        held = block;
        while let Some(end) = held.iter().rposition(|byte| *byte == b'\n') {
            let offset = start + end as u64 + 1;
            if whole && !take(offset, &held[end + 1..]) {
                return Ok(());
            }
            whole = true;
            held.truncate(end);
        }
        held.drain(..held.len().saturating_sub(LINE_LEN_MAX));
    }
    if whole {
        take(0, &held);
    }
    Ok(())
}
