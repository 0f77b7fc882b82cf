//! What is revoked is cut off: from the event in the log to the stream that breaks, with real sessions that
//! resolve over the network. How long that takes is printed.

use std::net::{SocketAddrV6, UdpSocket};
use std::sync::Arc;

use tabbify_api::coordinator::PolicyOrder;
use tabbify_api::mesh::{Leases as _, Resolver};
use tabbify_coordinator::RemoteCoordinator;
use tabbify_mesh::{
    Config, Mesh, PrivateKey, Relay, RelayLimits, RelayServer, StackChoice, Stream,
};
use tabbify_process::{Importance, Tasks};
use tabbify_types::event::v1::{AllowRule, InstanceRef, LeaseReleased};
use tabbify_types::{APP_PORT, AppUla, Digest, InstanceUla, Segment, Tenant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::Instant;

use crate::platform::{Invitation, Platform, signing_of};
use crate::support::{Fallible, WATCHDOG, append, eventually, key_of, secret_of};

/// An instance of an app as its runner has it: its key, what it resolves with, its end of the mesh.
struct Runner {
    of: InstanceRef,
    remote: RemoteCoordinator,
    mesh: Mesh,
}

impl Runner {
    async fn start(platform: &Platform, of: InstanceRef, tasks: &Tasks) -> Fallible<Self> {
        let remote = platform.remote(&secret_of(of), tasks)?;
        let bytes = Digest::of(format!("{} {}", of.app, of.instance).as_bytes()).0;
        let addresses = vec![
            AppUla::derive(of.app).addr(),
            InstanceUla::derive(of.app, of.instance).addr(),
        ];
        let mut config = Config::new(
            PrivateKey::from_bytes(&bytes),
            addresses,
            ([127, 0, 0, 1], 0).into(),
        );
        config.stack = StackChoice::Userspace;
        let resolver: Arc<dyn Resolver> = Arc::new(remote.clone());
        let mesh = Mesh::bind(config, resolver, tasks)?;
        assert_eq!(mesh.public_key(), key_of(of));
        remote.report_candidates(mesh.public_key(), vec![mesh.underlay_addr()?]);
        let mut listener = mesh.listen(APP_PORT)?;
        let echoes = tasks.clone();
        tasks.spawn("echo", Importance::Detached, async move {
            while let Ok(incoming) = listener.accept().await {
                echoes.spawn("connection", Importance::Detached, async move {
                    let (mut from, mut to) = tokio::io::split(incoming.stream);
                    let _ = tokio::io::copy(&mut from, &mut to).await;
                });
            }
        });
        eventually(|| async { if remote.is_live() { Ok(()) } else { Err(()) } }).await?;
        Ok(Self { of, remote, mesh })
    }

    /// A stream that works, once the other is where the coordinator says it is.
    async fn stream_to(&self, other: &Self) -> Fallible<Stream> {
        let to = SocketAddrV6::new(AppUla::derive(other.of.app).addr(), APP_PORT, 0, 0);
        eventually(|| async {
            let mut stream = self.mesh.dial(to).await.map_err(drop)?;
            let mut answer = [0; 4];
            stream.write_all(b"ping").await.map_err(drop)?;
            stream.read_exact(&mut answer).await.map_err(drop)?;
            if &answer == b"ping" {
                Ok(stream)
            } else {
                Err(())
            }
        })
        .await
    }

    async fn reaches(&self, other: &Self) -> bool {
        let to = SocketAddrV6::new(AppUla::derive(other.of.app).addr(), APP_PORT, 0, 0);
        self.mesh.dial(to).await.is_ok()
    }
}

/// Waits until the peer's end of a stream is cut, on which nothing is sent.
async fn broken(mut stream: Stream) -> Fallible<()> {
    let mut byte = [0];
    match tokio::time::timeout(WATCHDOG, stream.read(&mut byte)).await? {
        Ok(1..) => Err("it goes on".into()),
        Ok(0) | Err(_) => Ok(()),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_released_lease_cuts_its_streams() {
    let platform = Platform::start().await.unwrap();
    platform.join(&Invitation::of("box2")).await.unwrap();
    let main = Tenant::main();
    let (shop, blog) = (
        platform.app(&main, "shop").await.unwrap(),
        platform.app(&main, "blog").await.unwrap(),
    );
    let tasks = Tasks::new();
    let shop = Runner::start(&platform, shop, &tasks).await.unwrap();
    let blog = Runner::start(&platform, blog, &tasks).await.unwrap();
    // Each way, so that both ends know each other for the other's sake.
    let stream = blog.stream_to(&shop).await.unwrap();
    let _other = shop.stream_to(&blog).await.unwrap();

    let InstanceRef { app, instance } = shop.of;
    let released = LeaseReleased { app, instance };
    let before = Instant::now();
    append(&*platform.client, Segment::peers(), app, released.into())
        .await
        .unwrap();
    let written = Instant::now();
    broken(stream).await.unwrap();
    eprintln!(
        "revoked to cut off: {:?} from the event in the log, {:?} with its append",
        written.elapsed(),
        before.elapsed(),
    );
    eventually(|| async {
        if blog.mesh.stats().revoked == 1 {
            Ok(())
        } else {
            Err(())
        }
    })
    .await
    .unwrap();
    // It does not come back, and is not found any more.
    assert!(!shop.reaches(&blog).await);
    assert!(!blog.reaches(&shop).await);
    assert_eq!(blog.mesh.stats().sessions, 0);
    assert!(shop.remote.renewed().await.is_err());
    drop((shop, blog));
    assert!(tasks.shutdown(WATCHDOG).await);
    platform.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rule_that_is_taken_back_cuts_what_it_let_in() {
    let platform = Platform::start().await.unwrap();
    platform.join(&Invitation::of("box2")).await.unwrap();
    let (main, other): (Tenant, Tenant) = (Tenant::main(), "other".parse().unwrap());
    let (shop, theirs) = (
        platform.app(&main, "shop").await.unwrap(),
        platform.app(&other, "shop").await.unwrap(),
    );
    let tasks = Tasks::new();
    let shop = Runner::start(&platform, shop, &tasks).await.unwrap();
    let theirs = Runner::start(&platform, theirs, &tasks).await.unwrap();
    assert!(!shop.reaches(&theirs).await);
    let rule = AllowRule {
        from: "tenant:main".to_owned(),
        to: "tenant:other".to_owned(),
        ports: vec![APP_PORT],
    };
    let order = |allow| PolicyOrder {
        tenant: other.clone(),
        allow,
    };
    platform
        .coordinator
        .change_policy(order(vec![rule]))
        .await
        .unwrap();
    let stream = shop.stream_to(&theirs).await.unwrap();
    assert!(!theirs.reaches(&shop).await, "a rule is for one direction");

    let before = Instant::now();
    platform
        .coordinator
        .change_policy(order(Vec::new()))
        .await
        .unwrap();
    broken(stream).await.unwrap();
    eprintln!("rule taken back to cut off: {:?}", before.elapsed());
    eventually(|| async {
        if theirs.mesh.stats().revoked == 1 {
            Ok(())
        } else {
            Err(())
        }
    })
    .await
    .unwrap();
    assert!(!shop.reaches(&theirs).await);
    drop((shop, theirs));
    assert!(tasks.shutdown(WATCHDOG).await);
    platform.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_drops_who_is_revoked() {
    let platform = Platform::start().await.unwrap();
    let edge = platform
        .join(&Invitation::of("edge").tagged("role:relay"))
        .await
        .unwrap();
    platform.join(&Invitation::of("box2")).await.unwrap();
    let shop = platform.app(&Tenant::main(), "shop").await.unwrap();
    let tasks = Tasks::new();
    // The relay of a machine, in the process of the coordinator and in one of its own.
    let own = platform.coordinator.resolver(edge.secret.public());
    let remote: Arc<dyn Resolver> = Arc::new(platform.remote(&edge.secret, &tasks).unwrap());
    let relays = [own, remote].map(|resolver| {
        let key = PrivateKey::from_bytes(&signing_of(&edge.secret).public().0);
        Relay::new(key, resolver, RelayLimits::default(), &tasks)
    });
    let mut servers = Vec::new();
    for relay in &relays {
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        servers.push(RelayServer {
            key: relay.key(),
            udp: Some(relay.serve_udp(udp).unwrap()),
            tls: None,
        });
    }
    let bytes = Digest::of(format!("{} {}", shop.app, shop.instance).as_bytes()).0;
    let mut config = Config::new(
        PrivateKey::from_bytes(&bytes),
        vec![AppUla::derive(shop.app).addr()],
        ([127, 0, 0, 1], 0).into(),
    );
    config.stack = StackChoice::Userspace;
    config.relays = servers;
    let resolver = platform.coordinator.resolver(key_of(shop));
    let _mesh = Mesh::bind(config, resolver, &tasks).unwrap();
    let registered = |n| {
        let relays = &relays;
        move || async move {
            let clients = relays.iter().map(|relay| relay.stats().clients);
            if clients.collect::<Vec<_>>() == [n, n] {
                Ok(())
            } else {
                Err(())
            }
        }
    };
    eventually(registered(1)).await.unwrap();

    let InstanceRef { app, instance } = shop;
    let released = LeaseReleased { app, instance };
    append(&*platform.client, Segment::peers(), app, released.into())
        .await
        .unwrap();
    let written = Instant::now();
    eventually(registered(0)).await.unwrap();
    eprintln!("revoked to dropped by two relays: {:?}", written.elapsed());
    // The count comes a moment after the place is free.
    eventually(|| async {
        let revoked = relays.iter().map(|relay| relay.stats().revoked);
        match revoked.collect::<Vec<_>>() == [1, 1] {
            true => Ok(()),
            false => Err(()),
        }
    })
    .await
    .unwrap();
    assert!(tasks.shutdown(WATCHDOG).await);
    platform.stop().await;
}
