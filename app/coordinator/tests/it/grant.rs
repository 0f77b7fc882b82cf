//! Instances get their leases for spawn tickets, and renew them until a newer one takes over.

use std::sync::Arc;
use std::time::Duration;

use tabbify_api::ErrorCode;
use tabbify_api::coordinator::Spawn;
use tabbify_coordinator::{RemoteCoordinator, RequestFailed};
use tabbify_process::{ManualClock, Tasks};
use tabbify_types::event::Event;
use tabbify_types::event::v1::{AppPlaced, AppStopped, InstanceRef};
use tabbify_types::{InstanceId, MeshKey, Segment, Tenant, Timestamp};

use crate::platform::{Invitation, Member, Platform, secret_named};
use crate::support::{Fallible, NOW, WATCHDOG, append, eventually, history, key_of, secret_of};

const MINUTE: Duration = Duration::from_secs(60);

fn code<T: std::fmt::Debug>(answer: Result<T, RequestFailed>) -> Option<ErrorCode> {
    match answer {
        Err(RequestFailed::Refused(problem)) => Some(problem.code),
        _ => None,
    }
}

fn of(placed: &AppPlaced) -> InstanceRef {
    InstanceRef {
        app: placed.app,
        instance: placed.instance,
    }
}

/// How many leases were given to a key.
async fn granted(platform: &Platform, to: MeshKey) -> Fallible<usize> {
    let history = history(&*platform.client).await?;
    let leases = history.iter().filter_map(|event| match event.event() {
        Ok(Some(Event::LeaseGranted(lease))) => Some(lease.key),
        _ => None,
    });
    Ok(leases.filter(|key| *key == to).count())
}

async fn two_machines(platform: &Platform) -> Fallible<(Member, Member)> {
    let one = platform.join(&Invitation::of("box2")).await?;
    let other = platform.join(&Invitation::of("box3")).await?;
    Ok((one, other))
}

#[tokio::test]
async fn a_spawn_ticket_is_worth_one_lease_of_what_was_placed_there() {
    let platform = Platform::start().await.unwrap();
    let (box2, box3) = two_machines(&platform).await.unwrap();
    let placed = platform.place(&Tenant::main(), "shop").await.unwrap();
    let is_here = |member: &Member| member.membership.certificate.host == placed.host;
    let (here, elsewhere) = if is_here(&box2) {
        (&box2, &box3)
    } else {
        (&box3, &box2)
    };
    let tasks = Tasks::new();
    let (of, soon) = (of(&placed), NOW.plus(MINUTE));
    let first = platform.remote(&secret_of(of), &tasks).unwrap();
    let second = platform.remote(&secret_named("thief"), &tasks).unwrap();
    let forbidden = Some(ErrorCode::Forbidden);

    // Another machine, another instance, a ticket that the machine has not signed, one that is over.
    let spawn = |member: &Member, of, until| member.spawn(&platform, of, until).unwrap();
    assert_eq!(
        code(first.spawned(spawn(elsewhere, of, soon)).await),
        forbidden
    );
    let next = InstanceRef {
        instance: InstanceId(2),
        ..of
    };
    assert_eq!(
        code(first.spawned(spawn(here, next, soon)).await),
        forbidden
    );
    let mixed = Spawn {
        certificate: spawn(here, of, soon).certificate,
        ticket: spawn(elsewhere, of, soon).ticket,
    };
    assert_eq!(code(first.spawned(mixed).await), forbidden);
    let swapped = Spawn {
        certificate: spawn(here, of, soon).ticket,
        ticket: spawn(here, of, soon).certificate,
    };
    assert_eq!(code(first.spawned(swapped).await), forbidden);
    assert_eq!(code(first.spawned(spawn(here, of, NOW)).await), forbidden);
    // A machine's own key is not an instance's.
    let as_host = platform.remote(&here.secret, &tasks).unwrap();
    let taken = as_host.spawned(spawn(here, of, soon)).await;
    assert_eq!(code(taken), Some(ErrorCode::Conflict));
    assert_eq!(granted(&platform, key_of(of)).await.unwrap(), 0);

    let ticket = spawn(here, of, soon);
    let lease = first.spawned(ticket.clone()).await.unwrap().lease;
    assert_eq!((lease.key, lease.instance), (key_of(of), of.instance));
    assert_eq!((lease.epoch, &lease.host), (placed.epoch, &placed.host));
    let again = first.spawned(ticket.clone()).await.unwrap().lease;
    assert_eq!(
        again.key, lease.key,
        "who has not heard the answer asks again"
    );
    assert_eq!(
        code(second.spawned(ticket).await),
        Some(ErrorCode::Conflict)
    );
    assert_eq!(granted(&platform, key_of(of)).await.unwrap(), 1);

    // The machine's report of the same key moves the instance on; the lease stays the one.
    platform.run(&placed).await.unwrap();
    assert_eq!(granted(&platform, key_of(of)).await.unwrap(), 1);
    let stats = platform.coordinator.stats();
    assert_eq!((stats.granted, stats.not_granted), (2, 7));
    assert!(tasks.shutdown(WATCHDOG).await);
    platform.stop().await;
}

/// Two keys show one ticket at the same time, many times over: one gets the lease.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_race_for_a_ticket_has_one_winner() {
    let platform = Platform::start().await.unwrap();
    let member = platform.join(&Invitation::of("box2")).await.unwrap();
    let tasks = Tasks::new();
    let racers: Vec<RemoteCoordinator> = (0..8)
        .map(|n| {
            platform
                .remote(&secret_named(&format!("racer {n}")), &tasks)
                .unwrap()
        })
        .collect();
    for round in 0..3 {
        let placed = platform
            .place(&Tenant::main(), &format!("shop-{round}"))
            .await
            .unwrap();
        let spawn = member
            .spawn(&platform, of(&placed), NOW.plus(MINUTE))
            .unwrap();
        // A key holds one lease at a time, so the winners of before cannot win again.
        let shown = racers[round * 2..]
            .iter()
            .map(|racer| racer.spawned(spawn.clone()));
        let answers = futures_util::future::join_all(shown).await;
        let won = answers.iter().filter(|answer| answer.is_ok()).count();
        assert_eq!(won, 1, "round {round}: {answers:?}");
    }
    assert!(tasks.shutdown(WATCHDOG).await);
    platform.stop().await;
}

/// How long a lease lasts is measured by two times of the coordinator's: whoever gets it may have any clock.
#[tokio::test]
async fn a_lease_lasts_as_long_whatever_the_clock_shows() {
    let platform = Platform::start().await.unwrap();
    platform.join(&Invitation::of("box2")).await.unwrap();
    let shop = platform.app(&Tenant::main(), "shop").await.unwrap();
    let tasks = Tasks::new();
    let doors = || vec![platform.door(&secret_of(shop)).unwrap()];
    for secs in [NOW.secs() - 3600, NOW.secs(), NOW.secs() + 3600] {
        let clock = Arc::new(ManualClock::at(Timestamp::from_secs(secs)));
        let remote = platform.remote_with(doors(), clock, &tasks).unwrap();
        assert_eq!(remote.renewed().await.unwrap().life, 10 * MINUTE);
    }
    assert!(tasks.shutdown(WATCHDOG).await);
    platform.stop().await;
}

#[tokio::test]
async fn a_lease_is_renewed_until_a_newer_instance_serves() {
    let platform = Platform::start().await.unwrap();
    platform.join(&Invitation::of("box2")).await.unwrap();
    let tenant = Tenant::main();
    let old = platform.app(&tenant, "shop").await.unwrap();
    let tasks = Tasks::new();
    let remote = platform.remote(&secret_of(old), &tasks).unwrap();
    let first = remote.renewed().await.unwrap().lease;
    assert_eq!(first.not_after, NOW.plus(10 * MINUTE));
    platform.clock.advance(5 * MINUTE);
    let renewed = remote.renewed().await.unwrap().lease;
    assert_eq!(renewed.not_after, NOW.plus(15 * MINUTE));
    assert_eq!(renewed.epoch, first.epoch);

    // While the next one starts, the old one holds the slot; once it serves, it does not.
    let placed = platform.place_again(&tenant, old.app).await.unwrap();
    assert!(placed.epoch > first.epoch);
    remote.renewed().await.unwrap();
    let new = platform.run(&placed).await.unwrap();
    assert_eq!(code(remote.renewed().await), Some(ErrorCode::LeaseFenced));
    let next = platform.remote(&secret_of(new), &tasks).unwrap();
    assert_eq!(next.renewed().await.unwrap().lease.epoch, placed.epoch);

    // And when it has stopped, its key is nobody's.
    let reports = Segment::host_reports(&placed.host);
    append(
        &*platform.client,
        reports,
        old.app,
        AppStopped { of: old }.into(),
    )
    .await
    .unwrap();
    let gone = || async {
        match code(remote.renewed().await) {
            Some(ErrorCode::Forbidden) => Ok(()),
            other => Err(other),
        }
    };
    eventually(gone).await.unwrap();
    assert!(platform.coordinator.stats().fenced >= 1);
    assert!(tasks.shutdown(WATCHDOG).await);
    platform.stop().await;
}
