//! A platform in a directory: log, auth, a coordinator that serves over TLS, and machines that join it.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tabbify_api::auth::Authority as _;
use tabbify_api::auth::issue::{API_AUDIENCE, Caller, Issuer as _, TokenOrder};
use tabbify_api::auth::scope;
use tabbify_api::coordinator::{Ask, Spawn, SpawnTicket};
use tabbify_api::log::EventLog;
use tabbify_api::mesh::{Leases as _, PeerRecord, ResolveError, Resolver as _};
use tabbify_auth::{Auth, Keys, OWNER, bootstrap};
use tabbify_coordinator::{
    ByIssuer, Config, Coordinator, Door, JoinFailed, LOST_AFTER, Limits, Membership, MeshSecret,
    OUTAGE_GRACE, Options, RemoteConfig, RemoteCoordinator, Service, TlsKey, join_platform,
};
use tabbify_log::Log;
use tabbify_process::connect::{Connect, TcpSocket};
use tabbify_process::{Clock, Importance, ManualClock, Tasks};
use tabbify_token::{DocumentType, OwnerProof, PlatformId, SecretKey, Signer};
use tabbify_types::event::v1::{AppPlaced, Capability, DeployOutcome, InstanceRef};
use tabbify_types::{AppId, AppUla, Digest, EventId, MeshKey, Tenant, Timestamp};
use tokio::net::TcpListener;

use crate::support::{
    Fallible, NOW, WATCHDOG, deploy_in, eventually, finished, key_of, open, placed, register_in,
    reports, secret_of,
};

/// One platform, started; its coordinator answers at an address.
pub(crate) struct Platform {
    pub(crate) log: Log,
    pub(crate) client: Arc<dyn EventLog>,
    pub(crate) keys: Keys,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) tasks: Tasks,
    pub(crate) auth: Auth,
    pub(crate) coordinator: Coordinator,
    pub(crate) tls: TlsKey,
    pub(crate) address: SocketAddr,
    _dir: tempfile::TempDir,
}

/// A machine that has joined.
pub(crate) struct Member {
    pub(crate) secret: MeshSecret,
    pub(crate) signing: SecretKey,
    pub(crate) membership: Membership,
}

/// How a machine is invited.
#[derive(Clone)]
pub(crate) struct Invitation {
    pub(crate) host: String,
    pub(crate) tenant: Tenant,
    pub(crate) tags: Vec<String>,
}

impl Invitation {
    /// Of a machine for apps of every tenant.
    pub(crate) fn of(host: &str) -> Self {
        Self {
            host: host.to_owned(),
            tenant: Tenant::system(),
            tags: Vec::new(),
        }
    }

    pub(crate) fn tagged(mut self, tag: &str) -> Self {
        self.tags.push(tag.to_owned());
        self
    }
}

/// The key of a machine by its name.
pub(crate) fn secret_named(name: &str) -> MeshSecret {
    MeshSecret::from_bytes(&Digest::of(name.as_bytes()).0)
}

pub(crate) fn works(runtime: &str) -> Capability {
    Capability {
        runtime: runtime.to_owned(),
        works: true,
        detail: String::new(),
    }
}

/// The machine that the coordinator runs on: it runs no apps here.
fn core(name: &str) -> Fallible<Config> {
    Ok(Config {
        host: name.parse()?,
        key: secret_named(name).public(),
        tags: vec!["role:auth".to_owned()],
        capabilities: Vec::new(),
        memory: None,
    })
}

/// A coordinator of `name`'s machine, with a clock of its own, on the platform's log.
pub(crate) async fn coordinator(
    name: &str,
    log: Arc<dyn EventLog>,
    auth: &Auth,
    clock: Arc<dyn Clock>,
    snapshots: Option<&Path>,
    tasks: &Tasks,
) -> Fallible<Coordinator> {
    let mut options = signed_by(auth);
    if let Some(dir) = snapshots {
        options = options.snapshots(dir.to_owned());
    }
    Ok(Coordinator::start(&core(name)?, log, options, clock, tasks).await?)
}

fn signed_by(auth: &Auth) -> Options {
    let auth = auth.clone();
    Options::new(Arc::new(move || auth.signer()))
}

impl Platform {
    pub(crate) async fn start() -> Fallible<Self> {
        Self::with(&Limits::default()).await
    }

    pub(crate) async fn with(limits: &Limits) -> Fallible<Self> {
        Self::begin(limits, LOST_AFTER).await
    }

    /// One whose machines are lost after so long a silence.
    pub(crate) async fn impatient(lost_after: Duration) -> Fallible<Self> {
        Self::begin(&Limits::default(), lost_after).await
    }

    async fn begin(limits: &Limits, lost_after: Duration) -> Fallible<Self> {
        let dir = tempfile::tempdir()?;
        let (log, client) = open(&dir.path().join("log"))?;
        let keys = Keys::open(&dir.path().join("keys"))?;
        let auths = log.client(Auth::log_scope());
        bootstrap(&*auths, &keys).await?;
        let clock = Arc::new(ManualClock::at(NOW));
        let shared: Arc<dyn Clock> = Arc::<ManualClock>::clone(&clock);
        let tasks = Tasks::new();
        let auth = Auth::start(auths, &keys, Arc::clone(&shared), &tasks).await?;
        let mine = log.client(Coordinator::log_scope());
        let options = signed_by(&auth).lost_after(lost_after);
        let coordinator = Coordinator::start(&core("core")?, mine, options, shared, &tasks).await?;
        let tls = TlsKey::load_or_create(&dir.path().join("coordinator.key"))?;
        let address = serve(&coordinator, &auth, &tls, limits, &tasks).await?;
        Ok(Self {
            log,
            client,
            keys,
            clock,
            tasks,
            auth,
            coordinator,
            tls,
            address,
            _dir: dir,
        })
    }

    pub(crate) async fn stop(self) {
        assert!(self.tasks.shutdown(WATCHDOG).await);
        assert_eq!(self.tasks.failure(), None);
        self.log.close().await;
    }

    pub(crate) fn clock(&self) -> Arc<dyn Clock> {
        Arc::<ManualClock>::clone(&self.clock)
    }

    pub(crate) fn root(&self) -> PlatformId {
        PlatformId::of(&self.keys.root.public())
    }

    pub(crate) fn connect(&self) -> Arc<dyn Connect> {
        let address = self.address;
        Arc::new(TcpSocket { address })
    }

    pub(crate) fn door(&self, secret: &MeshSecret) -> Fallible<Door> {
        Ok(Door::new(self.connect(), self.tls.pin(), secret.clone())?)
    }

    /// A token of the owner's.
    pub(crate) async fn owner(&self) -> Fallible<String> {
        let jti = EventId::mint().to_string();
        let proof = OwnerProof::new(self.root(), OWNER, &jti, self.clock.now());
        let proof = proof.sign(&self.keys.owner)?;
        Ok(self.auth.exchange(&proof).await?.token)
    }

    /// A join token.
    pub(crate) async fn invite(&self, invitation: &Invitation) -> Fallible<String> {
        let order = TokenOrder::Join {
            host: invitation.host.parse()?,
            tenant: Some(invitation.tenant.clone()),
            tags: invitation.tags.clone(),
            capabilities: vec!["wasm-http".to_owned()],
            coordinator: self.tls.pin().to_string(),
            life_s: None,
        };
        let owner = self.owner().await?;
        let issued = self.auth.issue(Caller::bearer(&owner), order).await?;
        Ok(issued.token)
    }

    /// Shows a token, as a machine with this key.
    pub(crate) async fn show(
        &self,
        token: &str,
        secret: &MeshSecret,
        clock: &dyn Clock,
    ) -> Result<Membership, JoinFailed> {
        let signing = signing_of(secret);
        let (secret, seen) = (secret.clone(), vec![works("wasm-http"), works("docker")]);
        let connect = self.connect();
        join_platform(connect, token, secret, &signing, seen, clock, &self.tasks).await
    }

    /// Invites a machine and lets it join.
    pub(crate) async fn join(&self, invitation: &Invitation) -> Fallible<Member> {
        let token = self.invite(invitation).await?;
        let secret = secret_named(&invitation.host);
        let membership = self.show(&token, &secret, &*self.clock).await?;
        Ok(Member {
            signing: signing_of(&secret),
            secret,
            membership,
        })
    }

    /// The coordinator as whoever has this key sees it.
    pub(crate) fn remote(&self, secret: &MeshSecret, tasks: &Tasks) -> Fallible<RemoteCoordinator> {
        self.remote_with(vec![self.door(secret)?], self.clock(), tasks)
    }

    pub(crate) fn remote_with(
        &self,
        doors: Vec<Door>,
        clock: Arc<dyn Clock>,
        tasks: &Tasks,
    ) -> Fallible<RemoteCoordinator> {
        let config = RemoteConfig {
            root: self.keys.root.public(),
            issuers: self.coordinator.issuers()?,
            outage_grace: OUTAGE_GRACE,
        };
        Ok(RemoteCoordinator::start(doors, config, clock, tasks)?)
    }

    /// Registers an app of a tenant and deploys it, up to where its machine knows.
    pub(crate) async fn place(&self, tenant: &Tenant, name: &str) -> Fallible<AppPlaced> {
        let app = register_in(&*self.client, tenant, name).await?;
        self.place_again(tenant, app).await
    }

    pub(crate) async fn place_again(&self, tenant: &Tenant, app: AppId) -> Fallible<AppPlaced> {
        let id = deploy_in(&*self.client, tenant, app).await?;
        placed(&*self.client, id).await
    }

    /// Plays the machine of a placed instance until it serves, and says where it is.
    pub(crate) async fn run(&self, placed: &AppPlaced) -> Fallible<InstanceRef> {
        let of = InstanceRef {
            app: placed.app,
            instance: placed.instance,
        };
        self.coordinator.report_candidates(key_of(of), vec![at(9)]);
        reports(&*self.client, &placed.host, of).await?;
        let outcome = finished(&*self.client, placed.deploy).await?;
        assert_eq!(outcome, DeployOutcome::Succeeded);
        // The event is in the log before the coordinator has read it back.
        let address = AppUla::derive(of.app).addr();
        eventually(|| async {
            let signed = self.coordinator.resolve(address).await.map_err(drop)?;
            let lease = crate::support::payload(&signed).map_err(drop)?;
            if lease.instance == of.instance {
                Ok(())
            } else {
                Err(())
            }
        })
        .await?;
        Ok(of)
    }

    /// An app of a tenant that serves.
    pub(crate) async fn app(&self, tenant: &Tenant, name: &str) -> Fallible<InstanceRef> {
        let placed = self.place(tenant, name).await?;
        self.run(&placed).await
    }
}

/// Where something may be reached.
pub(crate) fn at(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// A machine's signing key, by its WireGuard key.
pub(crate) fn signing_of(secret: &MeshSecret) -> SecretKey {
    SecretKey::from_seed(&Digest::of(&secret.public().0).0)
}

/// Serves a coordinator over TLS; gives the address.
pub(crate) async fn serve(
    coordinator: &Coordinator,
    auth: &Auth,
    tls: &TlsKey,
    limits: &Limits,
    tasks: &Tasks,
) -> Fallible<SocketAddr> {
    let token = auth
        .service_token("coordinator", &[scope::AUTH_ISSUE], API_AUDIENCE)
        .await?;
    let token = token.token;
    let admit = ByIssuer::new(Arc::new(auth.clone()), Arc::new(move || token.clone()));
    let service = Service::new(coordinator.clone(), Arc::new(admit), limits, tasks);
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let tls = tls.clone();
    tasks.spawn("coordinator service", Importance::Detached, async move {
        service.serve_tls(listener, tls).await;
    });
    Ok(address)
}

impl Member {
    /// What a machine gives an instance that it spawns.
    pub(crate) fn spawn(
        &self,
        platform: &Platform,
        of: InstanceRef,
        not_after: Timestamp,
    ) -> Fallible<Spawn> {
        let ticket = SpawnTicket {
            app: of.app,
            instance: of.instance,
            not_after,
        };
        let signer = Signer::new(self.signing.clone(), platform.root());
        Ok(Spawn {
            certificate: self.membership.signed.clone(),
            ticket: signer.sign_document(DocumentType::SpawnTicket, &ticket)?,
        })
    }
}

/// An instance asks who is at an address.
pub(crate) async fn asks(
    platform: &Platform,
    of: InstanceRef,
    address: std::net::Ipv6Addr,
) -> Fallible<Result<PeerRecord, ResolveError>> {
    let tasks = Tasks::new();
    let remote = platform.remote(&secret_of(of), &tasks)?;
    let answer = remote.by_address(address).await;
    tasks.shutdown(WATCHDOG).await;
    Ok(answer)
}

/// Whoever has this key asks who has another.
pub(crate) async fn asks_by_key(
    platform: &Platform,
    secret: &MeshSecret,
    key: MeshKey,
) -> Fallible<Result<tabbify_api::policy::Ports, ResolveError>> {
    let tasks = Tasks::new();
    let remote = platform.remote(secret, &tasks)?;
    let answer = remote.peer(Ask::Key(key)).await;
    tasks.shutdown(WATCHDOG).await;
    Ok(answer.map(|(_, ports)| ports))
}
