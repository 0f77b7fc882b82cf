//! Sets up the namespace's one device, in the kernel's own words (rtnetlink(7)): four kinds of
//! requests, each answered with an error number.

use std::io;
use std::net::Ipv6Addr;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

use super::alias;
use super::split::SEGMENTS_MAX;
use crate::config::MTU;

const ROOM: usize = 16 + 128;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const AF_INET6: u8 = 10;
const IFF_UP: u32 = 1;
const IFLA_MTU: u16 = 4;
const IFLA_TXQLEN: u16 = 13;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_GSO_MAX_SEGS: u16 = 40;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const ADDR_GEN_MODE_NONE: u8 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_F_NODAD: u8 = 2;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_PREFSRC: u16 = 7;
const RT_TABLE_MAIN: u8 = 254;
const RT_TABLE_LOCAL: u8 = 255;
const RTPROT_STATIC: u8 = 4;
const RTN_UNICAST: u8 = 1;
const RTN_LOCAL: u8 = 2;
/// Packets that wait for us in the device: a few windows, of up to 44 segments each.
const QUEUE_LEN: u32 = 1000;

/// Gives the device with this index our addresses, the route to all aliases, and brings it up.
pub(super) fn configure(index: u32, addresses: &[Ipv6Addr]) -> io::Result<()> {
    let kernel = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    let segments = u32::try_from(SEGMENTS_MAX).unwrap_or(u32::MAX);
    let inet6 = attribute(IFLA_INET6_ADDR_GEN_MODE, &[ADDR_GEN_MODE_NONE]);
    Request::link(index, 0)
        .with(IFLA_MTU, &u32::from(MTU).to_ne_bytes())
        .with(IFLA_TXQLEN, &QUEUE_LEN.to_ne_bytes())
        .with(IFLA_GSO_MAX_SEGS, &segments.to_ne_bytes())
        // No address, and so no chatter, of its own.
        .with(IFLA_AF_SPEC, &attribute(u16::from(AF_INET6), &inet6))
        .ask(&kernel)?;
    Request::link(index, IFF_UP).ask(&kernel)?;
    for address in addresses {
        Request::address(index)
            .with(IFA_ADDRESS, &address.octets())
            .ask(&kernel)?;
        // The kernel makes the same route, but some time later, and drops until then what arrives.
        Request::route(RT_TABLE_LOCAL, RTN_LOCAL, 128)
            .with(RTA_DST, &address.octets())
            .with(RTA_OIF, &index.to_ne_bytes())
            .ask(&kernel)?;
    }
    let route = Request::route(RT_TABLE_MAIN, RTN_UNICAST, alias::PREFIX_LEN)
        .with(RTA_DST, &alias::Alias::network().octets())
        .with(RTA_OIF, &index.to_ne_bytes());
    match addresses.first() {
        Some(first) => route.with(RTA_PREFSRC, &first.octets()).ask(&kernel),
        None => route.ask(&kernel),
    }
}

struct Request(Vec<u8>);

impl Request {
    fn new(kind: u16, flags: u16, body: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(ROOM);
        bytes.extend([0; 4]); // the length
        bytes.extend(kind.to_ne_bytes());
        bytes.extend((flags | NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
        bytes.extend([0; 8]); // sequence and port: one request at a time
        bytes.extend(body);
        Self(bytes)
    }

    /// `struct ifinfomsg`; `flags` are turned on.
    fn link(index: u32, flags: u32) -> Self {
        let mut body = [0; 16];
        body[4..8].copy_from_slice(&index.to_ne_bytes());
        body[8..12].copy_from_slice(&flags.to_ne_bytes());
        body[12..16].copy_from_slice(&flags.to_ne_bytes());
        Self::new(RTM_NEWLINK, 0, &body)
    }

    /// `struct ifaddrmsg`.
    fn address(index: u32) -> Self {
        let [a, b, c, d] = index.to_ne_bytes();
        let body = [AF_INET6, 128, IFA_F_NODAD, 0, a, b, c, d];
        Self::new(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, &body)
    }

    /// `struct rtmsg`.
    fn route(table: u8, kind: u8, prefix_len: u8) -> Self {
        let mut body = [0; 12];
        (body[0], body[1]) = (AF_INET6, prefix_len);
        (body[4], body[5], body[7]) = (table, RTPROT_STATIC, kind);
        Self::new(RTM_NEWROUTE, NLM_F_CREATE, &body)
    }

    fn with(mut self, kind: u16, value: &[u8]) -> Self {
        self.0.extend(attribute(kind, value));
        self
    }

    fn ask(mut self, kernel: &OwnedFd) -> io::Result<()> {
        let len = u32::try_from(self.0.len()).unwrap_or(0);
        self.0[..4].copy_from_slice(&len.to_ne_bytes());
        send(kernel.as_raw_fd(), &self.0, MsgFlags::empty())?;
        let mut answer = [0; 1024];
        let len = recv(kernel.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        match verdict(&answer[..len]) {
            Some(0) => Ok(()),
            Some(error) => Err(io::Error::from_raw_os_error(-error)),
            None => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

/// The error number in an answer.
fn verdict(answer: &[u8]) -> Option<i32> {
    let kind = u16::from_ne_bytes(answer.get(4..6)?.try_into().ok()?);
    let error = i32::from_ne_bytes(answer.get(16..20)?.try_into().ok()?);
    (kind == NLMSG_ERROR).then_some(error)
}

/// A `struct rtattr` with its value, padded.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let len = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    let mut bytes = Vec::with_capacity(usize::from(len) + 3);
    bytes.extend(len.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers() {
        let mut answer = vec![0; 36];
        answer[4..6].copy_from_slice(&NLMSG_ERROR.to_ne_bytes());
        assert_eq!(verdict(&answer), Some(0));
        answer[16..20].copy_from_slice(&(-17_i32).to_ne_bytes());
        assert_eq!(verdict(&answer), Some(-17));
        for len in 0..20 {
            assert_eq!(verdict(&answer[..len]), None, "{len}");
        }
        answer[4] = 16;
        assert_eq!(verdict(&answer), None);
    }

    #[test]
    fn attributes_are_padded() {
        assert_eq!(attribute(8, &[1]).len(), 8);
        assert_eq!(attribute(1, &[0; 16]).len(), 20);
        assert_eq!(attribute(1, &[0; 16])[..2], 20_u16.to_ne_bytes());
    }
}
