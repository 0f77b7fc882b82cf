//! One app calls another by name: real components, a real mesh between them, both bodies streaming. Only
//! who is called what is written down here instead of asked for.

use std::net::{Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http_body_util::BodyExt as _;
use tabbify_api::BoxFuture;
use tabbify_api::mesh::{PeerRecord, ResolveError, Resolver};
use tabbify_api::names::{NameAsk, NameError, Named, Names};
use tabbify_mesh::{Config, Mesh, PrivateKey, StackChoice};
use tabbify_process::{Importance, Tasks};
use tabbify_runner::server::Caller;
use tabbify_runner::wasm_http::Limits;
use tabbify_runner::wasm_http::neighbors::Neighbors;
use tabbify_types::{APP_PORT, AppId, AppUla, MeshKey};

use crate::harness::{App, get, request, run_config, sent_body, serve, start_among, text, watched};
use crate::wasm::{Package, component};

/// Who is where, and called what.
#[derive(Debug, Default)]
struct Book {
    peers: Mutex<Vec<PeerRecord>>,
    names: Mutex<Vec<Named>>,
}

impl Book {
    fn find(&self, is: impl Fn(&PeerRecord) -> bool) -> Option<PeerRecord> {
        let peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        peers.iter().find(|peer| is(peer)).cloned()
    }

    fn write(&self, name: &str, app: AppId, mesh: &Mesh) -> anyhow::Result<()> {
        let address = AppUla::derive(app).addr();
        let (key, at) = (mesh.public_key(), mesh.underlay_addr()?);
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        peers.push(PeerRecord::unrestricted(key, vec![address], vec![at]));
        let name = name.parse()?;
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        names.push(Named { name, address });
        Ok(())
    }
}

impl Resolver for Book {
    fn by_address(&self, address: Ipv6Addr) -> BoxFuture<'_, Result<PeerRecord, ResolveError>> {
        let found = self.find(|peer| peer.addresses.contains(&address));
        Box::pin(async move { found.ok_or(ResolveError::NoLease(address)) })
    }

    fn by_key(&self, key: MeshKey) -> BoxFuture<'_, Result<PeerRecord, ResolveError>> {
        let found = self.find(|peer| peer.key == key);
        Box::pin(async move { found.ok_or(ResolveError::UnknownKey(key)) })
    }
}

impl Names for Book {
    fn find(&self, ask: NameAsk) -> BoxFuture<'_, Result<Named, NameError>> {
        let names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let mut names = names.iter();
        let found = names.find(|named| ask == NameAsk::Name(named.name.clone()));
        let found = found.cloned().ok_or(NameError::Unknown(ask));
        Box::pin(async { found })
    }
}

/// Two apps of a mesh: `ask`, which passes on what it is told to, and `stream.main.internal`.
struct Two {
    book: Arc<Book>,
    tasks: Tasks,
    ask: App,
    id: AppId,
    stream: App,
}

impl Two {
    async fn start() -> anyhow::Result<Self> {
        let (book, tasks) = (Arc::new(Book::default()), Tasks::new());
        let id = AppId::mint();
        let mesh = bind(&book, id, &tasks)?;
        let names: Arc<dyn Names> = Arc::<Book>::clone(&book);
        let neighbors = Neighbors::new(id, names, mesh.clone());
        let entry = component(Package::Ask)?;
        let ask = start_among(neighbors, entry, run_config(), Limits::DEFAULT).await?;
        let ask = ask.map_err(|failure| anyhow::anyhow!("{failure:?}"))?;
        book.write("ask.main.internal", id, &mesh)?;
        let stream = serve(Package::Stream).await?;
        let this = Self {
            book,
            tasks,
            ask,
            id,
            stream,
        };
        this.listen("stream.main.internal", &this.stream)?;
        Ok(this)
    }

    /// Serves `app` in the mesh under a name.
    fn listen(&self, name: &str, app: &App) -> anyhow::Result<()> {
        let id = AppId::mint();
        let mesh = bind(&self.book, id, &self.tasks)?;
        let mut listener = mesh.listen(APP_PORT)?;
        self.book.write(name, id, &mesh)?;
        let (server, tasks) = (app.server.clone(), self.tasks.clone());
        self.tasks
            .spawn("listen", Importance::Detached, async move {
                let _held = mesh;
                while let Ok(incoming) = listener.accept().await {
                    let server = server.clone().called_by(Caller::of(&incoming));
                    let connection = server.connection(incoming.stream);
                    tasks.spawn("connection", Importance::Detached, connection);
                }
            });
        Ok(())
    }
}

impl Drop for Two {
    fn drop(&mut self) {
        self.tasks.stop();
    }
}

fn bind(book: &Arc<Book>, app: AppId, tasks: &Tasks) -> anyhow::Result<Mesh> {
    let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
    let addresses = vec![AppUla::derive(app).addr()];
    let mut config = Config::new(PrivateKey::generate(), addresses, loopback);
    config.stack = StackChoice::Userspace;
    let resolver: Arc<dyn Resolver> = Arc::<Book>::clone(book);
    Ok(Mesh::bind(config, resolver, tasks)?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn by_name_and_streaming_both_ways() {
    let two = Two::start().await.unwrap();
    // As in a conversation: the answer to each piece is there before the next is sent, through both apps.
    let (chunks, body) = sent_body();
    let mut client = two.ask.connect().await.unwrap();
    let path = "/stream.main.internal/echo";
    chunks.send(Bytes::from_static(b"piece 0")).await.unwrap();
    let echo = client.send_request(request("POST", path, body).unwrap());
    let response = watched(echo).await.unwrap().unwrap();
    assert_eq!(response.status(), 200);
    let mut body = response.into_body();
    for n in 0..5 {
        let mut piece = Vec::new();
        let expected = format!("piece {n}").into_bytes();
        while piece.len() < expected.len() {
            let frame = watched(body.frame()).await.unwrap().unwrap().unwrap();
            piece.extend_from_slice(frame.data_ref().unwrap());
        }
        assert_eq!(piece, expected);
        if n < 4 {
            let next = format!("piece {}", n + 1);
            chunks.send(next.into()).await.unwrap();
        }
    }
    drop(chunks);
    assert!(watched(body.frame()).await.unwrap().is_none());

    // Much more than any buffer.
    let large = format!("/stream.main.internal/download?bytes={}", 8 << 20);
    let mut body = two.ask.get(&large).await.unwrap().into_body();
    let mut len = 0_usize;
    while let Some(frame) = watched(body.frame()).await.unwrap() {
        let data = frame.unwrap().into_data().unwrap();
        let is_right = |(n, byte): (usize, &u8)| usize::from(*byte) == (len + n) % 251;
        assert!(data.iter().enumerate().all(is_right), "at {len}");
        len += data.len();
    }
    assert_eq!(len, 8 << 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_leaves_ends_the_whole_chain() {
    let two = Two::start().await.unwrap();
    let slow = "/stream.main.internal/slow?n=1000000&ms=20";
    let mut body = two.ask.get(slow).await.unwrap().into_body();
    watched(body.frame()).await.unwrap().unwrap().unwrap();
    assert_eq!(two.stream.traffic.counts().active, 1);
    drop(body);
    two.ask.idle().await.unwrap();
    two.stream.idle().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_calls_is_proven_and_cannot_be_claimed() {
    let two = Two::start().await.unwrap();
    let mirror = serve(Package::Hello).await.unwrap();
    two.listen("hello.main.internal", &mirror).unwrap();
    let seen = two.ask.get("/hello.main.internal/headers").await.unwrap();
    let seen = text(seen).await.unwrap();
    assert!(
        seen.contains(&format!("x-tabbify-app: {}", two.id)),
        "{seen}"
    );
    assert!(!seen.contains("forged"), "{seen}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_leads_nowhere_is_said_to_the_app_and_its_people() {
    let two = Two::start().await.unwrap();
    let check = async |host: &str, code: &str| {
        let mut client = two.ask.connect().await.unwrap();
        let path = format!("/{host}/x");
        let answer = watched(client.send_request(get(&path).unwrap())).await;
        let answer = answer.unwrap().unwrap();
        assert_eq!(answer.status(), 502, "{host}");
        let said = text(answer).await.unwrap();
        assert!(said.contains(code), "{host}: {said}");
    };
    check("nobody.main.internal", "DestinationNotFound").await;
    check("a.b.c.main.internal", "DestinationNotFound").await;
    check("stream.main.internal:22", "ConnectionRefused").await;
    // Itself: it would take a place to wait for a place.
    check("ask.main.internal", "LoopDetected").await;
    // The rest of the world is as closed as ever.
    check("example.com", "HttpRequestDenied").await;
    check("internal.example.com", "HttpRequestDenied").await;
    let lines = two.ask.lines().await.unwrap();
    let said = |text: &str| lines.iter().any(|line| line.line.contains(text));
    assert!(said(
        "nobody.main.internal was not reached: there is no such app"
    ));
    assert!(said("blocked example.com"));
}
