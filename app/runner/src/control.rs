//! The control socket: one JSON object a line, a request and its answer in turn
//! (`tabbify_api::runner`). It outlives the supervisor that made it, and serves the next one.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tabbify_api::runner::{Answer, LINE_LEN_MAX, Request};
use tabbify_membership::RemoteCoordinator;
use tabbify_process::{Importance, Tasks};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, BufReader};
use tokio::io::{AsyncWriteExt as _, ReadHalf};
use tokio::net::UnixListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::home::Secret;
use crate::lease::Tickets;
use crate::peers::Peers;
use crate::state::State;
use crate::traffic::Traffic;

/// LIMIT: callers at a time; the next waits until one has left.
const CONNECTIONS_MAX: usize = 16;

/// LIMIT: how long a caller may take to prove itself.
const HELLO_WITHIN: Duration = Duration::from_secs(5);

/// How long to wait after the system refused a connection, so that a lasting refusal costs nothing.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const CALLER_CONTEXT: &[u8] = b"tabbify-control-caller-v1\0";
const RUNNER_CONTEXT: &[u8] = b"tabbify-control-runner-v1\0";

/// What the control socket acts on.
#[derive(Debug)]
pub struct Control {
    /// Proves both sides to each other.
    pub secret: Secret,
    /// What it tells.
    pub state: Arc<State>,
    /// What it drains.
    pub traffic: Traffic,
    /// What `SetPeers` replaces.
    pub peers: Arc<Peers>,
    /// Who tells where we are, if there is a coordinator: a supervisor that comes has one.
    pub coordinator: Option<RemoteCoordinator>,
    /// Where spawn tickets go, if there is a coordinator.
    pub tickets: Option<Tickets>,
    /// Cancelled by `Stop`, after its answer is out.
    pub stop: CancellationToken,
}

impl Control {
    /// Serves callers for as long as the task lives.
    pub async fn serve(self: Arc<Self>, listener: UnixListener, tasks: Tasks) {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                return; // Nobody closes the semaphore.
            };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let this = Arc::clone(&self);
                    tasks.spawn("control connection", Importance::Detached, async move {
                        if let Err(error) = this.converse(stream).await {
                            tracing::debug!(%error, "control connection broke");
                        }
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "control socket refused a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// One caller, from its hello to its end.
    ///
    /// # Errors
    /// Those of the stream.
    pub async fn converse<S: AsyncRead + AsyncWrite>(&self, stream: S) -> io::Result<()> {
        let (reader, mut writer) = tokio::io::split(stream);
        let mut lines = Lines::new(reader);
        let Ok(first) = tokio::time::timeout(HELLO_WITHIN, lines.next()).await else {
            return Ok(());
        };
        let greeted = match first? {
            Line::Whole(line) => self.greet(&line),
            Line::TooLong => too_long(),
            Line::End => return Ok(()),
        };
        say(&mut writer, &greeted).await?;
        if !matches!(greeted, Answer::Hello { .. }) {
            return Ok(());
        }
        if let Some(coordinator) = &self.coordinator {
            coordinator.look_again();
        }
        loop {
            let request = match lines.next().await? {
                Line::Whole(line) => serde_json::from_slice::<Request>(&line),
                Line::TooLong => return say(&mut writer, &too_long()).await,
                Line::End => return Ok(()),
            };
            let stops = matches!(request, Ok(Request::Stop));
            let answer = match request {
                Ok(request) => self.answer(request).await,
                Err(error) => refused(format!("not a request: {error}")),
            };
            let said = say(&mut writer, &answer).await;
            if stops {
                self.stop.cancel();
            }
            said?;
        }
    }

    /// The answer to the first line: our proof to a caller that gave its own, and no more than
    /// "no" to anybody else.
    fn greet(&self, line: &[u8]) -> Answer {
        let Ok(Request::Hello { nonce, proof }) = serde_json::from_slice(line) else {
            return refused("the first request must be hello");
        };
        let nonce = URL_SAFE_NO_PAD.decode(nonce).ok();
        let Some(nonce) = nonce.and_then(|bytes| <[u8; 32]>::try_from(bytes).ok()) else {
            return refused("the nonce is not 32 bytes in base64url");
        };
        // `blake3::Hash` compares in constant time.
        match blake3::Hash::from_hex(proof) {
            Ok(proof) if proof == prove(&self.secret, CALLER_CONTEXT, &nonce) => Answer::Hello {
                proof: prove(&self.secret, RUNNER_CONTEXT, &nonce).to_string(),
            },
            _ => refused("the proof is wrong"),
        }
    }

    async fn answer(&self, request: Request) -> Answer {
        match request {
            Request::Hello { .. } => refused("hello was said"),
            Request::Status => Answer::Status(self.state.status()),
            Request::Wait { seen } => Answer::Status(self.state.wait(seen).await),
            Request::SetPeers { peers } => {
                self.peers.set(peers);
                Answer::Done
            }
            Request::Spawn(ticket) => match &self.tickets {
                None => refused("it has no coordinator to show a spawn ticket to"),
                Some(_) if !self.state.leasing() => refused("it waits for no spawn ticket"),
                // It waits for one, and takes it; if not, it is about to end.
                Some(tickets) => match tickets.try_send(ticket) {
                    Ok(()) => Answer::Done,
                    Err(_) => refused("it takes no spawn ticket any more"),
                },
            },
            Request::Drain { deadline_ms } => {
                self.state.draining();
                let deadline = Duration::from_millis(deadline_ms);
                let drained = self.traffic.drain(deadline).await;
                Answer::Drained {
                    finished: drained.finished,
                    cut: drained.cut,
                }
            }
            Request::Stop => Answer::Done,
        }
    }
}

/// The proof that who makes it knows `secret`, for this nonce and this side only.
fn prove(secret: &Secret, context: &[u8], nonce: &[u8; 32]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new_keyed(secret.key());
    hasher.update(context).update(nonce);
    hasher.finalize()
}

fn refused(detail: impl Into<String>) -> Answer {
    let detail = detail.into();
    Answer::Refused { detail }
}

fn too_long() -> Answer {
    refused(format!("a line is longer than {LINE_LEN_MAX} bytes"))
}

async fn say(writer: &mut (impl AsyncWrite + Unpin), answer: &Answer) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    writer.write_all(&line).await?;
    writer.flush().await
}

enum Line {
    Whole(Vec<u8>),
    TooLong,
    End,
}

/// Reads lines of at most [`LINE_LEN_MAX`] bytes.
struct Lines<S>(BufReader<ReadHalf<S>>);

impl<S: AsyncRead> Lines<S> {
    fn new(reader: ReadHalf<S>) -> Self {
        Self(BufReader::new(reader))
    }

    async fn next(&mut self) -> io::Result<Line> {
        let mut line = Vec::new();
        let bound = LINE_LEN_MAX as u64 + 1;
        (&mut self.0)
            .take(bound)
            .read_until(b'\n', &mut line)
            .await?;
        Ok(if line.pop_if(|last| *last == b'\n').is_some() {
            Line::Whole(line)
        } else if line.len() > LINE_LEN_MAX {
            Line::TooLong
        } else {
            Line::End // A line without its end was not said.
        })
    }
}
