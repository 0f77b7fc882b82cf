//! Hostile datagrams on every UDP port of ours: the WireGuard socket, and that of a relay, which is a STUN
//! server too. What is sent are real datagrams of a living network, recorded on their way and changed;
//! from a stranger's address, and from those of the peers and the relay themselves.
//!
//! `TABBIFY_TEST_LENGTH=long` sends a hundred times as many.
#![expect(clippy::print_stderr, reason = "figures for people")]

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{TestCaseError, TestRunner};
use tabbify_api::mesh::{PeerRecord, Resolver, Roster};
use tabbify_mesh::{
    Config, Mesh, PrivateKey, Relay, RelayLimits, RelayServer, StackChoice, StackInUse, Stream,
};
use tabbify_process::{Importance, Tasks};
use tabbify_types::APP_PORT;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UdpSocket;
use tokio::runtime::Runtime;
use tokio::time::Instant;

type Fallible<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

const WATCHDOG: Duration = Duration::from_secs(30);
const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
/// LIMIT: datagrams that a tap records.
const RECORDED_MAX: usize = 400;
/// How a frame of a relay with a peer's datagram begins; two names of 8 bytes follow.
const PASSED_ON: [u8; 2] = [0xd2, 16];
/// Datagrams between two looks at the stream.
const BATCH: usize = 24;
/// Where they go in at: two ends of three taps, and two sockets from a stranger.
const GATES: usize = 8;

/// Stands between one client and one server, and records what they say.
struct Tap {
    /// Towards the client, which takes it for the server.
    near: UdpSocket,
    /// Towards the server, which takes it for the client.
    far: UdpSocket,
    client: Mutex<Option<SocketAddr>>,
    server: Mutex<Option<SocketAddr>>,
    recorded: Mutex<Vec<Vec<u8>>>,
}

fn get<T: Copy>(from: &Mutex<T>) -> T {
    *from.lock().unwrap_or_else(PoisonError::into_inner)
}

fn set<T>(to: &Mutex<T>, value: T) {
    *to.lock().unwrap_or_else(PoisonError::into_inner) = value;
}

impl Tap {
    async fn start(tasks: &Tasks) -> Fallible<Arc<Self>> {
        let tap = Arc::new(Self {
            near: UdpSocket::bind(LOOPBACK).await?,
            far: UdpSocket::bind(LOOPBACK).await?,
            client: Mutex::default(),
            server: Mutex::default(),
            recorded: Mutex::default(),
        });
        for inward in [true, false] {
            let tap = Arc::clone(&tap);
            tasks.spawn("tap", Importance::Detached, async move {
                let mut room = vec![0; 65_536];
                loop {
                    tap.pass(inward, &mut room).await;
                }
            });
        }
        Ok(tap)
    }

    async fn pass(&self, inward: bool, room: &mut [u8]) {
        let (from, to) = if inward {
            (&self.near, &self.server)
        } else {
            (&self.far, &self.client)
        };
        let Ok((len, sender)) = from.recv_from(room).await else {
            return;
        };
        if inward {
            set(&self.client, Some(sender));
        }
        self.record(&room[..len]);
        if let Some(to) = get(to) {
            let out = if inward { &self.far } else { &self.near };
            // What is not sent is lost, as on any network.
            let _ = out.send_to(&room[..len], to).await;
        }
    }

    fn all(&self) -> Vec<Vec<u8>> {
        let recorded = self.recorded.lock().unwrap_or_else(PoisonError::into_inner);
        recorded.clone()
    }

    fn record(&self, datagram: &[u8]) {
        let mut recorded = self.recorded.lock().unwrap_or_else(PoisonError::into_inner);
        // What a relay passes on is worth recording by itself, too.
        let inner = datagram
            .strip_prefix(&PASSED_ON)
            .and_then(|rest| rest.get(16..));
        if recorded.len() < RECORDED_MAX {
            recorded.push(datagram.to_vec());
            recorded.extend(inner.map(<[u8]>::to_vec));
        }
    }

    /// Sends in the name of the client to the server, or the other way round.
    fn inject(&self, inward: bool, datagram: &[u8]) {
        let (out, to) = if inward {
            (&self.far, get(&self.server))
        } else {
            (&self.near, get(&self.client))
        };
        if let Some(to) = to {
            let _ = out.try_send_to(datagram, to);
        }
    }
}

/// Two endpoints that reach each other directly and over a relay, through taps everywhere.
struct Net {
    tasks: Tasks,
    relay: Relay,
    meshes: [Mesh; 2],
    stream: Stream,
    taps: [Arc<Tap>; 3],
    stranger: std::net::UdpSocket,
    targets: [SocketAddr; 2],
}

fn inner(n: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd5a, 0x1f02, n, 0, 0, 0, 0, 1)
}

impl Net {
    async fn new(stack: StackChoice) -> Fallible<Self> {
        let (roster, tasks) = (Arc::new(Roster::default()), Tasks::new());
        let resolver = Arc::clone(&roster) as Arc<dyn Resolver>;
        let relay = Relay::new(
            PrivateKey::generate(),
            Arc::clone(&resolver),
            RelayLimits::default(),
            &tasks,
        );
        let relay_at = relay.serve_udp(std::net::UdpSocket::bind(LOOPBACK)?)?;
        let taps = [
            Tap::start(&tasks).await?,
            Tap::start(&tasks).await?,
            Tap::start(&tasks).await?,
        ];
        let mut meshes = Vec::new();
        for (n, tap) in (1..).zip(&taps[..2]) {
            set(&tap.server, Some(relay_at));
            let mut config = Config::new(PrivateKey::generate(), vec![inner(n)], LOOPBACK);
            config.stack = stack;
            config.relays = vec![RelayServer {
                key: relay.key(),
                udp: Some(tap.near.local_addr()?),
                tls: None,
            }];
            // The answers to a handshake are all there are: a cookie, and the response.
            config.limits.handshakes_per_second = 0;
            let endpoints = match n {
                2 => vec![taps[2].near.local_addr()?],
                _ => Vec::new(),
            };
            let key = config.key.public();
            let record = PeerRecord::unrestricted(key, vec![inner(n)], endpoints);
            roster.put(record);
            meshes.push(Mesh::bind(config, Arc::clone(&resolver), &tasks)?);
        }
        let meshes: [Mesh; 2] = meshes.try_into().map_err(|_| "two were bound")?;
        set(&taps[2].server, Some(meshes[1].underlay_addr()?));
        let targets = [meshes[1].underlay_addr()?, relay_at];
        let stream = connect(&meshes, &relay, &tasks).await?;
        let stranger = std::net::UdpSocket::bind(LOOPBACK)?;
        Ok(Self {
            tasks,
            relay,
            meshes,
            stream,
            taps,
            stranger,
            targets,
        })
    }

    /// Everything recorded, once there is some of everything.
    async fn recorded(&self) -> Fallible<Vec<Vec<u8>>> {
        // WireGuard's four messages, probes, the relay's frames, STUN's request and answer.
        let kinds: [&[u8]; 8] = [
            &[1, 0, 0, 0],
            &[2, 0, 0, 0],
            &[3, 0, 0, 0],
            &[4, 0, 0, 0],
            &[0xd1],
            &[0xd2],
            &[0, 1],
            &[1, 1],
        ];
        let began = Instant::now();
        loop {
            let taps = self.taps.iter();
            let all: Vec<Vec<u8>> = taps.flat_map(|tap| tap.all()).collect();
            let has = |kind: &[u8]| all.iter().any(|datagram| datagram.starts_with(kind));
            let missing = kinds.iter().find(|kind| !has(kind));
            let Some(missing) = missing else {
                return Ok(all);
            };
            if began.elapsed() > WATCHDOG {
                return Err(format!("nothing recorded that begins with {missing:?}").into());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn send(&self, gate: usize, datagram: &[u8]) {
        match gate {
            0..6 => self.taps[gate / 2].inject(gate.is_multiple_of(2), datagram),
            _ => {
                let _ = self.stranger.send_to(datagram, self.targets[gate % 2]);
            }
        }
    }

    /// Whether the stream still carries, and nothing else has come of it.
    async fn look(&mut self) -> Fallible {
        let sent = tabbify_process::random::<64>();
        let mut got = [0; 64];
        let exchange = async {
            self.stream.write_all(&sent).await?;
            self.stream.read_exact(&mut got).await
        };
        tokio::time::timeout(WATCHDOG, exchange).await??;
        if got != sent {
            return Err("the echo says something else".into());
        }
        if let Some(failure) = self.tasks.failure() {
            return Err(failure.into());
        }
        for mesh in &self.meshes {
            let stats = mesh.stats();
            if stats.sessions != 1 {
                return Err(format!("{stats:?}").into());
            }
        }
        Ok(())
    }
}

async fn connect(meshes: &[Mesh; 2], relay: &Relay, tasks: &Tasks) -> Fallible<Stream> {
    let registered = async {
        while relay.stats().clients < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(WATCHDOG, registered).await?;
    let mut listener = meshes[1].listen(APP_PORT)?;
    tasks.spawn("echo", Importance::Detached, async move {
        while let Ok(incoming) = listener.accept().await {
            let (mut reader, mut writer) = tokio::io::split(incoming.stream);
            let _ = tokio::io::copy(&mut reader, &mut writer).await;
        }
    });
    Ok(meshes[0]
        .dial(SocketAddrV6::new(inner(2), APP_PORT, 0, 0))
        .await?)
}

/// How a datagram is changed.
#[derive(Debug, Clone)]
enum Change {
    Cut(Index),
    Grow(Vec<u8>),
    Flip(Index, u8),
    Set(Index, u8),
    /// The end of another one, from the same place on.
    Cross(Index, Index),
    /// Numbers are in the first bytes: more often there.
    Head(usize, u8),
}

fn change() -> impl Strategy<Value = Change> {
    let bytes = proptest::collection::vec(any::<u8>(), 1..1400);
    prop_oneof![
        3 => any::<Index>().prop_map(Change::Cut),
        1 => bytes.prop_map(Change::Grow),
        3 => (any::<Index>(), 0..8u8).prop_map(|(at, bit)| Change::Flip(at, bit)),
        1 => (any::<Index>(), any::<u8>()).prop_map(|(at, to)| Change::Set(at, to)),
        1 => (any::<Index>(), any::<Index>()).prop_map(|(other, at)| Change::Cross(other, at)),
        3 => (0..48usize, any::<u8>()).prop_map(|(at, to)| Change::Head(at, to)),
    ]
}

fn apply(change: &Change, to: &mut Vec<u8>, all: &[Vec<u8>]) {
    if to.is_empty() {
        return;
    }
    match change {
        Change::Cut(at) => to.truncate(at.index(to.len())),
        Change::Grow(more) => to.extend(more),
        Change::Flip(at, bit) => {
            let at = at.index(to.len());
            to[at] ^= 1_u8 << bit;
        }
        Change::Set(at, byte) => {
            let at = at.index(to.len());
            to[at] = *byte;
        }
        Change::Cross(other, at) => {
            let (other, at) = (other.get(all), at.index(to.len()));
            to.truncate(at);
            to.extend(other.iter().skip(at));
        }
        Change::Head(at, byte) => {
            let at = at % to.len();
            to[at] = *byte;
        }
    }
}

fn run(name: &str, stack: StackChoice) -> Fallible {
    let runtime = Runtime::new()?;
    let mut net = runtime.block_on(Box::pin(Net::new(stack)))?;
    if let (StackChoice::Auto, StackInUse::Userspace { reason }) = (stack, net.meshes[0].stack()) {
        eprintln!("NOT RUN: {name}: {reason}");
        return Ok(());
    }
    runtime.block_on(net.look())?;
    let all = runtime.block_on(net.recorded())?;
    let is_long =
        tabbify_process::env::read("TABBIFY_TEST_LENGTH").is_some_and(|length| length == "long");
    let cases = if is_long { 10_000 } else { 100 };
    // A failure depends on what the network was doing: the input alone does not repeat it.
    let config = ProptestConfig {
        cases,
        failure_persistence: None,
        max_shrink_iters: 0,
        ..ProptestConfig::default()
    };
    let changes = proptest::collection::vec(change(), 0..4);
    let batch = proptest::collection::vec((0..GATES, any::<Index>(), changes), BATCH);
    let net = std::cell::RefCell::new(&mut net);
    let outcome = TestRunner::new(config).run(&batch, |batch| {
        let mut net = net.borrow_mut();
        for (gate, which, changes) in batch {
            let mut datagram = which.get(&all).clone();
            for change in &changes {
                apply(change, &mut datagram, &all);
            }
            net.send(gate, &datagram);
        }
        let looked = runtime.block_on(net.look());
        looked.map_err(|error| TestCaseError::fail(error.to_string()))
    });
    let net = net.into_inner();
    let stats = [net.meshes[0].stats(), net.meshes[1].stats()];
    eprintln!(
        "{} recorded, {cases} times {BATCH} sent: {stats:?}",
        all.len()
    );
    outcome?;
    if net.relay.stats().clients == 2 {
        Ok(())
    } else {
        Err(format!("{:?}", net.relay.stats()).into())
    }
}

#[test]
fn changed_datagrams_do_nothing() -> Fallible {
    run("changed_datagrams_do_nothing", StackChoice::Userspace)
}

#[test]
fn changed_datagrams_do_nothing_to_the_kernel_stack() -> Fallible {
    run(
        "changed_datagrams_do_nothing_to_the_kernel_stack",
        StackChoice::Auto,
    )
}
