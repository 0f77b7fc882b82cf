//! The two endpoints and the relay between them, each in its place; what happens is timed.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tabbify_api::mesh::{PeerRecord, Resolver, Roster};
use tabbify_mesh::{
    Config, Mesh, Path, PrivateKey, Relay, RelayLimits, RelayServer, RelayTls, Stream,
};
use tabbify_process::{Importance, Tasks};
use tabbify_types::APP_PORT;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::time::Instant;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::lab::Lab;
use crate::place::Place;
use crate::{Extra, Fallible};

/// LIMIT: until the relay carries, and until a direct path is there.
const RELAY_WITHIN: Duration = Duration::from_secs(15);
const DIRECT_WITHIN: Duration = Duration::from_secs(90);
/// Three, and what the processing takes of a round trip of 100 ms.
const TRIPS_MAX: f64 = 5.0;
/// So long no direct path is found where none can be.
const RELAY_STAYS: Duration = Duration::from_secs(3);
const SERVER: [Ipv4Addr; 2] = [
    Ipv4Addr::new(198, 51, 100, 2),
    Ipv4Addr::new(198, 51, 100, 3),
];
const SERVER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 5, 0, 0, 0, 0, 2);
const STUN_PORT: u16 = 3478;

/// An endpoint in its place, with a runtime whose threads are there too.
struct End {
    runtime: Arc<Runtime>,
    mesh: Mesh,
}

fn runtime() -> std::io::Result<Arc<Runtime>> {
    let runtime = Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    Ok(Arc::new(runtime))
}

fn inner(n: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd5a, 0x1f02, n, 0, 0, 0, 0, 1)
}

fn certificate() -> Fallible<Arc<ServerConfig>> {
    let made = rcgen::generate_simple_self_signed(vec!["relay.test".to_owned()])?;
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], PrivateKeyDer::Pkcs8(key))?;
    Ok(Arc::new(config))
}

/// Runs a relay in the server's place.
fn relay(place: &Place, roster: &Arc<Roster>, tasks: &Tasks) -> Fallible<(Arc<Runtime>, Relay)> {
    let (resolver, tasks) = (Arc::clone(roster) as Arc<dyn Resolver>, tasks.clone());
    place.run(move || {
        let runtime = runtime()?;
        let relay = runtime.block_on(async {
            let relay = Relay::new(
                PrivateKey::generate(),
                resolver,
                RelayLimits::default(),
                &tasks,
            );
            for address in SERVER {
                relay.serve_udp(UdpSocket::bind((address, STUN_PORT))?)?;
            }
            relay.serve_udp(UdpSocket::bind((SERVER_V6, STUN_PORT))?)?;
            let listener = TcpListener::bind((SERVER[0], 443)).await?;
            relay.serve_tls(listener, certificate()?);
            Fallible::Ok(relay)
        })?;
        Ok((runtime, relay))
    })?
}

/// Runs endpoint `n` in its place.
fn end(
    place: &Place,
    n: u16,
    (is_v6, extra): (bool, Extra),
    relay: &Relay,
    roster: &Arc<Roster>,
    tasks: &Tasks,
) -> Fallible<End> {
    let (resolver, tasks) = (Arc::clone(roster) as Arc<dyn Resolver>, tasks.clone());
    let any = SocketAddr::new(
        if is_v6 {
            Ipv6Addr::UNSPECIFIED.into()
        } else {
            Ipv4Addr::UNSPECIFIED.into()
        },
        0,
    );
    let mut config = Config::new(PrivateKey::generate(), vec![inner(n)], any);
    let udp = if is_v6 {
        SocketAddr::from((SERVER_V6, STUN_PORT))
    } else {
        SocketAddr::from((SERVER[0], STUN_PORT))
    };
    config.ask_nat = extra.asks();
    if extra != Extra::FarKnown {
        config.relays = vec![RelayServer {
            key: relay.key(),
            udp: Some(udp),
            tls: (!is_v6).then(|| RelayTls {
                address: (SERVER[0], 443).into(),
                name: "relay.test".to_owned(),
            }),
        }];
    }
    if !is_v6 {
        config.stun = vec![(SERVER[1], STUN_PORT).into()];
    }
    // Nobody knows where it is but through the relay.
    roster.put(PeerRecord::unrestricted(
        config.key.public(),
        vec![inner(n)],
        Vec::new(),
    ));
    place.run(move || {
        let runtime = runtime()?;
        let mesh = runtime.block_on(async { Mesh::bind(config, resolver, &tasks) })?;
        let entered = runtime.enter();
        let mut listener = mesh.listen(APP_PORT)?;
        let serve = async move {
            while let Ok(incoming) = listener.accept().await {
                let (mut reader, mut writer) = tokio::io::split(incoming.stream);
                let _ = tokio::io::copy(&mut reader, &mut writer).await;
            }
        };
        tasks.spawn("echo", Importance::Detached, serve);
        drop(entered);
        Ok(End { runtime, mesh })
    })?
}

fn path(mesh: &Mesh) -> Option<Path> {
    mesh.peers().first().and_then(|peer| peer.path)
}

/// Asks the echo, once; how long it took.
async fn ask(stream: &mut Stream) -> Fallible<Duration> {
    let began = Instant::now();
    let sent = tabbify_process::random::<64>();
    let mut got = [0; 64];
    stream.write_all(&sent).await?;
    tokio::time::timeout(Duration::from_secs(20), stream.read_exact(&mut got)).await??;
    if got != sent {
        return Err("the echo says something else".into());
    }
    Ok(began.elapsed())
}

/// The first of a pair, with a connection to the echo of the second, which is only watched.
struct Talk {
    mesh: Mesh,
    other: Mesh,
    stream: Stream,
    slowest: Duration,
}

impl Talk {
    /// Connects over whatever carries first.
    async fn begin(mesh: Mesh, other: Mesh) -> Fallible<Self> {
        let to = SocketAddrV6::new(inner(2), APP_PORT, 0, 0);
        let stream = mesh.dial(to).await?;
        let slowest = Duration::ZERO;
        Ok(Self {
            mesh,
            other,
            stream,
            slowest,
        })
    }

    fn is_direct(&self) -> bool {
        let direct = |mesh| path(mesh).is_some_and(|path| !path.is_relayed());
        direct(&self.mesh) && direct(&self.other)
    }

    /// Talks until both are direct, or neither is meant to be, or for so long; how long it took.
    async fn until(&mut self, direct: bool, most: Duration) -> Fallible<Duration> {
        let began = Instant::now();
        while self.is_direct() != direct && began.elapsed() < most {
            self.slowest = self.slowest.max(ask(&mut self.stream).await?);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(began.elapsed())
    }

    fn expect(&self, direct: bool) -> Fallible {
        if self.is_direct() == direct {
            return Ok(());
        }
        Err(format!("{:?} {:?}", self.mesh.peers(), self.other.peers()).into())
    }

    /// How many round trips the first request took: that of WireGuard's handshake, that of TCP's, its
    /// own. A packet that is lost costs half a second, which is five more.
    async fn count(&mut self, first: Duration) -> Fallible<String> {
        let mut fastest = Duration::MAX;
        for _ in 0..10 {
            fastest = fastest.min(ask(&mut self.stream).await?);
        }
        let trips = first.as_secs_f64() / fastest.as_secs_f64();
        let said = format!("{trips:.2} round trips of {fastest:.1?}");
        let stats = [self.mesh.stats(), self.other.stats()];
        if trips < TRIPS_MAX && stats.iter().all(|stats| stats.handshakes == 1) {
            return Ok(said);
        }
        Err(format!("{said} for the first request: {stats:?}").into())
    }

    /// Sends a megabyte there and back.
    async fn pass(self) -> Fallible {
        let sent: Vec<u8> = (0..1_000_000_u32)
            .map(|n| (n % 251).to_le_bytes()[0])
            .collect();
        let (mut reader, mut writer) = tokio::io::split(self.stream);
        let mut got = vec![0; sent.len()];
        let passed = async {
            let write = writer.write_all(&sent);
            let read = async { reader.read_exact(&mut got).await.map(drop) };
            tokio::try_join!(write, read)
        };
        tokio::time::timeout(DIRECT_WITHIN, passed).await??;
        if got == sent {
            Ok(())
        } else {
            Err("something else came back".into())
        }
    }
}

/// What came of a pair.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// Until both were known at the relay.
    known: Duration,
    /// From the dial to the first answer.
    first: Duration,
    /// From the first answer until both sides were direct, if they were to be.
    direct: Option<Duration>,
    /// Of all answers until then.
    slowest: Duration,
    changes: u64,
    /// What else there is to say.
    pub(crate) more: String,
}

impl Report {
    pub(crate) const HEADER: &str = "pair | known at the relay | first answer | direct after | \
                                     slowest answer | changes of the path |";

    /// As a row of the table.
    pub(crate) fn row(&self, name: &str) -> String {
        let direct = self.direct.map(|direct| format!("{direct:.1?}"));
        let Self {
            known,
            first,
            slowest,
            changes,
            more,
            ..
        } = self;
        let direct = direct.unwrap_or_else(|| "relayed".to_owned());
        format!(
            "{name} | {known:.1?} | {first:.1?} | {direct} | {slowest:.1?} | {changes} | {more}"
        )
    }
}

/// What is asked of a pair, by the first of the two; `other` is the second.
async fn story(
    mesh: Mesh,
    other: Mesh,
    is_direct: bool,
    extra: Extra,
    cut: Cut,
) -> Fallible<Report> {
    let began = Instant::now();
    let mut talk = Talk::begin(mesh, other).await?;
    ask(&mut talk.stream).await?;
    let mut report = Report {
        first: began.elapsed(),
        ..Report::default()
    };
    if extra.is_far() {
        report.more = talk.count(report.first).await?;
    }
    // Where none can be, none is found in a while either.
    let most = if is_direct {
        DIRECT_WITHIN
    } else {
        RELAY_STAYS
    };
    let took = talk.until(true, most).await?;
    talk.expect(is_direct)?;
    report.direct = is_direct.then_some(took);
    if extra == Extra::Broken {
        cut(true)?;
        let before = std::mem::take(&mut talk.slowest);
        let left = talk.until(false, DIRECT_WITHIN).await?;
        talk.expect(false)?;
        let pause = std::mem::replace(&mut talk.slowest, before);
        cut(false)?;
        let back = talk.until(true, DIRECT_WITHIN).await?;
        talk.expect(true)?;
        report.more = format!(
            "left after {left:.2?}, the first answer after {pause:.2?}, back after {back:.1?}"
        );
    }
    (report.slowest, report.changes) = (talk.slowest, talk.mesh.peers()[0].changes);
    // The connection is the same, and whole.
    talk.pass().await?;
    Ok(report)
}

type Cut = Box<dyn Fn(bool) -> Fallible + Send + Sync>;

/// Waits until both can be reached: the first by its relay, the second by it too or where it says.
async fn settle(ends: [&Mesh; 2], relay: &Relay, roster: &Roster, extra: Extra) -> Fallible {
    let known = async {
        if extra == Extra::FarKnown {
            let mut candidates = ends[1].candidates();
            let found = candidates
                .wait_for(|found| !found.is_empty())
                .await?
                .clone();
            let record = PeerRecord::unrestricted(ends[1].public_key(), vec![inner(2)], found);
            roster.put(record);
            return Fallible::Ok(());
        }
        while relay.stats().clients < 2 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    };
    tokio::time::timeout(RELAY_WITHIN, known).await?
}

/// Brings both ends up and lets the first talk to the second.
pub(crate) fn run(lab: &Lab, is_direct: bool, extra: Extra) -> Fallible<Report> {
    let (roster, tasks) = (Arc::new(Roster::default()), Tasks::new());
    let (_server, relay) = relay(&lab.server, &roster, &tasks)?;
    let ([first, second], kind) = (&lab.hosts, (lab.is_v6(), extra));
    let began = Instant::now();
    let node = end(first, 1, kind, &relay, &roster, &tasks)?;
    let runner = end(second, 2, kind, &relay, &roster, &tasks)?;
    let (mesh, other) = (node.mesh, runner.mesh);
    let settled = settle([&mesh, &other], &relay, &roster, extra);
    node.runtime.block_on(settled)?;
    let known = began.elapsed();
    let (cuts, told) = std::sync::mpsc::sync_channel::<bool>(1);
    let (done, obeyed) = std::sync::mpsc::sync_channel::<Result<(), String>>(1);
    let obeyed = Mutex::new(obeyed);
    let cut: Cut = Box::new(move |cut| {
        cuts.send(cut)?;
        let obeyed = obeyed.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(obeyed.recv()??)
    });
    let runtime = Arc::clone(&node.runtime);
    let story = first.start(move || runtime.block_on(story(mesh, other, is_direct, extra, cut)))?;
    // The laboratory is not the story's to touch: it asks for it.
    for cut in told {
        done.send(lab.cut(cut).map_err(|error| error.to_string()))?;
    }
    let report = story.recv()?;
    let report = report.map_err(|error| format!("{error}; {:?}", relay.stats()))?;
    if let Some(failure) = tasks.failure() {
        return Err(failure.into());
    }
    Ok(Report { known, ..report })
}
