//! A small vocabulary for the stories in this binary: a log, apps and machines that do well.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tabbify_api::log::{Append, Delivery, EventLog, Filter, LogScope};
use tabbify_api::mesh::{Lease, Leases};
use tabbify_coordinator::{Config, Coordinator, MeshSecret, Options};
use tabbify_log::Log;
use tabbify_process::{Clock, ManualClock, SystemClock, Tasks};
use tabbify_token::{DocumentType, PlatformId, PublicKey, SecretKey, Signer, Verifier};
use tabbify_types::event::Event;
use tabbify_types::event::v1::{
    Access, AppHealthy, AppPlaced, AppRegistered, AppStarted, AppStarting, Capability,
    DeployOutcome, DeployRequested, InstanceRef, Placement, RunConfig, RuntimeKind,
    VersionPublished,
};
use tabbify_types::{
    AppId, AppUla, ByteSize, DeployId, Digest, HostName, InstanceUla, MeshKey, NewEvent, Position,
    Recorded, Segment, SegmentGlob, Tenant, Timestamp, VersionNumber,
};

pub(crate) type Fallible<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Longer than any wait here can take on a machine that works.
pub(crate) const WATCHDOG: Duration = Duration::from_secs(30);
pub(crate) const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

pub(crate) fn open(dir: &Path) -> Fallible<(Log, Arc<dyn EventLog>)> {
    let options =
        tabbify_log::Options::new(Arc::new(SystemClock)).extent_lens(64 * 1024, 64 * 1024);
    let log = Log::open(dir, options)?;
    let all = vec![SegmentGlob::all()];
    let scope = LogScope {
        actor: "test".to_owned(),
        write: all.clone(),
        read: all,
    };
    let client = log.client(scope);
    Ok((log, client))
}

pub(crate) fn config(host: &str) -> Fallible<Config> {
    let works = |runtime: &str, works| Capability {
        runtime: runtime.to_owned(),
        works,
        detail: String::new(),
    };
    Ok(Config {
        host: host.parse()?,
        key: MeshKey(Digest::of(host.as_bytes()).0),
        tags: Vec::new(),
        capabilities: vec![works("wasm-http", true), works("docker", false)],
        memory: None,
    })
}

pub(crate) fn signer() -> Signer {
    let root = SecretKey::from_seed(&[1; 32]);
    Signer::new(
        SecretKey::from_seed(&[2; 32]),
        PlatformId::of(&root.public()),
    )
}

/// A coordinator with its own scope and no more.
pub(crate) async fn start(host: &str, log: &Log, tasks: &Tasks) -> Fallible<Coordinator> {
    start_with(&config(host)?, log, tasks).await
}

pub(crate) async fn start_with(config: &Config, log: &Log, tasks: &Tasks) -> Fallible<Coordinator> {
    let clock: Arc<dyn Clock> = Arc::new(ManualClock::at(NOW));
    let client = log.client(Coordinator::log_scope());
    let options = Options::new(Arc::new(signer));
    Ok(Coordinator::start(config, client, options, clock, tasks).await?)
}

pub(crate) async fn append(
    log: &dyn EventLog,
    segment: Segment,
    app: AppId,
    event: Event,
) -> Fallible<()> {
    log.append(Append::of(vec![NewEvent::new(segment, app, &event)?]))
        .await?;
    Ok(())
}

pub(crate) async fn history(log: &dyn EventLog) -> Fallible<Vec<Arc<Recorded>>> {
    Ok(log
        .read(Filter::default(), Position(0), 10_000)
        .await?
        .events)
}

/// The first event, from the beginning of the log on, of which `pick` makes something.
pub(crate) async fn wait_for<T>(
    log: &dyn EventLog,
    what: &str,
    mut pick: impl FnMut(&Recorded, Event) -> Option<T>,
) -> Fallible<T> {
    let mut events = log.subscribe(Filter::default(), Position(0))?;
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

pub(crate) async fn placed(log: &dyn EventLog, deploy: DeployId) -> Fallible<AppPlaced> {
    wait_for(log, "app_placed", |recorded, event| match event {
        Event::AppPlaced(it) if it.deploy == deploy => {
            (recorded.segment == Segment::host(&it.host)).then_some(it)
        }
        _ => None,
    })
    .await
}

pub(crate) async fn finished(log: &dyn EventLog, deploy: DeployId) -> Fallible<DeployOutcome> {
    wait_for(log, "deploy_finished", |_, event| match event {
        Event::DeployFinished(it) if it.deploy == deploy => Some(it.outcome),
        _ => None,
    })
    .await
}

/// Registers an app with one version.
pub(crate) async fn register(log: &dyn EventLog, name: &str) -> Fallible<AppId> {
    register_in(log, &Tenant::main(), name).await
}

/// The same in another tenant.
pub(crate) async fn register_in(
    log: &dyn EventLog,
    tenant: &Tenant,
    name: &str,
) -> Fallible<AppId> {
    let app = AppId::mint();
    let apps = Segment::apps(tenant);
    let (name, address) = (name.parse()?, AppUla::derive(app));
    let registered = AppRegistered {
        app,
        tenant: tenant.clone(),
        name,
        address,
    };
    append(log, apps.clone(), app, registered.into()).await?;
    let version = published(app, VersionNumber(1), Placement::default());
    append(log, apps, app, version.into()).await?;
    Ok(app)
}

/// Publishes another version of the first tenant's app.
pub(crate) async fn publish(
    log: &dyn EventLog,
    app: AppId,
    version: VersionNumber,
    placement: Placement,
) -> Fallible<()> {
    let version = published(app, version, placement);
    append(log, Segment::apps(&Tenant::main()), app, version.into()).await
}

fn published(app: AppId, version: VersionNumber, placement: Placement) -> VersionPublished {
    VersionPublished {
        app,
        version,
        artifact: Digest::of(b"artifact"),
        config: Digest::of(b"config"),
        access: Access::Private,
        run: RunConfig {
            runtime: RuntimeKind::WasmHttp,
            entry: "app.wasm".to_owned(),
            memory: ByteSize::mib(64),
            env: BTreeMap::new(),
            stop_timeout_ms: 1000,
            healthy_within_ms: 1000,
            image: None,
            secrets: BTreeMap::new(),
            egress: Vec::new(),
            idle_after_ms: None,
            volume: None,
            ports: Vec::new(),
        },
        secrets: Vec::new(),
        placement,
        further: Vec::new(),
    }
}

pub(crate) async fn deploy(log: &dyn EventLog, app: AppId) -> Fallible<DeployId> {
    deploy_in(log, &Tenant::main(), app).await
}

/// The same in another tenant.
pub(crate) async fn deploy_in(
    log: &dyn EventLog,
    tenant: &Tenant,
    app: AppId,
) -> Fallible<DeployId> {
    request(log, tenant, app, VersionNumber(1)).await
}

/// Wants another version of the first tenant's app in service.
pub(crate) async fn deploy_version(
    log: &dyn EventLog,
    app: AppId,
    version: VersionNumber,
) -> Fallible<DeployId> {
    request(log, &Tenant::main(), app, version).await
}

async fn request(
    log: &dyn EventLog,
    tenant: &Tenant,
    app: AppId,
    version: VersionNumber,
) -> Fallible<DeployId> {
    let deploy = DeployId::mint();
    let requested = DeployRequested {
        app,
        deploy,
        version,
    };
    append(log, Segment::apps(tenant), app, requested.into()).await?;
    Ok(deploy)
}

/// The WireGuard key that an instance makes here.
pub(crate) fn secret_of(of: InstanceRef) -> MeshSecret {
    MeshSecret::from_bytes(&Digest::of(format!("{} {}", of.app, of.instance).as_bytes()).0)
}

pub(crate) fn key_of(of: InstanceRef) -> MeshKey {
    secret_of(of).public()
}

/// What a supervisor reports about an instance that does well.
pub(crate) async fn reports(log: &dyn EventLog, host: &HostName, of: InstanceRef) -> Fallible<()> {
    let segment = Segment::host_reports(host);
    let started = AppStarted {
        of,
        app_ula: AppUla::derive(of.app),
        instance_ula: InstanceUla::derive(of.app, of.instance),
        key: key_of(of),
        secrets: BTreeMap::new(),
    };
    append(log, segment.clone(), of.app, AppStarting { of }.into()).await?;
    append(log, segment.clone(), of.app, started.into()).await?;
    append(log, segment, of.app, AppHealthy { of }.into()).await
}

/// Deploys the app and plays its machine until the new instance serves.
pub(crate) async fn serve(
    log: &dyn EventLog,
    coordinator: &Coordinator,
    app: AppId,
    candidates: &[SocketAddr],
) -> Fallible<(AppPlaced, InstanceRef)> {
    let id = deploy(log, app).await?;
    let it = placed(log, id).await?;
    let of = InstanceRef {
        app,
        instance: it.instance,
    };
    if !candidates.is_empty() {
        coordinator.report_candidates(key_of(of), candidates.to_vec());
    }
    reports(log, &it.host, of).await?;
    assert_eq!(finished(log, id).await?, DeployOutcome::Succeeded);
    Ok((it, of))
}

pub(crate) fn read_lease(signed: &str) -> Fallible<Lease> {
    let key = PublicKey::try_from(signer().public())?;
    let verifier = Verifier::new(signer().platform().clone()).with_key(key);
    Ok(verifier.verify_document(DocumentType::Lease, signed)?)
}

/// Asks until it is well, or the watchdog barks.
pub(crate) async fn eventually<T, E, F>(mut ask: impl FnMut() -> F) -> Fallible<T>
where
    F: Future<Output = Result<T, E>>,
{
    let asking = async {
        loop {
            if let Ok(answer) = ask().await {
                return answer;
            }
            tokio::task::yield_now().await;
        }
    };
    Ok(tokio::time::timeout(WATCHDOG, asking).await?)
}

/// What a lease says, whoever signed it.
pub(crate) fn payload(signed: &str) -> Fallible<Lease> {
    use base64::Engine as _;
    let payload = signed.split('.').nth(1).ok_or("no payload")?;
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(payload)?;
    Ok(serde_json::from_slice(&bytes)?)
}
