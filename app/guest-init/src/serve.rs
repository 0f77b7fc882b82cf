//! The life of the app: one loop over the channel, the signals and the output of everybody.

use std::net::Ipv4Addr;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal as Sig};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags};
use rustix::process::{WaitOptions, wait};

use crate::account::Account;
use crate::channel::{Channel, now, ready};
use crate::child::Child;
use crate::listeners::listeners;
use crate::order::{End, Exec, Process, Status, Stop};
use crate::process::spawn;
use crate::way::PROXY_PORT;
use crate::wire::{Frame, Kind};

/// LIMIT: programs beside the app at once.
const EXECS_MAX: usize = 16;
/// LIMIT: how long the host may take for the last of the output.
const FAREWELL_WITHIN: Duration = Duration::from_secs(5);
/// What an app gets whose host is gone: it asks for nothing any more.
const ORPHANED: Stop = Stop {
    signal: 15,
    grace_ms: 2000,
};
const FOREVER: Duration = Duration::from_secs(3600);

/// Ends of children, as something to wait for.
pub(crate) fn child_signals() -> Result<SignalFd, String> {
    let mut mask = SigSet::empty();
    mask.add(Sig::SIGCHLD);
    let blocked = mask.thread_block();
    blocked.map_err(|error| format!("signals cannot be blocked: {error}"))?;
    SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
        .map_err(|error| format!("no signal descriptor: {error}"))
}

/// What runs.
#[derive(Debug)]
pub(crate) struct Life {
    /// The first is the app.
    children: Vec<Child>,
    process: Process,
    account: Account,
    signals: SignalFd,
    /// When the app is killed.
    kill_at: Option<Duration>,
    killed_for_memory: u64,
    host_is_there: bool,
}

impl Life {
    /// Starts the app.
    pub(crate) fn begin(
        process: Process,
        account: Account,
        signals: SignalFd,
    ) -> Result<Self, String> {
        let app = spawn(&process.command, &process, &account)?;
        Ok(Self {
            children: vec![Child::new(0, app)],
            process,
            account,
            signals,
            kill_at: None,
            killed_for_memory: killed_for_memory(),
            host_is_there: true,
        })
    }

    /// Runs until the app has ended, and says how.
    pub(crate) fn run(mut self, channel: &mut Channel) -> Result<End, String> {
        loop {
            self.wait(channel)?;
            if let Ok(Some(_)) = self.signals.read_signal() {
                self.reap();
            }
            for child in &mut self.children {
                child.read(channel);
            }
            if self.host_is_there && !(channel.fill() && channel.flush().is_ok()) {
                self.host_is_there = false;
                self.stop(ORPHANED);
            }
            while let Some(frame) = channel.next()? {
                self.take(frame, channel);
            }
            if self.kill_at.is_some_and(|at| now() >= at) {
                self.kill_at = None;
                self.children[0].kill();
            }
            if let Some(end) = self.ended(channel) {
                return Ok(end);
            }
        }
    }

    fn wait(&self, channel: &Channel) -> Result<(), String> {
        let mut fds = vec![PollFd::new(&self.signals, PollFlags::IN)];
        let port = channel.fd();
        if self.host_is_there {
            fds.push(PollFd::new(&port, channel.interest()));
        }
        // Without a host nobody takes the output; with a slow one it waits where it is.
        if channel.has_room() {
            fds.extend(self.children.iter().flat_map(Child::interest));
        }
        let deadlines = self.children.iter().filter_map(Child::deadline);
        let deadline = deadlines.chain(self.kill_at).min();
        let within = deadline.map_or(FOREVER, |at| at.saturating_sub(now()));
        ready(&mut fds, within).map_err(|error| format!("nothing can be waited for: {error}"))
    }

    /// Collects everybody who has ended, also those whom others left to us.
    fn reap(&mut self) {
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            let code = status.exit_status().map(Status::Code);
            let signal = || status.terminating_signal().map(Status::Signal);
            if let Some(status) = code.or_else(signal) {
                for child in &mut self.children {
                    child.note(pid, status);
                }
            }
        }
    }

    fn take(&mut self, frame: Frame, channel: &mut Channel) {
        match frame.kind {
            Kind::Stop => match serde_json::from_slice(&frame.payload) {
                Ok(stop) => self.stop(stop),
                Err(error) => crate::console::say(&format!("a stop that cannot be read: {error}")),
            },
            Kind::Exec => {
                if let Err(why) = self.exec(&frame) {
                    channel.send(Kind::Failed, frame.of, why.as_bytes());
                }
            }
            Kind::Kill => {
                let execs = self.children.iter().filter(|child| child.of == frame.of);
                execs.for_each(Child::kill);
            }
            Kind::Look => {
                let mut list = listeners();
                // That is ours, and not the app's.
                list.retain(|found| *found != (Ipv4Addr::LOCALHOST, PROXY_PORT).into());
                // Plain data in memory: this does not fail.
                let list = serde_json::to_vec(&list).unwrap_or_default();
                channel.send(Kind::Listening, 0, &list);
            }
            // The app runs already; the rest is for the host to read.
            _ => {}
        }
    }

    fn stop(&mut self, stop: Stop) {
        self.children[0].signal(stop.signal);
        let at = now().saturating_add(Duration::from_millis(stop.grace_ms));
        self.kill_at = Some(self.kill_at.map_or(at, |before| before.min(at)));
    }

    fn exec(&mut self, frame: &Frame) -> Result<(), String> {
        let exec: Exec = serde_json::from_slice(&frame.payload)
            .map_err(|error| format!("the order cannot be read: {error}"))?;
        if frame.of == 0 || self.children.iter().any(|child| child.of == frame.of) {
            return Err(format!("the number {} is taken", frame.of));
        }
        if self.children.len() > EXECS_MAX {
            return Err(format!("{EXECS_MAX} programs run beside the app already"));
        }
        let spawned = spawn(&exec.command, &self.process, &self.account)?;
        self.children.push(Child::new(frame.of, spawned));
        Ok(())
    }

    /// Reports execs that have ended; the app's end is the answer.
    fn ended(&mut self, channel: &mut Channel) -> Option<End> {
        let out_of_memory = killed_for_memory() > self.killed_for_memory;
        let mut app = None;
        self.children.retain(|child| {
            let Some(status) = child.end() else {
                return true;
            };
            let end = End {
                status,
                out_of_memory,
            };
            if child.of == 0 {
                app = Some(end);
            } else {
                report(channel, child.of, end);
            }
            false
        });
        app
    }
}

/// Tells the host how something ended.
pub(crate) fn report(channel: &mut Channel, of: u32, end: End) {
    // Plain data in memory: this does not fail.
    let end = serde_json::to_vec(&end).unwrap_or_default();
    channel.send(Kind::Ended, of, &end);
}

/// Waits until the host has heard everything and hangs up, or says so.
pub(crate) fn farewell(channel: &mut Channel) {
    let end = now() + FAREWELL_WITHIN;
    while now() < end {
        if channel.flush().is_err() || !channel.fill() {
            return;
        }
        while let Ok(Some(frame)) = channel.next() {
            if frame.kind == Kind::Bye {
                return;
            }
        }
        let port = channel.fd();
        let mut fds = [PollFd::new(&port, channel.interest())];
        if ready(&mut fds, end.saturating_sub(now())).is_err() {
            return;
        }
    }
}

/// How many processes the kernel has killed for want of memory.
fn killed_for_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/vmstat").unwrap_or_default();
    let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    count
        .and_then(|count| count.trim().parse().ok())
        .unwrap_or(0)
}
