//! Processes that are not our children: who holds a runner's lock, when does it end, and, as the
//! last resort, a signal that cannot hit another process.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tabbify_api::runner::BIRTH_FILE;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::exit;
use crate::report::Status;
use crate::runner_dir::RunnerDir;

/// A process, held by a descriptor: no later process with the same number is mistaken for it.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    pidfd: AsyncFd<OwnedFd>,
}

/// Who holds the lock of a runner's directory.
#[derive(Debug)]
pub(crate) enum Holder {
    /// It is free.
    Nobody,
    /// Somebody whom `/proc` does not show us.
    Unknown,
    /// The runner.
    Process(Process),
}

impl Process {
    /// `None` if there is no such process.
    fn open(pid: u32) -> io::Result<Option<Self>> {
        let Some(raw) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
            return Ok(None);
        };
        match pidfd_open(raw, PidfdFlags::NONBLOCK) {
            Ok(pidfd) => {
                let pidfd = register(pidfd)?;
                Ok(Some(Self { pid, pidfd }))
            }
            Err(rustix::io::Errno::SRCH) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns once the process has ended. Safe to cancel.
    pub(crate) async fn ended(&self) {
        // An error means that the reactor is gone, and with it everybody who could care.
        let _ = self.pidfd.readable().await;
    }

    /// How it ended, which it has, as far as the kernel tells somebody who is not its parent.
    pub(crate) fn exit_status(&self) -> Option<Status> {
        exit::status(self.pid, &self.pidfd)
    }

    /// Sends a signal to this very process; one that has ended is no error.
    pub(crate) fn signal(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(&self.pidfd, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

#[expect(
    unsafe_code,
    reason = "tokio cannot know that a descriptor stays what it is"
)]
fn register(pidfd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open and the same descriptor until it is dropped, which only the
    // `AsyncFd` that owns it does.
    let registered = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) };
    registered.map_err(io::Error::from)
}

/// Finds the holder of the lock: the process that the birth record names, if it has the file open,
/// else whoever has. The lock is looked at again once the process is held, so that what is
/// returned did hold it.
pub(crate) fn holder(dir: &RunnerDir) -> io::Result<Holder> {
    if !dir.is_locked()? {
        return Ok(Holder::Nobody);
    }
    let birth = dir.path().join(BIRTH_FILE);
    let named = dir
        .birth()
        .map(|birth| birth.pid)
        .filter(|pid| has_open(*pid, &birth) != Some(false));
    let process = match named.or_else(|| find(&birth)) {
        Some(pid) => Process::open(pid)?,
        None => None,
    };
    match (process, dir.is_locked()?) {
        (_, false) => Ok(Holder::Nobody),
        (Some(process), true) => Ok(Holder::Process(process)),
        (None, true) => Ok(Holder::Unknown),
    }
}

/// Whether a process has `file` open; `None` if we may not know.
fn has_open(pid: u32, file: &Path) -> Option<bool> {
    let wanted = fs::metadata(file).ok()?;
    let descriptors = match fs::read_dir(format!("/proc/{pid}/fd")) {
        Ok(descriptors) => descriptors,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Some(false),
        Err(_) => return None,
    };
    let same = |entry: fs::DirEntry| {
        fs::metadata(entry.path())
            .is_ok_and(|open| (open.dev(), open.ino()) == (wanted.dev(), wanted.ino()))
    };
    Some(descriptors.flatten().any(same))
}

/// The first process, but for this one, that has `file` open.
fn find(file: &Path) -> Option<u32> {
    let own = std::process::id();
    fs::read_dir("/proc")
        .ok()?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .find(|pid| *pid != own && has_open(*pid, file) == Some(true))
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[tokio::test]
    async fn the_end_of_a_process_is_seen_and_a_signal_reaches_it() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let process = Process::open(child.id()).unwrap().unwrap();
        process.signal(Signal::KILL).unwrap();
        process.ended().await;
        child.wait().unwrap();
        process.signal(Signal::KILL).unwrap();
        assert!(Process::open(child.id()).unwrap().is_none());
        assert!(Process::open(0).unwrap().is_none());
        assert!(Process::open(u32::MAX).unwrap().is_none());
    }

    #[test]
    fn whoever_has_a_file_open_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let file = fs::File::create(&path).unwrap();
        assert_eq!(find(&path), None);
        let mut child = Command::new("sleep")
            .arg("1000")
            .stdin(Stdio::from(file))
            .spawn()
            .unwrap();
        assert_eq!(find(&path), Some(child.id()));
        assert_eq!(has_open(child.id(), &path), Some(true));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(has_open(child.id(), &path), Some(false));
    }
}
