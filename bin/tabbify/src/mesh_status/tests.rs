//! Two real ends of a mesh, one of which tells about itself over its socket.

use std::net::{Ipv6Addr, SocketAddr};
use std::sync::{Mutex, PoisonError};

use http::Method;
use http_body_util::Full;
use tabbify_api::BoxFuture;
use tabbify_api::mesh::{PeerRecord, ResolveError, Resolver};
use tabbify_api::names::NoNames;
use tabbify_http::{Again, Client};
use tabbify_mesh::{Config, PrivateKey, StackChoice};
use tabbify_process::connect::UnixSocket;
use tabbify_types::{HostUla, MeshKey};

use super::*;

#[derive(Debug, Default)]
struct Book(Mutex<Vec<PeerRecord>>);

impl Book {
    fn find(&self, is: impl Fn(&PeerRecord) -> bool) -> Option<PeerRecord> {
        let peers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        peers.iter().find(|peer| is(peer)).cloned()
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

/// The other machine is called so.
#[derive(Debug)]
struct OneName(Named);

impl Names for OneName {
    fn find(&self, ask: NameAsk) -> BoxFuture<'_, Result<Named, NameError>> {
        let is_meant = match &ask {
            NameAsk::Name(name) => *name == self.0.name,
            NameAsk::Address(address) => *address == self.0.address,
        };
        let found = is_meant.then(|| self.0.clone());
        Box::pin(async move { found.ok_or(NameError::Unknown(ask)) })
    }
}

fn end(book: &Arc<Book>, index: u16, tasks: &Tasks) -> anyhow::Result<Mesh> {
    let address = HostUla::new(1, index).addr();
    let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
    let mut config = Config::new(PrivateKey::generate(), vec![address], loopback);
    config.stack = StackChoice::Userspace;
    let resolver: Arc<dyn Resolver> = Arc::<Book>::clone(book);
    let mesh = Mesh::bind(config, resolver, tasks)?;
    let at = vec![mesh.underlay_addr()?];
    let record = PeerRecord::unrestricted(mesh.public_key(), vec![address], at);
    let mut peers = book.0.lock().unwrap_or_else(PoisonError::into_inner);
    peers.push(record);
    drop(peers);
    Ok(mesh)
}

struct Told {
    client: Client,
    tasks: Tasks,
    other: Mesh,
    _dir: tempfile::TempDir,
}

impl Told {
    fn start(names: Arc<dyn Names>) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let data = DataDir::choose(Some(dir.path().join("data")))?;
        data.create()?;
        let (tasks, book) = (Tasks::new(), Arc::<Book>::default());
        let mesh = end(&book, 1, &tasks)?;
        let other = end(&book, 2, &tasks)?;
        serve(&data, &mesh, names, &tasks)?;
        let socket = UnixSocket {
            directory: data.path().to_path_buf(),
            name: MESH_SOCKET.to_owned(),
        };
        let within = Duration::from_secs(20);
        let client = Client::new("test", Arc::new(socket), within, &tasks);
        Ok(Self {
            client,
            tasks,
            other,
            _dir: dir,
        })
    }

    async fn ask(&self, method: Method, path: &str, body: &str) -> anyhow::Result<(u16, String)> {
        let request = Request::builder().method(method).uri(path);
        let request = request.header("host", "mesh");
        let request = request.body(Full::new(Bytes::from(body.to_owned())))?;
        let (parts, bytes) = self.client.ask(request, Again::Never, 1 << 20).await?;
        Ok((parts.status.as_u16(), String::from_utf8(bytes.to_vec())?))
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        self.tasks.stop();
    }
}

const OTHER: &str = "fd5a:1f00:1:2::1";

fn named() -> Arc<OneName> {
    Arc::new(OneName(Named {
        name: "box2.internal".parse().expect("a name"),
        address: OTHER.parse().expect("an address"),
    }))
}

#[tokio::test]
async fn pings_are_answered_and_the_peer_is_shown() {
    let told = Told::start(named()).unwrap();
    let (status, empty) = told.ask(Method::GET, STATUS_PATH, "").await.unwrap();
    assert_eq!(status, 200);
    let empty: EndpointStatus = serde_json::from_str(&empty).unwrap();
    assert!(empty.peers.is_empty());
    assert_eq!(empty.own.stack, "user space");
    assert!(empty.own.why_not_kernel.is_some());

    let by_name = r#"{"to":"box2.internal","count":3,"interval_ms":50,"timeout_ms":5000}"#;
    let (status, lines) = told.ask(Method::POST, PING_PATH, by_name).await.unwrap();
    assert_eq!(status, 200, "{lines}");
    let lines: Vec<PingLine> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let PingLine::To { address, key, name } = &lines[0] else {
        panic!("{lines:?}")
    };
    assert_eq!(address.to_string(), OTHER);
    assert_eq!(*key, told.other.public_key());
    assert_eq!(name.as_ref().unwrap().to_string(), "box2.internal");
    assert!(matches!(lines[1], PingLine::Handshake { .. }), "{lines:?}");
    let at = told.other.underlay_addr().unwrap();
    for (n, line) in (1..).zip(&lines[2..]) {
        let PingLine::Answer { seq, rtt_us, path } = line else {
            panic!("{line:?}")
        };
        assert_eq!((*seq, *path), (n, PathView::Direct(at)));
        assert!(*rtt_us > 0 && *rtt_us < 5_000_000);
    }
    assert_eq!(lines.len(), 5);

    // Now there are keys; an address does as well.
    let by_address = format!(r#"{{"to":"{OTHER}","count":1,"interval_ms":50,"timeout_ms":5000}}"#);
    let (_, lines) = told
        .ask(Method::POST, PING_PATH, &by_address)
        .await
        .unwrap();
    assert!(
        !lines.contains("handshake") && lines.contains("answer"),
        "{lines}"
    );

    let (_, status) = told.ask(Method::GET, STATUS_PATH, "").await.unwrap();
    let status: EndpointStatus = serde_json::from_str(&status).unwrap();
    let [peer] = &status.peers[..] else {
        panic!("{status:?}")
    };
    assert_eq!(peer.path, Some(PathView::Direct(at)));
    assert_eq!(peer.name.as_ref().unwrap().to_string(), "box2.internal");
    assert!(peer.rtt_us.is_some() && peer.handshake_age_ms.is_some() && peer.bytes_out > 0);
    assert!(peer.why_relayed.is_none());
    let handshakes = status
        .counters
        .iter()
        .find(|(name, _)| name == "handshakes");
    assert!(handshakes.is_some_and(|(_, count)| *count >= 1));

    let key = told.other.public_key().to_string();
    for peer in ["box2.internal", OTHER, &key[..8]] {
        let request = format!(r#"{{"peer":"{peer}"}}"#);
        let (status, said) = told
            .ask(Method::POST, EXPLAIN_PATH, &request)
            .await
            .unwrap();
        assert_eq!(status, 200, "{peer}: {said}");
        let said: Explained = serde_json::from_str(&said).unwrap();
        assert!(said.probes && said.why_not_direct.is_empty(), "{said:?}");
        let first = &said.tried[0];
        assert!(first.in_use && first.proven_ms.is_some(), "{first:?}");
        assert_eq!(first.from, Some(CandidateFrom::Record));
    }
}

#[tokio::test]
async fn what_cannot_be_is_refused_with_what_helps() {
    let told = Told::start(Arc::new(NoNames)).unwrap();
    let check = async |method: Method, path: &str, body: &str, expected: (u16, &str)| {
        let (status, said) = told.ask(method, path, body).await.unwrap();
        let problem: Problem = serde_json::from_str(&said).unwrap();
        assert_eq!((status, problem.code.as_str()), expected, "{body}: {said}");
        problem
    };
    let ping = |to: &str, count: u32, interval: u64| {
        format!(r#"{{"to":"{to}","count":{count},"interval_ms":{interval},"timeout_ms":100}}"#)
    };
    let bad = (400, "bad_request");
    for body in [
        ping("nonsense", 1, 50),
        ping(OTHER, 0, 50),
        ping(OTHER, 1, 1),
        ping(OTHER, u32::MAX, 50),
        "{}".to_owned(),
        "x".repeat(ENDPOINT_BODY_LEN_MAX + 1),
    ] {
        check(Method::POST, PING_PATH, &body, bad).await;
    }
    let name = ping("box2.internal", 1, 50);
    let unnamed = check(Method::POST, PING_PATH, &name, (503, "unavailable")).await;
    assert!(unnamed.fix.unwrap().contains("address"));
    let nobody = ping("fd5a:1f00:1:9::1", 1, 50);
    check(Method::POST, PING_PATH, &nobody, (502, "no_lease")).await;
    let explain = r#"{"peer":"fd5a:1f00:1:9::1"}"#;
    check(Method::POST, EXPLAIN_PATH, explain, (502, "no_lease")).await;
    check(Method::GET, PING_PATH, "", (405, "method_not_allowed")).await;
    check(Method::GET, "/v1/mesh", "", (404, "not_found")).await;
}

#[tokio::test]
async fn a_name_that_is_out_of_sight_says_who_sees_it() {
    let told = Told::start(named()).unwrap();
    for (to, expected) in [
        ("box9.internal", "tcli machines list"),
        ("shop.main.internal", "tcli apps"),
    ] {
        let ping = format!(r#"{{"to":"{to}","count":1,"interval_ms":50,"timeout_ms":100}}"#);
        let (status, said) = told.ask(Method::POST, PING_PATH, &ping).await.unwrap();
        let problem: Problem = serde_json::from_str(&said).unwrap();
        assert_eq!(status, 404, "{said}");
        assert!(problem.fix.unwrap().contains(expected), "{said}");
    }
}
