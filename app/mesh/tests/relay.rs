//! Real relays on the loopback: over UDP and over TLS, for endpoints that cannot reach each other (one
//! has IPv4 only, the other IPv6 only) and for those that can, and find out.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use tabbify_api::mesh::{PeerRecord, Resolver, Roster};
use tabbify_mesh::{
    Config, DialError, Listener, Mesh, Path, PrivateKey, Relay, RelayLimits, RelayServer, RelayTls,
    StackChoice, Stream,
};
use tabbify_process::{Importance, Tasks};
use tabbify_types::APP_PORT;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

type Fallible<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

const WATCHDOG: Duration = Duration::from_secs(60);
const V4: Ipv4Addr = Ipv4Addr::LOCALHOST;
const V6: Ipv6Addr = Ipv6Addr::LOCALHOST;

/// How an endpoint reaches the relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    Udp4,
    Udp6,
    Tls,
}

struct Net {
    roster: Arc<Roster>,
    tasks: Tasks,
    relay: Relay,
    udp4: SocketAddr,
    udp6: SocketAddr,
    tls: SocketAddr,
    stack: StackChoice,
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

impl Net {
    async fn new(stack: StackChoice, limits: RelayLimits) -> Fallible<Self> {
        let (roster, tasks) = (Arc::new(Roster::default()), Tasks::new());
        let resolver = Arc::clone(&roster) as Arc<dyn Resolver>;
        let relay = Relay::new(PrivateKey::generate(), resolver, limits, &tasks);
        let udp4 = relay.serve_udp(UdpSocket::bind((V4, 0))?)?;
        let udp6 = relay.serve_udp(UdpSocket::bind((V6, 0))?)?;
        let listener = TcpListener::bind((V4, 0)).await?;
        let tls = listener.local_addr()?;
        relay.serve_tls(listener, certificate()?);
        Ok(Self {
            roster,
            tasks,
            relay,
            udp4,
            udp6,
            tls,
            stack,
        })
    }

    fn server(&self, reach: Reach) -> RelayServer {
        let tls = RelayTls {
            address: self.tls,
            name: "relay.test".to_owned(),
        };
        RelayServer {
            key: self.relay.key(),
            udp: match reach {
                Reach::Udp4 => Some(self.udp4),
                Reach::Udp6 => Some(self.udp6),
                Reach::Tls => None,
            },
            tls: (reach == Reach::Tls).then_some(tls),
        }
    }

    fn config(&self, n: u16, at: SocketAddr, reach: Reach) -> Config {
        let mut config = Config::new(PrivateKey::generate(), vec![inner(n)], at);
        config.stack = self.stack;
        config.relays = vec![self.server(reach)];
        config
    }

    /// An endpoint that everybody knows, but not where it is.
    fn mesh(&self, config: Config) -> Fallible<Mesh> {
        self.roster.put(PeerRecord::unrestricted(
            config.key.public(),
            config.addresses.clone(),
            Vec::new(),
        ));
        let resolver = Arc::clone(&self.roster) as Arc<dyn Resolver>;
        Ok(Mesh::bind(config, resolver, &self.tasks)?)
    }

    /// Two that have no network in common but the relay.
    fn strangers(&self, first: Reach, second: Reach) -> Fallible<[Mesh; 2]> {
        let node = self.mesh(self.config(1, (V4, 0).into(), first))?;
        let runner = self.mesh(self.config(2, (V6, 0).into(), second))?;
        Ok([node, runner])
    }

    fn serve(&self, mut listener: Listener) {
        let tasks = self.tasks.clone();
        self.tasks.spawn("serve", Importance::Detached, async move {
            while let Ok(incoming) = listener.accept().await {
                tasks.spawn("echo", Importance::Detached, echo(incoming.stream));
            }
        });
    }
}

async fn echo(mut stream: Stream) {
    let (mut reader, mut writer) = tokio::io::split(&mut stream);
    let _ = tokio::io::copy(&mut reader, &mut writer).await;
    let _ = writer.shutdown().await;
}

fn inner(n: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd5a, 0x1f02, n, 0, 0, 0, 0, 1)
}

fn app(n: u16) -> SocketAddrV6 {
    SocketAddrV6::new(inner(n), APP_PORT, 0, 0)
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

/// Dials until it is answered: an endpoint needs a moment to be known at its relay.
async fn dial(from: &Mesh, to: SocketAddrV6) -> Fallible<Stream> {
    within(async {
        loop {
            match from.dial(to).await {
                Ok(stream) => return Ok(stream),
                Err(DialError::Unreachable(_)) => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    })
    .await
}

fn path(mesh: &Mesh) -> Option<Path> {
    mesh.peers().first().and_then(|peer| peer.path)
}

/// Sends `len` bytes to an echo and compares what comes back.
async fn exchange(stream: Stream, len: usize) -> Fallible<Stream> {
    let sent: Vec<u8> = (0..len).map(|n| (n * 31 % 251).to_le_bytes()[0]).collect();
    let (mut reader, mut writer) = tokio::io::split(stream);
    let mut got = vec![0; len];
    within(async {
        let write = writer.write_all(&sent);
        let read = async { reader.read_exact(&mut got).await.map(drop) };
        tokio::try_join!(write, read)?;
        Ok(())
    })
    .await?;
    assert!(got == sent);
    Ok(reader.unsplit(writer))
}

async fn through(stack: StackChoice, first: Reach, second: Reach) -> Fallible {
    let net = Net::new(stack, RelayLimits::default()).await?;
    let [node, runner] = net.strangers(first, second)?;
    net.serve(runner.listen(APP_PORT)?);
    let stream = dial(&node, app(2)).await?;
    exchange(stream, 1 << 20).await?;
    for mesh in [&node, &runner] {
        assert!(
            path(mesh).is_some_and(Path::is_relayed),
            "{:?}",
            mesh.peers()
        );
        assert!(mesh.stats().relayed_in > 700, "{:?}", mesh.stats());
    }
    let stats = net.relay.stats();
    assert_eq!(stats.clients, 2, "{stats:?}");
    assert!(stats.bytes > 2 << 20, "{stats:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_udp() -> Fallible {
    Box::pin(through(StackChoice::Auto, Reach::Udp4, Reach::Udp6)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_udp_in_user_space() -> Fallible {
    Box::pin(through(StackChoice::Userspace, Reach::Udp4, Reach::Udp6)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_tls() -> Fallible {
    Box::pin(through(StackChoice::Auto, Reach::Tls, Reach::Tls)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_tls_in_user_space() -> Fallible {
    Box::pin(through(StackChoice::Userspace, Reach::Tls, Reach::Tls)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_tls_to_udp() -> Fallible {
    Box::pin(through(StackChoice::Auto, Reach::Tls, Reach::Udp6)).await
}

/// Begins on the relay, ends on a direct path, and the connection is the same.
async fn moves_to_a_direct_path(stack: StackChoice) -> Fallible {
    let net = Net::new(stack, RelayLimits::default()).await?;
    let node = net.mesh(net.config(1, (V4, 0).into(), Reach::Udp4))?;
    let runner = net.mesh(net.config(2, (V4, 0).into(), Reach::Udp4))?;
    net.serve(runner.listen(APP_PORT)?);
    let mut stream = dial(&node, app(2)).await?;
    let began = Instant::now();
    let is_direct = || {
        let direct = |mesh| path(mesh).is_some_and(|path| !path.is_relayed());
        direct(&node) && direct(&runner)
    };
    while !is_direct() {
        assert!(
            began.elapsed() < WATCHDOG,
            "{:?} {:?}",
            node.peers(),
            runner.peers()
        );
        stream = exchange(stream, 10_000).await?;
    }
    let relayed = node.stats().relayed_out;
    stream = exchange(stream, 1 << 20).await?;
    assert!(
        node.stats().relayed_out < relayed + 50,
        "{:?}",
        node.stats()
    );
    drop(stream);
    assert_eq!(node.stats().handshakes, 1);
    assert!(node.peers()[0].rtt.is_some() && node.peers()[0].why_relayed.is_none());
    assert_eq!(*node.candidates().borrow(), vec![node.underlay_addr()?]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_moves_to_a_direct_path() -> Fallible {
    Box::pin(moves_to_a_direct_path(StackChoice::Auto)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_moves_to_a_direct_path_in_user_space() -> Fallible {
    Box::pin(moves_to_a_direct_path(StackChoice::Userspace)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_not_known_is_refused() -> Fallible {
    let net = Net::new(StackChoice::Userspace, RelayLimits::default()).await?;
    let resolver = Arc::clone(&net.roster) as Arc<dyn Resolver>;
    for (n, reach) in [(1, Reach::Udp4), (2, Reach::Tls)] {
        let config = net.config(n, (V4, 0).into(), reach);
        let _stranger = Mesh::bind(config, Arc::clone(&resolver), &net.tasks)?;
        until(|| net.relay.stats().refused_key >= u64::from(n)).await?;
    }
    assert_eq!(net.relay.stats().clients, 0);
    Ok(())
}

/// Who does not hold a key cannot take the place of who does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stolen_key_is_of_no_use() -> Fallible {
    let net = Net::new(StackChoice::Userspace, RelayLimits::default()).await?;
    let [node, runner] = net.strangers(Reach::Udp4, Reach::Udp6)?;
    net.serve(runner.listen(APP_PORT)?);
    let stream = dial(&node, app(2)).await?;
    let thief = UdpSocket::bind((V4, 0))?;
    thief.set_read_timeout(Some(WATCHDOG))?;
    let nonce = tabbify_process::random::<16>();
    let hello = [&[0xd2, 1][..], &runner.public_key().0, &nonce].concat();
    thief.send_to(&hello, net.udp4)?;
    let mut cookie = [0; 64];
    let (len, _) = thief.recv_from(&mut cookie)?;
    assert_eq!(
        (len, &cookie[..18]),
        (34, &[&[0xd2, 2][..], &nonce].concat()[..])
    );
    let forged = tabbify_process::random::<32>();
    let cookie = &cookie[18..34];
    let prove = [
        &[0xd2, 3][..],
        &runner.public_key().0,
        &nonce,
        cookie,
        &forged,
    ]
    .concat();
    thief.send_to(&prove, net.udp4)?;
    until(|| net.relay.stats().refused_proof == 1).await?;
    // A cookie is for one address.
    let elsewhere = UdpSocket::bind((V4, 0))?;
    elsewhere.send_to(&prove, net.udp4)?;
    until(|| net.relay.stats().refused_proof == 2).await?;
    // Nor can it send in another's name: its address is not registered.
    let dropped = net.relay.stats().dropped_malformed;
    let data = [
        &[0xd2, 16][..],
        &[0; 8],
        &runner.public_key().0[..8],
        b"hello",
    ]
    .concat();
    thief.send_to(&data, net.udp4)?;
    until(|| net.relay.stats().dropped_malformed == dropped + 1).await?;
    exchange(stream, 10_000).await?;
    assert_eq!(net.relay.stats().clients, 2);
    Ok(())
}

/// A relay with another key than its client expects, in the place of the right one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_with_another_key_is_not_used() -> Fallible {
    let net = Net::new(StackChoice::Userspace, RelayLimits::default()).await?;
    for (n, reach) in [(1, Reach::Udp4), (2, Reach::Tls)] {
        let mut config = net.config(n, (V4, 0).into(), reach);
        config.relays[0].key = PrivateKey::generate().public();
        let _mesh = net.mesh(config)?;
        // The client's proof is for somebody else.
        until(|| net.relay.stats().refused_proof >= u64::from(n)).await?;
    }
    assert_eq!(net.relay.stats().clients, 0);
    Ok(())
}

/// Hostile bytes, to the UDP socket and in TLS.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn noise_does_nothing() -> Fallible {
    let net = Net::new(StackChoice::Userspace, RelayLimits::default()).await?;
    let [node, runner] = net.strangers(Reach::Udp4, Reach::Udp6)?;
    net.serve(runner.listen(APP_PORT)?);
    let mut stream = dial(&node, app(2)).await?;
    let noise = UdpSocket::bind((V4, 0))?;
    for round in 0..500_u16 {
        let mut bytes: Vec<u8> = (0..round).map(|n| (n ^ round).to_le_bytes()[0]).collect();
        if let [first, second, ..] = &mut bytes[..] {
            (*first, *second) = (0xd2, round.to_le_bytes()[0] % 20);
        }
        noise.send_to(&bytes, net.udp4)?;
    }
    let mut plain = tokio::net::TcpStream::connect(net.tls).await?;
    plain.write_all(&[7; 1000]).await?;
    stream = exchange(stream, 10_000).await?;
    drop(stream);
    assert_eq!(net.relay.stats().clients, 2);
    assert!(net.tasks.failure().is_none());
    // It is a STUN server, too.
    noise.set_read_timeout(Some(WATCHDOG))?;
    let mut request = vec![0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42];
    request.extend([9; 12]);
    noise.send_to(&request, net.udp4)?;
    let mut answer = [0; 64];
    let (len, from) = noise.recv_from(&mut answer)?;
    assert_eq!((len, from), (32, net.udp4));
    assert_eq!(answer[..2], [1, 1]);
    Ok(())
}

/// One peer fills the way to another; a third still gets through to it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handshake_passes_a_saturated_relay() -> Fallible {
    let net = Net::new(StackChoice::Userspace, RelayLimits::default()).await?;
    let [node, runner] = net.strangers(Reach::Tls, Reach::Tls)?;
    net.serve(runner.listen(APP_PORT)?);
    let mut listener = runner.listen(APP_PORT + 1)?;
    let mut flood = dial(&node, SocketAddrV6::new(inner(2), APP_PORT + 1, 0, 0)).await?;
    let mut sink = within(async { Ok(listener.accept().await?) }).await?;
    net.tasks.spawn("flood", Importance::Detached, async move {
        let chunk = vec![7; 64 * 1024];
        while flood.write_all(&chunk).await.is_ok() {}
    });
    net.tasks.spawn("sink", Importance::Detached, async move {
        let mut room = vec![0; 64 * 1024];
        while sink.stream.read(&mut room).await.is_ok_and(|n| n > 0) {}
    });
    let mut times = Vec::new();
    for batch in 0..4_u16 {
        let others = (0..25).map(|n| {
            let config = net.config(10 + batch * 25 + n, (V4, 0).into(), Reach::Tls);
            net.mesh(config)
        });
        let others: Vec<Mesh> = others.collect::<Fallible<_>>()?;
        let registered = 2 + 25 * (u64::from(batch) + 1);
        until(|| net.relay.stats().registered_tls >= registered).await?;
        for other in others {
            let began = Instant::now();
            other.dial(app(2)).await?;
            times.push(began.elapsed());
        }
    }
    times.sort();
    println!(
        "dial through a saturated TLS relay, {} times: p50 {:?}, p99 {:?}, most {:?}",
        times.len(),
        times[49],
        times[98],
        times[99]
    );
    assert!(net.relay.stats().bytes > 1 << 20, "{:?}", net.relay.stats());
    Ok(())
}
