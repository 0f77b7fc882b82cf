//! A session with a link instead of a stack: what its peer sends comes out under aliases, and only
//! what the peer may send.

use std::net::SocketAddr;

use super::*;
use crate::listener::Listeners;

const HERE: Ipv6Addr = Ipv6Addr::new(0xfd5a, 0x1f02, 1, 0, 0, 0, 0, 1);
const THERE: Ipv6Addr = Ipv6Addr::new(0xfd5a, 0x1f02, 2, 0, 0, 0, 0, 1);
const ELSEWHERE: Ipv6Addr = Ipv6Addr::new(0xfd5a, 0x1f02, 3, 0, 0, 0, 0, 1);

fn outer(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// A session of the endpoint with `key` and `address` towards another.
fn session(key: &PrivateKey, address: Ipv6Addr, record: &PeerRecord, now: Instant) -> Session {
    let public = PublicKey::from(key.public().0);
    let ours = Ours {
        key: key.clone(),
        addresses: Arc::from([address]),
        limits: Arc::new(Limits::default()),
        indices: IndexTable::from_os_rng(),
        limiter: Arc::new(RateLimiter::new(&public, 1000)),
        counters: Arc::new(Counters::default()),
        around: Arc::default(),
        gate: None,
    };
    Session::new(ours, record, now)
}

struct Two {
    /// Has a link.
    here: Session,
    there: Session,
    now: Instant,
}

impl Two {
    fn new() -> Self {
        let now = Instant::from_secs(1);
        let (key_here, key_there) = (PrivateKey::generate(), PrivateKey::generate());
        let record = |key: &PrivateKey, address, port| {
            PeerRecord::unrestricted(key.public(), vec![address], vec![outer(port)])
        };
        let mut here = session(&key_here, HERE, &record(&key_there, THERE, 2), now);
        here.link = Some(Link::new(7));
        let there = session(&key_there, THERE, &record(&key_here, HERE, 1), now);
        let mut two = Self { here, there, now };
        two.here.initiate = true;
        let mut out = Outbox::default();
        two.here.poll(&mut out, now);
        two.pass(out);
        two
    }

    /// Carries datagrams from here to there and the answers back, until there are none; what came out
    /// here.
    fn pass(&mut self, mut from_here: Outbox) -> Vec<Packet> {
        let mut came = Vec::new();
        while !from_here.datagrams.is_empty() {
            let mut from_there = Outbox::default();
            // The peer is one that speaks no probes.
            let is_message = |(_, datagram): &(Path, Packet)| crate::path::hint(datagram).is_none();
            for (_, datagram) in from_here.datagrams.drain(..).filter(is_message) {
                let message = datagram.try_into_wg().unwrap();
                let doors = Listeners::default();
                self.there
                    .receive(outer(1).into(), message, &doors, &mut from_there, self.now);
            }
            came.extend(self.arrive(from_there, &mut from_here));
        }
        came
    }

    fn arrive(&mut self, from_there: Outbox, out: &mut Outbox) -> Vec<Packet> {
        for (_, datagram) in from_there.datagrams {
            let message = datagram.try_into_wg().unwrap();
            let doors = Listeners::default();
            self.here
                .receive(outer(2).into(), message, &doors, out, self.now);
        }
        std::mem::take(&mut out.inner)
    }

    /// The peer sends a packet; what came out here.
    fn peer_sends(&mut self, packet: &[u8]) -> Vec<Packet> {
        let mut out = Outbox::default();
        self.there.emit(BytesMut::from(packet), &mut out, self.now);
        self.arrive(out, &mut Outbox::default())
    }

    fn dropped(&self) -> (u64, u64) {
        let stats = self.here.ours.counters.snapshot(0);
        (stats.dropped_spoofed_source, stats.dropped_inner)
    }
}

fn packet(source: Ipv6Addr, destination: Ipv6Addr, next_header: u8) -> Vec<u8> {
    let mut packet = vec![0; 61];
    packet[0] = 0x60;
    (packet[5], packet[6], packet[52]) = (21, next_header, 5 << 4);
    packet[8..24].copy_from_slice(&source.octets());
    packet[24..40].copy_from_slice(&destination.octets());
    packet
}

#[test]
fn what_the_peer_sends_comes_from_its_alias_without_padding() {
    let mut two = Two::new();
    let came = two.peer_sends(&packet(THERE, HERE, 6));
    let alias = Alias { link: 7, name: 0 };
    assert_eq!(came.len(), 1);
    assert_eq!(came[0].len(), 61);
    assert_eq!(came[0][..], packet(alias.address(), HERE, 6)[..]);
    assert_eq!(two.here.link.as_ref().unwrap().address(alias), Some(THERE));
}

#[test]
fn what_the_peer_may_not_send_is_dropped_and_counted() {
    let mut two = Two::new();
    assert!(two.peer_sends(&packet(ELSEWHERE, HERE, 6)).is_empty());
    assert_eq!(two.dropped(), (1, 0));
    let alias = Alias { link: 7, name: 0 };
    assert!(two.peer_sends(&packet(alias.address(), HERE, 6)).is_empty());
    assert_eq!(two.dropped(), (2, 0), "aliases are nobody's address");
    for wrong in [
        packet(THERE, ELSEWHERE, 6),
        packet(THERE, HERE, 17),
        vec![0x45; 61],
    ] {
        assert!(two.peer_sends(&wrong).is_empty());
    }
    assert_eq!(two.dropped(), (2, 3));
}

#[test]
fn what_departs_on_hold_waits_for_the_handshake() {
    let mut two = Two::new();
    let mut record = PeerRecord::unrestricted(MeshKey([0; 32]), vec![THERE], vec![outer(9)]);
    two.here.update(&record, two.now);
    let mut out = Outbox::default();
    let leaving = packet(HERE, THERE, 6);
    two.here
        .depart(BytesMut::from(&leaving[..]), &mut out, two.now);
    assert!(out.datagrams.is_empty(), "it may have moved");
    assert!(two.here.poll_at(two.now) <= two.now + HOLD);
    // The old place does not end the wait, the answer to a new handshake does.
    two.peer_sends(&packet(THERE, HERE, 6));
    two.here.release(&mut out, two.now);
    assert!(out.datagrams.is_empty());
    two.here.poll(&mut out, two.now);
    two.pass(std::mem::take(&mut out));
    two.here.release(&mut out, two.now);
    assert_eq!(out.datagrams.len(), 1);
    record.endpoints.clear();
    two.here.update(&record, two.now);
    assert!(two.here.hold.is_none());
}
