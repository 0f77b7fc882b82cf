//! A child process that ends when we do, however we do.
//!
//! The kernel kills it when the thread that started it ends, so that thread does nothing else: it
//! starts the child and waits for it.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{ChildStderr, Command, ExitStatus};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::sync::{oneshot, watch};

/// The child. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Bound {
    process: OwnedFd,
    ended: watch::Receiver<Option<ExitStatus>>,
}

impl Bound {
    /// Starts it; its standard error is the caller's to read if it is piped.
    pub(crate) async fn spawn(mut command: Command) -> io::Result<(Self, Option<ChildStderr>)> {
        die_with_this_thread(&mut command);
        let (started, start) = oneshot::channel();
        let (end, ended) = watch::channel(None);
        let life = move || {
            let mut child = match command.spawn() {
                Ok(child) => child,
                Err(error) => {
                    // Who asked may be gone; then so is the child.
                    let _ = started.send(Err(error));
                    return;
                }
            };
            let stderr = child.stderr.take();
            let process = open(child.id());
            if started
                .send(process.map(|process| (process, stderr)))
                .is_err()
            {
                // There is nobody who could end it.
                let _ = child.kill();
            }
            let status = child.wait();
            end.send_replace(Some(status.unwrap_or_else(|_| ExitStatus::from_raw(9))));
        };
        let thread = std::thread::Builder::new().name("microvm".to_owned());
        thread.spawn(life)?;
        let started = start.await.map_err(|_| io::ErrorKind::BrokenPipe)?;
        let (process, stderr) = started?;
        Ok((Self { process, ended }, stderr))
    }

    /// Waits for its end.
    pub(crate) async fn ended(&self) -> ExitStatus {
        let mut ended = self.ended.clone();
        let status = ended.wait_for(Option::is_some).await;
        // The thread that tells lives as long as the child.
        status.ok().and_then(|status| *status).unwrap_or_default()
    }

    /// Ends it at once.
    pub(crate) fn kill(&self) {
        // It may have ended already.
        let _ = pidfd_send_signal(self.process.as_fd(), Signal::KILL);
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        self.kill();
    }
}

fn open(pid: u32) -> io::Result<OwnedFd> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or(io::ErrorKind::InvalidData)?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

#[expect(unsafe_code, reason = "only the child itself can ask for this signal")]
fn die_with_this_thread(command: &mut Command) {
    let ask = || {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        Ok(())
    };
    // SAFETY: between fork and exec one system call is made, and no memory is touched.
    unsafe { command.pre_exec(ask) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_is_told_how_it_ended() {
        let mut command = Command::new("sh");
        command.args(["-c", "exit 7"]);
        let (bound, _) = Bound::spawn(command).await.unwrap();
        assert_eq!(bound.ended().await.code(), Some(7));
        assert_eq!(bound.ended().await.code(), Some(7));
        Bound::spawn(Command::new("/no/such/program"))
            .await
            .unwrap_err();
    }

    /// The environment variable with which this test starts itself as the owner.
    const OWNER: &str = "TABBIFY_TEST_OWNER";

    /// An owner that is killed has no time to end anything: the kernel does it.
    #[tokio::test]
    #[expect(
        clippy::disallowed_methods,
        reason = "the one way to tell the second start from the first"
    )]
    async fn it_goes_with_an_owner_that_is_killed() {
        if std::env::var_os(OWNER).is_some() {
            let mut command = Command::new("sh");
            command
                .args(["-c", "echo started >&2; exec sleep 1000"])
                .stderr(std::process::Stdio::inherit());
            let (_bound, _) = Bound::spawn(command).await.unwrap();
            return std::future::pending().await;
        }
        let name = "bound::tests::it_goes_with_an_owner_that_is_killed";
        let mut owner = Command::new(std::env::current_exe().unwrap())
            .args([name, "--exact", "--nocapture"])
            .env(OWNER, "1")
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = std::io::BufReader::new(owner.stderr.take().unwrap());
        std::io::BufRead::read_line(&mut said, &mut String::new()).unwrap();
        owner.kill().unwrap();
        owner.wait().unwrap();
        // The child holds the other end: reading ends when it does.
        std::io::Read::read_to_end(&mut said, &mut Vec::new()).unwrap();
    }

    #[tokio::test]
    async fn it_goes_with_its_owner() {
        let mut command = Command::new("sleep");
        command.arg("1000");
        let (bound, _) = Bound::spawn(command).await.unwrap();
        let ended = bound.ended.clone();
        drop(bound);
        let mut watched = ended;
        let status = watched.wait_for(Option::is_some).await.unwrap();
        assert_eq!(status.unwrap().signal(), Some(9));
    }
}
