//! A network namespace with one TUN device, and the thread that lives in it and makes sockets there;
//! a socket belongs to the namespace it was made in, and can be used from anywhere.
//!
//! With the right to make a network namespace, the thread moves into one. Without, it starts a
//! process that shares our memory and has a single thread (see [`super::sys::apart`]), which makes a
//! user namespace and has the right in there. Either way it ends when its control socket is closed,
//! also by our death, and the namespace with the last socket and the device.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read as _, Seek as _};
use std::mem::MaybeUninit;
use std::net::Ipv6Addr;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socket_with,
    socketpair,
};

use super::{netlink, sys};

const INTERFACE: &str = "mesh0";
/// LIMIT: sockets that wait to be used, and how many are left when the next are asked for.
const SPARE_MAX: usize = 8;
const SPARE_LOW: usize = 4;
/// LIMIT: bytes of a message of the thread.
const MESSAGE_LEN_MAX: usize = 512;
const READY: u8 = 0;
const FAILED: u8 = 1;
const SOCKETS: u8 = 2;
/// The kernel counts a buffer's bookkeeping as part of it.
const BOOKKEEPING: usize = 2;
/// Retransmissions of one segment before a connection is given up: about 100 s.
const RETRANSMISSIONS: &str = "8";

/// Why there is no namespace.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what}")]
pub struct NamespaceError {
    what: String,
    #[source]
    source: io::Error,
}

impl NamespaceError {
    fn new(what: &str, source: impl Into<io::Error>) -> Self {
        Self {
            what: what.to_owned(),
            source: source.into(),
        }
    }
}

/// A namespace that is ready.
#[derive(Debug)]
pub(crate) struct Namespace {
    pub(crate) sockets: Sockets,
    pub(crate) tun: OwnedFd,
    /// It belongs to a user namespace of its own.
    pub(crate) rootless: bool,
}

impl Namespace {
    /// Makes one that has these addresses, in some milliseconds.
    ///
    /// # Errors
    /// If the system does not allow it or lacks something.
    pub(crate) fn open(
        addresses: Arc<[Ipv6Addr]>,
        buffer_bytes: usize,
    ) -> Result<Self, NamespaceError> {
        let failed = |error| NamespaceError::new("talk to the namespace's thread", error);
        let (control, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(|error| failed(error.into()))?;
        std::thread::Builder::new()
            .name("mesh-netns".to_owned())
            .spawn(move || inhabit(&theirs, &addresses, buffer_bytes))
            .map_err(|error| NamespaceError::new("start a thread", error))?;
        let message = Message::receive(&control, RecvFlags::empty()).map_err(failed)?;
        let [READY, rootless] = message.bytes[..] else {
            return Err(message.failure());
        };
        let mut descriptors = message.descriptors.into_iter();
        let (Some(tun), Some(table)) = (descriptors.next(), descriptors.next()) else {
            return Err(failed(io::ErrorKind::UnexpectedEof.into()));
        };
        let pool = Pool {
            control: Some(control),
            spare: Vec::new(),
            asked: false,
        };
        let sockets = Sockets {
            pool: Mutex::new(pool),
            table: Mutex::new(Some(table.into())),
        };
        Ok(Self {
            sockets,
            tun,
            rootless: rootless != 0,
        })
    }
}

/// Where fresh TCP sockets of the namespace come from.
#[derive(Debug)]
pub(crate) struct Sockets {
    pool: Mutex<Pool>,
    /// The namespace's `/proc/net/tcp6`.
    table: Mutex<Option<File>>,
}

#[derive(Debug)]
struct Pool {
    control: Option<OwnedFd>,
    spare: Vec<OwnedFd>,
    /// More were asked for.
    asked: bool,
}

impl Sockets {
    /// A fresh socket. Waits for the thread only if it was not fast enough to keep some ready.
    pub(crate) fn take(&self) -> io::Result<OwnedFd> {
        let mut pool = self.pool();
        let Pool {
            control: Some(control),
            spare,
            asked,
        } = &mut *pool
        else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        if spare.len() <= SPARE_LOW {
            if !*asked {
                rustix::net::send(&*control, &[SOCKETS], SendFlags::empty())?;
                *asked = true;
            }
            let flags = if spare.is_empty() {
                RecvFlags::empty()
            } else {
                RecvFlags::DONTWAIT
            };
            match Message::receive(control, flags) {
                Ok(message) => {
                    *asked = false;
                    if message.bytes != [SOCKETS] {
                        return Err(message.failure().source);
                    }
                    spare.extend(message.descriptors);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        spare
            .pop()
            .ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Ends the thread, and what holds the namespace here.
    pub(crate) fn close(&self) {
        self.table().take();
        let mut pool = self.pool();
        pool.control = None;
        pool.spare.clear();
    }

    /// Whether a socket that was closed still has something to tell its peer.
    pub(crate) fn are_settled(&self) -> io::Result<bool> {
        let mut table = self.table();
        let table = table.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        let mut text = String::new();
        table.rewind()?;
        table.read_to_string(&mut text)?;
        Ok(!text.lines().skip(1).any(owes))
    }

    fn table(&self) -> MutexGuard<'_, Option<File>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pool(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a line of `/proc/net/tcp6` is of a socket whose end is not acknowledged: FIN-WAIT-1,
/// LAST-ACK or CLOSING.
fn owes(line: &str) -> bool {
    let state = line.split_ascii_whitespace().nth(3);
    state.is_some_and(|state| matches!(state, "04" | "09" | "0B"))
}

/// What the thread says, with descriptors.
struct Message {
    bytes: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

impl Message {
    fn receive(control: &OwnedFd, flags: RecvFlags) -> io::Result<Self> {
        let mut bytes = vec![0; MESSAGE_LEN_MAX];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SPARE_MAX))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(
            control,
            &mut [IoSliceMut::new(&mut bytes)],
            &mut ancillary,
            flags | RecvFlags::CMSG_CLOEXEC,
        )?;
        if received.bytes == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        bytes.truncate(received.bytes);
        let mut descriptors = Vec::new();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                descriptors.extend(rights);
            }
        }
        Ok(Self { bytes, descriptors })
    }

    /// The failure that it tells of.
    fn failure(&self) -> NamespaceError {
        match self.bytes.split_first_chunk::<5>() {
            Some(([FAILED, number @ ..], what)) => NamespaceError::new(
                &String::from_utf8_lossy(what),
                io::Error::from_raw_os_error(i32::from_ne_bytes(*number)),
            ),
            _ => NamespaceError::new(
                "understand the namespace's thread",
                io::ErrorKind::InvalidData,
            ),
        }
    }
}

/// The thread.
fn inhabit(control: &OwnedFd, addresses: &[Ipv6Addr], buffer_bytes: usize) {
    match unshare(CloneFlags::CLONE_NEWNET) {
        Ok(()) => attend(control, addresses, buffer_bytes, 0),
        Err(Errno::EPERM) => {
            let started = sys::apart(|| {
                close_all_but(control.as_fd());
                match unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET) {
                    Ok(()) => attend(control, addresses, buffer_bytes, 1),
                    Err(error) => fail(
                        control,
                        &NamespaceError::new("make a user and network namespace", error),
                    ),
                }
            });
            if let Err(error) = started {
                fail(
                    control,
                    &NamespaceError::new("start a process without threads", error),
                );
            }
        }
        Err(error) => fail(
            control,
            &NamespaceError::new("make a network namespace", error),
        ),
    }
}

/// Furnishes the namespace that the caller is in, then makes sockets until the control socket closes.
fn attend(control: &OwnedFd, addresses: &[Ipv6Addr], buffer_bytes: usize, rootless: u8) {
    match furnish(addresses, buffer_bytes) {
        Ok((tun, table)) => {
            if say(control, &[READY, rootless], &[tun.as_fd(), table.as_fd()]).is_err() {
                return;
            }
        }
        Err(error) => return fail(control, &error),
    }
    let mut request = [0];
    while let Ok((1, _)) = rustix::net::recv(control, &mut request, RecvFlags::empty()) {
        let sockets: io::Result<Vec<OwnedFd>> = (0..SPARE_MAX).map(|_| fresh()).collect();
        match sockets {
            Ok(sockets) => {
                let sockets: Vec<BorrowedFd<'_>> = sockets.iter().map(|fd| fd.as_fd()).collect();
                if say(control, &[SOCKETS], &sockets).is_err() {
                    return;
                }
            }
            Err(error) => fail(control, &NamespaceError::new("make a socket", error)),
        }
    }
}

fn furnish(
    addresses: &[Ipv6Addr],
    buffer_bytes: usize,
) -> Result<(OwnedFd, OwnedFd), NamespaceError> {
    let failed = |what, error| NamespaceError::new(what, error);
    let tun = sys::tun(INTERFACE).map_err(|error| failed("open a TUN device", error))?;
    let index = nix::net::if_::if_nametoindex(INTERFACE)
        .map_err(|error| failed("find the TUN device", error.into()))?;
    netlink::configure(index, addresses)
        .map_err(|error| failed("configure the TUN device", error))?;
    tune(buffer_bytes);
    let table = File::open("/proc/thread-self/net/tcp6")
        .map_err(|error| failed("read the namespace's sockets", error))?;
    Ok((tun, table.into()))
}

/// Limits that the kernel has per namespace. Where they cannot be written, those of the host apply.
fn tune(buffer_bytes: usize) {
    let most = buffer_bytes.saturating_mul(BOOKKEEPING).max(64 * 1024);
    let begin = most.min(128 * 1024);
    let sizes = format!("4096 {begin} {most}");
    for (name, value) in [
        ("tcp_rmem", sizes.as_str()),
        ("tcp_wmem", &sizes),
        ("tcp_retries2", RETRANSMISSIONS),
    ] {
        if let Err(error) = std::fs::write(format!("/proc/sys/net/ipv4/{name}"), value) {
            tracing::debug!(name, %error, "not set in the namespace");
        }
    }
}

fn fresh() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socket_with(
        AddressFamily::INET6,
        SocketType::STREAM,
        flags,
        None,
    )?)
}

fn say(control: &OwnedFd, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> rustix::io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SPARE_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
    sendmsg(
        control,
        &[IoSlice::new(bytes)],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )
    .map(drop)
}

fn fail(control: &OwnedFd, error: &NamespaceError) {
    let mut bytes = vec![FAILED];
    bytes.extend(error.source.raw_os_error().unwrap_or(0).to_ne_bytes());
    bytes.extend(error.what.as_bytes());
    bytes.truncate(MESSAGE_LEN_MAX);
    // Who asked is gone: nobody is left to be told.
    let _ = rustix::net::send(control, &bytes, SendFlags::NOSIGNAL);
}

/// Closes the copies of everybody else's descriptors: a listener that its owner closes is closed.
fn close_all_but(control: BorrowedFd<'_>) {
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else {
        return;
    };
    let descriptors: Vec<i32> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    for descriptor in descriptors {
        if descriptor != control.as_raw_fd() {
            let _ = nix::unistd::close(descriptor);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_owes() {
        let line = |state| format!("  0: 0100:1F90 0200:C350 {state} 00000000:00000000 00:0");
        for state in ["04", "09", "0B"] {
            assert!(owes(&line(state)), "{state}");
        }
        for state in ["01", "05", "06", "08", "0A"] {
            assert!(!owes(&line(state)), "{state}");
        }
        assert!(!owes("") && !owes("  sl  local_address"));
    }

    #[test]
    fn failures_travel() {
        let (here, there) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        let error = io::Error::from_raw_os_error(1);
        fail(&there, &NamespaceError::new("open a TUN device", error));
        let told = Message::receive(&here, RecvFlags::empty())
            .unwrap()
            .failure();
        assert_eq!(told.to_string(), "cannot open a TUN device");
        assert_eq!(told.source.raw_os_error(), Some(1));
        drop(there);
        let ended = Message::receive(&here, RecvFlags::empty()).err().unwrap();
        assert_eq!(ended.kind(), io::ErrorKind::UnexpectedEof);
    }
}
