//! The channel to the host: a port of the machine's virtio console, by its name.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::time::{ClockId, clock_gettime};

use crate::wire::{Decoder, FROM_GUEST_LEN_MAX, Frame, Kind, PORT, encode};

/// LIMIT: what waits for the host. While it is this much, no output is read, and who prints waits.
pub(crate) const WAITING_MAX: usize = 256 << 10;
/// LIMIT: how long a device may take to appear.
const APPEARS_WITHIN: Duration = Duration::from_secs(10);
/// How often is looked for one.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// Since the kernel started.
pub(crate) fn now() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    Duration::new(seconds, u32::try_from(now.tv_nsec).unwrap_or_default())
}

/// Waits until one of `fds` is ready, or for so long.
pub(crate) fn ready(fds: &mut [PollFd<'_>], within: Duration) -> io::Result<()> {
    let within = Timespec {
        tv_sec: i64::try_from(within.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(within.subsec_nanos()),
    };
    match poll(fds, Some(&within)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Looks for something until it is there.
pub(crate) fn wait_for(what: &str, there: impl Fn() -> bool) -> Result<(), String> {
    let end = now() + APPEARS_WITHIN;
    while !there() {
        if now() > end {
            return Err(format!("{what} does not appear"));
        }
        ready(&mut [], LOOK_EVERY).map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// The open channel.
#[derive(Debug)]
pub(crate) struct Channel {
    port: File,
    decoder: Decoder,
    waiting: Vec<u8>,
}

impl Channel {
    /// Opens the port and waits for the host at its other end.
    pub(crate) fn open() -> Result<Self, String> {
        wait_for("the channel to the host", || find(PORT).is_some())?;
        let path = find(PORT).ok_or("the channel to the host is gone")?;
        let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
        let port = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(flags)
            .open(&path);
        let port = port.map_err(|error| format!("{}: {error}", path.display()))?;
        wait_for("the host", || {
            let mut fds = [PollFd::new(&port, PollFlags::OUT)];
            let asked = ready(&mut fds, Duration::ZERO);
            asked.is_ok() && !fds[0].revents().contains(PollFlags::HUP)
        })?;
        Ok(Self {
            port,
            decoder: Decoder::default(),
            waiting: Vec::new(),
        })
    }

    /// Puts a frame behind those that wait.
    pub(crate) fn send(&mut self, kind: Kind, of: u32, payload: &[u8]) {
        // What is longer, such as a sentence with a whole command in it, would end the channel.
        let payload = &payload[..payload.len().min(FROM_GUEST_LEN_MAX)];
        encode(kind, of, payload, &mut self.waiting);
    }

    /// Whether more output may be put there.
    pub(crate) fn has_room(&self) -> bool {
        self.waiting.len() < WAITING_MAX
    }

    /// What to wait for.
    pub(crate) fn interest(&self) -> PollFlags {
        if self.waiting.is_empty() {
            PollFlags::IN
        } else {
            PollFlags::IN | PollFlags::OUT
        }
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.port.as_fd()
    }

    /// Gives the host as much as it takes.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        while !self.waiting.is_empty() {
            // The kernel takes a page's worth or more at a time.
            match self.port.write(&self.waiting) {
                Ok(count) => drop(self.waiting.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Reads what is there; `false` if the host is gone.
    pub(crate) fn fill(&mut self) -> bool {
        let mut chunk = [0; 16 << 10];
        match self.port.read(&mut chunk) {
            Ok(0) => false,
            Ok(count) => {
                self.decoder.push(&chunk[..count]);
                true
            }
            Err(error) => matches!(
                error.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
            ),
        }
    }

    /// The next frame that has come.
    pub(crate) fn next(&mut self) -> Result<Option<Frame>, String> {
        self.decoder.take().map_err(|error| error.to_string())
    }
}

/// Opens another port of the console, whose reads and writes wait.
pub(crate) fn open_port(name: &str) -> Result<File, String> {
    wait_for("a port to the host", || find(name).is_some())?;
    let path = find(name).ok_or("a port to the host is gone")?;
    let port = OpenOptions::new().read(true).write(true).open(&path);
    port.map_err(|error| format!("{}: {error}", path.display()))
}

fn find(wanted: &str) -> Option<PathBuf> {
    let ports = fs::read_dir("/sys/class/virtio-ports").ok()?;
    let ours = ports.filter_map(Result::ok).find(|port| {
        let name = fs::read_to_string(port.path().join("name"));
        name.is_ok_and(|name| name.trim() == wanted)
    })?;
    let path = PathBuf::from("/dev").join(ours.file_name());
    path.exists().then_some(path)
}
