//! The law of `Leases`, for each that hands them out: in process, and over the network.

use std::net::Ipv6Addr;

use tabbify_api::mesh::{Leases, ResolveError};
use tabbify_process::Tasks;
use tabbify_types::event::v1::AppStopped;
use tabbify_types::{AppId, AppUla, InstanceId, InstanceUla, Segment, Tenant};

use crate::platform::{Invitation, Platform, at, secret_named};
use crate::support::{Fallible, WATCHDOG, append, eventually, finished, key_of, payload, reports};

/// Runs the law against `leases`, which reports for the machine that apps are placed on.
async fn law(platform: &Platform, leases: &dyn Leases) -> Fallible<()> {
    let tenant = Tenant::main();
    let no_lease = |address: Ipv6Addr| Err(ResolveError::NoLease(address));
    for nobody in [
        "::1",
        "fd5a:1f02:1:2:3::1",
        "fd5a:1f02:1:2:3:0:1:2",
        "fd5a:1f00:9:9::1",
    ] {
        let nobody = nobody.parse()?;
        assert_eq!(leases.resolve(nobody).await, no_lease(nobody));
    }
    // 1. An address that nobody holds a lease for, or that nobody has said how to reach, leads nowhere.
    let placed = platform.place(&tenant, "shop").await?;
    let of = tabbify_types::event::v1::InstanceRef {
        app: placed.app,
        instance: placed.instance,
    };
    let address = AppUla::derive(of.app).addr();
    assert_eq!(leases.resolve(address).await, no_lease(address));
    reports(&*platform.client, &placed.host, of).await?;
    finished(&*platform.client, placed.deploy).await?;
    // 2. Once both are known, the app's address and the instance's lead to the instance.
    leases.report_candidates(key_of(of), vec![at(9), at(10)]);
    let own = InstanceUla::derive(of.app, of.instance).addr();
    for address in [address, own] {
        let signed = eventually(|| leases.resolve(address)).await?;
        let lease = payload(&signed)?;
        assert_eq!(
            (lease.app, lease.instance, lease.key),
            (of.app, of.instance, key_of(of))
        );
        assert_eq!((lease.epoch, &lease.host), (placed.epoch, &placed.host));
        assert_eq!(lease.candidates, [at(9), at(10)]);
        assert!(lease.not_after > platform.clock().now());
    }
    let other = InstanceUla::derive(of.app, InstanceId(7)).addr();
    assert_eq!(leases.resolve(other).await, no_lease(other));
    let unknown = AppUla::derive(AppId::mint()).addr();
    assert_eq!(leases.resolve(unknown).await, no_lease(unknown));
    // 3. The app's address follows the primary; the old instance keeps its own until it has stopped.
    let next = platform.place_again(&tenant, of.app).await?;
    let new = tabbify_types::event::v1::InstanceRef {
        app: next.app,
        instance: next.instance,
    };
    leases.report_candidates(key_of(new), vec![at(11)]);
    reports(&*platform.client, &next.host, new).await?;
    let moved = || async {
        let signed = leases.resolve(address).await.map_err(drop)?;
        let lease = payload(&signed).map_err(drop)?;
        if lease.key == key_of(new) {
            Ok(lease)
        } else {
            Err(())
        }
    };
    let lease = eventually(moved).await?;
    assert!(lease.epoch > placed.epoch);
    let signed = leases.resolve(own).await?;
    assert_eq!(payload(&signed)?.key, key_of(of));
    let segment = Segment::host_reports(&placed.host);
    append(&*platform.client, segment, of.app, AppStopped { of }.into()).await?;
    let gone = || async {
        match leases.resolve(own).await {
            Err(ResolveError::NoLease(_)) => Ok(()),
            other => Err(other),
        }
    };
    eventually(gone).await?;
    Ok(())
}

#[tokio::test]
async fn in_process() {
    let platform = Platform::start().await.unwrap();
    platform.join(&Invitation::of("box2")).await.unwrap();
    law(&platform, &platform.coordinator).await.unwrap();
    platform.stop().await;
}

/// As a machine that runs apps and is an edge.
#[tokio::test]
async fn over_the_network() {
    let platform = Platform::start().await.unwrap();
    platform
        .join(&Invitation::of("box2").tagged("role:node"))
        .await
        .unwrap();
    let tasks = Tasks::new();
    let remote = platform.remote(&secret_named("box2"), &tasks).unwrap();
    law(&platform, &remote).await.unwrap();
    let stats = remote.stats();
    assert_eq!(
        (stats.forged, stats.fenced, stats.clock),
        (0, 0, 0),
        "{stats:?}"
    );
    assert!(tasks.shutdown(WATCHDOG).await);
    platform.stop().await;
}
