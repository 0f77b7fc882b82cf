//! Who listens in this guest: the kernel's own tables, so that a host can tell an app that is not up yet
//! from one that listens elsewhere.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// LIMIT: addresses that are told.
const COUNT_MAX: usize = 64;
/// The state of a socket that listens (`include/net/tcp_states.h`).
const LISTEN: &str = "0A";

/// The TCP addresses that somebody listens on, by port.
pub(crate) fn listeners() -> Vec<SocketAddr> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"];
    let texts = tables.map(|path| std::fs::read_to_string(path).unwrap_or_default());
    let found = texts.iter().flat_map(|text| table(text));
    let mut found: Vec<SocketAddr> = found.take(COUNT_MAX).collect();
    // The kernel has them in the order of a hash with a random key.
    found.sort_by_key(|address| (address.port(), address.ip()));
    found
}

/// Rows such as `0: 0100007F:1F90 00000000:0000 0A …`.
fn table(text: &str) -> impl Iterator<Item = SocketAddr> {
    text.lines().filter_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let (local, _remote, state) = (fields.next()?, fields.next()?, fields.next()?);
        let (address, port) = local.split_once(':')?;
        let port = u16::from_str_radix(port, 16).ok()?;
        (state == LISTEN).then_some(SocketAddr::new(ip(address)?, port))
    })
}

/// One or four words of eight digits, each as the processor has it in memory.
fn ip(text: &str) -> Option<IpAddr> {
    let (words, rest) = text.as_bytes().as_chunks::<8>();
    if !rest.is_empty() {
        return None;
    }
    let word = |digits: &[u8; 8]| {
        let digits = std::str::from_utf8(digits).ok()?;
        u32::from_str_radix(digits, 16).ok().map(u32::to_ne_bytes)
    };
    match words {
        [one] => Some(Ipv4Addr::from(word(one)?).into()),
        [a, b, c, d] => {
            let words = [word(a)?, word(b)?, word(c)?, word(d)?];
            let octets: [u8; 16] = words.concat().try_into().ok()?;
            Some(Ipv6Addr::from(octets).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rows_of_listeners() {
        let text = "  sl  local_address rem_address   st tx_queue\n   \
            0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000\n   \
            1: 0F02000A:1F90 0202000A:8888 01 00000000:00000000\n   \
            2: 00000000000000000000000001000000:0050 00000000000000000000000000000000:0000 0A 0\n";
        let found: Vec<String> = table(text).map(|address| address.to_string()).collect();
        assert_eq!(found, ["127.0.0.1:8080", "[::1]:80"]);
    }

    #[test]
    fn the_kernel_writes_them_so() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let text = std::fs::read_to_string("/proc/net/tcp").unwrap();
        let ours = listener.local_addr().unwrap();
        assert!(table(&text).any(|address| address == ours), "{text}");
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in "[0-9A-F: \n]{0,200}") {
            let _ = table(&text).count();
        }
    }
}
