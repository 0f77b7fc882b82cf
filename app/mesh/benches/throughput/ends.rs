//! The two ends of ours: one process each, in a namespace each, as a node and a runner are.

use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::sync::Arc;

use tabbify_api::BoxFuture;
use tabbify_api::mesh::{PeerRecord, ResolveError, Resolver};
use tabbify_mesh::{Config, Mesh, PrivateKey, StackChoice};
use tabbify_process::Tasks;
use tabbify_types::{APP_PORT, MeshKey};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{Duration, Instant};

use crate::Fallible;
use crate::lab::{PORT, outer};

/// As `iperf3` reads and writes.
const BLOCK: usize = 128 * 1024;
/// As much window as the kernel gives `iperf3` by itself.
const BUFFER_BYTES: usize = 3 * 1024 * 1024;

#[derive(Debug)]
struct Other(PeerRecord);

impl Resolver for Other {
    fn by_address(&self, _: Ipv6Addr) -> BoxFuture<'_, Result<PeerRecord, ResolveError>> {
        Box::pin(async { Ok(self.0.clone()) })
    }

    fn by_key(&self, _: MeshKey) -> BoxFuture<'_, Result<PeerRecord, ResolveError>> {
        Box::pin(async { Ok(self.0.clone()) })
    }
}

fn key(n: u8) -> PrivateKey {
    PrivateKey::from_bytes(&[n; 32])
}

fn inner(n: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd5a, 0x1f02, u16::from(n), 0, 0, 0, 0, 1)
}

/// End 1 sends to end 2 for this long.
pub(crate) fn run(role: &str, stack: &str, streams: usize, seconds: u64) -> Fallible {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let (n, other) = if role == "send" { (1, 2) } else { (2, 1) };
        let record = PeerRecord::unrestricted(
            key(other).public(),
            vec![inner(other)],
            vec![SocketAddr::from((outer(other), PORT))],
        );
        let underlay = SocketAddr::from((outer(n), PORT));
        let mut config = Config::new(key(n), vec![inner(n)], underlay);
        config.limits.tcp_buffer_bytes = BUFFER_BYTES;
        config.stack = match stack {
            "kernel" => StackChoice::Kernel,
            _ => StackChoice::Userspace,
        };
        let mesh = Mesh::bind(config, Arc::new(Other(record)), &Tasks::new())?;
        if role == "send" {
            send(&mesh, inner(other), streams, seconds).await
        } else {
            receive(&mesh, streams).await
        }
    })
}

async fn send(mesh: &Mesh, to: Ipv6Addr, streams: usize, seconds: u64) -> Fallible {
    let to = SocketAddrV6::new(to, APP_PORT, 0, 0);
    let mut dialed = Vec::new();
    for _ in 0..streams {
        dialed.push(mesh.dial(to).await?);
    }
    let until = Instant::now() + Duration::from_secs(seconds);
    let pour = dialed.into_iter().map(|mut stream| async move {
        let block = vec![7; BLOCK];
        while Instant::now() < until {
            stream.write_all(&block).await?;
        }
        stream.shutdown().await?;
        // The other end closes when it has read everything.
        stream.read_to_end(&mut Vec::new()).await?;
        Fallible::Ok(())
    });
    futures_util::future::try_join_all(pour).await?;
    Ok(())
}

async fn receive(mesh: &Mesh, streams: usize) -> Fallible {
    let mut listener = mesh.listen(APP_PORT)?;
    println!("ready");
    let mut accepted = Vec::new();
    for _ in 0..streams {
        accepted.push(listener.accept().await?.stream);
    }
    let began = Instant::now();
    let drain = accepted.into_iter().map(|mut stream| async move {
        let (mut block, mut total) = (vec![0; BLOCK], 0);
        loop {
            match stream.read(&mut block).await? {
                0 => break,
                n => total += n as u64,
            }
        }
        stream.shutdown().await?;
        Fallible::Ok((stream, total))
    });
    let drained = futures_util::future::try_join_all(drain).await?;
    let total: u64 = drained.iter().map(|(_, total)| total).sum();
    let seconds = began.elapsed().as_secs_f64();
    drop(drained);
    println!("{total} {seconds}");
    mesh.clone().close(Duration::from_secs(2)).await;
    Ok(())
}
