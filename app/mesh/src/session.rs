//! Everything towards one remote key: the WireGuard state machine and the TCP stack behind it.
//!
//! Sans-IO: datagrams and the time come in as arguments, what is to be sent lands in an [`Outbox`].
//! Only the engine's own timers (rekey, retry, keep-alive) read a clock of their own.
//!
//! ```text
//! datagram ─ decapsulate ─ source, destination ─ stack ─ encapsulate ─ datagram
//!               │ authentic: this is where the peer is        │ no keys: queue, handshake
//! ```

use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::sync::Arc;
use std::time::Duration as StdDuration;

use bytes::BytesMut;
use gotatun::noise::errors::WireGuardError;
use gotatun::noise::index_table::IndexTable;
use gotatun::noise::rate_limiter::RateLimiter;
use gotatun::noise::{TimerParams, Tunn, TunnResult};
use gotatun::packet::{Packet, WgKind};
use gotatun::tun::MtuWatcher;
use gotatun::x25519::PublicKey;
use smoltcp::time::{Duration, Instant};
use tabbify_api::mesh::PeerRecord;
use tabbify_api::policy::Ports;
use tabbify_types::{MeshKey, Tenant};

use crate::PrivateKey;
use crate::config::{Limits, MTU};
use crate::doubt::{Asked, Concern};
use crate::gate::{Gate, Replies, Shut};
use crate::kernel::{Alias, Link};
use crate::packet::{self, Inner};
use crate::path::{Agent, Path, Proof, Surroundings, Wishes};
use crate::stack::{ConnId, ConnectError, Doors, Seat, Stack};
use crate::stats::{Counters, count};

/// How often the engine looks at its timers while there is traffic, and otherwise.
const TICK_HOT: Duration = Duration::from_millis(250);
const TICK_COLD: Duration = Duration::from_secs(2);
/// For this long after the last packet a session counts as hot: the engine's keep-alive (10 s) and
/// its answer to silence (15 s) fall into it.
const HOT: Duration = Duration::from_secs(20);
/// An initiation without answer is repeated after about this long. WireGuard's own figure is 5 s;
/// one lost datagram would then cost a dial all its time.
const RETRY: StdDuration = StdDuration::from_secs(1);
const RETRY_JITTER: StdDuration = StdDuration::from_millis(333);
/// LIMIT: a peer that leaves data unanswered for this long is given up, with its connections.
const PEER_TIMEOUT: Duration = Duration::from_secs(30);
/// LIMIT: a session that never heard its peer and has no connections is kept this long.
const UNCONFIRMED_TIMEOUT: Duration = Duration::from_secs(15);
/// How long data waits for the handshake with a peer that seems to have moved.
const HOLD: Duration = Duration::from_secs(1);

/// How often it is asked what a peer may reach that we have dialed, while nobody can tell.
const ASK_EVERY: Duration = Duration::from_millis(500);

/// What all sessions of an endpoint share.
#[derive(Clone)]
pub(crate) struct Ours {
    pub(crate) key: PrivateKey,
    /// At least one; dials come from the first.
    pub(crate) addresses: Arc<[Ipv6Addr]>,
    pub(crate) limits: Arc<Limits>,
    pub(crate) indices: IndexTable,
    pub(crate) limiter: Arc<RateLimiter>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) around: Arc<Surroundings>,
    /// Answers for addresses that are not ours.
    pub(crate) gate: Option<Arc<dyn Gate>>,
}

/// What a session wants done.
#[derive(Default)]
pub(crate) struct Outbox {
    /// To be sent, in this order.
    pub(crate) datagrams: Vec<(Path, Packet)>,
    /// Connections that the peer opened.
    pub(crate) accepted: Vec<(ConnId, Seat)>,
    /// Receiver indices that the peer may use from now on.
    pub(crate) indices: Vec<u32>,
    /// For the kernel's stack, from aliases.
    pub(crate) inner: Vec<Packet>,
    /// Of the spare sockets from this number on, all but these can be closed.
    pub(crate) release: Option<(u32, Vec<u32>)>,
}

pub(crate) struct Session {
    ours: Ours,
    /// Its key.
    peer: MeshKey,
    tunn: Tunn,
    mtu: MtuWatcher,
    pub(crate) stack: Stack,
    /// Takes the place of the stack, which stays empty, if the kernel's is in use.
    pub(crate) link: Option<Link>,
    /// Inner addresses that the peer may speak from.
    theirs: Vec<Ipv6Addr>,
    /// The platform calls it a public edge: what it says about people counts.
    is_node: bool,
    /// The tenants whose rules are about the two of us; empty if that is not known.
    rules_of: Vec<Tenant>,
    /// When what is known of it was asked for.
    known: Asked,
    /// Answers that forbid it and that a change had overtaken, since one that allows it.
    overtaken: u32,
    /// Ports that it may open connections to; none while that is not known.
    inbound: Option<Ports>,
    /// When it was last wished for that it be looked up what they are, and whether that is still to be done.
    asked: Option<Instant>,
    asks: bool,
    /// Where the peer is.
    pub(crate) agent: Agent,
    heard: Option<Instant>,
    /// Since when data is out that nothing came back for.
    unanswered: Option<Instant>,
    /// The stack is not asked for packets until then, or until the peer is heard.
    hold: Option<Instant>,
    initiate: bool,
    traffic: Instant,
    tick: Instant,
    /// What the gate answers itself.
    replies: Replies,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Initiation,
    Response,
    Cookie,
    Data,
}

impl Session {
    pub(crate) fn new(ours: Ours, record: &PeerRecord, now: Instant) -> Self {
        let MeshKey(key) = record.key;
        let mut tunn = Tunn::new(
            ours.key.secret().clone(),
            PublicKey::from(key),
            None,
            None,
            ours.indices.clone(),
            Arc::clone(&ours.limiter),
        );
        tunn.dangerously_set_timer_params(TimerParams {
            rekey_timeout: RETRY..=RETRY + RETRY_JITTER,
            ..TimerParams::default()
        });
        let seed = u64::from_le_bytes(tabbify_process::random());
        let limits = &ours.limits;
        let stack = Stack::new(
            seed,
            limits.connections_per_peer,
            limits.tcp_buffer_bytes,
            now,
        );
        let agent = ours.around.agent(&ours.key, record.key);
        let mut session = Self {
            ours,
            peer: record.key,
            tunn,
            mtu: MtuWatcher::new(MTU),
            stack,
            link: None,
            theirs: Vec::new(),
            is_node: false,
            rules_of: Vec::new(),
            known: Asked::default(),
            overtaken: 0,
            inbound: None,
            asked: None,
            asks: false,
            agent,
            heard: None,
            unanswered: None,
            hold: None,
            initiate: false,
            traffic: now,
            tick: now,
            replies: Replies::new(now),
        };
        session.update(record, now);
        session
    }

    /// Whether an answer counts that was asked for then: not if a later one does already.
    pub(crate) fn takes(&mut self, asked: Asked) -> bool {
        let counts = asked >= self.known;
        self.known = self.known.max(asked);
        counts
    }

    /// Counts an answer that forbids it and that a change had overtaken: how many there were before.
    pub(crate) const fn overtaken(&mut self) -> u32 {
        let before = self.overtaken;
        self.overtaken = before.saturating_add(1);
        before
    }

    /// What says which changes concern the peer.
    pub(crate) fn concern(&self) -> Concern<'_> {
        Concern {
            key: self.peer,
            addresses: Some(&self.theirs),
            rules_of: &self.rules_of,
        }
    }

    /// Whether what the peer says about people counts.
    pub(crate) const fn is_node(&self) -> bool {
        self.is_node
    }

    /// Takes what the resolver says now of a peer that was looked up by its key, but for where it is.
    pub(crate) fn renew(&mut self, record: &PeerRecord) {
        self.stand(record);
        self.let_in(record.inbound.as_ref());
    }

    /// Takes what the platform says of the peer itself.
    fn stand(&mut self, record: &PeerRecord) {
        if self.is_node && !record.is_node {
            // Its connections were taken for those of a public edge.
            self.abort_all();
        }
        self.is_node = record.is_node;
        self.overtaken = 0;
        self.rules_of.clone_from(&record.rules_of);
    }

    /// Takes what the resolver says now.
    pub(crate) fn update(&mut self, record: &PeerRecord, now: Instant) {
        self.theirs.clone_from(&record.addresses);
        self.stand(record);
        if record.inbound.is_some() {
            self.inbound.clone_from(&record.inbound);
        }
        self.find_at(&record.endpoints, now);
    }

    /// Takes where the peer may be found, and nothing else.
    pub(crate) fn find_at(&mut self, endpoints: &[SocketAddr], now: Instant) {
        if self.agent.set_record(endpoints) {
            // Perhaps it was restarted somewhere else and has forgotten our keys: ask everywhere,
            // and do not talk to a grave meanwhile.
            self.hold = Some(now + HOLD);
            self.initiate = true;
        }
    }

    /// Takes what the peer may reach here, now that its key was looked up: what is not told is nothing.
    pub(crate) fn let_in(&mut self, inbound: Option<&Ports>) {
        self.inbound = Some(inbound.cloned().unwrap_or(Ports::NOTHING));
    }

    /// Whether somebody must look up what the peer may reach here.
    pub(crate) const fn asks(&self) -> bool {
        self.asks
    }

    /// The same, once.
    pub(crate) fn take_asks(&mut self) -> bool {
        std::mem::take(&mut self.asks)
    }

    /// Whether the peer may open a connection to this port.
    fn admits(&mut self, port: u16, now: Instant) -> bool {
        if let Some(ports) = &self.inbound {
            return ports.admit(port);
        }
        // The peer repeats its SYN; by then it is known.
        if self.asked.is_none_or(|asked| now >= asked + ASK_EVERY) {
            self.asked = Some(now);
            self.asks = true;
        }
        false
    }

    /// Begins a connection from our first address.
    pub(crate) fn connect(&mut self, remote: SocketAddrV6) -> Result<ConnId, ConnectError> {
        self.stack.connect(self.ours.addresses[0], remote)
    }

    /// Makes room for a connection in the kernel's stack, and says what the peer's address is there.
    pub(crate) fn reserve(&mut self, address: Ipv6Addr) -> Result<(u64, Alias), ConnectError> {
        let max = self.ours.limits.connections_per_peer;
        let link = self.link.as_mut().ok_or(ConnectError::Unaddressable)?;
        let alias = link.alias(address).ok_or(ConnectError::Unaddressable)?;
        let number = link.reserve(max).ok_or(ConnectError::Full)?;
        Ok((number, alias))
    }

    /// Handshakes anew at the next poll if the peer was silent since `since`: perhaps it was
    /// restarted in place.
    pub(crate) fn nudge(&mut self, since: Instant) {
        self.initiate |= !self.heard_since(since);
    }

    /// Whether anything authentic came from the peer since then.
    pub(crate) fn heard_since(&self, since: Instant) -> bool {
        self.heard.is_some_and(|heard| heard >= since)
    }

    /// Whether there is an outer address to send to.
    pub(crate) fn has_target(&self) -> bool {
        self.agent.has_target()
    }

    /// Takes one datagram.
    pub(crate) fn receive(
        &mut self,
        from: Path,
        message: WgKind,
        doors: &dyn Doors,
        out: &mut Outbox,
        now: Instant,
    ) {
        let kind = Kind::of(&message);
        match (kind, self.tunn.handle_incoming_packet(message)) {
            (Kind::Initiation, TunnResult::WriteToNetwork(reply)) => {
                // It may be a replay to a session that has forgotten the original, so it proves
                // nothing about where the peer is.
                count(&self.ours.counters.handshakes);
                out.push(from, reply);
            }
            (Kind::Response, TunnResult::WriteToNetwork(keepalive)) => {
                count(&self.ours.counters.handshakes);
                self.heard(from, Proof::Both, out, now);
                self.hold = None;
                out.push(from, keepalive);
                self.send_queued(out, now);
            }
            (_, TunnResult::WriteToTunnel(inner)) => {
                self.heard(from, Proof::Inward, out, now);
                self.send_queued(out, now);
                self.inner(inner, doors, out, now);
            }
            (_, TunnResult::WriteToNetwork(_) | TunnResult::Done) => {}
            (kind, TunnResult::Err(error)) => self.count_error(kind, &error),
        }
    }

    /// Takes a probe.
    pub(crate) fn probe(&mut self, from: Path, probe: &[u8], out: &mut Outbox, now: Instant) {
        let mut wishes = Wishes::default();
        if !self.agent.probe(from, probe, &mut wishes, now) {
            count(&self.ours.counters.dropped_probe);
        }
        self.grant(wishes, out);
    }

    /// Does what is due, and lets the stack speak. Call it again at once while [`Self::poll_at`] is
    /// not in the future.
    pub(crate) fn poll(&mut self, out: &mut Outbox, now: Instant) {
        if now >= self.tick {
            self.tick(out, now);
        }
        let mut wishes = Wishes::default();
        self.agent.poll(&mut wishes, now);
        self.grant(wishes, out);
        if std::mem::take(&mut self.initiate)
            && let Some(initiation) = self.tunn.format_handshake_initiation(true)
        {
            self.send(initiation.into(), out, now);
        }
        if self.hold.is_none_or(|hold| now >= hold) {
            self.hold = None;
            self.stack.output(now);
            self.release(out, now);
        }
        // Replies of the stack itself (a reset, an acknowledgment) are there even on hold.
        while let Some(packet) = self.stack.take() {
            self.emit(packet, out, now);
        }
        if self
            .unanswered
            .is_some_and(|since| now >= since + PEER_TIMEOUT)
        {
            self.unanswered = None;
            self.abort_all();
        }
        self.stack.sweep(&mut out.accepted, now);
    }

    /// When to poll again.
    pub(crate) fn poll_at(&mut self, now: Instant) -> Instant {
        let stack = self.stack.poll_at(now);
        let held = self.link.as_ref().is_some_and(Link::is_holding);
        let tick = self
            .agent
            .poll_at(now)
            .map_or(self.tick, |agent| agent.min(self.tick));
        match (self.hold, stack) {
            (Some(hold), _) if stack.is_some() || held => hold.min(tick),
            (None, Some(stack)) => stack.min(tick),
            (_, _) => tick,
        }
    }

    /// Whether there is no connection at all.
    pub(crate) fn is_empty(&self) -> bool {
        self.stack.is_empty() && self.link.as_ref().is_none_or(Link::is_empty)
    }

    /// Gives every connection up.
    pub(crate) fn abort_all(&mut self) {
        self.stack.abort_all();
        if let Some(link) = &mut self.link {
            link.abort_all();
        }
    }

    /// Whether nobody needs this session any more.
    pub(crate) fn is_over(&self, now: Instant) -> bool {
        let kept = if self.heard.is_some() {
            Duration::from(self.ours.limits.idle_timeout)
        } else {
            UNCONFIRMED_TIMEOUT
        };
        self.is_empty() && now >= self.traffic + kept
    }

    fn heard(&mut self, from: Path, proof: Proof, out: &mut Outbox, now: Instant) {
        // The last words of an instance that was replaced do not end the wait for its successor.
        if self.agent.current() != Some(from) {
            self.hold = None;
        }
        let mut wishes = Wishes::default();
        self.agent.heard(from, proof, &mut wishes, now);
        self.grant(wishes, out);
        self.heard = Some(now);
        self.unanswered = None;
        self.traffic = now;
    }

    fn grant(&self, wishes: Wishes, out: &mut Outbox) {
        let probes = wishes.probes.into_iter();
        let probes = probes.map(|(path, probe)| (path, Packet::copy_from(&probe[..])));
        out.datagrams.extend(probes);
        if let Some(keep) = wishes.release {
            out.release = Some((self.agent.spares(), keep));
        }
    }

    fn inner(&mut self, mut packet: Packet, doors: &dyn Doors, out: &mut Outbox, now: Instant) {
        if packet.is_empty() {
            return; // a keep-alive
        }
        match packet::parse(&packet) {
            Some(inner) if !self.theirs.contains(&inner.source) => {
                count(&self.ours.counters.dropped_spoofed_source);
            }
            Some(inner) if self.ours.addresses.contains(&inner.destination) => {
                if let Some(ports) = inner.opening
                    && !self.admits(ports.destination, now)
                {
                    count(&self.ours.counters.dropped_forbidden);
                    return;
                }
                let Some(link) = &mut self.link else {
                    self.stack.input(packet, &inner, doors, now);
                    return;
                };
                match link.alias(inner.source) {
                    Some(alias) if inner.is_tcp => {
                        packet[packet::SOURCE].copy_from_slice(&alias.address().octets());
                        packet.truncate(inner.len);
                        out.inner.push(packet);
                    }
                    _ => count(&self.ours.counters.dropped_inner),
                }
            }
            Some(inner) => match self.ours.gate.clone() {
                Some(gate) if gate.covers(inner.destination) => {
                    self.pass(&*gate, packet, &inner, doors, out, now);
                }
                _ => count(&self.ours.counters.dropped_inner),
            },
            None => count(&self.ours.counters.dropped_inner),
        }
    }

    /// Takes a packet for an address that the gate stands for.
    fn pass(
        &mut self,
        gate: &dyn Gate,
        packet: Packet,
        inner: &Inner,
        doors: &dyn Doors,
        out: &mut Outbox,
        now: Instant,
    ) {
        let (peer, to) = (self.peer, inner.destination);
        if !inner.is_tcp {
            let shows = || gate.shows(peer, to);
            if let Some(answer) = self.replies.answer(&packet, inner, shows, now) {
                self.emit(answer, out, now);
            }
            return;
        }
        let is_refused = inner.opening.is_some_and(|ports| {
            !gate.admits(peer, SocketAddrV6::new(to, ports.destination, 0, 0))
        });
        let doors: &dyn Doors = if is_refused { &Shut } else { doors };
        self.stack.input(packet, inner, doors, now);
    }

    /// Takes a packet that the kernel's stack has for the peer, padded; whether [`Self::poll_at`] may
    /// have changed.
    pub(crate) fn depart(&mut self, packet: BytesMut, out: &mut Outbox, now: Instant) -> bool {
        if self.hold.is_some_and(|hold| now < hold) {
            if let Some(link) = &mut self.link {
                link.hold(&packet);
            }
            return true;
        }
        let tick = self.tick;
        let woke = self.touch(&packet, out, now);
        match self
            .tunn
            .encapsulate_with_session(Packet::from_bytes(packet))
        {
            Ok(message) => {
                self.send(message.into(), out, now);
                woke || self.tick != tick
            }
            Err(packet) => {
                // It will wait for keys; a copy, so that its buffer can be used again.
                self.encapsulate(Packet::copy_from(&packet), out, now);
                true
            }
        }
    }

    /// Sends what was kept from the kernel's stack while it was not known where the peer is.
    pub(crate) fn release(&mut self, out: &mut Outbox, now: Instant) {
        if self.hold.is_some() {
            return;
        }
        let held = self.link.as_mut().filter(|link| link.is_holding());
        for packet in held.map(Link::release).unwrap_or_default() {
            self.touch(&packet, out, now);
            self.encapsulate(packet, out, now);
        }
    }

    fn tick(&mut self, out: &mut Outbox, now: Instant) {
        let hot = now < self.traffic + HOT || self.unanswered.is_some();
        self.tick = now + if hot { TICK_HOT } else { TICK_COLD };
        // An error says that the keys have expired; the next packet asks for new ones.
        if let Ok(Some(message)) = self.tunn.update_timers() {
            self.send(message, out, now);
        }
    }

    fn emit(&mut self, packet: BytesMut, out: &mut Outbox, now: Instant) {
        self.touch(&packet, out, now);
        self.encapsulate(Packet::from_bytes(packet), out, now);
    }

    /// Notes that a packet is sent; whether it is the first for long.
    fn touch(&mut self, packet: &[u8], out: &mut Outbox, now: Instant) -> bool {
        if now >= self.traffic + TICK_HOT {
            // The engine's idea of now is that of its last tick.
            self.tick(out, now);
        }
        self.traffic = now;
        self.unanswered.get_or_insert(now);
        if packet::wants_answer(packet) {
            self.agent.expects(now);
        }
        self.agent.sent(now)
    }

    fn encapsulate(&mut self, packet: Packet, out: &mut Outbox, now: Instant) {
        if let Some(message) = self
            .tunn
            .handle_outgoing_packet(packet, Some(&mut self.mtu))
        {
            self.send(message, out, now);
        }
    }

    fn send_queued(&mut self, out: &mut Outbox, now: Instant) {
        let messages: Vec<_> = self.tunn.get_queued_packets(&mut self.mtu).collect();
        for message in messages {
            self.send(message, out, now);
        }
    }

    fn send(&self, message: WgKind, out: &mut Outbox, now: Instant) {
        if !matches!(message, WgKind::HandshakeInit(_)) {
            let route = self.agent.route(now);
            let Some(first) = route.first else { return };
            out.note(&message);
            let message = Packet::from(message);
            if let Some(second) = route.second {
                out.datagrams
                    .push((second, Packet::copy_from(&message[..])));
            }
            out.datagrams.push((first, message));
            return;
        }
        // While the path is good, only there; otherwise wherever the peer may be. It answers the
        // first copy and takes the others for replays.
        let silent = self.unanswered.is_some_and(|since| now >= since + TICK_HOT);
        let current = self.agent.current();
        let good = current.filter(|_| !silent && self.hold.is_none());
        let targets = good.map_or_else(|| self.agent.everywhere(), |path| vec![path]);
        if let Some((last, first)) = targets.split_last() {
            out.note(&message);
            let message = Packet::from(message);
            let copies = first
                .iter()
                .map(|to| (*to, Packet::copy_from(&message[..])));
            out.datagrams.extend(copies);
            out.datagrams.push((*last, message));
        }
    }

    fn count_error(&self, kind: Kind, error: &WireGuardError) {
        let counters = &self.ours.counters;
        count(match (kind, error) {
            (Kind::Data, WireGuardError::DuplicateCounter | WireGuardError::InvalidCounter) => {
                &counters.dropped_replayed
            }
            (Kind::Data, WireGuardError::NoCurrentSession) => &counters.dropped_unknown_session,
            (Kind::Data, _) => &counters.dropped_forged,
            (Kind::Initiation | Kind::Response | Kind::Cookie, _) => &counters.dropped_handshake,
        });
    }
}

impl Outbox {
    fn push(&mut self, to: Path, message: WgKind) {
        self.note(&message);
        self.datagrams.push((to, message.into()));
    }

    fn note(&mut self, message: &WgKind) {
        match message {
            WgKind::HandshakeInit(init) => self.indices.push(init.sender_idx.get()),
            WgKind::HandshakeResp(response) => self.indices.push(response.sender_idx.get()),
            WgKind::CookieReply(_) | WgKind::Data(_) => {}
        }
    }
}

impl Kind {
    const fn of(message: &WgKind) -> Self {
        match message {
            WgKind::HandshakeInit(_) => Self::Initiation,
            WgKind::HandshakeResp(_) => Self::Response,
            WgKind::CookieReply(_) => Self::Cookie,
            WgKind::Data(_) => Self::Data,
        }
    }
}

mod look;

#[cfg(test)]
mod link_tests;
#[cfg(test)]
mod tests;
