//! Merging and splitting are inverse to each other, whatever came in between.

use std::net::Ipv6Addr;

use bytes::BytesMut;
use proptest::prelude::*;

use super::*;
use crate::config::MTU;
use crate::kernel::frame::{self, FIN, SYN};
use crate::kernel::split::{ROOM, SEGMENTS_MAX, SplitError, split};

const HERE: Ipv6Addr = Ipv6Addr::new(0xfd5a, 0x1f02, 1, 0, 0, 0, 0, 1);
const THERE: Ipv6Addr = Ipv6Addr::new(0xfd5a, 0xffff, 0, 0, 7, 0, 0, 1);

/// A TCP packet without a checksum.
fn packet(port: u16, sequence: u32, flags: u8, options: &[u8], payload: &[u8]) -> Vec<u8> {
    let tcp_len = 20 + options.len() + payload.len();
    let mut packet = vec![0; 60];
    packet[0] = 0x60;
    packet[4..6].copy_from_slice(&u16::try_from(tcp_len).unwrap_or(0).to_be_bytes());
    (packet[6], packet[7]) = (6, 64);
    packet[8..24].copy_from_slice(&HERE.octets());
    packet[24..40].copy_from_slice(&THERE.octets());
    packet[40..42].copy_from_slice(&port.to_be_bytes());
    packet[44..48].copy_from_slice(&sequence.to_be_bytes());
    packet[52] = u8::try_from((20 + options.len()) / 4).unwrap_or(0) << 4;
    packet[53] = flags;
    packet.extend(options);
    packet.extend(payload);
    packet
}

/// A TCP packet with the checksum that a stock peer puts there.
fn with_checksum(mut packet: Vec<u8>) -> Vec<u8> {
    let tcp_len = packet.len() - IPV6_LEN;
    packet[CHECKSUM..CHECKSUM + 2].fill(0);
    let sum = pseudo_header(&packet[ADDRESSES], tcp_len).add(&packet[IPV6_LEN..]);
    packet[CHECKSUM..CHECKSUM + 2].copy_from_slice(&sum.finish());
    packet
}

/// One frame per run, as it is written to the device.
fn merge(mut packets: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let (mut rest, mut frames) = (&mut packets[..], Vec::new());
    while let Some(run) = run(rest) {
        let (now, later) = rest.split_at_mut(run.packets);
        let mut frame = run.vnet.to_vec();
        for (i, packet) in now.iter().enumerate() {
            frame.extend(&packet[if i == 0 { 0 } else { run.headers }..]);
        }
        frames.push(frame);
        rest = later;
    }
    assert!(rest.is_empty());
    frames
}

/// The segments of a frame, without padding.
fn cut(frame: &[u8]) -> Result<Vec<Vec<u8>>, SplitError> {
    let (vnet, packet) = frame.split_first_chunk::<VNET_LEN>().unwrap();
    let segment = frame::segment_len(vnet).unwrap();
    let (mut room, mut segments) = (BytesMut::with_capacity(ROOM), Vec::new());
    split(
        packet,
        Tcp::of(packet).unwrap(),
        segment,
        THERE,
        &mut room,
        |padded| {
            assert!(padded.len() % 16 == 0 || padded.len() == usize::from(MTU));
            let len = Tcp::of(&padded).unwrap().len;
            assert!(padded[len..].iter().all(|byte| *byte == 0));
            segments.push(padded[..len].to_vec());
        },
    )?;
    Ok(segments)
}

fn payload(len: usize) -> Vec<u8> {
    (0..=250).cycle().take(len).collect()
}

#[test]
fn a_window_becomes_one_packet_and_back() {
    let options = [1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2];
    let whole = payload(43 * 1348 + 7);
    let packets: Vec<_> = (0u32..)
        .zip(whole.chunks(1348))
        .map(|(i, piece)| {
            let flags = if piece.len() < 1348 { ACK | PSH } else { ACK };
            with_checksum(packet(
                1,
                (u32::MAX - 5000).wrapping_add(i * 1348),
                flags,
                &options,
                piece,
            ))
        })
        .collect();
    let frames = merge(packets.clone());
    assert_eq!(frames.len(), 1);
    assert_eq!(frames[0].len(), VNET_LEN + 72 + whole.len());
    assert_eq!(frames[0][VNET_LEN + 72..], whole);
    assert_eq!(frames[0][VNET_LEN + FLAGS], ACK | PSH);
    assert_eq!(cut(&frames[0]).unwrap(), packets);
}

#[test]
fn what_does_not_belong_together_stays_apart() {
    let first = packet(1, 0, ACK, &[], &payload(100));
    let alone = [
        packet(2, 100, ACK, &[], &payload(100)), // another flow
        packet(1, 101, ACK, &[], &payload(100)), // a gap
        packet(1, 100, ACK | FIN, &[], &payload(100)),
        packet(1, 100, SYN, &[], &payload(100)),
        packet(1, 100, ACK, &[], &[]),
        packet(1, 100, ACK, &[], &payload(101)),
        packet(1, 100, ACK, &[1, 1, 1, 1], &payload(100)),
    ];
    for other in alone {
        assert_eq!(
            merge(vec![first.clone(), other.clone()]).len(),
            2,
            "{other:?}"
        );
    }
    let follower = packet(1, 100, ACK, &[], &payload(100));
    assert_eq!(merge(vec![first.clone(), follower.clone()]).len(), 1);
    for at in [0, 7, ADDRESSES.start, ADDRESSES.end - 1, 48, 54, 58] {
        let mut other = follower.clone();
        other[at] ^= 1;
        assert_eq!(merge(vec![first.clone(), other]).len(), 2, "byte {at}");
    }
    // After a short or a pushed one, nothing more.
    let third = packet(1, 200, ACK, &[], &payload(100));
    for (len, flags) in [(99, ACK), (100, ACK | PSH)] {
        let second = packet(1, 100, flags, &[], &payload(len));
        assert_eq!(merge(vec![first.clone(), second, third.clone()]).len(), 2);
    }
}

#[test]
fn limits_of_a_split() {
    let cut_to = |n: usize, segment: u16| {
        let packet = packet(1, 0, ACK, &[], &payload(n));
        let mut frame = vnet(60, Some(usize::from(segment))).to_vec();
        frame.extend(packet);
        cut(&frame)
    };
    assert_eq!(cut_to(SEGMENTS_MAX * 100, 100).unwrap().len(), SEGMENTS_MAX);
    assert_eq!(
        cut_to(SEGMENTS_MAX * 100 + 1, 100),
        Err(SplitError::TooMany)
    );
    assert_eq!(cut_to(3000, 1361), Err(SplitError::TooLong));
    assert_eq!(cut_to(2 * 1360, 1360).unwrap().len(), 2);
}

fn some_packet() -> impl Strategy<Value = (u16, bool, u8, usize)> {
    let flags =
        prop_oneof![10 => Just(ACK), 2 => Just(ACK | PSH), 1 => Just(ACK | FIN), 1 => Just(SYN)];
    let len = prop_oneof![10 => Just(200usize), 2 => 0usize..200, 1 => 200usize..1360];
    (0u16..2, proptest::bool::weighted(0.1), flags, len)
}

proptest! {
    #[test]
    fn nothing_is_lost_added_or_moved(stream in proptest::collection::vec(some_packet(), 0..60)) {
        let mut next = [0u32; 2];
        let packets: Vec<Vec<u8>> = stream
            .into_iter()
            .map(|(port, gap, flags, len)| {
                let sequence = &mut next[usize::from(port)];
                *sequence = sequence.wrapping_add(u32::from(gap));
                let packet = packet(port, *sequence, flags, &[], &payload(len));
                *sequence = sequence.wrapping_add(u32::try_from(len).unwrap_or(0));
                with_checksum(packet)
            })
            .collect();
        let mut back = Vec::new();
        for frame in merge(packets.clone()) {
            back.extend(cut(&frame).unwrap());
        }
        prop_assert_eq!(back, packets);
    }

    #[test]
    fn hostile_packets_never_panic(
        packets in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..120), 0..8),
        headed in any::<bool>(),
    ) {
        let mut packets: Vec<Vec<u8>> = packets
            .into_iter()
            .map(|mut bytes| {
                if headed && bytes.len() > 60 {
                    (bytes[0], bytes[4], bytes[6]) = (0x60, 0, 6);
                }
                bytes
            })
            .collect();
        let mut rest = &mut packets[..];
        while let Some(run) = run(rest) {
            prop_assert!((1..=rest.len()).contains(&run.packets));
            rest = &mut rest[run.packets..];
        }
        for packet in &packets {
            if let Some(tcp) = Tcp::of(packet) {
                let mut room = BytesMut::with_capacity(ROOM);
                let _ = split(packet, tcp, Some(7), THERE, &mut room, drop);
                let _ = crate::kernel::reset::reset(packet, tcp);
            }
        }
    }
}
