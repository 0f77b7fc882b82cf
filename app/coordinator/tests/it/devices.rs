//! People's devices: recorded once, numbered for ever, gone with their person, and let to where policy lets
//! the person.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tabbify_api::coordinator::PolicyOrder;
use tabbify_api::device::{DEVICES_PER_PERSON_MAX, Device, DeviceOrder, DeviceRemoval, Devices};
use tabbify_api::log::Append;
use tabbify_api::policy::Ports;
use tabbify_api::{ErrorCode, Problem};
use tabbify_auth::OWNER;
use tabbify_coordinator::Coordinator;
use tabbify_process::Tasks;
use tabbify_types::event::Event;
use tabbify_types::event::v1::{AllowRule, RoleChanged};
use tabbify_types::{
    AppUla, DeviceUla, HostUla, InstanceUla, MeshKey, NewEvent, Position, Segment, Tenant,
};

use crate::platform::{Invitation, Platform, coordinator};
use crate::support::{Fallible, WATCHDOG, eventually, history};

fn key(n: usize) -> MeshKey {
    let mut bytes = [0xd0; 32];
    bytes[..8].copy_from_slice(&n.to_le_bytes());
    MeshKey(bytes)
}

fn order(name: &str, n: usize) -> DeviceOrder {
    DeviceOrder {
        user: OWNER.to_owned(),
        tenant: Tenant::main(),
        name: name.parse().expect("a device name"),
        key: key(n),
    }
}

async fn add(to: &Coordinator, order: DeviceOrder) -> Result<Device, Problem> {
    to.add(order, OWNER.to_owned()).await
}

async fn remove(from: &Coordinator, name: &str) -> Result<Device, Problem> {
    let DeviceOrder {
        user, tenant, name, ..
    } = order(name, 0);
    let removal = DeviceRemoval { user, tenant, name };
    from.remove(removal, OWNER.to_owned()).await
}

fn code(refused: Result<Device, Problem>) -> Option<ErrorCode> {
    refused.err().map(|problem| problem.code)
}

async fn changed(devices: &Coordinator, after: Position) -> Fallible<Position> {
    Ok(tokio::time::timeout(WATCHDOG, devices.changed(after)).await?)
}

#[tokio::test]
async fn a_device_is_added_once_and_its_number_never_given_again() {
    let platform = Platform::start().await.unwrap();
    let devices = &platform.coordinator;
    let laptop = add(devices, order("laptop", 1)).await.unwrap();
    assert_eq!(laptop.address, DeviceUla::new(1));
    assert_eq!(devices.by_key(&key(1)), Ok(Some(laptop.clone())));
    let written = history(&*platform.client).await.unwrap().len();
    assert_eq!(add(devices, order("laptop", 1)).await, Ok(laptop.clone()));
    assert_eq!(
        history(&*platform.client).await.unwrap().len(),
        written,
        "twice is once"
    );

    let conflict = Some(ErrorCode::Conflict);
    assert_eq!(code(add(devices, order("laptop", 2)).await), conflict);
    assert_eq!(code(add(devices, order("phone", 1)).await), conflict);
    let core = crate::platform::secret_named("core").public();
    let of_a_machine = DeviceOrder {
        key: core,
        ..order("phone", 2)
    };
    assert_eq!(code(add(devices, of_a_machine).await), conflict);
    let of_a_stranger = DeviceOrder {
        user: "user:nobody".to_owned(),
        ..order("phone", 2)
    };
    let elsewhere = DeviceOrder {
        tenant: "other".parse().unwrap(),
        ..order("phone", 2)
    };
    for wrong in [of_a_stranger, elsewhere] {
        assert_eq!(code(add(devices, wrong).await), Some(ErrorCode::BadRequest));
    }
    assert_eq!(devices.all(), Ok(vec![laptop.clone()]));

    assert_eq!(remove(devices, "laptop").await, Ok(laptop));
    assert_eq!(devices.by_key(&key(1)), Ok(None));
    assert_eq!(
        code(remove(devices, "laptop").await),
        Some(ErrorCode::NotFound)
    );
    let again = add(devices, order("laptop", 1)).await.unwrap();
    assert_eq!(again.address, DeviceUla::new(2));
    platform.stop().await;
}

#[tokio::test]
async fn two_coordinators_give_every_device_a_number_of_its_own() {
    let platform = Platform::start().await.unwrap();
    let mine = platform.log.client(Coordinator::log_scope());
    let (auth, clock, tasks) = (&platform.auth, platform.clock(), Tasks::new());
    let second = coordinator("second", mine, auth, clock, None, &tasks)
        .await
        .unwrap();
    let adding = (0..16).map(|n| {
        let to = if n % 2 == 0 {
            &platform.coordinator
        } else {
            &second
        };
        async move { add(to, order(&format!("d{n}"), n)).await }
    });
    let added = futures_util::future::join_all(adding).await;
    let numbers: BTreeSet<u32> = added
        .into_iter()
        .map(|device| device.unwrap().address.number())
        .collect();
    assert_eq!(numbers, (1..=16).collect());

    // The same key, by both at once: one device has it.
    let (one, other) = tokio::join!(
        add(&platform.coordinator, order("twin-a", 99)),
        add(&second, order("twin-b", 99)),
    );
    assert_eq!(usize::from(one.is_ok()) + usize::from(other.is_ok()), 1);
    // Both know the same, and so does one that begins.
    let head = history(&*platform.client).await.unwrap().len();
    let third = platform.log.client(Coordinator::log_scope());
    let third = coordinator("third", third, auth, platform.clock(), None, &tasks)
        .await
        .unwrap();
    let all = third.all().unwrap();
    assert_eq!((all.len(), head > 17), (17, true));
    for coordinator in [&platform.coordinator, &second] {
        assert_eq!(coordinator.all().unwrap(), all);
    }
    assert!(tasks.shutdown(WATCHDOG).await);
    platform.stop().await;
}

#[tokio::test]
async fn a_person_has_so_many_devices_and_no_more() {
    let platform = Platform::start().await.unwrap();
    for n in 0..DEVICES_PER_PERSON_MAX {
        add(&platform.coordinator, order(&format!("d{n}"), n))
            .await
            .unwrap();
    }
    let over = add(&platform.coordinator, order("over", 1000)).await;
    assert_eq!(code(over), Some(ErrorCode::Conflict));
    remove(&platform.coordinator, "d0").await.unwrap();
    add(&platform.coordinator, order("over", 1000))
        .await
        .unwrap();
    platform.stop().await;
}

#[tokio::test]
async fn a_device_gets_where_its_person_may_and_hears_of_changes() {
    let platform = Platform::start().await.unwrap();
    platform.join(&Invitation::of("box2")).await.unwrap();
    let devices = &platform.coordinator;
    let other: Tenant = "other".parse().unwrap();
    let shop = platform.app(&Tenant::main(), "shop").await.unwrap();
    let theirs = platform.app(&other, "shop").await.unwrap();
    add(devices, order("laptop", 1)).await.unwrap();

    let reach = |to| devices.reach(&key(1), to).unwrap();
    assert_eq!(reach(AppUla::derive(shop.app).addr()), Some(Ports::All));
    let instance = InstanceUla::derive(shop.app, shop.instance).addr();
    assert_eq!(reach(instance), Some(Ports::All));
    let foreign = AppUla::derive(theirs.app).addr();
    assert_eq!(reach(foreign), None);
    assert_eq!(reach(HostUla::new(1, 1).addr()), None, "a machine");
    assert_eq!(reach(DeviceUla::new(1).addr()), None, "a device");
    let shop = AppUla::derive(shop.app).addr();
    assert_eq!(devices.reach(&key(2), shop), Ok(None), "nobody's key");

    let before = changed(devices, Position(0)).await.unwrap();
    let unchanged = tokio::time::timeout(Duration::from_millis(50), devices.changed(before));
    assert!(unchanged.await.is_err());
    let allow = vec![AllowRule {
        from: OWNER.to_owned(),
        to: "tenant:other".to_owned(),
        ports: vec![9000],
    }];
    let rules = |allow| PolicyOrder {
        tenant: other.clone(),
        allow,
    };
    devices.change_policy(rules(allow)).await.unwrap();
    let opened = changed(devices, before).await.unwrap();
    assert_eq!(reach(foreign), Some(Ports::Only(BTreeSet::from([9000]))));
    devices.change_policy(rules(Vec::new())).await.unwrap();
    changed(devices, opened).await.unwrap();
    assert_eq!(reach(foreign), None);
    platform.stop().await;
}

#[tokio::test]
async fn who_leaves_a_tenant_leaves_with_every_device() {
    let platform = Platform::start().await.unwrap();
    let devices = &platform.coordinator;
    let role = |role: Option<&str>| -> Event {
        RoleChanged {
            user: "user:anna".to_owned(),
            tenant: Tenant::main(),
            role: role.map(str::to_owned),
        }
        .into()
    };
    let write = async |event: Event| {
        let new = NewEvent::new(Segment::auth(), "user:anna", &event).unwrap();
        let batch = Append::of(vec![new]);
        platform.client.append(batch).await.unwrap();
    };
    write(role(Some("developer"))).await;
    let annas = |n| DeviceOrder {
        user: "user:anna".to_owned(),
        ..order("laptop", n)
    };
    // It is folded a moment after it was written.
    eventually(|| add(devices, annas(1))).await.unwrap();
    add(devices, order("laptop", 2)).await.unwrap();
    let before = changed(devices, Position(0)).await.unwrap();
    write(role(None)).await;
    changed(devices, before).await.unwrap();
    assert_eq!(devices.by_key(&key(1)), Ok(None));
    assert!(devices.by_key(&key(2)).unwrap().is_some(), "the owner's");
    assert_eq!(
        code(add(devices, annas(1)).await),
        Some(ErrorCode::BadRequest)
    );
    let _: Arc<dyn Devices> = Arc::new(devices.clone());
    platform.stop().await;
}
