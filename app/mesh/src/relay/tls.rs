//! Relaying over TLS: a WebSocket on port 443 passes where nothing else does. The certificate proves
//! nothing here: who is at the other end is proven by keys, over a value that only the two ends of
//! this very connection have (RFC 9266), so that a third in the middle cannot be one of them.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Sink, SinkExt as _, Stream, StreamExt as _};
use tabbify_process::Importance;
use tabbify_types::MeshKey;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::{ConnectionCommon, ServerConfig, SideData};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error as WsError, Message as WsMessage};
use tokio_tungstenite::{WebSocketStream, accept_async_with_config};

use super::clients::{Client, Way};
use super::frame::{
    CHALLENGE_LEN, MESSAGE_HEADER_LEN, Message, PAYLOAD_LEN_MAX, header, is_urgent,
};
use super::proof::{self, Proofs};
use super::queue::Queue;
use super::server::{LookedUp, Shared};
use super::stats::{add, count};

/// LIMIT: from the connection to the proof.
pub(super) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// LIMIT: bytes that the kernel holds unsent: more of them would wait where nothing can pass them.
const UNSENT_BYTES_MAX: u32 = 16 * 1024;
/// Messages up to so many bytes go into one write.
const WRITE_BYTES: usize = 16 * 1024;
/// Asks the other end whether it lives, and LIMIT: how long it may be silent.
const PING_EVERY: Duration = Duration::from_secs(20);
const SILENCE_MAX: Duration = Duration::from_secs(50);
/// How long nothing is accepted after the operating system had no descriptor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const EXPORTER: &[u8] = b"EXPORTER-Channel-Binding";

/// Why a connection to or at a relay ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum TlsError {
    #[error("the connection failed")]
    Io(#[from] io::Error),
    #[error("the WebSocket failed")]
    Socket(#[source] Box<WsError>),
    #[error("the other end said something that is not of the protocol")]
    Protocol,
    #[error("the other end did not prove that it holds its key")]
    Proof,
    #[error("the other end is not known or there are too many")]
    Refused,
    #[error("the other end was silent for too long")]
    Silent,
    #[error("the connection has ended")]
    Ended,
}

impl From<WsError> for TlsError {
    fn from(error: WsError) -> Self {
        Self::Socket(Box::new(error))
    }
}

pub(super) fn websocket() -> WebSocketConfig {
    let most = MESSAGE_HEADER_LEN + PAYLOAD_LEN_MAX;
    WebSocketConfig::default()
        .max_message_size(Some(most))
        .max_frame_size(Some(most))
        .read_buffer_size(WRITE_BYTES)
        .write_buffer_size(WRITE_BYTES)
        .max_write_buffer_size(8 * WRITE_BYTES)
}

/// Makes a TCP connection fit for relaying.
pub(super) fn prepare(tcp: &TcpStream) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    socket2::SockRef::from(tcp).set_tcp_notsent_lowat(UNSENT_BYTES_MAX)
}

/// What only the two ends of this connection have.
pub(super) fn binding<D: SideData>(connection: &ConnectionCommon<D>) -> io::Result<[u8; 32]> {
    connection
        .export_keying_material([0; 32], EXPORTER, Some(&[]))
        .map_err(io::Error::other)
}

/// Accepts connections until the relay's tasks end.
pub(super) async fn accept(shared: Arc<Shared>, listener: TcpListener, config: Arc<ServerConfig>) {
    let (acceptor, stopped) = (TlsAcceptor::from(config), shared.tasks.token());
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stopped.cancelled() => return,
        };
        let (tcp, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "connection not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(permit) = Arc::clone(&shared.connections).try_acquire_owned() else {
            count(&shared.counters.refused_limit);
            continue;
        };
        let (shared, acceptor, stopped) = (Arc::clone(&shared), acceptor.clone(), stopped.clone());
        let tasks = shared.tasks.clone();
        tasks.spawn("relay-client", Importance::Detached, async move {
            let _permit = permit;
            let served = serve(&shared, &acceptor, tcp);
            tokio::select! {
                ended = Box::pin(served) => if let Err(error) = ended {
                    let error = tabbify_process::chain(&error).to_string();
                    tracing::debug!(%from, error, "relay connection ended");
                },
                () = stopped.cancelled() => {}
            }
        });
    }
}

async fn serve(shared: &Shared, acceptor: &TlsAcceptor, tcp: TcpStream) -> Result<(), TlsError> {
    let greet = async {
        prepare(&tcp)?;
        let tls = acceptor.accept(tcp).await?;
        let binding = binding(tls.get_ref().1)?;
        let mut socket = accept_async_with_config(tls, Some(websocket())).await?;
        let greeted = greet(shared, &mut socket, &binding).await?;
        Ok::<_, TlsError>((socket, greeted))
    };
    let greeted = tokio::time::timeout(HANDSHAKE_TIMEOUT, greet).await;
    let (
        mut socket,
        Greeted {
            key,
            welcome,
            known,
        },
    ) = greeted.map_err(|_| TlsError::Silent)??;
    let queue = Arc::new(Queue::new());
    let client = shared
        .clients
        .register_tls(key, &queue, Instant::now())
        .map_err(|refusal| {
            shared.refuse(refusal);
            TlsError::Refused
        })?;
    count(&shared.counters.registered_tls);
    let leaves = Leaves {
        shared,
        client: &client,
        queue: &queue,
    };
    if shared.is_overtaken(&client, &known) {
        return Err(TlsError::Refused);
    }
    socket.send(WsMessage::binary(welcome)).await?;
    let (sink, stream) = socket.split();
    let take = |message: &[u8]| pass(shared, &client, message);
    let ended = tokio::select! {
        ended = write(sink, &queue) => ended,
        ended = read(stream, take) => ended,
    };
    drop(leaves);
    ended
}

/// However a connection ends, its peer is not there any more.
struct Leaves<'a> {
    shared: &'a Shared,
    client: &'a Arc<Client>,
    queue: &'a Arc<Queue>,
}

impl Drop for Leaves<'_> {
    fn drop(&mut self) {
        self.queue.close();
        self.shared.clients.leave_tls(self.client, self.queue);
    }
}

/// A peer that has proven its key, and that the mesh knows.
struct Greeted {
    key: MeshKey,
    /// Proves ours.
    welcome: Vec<u8>,
    /// What the mesh knows of it, and when that was asked for.
    known: LookedUp,
}

/// Challenges the peer.
async fn greet<S>(
    shared: &Shared,
    socket: &mut WebSocketStream<S>,
    binding: &[u8; 32],
) -> Result<Greeted, TlsError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let asked: [u8; CHALLENGE_LEN] = tabbify_process::random();
    socket
        .send(WsMessage::binary(Message::Challenge(asked).encode()))
        .await?;
    let proof = next(socket).await?;
    let Some(Message::Prove {
        key,
        challenge,
        mac,
    }) = Message::decode(&proof)
    else {
        count(&shared.counters.dropped_malformed);
        return Err(TlsError::Protocol);
    };
    let key = MeshKey(key);
    let proofs = Proofs::of_relay(&shared.key, key);
    let parts: &[&[u8]] = &[b"tls", &asked, &challenge, binding];
    let Some(proofs) = proofs.filter(|p| proof::is_equal(&p.by_peer(parts), &mac)) else {
        count(&shared.counters.refused_proof);
        return Err(TlsError::Proof);
    };
    let known = shared.look_up(key).await.ok_or(TlsError::Refused)?;
    let mac = proofs.by_relay(parts);
    let welcome = Message::Welcome(mac).encode();
    Ok(Greeted {
        key,
        welcome,
        known,
    })
}

/// The next binary message.
pub(super) async fn next<S>(socket: &mut S) -> Result<Bytes, TlsError>
where
    S: Stream<Item = Result<WsMessage, WsError>> + Unpin,
{
    loop {
        match socket.next().await.ok_or(TlsError::Ended)?? {
            WsMessage::Binary(bytes) => return Ok(bytes),
            WsMessage::Ping(_) | WsMessage::Pong(_) => {}
            WsMessage::Close(_) => return Err(TlsError::Ended),
            WsMessage::Text(_) | WsMessage::Frame(_) => return Err(TlsError::Protocol),
        }
    }
}

/// Passes a peer's datagram on.
fn pass(shared: &Shared, client: &Client, message: &[u8]) {
    let (counters, now) = (&shared.counters, Instant::now());
    let Some(Message::Data { tag, payload }) = Message::decode(message) else {
        return count(&counters.dropped_malformed);
    };
    client.heard_on_tls(now);
    if !client.may_send(message.len(), now) {
        return count(&counters.dropped_rate);
    }
    let receiver = shared.clients.by_tag(tag);
    let way = receiver.as_ref().and_then(|receiver| receiver.way());
    match (receiver, way) {
        (Some(receiver), Some(Way::Udp(socket, to))) => {
            let header = header(receiver.token, client.tag);
            let mut frame = Vec::with_capacity(header.len() + payload.len());
            frame.extend_from_slice(&header);
            frame.extend_from_slice(payload);
            match socket.try_send(to, &[io::IoSlice::new(&frame)], frame.len()) {
                Ok(_) => {
                    count(&counters.datagrams);
                    add(&counters.bytes, payload.len() as u64);
                }
                Err(_) => count(&counters.dropped_queue),
            }
        }
        (Some(_), Some(Way::Tls(queue))) => {
            let tag = client.tag;
            let message = Message::Data { tag, payload }.encode();
            let dropped = queue.push(message.into(), is_urgent(payload));
            count(&counters.datagrams);
            add(&counters.bytes, payload.len() as u64);
            add(&counters.dropped_queue, dropped);
        }
        _ => count(&counters.dropped_absent),
    }
}

/// Writes what waits in the queue, and asks now and then whether the other end lives. A message is
/// taken out of the queue only when the one before it has left for the kernel.
pub(super) async fn write<S>(mut sink: S, queue: &Queue) -> Result<(), TlsError>
where
    S: Sink<WsMessage, Error = WsError> + Unpin,
{
    let mut ask = tokio::time::interval(PING_EVERY);
    ask.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            message = queue.pop() => {
                let mut message = message.ok_or(TlsError::Ended)?;
                let mut bytes = 0;
                loop {
                    bytes += message.len();
                    sink.feed(WsMessage::Binary(message)).await?;
                    if bytes >= WRITE_BYTES {
                        break;
                    }
                    match queue.try_pop() {
                        Some(more) => message = more,
                        None => break,
                    }
                }
                sink.flush().await?;
            }
            _ = ask.tick() => sink.send(WsMessage::Ping(Bytes::new())).await?,
        }
    }
}

/// Reads until the other end goes or is silent for too long.
pub(super) async fn read<S>(mut stream: S, take: impl Fn(&[u8])) -> Result<(), TlsError>
where
    S: Stream<Item = Result<WsMessage, WsError>> + Unpin,
{
    loop {
        let read = tokio::time::timeout(SILENCE_MAX, stream.next()).await;
        match read
            .map_err(|_| TlsError::Silent)?
            .ok_or(TlsError::Ended)??
        {
            WsMessage::Binary(bytes) => take(&bytes),
            WsMessage::Ping(_) | WsMessage::Pong(_) => {}
            WsMessage::Close(_) => return Err(TlsError::Ended),
            WsMessage::Text(_) | WsMessage::Frame(_) => return Err(TlsError::Protocol),
        }
    }
}
