//! An instance that is idle, dialed: its machine is reached in its place and told whom it is about, over the
//! network and inside one process.

use std::collections::HashMap;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tabbify_api::BoxFuture;
use tabbify_api::doorbell::{DOORBELL_PORT, Heard, KNOCK_LEN, Knock};
use tabbify_api::mesh::{PeerRecord, ResolveError, Resolver};
use tabbify_mesh::{Config, DialError, Doorbell, Incoming, Mesh, PrivateKey, Stream};
use tabbify_process::Tasks;
use tabbify_types::event::v1::InstanceRef;
use tabbify_types::{APP_PORT, AppId, AppUla, InstanceId, InstanceUla, MeshKey};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

type Fallible<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// A test that waits for this long is stuck.
const WATCHDOG: Duration = Duration::from_secs(60);

/// Who answers for which address, and who has which key.
#[derive(Debug, Default)]
struct Known {
    addresses: Mutex<HashMap<Ipv6Addr, PeerRecord>>,
    keys: Mutex<HashMap<MeshKey, PeerRecord>>,
}

fn locked<T>(table: &Mutex<T>) -> MutexGuard<'_, T> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Known {
    fn put(&self, address: Ipv6Addr, record: PeerRecord) {
        locked(&self.addresses).insert(address, record);
    }
}

impl Resolver for Known {
    fn by_address(&self, address: Ipv6Addr) -> BoxFuture<'_, Result<PeerRecord, ResolveError>> {
        let known = locked(&self.addresses).get(&address).cloned();
        Box::pin(async move { known.ok_or(ResolveError::NoLease(address)) })
    }

    fn by_key(&self, key: MeshKey) -> BoxFuture<'_, Result<PeerRecord, ResolveError>> {
        let known = locked(&self.keys).get(&key).cloned();
        Box::pin(async move { known.ok_or(ResolveError::UnknownKey(key)) })
    }
}

fn host(n: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd5a, 0x1f00, 1, n, 0, 0, 0, 1)
}

struct Net {
    known: Arc<Known>,
    tasks: Tasks,
    of: InstanceRef,
}

impl Net {
    fn new() -> Self {
        Self {
            known: Arc::default(),
            tasks: Tasks::new(),
            of: InstanceRef {
                app: AppId::mint(),
                instance: InstanceId(3),
            },
        }
    }

    fn mesh(&self, address: Ipv6Addr) -> Fallible<Mesh> {
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        let config = Config::new(PrivateKey::generate(), vec![address], loopback);
        let resolver = Arc::clone(&self.known) as Arc<dyn Resolver>;
        let mesh = Mesh::bind(config, resolver, &self.tasks)?;
        let record = self.record(&mesh, address)?;
        locked(&self.known.keys).insert(mesh.public_key(), record.clone());
        self.known.put(address, record);
        Ok(mesh)
    }

    fn record(&self, mesh: &Mesh, address: Ipv6Addr) -> Fallible<PeerRecord> {
        let endpoints = vec![mesh.underlay_addr()?];
        Ok(PeerRecord::unrestricted(
            mesh.public_key(),
            vec![address],
            endpoints,
        ))
    }

    /// The instance is idle on this machine.
    fn idles(&self, machine: &Mesh, address: Ipv6Addr) -> Fallible {
        let record = PeerRecord {
            inbound: None,
            door: Some(self.of),
            ..self.record(machine, address)?
        };
        for address in self.addresses() {
            self.known.put(address, record.clone());
        }
        Ok(())
    }

    fn addresses(&self) -> [Ipv6Addr; 2] {
        let InstanceRef { app, instance } = self.of;
        [
            AppUla::derive(app).addr(),
            InstanceUla::derive(app, instance).addr(),
        ]
    }
}

fn at(address: Ipv6Addr) -> SocketAddrV6 {
    SocketAddrV6::new(address, APP_PORT, 0, 0)
}

/// Takes the next who rings, and answers; whom it wants, and who it is.
async fn answer(doorbell: &mut Doorbell, heard: Heard) -> Fallible<(Knock, Incoming)> {
    let mut incoming = tokio::time::timeout(WATCHDOG, doorbell.accept()).await??;
    let mut bytes = [0; KNOCK_LEN];
    incoming.stream.read_exact(&mut bytes).await?;
    let knock = Knock::from_bytes(&bytes).ok_or("a knock")?;
    incoming.stream.write_all(&[heard as u8]).await?;
    incoming.stream.flush().await?;
    Ok((knock, incoming))
}

/// What one says, the other hears.
async fn say(from: &mut Stream, to: &mut Stream) -> Fallible {
    from.write_all(b"hello").await?;
    from.flush().await?;
    let mut heard = [0; 5];
    to.read_exact(&mut heard).await?;
    assert_eq!(&heard, b"hello");
    Ok(())
}

/// Both ends talk, and end one after the other.
async fn converse(mut caller: Stream, mut callee: Stream) -> Fallible {
    say(&mut caller, &mut callee).await?;
    say(&mut callee, &mut caller).await?;
    caller.shutdown().await?;
    assert_eq!(callee.read(&mut [0; 8]).await?, 0);
    callee.write_all(b"last words").await?;
    callee.shutdown().await?;
    let mut heard = Vec::new();
    caller.read_to_end(&mut heard).await?;
    assert_eq!(heard, b"last words");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn its_machine_answers_for_an_idle_instance() -> Fallible {
    let net = Net::new();
    let (caller, machine) = (net.mesh(host(1))?, net.mesh(host(2))?);
    net.idles(&machine, host(2))?;
    let mut doorbell = machine.doorbell(false)?;
    for address in net.addresses() {
        let (dialed, answered) =
            tokio::join!(caller.dial(at(address)), answer(&mut doorbell, Heard::Held));
        let (knock, incoming) = answered?;
        let port = APP_PORT;
        assert_eq!(knock, Knock { of: net.of, port });
        assert_eq!(incoming.peer, caller.public_key());
        assert_eq!((*incoming.remote.ip(), incoming.is_node), (host(1), false));
        assert_eq!(
            incoming.local,
            SocketAddrV6::new(host(2), DOORBELL_PORT, 0, 0)
        );
        converse(dialed?, incoming.stream).await?;
    }

    let (dialed, answered) = tokio::join!(
        caller.dial(at(net.addresses()[0])),
        answer(&mut doorbell, Heard::Forbidden)
    );
    answered?;
    assert!(matches!(dialed, Err(DialError::Forbidden(_))), "{dialed:?}");
    let (dialed, answered) = tokio::join!(
        caller.dial(at(net.addresses()[0])),
        answer(&mut doorbell, Heard::Busy)
    );
    answered?;
    assert!(matches!(dialed, Err(DialError::Busy { .. })), "{dialed:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_reaches_what_is_idle_on_its_own_machine() -> Fallible {
    let net = Net::new();
    let machine = net.mesh(host(1))?;
    net.idles(&machine, host(1))?;
    let address = net.addresses()[0];
    let refused = machine.dial(at(address)).await;
    assert!(matches!(refused, Err(DialError::Refused(_))), "{refused:?}");

    let mut doorbell = machine.doorbell(true)?;
    let (dialed, answered) = tokio::join!(
        machine.dial(at(address)),
        answer(&mut doorbell, Heard::Held)
    );
    let (knock, incoming) = answered?;
    assert_eq!(knock.of, net.of);
    assert_eq!(
        (incoming.peer, incoming.is_node),
        (machine.public_key(), true)
    );
    assert_eq!(*incoming.remote.ip(), host(1));
    converse(dialed?, incoming.stream).await?;
    drop(doorbell);
    let refused = machine.dial(at(address)).await;
    assert!(matches!(refused, Err(DialError::Refused(_))), "{refused:?}");
    Ok(())
}

/// It woke up, or went elsewhere, between the answer about it and the knock.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_not_behind_a_doorbell_is_asked_for_again() -> Fallible {
    let net = Net::new();
    let (caller, machine) = (net.mesh(host(1))?, net.mesh(host(2))?);
    net.idles(&machine, host(2))?;
    let mut doorbell = machine.doorbell(false)?;
    let address = net.addresses()[0];
    let awake = async {
        let runner = net.mesh(address)?;
        let mut listener = runner.listen(APP_PORT)?;
        // Said again and again, as long as it is asked for.
        let (_, first) = answer(&mut doorbell, Heard::NotHere).await?;
        drop(first);
        let incoming = loop {
            tokio::select! {
                incoming = listener.accept() => break incoming?,
                again = answer(&mut doorbell, Heard::NotHere) => drop(again?),
            }
        };
        Fallible::Ok((runner, incoming))
    };
    // Until then, the caller knows what it was told.
    net.idles(&machine, host(2))?;
    let (dialed, awake) = tokio::join!(caller.dial(at(address)), awake);
    let (_runner, incoming) = awake?;
    converse(dialed?, incoming.stream).await
}

/// A machine that is a public edge calls an app, which itself calls one that is idle on that machine.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_door_says_changes_nothing_of_the_machine() -> Fallible {
    let net = Net::new();
    let (app, edge) = (net.mesh(host(1))?, net.mesh(host(2))?);
    let record = net.record(&edge, host(2))?.node();
    locked(&net.known.keys).insert(edge.public_key(), record);
    let mut listener = app.listen(APP_PORT)?;
    let (mine, theirs) = tokio::join!(edge.dial(at(host(1))), listener.accept());
    let (mine, theirs) = (mine?, theirs?);
    assert!(theirs.is_node);

    net.idles(&edge, host(2))?;
    let mut doorbell = edge.doorbell(true)?;
    let (dialed, answered) = tokio::join!(
        app.dial(at(net.addresses()[0])),
        answer(&mut doorbell, Heard::Held)
    );
    converse(dialed?, answered?.1.stream).await?;
    // Its connections are not those of somebody else now.
    converse(mine, theirs.stream).await?;
    let (mine, theirs) = tokio::join!(edge.dial(at(host(1))), listener.accept());
    assert!(theirs?.is_node && mine.is_ok());
    Ok(())
}
