//! A session: appends of one bearer as frames on one connection, many at a time, each answered when
//! it is durable. Answers that become ready together leave together.
//!
//! ```text
//!   frame ─▶ room among the bodies ─▶ batch ─▶ the log ─┐
//!   frame ◀─ answers that are ready ◀────────────────────┘   at most IN_FLIGHT_MAX of them open
//! ```
//!
//! A client that does not read its answers is not read from; the writer of the log never waits.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tabbify_api::log::{AppendError, Appended, EventLog};
use tabbify_api::{BoxFuture, ErrorCode, Problem};
use tabbify_http::Place;
use tabbify_process::chain;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::bearer::Watch;
use crate::wire::frames::{Frame, Frames, NotFrames, kind};
use crate::wire::{binary, frames, problem};

/// LIMIT: batches of one session that are not answered yet; further ones are not read.
const IN_FLIGHT_MAX: usize = 256;
/// LIMIT: how long a session may be open without a request.
const IDLE_MAX: Duration = Duration::from_secs(300);
/// LIMIT: how long a frame may take to arrive, and answers to leave.
const FRAME_WITHIN: Duration = Duration::from_secs(30);

/// What a session needs.
pub(super) struct Session {
    pub(super) log: Arc<dyn EventLog>,
    pub(super) watch: Watch,
    pub(super) bodies: Arc<Semaphore>,
    pub(super) closing: CancellationToken,
    /// Its place among the connections.
    pub(super) place: Place,
}

type Answered = (u32, Result<Appended, AppendError>);

impl Session {
    /// Serves the session to its end.
    pub(super) async fn run(mut self, upgrade: OnUpgrade) {
        let io = match upgrade.await {
            Ok(upgraded) => TokioIo::new(upgraded),
            Err(error) => {
                tracing::debug!(error = %chain(&error), "a session did not begin");
                return;
            }
        };
        let mut line = Line {
            io,
            frames: Frames::default(),
            room: None,
            deadline: Instant::now() + IDLE_MAX,
            out: Vec::new(),
        };
        let ended = self.serve(&mut line).await;
        if let Err(problem) = ended {
            frames::push_end(&mut line.out, &problem);
        }
        let said = line.send().await.is_some();
        if !said || line.io.shutdown().await.is_err() {
            tracing::debug!("a session's client had gone");
        }
        drop(self.place);
    }

    /// Reads and answers. What has been read is answered before the end is told.
    async fn serve(&mut self, line: &mut Line) -> Result<(), Box<Problem>> {
        let mut in_flight: FuturesUnordered<BoxFuture<'static, Answered>> = FuturesUnordered::new();
        let mut closing = std::pin::pin!(self.closing.clone().cancelled_owned());
        let mut ending = None;
        loop {
            if line.send().await.is_none() {
                return Ok(());
            }
            if let Some(ended) = ending.take_if(|_| in_flight.is_empty()) {
                return ended;
            }
            let reads = ending.is_none() && in_flight.len() < IN_FLIGHT_MAX;
            tokio::select! {
                biased;
                () = &mut closing, if ending.is_none() => {
                    ending = Some(Err(problem::of_append(&AppendError::Stopping)));
                }
                problem = self.watch.ended(), if ending.is_none() => ending = Some(Err(problem)),
                Some(first) = in_flight.next(), if !in_flight.is_empty() => {
                    line.answer(first);
                    while let Some(Some(more)) = in_flight.next().now_or_never() {
                        line.answer(more);
                    }
                }
                received = line.receive(&self.bodies), if reads => match received {
                    Ok(Some((frame, room))) => match self.begin(&frame, room, line) {
                        Ok(Some(appending)) => in_flight.push(appending),
                        Ok(None) => {}
                        Err(problem) => ending = Some(Err(problem)),
                    },
                    Ok(None) => ending = Some(Ok(())),
                    Err(problem) => ending = Some(Err(problem)),
                },
            }
        }
    }

    /// What is to be done about a frame; nothing where the answer is there already.
    fn begin(
        &self,
        frame: &Frame,
        room: OwnedSemaphorePermit,
        line: &mut Line,
    ) -> Result<Option<BoxFuture<'static, Answered>>, Box<Problem>> {
        if frame.kind != kind::APPEND {
            // Newer clients have more to say; nothing of it is an append.
            return Ok(None);
        }
        let request = binary::request(&frame.body);
        let (number, batch) = request.map_err(malformed)?;
        match batch {
            Ok(batch) => {
                let log = Arc::clone(&self.log);
                Ok(Some(Box::pin(async move {
                    let answer = log.append(batch).await;
                    drop(room);
                    (number, answer)
                })))
            }
            Err(problem) => {
                binary::push_refused(&mut line.out, number, &problem);
                Ok(None)
            }
        }
    }
}

fn malformed(what: &str) -> Box<Problem> {
    problem::plain(ErrorCode::BadRequest, what)
}

/// The connection and what is on its way over it.
struct Line {
    io: TokioIo<Upgraded>,
    frames: Frames,
    /// Room for the frame that has begun.
    room: Option<OwnedSemaphorePermit>,
    /// When the next frame must be there.
    deadline: Instant,
    out: Vec<u8>,
}

impl Line {
    fn answer(&mut self, (number, answer): Answered) {
        match answer {
            Ok(appended) => binary::push_appended(&mut self.out, number, &appended),
            Err(error) => {
                binary::push_refused(&mut self.out, number, &problem::of_append(&error));
            }
        }
    }

    /// Sends what there is to send; `None` if the client does not take it.
    async fn send(&mut self) -> Option<()> {
        if !self.out.is_empty() {
            let sent = timeout(FRAME_WITHIN, self.io.write_all(&self.out)).await;
            sent.ok()?.ok()?;
            self.out.clear();
        }
        Some(())
    }

    /// The next frame with its room among the bodies; `None` at the end. Safe to cancel.
    async fn receive(
        &mut self,
        bodies: &Arc<Semaphore>,
    ) -> Result<Option<(Frame, OwnedSemaphorePermit)>, Box<Problem>> {
        let wrong = |NotFrames(what): NotFrames| malformed(what);
        loop {
            if self.room.is_none()
                && let Some(due) = self.frames.due().map_err(wrong)?
            {
                let due = u32::try_from(due).map_err(|_| malformed("a frame too long"))?;
                let room = Arc::clone(bodies).acquire_many_owned(due).await;
                self.room = Some(room.map_err(|_| problem::of_append(&AppendError::Stopping))?);
            }
            if self.frames.is_whole().map_err(wrong)?
                && let Some(room) = self.room.take()
            {
                let frame = self.frames.next().map_err(wrong)?;
                self.deadline = Instant::now() + self.patience();
                return Ok(frame.map(|frame| (frame, room)));
            }
            let begins = !self.frames.has_begun();
            let spare = self.frames.spare().map_err(wrong)?;
            match timeout_at(self.deadline, self.io.read_buf(spare)).await {
                Ok(Ok(read)) if read > 0 => {}
                // Gone, or silent for too long: whoever has more to say begins anew.
                _ => return Ok(None),
            }
            if begins {
                self.deadline = Instant::now() + FRAME_WITHIN;
            }
        }
    }

    /// How long the next frame may take.
    fn patience(&self) -> Duration {
        match self.frames.has_begun() {
            true => FRAME_WITHIN,
            false => IDLE_MAX,
        }
    }
}
