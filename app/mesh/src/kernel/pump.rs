//! The thread between the TUN device and the UDP socket. It carries what it reads all the way: no
//! packet waits between a read and its write, except for a handshake.
//!
//! ```text
//! TUN ─ read ─ split ─ session: encapsulate ─ sendmsg (UDP_SEGMENT) ─ UDP
//! UDP ─ recvmsg (UDP_GRO) ─ session: decapsulate, check source ─ merge ─ writev ─ TUN
//! ```
//! Buffers are made once and used again; only the engine allocates per packet.

use std::io::{self, IoSlice};
use std::net::Ipv6Addr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use bytes::{Buf as _, BytesMut};
use gotatun::packet::Packet;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use tokio::sync::mpsc;

use super::alias::Alias;
use super::frame::{self, DESTINATION, SOURCE, Tcp, VNET_LEN};
use super::merge::{RUN_MAX, run};
use super::reset::reset;
use super::split::{ROOM, split};
use crate::dispatch::{ERRORS_MAX, Handshake, Message, classify, note_arrival, sort};
use crate::endpoint::Endpoint;
use crate::path::Path;
use crate::peer::{Peer, couple, note_sent};
use crate::session::Outbox;
use crate::stats::{Counters, add, count};
use crate::underlay::{Opened, ROOM_WAITS_MAX, TRAIN_DATAGRAMS_MAX, TRAIN_ROOM, send_now};

/// The largest packet that the device gives, with its header.
const FRAME_LEN_MAX: usize = VNET_LEN + 65_575;
/// Received trains lie behind each other in a buffer of this size, so that it is seldom cleared.
const INBOX_LEN: usize = 2 * TRAIN_ROOM;

pub(crate) struct Pump {
    endpoint: Arc<Endpoint>,
    tun: Arc<OwnedFd>,
    /// Readable when it is to stop.
    stop: Arc<OwnedFd>,
    handshakes: mpsc::Sender<Handshake>,
    inbox: BytesMut,
    /// Transport messages of one train with one receiver index.
    batch: Vec<Packet>,
    frame: Box<[u8]>,
    room: BytesMut,
    out: Outbox,
}

impl Pump {
    pub(crate) fn new(
        endpoint: Arc<Endpoint>,
        tun: Arc<OwnedFd>,
        stop: Arc<OwnedFd>,
        handshakes: mpsc::Sender<Handshake>,
    ) -> Self {
        Self {
            endpoint,
            tun,
            stop,
            handshakes,
            inbox: BytesMut::zeroed(INBOX_LEN),
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
            PollFd::from_borrowed_fd(self.endpoint.underlay.descriptor(), read),
            PollFd::new(&*self.tun, read),
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
            .try_receive(&mut self.inbox[..TRAIN_ROOM]);
        let received = match received {
            Ok(received) => received,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error),
        };
        let endpoint = Arc::clone(&self.endpoint);
        let counters = &endpoint.ours.counters;
        if received.len == 0 {
            count(&counters.datagrams_in);
            count(&counters.dropped_malformed);
        }
        let mut train = self.inbox.split_to(received.len);
        let mut batched = None;
        while !train.is_empty() {
            let mut datagram = train.split_to(received.segment.min(train.len()));
            note_arrival(&endpoint, datagram.len());
            let Opened::Datagram(path, at) = endpoint.underlay.open(received.from, &datagram)
            else {
                continue;
            };
            datagram.advance(at);
            let Message::Data(index) = classify(&datagram) else {
                // Copied, for it will wait: it must not keep the buffer.
                sort(
                    &endpoint,
                    &self.handshakes,
                    path,
                    Packet::copy_from(&datagram[..]),
                );
                continue;
            };
            if path.is_relayed() {
                count(&counters.relayed_in);
            }
            if batched != Some((index, path)) {
                self.deliver(batched);
            }
            batched = Some((index, path));
            self.batch.push(Packet::from_bytes(datagram));
        }
        self.deliver(batched);
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

    /// Hands the batch, which came on this path, to the session with this receiver index, and does
    /// what it wants done.
    fn deliver(&mut self, batched: Option<(u32, Path)>) {
        let Some((index, from)) = batched else {
            return;
        };
        let endpoint = Arc::clone(&self.endpoint);
        let counters = &endpoint.ours.counters;
        // Asked for every batch: a session that was forgotten gets nothing more.
        let Some(peer) = endpoint.routed(index) else {
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
        let asks = session.asks();
        drop(session);
        if asks {
            peer.kick();
        }
        self.settle(&peer);
        let mut inner = std::mem::take(&mut self.out.inner);
        write(&self.tun, &mut inner, counters);
        inner.clear();
        self.out.inner = inner;
    }

    /// Carries one packet from the device; whether there was one.
    fn outward(&mut self) -> io::Result<bool> {
        let len = match rustix::io::read(&*self.tun, &mut self.frame[..]) {
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
                let _ = rustix::io::write(&*self.tun, &reset);
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
        if let Some((first, keep)) = self.out.release.take() {
            self.endpoint.underlay.release(first, &keep);
        }
    }
}

/// Writes packets to the device, as few as possible.
pub(super) fn write(tun: &OwnedFd, packets: &mut [Packet], counters: &Counters) {
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
        if let Err(error) = rustix::io::writev(tun, &slices[..=run.packets]) {
            tracing::trace!(%error, "packets not taken by the kernel");
            add(&counters.dropped_inner, run.packets as u64);
        }
        rest = later;
    }
}

fn ends(packet: &[u8]) -> (Option<Ipv6Addr>, Option<Alias>) {
    let to = frame::address(packet, DESTINATION).and_then(Alias::of);
    (frame::address(packet, SOURCE), to)
}

/// Couples datagrams to trains and sends them.
fn send(endpoint: &Endpoint, datagrams: &[(Path, Packet)]) {
    let mut rest = datagrams;
    while let Some((path, first)) = rest.first() {
        let train = couple(rest);
        let mut slices = [IoSlice::new(&[]); TRAIN_DATAGRAMS_MAX];
        for (slice, (_, datagram)) in slices.iter_mut().zip(train) {
            *slice = IoSlice::new(datagram);
        }
        let slices = &slices[..train.len()];
        let (underlay, len) = (&*endpoint.underlay, first.len());
        let sent = send_now(underlay, *path, slices, len, ROOM_WAITS_MAX);
        note_sent(&endpoint.ours.counters, *path, train.len(), sent);
        rest = &rest[train.len()..];
    }
}
