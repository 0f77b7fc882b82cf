//! Files that must be whole or private: written so that a crash leaves the old or the new content,
//! and secrets that only their owner can read.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

/// LIMIT: a secret file, in bytes.
const SECRET_LEN_MAX: u64 = 64 * 1024;

/// Replaces `path` with `bytes`: temporary file, sync, rename, sync of the directory. After a crash
/// the file has its old content or its new one.
///
/// # Errors
/// Those of the file system; the old content is then still there.
pub fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let directory = parent(path)?;
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let suffix = u64::from_le_bytes(crate::random());
    let temporary = directory.join(format!(".{}.{suffix:016x}", name.to_string_lossy()));
    let written = create(&temporary, bytes, mode).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // The temporary file is ours and nobody reads it; the first error is the one to report.
        let _ = fs::remove_file(&temporary);
    }
    written.and_then(|()| sync_dir(directory))
}

/// Makes a new file with mode 0600 and its content on disk.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`] if something is there; otherwise those of the file system.
pub fn create_secret(path: &Path, bytes: &[u8]) -> io::Result<()> {
    create(path, bytes, 0o600).and_then(|()| sync_dir(parent(path)?))
}

/// Reads a file that only its owner may read.
///
/// # Errors
/// [`io::ErrorKind::PermissionDenied`] if group or others have any permission, with the command
/// that mends it; otherwise those of the file system.
pub fn read_secret(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let metadata = file.metadata()?;
    if metadata.mode() & 0o077 != 0 {
        let mode = metadata.mode() & 0o777;
        let text = format!(
            "{} has mode {mode:04o} and must be readable by its owner only. Run: chmod 600 {}",
            path.display(),
            path.display()
        );
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    }
    if metadata.len() > SECRET_LEN_MAX {
        let text = format!("{} is larger than {SECRET_LEN_MAX} bytes", path.display());
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Makes a directory, and those above it, with mode 0700 where they are new.
///
/// # Errors
/// Those of the file system.
pub fn private_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Makes the entries of a directory durable.
///
/// # Errors
/// Those of the file system.
pub fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn create(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn parent(path: &Path) -> io::Result<&Path> {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Ok(Path::new(".")),
        Some(parent) => Ok(parent),
        None => Err(io::ErrorKind::InvalidInput.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn replaces_whole_and_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        write_atomic(&path, b"one", 0o644).unwrap();
        write_atomic(&path, b"two", 0o644).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(write_atomic(&dir.path().join("no/such"), b"x", 0o644).is_err());
    }

    #[test]
    fn secrets_are_private_and_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        create_secret(&path, b"secret").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(read_secret(&path).unwrap(), b"secret");
        let again = create_secret(&path, b"other").unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let wide = read_secret(&path).unwrap_err();
        assert!(wide.to_string().contains("chmod 600"), "{wide}");
    }
}
