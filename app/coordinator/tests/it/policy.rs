//! Tenants see only themselves, unless a rule says otherwise; what changes takes effect at once.

use std::collections::BTreeSet;

use tabbify_api::coordinator::{Ask, PolicyOrder};
use tabbify_api::mesh::{Leases, ResolveError, Resolver as _};
use tabbify_api::policy::Ports;
use tabbify_coordinator::Refusal;
use tabbify_process::Tasks;
use tabbify_types::event::v1::AllowRule;
use tabbify_types::{AppUla, HostUla, InstanceUla, Tenant};

use crate::platform::{Invitation, Platform, asks, asks_by_key, secret_named};
use crate::support::{WATCHDOG, eventually, history, key_of, secret_of};

fn rule(from: &str, to: &str, ports: &[u16]) -> AllowRule {
    AllowRule {
        from: from.to_owned(),
        to: to.to_owned(),
        ports: ports.to_vec(),
    }
}

#[tokio::test]
async fn who_may_not_talk_learns_nothing() {
    let platform = Platform::start().await.unwrap();
    platform.join(&Invitation::of("box2")).await.unwrap();
    let (main, other): (Tenant, Tenant) = (Tenant::main(), "other".parse().unwrap());
    let shop = platform.app(&main, "shop").await.unwrap();
    let blog = platform.app(&main, "blog").await.unwrap();
    let theirs = platform.app(&other, "shop").await.unwrap();

    let addresses = |of: tabbify_types::event::v1::InstanceRef| {
        [
            AppUla::derive(of.app).addr(),
            InstanceUla::derive(of.app, of.instance).addr(),
        ]
    };
    for address in addresses(blog) {
        assert!(
            asks(&platform, shop, address).await.unwrap().is_ok(),
            "{address}"
        );
    }
    let denied = platform.coordinator.stats().denied;
    for address in addresses(theirs) {
        let refused = asks(&platform, shop, address).await.unwrap().unwrap_err();
        assert_eq!(
            refused,
            ResolveError::NoLease(address),
            "as if nobody were there"
        );
    }
    // Nor does who would be called say who calls.
    let refused = asks_by_key(&platform, &secret_of(theirs), key_of(shop))
        .await
        .unwrap();
    assert_eq!(refused, Err(ResolveError::UnknownKey(key_of(shop))));
    let known = asks_by_key(&platform, &secret_of(blog), key_of(shop))
        .await
        .unwrap();
    assert_eq!(known, Ok(Ports::All));
    assert_eq!(platform.coordinator.stats().denied, denied + 3);
    // Machines are not for apps to talk to.
    for index in [1, 2] {
        let address = HostUla::new(1, index).addr();
        assert!(
            asks(&platform, shop, address).await.unwrap().is_err(),
            "{address}"
        );
    }
    platform.stop().await;
}

#[tokio::test]
async fn machines_see_what_their_tags_allow() {
    let platform = Platform::start().await.unwrap();
    let edge = platform
        .join(&Invitation::of("edge").tagged("role:node"))
        .await
        .unwrap();
    let plain = platform.join(&Invitation::of("box2")).await.unwrap();
    let shop = platform.app(&Tenant::main(), "shop").await.unwrap();
    let tasks = Tasks::new();
    let as_edge = platform.remote(&edge.secret, &tasks).unwrap();
    let as_plain = platform.remote(&plain.secret, &tasks).unwrap();
    let address = AppUla::derive(shop.app).addr();
    assert_eq!(as_edge.by_address(address).await.unwrap().key, key_of(shop));
    assert_eq!(
        as_plain.by_address(address).await,
        Err(ResolveError::NoLease(address))
    );
    // Everybody reaches the machine that runs roles of the platform, which asks for a token itself.
    let core = HostUla::new(1, 1).addr();
    for remote in [&as_edge, &as_plain] {
        let record = remote.by_address(core).await.unwrap();
        assert_eq!(
            (record.key, record.addresses),
            (secret_named("core").public(), vec![core])
        );
        assert!(
            Leases::resolve(remote, core).await.is_err(),
            "no instance's lease"
        );
    }
    let other = plain.membership.certificate.address.addr();
    // A machine without a role is found by the platform's own, which look why it is badly reached.
    let found = as_edge.by_address(other).await.unwrap();
    assert_eq!(found.key, plain.secret.public());
    // Who is called learns who the edge is.
    let ports = asks_by_key(&platform, &secret_of(shop), edge.secret.public())
        .await
        .unwrap();
    assert_eq!(ports, Ok(Ports::All));
    let ports = asks_by_key(&platform, &secret_of(shop), plain.secret.public())
        .await
        .unwrap();
    // An app may ring a machine's doorbell, which opens nothing of its own to the machine.
    assert_eq!(ports, Ok(Ports::NOTHING));
    assert!(tasks.shutdown(WATCHDOG).await);
    platform.stop().await;
}

#[tokio::test]
async fn a_rule_opens_and_closes() {
    let platform = Platform::start().await.unwrap();
    platform.join(&Invitation::of("box2")).await.unwrap();
    let (main, other): (Tenant, Tenant) = (Tenant::main(), "other".parse().unwrap());
    let shop = platform.app(&main, "shop").await.unwrap();
    let theirs = platform.app(&other, "shop").await.unwrap();
    let tasks = Tasks::new();
    let remote = platform.remote(&secret_of(shop), &tasks).unwrap();
    let ask = Ask::Address(AppUla::derive(theirs.app).addr());
    eventually(|| async { if remote.is_live() { Ok(()) } else { Err(()) } })
        .await
        .unwrap();
    assert!(remote.peer(ask).await.is_err());

    let order = |tenant: &Tenant, allow| PolicyOrder {
        tenant: tenant.clone(),
        allow,
    };
    // The callers cannot open it, only those who are called.
    let rules = vec![rule("tenant:main", "tenant:other", &[8730])];
    platform
        .coordinator
        .change_policy(order(&main, rules.clone()))
        .await
        .unwrap();
    assert!(remote.peer(ask).await.is_err());
    platform
        .coordinator
        .change_policy(order(&other, rules.clone()))
        .await
        .unwrap();
    let (record, ports) = remote.peer(ask).await.unwrap();
    assert_eq!(record.key, key_of(theirs));
    assert_eq!(ports, Ports::Only(BTreeSet::from([8730])));
    // Said again, it is so already.
    platform
        .coordinator
        .change_policy(order(&other, rules))
        .await
        .unwrap();
    let history = history(&*platform.client).await.unwrap();
    let changes = history
        .iter()
        .filter(|event| event.kind == "policy_changed");
    assert_eq!(changes.count(), 2);

    // Taken back, it is forgotten by those who knew it, too.
    platform
        .coordinator
        .change_policy(order(&other, Vec::new()))
        .await
        .unwrap();
    let closed = || async {
        match remote.peer(ask).await {
            Err(_) => Ok(()),
            Ok(_) => Err(()),
        }
    };
    eventually(closed).await.unwrap();

    let bad = vec![rule("everybody", "tenant:other", &[])];
    let refused = platform.coordinator.change_policy(order(&other, bad)).await;
    assert!(matches!(refused, Err(Refusal::Invalid(_))), "{refused:?}");
    assert!(tasks.shutdown(WATCHDOG).await);
    platform.stop().await;
}
