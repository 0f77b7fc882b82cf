//! The composition root: every role, built in the order in which they need each other.
//!
//! ```text
//! keys → checkpoints → log → bootstrap → auth → its service, log service, read model
//!      → coordinator → supervisor → mesh → node
//! ```
//!
//! Each role gets the log with a scope of its own: what it may read and write is said here, in one
//! place, and enforced by the log.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use object_store::local::LocalFileSystem;
use tabbify_api::auth::{Authority as _, Identity};
use tabbify_api::contexts::Context;
use tabbify_api::log::{EventLog, LogAccess, LogEngine as _, LogScope};
use tabbify_api::mesh::{Leases, PeerRecord};
use tabbify_api::policy::ROLE_TAG;
use tabbify_auth::{Auth, Keys, OWNER};
use tabbify_coordinator::Coordinator;
use tabbify_log::RateLimited;
use tabbify_mesh::{Mesh, PrivateKey};
use tabbify_node::BindError;
use tabbify_process::{Clock, Importance, SystemClock, Tasks};
use tabbify_supervisor::{FileLogs, Supervisor, probe_capabilities};
use tabbify_types::event::v1::Capability;
use tabbify_types::{HostName, HostUla, MeshKey, Segment, SegmentGlob};

use crate::authorize::{Tokens, host_scope, read_node_scope};
use crate::data_dir::DataDir;
use crate::leases::LeaseResolver;
use crate::log_settings::Settings;
use crate::read_node;
use crate::substrate::{Engine, Substrate};

/// The first network's number and this machine's in it, as the coordinator records them.
const HOST_ULA: HostUla = HostUla::new(1, 1);
/// What this machine is for others of the mesh.
const ROLES: [&str; 4] = ["transaction-node", "auth", "coordinator", "node"];
/// Where WireGuard sockets bind: loopback until a second machine joins (issue 3).
const UNDERLAY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

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
}

impl Platform {
    /// Starts every role.
    pub(crate) async fn start(
        data: &DataDir,
        listen: SocketAddr,
        runner: &Path,
        settings: &Settings,
        tasks: &Tasks,
    ) -> anyhow::Result<Self> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let host: HostName = "local".parse()?;
        let keys = Keys::open(&data.keys())?;
        let substrate = Substrate::open(data, settings, &keys.root, &clock, tasks).await?;
        let log = &substrate.log;
        let auth = start_auth(data, &keys, log, &clock, tasks).await?;
        crate::auth::serve(data, auth.clone(), tasks)?;
        let tokens = Tokens(Arc::new(auth.checker()));
        substrate.serve(data, Arc::new(tokens.clone()), tasks)?;
        let everything = log.client(read_node_scope());
        let model = read_node::start(data, everything, &clock, tasks).await?;
        read_node::serve(data, model, tokens, tasks)?;

        let node_key = PrivateKey::load_or_create(&data.node_key())?;
        let supervised = supervisor_config(data, &host, runner, node_key.public());
        let capabilities = probe_capabilities(&supervised).await;
        let member = tabbify_coordinator::Config {
            host: host.clone(),
            key: node_key.public(),
            tags: ROLES.map(|role| format!("{ROLE_TAG}{role}")).to_vec(),
            capabilities: capabilities.clone(),
        };
        let (mine, signs) = (log.client(Coordinator::log_scope()), auth.clone());
        let options = tabbify_coordinator::Options::new(Arc::new(move || signs.signer()));
        let options = options.snapshots(data.snapshots());
        let coordinator =
            Coordinator::start(&member, mine, options, Arc::clone(&clock), tasks).await?;
        let leases: Arc<dyn Leases> = Arc::new(coordinator);

        let (mine, known) = (log.client(host_scope(&host)), Arc::clone(&leases));
        let supervisor =
            Supervisor::start(supervised, mine, known, Arc::clone(&clock), tasks).await?;

        let resolver = LeaseResolver {
            leases,
            auth: auth.clone(),
            clock: Arc::clone(&clock),
        };
        let mesh = tabbify_mesh::Config::new(node_key, vec![HOST_ULA.addr()], UNDERLAY);
        let mesh = Mesh::bind(mesh, Arc::new(resolver), tasks)?;
        let deps = tabbify_node::Deps {
            log: log.client(node_scope()),
            writers: Arc::new(Callers(Arc::clone(&substrate.limited))),
            authority: Arc::new(auth.clone()),
            tokens: Arc::new(auth.checker()),
            dial: Arc::new(mesh),
            // A version that was published survives loss of power.
            store: Arc::new(LocalFileSystem::new_with_prefix(data.objects())?.with_fsync(true)),
            logs: Arc::new(FileLogs::new(data.path())),
            clock,
            tasks: tasks.clone(),
        };
        let listen = serve(deps, listen, data, tasks).await?;
        Ok(Self {
            substrate,
            listen,
            capabilities,
            auth,
            _supervisor: supervisor,
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

fn supervisor_config(
    data: &DataDir,
    host: &HostName,
    runner: &Path,
    node: MeshKey,
) -> tabbify_supervisor::Config {
    let node = PeerRecord {
        key: node,
        addresses: vec![HOST_ULA.addr()],
        endpoints: Vec::new(),
    };
    tabbify_supervisor::Config {
        host: host.clone(),
        data_dir: data.path().to_path_buf(),
        runner: runner.to_path_buf(),
        store: data.store_url(),
        underlay: UNDERLAY,
        peers: vec![node],
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
            return Err(crate::listen::taken(listen));
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

/// Reads what became of what people asked for; writes nothing in its own name.
fn node_scope() -> LogScope {
    LogScope {
        actor: "service:node".to_owned(),
        write: Vec::new(),
        read: vec![SegmentGlob::all_apps()],
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
