//! A log behind a service whose tokens end when a test says so, and connections that break.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tabbify_api::BoxFuture;
use tabbify_api::auth::AuthError;
use tabbify_api::log::{Authorize, EventLog, LogEngine, LogScope};
use tabbify_log::{
    Connect, Consumers, Log, RateLimited, Rates, RemoteLog, Service, Stream, UnixSocket,
};
use tabbify_process::{Importance, SystemClock, Tasks, unix};
use tabbify_types::Timestamp;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::UnixStream;

use crate::support::{Wrong, options};

const SOCKET: &str = "log.sock";

/// Gives out tokens, knows them again, and lets them end.
#[derive(Debug, Default)]
pub(crate) struct Tokens {
    scopes: Mutex<HashMap<String, LogScope>>,
    /// The token that clients carry.
    carried: Mutex<String>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Tokens {
    /// A new token.
    pub(crate) fn issue(&self, scope: LogScope) -> String {
        let mut scopes = lock(&self.scopes);
        let token = format!("token-{}", scopes.len());
        scopes.insert(token.clone(), scope);
        token
    }

    /// A new token, which clients carry from now on.
    pub(crate) fn carry(&self, scope: LogScope) {
        let token = self.issue(scope);
        *lock(&self.carried) = token;
    }

    /// Every token ends.
    pub(crate) fn end_all(&self) {
        lock(&self.scopes).values_mut().for_each(|scope| {
            *scope = LogScope {
                actor: String::new(),
                write: Vec::new(),
                read: Vec::new(),
            };
        });
    }
}

impl Authorize for Tokens {
    fn authorize(&self, token: &str) -> Result<LogScope, AuthError> {
        match lock(&self.scopes).get(token) {
            Some(scope) if scope.actor.is_empty() => {
                Err(AuthError::Expired(Timestamp::from_millis(0)))
            }
            Some(scope) => Ok(scope.clone()),
            None => Err(AuthError::Invalid("not one of ours".to_owned())),
        }
    }
}

/// A service, and where it listens.
pub(crate) struct Serving {
    pub(crate) log: Arc<Log>,
    pub(crate) engine: Arc<dyn LogEngine>,
    pub(crate) tokens: Arc<Tokens>,
    pub(crate) consumers: Arc<Consumers>,
    socket: tempfile::TempDir,
    tasks: Tasks,
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.tasks.stop();
    }
}

impl Serving {
    /// The log in `dir`, whose service believes tokens for a moment only.
    pub(crate) async fn open(dir: &Path, rates: Rates) -> Result<Self, Wrong> {
        let log = Arc::new(Log::open(dir, options().extent_lens(1 << 16, 1 << 16))?);
        let engine: Arc<dyn LogEngine> = Arc::new(RateLimited::new(log.clone(), rates));
        let (tasks, tokens) = (Tasks::new(), Arc::new(Tokens::default()));
        let states = dir.join("consumers");
        let clock = Arc::new(SystemClock);
        let consumers = Arc::new(Consumers::open(&states, log.clone(), clock, &tasks).await?);
        let service = Service::new(engine.clone(), consumers.clone(), tokens.clone(), &tasks);
        let socket = tempfile::tempdir()?;
        let listener = unix::bind(socket.path(), SOCKET)?;
        let serving = service
            .believing_for(Duration::from_millis(20))
            .serve_unix(listener);
        tasks.spawn("log service", Importance::Essential, serving);
        Ok(Self {
            log,
            engine,
            tokens,
            consumers,
            socket,
            tasks,
        })
    }

    /// The log in process.
    pub(crate) fn client(&self, scope: LogScope) -> Arc<dyn EventLog> {
        self.engine.client(scope)
    }

    /// The log over the socket, with the token that is carried.
    pub(crate) async fn remote(&self) -> Result<RemoteLog, Wrong> {
        self.remote_over(Arc::new(self.socket())).await
    }

    /// The log over connections of which each breaks after so many bytes.
    pub(crate) async fn fragile(&self, lens: &'static [usize]) -> Result<RemoteLog, Wrong> {
        let fragile = Fragile {
            socket: self.socket(),
            lens,
            next: Mutex::new(0),
        };
        self.remote_over(Arc::new(fragile)).await
    }

    async fn remote_over(&self, connect: Arc<dyn Connect>) -> Result<RemoteLog, Wrong> {
        let tokens = self.tokens.clone();
        let bearer = Arc::new(move || lock(&tokens.carried).clone());
        Ok(RemoteLog::connect(connect, bearer, &self.tasks).await?)
    }

    fn socket(&self) -> UnixSocket {
        UnixSocket {
            directory: self.socket.path().to_owned(),
            name: SOCKET.to_owned(),
        }
    }

    pub(crate) async fn stream(&self) -> Result<UnixStream, Wrong> {
        Ok(unix::connect(self.socket.path(), SOCKET).await?)
    }

    /// Sends a request as it stands and reads the whole answer: its head and its body.
    pub(crate) async fn send(&self, request: &str) -> Result<(String, String), Wrong> {
        let mut stream = self.stream().await?;
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        let (head, body) = answer.split_once("\r\n\r\n").ok_or("an answer")?;
        Ok((head.to_owned(), body.to_owned()))
    }
}

/// Connections that break: each takes and gives so many bytes and then no more.
#[derive(Debug)]
struct Fragile {
    socket: UnixSocket,
    lens: &'static [usize],
    next: Mutex<usize>,
}

impl Connect for Fragile {
    fn connect(&self) -> BoxFuture<'_, io::Result<Box<dyn Stream>>> {
        Box::pin(async {
            let inner = self.socket.connect().await?;
            let mut next = lock(&self.next);
            let left = self.lens[*next % self.lens.len()];
            *next += 1;
            Ok(Box::new(Breaking { inner, left }) as Box<dyn Stream>)
        })
    }
}

struct Breaking {
    inner: Box<dyn Stream>,
    left: usize,
}

impl AsyncRead for Breaking {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.left == 0 {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let mut bytes = [0; 4096];
        let len = self.left.min(buf.remaining()).min(bytes.len());
        let mut part = ReadBuf::new(&mut bytes[..len]);
        let polled = Pin::new(&mut self.inner).poll_read(context, &mut part);
        self.left -= part.filled().len();
        buf.put_slice(part.filled());
        polled
    }
}

impl AsyncWrite for Breaking {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let part = bytes.len().min(self.left);
        if part == 0 && !bytes.is_empty() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let written = Pin::new(&mut self.inner).poll_write(context, &bytes[..part]);
        if let Poll::Ready(Ok(written)) = written {
            self.left -= written;
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}
