//! What an owner left that was killed. The kernel ends a monitor with its owner ([`crate::bound`]), so that there
//! is hardly ever more than a directory; but nothing is believed to be gone that was not looked for.

use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::error::{Result, VmError};

/// LIMIT: how long the kernel may take to end a killed process.
const GONE_WITHIN: Duration = Duration::from_secs(10);

/// Ends the monitors that work in a machine's `directory`, whose owner is dead, and removes it. Blocks.
///
/// # Errors
/// Those of the file system; a monitor that does not end.
pub fn reap(directory: &Path) -> Result<()> {
    let place = match fs::canonicalize(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found.map_err(VmError::io("find", directory))?,
    };
    for process in fs::read_dir("/proc").map_err(VmError::io("read", "/proc"))? {
        let process = process.map_err(VmError::io("read", "/proc"))?;
        let name = process.file_name();
        let pid = name.to_str().and_then(|name| name.parse().ok());
        if let Some(pid) = pid.and_then(Pid::from_raw) {
            end(pid, &process.path(), &place).map_err(VmError::io("end the monitor in", &place))?;
        }
    }
    fs::remove_dir_all(&place).map_err(VmError::io("remove", &place))
}

/// Kills a process that works in `place`, through a descriptor, which cannot come to mean another.
fn end(pid: Pid, process: &Path, place: &Path) -> io::Result<()> {
    let works_there = || fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd == place);
    if !works_there() {
        return Ok(());
    }
    // It may end at any moment.
    let Ok(descriptor) = pidfd_open(pid, PidfdFlags::empty()) else {
        return Ok(());
    };
    if !works_there() || pidfd_send_signal(descriptor.as_fd(), Signal::KILL).is_err() {
        return Ok(());
    }
    tracing::warn!(
        pid = pid.as_raw_nonzero(),
        "a monitor has outlived its owner, and was killed"
    );
    let within = Timespec::try_from(GONE_WITHIN).map_err(io::Error::other)?;
    let mut ended = [PollFd::new(&descriptor, PollFlags::IN)];
    match poll(&mut ended, Some(&within))? {
        0 => Err(io::ErrorKind::TimedOut.into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::{Child, Command};

    use super::*;

    fn sleeper(directory: &Path) -> Child {
        let mut command = Command::new("sleep");
        command.arg("1000").current_dir(directory);
        command.spawn().expect("sleep is everywhere")
    }

    #[test]
    fn only_what_works_there_is_ended() {
        let dir = tempfile::tempdir().unwrap();
        let (machine, other) = (dir.path().join("machine"), dir.path().join("other"));
        reap(&machine).unwrap();
        fs::create_dir(&machine).unwrap();
        fs::create_dir(&other).unwrap();
        fs::write(machine.join("control.sock"), "").unwrap();
        let (mut left, mut neighbor) = (sleeper(&machine), sleeper(&other));
        reap(&machine).unwrap();
        assert!(!machine.exists() && other.exists());
        assert_eq!(left.wait().unwrap().signal(), Some(9));
        assert!(neighbor.try_wait().unwrap().is_none());
        neighbor.kill().unwrap();
        neighbor.wait().unwrap();
    }
}
