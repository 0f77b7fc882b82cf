//! How a process ended that is not our child: the kernel tells whoever holds a pidfd, since Linux 6.15. Until
//! its parent has collected the status, `/proc` shows it; after that, `PIDFD_GET_INFO` does. Where neither
//! does, the runner's own exit record is all there is.

use std::ffi::c_void;
use std::os::fd::AsFd;

use rustix::io::Result as Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, ioctl, opcode};

use crate::report::Status;

/// `PIDFS_IOCTL_MAGIC` and the number of `PIDFD_GET_INFO` (linux/pidfd.h).
const GET_INFO: Opcode = opcode::read_write::<Info>(0xFF, 11);
/// `PIDFD_INFO_EXIT`: the exit status is wanted, or there.
const EXIT: u64 = 1 << 3;
/// LIMIT: how often it is looked again when a process is collected between two looks.
const LOOKS_MAX: usize = 3;

/// `struct pidfd_info` as of its first version, 64 bytes; a newer kernel fills as much as it is given.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
struct Info {
    mask: u64,
    cgroup: u64,
    /// pid, tgid, ppid, and eight user and group ids.
    numbers: [u32; 11],
    /// As wait(2) encodes it.
    exit: i32,
}

/// The request: the mask goes in, the rest comes out.
struct GetInfo(Info);

#[expect(
    unsafe_code,
    reason = "the kernel is told where to write what it knows"
)]
// SAFETY: the opcode says the size of `Info`, the pointer leads to one that lives for the call, every bit
// pattern of which is a valid value, and the call changes nothing else.
unsafe impl Ioctl for GetInfo {
    type Output = Info;
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        GET_INFO
    }

    fn as_ptr(&mut self) -> *mut c_void {
        (&raw mut self.0).cast()
    }

    unsafe fn output_from_ptr(_: IoctlOutput, filled: *mut c_void) -> Errno<Info> {
        // SAFETY: it is the pointer of `as_ptr`, to an `Info` that is still there.
        Ok(unsafe { filled.cast::<Info>().read() })
    }
}

/// How the process behind `pidfd` ended, which it has; none if the kernel does not say.
pub(crate) fn status(pid: u32, pidfd: impl AsFd) -> Option<Status> {
    for _ in 0..LOOKS_MAX {
        match collected(&pidfd)? {
            Some(exit) => return Status::of_wait(exit),
            None => {
                let shown = uncollected(pid);
                // Not collected before and after: so the number was its own in between.
                if collected(&pidfd)?.is_none() {
                    return shown.and_then(Status::of_wait);
                }
            }
        }
    }
    None
}

/// The status of a process that its parent has collected, `Some(None)` of one that it has not; none if the
/// kernel does not tell.
#[expect(
    clippy::option_option,
    reason = "not to be known and not to be there yet are two things"
)]
fn collected(pidfd: impl AsFd) -> Option<Option<i32>> {
    let asked = GetInfo(Info {
        mask: EXIT,
        ..Info::default()
    });
    #[expect(
        unsafe_code,
        reason = "a request of the kernel's that rustix has no name for"
    )]
    // SAFETY: `GetInfo` is what the opcode means, on any descriptor: one that is no pidfd refuses it.
    let info = unsafe { ioctl(pidfd, asked) }.ok()?;
    Some((info.mask & EXIT != 0).then_some(info.exit))
}

/// The status of a process that has ended and was not collected: the last column of proc_pid_stat(5).
fn uncollected(pid: u32) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in the second column may have any bytes, parentheses among them.
    let mut columns = stat.rsplit_once(')')?.1.split_whitespace();
    (columns.next()? == "Z").then(|| columns.last()?.parse().ok())?
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use rustix::process::{Pid, PidfdFlags, pidfd_open};

    use super::*;

    fn run(script: &str) -> Child {
        Command::new("sh").args(["-c", script]).spawn().unwrap()
    }

    /// Both looks, at a child whose end is ours to collect, and so to delay.
    #[test]
    fn the_kernel_tells_before_and_after_the_end_was_collected() {
        for (script, expected) in [
            ("exit 0", Status::Code(0)),
            ("exit 7", Status::Code(7)),
            ("kill -KILL $$", Status::Signal(9)),
            ("kill -SEGV $$", Status::Signal(11)),
        ] {
            let mut child = run(script);
            let pid = i32::try_from(child.id())
                .ok()
                .and_then(Pid::from_raw)
                .unwrap();
            let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
            let mut ended = [rustix::event::PollFd::new(
                &pidfd,
                rustix::event::PollFlags::IN,
            )];
            rustix::event::poll(&mut ended, None).unwrap();
            let is_told = collected(&pidfd).is_some();
            let before = status(child.id(), &pidfd);
            child.wait().unwrap();
            let after = status(child.id(), &pidfd);
            if !is_told {
                println!("NOT RUN: this kernel tells no exit status by pidfd, Linux 6.15 does");
                return;
            }
            assert_eq!(before, Some(expected), "{script}, before it was collected");
            assert_eq!(after, Some(expected), "{script}, after");
        }
    }

    #[test]
    fn what_is_no_process_tells_nothing() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(status(std::process::id(), &file), None);
        assert_eq!(uncollected(std::process::id()), None, "it lives");
    }
}
