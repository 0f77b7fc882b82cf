//! TCP/IP in user space towards one peer: a smoltcp interface with sockets of its own, so that an
//! old and a new instance which both speak from the app's address never mix.
//!
//! Sans-IO: packets and the time come in as arguments, packets wait in the [`Wire`] to be taken.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::task::{Poll, Waker};

use bytes::BytesMut;
use gotatun::packet::Packet;
use smoltcp::iface::{Config, Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::socket::tcp::{RecvError, Socket, SocketBuffer, State};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{HardwareAddress, IpAddress, IpEndpoint, IpListenEndpoint};
use tokio::io::ReadBuf;
use tokio::sync::mpsc::OwnedPermit;

use crate::Incoming;
use crate::acknowledged::{Acknowledged, Flow};
use crate::device::Wire;
use crate::packet::{Inner, Ports};

/// How long an acknowledgment waits for data to ride on. Every second segment, and every gap, is
/// acknowledged at once.
const ACK_DELAY: Duration = Duration::from_millis(5);
/// An open connection without traffic asks this often whether its peer lives.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// LIMIT: silence of a connection whose peer answers otherwise. Longer than the longest pause
/// between two probes of a closed window (60 s), so that a reader may stop for hours.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(120);
/// LIMIT: how long a peer may leave our SYN-ACK without answer.
const HALF_OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// LIMIT: how long what was written is still sent after its stream was dropped.
const LINGER: Duration = Duration::from_secs(30);
/// How long a connection that both sides closed keeps its socket: until the last acknowledgment has
/// left. TIME-WAIT in full would protect against stray duplicates, which WireGuard's replay window
/// does already.
const TIME_WAIT: Duration = Duration::from_millis(20);

const EPHEMERAL_FIRST: u16 = 49152;
/// LIMIT: connections whatever the configuration says, well below the number of ports.
const CONNS_MAX: usize = 8192;
/// LIMIT: what a configured buffer is clamped to: room for a few segments, and a sane maximum.
const BUFFER_BYTES_MIN: usize = 8 * 1024;
const BUFFER_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Names a connection for as long as its owner holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct ConnId(u64);

/// A place in a listener's backlog, taken with the SYN: who is let in is never turned away later.
pub(crate) type Seat = OwnedPermit<Incoming>;

/// What is behind a port.
#[derive(Debug)]
pub(crate) enum Door {
    /// A listener with room.
    Open(Seat),
    /// A listener whose backlog is full.
    Full,
    /// Nobody.
    Closed,
}

/// The listeners, as the stack sees them.
pub(crate) trait Doors {
    fn knock(&self, port: u16) -> Door;
}

/// Why a connection cannot be begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ConnectError {
    Full,
    Unaddressable,
}

/// How far a dial is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialed {
    Connected,
    Refused,
}

struct Conn {
    place: Place,
    flow: Flow,
    role: Role,
    /// Since when both sides have closed.
    done_since: Option<Instant>,
    /// The peer was given up.
    lost: bool,
}

enum Place {
    Live(SocketHandle),
    /// Out of the interface, for its owner to read the rest: smoltcp would clear the buffer at the
    /// end of TIME-WAIT.
    Retired(Box<Socket<'static>>),
}

enum Role {
    /// A stream or a dial holds it.
    Owned,
    /// The peer's SYN is answered, its ACK is awaited.
    HalfOpen { deadline: Instant, seat: Seat },
    /// Its stream is gone; what was written is still sent, what arrives is discarded.
    Lingering { deadline: Instant },
}

pub(crate) struct Stack {
    interface: Interface,
    sockets: SocketSet<'static>,
    wire: Wire,
    acknowledged: Acknowledged,
    conns: HashMap<ConnId, Conn>,
    conns_max: usize,
    buffer_bytes: usize,
    next_id: u64,
    next_port: u16,
}

impl Stack {
    pub(crate) fn new(seed: u64, conns_max: usize, buffer_bytes: usize, now: Instant) -> Self {
        let mut wire = Wire::default();
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut wire, now);
        // Destinations are checked before packets come here, against a list without a limit.
        interface.set_any_ip(true);
        let buffer_bytes = buffer_bytes.clamp(BUFFER_BYTES_MIN, BUFFER_BYTES_MAX);
        let conns_max = conns_max.min(CONNS_MAX);
        Self {
            interface,
            sockets: SocketSet::new(Vec::new()),
            wire,
            acknowledged: Acknowledged::default(),
            conns: HashMap::new(),
            conns_max,
            buffer_bytes,
            next_id: 0,
            next_port: EPHEMERAL_FIRST | u16::try_from(seed & 0x3fff).unwrap_or(0),
        }
    }

    /// Begins a connection; its SYN is in the next output.
    pub(crate) fn connect(
        &mut self,
        local: Ipv6Addr,
        remote: SocketAddrV6,
    ) -> Result<ConnId, ConnectError> {
        if self.conns.len() >= self.conns_max {
            return Err(ConnectError::Full);
        }
        let port = self.free_port();
        let mut socket = self.new_socket();
        socket
            .connect(
                self.interface.context(),
                remote,
                (IpAddress::Ipv6(local), port),
            )
            .map_err(|_| ConnectError::Unaddressable)?;
        let handle = self.sockets.add(socket);
        Ok(self.keep(handle, Role::Owned))
    }

    /// Takes one packet whose source and destination are checked.
    pub(crate) fn input(&mut self, packet: Packet, inner: &Inner, doors: &dyn Doors, now: Instant) {
        let mut fresh = None;
        if let Some(ports) = inner.opening
            && !self.knows(inner, ports)
        {
            match doors.knock(ports.destination) {
                Door::Open(seat) if self.conns.len() < self.conns_max => {
                    let handle = self.listen(inner.destination, ports.destination);
                    fresh = Some((handle, seat));
                }
                // The peer repeats its SYN; there may be room then.
                Door::Full => return,
                // The interface answers with a reset.
                Door::Open(_) | Door::Closed => {}
            }
        }
        self.acknowledged.hear(&packet);
        self.wire.receive(packet);
        self.interface
            .poll_ingress_single(now, &mut self.wire, &mut self.sockets);
        if let Some((handle, seat)) = fresh {
            if self.sockets.get::<Socket<'_>>(handle).state() == State::SynReceived {
                self.keep(
                    handle,
                    Role::HalfOpen {
                        deadline: now + HALF_OPEN_TIMEOUT,
                        seat,
                    },
                );
            } else {
                self.sockets.remove(handle);
            }
        }
    }

    /// Lets the sockets emit, until they have no more to say or the batch is full.
    pub(crate) fn output(&mut self, now: Instant) {
        while !self.wire.is_full()
            && self
                .interface
                .poll_egress(now, &mut self.wire, &mut self.sockets)
                == PollResult::SocketStateChanged
        {}
    }

    /// Takes the next packet for the peer.
    pub(crate) fn take(&mut self) -> Option<BytesMut> {
        let mut packet = self.wire.take()?;
        self.acknowledged.mend(&mut packet);
        Some(packet)
    }

    /// Looks after every connection; those that were opened by the peer go to `accepted`, once each.
    pub(crate) fn sweep(&mut self, accepted: &mut Vec<(ConnId, Seat)>, now: Instant) {
        let (sockets, acknowledged) = (&mut self.sockets, &mut self.acknowledged);
        self.conns.retain(|id, conn| {
            let Place::Live(handle) = conn.place else {
                return true;
            };
            let socket = sockets.get_mut::<Socket<'_>>(handle);
            if socket.state() == State::TimeWait {
                conn.done_since.get_or_insert(now);
            }
            let done = conn
                .done_since
                .is_some_and(|since| now >= since + TIME_WAIT);
            let keep = match std::mem::replace(&mut conn.role, Role::Owned) {
                Role::Owned => {
                    if done {
                        let smoltcp::socket::Socket::Tcp(socket) = sockets.remove(handle);
                        conn.place = Place::Retired(Box::new(socket));
                        acknowledged.close(&conn.flow);
                    }
                    return true;
                }
                Role::HalfOpen { deadline, seat } => match socket.state() {
                    State::SynReceived if now < deadline => {
                        conn.role = Role::HalfOpen { deadline, seat };
                        true
                    }
                    State::SynReceived => {
                        socket.abort();
                        conn.role = Role::Lingering { deadline };
                        true
                    }
                    State::Listen | State::Closed => false,
                    _ => {
                        accepted.push((*id, seat));
                        true
                    }
                },
                Role::Lingering { deadline } => {
                    conn.role = Role::Lingering { deadline };
                    !done && !linger(socket, deadline, now)
                }
            };
            if !keep {
                acknowledged.close(&conn.flow);
                sockets.remove(handle);
            }
            keep
        });
    }

    /// When [`Self::output`] and [`Self::sweep`] are due again.
    pub(crate) fn poll_at(&mut self, now: Instant) -> Option<Instant> {
        let timers = self
            .conns
            .values()
            .filter_map(|conn| match (&conn.place, &conn.role) {
                (Place::Retired(_), _) => None,
                (Place::Live(_), Role::Owned) => conn.done_since.map(|since| since + TIME_WAIT),
                (
                    Place::Live(_),
                    Role::HalfOpen { deadline, .. } | Role::Lingering { deadline },
                ) => {
                    let done = conn.done_since.map(|since| since + TIME_WAIT);
                    Some(done.map_or(*deadline, |done| done.min(*deadline)))
                }
            });
        let timers = timers.min();
        let sockets = self.interface.poll_at(now, &self.sockets);
        [timers, sockets].into_iter().flatten().min()
    }

    /// Whether there is no connection at all.
    pub(crate) fn is_empty(&self) -> bool {
        self.conns.is_empty()
    }

    /// Gives every connection up: owners get [`io::ErrorKind::TimedOut`].
    pub(crate) fn abort_all(&mut self) {
        for conn in self.conns.values_mut() {
            conn.lost = true;
            if let Place::Live(handle) = conn.place {
                self.sockets.get_mut::<Socket<'_>>(handle).abort();
            }
        }
    }

    /// How a dial ended; wakes `waker` until then.
    pub(crate) fn poll_connect(&mut self, id: ConnId, waker: &Waker) -> Poll<Dialed> {
        let Some((socket, _)) = self.socket(id) else {
            return Poll::Ready(Dialed::Refused);
        };
        match socket.state() {
            State::SynSent | State::SynReceived => {
                socket.register_send_waker(waker);
                Poll::Pending
            }
            State::Closed => Poll::Ready(Dialed::Refused),
            _ => Poll::Ready(Dialed::Connected),
        }
    }

    /// Our end and the peer's.
    pub(crate) fn endpoints(&mut self, id: ConnId) -> Option<(SocketAddrV6, SocketAddrV6)> {
        let (socket, _) = self.socket(id)?;
        Some((
            address(socket.local_endpoint()?),
            address(socket.remote_endpoint()?),
        ))
    }

    /// Reads what arrived; nothing after the peer's FIN. Ready with whether the peer should hear of
    /// the room that this made.
    pub(crate) fn poll_read(
        &mut self,
        id: ConnId,
        buf: &mut ReadBuf<'_>,
        waker: &Waker,
    ) -> Poll<io::Result<bool>> {
        let Some((socket, lost)) = self.socket(id) else {
            return Poll::Ready(Err(broken(false)));
        };
        let (queued, before) = (socket.recv_queue(), buf.filled().len());
        // Twice at most: what is queued may wrap around the end of the ring.
        while buf.remaining() > 0 && (socket.can_recv() || buf.filled().len() == before) {
            let read = socket.recv(|bytes| {
                let len = bytes.len().min(buf.remaining());
                buf.put_slice(&bytes[..len]);
                (len, len)
            });
            match read {
                Ok(0) => {
                    socket.register_recv_waker(waker);
                    return Poll::Pending;
                }
                Ok(_) => {}
                Err(RecvError::Finished) => return Poll::Ready(Ok(false)),
                Err(RecvError::InvalidState) => return Poll::Ready(Err(broken(lost))),
            }
        }
        // A window update is due when the window doubles; with half of it open it cannot.
        Poll::Ready(Ok(queued >= socket.recv_capacity() / 2))
    }

    /// Queues what fits.
    pub(crate) fn poll_write(
        &mut self,
        id: ConnId,
        bufs: &[io::IoSlice<'_>],
        waker: &Waker,
    ) -> Poll<io::Result<usize>> {
        let Some((socket, lost)) = self.socket(id) else {
            return Poll::Ready(Err(broken(false)));
        };
        let mut total = 0;
        for buf in bufs {
            match socket.send_slice(buf) {
                Ok(len) => {
                    total += len;
                    if len < buf.len() {
                        break;
                    }
                }
                Err(_) if socket.state() == State::Closed => return Poll::Ready(Err(broken(lost))),
                Err(_) => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            }
        }
        if total == 0 && bufs.iter().any(|buf| !buf.is_empty()) {
            socket.register_send_waker(waker);
            return Poll::Pending;
        }
        Poll::Ready(Ok(total))
    }

    /// Sends FIN after what is queued; reading goes on.
    pub(crate) fn close(&mut self, id: ConnId) {
        if let Some((socket, _)) = self.socket(id) {
            socket.close();
        }
    }

    /// Ends the connection: the peer gets a reset.
    pub(crate) fn abort(&mut self, id: ConnId) {
        if let Some((socket, _)) = self.socket(id) {
            socket.abort();
        }
    }

    /// The owner lets go, as `close(2)`: with unread data the peer gets a reset, else what is queued
    /// and FIN.
    pub(crate) fn release(&mut self, id: ConnId, now: Instant) {
        let Some(conn) = self.conns.get_mut(&id) else {
            return;
        };
        let Place::Live(handle) = conn.place else {
            self.conns.remove(&id);
            return;
        };
        let socket = self.sockets.get_mut::<Socket<'_>>(handle);
        if socket.state() == State::SynSent {
            // Nothing to take back: a late SYN-ACK finds no socket and is answered with a reset.
            self.acknowledged.close(&conn.flow);
            self.sockets.remove(handle);
            self.conns.remove(&id);
            return;
        }
        conn.role = Role::Lingering {
            deadline: now + LINGER,
        };
        if socket.can_recv() {
            socket.abort();
        } else {
            socket.close();
        }
    }

    fn socket(&mut self, id: ConnId) -> Option<(&mut Socket<'static>, bool)> {
        let conn = self.conns.get_mut(&id)?;
        let socket = match &mut conn.place {
            Place::Live(handle) => self.sockets.get_mut::<Socket<'_>>(*handle),
            Place::Retired(socket) => socket,
        };
        Some((socket, conn.lost))
    }

    fn new_socket(&self) -> Socket<'static> {
        let buffer = || SocketBuffer::new(vec![0; self.buffer_bytes]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(Some(ACK_DELAY));
        socket.set_keep_alive(Some(KEEP_ALIVE));
        socket.set_timeout(Some(CONNECTION_TIMEOUT));
        socket
    }

    fn listen(&mut self, address: Ipv6Addr, port: u16) -> SocketHandle {
        let mut socket = self.new_socket();
        let endpoint = IpListenEndpoint {
            addr: Some(IpAddress::Ipv6(address)),
            port,
        };
        // Port 0 fails, stays closed, and is answered with a reset: nobody can listen there.
        let _ = socket.listen(endpoint);
        self.sockets.add(socket)
    }

    fn keep(&mut self, handle: SocketHandle, role: Role) -> ConnId {
        let id = ConnId(self.next_id);
        self.next_id += 1;
        let flow = flow_of(self.sockets.get(handle));
        self.acknowledged.open(flow);
        let (place, done_since, lost) = (Place::Live(handle), None, false);
        self.conns.insert(
            id,
            Conn {
                place,
                flow,
                role,
                done_since,
                lost,
            },
        );
        id
    }

    fn live(&self) -> impl Iterator<Item = &Socket<'static>> {
        self.sockets
            .iter()
            .map(|(_, smoltcp::socket::Socket::Tcp(socket))| socket)
    }

    fn knows(&self, inner: &Inner, ports: Ports) -> bool {
        let local = IpEndpoint::new(inner.destination.into(), ports.destination);
        let remote = IpEndpoint::new(inner.source.into(), ports.source);
        self.live().any(|socket| {
            socket.local_endpoint() == Some(local) && socket.remote_endpoint() == Some(remote)
        })
    }

    fn free_port(&mut self) -> u16 {
        loop {
            let port = self.next_port;
            self.next_port = port.checked_add(1).unwrap_or(EPHEMERAL_FIRST);
            let taken = |socket: &Socket<'_>| {
                socket
                    .local_endpoint()
                    .is_some_and(|local| local.port == port)
            };
            // Ends: connections are fewer than ports.
            if !self.live().any(taken) {
                return port;
            }
        }
    }
}

/// Works on a connection without an owner; whether it is over.
fn linger(socket: &mut Socket<'_>, deadline: Instant, now: Instant) -> bool {
    let mut discarded = false;
    while socket.can_recv() && socket.recv(|bytes| (bytes.len(), ())).is_ok() {
        discarded = true;
    }
    match socket.state() {
        // An abort is over when its reset has left.
        State::Closed => return socket.remote_endpoint().is_none(),
        // All of ours has arrived, and nobody will ever read more of theirs.
        State::FinWait2 if discarded => socket.abort(),
        _ if now >= deadline => socket.abort(),
        _ => {}
    }
    false
}

fn broken(lost: bool) -> io::Error {
    if lost {
        io::ErrorKind::TimedOut.into()
    } else {
        io::ErrorKind::ConnectionReset.into()
    }
}

fn flow_of(socket: &Socket<'_>) -> Flow {
    let mut flow = [0; 36];
    if let (Some(local), Some(remote)) = (socket.local_endpoint(), socket.remote_endpoint()) {
        flow[..16].copy_from_slice(&address(local).ip().octets());
        flow[16..32].copy_from_slice(&address(remote).ip().octets());
        flow[32..34].copy_from_slice(&local.port.to_be_bytes());
        flow[34..].copy_from_slice(&remote.port.to_be_bytes());
    }
    flow
}

fn address(endpoint: IpEndpoint) -> SocketAddrV6 {
    let IpAddress::Ipv6(ip) = endpoint.addr;
    SocketAddrV6::new(ip, endpoint.port, 0, 0)
}

#[cfg(test)]
mod tests;
