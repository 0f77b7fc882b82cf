//! From the kernel's first call to the last: what happens in which order.

use std::fs::OpenOptions;
use std::path::Path;
use std::time::Duration;

use rustix::event::PollFd;
use rustix::system::{RebootCommand, reboot, sethostname};
use rustix::time::{ClockId, Timespec, clock_settime};

use crate::channel::{Channel, ready};
use crate::order::Start;
use crate::serve::{Life, child_signals, farewell, report};
use crate::wire::Kind;
use crate::{account, console, network, process, root, way};

/// LIMIT: how long the host may take to say what to run.
const ORDER_WITHIN: Duration = Duration::from_secs(60);
/// LIMIT: files that one process may have open: the kernel's own ceiling.
const FILES_MAX: u64 = 1 << 20;

/// Lives as process 1 until the machine ends. As any other process it only says what it is.
pub fn run() {
    if std::process::id() != 1 {
        console::say("this is process 1 of a microVM and does nothing elsewhere");
        return;
    }
    if let Err(why) = live() {
        console::say(&why);
    }
    // Every machine that we are started in ends with a reset, and not every one can be switched off.
    if let Err(error) = reboot(RebootCommand::Restart) {
        console::say(&format!("the machine does not end: {error}"));
    }
}

fn live() -> Result<(), String> {
    root::early()?;
    root::modules()?;
    root::no_thrashing();
    // Before the first child, so that no end is missed.
    let signals = child_signals()?;
    let mut channel = Channel::open()?;
    channel.send(Kind::Booted, 0, b"");
    let ended = order(&mut channel).and_then(|start| {
        let ended = prepare(&start).and_then(|(process, account)| {
            let life = Life::begin(process, account, signals)?;
            channel.send(Kind::Started, 0, b"");
            life.run(&mut channel)
        });
        root::release(start.volume.as_deref());
        ended
    });
    match ended {
        Ok(end) => report(&mut channel, 0, end),
        Err(why) => channel.send(Kind::Failed, 0, why.as_bytes()),
    }
    farewell(&mut channel);
    Ok(())
}

/// What to run.
fn order(channel: &mut Channel) -> Result<Start, String> {
    let end = crate::channel::now() + ORDER_WITHIN;
    loop {
        channel
            .flush()
            .map_err(|error| format!("the channel: {error}"))?;
        let port = channel.fd();
        let mut fds = [PollFd::new(&port, channel.interest())];
        let within = end.saturating_sub(crate::channel::now());
        ready(&mut fds, within).map_err(|error| format!("the channel: {error}"))?;
        if !channel.fill() || within.is_zero() {
            return Err("the host said nothing".to_owned());
        }
        while let Some(frame) = channel.next()? {
            if frame.kind == Kind::Start {
                let start = serde_json::from_slice(&frame.payload);
                return start.map_err(|error| format!("the order cannot be read: {error}"));
            }
        }
    }
}

/// Everything before the app.
fn prepare(start: &Start) -> Result<(crate::order::Process, account::Account), String> {
    entropy(&start.entropy)?;
    let time = Timespec {
        tv_sec: i64::try_from(start.clock_ms / 1000).unwrap_or(i64::MAX),
        tv_nsec: i64::try_from(start.clock_ms % 1000 * 1_000_000).unwrap_or_default(),
    };
    clock_settime(ClockId::Realtime, time).map_err(|error| format!("the clock: {error}"))?;
    let name = start.hostname.as_bytes();
    sethostname(name).map_err(|error| format!("the host name: {error}"))?;
    network::loopback()?;
    if start.way_out {
        way::open()?;
    }
    if let Some(wanted) = &start.network {
        crate::channel::wait_for("the network interface", || network::first().is_some())?;
        let name = network::first().ok_or("the network interface is gone")?;
        network::interface(&name, wanted)?;
    }
    root::switch(start)?;
    root::furnish(start)?;
    let files = rustix::process::Rlimit {
        current: Some(FILES_MAX),
        maximum: Some(FILES_MAX),
    };
    // Where the kernel allows less, less it is.
    let _ = rustix::process::setrlimit(rustix::process::Resource::Nofile, files);
    let mut process = start.process.clone();
    let account = account::find(&process.user, Path::new("/"))?;
    root::secrets(&start.files, &account)?;
    if let Some(volume) = &start.volume {
        root::hand_over(volume, &account)?;
    }
    process::complete(&mut process, &account, &start.hostname);
    Ok((process, account))
}

/// `struct rand_pool_info` of random(4) with room for 32 bytes.
#[repr(C)]
struct Pool {
    bits: i32,
    len: i32,
    bytes: [u8; 32],
}

/// Adds the host's randomness to the kernel's pool and counts it, so that nobody waits for more.
#[expect(unsafe_code, reason = "only this ioctl counts what is added")]
fn entropy(seed: &[u8]) -> Result<(), String> {
    const ADD: rustix::ioctl::Opcode = rustix::ioctl::opcode::write::<[i32; 2]>(b'R', 3);
    let failed = |error: std::io::Error| format!("/dev/random: {error}");
    let device = OpenOptions::new()
        .write(true)
        .open("/dev/random")
        .map_err(failed)?;
    let (chunks, _) = seed.as_chunks::<32>();
    for bytes in chunks {
        let pool = Pool {
            bits: 256,
            len: 32,
            bytes: *bytes,
        };
        // SAFETY: RNDADDENTROPY reads a `rand_pool_info` and `len` bytes behind it, which are there.
        let add = unsafe { rustix::ioctl::Setter::<ADD, Pool>::new(pool) };
        // SAFETY: the same; the descriptor is that of the device the request is for.
        unsafe { rustix::ioctl::ioctl(&device, add) }.map_err(|error| failed(error.into()))?;
    }
    Ok(())
}
