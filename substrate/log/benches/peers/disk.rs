//! The disk by itself: what one commit costs whoever writes it.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

use crate::rows::Times;

/// What a commit of one such event takes on disk: whole sectors.
const COMMIT_LEN: usize = 1024;
const FILE_LEN: u64 = 64 * 1024 * 1024;

/// A file as the log has it: allocated, written and synced ahead.
pub(crate) fn prepare(dir: &Path) -> anyhow::Result<File> {
    let path = dir.join("disk");
    let file = File::options()
        .create(true)
        .truncate(true)
        .write(true)
        .open(path)?;
    let zeroes = vec![0; 1024 * 1024];
    for at in (0..FILE_LEN).step_by(zeroes.len()) {
        file.write_all_at(&zeroes, at)?;
    }
    file.sync_all()?;
    Ok(file)
}

/// Writes and syncs, one after the other, for a while.
pub(crate) fn turn(file: &File, span: Duration) -> anyhow::Result<Times> {
    let commit = vec![b'x'; COMMIT_LEN];
    let (began, mut at, mut times) = (Instant::now(), 0, Times::default());
    while began.elapsed() < span {
        let one = Instant::now();
        file.write_all_at(&commit, at)?;
        file.sync_data()?;
        times.push(one.elapsed());
        at = (at + COMMIT_LEN as u64) % FILE_LEN;
    }
    Ok(times)
}
