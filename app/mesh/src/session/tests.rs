//! Two sessions in memory, with a link between them that loses, doubles and reorders; the stack's
//! time is the test's.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Poll, Wake, Waker};

use proptest::prelude::*;
use tokio::io::ReadBuf;
use tokio::sync::mpsc;

use super::*;
use crate::Incoming;
use crate::stack::{Dialed, Door};

const PORT: u16 = 8730;

struct Open(mpsc::Sender<Incoming>);

impl Doors for Open {
    fn knock(&self, port: u16) -> Door {
        match self.0.clone().try_reserve_owned() {
            Ok(seat) if port == PORT => Door::Open(seat),
            Ok(_) => Door::Closed,
            Err(_) => Door::Full,
        }
    }
}

struct Side {
    session: Session,
    at: SocketAddr,
    doors: Open,
    counters: Arc<Counters>,
    accepted: Vec<(ConnId, Seat)>,
    _backlog: mpsc::Receiver<Incoming>,
}

fn inner(n: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd5a, 0x1f02, n, 0, 0, 0, 0, 1)
}

fn outer(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn remote(n: u16, port: u16) -> SocketAddrV6 {
    SocketAddrV6::new(inner(n), port, 0, 0)
}

impl Side {
    /// Side `n` towards the key of side `m`.
    fn new(n: u16, key: &PrivateKey, m: u16, peer: MeshKey, now: Instant) -> Self {
        let counters = Arc::new(Counters::default());
        let public = PublicKey::from(key.public().0);
        let ours = Ours {
            key: key.clone(),
            addresses: Arc::from([inner(n)]),
            limits: Arc::new(Limits::default()),
            indices: IndexTable::from_os_rng(),
            limiter: Arc::new(RateLimiter::new(&public, 1000)),
            counters: Arc::clone(&counters),
            around: Arc::default(),
            gate: None,
        };
        let record = PeerRecord::unrestricted(peer, vec![inner(m)], vec![outer(m)]);
        let (sender, backlog) = mpsc::channel(16);
        Self {
            session: Session::new(ours, &record, now),
            at: outer(n),
            doors: Open(sender),
            counters,
            accepted: Vec::new(),
            _backlog: backlog,
        }
    }

    fn poll(&mut self, now: Instant) -> Vec<(SocketAddr, Vec<u8>)> {
        let mut out = Outbox::default();
        self.session.poll(&mut out, now);
        self.collect(out)
    }

    fn receive(
        &mut self,
        from: SocketAddr,
        bytes: &[u8],
        now: Instant,
    ) -> Vec<(SocketAddr, Vec<u8>)> {
        let mut out = Outbox::default();
        if let Ok(message) = Packet::from_bytes(BytesMut::from(bytes)).try_into_wg() {
            self.session
                .receive(from.into(), message, &self.doors, &mut out, now);
        }
        self.collect(out)
    }

    fn collect(&mut self, out: Outbox) -> Vec<(SocketAddr, Vec<u8>)> {
        self.accepted.extend(out.accepted);
        out.datagrams
            .into_iter()
            .filter_map(|(to, packet)| Some((to.address()?, packet.to_vec())))
            .collect()
    }

    fn read(&mut self, id: ConnId) -> Poll<std::io::Result<Vec<u8>>> {
        let mut bytes = vec![0; 100_000];
        let mut buf = ReadBuf::new(&mut bytes);
        let read = self.session.stack.poll_read(id, &mut buf, Waker::noop());
        let filled = buf.filled().to_vec();
        read.map_ok(|_| filled)
    }

    fn write(&mut self, id: ConnId, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        let bytes = [IoSlice::new(bytes)];
        self.session.stack.poll_write(id, &bytes, Waker::noop())
    }

    fn dialed(&mut self, id: ConnId) -> Poll<Dialed> {
        self.session.stack.poll_connect(id, Waker::noop())
    }

    fn dropped(&self) -> crate::Stats {
        self.counters.snapshot(1)
    }
}

/// What the link does to datagrams, in percent; seeded, so that a failure repeats.
#[derive(Clone, Copy, Default)]
struct Weather {
    lose: u64,
    double: u64,
    delay: u64,
}

struct Pair {
    a: Side,
    b: Side,
    now: Instant,
    weather: Weather,
    dice: u64,
    wire: VecDeque<(SocketAddr, SocketAddr, Vec<u8>)>,
    /// Every datagram that was ever sent.
    seen: Vec<(SocketAddr, SocketAddr, Vec<u8>)>,
}

impl Pair {
    fn new() -> Self {
        let (a, b) = (PrivateKey::generate(), PrivateKey::generate());
        let now = Instant::from_secs(1);
        Self {
            a: Side::new(1, &a, 2, b.public(), now),
            b: Side::new(2, &b, 1, a.public(), now),
            now,
            weather: Weather::default(),
            dice: 0x9e37_79b9_7f4a_7c15,
            wire: VecDeque::new(),
            seen: Vec::new(),
        }
    }

    fn chance(&mut self, percent: u64) -> bool {
        // xorshift64
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        self.dice % 100 < percent
    }

    /// Less than `n`.
    fn roll(&mut self, n: u64) -> u64 {
        self.chance(0);
        self.dice % n
    }

    fn send(&mut self, from: SocketAddr, datagrams: Vec<(SocketAddr, Vec<u8>)>) {
        for (to, bytes) in datagrams {
            self.seen.push((from, to, bytes.clone()));
            if self.chance(self.weather.lose) {
                continue;
            }
            if self.chance(self.weather.double) {
                self.wire.push_back((from, to, bytes.clone()));
            }
            if self.chance(self.weather.delay) {
                self.wire.push_front((from, to, bytes));
            } else {
                self.wire.push_back((from, to, bytes));
            }
        }
    }

    fn poll_a(&mut self) {
        let out = self.a.poll(self.now);
        self.send(self.a.at, out);
    }

    fn poll_b(&mut self) {
        let out = self.b.poll(self.now);
        self.send(self.b.at, out);
    }

    /// Delivers the next datagram, and says to whom.
    fn pass(&mut self) -> Option<SocketAddr> {
        let (from, to, bytes) = self.wire.pop_front()?;
        let side = if to == self.a.at {
            &mut self.a
        } else {
            &mut self.b
        };
        if to == side.at {
            let at = side.at;
            let replies = side.receive(from, &bytes, self.now);
            self.send(at, replies);
        }
        Some(to)
    }

    /// Passes datagrams until none is left, then moves time to the next timer.
    fn run(&mut self) {
        loop {
            self.poll_a();
            self.poll_b();
            if self.wire.is_empty() {
                break;
            }
            for _ in 0..self.wire.len() {
                self.pass();
            }
        }
        let next = self
            .a
            .session
            .poll_at(self.now)
            .min(self.b.session.poll_at(self.now));
        self.now = next.max(self.now + Duration::from_micros(1));
    }

    fn connect(&mut self) -> (ConnId, ConnId) {
        let dialed = self.a.session.connect(remote(2, PORT)).unwrap();
        while self.a.dialed(dialed).is_pending() || self.b.accepted.is_empty() {
            self.run();
        }
        let connected = self.a.dialed(dialed);
        assert_eq!(connected, Poll::Ready(Dialed::Connected));
        (dialed, self.b.accepted.pop().unwrap().0)
    }

    /// Sends `data` from a to b, and returns what b read until the end.
    fn transfer(&mut self, data: &[u8]) -> Vec<u8> {
        let (out, into) = self.connect();
        let (mut sent, mut got) = (0, Vec::new());
        let mut steps = 0;
        loop {
            match self.a.write(out, &data[sent..]) {
                Poll::Ready(Ok(0)) => self.a.session.stack.close(out),
                Poll::Ready(Ok(n)) => sent += n,
                Poll::Ready(Err(_)) if sent == data.len() => {}
                Poll::Ready(Err(error)) => panic!("{error}"),
                Poll::Pending => {}
            }
            match self.b.read(into) {
                Poll::Ready(Ok(bytes)) if bytes.is_empty() => return got,
                Poll::Ready(Ok(bytes)) => got.extend(bytes),
                Poll::Ready(Err(error)) => panic!("{error}"),
                Poll::Pending => {}
            }
            self.run();
            steps += 1;
            assert!(
                steps < 1_000_000,
                "stuck at {} of {}",
                got.len(),
                data.len()
            );
        }
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len as u64)
        .map(|n| (n.wrapping_mul(0x9e37_79b9) >> 16).to_le_bytes()[0])
        .collect()
}

#[test]
fn a_clean_link_delivers() {
    let mut pair = Pair::new();
    let data = pattern(1_000_000);
    assert_eq!(pair.transfer(&data), data);
    assert!(pair.a.session.stack.is_empty() || pair.a.session.heard.is_some());
    assert_eq!(pair.a.dropped().handshakes, 1);
    assert_eq!(pair.b.dropped().handshakes, 1);
}

#[test]
fn a_bad_link_delivers_intact() {
    let mut pair = Pair::new();
    // The engine's retry of a lost handshake runs on a clock of its own, so that comes first.
    let warm = pair.connect();
    pair.weather = Weather {
        lose: 10,
        double: 10,
        delay: 20,
    };
    let data = pattern(1 << 20);
    assert_eq!(pair.transfer(&data), data);
    pair.a.session.stack.release(warm.0, pair.now);
    let dropped = pair.b.dropped();
    assert!(
        dropped.dropped_replayed > 0,
        "the doubled ones: {dropped:?}"
    );
}

/// Whether somebody was woken.
#[derive(Default)]
struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// One end of a connection, driven as the task and a stream drive it: it acts only when it is woken,
/// and its session is polled only when it is kicked.
struct End {
    id: ConnId,
    readable: Arc<Flag>,
    writable: Arc<Flag>,
    kicked: bool,
    written: usize,
    got: Vec<u8>,
}

impl End {
    fn new(id: ConnId) -> Self {
        let flag = || Arc::new(Flag(AtomicBool::new(true)));
        Self {
            id,
            readable: flag(),
            writable: flag(),
            kicked: true,
            written: 0,
            got: Vec::new(),
        }
    }

    fn write(&mut self, side: &mut Side, data: &[u8], most: usize) {
        let rest = &data[self.written..];
        if rest.is_empty() || !self.writable.0.swap(false, Ordering::Relaxed) {
            return;
        }
        let waker = Waker::from(Arc::clone(&self.writable));
        let bytes = [IoSlice::new(&rest[..rest.len().min(most)])];
        if let Poll::Ready(n) = side.session.stack.poll_write(self.id, &bytes, &waker) {
            self.written += n.unwrap();
            self.writable.0.store(true, Ordering::Relaxed);
            self.kicked = true;
        }
    }

    fn read(&mut self, side: &mut Side, most: usize) {
        if !self.readable.0.swap(false, Ordering::Relaxed) {
            return;
        }
        let waker = Waker::from(Arc::clone(&self.readable));
        let mut bytes = vec![0; most];
        let mut buf = ReadBuf::new(&mut bytes);
        if let Poll::Ready(reopens) = side.session.stack.poll_read(self.id, &mut buf, &waker) {
            self.kicked |= reopens.unwrap();
            self.got.extend_from_slice(buf.filled());
            self.readable.0.store(true, Ordering::Relaxed);
        }
    }
}

/// Both sides send and read at random, and stop for up to `pause_ms` at random: how long they waited
/// for timers beyond that.
fn full_duplex(seed: u64, pause_ms: u64, weather: Weather) -> Duration {
    let mut pair = Pair::new();
    pair.dice = pair.dice.wrapping_mul(seed);
    let (a, b) = pair.connect();
    pair.weather = weather;
    let (mut a, mut b) = (End::new(a), End::new(b));
    let data = pattern(1_500_000);
    let (mut waited, mut idle) = (Duration::ZERO, 0);
    while a.got.len() < data.len() || b.got.len() < data.len() {
        let before = (a.written, b.written, a.got.len(), b.got.len());
        let most = 1 + usize::try_from(pair.roll(100_000)).unwrap();
        if pair.roll(2000) == 0 {
            let pause = pair.roll(pause_ms + 1);
            pair.now += Duration::from_millis(pause);
        }
        match pair.roll(8) {
            0 => a.write(&mut pair.a, &data, most),
            1 => b.write(&mut pair.b, &data, most),
            2 => a.read(&mut pair.a, most),
            3 => b.read(&mut pair.b, most),
            4 if std::mem::take(&mut a.kicked) => pair.poll_a(),
            5 if std::mem::take(&mut b.kicked) => pair.poll_b(),
            _ => {
                for _ in 0..pair.roll(64) {
                    match pair.pass() {
                        Some(to) if to == pair.a.at => a.kicked = true,
                        Some(_) => b.kicked = true,
                        None => break,
                    }
                    idle = 0;
                }
            }
        }
        let after = (a.written, b.written, a.got.len(), b.got.len());
        idle = if before == after { idle + 1 } else { 0 };
        let next = [&mut pair.a, &mut pair.b].map(|side| side.session.poll_at(pair.now));
        a.kicked |= next[0] <= pair.now;
        b.kicked |= next[1] <= pair.now;
        // Everybody had many turns and did nothing: only a timer can help.
        if idle > 300 && !a.kicked && !b.kicked && pair.wire.is_empty() {
            waited += next[0].min(next[1]) - pair.now;
            pair.now = next[0].min(next[1]);
            idle = 0;
            assert!(waited < Duration::from_secs(600), "seed {seed} is stuck");
        }
    }
    assert!(a.got == data && b.got == data);
    waited
}

#[test]
fn full_duplex_waits_for_no_timer() {
    for seed in 1..30 {
        let waited = full_duplex(seed, 0, Weather::default());
        assert!(waited < Duration::from_millis(200), "seed {seed}: {waited}");
    }
}

#[test]
fn full_duplex_survives_pauses_of_the_machine() {
    // Without what `acknowledged` does, the last four are stuck for good.
    for seed in (1..10).chain([217, 1215, 1436, 1465]) {
        let waited = full_duplex(seed, 3000, Weather::default());
        assert!(waited < Duration::from_secs(10), "seed {seed}: {waited}");
    }
}

#[test]
fn full_duplex_survives_bad_weather_and_pauses() {
    for seed in 1..10 {
        full_duplex(
            seed,
            3000,
            Weather {
                lose: 2,
                double: 2,
                delay: 5,
            },
        );
    }
}

#[test]
fn a_spoofed_source_is_dropped() {
    let mut pair = Pair::new();
    pair.connect();
    let theirs = PeerRecord::unrestricted(MeshKey([0; 32]), vec![inner(7)], Vec::new());
    // The resolver now says that a owns another address than the one it speaks from.
    pair.b.session.update(&theirs, pair.now);
    let before = pair.b.dropped().accepted;
    pair.a.session.connect(remote(2, PORT)).unwrap();
    pair.run();
    let dropped = pair.b.dropped();
    assert!(dropped.dropped_spoofed_source > 0, "{dropped:?}");
    assert_eq!(dropped.accepted, before);
    assert!(pair.b.accepted.is_empty());
}

#[test]
fn a_packet_for_someone_else_is_dropped() {
    let mut pair = Pair::new();
    pair.connect();
    pair.a.session.connect(remote(9, PORT)).unwrap();
    pair.run();
    assert_eq!(pair.b.dropped().dropped_inner, 1);
}

#[test]
fn replays_are_dropped_and_do_not_move_the_peer() {
    let mut pair = Pair::new();
    let data = pattern(10_000);
    assert_eq!(pair.transfer(&data), data);
    let thief = outer(666);
    let recorded: Vec<_> = pair
        .seen
        .iter()
        .filter(|(_, to, _)| *to == pair.b.at)
        .cloned()
        .collect();
    assert!(recorded.len() > 5);
    for (_, _, bytes) in &recorded {
        pair.b.receive(thief, bytes, pair.now);
    }
    let dropped = pair.b.dropped();
    let refused = dropped.dropped_replayed + dropped.dropped_handshake;
    assert_eq!(refused, recorded.len() as u64, "{dropped:?}");
    assert_eq!(pair.b.session.agent.current(), Some(pair.a.at.into()));
}

#[test]
fn authenticated_data_moves_the_peer() {
    let mut pair = Pair::new();
    pair.connect();
    assert_eq!(pair.b.session.agent.current(), Some(outer(1).into()));
    pair.a.at = outer(11);
    let data = pattern(100_000);
    assert_eq!(pair.transfer(&data), data);
    assert_eq!(pair.b.session.agent.current(), Some(outer(11).into()));
}

#[test]
fn a_closed_port_refuses() {
    let mut pair = Pair::new();
    let dialed = pair.a.session.connect(remote(2, 81)).unwrap();
    let before = pair.now;
    while pair.a.dialed(dialed).is_pending() {
        pair.run();
    }
    let refused = pair.a.dialed(dialed);
    assert_eq!(refused, Poll::Ready(Dialed::Refused));
    assert!(pair.now - before < Duration::from_millis(500));
}

#[test]
fn a_full_backlog_makes_the_peer_wait() {
    let mut pair = Pair::new();
    let mut seats = Vec::new();
    while let Door::Open(seat) = pair.b.doors.knock(PORT) {
        seats.push(seat);
    }
    let dialed = pair.a.session.connect(remote(2, PORT)).unwrap();
    pair.run();
    assert!(pair.a.dialed(dialed).is_pending());
    seats.clear();
    while pair.b.accepted.is_empty() {
        pair.run();
    }
}

#[test]
fn a_silent_peer_is_given_up() {
    let mut pair = Pair::new();
    let (out, _) = pair.connect();
    pair.weather.lose = 100;
    let before = pair.now;
    pair.a.write(out, b"x").is_ready();
    let error = loop {
        pair.run();
        match pair.a.read(out) {
            Poll::Pending => {}
            Poll::Ready(result) => break result.unwrap_err(),
        }
    };
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
    let took = pair.now - before;
    // The clock had moved on by a tick when the measuring began.
    let least = PEER_TIMEOUT - TICK_HOT * 2;
    assert!(took >= least && took < Duration::from_secs(32), "{took}");
}

#[test]
fn an_idle_connection_notices_a_dead_peer() {
    let mut pair = Pair::new();
    let (out, _) = pair.connect();
    pair.weather.lose = 100;
    let before = pair.now;
    while pair.a.read(out).is_pending() {
        pair.run();
    }
    assert!(pair.now - before < Duration::from_secs(60));
}

#[test]
fn a_reader_may_stop_for_long() {
    let mut pair = Pair::new();
    let (out, into) = pair.connect();
    let data = pattern(2_000_000);
    let mut sent = 0;
    let until = pair.now + Duration::from_secs(600);
    while pair.now < until {
        if let Poll::Ready(n) = pair.a.write(out, &data[sent..]) {
            sent += n.unwrap();
        }
        pair.run();
    }
    let held = Limits::default().tcp_buffer_bytes * 2;
    assert!(sent <= held, "{sent} of at most {held} bytes are under way");
    let mut got = Vec::new();
    while got.len() < data.len() {
        if let Poll::Ready(n) = pair.a.write(out, &data[sent..]) {
            sent += n.unwrap();
        }
        if let Poll::Ready(n) = pair.b.read(into) {
            got.extend(n.unwrap());
        }
        pair.run();
    }
    assert_eq!(got, data);
}

#[test]
fn the_rest_is_read_long_after_both_sides_closed() {
    let mut pair = Pair::new();
    let (out, into) = pair.connect();
    pair.b.session.stack.close(into);
    pair.run();
    let written = pair.a.write(out, b"last");
    assert_eq!(written.map(Result::unwrap), Poll::Ready(4));
    pair.a.session.stack.close(out);
    let until = pair.now + Duration::from_secs(60);
    while pair.now < until {
        pair.run();
    }
    let read = pair.b.read(into);
    assert_eq!(read.map(|read| read.unwrap().len()), Poll::Ready(4));
    let end = pair.b.read(into);
    assert_eq!(end.map(|read| read.unwrap().len()), Poll::Ready(0));
    pair.a.session.stack.release(out, pair.now);
    pair.b.session.stack.release(into, pair.now);
    pair.run();
    assert!(pair.a.session.stack.is_empty() && pair.b.session.stack.is_empty());
}

#[test]
fn what_was_written_outlives_its_stream() {
    let mut pair = Pair::new();
    let (out, into) = pair.connect();
    let data = pattern(200_000);
    let written = pair.a.write(out, &data);
    assert_eq!(written.map(Result::unwrap), Poll::Ready(data.len()));
    pair.a.session.stack.release(out, pair.now);
    let mut got = Vec::new();
    loop {
        match pair.b.read(into) {
            Poll::Ready(Ok(bytes)) if bytes.is_empty() => break,
            Poll::Ready(n) => got.extend(n.unwrap()),
            Poll::Pending => pair.run(),
        }
    }
    assert_eq!(got, data);
    pair.b.session.stack.release(into, pair.now);
    for _ in 0..10 {
        pair.run();
    }
    assert!(pair.a.session.stack.is_empty() && pair.b.session.stack.is_empty());
}

#[test]
fn dropping_unread_data_resets() {
    let mut pair = Pair::new();
    let (out, into) = pair.connect();
    pair.a.write(out, b"unread").is_ready();
    pair.run();
    pair.b.session.stack.release(into, pair.now);
    pair.run();
    let read = pair.a.read(out);
    let Poll::Ready(Err(error)) = read else {
        panic!("{read:?}")
    };
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[test]
fn sessions_end_when_nobody_needs_them() {
    let mut pair = Pair::new();
    assert!(!pair.a.session.is_over(pair.now));
    assert!(pair.a.session.is_over(pair.now + UNCONFIRMED_TIMEOUT));
    let (out, into) = pair.connect();
    let idle = Duration::from(Limits::default().idle_timeout);
    assert!(!pair.a.session.is_over(pair.now + idle * 10));
    pair.a.session.stack.release(out, pair.now);
    pair.b.session.stack.release(into, pair.now);
    for _ in 0..10 {
        pair.run();
    }
    assert!(!pair.a.session.is_over(pair.now));
    assert!(pair.a.session.is_over(pair.now + idle));
}

#[test]
fn an_idle_pair_sends_nothing() {
    // But for WireGuard's one keep-alive ten seconds after the last data, by the engine's clock.
    let mut pair = Pair::new();
    let (out, into) = pair.connect();
    pair.a.session.stack.release(out, pair.now);
    pair.b.session.stack.release(into, pair.now);
    for _ in 0..10 {
        pair.run();
    }
    let sent = pair.seen.len();
    let until = pair.now + Duration::from_secs(170);
    while pair.now < until {
        pair.run();
    }
    assert_eq!(pair.seen.len(), sent);
}

#[test]
fn keys_are_renewed_under_traffic() {
    let mut pair = Pair::new();
    let soon = StdDuration::from_millis(20);
    pair.a
        .session
        .tunn
        .dangerously_set_timer_params(TimerParams {
            rekey_after_time: soon..=soon,
            ..TimerParams::default()
        });
    let data = pattern(100_000);
    let mut rounds = 0;
    // The engine's clock is the machine's: rounds go on until it has renewed them twice.
    while pair.a.dropped().handshakes < 3 {
        assert_eq!(pair.transfer(&data), data);
        rounds += 1;
        assert!(rounds < 100_000);
    }
    assert_eq!(pair.transfer(&data), data);
    assert_eq!(pair.a.dropped().dropped_unknown_session, 0);
}

#[test]
fn a_moved_peer_is_asked_everywhere_before_data_goes_to_the_old_place() {
    let mut pair = Pair::new();
    let (a, b) = (PrivateKey::generate(), PrivateKey::generate());
    pair.a = Side::new(1, &a, 2, b.public(), pair.now);
    pair.b = Side::new(2, &b, 1, a.public(), pair.now);
    pair.connect();
    // b is restarted: same key, another port, no memory of the session.
    pair.b = Side::new(2, &b, 1, a.public(), pair.now);
    pair.b.at = outer(22);
    let record = PeerRecord::unrestricted(b.public(), vec![inner(2)], vec![outer(22)]);
    pair.a.session.update(&record, pair.now);
    let before = pair.now;
    pair.connect();
    assert_eq!(pair.a.session.agent.current(), Some(outer(22).into()));
    // A SYN that went to the old place would have been repeated after a second.
    let took = pair.now - before;
    assert!(took <= TICK_HOT, "{took}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn hostile_datagrams_change_nothing(
        kind in 0u8..6,
        len in 0usize..200,
        seed in any::<u64>(),
        flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut pair = Pair::new();
        let data = pattern(3_000);
        prop_assert_eq!(pair.transfer(&data), data.clone());
        let mut bytes: Vec<u8> = (0..len as u64)
            .map(|n| (seed ^ n).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()[0])
            .collect();
        if let Some(first) = bytes.first_mut() {
            *first = kind;
        }
        pair.b.receive(outer(666), &bytes, pair.now);
        // Real messages, damaged.
        for (_, _, mut bytes) in pair.seen.clone().into_iter().filter(|(_, to, _)| *to == outer(2)) {
            for (at, flip) in &flips {
                let at = at.index(bytes.len());
                bytes[at] ^= flip;
            }
            pair.b.receive(outer(666), &bytes, pair.now);
        }
        prop_assert_eq!(pair.b.session.agent.current(), Some(outer(1).into()));
        prop_assert_eq!(pair.transfer(&data), data);
    }
}
