//! From the UDP socket to the peers: one task reads and only looks at what kind of message it is;
//! another, behind a bounded queue, does the work that strangers can cause.

use std::io::IoSlice;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use gotatun::noise::handshake::parse_handshake_anon;
use gotatun::packet::{Packet, WgHandshakeInit, WgKind};
use gotatun::x25519::PublicKey;
use tabbify_api::mesh::ResolveError;
use tabbify_process::Importance;
use tabbify_types::MeshKey;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Instant;

use crate::endpoint::Endpoint;
use crate::intake::{Intake, Verdict};
use crate::path::{self, Hint, PROBE, Path};
use crate::peer::note_sent;
use crate::stats::{add, count};
use crate::survey;
use crate::underlay::{Opened, TRAIN_ROOM};

/// LIMIT: handshake messages that wait to be verified.
pub(crate) const HANDSHAKES_WAITING_MAX: usize = 256;
/// How long handshake messages gather when there are too many of them.
const LULL: Duration = Duration::from_millis(2);
/// LIMIT: strangers that are being looked up at once, and for how long each.
const LOOKUPS_MAX: usize = 64;
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);
/// LIMIT: answers about one initiation that a change overtakes; then it is dropped, and the peer repeats it.
const OVERTAKEN_MAX: usize = 16;
/// LIMIT: errors of the socket in a row after which it counts as broken. Single ones are old ICMP
/// messages.
pub(crate) const ERRORS_MAX: usize = 1000;

pub(crate) type Handshake = (Path, Packet);

/// What a datagram claims to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Message {
    /// Of a handshake: to be verified first.
    Handshake,
    /// The reply to a handshake of the session with this index: prove where you are.
    Cookie(u32),
    /// For the session with this index.
    Data(u32),
    /// Of a path agent, for the session whose peer it is known by.
    Probe(Hint),
    /// Perhaps of a STUN server or the NAT.
    Answer,
    Malformed,
}

pub(crate) fn classify(bytes: &[u8]) -> Message {
    let index = |at| {
        bytes
            .get(at..at + 4)
            .and_then(|b| b.try_into().ok())
            .map(u32::from_le_bytes)
    };
    match (bytes.first(), bytes.len()) {
        (Some(1), 148) | (Some(2), 92) => Message::Handshake,
        (Some(3), 64) => index(4).map_or(Message::Malformed, Message::Cookie),
        (Some(4), 32..) => index(4).map_or(Message::Malformed, Message::Data),
        (Some(&PROBE), _) => path::hint(bytes).map_or(Message::Malformed, Message::Probe),
        // PCP, NAT-PMP and STUN: they are told apart by who was asked what.
        (Some(0..=2), ..=548) if bytes.get(1).is_some_and(|kind| *kind != 0) => Message::Answer,
        _ => Message::Malformed,
    }
}

/// Reads datagrams until the endpoint stops, or the socket is broken.
pub(crate) async fn read(endpoint: Arc<Endpoint>, handshakes: mpsc::Sender<Handshake>) {
    let Some(watched) = &endpoint.watched else {
        return;
    };
    let mut room = vec![0; TRAIN_ROOM];
    let mut errors = 0;
    while errors < ERRORS_MAX {
        let received = tokio::select! {
            received = watched.receive(&mut room) => received,
            () = endpoint.stop.cancelled() => return,
        };
        match received {
            Ok(train) => {
                errors = 0;
                if train.len == 0 {
                    count(&endpoint.ours.counters.datagrams_in);
                    count(&endpoint.ours.counters.dropped_malformed);
                }
                for datagram in room[..train.len].chunks(train.segment) {
                    note_arrival(&endpoint, datagram.len());
                    if let Opened::Datagram(path, at) = endpoint.underlay.open(train.from, datagram)
                    {
                        let packet = Packet::from_bytes(BytesMut::from(&datagram[at..]));
                        sort(&endpoint, &handshakes, path, packet);
                    }
                }
            }
            Err(error) => {
                errors += 1;
                tracing::debug!(%error, "receiving failed");
            }
        }
    }
    tracing::error!("the WireGuard socket is broken");
}

/// Takes what does not come through the socket.
pub(crate) fn take(
    endpoint: &Endpoint,
    handshakes: &mpsc::Sender<Handshake>,
    path: Path,
    datagram: BytesMut,
) {
    note_arrival(endpoint, datagram.len());
    sort(endpoint, handshakes, path, Packet::from_bytes(datagram));
}

pub(crate) fn note_arrival(endpoint: &Endpoint, bytes: usize) {
    count(&endpoint.ours.counters.datagrams_in);
    add(&endpoint.ours.counters.bytes_in, bytes as u64);
}

/// Hands a datagram to who is to have it.
pub(crate) fn sort(
    endpoint: &Endpoint,
    handshakes: &mpsc::Sender<Handshake>,
    path: Path,
    datagram: Packet,
) {
    let counters = &endpoint.ours.counters;
    if path.is_relayed() {
        count(&counters.relayed_in);
    }
    match classify(&datagram) {
        Message::Cookie(index) | Message::Data(index) => endpoint.deliver(index, path, datagram),
        Message::Handshake => {
            if handshakes.try_send((path, datagram)).is_err() {
                count(&counters.dropped_overload);
            }
        }
        Message::Probe(hint) => endpoint.deliver_probe(hint, path, datagram),
        Message::Answer => match path {
            Path::Direct(from) if survey::hear(endpoint, from, &datagram) => {}
            _ => count(&counters.dropped_malformed),
        },
        Message::Malformed => count(&counters.dropped_malformed),
    }
}

/// Verifies handshake messages, and has the senders of initiations looked up.
pub(crate) async fn verify(endpoint: Arc<Endpoint>, mut handshakes: mpsc::Receiver<Handshake>) {
    let lookups = Arc::new(Semaphore::new(LOOKUPS_MAX));
    let counters = &endpoint.ours.counters;
    let (limiter, public) = (&endpoint.ours.limiter, PublicKey::from(endpoint.public.0));
    let most = endpoint.ours.limits.handshakes_per_second;
    let mut intake = Intake::new(Arc::clone(limiter), &public, most, Instant::now());
    loop {
        let (from, packet) = tokio::select! {
            Some(handshake) = handshakes.recv() => handshake,
            () = endpoint.stop.cancelled() => return,
        };
        match intake.judge(from.stand_in(), packet, Instant::now()) {
            Verdict::Initiation(initiation) => match Arc::clone(&lookups).try_acquire_owned() {
                Ok(permit) => look_up(&endpoint, from, initiation, permit),
                Err(_) => count(&counters.dropped_overload),
            },
            Verdict::Response(response) => {
                endpoint.deliver(response.receiver_idx.get(), from, response.into());
            }
            Verdict::Cookie(cookie) => {
                count(&counters.dropped_rate_limited);
                let sent = endpoint
                    .send(from, &[IoSlice::new(&cookie)], cookie.len())
                    .await;
                note_sent(counters, from, 1, sent);
            }
            Verdict::TooMany => count(&counters.dropped_rate_limited),
            Verdict::Forged => count(&counters.dropped_handshake),
            Verdict::Malformed => count(&counters.dropped_malformed),
        }
        if intake.is_flooded() && handshakes.is_empty() {
            // To be woken for each takes longer than to judge it.
            tokio::time::sleep(LULL).await;
        }
    }
}

fn look_up(
    endpoint: &Arc<Endpoint>,
    from: Path,
    initiation: Packet<WgHandshakeInit>,
    permit: OwnedSemaphorePermit,
) {
    let counters = &endpoint.ours.counters;
    let (secret, public) = (
        endpoint.ours.key.secret(),
        PublicKey::from(endpoint.public.0),
    );
    let Ok(half) = parse_handshake_anon(secret, &public, &initiation) else {
        count(&counters.dropped_handshake);
        return;
    };
    let key = MeshKey(half.peer_static_public);
    let endpoint = Arc::clone(endpoint);
    let tasks = endpoint.tasks.clone();
    tasks.spawn("mesh-lookup", Importance::Detached, async move {
        let _permit = permit;
        let mut initiation = WgKind::HandshakeInit(initiation);
        // Asked again if something has changed meanwhile: the answer may be from before.
        for _ in 0..OVERTAKEN_MAX {
            let asked = endpoint.doubts.ask();
            let record = tokio::time::timeout(LOOKUP_TIMEOUT, endpoint.resolver.by_key(key)).await;
            match record {
                Ok(Ok(record)) if record.key == key => {
                    match endpoint.admit(&record, asked, from, initiation) {
                        None => return,
                        Some(overtaken) => initiation = overtaken,
                    }
                }
                // Nobody tells: that takes the word back from nobody who had it.
                Err(_) | Ok(Err(ResolveError::Unreachable(_) | ResolveError::Refused(_))) => {
                    tracing::debug!(peer = %key, "peer not looked up");
                    return endpoint.readmit(key, from, initiation.into());
                }
                Ok(refusal) => {
                    if endpoint.refuse(key, asked) {
                        tracing::debug!(peer = %key, ?refusal, "peer refused");
                        count(&endpoint.ours.counters.dropped_unknown_key);
                        return;
                    }
                }
            }
        }
        count(&endpoint.ours.counters.dropped_overload);
    });
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn kinds() {
        let message = |kind, len| {
            let mut bytes = vec![0; len];
            bytes[0] = kind;
            bytes[4..8].copy_from_slice(&[1, 2, 3, 4]);
            classify(&bytes)
        };
        assert_eq!(message(1, 148), Message::Handshake);
        assert_eq!(message(2, 92), Message::Handshake);
        assert_eq!(message(3, 64), Message::Cookie(0x0403_0201));
        assert_eq!(message(4, 32), Message::Data(0x0403_0201));
        assert_eq!(message(4, 31), Message::Malformed);
        assert_eq!(message(1, 147), Message::Malformed);
        assert_eq!(classify(&[]), Message::Malformed);
    }

    proptest! {
        #[test]
        fn what_is_not_malformed_is_a_message_of_the_engine(
            kind in 0u8..6,
            rest in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let mut bytes = vec![kind];
            bytes.extend(rest);
            let known = Packet::from_bytes(BytesMut::from(&bytes[..])).try_into_wg().is_ok();
            let taken = !matches!(classify(&bytes), Message::Malformed | Message::Answer);
            prop_assert_eq!(taken, known);
        }
    }
}
