//! The control socket: one JSON object a line, a request and its answer in turn
//! (`tabbify_api::runner`). It outlives the supervisor that made it, and serves the next one.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tabbify_api::runner::{Answer, DoorAt, LINE_LEN_MAX, Request, Visitor};
use tabbify_membership::RemoteCoordinator;
use tabbify_process::{Importance, Tasks, chain};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, BufReader};
use tokio::io::{AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::net::UnixListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::door::Door;
use crate::home::Secret;
use crate::lease::Tickets;
use crate::membership;
use crate::peers::Peers;
use crate::state::State;
use crate::traffic::Traffic;

/// LIMIT: callers at a time; the next waits until one has left.
const CONNECTIONS_MAX: usize = 16;

/// LIMIT: connections that came through the machine's doorbell, at a time.
const VISITS_MAX: usize = 1024;

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
    /// Where it was last said to be.
    pub doors: Mutex<Vec<DoorAt>>,
    /// Where spawn tickets go, if there is a coordinator.
    pub tickets: Option<Tickets>,
    /// Who serves those that come through the machine's doorbell.
    pub door: Arc<Door>,
    /// Cancelled by `Stop`, after its answer is out.
    pub stop: CancellationToken,
}

/// Somebody who came through the machine's doorbell, on the connection that it came on.
struct Visit<S> {
    visitor: Visitor,
    reader: BufReader<ReadHalf<S>>,
    writer: WriteHalf<S>,
}

impl Control {
    /// Serves callers for as long as the task lives.
    pub async fn serve(self: Arc<Self>, listener: UnixListener, tasks: Tasks) {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let rooms = Arc::new(Semaphore::new(VISITS_MAX));
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                return; // Nobody closes the semaphore.
            };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let (this, rooms) = (Arc::clone(&self), Arc::clone(&rooms));
                    tasks.spawn("control connection", Importance::Detached, async move {
                        let talked = this.talk(stream).await;
                        // Who serves a visitor is no place of the supervisor's any more.
                        drop(place);
                        let visited = match (talked, rooms.try_acquire_owned()) {
                            (Ok(Some(visit)), Ok(_room)) => this.visit(visit).await,
                            (Ok(Some(mut visit)), Err(_)) => {
                                say(
                                    &mut visit.writer,
                                    &refused("it has as many visitors as it may"),
                                )
                                .await
                            }
                            (talked, _) => talked.map(drop),
                        };
                        if let Err(error) = visited {
                            tracing::debug!(%error, "control connection broke");
                        }
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
    pub async fn converse<S>(&self, stream: S) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        match self.talk(stream).await? {
            Some(visit) => self.visit(visit).await,
            None => Ok(()),
        }
    }

    /// The same up to where the connection becomes a visitor's.
    async fn talk<S: AsyncRead + AsyncWrite>(&self, stream: S) -> io::Result<Option<Visit<S>>> {
        let (reader, mut writer) = tokio::io::split(stream);
        let mut lines = Lines::new(reader);
        let Ok(first) = tokio::time::timeout(HELLO_WITHIN, lines.next()).await else {
            return Ok(None);
        };
        let greeted = match first? {
            Line::Whole(line) => self.greet(&line),
            Line::TooLong => too_long(),
            Line::End => return Ok(None),
        };
        say(&mut writer, &greeted).await?;
        if !matches!(greeted, Answer::Hello { .. }) {
            return Ok(None);
        }
        if let Some(coordinator) = &self.coordinator {
            coordinator.look_again();
        }
        loop {
            let request = match lines.next().await? {
                Line::Whole(line) => serde_json::from_slice::<Request>(&line),
                Line::TooLong => {
                    say(&mut writer, &too_long()).await?;
                    return Ok(None);
                }
                Line::End => return Ok(None),
            };
            if let Ok(Request::Door(visitor)) = request {
                return Ok(Some(Visit {
                    visitor,
                    reader: lines.0,
                    writer,
                }));
            }
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

    /// Serves a visitor to the end of its connection.
    async fn visit<S>(&self, visit: Visit<S>) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Visit {
            visitor,
            reader,
            mut writer,
        } = visit;
        let admitted = self.door.admit(&visitor).await;
        // A drain that begins from here on waits for it.
        let counted = self.traffic.connect();
        let admitted = match admitted {
            Ok(_) if self.state.is_draining() => Err("it takes nobody any more".to_owned()),
            admitted => admitted,
        };
        let host = match admitted {
            Ok(host) => host,
            Err(why) => return say(&mut writer, &refused(why)).await,
        };
        say(&mut writer, &Answer::Done).await?;
        let connection = host.serve(tokio::io::join(reader, writer));
        connection.await;
        drop(counted);
        Ok(())
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
            Request::SetCoordinator { at } => match &self.coordinator {
                None => refused("it has no coordinator"),
                Some(coordinator) => self.move_to(coordinator, at.doors),
            },
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
            Request::Sleep { deadline_ms } => {
                if !self.state.sleeping() {
                    return refused("it has something to do");
                }
                let deadline = Duration::from_millis(deadline_ms);
                let drained = self.traffic.drain(deadline).await;
                Answer::Drained {
                    finished: drained.finished,
                    cut: drained.cut,
                }
            }
            // Its connection is not one of requests any more.
            Request::Door(_) => refused("a visitor comes alone"),
            Request::Stop => Answer::Done,
        }
    }
}

impl Control {
    /// Every supervisor that comes says where the coordinator is; mostly it is where it was.
    fn move_to(&self, coordinator: &RemoteCoordinator, doors: Vec<DoorAt>) -> Answer {
        let mut known = self.doors.lock().unwrap_or_else(PoisonError::into_inner);
        if *known == doors {
            return Answer::Done;
        }
        if let Err(error) = membership::move_to(coordinator, &doors) {
            return refused(chain(&error).to_string());
        }
        tracing::info!(?doors, "the coordinator is elsewhere");
        *known = doors;
        Answer::Done
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
