//! A vault on a log of its own; tokens are words, and the way to the log can be cut.

use std::collections::BTreeMap;
use std::error::Error;
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tabbify_api::BoxFuture;
use tabbify_api::auth::issue::{Caller, Revocations, Verified};
use tabbify_api::auth::{AuthError, Identity};
use tabbify_api::log::{
    Append, AppendError, Appended, EventLog, Filter, LogAccess, LogScope, Page, ReadError,
    Subscribe,
};
use tabbify_api::secrets::{SecretValue, SecretView};
use tabbify_gateway::{Deps, MasterKey, Peer, StartError, Vault};
use tabbify_log::{Log, Options};
use tabbify_process::{SystemClock, Tasks};
use tabbify_types::event::v1::{
    AppPlaced, InstanceRef, LeaseGranted, RunConfig, RuntimeKind, SecretDelivery, SecretUse,
};
use tabbify_types::{
    AppId, AppUla, ByteSize, DeployId, Digest, Epoch, Event, InstanceId, MeshKey, NewEvent,
    Position, Segment, SegmentGlob, SlotId, Tenant, Timestamp, VersionNumber,
};

pub(crate) type Fallible<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Longer than any wait here can take on a machine that works.
pub(crate) const WATCHDOG: Duration = Duration::from_secs(60);

/// Tokens are words: `owner` of main, `acme` of acme, `agent` of main, `viewer` who may not.
#[derive(Debug)]
struct Words;

impl Revocations for Words {
    fn check(
        &self,
        token: &str,
        kinds: &[&str],
        _: &str,
        _: Option<MeshKey>,
    ) -> Result<Verified, AuthError> {
        let (tenant, kind, scopes) = match token {
            "owner" => ("main", "user", vec!["*"]),
            "acme" => ("acme", "user", vec!["secrets:read", "secrets:write"]),
            "agent" => ("main", "agent", vec!["*"]),
            "viewer" => ("main", "user", vec!["apps:read"]),
            "old" => return Err(AuthError::Expired(Timestamp::default())),
            _ => return Err(AuthError::Invalid("forged".to_owned())),
        };
        if !kinds.contains(&kind) {
            return Err(AuthError::Invalid("another kind".to_owned()));
        }
        Ok(Verified {
            jti: token.to_owned(),
            kind: kind.to_owned(),
            subject: format!("{kind}:{token}"),
            tenant: tenant.parse().expect("a tenant"),
            scopes: scopes.into_iter().map(str::to_owned).collect(),
            tags: Vec::new(),
            ulas: Vec::new(),
            key: None,
            issued: Timestamp::default(),
            expires: Timestamp::from_secs(4_000_000_000),
        })
    }

    fn still(&self, _: &Verified) -> Result<(), AuthError> {
        Ok(())
    }

    fn is_revoked(&self, _: &Verified) -> bool {
        false
    }

    fn changes(&self) -> u64 {
        0
    }

    fn changed(&self, _: u64) -> BoxFuture<'_, u64> {
        Box::pin(std::future::pending())
    }
}

/// What becomes of an append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// What the log says.
    Answered,
    /// It never arrives.
    Lost,
    /// It is written, and nobody hears of it.
    Unheard,
    /// Somebody else writes the same key before it.
    Overtaken,
    /// The tenant writes too fast.
    Refused,
}

/// The way of callers to the log.
#[derive(Debug)]
struct Way {
    log: Arc<Log>,
    fate: Arc<Mutex<Fate>>,
}

impl LogAccess for Way {
    fn of(&self, caller: &Identity) -> Arc<dyn EventLog> {
        let secrets = vec![SegmentGlob::from(&Segment::secrets(&caller.tenant))];
        Arc::new(Writer {
            log: self.log.client(LogScope {
                actor: caller.subject.clone(),
                write: secrets.clone(),
                read: secrets,
            }),
            fate: Arc::clone(&self.fate),
        })
    }
}

#[derive(Debug)]
struct Writer {
    log: Arc<dyn EventLog>,
    fate: Arc<Mutex<Fate>>,
}

impl EventLog for Writer {
    fn append(&self, batch: Append) -> BoxFuture<'_, Result<Appended, AppendError>> {
        Box::pin(async move {
            let fate = *lock(&self.fate);
            match fate {
                Fate::Answered => self.log.append(batch).await,
                Fate::Lost => Err(AppendError::Stopping),
                Fate::Unheard => {
                    self.log.append(batch).await?;
                    Err(AppendError::Stopping)
                }
                Fate::Overtaken => {
                    *lock(&self.fate) = Fate::Answered;
                    let mut first = batch.clone();
                    for event in &mut first.events {
                        event.id = tabbify_types::EventId::mint();
                    }
                    self.log.append(first).await?;
                    self.log.append(batch).await
                }
                Fate::Refused => Err(AppendError::Rate {
                    tenant: Tenant::main(),
                    retry_after_ms: 1,
                }),
            }
        })
    }

    fn read(
        &self,
        filter: Filter,
        after: Position,
        limit: usize,
    ) -> BoxFuture<'_, Result<Page, ReadError>> {
        self.log.read(filter, after, limit)
    }

    fn subscribe(&self, filter: Filter, after: Position) -> Result<Box<dyn Subscribe>, ReadError> {
        self.log.subscribe(filter, after)
    }

    fn head(&self) -> Position {
        self.log.head()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A log, a directory, and whichever vault runs on them now.
pub(crate) struct Site {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) vault: Vault,
    pub(crate) tasks: Tasks,
    pub(crate) all: Arc<dyn EventLog>,
    log: Arc<Log>,
    fate: Arc<Mutex<Fate>>,
}

impl Site {
    pub(crate) async fn new() -> Fallible<Self> {
        let dir = tempfile::tempdir()?;
        let log = Log::open(&dir.path().join("log"), Options::new(Arc::new(SystemClock)))?;
        let log = Arc::new(log);
        let everything = vec![SegmentGlob::all()];
        let all = log.client(LogScope {
            actor: "test".to_owned(),
            write: everything.clone(),
            read: everything,
        });
        let (fate, tasks) = (Arc::new(Mutex::new(Fate::Answered)), Tasks::new());
        let vault = open(dir.path(), &log, &fate, &tasks).await?;
        Ok(Self {
            dir,
            vault,
            tasks,
            all,
            log,
            fate,
        })
    }

    /// The process ends here, whatever it was about to do, and another one starts.
    pub(crate) async fn killed(mut self) -> Fallible<Self> {
        self.tasks.stop();
        self.tasks = Tasks::new();
        self.fate(Fate::Answered);
        self.vault = open(self.dir.path(), &self.log, &self.fate, &self.tasks).await?;
        Ok(self)
    }

    /// What becomes of appends from here on.
    pub(crate) fn fate(&self, fate: Fate) {
        *lock(&self.fate) = fate;
    }

    pub(crate) async fn set(
        &self,
        token: &str,
        name: &str,
        value: &[u8],
    ) -> Result<SecretView, tabbify_gateway::Error> {
        let (name, value) = (
            name.parse().expect("a name"),
            SecretValue::new(value.to_vec()),
        );
        let set = self.vault.set(Caller::bearer(token), name, value);
        set.await.map(|(view, _)| view)
    }

    pub(crate) async fn remove(
        &self,
        token: &str,
        name: &str,
    ) -> Result<(), tabbify_gateway::Error> {
        let name = name.parse().expect("a name");
        self.vault.remove(Caller::bearer(token), name).await
    }

    /// Names and versions, as `name@version`.
    pub(crate) async fn list(&self, token: &str) -> Fallible<Vec<String>> {
        let list = self.vault.list(Caller::bearer(token)).await?;
        let shown = list.secrets.iter();
        Ok(shown
            .map(|it| format!("{}@{}", it.name, it.version))
            .collect())
    }

    /// The events of secrets, as `type name@version by actor`.
    pub(crate) async fn recorded(&self) -> Fallible<Vec<String>> {
        let filter = Filter::segments([SegmentGlob::all_secrets()]);
        let page = self.all.read(filter, Position(0), 1000).await?;
        let shown = page.events.iter().map(|event| {
            let data: serde_json::Value = serde_json::from_str(event.data.get())?;
            let version = data["version"].as_u64().map(|it| format!("@{it}"));
            let version = version.unwrap_or_default();
            Ok(format!(
                "{} {}{version} by {}",
                event.kind, event.key, event.actor
            ))
        });
        shown.collect()
    }

    /// An instance of a new app that uses these secrets and holds a lease.
    pub(crate) async fn instance(&self, tenant: &str, names: &[&str]) -> Fallible<Instance> {
        let tenant: Tenant = tenant.parse()?;
        let of = InstanceRef {
            app: AppId::mint(),
            instance: InstanceId(1),
        };
        let placed = placed(of, &tenant, names)?;
        let key = MeshKey(Digest::of(of.app.uuid().as_bytes()).0);
        let granted = LeaseGranted {
            app: of.app,
            tenant: tenant.clone(),
            slot: SlotId::FIRST,
            epoch: Epoch(1),
            instance: of.instance,
            key,
            host: "box1".parse()?,
        };
        self.append(&Segment::apps(&tenant), of.app, placed.into())
            .await?;
        self.append(&Segment::peers(), of.app, granted.into())
            .await?;
        Ok(Instance { of, tenant, key })
    }

    pub(crate) async fn append(&self, segment: &Segment, app: AppId, event: Event) -> Fallible<()> {
        let event = NewEvent::new(segment.clone(), app, &event)?;
        self.all.append(Append::of(vec![event])).await?;
        Ok(())
    }

    /// What an instance gets, as `name@version=value`.
    pub(crate) async fn release(
        &self,
        instance: &Instance,
    ) -> Result<Vec<String>, tabbify_gateway::Error> {
        let release = self.vault.release(&instance.peer()).await?;
        let shown = release.secrets.iter().map(|it| {
            let value = String::from_utf8_lossy(it.value.reveal());
            format!("{}@{}={value}", it.name, it.version)
        });
        Ok(shown.collect())
    }

    pub(crate) fn vault_dir(&self) -> PathBuf {
        self.dir.path().join("vault")
    }

    /// How many records there are.
    pub(crate) fn records(&self) -> Fallible<usize> {
        let values = files(&self.vault_dir().join("values"))?.len();
        let keys = files(&self.vault_dir().join("keys"))?.len();
        assert_eq!(values, keys, "they come in pairs");
        Ok(values)
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.tasks.stop();
    }
}

async fn open(
    dir: &Path,
    log: &Arc<Log>,
    fate: &Arc<Mutex<Fate>>,
    tasks: &Tasks,
) -> Result<Vault, StartError> {
    let way = Way {
        log: Arc::clone(log),
        fate: Arc::clone(fate),
    };
    let master = MasterKey::load_or_create(&dir.join("master.key"));
    let deps = Deps {
        log: log.client(Vault::log_scope()),
        writers: Arc::new(way),
        tokens: Arc::new(Words),
        master: master.expect("a master key"),
        clock: Arc::new(SystemClock),
        tasks: tasks.clone(),
    };
    Vault::open(&dir.join("vault"), Some(&dir.join("snapshots")), deps).await
}

/// One that may ask.
#[derive(Debug, Clone)]
pub(crate) struct Instance {
    pub(crate) of: InstanceRef,
    pub(crate) tenant: Tenant,
    pub(crate) key: MeshKey,
}

impl Instance {
    pub(crate) fn address(&self) -> Ipv6Addr {
        AppUla::derive(self.of.app).addr()
    }

    pub(crate) fn peer(&self) -> Peer {
        Peer::on_mesh(self.key, self.address())
    }
}

pub(crate) fn placed(of: InstanceRef, tenant: &Tenant, names: &[&str]) -> Fallible<AppPlaced> {
    let mut secrets = BTreeMap::new();
    for (n, name) in names.iter().enumerate() {
        let used = SecretUse {
            name: name.parse()?,
            delivery: SecretDelivery::Env,
        };
        secrets.insert(format!("VARIABLE_{n}"), used);
    }
    Ok(AppPlaced {
        app: of.app,
        tenant: tenant.clone(),
        deploy: DeployId::mint(),
        version: VersionNumber(1),
        host: "box1".parse()?,
        slot: SlotId::FIRST,
        epoch: Epoch(1),
        instance: of.instance,
        artifact: Digest::of(b"artifact.json"),
        run: RunConfig {
            runtime: RuntimeKind::WasmHttp,
            entry: "app.wasm".to_owned(),
            memory: ByteSize::mib(64),
            env: BTreeMap::new(),
            stop_timeout_ms: 1000,
            healthy_within_ms: 1000,
            image: None,
            secrets,
            egress: Vec::new(),
            idle_after_ms: None,
            volume: None,
            ports: Vec::new(),
        },
    })
}

/// Every file below a folder, with its bytes.
pub(crate) fn files(folder: &Path) -> Fallible<Vec<(PathBuf, Vec<u8>)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.extend(files(&entry.path())?);
        } else {
            found.push((entry.path(), std::fs::read(entry.path())?));
        }
    }
    Ok(found)
}
