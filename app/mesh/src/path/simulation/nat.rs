//! A model of networks and the NATs between them.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use smoltcp::time::{Duration, Instant};

use super::Dice;

/// The network that everybody can reach.
const INTERNET: usize = 0;
/// A mapping that nothing used for so long is gone.
const TIMEOUT: Duration = Duration::from_secs(30);

/// What a host is behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Nothing.
    Open,
    /// One port for all; everybody may answer.
    FullCone,
    /// One port for all; only addresses that were sent to may answer.
    Restricted,
    /// One port for all; only addresses with their ports may answer.
    PortRestricted,
    /// A port for each; only that one may answer.
    Symmetric,
    /// A NAT of its own behind one of the carrier's, both with one port for all.
    Carrier,
    /// No UDP at all.
    Blocked,
    /// Beside the host that was placed first, behind the same NAT without hairpin.
    Beside,
    /// Behind a NAT of its own, and the same carrier's NAT as the host that was placed first.
    SameCarrier,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Filter {
    Nobody,
    Address,
    Port,
}

#[derive(Debug)]
struct Nat {
    inside: usize,
    outside: usize,
    external: Ipv4Addr,
    symmetric: bool,
    filter: Filter,
    mappings: HashMap<(SocketAddr, Option<SocketAddr>), Mapping>,
}

#[derive(Debug)]
struct Mapping {
    port: u16,
    used: Instant,
    /// Who was sent to.
    peers: Vec<SocketAddr>,
}

#[derive(Debug)]
pub(super) struct Network {
    nats: Vec<Nat>,
    nets: usize,
    next_public: u8,
    next_host: u8,
    dice: Dice,
    blocked: Vec<usize>,
    first: Option<usize>,
    carrier: Option<usize>,
}

impl Network {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            nats: Vec::new(),
            nets: 1,
            next_public: 10,
            next_host: 10,
            dice: Dice(seed),
            blocked: Vec::new(),
            first: None,
            carrier: None,
        }
    }

    /// Places a host: its network, and its address there.
    pub(super) fn place(&mut self, kind: Kind) -> (usize, Ipv4Addr) {
        let net = match kind {
            Kind::Open => INTERNET,
            Kind::FullCone => self.nat(INTERNET, false, Filter::Nobody),
            Kind::Restricted => self.nat(INTERNET, false, Filter::Address),
            Kind::PortRestricted => self.nat(INTERNET, false, Filter::Port),
            Kind::Symmetric => self.nat(INTERNET, true, Filter::Port),
            Kind::Carrier => {
                let carrier = self.nat(INTERNET, false, Filter::Port);
                self.carrier = Some(carrier);
                self.nat(carrier, false, Filter::Port)
            }
            Kind::Blocked => {
                let net = self.nat(INTERNET, false, Filter::Port);
                self.blocked.push(net);
                net
            }
            Kind::Beside => self.first.expect("not placed first"),
            Kind::SameCarrier => {
                let carrier = self.carrier.expect("placed behind a carrier");
                self.nat(carrier, false, Filter::Port)
            }
        };
        self.first.get_or_insert(net);
        (net, self.address(net))
    }

    fn address(&mut self, net: usize) -> Ipv4Addr {
        if net == INTERNET {
            self.next_public += 1;
            return Ipv4Addr::new(203, 0, 113, self.next_public);
        }
        self.next_host += 1;
        // Private networks use the same addresses everywhere.
        Ipv4Addr::new(192, 168, 1, self.next_host)
    }

    fn nat(&mut self, outside: usize, symmetric: bool, filter: Filter) -> usize {
        let inside = self.nets;
        self.nets += 1;
        let external = self.address(outside);
        self.nats.push(Nat {
            inside,
            outside,
            external,
            symmetric,
            filter,
            mappings: HashMap::new(),
        });
        inside
    }

    /// The sender's address as the other end of the way out sees it.
    pub(super) fn leave(
        &mut self,
        net: usize,
        from: SocketAddr,
        to: SocketAddr,
        now: Instant,
    ) -> Option<SocketAddr> {
        if self.blocked.contains(&net) {
            return None;
        }
        let (mut net, mut from) = (net, from);
        while let Some(nat) = self.nats.iter_mut().find(|nat| nat.inside == net) {
            from = nat.out(from, to, now, &mut self.dice);
            net = nat.outside;
        }
        Some(from)
    }

    /// Carries a datagram: the network that it ends in, and its addresses there.
    pub(super) fn carry(
        &mut self,
        net: usize,
        from: SocketAddr,
        to: SocketAddr,
        now: Instant,
    ) -> Option<(usize, SocketAddr, SocketAddr)> {
        let (mut net, mut from, mut to) = (net, from, to);
        for _ in 0..8 {
            if self.blocked.contains(&net) {
                return None;
            }
            let inward =
                |nat: &&mut Nat| nat.outside == net && IpAddr::from(nat.external) == to.ip();
            if let Some(nat) = self.nats.iter_mut().find(inward) {
                to = nat.inward(from, to.port(), now)?;
                net = nat.inside;
                // Addresses inside are hosts' or those of NATs further in.
                if !self.has_nat_at(net, to) {
                    return (!self.blocked.contains(&net)).then_some((net, from, to));
                }
                continue;
            }
            let is_here = match to.ip() {
                IpAddr::V4(ip) if net == INTERNET => ip.octets()[0] == 203,
                IpAddr::V4(ip) => ip.is_private(),
                IpAddr::V6(_) => false,
            };
            if is_here {
                return Some((net, from, to));
            }
            let outward = |nat: &&mut Nat| nat.inside == net;
            let nat = self.nats.iter_mut().find(outward)?;
            if IpAddr::from(nat.external) == to.ip() {
                // No hairpin.
                return None;
            }
            from = nat.out(from, to, now, &mut self.dice);
            net = nat.outside;
        }
        None
    }

    fn has_nat_at(&self, net: usize, at: SocketAddr) -> bool {
        self.nats
            .iter()
            .any(|nat| nat.outside == net && IpAddr::from(nat.external) == at.ip())
    }
}

impl Nat {
    fn out(
        &mut self,
        from: SocketAddr,
        to: SocketAddr,
        now: Instant,
        dice: &mut Dice,
    ) -> SocketAddr {
        self.mappings
            .retain(|_, mapping| now < mapping.used + TIMEOUT);
        let key = (from, self.symmetric.then_some(to));
        if !self.mappings.contains_key(&key) {
            let taken = |port| self.mappings.values().any(|mapping| mapping.port == port);
            let mut port = from.port();
            while self.symmetric || taken(port) {
                port = u16::try_from(1024 + dice.roll(64_512)).expect("a port");
                if !taken(port) {
                    break;
                }
            }
            let mapping = Mapping {
                port,
                used: now,
                peers: Vec::new(),
            };
            self.mappings.insert(key, mapping);
        }
        let mapping = self.mappings.get_mut(&key).expect("just there");
        mapping.used = now;
        if !mapping.peers.contains(&to) {
            mapping.peers.push(to);
        }
        SocketAddr::from((self.external, mapping.port))
    }

    fn inward(&mut self, from: SocketAddr, port: u16, now: Instant) -> Option<SocketAddr> {
        let filter = self.filter;
        let found = self
            .mappings
            .iter_mut()
            .find(|(_, mapping)| mapping.port == port && now < mapping.used + TIMEOUT);
        let ((inside, _), mapping) = found?;
        let may = match filter {
            Filter::Nobody => true,
            Filter::Address => mapping.peers.iter().any(|peer| peer.ip() == from.ip()),
            Filter::Port => mapping.peers.contains(&from),
        };
        if !may {
            return None;
        }
        mapping.used = now;
        Some(*inside)
    }
}
