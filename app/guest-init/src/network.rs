//! The guest's interface, by rtnetlink (RFC 3549): up, an address, a route. Without a library, since
//! four messages are all there is to say.

use std::net::Ipv4Addr;

use rustix::fd::OwnedFd;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use crate::order::Network;

const NEW_LINK: u16 = 16;
const NEW_ADDRESS: u16 = 20;
const NEW_ROUTE: u16 = 24;
const ERROR: u16 = 2;
/// Request, acknowledge, create.
const FLAGS: u16 = 0x1 | 0x4 | 0x400;
const HEADER_LEN: usize = 16;
const FAMILY_IPV4: u8 = 2;
/// The tables, protocols and types of routes.
const MAIN_TABLE: u8 = 254;
const BY_BOOT: u8 = 3;
const UNICAST: u8 = 1;
/// Attributes.
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;

/// Takes the loopback interface up.
pub(crate) fn loopback() -> Result<(), String> {
    up(&socket()?, index("lo")?).map_err(|error| format!("lo does not come up: {error}"))
}

/// Configures the interface `name`.
pub(crate) fn interface(name: &str, network: &Network) -> Result<(), String> {
    let socket = socket()?;
    let index = index(name)?;
    let failed = |what: &'static str| move |error| format!("{name}: {what}: {error}");
    up(&socket, index).map_err(failed("does not come up"))?;
    let message = address(index, network.address, network.prefix);
    ask(&socket, message).map_err(failed("does not take its address"))?;
    if let Some(gateway) = network.gateway {
        ask(&socket, route(index, gateway)).map_err(failed("does not take its route"))?;
    }
    Ok(())
}

/// The first interface that is not loopback.
pub(crate) fn first() -> Option<String> {
    let entries = std::fs::read_dir("/sys/class/net").ok()?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter(|name| name != "lo").min()
}

fn index(name: &str) -> Result<u32, String> {
    let text = std::fs::read_to_string(format!("/sys/class/net/{name}/ifindex"));
    let index = text.ok().and_then(|text| text.trim().parse().ok());
    index.ok_or_else(|| format!("there is no interface {name}"))
}

fn socket() -> Result<OwnedFd, String> {
    let opened = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        None, // the first protocol is NETLINK_ROUTE
    );
    opened.map_err(|error| format!("no netlink socket: {error}"))
}

fn up(socket: &OwnedFd, index: u32) -> rustix::io::Result<()> {
    // Family, padding, type; index; flags and which of them change: up.
    let mut message = vec![0, 0, 0, 0];
    for word in [index, 1, 1] {
        message.extend(word.to_ne_bytes());
    }
    ask(socket, (NEW_LINK, message))
}

fn address(index: u32, address: Ipv4Addr, prefix: u8) -> (u16, Vec<u8>) {
    let mut message = vec![FAMILY_IPV4, prefix, 0, 0];
    message.extend(index.to_ne_bytes());
    attribute(&mut message, IFA_LOCAL, &address.octets());
    attribute(&mut message, IFA_ADDRESS, &address.octets());
    (NEW_ADDRESS, message)
}

fn route(index: u32, gateway: Ipv4Addr) -> (u16, Vec<u8>) {
    // Lengths of destination and source: everywhere from anywhere.
    let mut message = vec![FAMILY_IPV4, 0, 0, 0, MAIN_TABLE, BY_BOOT, 0, UNICAST];
    message.extend([0; 4]);
    attribute(&mut message, RTA_GATEWAY, &gateway.octets());
    attribute(&mut message, RTA_OIF, &index.to_ne_bytes());
    (NEW_ROUTE, message)
}

fn attribute(message: &mut Vec<u8>, kind: u16, value: &[u8; 4]) {
    message.extend(8_u16.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(value);
}

/// Sends a message and waits for the kernel's answer.
fn ask(socket: &OwnedFd, (kind, message): (u16, Vec<u8>)) -> rustix::io::Result<()> {
    let kernel = SocketAddrNetlink::new(0, 0);
    rustix::net::sendto(socket, &framed(kind, &message), SendFlags::empty(), &kernel)?;
    let mut answer = [0; 1024];
    let (len, _) = rustix::net::recv(socket, &mut answer, RecvFlags::empty())?;
    match refusal(&answer[..len]) {
        Some(0) => Ok(()),
        Some(errno) => Err(rustix::io::Errno::from_raw_os_error(-errno)),
        None => Err(rustix::io::Errno::BADMSG),
    }
}

fn framed(kind: u16, message: &[u8]) -> Vec<u8> {
    let len = u32::try_from(HEADER_LEN + message.len()).unwrap_or(u32::MAX);
    let mut framed = len.to_ne_bytes().to_vec();
    framed.extend(kind.to_ne_bytes());
    framed.extend(FLAGS.to_ne_bytes());
    framed.extend([0; 8]); // sequence and port: there is one question at a time
    framed.extend(message);
    framed
}

/// The errno in an acknowledgment, negative, or zero.
fn refusal(answer: &[u8]) -> Option<i32> {
    let kind = answer.get(4..6)?;
    let errno = answer.get(HEADER_LEN..HEADER_LEN + 4)?;
    (kind == ERROR.to_ne_bytes()).then_some(i32::from_ne_bytes(errno.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_as_long_as_they_say() {
        let (kind, message) = address(2, Ipv4Addr::new(10, 0, 2, 15), 24);
        let framed = framed(kind, &message);
        assert_eq!(framed.len(), 16 + 8 + 8 + 8);
        assert_eq!(framed[..4], 40_u32.to_ne_bytes());
        assert_eq!(framed[28..32], [10, 0, 2, 15]);
        assert_eq!(route(2, Ipv4Addr::LOCALHOST).1.len(), 12 + 16);
    }

    #[test]
    fn answers_of_any_length() {
        assert_eq!(refusal(&[]), None);
        let mut answer = vec![0; 20];
        assert_eq!(refusal(&answer), None);
        answer[4..6].copy_from_slice(&ERROR.to_ne_bytes());
        answer[16..20].copy_from_slice(&(-17_i32).to_ne_bytes());
        assert_eq!(refusal(&answer), Some(-17));
        assert_eq!(refusal(&answer[..19]), None);
    }

    /// The kernel of the machine that runs the test reads what we write: it refuses for want of
    /// privilege or because the interface is up already, and not because it cannot read it.
    #[test]
    fn the_kernel_reads_them() {
        match up(&socket().unwrap(), index("lo").unwrap()) {
            Ok(()) | Err(rustix::io::Errno::PERM) => {}
            Err(error) => panic!("{error}"),
        }
    }
}
