//! Another implementation at the other end, in both directions and with both of our stacks: Debian's
//! `wireguard-go`, with the kernel's TCP behind it.
#![expect(clippy::print_stderr, reason = "a test that cannot run says so")]

use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::sync::Arc;
use std::time::Duration;

use tabbify_api::BoxFuture;
use tabbify_api::mesh::{PeerRecord, ResolveError, Resolver};
use tabbify_mesh::{Config, Mesh, MeshError, PrivateKey, StackChoice};
use tabbify_process::Tasks;
use tabbify_testing::apart::is_apart;
use tabbify_testing::stock::{File, Stock};
use tabbify_types::{APP_PORT, MeshKey};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};

type Fallible<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

const OURS: Ipv6Addr = Ipv6Addr::new(0xfd5a, 0x1f02, 2, 0, 0, 0, 0, 1);
const THEIRS: Ipv6Addr = Ipv6Addr::new(0xfd5a, 0x1f02, 1, 0, 0, 0, 0, 1);
const WATCHDOG: Duration = Duration::from_secs(60);
/// More than the buffers on the way hold.
const LEN: usize = 2 * 1024 * 1024;
/// After this long either side makes new keys (the protocol's REKEY-AFTER-TIME).
const REKEY_AFTER: Duration = Duration::from_secs(120);

/// Knows the stock end, under any name.
#[derive(Debug)]
struct Only(PeerRecord);

impl Resolver for Only {
    fn by_address(&self, _: Ipv6Addr) -> BoxFuture<'_, Result<PeerRecord, ResolveError>> {
        Box::pin(async { Ok(self.0.clone()) })
    }

    fn by_key(&self, key: MeshKey) -> BoxFuture<'_, Result<PeerRecord, ResolveError>> {
        Box::pin(async move {
            if key == self.0.key {
                Ok(self.0.clone())
            } else {
                Err(ResolveError::UnknownKey(key))
            }
        })
    }
}

/// Both ends, on one loopback interface.
struct Ends {
    mesh: Mesh,
    stock: Stock,
}

impl Ends {
    /// None, and a word about it, where the test cannot run.
    fn new(test: &str, stack: StackChoice) -> Fallible<Option<Self>> {
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        let key = PrivateKey::generate();
        // Taken for a moment: the stock end is to be found at a port that is known before.
        let port = std::net::UdpSocket::bind(loopback)?.local_addr()?.port();
        let stock_at = SocketAddr::from(([127, 0, 0, 1], port));
        let record = PeerRecord::unrestricted(key.public(), vec![THEIRS], vec![stock_at]);
        let mut config = Config::new(PrivateKey::generate(), vec![OURS], loopback);
        config.stack = stack;
        let mesh = match Mesh::bind(config, Arc::new(Only(record)), &Tasks::new()) {
            Ok(mesh) => mesh,
            Err(MeshError::Kernel(error)) => {
                eprintln!("NOT RUN: {test}: {}", tabbify_process::chain(&error));
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        let interface = format!("tt{}", std::process::id());
        let Some(stock) = Stock::start(&interface)? else {
            eprintln!("NOT RUN: {test}: wireguard-go is not installed");
            return Ok(None);
        };
        let file = File::parse(&format!(
            "[Interface]\nPrivateKey = {}\nListenPort = {port}\nAddress = {THEIRS}/128\nMTU = 1420\n\
             [Peer]\nPublicKey = {}\nAllowedIPs = {OURS}/128\nEndpoint = {}\n",
            key.to_text().as_str(),
            mesh.public_key(),
            mesh.underlay_addr()?
        ))?;
        stock.apply(&file)?;
        Ok(Some(Self { mesh, stock }))
    }
}

fn bytes(seed: usize) -> Vec<u8> {
    (0..LEN)
        .map(|i| u8::try_from((i * 7 + seed) % 253).unwrap_or(0))
        .collect()
}

/// Sends a lot both ways at once, checks it, and lets each side end by itself.
async fn exchange(
    here: impl AsyncRead + AsyncWrite + Unpin,
    there: impl AsyncRead + AsyncWrite + Unpin,
) -> Fallible {
    let both = async { tokio::try_join!(side(here, 1, 2), side(there, 2, 1)) };
    timeout(WATCHDOG, both).await??;
    Ok(())
}

async fn side(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    sent: usize,
    expected: usize,
) -> Fallible {
    let (mut read, mut write) = tokio::io::split(stream);
    let writing = async {
        write.write_all(&bytes(sent)).await?;
        write.shutdown().await
    };
    let mut received = Vec::new();
    tokio::try_join!(writing, read.read_to_end(&mut received))?;
    assert!(received == bytes(expected), "content differs");
    Ok(())
}

/// Says something one way and back.
async fn ping(
    here: &mut (impl AsyncRead + AsyncWrite + Unpin),
    there: &mut (impl AsyncRead + AsyncWrite + Unpin),
) -> Fallible {
    let there_and_back = async {
        let mut said = [0; 4];
        there.write_all(b"ping").await?;
        here.read_exact(&mut said).await?;
        here.write_all(&said).await?;
        there.read_exact(&mut said).await?;
        assert_eq!(&said, b"ping");
        Fallible::Ok(())
    };
    timeout(WATCHDOG, there_and_back).await?
}

fn at(address: Ipv6Addr) -> SocketAddrV6 {
    SocketAddrV6::new(address, APP_PORT, 0, 0)
}

/// The stock end calls, then we do; then it changes its port in the middle of a connection.
async fn both_ways(test: &str, stack: StackChoice) -> Fallible {
    let Some(Ends { mesh, stock }) = Ends::new(test, stack)? else {
        return Ok(());
    };
    let mut listener = mesh.listen(APP_PORT)?;
    let theirs = TcpListener::bind(at(THEIRS)).await?;

    let there = timeout(WATCHDOG, TcpStream::connect(at(OURS))).await??;
    let incoming = timeout(WATCHDOG, listener.accept()).await??;
    assert_eq!(*incoming.remote.ip(), THEIRS);
    exchange(incoming.stream, there).await?;
    let shaken = mesh.stats().handshakes;
    assert!(shaken > 0);

    let mut here = timeout(WATCHDOG, mesh.dial(at(THEIRS))).await??;
    let (mut there, from) = timeout(WATCHDOG, theirs.accept()).await??;
    assert_eq!(from.ip(), OURS);
    ping(&mut here, &mut there).await?;

    // It is heard from the new port, and answered there.
    let before = stock.get("listen_port")?;
    stock.set("set=1\nlisten_port=0\n\n")?;
    let port = stock.get("listen_port")?;
    assert_ne!(port, before);
    ping(&mut here, &mut there).await?;
    let path = mesh.peers().into_iter().find_map(|peer| peer.path);
    let path = path.map(|path| format!("{path:?}")).unwrap_or_default();
    assert!(path.contains(&format!(":{port}")), "{path}, not {port}");
    exchange(here, there).await?;
    let stats = mesh.stats();
    assert_eq!((stats.dropped_spoofed_source, stats.dropped_inner), (0, 0));
    Ok(())
}

/// We make new keys with it, and it with us, while a connection goes on.
async fn rekey(test: &str, stack: StackChoice) -> Fallible {
    let Some(Ends { mesh, stock }) = Ends::new(test, stack)? else {
        return Ok(());
    };
    let mut listener = mesh.listen(APP_PORT)?;
    let mut there = timeout(WATCHDOG, TcpStream::connect(at(OURS))).await??;
    let mut here = timeout(WATCHDOG, listener.accept()).await??.stream;
    ping(&mut here, &mut there).await?;
    let (began, first) = (Instant::now(), stock.get("last_handshake_time_sec")?);
    let shaken = mesh.stats().handshakes;
    let mut next = None;
    while next.is_none() {
        ping(&mut here, &mut there).await?;
        let last = stock.get("last_handshake_time_sec")?;
        if last != first && mesh.stats().handshakes > shaken {
            next = Some(began.elapsed());
        }
        if began.elapsed() > REKEY_AFTER + WATCHDOG {
            return Err("the keys are never made anew".into());
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    eprintln!("{test}: new keys after {next:?}, on a connection that went on");
    exchange(here, there).await
}

fn run(future: impl Future<Output = Fallible>) -> Fallible {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(future)
}

#[test]
fn wireguard_go_and_the_kernels_stack() -> Fallible {
    let name = "wireguard_go_and_the_kernels_stack";
    if is_apart(name)? {
        run(both_ways(name, StackChoice::Kernel))?;
    }
    Ok(())
}

#[test]
fn wireguard_go_and_the_stack_in_user_space() -> Fallible {
    let name = "wireguard_go_and_the_stack_in_user_space";
    if is_apart(name)? {
        run(both_ways(name, StackChoice::Userspace))?;
    }
    Ok(())
}

#[test]
fn wireguard_go_rekeys() -> Fallible {
    let name = "wireguard_go_rekeys";
    if !tabbify_testing::long() {
        eprintln!("NOT RUN: {name}: it takes two minutes, see cargo xtask test --long");
        return Ok(());
    }
    if is_apart(name)? {
        run(rekey(name, StackChoice::Auto))?;
    }
    Ok(())
}
