//! The app and the execs beside it: who they are, what they print, how they end.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::channel::{Channel, now};
use crate::order::Status;
use crate::process::Spawned;
use crate::wire::Kind;

/// LIMIT: output in one frame.
const CHUNK_LEN: usize = 16 << 10;
/// LIMIT: how long the output of something that has ended is waited for: a process that it left behind
/// may hold it open for ever.
const OUTPUT_WITHIN: Duration = Duration::from_millis(500);

/// A process that the host knows by a number.
#[derive(Debug)]
pub(crate) struct Child {
    pub(crate) of: u32,
    pid: Pid,
    /// Standard output and error, until their end.
    outputs: [(Kind, Option<OwnedFd>); 2],
    ended: Option<(Status, Duration)>,
}

impl Child {
    pub(crate) fn new(of: u32, spawned: Spawned) -> Self {
        Self {
            of,
            pid: spawned.pid,
            outputs: [
                (Kind::Stdout, Some(spawned.stdout)),
                (Kind::Stderr, Some(spawned.stderr)),
            ],
            ended: None,
        }
    }

    /// Notes the end of process `pid`, if it is this one.
    pub(crate) fn note(&mut self, pid: Pid, status: Status) {
        if self.pid == pid {
            self.ended = Some((status, now()));
        }
    }

    /// How it ended, once its output has as well.
    pub(crate) fn end(&self) -> Option<Status> {
        let (status, at) = self.ended?;
        let silent = self.outputs.iter().all(|(_, open)| open.is_none());
        (silent || now() >= at + OUTPUT_WITHIN).then_some(status)
    }

    /// When [`Child::end`] will be there at the latest.
    pub(crate) fn deadline(&self) -> Option<Duration> {
        self.ended.map(|(_, at)| at + OUTPUT_WITHIN)
    }

    /// What to wait for.
    pub(crate) fn interest(&self) -> impl Iterator<Item = PollFd<'_>> {
        let open = self.outputs.iter().filter_map(|(_, open)| open.as_ref());
        open.map(|fd| PollFd::new(fd, PollFlags::IN))
    }

    /// Passes on what is there, as long as the channel has room.
    pub(crate) fn read(&mut self, channel: &mut Channel) {
        let mut chunk = [0; CHUNK_LEN];
        for (kind, open) in &mut self.outputs {
            while channel.has_room() {
                let Some(fd) = open.as_ref() else { break };
                match rustix::io::read(fd, &mut chunk) {
                    Ok(0) => *open = None,
                    Ok(count) => channel.send(*kind, self.of, &chunk[..count]),
                    Err(rustix::io::Errno::AGAIN) => break,
                    Err(rustix::io::Errno::INTR) => {}
                    Err(_) => *open = None,
                }
            }
        }
    }

    /// Sends it a signal by number.
    pub(crate) fn signal(&self, number: i32) {
        if self.ended.is_none()
            && let Some(signal) = signal(number)
        {
            // It may have ended just now.
            let _ = kill_process(self.pid, signal);
        }
    }

    /// Ends it and what it started, as far as that is still in its group.
    pub(crate) fn kill(&self) {
        if self.ended.is_none() {
            let _ = kill_process_group(self.pid, Signal::KILL);
        }
    }
}

#[expect(unsafe_code, reason = "rustix names no real-time signals")]
fn signal(number: i32) -> Option<Signal> {
    // 32 and 33 belong to the C library.
    let real_time = (34..=64).contains(&number);
    Signal::from_named_raw(number).or_else(|| {
        // SAFETY: a real-time signal that no C library keeps for itself.
        real_time.then(|| unsafe { Signal::from_raw_unchecked(number) })
    })
}
