//! Unix sockets in directories of any depth: their own path may be 107 bytes at most, so they are
//! reached through a descriptor of the directory (`/proc/self/fd/<n>/<name>`).

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};

/// Binds a socket `name` in `directory`; a socket left there by a dead process is replaced, so the
/// caller must hold the directory's lock.
///
/// # Errors
/// Those of the file system and the socket.
pub fn bind(directory: &Path, name: &str) -> io::Result<UnixListener> {
    let opened = File::open(directory)?;
    match std::fs::remove_file(directory.join(name)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    UnixListener::bind(short(&opened, name))
}

/// Connects to the socket `name` in `directory`.
///
/// # Errors
/// Those of the file system and the socket.
pub async fn connect(directory: &Path, name: &str) -> io::Result<UnixStream> {
    let opened = File::open(directory)?;
    UnixStream::connect(short(&opened, name)).await
}

fn short(directory: &File, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{name}", directory.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn deep_directories() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(120)).join("e".repeat(120));
        std::fs::create_dir_all(&deep).unwrap();
        for _ in 0..2 {
            // The second round replaces the socket that the first left behind.
            let listener = bind(&deep, "control.sock").unwrap();
            let mut caller = connect(&deep, "control.sock").await.unwrap();
            let (mut called, _) = listener.accept().await.unwrap();
            caller.write_all(b"x").await.unwrap();
            assert_eq!(called.read_u8().await.unwrap(), b'x');
        }
        assert!(connect(dir.path(), "control.sock").await.is_err());
    }
}
