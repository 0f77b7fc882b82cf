//! Who may reach what, as the mesh itself holds it, whichever TCP/IP stack is in use: at the dial, at the
//! handshake, at every connection that is opened; and while sessions live and rules change. Each end has a
//! view of its own of the same rules; some lie, as an end that was taken over would.
#![expect(
    clippy::print_stderr,
    reason = "a test that cannot run says so, and the measured ones say what they measured"
)]

use std::collections::{BTreeSet, HashMap};
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tabbify_api::BoxFuture;
use tabbify_api::mesh::{Changed, Changes, PeerRecord, ResolveError, Resolver};
use tabbify_api::policy::Ports;
use tabbify_mesh::{Config, DialError, Mesh, PrivateKey, StackChoice, StackInUse, Stream};
use tabbify_process::{Importance, Tasks};
use tabbify_types::MeshKey;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::broadcast;
use tokio::time::Instant;

type Fallible<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// A test that waits for this long is stuck.
const WATCHDOG: Duration = Duration::from_secs(30);
/// How long a dial may take that is to fail.
const DIAL_TIMEOUT: Duration = Duration::from_secs(1);
const OPEN: u16 = 8730;
const SHUT: u16 = 22;

/// Who is there, and who may reach what of whom.
#[derive(Debug)]
struct Rules {
    known: Mutex<Known>,
    told: broadcast::Sender<Changed>,
    looked_up: AtomicU64,
}

#[derive(Debug, Default)]
struct Known {
    peers: HashMap<MeshKey, (Ipv6Addr, SocketAddr)>,
    ports: HashMap<(MeshKey, MeshKey), Ports>,
}

/// What one end makes of the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sort {
    Honest,
    /// Is told what it may reach, and not what may reach it, until it asks by key.
    OneWay,
    /// Believes that it may reach everything.
    Lies,
    /// Is told of everybody, as a relay is.
    Relay,
}

#[derive(Debug)]
struct View {
    rules: Arc<Rules>,
    own: MeshKey,
    sort: Sort,
}

#[derive(Debug)]
struct Told(broadcast::Receiver<Changed>);

impl Changes for Told {
    fn next(&mut self) -> BoxFuture<'_, Option<Changed>> {
        Box::pin(async { self.0.recv().await.ok() })
    }
}

impl Rules {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            known: Mutex::default(),
            told: broadcast::Sender::new(16),
            looked_up: AtomicU64::new(0),
        })
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From here on `from` may reach these ports of `to`.
    fn allow(&self, from: &Mesh, to: &Mesh, ports: Ports) {
        let pair = (from.public_key(), to.public_key());
        self.known().ports.insert(pair, ports);
    }

    fn tell(&self, changed: Changed) {
        // Nobody may listen yet.
        let _ = self.told.send(changed);
    }
}

impl View {
    fn record(&self, key: MeshKey) -> Option<PeerRecord> {
        let known = self.rules.known();
        let (address, at) = *known.peers.get(&key)?;
        let ports = |from, to| {
            let ports = known.ports.get(&(from, to)).cloned();
            Some(ports.unwrap_or(Ports::NOTHING))
        };
        let (mut outbound, inbound) = (ports(self.own, key), ports(key, self.own));
        if self.sort == Sort::Lies {
            outbound = Some(Ports::All);
        }
        Some(PeerRecord {
            key,
            addresses: vec![address],
            endpoints: vec![at],
            outbound,
            inbound,
        })
    }
}

impl Resolver for View {
    fn by_address(&self, address: Ipv6Addr) -> BoxFuture<'_, Result<PeerRecord, ResolveError>> {
        let key = {
            let known = self.rules.known();
            let mut peers = known.peers.iter();
            peers
                .find(|(_, (at, _))| *at == address)
                .map(|(key, _)| *key)
        };
        let mut found = key.and_then(|key| self.record(key));
        found = found.filter(|record| record.outbound != Some(Ports::NOTHING));
        if self.sort == Sort::OneWay
            && let Some(record) = &mut found
        {
            record.inbound = None;
        }
        Box::pin(std::future::ready(
            found.ok_or(ResolveError::NoLease(address)),
        ))
    }

    fn by_key(&self, key: MeshKey) -> BoxFuture<'_, Result<PeerRecord, ResolveError>> {
        self.rules.looked_up.fetch_add(1, Ordering::Relaxed);
        let found = self.record(key);
        let found = found.filter(|record| self.sort == Sort::Relay || !record.is_forbidden());
        Box::pin(std::future::ready(
            found.ok_or(ResolveError::UnknownKey(key)),
        ))
    }

    fn changes(&self) -> Option<Box<dyn Changes>> {
        Some(Box::new(Told(self.rules.told.subscribe())))
    }
}

struct Net {
    rules: Arc<Rules>,
    tasks: Tasks,
    stack: StackChoice,
}

impl Net {
    fn new(stack: StackChoice) -> Self {
        Self {
            rules: Rules::new(),
            tasks: Tasks::new(),
            stack,
        }
    }

    fn mesh(&self, n: u16, sort: Sort) -> Fallible<Mesh> {
        let key = PrivateKey::generate();
        let view = View {
            rules: Arc::clone(&self.rules),
            own: key.public(),
            sort,
        };
        let mut config = Config::new(key, vec![inner(n)], ([127, 0, 0, 1], 0).into());
        config.stack = self.stack;
        config.limits.dial_timeout = DIAL_TIMEOUT;
        let mesh = Mesh::bind(config, Arc::new(view), &self.tasks)?;
        let peer = (inner(n), mesh.underlay_addr()?);
        self.rules.known().peers.insert(mesh.public_key(), peer);
        Ok(mesh)
    }

    /// Answers on a port with what it reads.
    fn echo(&self, mesh: &Mesh, port: u16) -> Fallible {
        let mut listener = mesh.listen(port)?;
        let tasks = self.tasks.clone();
        self.tasks.spawn("echo", Importance::Detached, async move {
            while let Ok(incoming) = listener.accept().await {
                tasks.spawn("connection", Importance::Detached, async move {
                    let (mut from, mut to) = tokio::io::split(incoming.stream);
                    let _ = tokio::io::copy(&mut from, &mut to).await;
                });
            }
        });
        Ok(())
    }
}

fn inner(n: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd5a, 0x1f02, n, 0, 0, 0, 0, 1)
}

fn at(n: u16, port: u16) -> SocketAddrV6 {
    SocketAddrV6::new(inner(n), port, 0, 0)
}

fn only(port: u16) -> Ports {
    Ports::Only(BTreeSet::from([port]))
}

/// Sends something and gets it back.
async fn works(stream: &mut Stream) -> Fallible {
    let mut answer = [0; 4];
    let exchange = async {
        stream.write_all(b"ping").await?;
        stream.read_exact(&mut answer).await
    };
    tokio::time::timeout(WATCHDOG, exchange).await??;
    assert_eq!(&answer, b"ping");
    Ok(())
}

/// Waits until a stream breaks that nothing is sent on.
async fn breaks(mut stream: Stream) -> Fallible {
    let mut byte = [0];
    let read = tokio::time::timeout(WATCHDOG, stream.read(&mut byte)).await?;
    if let Ok(1..) = read {
        return Err("it goes on".into());
    }
    Ok(())
}

async fn until(what: impl Fn() -> bool) -> Fallible {
    let wait = async {
        while !what() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    Ok(tokio::time::timeout(WATCHDOG, wait).await?)
}

async fn a_port_that_is_not_open_is_not_reached(net: Net) -> Fallible {
    let (node, liar, app) = (
        net.mesh(1, Sort::Honest)?,
        net.mesh(2, Sort::Lies)?,
        net.mesh(3, Sort::Honest)?,
    );
    for port in [OPEN, SHUT] {
        net.echo(&app, port)?;
    }
    for who in [&node, &liar] {
        net.rules.allow(who, &app, only(OPEN));
    }
    // Who knows the rules does not even try.
    works(&mut node.dial(at(3, OPEN)).await?).await?;
    let shut = node.dial(at(3, SHUT)).await;
    assert!(matches!(shut, Err(DialError::Forbidden(_))), "{shut:?}");
    assert_eq!(app.stats().dropped_forbidden, 0);
    // Who does not keep to them meets silence, and is counted; what it may goes on.
    let mut open = liar.dial(at(3, OPEN)).await?;
    let shut = liar.dial(at(3, SHUT)).await;
    assert!(matches!(shut, Err(DialError::TimedOut(_))), "{shut:?}");
    assert!(app.stats().dropped_forbidden > 0, "{:?}", app.stats());
    assert_eq!(app.stats().accepted, 2);
    works(&mut open).await
}

async fn who_may_reach_nothing_gets_no_session(net: Net) -> Fallible {
    let (liar, app, edge) = (
        net.mesh(1, Sort::Lies)?,
        net.mesh(2, Sort::Honest)?,
        net.mesh(3, Sort::Relay)?,
    );
    for mesh in [&app, &edge] {
        net.echo(mesh, OPEN)?;
    }
    let refused = liar.dial(at(2, OPEN)).await;
    assert!(
        matches!(refused, Err(DialError::Unreachable(_))),
        "{refused:?}"
    );
    let stats = app.stats();
    assert!(
        stats.dropped_unknown_key > 0 && stats.sessions == 0,
        "{stats:?}"
    );
    // A machine that relays is told of everybody, and lets nobody in for that.
    let refused = liar.dial(at(3, OPEN)).await;
    assert!(
        matches!(refused, Err(DialError::Unreachable(_))),
        "{refused:?}"
    );
    let stats = edge.stats();
    assert!(
        stats.dropped_forbidden > 0 && stats.sessions == 0,
        "{stats:?}"
    );
    Ok(())
}

async fn who_was_dialed_is_looked_up_before_it_dials(net: Net) -> Fallible {
    let (node, app, liar) = (
        net.mesh(1, Sort::OneWay)?,
        net.mesh(2, Sort::Honest)?,
        net.mesh(3, Sort::Lies)?,
    );
    for mesh in [&node, &app, &liar] {
        net.echo(mesh, OPEN)?;
    }
    for other in [&app, &liar] {
        net.rules.allow(&node, other, only(OPEN));
    }
    net.rules.allow(&app, &node, only(OPEN));
    let (mut to_app, mut to_liar) = (node.dial(at(2, OPEN)).await?, node.dial(at(3, OPEN)).await?);
    works(&mut to_app).await?;
    works(&mut to_liar).await?;
    assert_eq!(node.stats().dropped_forbidden, 0);

    // The session is there, so no handshake asks who it is: the first connection does.
    let before = net.rules.looked_up.load(Ordering::Relaxed);
    let mut back = tokio::time::timeout(WATCHDOG, async {
        loop {
            // The first SYN is the question; it is repeated, but not by every stack within the timeout.
            match app.dial(at(1, OPEN)).await {
                Ok(stream) => return stream,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    })
    .await?;
    works(&mut back).await?;
    assert!(net.rules.looked_up.load(Ordering::Relaxed) > before);
    let dropped = node.stats().dropped_forbidden;
    assert!(dropped > 0, "the first one was dropped");

    // Whom we talk to and who may reach nothing here, keeps what we have begun, and begins nothing.
    let refused = liar.dial(at(1, OPEN)).await;
    assert!(refused.is_err(), "{refused:?}");
    assert!(node.stats().dropped_forbidden > dropped);
    works(&mut to_liar).await?;
    works(&mut to_app).await
}

async fn a_change_of_rules_reaches_living_sessions(net: Net) -> Fallible {
    let (node, liar, app) = (
        net.mesh(1, Sort::Honest)?,
        net.mesh(2, Sort::Lies)?,
        net.mesh(3, Sort::Honest)?,
    );
    for port in [OPEN, SHUT] {
        net.echo(&app, port)?;
    }
    for who in [&node, &liar] {
        net.rules.allow(who, &app, Ports::All);
    }
    let mut streams = [node.dial(at(3, SHUT)).await?, liar.dial(at(3, SHUT)).await?];
    for stream in &mut streams {
        works(stream).await?;
    }
    // Fewer ports: what was begun goes on, what begins goes by the new rules.
    for who in [&node, &liar] {
        net.rules.allow(who, &app, only(OPEN));
    }
    net.rules.tell(Changed::Everything);
    let forbidden = node.dial(at(3, SHUT)).await;
    assert!(
        matches!(forbidden, Err(DialError::Forbidden(_))),
        "{forbidden:?}"
    );
    let forbidden = tokio::time::timeout(WATCHDOG, async {
        loop {
            match liar.dial(at(3, SHUT)).await {
                // The other end has not heard of it yet.
                Ok(_) => tokio::task::yield_now().await,
                Err(error) => return error,
            }
        }
    });
    let forbidden = forbidden.await?;
    assert!(matches!(forbidden, DialError::TimedOut(_)), "{forbidden:?}");
    for stream in &mut streams {
        works(stream).await?;
    }
    // Nothing at all: the sessions end.
    let changed = Instant::now();
    for who in [&node, &liar] {
        net.rules.allow(who, &app, Ports::NOTHING);
    }
    net.rules.tell(Changed::Everything);
    let [first, _second] = streams;
    breaks(first).await?;
    until(|| app.stats().revoked == 2).await?;
    eprintln!("rules changed to sessions ended: {:?}", changed.elapsed());
    let refused = node.dial(at(3, OPEN)).await;
    assert!(matches!(refused, Err(DialError::NoLease(_))), "{refused:?}");
    let refused = liar.dial(at(3, OPEN)).await;
    assert!(
        matches!(refused, Err(DialError::Unreachable(_))),
        "{refused:?}"
    );
    assert_eq!(app.stats().sessions, 0);
    Ok(())
}

async fn who_is_gone_is_cut_off_and_does_not_come_back(net: Net) -> Fallible {
    let (node, app) = (net.mesh(1, Sort::Lies)?, net.mesh(2, Sort::Honest)?);
    net.echo(&app, OPEN)?;
    net.rules.allow(&node, &app, Ports::All);
    let mut stream = node.dial(at(2, OPEN)).await?;
    works(&mut stream).await?;
    let record = net.rules.known().peers.remove(&node.public_key());
    let gone = Instant::now();
    net.rules.tell(Changed::Gone(node.public_key()));
    until(|| app.stats().sessions == 0).await?;
    eprintln!("key gone to session ended: {:?}", gone.elapsed());
    assert_eq!(app.stats().revoked, 1);
    // Its packets lead nowhere, and its handshakes are refused.
    let refused = node.dial(at(2, OPEN)).await;
    assert!(refused.is_err(), "{refused:?}");
    assert_eq!((app.stats().sessions, app.stats().accepted), (0, 1));
    // Who joins again is let in again.
    let record = record.ok_or("it was known")?;
    net.rules.known().peers.insert(node.public_key(), record);
    let back = async {
        loop {
            // It has yet to find out that its keys are forgotten.
            if let Ok(stream) = node.dial(at(2, OPEN)).await {
                return stream;
            }
        }
    };
    works(&mut tokio::time::timeout(WATCHDOG, back).await?).await?;
    // And whoever holds the endpoint can cut it off, too.
    let stream = node.dial(at(2, OPEN)).await?;
    assert!(node.revoke(app.public_key()) && !node.revoke(app.public_key()));
    breaks(stream).await
}

/// Runs `test` with this stack; says so if the system does not allow it.
async fn run<F>(name: &str, stack: StackChoice, test: impl FnOnce(Net) -> F) -> Fallible
where
    F: Future<Output = Fallible>,
{
    if stack == StackChoice::Kernel {
        let probe = Net::new(StackChoice::Auto).mesh(1, Sort::Honest)?;
        if let StackInUse::Userspace { reason } = probe.stack() {
            eprintln!("NOT RUN: {name}: {reason}");
            return Ok(());
        }
    }
    test(Net::new(stack)).await
}

macro_rules! everything {
    ($stack:ident, $choice:expr, $($test:ident,)*) => {
        mod $stack {
            use super::*;

            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $test() -> Fallible {
                    let name = concat!(stringify!($stack), "::", stringify!($test));
                    Box::pin(run(name, $choice, super::$test)).await
                }
            )*
        }
    };
}

macro_rules! both {
    ($($test:ident,)*) => {
        everything! { userspace, StackChoice::Userspace, $($test,)* }
        everything! { kernel, StackChoice::Kernel, $($test,)* }
    };
}

both! {
    a_port_that_is_not_open_is_not_reached,
    who_may_reach_nothing_gets_no_session,
    who_was_dialed_is_looked_up_before_it_dials,
    a_change_of_rules_reaches_living_sessions,
    who_is_gone_is_cut_off_and_does_not_come_back,
}
