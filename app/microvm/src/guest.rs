//! The host's end of the channel to a guest: orders out, output and ends in.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use tabbify_guest_init::order::{self, End};
use tabbify_guest_init::wire::{Decoder, FROM_GUEST_LEN_MAX, Frame, Kind, PAYLOAD_LEN_MAX, encode};
use tabbify_process::{Importance, Tasks};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::mpsc::error::SendTimeoutError;
use tokio::sync::{mpsc, oneshot, watch};

use crate::error::{Result, VmError};

/// LIMIT: pieces of the app's output that wait for the caller; then the app waits.
pub const OUTPUT_QUEUE: usize = 64;
/// LIMIT: the same of an exec.
pub const EXEC_QUEUE: usize = 16;
/// LIMIT: orders that wait for the guest.
const ORDERS: usize = 16;
/// LIMIT: programs beside the app that have not ended; a guest's own is the same, which is not believed.
const EXECS_MAX: usize = 16;
/// LIMIT: how long the guest may take to read an order.
const READ_WITHIN: Duration = Duration::from_secs(10);
/// LIMIT: how long whoever started a program beside the app may leave its output unread, which holds back the
/// app's own: they share a channel. Then the program is killed.
const UNREAD_FOR: Duration = Duration::from_secs(10);

/// A piece of output, as it was printed: not a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// Where it was printed.
    pub source: Source,
    /// At most [`FROM_GUEST_LEN_MAX`] of them.
    pub bytes: Vec<u8>,
}

/// One of the two outputs of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// How far a guest is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Phase {
    Booting,
    /// It waits for what to run.
    Booted,
    /// The app runs.
    Started,
    /// The app has ended, and all that it printed was passed on.
    Ended(End),
    /// The app was not started.
    Failed(String),
    /// The channel is closed, and nothing was said of the app.
    Gone,
}

impl Phase {
    /// Whether nothing follows it.
    pub(crate) const fn is_last(&self) -> bool {
        matches!(self, Self::Ended(_) | Self::Failed(_) | Self::Gone)
    }
}

/// Gives orders to a guest.
#[derive(Debug, Clone)]
pub(crate) struct Guest {
    orders: mpsc::Sender<Order>,
    phase: watch::Receiver<Phase>,
}

#[derive(Debug)]
enum Order {
    Send(Kind, u32, Vec<u8>),
    Exec(Vec<u8>, Waiting),
    Look(oneshot::Sender<Vec<SocketAddr>>),
    /// Some execs have nobody any more who waits for them.
    Abandon,
}

/// Who waits for what of an exec.
#[derive(Debug)]
struct Waiting {
    output: mpsc::Sender<Chunk>,
    end: oneshot::Sender<Result<End>>,
}

/// A program beside the app. Dropping it kills the program.
#[derive(Debug)]
pub struct Exec {
    output: mpsc::Receiver<Chunk>,
    end: oneshot::Receiver<Result<End>>,
    orders: mpsc::Sender<Order>,
}

impl Exec {
    /// What it prints next; `None` when it has ended.
    pub async fn output(&mut self) -> Option<Chunk> {
        self.output.recv().await
    }

    /// How it ended. What it prints until then is lost.
    ///
    /// # Errors
    /// [`VmError::Exec`] if it could not be started; [`VmError::Over`] if the machine ended first.
    pub async fn end(mut self) -> Result<End> {
        while self.output.recv().await.is_some() {}
        (&mut self.end).await.unwrap_or(Err(VmError::Over))
    }
}

impl Drop for Exec {
    fn drop(&mut self) {
        self.output.close();
        // If it cannot be said now, it is seen when the program prints again.
        let _ = self.orders.try_send(Order::Abandon);
    }
}

impl Guest {
    /// Talks over `control`. What the app prints goes to the receiver, which must be read, or dropped
    /// for it to be lost.
    pub(crate) fn talk(control: UnixStream, tasks: &Tasks) -> (Self, mpsc::Receiver<Chunk>) {
        let (orders, taken) = mpsc::channel(ORDERS);
        let (phase, seen) = watch::channel(Phase::Booting);
        let (output, printed) = mpsc::channel(OUTPUT_QUEUE);
        let session = Session {
            output,
            phase,
            execs: BTreeMap::new(),
            looking: Vec::new(),
            next: 1,
        };
        tasks.spawn(
            "microvm guest",
            Importance::Detached,
            session.run(control, taken),
        );
        let phase = seen;
        (Self { orders, phase }, printed)
    }

    /// How far it is now.
    pub(crate) fn phase(&self) -> Phase {
        self.phase.borrow().clone()
    }

    /// Waits until it is so far, or as far as it will ever be.
    pub(crate) async fn reaches(&self, wanted: impl Fn(&Phase) -> bool) -> Phase {
        let mut phase = self.phase.clone();
        let reached = phase
            .wait_for(|phase| wanted(phase) || phase.is_last())
            .await;
        reached.map_or(Phase::Gone, |phase| phase.clone())
    }

    /// Sends an order as JSON.
    pub(crate) async fn order(&self, kind: Kind, order: &impl serde::Serialize) -> Result<()> {
        self.give(Order::Send(kind, 0, payload(order)?)).await
    }

    /// Gives an order, once there is room for it.
    async fn give(&self, order: Order) -> Result<()> {
        match self.orders.send_timeout(order, READ_WITHIN).await {
            Ok(()) => Ok(()),
            Err(SendTimeoutError::Timeout(_)) => Err(VmError::Silent),
            Err(SendTimeoutError::Closed(_)) => Err(VmError::Over),
        }
    }

    /// Asks who listens.
    pub(crate) async fn listeners(&self) -> Result<Vec<SocketAddr>> {
        let (asked, list) = oneshot::channel();
        self.give(Order::Look(asked)).await?;
        list.await.map_err(|_| VmError::Over)
    }

    /// Starts a program beside the app.
    pub(crate) async fn exec(&self, command: Vec<String>) -> Result<Exec> {
        let payload = payload(&order::Exec { command })?;
        let (output, printed) = mpsc::channel(EXEC_QUEUE);
        let (end, ended) = oneshot::channel();
        let waiting = Waiting { output, end };
        self.give(Order::Exec(payload, waiting)).await?;
        Ok(Exec {
            output: printed,
            end: ended,
            orders: self.orders.clone(),
        })
    }
}

fn payload(order: &impl serde::Serialize) -> Result<Vec<u8>> {
    let limit = PAYLOAD_LEN_MAX;
    // Plain data in memory: this does not fail.
    let bytes = serde_json::to_vec(order).unwrap_or_default();
    if bytes.len() > limit {
        return Err(VmError::TooLong { limit });
    }
    Ok(bytes)
}

struct Session {
    output: mpsc::Sender<Chunk>,
    phase: watch::Sender<Phase>,
    execs: BTreeMap<u32, Waiting>,
    /// Who wants to know who listens.
    looking: Vec<oneshot::Sender<Vec<SocketAddr>>>,
    /// The number of the next exec.
    next: u32,
}

impl Session {
    async fn run(mut self, control: UnixStream, mut orders: mpsc::Receiver<Order>) {
        let (mut from, mut to) = control.into_split();
        let mut decoder = Decoder::within(FROM_GUEST_LEN_MAX);
        let mut chunk = vec![0; 64 << 10];
        let mut out = Vec::new();
        loop {
            tokio::select! {
                read = from.read(&mut chunk) => {
                    let Ok(count @ 1..) = read else { break };
                    decoder.push(&chunk[..count]);
                    if let Err(error) = self.take(&mut decoder, &mut out).await {
                        tracing::warn!(%error, "a guest says what is no frame");
                        break;
                    }
                }
                order = orders.recv() => {
                    let Some(order) = order else { break };
                    self.give(order, &mut out);
                }
            }
            // A guest that does not read stops its own machine: whoever ends one does not ask it.
            if !out.is_empty() && to.write_all(&out).await.is_err() {
                break;
            }
            out.clear();
        }
        self.phase.send_if_modified(|phase| {
            let more = !phase.is_last();
            if more {
                *phase = Phase::Gone;
            }
            more
        });
    }

    fn give(&mut self, order: Order, out: &mut Vec<u8>) {
        match order {
            Order::Send(kind, of, payload) => encode(kind, of, &payload, out),
            Order::Exec(_, waiting) if self.execs.len() >= EXECS_MAX => {
                let why = format!("{EXECS_MAX} programs run beside the app already");
                // Whoever waited may have gone.
                let _ = waiting.end.send(Err(VmError::Exec(why)));
            }
            Order::Exec(payload, waiting) => {
                let of = self.next;
                self.next = of.checked_add(1).unwrap_or(1);
                encode(Kind::Exec, of, &payload, out);
                self.execs.insert(of, waiting);
            }
            Order::Abandon => self.execs.retain(|of, waiting| {
                let abandoned = waiting.output.is_closed();
                if abandoned {
                    encode(Kind::Kill, *of, b"", out);
                }
                !abandoned
            }),
            Order::Look(asked) => {
                self.looking.retain(|asked| !asked.is_closed());
                self.looking.push(asked);
                encode(Kind::Look, 0, b"", out);
            }
        }
    }

    async fn take(
        &mut self,
        decoder: &mut Decoder,
        out: &mut Vec<u8>,
    ) -> Result<(), tabbify_guest_init::wire::WireError> {
        while let Some(frame) = decoder.take()? {
            let Frame { kind, of, payload } = frame;
            match kind {
                Kind::Booted => self.reached(Phase::Booted),
                Kind::Started => self.reached(Phase::Started),
                Kind::Stdout => self.printed(of, Source::Stdout, payload, out).await,
                Kind::Stderr => self.printed(of, Source::Stderr, payload, out).await,
                Kind::Ended | Kind::Failed => self.ended(kind, of, &payload, out),
                Kind::Listening => {
                    let list: Vec<SocketAddr> =
                        serde_json::from_slice(&payload).unwrap_or_default();
                    for asked in self.looking.drain(..) {
                        // Whoever asked may have gone.
                        let _ = asked.send(list.clone());
                    }
                }
                // Orders are not for us to take.
                Kind::Start | Kind::Stop | Kind::Exec | Kind::Kill | Kind::Bye | Kind::Look => {}
                // These are of another port.
                Kind::Dial | Kind::Data | Kind::Room | Kind::End | Kind::Reset => {}
            }
        }
        Ok(())
    }

    /// The first word on the end of the app is the last.
    fn reached(&self, reached: Phase) {
        self.phase.send_if_modified(|phase| {
            let more = !phase.is_last();
            if more {
                *phase = reached;
            }
            more
        });
    }

    async fn printed(&mut self, of: u32, source: Source, bytes: Vec<u8>, out: &mut Vec<u8>) {
        let chunk = Chunk { source, bytes };
        if of == 0 {
            // Nobody may want to know.
            let _ = self.output.send(chunk).await;
            return;
        }
        let Some(waiting) = self.execs.get(&of) else {
            return;
        };
        if waiting
            .output
            .send_timeout(chunk, UNREAD_FOR)
            .await
            .is_err()
        {
            encode(Kind::Kill, of, b"", out);
            if let Some(waiting) = self.execs.remove(&of) {
                let why = format!("it was ended: nobody took its output for {UNREAD_FOR:?}");
                // Whoever waited may have gone.
                let _ = waiting.end.send(Err(VmError::Exec(why)));
            }
        }
    }

    fn ended(&mut self, kind: Kind, of: u32, payload: &[u8], out: &mut Vec<u8>) {
        let end = match kind {
            Kind::Ended => serde_json::from_slice(payload).map_err(|error| error.to_string()),
            _ => Err(sentence(payload)),
        };
        if of == 0 {
            self.reached(end.map_or_else(Phase::Failed, Phase::Ended));
            encode(Kind::Bye, 0, b"", out);
        } else if let Some(waiting) = self.execs.remove(&of) {
            // Whoever waited may have gone.
            let _ = waiting.end.send(end.map_err(VmError::Exec));
        }
    }
}

/// LIMIT: of a sentence of the guest's, in characters.
const SENTENCE_MAX: usize = 1000;

/// What a guest says to people, without what moves their cursor.
fn sentence(payload: &[u8]) -> String {
    let text = String::from_utf8_lossy(payload);
    let plain = text.chars().filter(|char| !char.is_control());
    plain.take(SENTENCE_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn say(guest: &mut UnixStream, kind: Kind, of: u32, payload: &[u8]) {
        let mut bytes = Vec::new();
        encode(kind, of, payload, &mut bytes);
        guest.write_all(&bytes).await.unwrap();
    }

    async fn hear(guest: &mut UnixStream, decoder: &mut Decoder) -> Frame {
        loop {
            if let Some(frame) = decoder.take().unwrap() {
                return frame;
            }
            let mut chunk = [0; 4096];
            let count = guest.read(&mut chunk).await.unwrap();
            assert!(count > 0, "the host hung up");
            decoder.push(&chunk[..count]);
        }
    }

    #[tokio::test]
    async fn a_guest_that_lies_harms_nobody() {
        let tasks = Tasks::new();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let (guest, mut output) = Guest::talk(ours, &tasks);
        // Output and ends of execs that do not exist, orders in the wrong direction.
        for kind in [
            Kind::Stdout,
            Kind::Ended,
            Kind::Failed,
            Kind::Start,
            Kind::Bye,
        ] {
            say(&mut theirs, kind, 77, b"?").await;
        }
        say(&mut theirs, Kind::Booted, 0, b"").await;
        assert_eq!(
            guest.reaches(|phase| *phase == Phase::Booted).await,
            Phase::Booted
        );
        say(&mut theirs, Kind::Stderr, 0, b"text").await;
        let printed = output.recv().await.unwrap();
        assert_eq!(
            (printed.source, printed.bytes.as_slice()),
            (Source::Stderr, &b"text"[..])
        );
        // The first end counts; a sentence has no control characters in it.
        say(&mut theirs, Kind::Failed, 0, b"\x1b[31mno\n").await;
        say(&mut theirs, Kind::Started, 0, b"").await;
        let last = guest.reaches(Phase::is_last).await;
        assert_eq!(last, Phase::Failed("[31mno".to_owned()));
        theirs.write_all(&[0xff; 20]).await.unwrap();
        assert_eq!(
            hear(&mut theirs, &mut Decoder::default()).await.kind,
            Kind::Bye
        );
        assert_eq!(guest.phase(), last);
    }

    #[tokio::test]
    async fn an_exec_that_nobody_listens_to_is_killed() {
        let tasks = Tasks::new();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let (guest, _output) = Guest::talk(ours, &tasks);
        let mut heard = Decoder::default();
        let exec = guest.exec(vec!["yes".to_owned()]).await.unwrap();
        let order = hear(&mut theirs, &mut heard).await;
        assert_eq!((order.kind, order.of), (Kind::Exec, 1));
        drop(exec);
        let order = hear(&mut theirs, &mut heard).await;
        assert_eq!((order.kind, order.of), (Kind::Kill, 1));
        // One whose machine ends has no end of its own.
        let exec = guest.exec(vec!["id".to_owned()]).await.unwrap();
        hear(&mut theirs, &mut heard).await;
        drop(theirs);
        assert!(matches!(exec.end().await, Err(VmError::Over)));
        assert_eq!(guest.reaches(Phase::is_last).await, Phase::Gone);
    }

    #[tokio::test]
    async fn programs_beside_the_app_have_a_limit() {
        let tasks = Tasks::new();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let (guest, _output) = Guest::talk(ours, &tasks);
        let mut running = Vec::new();
        for _ in 0..EXECS_MAX {
            running.push(guest.exec(vec!["yes".to_owned()]).await.unwrap());
        }
        let more = guest.exec(vec!["yes".to_owned()]).await.unwrap();
        let error = more.end().await.unwrap_err().to_string();
        assert!(error.contains("16 programs run"), "{error}");
        // The end of one makes room for another.
        let mut heard = Decoder::default();
        let first = hear(&mut theirs, &mut heard).await;
        say(&mut theirs, Kind::Failed, first.of, b"no").await;
        assert!(running.remove(0).end().await.is_err());
        let more = guest.exec(vec!["yes".to_owned()]).await.unwrap();
        let mut next = first.of;
        while next <= u32::try_from(EXECS_MAX).unwrap() {
            next = hear(&mut theirs, &mut heard).await.of;
        }
        say(&mut theirs, Kind::Failed, next, b"none").await;
        assert_eq!(more.end().await.unwrap_err().to_string(), "none");
    }

    /// With time that passes only when nobody has anything to do.
    #[tokio::test(start_paused = true)]
    async fn whoever_does_not_read_holds_nobody_back_for_ever() {
        let tasks = Tasks::new();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let (guest, mut output) = Guest::talk(ours, &tasks);
        let exec = guest.exec(vec!["yes".to_owned()]).await.unwrap();
        let mut heard = Decoder::default();
        let of = hear(&mut theirs, &mut heard).await.of;
        for _ in 0..=EXEC_QUEUE {
            say(&mut theirs, Kind::Stdout, of, b"y").await;
        }
        say(&mut theirs, Kind::Stdout, 0, b"app").await;
        assert_eq!(output.recv().await.unwrap().bytes, b"app");
        assert_eq!(hear(&mut theirs, &mut heard).await.kind, Kind::Kill);
        let error = exec.end().await.unwrap_err().to_string();
        assert!(error.contains("nobody took its output"), "{error}");
    }

    /// A guest that reads nothing: orders come to an end.
    #[tokio::test(start_paused = true)]
    async fn a_guest_that_does_not_read_is_silent() {
        let tasks = Tasks::new();
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let (guest, _output) = Guest::talk(ours, &tasks);
        let long = vec!["x".repeat(PAYLOAD_LEN_MAX / 2)];
        let error = loop {
            match guest.exec(long.clone()).await {
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert!(matches!(error, VmError::Silent), "{error}");
    }

    /// Only orders are long, and a guest has none to give.
    #[tokio::test]
    async fn a_guest_that_says_too_much_at_once_is_gone() {
        let tasks = Tasks::new();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let (guest, mut output) = Guest::talk(ours, &tasks);
        say(&mut theirs, Kind::Stdout, 0, &[b'x'; FROM_GUEST_LEN_MAX]).await;
        let printed = output.recv().await.unwrap();
        assert_eq!(printed.bytes.len(), FROM_GUEST_LEN_MAX);
        let mut bytes = Vec::new();
        encode(Kind::Stdout, 0, &[b'x'; FROM_GUEST_LEN_MAX + 1], &mut bytes);
        // The host may have hung up before it was all there.
        let _ = theirs.write_all(&bytes).await;
        assert_eq!(guest.reaches(Phase::is_last).await, Phase::Gone);
    }

    #[tokio::test]
    async fn an_order_has_an_end() {
        let tasks = Tasks::new();
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let (guest, _output) = Guest::talk(ours, &tasks);
        let long = "x".repeat(PAYLOAD_LEN_MAX);
        assert!(matches!(
            guest.exec(vec![long]).await,
            Err(VmError::TooLong { .. })
        ));
    }
}
