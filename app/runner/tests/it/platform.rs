//! A platform for runners that get their leases from it: a log, auth, a coordinator behind TLS, machines
//! that have joined, one of them with the artifacts. Everything is the real thing, on the real clock.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use object_store::local::LocalFileSystem;
use tabbify_api::BoxFuture;
use tabbify_api::artifact::ARTIFACTS_PORT;
use tabbify_api::auth::Authority as _;
use tabbify_api::auth::issue::{API_AUDIENCE, Caller, Issuer as _, TokenOrder};
use tabbify_api::auth::scope;
use tabbify_api::coordinator::{Helpers, Spawn, SpawnTicket};
use tabbify_api::log::{Append, Delivery, EventLog, Filter, LogScope};
use tabbify_api::mesh::{Leases as _, Resolver};
use tabbify_api::runner::{CoordinatorAt, DoorAt, Place};
use tabbify_auth::{Auth, Keys, OWNER, bootstrap};
use tabbify_coordinator::{ByIssuer, Config, Coordinator, Limits, Options, Service, TlsKey};
use tabbify_http::{Accept, Origin};
use tabbify_log::Log;
use tabbify_membership::{
    Door, Membership, MeshSecret, RemoteConfig, RemoteCoordinator, join_platform,
};
use tabbify_mesh::{Config as MeshConfig, Listener, Mesh, PrivateKey};
use tabbify_process::connect::{Connect, TcpSocket};
use tabbify_process::{Clock as _, Importance, SystemClock, Tasks};
use tabbify_token::{DocumentType, OwnerProof, PlatformId, SecretKey, Signer};
use tabbify_types::event::v1::{
    Access, AppHealthy, AppPlaced, AppRegistered, AppStarted, AppStarting, Capability,
    DeployRequested, InstanceRef, Placement, RunConfig, RuntimeKind, VersionPublished,
};
use tabbify_types::{
    AppId, AppUla, ByteSize, DeployId, Digest, Event, EventId, HostName, InstanceUla, MeshKey,
    NewEvent, Position, Recorded, Segment, SegmentGlob, Tenant, Timestamp, VersionNumber,
};
use tokio::net::TcpListener;
use tokio::sync::Mutex;

pub(crate) type Fallible<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Longer than any wait here can take on a machine that works.
pub(crate) const WATCHDOG: Duration = Duration::from_secs(60);
/// How long a platform without a coordinator goes on.
const GRACE: Duration = Duration::from_secs(3600);

/// One platform, started.
pub(crate) struct Platform {
    log: Log,
    pub(crate) all: Arc<dyn EventLog>,
    pub(crate) coordinator: Coordinator,
    pub(crate) tasks: Tasks,
    auth: Auth,
    keys: Keys,
    tls: TlsKey,
    address: SocketAddr,
    /// Ends with the coordinator's door; a new one opens at the same address.
    door: Tasks,
    dir: tempfile::TempDir,
}

/// A machine that has joined.
pub(crate) struct Member {
    pub(crate) membership: Membership,
    pub(crate) signing: SecretKey,
    bytes: [u8; 32],
}

/// A machine on the mesh.
pub(crate) struct Present {
    pub(crate) mesh: Mesh,
}

impl Platform {
    pub(crate) async fn start() -> Fallible<Self> {
        let dir = tempfile::tempdir()?;
        let log = Log::open(
            &dir.path().join("log"),
            tabbify_log::Options::new(Arc::new(SystemClock)),
        )?;
        let everything = vec![SegmentGlob::all()];
        let all = log.client(LogScope {
            actor: "test".to_owned(),
            write: everything.clone(),
            read: everything,
        });
        let keys = Keys::open(&dir.path().join("keys"))?;
        let auths = log.client(Auth::log_scope());
        bootstrap(&*auths, &keys).await?;
        let tasks = Tasks::new();
        let auth = Auth::start(auths, &keys, Arc::new(SystemClock), &tasks).await?;
        let core = Config {
            host: "core".parse()?,
            key: MeshSecret::from_bytes(&[42; 32]).public(),
            tags: vec!["role:auth".to_owned()],
            capabilities: Vec::new(),
            memory: None,
        };
        let signers = auth.clone();
        // Nobody here plays the machines well enough to be heard of.
        let options = Options::new(Arc::new(move || signers.signer())).lost_after(GRACE);
        let mine = log.client(Coordinator::log_scope());
        let clock = Arc::new(SystemClock);
        let coordinator = Coordinator::start(&core, mine, options, clock, &tasks).await?;
        let tls = TlsKey::load_or_create(&dir.path().join("coordinator.key"))?;
        std::fs::create_dir(dir.path().join("objects"))?;
        let mut platform = Self {
            log,
            all,
            coordinator,
            tasks,
            auth,
            keys,
            tls,
            address: ([127, 0, 0, 1], 0).into(),
            door: Tasks::new(),
            dir,
        };
        platform.open_door().await?;
        Ok(platform)
    }

    /// Opens the coordinator's door, where it was before if it was open before.
    pub(crate) async fn open_door(&mut self) -> Fallible<()> {
        let scopes = &[scope::AUTH_ISSUE];
        let token = self.auth.service_token("coordinator", scopes, API_AUDIENCE);
        let token = token.await?.token;
        let issuer = Arc::new(self.auth.clone());
        let admit = ByIssuer::new(issuer, Arc::new(move || token.clone()));
        self.door = Tasks::new();
        let limits = Limits::default();
        let coordinator = self.coordinator.clone();
        let service = Service::new(coordinator, Arc::new(admit), &limits, &self.door);
        let listener = TcpListener::bind(self.address).await?;
        self.address = listener.local_addr()?;
        let serving = service.serve_tls(listener, self.tls.clone());
        self.door
            .spawn("coordinator service", Importance::Detached, serving);
        Ok(())
    }

    /// Nobody reaches the coordinator any more, and who is connected is cut off.
    pub(crate) async fn close_door(&self) {
        self.door.shutdown(WATCHDOG).await;
    }

    /// What a machine tells its runners.
    pub(crate) fn at(&self) -> CoordinatorAt {
        CoordinatorAt {
            doors: vec![DoorAt {
                at: Place::Tcp(self.address),
                pin: self.tls.pin(),
            }],
            root: self.keys.root.public(),
            issuers: Vec::new(),
            outage_grace_ms: u64::try_from(GRACE.as_millis()).unwrap_or(u64::MAX),
            helpers: Helpers::default(),
            ask_nat: false,
        }
    }

    /// Where artifacts are stored.
    pub(crate) fn objects(&self) -> PathBuf {
        self.dir.path().join("objects")
    }

    /// For whatever else a test keeps.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    fn connect(&self) -> Arc<dyn Connect> {
        let address = self.address;
        Arc::new(TcpSocket { address })
    }

    async fn invite(&self, host: &str, tags: &[&str]) -> Fallible<String> {
        let platform = PlatformId::of(&self.keys.root.public());
        let jti = EventId::mint().to_string();
        let proof = OwnerProof::new(platform, OWNER, &jti, SystemClock.now());
        let owner = self.auth.exchange(&proof.sign(&self.keys.owner)?).await?;
        let order = TokenOrder::Join {
            host: host.parse()?,
            tenant: Some(Tenant::system()),
            tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
            capabilities: vec!["wasm-http".to_owned()],
            coordinator: self.tls.pin().to_string(),
            life_s: None,
        };
        let issued = self.auth.issue(Caller::bearer(&owner.token), order).await?;
        Ok(issued.token)
    }

    /// Lets a machine join that runs apps (`runs`) or not.
    pub(crate) async fn join(&self, host: &str, tags: &[&str], runs: bool) -> Fallible<Member> {
        let token = self.invite(host, tags).await?;
        let bytes = Digest::of(host.as_bytes()).0;
        let signing = SecretKey::from_seed(&Digest::of(&bytes).0);
        let works = Capability {
            runtime: "wasm-http".to_owned(),
            works: true,
            detail: String::new(),
        };
        let seen = if runs { vec![works] } else { Vec::new() };
        let secret = MeshSecret::from_bytes(&bytes);
        let (connect, tasks) = (self.connect(), &self.tasks);
        let joined = join_platform(connect, &token, secret, &signing, seen, &SystemClock, tasks);
        Ok(Member {
            membership: joined.await?,
            signing,
            bytes,
        })
    }

    /// The machine on the mesh, where everybody who may finds it.
    pub(crate) fn present(&self, member: &Member) -> Fallible<Present> {
        let secret = MeshSecret::from_bytes(&member.bytes);
        let door = Door::new(self.connect(), self.tls.pin(), secret)?;
        let config = RemoteConfig {
            root: self.keys.root.public(),
            issuers: member.membership.issuers.clone(),
            outage_grace: GRACE,
        };
        let clock = Arc::new(SystemClock);
        let remote = RemoteCoordinator::start(vec![door], config, clock, &self.tasks)?;
        let key = PrivateKey::from_bytes(&member.bytes);
        let address = member.membership.certificate.address.addr();
        let config = MeshConfig::new(key, vec![address], ([127, 0, 0, 1], 0).into());
        let resolver: Arc<dyn Resolver> = Arc::new(remote.clone());
        let mesh = Mesh::bind(config, resolver, &self.tasks)?;
        remote.report_candidates(mesh.public_key(), vec![mesh.underlay_addr()?]);
        Ok(Present { mesh })
    }

    /// Serves the artifacts from a machine with the tag `role:registry`; the URL of the store.
    pub(crate) fn serve_artifacts(&self, member: &Member, present: &Present) -> Fallible<String> {
        let store = Arc::new(LocalFileSystem::new_with_prefix(self.objects())?);
        let limits = tabbify_registry::Limits::default();
        let service = tabbify_registry::Service::new(store, &limits, &self.tasks);
        let listener = OnMesh::new(present.mesh.listen(ARTIFACTS_PORT)?);
        let serving = service.serve(listener);
        self.tasks.spawn("registry", Importance::Detached, serving);
        let address = member.membership.certificate.address;
        Ok(format!("mesh:[{address}]:{ARTIFACTS_PORT}"))
    }

    async fn append(&self, segment: Segment, app: AppId, event: Event) -> Fallible<()> {
        let event = NewEvent::new(segment, app, &event)?;
        self.all.append(Append::of(vec![event])).await?;
        Ok(())
    }

    /// Registers an app with one version, which is in the store already.
    pub(crate) async fn register(&self, app: AppId, artifact: Digest) -> Fallible<()> {
        let (tenant, apps) = (Tenant::main(), Segment::apps(&Tenant::main()));
        // Names are unique in a tenant.
        let name = format!("app-{app}").parse()?;
        let registered = AppRegistered {
            app,
            tenant,
            name,
            address: AppUla::derive(app),
        };
        self.append(apps.clone(), app, registered.into()).await?;
        let published = VersionPublished {
            app,
            version: VersionNumber(1),
            artifact,
            config: Digest::of(b"config"),
            access: Access::Private,
            run: RunConfig {
                runtime: RuntimeKind::WasmHttp,
                entry: "app.wasm".to_owned(),
                memory: ByteSize::mib(64),
                env: BTreeMap::new(),
                stop_timeout_ms: 1000,
                healthy_within_ms: 60_000,
                image: None,
                secrets: BTreeMap::new(),
                egress: Vec::new(),
                idle_after_ms: None,
                volume: None,
                ports: Vec::new(),
            },
            secrets: Vec::new(),
            placement: Placement::default(),
            further: Vec::new(),
        };
        self.append(apps, app, published.into()).await
    }

    /// Wants the app in service, up to where its machine is told.
    pub(crate) async fn deploy(&self, app: AppId) -> Fallible<AppPlaced> {
        let deploy = DeployId::mint();
        let requested = DeployRequested {
            app,
            deploy,
            version: VersionNumber(1),
        };
        let apps = Segment::apps(&Tenant::main());
        self.append(apps, app, requested.into()).await?;
        self.wait_for("app_placed", |recorded, event| match event {
            Event::AppPlaced(it) if it.deploy == deploy => {
                (recorded.segment == Segment::host(&it.host)).then_some(it)
            }
            _ => None,
        })
        .await
    }

    /// Says for a machine what its supervisor would: the instance serves.
    pub(crate) async fn report(&self, placed: &AppPlaced, key: MeshKey) -> Fallible<()> {
        let of = instance(placed);
        let started = AppStarted {
            of,
            app_ula: AppUla::derive(of.app),
            instance_ula: InstanceUla::derive(of.app, of.instance),
            key,
            secrets: BTreeMap::new(),
        };
        for event in [
            Event::from(AppStarting { of }),
            started.into(),
            AppHealthy { of }.into(),
        ] {
            self.report_event(placed, event).await?;
        }
        Ok(())
    }

    /// The log as a machine's supervisor may use it: to read its orders and write its reports.
    pub(crate) fn host_log(&self, host: &HostName) -> Arc<dyn EventLog> {
        let (orders, reports) = (Segment::host(host), Segment::host_reports(host));
        self.log.client(LogScope {
            actor: format!("host:{host}"),
            write: vec![SegmentGlob::from(&reports)],
            read: vec![SegmentGlob::from(&orders), SegmentGlob::from(&reports)],
        })
    }

    /// Says something for a machine.
    pub(crate) async fn report_event(&self, placed: &AppPlaced, event: Event) -> Fallible<()> {
        let segment = Segment::host_reports(&placed.host);
        let event = NewEvent::new(segment, placed.app, &event)?;
        let log = self.host_log(&placed.host);
        log.append(Append::of(vec![event])).await?;
        Ok(())
    }

    /// The first event, from the beginning of the log on, of which `pick` makes something.
    pub(crate) async fn wait_for<T>(
        &self,
        what: &str,
        mut pick: impl FnMut(&Recorded, Event) -> Option<T>,
    ) -> Fallible<T> {
        let mut events = self.all.subscribe(Filter::default(), Position(0))?;
        let found = async {
            loop {
                if let Delivery::Event(recorded) = events.next().await?
                    && let Some(event) = recorded.event()?
                    && let Some(found) = pick(&recorded, event)
                {
                    return Ok(found);
                }
            }
        };
        tokio::time::timeout(WATCHDOG, found)
            .await
            .map_err(|_| format!("no {what} came"))?
    }

    /// The key that has the lease of an instance, once one has.
    pub(crate) async fn leased(&self, of: InstanceRef) -> Fallible<MeshKey> {
        self.wait_for("lease_granted", |_, event| match event {
            Event::LeaseGranted(it) if it.app == of.app && it.instance == of.instance => {
                Some(it.key)
            }
            _ => None,
        })
        .await
    }
}

impl Drop for Platform {
    fn drop(&mut self) {
        self.door.stop();
        self.tasks.stop();
    }
}

impl Member {
    /// A ticket of this machine's for an instance.
    pub(crate) fn ticket(&self, of: InstanceRef, not_after: Timestamp) -> Fallible<Spawn> {
        let ticket = SpawnTicket {
            app: of.app,
            instance: of.instance,
            not_after,
        };
        let platform = PlatformId::of(&self.membership.root);
        let signer = Signer::new(self.signing.clone(), platform);
        Ok(Spawn {
            certificate: self.membership.signed.clone(),
            ticket: signer.sign_document(DocumentType::SpawnTicket, &ticket)?,
        })
    }

    /// One that counts.
    pub(crate) fn fresh_ticket(&self, of: InstanceRef) -> Fallible<Spawn> {
        self.ticket(of, SystemClock.now().plus(Duration::from_secs(120)))
    }
}

pub(crate) fn instance(placed: &AppPlaced) -> InstanceRef {
    InstanceRef {
        app: placed.app,
        instance: placed.instance,
    }
}

/// Connections of the mesh, with the inner address of who has opened each.
pub(crate) struct OnMesh(Mutex<Listener>);

impl OnMesh {
    pub(crate) fn new(listener: Listener) -> Self {
        Self(Mutex::new(listener))
    }
}

impl Accept for OnMesh {
    type Stream = tabbify_mesh::Stream;

    fn accept(&self) -> impl Future<Output = io::Result<(Self::Stream, Origin)>> + Send {
        let accepted: BoxFuture<'_, _> = Box::pin(async {
            let incoming = self.0.lock().await.accept().await;
            let incoming = incoming.map_err(io::Error::other)?;
            Ok((incoming.stream, Origin::At(incoming.remote.into())))
        });
        accepted
    }
}
