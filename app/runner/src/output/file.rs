//! The file that an app's lines end in, and the one before it: two bounded files per instance.

use std::io;
use std::path::{Path, PathBuf};

use tabbify_process::chain;
use tabbify_types::InstanceId;
use tokio::fs::{File, OpenOptions};
use tokio::io::AsyncWriteExt as _;

/// LIMIT: length of `<instance>.ndjson`, in bytes. A full one becomes `<instance>.1.ndjson`, which
/// is replaced by the next, so an instance keeps at most twice this.
pub const FILE_LEN_MAX: u64 = 64 * 1024 * 1024;

/// `<instance>.ndjson`, open for more.
#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    older: PathBuf,
    file: File,
    len: u64,
    len_max: u64,
    failing: bool,
}

impl LogFile {
    pub(super) fn open(directory: &Path, instance: InstanceId, len_max: u64) -> io::Result<Self> {
        std::fs::create_dir_all(directory)?;
        let path = directory.join(format!("{instance}.ndjson"));
        let mut options = std::fs::OpenOptions::new();
        let file = options.append(true).create(true).open(&path)?;
        Ok(Self {
            len: file.metadata()?.len(),
            older: directory.join(format!("{instance}.1.ndjson")),
            path,
            file: File::from_std(file),
            len_max,
            failing: false,
        })
    }

    /// Writes whole lines. A disk that refuses them loses them, and never stops the app.
    pub(super) async fn append(&mut self, lines: &[u8]) {
        let written = self.try_append(lines).await;
        if let (Err(error), false) = (&written, self.failing) {
            let error = chain(error).to_string();
            tracing::error!(path = %self.path.display(), error, "the app's output is being lost");
        }
        self.failing = written.is_err();
    }

    async fn try_append(&mut self, lines: &[u8]) -> io::Result<()> {
        let len = lines.len() as u64;
        if self.len > 0 && self.len + len > self.len_max {
            tokio::fs::rename(&self.path, &self.older).await?;
            let mut options = OpenOptions::new();
            self.file = options.append(true).create(true).open(&self.path).await?;
            self.len = 0;
        }
        self.len += len;
        self.file.write_all(lines).await?;
        self.file.flush().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn keeps_two_bounded_files() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = LogFile::open(dir.path(), InstanceId(3), 100).unwrap();
        for i in 0..10 {
            file.append(format!("{i}{}\n", "x".repeat(38)).as_bytes())
                .await;
        }
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        let (older, newest) = (read("3.1.ndjson"), read("3.ndjson"));
        assert!(newest.len() <= 100 && older.len() <= 100);
        let firsts = |text: &str| {
            let lines = text.lines().map(|line| line[..1].to_owned());
            lines.collect::<String>()
        };
        assert_eq!(
            (firsts(&older), firsts(&newest)),
            ("67".into(), "89".into())
        );

        // Opened again, it goes on where it was.
        let mut file = LogFile::open(dir.path(), InstanceId(3), 100).unwrap();
        file.append(b"again, and long enough to turn\n").await;
        assert_eq!(firsts(&read("3.1.ndjson")), "89");
        assert_eq!(firsts(&read("3.ndjson")), "a");
    }
}
