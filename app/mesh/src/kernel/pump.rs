//! The thread between the TUN device and the UDP socket. It carries what it reads all the way: no
//! packet waits between a read and its write, except for a handshake.
//!
//! ```text
//! TUN ─ read ─ split ─ session: encapsulate ─ sendmsg (UDP_SEGMENT) ─ UDP
//! UDP ─ recvmsg (UDP_GRO) ─ session: decapsulate, check source ─ merge ─ writev ─ TUN
//! ```
//! Buffers are made once and used again; only the engine allocates per packet.

use std::io::{self, IoSlice};
use std::net::{Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use bytes::BytesMut;
use gotatun::packet::Packet;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use tokio::sync::mpsc;

use super::alias::Alias;
use super::frame::{self, DESTINATION, SOURCE, Tcp, VNET_LEN};
use super::merge::{RUN_MAX, run};
use super::reset::reset;
use super::split::{ROOM, split};
use crate::dispatch::{ERRORS_MAX, Handshake, Message, classify};
use crate::endpoint::Endpoint;
use crate::peer::Peer;
use crate::session::Outbox;
use crate::stats::{Counters, add, count};
use crate::underlay::{Control, TRAIN_BYTES_MAX, TRAIN_DATAGRAMS_MAX, TRAIN_ROOM};

/// The largest packet that the device gives, with its header.
const FRAME_LEN_MAX: usize = VNET_LEN + 65_575;
/// Received trains lie behind each other in a buffer of this size, so that it is seldom cleared.
const INBOX_LEN: usize = 2 * TRAIN_ROOM;

pub(crate) struct Pump {
    endpoint: Arc<Endpoint>,
    tun: OwnedFd,
    /// Readable when it is to stop.
    stop: Arc<OwnedFd>,
    handshakes: mpsc::Sender<Handshake>,
    inbox: BytesMut,
    control: Control,
    /// Transport messages of one train with one receiver index.
    batch: Vec<Packet>,
    frame: Box<[u8]>,
    room: BytesMut,
    out: Outbox,
}

impl Pump {
    pub(crate) fn new(
        endpoint: Arc<Endpoint>,
        tun: OwnedFd,
        stop: Arc<OwnedFd>,
        handshakes: mpsc::Sender<Handshake>,
    ) -> Self {
        Self {
            endpoint,
            tun,
            stop,
            handshakes,
            inbox: BytesMut::zeroed(INBOX_LEN),
            control: Control::default(),
            batch: Vec::new(),
            frame: vec![0; FRAME_LEN_MAX].into_boxed_slice(),
            room: BytesMut::with_capacity(ROOM),
            out: Outbox::default(),
        }
    }

    /// Carries until the endpoint stops or a descriptor is broken.
    pub(crate) fn run(mut self) {
        let mut errors = 0;
        while !self.endpoint.stop.is_cancelled() {
            let carried = self.inward().and_then(|inward| {
                let outward = self.outward()?;
                if inward || outward {
                    Ok(true)
                } else {
                    self.wait().map(|()| true)
                }
            });
            match carried {
                Ok(_) => errors = 0,
                Err(error) => {
                    errors += 1;
                    tracing::debug!(%error, "receiving failed");
                    if errors > ERRORS_MAX {
                        tracing::error!(%error, "the WireGuard socket or the TUN device is broken");
                        return;
                    }
                }
            }
        }
    }

    fn wait(&self) -> io::Result<()> {
        let read = PollFlags::IN;
        let mut fds = [
            PollFd::from_borrowed_fd(self.endpoint.underlay.as_fd(), read),
            PollFd::new(&self.tun, read),
            PollFd::new(&*self.stop, read),
        ];
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Carries one train from the socket; whether there was one.
    fn inward(&mut self) -> io::Result<bool> {
        self.clear_inbox();
        let received = self
            .endpoint
            .underlay
            .receive_now(&mut self.inbox[..TRAIN_ROOM], &mut self.control);
        let (from, len, segment) = match received {
            Ok(received) => received,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error),
        };
        let endpoint = Arc::clone(&self.endpoint);
        let counters = &endpoint.ours.counters;
        if len == 0 {
            count(&counters.datagrams_in);
            count(&counters.dropped_malformed);
        }
        add(&counters.bytes_in, len as u64);
        let mut train = self.inbox.split_to(len);
        let mut batched = None;
        while !train.is_empty() {
            let datagram = train.split_to(segment.min(train.len()));
            count(&counters.datagrams_in);
            let message = classify(&datagram);
            match message {
                Message::Data(index) => {
                    if batched.is_some_and(|batched| batched != index) {
                        self.deliver(batched, from);
                    }
                    batched = Some(index);
                    self.batch.push(Packet::from_bytes(datagram));
                }
                // Copied, for it will wait: it must not keep the buffer.
                Message::Cookie(index) => {
                    endpoint.deliver(index, from, Packet::copy_from(&datagram[..]));
                }
                Message::Handshake => {
                    let handshake = (from, Packet::copy_from(&datagram[..]));
                    if self.handshakes.try_send(handshake).is_err() {
                        count(&counters.dropped_overload);
                    }
                }
                Message::Malformed => count(&counters.dropped_malformed),
            }
        }
        self.deliver(batched, from);
        Ok(true)
    }

    /// Makes room for a train at the beginning of the inbox.
    fn clear_inbox(&mut self) {
        if self.inbox.len() >= TRAIN_ROOM {
            return;
        }
        self.inbox.clear();
        if self.inbox.try_reclaim(INBOX_LEN) {
            self.inbox.resize(INBOX_LEN, 0);
        } else {
            self.inbox = BytesMut::zeroed(INBOX_LEN);
        }
    }

    /// Hands the batch to the session with this receiver index, and does what it wants done.
    fn deliver(&mut self, index: Option<u32>, from: SocketAddr) {
        let endpoint = Arc::clone(&self.endpoint);
        let counters = &endpoint.ours.counters;
        // Asked for every batch: a session that was forgotten gets nothing more.
        let Some(peer) = index.and_then(|index| endpoint.routed(index)) else {
            add(&counters.dropped_unknown_session, self.batch.len() as u64);
            self.batch.clear();
            return;
        };
        let mut session = peer.session();
        let now = endpoint.epoch.now();
        for packet in self.batch.drain(..) {
            match packet.try_into_wg() {
                Ok(message) => {
                    session.receive(from, message, &endpoint.listeners, &mut self.out, now);
                }
                Err(_) => count(&counters.dropped_malformed),
            }
        }
        session.release(&mut self.out, now);
        drop(session);
        self.settle(&peer);
        let mut inner = std::mem::take(&mut self.out.inner);
        self.write(&mut inner);
        inner.clear();
        self.out.inner = inner;
    }

    /// Writes packets to the device, as few as possible.
    fn write(&self, packets: &mut [Packet]) {
        let counters = &self.endpoint.ours.counters;
        let mut rest = packets;
        while !rest.is_empty() {
            let Some(run) = run(rest) else {
                count(&counters.dropped_inner);
                rest = &mut rest[1..];
                continue;
            };
            let (now, later) = rest.split_at_mut(run.packets);
            let mut slices = [IoSlice::new(&[]); RUN_MAX + 1];
            slices[0] = IoSlice::new(&run.vnet);
            for (i, packet) in now.iter().enumerate() {
                let shown = if i == 0 { 0 } else { run.headers };
                slices[i + 1] = IoSlice::new(&packet[shown..]);
            }
            if let Err(error) = rustix::io::writev(&self.tun, &slices[..=run.packets]) {
                tracing::trace!(%error, "packets not taken by the kernel");
                add(&counters.dropped_inner, run.packets as u64);
            }
            rest = later;
        }
    }

    /// Carries one packet from the device; whether there was one.
    fn outward(&mut self) -> io::Result<bool> {
        let len = match rustix::io::read(&self.tun, &mut self.frame[..]) {
            Ok(len) => len,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        let Some((vnet, packet)) = self.frame[..len].split_first_chunk::<VNET_LEN>() else {
            return Ok(true);
        };
        let endpoint = Arc::clone(&self.endpoint);
        // What else the kernel says (its own multicasts) is for nobody.
        let (Some(tcp), Some(segment)) = (Tcp::of(packet), frame::segment_len(vnet)) else {
            return Ok(true);
        };
        let (Some(source), Some(alias)) = ends(packet) else {
            return Ok(true);
        };
        if !endpoint.ours.addresses.contains(&source) {
            return Ok(true);
        }
        let Some(peer) = endpoint.linked(alias) else {
            // Its session has ended: the connection shall, too.
            if let Some(reset) = reset(packet, tcp) {
                let _ = rustix::io::write(&self.tun, &reset);
            }
            return Ok(true);
        };
        let mut session = peer.session();
        let address = session.link.as_ref().and_then(|link| link.address(alias));
        if let Some(to) = address {
            let now = endpoint.epoch.now();
            let (out, mut stirred) = (&mut self.out, false);
            let take = |segment| stirred |= session.depart(segment, out, now);
            if let Err(error) = split(packet, tcp, segment, to, &mut self.room, take) {
                tracing::debug!(?error, "packet not split");
            }
            drop(session);
            if stirred {
                peer.kick();
            }
            self.settle(&peer);
        }
        self.room.clear();
        if !self.room.try_reclaim(ROOM) {
            self.room = BytesMut::with_capacity(ROOM);
        }
        Ok(true)
    }

    /// Makes new receiver indices known, then sends.
    fn settle(&mut self, peer: &Arc<Peer>) {
        if !self.out.indices.is_empty() {
            self.endpoint.route(&self.out.indices, peer);
            self.out.indices.clear();
        }
        send(&self.endpoint, &self.out.datagrams);
        self.out.datagrams.clear();
    }
}

fn ends(packet: &[u8]) -> (Option<Ipv6Addr>, Option<Alias>) {
    let to = frame::address(packet, DESTINATION).and_then(Alias::of);
    (frame::address(packet, SOURCE), to)
}

/// Couples datagrams to trains and sends them.
fn send(endpoint: &Endpoint, datagrams: &[(SocketAddr, Packet)]) {
    let counters: &Counters = &endpoint.ours.counters;
    let mut rest = datagrams;
    while let Some(((to, first), _)) = rest.split_first() {
        let segment = first.len();
        let mut slices = [IoSlice::new(&[]); TRAIN_DATAGRAMS_MAX];
        let (mut n, mut bytes) = (0, 0);
        for (next, datagram) in rest {
            let fits = bytes + datagram.len() <= TRAIN_BYTES_MAX && n < TRAIN_DATAGRAMS_MAX;
            if next != to || !fits || datagram.len() > segment {
                break;
            }
            slices[n] = IoSlice::new(datagram);
            bytes += datagram.len();
            n += 1;
            if datagram.len() < segment {
                break;
            }
        }
        rest = &rest[n..];
        let sent = endpoint.underlay.send_now(*to, &slices[..n], segment);
        add(&counters.datagrams_out, sent.datagrams as u64);
        add(&counters.bytes_out, sent.bytes as u64);
        // As lossy as the network, so retransmission and timeouts deal with it.
        add(&counters.dropped_unsent, (n - sent.datagrams) as u64);
    }
}
