//! Appends over the network: one session for all of them, each batch a frame with a number. A session
//! that ends takes no batch with it: what was not answered is sent again in the next one, and ids make
//! that harmless.
//!
//! ```text
//!   append ─▶ queue ─▶ the session's task ─▶ frames ─▶ service
//!   append ◀─ answer by number ◀────────────────────── frames
//! ```

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tabbify_api::log::{Append, Appended, SESSION_PATH, SESSION_PROTOCOL};
use tabbify_api::{ErrorCode, Problem};
use tabbify_process::{Importance, Tasks};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use super::connection::Connections;
use super::{Failed, broken};
use crate::wire::binary::{self, Said};
use crate::wire::frames::{FRAME_LEN_MAX, Frames, NotFrames};
use crate::wire::problem;

/// LIMIT: batches that wait to be sent; the next append waits.
const QUEUE_MAX: usize = 256;
/// LIMIT: batches that are sent and not answered; the service reads no more than that.
const PENDING_MAX: usize = 256;
/// LIMIT: how long a batch may be without an answer while nothing else is answered either.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// LIMIT: bytes that wait to leave, before more is added to them.
const OUT_LEN_MAX: usize = 64 * 1024;
/// LIMIT: sessions that one append may see end before it is given up.
const SESSIONS_MAX: usize = 3;

type Answer = Result<Appended, Box<Problem>>;

/// A batch on its way.
struct Request {
    /// As encoded, for as many sessions as it takes.
    batch: Bytes,
    answer: oneshot::Sender<Answer>,
}

/// The session that is open, if one is.
pub(super) struct Sessions {
    open: Mutex<Option<mpsc::Sender<Request>>>,
    tasks: Tasks,
}

impl Sessions {
    pub(super) const fn new(tasks: Tasks) -> Self {
        Self {
            open: Mutex::const_new(None),
            tasks,
        }
    }

    pub(super) async fn append(
        &self,
        connections: &Connections,
        batch: &Append,
    ) -> Result<Appended, Failed> {
        let batch = Bytes::from(binary::batch_body(batch));
        let len = binary::request_len(&batch);
        if len > FRAME_LEN_MAX {
            let detail = format!("{len} bytes on the wire, at most {FRAME_LEN_MAX}");
            return Err(Failed::Refused(problem::plain(
                ErrorCode::BatchTooLarge,
                &detail,
            )));
        }
        for _ in 0..SESSIONS_MAX {
            let requests = self.session(connections).await?;
            let (answer, answered) = oneshot::channel();
            let batch = batch.clone();
            if requests.send(Request { batch, answer }).await.is_ok()
                && let Ok(answer) = answered.await
            {
                return answer.map_err(Failed::Refused);
            }
            // The session has ended, with or without this batch.
        }
        Err(broken("appends break off", &"every session ended"))
    }

    /// The open session, or a new one.
    async fn session(&self, connections: &Connections) -> Result<mpsc::Sender<Request>, Failed> {
        let mut open = self.open.lock().await;
        if let Some(requests) = &*open
            && !requests.is_closed()
        {
            return Ok(requests.clone());
        }
        let upgraded = connections.upgrade(SESSION_PATH, SESSION_PROTOCOL).await?;
        let (requests, queue) = mpsc::channel(QUEUE_MAX);
        let line = Line {
            received: Frames::default(),
            out: BytesMut::new(),
            next: 0,
            pending: HashMap::new(),
        };
        let running = line.run(TokioIo::new(upgraded), queue);
        self.tasks
            .spawn("log appends", Importance::Detached, running);
        *open = Some(requests.clone());
        Ok(requests)
    }
}

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sessions")
    }
}

/// What goes over the connection of a session, and who waits for what on it.
struct Line {
    received: Frames,
    out: BytesMut,
    next: u32,
    pending: HashMap<u32, oneshot::Sender<Answer>>,
}

impl Line {
    /// Until the service or the log's client ends. Whoever still waits learns by the end of its
    /// channel. Reads while it writes: the service may have to answer before it reads on.
    async fn run(mut self, io: TokioIo<Upgraded>, mut queue: mpsc::Receiver<Request>) {
        let (mut reading, mut writing) = tokio::io::split(io);
        let mut patience = std::pin::pin!(sleep_until(Instant::now()));
        loop {
            let waits = !self.pending.is_empty();
            let takes = self.pending.len() < PENDING_MAX && self.out.len() < OUT_LEN_MAX;
            let sends = !self.out.is_empty();
            let Ok(spare) = self.received.spare() else {
                return;
            };
            tokio::select! {
                read = reading.read_buf(spare) => {
                    if !matches!(read, Ok(1..)) || self.take().is_err() {
                        return;
                    }
                    patience.as_mut().reset(Instant::now() + ANSWER_WITHIN);
                }
                written = writing.write_buf(&mut self.out), if sends => {
                    if !matches!(written, Ok(1..)) {
                        return;
                    }
                }
                request = queue.recv(), if takes => {
                    let Some(request) = request else {
                        // It is closed either way.
                        let _ = writing.shutdown().await;
                        return;
                    };
                    if !waits {
                        patience.as_mut().reset(Instant::now() + ANSWER_WITHIN);
                    }
                    self.request(request);
                }
                () = &mut patience, if waits => {
                    broken("the log does not answer", &"a session is silent");
                    return;
                }
            }
        }
    }

    fn request(&mut self, request: Request) {
        if request.answer.is_closed() {
            // Whoever asked has gone before anything was sent.
            return;
        }
        // There are more numbers than batches can be pending: the next one is free.
        self.next = self.next.wrapping_add(1);
        binary::push_request(&mut self.out, self.next, &request.batch);
        self.pending.insert(self.next, request.answer);
    }

    /// Takes in what has come. An error is the end of the session.
    fn take(&mut self) -> Result<(), Failed> {
        let wrong = |what: &str| broken("a session is not understood", &what);
        let whole = |NotFrames(what): NotFrames| wrong(what);
        while let Some(frame) = self.received.next().map_err(whole)? {
            match binary::said(&frame).map_err(wrong)? {
                Said::Answer(number, answer) => {
                    if let Some(waiting) = self.pending.remove(&number) {
                        // Whoever asked may have gone; the batch is written all the same.
                        let _ = waiting.send(answer);
                    }
                }
                Said::End(problem) => {
                    tracing::debug!(code = problem.code.as_str(), "a session ends");
                    return Err(Failed::Refused(problem));
                }
                Said::Other => {}
            }
        }
        Ok(())
    }
}
