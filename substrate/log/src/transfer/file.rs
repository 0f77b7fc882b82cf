//! The file of an export: it has its name only when it is whole and on disk.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::TransferError;

/// A file that is being written beside its name. Dropped early, it is removed.
#[derive(Debug)]
pub(crate) struct ExportFile {
    out: Option<BufWriter<File>>,
    part: PathBuf,
    path: PathBuf,
}

impl ExportFile {
    /// Refuses a name that is taken.
    pub(crate) fn create(path: &Path) -> Result<Self, TransferError> {
        if path.symlink_metadata().is_ok() {
            let taken = io::ErrorKind::AlreadyExists.into();
            return Err(TransferError::io("create", path)(taken));
        }
        let mut part = path.as_os_str().to_owned();
        part.push(".part");
        let part = PathBuf::from(part);
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&part)
            .map_err(TransferError::io("create", &part))?;
        Ok(Self {
            out: Some(BufWriter::with_capacity(1 << 20, file)),
            part,
            path: path.to_owned(),
        })
    }

    /// Syncs it and gives it its name.
    pub(crate) fn finish(mut self) -> Result<(), TransferError> {
        let Some(out) = self.out.take() else {
            return Ok(());
        };
        let synced = out
            .into_inner()
            .map_err(io::IntoInnerError::into_error)
            .and_then(|file| file.sync_all());
        let named = synced.and_then(|()| {
            fs::rename(&self.part, &self.path)?;
            let parent = self.path.parent().filter(|dir| !dir.as_os_str().is_empty());
            File::open(parent.unwrap_or_else(|| Path::new(".")))?.sync_all()
        });
        named.map_err(TransferError::io("write", &self.path))
    }
}

impl Write for ExportFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.out {
            Some(out) => out.write(bytes),
            None => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.as_mut().map_or(Ok(()), Write::flush)
    }
}

impl Drop for ExportFile {
    fn drop(&mut self) {
        // Named already, or of no use to anybody.
        let _ = fs::remove_file(&self.part);
    }
}
