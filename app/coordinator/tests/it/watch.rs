//! Members hear what changes, of what they have asked for; who is nobody any more is cut off.

use tabbify_api::mesh::{Leases as _, Resolver as _};
use tabbify_coordinator::RemoteCoordinator;
use tabbify_process::Tasks;
use tabbify_types::event::v1::AppStopped;
use tabbify_types::{AppUla, InstanceUla, Segment, Tenant};

use crate::platform::{Invitation, Platform, at};
use crate::support::{Fallible, WATCHDOG, append, eventually, key_of, payload, secret_of};

/// Waits until something holds.
async fn until(holds: impl Fn() -> bool) -> Fallible<()> {
    eventually(|| async { if holds() { Ok(()) } else { Err(()) } }).await
}

async fn live(remote: &RemoteCoordinator) -> Fallible<()> {
    until(|| remote.is_live()).await
}

#[tokio::test]
async fn an_address_that_moves_is_asked_for_again() {
    let platform = Platform::start().await.unwrap();
    platform.join(&Invitation::of("box2")).await.unwrap();
    let edge = platform
        .join(&Invitation::of("edge").tagged("role:node"))
        .await
        .unwrap();
    let tenant = Tenant::main();
    let old = platform.app(&tenant, "shop").await.unwrap();
    let blog = platform.app(&tenant, "blog").await.unwrap();
    let tasks = Tasks::new();
    let node = platform.remote(&edge.secret, &tasks).unwrap();
    let app = platform.remote(&secret_of(blog), &tasks).unwrap();
    let address = AppUla::derive(old.app).addr();
    let mut gone = node.gone();
    for remote in [&node, &app] {
        live(remote).await.unwrap();
        for _ in 0..10 {
            assert_eq!(remote.by_address(address).await.unwrap().key, key_of(old));
        }
        let stats = remote.stats();
        // The first answer may have crossed the news that the watch had begun.
        assert!(stats.asked <= 2 && stats.known >= 8, "{stats:?}");
    }

    let placed = platform.place_again(&tenant, old.app).await.unwrap();
    let new = platform.run(&placed).await.unwrap();
    for remote in [&node, &app] {
        let moved = || async {
            match remote.by_address(address).await {
                Ok(record) if record.key == key_of(new) => Ok(()),
                other => Err(other),
            }
        };
        eventually(moved).await.unwrap();
        let signed = remote.resolve(address).await.unwrap();
        assert_eq!(payload(&signed).unwrap().instance, new.instance);
    }
    // The old one answers on its own address until it has stopped; then whoever had a session with it
    // is told.
    let own = InstanceUla::derive(old.app, old.instance).addr();
    assert_eq!(node.by_address(own).await.unwrap().key, key_of(old));
    let reports = Segment::host_reports(&placed.host);
    append(
        &*platform.client,
        reports,
        old.app,
        AppStopped { of: old }.into(),
    )
    .await
    .unwrap();
    let told = tokio::time::timeout(WATCHDOG, gone.recv()).await.unwrap();
    assert_eq!(told.unwrap(), key_of(old));
    assert!(
        node.by_address(own).await.is_err(),
        "at once, without a lease that lingers"
    );
    assert!(tasks.shutdown(WATCHDOG).await);
    platform.stop().await;
}

#[tokio::test]
async fn who_leaves_hears_no_more_and_others_hear_that() {
    let platform = Platform::start().await.unwrap();
    let edge = platform
        .join(&Invitation::of("edge").tagged("role:node"))
        .await
        .unwrap();
    let core = platform
        .join(&Invitation::of("log").tagged("role:log"))
        .await
        .unwrap();
    let tasks = Tasks::new();
    let node = platform.remote(&edge.secret, &tasks).unwrap();
    let leaving = platform.remote(&core.secret, &tasks).unwrap();
    live(&node).await.unwrap();
    live(&leaving).await.unwrap();
    let address = core.membership.certificate.address.addr();
    assert_eq!(
        node.by_address(address).await.unwrap().key,
        core.secret.public()
    );
    let mut gone = node.gone();
    platform
        .coordinator
        .remove_machine(&core.membership.certificate.host)
        .await
        .unwrap();
    let told = tokio::time::timeout(WATCHDOG, gone.recv()).await.unwrap();
    assert_eq!(told.unwrap(), core.secret.public());
    assert!(node.by_address(address).await.is_err());
    until(|| !leaving.is_live()).await.unwrap();
    assert!(
        leaving
            .by_address(edge.membership.certificate.address.addr())
            .await
            .is_err()
    );
    assert!(tasks.shutdown(WATCHDOG).await);
    platform.stop().await;
}

#[tokio::test]
async fn who_asked_before_it_moved_is_told_where_it_is() {
    let platform = Platform::start().await.unwrap();
    let box2 = platform.join(&Invitation::of("box2")).await.unwrap();
    let edge = platform
        .join(&Invitation::of("edge").tagged("role:node"))
        .await
        .unwrap();
    // Their first word is a port where nobody listens.
    let main = Tenant::main();
    let shop = platform.app(&main, "shop").await.unwrap();
    let blog = platform.app(&main, "blog").await.unwrap();
    let tasks = Tasks::new();
    let node = platform.remote(&edge.secret, &tasks).unwrap();
    let app = platform.remote(&secret_of(blog), &tasks).unwrap();
    let (own, machine) = (
        platform.remote(&secret_of(shop), &tasks).unwrap(),
        platform.remote(&box2.secret, &tasks).unwrap(),
    );
    let address = AppUla::derive(shop.app).addr();
    let host = box2.membership.certificate.address.addr();
    machine.report_candidates(box2.secret.public(), vec![at(9)]);
    let is_at = async |remote: &RemoteCoordinator, address, port| {
        let moved = || async {
            match remote.by_address(address).await {
                Ok(record) if record.endpoints == [at(port)] => Ok(()),
                other => Err(other),
            }
        };
        eventually(moved).await
    };
    for remote in [&node, &app] {
        live(remote).await.unwrap();
        is_at(remote, address, 9).await.unwrap();
    }
    is_at(&node, host, 9).await.unwrap();
    // Nothing of it ends by itself: the clock stands still.
    own.report_candidates(key_of(shop), vec![at(4242)]);
    machine.report_candidates(box2.secret.public(), vec![at(4343)]);
    for remote in [&node, &app] {
        is_at(remote, address, 4242).await.unwrap();
    }
    is_at(&node, host, 4343).await.unwrap();
    // Whoever flaps is heard, and others hear of it now and then.
    let told = platform.coordinator.stats().told;
    for port in 5000..5100 {
        own.report_candidates(key_of(shop), vec![at(port)]);
        tokio::task::yield_now().await;
    }
    let here = platform.coordinator.resolver(edge.secret.public());
    let heard = || async {
        let found = here.by_address(address).await.map_err(drop)?;
        (found.endpoints == [at(5099)]).then_some(()).ok_or(())
    };
    eventually(heard).await.unwrap();
    let told = platform.coordinator.stats().told - told;
    assert!(told <= 2 * 10, "two hear of each: {told}");
    assert!(tasks.shutdown(WATCHDOG).await);
    platform.stop().await;
}

#[tokio::test]
async fn reports_reach_the_coordinator_and_are_repeated() {
    let platform = Platform::start().await.unwrap();
    let member = platform
        .join(&Invitation::of("box2").tagged("role:log"))
        .await
        .unwrap();
    let edge = platform
        .join(&Invitation::of("edge").tagged("role:node"))
        .await
        .unwrap();
    let tasks = Tasks::new();
    let (mine, node) = (
        platform.remote(&member.secret, &tasks).unwrap(),
        platform.remote(&edge.secret, &tasks).unwrap(),
    );
    mine.report_candidates(member.secret.public(), vec![at(51820)]);
    let host = &member.membership.certificate.host;
    until(|| platform.coordinator.last_heard(host).is_some())
        .await
        .unwrap();
    let address = member.membership.certificate.address.addr();
    let found = || async {
        let found = platform.remote(&edge.secret, &tasks).map_err(drop)?;
        match found.by_address(address).await {
            Ok(record) if record.endpoints == [at(51820)] => Ok(()),
            _ => Err(()),
        }
    };
    eventually(found).await.unwrap();
    assert_eq!(
        node.by_address(address).await.unwrap().key,
        member.secret.public()
    );
    assert!(tasks.shutdown(WATCHDOG).await);
    platform.stop().await;
}
