//! Where a container's processes listen: the kernel's tables of its network, read from outside.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use crate::container::Container;

/// The state of a listening socket in the kernel's tables.
const LISTEN: &str = "0A";
/// LIMIT: lines of a table that are read.
const LINES_MAX: usize = 10_000;
/// Where the engine's own resolver listens, in every container.
const RESOLVER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 11));

impl Container {
    /// Where it listens, sorted; empty also if this machine does not show it.
    #[must_use]
    pub fn listening(&self) -> Vec<SocketAddr> {
        let Some(pid) = self.pid() else {
            return Vec::new();
        };
        let tables = Path::new("/proc").join(pid.to_string()).join("net");
        let read = |name: &str| std::fs::read_to_string(tables.join(name)).unwrap_or_default();
        let mut found = parse(&read("tcp"));
        found.extend(parse(&read("tcp6")));
        found.retain(|address| address.ip() != RESOLVER);
        found.sort_unstable();
        found.dedup();
        found
    }
}

/// The listening sockets of a table: `/proc/net/tcp` or `tcp6`, as proc(5) describes them.
fn parse(table: &str) -> Vec<SocketAddr> {
    let lines = table.lines().skip(1).take(LINES_MAX);
    let listening = lines.filter_map(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let local = fields.next()?;
        let state = fields.nth(1)?;
        (state == LISTEN).then(|| address(local)).flatten()
    });
    listening.collect()
}

/// `0100007F:1F90`: words of four bytes as this machine stores them, and a port.
fn address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let mut bytes = Vec::with_capacity(16);
    if !address.is_ascii() {
        return None;
    }
    for word in address.as_bytes().chunks(8) {
        let word = std::str::from_utf8(word).ok()?;
        bytes.extend(u32::from_str_radix(word, 16).ok()?.to_ne_bytes());
    }
    let ip = match <[u8; 4]>::try_from(bytes.as_slice()) {
        Ok(four) => IpAddr::V4(Ipv4Addr::from(four)),
        Err(_) => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)).to_canonical(),
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn listening_sockets_are_found() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue\n   \
            0: 0100007F:0BB8 00000000:0000 0A 00000000:00000000 00:00000000\n   \
            1: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000\n   \
            2: 0100007F:0BB8 0100007F:9999 01 00000000:00000000 00:00000000\n";
        let found = parse(table);
        let expected = ["127.0.0.1:3000", "0.0.0.0:8080"].map(|a| a.parse().unwrap());
        assert_eq!(found, expected);
        let six = address("00000000000000000000000001000000:0050").unwrap();
        assert_eq!(six, "[::1]:80".parse().unwrap());
    }

    proptest! {
        #[test]
        fn any_table_can_be_read(table in "\\PC{0,40}\n(\\PC|[0-9A-F: ]|\n){0,200}") {
            let _ = parse(&table);
        }
    }
}
