//! Why the node's address cannot be had, in the words of DESIGN section 15.

use std::net::SocketAddr;

/// The error of a taken port: who has it, if that can be seen, and what to type instead.
pub(crate) fn taken(listen: SocketAddr) -> anyhow::Error {
    let port = listen.port();
    let holder = holder(listen).map_or_else(
        || "by another program".to_owned(),
        |(name, pid)| format!("by {name} (pid {pid})"),
    );
    let next = port.saturating_add(1);
    anyhow::anyhow!(
        "{port} is taken {holder}. Use: tabbify up --listen {}:{next}",
        listen.ip()
    )
}

/// The process that listens on the port, if this user may see it.
fn holder(listen: SocketAddr) -> Option<(String, u32)> {
    let inode = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .find_map(|table| {
            let table = std::fs::read_to_string(table).ok()?;
            let row = table
                .lines()
                .skip(1)
                .find(|row| listens_on(row, listen.port()))?;
            row.split_whitespace().nth(9).map(str::to_owned)
        })?;
    let socket = format!("socket:[{inode}]");
    let processes = std::fs::read_dir("/proc").ok()?.flatten();
    let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let pid = pids.find(|pid| has_open(*pid, &socket))?;
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some((name.trim().to_owned(), pid))
}

/// Whether a row of `/proc/net/tcp` (proc_pid_net(5)) is a listener on `port`: state `0A`.
fn listens_on(row: &str, port: u16) -> bool {
    let mut columns = row.split_whitespace();
    let local = columns
        .nth(1)
        .and_then(|address| address.rsplit(':').next());
    let local = local.and_then(|hex| u16::from_str_radix(hex, 16).ok());
    local == Some(port) && columns.nth(1) == Some("0A")
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
    use std::net::{Ipv4Addr, TcpListener};

    use super::*;

    #[test]
    fn names_the_holder_of_a_port() {
        let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let listen = socket.local_addr().unwrap();
        let said = taken(listen).to_string();
        assert!(
            said.contains(&format!("(pid {})", std::process::id())),
            "{said}"
        );
        assert!(
            said.contains(&format!("--listen 127.0.0.1:{}", listen.port() + 1)),
            "{said}"
        );
    }
}
