//! A network for each container: a bridge without a way out, on which the container and the machine are
//! alone, and from which the machine's own ports are closed but for one: where the container's runner listens.
//!
//! ```text
//! 10.213.x.y/29   host (gateway): .1, where the runner listens for it, on this bridge alone
//!                 container:      .2, where the runner dials
//! ```

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::process::Stdio;

use bollard::models::{Ipam, IpamConfig, NetworkCreateRequest};
use rustix::net::netdevice::name_to_index;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::process::Command;

use crate::error::{is_missing, status};
use crate::{Engine, Error, Spec};

/// The addresses that networks are cut from: private ones, and out of the engine's own pools.
const POOL: u32 = u32::from_be_bytes([10, 213, 0, 0]);
/// Bits that are the same in all of them.
const POOL_BITS: u32 = 16;
/// Bits of one network's: eight addresses.
const NETWORK_BITS: u32 = 29;
/// How many there are, which is also how many containers a machine may have.
const NETWORKS: u32 = 1 << (NETWORK_BITS - POOL_BITS);
/// LIMIT: networks that are tried before we give up: each is taken with the likelihood of the pool's use.
const TRIES: u32 = 128;
/// Begins the names of our bridges; the kernel takes 15 bytes.
const BRIDGE: &str = "tabb";
/// Where `iptables` is, for a process without a search path.
const IPTABLES: [&str; 3] = ["/usr/sbin/iptables", "/sbin/iptables", "/usr/bin/iptables"];

/// The one port of the machine's end that a container reaches: its runner's, for its way out. A privileged one:
/// else any user of the machine could take it before, and be what containers reach.
pub const PORT: u16 = 731;
/// Connections that wait to be taken there.
const BACKLOG: u32 = 256;
/// The chain of our rules.
const CHAIN: &str = "TABBIFY";

/// Eight addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Subnet(u32);

impl Subnet {
    fn nth(number: u32) -> Self {
        Self(POOL | ((number % NETWORKS) << (32 - NETWORK_BITS)))
    }

    fn text(self) -> String {
        format!("{}/{NETWORK_BITS}", Ipv4Addr::from(self.0))
    }

    /// The machine's end.
    pub(crate) fn host(self) -> Ipv4Addr {
        Ipv4Addr::from(self.0 + 1)
    }
}

/// A name for the bridge of what `nonce` names.
fn bridge(nonce: &str) -> String {
    let digits = nonce.bytes().filter(u8::is_ascii_alphanumeric).take(11);
    let mut name = BRIDGE.to_owned();
    name.extend(digits.map(char::from));
    name
}

/// The closed network of a container that is not there yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    pub(crate) name: String,
    bridge: String,
    subnet: Subnet,
}

impl Network {
    /// The machine's end.
    #[must_use]
    pub fn host(&self) -> Ipv4Addr {
        self.subnet.host()
    }

    /// Listens at the machine's end, at [`PORT`], for this container and nobody else.
    ///
    /// # Errors
    /// Those of a socket.
    pub fn listen(&self) -> io::Result<Listener> {
        let socket = TcpSocket::new_v4()?;
        // What comes by another interface is not for this one, whatever address it names.
        socket.bind_device(Some(self.bridge.as_bytes()))?;
        socket.bind((self.host(), PORT).into())?;
        Ok(Listener {
            socket: socket.listen(BACKLOG)?,
            host: self.host(),
        })
    }
}

/// Takes the connections of one container.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    host: Ipv4Addr,
}

impl Listener {
    /// Where the container finds it.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(self.host.into(), PORT)
    }

    /// The next connection, and whose it is. Dropping the future loses none.
    ///
    /// # Errors
    /// Those of a socket.
    pub async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        loop {
            let (stream, from) = self.socket.accept().await?;
            // The machine's own programs get here as well, from the machine's own address: the app's ways are
            // not theirs.
            if from.ip() != self.host {
                return Ok((stream, from));
            }
        }
    }
}

impl Engine {
    /// Makes the closed network of a container to be. It goes with the container, or by [`Engine::reap`].
    ///
    /// # Errors
    /// Why there is none.
    pub async fn network(&self, spec: &Spec) -> Result<Network, Error> {
        let (name, bridge) = (spec.name(), bridge(&spec.nonce));
        let labels = spec.labels();
        let subnet = self.create_network(&name, &spec.nonce, &labels).await?;
        Ok(Network {
            name,
            bridge,
            subnet,
        })
    }

    /// Makes a closed network called `name`.
    async fn create_network(
        &self,
        name: &str,
        nonce: &str,
        labels: &HashMap<String, String>,
    ) -> Result<Subnet, Error> {
        let bridge = bridge(nonce);
        let mut seed = [0; 4];
        for (byte, from) in seed.iter_mut().zip(nonce.bytes().rev()) {
            *byte = from;
        }
        // Spread by a multiplication, so that digits fill all bits.
        let first = u32::from_be_bytes(seed).wrapping_mul(0x9e37_79b1) >> POOL_BITS;
        for attempt in 0..TRIES {
            let subnet = Subnet::nth(first.wrapping_add(attempt));
            let made = self
                .docker
                .create_network(request(name, &bridge, subnet, labels))
                .await;
            match made {
                Ok(_) => {
                    self.close(&bridge, name).await?;
                    return Ok(subnet);
                }
                // Somebody has these addresses: the engine says so in words alone.
                Err(error) if overlaps(&error) => {}
                Err(error) => return Err(Error::call("making a network")(error)),
            }
        }
        Err(Error::Networks)
    }

    /// Checks that the bridge is here, and closes the machine's own ports to it; else nothing is left of it.
    async fn close(&self, bridge: &str, name: &str) -> Result<(), Error> {
        let closed = match is_here(bridge) {
            true => close_host().await,
            false => Err(Error::Elsewhere),
        };
        if closed.is_err() {
            self.remove_network(name).await?;
        }
        closed
    }

    /// Removes a network; one that is not there is removed.
    pub(crate) async fn remove_network(&self, name: &str) -> Result<bool, Error> {
        match self.docker.remove_network(name).await {
            Ok(()) => Ok(true),
            Err(error) if is_missing(&error) => Ok(false),
            Err(error) => Err(Error::call("removing a network")(error)),
        }
    }
}

fn request(
    name: &str,
    bridge: &str,
    subnet: Subnet,
    labels: &HashMap<String, String>,
) -> NetworkCreateRequest {
    let addresses = IpamConfig {
        subnet: Some(subnet.text()),
        gateway: Some(subnet.host().to_string()),
        ..IpamConfig::default()
    };
    let option = (
        "com.docker.network.bridge.name".to_owned(),
        bridge.to_owned(),
    );
    NetworkCreateRequest {
        name: name.to_owned(),
        driver: Some("bridge".to_owned()),
        internal: Some(true),
        enable_ipv6: Some(false),
        ipam: Some(Ipam {
            config: Some(vec![addresses]),
            ..Ipam::default()
        }),
        options: Some(HashMap::from([option])),
        labels: Some(labels.clone()),
        ..NetworkCreateRequest::default()
    }
}

fn overlaps(error: &bollard::errors::Error) -> bool {
    let text = error.to_string();
    matches!(status(error), Some(400 | 403 | 500))
        && (text.contains("overlap") || text.contains("conflicts with network"))
}

/// Whether this process's own network has an interface of that name.
fn is_here(interface: &str) -> bool {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0));
    socket.is_ok_and(|socket| name_to_index(&socket, interface).is_ok())
}

/// Lets nothing that a container begins reach the machine itself, which stands on every bridge with an
/// address, but for its runner's port: one chain for all our bridges, set once and left, since it harms nobody.
/// What the machine begins, and its answers, pass.
///
/// Runners do this at the same time: each adds what lets pass before what does not, and leads into the chain
/// when both are there, so that any mixture of theirs means the same.
async fn close_host() -> Result<(), Error> {
    let program = IPTABLES.iter().find(|path| Path::new(path).exists());
    let program = program.ok_or_else(|| Error::Open("there is no iptables".to_owned()))?;
    let ours = format!("{BRIDGE}+");
    let into = ["INPUT", "-i", &ours, "-j", CHAIN];
    if run(program, "-C", &into).await?.is_none() {
        return Ok(());
    }
    // It may be there, from somebody who has come less far.
    let _ = run(program, "-N", &[CHAIN]).await?;
    let port = PORT.to_string();
    let pool = format!("{}/{POOL_BITS}", Ipv4Addr::from(POOL));
    let passes = [
        CHAIN, "-d", &pool, "-p", "tcp", "--dport", &port, "-j", "ACCEPT",
    ];
    let new = [
        CHAIN,
        "-m",
        "conntrack",
        "--ctstate",
        "NEW,INVALID",
        "-j",
        "DROP",
    ];
    for (verb, rule) in [("-A", &passes[..]), ("-A", &new), ("-I", &into)] {
        if let Some(why) = run(program, verb, rule).await? {
            return Err(Error::Open(why));
        }
    }
    Ok(())
}

/// Runs `iptables`: what it says if it fails.
async fn run(program: &str, verb: &str, rule: &[&str]) -> Result<Option<String>, Error> {
    // Waits for its lock: engines use it, too.
    let mut command = Command::new(program);
    command.args(["-w", "10", verb]).args(rule);
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = command.output().await;
    let output = output.map_err(|error| Error::Open(error.to_string()))?;
    if output.status.success() {
        return Ok(None);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.lines().find(|line| !line.trim().is_empty());
    Ok(Some(said.unwrap_or("iptables failed").to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_cut_from_the_pool() {
        assert_eq!(Subnet::nth(0).text(), "10.213.0.0/29");
        assert_eq!(Subnet::nth(1).text(), "10.213.0.8/29");
        assert_eq!(Subnet::nth(NETWORKS - 1).text(), "10.213.255.248/29");
        assert_eq!(Subnet::nth(NETWORKS), Subnet::nth(0));
        assert_eq!(Subnet::nth(1).host(), Ipv4Addr::new(10, 213, 0, 9));
    }

    #[test]
    fn a_bridge_has_a_name_that_the_kernel_takes() {
        assert_eq!(bridge("0123456789abcdef0123"), "tabb0123456789a");
        assert!(bridge("a/b../c").len() <= 15 && !bridge("a/b../c").contains('/'));
    }
}
