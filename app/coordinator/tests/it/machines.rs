//! Machines that fall silent, come back, are emptied and removed; what becomes of their apps, on the real
//! log, with members that report over real sockets.

use std::time::Duration;

use tabbify_api::mesh::{ResolveError, Resolver as _};
use tabbify_coordinator::Refusal;
use tabbify_process::Tasks;
use tabbify_types::event::Event;
use tabbify_types::event::v1::{AppPlaced, AppStopped, InstanceRef};
use tabbify_types::{AppUla, HostName, Position, Recorded, Segment, Tenant};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::platform::{Invitation, Member, Platform, asks, at};
use crate::support::{
    Fallible, WATCHDOG, append, eventually, history, key_of, reports, secret_of, wait_for,
};

/// Short enough to wait for, long enough for a machine with much to do to report three times within it.
const LOST_AFTER: Duration = Duration::from_secs(8);

fn named(name: &str) -> HostName {
    name.parse().expect("INVARIANT: it is a name")
}

/// Waits for an order to a machine, after a position.
async fn ordered<T>(
    platform: &Platform,
    host: &str,
    after: Position,
    pick: impl Fn(Event) -> Option<T>,
) -> Fallible<T> {
    let segment = Segment::host(&named(host));
    wait_for(&*platform.client, "order", |recorded, event| {
        let is_new = recorded.segment == segment && recorded.position > after;
        is_new.then(|| pick(event)).flatten()
    })
    .await
}

async fn placed_again(platform: &Platform, host: &str, after: Position) -> Fallible<AppPlaced> {
    ordered(platform, host, after, |event| match event {
        Event::AppPlaced(it) => Some(it),
        _ => None,
    })
    .await
}

/// Waits for what is said of a machine.
async fn said(platform: &Platform, kind: &str, host: &str, after: Position) -> Fallible<Position> {
    wait_for(&*platform.client, kind, |recorded: &Recorded, _| {
        let is_it = recorded.kind == kind && recorded.key == host && recorded.position > after;
        is_it.then_some(recorded.position)
    })
    .await
}

/// Two machines that are members; the app is on the first.
async fn two(platform: &Platform) -> Fallible<([Member; 2], InstanceRef)> {
    let first = platform.join(&Invitation::of("box2")).await?;
    let second = platform.join(&Invitation::of("box3")).await?;
    let placed = platform.place(&Tenant::main(), "shop").await?;
    assert_eq!(placed.host, named("box2"));
    Ok(([first, second], platform.run(&placed).await?))
}

async fn ever_lost(platform: &Platform) -> Fallible<Vec<String>> {
    let history = history(&*platform.client).await?;
    let lost = history.iter();
    let lost = lost.filter(|event| event.kind == "supervisor_lost");
    Ok(lost.map(|event| event.key.clone()).collect())
}

#[tokio::test]
async fn the_apps_of_a_silent_machine_run_elsewhere() {
    let platform = Platform::impatient(LOST_AFTER).await.unwrap();
    let ([first, second], shop) = two(&platform).await.unwrap();
    let (tasks, others) = (Tasks::new(), Tasks::new());
    platform.remote(&first.secret, &tasks).unwrap();
    let asker = platform.remote(&second.secret, &others).unwrap();
    eventually(|| async {
        let heard = |host| platform.coordinator.last_heard(&named(host)).is_some();
        if heard("box2") && heard("box3") {
            Ok(())
        } else {
            Err(())
        }
    })
    .await
    .unwrap();
    let before = platform.client.head();

    // Its process ends, and says nothing any more.
    assert!(tasks.shutdown(WATCHDOG).await);
    let silent = Instant::now();
    let lost = said(&platform, "supervisor_lost", "box2", before)
        .await
        .unwrap();
    eprintln!("silent to lost, of {LOST_AFTER:?}: {:?}", silent.elapsed());
    let next = placed_again(&platform, "box3", before).await.unwrap();
    eprintln!("silent to placed elsewhere: {:?}", silent.elapsed());
    assert_eq!((next.app, next.instance > shop.instance), (shop.app, true));
    // When it is back, it is to end what is not its own any more.
    let stop = ordered(&platform, "box2", before, |event| match event {
        Event::AppStopRequested(it) => Some(it.of),
        _ => None,
    });
    assert_eq!(stop.await.unwrap(), shop);
    // Its lease is released: its key is nobody's, even if it still runs.
    let as_shop = platform.coordinator.resolver(key_of(shop));
    eventually(|| async {
        match as_shop.by_key(second.secret.public()).await {
            Err(ResolveError::Refused(_)) => Ok(()),
            other => Err(other),
        }
    })
    .await
    .unwrap();
    let of = InstanceRef {
        app: next.app,
        instance: next.instance,
    };
    platform.coordinator.report_candidates_of(of);
    reports(&*platform.client, &next.host, of).await.unwrap();
    // Who is there now is told to whoever asks: an app of the tenant.
    let blog = platform.app(&Tenant::main(), "blog").await.unwrap();
    eventually(|| async {
        match asks(&platform, blog, AppUla::derive(of.app).addr()).await {
            Ok(Ok(record)) if record.key == key_of(of) => Ok(()),
            _ => Err(()),
        }
    })
    .await
    .unwrap();

    // It speaks again, and is a place for apps again.
    let tasks = Tasks::new();
    platform.remote(&first.secret, &tasks).unwrap();
    said(&platform, "supervisor_joined", "box2", lost)
        .await
        .unwrap();
    let mail = platform.place(&Tenant::main(), "mail").await.unwrap();
    assert_eq!(mail.host, named("box2"), "it has less to do");
    let lost = ever_lost(&platform).await.unwrap();
    assert_eq!(lost, ["box2"], "who speaks is never lost");
    assert_eq!(platform.coordinator.stats().lost, 1);
    assert!(asker.is_live());
    assert!(tasks.shutdown(WATCHDOG).await && others.shutdown(WATCHDOG).await);
    platform.stop().await;
}

/// The runtime of the platform stands still for longer than a machine may be silent: as when its process is
/// stopped, its machine suspended, or its disk does not answer. Nobody is lost for it.
#[tokio::test]
async fn a_coordinator_that_was_frozen_blames_nobody() {
    const SILENCE: Duration = Duration::from_secs(4);
    let (begun, platform) = oneshot::channel();
    let (ice, mut frozen) = mpsc::channel::<std::sync::mpsc::Receiver<()>>(1);
    let elsewhere = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let platform = Platform::impatient(SILENCE).await?;
            let _ = begun.send(platform);
            while let Some(thaw) = frozen.recv().await {
                // Here, the only thread that the platform has stands still.
                let _ = thaw.recv();
            }
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
        })
    });
    let platform = platform.await.unwrap();
    let mut members = Vec::new();
    for host in ["box2", "box3"] {
        let member = platform.join(&Invitation::of(host)).await.unwrap();
        let tasks = Tasks::new();
        platform.remote(&member.secret, &tasks).unwrap();
        let heard = || async { platform.coordinator.last_heard(&named(host)).ok_or(()) };
        eventually(heard).await.unwrap();
        members.push(tasks);
    }
    let (thaw, until) = std::sync::mpsc::sync_channel(1);
    ice.send(until).await.unwrap();
    tokio::time::sleep(SILENCE * 3 / 2).await;
    drop(thaw);

    // It looks again, and finds out about one that really falls silent, and about no other.
    let before = platform.client.head();
    let silent = members.pop().unwrap();
    assert!(silent.shutdown(WATCHDOG).await);
    said(&platform, "supervisor_lost", "box3", before)
        .await
        .unwrap();
    assert_eq!(ever_lost(&platform).await.unwrap(), ["box3"]);
    assert!(members.pop().unwrap().shutdown(WATCHDOG).await);
    platform.stop().await;
    drop(ice);
    elsewhere.join().unwrap().unwrap();
}

/// A machine that joins again with the same key, and then says nothing, is lost like any other.
#[tokio::test]
async fn a_machine_that_joins_again_and_falls_silent_is_lost_again() {
    let platform = Platform::impatient(Duration::from_secs(2)).await.unwrap();
    let begun = platform.client.head();
    platform.join(&Invitation::of("box2")).await.unwrap();
    let lost = said(&platform, "supervisor_lost", "box2", begun);
    let lost = lost.await.unwrap();
    platform.join(&Invitation::of("box2")).await.unwrap();
    said(&platform, "supervisor_joined", "box2", lost)
        .await
        .unwrap();
    said(&platform, "supervisor_lost", "box2", lost)
        .await
        .unwrap();
    platform.stop().await;
}

#[tokio::test]
async fn a_machine_is_emptied_without_a_gap() {
    let platform = Platform::start().await.unwrap();
    let (_machines, shop) = two(&platform).await.unwrap();
    let before = platform.client.head();
    let (box2, box9) = (named("box2"), named("box9"));
    let refused = platform.coordinator.drain(&box9, "user:owner").await;
    let Err(Refusal::Invalid(why)) = refused else {
        panic!("{refused:?}")
    };
    assert!(why.contains("box9") && why.contains("box2, box3"), "{why}");
    for _ in 0..2 {
        platform
            .coordinator
            .drain(&box2, "user:owner")
            .await
            .unwrap();
    }
    let next = placed_again(&platform, "box3", before).await.unwrap();
    let of = InstanceRef {
        app: next.app,
        instance: next.instance,
    };
    // Until the new one answers, the old one serves and is not told to stop.
    let address = AppUla::derive(shop.app).addr();
    let blog = platform.app(&Tenant::main(), "blog").await.unwrap();
    let record = asks(&platform, blog, address).await.unwrap().unwrap();
    assert_eq!(record.key, key_of(shop));
    let kinds = history(&*platform.client).await.unwrap();
    assert!(kinds.iter().all(|event| event.kind != "app_stop_requested"));
    platform.coordinator.report_candidates_of(of);
    reports(&*platform.client, &next.host, of).await.unwrap();
    let stop = ordered(&platform, "box2", before, |event| match event {
        Event::AppStopRequested(it) => Some(it.of),
        _ => None,
    });
    assert_eq!(stop.await.unwrap(), shop);
    let stopped = AppStopped { of: shop };
    append(
        &*platform.client,
        Segment::host_reports(&box2),
        shop.app,
        stopped.into(),
    )
    .await
    .unwrap();
    let drained = said(&platform, "supervisor_drained", "box2", before)
        .await
        .unwrap();
    let mail = platform.place(&Tenant::main(), "mail").await.unwrap();
    assert_eq!(mail.host, named("box3"), "an empty machine stays so");
    platform.coordinator.resume(&box2).await.unwrap();
    said(&platform, "supervisor_joined", "box2", drained)
        .await
        .unwrap();
    let wiki = platform.place(&Tenant::main(), "wiki").await.unwrap();
    assert_eq!(wiki.host, box2);
    platform.stop().await;
}

#[tokio::test]
async fn who_is_removed_takes_its_leases_along() {
    let platform = Platform::start().await.unwrap();
    let ([first, _], shop) = two(&platform).await.unwrap();
    let before = platform.client.head();
    let tasks = Tasks::new();
    let (machine, instance) = (
        platform.remote(&first.secret, &tasks).unwrap(),
        platform.remote(&secret_of(shop), &tasks).unwrap(),
    );
    assert!(instance.renewed().await.is_ok());
    platform
        .coordinator
        .remove_machine(&named("box2"))
        .await
        .unwrap();
    let next = placed_again(&platform, "box3", before).await.unwrap();
    assert_eq!(next.app, shop.app);
    // Neither the machine nor what ran there is anybody any more.
    let own = AppUla::derive(shop.app).addr();
    eventually(|| async {
        match instance.renewed().await {
            Err(_) => Ok(()),
            Ok(_) => Err(()),
        }
    })
    .await
    .unwrap();
    assert!(instance.by_address(own).await.is_err());
    assert!(machine.certificate(&first.signing).await.is_err());
    // What it reports is not believed.
    let head = platform.client.head();
    reports(&*platform.client, &named("box2"), shop)
        .await
        .unwrap();
    platform.app(&Tenant::main(), "blog").await.unwrap();
    let events = history(&*platform.client).await.unwrap();
    let about_shop = events.iter().filter(|event| {
        let key = shop.app.to_string();
        event.position > head && event.segment == Segment::apps(&Tenant::main()) && event.key == key
    });
    assert_eq!(about_shop.count(), 0);
    assert!(tasks.shutdown(WATCHDOG).await);
    platform.stop().await;
}

/// Where an instance may be reached, so that it is resolved.
trait ReportsOf {
    fn report_candidates_of(&self, of: InstanceRef);
}

impl ReportsOf for tabbify_coordinator::Coordinator {
    fn report_candidates_of(&self, of: InstanceRef) {
        tabbify_api::mesh::Leases::report_candidates(self, key_of(of), vec![at(9)]);
    }
}
