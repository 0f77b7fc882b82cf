//! What a session keeps about its connections in the kernel's stack: under which aliases its peer is
//! known there, how many connections there are, and how to end them.

use std::collections::{HashMap, VecDeque};
use std::net::Ipv6Addr;
use std::sync::{Arc, Weak};

use gotatun::packet::Packet;

use super::alias::Alias;
use super::conn::Conn;

/// LIMIT: addresses of one peer that get an alias. A host has one, an instance two.
const NAMES_MAX: usize = 64;
/// LIMIT: packets that wait for the handshake with a peer that seems to have moved; more are repeated
/// by TCP.
const HELD_MAX: usize = 32;

/// Names a connection within its session.
pub(crate) type ConnNumber = u64;

#[derive(Debug)]
pub(crate) struct Link {
    number: u64,
    names: Vec<Ipv6Addr>,
    conns: HashMap<ConnNumber, Weak<Conn>>,
    next: ConnNumber,
    held: VecDeque<Packet>,
}

impl Link {
    pub(crate) fn new(number: u64) -> Self {
        Self {
            number,
            names: Vec::new(),
            conns: HashMap::new(),
            next: 0,
            held: VecDeque::new(),
        }
    }

    pub(crate) const fn number(&self) -> u64 {
        self.number
    }

    /// The alias of an address of the peer; `None` if it has too many.
    pub(crate) fn alias(&mut self, address: Ipv6Addr) -> Option<Alias> {
        let known = self.names.iter().position(|name| *name == address);
        let index = known.unwrap_or(self.names.len());
        if index >= NAMES_MAX {
            return None;
        }
        if known.is_none() {
            self.names.push(address);
        }
        let name = u16::try_from(index).ok()?;
        Some(Alias {
            link: self.number,
            name,
        })
    }

    /// The address behind an alias.
    pub(crate) fn address(&self, alias: Alias) -> Option<Ipv6Addr> {
        self.names.get(usize::from(alias.name)).copied()
    }

    /// Makes room for one more connection; `None` if there are `max`.
    pub(crate) fn reserve(&mut self, max: usize) -> Option<ConnNumber> {
        if self.conns.len() >= max {
            return None;
        }
        let number = self.next;
        self.next += 1;
        self.conns.insert(number, Weak::new());
        Some(number)
    }

    /// Takes the connection that room was made for; `false` if the session ended since.
    pub(crate) fn occupy(&mut self, number: ConnNumber, conn: &Arc<Conn>) -> bool {
        let room = self.conns.get_mut(&number);
        room.map(|room| *room = Arc::downgrade(conn)).is_some()
    }

    pub(crate) fn leave(&mut self, number: ConnNumber) {
        self.conns.remove(&number);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.conns.is_empty()
    }

    /// Gives every connection up, those that are still being made included.
    pub(crate) fn abort_all(&mut self) {
        for (_, conn) in self.conns.drain() {
            if let Some(conn) = conn.upgrade() {
                conn.abort();
            }
        }
    }

    /// Keeps a packet for later, if there is room.
    pub(crate) fn hold(&mut self, packet: &[u8]) {
        if self.held.len() < HELD_MAX {
            // A copy, so that the buffer it is in can be used again.
            self.held.push_back(Packet::copy_from(packet));
        }
    }

    pub(crate) fn is_holding(&self) -> bool {
        !self.held.is_empty()
    }

    pub(crate) fn release(&mut self) -> VecDeque<Packet> {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_keeps_its_alias_and_gets_no_second() {
        let mut link = Link::new(7);
        let address = |n| Ipv6Addr::new(0xfd5a, 0x1f02, n, 0, 0, 0, 0, 1);
        let first = link.alias(address(1)).unwrap();
        let second = link.alias(address(2)).unwrap();
        assert_ne!(first, second);
        assert_eq!(link.alias(address(1)), Some(first));
        assert_eq!(link.address(second), Some(address(2)));
        let other = Link::new(8).alias(address(1)).unwrap();
        assert_ne!(first, other, "another session");
        for n in 3..200 {
            link.alias(address(n));
        }
        assert_eq!(link.names.len(), NAMES_MAX);
        assert_eq!(link.alias(address(500)), None);
        assert_eq!(link.address(Alias { link: 7, name: 64 }), None);
    }

    #[test]
    fn room_is_bounded_and_given_back() {
        let mut link = Link::new(0);
        let first = link.reserve(2).unwrap();
        link.reserve(2).unwrap();
        assert_eq!(link.reserve(2), None);
        link.leave(first);
        assert!(link.reserve(2).is_some());
        link.abort_all();
        assert!(link.is_empty());
    }

    #[test]
    fn what_waits_is_bounded() {
        let mut link = Link::new(0);
        for n in 0..100 {
            link.hold(&[n]);
        }
        let held: Vec<u8> = link.release().iter().map(|packet| packet[0]).collect();
        assert_eq!(held, (0..32).collect::<Vec<u8>>());
        assert!(!link.is_holding());
    }
}
