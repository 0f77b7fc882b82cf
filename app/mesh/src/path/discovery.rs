//! Where we can be reached: the addresses of our interfaces, what STUN servers see, what the NAT
//! gives when asked. Sans-IO: datagrams and the time come in, datagrams come out.
//!
//! It asks when somebody looks for a path, and when the interfaces change; never of itself while
//! nobody does.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};

use smoltcp::time::{Duration, Instant};

use super::surroundings::Side;
use super::{Candidate, CandidateKind, earliest};
use crate::portmap::PortMap;
use crate::stun::{self, Transaction};

/// LIMIT: STUN servers that are asked.
const SERVERS_MAX: usize = 4;
/// LIMIT: addresses of ours that are told.
const LOCAL_MAX: usize = 8;
/// A request without answer is repeated after this long, doubled each time, LIMIT: so often.
const RETRY: Duration = Duration::from_millis(250);
const ATTEMPTS_MAX: u32 = 5;
/// What a server said is good for this long; most NATs keep an unused mapping for 30 s and more.
const FRESH: Duration = Duration::from_secs(20);

#[derive(Debug)]
struct Server {
    address: SocketAddr,
    transaction: Option<Transaction>,
    attempts: u32,
    next: Option<Instant>,
    seen: Option<(SocketAddr, Instant)>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Discovery {
    servers: Vec<Server>,
    local: Vec<SocketAddr>,
    portmap: Option<PortMap>,
}

impl Discovery {
    pub(crate) fn new(servers: &[SocketAddr]) -> Self {
        let servers = servers.iter().take(SERVERS_MAX).map(|address| Server {
            address: *address,
            transaction: None,
            attempts: 0,
            next: None,
            seen: None,
        });
        Self {
            servers: servers.collect(),
            local: Vec::new(),
            portmap: None,
        }
    }

    /// Takes the addresses of our interfaces; other ones make what the servers said worthless.
    pub(crate) fn set_local(&mut self, mut local: Vec<SocketAddr>, now: Instant) {
        local.truncate(LOCAL_MAX);
        if self.local != local {
            self.local = local;
            for server in &mut self.servers {
                server.seen = None;
            }
            self.want(now);
        }
    }

    /// Asks this NAT for a port, if there is one; a NAT that was asked before goes on as it was.
    pub(crate) fn set_gateway(&mut self, gateway: Option<Ipv4Addr>, now: Instant) {
        let mut local = self.local.iter();
        let internal = local.find_map(|address| match address {
            SocketAddr::V4(v4) => Some(*v4),
            SocketAddr::V6(_) => None,
        });
        let ends = gateway.zip(internal);
        if self.portmap.as_ref().map(PortMap::ends) != ends {
            let portmap = |(gateway, internal)| PortMap::new(gateway, internal, now);
            self.portmap = ends.map(portmap);
        }
    }

    /// Somebody needs our addresses: asks all servers whose word is old.
    pub(crate) fn want(&mut self, now: Instant) {
        for server in &mut self.servers {
            let is_fresh = server.seen.is_some_and(|(_, at)| now < at + FRESH);
            if !is_fresh && server.next.is_none() {
                server.attempts = 0;
                server.next = Some(now);
            }
        }
    }

    /// The requests that are due.
    pub(crate) fn poll(&mut self, now: Instant) -> Vec<(SocketAddr, Vec<u8>)> {
        let mut requests = Vec::new();
        for server in &mut self.servers {
            if server.next.is_none_or(|next| now < next) {
                continue;
            }
            if server.attempts >= ATTEMPTS_MAX {
                server.next = None;
                server.transaction = None;
                server.seen = None;
                continue;
            }
            let transaction = *server
                .transaction
                .get_or_insert_with(tabbify_process::random);
            server.next = Some(now + RETRY * (1 << server.attempts));
            server.attempts += 1;
            requests.push((server.address, stun::request(&transaction)));
        }
        if let Some(portmap) = &mut self.portmap {
            requests.extend(portmap.poll(now));
        }
        requests
    }

    /// When to poll again, if at all.
    pub(crate) fn poll_at(&self) -> Option<Instant> {
        let servers = self.servers.iter().map(|server| server.next);
        earliest(servers.chain([self.portmap.as_ref().map(PortMap::poll_at)]))
    }

    /// Takes an answer, of a server or of the NAT; whether it was to a question of ours.
    pub(crate) fn receive(&mut self, from: SocketAddr, bytes: &[u8], now: Instant) -> bool {
        if let Some(portmap) = &mut self.portmap
            && portmap.receive(from, bytes, now)
        {
            return true;
        }
        let Some((transaction, seen)) = stun::mapped(bytes) else {
            return false;
        };
        let asked = |server: &&mut Server| {
            server.address == from && server.transaction == Some(transaction)
        };
        let Some(server) = self.servers.iter_mut().find(asked) else {
            return false;
        };
        server.transaction = None;
        server.next = None;
        server.seen = Some((seen, now));
        true
    }

    /// The NAT that is to be asked over UPnP for a port that leads to the second, if one is. What came of it is
    /// said to [`Self::answered`].
    pub(crate) fn take_upnp(&mut self) -> Option<(Ipv4Addr, SocketAddrV4)> {
        let portmap = self.portmap.as_mut()?;
        portmap.takes_upnp().then(|| portmap.ends())
    }

    /// What the NAT gave over UPnP, between these ends.
    pub(crate) fn answered(
        &mut self,
        ends: (Ipv4Addr, SocketAddrV4),
        external: Option<SocketAddr>,
        now: Instant,
    ) {
        let portmap = self.portmap.as_mut();
        if let Some(portmap) = portmap.filter(|portmap| portmap.ends() == ends) {
            portmap.answered(external, now);
        }
    }

    /// Puts what is known into our side.
    pub(crate) fn describe(&self, side: &mut Side, now: Instant) {
        let candidate = |kind| move |address| Candidate { address, kind };
        let local = self.local.iter().copied();
        let mut candidates: Vec<Candidate> = local.map(candidate(CandidateKind::Local)).collect();
        let seen: Vec<SocketAddr> = self
            .servers
            .iter()
            .filter_map(|server| server.seen.map(|(seen, _)| seen))
            .collect();
        let portmap = self.portmap.as_ref();
        let mapped = portmap.and_then(|portmap| portmap.mapped(now));
        let mapped = mapped.map(candidate(CandidateKind::Mapped));
        let reflexive = seen
            .iter()
            .copied()
            .map(candidate(CandidateKind::Reflexive));
        for other in mapped.into_iter().chain(reflexive) {
            let is_known = candidates
                .iter()
                .any(|known| known.address == other.address);
            if !is_known {
                candidates.push(other);
            }
        }
        side.candidates = candidates;
        side.hard = is_hard(&seen);
    }
}

/// Whether two servers see different ports of one address of ours: then every destination does.
fn is_hard(seen: &[SocketAddr]) -> bool {
    let mut ports: HashMap<IpAddr, u16> = HashMap::new();
    seen.iter().filter(|seen| seen.is_ipv4()).any(|seen| {
        let port = *ports.entry(seen.ip()).or_insert_with(|| seen.port());
        port != seen.port()
    })
}

/// The addresses of our interfaces that may lead to a socket bound to `bound`: global ones first,
/// those of the mesh itself not at all.
pub(crate) fn local_addresses(bound: SocketAddr) -> Vec<SocketAddr> {
    if !bound.ip().is_unspecified() {
        return vec![bound];
    }
    let Ok(interfaces) = nix::ifaddrs::getifaddrs() else {
        return Vec::new();
    };
    let addresses = interfaces.filter_map(|interface| {
        let storage = interface.address?;
        let v4 = storage.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        v4.or_else(|| storage.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
    });
    let mut addresses: Vec<SocketAddr> = addresses
        .filter(|ip| bound.is_ipv6() || ip.is_ipv4())
        .filter(|ip| is_reachable(*ip))
        .map(|ip| SocketAddr::new(ip, bound.port()))
        .collect();
    addresses.sort_by_key(|address| (is_private(address.ip()), address.is_ipv4(), *address));
    addresses.dedup();
    addresses
}

/// Whether another machine could use it.
fn is_reachable(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => !ip.is_loopback() && !ip.is_link_local() && !ip.is_unspecified(),
        IpAddr::V6(ip) => {
            let [first, second, ..] = ip.segments();
            // fd5a:1f00::/31 and the aliases of fd5a:ffff::/32 are the mesh's own.
            let is_mesh = first == 0xfd5a && (second & 0xfff0 == 0x1f00 || second == 0xffff);
            !ip.is_loopback() && !ip.is_unicast_link_local() && !ip.is_unspecified() && !is_mesh
        }
    }
}

fn is_private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_private(),
        IpAddr::V6(ip) => ip.is_unique_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn seconds(n: i64) -> Instant {
        Instant::from_secs(n)
    }

    #[test]
    fn asks_until_answered_then_no_more() {
        let (one, two) = (address("198.51.100.1:3478"), address("198.51.100.2:3478"));
        let (seen, elsewhere) = (address("203.0.113.7:1000"), address("203.0.113.7:1001"));
        let mut discovery = Discovery::new(&[one, two]);
        assert_eq!(discovery.poll_at(), None, "nobody wants to know");
        discovery.want(seconds(1));
        let requests = discovery.poll(seconds(1));
        assert_eq!(requests.len(), 2);
        let reply = stun::answer(&requests[0].1, seen).unwrap();
        assert!(
            !discovery.receive(two, &reply, seconds(1)),
            "not the one that was asked"
        );
        assert!(discovery.receive(one, &reply, seconds(1)));
        assert!(
            !discovery.receive(one, &reply, seconds(1)),
            "once is enough"
        );
        // The other one does not answer for a while.
        let again = discovery.poll(discovery.poll_at().unwrap());
        assert_eq!(again[0].1, requests[1].1, "the same question");
        let reply = stun::answer(&again[0].1, elsewhere).unwrap();
        assert!(discovery.receive(two, &reply, seconds(2)));
        assert_eq!(discovery.poll_at(), None);
        discovery.want(seconds(3));
        assert_eq!(discovery.poll_at(), None, "fresh enough");
        discovery.want(seconds(40));
        assert_eq!(discovery.poll(seconds(40)).len(), 2);

        let mut side = Side::default();
        discovery.set_local(vec![address("192.168.1.2:51820")], seconds(41));
        discovery.describe(&mut side, seconds(41));
        assert_eq!(
            (side.candidates.len(), side.hard),
            (1, false),
            "what was seen is worthless"
        );
    }

    #[test]
    fn gives_up_a_deaf_server() {
        let mut discovery = Discovery::new(&[address("198.51.100.1:3478")]);
        discovery.want(seconds(1));
        let mut asked = 0;
        while let Some(at) = discovery.poll_at() {
            asked += discovery.poll(at).len();
        }
        assert_eq!(asked, 5);
    }

    #[test]
    fn two_ports_of_one_address_are_a_hard_nat() {
        let hard = |seen: &[&str]| is_hard(&seen.iter().map(|a| address(a)).collect::<Vec<_>>());
        assert!(hard(&["203.0.113.7:1000", "203.0.113.7:1001"]));
        assert!(!hard(&["203.0.113.7:1000", "203.0.113.7:1000"]));
        assert!(
            !hard(&["203.0.113.7:1000", "203.0.113.8:1001"]),
            "two ways out"
        );
        assert!(!hard(&["203.0.113.7:1000"]));
    }

    #[test]
    fn only_addresses_that_others_can_use() {
        for (ip, expected) in [
            ("127.0.0.1", false),
            ("169.254.1.1", false),
            ("192.168.1.1", true),
            ("fe80::1", false),
            ("fd5a:1f02:1:2:3::1", false),
            ("fd5a:ffff::1", false),
            ("fd00::1", true),
            ("2001:db8::1", true),
        ] {
            assert_eq!(is_reachable(ip.parse().unwrap()), expected, "{ip}");
        }
        let bound = address("192.0.2.1:7");
        assert_eq!(local_addresses(bound), vec![bound]);
    }
}
