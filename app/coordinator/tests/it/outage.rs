//! The log away, a coordinator away, all of them away: what is still answered, and for how long.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tabbify_api::ErrorCode;
use tabbify_api::log::{EventLog, Line};
use tabbify_api::mesh::{Leases as _, ResolveError, Resolver as _};
use tabbify_coordinator::{
    Coordinator, Limits, MeshSecret, OUTAGE_GRACE, Options, REPORT_LIFE, RemoteConfig,
    RemoteCoordinator, RequestFailed,
};
use tabbify_process::connect::{Connect, TcpSocket};
use tabbify_process::fold::Link;
use tabbify_process::{Clock, ManualClock, Tasks};
use tabbify_types::{AppUla, InstanceId, Tenant};

use crate::platform::{Invitation, Platform, at, coordinator, secret_named, serve};
use crate::support::{
    Fallible, NOW, WATCHDOG, config, deploy, eventually, key_of, open, placed, register, secret_of,
    serve as serve_app, signer,
};

/// A coordinator that stores what it knows.
async fn stored(
    dir: &Path,
    log: Arc<dyn EventLog>,
    clock: &Arc<ManualClock>,
    tasks: &Tasks,
) -> Fallible<Coordinator> {
    let options = Options::new(Arc::new(signer)).snapshots(dir.join("folds"));
    let clock: Arc<dyn Clock> = Arc::<ManualClock>::clone(clock);
    Ok(Coordinator::start(&config("box1")?, log, options, clock, tasks).await?)
}

#[tokio::test]
async fn it_starts_and_answers_while_the_log_is_down() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let (log, client) = open(&path).unwrap();
    let clock = Arc::new(ManualClock::at(NOW));
    let tasks = Tasks::new();
    let mine = log.client(Coordinator::log_scope());
    let before = stored(dir.path(), mine, &clock, &tasks).await.unwrap();
    let app = register(&*client, "shop").await.unwrap();
    let (_, of) = serve_app(&*client, &before, app, &[at(9)]).await.unwrap();
    let address = AppUla::derive(app).addr();
    eventually(|| before.resolve(address)).await.unwrap();
    assert!(tasks.shutdown(WATCHDOG).await);
    log.close().await;
    drop((before, log, client));

    let tasks = Tasks::new();
    let line = Arc::<Line>::default();
    let mine: Arc<dyn EventLog> = Arc::<Line>::clone(&line);
    let now = stored(dir.path(), mine, &clock, &tasks).await.unwrap();
    assert!(
        matches!(now.health().link, Link::Away { .. }),
        "{:?}",
        now.health()
    );
    // Nobody said where, and nobody had the time to: that is no reason to forget what is known.
    let early = now.resolve(address).await.unwrap_err();
    assert!(matches!(early, ResolveError::Unreachable(_)), "{early:?}");
    clock.advance(REPORT_LIFE);
    let late = now.resolve(address).await;
    assert_eq!(late, Err(ResolveError::NoLease(address)));
    now.report_candidates(key_of(of), vec![at(9)]);
    now.resolve(address).await.unwrap();
    // For as long as it may, and no longer.
    clock.advance(OUTAGE_GRACE - REPORT_LIFE - Duration::from_secs(60));
    now.resolve(address).await.unwrap();
    clock.advance(Duration::from_secs(120));
    let refused = now.resolve(address).await.unwrap_err();
    assert!(
        matches!(refused, ResolveError::Unreachable(_)),
        "{refused:?}"
    );

    // The log comes back, and with it what happened meanwhile.
    let (log, client) = open(&path).unwrap();
    line.join(Some(log.client(Coordinator::log_scope())));
    let id = deploy(&*client, app).await.unwrap();
    let it = placed(&*client, id).await.unwrap();
    assert_eq!(it.instance, InstanceId(2));
    eventually(|| now.resolve(address)).await.unwrap();
    assert_eq!(now.health().link, Link::Live);
    assert_eq!(tasks.failure(), None);
    assert!(tasks.shutdown(WATCHDOG).await);
    log.close().await;
}

/// A member keeps what it knows for the grace, or not at all.
#[tokio::test]
async fn a_member_without_a_coordinator_uses_what_it_knows() {
    let platform = Platform::start().await.unwrap();
    platform.join(&Invitation::of("box2")).await.unwrap();
    let edge = platform
        .join(&Invitation::of("edge").tagged("role:node"))
        .await
        .unwrap();
    let shop = platform.app(&Tenant::main(), "shop").await.unwrap();
    let tasks = Tasks::new();
    let (doors, service) = (Tasks::new(), Limits::default());
    let address = serve(
        &platform.coordinator,
        &platform.auth,
        &platform.tls,
        &service,
        &doors,
    );
    let connect: Arc<dyn Connect> = Arc::new(TcpSocket {
        address: address.await.unwrap(),
    });
    let remote = |outage_grace| {
        let pin = platform.tls.pin();
        let secret = edge.secret.clone();
        let door = tabbify_coordinator::Door::new(Arc::clone(&connect), pin, secret)?;
        let config = RemoteConfig {
            root: platform.keys.root.public(),
            issuers: Vec::new(),
            outage_grace,
        };
        Ok::<_, Box<dyn std::error::Error>>(RemoteCoordinator::start(
            vec![door],
            config,
            platform.clock(),
            &tasks,
        )?)
    };
    let (lasting, strict) = (
        remote(OUTAGE_GRACE).unwrap(),
        remote(Duration::ZERO).unwrap(),
    );
    let address = AppUla::derive(shop.app).addr();
    for remote in [&lasting, &strict] {
        // The issuer keys were not known: they are asked for, and count with the root key's word.
        assert_eq!(remote.by_address(address).await.unwrap().key, key_of(shop));
    }
    assert!(doors.shutdown(WATCHDOG).await);
    for remote in [&lasting, &strict] {
        eventually(|| async { if remote.is_live() { Err(()) } else { Ok(()) } })
            .await
            .unwrap();
        assert!(
            remote.by_address(address).await.is_ok(),
            "the lease has not ended"
        );
    }
    platform.clock.advance(Duration::from_secs(11 * 60));
    assert!(lasting.by_address(address).await.is_ok());
    let refused = strict.by_address(address).await.unwrap_err();
    assert!(
        matches!(refused, ResolveError::Unreachable(_)),
        "{refused:?}"
    );
    assert!(lasting.stats().outage >= 1);
    platform.clock.advance(OUTAGE_GRACE);
    assert!(lasting.by_address(address).await.is_err());
    assert!(tasks.shutdown(WATCHDOG).await);
    platform.stop().await;
}

/// One of two coordinators goes away: whoever asks both does not notice.
#[tokio::test]
async fn another_coordinator_answers() {
    let platform = Platform::start().await.unwrap();
    platform.join(&Invitation::of("box2")).await.unwrap();
    let edge = platform
        .join(&Invitation::of("edge").tagged("role:node"))
        .await
        .unwrap();
    let mine = platform.log.client(Coordinator::log_scope());
    let (tasks, first) = (Tasks::new(), Tasks::new());
    let second = coordinator(
        "core2",
        mine,
        &platform.auth,
        platform.clock(),
        None,
        &platform.tasks,
    )
    .await;
    let second = second.unwrap();
    let (auth, tls, limits) = (&platform.auth, &platform.tls, Limits::default());
    let addresses = [
        serve(&platform.coordinator, auth, tls, &limits, &first)
            .await
            .unwrap(),
        serve(&second, auth, tls, &limits, &platform.tasks)
            .await
            .unwrap(),
    ];
    let doors = addresses.map(|address| {
        let connect = Arc::new(TcpSocket { address });
        tabbify_coordinator::Door::new(connect, tls.pin(), edge.secret.clone()).unwrap()
    });
    let remote = platform
        .remote_with(doors.into(), platform.clock(), &tasks)
        .unwrap();
    let one = platform.app(&Tenant::main(), "one").await.unwrap();
    let two = platform.app(&Tenant::main(), "two").await.unwrap();
    second.report_candidates(key_of(two), vec![at(9)]);
    let (first_address, second_address) = (
        AppUla::derive(one.app).addr(),
        AppUla::derive(two.app).addr(),
    );
    assert_eq!(
        remote.by_address(first_address).await.unwrap().key,
        key_of(one)
    );
    assert!(first.shutdown(WATCHDOG).await);
    assert_eq!(
        remote.by_address(second_address).await.unwrap().key,
        key_of(two)
    );
    assert!(tasks.shutdown(WATCHDOG).await);
    platform.stop().await;
}

/// The coordinator goes to another place, of which whoever knows tells the member: it hears and asks there.
#[tokio::test]
async fn a_member_goes_where_it_is_told_that_the_coordinator_is() {
    let platform = Platform::start().await.unwrap();
    platform.join(&Invitation::of("box2")).await.unwrap();
    let edge = Invitation::of("edge").tagged("role:node");
    let edge = platform.join(&edge).await.unwrap();
    let (tasks, first) = (Tasks::new(), Tasks::new());
    let (auth, tls, limits) = (&platform.auth, &platform.tls, Limits::default());
    let before = serve(&platform.coordinator, auth, tls, &limits, &first);
    let connect = |address| -> Arc<dyn Connect> { Arc::new(TcpSocket { address }) };
    let before = connect(before.await.unwrap());
    let door = tabbify_coordinator::Door::new(before, tls.pin(), edge.secret.clone()).unwrap();
    let remote = platform.remote_with(vec![door], platform.clock(), &tasks);
    let remote = remote.unwrap();
    let live = |wanted: bool| {
        let remote = &remote;
        move || async move { (remote.is_live() == wanted).then_some(()).ok_or(()) }
    };
    eventually(live(true)).await.unwrap();
    assert!(first.shutdown(WATCHDOG).await);
    eventually(live(false)).await.unwrap();
    let shop = platform.app(&Tenant::main(), "shop").await.unwrap();
    let address = AppUla::derive(shop.app).addr();
    assert!(remote.by_address(address).await.is_err());

    // No place at all is none to go to, and what has another key is not the coordinator.
    remote.move_to(Vec::new()).unwrap();
    let stranger = tabbify_types::Digest::of(b"another key");
    remote
        .move_to(vec![(connect(platform.address), stranger)])
        .unwrap();
    assert!(remote.by_address(address).await.is_err());
    let now = vec![(connect(platform.address), tls.pin())];
    remote.move_to(now).unwrap();
    eventually(live(true)).await.unwrap();
    assert_eq!(remote.by_address(address).await.unwrap().key, key_of(shop));
    // Where its keys are is told there, too.
    remote.report_candidates(edge.secret.public(), vec![at(77)]);
    let host = edge.membership.certificate.address.addr();
    let here = platform.coordinator.resolver(edge.secret.public());
    let heard = || async {
        let found = here.by_address(host).await.map_err(drop)?;
        (found.endpoints == [at(77)]).then_some(()).ok_or(())
    };
    eventually(heard).await.unwrap();
    assert!(tasks.shutdown(WATCHDOG).await);
    platform.stop().await;
}

/// It starts from what was stored before an app was placed, without the log: whoever it does not know is not
/// nobody.
#[tokio::test]
async fn who_is_behind_the_log_refuses_nobody_for_being_unknown() {
    let platform = Platform::start().await.unwrap();
    platform.join(&Invitation::of("box2")).await.unwrap();
    let edge = Invitation::of("edge").tagged("role:node");
    let edge = platform.join(&edge).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let line = Arc::new(Line::default());
    let begin = async |tasks: &Tasks| {
        let log: Arc<dyn EventLog> = Arc::<Line>::clone(&line);
        let (auth, clock) = (&platform.auth, platform.clock());
        coordinator("core2", log, auth, clock, Some(dir.path()), tasks).await
    };
    let there = || Some(platform.log.client(Coordinator::log_scope()));
    line.join(there());
    let before = Tasks::new();
    drop(begin(&before).await.unwrap());
    assert!(before.shutdown(WATCHDOG).await);

    line.join(None);
    let placed = platform.place(&Tenant::main(), "shop").await.unwrap();
    let shop = platform.run(&placed).await.unwrap();
    let tasks = Tasks::new();
    let behind = begin(&tasks).await.unwrap();
    assert!(matches!(behind.health().link, Link::Away { .. }));
    let limits = Limits::default();
    let address = serve(&behind, &platform.auth, &platform.tls, &limits, &tasks);
    let address = address.await.unwrap();
    let door = |secret: &MeshSecret| {
        let connect: Arc<dyn Connect> = Arc::new(TcpSocket { address });
        tabbify_coordinator::Door::new(connect, platform.tls.pin(), secret.clone()).unwrap()
    };
    let remote = |secret: &MeshSecret| {
        let doors = vec![door(secret)];
        platform.remote_with(doors, platform.clock(), &tasks)
    };
    let (instance, node) = (
        remote(&secret_of(shop)).unwrap(),
        remote(&edge.secret).unwrap(),
    );
    let app = AppUla::derive(shop.app).addr();
    let renewed = instance.renewed().await;
    assert!(
        renewed.as_ref().is_err_and(RequestFailed::is_no_answer),
        "{renewed:?}"
    );
    let found = node.by_address(app).await;
    assert!(
        matches!(found, Err(ResolveError::Unreachable(_))),
        "{found:?}"
    );
    let stranger = remote(&secret_named("nobody")).unwrap();
    assert!(stranger.renewed().await.is_err_and(|it| it.is_no_answer()));
    // Whoever asks another one as well gets its answer from there.
    let doors = vec![door(&edge.secret), platform.door(&edge.secret).unwrap()];
    let both = platform.remote_with(doors, platform.clock(), &tasks);
    assert_eq!(
        both.unwrap().by_address(app).await.unwrap().key,
        key_of(shop)
    );

    // With the log back, everybody has an answer at once, and strangers have theirs.
    line.join(there());
    eventually(|| instance.renewed()).await.unwrap();
    behind.report_candidates(key_of(shop), vec![at(9)]);
    eventually(|| node.by_address(app)).await.unwrap();
    let refused = eventually(|| async {
        match stranger.renewed().await {
            Err(RequestFailed::Refused(problem)) => Ok(problem.code),
            other => Err(other),
        }
    });
    assert_eq!(refused.await.unwrap(), ErrorCode::Forbidden);
    assert!(tasks.shutdown(WATCHDOG).await);
    platform.stop().await;
}
