//! A machine that serves artifacts over the mesh, and peers with an address of their own.

use std::io;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::response::Parts;
use http::{Method, Request};
use http_body_util::Full;
use object_store::local::LocalFileSystem;
use tabbify_api::BoxFuture;
use tabbify_api::artifact::{ARTIFACTS_PORT, file_key};
use tabbify_api::mesh::{PeerRecord, Resolver, Roster};
use tabbify_http::{Accept, Again, Client, Origin};
use tabbify_mesh::{Config, Listener, Mesh, PrivateKey};
use tabbify_process::connect::{Connect, Stream};
use tabbify_process::{Importance, Tasks};
use tabbify_registry::{Limits, Service};
use tabbify_types::{AppId, HostUla, VersionNumber};
use tokio::sync::Mutex;

pub(crate) type Fallible<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Longer than any wait here can take on a machine that works.
const WATCHDOG: Duration = Duration::from_secs(30);

/// Ends what never ends.
pub(crate) async fn watched<T>(future: impl Future<Output = T>) -> Fallible<T> {
    Ok(tokio::time::timeout(WATCHDOG, future).await?)
}

/// Looks until it is so.
pub(crate) async fn eventually(is_so: impl Fn() -> bool) -> Fallible<()> {
    watched(async {
        while !is_so() {
            tokio::task::yield_now().await;
        }
    })
    .await
}

/// A machine that serves the artifacts in a directory.
pub(crate) struct Site {
    dir: tempfile::TempDir,
    book: Arc<Roster>,
    tasks: Tasks,
    _mesh: Mesh,
    pub(crate) service: Service,
    pub(crate) address: SocketAddrV6,
}

/// Somebody with an inner address.
pub(crate) struct Peer {
    pub(crate) mesh: Mesh,
    client: Client,
}

/// Connections of the mesh, with the inner address of who has opened each.
struct OnMesh(Mutex<Listener>);

impl Accept for OnMesh {
    type Stream = tabbify_mesh::Stream;

    async fn accept(&self) -> io::Result<(Self::Stream, Origin)> {
        let incoming = self.0.lock().await.accept().await;
        let incoming = incoming.map_err(io::Error::other)?;
        Ok((incoming.stream, Origin::At(incoming.remote.into())))
    }
}

#[derive(Debug)]
struct Dial(Mesh, SocketAddrV6);

impl Connect for Dial {
    fn connect(&self) -> BoxFuture<'_, io::Result<Box<dyn Stream>>> {
        Box::pin(async {
            let stream = self.0.dial(self.1).await.map_err(io::Error::other)?;
            Ok(Box::new(stream) as Box<dyn Stream>)
        })
    }
}

impl Site {
    pub(crate) fn new(limits: &Limits) -> Fallible<Self> {
        let dir = tempfile::tempdir()?;
        let (book, tasks) = (Arc::<Roster>::default(), Tasks::new());
        let address = HostUla::new(1, 1).addr();
        let mesh = member(address, &book, &tasks)?;
        let store = LocalFileSystem::new_with_prefix(dir.path())?;
        let service = Service::new(Arc::new(store), limits, &tasks);
        let listener = OnMesh(Mutex::new(mesh.listen(ARTIFACTS_PORT)?));
        let serving = service.clone().serve(listener);
        tasks.spawn("registry", Importance::Detached, serving);
        Ok(Self {
            dir,
            book,
            tasks,
            _mesh: mesh,
            service,
            address: SocketAddrV6::new(address, ARTIFACTS_PORT, 0, 0),
        })
    }

    /// Stores a file of a version, as the node does.
    pub(crate) fn put(&self, app: AppId, n: u32, name: &str, bytes: &[u8]) -> Fallible<()> {
        let path = self.dir.path().join(file_key(app, VersionNumber(n), name));
        std::fs::create_dir_all(path.with_file_name(""))?;
        Ok(std::fs::write(path, bytes)?)
    }

    /// A peer that speaks from `address`.
    pub(crate) fn peer(&mut self, address: Ipv6Addr) -> Fallible<Peer> {
        let mesh = member(address, &self.book, &self.tasks)?;
        let dial = Arc::new(Dial(mesh.clone(), self.address));
        let client = Client::new("test client", dial, WATCHDOG, &self.tasks);
        Ok(Peer { mesh, client })
    }

    pub(crate) async fn end(self) {
        assert!(self.tasks.shutdown(WATCHDOG).await);
        assert_eq!(self.tasks.failure(), None);
    }
}

impl Peer {
    /// One request; the whole answer.
    pub(crate) async fn ask(&self, method: Method, path: &str) -> Fallible<(Parts, Bytes)> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "registry")
            .body(Full::default())?;
        let asked = self.client.ask(request, Again::Never, 1 << 30);
        Ok(watched(asked).await??)
    }
}

fn member(address: Ipv6Addr, book: &Arc<Roster>, tasks: &Tasks) -> Fallible<Mesh> {
    let key = PrivateKey::generate();
    let public = key.public();
    let config = Config::new(key, vec![address], ([127, 0, 0, 1], 0).into());
    let resolver: Arc<dyn Resolver> = Arc::<Roster>::clone(book);
    let mesh = Mesh::bind(config, resolver, tasks)?;
    let at = mesh.underlay_addr()?;
    let record = PeerRecord::unrestricted(public, vec![address], vec![at]);
    book.put(record);
    Ok(mesh)
}
