//! Two endpoints and more on the real loopback: what a user of the library can rely on, whichever
//! TCP/IP stack each of them has. The list at the end says which test runs for which pair of stacks;
//! those with the kernel's need the right to make a network namespace, or a user namespace.
#![expect(clippy::print_stderr, reason = "a test that cannot run says so")]

use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tabbify_api::BoxFuture;
use tabbify_api::mesh::{PeerRecord, ResolveError, Resolver, Roster};
use tabbify_mesh::{
    Config, DialError, Listener, Mesh, MeshError, PrivateKey, StackChoice, StackInUse, Stats,
    Stream,
};
use tabbify_process::{Importance, Tasks};
use tabbify_types::{APP_PORT, MeshKey};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::Instant;

type Fallible<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// A test that waits for this long is stuck.
const WATCHDOG: Duration = Duration::from_secs(60);

struct Net {
    roster: Arc<Roster>,
    tasks: Tasks,
    /// That of the node, which is number 1 and dials, and that of everybody else.
    stacks: [StackChoice; 2],
}

impl Net {
    fn new(stacks: [StackChoice; 2]) -> Self {
        Self {
            roster: Arc::default(),
            tasks: Tasks::new(),
            stacks,
        }
    }

    /// How endpoint `n` is configured.
    fn config(&self, n: u16, key: PrivateKey) -> Config {
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut config = Config::new(key, vec![inner(n)], loopback);
        config.stack = self.stacks[usize::from(n != 1)];
        config
    }

    /// An endpoint that nobody knows yet.
    fn stranger(&self, n: u16, key: PrivateKey) -> Fallible<Mesh> {
        let config = self.config(n, key);
        Ok(Mesh::bind(
            config,
            Arc::clone(&self.roster) as Arc<dyn Resolver>,
            &self.tasks,
        )?)
    }

    fn publish(&self, n: u16, mesh: &Mesh) -> Fallible {
        let endpoints = vec![mesh.underlay_addr()?];
        let record = PeerRecord::unrestricted(mesh.public_key(), vec![inner(n)], endpoints);
        self.roster.put(record);
        Ok(())
    }

    fn mesh(&self, n: u16) -> Fallible<Mesh> {
        let mesh = self.stranger(n, PrivateKey::generate())?;
        self.publish(n, &mesh)?;
        Ok(mesh)
    }

    fn serve<F>(&self, mut listener: Listener, handle: impl Fn(Stream) -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let tasks = self.tasks.clone();
        self.tasks.spawn("serve", Importance::Detached, async move {
            while let Ok(incoming) = listener.accept().await {
                tasks.spawn("connection", Importance::Detached, handle(incoming.stream));
            }
        });
    }
}

fn inner(n: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd5a, 0x1f02, n, 0, 0, 0, 0, 1)
}

fn app(n: u16) -> SocketAddrV6 {
    SocketAddrV6::new(inner(n), APP_PORT, 0, 0)
}

async fn echo(mut stream: Stream) {
    let (mut reader, mut writer) = tokio::io::split(&mut stream);
    let _ = tokio::io::copy_buf(
        &mut tokio::io::BufReader::with_capacity(64 * 1024, &mut reader),
        &mut writer,
    )
    .await;
    let _ = writer.shutdown().await;
}

async fn within<T>(future: impl Future<Output = Fallible<T>>) -> Fallible<T> {
    tokio::time::timeout(WATCHDOG, future).await?
}

async fn until(what: impl Fn() -> bool) -> Fallible {
    within(async {
        while !what() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    })
    .await
}

/// `len` bytes that do not repeat within a window.
fn pattern(seed: u64, at: u64, buf: &mut [u8]) {
    for (n, byte) in buf.iter_mut().enumerate() {
        let x = (at + n as u64 + seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        *byte = x.to_be_bytes()[0];
    }
}

/// Writes `len` bytes and FIN; returns their hash.
async fn pour(
    mut to: impl tokio::io::AsyncWrite + Unpin,
    seed: u64,
    len: u64,
) -> Fallible<blake3::Hash> {
    let (mut hasher, mut buf, mut at) = (blake3::Hasher::new(), vec![0; 64 * 1024], 0);
    while at < len {
        let n = buf.len().min(usize::try_from(len - at)?);
        pattern(seed, at, &mut buf[..n]);
        hasher.update(&buf[..n]);
        to.write_all(&buf[..n]).await?;
        at += n as u64;
    }
    to.shutdown().await?;
    Ok(hasher.finalize())
}

/// Reads to the end; returns how much and its hash.
async fn drain(mut from: impl tokio::io::AsyncRead + Unpin) -> Fallible<(u64, blake3::Hash)> {
    let (mut hasher, mut buf, mut len) = (blake3::Hasher::new(), vec![0; 256 * 1024], 0);
    loop {
        match from.read(&mut buf).await? {
            0 => return Ok((len, hasher.finalize())),
            n => {
                hasher.update(&buf[..n]);
                len += n as u64;
            }
        }
    }
}

async fn echo_and_half_close(net: Net) -> Fallible {
    let (node, runner) = (net.mesh(1)?, net.mesh(2)?);
    let mut listener = runner.listen(APP_PORT)?;
    assert!(matches!(
        runner.listen(APP_PORT),
        Err(MeshError::Port(APP_PORT))
    ));
    let mut stream = within(async { Ok(node.dial(app(2)).await?) }).await?;
    let mut incoming = within(async { Ok(listener.accept().await?) }).await?;
    assert_eq!(incoming.peer, node.public_key());
    assert_eq!(*incoming.remote.ip(), inner(1));
    assert_eq!(incoming.local, app(2));
    assert_eq!(stream.endpoints(), Some((incoming.remote, app(2))));

    stream.write_all(b"question").await?;
    stream.shutdown().await?;
    let mut question = String::new();
    within(async { Ok(incoming.stream.read_to_string(&mut question).await?) }).await?;
    assert_eq!(question, "question");
    // The other direction is still open.
    incoming.stream.write_all(b"answer").await?;
    drop(incoming.stream);
    let mut answer = String::new();
    within(async { Ok(stream.read_to_string(&mut answer).await?) }).await?;
    assert_eq!(answer, "answer");
    assert!(stream.write_all(b"more").await.is_err());
    drop(stream);
    assert!(node.close(WATCHDOG).await);
    assert!(runner.close(WATCHDOG).await);
    assert!(matches!(listener.accept().await, Err(MeshError::Closed)));
    Ok(())
}

async fn many_bytes_both_ways_at_once(net: Net) -> Fallible {
    const LEN: u64 = 64 << 20;
    let (node, runner) = (net.mesh(1)?, net.mesh(2)?);
    let mut listener = runner.listen(APP_PORT)?;
    let stream = node.dial(app(2)).await?;
    let incoming = listener.accept().await?;
    let (near_in, near_out) = tokio::io::split(stream);
    let (far_in, far_out) = tokio::io::split(incoming.stream);
    let all = within(Box::pin(async {
        tokio::try_join!(
            pour(near_out, 1, LEN),
            pour(far_out, 2, LEN),
            drain(far_in),
            drain(near_in)
        )
    }));
    let (there, back, far, near) = all
        .await
        .map_err(|error| format!("{error}: {:#?}, {:#?}", node.stats(), runner.stats()))?;
    assert_eq!(far, (LEN, there));
    assert_eq!(near, (LEN, back));
    Ok(())
}

async fn two_hundred_at_once(net: Net) -> Fallible {
    let (node, runner) = (net.mesh(1)?, net.mesh(2)?);
    net.serve(runner.listen(APP_PORT)?, echo);
    let one = |n: u32| {
        let node = node.clone();
        async move {
            let mut stream = node.dial(app(2)).await?;
            stream.write_all(&n.to_be_bytes()).await?;
            stream.shutdown().await?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await?;
            assert_eq!(answer, n.to_be_bytes());
            Fallible::Ok(())
        }
    };
    let started = Instant::now();
    let all = futures_util::future::try_join_all((0..200).map(one));
    within(all).await?;
    assert_eq!(runner.stats().accepted, 200);
    // One for all of them; where it takes long, those who wait for their peer ask it for new keys.
    let most = 1 + started.elapsed().as_millis() / 250;
    let handshakes = u128::from(node.stats().handshakes);
    assert!((1..=most).contains(&handshakes), "{handshakes} of {most}");
    assert_eq!(node.stats().sessions, 1);
    // Nothing of them is kept. First the end that waits for the other's last word, which may be lost once.
    assert!(runner.close(WATCHDOG).await, "{:?}", node.stats());
    assert!(node.close(WATCHDOG).await);
    Ok(())
}

async fn a_reader_that_stops_stops_the_writer(net: Net) -> Fallible {
    let (node, runner) = (net.mesh(1)?, net.mesh(2)?);
    let mut listener = runner.listen(APP_PORT)?;
    let mut stream = node.dial(app(2)).await?;
    let mut incoming = listener.accept().await?;
    let (chunk, mut written) = (vec![7; 64 * 1024], 0);
    let full = async {
        loop {
            written += stream.write(&chunk).await?;
        }
    };
    let stopped: Result<std::io::Result<()>, _> =
        tokio::time::timeout(Duration::from_secs(2), full).await;
    assert!(stopped.is_err());
    // A buffer on each side; the kernel counts bookkeeping, and may so hold twice as much.
    let most = if net.stacks == [StackChoice::Userspace; 2] {
        2
    } else {
        4
    };
    assert!(
        written <= most * 256 * 1024,
        "{written} bytes are under way"
    );
    let mut rest = vec![0; written];
    within(async { Ok(incoming.stream.read_exact(&mut rest).await?) }).await?;
    within(async { Ok(stream.write_all(&chunk).await?) }).await?;
    Ok(())
}

async fn dials_fail_with_the_reason(net: Net) -> Fallible {
    let (node, runner) = (net.mesh(1)?, net.mesh(2)?);

    let nobody = node.dial(app(9)).await;
    assert!(
        matches!(nobody, Err(DialError::NoLease(at)) if at == app(9)),
        "{nobody:?}"
    );
    assert!(
        matches!(node.dial(app(1)).await, Err(DialError::NoLease(_))),
        "ourselves"
    );

    let started = Instant::now();
    let closed = node.dial(app(2)).await;
    assert!(matches!(closed, Err(DialError::Refused(_))), "{closed:?}");
    assert!(
        started.elapsed() < Duration::from_secs(1),
        "{:?}",
        started.elapsed()
    );

    // A socket that reads nothing, and a port that answers with ICMP.
    let deaf = UdpSocket::bind("127.0.0.1:0")?;
    let gone = UdpSocket::bind("127.0.0.1:0")?.local_addr()?;
    for (n, at) in [(3, deaf.local_addr()?), (4, gone)] {
        let key = PrivateKey::generate().public();
        net.roster
            .put(PeerRecord::unrestricted(key, vec![inner(n)], vec![at]));
        let started = Instant::now();
        let silent = node.dial(app(n)).await;
        assert!(
            matches!(silent, Err(DialError::Unreachable(_))),
            "{silent:?}"
        );
        assert!(
            started.elapsed() < Duration::from_secs(6),
            "{:?}",
            started.elapsed()
        );
    }
    let key = PrivateKey::generate().public();
    net.roster
        .put(PeerRecord::unrestricted(key, vec![inner(5)], Vec::new()));
    assert!(matches!(
        node.dial(app(5)).await,
        Err(DialError::Unreachable(_))
    ));

    // All that did no harm.
    net.serve(runner.listen(APP_PORT)?, echo);
    node.dial(app(2)).await?;
    Ok(())
}

async fn a_stranger_is_refused_until_it_is_known(net: Net) -> Fallible {
    let runner = net.mesh(2)?;
    net.serve(runner.listen(APP_PORT)?, echo);
    let key = PrivateKey::generate();
    let stranger = net.stranger(1, key.clone())?;
    let refused = stranger.dial(app(2)).await;
    assert!(
        matches!(refused, Err(DialError::Unreachable(_))),
        "{refused:?}"
    );
    let stats = runner.stats();
    assert!(
        stats.dropped_unknown_key > 0 && stats.sessions == 0,
        "{stats:?}"
    );

    net.publish(1, &stranger)?;
    let mut stream = stranger.dial(app(2)).await?;
    stream.write_all(b"x").await?;
    within(async { Ok(stream.read_exact(&mut [0; 1]).await?) }).await?;
    // Its key is taken back: the next handshake with it ends the session.
    net.roster.remove(stranger.public_key());
    let again = net.stranger(1, key)?;
    tokio::select! {
        dialed = again.dial(app(2)) => assert!(dialed.is_err()),
        ended = until(|| runner.stats().sessions == 0) => ended?,
    }
    until(|| runner.stats().sessions == 0).await?;
    Ok(())
}

async fn under_load_a_cookie_is_enough(net: Net) -> Fallible {
    let node = net.mesh(1)?;
    let mut config = net.config(2, PrivateKey::generate());
    config.limits.handshakes_per_second = 0;
    let resolver = Arc::clone(&net.roster) as Arc<dyn Resolver>;
    let runner = Mesh::bind(config, resolver, &net.tasks)?;
    net.publish(2, &runner)?;
    net.serve(runner.listen(APP_PORT)?, echo);
    node.dial(app(2)).await?;
    let stats = runner.stats();
    assert!(
        stats.dropped_rate_limited > 0 && stats.handshakes == 1,
        "{stats:?}"
    );
    Ok(())
}

async fn connections_with_one_peer_are_bounded(net: Net) -> Fallible {
    let mut config = net.config(1, PrivateKey::generate());
    config.limits.connections_per_peer = 2;
    let resolver = Arc::clone(&net.roster) as Arc<dyn Resolver>;
    let node = Mesh::bind(config, resolver, &net.tasks)?;
    net.publish(1, &node)?;
    let runner = net.mesh(2)?;
    net.serve(runner.listen(APP_PORT)?, echo);
    let first = node.dial(app(2)).await?;
    let _second = node.dial(app(2)).await?;
    let third = node.dial(app(2)).await;
    assert!(
        matches!(third, Err(DialError::Busy { limit: 2, .. })),
        "{third:?}"
    );
    drop(first);
    // Its end may have to be acknowledged before it counts no more.
    within(async {
        loop {
            match node.dial(app(2)).await {
                Ok(_) => return Ok(()),
                Err(DialError::Busy { .. }) => tokio::time::sleep(Duration::from_millis(5)).await,
                Err(error) => return Err(error.into()),
            }
        }
    })
    .await
}

/// What hyper and everybody else ask of a connection.
#[test]
fn streams_can_be_used_like_any_other() {
    fn check<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Sync + Unpin + 'static>() {}
    check::<Stream>();
}

async fn a_peer_restarted_elsewhere_is_found_again(net: Net) -> Fallible {
    let node = net.mesh(1)?;
    let key = PrivateKey::generate();
    for _ in 0..3 {
        let runner = net.stranger(2, key.clone())?;
        net.publish(2, &runner)?;
        net.serve(runner.listen(APP_PORT)?, echo);
        let started = Instant::now();
        let mut stream = node.dial(app(2)).await?;
        assert!(
            started.elapsed() < Duration::from_secs(1),
            "{:?}",
            started.elapsed()
        );
        stream.write_all(b"here").await?;
        let mut answer = [0; 4];
        within(async { Ok(stream.read_exact(&mut answer).await?) }).await?;
    }
    assert_eq!(node.stats().sessions, 1);
    Ok(())
}

/// Remembers where a peer was until somebody doubts it, as a member does that was not told.
#[derive(Debug)]
struct Remembers {
    old: Mutex<Option<PeerRecord>>,
    roster: Arc<Roster>,
}

impl Resolver for Remembers {
    fn by_address(&self, address: Ipv6Addr) -> BoxFuture<'_, Result<PeerRecord, ResolveError>> {
        let old = self.old.lock().unwrap_or_else(PoisonError::into_inner);
        match old.clone() {
            Some(old) => Box::pin(async move { Ok(old) }),
            None => self.roster.by_address(address),
        }
    }

    fn by_key(&self, key: MeshKey) -> BoxFuture<'_, Result<PeerRecord, ResolveError>> {
        self.roster.by_key(key)
    }

    fn doubt(&self, address: Ipv6Addr) {
        let mut old = self.old.lock().unwrap_or_else(PoisonError::into_inner);
        old.take_if(|old| old.addresses.contains(&address));
    }
}

async fn a_peer_that_moved_and_nobody_told_is_found_by_the_same_dial(net: Net) -> Fallible {
    // Nobody listens there, and nobody else will.
    let grave = UdpSocket::bind("127.0.0.1:0")?;
    let runner = net.mesh(2)?;
    net.serve(runner.listen(APP_PORT)?, echo);
    let mut old = net.roster.by_address(inner(2)).await?;
    old.endpoints = vec![grave.local_addr()?];
    let key = PrivateKey::generate();
    let resolver = Arc::new(Remembers {
        old: Mutex::new(Some(old.clone())),
        roster: Arc::clone(&net.roster),
    });
    let asked = Arc::clone(&resolver) as Arc<dyn Resolver>;
    let node = Mesh::bind(net.config(1, key), asked, &net.tasks)?;
    net.publish(1, &node)?;
    let answered = async || {
        let mut stream = node.dial(app(2)).await?;
        stream.write_all(b"here").await?;
        let mut answer = [0; 4];
        within(async { Ok(stream.read_exact(&mut answer).await?) }).await?;
        assert_eq!(&answer, b"here");
        Fallible::Ok(())
    };
    answered().await?;
    // Who answers is not doubted.
    let remembered = PeerRecord {
        endpoints: vec![runner.underlay_addr()?],
        ..old
    };
    let remember = || resolver.old.lock().unwrap_or_else(PoisonError::into_inner);
    *remember() = Some(remembered);
    answered().await?;
    assert!(remember().is_some());
    Ok(())
}

async fn a_peer_restarted_in_place_is_found_again(net: Net) -> Fallible {
    let node = net.mesh(1)?;
    let key = PrivateKey::generate();
    let first = net.stranger(2, key.clone())?;
    net.publish(2, &first)?;
    let at = first.underlay_addr()?;
    net.serve(first.listen(APP_PORT)?, echo);
    node.dial(app(2)).await?;
    drop(first);
    // Its tasks let go of the port when they have noticed.
    let second = within(async {
        loop {
            let mut config = net.config(2, key.clone());
            config.underlay = at;
            let resolver = Arc::clone(&net.roster) as Arc<dyn Resolver>;
            match Mesh::bind(config, resolver, &net.tasks) {
                Ok(mesh) => return Ok(mesh),
                Err(MeshError::Bind { .. }) => tokio::time::sleep(Duration::from_millis(5)).await,
                Err(error) => return Err(error.into()),
            }
        }
    })
    .await?;
    net.serve(second.listen(APP_PORT)?, echo);
    let started = Instant::now();
    node.dial(app(2)).await?;
    assert!(
        started.elapsed() < Duration::from_secs(3),
        "{:?}",
        started.elapsed()
    );
    Ok(())
}

async fn noise_on_the_port_does_nothing(net: Net) -> Fallible {
    let (node, runner) = (net.mesh(1)?, net.mesh(2)?);
    net.serve(runner.listen(APP_PORT)?, echo);
    let mut stream = node.dial(app(2)).await?;
    let noise = UdpSocket::bind("127.0.0.1:0")?;
    let to = runner.underlay_addr()?;
    let mut sent = 0;
    for round in 0..200u64 {
        for len in [0, 1, 3, 31, 32, 64, 92, 148, 1452, 9000] {
            let mut bytes = vec![0; len];
            pattern(round * 7919, 0, &mut bytes);
            if let Some(kind) = bytes.first_mut() {
                *kind = u8::try_from(round % 6)?;
            }
            sent += u64::from(noise.send_to(&bytes, to).is_ok());
        }
        let message = round.to_be_bytes();
        let mut answer = [0; 8];
        stream.write_all(&message).await?;
        within(async { Ok(stream.read_exact(&mut answer).await?) }).await?;
        assert_eq!(answer, message);
    }
    let dropped = |stats: Stats| {
        stats.dropped_malformed
            + stats.dropped_unknown_session
            + stats.dropped_handshake
            + stats.dropped_rate_limited
            + stats.dropped_overload
    };
    until(|| dropped(runner.stats()) >= sent).await?;
    assert_eq!(runner.stats().sessions, 1);
    Ok(())
}

async fn streams_end_with_their_mesh(net: Net) -> Fallible {
    let (node, runner) = (net.mesh(1)?, net.mesh(2)?);
    let mut listener = runner.listen(APP_PORT)?;
    let mut stream = node.dial(app(2)).await?;
    let incoming = listener.accept().await?;
    drop(node);
    let ended = within(async { Ok(stream.read(&mut [0; 8]).await) }).await?;
    assert!(ended.is_err());
    assert!(net.tasks.failure().is_none(), "{:?}", net.tasks.failure());
    drop(incoming);
    Ok(())
}

async fn small_requests_wait_for_no_timer(net: Net) -> Fallible {
    let (node, runner) = (net.mesh(1)?, net.mesh(2)?);
    net.serve(runner.listen(APP_PORT)?, echo);
    let mut stream = node.dial(app(2)).await?;
    let mut times = Vec::new();
    for _ in 0..500 {
        let started = Instant::now();
        stream.write_all(b"ping").await?;
        stream.read_exact(&mut [0; 4]).await?;
        times.push(started.elapsed());
    }
    times.sort();
    eprintln!("round trip: p50 {:?}, p99 {:?}", times[250], times[495]);
    // The shortest timer is the delayed acknowledgment's, 5 ms. Whoever waited for one would do so every time;
    // the processor is waited for now and then.
    assert!(times[50] < Duration::from_millis(3), "{:?}", times[50]);
    Ok(())
}

async fn throughput_of_one_stream(net: Net) -> Fallible {
    const LEN: u64 = 256 << 20;
    let (node, runner) = (net.mesh(1)?, net.mesh(2)?);
    let mut listener = runner.listen(APP_PORT)?;
    let mut stream = node.dial(app(2)).await?;
    let mut incoming = listener.accept().await?;
    let started = Instant::now();
    let pouring = async {
        let chunk = vec![7; 64 * 1024];
        for _ in 0..LEN / 65_536 {
            stream.write_all(&chunk).await?;
        }
        stream.shutdown().await?;
        Fallible::Ok(())
    };
    let draining = async {
        let (mut buf, mut len) = (vec![0; 256 * 1024], 0);
        loop {
            match incoming.stream.read(&mut buf).await? {
                0 => return Fallible::Ok(len),
                n => len += n as u64,
            }
        }
    };
    let ((), len) = within(async { tokio::try_join!(pouring, draining) }).await?;
    assert_eq!(len, LEN);
    let seconds = started.elapsed().as_secs_f64();
    eprintln!(
        "{:.0} MB/s; sender {:?}; receiver {:?}",
        268.4 / seconds,
        node.stats(),
        runner.stats()
    );
    assert!(seconds < 30.0, "{seconds} s");
    Ok(())
}

/// An app that nobody talks to has no session; one that was talked to has one for a while.
async fn a_session_takes_little_memory(net: Net) -> Fallible {
    const PEERS: u16 = 400;
    let resident = || -> Fallible<u64> {
        let text = std::fs::read_to_string("/proc/self/statm")?;
        let pages: u64 = text.split(' ').nth(1).ok_or("no such field")?.parse()?;
        Ok(pages * 4096)
    };
    let mut config = net.config(1, PrivateKey::generate());
    config.limits.dial_timeout = Duration::from_millis(200);
    let resolver = Arc::clone(&net.roster) as Arc<dyn Resolver>;
    let node = Mesh::bind(config, resolver, &net.tasks)?;
    let deaf = UdpSocket::bind("127.0.0.1:0")?;
    for n in 10..10 + PEERS {
        let key = PrivateKey::generate().public();
        let record = PeerRecord::unrestricted(key, vec![inner(n)], vec![deaf.local_addr()?]);
        net.roster.put(record);
    }
    let before = resident()?;
    let dials = (10..10 + PEERS).map(|n| node.dial(app(n)));
    let dialed = futures_util::future::join_all(dials).await;
    assert!(dialed.iter().all(Result::is_err));
    assert_eq!(node.stats().sessions, u64::from(PEERS));
    let each = resident()?.saturating_sub(before) / u64::from(PEERS);
    eprintln!("a session without connections takes {each} bytes");
    // nextest gives each test a process; elsewhere the memory may be another test's.
    let is_alone = tabbify_process::env::read("NEXTEST").is_some();
    assert!(each < 64 * 1024 || !is_alone, "{each}");
    Ok(())
}

/// Runs `test` with endpoints of these stacks; says so if the system does not allow them.
async fn run<F>(name: &str, stacks: [StackChoice; 2], test: impl FnOnce(Net) -> F) -> Fallible
where
    F: Future<Output = Fallible>,
{
    if stacks.contains(&StackChoice::Kernel) {
        let probe = Net::new([StackChoice::Auto; 2]).stranger(1, PrivateKey::generate())?;
        if let StackInUse::Userspace { reason } = probe.stack() {
            eprintln!("NOT RUN: {name}: {reason}");
            return Ok(());
        }
    }
    test(Net::new(stacks)).await
}

macro_rules! conformance {
    ($pair:ident, $stacks:expr, $($test:ident,)*) => {
        mod $pair {
            use super::*;

            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $test() -> Fallible {
                    let name = concat!(stringify!($pair), "::", stringify!($test));
                    Box::pin(run(name, $stacks, super::$test)).await
                }
            )*
        }
    };
}

macro_rules! everything {
    ($pair:ident, $stacks:expr) => {
        conformance! {
            $pair, $stacks,
            echo_and_half_close,
            many_bytes_both_ways_at_once,
            two_hundred_at_once,
            a_reader_that_stops_stops_the_writer,
            dials_fail_with_the_reason,
            a_stranger_is_refused_until_it_is_known,
            under_load_a_cookie_is_enough,
            connections_with_one_peer_are_bounded,
            a_peer_restarted_elsewhere_is_found_again,
            a_peer_that_moved_and_nobody_told_is_found_by_the_same_dial,
            a_peer_restarted_in_place_is_found_again,
            noise_on_the_port_does_nothing,
            streams_end_with_their_mesh,
            small_requests_wait_for_no_timer,
            throughput_of_one_stream,
            a_session_takes_little_memory,
        }
    };
}

everything!(userspace, [StackChoice::Userspace; 2]);
everything!(kernel, [StackChoice::Kernel; 2]);

conformance! {
    kernel_dials_userspace, [StackChoice::Kernel, StackChoice::Userspace],
    echo_and_half_close,
    many_bytes_both_ways_at_once,
    two_hundred_at_once,
    a_peer_restarted_in_place_is_found_again,
    streams_end_with_their_mesh,
}

conformance! {
    userspace_dials_kernel, [StackChoice::Userspace, StackChoice::Kernel],
    echo_and_half_close,
    many_bytes_both_ways_at_once,
    two_hundred_at_once,
    a_peer_restarted_in_place_is_found_again,
    streams_end_with_their_mesh,
}
