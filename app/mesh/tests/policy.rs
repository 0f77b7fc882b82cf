//! Who may reach what, as the mesh itself holds it, whichever TCP/IP stack is in use: at the dial, at the
//! handshake, at every connection that is opened; and while sessions live and rules change. Each end has a
//! view of its own of the same rules; some lie, as an end that was taken over would.
#![expect(
    clippy::print_stderr,
    reason = "a test that cannot run says so, and the measured ones say what they measured"
)]

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tabbify_api::BoxFuture;
use tabbify_api::mesh::{Changed, Changes, PeerRecord, ResolveError, Resolver};
use tabbify_api::policy::Ports;
use tabbify_mesh::{Config, DialError, Mesh, PrivateKey, StackChoice, StackInUse, Stream};
use tabbify_process::{Importance, Tasks};
use tabbify_types::{MeshKey, Tenant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{broadcast, watch};
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
    /// Look-ups by key that have no answer from here on.
    fails: AtomicU64,
    /// Keeps the answer to the next one back until it is true.
    held: Mutex<Option<watch::Receiver<bool>>>,
    /// What changes again whenever somebody is looked up by key, before there is an answer.
    storm: Mutex<Option<Changed>>,
    /// Who was looked up, by whom.
    asked: Mutex<Vec<(MeshKey, MeshKey)>>,
}

#[derive(Debug, Default)]
struct Known {
    peers: HashMap<MeshKey, (Ipv6Addr, SocketAddr)>,
    ports: HashMap<(MeshKey, MeshKey), Ports>,
    tenants: HashMap<MeshKey, Tenant>,
    nodes: HashSet<MeshKey>,
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
            fails: AtomicU64::new(0),
            held: Mutex::default(),
            storm: Mutex::default(),
            asked: Mutex::default(),
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

    /// How often `by` has looked up `of`.
    fn asked(&self, by: &Mesh, of: &Mesh) -> usize {
        let pair = (by.public_key(), of.public_key());
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.iter().filter(|asked| **asked == pair).count()
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
            is_node: known.nodes.contains(&key),
            rules_of: [self.own, key]
                .iter()
                .filter_map(|key| known.tenants.get(key).cloned())
                .collect(),
            door: None,
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
        let mut asked = self
            .rules
            .asked
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        asked.push((self.own, key));
        drop(asked);
        let less_one = |left: u64| left.checked_sub(1);
        let fails = &self.rules.fails;
        if fails
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, less_one)
            .is_ok()
        {
            let away = ResolveError::Unreachable("away".to_owned());
            return Box::pin(std::future::ready(Err(away)));
        }
        let found = self.record(key);
        let found = found.filter(|record| self.sort == Sort::Relay || !record.is_forbidden());
        let held = self.rules.held.lock();
        let held = held.unwrap_or_else(PoisonError::into_inner).take();
        let rules = Arc::clone(&self.rules);
        Box::pin(async move {
            let storm = rules.storm.lock();
            let storm = storm.unwrap_or_else(PoisonError::into_inner).clone();
            if let Some(changed) = storm {
                rules.tell(changed);
                while !rules.told.is_empty() {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
            if let Some(mut held) = held {
                // Whoever let go of it lets the answer go.
                let _ = held.wait_for(|free| *free).await;
            }
            found.ok_or(ResolveError::UnknownKey(key))
        })
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
    // The last words of the session that ended may still be under way.
    assert!(
        matches!(
            refused,
            Err(DialError::Unreachable(_) | DialError::TimedOut(_))
        ),
        "{refused:?}"
    );
    assert_eq!(app.stats().sessions, 0);
    Ok(())
}

async fn a_look_up_that_fails_is_repeated(net: Net) -> Fallible {
    let (node, app) = (net.mesh(1, Sort::Honest)?, net.mesh(2, Sort::Honest)?);
    net.echo(&app, OPEN)?;
    net.rules.allow(&node, &app, Ports::All);
    let mut stream = node.dial(at(2, OPEN)).await?;
    works(&mut stream).await?;
    net.rules.allow(&node, &app, Ports::NOTHING);
    let before = net.rules.asked(&app, &node);
    net.rules.fails.store(5, Ordering::Release);
    let changed = Instant::now();
    net.rules.tell(Changed::Everything);
    breaks(stream).await?;
    until(|| app.stats().revoked == 1).await?;
    eprintln!(
        "rules changed to sessions ended, the app's over {} look-ups: {:?}",
        net.rules.asked(&app, &node) - before,
        changed.elapsed()
    );
    assert_eq!(net.rules.fails.load(Ordering::Acquire), 0);
    assert!(net.rules.asked(&app, &node) > before + 1);
    Ok(())
}

async fn an_older_answer_never_wins(net: Net) -> Fallible {
    let (liar, app) = (net.mesh(1, Sort::Lies)?, net.mesh(2, Sort::Honest)?);
    for port in [OPEN, SHUT] {
        net.echo(&app, port)?;
    }
    net.rules.allow(&liar, &app, Ports::All);
    let mut stream = liar.dial(at(2, SHUT)).await?;
    works(&mut stream).await?;
    // Only the app hears of changes from here on.
    let asked = || net.rules.asked(&app, &liar);
    let before = asked();
    let (free, held) = watch::channel(false);
    *net.rules
        .held
        .lock()
        .unwrap_or_else(PoisonError::into_inner) = Some(held);
    let machine = Changed::Rules(Tenant::main());
    net.rules
        .known()
        .tenants
        .insert(liar.public_key(), Tenant::main());
    net.rules.tell(machine.clone());
    until(|| asked() > before).await?;
    // It has the answer from before this.
    net.rules.allow(&liar, &app, only(OPEN));
    net.rules.tell(machine);
    until(|| asked() > before + 1).await?;
    let refused = async || {
        let refused = liar.dial(at(2, SHUT)).await;
        assert!(
            matches!(refused, Err(DialError::TimedOut(_))),
            "{refused:?}"
        );
    };
    refused().await;
    free.send(true)?;
    // It is asked once more, for it was overtaken.
    until(|| asked() > before + 2).await?;
    refused().await;
    works(&mut stream).await?;
    works(&mut liar.dial(at(2, OPEN)).await?).await
}

async fn changes_without_end_keep_no_forbidden_session_alive(net: Net) -> Fallible {
    let rain = |changed: Option<Changed>| {
        let storm = net.rules.storm.lock();
        *storm.unwrap_or_else(PoisonError::into_inner) = changed;
    };
    let foreign = Changed::Rules("foreign".parse()?);
    // What concerns neither of the two overtakes no answer; what concerns everybody overtakes each.
    for (n, changed, times) in [(1, foreign, 0), (3, Changed::Everything, 5)] {
        let (node, app) = (net.mesh(n, Sort::Honest)?, net.mesh(n + 1, Sort::Honest)?);
        net.echo(&app, OPEN)?;
        net.rules.allow(&node, &app, Ports::All);
        for mesh in [&node, &app] {
            let mut known = net.rules.known();
            known.tenants.insert(mesh.public_key(), Tenant::main());
        }
        let mut stream = node.dial(at(n + 1, OPEN)).await?;
        works(&mut stream).await?;
        rain(Some(changed));
        // Who is allowed stays, however often it is asked anew.
        let before = net.rules.asked(&app, &node);
        net.rules.tell(Changed::Everything);
        until(|| net.rules.asked(&app, &node) > before + times).await?;
        works(&mut stream).await?;
        net.rules.allow(&node, &app, Ports::NOTHING);
        net.rules.tell(Changed::Everything);
        breaks(stream).await?;
        until(|| app.stats().revoked == 1 && app.stats().sessions == 0).await?;
        rain(None);
    }
    Ok(())
}

async fn a_change_concerns_whom_it_is_about(net: Net) -> Fallible {
    let (node, shop, other) = (
        net.mesh(1, Sort::Honest)?,
        net.mesh(2, Sort::Honest)?,
        net.mesh(3, Sort::Honest)?,
    );
    let tenants = [(&node, "system"), (&shop, "main"), (&other, "other")];
    for (mesh, tenant) in tenants {
        let tenant: Tenant = tenant.parse()?;
        net.rules.known().tenants.insert(mesh.public_key(), tenant);
    }
    for app in [&shop, &other] {
        net.echo(app, OPEN)?;
        net.rules.allow(&node, app, only(OPEN));
    }
    let mut streams = [node.dial(at(2, OPEN)).await?, node.dial(at(3, OPEN)).await?];
    for stream in &mut streams {
        works(stream).await?;
    }
    let pairs = [
        (&node, &shop),
        (&shop, &node),
        (&node, &other),
        (&other, &node),
    ];
    let asked = || pairs.map(|(by, of)| net.rules.asked(by, of));
    let before = asked();
    let since = |n: usize| asked()[n] - before[n];
    net.rules.tell(Changed::Rules(Tenant::main()));
    until(|| since(0) == 1 && since(1) == 1).await?;
    net.rules.tell(Changed::Rules("third".parse()?));
    // The machine is nobody's peer but the app's, and its own.
    net.rules.tell(Changed::Machine(inner(2)));
    until(|| since(0) == 2 && since(1) == 2).await?;
    net.rules.tell(Changed::Everything);
    until(|| since(2) > 0 && since(3) > 0).await?;
    until(|| since(0) == 3 && since(1) == 3).await?;
    assert_eq!([since(2), since(3)], [1, 1]);
    for stream in &mut streams {
        works(stream).await?;
    }
    Ok(())
}

async fn who_is_no_node_any_more_is_none_to_anybody(net: Net) -> Fallible {
    let (node, app) = (net.mesh(1, Sort::Honest)?, net.mesh(2, Sort::Honest)?);
    net.rules.allow(&node, &app, Ports::All);
    net.rules.known().nodes.insert(node.public_key());
    let mut listener = app.listen(OPEN)?;
    let mut accepted = async || {
        let (dialed, accepted) = tokio::join!(node.dial(at(2, OPEN)), listener.accept());
        Fallible::Ok((dialed?, accepted?))
    };
    let (mut near, mut far) = tokio::time::timeout(WATCHDOG, accepted()).await??;
    assert!(far.is_node);
    near.write_all(b"ping").await?;
    far.stream.read_exact(&mut [0; 4]).await?;
    // Its tag is taken away, and nothing else: what was believed on its connections ends with them.
    net.rules.known().nodes.clear();
    net.rules.tell(Changed::Machine(inner(1)));
    breaks(far.stream).await?;
    let (_near, far) = tokio::time::timeout(WATCHDOG, accepted()).await??;
    assert!(!far.is_node);
    assert_eq!(app.stats().revoked, 0);
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
    a_look_up_that_fails_is_repeated,
    an_older_answer_never_wins,
    changes_without_end_keep_no_forbidden_session_alive,
    a_change_concerns_whom_it_is_about,
    who_is_no_node_any_more_is_none_to_anybody,
    who_is_gone_is_cut_off_and_does_not_come_back,
}
