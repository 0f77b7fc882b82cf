//! A server that speaks the node's contract over real sockets, remembers what it was asked, and
//! breaks where a test says. It checks what a node checks: proofs, tokens, names, digests.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};
use tabbify_api::apps::{
    AppStatus, AppView, CommitVersion, Operation, OperationError, OperationStatus, RegisterApp,
    RequestDeploy, ReserveVersion, Step, StepStatus,
};
use tabbify_api::artifact::ArtifactFile;
use tabbify_api::auth::{IssuedToken, TokenRequest};
use tabbify_api::machines::MachineView;
use tabbify_api::secrets::SecretView;
use tabbify_api::{ErrorCode, Problem};
use tabbify_token::{OwnerProof, PlatformId, PublicKey, SecretKey};
use tabbify_types::event::v1::Access;
use tabbify_types::{
    AppId, AppUla, Digest, SecretName, SecretVersion, Tenant, Timestamp, VersionNumber,
};

/// What a test may break, for requests whose `METHOD path` contains a text.
#[expect(clippy::large_enum_variant, reason = "a test makes a handful of them")]
pub(crate) enum Fault {
    /// The connection ends after half of the request's body.
    Cut,
    /// This refusal.
    Refuse(Problem),
    /// This answer, as it is.
    Raw(&'static str),
}

/// How a deploy goes: its steps, one per question, and its end.
pub(crate) struct Course {
    pub(crate) steps: Vec<(&'static str, u64)>,
    pub(crate) end: OperationStatus,
    pub(crate) error: Option<OperationError>,
    pub(crate) log_tail: String,
}

/// A version as it was uploaded.
pub(crate) struct Version {
    listed: Vec<ArtifactFile>,
    pub(crate) files: BTreeMap<String, Vec<u8>>,
    pub(crate) committed: bool,
}

/// All that the server knows.
pub(crate) struct State {
    pub(crate) platform: PlatformId,
    pub(crate) owner: Option<PublicKey>,
    /// Tokens that count.
    pub(crate) tokens: BTreeSet<String>,
    /// How long the tokens that it issues last.
    pub(crate) token_life: Duration,
    proofs: BTreeSet<String>,
    issued: u32,
    pub(crate) apps: Vec<AppView>,
    pub(crate) machines: Vec<MachineView>,
    /// What it is told of secrets, and the values that came.
    pub(crate) secrets: Vec<SecretView>,
    pub(crate) values: Vec<Vec<u8>>,
    pub(crate) versions: BTreeMap<(AppId, u32), Version>,
    pub(crate) deploys: Vec<Operation>,
    pub(crate) course: Course,
    /// What the log endpoint answers, and whether it breaks off after it.
    pub(crate) log: String,
    pub(crate) log_breaks: bool,
    /// `(part of METHOD path, how often, what)`.
    pub(crate) faults: Vec<(&'static str, u32, Fault)>,
    /// `METHOD path?query` of every request, in order.
    pub(crate) asked: Vec<String>,
}

/// A running server; stops when dropped.
pub(crate) struct Node {
    pub(crate) addr: SocketAddr,
    state: Arc<Mutex<State>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

struct Asked {
    method: String,
    path: String,
    query: String,
    token: Option<String>,
    body: Vec<u8>,
}

struct Reply {
    status: u16,
    body: Vec<u8>,
    /// Promise one byte more than there is.
    breaks: bool,
}

impl Course {
    pub(crate) fn good() -> Self {
        Self {
            steps: vec![
                ("placed", 10),
                ("started", 910),
                ("healthy", 1010),
                ("shifted", 1020),
            ],
            end: OperationStatus::Succeeded,
            error: None,
            log_tail: String::new(),
        }
    }

    pub(crate) fn bad(code: &str) -> Self {
        Self {
            steps: vec![("placed", 10), ("starting", 310)],
            end: OperationStatus::Failed,
            error: Some(OperationError {
                code: code.to_owned(),
                title: "It did not answer in 60 s".to_owned(),
                detail: "It printed and ended.".to_owned(),
                fix: "Answer sooner.".to_owned(),
            }),
            log_tail: "first\n\x1b]0;owned\x07last\n".to_owned(),
        }
    }
}

impl Node {
    pub(crate) fn start() -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let addr = listener.local_addr()?;
        let root = SecretKey::generate().map_err(io::Error::other)?;
        let state = Arc::new(Mutex::new(State::new(PlatformId::of(&root.public()))));
        let stop = Arc::new(AtomicBool::new(false));
        let (shared, stopped) = (Arc::clone(&state), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let shared = Arc::clone(&shared);
                if let Ok(stream) = stream {
                    // A connection that the client gives up is no fault of the server.
                    std::thread::spawn(move || drop(serve(&stream, &shared)));
                }
            }
        });
        Ok(Self {
            addr,
            state,
            stop,
            thread: Some(thread),
        })
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets requests whose `METHOD path` contains `part` fail, `times` times.
    pub(crate) fn fail(&self, part: &'static str, times: u32, fault: Fault) {
        self.state().faults.push((part, times, fault));
    }

    /// How many requests had this in their `METHOD path?query`.
    pub(crate) fn count(&self, part: &str) -> usize {
        self.state()
            .asked
            .iter()
            .filter(|asked| asked.contains(part))
            .count()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes the listener, which then sees the flag.
        let _ = TcpStream::connect(self.addr);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(stream: &TcpStream, state: &Mutex<State>) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    let (mut line, mut headers) = (String::new(), BTreeMap::new());
    reader.read_line(&mut line)?;
    let mut words = line.split_whitespace().map(str::to_owned);
    let (Some(method), Some(target)) = (words.next(), words.next()) else {
        return Ok(());
    };
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        let Some((name, value)) = header.trim().split_once(": ") else {
            break;
        };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let whole = format!("{method} {target}");
    let fault = {
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        state.asked.push(whole.clone());
        state.fault(&whole)
    };
    let len: usize = headers
        .get("content-length")
        .and_then(|len| len.parse().ok())
        .unwrap_or(0);
    assert!(
        !headers.contains_key("transfer-encoding"),
        "tcli announces lengths"
    );
    if headers.contains_key("expect") && !matches!(fault, Some(Fault::Refuse(_))) {
        (&*stream).write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    if let Some(fault) = fault {
        return fault.happen(reader, len);
    }
    let mut body = vec![0; len];
    reader.read_exact(&mut body)?;
    let token = headers
        .get("authorization")
        .and_then(|value| value.strip_prefix("Bearer "));
    let token = token.map(str::to_owned);
    let asked = Asked {
        method,
        path: path.to_owned(),
        query: query.to_owned(),
        token,
        body,
    };
    let reply = state
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .answer(&asked);
    reply.send(stream)
}

impl Fault {
    fn happen(self, mut reader: BufReader<&TcpStream>, len: usize) -> io::Result<()> {
        match self {
            Self::Cut => reader.read_exact(&mut vec![0; len / 2]),
            Self::Refuse(problem) => refuse(problem).send(reader.get_ref()),
            Self::Raw(bytes) => (&**reader.get_ref()).write_all(bytes.as_bytes()),
        }
    }
}

impl Reply {
    fn send(&self, mut stream: &TcpStream) -> io::Result<()> {
        let len = self.body.len() + usize::from(self.breaks);
        let kind = if self.status < 300 {
            "application/json"
        } else {
            "application/problem+json"
        };
        let status = self.status;
        write!(
            stream,
            "HTTP/1.1 {status} x\r\ncontent-type: {kind}\r\ncontent-length: {len}\r\nconnection: close\r\n\r\n"
        )?;
        stream.write_all(&self.body)
    }
}

fn reply(status: u16, body: &impl Serialize) -> Reply {
    let body = serde_json::to_vec(body).unwrap_or_default();
    Reply {
        status,
        body,
        breaks: false,
    }
}

fn refuse(problem: Problem) -> Reply {
    reply(problem.status, &problem)
}

fn no(code: ErrorCode, detail: &str) -> Reply {
    refuse(Problem::new(code, detail))
}

impl State {
    fn new(platform: PlatformId) -> Self {
        Self {
            platform,
            owner: None,
            tokens: BTreeSet::from(["given".to_owned()]),
            token_life: Duration::from_secs(900),
            proofs: BTreeSet::new(),
            issued: 0,
            apps: Vec::new(),
            machines: Vec::new(),
            secrets: Vec::new(),
            values: Vec::new(),
            versions: BTreeMap::new(),
            deploys: Vec::new(),
            course: Course::good(),
            log: String::new(),
            log_breaks: false,
            faults: Vec::new(),
            asked: Vec::new(),
        }
    }

    fn fault(&mut self, whole: &str) -> Option<Fault> {
        let index = self
            .faults
            .iter()
            .position(|(part, ..)| whole.contains(part))?;
        let (part, times, fault) = self.faults.remove(index);
        let copy = match &fault {
            Fault::Cut => Fault::Cut,
            Fault::Refuse(problem) => Fault::Refuse(problem.clone()),
            Fault::Raw(bytes) => Fault::Raw(bytes),
        };
        if times > 1 {
            self.faults.insert(index, (part, times - 1, copy));
        }
        Some(fault)
    }

    /// An app that is there already, serving `version` if that is not 0.
    pub(crate) fn add_app(&mut self, name: &str, version: u32) -> AppId {
        let id = AppId::mint();
        let mut app = view(id, name);
        if version > 0 {
            app.status = AppStatus::Healthy;
            app.serving = Some(VersionNumber(version));
            app.latest = app.serving;
        }
        self.apps.push(app);
        id
    }

    fn answer(&mut self, asked: &Asked) -> Reply {
        let parts: Vec<&str> = asked.path.trim_start_matches('/').split('/').collect();
        match (asked.method.as_str(), parts.as_slice()) {
            ("GET", ["health"]) => reply(200, &self.health()),
            ("POST", ["v1", "auth", "token"]) => self.exchange(&asked.body),
            _ => match &asked.token {
                None => no(ErrorCode::TokenMissing, "no token came with the request"),
                Some(token) if self.tokens.contains(token) => self.signed_in(asked, &parts),
                Some(_) => no(
                    ErrorCode::TokenExpired,
                    "the token expired at 2026-11-22T10:00:00.000Z",
                ),
            },
        }
    }

    fn signed_in(&mut self, asked: &Asked, parts: &[&str]) -> Reply {
        match (asked.method.as_str(), parts) {
            ("GET", ["v1", "whoami"]) => reply(200, &whoami()),
            ("GET", ["v1", "apps"]) => reply(200, &json!({ "apps": self.apps })),
            ("GET", ["v1", "machines"]) => reply(200, &json!({ "machines": self.machines })),
            ("GET", ["v1", "secrets"]) => reply(200, &json!({ "secrets": self.secrets })),
            ("PUT", ["v1", "secrets", name]) => self.set_secret(name, &asked.body),
            ("DELETE", ["v1", "secrets", name]) => self.remove_secret(name),
            ("POST", ["v1", "apps"]) => self.register(&asked.body),
            ("GET", ["v1", "apps", id]) => self.with_app(id, |_, app| reply(200, app)),
            ("POST", ["v1", "apps", id, "versions"]) => self.reserve(id, &asked.body),
            ("PUT", ["v1", "apps", id, "versions", n, "files", path]) => {
                self.put(id, n, path, &asked.body)
            }
            ("POST", ["v1", "apps", id, "versions", n, "commit"]) => {
                self.commit(id, n, &asked.body)
            }
            ("POST", ["v1", "apps", id, "open"]) => self.with_app(id, |_, app| {
                let url = format!("{}/?ticket=once", app.url);
                reply(
                    200,
                    &json!({ "url": url, "expires": "2026-11-22T10:01:00.000Z" }),
                )
            }),
            ("GET", ["v1", "apps", _, "logs"]) => {
                let (body, breaks) = (self.log.clone().into_bytes(), self.log_breaks);
                Reply {
                    status: 200,
                    body,
                    breaks,
                }
            }
            ("POST", ["v1", "deploys"]) => self.deploy(&asked.body),
            ("GET", ["v1", "deploys", id]) => self.move_on(id, &asked.query),
            _ => no(ErrorCode::NotFound, &asked.path),
        }
    }

    fn set_secret(&mut self, name: &str, value: &[u8]) -> Reply {
        let Ok(name) = name.parse::<SecretName>() else {
            return no(ErrorCode::BadRequest, "no name");
        };
        self.values.push(value.to_vec());
        let now = Timestamp::from_secs(1_763_463_600);
        let known = self.secrets.iter_mut().find(|it| it.name == name);
        if let Some(known) = known {
            known.version = known.version.next();
            return reply(200, known);
        }
        let made = SecretView {
            name,
            version: SecretVersion(1),
            created: now,
            changed: now,
            apps: Vec::new(),
        };
        let answer = reply(201, &made);
        self.secrets.push(made);
        answer
    }

    fn remove_secret(&mut self, name: &str) -> Reply {
        let before = self.secrets.len();
        self.secrets.retain(|it| it.name.as_str() != name);
        if self.secrets.len() == before {
            let detail = format!("secret \"{name}\" does not exist");
            return no(ErrorCode::SecretMissing, &detail);
        }
        Reply {
            status: 204,
            body: Vec::new(),
            breaks: false,
        }
    }

    fn health(&self) -> Value {
        let platform = self.platform.as_str();
        json!({ "status": "ok", "version": "0.1.0", "platform": platform, "position": 1 })
    }

    fn exchange(&mut self, body: &[u8]) -> Reply {
        let Ok(request) = serde_json::from_slice::<TokenRequest>(body) else {
            return no(ErrorCode::BadRequest, "not a TokenRequest");
        };
        let key = |_: &_| self.owner.as_ref();
        match OwnerProof::verify(&request.proof, &self.platform, now(), key) {
            Ok((proof, _))
                if proof.sub == "user:owner" && self.proofs.insert(proof.jti.clone()) =>
            {
                self.issued += 1;
                let token = format!("issued-{}", self.issued);
                self.tokens.insert(token.clone());
                reply(
                    200,
                    &IssuedToken {
                        token,
                        expires: now().plus(self.token_life),
                    },
                )
            }
            Ok(_) => no(ErrorCode::TokenInvalid, "the proof was used before"),
            Err(error) => no(ErrorCode::TokenInvalid, &error.to_string()),
        }
    }

    fn register(&mut self, body: &[u8]) -> Reply {
        let Ok(request) = serde_json::from_slice::<RegisterApp>(body) else {
            return no(ErrorCode::BadRequest, "not a RegisterApp");
        };
        let same = |app: &&AppView| app.id == request.id && app.name == request.name;
        if let Some(app) = self.apps.iter().find(same) {
            return reply(200, app);
        }
        if self.apps.iter().any(|app| app.name == request.name) {
            return no(ErrorCode::NameTaken, request.name.as_str());
        }
        let app = view(request.id, request.name.as_str());
        self.apps.push(app.clone());
        reply(201, &app)
    }

    fn with_app(&mut self, id: &str, then: impl FnOnce(&mut Self, &mut AppView) -> Reply) -> Reply {
        let Ok(id) = id.parse::<AppId>() else {
            return no(ErrorCode::BadUuid, id);
        };
        let Some(index) = self.apps.iter().position(|app| app.id == id) else {
            return no(ErrorCode::UnknownApp, &format!("there is no app {id}"));
        };
        let mut app = self.apps[index].clone();
        let reply = then(self, &mut app);
        self.apps[index] = app;
        reply
    }

    fn reserve(&mut self, id: &str, body: &[u8]) -> Reply {
        let Ok(request) = serde_json::from_slice::<ReserveVersion>(body) else {
            return no(ErrorCode::BadRequest, "not a ReserveVersion");
        };
        self.with_app(id, |state, app| {
            let taken = state
                .versions
                .keys()
                .filter(|(of, _)| *of == app.id)
                .map(|(_, n)| *n)
                .max();
            let n = taken
                .or_else(|| app.latest.map(VersionNumber::get))
                .unwrap_or(0)
                + 1;
            let version = Version {
                listed: request.files,
                files: BTreeMap::new(),
                committed: false,
            };
            state.versions.insert((app.id, n), version);
            reply(201, &json!({ "app": app.id, "version": n }))
        })
    }

    fn version(&mut self, id: &str, n: &str) -> Option<&mut Version> {
        self.versions.get_mut(&(id.parse().ok()?, n.parse().ok()?))
    }

    fn put(&mut self, id: &str, n: &str, path: &str, body: &[u8]) -> Reply {
        let Some(version) = self.version(id, n) else {
            return no(ErrorCode::NotFound, path);
        };
        let Some(listed) = version
            .listed
            .iter()
            .find(|file| file.path.as_str() == path)
        else {
            return no(ErrorCode::NotFound, path);
        };
        if listed.size != body.len() as u64 || listed.digest != Digest::of(body) {
            return no(ErrorCode::DigestMismatch, path);
        }
        version.files.insert(path.to_owned(), body.to_vec());
        Reply {
            status: 204,
            body: Vec::new(),
            breaks: false,
        }
    }

    fn commit(&mut self, id: &str, n: &str, body: &[u8]) -> Reply {
        let Ok(request) = serde_json::from_slice::<CommitVersion>(body) else {
            return no(ErrorCode::BadRequest, "not a CommitVersion");
        };
        let Some(version) = self.version(id, n) else {
            return no(ErrorCode::NotFound, n);
        };
        if version.listed != request.files || version.files.len() != request.files.len() {
            return no(ErrorCode::VersionConflict, "files are missing");
        }
        version.committed = true;
        let number: u32 = n.parse().unwrap_or(0);
        self.with_app(id, |_, app| {
            app.latest = Some(VersionNumber(number));
            reply(
                200,
                &json!({
                    "app": app.id, "version": number, "artifact": Digest::of(b""),
                    "runtime": "wasm-http", "created": now(),
                }),
            )
        })
    }

    fn deploy(&mut self, body: &[u8]) -> Reply {
        let Ok(request) = serde_json::from_slice::<RequestDeploy>(body) else {
            return no(ErrorCode::BadRequest, "not a RequestDeploy");
        };
        let known = self
            .deploys
            .iter()
            .find(|deploy| deploy.operation == request.id);
        if let Some(deploy) = known {
            return reply(202, deploy);
        }
        let operation = Operation {
            operation: request.id,
            app: request.app,
            status: OperationStatus::Running,
            steps: Vec::new(),
            version: request.version,
            url: None,
            error: None,
            log_tail: String::new(),
        };
        self.deploys.push(operation.clone());
        reply(202, &operation)
    }

    /// One step a question, as if each took as long as the client waits.
    fn move_on(&mut self, id: &str, query: &str) -> Reply {
        let found = self
            .deploys
            .iter()
            .position(|deploy| deploy.operation.to_string() == id);
        let Some(index) = found else {
            return no(ErrorCode::NotFound, id);
        };
        let mut deploy = self.deploys[index].clone();
        let seen = format!("seen={}", deploy.steps.len());
        if !query.contains(&seen) {
            return reply(200, &deploy);
        }
        let failed = self.course.end == OperationStatus::Failed;
        if let Some((name, ms)) = self.course.steps.get(deploy.steps.len()) {
            let last = deploy.steps.len() + 1 == self.course.steps.len();
            let status = if last && failed {
                StepStatus::Failed
            } else {
                StepStatus::Done
            };
            deploy.steps.push(Step {
                name: (*name).to_owned(),
                ms: *ms,
                status,
            });
        }
        if deploy.steps.len() == self.course.steps.len() {
            deploy.status = self.course.end;
            deploy.error.clone_from(&self.course.error);
            deploy.log_tail.clone_from(&self.course.log_tail);
        }
        self.deploys[index] = deploy.clone();
        self.with_app(&deploy.app.to_string(), |state, app| {
            if deploy.status == OperationStatus::Succeeded {
                app.serving = Some(deploy.version);
                app.status = AppStatus::Healthy;
                deploy.url = Some(app.url.clone());
                state.deploys[index] = deploy.clone();
            }
            reply(200, &deploy)
        })
    }
}

fn view(id: AppId, name: &str) -> AppView {
    AppView {
        id,
        name: name.parse().expect("tests name apps as apps are named"),
        tenant: Tenant::main(),
        address: AppUla::derive(id),
        url: format!("http://{name}.localhost:8090"),
        access: Access::Private,
        status: AppStatus::New,
        serving: None,
        latest: None,
        primary: None,
        instances: Vec::new(),
        created: Timestamp::from_secs(1_795_000_000),
        problem: None,
    }
}

fn whoami() -> Value {
    json!({
        "subject": "user:owner", "tenant": "main", "kind": "user", "scopes": ["*"],
        "expires": "2026-11-22T10:15:00.000Z",
    })
}

#[expect(
    clippy::disallowed_methods,
    reason = "proofs are checked against the machine's clock"
)]
pub(crate) fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    Timestamp::from_secs(since.map_or(0, |span| span.as_secs()))
}
