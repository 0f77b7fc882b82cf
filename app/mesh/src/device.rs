//! The network card that smoltcp believes to have: one packet in at a time, a bounded batch out.

use std::collections::VecDeque;

use bytes::BytesMut;
use gotatun::packet::Packet;
use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;

use crate::config::MTU;

/// LIMIT: packets that one pass over the sockets may emit: one full train of UDP segments, and some
/// short ones. What does not fit waits in its socket.
const BATCH_PACKETS: usize = 64;

#[derive(Debug, Default)]
pub(crate) struct Wire {
    received: Option<Packet>,
    emitted: VecDeque<BytesMut>,
}

impl Wire {
    /// Lays one packet in front of the stack.
    pub(crate) fn receive(&mut self, packet: Packet) {
        self.received = Some(packet);
    }

    /// Takes the oldest packet that the stack emitted.
    pub(crate) fn take(&mut self) -> Option<BytesMut> {
        self.emitted.pop_front()
    }

    /// Whether the batch is full, so that sockets may have more to say.
    pub(crate) fn is_full(&self) -> bool {
        self.emitted.len() >= BATCH_PACKETS
    }
}

impl Device for Wire {
    type RxToken<'a> = Arrival;
    type TxToken<'a> = Departure<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Arrival, Departure<'_>)> {
        // The reply to a packet, at most one, is emitted even when the batch is full.
        let packet = self.received.take()?;
        Some((Arrival(packet), Departure(&mut self.emitted)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Departure<'_>> {
        (!self.is_full()).then_some(Departure(&mut self.emitted))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = usize::from(MTU);
        // Every packet was authenticated before it comes here, so checksums are not verified; they
        // are computed, because stock peers verify them.
        capabilities.checksum.tcp = Checksum::Tx;
        capabilities.checksum.icmpv6 = Checksum::Tx;
        capabilities
    }
}

pub(crate) struct Arrival(Packet);

impl RxToken for Arrival {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

pub(crate) struct Departure<'a>(&'a mut VecDeque<BytesMut>);

impl TxToken for Departure<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut packet = BytesMut::zeroed(len);
        let result = f(&mut packet);
        self.0.push_back(packet);
        result
    }
}
