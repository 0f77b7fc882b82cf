//! A tar made into a squashfs by `sqfstar` (squashfs-tools 4.5 or later).

use std::fs::File;
use std::io::{self, BufWriter, Read as _, Seek as _, SeekFrom};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::error::{ImageError, Result};
use crate::flatten::Flat;

/// LIMIT: how long `sqfstar` may take, in seconds; a whole gigabyte takes it under one minute.
const SECONDS_MAX: &str = "900";
/// LIMIT: memory of its queues and caches.
const MEMORY: &str = "256M";
/// LIMIT: how much of what it says is repeated.
const SAID_LEN_MAX: u64 = 2048;

/// Writes the file system of `flat` to `path`, which must not exist.
pub(crate) fn make(flat: &Flat, path: &Path) -> Result<()> {
    let (mode, uid, gid) = flat.root_owner();
    let mut said = tempfile::tempfile().map_err(ImageError::io("write", std::env::temp_dir()))?;
    let output = said
        .try_clone()
        .and_then(|out| Ok((out, said.try_clone()?)));
    let (out, err) = output.map_err(ImageError::io("write", path))?;
    // `timeout` ends what hangs; the kernel ends nothing that waits.
    let mut child = Command::new("timeout")
        .args([
            "--signal=KILL",
            SECONDS_MAX,
            "sqfstar",
            "-quiet",
            "-no-progress",
        ])
        // lz4 is the quickest to read back, and every kernel with squashfs is built with it.
        .args([
            "-comp",
            "lz4",
            "-mem",
            MEMORY,
            "-processors",
            "2",
            "-mkfs-time",
            "0",
        ])
        .args(["-root-mode", &format!("{mode:o}")])
        .args(["-root-uid", &uid.to_string(), "-root-gid", &gid.to_string()])
        .arg(path)
        .env_clear()
        .env("PATH", crate::DEFAULT_PATH)
        .stdin(Stdio::piped())
        .stdout(out)
        .stderr(err)
        .spawn()
        .map_err(ImageError::NoSqfstar)?;
    let written = match child.stdin.take() {
        Some(stdin) => flat.write_to(BufWriter::with_capacity(256 << 10, stdin)),
        None => Ok(()),
    };
    let status = child
        .wait()
        .map_err(ImageError::io("wait for sqfstar of", path))?;
    if status.code() == Some(127) {
        return Err(ImageError::NoSqfstar(io::ErrorKind::NotFound.into()));
    }
    if !status.success() {
        let said = end_of(&mut said).unwrap_or_default();
        return Err(ImageError::Sqfstar {
            status: status.to_string(),
            said,
        });
    }
    written.map_err(ImageError::io("write the tar for", path))
}

fn end_of(said: &mut File) -> io::Result<String> {
    let len = said.seek(SeekFrom::End(0))?;
    said.seek(SeekFrom::Start(len.saturating_sub(SAID_LEN_MAX)))?;
    let mut bytes = Vec::new();
    said.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).trim().replace('\n', "; "))
}
