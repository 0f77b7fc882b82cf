//! The composition root: every role, built in the order in which they need each other.
//!
//! ```text
//! keys → checkpoints → log → bootstrap → auth → vault → its service, log service, read model
//!      → coordinator, its socket → this machine's membership: address, mesh → services over the mesh
//!      → relay → supervisor → node
//! ```
//!
//! Each role gets the log with a scope of its own: what it may read and write is said here, in one
//! place, and enforced by the log.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use object_store::ObjectStore;
use object_store::local::LocalFileSystem;
use tabbify_api::artifact::ARTIFACTS_PORT;
use tabbify_api::auth::{Authority as _, Identity};
use tabbify_api::contexts::Context;
use tabbify_api::log::{EventLog, LogAccess, LogEngine as _, LogScope};
use tabbify_api::mesh::Leases;
use tabbify_api::policy::ROLE_TAG;
use tabbify_api::runner::MicroVms;
use tabbify_auth::{Auth, Keys, OWNER};
use tabbify_coordinator::Coordinator;
use tabbify_log::RateLimited;
use tabbify_membership::RemoteConfig;
use tabbify_mesh::Relay;
use tabbify_node::BindError;
use tabbify_process::connect::UnixSocket;
use tabbify_process::{Clock, Importance, SystemClock, Tasks, env};
use tabbify_supervisor::{FileLogs, FileVolumes, Supervisor, probe_capabilities};
use tabbify_types::event::v1::Capability;
use tabbify_types::{Digest, HostName, Segment, SegmentGlob, VerifyingKeyBytes};

use crate::authorize::{Tokens, host_scope, read_node_scope};
use crate::coordinator::{Record, Served};
use crate::data_dir::DataDir;
use crate::listen::{self, Taken};
use crate::log_settings::Settings;
use crate::member::{self, Beginning, Member, Secrets};
use crate::over_mesh;
use crate::read_node;
use crate::relay::{self, Bound};
use crate::substrate::{COORDINATOR_SOCKET, Engine, Substrate};
use crate::way::Way;
use crate::{api_gateway, coordinator, gateway, supervisord};

/// What this machine is for others of the mesh.
const ROLES: [&str; 7] = [
    "transaction-node",
    "read-node",
    "api-gateway",
    "auth",
    "coordinator",
    "registry",
    "node",
];

/// What the configuration says.
#[derive(Debug)]
pub(crate) struct Told {
    /// Where the node listens.
    pub(crate) listen: SocketAddr,
    /// The program that runs an instance.
    pub(crate) runner: PathBuf,
    /// The log.
    pub(crate) log: Settings,
    /// The coordinator.
    pub(crate) coordinator: coordinator::Settings,
    /// The relay.
    pub(crate) relay: relay::Section,
    /// The mesh.
    pub(crate) mesh: member::Section,
    /// The gateway for people's devices.
    pub(crate) gateway: gateway::Section,
    /// The vault.
    pub(crate) vault: api_gateway::Section,
    /// What microVMs are made of.
    pub(crate) microvms: MicroVms,
}

impl Told {
    /// What this machine has been seen to run.
    async fn capabilities(&self) -> Vec<Capability> {
        let engine = env::read(env::DOCKER_HOST);
        probe_capabilities(&self.runner, engine.as_deref(), Some(&self.microvms)).await
    }

    /// Where WireGuard sockets bind: as it is said, else where the coordinator is reached, else on
    /// loopback, for nobody else comes.
    fn mesh(&self) -> member::Section {
        let beside = self
            .coordinator
            .listen
            .map(|at| SocketAddr::new(at.ip(), 0));
        member::Section {
            underlay: self.mesh.underlay.or(beside),
            ..self.mesh
        }
    }
}

/// The running roles.
#[derive(Debug)]
pub(crate) struct Platform {
    substrate: Substrate,
    /// Where the node listens.
    pub(crate) listen: SocketAddr,
    /// What this machine can run.
    pub(crate) capabilities: Vec<Capability>,
    auth: Auth,
    _supervisor: Supervisor,
    _relay: Option<Relay>,
}

/// The services of the substrate, which are served over the mesh too.
struct Services {
    log: tabbify_log::Service,
    read: tabbify_read::Service,
    auth: tabbify_auth::Service,
    vault: tabbify_gateway::Service,
    tokens: Tokens,
}

impl Platform {
    /// Starts every role.
    pub(crate) async fn start(data: &DataDir, told: &Told, tasks: &Tasks) -> anyhow::Result<Self> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let host: HostName = "local".parse()?;
        let keys = Keys::open(&data.keys())?;
        let substrate = Substrate::open(data, &told.log, &keys.root, &clock, tasks).await?;
        let log = &substrate.log;
        let auth = start_auth(data, &keys, log, &clock, tasks).await?;
        let services = serve_here(data, told, &substrate, &auth, &clock, tasks).await?;

        let secrets = Secrets::load_or_create(data)?;
        let capabilities = told.capabilities().await;
        let relay = told.relay.bind(&data.relay_key()).await?;
        let this = tabbify_coordinator::Config {
            host: host.clone(),
            key: secrets.key(),
            tags: ROLES.map(|role| format!("{ROLE_TAG}{role}")).to_vec(),
            capabilities: capabilities.clone(),
            memory: tabbify_process::memory_total(),
        };
        let ground = Ground {
            data,
            told,
            root: keys.root.public(),
            clock: &clock,
            tasks,
        };
        let (coordinator, pin) = ground.coordinate(&this, relay.as_ref(), log, &auth).await?;
        let resolver = coordinator.resolver(this.key);
        let member = ground.become_member(secrets, &coordinator, pin).await?;
        let store = objects(data)?;
        serve_members(&member, services, &store, tasks)?;
        let relay = relay
            .map(|bound| bound.start(resolver, tasks))
            .transpose()?;

        let supervised =
            supervisord::supervised(data, &host, &told.runner, &told.microvms, &member);
        let mine = log.client(host_scope(&host));
        told.gateway
            .start(data, &coordinator, &member, tasks)
            .await?;
        let leases: Arc<dyn Leases> = Arc::new(coordinator);
        let supervisor =
            Supervisor::start(supervised, mine, leases, Arc::clone(&clock), tasks).await?;
        let logs = FileLogs::new(data.path());
        let volumes = FileVolumes::new(host.clone(), data.path());
        over_mesh::machine(member.mesh(), logs.clone(), volumes.clone(), tasks)?;
        over_mesh::doorbell(&member, supervisor.doorbell(), tasks)?;
        let deps = tabbify_node::Deps {
            log: log.client(node_scope()),
            writers: Arc::new(Callers(Arc::clone(&substrate.limited))),
            authority: Arc::new(auth.clone()),
            tokens: Arc::new(auth.checker()),
            dial: Arc::new(member.mesh().clone()),
            store,
            vault: api_gateway::of_node(data, tasks),
            host: host.clone(),
            logs: Arc::new(logs.clone()),
            volumes: Arc::new(volumes),
            clock,
            tasks: tasks.clone(),
        };
        let listen = serve(deps, told.listen, data, tasks).await?;
        Ok(Self {
            substrate,
            listen,
            capabilities,
            auth,
            _supervisor: supervisor,
            _relay: relay,
        })
    }

    /// Closes the log and signs its end.
    pub(crate) async fn close(&self) {
        self.substrate.close().await;
    }

    /// Signs `tcli` of the same user in; gives the file that says so.
    pub(crate) fn sign_in(&self, data: &DataDir, server: &str) -> anyhow::Result<Option<PathBuf>> {
        crate::contexts::sign_in(Context {
            server: server.to_owned(),
            platform: self.auth.platform().0.parse()?,
            owner_key: data.keys().join(tabbify_auth::keys::OWNER_FILE),
            subject: OWNER.to_owned(),
        })
    }
}

/// Where artifacts are. A version that was published survives loss of power.
fn objects(data: &DataDir) -> anyhow::Result<Arc<dyn ObjectStore>> {
    let store = LocalFileSystem::new_with_prefix(data.objects())?;
    Ok(Arc::new(store.with_fsync(true)))
}

/// Makes the first events where there are none, and starts the issuer.
async fn start_auth(
    data: &DataDir,
    keys: &Keys,
    log: &Engine,
    clock: &Arc<dyn Clock>,
    tasks: &Tasks,
) -> anyhow::Result<Auth> {
    let log = log.client(Auth::log_scope());
    tabbify_auth::bootstrap(log.as_ref(), keys).await?;
    let config = tabbify_auth::Config {
        snapshots: Some(data.snapshots()),
        ..tabbify_auth::Config::of(keys)
    };
    Ok(Auth::open(log, config, Arc::clone(clock), tasks).await?)
}

/// Serves the substrate to the processes of this machine.
async fn serve_here(
    data: &DataDir,
    told: &Told,
    substrate: &Substrate,
    auth: &Auth,
    clock: &Arc<dyn Clock>,
    tasks: &Tasks,
) -> anyhow::Result<Services> {
    let vault = told.vault.start(data, substrate, auth, clock, tasks);
    let vault = vault.await?;
    let tokens = Tokens::new(auth.checker());
    let auth = crate::auth::serve(data, auth.clone(), tasks)?;
    let log = substrate.serve(data, Arc::new(tokens.clone()), tasks)?;
    let everything = substrate.log.client(read_node_scope());
    let model = read_node::start(data, everything, clock, tasks).await?;
    let read = read_node::serve(data, model, tokens.clone(), tasks)?;
    Ok(Services {
        log,
        read,
        auth,
        vault,
        tokens,
    })
}

/// Serves the substrate and the artifacts to other machines and to instances.
fn serve_members(
    member: &Member,
    services: Services,
    store: &Arc<dyn ObjectStore>,
    tasks: &Tasks,
) -> anyhow::Result<()> {
    let (mesh, tokens) = (member.mesh(), &services.tokens);
    over_mesh::log(mesh, services.log, tokens, tasks)?;
    over_mesh::read_model(mesh, services.read, tokens, tasks)?;
    over_mesh::auth(mesh, services.auth, tasks)?;
    over_mesh::vault(mesh, services.vault, tasks)?;
    let limits = tabbify_registry::Limits::default();
    let artifacts = tabbify_registry::Service::new(Arc::clone(store), &limits, tasks);
    let port = over_mesh::Port::open(mesh, ARTIFACTS_PORT)?;
    tasks.spawn(
        "artifacts over the mesh",
        Importance::Essential,
        async move {
            artifacts.serve(port).await;
        },
    );
    Ok(())
}

/// What everything here stands on.
struct Ground<'a> {
    data: &'a DataDir,
    told: &'a Told,
    root: VerifyingKeyBytes,
    clock: &'a Arc<dyn Clock>,
    tasks: &'a Tasks,
}

impl Ground<'_> {
    /// Starts the coordinator, makes this machine a member and lets others come; gives what the
    /// coordinator's TLS key is pinned by, too.
    async fn coordinate(
        &self,
        this: &tabbify_coordinator::Config,
        relay: Option<&Bound>,
        log: &Engine,
        auth: &Auth,
    ) -> anyhow::Result<(Coordinator, Digest)> {
        let (data, tasks, told) = (self.data, self.tasks, &self.told.coordinator);
        let relays = relay.map(Bound::at).transpose()?;
        let options = told.options(auth, relays.into_iter().collect());
        let options = options.snapshots(data.snapshots());
        let mine = log.client(Coordinator::log_scope());
        let clock = Arc::clone(self.clock);
        let coordinator = Coordinator::start(this, mine, options, clock, tasks).await?;
        let served = Served::new(data, coordinator.clone(), auth.clone(), tasks)?;
        served.on_socket(data, tasks)?;
        match told.listen {
            Some(listen) => drop(served.on_tcp(data, listen, tasks).await?),
            None => Record::default().write(data)?,
        }
        Ok((coordinator, served.tls.pin()))
    }

    /// Makes this process the machine's end of the mesh: the coordinator says which address it has, for
    /// another machine may have been first.
    async fn become_member(
        &self,
        secrets: Secrets,
        coordinator: &Coordinator,
        pin: Digest,
    ) -> anyhow::Result<Member> {
        let (data, clock, tasks) = (self.data, self.clock, self.tasks);
        let way = Way::Local(UnixSocket {
            directory: data.path().to_path_buf(),
            name: COORDINATOR_SOCKET.to_owned(),
        });
        let config = RemoteConfig {
            root: self.root,
            issuers: coordinator.issuers()?,
            outage_grace: tabbify_coordinator::OUTAGE_GRACE,
        };
        let membership = Member::asked(&way, pin, config, &secrets, clock, tasks).await?;
        let beginning = Beginning {
            way,
            pin,
            membership,
            is_kept: false,
            resolver: Some(coordinator.resolver(secrets.key())),
        };
        Member::start(data, beginning, secrets, &self.told.mesh(), clock, tasks).await
    }
}

/// Binds the node and serves; gives the address it got.
async fn serve(
    deps: tabbify_node::Deps,
    listen: SocketAddr,
    data: &DataDir,
    tasks: &Tasks,
) -> anyhow::Result<SocketAddr> {
    let config = tabbify_node::Config {
        listen: vec![listen],
        snapshots: Some(data.snapshots()),
        ..tabbify_node::Config::default()
    };
    let server = match tabbify_node::Server::bind(config, deps).await {
        Err(BindError::Bind { source, .. }) if source.kind() == ErrorKind::AddrInUse => {
            return Err(listen::taken(Taken::node(listen)));
        }
        bound => bound?,
    };
    let addr = server.addr();
    let shutdown = tasks.token();
    tasks.spawn("node", Importance::Essential, async move {
        server.run(shutdown).await
    });
    Ok(addr)
}

/// Reads what became of what people asked for, and which machines there are; writes nothing in its own name.
fn node_scope() -> LogScope {
    LogScope {
        actor: "service:node".to_owned(),
        write: Vec::new(),
        read: vec![
            SegmentGlob::all_apps(),
            SegmentGlob::from(&Segment::peers()),
            SegmentGlob::from(&Segment::supervisors()),
        ],
    }
}

/// What people ask the node for is written in their name, in their tenant's segment, and where
/// addresses are claimed; they read what happens in their tenant.
#[derive(Debug)]
struct Callers(Arc<RateLimited>);

impl LogAccess for Callers {
    fn of(&self, caller: &Identity) -> Arc<dyn EventLog> {
        let apps = SegmentGlob::from(&Segment::apps(&caller.tenant));
        let everything = SegmentGlob::of_tenant(&caller.tenant);
        self.0.client(LogScope {
            actor: caller.subject.clone(),
            write: vec![apps, SegmentGlob::from(&Segment::peers())],
            read: vec![everything],
        })
    }
}
