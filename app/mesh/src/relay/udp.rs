//! The relay's UDP side: trains in, trains out, one system call each; no cryptography per datagram.

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use tabbify_process::Importance;
use tabbify_types::MeshKey;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

use super::bucket::Bucket;
use super::clients::{Client, Way};
use super::frame::{
    COOKIE_LEN, Frame, HEADER_LEN, Message, NONCE_LEN, PAYLOAD_LEN_MAX, header, is_urgent,
};
use super::proof::{self, Proofs};
use super::server::Shared;
use super::stats::{add, count};
use crate::path::Tag;
use crate::stun;
use crate::underlay::{Socket, TRAIN_DATAGRAMS_MAX, TRAIN_ROOM, Train, watch};

/// A cookie is good for one to two times this long.
const SECRET_FOR: Duration = Duration::from_secs(60);
/// LIMIT: source addresses whose proofs are counted; with more, strangers wait a second.
const SOURCES_MAX: usize = 4096;
/// LIMIT: errors of the socket in a row after which it counts as broken.
const ERRORS_MAX: usize = 1000;

/// See the module.
pub(super) struct Server {
    shared: Arc<Shared>,
    socket: Arc<Socket>,
    watched: AsyncFd<OwnedFd>,
    /// The current key of the cookies, and the one before.
    secrets: [[u8; 32]; 2],
    secret_since: Instant,
    answers: Bucket,
    proofs: HashMap<IpAddr, u64>,
    proofs_since: Instant,
}

/// What a datagram is to be done with.
enum Order {
    Nothing,
    Reply(Vec<u8>),
    Relay(Arc<Client>, Tag),
}

impl Server {
    pub(super) fn new(shared: Arc<Shared>, socket: Socket) -> io::Result<Self> {
        let (socket, now) = (Arc::new(socket), Instant::now());
        let rate = shared.limits.answers_per_second;
        Ok(Self {
            shared,
            watched: watch(socket.as_fd())?,
            socket,
            secrets: [tabbify_process::random(), tabbify_process::random()],
            secret_since: now,
            answers: Bucket::new(rate, rate, now),
            proofs: HashMap::new(),
            proofs_since: now,
        })
    }

    /// Serves until the relay's tasks end, or the socket is broken.
    pub(super) async fn run(mut self) {
        let (mut room, mut errors) = (vec![0; TRAIN_ROOM], 0);
        let stopped = self.shared.tasks.token();
        while errors < ERRORS_MAX {
            let receive = |_: &OwnedFd| self.socket.try_receive(&mut room);
            let received = tokio::select! {
                received = self.watched.async_io(Interest::READABLE, receive) => received,
                () = stopped.cancelled() => return,
            };
            match received {
                Ok(train) => {
                    errors = 0;
                    self.take(train, &mut room);
                }
                Err(error) => {
                    errors += 1;
                    tracing::debug!(%error, "receiving failed");
                }
            }
        }
        tracing::error!("the relay's socket is broken");
    }

    /// Works a train off: runs of datagrams for one receiver are passed on as a train.
    fn take(&mut self, train: Train, room: &mut [u8]) {
        let now = Instant::now();
        let bytes = &mut room[..train.len];
        let (mut at, mut run) = (0, None::<(Arc<Client>, Tag, usize)>);
        while at < bytes.len() {
            let end = (at + train.segment).min(bytes.len());
            match self.order(train.from, &bytes[at..end], now) {
                Order::Relay(client, tag) => {
                    let goes_on = run.as_ref().is_some_and(|(_, to, _)| *to == tag);
                    if !goes_on {
                        self.relay(run.take(), bytes, at, train.segment, now);
                        run = Some((client, tag, at));
                    }
                }
                order => {
                    self.relay(run.take(), bytes, at, train.segment, now);
                    if let Order::Reply(reply) = order {
                        let _ =
                            self.socket
                                .try_send(train.from, &[IoSlice::new(&reply)], reply.len());
                    }
                }
            }
            at = end;
        }
        self.relay(run, bytes, train.len, train.segment, now);
    }

    /// Passes the run on that ends at `end`.
    fn relay(
        &self,
        run: Option<(Arc<Client>, Tag, usize)>,
        bytes: &mut [u8],
        end: usize,
        segment: usize,
        now: Instant,
    ) {
        let Some((client, tag, begin)) = run else {
            return;
        };
        let counters = &self.shared.counters;
        let run = &mut bytes[begin..end];
        let n = run.len().div_ceil(segment);
        if !client.may_send(run.len(), now) {
            return add(&counters.dropped_rate, n as u64);
        }
        client.heard_on_udp(now);
        let Some(receiver) = self.shared.clients.by_tag(tag) else {
            return add(&counters.dropped_absent, n as u64);
        };
        match receiver.way() {
            Some(Way::Udp(socket, to)) => {
                // The same frames with another header, of the same length.
                let header = header(receiver.token, client.tag);
                for frame in run.chunks_mut(segment) {
                    frame[..HEADER_LEN].copy_from_slice(&header);
                }
                let mut frames = run.chunks(segment).peekable();
                while frames.peek().is_some() {
                    let train: Vec<IoSlice<'_>> = frames
                        .by_ref()
                        .take(TRAIN_DATAGRAMS_MAX)
                        .map(IoSlice::new)
                        .collect();
                    let taken = socket.try_send(to, &train, segment).unwrap_or(0);
                    let lens = train[..taken].iter().map(|frame| frame.len() - HEADER_LEN);
                    add(&counters.datagrams, taken as u64);
                    add(&counters.bytes, lens.sum::<usize>() as u64);
                    add(&counters.dropped_queue, (train.len() - taken) as u64);
                }
            }
            Some(Way::Tls(queue)) => {
                for frame in run.chunks(segment) {
                    let payload = &frame[HEADER_LEN..];
                    let tag = client.tag;
                    let message = Message::Data { tag, payload }.encode();
                    let dropped = queue.push(message.into(), is_urgent(payload));
                    count(&counters.datagrams);
                    add(&counters.bytes, payload.len() as u64);
                    add(&counters.dropped_queue, dropped);
                }
            }
            None => add(&counters.dropped_absent, n as u64),
        }
    }

    fn order(&mut self, from: SocketAddr, datagram: &[u8], now: Instant) -> Order {
        let counters = &self.shared.counters;
        let frame = match Frame::decode(datagram) {
            Some(frame) => frame,
            None if self.answers.take(1, now) => {
                if let Some(answer) = stun::answer(datagram, from) {
                    count(&counters.stun);
                    return Order::Reply(answer);
                }
                count(&counters.dropped_malformed);
                return Order::Nothing;
            }
            None => {
                count(&counters.refused_limit);
                return Order::Nothing;
            }
        };
        match frame {
            Frame::Data {
                token,
                tag,
                payload,
            } => {
                debug_assert!(payload.len() <= PAYLOAD_LEN_MAX);
                if let Some(client) = self.shared.clients.by_place(from, token) {
                    return Order::Relay(client, tag);
                }
                count(&counters.dropped_malformed);
                Order::Nothing
            }
            Frame::Keep { token } => match self.shared.clients.by_place(from, token) {
                Some(client) => {
                    client.heard_on_udp(now);
                    Order::Reply(Frame::Kept { token }.encode())
                }
                None => Order::Nothing,
            },
            Frame::Hello { key, nonce } => {
                if !self.answers.take(1, now) {
                    count(&counters.refused_limit);
                    return Order::Nothing;
                }
                self.renew_secrets(now);
                let cookie = cookie(&self.secrets[0], from, &key, &nonce);
                Order::Reply(Frame::Cookie { nonce, cookie }.encode())
            }
            Frame::Prove {
                key,
                nonce,
                cookie,
                mac,
            } => {
                self.prove(from, key, &nonce, &cookie, &mac, now);
                Order::Nothing
            }
            // What only relays say.
            Frame::Cookie { .. } | Frame::Welcome { .. } | Frame::Kept { .. } => {
                count(&counters.dropped_malformed);
                Order::Nothing
            }
        }
    }

    /// Registers who proves its key, once it is known to be somebody.
    fn prove(
        &mut self,
        from: SocketAddr,
        key: [u8; 32],
        nonce: &[u8; NONCE_LEN],
        given: &[u8; COOKIE_LEN],
        mac: &[u8; 32],
        now: Instant,
    ) {
        self.renew_secrets(now);
        let counters = &self.shared.counters;
        // First what costs little: is it where it says, and did we ask?
        let is_ours = |secret| cookie(secret, from, &key, nonce) == *given;
        if !self.secrets.iter().any(is_ours) {
            return count(&counters.refused_proof);
        }
        if !self.may_prove(from.ip(), now) {
            return count(&self.shared.counters.refused_limit);
        }
        let key = MeshKey(key);
        let proofs = Proofs::of_relay(&self.shared.key, key);
        let parts: &[&[u8]] = &[b"udp", nonce, given];
        let Some(proofs) = proofs.filter(|p| proof::is_equal(&p.by_peer(parts), mac)) else {
            return count(&self.shared.counters.refused_proof);
        };
        let (shared, socket) = (Arc::clone(&self.shared), Arc::clone(&self.socket));
        let (nonce, given, tasks) = (*nonce, *given, shared.tasks.clone());
        tasks.spawn("relay-lookup", Importance::Detached, async move {
            let Some(known) = shared.look_up(key).await else {
                return;
            };
            let now = Instant::now();
            match shared.clients.register_udp(key, &socket, from, now) {
                Ok(client) if shared.is_overtaken(&client, &known) => {}
                Ok(client) => {
                    count(&shared.counters.registered_udp);
                    let token = client.token;
                    let mac = proofs.by_relay(&[b"udp", &nonce, &given, &token]);
                    let welcome = Frame::Welcome { nonce, token, mac }.encode();
                    let _ = socket.try_send(from, &[IoSlice::new(&welcome)], welcome.len());
                }
                Err(refusal) => shared.refuse(refusal),
            }
        });
    }

    fn may_prove(&mut self, from: IpAddr, now: Instant) -> bool {
        if now >= self.proofs_since + Duration::from_secs(1) {
            self.proofs_since = now;
            self.proofs.clear();
        }
        if self.proofs.len() >= SOURCES_MAX && !self.proofs.contains_key(&from) {
            return false;
        }
        let n = self.proofs.entry(from).or_default();
        *n += 1;
        *n <= self.shared.limits.proofs_per_second
    }

    fn renew_secrets(&mut self, now: Instant) {
        if now >= self.secret_since + SECRET_FOR {
            self.secret_since = now;
            self.secrets = [tabbify_process::random(), self.secrets[0]];
        }
    }
}

/// What proves that its bearer receives what is sent to this address.
fn cookie(
    secret: &[u8; 32],
    from: SocketAddr,
    key: &[u8; 32],
    nonce: &[u8; NONCE_LEN],
) -> [u8; COOKIE_LEN] {
    let ip = match from.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    let port = from.port().to_be_bytes();
    let mac = proof::mac(secret, &[&ip.octets(), &port, key, nonce]);
    let mut cookie = [0; COOKIE_LEN];
    cookie.copy_from_slice(&mac[..COOKIE_LEN]);
    cookie
}
