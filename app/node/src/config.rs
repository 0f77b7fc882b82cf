//! What the node is told, and every limit it keeps. This page is the documented place for them.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// Port of the public listener.
pub const PORT: u16 = 8090;

/// LIMIT: connections served at once; one more is answered 429 and closed. Each costs at most the
/// buffers below.
pub const CONNECTIONS_MAX: usize = 2048;
/// LIMIT: bytes of a request's head; beyond it 431. Also what one connection buffers per direction.
pub const HEAD_LEN_MAX: usize = 64 * 1024;
/// LIMIT: header lines of a request or response.
pub const HEADERS_MAX: usize = 128;
/// LIMIT: requests at once on one HTTP/2 connection.
pub const H2_STREAMS_MAX: u32 = 128;
/// LIMIT: bytes of an HTTP/2 stream's window; the connection's is four of them.
pub const H2_WINDOW: u32 = 64 * 1024;
/// LIMIT: bytes of a JSON body, but for lists of files.
pub const JSON_LEN_MAX: usize = 64 * 1024;
/// LIMIT: bytes of a JSON list of files: 10,000 entries with paths of 512 bytes.
pub const FILE_LIST_LEN_MAX: usize = 8 * 1024 * 1024;
/// LIMIT: bytes of an uploaded `tabbify.toml`.
pub const MANIFEST_LEN_MAX: u64 = 256 * 1024;
/// LIMIT: bytes of an upload held in memory before they are stored; the smallest part that S3 takes.
pub const PART_LEN: usize = 5 * 1024 * 1024;
/// LIMIT: uploads at once; more wait.
pub const UPLOADS_MAX: usize = 8;
/// LIMIT: lists of announced files kept in memory; others are read again from the store.
pub const ANNOUNCED_MAX: usize = 8;
/// LIMIT: bytes of a refused request's body that are read away, so that its client sees the answer.
pub const REFUSED_BODY_LEN_MAX: usize = 1024 * 1024;
/// LIMIT: idle connections kept per app.
pub const IDLE_PER_APP_MAX: usize = 32;
/// LIMIT: idle connections kept for all apps.
pub const IDLE_MAX: usize = 1024;
/// LIMIT: bytes of a tunnel (an upgraded connection) in memory, per direction.
pub const TUNNEL_BUFFER_LEN: usize = 16 * 1024;
/// LIMIT: attempts to reserve a version number while others do too.
pub const RESERVE_ATTEMPTS_MAX: usize = 32;
/// LIMIT: deploys of one app that the view remembers and `GET /v1/deploys` lists.
pub const DEPLOYS_MAX: usize = 100;
/// LIMIT: steps of one deploy.
pub const STEPS_MAX: usize = 64;
/// LIMIT: lines of an app's log in one answer, if the caller does not say.
pub const LOG_TAIL_MAX: usize = 100_000;

/// What a node is given.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where to listen; loopback only. Port 0 picks a free one.
    pub listen: Vec<SocketAddr>,
    /// The platform's own host; apps are hosts below it.
    pub base_host: String,
    /// Where the view of the log is stored, so that the node starts while the log is away; without,
    /// it waits for the log.
    pub snapshots: Option<PathBuf>,
    /// Connections served at once.
    pub connections: usize,
    /// Times.
    pub timeouts: Timeouts,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: vec![SocketAddr::from((Ipv4Addr::LOCALHOST, PORT))],
            base_host: "localhost".to_owned(),
            snapshots: None,
            connections: CONNECTIONS_MAX,
            timeouts: Timeouts::default(),
        }
    }
}

/// LIMIT: how long the node waits, and for what.
#[derive(Debug, Clone)]
pub struct Timeouts {
    /// For a request's head, and for the next request on a kept connection.
    pub head: Duration,
    /// For the next bytes of a body that the node itself reads.
    pub body: Duration,
    /// For a connection to an app.
    pub connect: Duration,
    /// For a connection to an instance while others serve, too: then one of them is tried.
    pub elsewhere: Duration,
    /// For an app's answer to begin, from the last byte that the app was sent.
    pub first_byte: Duration,
    /// For the next byte, in either direction, of an answer or tunnel that has begun. Long, since
    /// an event stream may be quiet; a client or an app that is gone is noticed at once.
    pub idle: Duration,
    /// For a kept connection to an app to be used again. Less than the time after which the runner
    /// closes it, so that it is rarely closed under a request.
    pub pooled: Duration,
    /// For requests to end after shutdown began.
    pub drain: Duration,
    /// For the view of the log to reach a position that the node itself has written.
    pub view: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            head: Duration::from_secs(30),
            body: Duration::from_secs(60),
            connect: Duration::from_secs(60),
            elsewhere: Duration::from_secs(2),
            first_byte: Duration::from_secs(60),
            idle: Duration::from_secs(3600),
            pooled: Duration::from_secs(20),
            drain: Duration::from_secs(10),
            view: Duration::from_secs(10),
        }
    }
}
