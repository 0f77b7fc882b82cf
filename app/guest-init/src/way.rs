//! The app's way out: a proxy's port on the guest's own loopback, whose connections go to the host over a port of
//! the virtio console, where the runner's proxy serves them. The guest's network has no way out.
//!
//! ```text
//! program ─▶ 127.0.0.1:PROXY_PORT ─▶ thread `up` ──┐
//!                     ▲                            ├─▶ port [`PORT`] ─▶ host
//!                     └── thread `down` ◀── reader ┘
//! ```
//! Streams share the port, and none can hold another back: of each, [`WINDOW`] pieces at most are on their way in
//! either direction, and a place is free again when a piece was taken ([`Kind::Room`]). Threads of its own, since
//! the loop of [`crate::serve`] must never wait for a program's connection.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

use crate::channel::open_port;
use crate::console;
use crate::wire::{Decoder, Frame, Kind, encode};

/// The name of the port of the machine's virtio console.
pub const PORT: &str = "tabbify.way";
/// Where programs find the proxy, on the guest's loopback: the port at which containers find theirs, and one that
/// no image is known to listen on itself.
pub const PROXY_PORT: u16 = 731;
/// LIMIT: pieces of one stream on their way in one direction.
pub const WINDOW: usize = 16;
/// LIMIT: bytes of a piece.
pub const PIECE_LEN_MAX: usize = 16 << 10;
/// LIMIT: streams at a time; more wait to be accepted.
pub const STREAMS_MAX: usize = 64;
/// Bytes of a thread's stack: each holds one piece.
const STACK_LEN: usize = 96 << 10;

/// Opens the way. The threads live as long as the machine.
pub(crate) fn open() -> Result<(), String> {
    let port = open_port(PORT)?;
    let failed = |error: io::Error| format!("the way out: {error}");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, PROXY_PORT)).map_err(failed)?;
    let from = port.try_clone().map_err(failed)?;
    let way = Arc::new(Way {
        port: Mutex::new(port),
        streams: Mutex::default(),
        fewer: Condvar::new(),
    });
    let reading = Arc::clone(&way);
    spawn(move || reading.read(from)).map_err(failed)?;
    spawn(move || accept(&way, &listener)).map_err(failed)
}

fn spawn(life: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let thread = thread::Builder::new().stack_size(STACK_LEN);
    thread.spawn(life).map(drop)
}

struct Way {
    port: Mutex<File>,
    streams: Mutex<BTreeMap<u32, Stream>>,
    /// Notified when one has ended.
    fewer: Condvar,
}

/// A connection, as the reader and the accepting thread see it.
struct Stream {
    pieces: SyncSender<Option<Vec<u8>>>,
    room: Arc<Room>,
    socket: TcpStream,
    /// Directions that have not ended.
    open: u8,
}

/// Places for pieces to the host.
struct Room {
    free: Mutex<usize>,
    more: Condvar,
}

impl Room {
    fn take(&self) {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.more.wait_while(free, |free| *free == 0);
        *waited.unwrap_or_else(PoisonError::into_inner) -= 1;
    }

    fn give(&self) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        *free = (*free + 1).min(WINDOW);
        self.more.notify_one();
    }
}

impl Way {
    fn send(&self, kind: Kind, of: u32, payload: &[u8]) {
        let mut frame = Vec::new();
        encode(kind, of, payload, &mut frame);
        let mut port = self.port.lock().unwrap_or_else(PoisonError::into_inner);
        // A host that has gone ends the machine; that is not this thread's to do.
        let _ = port.write_all(&frame);
    }

    fn with<T>(&self, of: u32, see: impl FnOnce(&mut Stream) -> T) -> Option<T> {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        streams.get_mut(&of).map(see)
    }

    /// One direction has ended, by its end or a failure.
    fn half(&self, of: u32) {
        let left = self.with(of, |stream| {
            stream.open = stream.open.saturating_sub(1);
            stream.open
        });
        if left == Some(0) {
            let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
            streams.remove(&of);
            self.fewer.notify_one();
        }
    }

    /// What comes from the host.
    fn read(&self, mut from: File) {
        let mut decoder = Decoder::default();
        let mut chunk = vec![0; 32 << 10];
        loop {
            let count = match from.read(&mut chunk) {
                Ok(0) | Err(_) => return,
                Ok(count) => count,
            };
            decoder.push(&chunk[..count]);
            loop {
                match decoder.take() {
                    Ok(Some(frame)) => self.take(frame),
                    Ok(None) => break,
                    Err(error) => return console::say(&format!("the way out: {error}")),
                }
            }
        }
    }

    fn take(&self, frame: Frame) {
        let of = frame.of;
        match frame.kind {
            // The host keeps to the window, so that there is room; without, nothing may be left out.
            Kind::Data => drop(self.with(of, |it| {
                if it.pieces.try_send(Some(frame.payload)).is_err() {
                    drop(it.socket.shutdown(Shutdown::Both));
                }
            })),
            Kind::End => drop(self.with(of, |it| it.pieces.try_send(None))),
            Kind::Room => drop(self.with(of, |it| it.room.give())),
            Kind::Reset => {
                let closed = self.with(of, |it| {
                    it.room.give();
                    drop(it.pieces.try_send(None));
                    it.socket.shutdown(Shutdown::Both)
                });
                drop(closed);
            }
            _ => {}
        }
    }
}

fn accept(way: &Arc<Way>, listener: &TcpListener) {
    let mut next = 1_u32;
    loop {
        let streams = way.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let full = |streams: &mut BTreeMap<u32, Stream>| streams.len() >= STREAMS_MAX;
        drop(way.fewer.wait_while(streams, full));
        let Ok((socket, _)) = listener.accept() else {
            continue;
        };
        if let Err(error) = begin(way, next, socket) {
            console::say(&format!("a way out: {error}"));
        }
        next = next.checked_add(1).unwrap_or(1);
    }
}

fn begin(way: &Arc<Way>, of: u32, socket: TcpStream) -> io::Result<()> {
    let (pieces, taken) = sync_channel(WINDOW + 2);
    let room = Arc::new(Room {
        free: Mutex::new(WINDOW),
        more: Condvar::new(),
    });
    let [from, to] = [socket.try_clone()?, socket.try_clone()?];
    let stream = Stream {
        pieces,
        room: Arc::clone(&room),
        socket,
        open: 2,
    };
    let mut streams = way.streams.lock().unwrap_or_else(PoisonError::into_inner);
    streams.insert(of, stream);
    drop(streams);
    way.send(Kind::Dial, of, b"");
    let (upward, downward) = (Arc::clone(way), Arc::clone(way));
    let begun = spawn(move || up(&upward, of, from, &room))
        .and_then(|()| spawn(move || down(&downward, of, to, &taken)));
    if begun.is_err() {
        way.send(Kind::Reset, of, b"");
        way.half(of);
        way.half(of);
    }
    begun
}

/// From the program to the host.
fn up(way: &Way, of: u32, mut from: TcpStream, room: &Room) {
    let mut piece = vec![0; PIECE_LEN_MAX];
    while let Ok(count @ 1..) = from.read(&mut piece) {
        room.take();
        way.send(Kind::Data, of, &piece[..count]);
    }
    way.send(Kind::End, of, b"");
    way.half(of);
}

/// From the host to the program.
fn down(way: &Way, of: u32, mut to: TcpStream, pieces: &Receiver<Option<Vec<u8>>>) {
    while let Ok(Some(piece)) = pieces.recv() {
        if to.write_all(&piece).is_err() {
            // The program has gone: what is still to come is for nobody.
            way.send(Kind::Reset, of, b"");
            break;
        }
        way.send(Kind::Room, of, b"");
    }
    // It may have closed it itself.
    let _ = to.shutdown(Shutdown::Write);
    way.half(of);
}
