//! A network namespace with a thread that lives in it.

use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::net::if_::InterfaceFlags;
use nix::sched::{CloneFlags, unshare};

use crate::Fallible;
use crate::wire;

type Order = Box<dyn FnOnce() + Send>;

/// The system lacks something or does not allow it: no fault of what is tested.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Unavailable(pub(crate) String);

/// Leaves the machine's own network; without privilege, in a user namespace. Must be called while the
/// process has one thread. Where even that is not allowed, making a place says so.
pub(crate) fn isolate() -> std::io::Result<()> {
    let (uid, gid) = (nix::unistd::getuid(), nix::unistd::getgid());
    if unshare(CloneFlags::CLONE_NEWNET).is_ok() {
        return Ok(());
    }
    if unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET).is_ok() {
        std::fs::write("/proc/self/setgroups", "deny")?;
        std::fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
        std::fs::write("/proc/self/gid_map", format!("0 {gid} 1"))?;
    }
    Ok(())
}

/// See the module.
pub(crate) struct Place {
    name: &'static str,
    thread_id: i32,
    orders: Option<SyncSender<Order>>,
    thread: Option<JoinHandle<()>>,
}

impl Place {
    pub(crate) fn new(name: &'static str) -> Fallible<Self> {
        let (orders, received) = sync_channel::<Order>(1);
        let (ready, begun) = sync_channel(1);
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                let entered = unshare(CloneFlags::CLONE_NEWNET);
                let thread_id = nix::unistd::gettid().as_raw();
                if ready.send(entered.map(|()| thread_id)).is_ok() {
                    received.into_iter().for_each(|order| order());
                }
            })?;
        let thread_id = begun
            .recv()?
            .map_err(|error| Unavailable(format!("no network namespace can be made: {error}")))?;
        let place = Self {
            name,
            thread_id,
            orders: Some(orders),
            thread: Some(thread),
        };
        place.ip("link set lo up")?;
        place.run(trust_addresses)?;
        Ok(place)
    }

    /// Does it in there.
    pub(crate) fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Fallible<T> {
        Ok(self.start(job)?.recv()?)
    }

    /// Begins to do it in there; what comes of it can be received.
    pub(crate) fn start<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Fallible<Receiver<T>> {
        let (sender, receiver) = sync_channel(1);
        let order = Box::new(move || {
            let _ = sender.send(job());
        });
        let orders = self.orders.as_ref().ok_or("the place is closed")?;
        orders
            .send(order)
            .map_err(|_| "the place's thread has ended")?;
        Ok(receiver)
    }

    /// `ip` with these words.
    pub(crate) fn ip(&self, words: &str) -> Fallible {
        self.command("ip", words, "")
    }

    /// `nft` with these rules.
    pub(crate) fn nft(&self, rules: &str) -> Fallible {
        self.command("nft", "-f -", rules)
    }

    fn command(&self, program: &'static str, words: &str, input: &str) -> Fallible {
        let (words, input) = (words.to_owned(), input.to_owned());
        let said = words.clone();
        let output = self.run(move || {
            let mut child = Command::new(program)
                .args(words.split_ascii_whitespace())
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()?;
            if let Some(mut stdin) = child.stdin.take() {
                stdin.write_all(input.as_bytes())?;
            }
            child.wait_with_output()
        })?;
        let output = output.map_err(|error| Unavailable(format!("{program}: {error}")))?;
        if !output.status.success() {
            let error = String::from_utf8_lossy(&output.stderr).into_owned();
            let is_refused = ["not permitted", "not supported"]
                .iter()
                .any(|words| error.contains(words));
            let error = format!("{}: {program} {said}: {error}", self.name);
            return Err(if is_refused {
                Unavailable(error).into()
            } else {
                error.into()
            });
        }
        Ok(())
    }

    /// Starts a program in there.
    pub(crate) fn spawn(&self, mut command: Command) -> Fallible<Daemon> {
        let name = command.get_program().to_string_lossy().into_owned();
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let child = self.run(move || command.stderr(Stdio::null()).spawn())?;
        let child = child.map_err(|error| Unavailable(format!("{name}: {error}")))?;
        Ok(Daemon(child))
    }

    /// Lets it pass packets on.
    pub(crate) fn forward(&self) -> Fallible {
        self.run(|| {
            std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
            std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1")
        })??;
        Ok(())
    }

    /// A cable from here to there, with names and addresses of both ends.
    pub(crate) fn cable(&self, end: &str, there: &Self, other: &str) -> Fallible {
        let (tid, [near, far]) = (there.thread_id, [end, other].map(device));
        self.ip(&format!(
            "link add {near} type veth peer name {far} netns {tid}"
        ))?;
        self.furnish(end)?;
        there.furnish(other)
    }

    /// Like [`Self::cable`], through an impaired wire.
    pub(crate) fn bad_cable(
        &self,
        end: &str,
        there: &Self,
        other: &str,
        weather: wire::Weather,
    ) -> Fallible {
        let ends: [OwnedFd; 2] = [self.tun(end)?, there.tun(other)?];
        wire::start(ends, weather)?;
        self.furnish(end)?;
        there.furnish(other)
    }

    /// Waits until the kernel takes a device for connected, which it looks for once a second: until
    /// then it asks nobody on it for an IPv6 neighbour.
    #[expect(clippy::disallowed_methods, reason = "nobody tells when it is")]
    pub(crate) fn await_link(&self, name: &str) -> Fallible {
        let wanted = name.to_owned();
        let is_up = self.run(move || {
            (0..1000).any(|_| {
                std::thread::sleep(Duration::from_millis(5));
                let mut interfaces = nix::ifaddrs::getifaddrs().into_iter().flatten();
                interfaces.any(|interface| {
                    interface.interface_name == wanted
                        && interface.flags.contains(InterfaceFlags::IFF_RUNNING)
                })
            })
        })?;
        if is_up {
            return Ok(());
        }
        Err(format!("{}: {name} is never connected", self.name).into())
    }

    fn tun(&self, end: &str) -> Fallible<OwnedFd> {
        let name = device(end).to_owned();
        let tun = self.run(move || wire::tun(&name))?;
        Ok(tun.map_err(|error| Unavailable(format!("no TUN device: {error}")))?)
    }

    /// Sets an end up that is written `device address...`.
    fn furnish(&self, end: &str) -> Fallible {
        let name = device(end);
        for address in end.split_ascii_whitespace().skip(1) {
            let more = if address.contains(':') { " nodad" } else { "" };
            self.ip(&format!("addr add {address} dev {name}{more}"))?;
        }
        self.ip(&format!("link set {name} up"))
    }
}

/// Lets nobody look for two seconds whether somebody else has its address: a router without a
/// link-local one asks nobody where they are, and so passes nothing on over IPv6 meanwhile.
fn trust_addresses() {
    for interfaces in ["all", "default"] {
        for setting in ["accept_dad", "dad_transmits"] {
            let path = format!("/proc/sys/net/ipv6/conf/{interfaces}/{setting}");
            // Where there is no IPv6, giving addresses says so.
            let _ = std::fs::write(path, "0");
        }
    }
}

fn device(end: &str) -> &str {
    end.split_ascii_whitespace().next().unwrap_or_default()
}

/// A program that ends with its laboratory.
pub(crate) struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
