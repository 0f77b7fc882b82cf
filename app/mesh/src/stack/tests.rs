//! Segments that no sane peer sends: the stack may answer as it likes, but it stands.

use proptest::prelude::*;
use tokio::sync::mpsc;

use super::*;
use crate::packet;

const OURS: Ipv6Addr = Ipv6Addr::new(0xfd5a, 0x1f02, 2, 0, 0, 0, 0, 1);
const THEIRS: Ipv6Addr = Ipv6Addr::new(0xfd5a, 0x1f02, 1, 0, 0, 0, 0, 1);
const PORT: u16 = 8730;

struct Open(mpsc::Sender<Incoming>);

impl Doors for Open {
    fn knock(&self, _: u16) -> Door {
        match self.0.clone().try_reserve_owned() {
            Ok(seat) => Door::Open(seat),
            Err(_) => Door::Full,
        }
    }
}

#[derive(Debug, Clone)]
struct Segment {
    next_header: u8,
    port: u16,
    sequence: u32,
    acknowledges: Option<u32>,
    data_offset: u8,
    flags: u8,
    window: u16,
    rest: Vec<u8>,
    pause_ms: u64,
}

fn segment() -> impl Strategy<Value = Segment> {
    let near = prop_oneof![0u32..4, any::<u32>()];
    let headers = prop_oneof![20 => Just(6u8), 1 => any::<u8>(), 1 => Just(0u8), 1 => Just(58u8)];
    let offset = prop_oneof![8 => Just(5u8), 1 => 0u8..16];
    let rest = proptest::collection::vec(any::<u8>(), 0..80);
    (
        headers,
        49152u16..49154,
        near.clone(),
        proptest::option::of(near),
        offset,
        any::<u8>(),
        any::<u16>(),
        rest,
        0u64..3000,
    )
        .prop_map(
            |(
                next_header,
                port,
                sequence,
                acknowledges,
                data_offset,
                flags,
                window,
                rest,
                pause_ms,
            )| {
                Segment {
                    next_header,
                    port,
                    sequence,
                    acknowledges,
                    data_offset,
                    flags,
                    window,
                    rest,
                    pause_ms,
                }
            },
        )
}

impl Segment {
    /// `next` is what the stack sent last: its sequence number, so that some acknowledgments fit.
    fn bytes(&self, next: u32) -> Vec<u8> {
        let mut packet = vec![0; 60];
        packet[0] = 0x60;
        packet[6] = self.next_header;
        packet[7] = 64;
        packet[8..24].copy_from_slice(&THEIRS.octets());
        packet[24..40].copy_from_slice(&OURS.octets());
        packet[40..42].copy_from_slice(&self.port.to_be_bytes());
        packet[42..44].copy_from_slice(&PORT.to_be_bytes());
        packet[44..48].copy_from_slice(&self.sequence.to_be_bytes());
        let acknowledges = self.acknowledges.map_or(0, |n| next.wrapping_add(n));
        packet[48..52].copy_from_slice(&acknowledges.to_be_bytes());
        packet[52] = self.data_offset << 4;
        packet[53] = self.flags;
        packet[54..56].copy_from_slice(&self.window.to_be_bytes());
        packet.extend(&self.rest);
        let payload = u16::try_from(packet.len() - 40).unwrap_or(0);
        packet[4..6].copy_from_slice(&payload.to_be_bytes());
        packet
    }
}

proptest! {
    #[test]
    fn segments_from_a_hostile_peer_never_panic(segments in proptest::collection::vec(segment(), 1..40)) {
        let mut now = Instant::from_secs(1);
        let (sender, _backlog) = mpsc::channel(4);
        let doors = Open(sender);
        let mut stack = Stack::new(7, 8, 32 * 1024, now);
        let (mut accepted, mut next) = (Vec::new(), 0);
        for segment in &segments {
            let bytes = segment.bytes(next);
            if let Some(inner) = packet::parse(&bytes) {
                stack.input(Packet::from_bytes(BytesMut::from(&bytes[..])), &inner, &doors, now);
            }
            stack.output(now);
            while let Some(sent) = stack.take() {
                let sequence = sent.get(44..48).and_then(|b| b.try_into().ok());
                next = sequence.map_or(0, u32::from_be_bytes).wrapping_add(1);
            }
            stack.sweep(&mut accepted, now);
            for (id, _) in &accepted {
                let _ = stack.poll_write(*id, &[io::IoSlice::new(b"hello")], Waker::noop());
                let _ = stack.poll_read(*id, &mut ReadBuf::new(&mut [0; 16]), Waker::noop());
            }
            prop_assert!(stack.conns.len() <= 8);
            now += smoltcp::time::Duration::from_millis(segment.pause_ms);
            stack.poll_at(now);
        }
        for (id, _) in accepted.drain(..) {
            stack.release(id, now);
        }
        // Whatever it was, it ends.
        for _ in 0..2000 {
            stack.output(now);
            while stack.take().is_some() {}
            stack.sweep(&mut accepted, now);
            for (id, _) in accepted.drain(..) {
                stack.release(id, now);
            }
            match stack.poll_at(now) {
                Some(at) => now = at.max(now + Duration::from_millis(1)),
                None => break,
            }
        }
        prop_assert!(stack.is_empty());
    }
}
