//! How long what apps printed is kept: across deploys, within a time and a size for each app.
//!
//! Instances that have a runner's directory keep their lines, which the runner bounds itself; of all others
//! the oldest go first.

use std::fs::{self, DirEntry};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use tabbify_process::{Clock, chain};
use tabbify_types::Timestamp;

/// What an app keeps.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Keep {
    /// LIMIT: since an ended instance wrote last.
    pub(crate) age: Duration,
    /// LIMIT: bytes of all instances.
    pub(crate) bytes: u64,
}

impl Keep {
    pub(crate) const DEFAULT: Self = Self {
        age: Duration::from_secs(7 * 24 * 3600),
        bytes: 1 << 30,
    };
}

/// How often it is looked at.
pub(crate) const EVERY: Duration = Duration::from_secs(3600);

/// A file of an instance.
struct Kept {
    path: PathBuf,
    written: Timestamp,
    len: u64,
    lives: bool,
}

/// Removes what is not to be kept of the logs below `logs`; `runners` has the directories of those that live.
/// What cannot be removed is said, and tried again the next time.
pub(crate) fn sweep(logs: &Path, runners: &Path, keep: Keep, clock: &dyn Clock) {
    let now = clock.now();
    for app in entries(logs) {
        let (directory, name) = (app.path(), app.file_name());
        let runners = runners.join(&name);
        let mut files: Vec<Kept> = entries(&directory)
            .iter()
            .filter_map(|file| kept(file, &runners))
            .collect();
        files.sort_by_key(|file| file.written);
        let mut bytes: u64 = files.iter().map(|file| file.len).sum();
        let mut left = files.len();
        for file in files.iter().filter(|file| !file.lives) {
            let old = file.written.plus(keep.age) < now;
            if (old || bytes > keep.bytes) && removed(fs::remove_file(&file.path), &file.path) {
                bytes -= file.len;
                left -= 1;
            }
        }
        if left == 0 && !runners.exists() {
            // An instance may have been given it meanwhile: then it is not empty any more.
            let _ = fs::remove_dir(&directory);
        }
    }
}

/// A file that is an instance's by its name.
fn kept(file: &DirEntry, runners: &Path) -> Option<Kept> {
    let name = file.file_name();
    let stem = name.to_str()?.strip_suffix(".ndjson")?;
    let instance = stem.strip_suffix(".1").unwrap_or(stem);
    instance.parse::<u32>().ok()?;
    let metadata = file.metadata().ok()?;
    let written = metadata.modified().ok()?.duration_since(UNIX_EPOCH);
    let written = written.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(0));
    Some(Kept {
        path: file.path(),
        written: Timestamp::from_millis(written),
        len: metadata.len(),
        lives: runners.join(instance).exists(),
    })
}

fn removed(done: io::Result<()>, path: &Path) -> bool {
    if let Err(error) = &done {
        let (path, error) = (path.display(), chain(error).to_string());
        tracing::warn!(%path, error, "old output of an app cannot be removed");
    }
    done.is_ok()
}

/// What a directory has; nothing if it cannot be read, which is said unless it is not there.
fn entries(directory: &Path) -> Vec<DirEntry> {
    let read = fs::read_dir(directory).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    match read {
        Ok(entries) => entries,
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Vec::new()
        }
        Err(error) => {
            let (path, error) = (directory.display(), chain(&error).to_string());
            tracing::warn!(%path, error, "the output of apps cannot be looked at");
            Vec::new()
        }
    }
}

#[cfg(test)]
mod tests {
    use tabbify_process::SystemClock;

    use super::*;

    const KEEP: Keep = Keep {
        age: Duration::from_secs(1000),
        bytes: 100,
    };

    /// A file that was written so many seconds ago.
    fn file(path: PathBuf, ago: u64, len: usize) {
        fs::create_dir_all(path.parent().expect("it has one")).expect("writable");
        fs::write(&path, vec![b'x'; len]).expect("writable");
        let now = SystemClock.now().millis();
        let at = UNIX_EPOCH + Duration::from_millis(now - ago * 1000);
        let file = fs::File::options().write(true).open(&path).expect("there");
        file.set_modified(at).expect("ours");
    }

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<String> = entries(directory)
            .iter()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn the_old_and_the_surplus_go_and_what_lives_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (logs, runners) = (dir.path().join("logs"), dir.path().join("runners"));
        // Of `a`: 1 is old, 2 and 3 are more than fit with 4, which lives and is old.
        file(logs.join("a/1.ndjson"), 1001, 1);
        file(logs.join("a/2.1.ndjson"), 900, 30);
        file(logs.join("a/2.ndjson"), 800, 30);
        file(logs.join("a/3.ndjson"), 700, 30);
        file(logs.join("a/4.ndjson"), 2000, 50);
        file(logs.join("a/notes.txt"), 2000, 500);
        fs::create_dir_all(runners.join("a/4")).unwrap();
        // Of `b` everything is old; `c` has no file and lives.
        file(logs.join("b/7.ndjson"), 1001, 1);
        fs::create_dir_all(logs.join("c")).unwrap();
        fs::create_dir_all(runners.join("c/1")).unwrap();

        sweep(&logs, &runners, KEEP, &SystemClock);
        assert_eq!(
            names(&logs.join("a")),
            ["3.ndjson", "4.ndjson", "notes.txt"]
        );
        assert_eq!(names(&logs), ["a", "c"]);

        // Nothing more the next time, and nothing at all where nothing is.
        sweep(&logs, &runners, KEEP, &SystemClock);
        assert_eq!(
            names(&logs.join("a")),
            ["3.ndjson", "4.ndjson", "notes.txt"]
        );
        sweep(&dir.path().join("none"), &runners, KEEP, &SystemClock);
    }
}
