//! A small vocabulary for the stories in this binary: a machine with a log, a place for artifacts,
//! and somebody who plays the coordinator.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tabbify_api::BoxFuture;
use tabbify_api::artifact::{ARTIFACT_FILE, Artifact, ArtifactFile, file_key};
use tabbify_api::doorbell::{DoorAsk, DoorSaid, Doorbells};
use tabbify_api::log::{Append, Delivery, EventLog, Filter, LogScope};
use tabbify_api::mesh::{Leases, ResolveError};
use tabbify_api::policy::Ports;
use tabbify_api::runner::{BIRTH_FILE, Birth};
use tabbify_log::{Log, Options};
use tabbify_process::{SystemClock, Tasks};
use tabbify_supervisor::{Config, Supervisor};
use tabbify_types::event::v1::{AppPlaced, AppStopRequested, InstanceRef, RunConfig, RuntimeKind};
use tabbify_types::{
    APP_PORT, AppId, ByteSize, DeployId, Digest, Epoch, Event, EventId, HostName, InstanceId,
    MeshKey, NewEvent, Position, Recorded, Segment, SegmentGlob, SlotId, Tenant, VersionNumber,
};

pub(crate) type Wrong = Box<dyn std::error::Error>;
pub(crate) type Outcome = Result<(), Wrong>;

/// LIMIT: how long a test waits for something that must happen.
pub(crate) const WATCHDOG: Duration = Duration::from_secs(60);

/// What an instance is meant to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum App {
    Hello,
    /// A file that is not a component.
    Picture,
}

/// The directory of a machine: gone with it, or another's.
pub(crate) enum Home {
    Own(tempfile::TempDir),
    Lent(PathBuf),
}

impl Home {
    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::Own(directory) => directory.path(),
            Self::Lent(path) => path,
        }
    }
}

/// One machine and its log.
pub(crate) struct Machine {
    pub(crate) home: Home,
    pub(crate) config: Config,
    pub(crate) tasks: Tasks,
    pub(crate) candidates: Candidates,
    log: Log,
    /// May do everything.
    all: Arc<dyn EventLog>,
}

impl Machine {
    pub(crate) fn new() -> Result<Self, Wrong> {
        Self::below(Home::Own(tempfile::tempdir()?))
    }

    /// A machine in a directory that outlives it, with what an earlier one has left there. There is one at
    /// a time: it has the log.
    pub(crate) fn at(home: &Path) -> Result<Self, Wrong> {
        Self::below(Home::Lent(home.to_owned()))
    }

    fn below(home: Home) -> Result<Self, Wrong> {
        let host: HostName = "box1".parse()?;
        let config = Config {
            host,
            data_dir: home.path().join("data"),
            runner: runner()?,
            engine: None,
            microvms: None,
            store: format!("file://{}", home.path().join("objects").display()),
            vault: None,
            underlay: ([127, 0, 0, 1], 0).into(),
            peers: Vec::new(),
            doors: Some(Arc::new(Platform)),
            identity: None,
        };
        std::fs::create_dir_all(home.path().join("objects"))?;
        let options = Options::new(Arc::new(SystemClock));
        let log = Log::open(&home.path().join("log"), options)?;
        let everything = vec![SegmentGlob::all()];
        let all = log.client(LogScope {
            actor: "test".to_owned(),
            write: everything.clone(),
            read: everything,
        });
        Ok(Self {
            home,
            config,
            tasks: Tasks::new(),
            candidates: Candidates::default(),
            log,
            all,
        })
    }

    /// A supervisor that may read its orders and write its reports, and nothing else.
    pub(crate) async fn supervisor(&self) -> Result<Supervisor, Wrong> {
        self.supervisor_with(self.host_log()).await
    }

    pub(crate) async fn supervisor_with(
        &self,
        log: Arc<dyn EventLog>,
    ) -> Result<Supervisor, Wrong> {
        self.supervisor_in(log, &self.tasks).await
    }

    /// A supervisor that ends with `tasks`.
    pub(crate) async fn supervisor_in(
        &self,
        log: Arc<dyn EventLog>,
        tasks: &Tasks,
    ) -> Result<Supervisor, Wrong> {
        let leases = Arc::new(self.candidates.clone());
        let clock = Arc::new(SystemClock);
        Ok(Supervisor::start(self.config.clone(), log, leases, clock, tasks).await?)
    }

    /// The log as the host may use it.
    pub(crate) fn host_log(&self) -> Arc<dyn EventLog> {
        let (orders, reports) = (self.orders(), self.reports());
        self.log.client(LogScope {
            actor: format!("host:{}", self.config.host),
            write: vec![SegmentGlob::from(&reports)],
            read: vec![SegmentGlob::from(&orders), SegmentGlob::from(&reports)],
        })
    }

    pub(crate) fn orders(&self) -> Segment {
        Segment::host(&self.config.host)
    }

    pub(crate) fn reports(&self) -> Segment {
        Segment::host_reports(&self.config.host)
    }

    /// Publishes what `app` is and places an instance of it; the order's id.
    pub(crate) async fn place(&self, of: InstanceRef, app: App) -> Result<EventId, Wrong> {
        self.place_until_idle(of, app, None).await
    }

    /// The same of one that may stop when it has had nothing to do for so long.
    pub(crate) async fn place_until_idle(
        &self,
        of: InstanceRef,
        app: App,
        idle_after: Option<Duration>,
    ) -> Result<EventId, Wrong> {
        let idle_after_ms = match idle_after {
            Some(after) => Some(after.as_millis().try_into()?),
            None => None,
        };
        let version = VersionNumber(of.instance.get());
        let bytes = match app {
            App::Hello => std::fs::read(hello()?)?,
            App::Picture => b"\x89PNG".to_vec(),
        };
        let artifact = self.publish(of.app, version, &bytes)?;
        let order = Event::from(AppPlaced {
            app: of.app,
            tenant: Tenant::main(),
            deploy: DeployId::from_uuid(of.app.uuid()),
            version,
            host: self.config.host.clone(),
            slot: SlotId::FIRST,
            epoch: Epoch(of.instance.get()),
            instance: of.instance,
            artifact,
            run: RunConfig {
                runtime: RuntimeKind::WasmHttp,
                entry: "app.wasm".to_owned(),
                memory: ByteSize::mib(64),
                env: BTreeMap::new(),
                stop_timeout_ms: 1_000,
                healthy_within_ms: 60_000,
                image: None,
                secrets: BTreeMap::new(),
                egress: Vec::new(),
                idle_after_ms,
                volume: None,
                ports: Vec::new(),
            },
        });
        self.append(self.orders(), of.app, &order).await
    }

    fn publish(&self, app: AppId, version: VersionNumber, bytes: &[u8]) -> Result<Digest, Wrong> {
        let write = |name: &str, bytes: &[u8]| -> Result<(), Wrong> {
            let objects = self.home.path().join("objects");
            let path = objects.join(file_key(app, version, name));
            std::fs::create_dir_all(path.parent().ok_or("a key has a folder")?)?;
            Ok(std::fs::write(path, bytes)?)
        };
        write("app.wasm", bytes)?;
        let artifact = serde_json::to_vec(&Artifact {
            format: 1,
            app,
            version,
            files: vec![ArtifactFile {
                path: "app.wasm".parse()?,
                size: bytes.len().try_into()?,
                digest: Digest::of(bytes),
            }],
        })?;
        write(ARTIFACT_FILE, &artifact)?;
        Ok(Digest::of(&artifact))
    }

    pub(crate) async fn order_stop(&self, of: InstanceRef) -> Outcome {
        let drain_ms = 1_000;
        let order = Event::from(AppStopRequested { of, drain_ms });
        self.append(self.orders(), of.app, &order).await.map(|_| ())
    }

    pub(crate) async fn append(
        &self,
        segment: Segment,
        key: AppId,
        event: &Event,
    ) -> Result<EventId, Wrong> {
        let new = NewEvent::new(segment, key, event)?;
        let id = new.id;
        self.all.append(Append::of(vec![new])).await?;
        Ok(id)
    }

    /// What was ordered so far: the instances that were placed, and those of them that are to end.
    pub(crate) async fn ordered(
        &self,
    ) -> Result<(BTreeSet<InstanceRef>, BTreeSet<InstanceRef>), Wrong> {
        let filter = Filter::segments([SegmentGlob::from(&self.orders())]);
        let page = self.all.read(filter, Position(0), 10_000).await?;
        let (mut placed, mut stopped) = (BTreeSet::new(), BTreeSet::new());
        for event in page.events {
            match event.event()?.ok_or("a known type")? {
                Event::AppPlaced(order) => placed.insert(InstanceRef {
                    app: order.app,
                    instance: order.instance,
                }),
                Event::AppStopRequested(order) => stopped.insert(order.of),
                other => return Err(format!("nobody orders {other:?}").into()),
            };
        }
        Ok((placed, stopped))
    }

    /// Waits until `kind` has been reported about `of`.
    pub(crate) async fn reported(&self, of: InstanceRef, kind: &str) -> Result<Event, Wrong> {
        let filter = Filter::segments([SegmentGlob::from(&self.reports())]);
        let mut subscription = self.all.subscribe(filter, Position(0))?;
        let wait = async {
            loop {
                if let Delivery::Event(event) = subscription.next().await?
                    && event.kind == kind
                    && about(&event)? == of
                {
                    return Ok(event.event()?.ok_or("a known type")?);
                }
            }
        };
        tokio::time::timeout(WATCHDOG, wait)
            .await
            .map_err(|_| format!("{kind} was not reported within {WATCHDOG:?}"))?
    }

    /// The types of everything that was reported about `of`.
    pub(crate) async fn reports_of(&self, of: InstanceRef) -> Result<Vec<String>, Wrong> {
        let filter = Filter::segments([SegmentGlob::from(&self.reports())]);
        let page = self.all.read(filter, Position(0), 10_000).await?;
        let mut kinds = Vec::new();
        for event in page.events {
            if about(&event)? == of {
                kinds.push(event.kind.clone());
            }
        }
        Ok(kinds)
    }

    pub(crate) fn dir(&self, of: InstanceRef) -> PathBuf {
        let runners = self.config.data_dir.join("runners");
        runners
            .join(of.app.to_string())
            .join(of.instance.to_string())
    }

    /// The process that the birth record names.
    pub(crate) fn pid(&self, of: InstanceRef) -> Result<u32, Wrong> {
        pid_in(&self.dir(of))
    }

    /// Every live process whose working directory is that of a runner of this machine.
    pub(crate) fn processes(&self) -> Vec<u32> {
        processes_below(&self.config.data_dir.join("runners"))
    }

    /// Waits until `wanted` holds, looking often: for what no event tells.
    pub(crate) async fn eventually(&self, what: &str, wanted: impl Fn(&Self) -> bool) -> Outcome {
        let wait = async {
            while !wanted(self) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let waited = tokio::time::timeout(WATCHDOG, wait).await;
        waited.map_err(|_| format!("not within {WATCHDOG:?}: {what}").into())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.tasks.stop();
        for pid in self.processes() {
            kill(pid);
        }
    }
}

/// The process that the birth record in a runner's directory names.
pub(crate) fn pid_in(dir: &Path) -> Result<u32, Wrong> {
    let text = std::fs::read(dir.join(BIRTH_FILE))?;
    let birth: Birth = serde_json::from_slice(&text)?;
    assert!(dir.ends_with(format!("{}/{}", birth.of.app, birth.of.instance)));
    Ok(birth.pid)
}

/// Every live process whose working directory is below `base`.
pub(crate) fn processes_below(base: &Path) -> Vec<u32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        let cwd = std::fs::read_link(entry.path().join("cwd"));
        if let (Some(pid), Ok(cwd)) = (pid, cwd)
            && cwd.starts_with(base)
        {
            found.push(pid);
        }
    }
    found
}

/// What an interrupted test, or a test that asks for it, does to a runner.
pub(crate) fn kill(pid: u32) {
    let pid = i32::try_from(pid)
        .ok()
        .and_then(rustix::process::Pid::from_raw);
    if let Some(pid) = pid {
        // It may have ended meanwhile.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

pub(crate) fn instance(app: AppId, instance: u32) -> InstanceRef {
    InstanceRef {
        app,
        instance: InstanceId(instance),
    }
}

fn about(event: &Recorded) -> Result<InstanceRef, Wrong> {
    Ok(serde_json::from_str(event.data.get())?)
}

/// Who may come to what is idle.
pub(crate) const GUEST: MeshKey = MeshKey([9; 32]);

/// Says of every instance what the coordinator says once it has read that it is idle.
#[derive(Debug)]
struct Platform;

impl Doorbells for Platform {
    fn ask(&self, ask: DoorAsk) -> BoxFuture<'_, Result<DoorSaid, ResolveError>> {
        let ports = match ask.guest {
            Some(GUEST) => Ports::Only([APP_PORT].into()),
            _ => Ports::NOTHING,
        };
        let is_idle = true;
        Box::pin(async move { Ok(DoorSaid { is_idle, ports }) })
    }
}

/// Takes down what the supervisor tells the coordinator.
#[derive(Debug, Clone, Default)]
pub(crate) struct Candidates(Arc<Mutex<BTreeMap<MeshKey, u32>>>);

impl Candidates {
    /// How often the key has been reported with one address on loopback.
    pub(crate) fn of(&self, key: MeshKey) -> u32 {
        let reports = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        reports.get(&key).copied().unwrap_or_default()
    }
}

impl Leases for Candidates {
    fn resolve(&self, address: std::net::Ipv6Addr) -> BoxFuture<'_, Result<String, ResolveError>> {
        Box::pin(async move { Err(ResolveError::NoLease(address)) })
    }

    fn report_candidates(&self, key: MeshKey, candidates: Vec<std::net::SocketAddr>) {
        let [address] = candidates[..] else {
            return;
        };
        if address.ip().is_loopback() && address.port() != 0 {
            let mut reports = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            *reports.entry(key).or_default() += 1;
        }
    }
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The runner program: another package's, so it must have been built before the tests.
pub(crate) fn runner() -> Result<PathBuf, Wrong> {
    // Beside the test: target/<profile>/deps/<test>.
    let test = std::env::current_exe()?;
    let profile = test
        .parent()
        .and_then(Path::parent)
        .ok_or("target/<profile>/deps")?;
    let path = profile.join("tabbify-runner");
    if !path.is_file() {
        let missing = format!(
            "{} is missing. Run: cargo build -p tabbify-runner",
            path.display()
        );
        return Err(missing.into());
    }
    Ok(path)
}

/// `examples/hello-wasm`, up to date.
pub(crate) fn hello() -> Result<PathBuf, Wrong> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| {
        let folder = workspace().join("examples/hello-wasm");
        let args = ["build", "--release", "--target", "wasm32-wasip2"];
        cargo(&folder, &args)?;
        Ok(folder.join("target/wasm32-wasip2/release/hello_wasm.wasm"))
    });
    Ok(built.clone()?)
}

/// Runs cargo as from a shell: what cargo tells this test about itself would only make build
/// scripts run again.
fn cargo(folder: &Path, args: &[&str]) -> Result<String, String> {
    let mut command = Command::new(env!("CARGO"));
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let told = [
            "CARGO_PKG_",
            "CARGO_MANIFEST_",
            "CARGO_BIN_",
            "CARGO_CRATE_",
        ];
        if told.iter().any(|prefix| text.starts_with(prefix)) {
            command.env_remove(&name);
        }
    }
    let output = command
        .args(args)
        .current_dir(folder)
        .output()
        .map_err(|error| error.to_string())?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}
