//! Volumes: a file with an ext4 in it, one for a machine.

use std::fs::OpenOptions;
use std::path::Path;
use std::process::Stdio;

use tabbify_types::ByteSize;
use tokio::process::Command;

use crate::error::{Result, VmError};
use crate::qemu::PATH;

/// Makes the volume at `path`, if nothing is there, with room for `size`. It takes of the host what is
/// written to it, and keeps what an earlier machine wrote.
///
/// # Errors
/// `mkfs.ext4` missing or failing; those of the file system.
pub async fn volume(path: &Path, size: ByteSize) -> Result<()> {
    if path.exists() {
        return Ok(());
    }
    let part = path.with_extension("part");
    let mut options = OpenOptions::new();
    let file = options.create(true).truncate(true).write(true).open(&part);
    file.and_then(|file| file.set_len(size.0))
        .map_err(VmError::io("make", &part))?;
    let made = Command::new("mkfs.ext4")
        // Nothing of it is kept for root, and the guest's kernel need not zero it at the first mount.
        .args(["-q", "-F", "-m", "0", "-E", "lazy_itable_init=0,nodiscard"])
        .arg(&part)
        .env("PATH", PATH)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|source| VmError::Program {
            program: "mkfs.ext4".to_owned(),
            package: "e2fsprogs",
            source,
        })?;
    if !made.status.success() {
        // What is there of it is of no use; what it said is what there is to report.
        let _ = std::fs::remove_file(&part);
        return Err(VmError::Monitor {
            monitor: "mkfs.ext4",
            said: String::from_utf8_lossy(&made.stderr).trim().to_owned(),
        });
    }
    std::fs::rename(&part, path).map_err(VmError::io("rename", &part))
}
