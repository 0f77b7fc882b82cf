//! The two system interfaces without a safe wrapper: the TUN device's `ioctl`s, and a process that
//! shares our memory. All other calls of the kernel's path are safe ones of `rustix` and `nix`.

use std::ffi::{c_int, c_short, c_uint};
use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};

use nix::sched::{CloneFlags, clone};
use nix::sys::signal::{SigSet, SigmaskHow};
use nix::sys::wait::{WaitPidFlag, waitpid};
use rustix::fs::{Mode, OFlags, open};
use rustix::ioctl::{IntegerSetter, Opcode, Updater, ioctl, opcode};

const DEVICE: &str = "/dev/net/tun";
/// `TUNSETIFF` and `TUNSETOFFLOAD` of `linux/if_tun.h`, with the flags that go with them.
const SET_INTERFACE: Opcode = opcode::write::<c_int>(b'T', 202);
const SET_OFFLOAD: Opcode = opcode::write::<c_uint>(b'T', 208);
const IFF_TUN: c_short = 0x0001;
const IFF_NO_PI: c_short = 0x1000;
const IFF_VNET_HDR: c_short = 0x4000;
const TUN_F_CSUM: usize = 0x01;
const TUN_F_TSO6: usize = 0x04;
const TUN_F_TSO_ECN: usize = 0x08;

/// `struct ifreq` with the member that `TUNSETIFF` reads; the name it writes back.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; 16],
    flags: c_short,
    rest: [u8; 22],
}

/// A TUN device called `name` in the namespace of the calling thread, which computes no checksums and
/// cuts no segments: that is left to its reader.
#[expect(unsafe_code, reason = "ioctl")]
pub(super) fn tun(name: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let tun = open(DEVICE, flags, Mode::empty())?;
    let mut request = InterfaceRequest {
        name: [0; 16],
        flags: IFF_TUN | IFF_NO_PI | IFF_VNET_HDR,
        rest: [0; 22],
    };
    for (to, from) in request.name[..15].iter_mut().zip(name.bytes()) {
        *to = from;
    }
    // SAFETY: the request is what TUNSETIFF reads and writes, 40 bytes on 64-bit Linux, and the name
    // ends with a zero.
    unsafe { ioctl(&tun, Updater::<SET_INTERFACE, _>::new(&mut request))? };
    let offload = TUN_F_CSUM | TUN_F_TSO6 | TUN_F_TSO_ECN;
    // SAFETY: TUNSETOFFLOAD takes a set of flags by value.
    unsafe { ioctl(&tun, IntegerSetter::<SET_OFFLOAD>::new_usize(offload))? };
    Ok(tun)
}

/// Stack of the process that [`apart`] starts; it opens files and makes sockets, no more.
const STACK_LEN: usize = 256 * 1024;

/// Runs `body` in a process of its own that shares this one's memory, and waits for its end: only a
/// process with a single thread may make a user namespace. The descriptors are copies.
///
/// # Errors
/// If the process cannot be started.
#[expect(unsafe_code, reason = "clone")]
pub(super) fn apart(body: impl FnOnce()) -> io::Result<()> {
    let mut stack = vec![0; STACK_LEN];
    let mut body = Some(body);
    let run = Box::new(|| {
        let ended = catch_unwind(AssertUnwindSafe(|| {
            if let Some(body) = body.take() {
                body();
            }
        }));
        isize::from(ended.is_err())
    });
    // Handlers are for the process that installed them. The mask is inherited.
    let mask = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
    let flags = CloneFlags::CLONE_VM | CloneFlags::CLONE_VFORK;
    // SAFETY: the calling thread sleeps until the process has ended (CLONE_VFORK), so that its
    // thread-local data and everything `body` borrows are used by one of the two at a time, as by a
    // call; locks and the allocator work in shared memory as between threads. Panics do not leave
    // `run`, the stack is ample for what it does, and lives until the process is waited for.
    let child = unsafe { clone(run, &mut stack, flags, None) };
    mask.thread_set_mask()?;
    // Without a signal at its end, nobody else's wait finds it.
    waitpid(child?, Some(WaitPidFlag::__WALL))?;
    Ok(())
}
