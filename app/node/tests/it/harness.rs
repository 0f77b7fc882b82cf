//! A platform around one node.

use std::collections::{HashMap, HashSet};
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use http::{Method, Request, StatusCode};
use object_store::ObjectStore;
use object_store::local::LocalFileSystem;
use serde_json::{Value, json};
use tabbify_api::BoxFuture;
use tabbify_api::artifact::ArtifactFile;
use tabbify_api::auth::{
    AuthError, Authority, Identity, IssuedToken, PlatformId, Revocations, Verified, scope,
};
use tabbify_api::log::{Append, EventLog, Line, LogAccess, LogScope};
use tabbify_api::logs::{AppLogs, LogLine, LogQuery, LogReader, LogsError};
use tabbify_api::secrets;
use tabbify_gateway::{MasterKey, RemoteVault, Service, Vault};
use tabbify_log::{Log, Options};
use tabbify_node::{Config, Deps, Dial, DialError, PoolWatch, Server, Stream};
use tabbify_process::connect::UnixSocket;
use tabbify_process::{Importance, SystemClock, Tasks, unix};
use tabbify_supervisor::FileVolumes;
use tabbify_types::event::v1::TrafficShifted;
use tabbify_types::{
    APP_PORT, AppId, AppUla, DeployId, Digest, Event, InstanceId, InstanceUla, MeshKey, NewEvent,
    Segment, SegmentGlob, Tenant, Timestamp, VersionNumber,
};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::app::App;
use crate::http_client::{Answer, Body, Client, full, soon, until};

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tokens are words: `owner` may everything, `reader` reads, `bound.<app>` may everything with one
/// app, `acme` owns another tenant, `old` has expired; all others are forged.
#[derive(Debug, Default)]
pub(crate) struct Words {
    redeemed: Mutex<HashSet<String>>,
    revoked: Mutex<HashSet<String>>,
    changes: watch::Sender<u64>,
}

impl Words {
    /// Takes back what a word and its sessions are.
    pub(crate) fn revoke(&self, word: &str) {
        lock(&self.revoked).insert(format!("user:{word}"));
        self.changes.send_modify(|count| *count += 1);
    }

    fn word(&self, word: &str) -> Result<Verified, AuthError> {
        let (tenant, scopes) = match word {
            "owner" => ("main", vec!["*".to_owned()]),
            "reader" => ("main", vec!["apps:read".to_owned()]),
            "acme" => ("acme", vec!["*".to_owned()]),
            "old" => return Err(AuthError::Expired(Timestamp::default())),
            _ => {
                let app = word.strip_prefix("bound.").and_then(|app| app.parse().ok());
                let app = app.ok_or_else(|| AuthError::Invalid("forged".to_owned()))?;
                let scopes = ["apps:read", "apps:write", "deploy", "app:open"];
                ("main", scopes.map(|it| scope::on(it, app)).to_vec())
            }
        };
        let verified = Verified {
            jti: word.to_owned(),
            kind: "user".to_owned(),
            subject: format!("user:{word}"),
            tenant: tenant.parse().expect("a tenant"),
            scopes,
            tags: Vec::new(),
            ulas: Vec::new(),
            key: None,
            issued: Timestamp::default(),
            expires: Timestamp::from_secs(4_000_000_000),
        };
        match self.is_revoked(&verified) {
            true => Err(AuthError::Invalid("revoked".to_owned())),
            false => Ok(verified),
        }
    }

    fn of_session(&self, session: &str, app: &str) -> Result<Verified, AuthError> {
        let mut parts = session.splitn(3, '.');
        match (parts.next(), parts.next(), parts.next()) {
            (Some("session"), Some(of), Some(who)) if of == app => self.word(who),
            _ => Err(AuthError::Invalid("no session".to_owned())),
        }
    }

    fn redeem(&self, ticket: &str, app: AppId) -> Result<IssuedToken, AuthError> {
        let mut parts = ticket.split('/');
        match (parts.next(), parts.next(), parts.next()) {
            (Some(who), Some(of), Some(_)) if of == app.to_string() => {
                if !lock(&self.redeemed).insert(ticket.to_owned()) {
                    return Err(AuthError::Replayed);
                }
                Ok(issued(&format!("session.{app}.{who}")))
            }
            _ => Err(AuthError::Invalid("no ticket".to_owned())),
        }
    }
}

impl Revocations for Words {
    fn check(
        &self,
        token: &str,
        _: &[&str],
        audience: &str,
        _: Option<MeshKey>,
    ) -> Result<Verified, AuthError> {
        match audience.strip_prefix("tabbify-session:") {
            Some(app) => self.of_session(token, app),
            None => self.word(token),
        }
    }

    fn still(&self, verified: &Verified) -> Result<(), AuthError> {
        self.word(&verified.jti).map(drop)
    }

    fn is_revoked(&self, verified: &Verified) -> bool {
        lock(&self.revoked).contains(&verified.subject)
    }

    fn changes(&self) -> u64 {
        *self.changes.borrow()
    }

    fn changed(&self, seen: u64) -> BoxFuture<'_, u64> {
        let mut changes = self.changes.subscribe();
        Box::pin(async move {
            let changed = changes.wait_for(|count| *count != seen).await;
            changed.map_or(seen, |count| *count)
        })
    }
}

impl Authority for Words {
    fn platform(&self) -> PlatformId {
        PlatformId("test-platform".to_owned())
    }

    fn jwks(&self) -> Value {
        json!({ "keys": [] })
    }

    fn exchange(&self, proof: &str) -> BoxFuture<'_, Result<IssuedToken, AuthError>> {
        let answer = match proof {
            "good" => Ok(issued("owner")),
            "again" => Err(AuthError::Replayed),
            "flood" => Err(AuthError::RateLimited),
            _ => Err(AuthError::Invalid("no proof".to_owned())),
        };
        Box::pin(async { answer })
    }

    fn verify(&self, token: &str) -> Result<Identity, AuthError> {
        self.word(token).map(|verified| verified.identity())
    }

    fn ticket<'a>(
        &'a self,
        identity: &'a Identity,
        app: AppId,
    ) -> BoxFuture<'a, Result<IssuedToken, AuthError>> {
        let who = identity.subject.trim_start_matches("user:");
        let ticket = format!("{who}/{app}/{}", AppId::mint());
        Box::pin(async move { Ok(issued(&ticket)) })
    }

    fn session<'a>(
        &'a self,
        ticket: &'a str,
        app: AppId,
    ) -> BoxFuture<'a, Result<IssuedToken, AuthError>> {
        Box::pin(async move { self.redeem(ticket, app) })
    }

    fn verify_session(&self, session: &str, app: AppId) -> Result<Identity, AuthError> {
        let verified = self.of_session(session, &app.to_string());
        verified.map(|verified| verified.identity())
    }
}

fn issued(token: &str) -> IssuedToken {
    IssuedToken {
        token: token.to_owned(),
        expires: Timestamp::from_secs(4_000_000_000),
    }
}

/// The mesh: addresses of apps and instances that lead to TCP ports. An instance without a port of its
/// own answers where its app does.
#[derive(Debug, Default)]
pub(crate) struct Mesh(Mutex<HashMap<Ipv6Addr, Leads>>);

/// Where an address leads.
#[derive(Debug, Clone, Copy)]
enum Leads {
    To(SocketAddr),
    /// To somebody who says nothing at all.
    Astray,
}

impl Mesh {
    fn leads(&self, address: Ipv6Addr) -> Option<Leads> {
        let known = lock(&self.0);
        let of_app = || {
            InstanceUla::try_from(address).ok()?;
            let [a, b, c, d, e, ..] = address.segments();
            known.get(&Ipv6Addr::new(a, b, c, d, e, 0, 0, 1)).copied()
        };
        known.get(&address).copied().or_else(of_app)
    }
}

impl Dial for Mesh {
    fn dial(&self, address: SocketAddrV6) -> BoxFuture<'_, Result<Box<dyn Stream>, DialError>> {
        Box::pin(async move {
            assert_eq!(address.port(), APP_PORT, "the runner's port");
            let port = match self.leads(*address.ip()) {
                Some(Leads::To(port)) => port,
                Some(Leads::Astray) => std::future::pending().await,
                None => return Err(DialError::NoLease(address)),
            };
            let stream = TcpStream::connect(port).await;
            let stream = stream.map_err(|error| match error.kind() {
                std::io::ErrorKind::ConnectionRefused => DialError::Refused(address),
                _ => DialError::Unreachable {
                    address,
                    source: Some(error.into()),
                },
            })?;
            let _ = stream.set_nodelay(true);
            Ok(Box::new(stream) as Box<dyn Stream>)
        })
    }
}

/// Three lines for every app; a followed log then waits.
#[derive(Debug)]
struct ThreeLines;

#[derive(Debug)]
struct Lines {
    left: Vec<LogLine>,
    follow: bool,
}

impl AppLogs for ThreeLines {
    fn open(
        &self,
        _: AppId,
        query: LogQuery,
    ) -> BoxFuture<'_, Result<Box<dyn LogReader>, LogsError>> {
        let line = |n: u64| LogLine {
            at: Timestamp::from_secs(n),
            instance: InstanceId(1),
            stream: tabbify_api::logs::Stream::Stdout,
            line: format!("line {n}"),
        };
        let since = query.since.unwrap_or_default();
        let mut left: Vec<LogLine> = (1..=3)
            .rev()
            .map(line)
            .filter(|line| line.at >= since)
            .collect();
        left.truncate(query.tail.unwrap_or(usize::MAX));
        let follow = query.follow;
        Box::pin(async move { Ok(Box::new(Lines { left, follow }) as Box<dyn LogReader>) })
    }
}

impl LogReader for Lines {
    fn found(&self) -> usize {
        self.left.len()
    }

    fn next(&mut self) -> BoxFuture<'_, Result<Option<LogLine>, LogsError>> {
        Box::pin(async {
            match self.left.pop() {
                None if self.follow => std::future::pending().await,
                line => Ok(line),
            }
        })
    }
}

/// Whether the node reaches the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LogIs {
    There,
    Away,
}

/// The node's ways to the log: its own, and those of its callers, who write in their own names.
#[derive(Debug)]
struct Wire {
    log: Arc<Log>,
    line: Arc<Line>,
    log_is: Mutex<LogIs>,
}

impl Wire {
    fn lay(&self, events: &Arc<dyn EventLog>, log_is: LogIs) {
        *lock(&self.log_is) = log_is;
        self.line
            .join((log_is == LogIs::There).then(|| Arc::clone(events)));
    }
}

impl LogAccess for Wire {
    fn of(&self, caller: &Identity) -> Arc<dyn EventLog> {
        if *lock(&self.log_is) == LogIs::Away {
            return Arc::new(Line::default());
        }
        self.log.client(LogScope {
            actor: caller.subject.clone(),
            write: vec![SegmentGlob::all()],
            read: vec![SegmentGlob::all()],
        })
    }
}

/// The vault behind a socket, as the node has it in life.
async fn vault(
    dir: &Path,
    log: &Arc<Log>,
    words: &Arc<Words>,
    wire: &Arc<Wire>,
    tasks: &Tasks,
) -> Result<Arc<dyn secrets::Vault>> {
    let deps = tabbify_gateway::Deps {
        log: log.client(Vault::log_scope()),
        writers: Arc::clone(wire) as Arc<dyn LogAccess>,
        tokens: Arc::clone(words) as Arc<dyn Revocations>,
        master: MasterKey::load_or_create(&dir.join("master.key"))?,
        clock: Arc::new(SystemClock),
        tasks: tasks.clone(),
    };
    let vault = Vault::open(&dir.join("vault"), None, deps).await?;
    let name = "vault.sock".to_owned();
    let serving = Service::new(vault, tasks).serve_unix(unix::bind(dir, &name)?);
    tasks.spawn("vault", Importance::Detached, serving);
    let directory = dir.to_owned();
    let socket = Arc::new(UnixSocket { directory, name });
    Ok(Arc::new(RemoteVault::new(socket, tasks)))
}

/// One node and everything around it.
pub(crate) struct Platform {
    pub(crate) node: SocketAddr,
    pub(crate) tasks: Tasks,
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) mesh: Arc<Mesh>,
    pub(crate) words: Arc<Words>,
    pub(crate) pool: PoolWatch,
    log: Option<Arc<Log>>,
    wire: Arc<Wire>,
    events: Arc<dyn EventLog>,
    dir: Arc<TempDir>,
    shutdown: CancellationToken,
}

impl Platform {
    pub(crate) async fn start() -> Result<Self> {
        Self::start_with(|_| {}).await
    }

    pub(crate) async fn start_with(change: impl FnOnce(&mut Config)) -> Result<Self> {
        let dir = Arc::new(tempfile::tempdir()?);
        Self::start_in(dir, change, LogIs::There).await
    }

    async fn start_in(
        dir: Arc<TempDir>,
        change: impl FnOnce(&mut Config),
        log_is: LogIs,
    ) -> Result<Self> {
        let log = Log::open(&dir.path().join("log"), Options::new(Arc::new(SystemClock)))?;
        let log = Arc::new(log);
        let every = || vec![SegmentGlob::all()];
        let events = log.client(LogScope {
            actor: "service:node".to_owned(),
            write: every(),
            read: every(),
        });
        let objects = dir.path().join("objects");
        std::fs::create_dir_all(&objects)?;
        let store: Arc<dyn ObjectStore> = Arc::new(LocalFileSystem::new_with_prefix(&objects)?);
        let (tasks, mesh) = (Tasks::new(), Arc::new(Mesh::default()));
        let mut config = Config {
            listen: vec![SocketAddr::from(([127, 0, 0, 1], 0))],
            snapshots: Some(dir.path().join("snapshots")),
            ..Config::default()
        };
        config.timeouts.drain = Duration::from_secs(1);
        change(&mut config);
        let words = Arc::new(Words::default());
        let wire = Arc::new(Wire {
            log: Arc::clone(&log),
            line: Arc::default(),
            log_is: Mutex::new(log_is),
        });
        wire.lay(&events, log_is);
        let vault = vault(dir.path(), &log, &words, &wire, &tasks).await?;
        let deps = Deps {
            log: Arc::clone(&wire.line) as Arc<dyn EventLog>,
            writers: Arc::clone(&wire) as Arc<dyn LogAccess>,
            authority: Arc::clone(&words) as Arc<dyn Authority>,
            tokens: Arc::clone(&words) as Arc<dyn Revocations>,
            dial: Arc::clone(&mesh) as Arc<dyn Dial>,
            store: Arc::clone(&store),
            host: "local".parse()?,
            vault,
            logs: Arc::new(ThreeLines),
            volumes: Arc::new(FileVolumes::new("local".parse()?, dir.path())),
            clock: Arc::new(SystemClock),
            tasks: tasks.clone(),
        };
        let server = Server::bind(config, deps).await?;
        let (node, shutdown) = (server.addr(), CancellationToken::new());
        let pool = server.pool();
        let running = server.run(shutdown.clone());
        tasks.spawn("node", Importance::Detached, running);
        Ok(Self {
            node,
            tasks,
            store,
            mesh,
            words,
            pool,
            log: Some(log),
            wire,
            events,
            dir,
            shutdown,
        })
    }

    /// Ends everything and starts it again on the same directory.
    pub(crate) async fn restart(self) -> Result<Self> {
        self.restart_where(LogIs::There, |_| Ok(())).await
    }

    /// The same, with the log there or not, and something done to the stored view in between.
    pub(crate) async fn restart_where(
        mut self,
        log_is: LogIs,
        between: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<Self> {
        self.shutdown.cancel();
        self.tasks.shutdown(Duration::from_secs(5)).await;
        if let Some(log) = self.log.take() {
            soon("closing the log", log.close()).await?;
        }
        between(&self.snapshot())?;
        Self::start_in(Arc::clone(&self.dir), |_| {}, log_is).await
    }

    /// Brings the log back, or takes it away from whatever is begun from here on.
    pub(crate) fn lay(&self, log_is: LogIs) {
        self.wire.lay(&self.events, log_is);
    }

    /// Where the node stores its view.
    pub(crate) fn snapshot(&self) -> PathBuf {
        self.dir.path().join("snapshots/node.snapshot")
    }

    /// Asks the node to stop, and nothing else.
    pub(crate) fn stop(&self) {
        self.shutdown.cancel();
    }

    pub(crate) fn objects(&self) -> PathBuf {
        self.dir.path().join("objects")
    }

    pub(crate) async fn client(&self) -> Result<Client> {
        soon("connecting", Client::connect(&self.tasks, self.node)).await?
    }

    /// One request on a connection of its own, to `host`.
    pub(crate) async fn send(&self, request: Request<Body>) -> Result<Answer> {
        Answer::of(self.client().await?.send(request).await?).await
    }

    /// A call of the REST.
    pub(crate) async fn call(
        &self,
        method: Method,
        path: &str,
        token: &str,
        body: Value,
    ) -> Result<Answer> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "localhost");
        if !token.is_empty() {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        self.send(request.body(full(body))?).await
    }

    pub(crate) async fn get(&self, path: &str, token: &str) -> Result<Answer> {
        self.call(Method::GET, path, token, Value::Null).await
    }

    pub(crate) async fn post(&self, path: &str, token: &str, body: Value) -> Result<Answer> {
        self.call(Method::POST, path, token, body).await
    }

    pub(crate) async fn register(&self, name: &str) -> Result<AppId> {
        let id = AppId::mint();
        let answer = self
            .post("/v1/apps", "owner", json!({ "id": id, "name": name }))
            .await?;
        ensure!(answer.status == StatusCode::CREATED, "{}", answer.text());
        Ok(id)
    }

    /// Appends what another role would.
    pub(crate) async fn append(&self, app: AppId, event: Event) -> Result<()> {
        let segment = Segment::apps(&Tenant::main());
        self.append_at(&segment, &app.to_string(), event).await
    }

    /// The same, in any segment and under any key.
    pub(crate) async fn append_at(&self, segment: &Segment, key: &str, event: Event) -> Result<()> {
        let event = NewEvent::new(segment.clone(), key, &event)?;
        let appended = self.events.append(Append::of(vec![event])).await?;
        until("the node sees the event", async || {
            let health = self
                .get("/health", "")
                .await
                .and_then(|answer| answer.json());
            health.is_ok_and(|health| health["position"].as_u64() >= Some(appended.last.get()))
        })
        .await
    }

    /// Traffic of `app` goes to `instance`.
    pub(crate) async fn shift(&self, app: AppId, version: u32, instance: u32) -> Result<()> {
        self.shift_to(app, version, &[instance]).await
    }

    /// Traffic of `app` goes to `instances`, of which the first is the primary.
    pub(crate) async fn shift_to(&self, app: AppId, version: u32, to: &[u32]) -> Result<()> {
        let event = TrafficShifted {
            app,
            deploy: DeployId::mint(),
            version: VersionNumber(version),
            instances: to.iter().copied().map(InstanceId).collect(),
            primary: InstanceId(to[0]),
        };
        self.append(app, event.into()).await
    }

    /// New connections to `app` end at `at`.
    pub(crate) fn leads_to(&self, app: AppId, at: &App) {
        let address = AppUla::derive(app).addr();
        lock(&self.mesh.0).insert(address, Leads::To(at.address));
    }

    /// New connections to the instance end at `at`, or nowhere.
    pub(crate) fn instance_leads_to(&self, app: AppId, instance: u32, at: Option<&App>) {
        let address = InstanceUla::derive(app, InstanceId(instance)).addr();
        let leads = at.map_or(Leads::Astray, |at| Leads::To(at.address));
        lock(&self.mesh.0).insert(address, leads);
    }

    /// The same for an address of TCP, whatever is there.
    pub(crate) fn instance_leads_at(&self, app: AppId, instance: u32, at: SocketAddr) {
        let address = InstanceUla::derive(app, InstanceId(instance)).addr();
        lock(&self.mesh.0).insert(address, Leads::To(at));
    }

    /// New connections to `app` end at this address, whatever is there.
    pub(crate) fn leads_at(&self, app: AppId, at: SocketAddr) {
        let address = AppUla::derive(app).addr();
        lock(&self.mesh.0).insert(address, Leads::To(at));
    }

    /// A registered app with a published version that `at` serves.
    pub(crate) async fn serving(&self, name: &str, access: &str, at: &App) -> Result<AppId> {
        let app = self.register(name).await?;
        let files = files(app, name, access);
        let version = self.upload(app, &files).await?;
        let answer = self.commit(app, version, &files).await?;
        ensure!(answer.status == StatusCode::OK, "{}", answer.text());
        self.leads_to(app, at);
        self.shift(app, version, 1).await?;
        Ok(app)
    }

    /// Reserves and uploads.
    pub(crate) async fn upload(&self, app: AppId, files: &[(String, Vec<u8>)]) -> Result<u32> {
        let version = self.reserve(app, files).await?;
        for (path, bytes) in files {
            let answer = self.put(app, version, path, bytes.clone()).await?;
            ensure!(answer.status == StatusCode::NO_CONTENT, "{}", answer.text());
        }
        Ok(version)
    }

    pub(crate) async fn reserve(&self, app: AppId, files: &[(String, Vec<u8>)]) -> Result<u32> {
        let path = format!("/v1/apps/{app}/versions");
        let answer = self
            .post(&path, "owner", json!({ "files": list(files)? }))
            .await?;
        ensure!(answer.status == StatusCode::CREATED, "{}", answer.text());
        let version = answer.json()?["version"].as_u64().context("a version")?;
        Ok(u32::try_from(version)?)
    }

    pub(crate) async fn put(
        &self,
        app: AppId,
        version: u32,
        path: &str,
        bytes: Vec<u8>,
    ) -> Result<Answer> {
        let request = Request::put(format!("/v1/apps/{app}/versions/{version}/files/{path}"))
            .header("host", "localhost")
            .header("authorization", "Bearer owner")
            .body(full(bytes))?;
        self.send(request).await
    }

    pub(crate) async fn commit(
        &self,
        app: AppId,
        version: u32,
        files: &[(String, Vec<u8>)],
    ) -> Result<Answer> {
        let path = format!("/v1/apps/{app}/versions/{version}/commit");
        self.post(&path, "owner", json!({ "files": list(files)? }))
            .await
    }
}

impl Drop for Platform {
    fn drop(&mut self) {
        self.shutdown.cancel();
        self.tasks.stop();
    }
}

pub(crate) fn list(files: &[(String, Vec<u8>)]) -> Result<Vec<ArtifactFile>> {
    let listed = files.iter().map(|(path, bytes)| {
        Ok(ArtifactFile {
            path: path.parse()?,
            size: bytes.len() as u64,
            digest: Digest::of(bytes),
        })
    });
    listed.collect()
}

/// The files of a small app.
pub(crate) fn files(app: AppId, name: &str, access: &str) -> Vec<(String, Vec<u8>)> {
    let manifest = format!(
        "[app]\nname = \"{name}\"\nid = \"{app}\"\naccess = \"{access}\"\n\
         [build]\nwasm = \"app.wasm\"\n"
    );
    vec![
        ("tabbify.toml".to_owned(), manifest.into_bytes()),
        ("app.wasm".to_owned(), b"\0asm\x0d\0\x01\0".to_vec()),
    ]
}
