//! A flood of handshakes: what it leaves of a living stream, beside the same packets sent to a port that
//! nobody has, and that whoever is honest still gets in. The figures of a release build are those of
//! `cargo xtask bench mesh`; here it must be of the right order, in the best of some alternating rounds: what
//! else the machine does takes from single ones.

#[path = "common/initiations.rs"]
mod initiations;

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tabbify_api::mesh::{PeerRecord, Resolver, Roster};
use tabbify_mesh::{Config, Mesh, PrivateKey, Stats};
use tabbify_process::{Importance, Tasks};
use tabbify_types::APP_PORT;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{Instant, MissedTickBehavior};

type Fallible<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

const WATCHDOG: Duration = Duration::from_secs(60);
/// So many packets, so often: 5,000 a second.
const SALVO: usize = 25;
const PAUSE: Duration = Duration::from_millis(5);
/// How long the stream is measured each time, and how often both ways.
const WINDOW: Duration = Duration::from_millis(400);
/// LIMIT: rounds; no more are needed once one was good.
const ROUNDS: u32 = 12;
/// The share of the goodput that a flood must leave.
const SHARE: f64 = 0.5;
/// Addresses that the flood comes from; the first is that of everybody else, too.
const SOURCES: u8 = 32;

fn inner(n: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd5a, 0x1f02, n, 0, 0, 0, 0, 1)
}

fn mesh(n: u16, roster: &Arc<Roster>, tasks: &Tasks) -> Fallible<Mesh> {
    let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let config = Config::new(PrivateKey::generate(), vec![inner(n)], loopback);
    let mesh = Mesh::bind(config, Arc::clone(roster) as Arc<dyn Resolver>, tasks)?;
    let endpoints = vec![mesh.underlay_addr()?];
    let record = PeerRecord::unrestricted(mesh.public_key(), vec![inner(n)], endpoints);
    roster.put(record);
    Ok(mesh)
}

/// Sends packets from many addresses until it is dropped.
async fn flood(packets: Arc<Vec<Vec<u8>>>, to: SocketAddr) -> Fallible {
    let sources = (1..=SOURCES).map(|n| UdpSocket::bind((Ipv4Addr::new(127, 0, 0, n), 0)));
    let sources: Vec<UdpSocket> = sources.collect::<Result<_, _>>()?;
    let mut salvos = tokio::time::interval(PAUSE);
    salvos.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut next = 0_usize;
    loop {
        salvos.tick().await;
        for _ in 0..SALVO {
            next += 1;
            // What the kernel has no room for is lost, as on any network.
            let _ = sources[next % sources.len()].send_to(&packets[next % packets.len()], to);
        }
    }
}

/// Bytes that arrive within a window of a flood.
async fn goodput(
    arrived: &AtomicU64,
    packets: &Arc<Vec<Vec<u8>>>,
    to: SocketAddr,
    tasks: &Tasks,
) -> Fallible<f64> {
    let (packets, flooding) = (Arc::clone(packets), tasks.child());
    let flood = async move {
        // Without sources there is no flood, and nothing is dropped of it.
        let _ = flood(packets, to).await;
    };
    let flood = flooding.spawn("flood", Importance::Detached, flood);
    // It has begun when the measurement does.
    tokio::time::sleep(PAUSE * 20).await;
    let (before, began) = (arrived.load(Ordering::Relaxed), Instant::now());
    tokio::time::sleep(WINDOW).await;
    let (bytes, took) = (arrived.load(Ordering::Relaxed) - before, began.elapsed());
    flood.abort();
    #[expect(clippy::cast_precision_loss, reason = "bytes of a second")]
    let bytes = bytes as f64;
    Ok(bytes / took.as_secs_f64())
}

fn judged(stats: &Stats) -> u64 {
    stats.dropped_unknown_key + stats.dropped_rate_limited + stats.dropped_handshake
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_handshakes_leaves_a_stream_alone() -> Fallible {
    let (roster, tasks) = (Arc::new(Roster::default()), Tasks::new());
    let (node, runner) = (mesh(1, &roster, &tasks)?, mesh(2, &roster, &tasks)?);
    let mut packets = initiations::strangers(runner.public_key(), 2000);
    packets.extend(initiations::noise(1000));
    let packets = Arc::new(packets);
    let app = SocketAddrV6::new(inner(2), APP_PORT, 0, 0);
    let mut listener = runner.listen(APP_PORT)?;
    let mut stream = node.dial(app).await?;
    let mut incoming = listener.accept().await?.stream;
    let arrived = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&arrived);
    tasks.spawn("sink", Importance::Detached, async move {
        let mut room = vec![0; 128 * 1024];
        while let Ok(read @ 1..) = incoming.read(&mut room).await {
            counter.fetch_add(read as u64, Ordering::Relaxed);
        }
    });
    tasks.spawn("source", Importance::Detached, async move {
        let chunk = vec![7; 128 * 1024];
        while stream.write_all(&chunk).await.is_ok() {}
    });
    let open = runner.underlay_addr()?;
    let closed = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
    let (began, mut shares) = (Instant::now(), Vec::new());
    for round in 0..ROUNDS {
        // Once the one first and once the other, for a machine that gets busier or less so.
        let mut ways = [(closed, 0.0), (open, 0.0)];
        if round % 2 == 1 {
            ways.reverse();
        }
        for (to, got) in &mut ways {
            *got = goodput(&arrived, &packets, *to, &tasks).await?;
        }
        ways.sort_by_key(|(to, _)| *to == open);
        let [(_, spared), (_, flooded)] = ways;
        let share = flooded / spared;
        shares.push(share);
        if share > SHARE && judged(&runner.stats()) > 1000 {
            break;
        }
    }
    let stats = runner.stats();
    eprintln!("goodput under a flood, of that beside one: {shares:.2?}; {stats:?}");
    let best = shares.iter().copied().fold(0.0, f64::max);
    assert!(best > SHARE, "{shares:?}");
    // It was a flood, and of those that take arithmetic few were looked at.
    assert!(judged(&stats) > 1000, "{stats:?}");
    let seconds = began.elapsed().as_secs() + 2;
    assert!(stats.dropped_unknown_key < 500 * seconds, "{stats:?}");
    assert_eq!(stats.sessions, 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_honest_gets_in_during_a_flood() -> Fallible {
    let (roster, tasks) = (Arc::new(Roster::default()), Tasks::new());
    let runner = mesh(2, &roster, &tasks)?;
    let packets = Arc::new(initiations::strangers(runner.public_key(), 1000));
    let mut listener = runner.listen(APP_PORT)?;
    let to = runner.underlay_addr()?;
    let flood = async move {
        let _ = flood(packets, to).await;
    };
    let flood = tasks.spawn("flood", Importance::Detached, flood);
    let flooded = async {
        while judged(&runner.stats()) < 2000 {
            tokio::time::sleep(PAUSE).await;
        }
    };
    tokio::time::timeout(WATCHDOG, flooded).await?;
    let began = Instant::now();
    let node = mesh(1, &roster, &tasks)?;
    let app = SocketAddrV6::new(inner(2), APP_PORT, 0, 0);
    let mut stream = node.dial(app).await?;
    let mut incoming = tokio::time::timeout(WATCHDOG, listener.accept()).await??;
    stream.write_all(b"still here").await?;
    let mut got = [0; 10];
    tokio::time::timeout(WATCHDOG, incoming.stream.read_exact(&mut got)).await??;
    assert_eq!(&got, b"still here");
    flood.abort();
    eprintln!("in after {:.1?}; {:?}", began.elapsed(), runner.stats());
    Ok(())
}
