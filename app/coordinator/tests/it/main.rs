//! The coordinator on the real log: start, deploy, leases; crashes and a second coordinator.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tabbify_api::log::{Append, Delivery, EventLog, Filter, LogScope};
use tabbify_api::mesh::{Lease, Leases, ResolveError};
use tabbify_coordinator::{Config, Coordinator};
use tabbify_log::{Log, Options};
use tabbify_process::{Clock, ManualClock, SystemClock, Tasks};
use tabbify_token::{DocumentType, PlatformId, PublicKey, SecretKey, Signer, Verifier};
use tabbify_types::event::Event;
use tabbify_types::event::v1::{
    Access, AppHealthy, AppPlaced, AppRegistered, AppStarted, AppStarting, AppStopped, Capability,
    DeployOutcome, DeployRequested, InstanceRef, RunConfig, RuntimeKind, VersionPublished,
};
use tabbify_types::{
    AppId, AppUla, ByteSize, DeployId, Digest, HostName, HostUla, InstanceId, InstanceUla, MeshKey,
    NewEvent, Position, Recorded, Segment, SegmentGlob, Tenant, Timestamp, VersionNumber,
};

type Fallible<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Longer than any wait here can take on a machine that works.
const WATCHDOG: Duration = Duration::from_secs(30);
const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

fn open(dir: &Path) -> Fallible<(Log, Arc<dyn EventLog>)> {
    let options = Options::new(Arc::new(SystemClock)).extent_lens(64 * 1024, 64 * 1024);
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

fn config(host: &str) -> Fallible<Config> {
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
    })
}

fn signer() -> Signer {
    let root = SecretKey::from_seed(&[1; 32]);
    Signer::new(
        SecretKey::from_seed(&[2; 32]),
        PlatformId::of(&root.public()),
    )
}

/// A coordinator with its own scope and no more.
async fn start(host: &str, log: &Log, tasks: &Tasks) -> Fallible<Coordinator> {
    start_with(&config(host)?, log, tasks).await
}

async fn start_with(config: &Config, log: &Log, tasks: &Tasks) -> Fallible<Coordinator> {
    let clock: Arc<dyn Clock> = Arc::new(ManualClock::at(NOW));
    let client = log.client(Coordinator::log_scope());
    Ok(Coordinator::start(config, client, signer(), clock, tasks).await?)
}

async fn append(log: &dyn EventLog, segment: Segment, app: AppId, event: Event) -> Fallible<()> {
    log.append(Append::of(vec![NewEvent::new(segment, app, &event)?]))
        .await?;
    Ok(())
}

async fn history(log: &dyn EventLog) -> Fallible<Vec<Arc<Recorded>>> {
    Ok(log
        .read(Filter::default(), Position(0), 10_000)
        .await?
        .events)
}

/// The first event, from the beginning of the log on, of which `pick` makes something.
async fn wait_for<T>(
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

async fn placed(log: &dyn EventLog, deploy: DeployId) -> Fallible<AppPlaced> {
    wait_for(log, "app_placed", |recorded, event| match event {
        Event::AppPlaced(it) if it.deploy == deploy => {
            (recorded.segment == Segment::host(&it.host)).then_some(it)
        }
        _ => None,
    })
    .await
}

async fn finished(log: &dyn EventLog, deploy: DeployId) -> Fallible<DeployOutcome> {
    wait_for(log, "deploy_finished", |_, event| match event {
        Event::DeployFinished(it) if it.deploy == deploy => Some(it.outcome),
        _ => None,
    })
    .await
}

/// Registers an app with one version.
async fn register(log: &dyn EventLog, name: &str) -> Fallible<AppId> {
    let app = AppId::mint();
    let apps = Segment::apps(&Tenant::main());
    let (name, address) = (name.parse()?, AppUla::derive(app));
    let registered = AppRegistered {
        app,
        tenant: Tenant::main(),
        name,
        address,
    };
    append(log, apps.clone(), app, registered.into()).await?;
    let published = VersionPublished {
        app,
        version: VersionNumber(1),
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
        },
        secrets: Vec::new(),
    };
    append(log, apps, app, published.into()).await?;
    Ok(app)
}

async fn deploy(log: &dyn EventLog, app: AppId) -> Fallible<DeployId> {
    let deploy = DeployId::mint();
    let requested = DeployRequested {
        app,
        deploy,
        version: VersionNumber(1),
    };
    append(log, Segment::apps(&Tenant::main()), app, requested.into()).await?;
    Ok(deploy)
}

fn key_of(of: InstanceRef) -> MeshKey {
    MeshKey(Digest::of(format!("{} {}", of.app, of.instance).as_bytes()).0)
}

/// What a supervisor reports about an instance that does well.
async fn reports(log: &dyn EventLog, host: &HostName, of: InstanceRef) -> Fallible<()> {
    let segment = Segment::host_reports(host);
    let started = AppStarted {
        of,
        app_ula: AppUla::derive(of.app),
        instance_ula: InstanceUla::derive(of.app, of.instance),
        key: key_of(of),
    };
    append(log, segment.clone(), of.app, AppStarting { of }.into()).await?;
    append(log, segment.clone(), of.app, started.into()).await?;
    append(log, segment, of.app, AppHealthy { of }.into()).await
}

#[tokio::test]
async fn a_machine_joins_once() {
    let dir = tempfile::tempdir().unwrap();
    let (log, client) = open(dir.path()).unwrap();
    for _ in 0..3 {
        let tasks = Tasks::new();
        start("box1", &log, &tasks).await.unwrap();
        assert!(tasks.shutdown(WATCHDOG).await);
    }
    let events = history(&*client).await.unwrap();
    let kinds: Vec<&str> = events.iter().map(|event| event.kind.as_str()).collect();
    assert_eq!(
        kinds,
        ["network_allocated", "peer_joined", "supervisor_joined"]
    );
    let Some(Event::PeerJoined(peer)) = events[1].event().unwrap() else {
        panic!("no peer")
    };
    assert_eq!((peer.index, peer.address), (1, HostUla::new(1, 1)));

    // A new key and new capabilities are told; the number stays.
    let tasks = Tasks::new();
    let mut changed = config("box1").unwrap();
    changed.key = MeshKey([9; 32]);
    changed.capabilities.truncate(1);
    start_with(&changed, &log, &tasks).await.unwrap();
    start("box2", &log, &tasks).await.unwrap();
    let events = history(&*client).await.unwrap();
    let peers: Vec<_> = events
        .iter()
        .filter_map(|event| match event.event().unwrap() {
            Some(Event::PeerJoined(it)) => Some((it.host.to_string(), it.index, it.key)),
            _ => None,
        })
        .collect();
    let keys = [
        config("box1").unwrap().key,
        changed.key,
        config("box2").unwrap().key,
    ];
    let expected = [
        ("box1", 1, keys[0]),
        ("box1", 1, keys[1]),
        ("box2", 2, keys[2]),
    ];
    assert_eq!(
        peers,
        expected.map(|(host, index, key)| (host.to_owned(), index, key))
    );

    let mut thief = config("box3").unwrap();
    thief.key = changed.key;
    assert!(start_with(&thief, &log, &tasks).await.is_err());
    assert!(tasks.shutdown(WATCHDOG).await);
    log.close().await;
}

/// Deploys the app and plays its machine until the new instance serves.
async fn serve(
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

fn read_lease(signed: &str) -> Fallible<Lease> {
    let key = PublicKey::try_from(signer().public())?;
    let verifier = Verifier::new(signer().platform().clone()).with_key(key);
    Ok(verifier.verify_document(DocumentType::Lease, signed)?)
}

#[tokio::test]
async fn a_lease_names_the_instance_and_is_signed() {
    let dir = tempfile::tempdir().unwrap();
    let (log, client) = open(dir.path()).unwrap();
    let tasks = Tasks::new();
    let coordinator = start("box1", &log, &tasks).await.unwrap();
    let app = register(&*client, "shop").await.unwrap();
    let address = AppUla::derive(app).addr();
    let no_lease = |address| Err(ResolveError::NoLease(address));
    assert_eq!(coordinator.resolve(address).await, no_lease(address));
    let (it, of) = serve(&*client, &coordinator, app, &[]).await.unwrap();
    assert_eq!(
        coordinator.resolve(address).await,
        no_lease(address),
        "no outer address is known"
    );

    let candidates: Vec<SocketAddr> = vec!["127.0.0.1:40000".parse().unwrap()];
    coordinator.report_candidates(key_of(of), candidates.clone());
    // The event is in the log before the coordinator has read it back.
    let signed = eventually(|| coordinator.resolve(address)).await.unwrap();
    let expected = Lease {
        app,
        tenant: Tenant::main(),
        slot: it.slot,
        epoch: it.epoch,
        instance: of.instance,
        key: key_of(of),
        host: "box1".parse().unwrap(),
        candidates,
        not_after: NOW.plus(Duration::from_secs(600)),
    };
    assert_eq!(read_lease(&signed).unwrap(), expected);
    let instance_address = InstanceUla::derive(app, of.instance).addr();
    assert_eq!(coordinator.resolve(instance_address).await.unwrap(), signed);
    for elsewhere in [
        "::1",
        "fd5a:1f00:1:1::1",
        "fd5a:1f02:1:2:3::1",
        "fd5a:1f02:1:2:3:0:1:2",
    ] {
        let elsewhere = elsewhere.parse().unwrap();
        assert_eq!(coordinator.resolve(elsewhere).await, no_lease(elsewhere));
    }
    assert!(tasks.shutdown(WATCHDOG).await);
    log.close().await;
}

#[tokio::test]
async fn the_address_moves_to_the_next_instance_and_the_old_lease_ends() {
    let dir = tempfile::tempdir().unwrap();
    let (log, client) = open(dir.path()).unwrap();
    let tasks = Tasks::new();
    let coordinator = start("box1", &log, &tasks).await.unwrap();
    let app = register(&*client, "shop").await.unwrap();
    let candidates: Vec<SocketAddr> = vec!["127.0.0.1:40000".parse().unwrap()];
    let (first, of) = serve(&*client, &coordinator, app, &candidates)
        .await
        .unwrap();
    let (second, next) = serve(&*client, &coordinator, app, &candidates)
        .await
        .unwrap();
    assert!(next.instance > of.instance && second.epoch > first.epoch);
    let told = wait_for(
        &*client,
        "app_stop_requested",
        |recorded, event| match event {
            Event::AppStopRequested(it) if recorded.segment == Segment::host(&first.host) => {
                Some(it)
            }
            _ => None,
        },
    );
    assert_eq!(told.await.unwrap().of, of);

    // Both answer on their own addresses until the old one has stopped.
    let old = InstanceUla::derive(app, of.instance).addr();
    let new = InstanceUla::derive(app, next.instance).addr();
    let signed = coordinator.resolve(old).await.unwrap();
    assert_eq!(read_lease(&signed).unwrap().instance, of.instance);
    eventually(|| coordinator.resolve(new)).await.unwrap();
    let segment = Segment::host_reports(&first.host);
    append(&*client, segment, app, AppStopped { of }.into())
        .await
        .unwrap();
    let gone = || async {
        match coordinator.resolve(old).await {
            Ok(_) => Err("the lease is still there"),
            Err(error) => Ok(error),
        }
    };
    assert_eq!(eventually(gone).await.unwrap(), ResolveError::NoLease(old));
    let signed = coordinator
        .resolve(AppUla::derive(app).addr())
        .await
        .unwrap();
    assert_eq!(read_lease(&signed).unwrap().instance, next.instance);
    assert!(tasks.shutdown(WATCHDOG).await);
    log.close().await;
}

/// Asks until it is well, or the watchdog barks.
async fn eventually<T, E, F>(mut ask: impl FnMut() -> F) -> Fallible<T>
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

/// Two coordinators on one log, one of which is killed and started again at every step: every
/// request is answered once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crashes_and_a_second_coordinator_do_nothing_twice() {
    let dir = tempfile::tempdir().unwrap();
    let (log, client) = open(dir.path()).unwrap();
    let steady = Tasks::new();
    start("box1", &log, &steady).await.unwrap();
    let mut deploys = Vec::new();
    for n in 0..12 {
        let app = register(&*client, &format!("app-{n}")).await.unwrap();
        let fragile = Tasks::new();
        start("box2", &log, &fragile).await.unwrap();
        let id = deploy(&*client, app).await.unwrap();
        // No waiting for it: it dies in the middle of whatever it does.
        fragile.shutdown(Duration::ZERO).await;
        let it = placed(&*client, id).await.unwrap();
        let fragile = Tasks::new();
        start("box2", &log, &fragile).await.unwrap();
        let of = InstanceRef {
            app,
            instance: it.instance,
        };
        reports(&*client, &it.host, of).await.unwrap();
        fragile.shutdown(Duration::ZERO).await;
        assert_eq!(
            finished(&*client, id).await.unwrap(),
            DeployOutcome::Succeeded
        );
        deploys.push((app, id));
    }
    assert!(steady.failure().is_none(), "{:?}", steady.failure());
    assert!(steady.shutdown(WATCHDOG).await);

    let mut counts: BTreeMap<(AppId, String), usize> = BTreeMap::new();
    for event in history(&*client).await.unwrap() {
        if event.segment == Segment::apps(&Tenant::main()) || event.segment == Segment::peers() {
            let app = event.key.parse().ok();
            *counts
                .entry((app.unwrap_or(deploys[0].0), event.kind.clone()))
                .or_default() += 1;
        }
    }
    for (app, _) in deploys {
        for kind in [
            "app_placed",
            "app_starting",
            "app_started",
            "lease_granted",
            "app_healthy",
            "traffic_shifted",
            "deploy_finished",
        ] {
            assert_eq!(
                counts.get(&(app, kind.to_owned())),
                Some(&1),
                "{kind} of {app}"
            );
        }
    }
    log.close().await;
}

/// Everything happens while the coordinator is down; the next one answers it all.
#[tokio::test]
async fn what_came_while_it_was_down_is_answered() {
    let dir = tempfile::tempdir().unwrap();
    let (log, client) = open(dir.path()).unwrap();
    let tasks = Tasks::new();
    start("box1", &log, &tasks).await.unwrap();
    assert!(tasks.shutdown(WATCHDOG).await);
    let app = register(&*client, "shop").await.unwrap();
    let old = deploy(&*client, app).await.unwrap();
    let new = deploy(&*client, app).await.unwrap();
    log.close().await;
    drop((log, client));

    let (log, client) = open(dir.path()).unwrap();
    let tasks = Tasks::new();
    start("box1", &log, &tasks).await.unwrap();
    let it = placed(&*client, new).await.unwrap();
    assert_eq!(it.instance, InstanceId(2));
    let by = wait_for(&*client, "deploy_superseded", |_, event| match event {
        Event::DeploySuperseded(it) if it.deploy == old => Some(it.by),
        _ => None,
    });
    assert_eq!(by.await.unwrap(), new);
    assert!(tasks.shutdown(WATCHDOG).await);
    log.close().await;
}
