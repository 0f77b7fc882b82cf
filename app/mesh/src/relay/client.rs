//! A peer's end of one relay: registered over UDP where that passes, else connected over TLS.

use std::io::IoSlice;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::BytesMut;
use tabbify_types::MeshKey;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::frame::{Frame, HEADER_LEN, Message, Token, header, is_urgent, wrap};
use super::proof::Proofs;
use super::queue::Queue;
use crate::PrivateKey;
use crate::path::Tag;
use crate::underlay::{Socket, TRAIN_BYTES_MAX};

mod registration;
mod tls;

use registration::{Heard, Registration};

/// After so long without an answer over UDP, TLS is tried beside it.
const UDP_PATIENCE: Duration = Duration::from_secs(1);
/// From one attempt over TLS to the next, doubled up to the maximum.
const TLS_PAUSE: Duration = Duration::from_millis(500);
const TLS_PAUSE_MAX: Duration = Duration::from_secs(30);

/// A relay as its clients know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelayServer {
    /// Its key: what makes it the one that is meant.
    pub key: MeshKey,
    /// Where it relays over UDP.
    pub udp: Option<SocketAddr>,
    /// Where it relays over TLS; tried when UDP does not pass.
    pub tls: Option<RelayTls>,
}

/// Where a relay relays over TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelayTls {
    /// Its address.
    pub address: SocketAddr,
    /// The name that it is asked for by (SNI); proxies on the way may look at it.
    pub name: String,
}

/// What a frame from the relay means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arrived {
    /// A peer's datagram, behind [`super::HEADER_LEN`] bytes.
    Datagram(Tag),
    /// Done with.
    Nothing,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Link {
    server: RelayServer,
    key: PrivateKey,
    registration: Mutex<Registration>,
    queue: Mutex<Option<Arc<Queue>>>,
    /// Something is due earlier than was thought, or another way is used.
    stirred: Notify,
}

impl Link {
    /// `None` if the relay's key is none.
    pub(crate) fn new(key: &PrivateKey, server: RelayServer) -> Option<Self> {
        let proofs = Proofs::of_peer(key, server.key)?;
        let registration = Registration::new(proofs, key.public(), Instant::now());
        Some(Self {
            server,
            key: key.clone(),
            registration: Mutex::new(registration),
            queue: Mutex::default(),
            stirred: Notify::new(),
        })
    }

    /// Where its frames come from.
    pub(crate) const fn udp(&self) -> Option<SocketAddr> {
        self.server.udp
    }

    /// Whether something can be sent over it now.
    pub(crate) fn is_connected(&self) -> bool {
        self.token().is_some() || self.tls().is_some()
    }

    /// Whether it is used over UDP.
    pub(crate) fn is_udp(&self) -> bool {
        self.token().is_some()
    }

    /// Somebody doubts that it is there: asks it.
    pub(crate) fn doubt(&self) {
        self.registration().doubt(Instant::now());
        self.stirred.notify_one();
    }

    /// Takes a frame that came from its address.
    pub(crate) fn receive(&self, bytes: &[u8], socket: &Socket) -> Arrived {
        let Some(frame) = Frame::decode(bytes) else {
            return Arrived::Nothing;
        };
        match self.registration().receive(&frame, Instant::now()) {
            Heard::Datagram(tag) => return Arrived::Datagram(tag),
            Heard::Reply(reply) => self.say(&reply, socket),
            Heard::Changed => self.stirred.notify_one(),
            Heard::Nothing => {}
        }
        Arrived::Nothing
    }

    /// Sends datagrams of `segment` bytes to who has this tag; how many were taken.
    pub(crate) fn try_send(
        &self,
        tag: Tag,
        datagrams: &[IoSlice<'_>],
        segment: usize,
        socket: &Socket,
    ) -> std::io::Result<usize> {
        if let (Some(token), Some(to)) = (self.token(), self.server.udp) {
            let most = (TRAIN_BYTES_MAX / (segment + HEADER_LEN)).max(1);
            let datagrams = &datagrams[..datagrams.len().min(most)];
            let mut train = Vec::new();
            wrap(&header(token, tag), datagrams, &mut train);
            let frames: Vec<IoSlice<'_>> = train
                .chunks(segment + HEADER_LEN)
                .map(IoSlice::new)
                .collect();
            return socket.try_send(to, &frames, segment + HEADER_LEN);
        }
        let queue = self.tls().ok_or(std::io::ErrorKind::NotConnected)?;
        for payload in datagrams {
            let message = Message::Data { tag, payload }.encode();
            // What is dropped for it is lost as on any network.
            queue.push(message.into(), is_urgent(payload));
        }
        Ok(datagrams.len())
    }

    /// Keeps it connected until `stop`; tells `changed` when it begins or ceases to be.
    pub(crate) async fn run(
        &self,
        socket: &Socket,
        inlet: impl Fn(Tag, BytesMut) + Send + Sync,
        changed: impl Fn() + Send + Sync,
        stop: CancellationToken,
    ) {
        let udp = self.keep_registered(socket, &changed);
        let tls = self.keep_connected(&inlet, &changed);
        tokio::select! {
            () = udp => {}
            () = tls => {}
            () = stop.cancelled() => {}
        }
    }

    async fn keep_registered(&self, socket: &Socket, changed: &(impl Fn() + Send + Sync)) {
        if self.server.udp.is_none() {
            return std::future::pending().await;
        }
        let mut was = None;
        loop {
            let (frame, at) = {
                let (mut registration, now) = (self.registration(), Instant::now());
                (registration.poll(now), registration.poll_at())
            };
            if let Some(frame) = frame {
                self.say(&frame, socket);
            }
            let is = self.is_udp();
            if was != Some(is) {
                was = Some(is);
                changed();
            }
            tokio::select! {
                () = tokio::time::sleep_until(at) => {}
                () = self.stirred.notified() => {}
            }
        }
    }

    /// Connects over TLS while UDP does not pass.
    async fn keep_connected(
        &self,
        inlet: &(impl Fn(Tag, BytesMut) + Send + Sync),
        changed: &(impl Fn() + Send + Sync),
    ) {
        let Some(server) = &self.server.tls else {
            return std::future::pending().await;
        };
        let mut pause = TLS_PAUSE;
        if self.server.udp.is_some() {
            tokio::time::sleep(UDP_PATIENCE).await;
        }
        loop {
            if self.is_udp() {
                // Nobody tells that UDP has ceased to pass; it costs little to look.
                tokio::time::sleep(UDP_PATIENCE).await;
                pause = TLS_PAUSE;
                continue;
            }
            let began = Instant::now();
            let connected = tls::connect(&self.key, self.server.key, server).await;
            let ended = match connected {
                Ok(connection) => {
                    let queue = Arc::new(Queue::new());
                    self.set_tls(Some(Arc::clone(&queue)));
                    changed();
                    let ended = tokio::select! {
                        ended = connection.run(&queue, inlet) => Some(ended),
                        () = self.until_udp() => None,
                    };
                    self.set_tls(None);
                    changed();
                    ended
                }
                Err(error) => Some(error),
            };
            if let Some(error) = ended {
                let error = tabbify_process::chain(&error).to_string();
                tracing::debug!(relay = %self.server.key, error, "relay over TLS");
            }
            if began.elapsed() > TLS_PAUSE_MAX {
                pause = TLS_PAUSE;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(TLS_PAUSE_MAX);
        }
    }

    /// Waits until UDP has passed for a while.
    async fn until_udp(&self) {
        loop {
            tokio::time::sleep(UDP_PATIENCE).await;
            if self.is_udp() {
                return;
            }
        }
    }

    fn say(&self, frame: &[u8], socket: &Socket) {
        if let Some(to) = self.server.udp {
            // What is not sent is repeated.
            let _ = socket.try_send(to, &[IoSlice::new(frame)], frame.len());
        }
    }

    fn token(&self) -> Option<Token> {
        self.server.udp?;
        self.registration().token()
    }

    fn tls(&self) -> Option<Arc<Queue>> {
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.clone()
    }

    fn set_tls(&self, to: Option<Arc<Queue>>) {
        *self.queue.lock().unwrap_or_else(PoisonError::into_inner) = to;
    }

    fn registration(&self) -> MutexGuard<'_, Registration> {
        self.registration
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
