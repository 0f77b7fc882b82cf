//! One runner's directory: its files, its lock, and what they tell about its life. The layout is
//! the contract of `tabbify_api::runner`.
//!
//! INVARIANT: the lock on `birth.json` is taken before anything else in the directory is written,
//! so nobody writes over the files of a living runner, and it is handed to the new process as its
//! standard input without ever being free.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::de::DeserializeOwned;
use tabbify_api::runner::{BIRTH_FILE, BOOT_FILE, Birth, Boot, EXIT_FILE, RUNNER_LOG};
use tabbify_process::files;
use tabbify_types::event::v1::InstanceRef;

use crate::failpoint::{Point, pass};
use crate::plan::{Control, Life};
use crate::report::{End, tail};

/// LIMIT: a JSON file of a runner, in bytes.
const FILE_LEN_MAX: u64 = 1024 * 1024;
/// LIMIT: how much of a runner's own log stands in a report, in bytes.
const LAST_WORDS_LEN_MAX: usize = 512;

/// The directory of one instance's runner; it may not exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RunnerDir {
    of: InstanceRef,
    path: PathBuf,
}

/// What a new process is given; as long as one of these or the process is there, the lock is held.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// `birth.json`, locked: becomes standard input.
    pub(crate) lock: File,
    /// `runner.log`: becomes standard output and error.
    pub(crate) log: File,
}

impl RunnerDir {
    pub(crate) fn new(runners: &Path, of: InstanceRef) -> Self {
        let path = runners
            .join(of.app.to_string())
            .join(of.instance.to_string());
        Self { of, path }
    }

    /// The instance that the directory's name says.
    pub(crate) const fn of(&self) -> InstanceRef {
        self.of
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Every directory below `runners` that has the name of an instance. For whoever is alone there: the
    /// directory of an app without any is removed.
    pub(crate) fn scan(runners: &Path) -> io::Result<Vec<Self>> {
        let mut found = Vec::new();
        for app in entries(runners)? {
            let Some(id) = parsed(&app) else {
                tracing::warn!(path = %app.display(), "not the directory of an app, left alone");
                continue;
            };
            let instances = entries(&app)?;
            if instances.is_empty() {
                // A crash came between the removal of its last runner and its own. What is not empty stays.
                let _ = fs::remove_dir(&app);
            }
            for instance in instances {
                let Some(number) = parsed(&instance) else {
                    tracing::warn!(path = %instance.display(), "not the directory of a runner, left alone");
                    continue;
                };
                let of = InstanceRef {
                    app: id,
                    instance: number,
                };
                found.push(Self::new(runners, of));
            }
        }
        Ok(found)
    }

    /// Whether a runner, or a process that is about to become one, lives.
    pub(crate) fn is_locked(&self) -> io::Result<bool> {
        match File::open(self.path.join(BIRTH_FILE)) {
            Ok(file) => Ok(!try_lock(&file, FlockOperation::NonBlockingLockShared)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// What the lock and the files tell. A birth record that cannot be read is still a birth.
    pub(crate) fn life(&self) -> io::Result<Life> {
        if self.is_locked()? {
            Ok(Life::Alive(Control::Unwatched))
        } else if self.has_lived() {
            Ok(Life::Dead(self.end()))
        } else {
            Ok(Life::Unborn)
        }
    }

    fn has_lived(&self) -> bool {
        let born = fs::metadata(self.path.join(BIRTH_FILE)).is_ok_and(|file| file.len() > 0);
        born || self.path.join(EXIT_FILE).exists()
    }

    /// What the directory tells about the end of its runner.
    pub(crate) fn end(&self) -> End {
        End {
            exit: self.read_json(EXIT_FILE).ok(),
            status: None,
            last_words: self.last_words().ok().flatten(),
        }
    }

    /// What the runner wrote about itself, if it is about this instance.
    pub(crate) fn birth(&self) -> Option<Birth> {
        let birth: Birth = self.read_json(BIRTH_FILE).ok()?;
        (birth.of == self.of).then_some(birth)
    }

    /// What its runner was told.
    pub(crate) fn boot(&self) -> io::Result<Boot> {
        self.read_json(BOOT_FILE)
    }

    /// Makes the directory and its files and takes the lock. `None` if somebody lives or has lived
    /// here: an instance has one life.
    pub(crate) fn prepare(&self, boot: &Boot) -> io::Result<Option<Prepared>> {
        files::private_dir(&self.path)?;
        pass(Point::DirectoryMade);
        let birth = self.path.join(BIRTH_FILE);
        let lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(birth)?;
        if !try_lock(&lock, FlockOperation::NonBlockingLockExclusive)? || self.has_lived() {
            return Ok(None);
        }
        pass(Point::Locked);
        let boot = serde_json::to_vec_pretty(boot)?;
        files::write_atomic(&self.path.join(BOOT_FILE), &boot, 0o600)?;
        pass(Point::BootWritten);
        let log = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(self.path.join(RUNNER_LOG))?;
        pass(Point::Prepared);
        // The names on the way here must be as durable as what they lead to.
        for parent in self.path.ancestors().skip(1).take(2) {
            files::sync_dir(parent)?;
        }
        Ok(Some(Prepared { lock, log }))
    }

    /// Removes the directory, and the app's one if it was its last.
    pub(crate) fn remove(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        pass(Point::InstanceRemoved);
        match self.path.parent().map_or(Ok(()), fs::remove_dir) {
            Err(error)
                if !matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty
                ) =>
            {
                Err(error)
            }
            _ => Ok(()),
        }
    }

    fn read_json<T: DeserializeOwned>(&self, name: &str) -> io::Result<T> {
        let mut bytes = Vec::new();
        let file = File::open(self.path.join(name))?;
        file.take(FILE_LEN_MAX).read_to_end(&mut bytes)?;
        Ok(serde_json::from_slice(&bytes)?)
    }

    fn last_words(&self) -> io::Result<Option<String>> {
        let mut file = File::open(self.path.join(RUNNER_LOG))?;
        let len = file.metadata()?.len();
        file.seek(SeekFrom::Start(len.saturating_sub(8 * 1024)))?;
        let mut bytes = Vec::new();
        file.take(8 * 1024).read_to_end(&mut bytes)?;
        let text = String::from_utf8_lossy(&bytes);
        let last = text.lines().map(str::trim).rfind(|line| !line.is_empty());
        Ok(last.map(|line| tail(line, LAST_WORDS_LEN_MAX).to_owned()))
    }
}

/// Takes a lock without waiting; whether it was free.
pub(crate) fn try_lock(file: &File, operation: FlockOperation) -> io::Result<bool> {
    match flock(file, operation) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn entries(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            paths.push(entry.path());
        }
    }
    paths.sort();
    Ok(paths)
}

/// What the name of `path` says; `None` if it is not the one spelling of it.
fn parsed<T: std::str::FromStr + ToString>(path: &Path) -> Option<T> {
    let name = path.file_name()?.to_str()?;
    let value: T = name.parse().ok()?;
    (value.to_string() == name).then_some(value)
}

#[cfg(test)]
mod tests;
