//! Names: what leads where, for whom, and that whoever may not reach it learns nothing.

use tabbify_api::coordinator::PolicyOrder;
use tabbify_api::names::{MeshName, NameAsk, NameError, Named, Names};
use tabbify_process::Tasks;
use tabbify_types::event::v1::AllowRule;
use tabbify_types::{AppUla, HostUla, InstanceUla, Tenant};

use crate::platform::{Invitation, Platform};
use crate::support::{WATCHDOG, eventually, key_of, secret_of};

fn name(text: &str) -> NameAsk {
    NameAsk::Name(text.parse().expect("a name of the test's own"))
}

/// As a public edge does: every app, and machines with roles.
async fn sees_everything(names: &dyn Names, theirs: &Named) {
    let found = names.find(NameAsk::Name(theirs.name.clone())).await;
    assert_eq!(found.as_ref(), Ok(theirs));
    let core = names
        .find(name("core.internal"))
        .await
        .expect("the machine of the coordinator has a name");
    assert_eq!(core.address, HostUla::new(1, 1).addr());
    assert_eq!(core.name, MeshName::Host("core".parse().expect("a name")));
    let plain = names.find(name("box2.internal")).await;
    let plain = plain.expect("a machine without a role is found by the platform's own");
    assert_eq!(plain.name, MeshName::Host("box2".parse().expect("a name")));
}

#[tokio::test]
async fn a_tenant_sees_its_own_names() {
    let platform = Platform::start().await.unwrap();
    let edge = Invitation::of("edge").tagged("role:node");
    let edge = platform.join(&edge).await.unwrap();
    platform.join(&Invitation::of("box2")).await.unwrap();
    let (main, other): (Tenant, Tenant) = (Tenant::main(), "other".parse().unwrap());
    let shop = platform.app(&main, "shop").await.unwrap();
    let blog = platform.app(&main, "blog").await.unwrap();
    let theirs = platform.app(&other, "shop").await.unwrap();
    let tasks = Tasks::new();
    let as_shop = platform.remote(&secret_of(shop), &tasks).unwrap();
    let as_edge = platform.remote(&edge.secret, &tasks).unwrap();

    let named = |text: &str, address| Named {
        name: text.parse().unwrap(),
        address,
    };
    let of_blog = named("blog.main.internal", AppUla::derive(blog.app).addr());
    let of_theirs = named("shop.other.internal", AppUla::derive(theirs.app).addr());
    assert_eq!(
        as_shop.find(name("blog.main.internal")).await,
        Ok(of_blog.clone())
    );
    // Without asking again.
    let asked = as_shop.stats().asked;
    assert_eq!(
        as_shop.find(name("BLOG.main.internal.")).await,
        Ok(of_blog.clone())
    );
    assert_eq!(as_shop.stats().asked, asked);
    // The other way round, for the app and for the instance.
    let instance = InstanceUla::derive(blog.app, blog.instance).addr();
    for address in [of_blog.address, instance] {
        let found = as_shop.find(NameAsk::Address(address)).await;
        assert_eq!(found, Ok(of_blog.clone()), "{address}");
    }

    // What is another tenant's is nobody's, and so are machines.
    let unnamed = platform.coordinator.stats().unnamed;
    let hidden = [
        name("shop.other.internal"),
        name("nobody.main.internal"),
        name("shop.nobody.internal"),
        name("core.internal"),
        name("box2.internal"),
        NameAsk::Address(of_theirs.address),
        NameAsk::Address(HostUla::new(1, 1).addr()),
        NameAsk::Address("::1".parse().unwrap()),
    ];
    for ask in hidden.clone() {
        let refused = as_shop.find(ask.clone()).await;
        assert_eq!(refused, Err(NameError::Unknown(ask)));
    }
    let counted = platform.coordinator.stats().unnamed - unnamed;
    assert_eq!(counted, hidden.len() as u64);

    sees_everything(&as_edge, &of_theirs).await;
    // In this process it is the same.
    let in_process = platform.coordinator.names_of(edge.secret.public());
    sees_everything(&in_process, &of_theirs).await;
    // Who is nobody is told nothing.
    let stranger = platform
        .coordinator
        .names_of(tabbify_types::MeshKey([9; 32]));
    assert!(matches!(
        stranger.find(name("shop.main.internal")).await,
        Err(NameError::Unreachable(_))
    ));
    assert!(tasks.shutdown(WATCHDOG).await);
    platform.stop().await;
}

#[tokio::test]
async fn a_rule_makes_a_name_known_and_an_outage_does_not_take_it_away() {
    let platform = Platform::start().await.unwrap();
    platform.join(&Invitation::of("box2")).await.unwrap();
    let other: Tenant = "other".parse().unwrap();
    let shop = platform.app(&Tenant::main(), "shop").await.unwrap();
    let theirs = platform.app(&other, "api").await.unwrap();
    let tasks = Tasks::new();
    let remote = platform.remote(&secret_of(shop), &tasks).unwrap();
    let ask = name("api.other.internal");
    assert_eq!(
        remote.find(ask.clone()).await,
        Err(NameError::Unknown(ask.clone()))
    );
    let rule = AllowRule {
        from: "tenant:main".to_owned(),
        to: format!("app:{}", theirs.app),
        ports: vec![8730],
    };
    let order = PolicyOrder {
        tenant: other,
        allow: vec![rule],
    };
    platform.coordinator.change_policy(order).await.unwrap();
    eventually(|| remote.find(ask.clone())).await.unwrap();

    // With the coordinator away, who is known is known, and who is not cannot be asked for.
    assert_eq!(remote.own(), key_of(shop));
    platform.stop().await;
    let address = AppUla::derive(theirs.app).addr();
    assert_eq!(remote.find(ask).await.unwrap().address, address);
    let unknown = remote.find(name("blog.main.internal")).await.unwrap_err();
    assert!(matches!(unknown, NameError::Unreachable(_)), "{unknown:?}");
    assert!(tasks.shutdown(WATCHDOG).await);
}
