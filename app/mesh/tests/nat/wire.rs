//! A wire of our own that delays, loses and reorders, and carries only so much: two TUN devices and a
//! thread between them (the kernel's `netem` is not everywhere).

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ffi::{c_int, c_short};
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, open};
use rustix::ioctl::{Opcode, Updater, ioctl, opcode};
use tokio::time::Instant;

/// LIMIT: packets on the wire, each way; more are lost, as in a router.
const QUEUE_MAX: usize = 200;
/// `TUNSETIFF` of `linux/if_tun.h`.
const SET_INTERFACE: Opcode = opcode::write::<c_int>(b'T', 202);
const IFF_TUN: c_short = 0x0001;
const IFF_NO_PI: c_short = 0x1000;

/// What a wire does to packets.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Weather {
    pub(crate) delay: Duration,
    /// Of thousand.
    pub(crate) loss: u64,
    /// Of thousand: these are overtaken by what comes in the next 5 ms.
    pub(crate) reorder: u64,
    pub(crate) bytes_per_second: u64,
}

#[repr(C)]
struct InterfaceRequest {
    name: [u8; 16],
    flags: c_short,
    rest: [u8; 22],
}

/// A TUN device in the namespace of the calling thread.
#[expect(unsafe_code, reason = "ioctl")]
pub(crate) fn tun(name: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let tun = open("/dev/net/tun", flags, Mode::empty())?;
    let mut request = InterfaceRequest {
        name: [0; 16],
        flags: IFF_TUN | IFF_NO_PI,
        rest: [0; 22],
    };
    for (to, from) in request.name[..15].iter_mut().zip(name.bytes()) {
        *to = from;
    }
    // SAFETY: the request is what TUNSETIFF reads and writes, 40 bytes on 64-bit Linux, and the name
    // ends with a zero.
    unsafe { ioctl(&tun, Updater::<SET_INTERFACE, _>::new(&mut request))? };
    Ok(tun)
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Packet {
    due: Instant,
    number: u64,
    bytes: Vec<u8>,
}

/// Carries between the two until a device is gone.
pub(crate) fn start(ends: [OwnedFd; 2], weather: Weather) -> io::Result<()> {
    std::thread::Builder::new()
        .name("wire".to_owned())
        .spawn(move || carry(&ends, weather))?;
    Ok(())
}

fn carry(ends: &[OwnedFd; 2], weather: Weather) {
    let mut queues: [BinaryHeap<Reverse<Packet>>; 2] = Default::default();
    let mut free_at = [Instant::now(); 2];
    let (mut dice, mut number) = (0x9e37_79b9_7f4a_7c15_u64, 0);
    let mut chance = move |of_thousand: u64| {
        dice ^= dice << 13;
        dice ^= dice >> 7;
        dice ^= dice << 17;
        dice % 1000 < of_thousand
    };
    let mut room = vec![0; 65_536];
    loop {
        let due = queues.iter().filter_map(|queue| queue.peek());
        let due = due.map(|Reverse(packet)| packet.due).min();
        let wait = due.map(|due| due.saturating_duration_since(Instant::now()));
        let timeout = wait.map(|wait| Timespec {
            tv_sec: wait.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: i64::from(wait.subsec_nanos()),
        });
        let mut fds = ends.each_ref().map(|end| PollFd::new(end, PollFlags::IN));
        let _ = poll(&mut fds, timeout.as_ref());
        for side in 0..2 {
            while let Ok(len) = rustix::io::read(&ends[side], &mut room[..]) {
                if chance(weather.loss) || queues[side].len() >= QUEUE_MAX {
                    continue;
                }
                let now = Instant::now();
                let takes = len as u64 * 1_000_000 / weather.bytes_per_second;
                free_at[side] = free_at[side].max(now) + Duration::from_micros(takes);
                let late = if chance(weather.reorder) { 5 } else { 0 };
                let due = free_at[side] + weather.delay + Duration::from_millis(late);
                number += 1;
                let bytes = room[..len].to_vec();
                queues[side].push(Reverse(Packet { due, number, bytes }));
            }
            let now = Instant::now();
            while queues[side]
                .peek()
                .is_some_and(|Reverse(packet)| packet.due <= now)
            {
                let Some(Reverse(packet)) = queues[side].pop() else {
                    break;
                };
                // A device that is gone takes nothing more; the process ends soon after.
                let _ = rustix::io::write(&ends[1 - side], &packet.bytes);
            }
        }
    }
}
