//! One remote key and its task: datagrams from the inbox, through the session, out again, with no
//! queue between read and send. Streams work on the session under its lock and kick the task.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use gotatun::packet::Packet;
use smoltcp::time::Instant;
use tabbify_types::MeshKey;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::endpoint::Endpoint;
use crate::kernel::Link;
use crate::path::{self, HINT_LEN, Path};
use crate::review;
use crate::session::{Outbox, Session};
use crate::stack::ConnId;
use crate::stats::{Counters, add, count};
use crate::stream::UserStream;
use crate::underlay::{Sent, TRAIN_BYTES_MAX, TRAIN_DATAGRAMS_MAX};
use crate::{Incoming, Stream};

/// LIMIT: datagrams that wait for one peer's task, in bytes with their bookkeeping.
const INBOX_BYTES_MAX: usize = 1024 * 1024;
const DATAGRAM_OVERHEAD: usize = 64;
/// LIMIT: datagrams worked off under one hold of the lock.
const BATCH: usize = 64;

/// Translates between the runtime's clock and that of the stack.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Epoch(tokio::time::Instant);

impl Epoch {
    pub(crate) fn start() -> Self {
        Self(tokio::time::Instant::now())
    }

    pub(crate) fn now(self) -> Instant {
        Instant::from_micros(i64::try_from(self.0.elapsed().as_micros()).unwrap_or(i64::MAX))
    }

    pub(crate) fn at(self, instant: Instant) -> tokio::time::Instant {
        // Rounded up: a timer that fires early would make the task spin until the microsecond ends.
        let micros = u64::try_from(instant.total_micros())
            .unwrap_or(0)
            .saturating_add(1);
        self.0 + Duration::from_micros(micros)
    }
}

pub(crate) struct Peer {
    pub(crate) key: MeshKey,
    pub(crate) epoch: Epoch,
    /// The number of its link, if the kernel's stack is in use.
    pub(crate) link: Option<u64>,
    /// What its probes are known by.
    pub(crate) hint: [u8; HINT_LEN],
    /// The first number of its spare sockets.
    pub(crate) spares: u32,
    session: Mutex<Session>,
    inbox: Mutex<Inbox>,
    kick: Notify,
    revoked: CancellationToken,
}

struct Step {
    out: Outbox,
    /// When the next one is due.
    wake: Instant,
    /// Nobody needs the session.
    over: bool,
    /// It must be looked up what the peer may reach.
    asks: bool,
}

#[derive(Default)]
struct Inbox {
    datagrams: VecDeque<(Path, Packet)>,
    bytes: usize,
}

impl Peer {
    pub(crate) fn new(key: MeshKey, epoch: Epoch, session: Session) -> Self {
        let link = session.link.as_ref().map(Link::number);
        let (hint, spares) = (session.agent.inward_hint(), session.agent.spares());
        let (session, inbox) = (Mutex::new(session), Mutex::default());
        Self {
            key,
            epoch,
            link,
            hint,
            spares,
            session,
            inbox,
            kick: Notify::new(),
            revoked: CancellationToken::new(),
        }
    }

    /// The session. Held for one operation, never across an await.
    pub(crate) fn session(&self) -> MutexGuard<'_, Session> {
        // A panic in the task ends the session; its streams must still see that.
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the task look at the session.
    pub(crate) fn kick(&self) {
        self.kick.notify_one();
    }

    /// Ends the task, and with it every connection.
    pub(crate) fn revoke(&self) {
        self.revoked.cancel();
    }

    /// Hands a datagram to the task; `false` if its inbox is full.
    pub(crate) fn deliver(&self, from: Path, datagram: Packet) -> bool {
        let mut inbox = self.inbox();
        let bytes = datagram.len() + DATAGRAM_OVERHEAD;
        if inbox.bytes + bytes > INBOX_BYTES_MAX {
            return false;
        }
        inbox.bytes += bytes;
        inbox.datagrams.push_back((from, datagram));
        drop(inbox);
        self.kick();
        true
    }

    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, batch: &mut Vec<(Path, Packet)>) {
        let mut inbox = self.inbox();
        let n = inbox.datagrams.len().min(BATCH);
        batch.extend(inbox.datagrams.drain(..n));
        let bytes: usize = batch
            .iter()
            .map(|(_, packet)| packet.len() + DATAGRAM_OVERHEAD)
            .sum();
        inbox.bytes -= bytes;
    }

    /// The task: until the endpoint stops, or nobody needs the session.
    pub(crate) async fn run(self: Arc<Self>, endpoint: Arc<Endpoint>) {
        let _ends = Ends {
            peer: &self,
            endpoint: &endpoint,
        };
        tracing::debug!("session begins");
        let mut batch = Vec::new();
        loop {
            self.take(&mut batch);
            let full = batch.len() == BATCH;
            let Step {
                out,
                wake,
                over,
                asks,
            } = self.step(&mut batch, &endpoint);
            if asks {
                review::look_up(&endpoint, self.key);
            }
            self.dispatch(out, &endpoint).await;
            if full || wake <= self.epoch.now() {
                // More to do, after the others had their turn.
                tokio::task::consume_budget().await;
                continue;
            }
            if over && endpoint.forget_if_over(&self) {
                return;
            }
            tokio::select! {
                () = self.kick.notified() => {}
                () = tokio::time::sleep_until(self.epoch.at(wake)) => {}
                () = self.revoked.cancelled() => return,
                () = endpoint.stop.cancelled() => return,
            }
        }
    }

    fn step(&self, batch: &mut Vec<(Path, Packet)>, endpoint: &Endpoint) -> Step {
        let mut out = Outbox::default();
        let mut session = self.session();
        let now = self.epoch.now();
        for (from, datagram) in batch.drain(..) {
            if path::hint(&datagram).is_some() {
                session.probe(from, &datagram, &mut out, now);
                continue;
            }
            match datagram.try_into_wg() {
                Ok(message) => {
                    session.receive(from, message, &endpoint.listeners, &mut out, now);
                }
                Err(_) => count(&endpoint.ours.counters.dropped_malformed),
            }
        }
        session.poll(&mut out, now);
        if session.is_empty() {
            endpoint.quiet.notify_waiters();
        }
        Step {
            out,
            wake: session.poll_at(now),
            over: session.is_over(now),
            asks: session.take_asks(),
        }
    }

    async fn dispatch(self: &Arc<Self>, mut out: Outbox, endpoint: &Endpoint) {
        // Before the messages that tell the peer about them.
        endpoint.route(&out.indices, self);
        for (id, seat) in out.accepted {
            if let Some(incoming) = self.incoming(id) {
                count(&endpoint.ours.counters.accepted);
                seat.send(incoming);
            }
        }
        if let Some(kernel) = &endpoint.kernel {
            // What came over a relay, or while the keys were made.
            kernel.write(&mut out.inner, &endpoint.ours.counters);
        }
        send_all(&out.datagrams, endpoint).await;
        if let Some((first, keep)) = out.release {
            endpoint.underlay.release(first, &keep);
        }
    }

    fn incoming(self: &Arc<Self>, id: ConnId) -> Option<Incoming> {
        let (endpoints, is_node) = {
            let mut session = self.session();
            (session.stack.endpoints(id), session.is_node())
        };
        // Taken over before the question is answered, so that it is let go of in any case.
        let stream = Stream::user(UserStream::new(Arc::clone(self), id));
        let (local, remote) = endpoints?;
        Some(Incoming {
            stream,
            peer: self.key,
            is_node,
            remote,
            local,
        })
    }
}

/// Couples datagrams to trains and sends them.
pub(crate) async fn send_all(datagrams: &[(Path, Packet)], endpoint: &Endpoint) {
    let mut rest = datagrams;
    while let Some((path, _)) = rest.first() {
        let train = couple(rest);
        let slices: Vec<IoSlice<'_>> = train.iter().map(|(_, d)| IoSlice::new(d)).collect();
        let sent = endpoint.send(*path, &slices, slices[0].len()).await;
        note_sent(&endpoint.ours.counters, *path, train.len(), sent);
        rest = &rest[train.len()..];
    }
}

/// The first datagrams that can travel as a train, at least one: on one path, of one size but the
/// last, which may be shorter.
pub(crate) fn couple(datagrams: &[(Path, Packet)]) -> &[(Path, Packet)] {
    let Some((path, first)) = datagrams.first() else {
        return datagrams;
    };
    let (segment, mut n, mut bytes) = (first.len(), 0, 0);
    for (next, datagram) in datagrams {
        let fits = bytes + datagram.len() <= TRAIN_BYTES_MAX && n < TRAIN_DATAGRAMS_MAX;
        if next != path || n > 0 && !fits || datagram.len() > segment {
            break;
        }
        bytes += datagram.len();
        n += 1;
        if datagram.len() < segment {
            break;
        }
    }
    &datagrams[..n]
}

/// Counts a train of which this was sent. What was not is as lossy as the network, so retransmission
/// and timeouts deal with it.
pub(crate) fn note_sent(counters: &Counters, path: Path, datagrams: usize, sent: Sent) {
    add(&counters.datagrams_out, sent.datagrams as u64);
    add(&counters.bytes_out, sent.bytes as u64);
    add(
        &counters.dropped_unsent,
        (datagrams - sent.datagrams) as u64,
    );
    if path.is_relayed() {
        add(&counters.relayed_out, sent.datagrams as u64);
    }
}

/// However the task ends, nobody waits for it any more.
struct Ends<'a> {
    peer: &'a Arc<Peer>,
    endpoint: &'a Endpoint,
}

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.endpoint.forget(self.peer);
        self.peer.session().abort_all();
        tracing::debug!("session ends");
    }
}
