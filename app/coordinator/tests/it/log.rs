//! The coordinator on the real log: start, deploy, leases; crashes and a second coordinator.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use tabbify_api::mesh::{Lease, Leases as _, ResolveError};
use tabbify_process::Tasks;
use tabbify_types::event::Event;
use tabbify_types::event::v1::{AppStopped, DeployOutcome, InstanceRef};
use tabbify_types::{AppId, AppUla, HostUla, InstanceId, InstanceUla, MeshKey, Segment, Tenant};

use crate::support::{
    NOW, WATCHDOG, append, config, deploy, eventually, finished, history, key_of, open, placed,
    read_lease, register, reports, serve, start, start_with, wait_for,
};

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
    // Nobody has said yet where it is, and somebody is about to.
    let unheard = coordinator.resolve(address).await;
    assert!(
        matches!(unheard, Err(ResolveError::Unreachable(_))),
        "{unheard:?}"
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
        door: None,
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
