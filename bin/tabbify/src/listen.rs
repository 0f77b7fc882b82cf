//! Why an address cannot be had, in the words of DESIGN section 15.

use std::fmt;
use std::io::ErrorKind;
use std::net::SocketAddr;

/// What is bound to a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    /// A listener.
    Tcp,
    /// A socket.
    Udp,
}

impl Transport {
    /// The tables of proc_pid_net(5) that show it, and the state that it has there.
    const fn tables(self) -> ([&'static str; 2], &'static str) {
        match self {
            Self::Tcp => (["/proc/net/tcp", "/proc/net/tcp6"], "0A"),
            Self::Udp => (["/proc/net/udp", "/proc/net/udp6"], "07"),
        }
    }
}

/// A port that somebody else has, and what to change.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Taken<'a> {
    at: SocketAddr,
    transport: Transport,
    remedy: Remedy<'a>,
}

#[derive(Debug, Clone, Copy)]
enum Remedy<'a> {
    /// A flag of `tabbify up`.
    Flag,
    /// A key of the configuration, with its table: `[relay] udp`.
    Key(&'a str),
}

impl<'a> Taken<'a> {
    /// The node's, which a flag of `tabbify up` sets.
    pub(crate) const fn node(at: SocketAddr) -> Self {
        Self {
            at,
            transport: Transport::Tcp,
            remedy: Remedy::Flag,
        }
    }

    /// One that a key of the configuration sets.
    pub(crate) const fn of(key: &'a str, transport: Transport, at: SocketAddr) -> Self {
        Self {
            at,
            transport,
            remedy: Remedy::Key(key),
        }
    }

    /// For `map_err`: this, if the port is taken, else what the system says.
    pub(crate) fn or(self, error: std::io::Error) -> anyhow::Error {
        match (error.kind(), self.remedy) {
            (ErrorKind::AddrInUse, _) => taken(self),
            (_, Remedy::Flag) => anyhow::Error::new(error).context(format!("--listen {}", self.at)),
            (_, Remedy::Key(key)) => {
                anyhow::Error::new(error).context(format!("{key} = \"{}\" cannot be had", self.at))
            }
        }
    }
}

impl fmt::Display for Remedy<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag => f.write_str("Use: tabbify up --listen"),
            Self::Key(key) => write!(f, "Set another {key}, such as"),
        }
    }
}

/// The error of a taken port: who has it, if that can be seen, and what to write instead.
pub(crate) fn taken(taken: Taken<'_>) -> anyhow::Error {
    let Taken {
        at,
        transport,
        remedy,
    } = taken;
    let port = at.port();
    let holder = holder(at, transport).map_or_else(
        || "by another program".to_owned(),
        |(name, pid)| format!("by {name} (pid {pid})"),
    );
    let other = port.checked_add(1).unwrap_or(port - 1);
    let other = SocketAddr::new(at.ip(), other);
    let udp = if transport == Transport::Udp {
        " (UDP)"
    } else {
        ""
    };
    anyhow::anyhow!("{port}{udp} is taken {holder}. {remedy} {other}")
}

/// The process that has the port, if this user may see it.
fn holder(at: SocketAddr, transport: Transport) -> Option<(String, u32)> {
    let (tables, state) = transport.tables();
    let inode = tables.iter().find_map(|table| {
        let table = std::fs::read_to_string(table).ok()?;
        let row = table
            .lines()
            .skip(1)
            .find(|row| is_bound_to(row, at.port(), state))?;
        row.split_whitespace().nth(9).map(str::to_owned)
    })?;
    let socket = format!("socket:[{inode}]");
    let processes = std::fs::read_dir("/proc").ok()?.flatten();
    let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let pid = pids.find(|pid| has_open(*pid, &socket))?;
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some((name.trim().to_owned(), pid))
}

/// Whether a row of such a table is bound to `port` in this state.
fn is_bound_to(row: &str, port: u16, state: &str) -> bool {
    let mut columns = row.split_whitespace();
    let local = columns
        .nth(1)
        .and_then(|address| address.rsplit(':').next());
    let local = local.and_then(|hex| u16::from_str_radix(hex, 16).ok());
    local == Some(port) && columns.nth(1) == Some(state)
}

fn has_open(pid: u32, socket: &str) -> bool {
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten()
        .flatten();
    descriptors
        .filter_map(|entry| std::fs::read_link(entry.path()).ok())
        .any(|target| target.to_str() == Some(socket))
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener, UdpSocket};

    use super::*;

    #[test]
    fn names_the_holder_of_a_port() {
        let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let at = socket.local_addr().unwrap();
        let said = taken(Taken::node(at)).to_string();
        let (port, pid) = (at.port(), std::process::id());
        assert!(said.starts_with(&format!("{port} is taken by ")), "{said}");
        assert!(said.contains(&format!("(pid {pid})")), "{said}");
        let next = format!("Use: tabbify up --listen 127.0.0.1:{}", port + 1);
        assert!(said.ends_with(&next), "{said}");
    }

    #[test]
    fn names_the_key_of_the_configuration() {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let at = socket.local_addr().unwrap();
        let error = UdpSocket::bind(at).unwrap_err();
        let said = Taken::of("[relay] udp", Transport::Udp, at)
            .or(error)
            .to_string();
        let (port, pid) = (at.port(), std::process::id());
        assert!(
            said.starts_with(&format!("{port} (UDP) is taken by ")),
            "{said}"
        );
        assert!(said.contains(&format!("(pid {pid})")), "{said}");
        let next = format!("Set another [relay] udp, such as 127.0.0.1:{}", port + 1);
        assert!(said.ends_with(&next), "{said}");
        let elsewhere: SocketAddr = "192.0.2.1:7".parse().unwrap();
        let error = UdpSocket::bind(elsewhere).unwrap_err();
        let said = Taken::of("[relay] udp", Transport::Udp, elsewhere).or(error);
        assert!(format!("{said:#}").contains("192.0.2.1:7"), "{said:#}");
    }
}
