//! Two agents, a network with NATs between them, and a clock that the test moves. All chance comes
//! from a seed, so that a failure repeats.

mod nat;
mod tests;

use std::cmp::Reverse;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use nat::{Kind, Network};
use smoltcp::time::{Duration, Instant};

use super::{Agent, Candidate, CandidateKind, Path, Proof, Seal, Surroundings, Tag, Wishes};
use crate::PrivateKey;

/// Where every host has its one socket, and the first of its spare ones.
const PORT: u16 = 51820;
const SPARE_PORT: u16 = 40_000;
/// Data is sent this often while there is traffic.
const DATA_EVERY: Duration = Duration::from_millis(20);
const INIT_EVERY: Duration = Duration::from_secs(1);
const STUN: [&str; 2] = ["198.51.100.1:3478", "198.51.100.2:3478"];

/// What travels.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Parcel {
    /// A handshake begins; a second copy of the same is a replay.
    Init(u64),
    Response(u64),
    /// Numbered, as WireGuard's messages are.
    Data(u64),
    Probe(Vec<u8>),
}

/// A stream of numbers that look random (splitmix64).
#[derive(Debug, Clone)]
struct Dice(u64);

impl Dice {
    fn roll(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n.max(1)
    }
}

struct Host {
    agent: Agent,
    around: Arc<Surroundings>,
    tag: Tag,
    /// Its network and its address there.
    net: usize,
    ip: Ipv4Addr,
    /// Its spare sockets that are open.
    spares: BTreeSet<u32>,
    /// It answers no probes.
    stock: bool,
    inits: u64,
    seen_inits: Vec<u64>,
    established: bool,
    sends: bool,
    sent: u64,
    /// When data came, and on which path: first copies only.
    got: BTreeMap<u64, (Instant, Path)>,
    packets_out: u64,
}

struct World {
    now: Instant,
    network: Network,
    hosts: [Host; 2],
    queue: BinaryHeap<Reverse<(Instant, u64)>>,
    parcels: BTreeMap<u64, (usize, Path, Parcel)>,
    next_parcel: u64,
    next_data: Instant,
    next_init: Instant,
    dice: Dice,
    /// Percent of all datagrams.
    loss: u64,
    /// One way, in milliseconds; half as much again at random.
    delay_ms: u64,
    relay_delay_ms: u64,
    /// Relays that are up.
    relays: Vec<u16>,
    /// Nothing passes but over relays.
    cut: bool,
    /// Everything that was sent directly, for replays.
    tapped: Vec<(usize, SocketAddr, Parcel)>,
}

impl World {
    fn new(kinds: [Kind; 2], seed: u64) -> Self {
        let mut dice = Dice(seed);
        let mut network = Network::new(dice.roll(u64::MAX));
        let keys = [1, 2].map(|n| PrivateKey::from_bytes(&[n; 32]));
        let now = Instant::from_secs(1000);
        let hosts = [0, 1].map(|n: usize| {
            let (ours, theirs) = (&keys[n], keys[1 - n].public());
            let around = Arc::new(Surroundings::default());
            let (net, ip) = network.place(kinds[n]);
            Host {
                agent: Agent::new(
                    Seal::new(ours, theirs),
                    Arc::clone(&around),
                    Tag::of(theirs),
                    0,
                    dice.roll(u64::MAX),
                ),
                around,
                tag: Tag::of(ours.public()),
                net,
                ip,
                spares: BTreeSet::new(),
                stock: false,
                inits: 0,
                seen_inits: Vec::new(),
                established: false,
                sends: true,
                sent: 0,
                got: BTreeMap::new(),
                packets_out: 0,
            }
        });
        let mut world = Self {
            now,
            network,
            hosts,
            queue: BinaryHeap::new(),
            parcels: BTreeMap::new(),
            next_parcel: 0,
            next_data: now,
            next_init: now,
            dice,
            loss: 0,
            delay_ms: 10,
            relay_delay_ms: 25,
            relays: vec![0],
            cut: false,
            tapped: Vec::new(),
        };
        for host in 0..2 {
            world.discover(host);
        }
        world
    }

    /// What discovery would find: the interface's address, what two STUN servers see, the relays.
    fn discover(&mut self, host: usize) {
        let Host { net, ip, .. } = self.hosts[host];
        let local = SocketAddr::from((ip, PORT));
        let seen: Vec<SocketAddr> = STUN
            .iter()
            .filter_map(|server| {
                let server = server.parse().expect("an address");
                self.network.leave(net, local, server, self.now)
            })
            .collect();
        let relays = self.relays.clone();
        self.hosts[host].around.change(|side| {
            side.candidates = vec![Candidate {
                address: local,
                kind: CandidateKind::Local,
            }];
            if let [first, second] = seen[..] {
                side.hard = first != second;
                if first != local {
                    side.candidates.push(Candidate {
                        address: first,
                        kind: CandidateKind::Reflexive,
                    });
                }
            }
            side.relays = relays;
        });
    }

    fn set_relays(&mut self, relays: &[u16]) {
        self.relays = relays.to_vec();
        for host in 0..2 {
            self.hosts[host]
                .around
                .change(|side| side.relays = relays.to_vec());
        }
    }

    fn send(&mut self, from: usize, path: Path, parcel: Parcel) {
        self.hosts[from].packets_out += 1;
        if let Path::Spare(n, _) = path {
            self.hosts[from].spares.insert(n);
        }
        if self.dice.roll(100) < self.loss {
            return;
        }
        let Host { net, ip, tag, .. } = self.hosts[from];
        let arrival = match path {
            Path::Relayed(relay, _) => self
                .relays
                .contains(&relay)
                .then_some((1 - from, Path::Relayed(relay, tag))),
            Path::Direct(to) => self.carry(from, net, SocketAddr::from((ip, PORT)), to, &parcel),
            Path::Spare(n, to) => {
                let port = SPARE_PORT + u16::try_from(n).expect("few spares");
                self.carry(from, net, SocketAddr::from((ip, port)), to, &parcel)
            }
        };
        let Some((host, path)) = arrival else { return };
        let delay = if path.is_relayed() {
            self.relay_delay_ms
        } else {
            self.delay_ms
        };
        let delay = delay * 1000 + self.dice.roll(delay * 500);
        self.push(host, path, parcel, Duration::from_micros(delay));
    }

    fn carry(
        &mut self,
        host: usize,
        net: usize,
        from: SocketAddr,
        to: SocketAddr,
        parcel: &Parcel,
    ) -> Option<(usize, Path)> {
        self.tapped.push((host, to, parcel.clone()));
        if self.cut {
            return None;
        }
        let (net, from, to) = self.network.carry(net, from, to, self.now)?;
        let host = self
            .hosts
            .iter()
            .position(|host| host.net == net && std::net::IpAddr::from(host.ip) == to.ip())?;
        match to.port() {
            PORT => Some((host, Path::Direct(from))),
            port if port >= SPARE_PORT => {
                Some((host, Path::Spare((port - SPARE_PORT).into(), from)))
            }
            _ => None,
        }
    }

    fn push(&mut self, host: usize, path: Path, parcel: Parcel, delay: Duration) {
        let number = self.next_parcel;
        self.next_parcel += 1;
        self.parcels.insert(number, (host, path, parcel));
        self.queue.push(Reverse((self.now + delay, number)));
    }

    fn obey(&mut self, host: usize, wishes: Wishes) {
        for (path, probe) in wishes.probes {
            self.send(host, path, Parcel::Probe(probe));
        }
        if let Some(keep) = wishes.release {
            self.hosts[host].spares.retain(|n| keep.contains(n));
        }
    }

    fn receive(&mut self, host: usize, path: Path, parcel: Parcel) {
        let mut wishes = Wishes::default();
        let this = &mut self.hosts[host];
        if let Path::Spare(n, _) = path
            && !this.spares.contains(&n)
        {
            // Closed meanwhile.
            return;
        }
        match parcel {
            Parcel::Init(number) => {
                if !this.seen_inits.contains(&number) {
                    this.seen_inits.push(number);
                    self.send(host, path, Parcel::Response(number));
                }
            }
            Parcel::Response(number) => {
                // Of the last handshake, and its first copy.
                if number == this.inits && !this.established {
                    this.established = true;
                    this.agent.heard(path, Proof::Both, &mut wishes, self.now);
                }
            }
            Parcel::Data(number) => {
                // The engine lets no replay through.
                if let Entry::Vacant(first) = this.got.entry(number) {
                    first.insert((self.now, path));
                    this.established = true;
                    this.agent.heard(path, Proof::Inward, &mut wishes, self.now);
                }
            }
            Parcel::Probe(bytes) => {
                if !this.stock {
                    this.agent.probe(path, &bytes, &mut wishes, self.now);
                }
            }
        }
        self.obey(host, wishes);
    }

    fn poll(&mut self, host: usize) {
        for turn in 0.. {
            assert!(turn < 20, "host {host} spins");
            let mut wishes = Wishes::default();
            let now = self.now;
            let agent = &mut self.hosts[host].agent;
            if !self.hosts[host].stock {
                agent.poll(&mut wishes, now);
            }
            let at = self.hosts[host].agent.poll_at(now);
            self.obey(host, wishes);
            if self.hosts[host].stock || at.is_none_or(|at| at > now) {
                return;
            }
        }
    }

    fn traffic(&mut self) {
        if self.now >= self.next_init {
            self.next_init = self.now + INIT_EVERY;
            if !self.hosts[0].established && self.hosts[0].sends {
                self.hosts[0].inits += 1;
                let number = self.hosts[0].inits;
                for path in self.hosts[0].agent.everywhere() {
                    self.send(0, path, Parcel::Init(number));
                }
            }
        }
        if self.now < self.next_data {
            return;
        }
        self.next_data = self.now + DATA_EVERY;
        for host in 0..2 {
            let now = self.now;
            let this = &mut self.hosts[host];
            if !this.established || !this.sends {
                continue;
            }
            this.agent.sent(now);
            this.agent.expects(now);
            let route = this.agent.route(now);
            let number = this.sent;
            this.sent += 1;
            for path in [route.first, route.second].into_iter().flatten() {
                self.send(host, path, Parcel::Data(number));
            }
        }
    }

    /// Lets `span` pass.
    fn run(&mut self, span: Duration) {
        let end = self.now + span;
        while self.now < end {
            self.traffic();
            self.poll(0);
            self.poll(1);
            let timers = self.hosts.iter().filter(|host| !host.stock);
            let timers = timers.filter_map(|host| host.agent.poll_at(self.now));
            let next = self.queue.peek().map(|Reverse((at, _))| *at);
            let next = timers
                .chain(next)
                .chain([self.next_data, self.next_init, end])
                .min()
                .expect("the end is one of them");
            self.now = next.max(self.now);
            while let Some(Reverse((at, number))) = self.queue.peek().copied() {
                if at > self.now {
                    break;
                }
                self.queue.pop();
                if let Some((host, path, parcel)) = self.parcels.remove(&number) {
                    self.receive(host, path, parcel);
                }
            }
        }
    }

    fn current(&self, host: usize) -> Option<Path> {
        self.hosts[host].agent.current()
    }

    fn is_direct(&self) -> bool {
        (0..2).all(|host| self.current(host).is_some_and(|path| !path.is_relayed()))
    }

    /// The longest time in which `host` got nothing, between two times.
    fn gap(&self, host: usize, from: Instant, to: Instant) -> Duration {
        let times = self.hosts[host].got.values().map(|(at, _)| *at);
        let mut times: Vec<Instant> = times.filter(|at| *at >= from && *at <= to).collect();
        times.push(from);
        times.push(to);
        times.sort_unstable();
        let gaps = times.windows(2).map(|pair| pair[1] - pair[0]);
        gaps.max().unwrap_or(Duration::ZERO)
    }
}
