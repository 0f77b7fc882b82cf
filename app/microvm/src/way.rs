//! The host's end of a guest's way out: connections of its programs, each as a stream of bytes for whoever lets
//! them out (`tabbify_guest_init::way` is the other end).

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use tabbify_guest_init::way::{PIECE_LEN_MAX, STREAMS_MAX, WINDOW};
use tabbify_guest_init::wire::{Decoder, FROM_GUEST_LEN_MAX, Frame, Kind, encode};
use tabbify_process::{Importance, Tasks};
use tokio::io::{
    AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, ReadHalf, WriteHalf, duplex, split,
};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Semaphore, mpsc};

/// LIMIT: streams that have not ended, those that the guest has closed included: its own bound is not believed,
/// and what it closes may take a while to end here.
const OPEN_MAX: usize = 2 * STREAMS_MAX;
/// LIMIT: connections that wait for whoever lets them out: none is turned away for having come with others.
const WAITING_MAX: usize = OPEN_MAX;
/// LIMIT: frames that wait for the guest.
const FRAMES_MAX: usize = 64;

/// Serves the port: every connection of a program comes out of the receiver.
pub(crate) fn way(port: UnixStream, tasks: &Tasks) -> mpsc::Receiver<DuplexStream> {
    let (opened, connections) = mpsc::channel(WAITING_MAX);
    let (frames, sent) = mpsc::channel(FRAMES_MAX);
    let (from, to) = port.into_split();
    tasks.spawn("microvm way out", Importance::Detached, write(to, sent));
    let way = Way {
        opened,
        frames,
        streams: BTreeMap::new(),
        tasks: tasks.clone(),
    };
    tasks.spawn("microvm way out", Importance::Detached, way.read(from));
    connections
}

/// A frame on its way to the guest.
type Outgoing = (Kind, u32, Vec<u8>);

async fn write(mut to: OwnedWriteHalf, mut sent: mpsc::Receiver<Outgoing>) {
    let mut bytes = Vec::new();
    while let Some((kind, of, payload)) = sent.recv().await {
        bytes.clear();
        encode(kind, of, &payload, &mut bytes);
        // A guest that is over has ended.
        if to.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

/// A program's connection.
struct Stream {
    pieces: mpsc::Sender<Vec<u8>>,
    /// Places for pieces to the guest.
    room: Arc<Semaphore>,
    /// Held by both directions.
    open: Weak<()>,
}

impl Stream {
    /// Takes no more of the guest, and gives it no more.
    fn close(&mut self) {
        // Whoever has no sender any more ends with what is there.
        self.pieces = mpsc::channel(1).0;
        self.room.close();
    }
}

struct Way {
    opened: mpsc::Sender<DuplexStream>,
    frames: mpsc::Sender<Outgoing>,
    /// INVARIANT: each stream whose tasks live is here, so that the bound of these is one of tasks and memory.
    streams: BTreeMap<u32, Stream>,
    tasks: Tasks,
}

impl Way {
    async fn read(mut self, mut from: OwnedReadHalf) {
        let mut decoder = Decoder::within(FROM_GUEST_LEN_MAX);
        let mut chunk = vec![0; 64 << 10];
        while let Ok(count @ 1..) = from.read(&mut chunk).await {
            decoder.push(&chunk[..count]);
            loop {
                match decoder.take() {
                    Ok(Some(frame)) => self.take(frame),
                    Ok(None) => break,
                    Err(error) => {
                        tracing::warn!(%error, "a guest's way out says what is no frame");
                        return;
                    }
                }
            }
        }
    }

    /// Nothing here waits: one stream would hold back all others.
    fn take(&mut self, frame: Frame) {
        let Frame { kind, of, payload } = frame;
        match kind {
            Kind::Dial => self.open(of),
            Kind::Data => {
                // A guest that does not keep to the window loses its stream.
                if let Some(stream) = self.streams.get_mut(&of)
                    && (payload.len() > PIECE_LEN_MAX || stream.pieces.try_send(payload).is_err())
                {
                    stream.close();
                }
            }
            Kind::Room => {
                if let Some(stream) = self.streams.get(&of)
                    && stream.room.available_permits() < WINDOW
                {
                    stream.room.add_permits(1);
                }
            }
            // Whoever has no sender any more ends with what is there.
            Kind::End => {
                if let Some(stream) = self.streams.get_mut(&of) {
                    stream.pieces = mpsc::channel(1).0;
                }
            }
            Kind::Reset => {
                if let Some(stream) = self.streams.get_mut(&of) {
                    stream.close();
                }
            }
            _ => {}
        }
    }

    fn open(&mut self, of: u32) {
        // Those that have ended in both directions: no stream leaves sooner.
        self.streams.retain(|_, it| it.open.strong_count() > 0);
        if self.streams.contains_key(&of) {
            return;
        }
        let (ours, theirs) = duplex(PIECE_LEN_MAX);
        if self.streams.len() >= OPEN_MAX || self.opened.try_send(theirs).is_err() {
            // Too many are open, or nobody lets anybody out. A guest that does not read is not waited for.
            let _ = self.frames.try_send((Kind::Reset, of, Vec::new()));
            return;
        }
        let (from, to) = split(ours);
        let (pieces, taken) = mpsc::channel(WINDOW + 1);
        let room = Arc::new(Semaphore::new(WINDOW));
        let both = Arc::new(());
        let open = Arc::downgrade(&both);
        let (upward, downward) = (
            up(of, to, taken, self.frames.clone()),
            down(of, from, Arc::clone(&room), self.frames.clone()),
        );
        let other = Arc::clone(&both);
        self.tasks
            .spawn("microvm connection", Importance::Detached, async move {
                upward.await;
                drop(both);
            });
        self.tasks
            .spawn("microvm connection", Importance::Detached, async move {
                downward.await;
                drop(other);
            });
        self.streams.insert(of, Stream { pieces, room, open });
    }
}

/// From the program to whoever lets it out.
async fn up(
    of: u32,
    mut to: WriteHalf<DuplexStream>,
    mut pieces: mpsc::Receiver<Vec<u8>>,
    frames: mpsc::Sender<Outgoing>,
) {
    while let Some(piece) = pieces.recv().await {
        if to.write_all(&piece).await.is_err() {
            // It was hung up on: the program is to know.
            let _ = frames.send((Kind::Reset, of, Vec::new())).await;
            return;
        }
        if frames.send((Kind::Room, of, Vec::new())).await.is_err() {
            return;
        }
    }
    // Whoever has it may have dropped it.
    let _ = to.shutdown().await;
}

/// And back.
async fn down(
    of: u32,
    mut from: ReadHalf<DuplexStream>,
    room: Arc<Semaphore>,
    frames: mpsc::Sender<Outgoing>,
) {
    let mut piece = vec![0; PIECE_LEN_MAX];
    while let Ok(count @ 1..) = from.read(&mut piece).await {
        // Closed when the program has gone.
        let Ok(place) = room.acquire().await else {
            return;
        };
        place.forget();
        let data = (Kind::Data, of, piece[..count].to_vec());
        if frames.send(data).await.is_err() {
            return;
        }
    }
    let _ = frames.send((Kind::End, of, Vec::new())).await;
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::runtime::Handle;
    use tokio::task::yield_now;
    use tokio::time::timeout;

    use super::*;

    const WATCHDOG: Duration = Duration::from_secs(30);

    /// A way whose guest reads nothing.
    struct Deaf {
        way: Way,
        _sent: mpsc::Receiver<Outgoing>,
    }

    fn deaf(tasks: &Tasks) -> (Deaf, mpsc::Receiver<DuplexStream>) {
        let (opened, connections) = mpsc::channel(WAITING_MAX);
        let (frames, _sent) = mpsc::channel(FRAMES_MAX);
        let way = Way {
            opened,
            frames,
            streams: BTreeMap::new(),
            tasks: tasks.clone(),
        };
        (Deaf { way, _sent }, connections)
    }

    impl Deaf {
        fn hear(&mut self, kind: Kind, of: u32, len: usize) {
            let payload = vec![0; len];
            self.way.take(Frame { kind, of, payload });
        }

        /// Two tasks for each stream, however many there were.
        fn check(&self) {
            let tasks = Handle::current().metrics().num_alive_tasks();
            let streams = self.way.streams.len();
            assert!(streams <= OPEN_MAX, "{streams} streams");
            assert!(tasks <= 2 * OPEN_MAX + 1, "{tasks} tasks");
        }
    }

    /// However its connections are taken: by nobody, by somebody who keeps them, or not any more.
    #[tokio::test]
    async fn a_hostile_guest_has_no_more_streams_than_any_other() {
        for kept in [0, OPEN_MAX * 4] {
            for hung_up in [false, true] {
                let tasks = Tasks::new();
                let (mut deaf, mut connections) = deaf(&tasks);
                let mut taken = Vec::new();
                for of in 0..100_000 {
                    deaf.hear(Kind::Dial, of, 0);
                    deaf.hear(Kind::Data, of, 1);
                    deaf.hear(Kind::Reset, of, 0);
                    if taken.len() < kept
                        && let Ok(connection) = connections.try_recv()
                    {
                        taken.push(connection);
                    }
                    if of == 1000 && hung_up {
                        connections.close();
                        taken.clear();
                    }
                    if of % 100 == 0 {
                        yield_now().await;
                    }
                    deaf.check();
                }
                drop((deaf, taken, connections));
                tasks.stop();
                assert!(tasks.shutdown(WATCHDOG).await, "its tasks end");
            }
        }
    }

    #[tokio::test]
    async fn a_piece_that_is_too_long_and_one_too_many_end_their_stream() {
        let tasks = Tasks::new();
        let (mut deaf, mut connections) = deaf(&tasks);
        for (of, pieces, len) in [(1, 1, PIECE_LEN_MAX + 1), (2, WINDOW + 2, PIECE_LEN_MAX)] {
            deaf.hear(Kind::Dial, of, 0);
            for _ in 0..pieces {
                deaf.hear(Kind::Data, of, len);
            }
            let mut connection = connections.recv().await.unwrap();
            let mut kept = Vec::new();
            let read = timeout(WATCHDOG, connection.read_to_end(&mut kept)).await;
            read.unwrap().unwrap();
            let expected = if of == 1 { 0 } else { (WINDOW + 1) * len };
            assert_eq!(kept.len(), expected, "{of}");
        }
    }

    /// A browser's, or a pool's: as many at once as a guest has.
    #[tokio::test]
    async fn nobody_is_turned_away_for_having_come_with_others() {
        let tasks = Tasks::new();
        let (ours, mut guest) = UnixStream::pair().unwrap();
        let mut connections = way(ours, &tasks);
        let mut bytes = Vec::new();
        let all = u32::try_from(STREAMS_MAX).unwrap();
        for of in 1..=all {
            encode(Kind::Dial, of, b"", &mut bytes);
            encode(Kind::Data, of, &of.to_le_bytes(), &mut bytes);
        }
        guest.write_all(&bytes).await.unwrap();
        for of in 1..=all {
            let mut connection = connections.recv().await.unwrap();
            let said = timeout(WATCHDOG, connection.read_u32_le()).await;
            assert_eq!(said.unwrap().unwrap(), of);
        }
    }
}
