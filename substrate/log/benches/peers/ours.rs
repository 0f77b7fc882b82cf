//! The log: served by a process of its own over TCP, used through the client that every role uses.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::value::RawValue;
use tabbify_api::BoxFuture;
use tabbify_api::auth::AuthError;
use tabbify_api::log::{Append, Authorize, EventLog, LogScope};
use tabbify_log::{
    Connect, Consumers, Log, Options, RateLimited, Rates, RemoteLog, Service, Stream,
};
use tabbify_process::{Clock as _, SystemClock, Tasks};
use tabbify_token::{Claims, Kind, PlatformId, PublicKey, SecretKey, Signer, Verifier};
use tabbify_types::{EventId, NewEvent, Segment, SegmentGlob, Tenant, Timestamp};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::append::Writer;
use crate::process::Running;

const AUDIENCE: &str = "tabbify-log";
/// Keys of the events: entities, each with its own history.
pub(crate) const EVENTS_OF_KEY: u64 = 200;
/// Batches under way while a log is filled.
const FILL_BATCH: u64 = 1_000;
const FILL_AHEAD: usize = 16;

pub(crate) fn segment() -> Segment {
    Segment::apps(&Tenant::main())
}

/// The payload of every peer: a JSON object of 256 bytes.
pub(crate) fn payload(n: u64) -> String {
    let start = format!("{{\"n\":{n},\"text\":\"");
    let len = 256 - start.len() - 2;
    format!("{start}{}\"}}", "x".repeat(len))
}

/// The key of the event `n`: each key has its events far apart.
pub(crate) fn key(n: u64, keys: u64) -> String {
    format!("key-{}", n % keys)
}

pub(crate) fn event(n: u64, keys: u64) -> anyhow::Result<NewEvent> {
    Ok(NewEvent {
        id: EventId::mint(),
        segment: segment(),
        key: key(n, keys),
        kind: "x.thing_happened".to_owned(),
        version: 1,
        cause: None,
        trace: None,
        data: RawValue::from_string(payload(n))?,
    })
}

/// The keys of both processes: this is a measurement, not a platform.
fn issuer() -> (Signer, Verifier) {
    let (root, key) = (
        SecretKey::from_seed(&[1; 32]).public(),
        SecretKey::from_seed(&[2; 32]),
    );
    let platform = PlatformId::of(&root);
    let public = PublicKey::try_from(key.public());
    let public = public.expect("INVARIANT: the public half of a key is a key");
    let verifier = Verifier::new(platform.clone()).with_key(public);
    (Signer::new(key, platform), verifier)
}

fn token() -> anyhow::Result<String> {
    let (signer, _) = issuer();
    let now = SystemClock.now();
    let later = Timestamp::from_millis(now.millis() + 3_600_000);
    Ok(signer.sign(&Claims {
        iss: signer.platform().clone(),
        sub: "service:bench".to_owned(),
        aud: AUDIENCE.to_owned(),
        kind: Kind::Service,
        tenant: Tenant::main(),
        tags: Vec::new(),
        scopes: Vec::new(),
        ulas: Vec::new(),
        cnf: None,
        join: None,
        iat: now,
        nbf: now,
        exp: later,
        jti: "bench".to_owned(),
    })?)
}

/// Signatures, times and audience are checked as in production.
#[derive(Debug)]
struct Tokens(Verifier);

impl Authorize for Tokens {
    fn authorize(&self, token: &str) -> Result<LogScope, AuthError> {
        let claims = self
            .0
            .verify(token, &[Kind::Service], AUDIENCE, SystemClock.now());
        let claims = claims.map_err(|error| AuthError::Invalid(error.to_string()))?;
        Ok(LogScope {
            actor: claims.sub,
            write: vec![
                "tenant_*.apps"
                    .parse()
                    .map_err(|error| AuthError::Invalid(format!("{error}")))?,
            ],
            read: vec![SegmentGlob::all()],
        })
    }
}

fn open(dir: &Path) -> anyhow::Result<Arc<Log>> {
    Ok(Arc::new(Log::open(
        dir,
        Options::new(Arc::new(SystemClock)),
    )?))
}

/// The serving process: says its address once it takes requests.
pub(crate) async fn serve(dir: &Path) -> anyhow::Result<()> {
    let tasks = Tasks::new();
    let log = open(&dir.join("log"))?;
    let clock = Arc::new(SystemClock);
    let consumers = Consumers::open(&dir.join("consumers"), log.clone(), clock, &tasks).await?;
    // The rate is counted and never reached.
    let rates = Rates {
        events_per_second: u32::MAX,
        events_burst: u32::MAX,
        bytes_per_second: u32::MAX,
        bytes_burst: u32::MAX,
    };
    let engine = Arc::new(RateLimited::new(log, rates));
    let tokens = Arc::new(Tokens(issuer().1));
    let service = Service::new(engine, Arc::new(consumers), tokens, &tasks);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    println!("{}", listener.local_addr()?);
    service.serve_tcp(listener).await;
    Ok(())
}

/// The filling process: appends `count` events, says so, and goes on until it is killed.
pub(crate) async fn fill(dir: &Path, count: u64) -> anyhow::Result<()> {
    let log = open(&dir.join("log"))?;
    fill_log(&log, count).await?;
    println!("{count}");
    let client = log.client(everything());
    for n in count.. {
        client.append(Append::of(vec![event(n, 1)?])).await?;
    }
    Ok(())
}

fn everything() -> LogScope {
    LogScope {
        actor: "service:bench".to_owned(),
        write: vec![SegmentGlob::all()],
        read: vec![SegmentGlob::all()],
    }
}

async fn fill_log(log: &Log, count: u64) -> anyhow::Result<()> {
    let keys = (count / EVENTS_OF_KEY).max(1);
    let client = log.client(everything());
    let mut under_way = tokio::task::JoinSet::new();
    let mut from = 0;
    while from < count {
        let upto = count.min(from + FILL_BATCH);
        let events: anyhow::Result<Vec<_>> = (from..upto).map(|n| event(n, keys)).collect();
        let (client, batch) = (client.clone(), Append::of(events?));
        under_way.spawn(async move { client.append(batch).await });
        if under_way.len() >= FILL_AHEAD
            && let Some(done) = under_way.join_next().await
        {
            done??;
        }
        from = upto;
    }
    while let Some(done) = under_way.join_next().await {
        done??;
    }
    Ok(())
}

/// A log of `count` events in `dir`, and as a role has it in its own process.
pub(crate) async fn filled(dir: &Path, count: u64) -> anyhow::Result<()> {
    let log = open(&dir.join("log"))?;
    fill_log(&log, count).await?;
    log.close().await;
    Ok(())
}

/// The log of `dir` in this process.
pub(crate) fn in_process(dir: &Path) -> anyhow::Result<(Arc<Log>, Arc<dyn EventLog>)> {
    let log = open(&dir.join("log"))?;
    let client = log.client(everything());
    Ok((log, client))
}

/// A log behind its service.
#[derive(Debug)]
pub(crate) struct Ours {
    pub(crate) running: Running,
    pub(crate) address: SocketAddr,
    tasks: Tasks,
}

impl Ours {
    pub(crate) async fn start(dir: &Path) -> anyhow::Result<Self> {
        let (running, line) = own_process(&["serve", &dir.to_string_lossy()]).await?;
        Ok(Self {
            running,
            address: line.parse()?,
            tasks: Tasks::new(),
        })
    }

    /// A client with a connection of its own.
    pub(crate) async fn client(&self) -> anyhow::Result<RemoteLog> {
        let token = token()?;
        let bearer = Arc::new(move || token.clone());
        let connect = Arc::new(Tcp(self.address));
        Ok(RemoteLog::connect(connect, bearer, &self.tasks).await?)
    }

    pub(crate) async fn writers(&self, count: usize) -> anyhow::Result<Vec<OurWriter>> {
        let mut writers = Vec::new();
        for _ in 0..count {
            writers.push(OurWriter(self.client().await?));
        }
        Ok(writers)
    }
}

/// Starts this program in another role and reads the first line that it says.
pub(crate) async fn own_process(words: &[&str]) -> anyhow::Result<(Running, String)> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut running = Running(command.spawn()?);
    let output = running.0.stdout.take().context("its output is piped")?;
    let output = tokio::process::ChildStdout::from_std(output)?;
    let mut lines = BufReader::new(output).lines();
    let line = tokio::time::timeout(Duration::from_secs(600), lines.next_line()).await??;
    Ok((running, line.context("it ended without a word")?))
}

#[derive(Debug)]
struct Tcp(SocketAddr);

impl Connect for Tcp {
    fn connect(&self) -> BoxFuture<'_, io::Result<Box<dyn Stream>>> {
        Box::pin(async {
            let stream = TcpStream::connect(self.0).await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as Box<dyn Stream>)
        })
    }
}

/// One writer.
#[derive(Debug)]
pub(crate) struct OurWriter(RemoteLog);

impl Writer for OurWriter {
    async fn append(&mut self, n: u64) -> anyhow::Result<()> {
        self.0.append(Append::of(vec![event(n, 1_000)?])).await?;
        Ok(())
    }
}

/// A writer in the log's own process.
#[derive(Debug)]
pub(crate) struct InProcess(pub(crate) Arc<dyn EventLog>);

impl Writer for InProcess {
    async fn append(&mut self, n: u64) -> anyhow::Result<()> {
        self.0.append(Append::of(vec![event(n, 1_000)?])).await?;
        Ok(())
    }
}
