//! Instances that are idle and wake up again: what is recorded, who answers for them, and whose word counts.

use std::time::Duration;

use tabbify_api::coordinator::{Ask, HostCertificate, SpawnTicket};
use tabbify_types::event::v1::LeaseGranted;
use tabbify_types::{InstanceUla, Tenant, Timestamp, VerifyingKeyBytes};

use super::*;
use crate::grant::exchange;
use crate::leases::{Holder, door, find, holder};
use crate::refusal::Refusal;

/// The machine that answers for an address with its doorbell, if it does.
fn door_at(world: &World, address: std::net::Ipv6Addr) -> Option<String> {
    let granted = find(&world.state, address)?;
    Some(door(&world.state, granted)?.host.to_string())
}

#[test]
fn who_is_idle_is_reached_through_its_machine_until_it_is_woken() {
    let script = format!(
        "{SHOP}{V1_SERVES}
        box1 says idled shop #1
        box1 says idled shop #1
        box1 says woken shop #1
        box1 says woken shop #1
        box1 says idled shop #1
        box1 says woken-with-another-key shop #1"
    );
    let world = run(&script).unwrap();
    let said = world
        .out
        .split("deploy_finished d1 Succeeded\n")
        .nth(1)
        .unwrap();
    expect![[r#"
        > box1 says idled shop #1
          tenant_main.apps app_idled AppIdled(AppIdled { of: InstanceRef { app: AppId(842add7b-70d7-2e01-d282-229a9c46b145), instance: InstanceId(1) } })
        > box1 says idled shop #1
          refused: the instance was not to be idle
        > box1 says woken shop #1
          tenant_main.apps app_woken AppWoken(AppWoken { of: InstanceRef { app: AppId(842add7b-70d7-2e01-d282-229a9c46b145), instance: InstanceId(1) }, key: Some(MeshKey(Y3/jnHlpA6VKr5+7LC+7AXue8L4uGTb6CJV2Y2jw8is=)), secrets: {} })
        > box1 says woken shop #1
          refused: the instance was not idle
        > box1 says idled shop #1
          tenant_main.apps app_idled AppIdled(AppIdled { of: InstanceRef { app: AppId(842add7b-70d7-2e01-d282-229a9c46b145), instance: InstanceId(1) } })
        > box1 says woken-with-another-key shop #1
          platform.mesh.peers lease_granted #1 on box1 epoch 1
          tenant_main.apps app_woken AppWoken(AppWoken { of: InstanceRef { app: AppId(842add7b-70d7-2e01-d282-229a9c46b145), instance: InstanceId(1) }, key: Some(MeshKey(HppCEVbaP5bXrwLPc4zygugSG88HdTr64U9MA1OmSsg=)), secrets: {} })
    "#]]
    .assert_eq(said);
    holds(&world).unwrap();

    let id = app_id("shop");
    let addresses = [
        AppUla::derive(id).addr(),
        InstanceUla::derive(id, InstanceId(1)).addr(),
    ];
    let idle = format!("{SHOP}{V1_SERVES}\nbox1 says idled shop #1");
    let awake = format!("{idle}\nbox1 says woken shop #1");
    for address in addresses {
        assert_eq!(
            door_at(&run(&idle).unwrap(), address).as_deref(),
            Some("box1")
        );
        assert_eq!(door_at(&run(&awake).unwrap(), address), None);
    }
}

#[test]
fn a_host_speaks_of_sleep_only_where_there_is_something_to_wake() {
    for (before, what, why) in [
        ("", "idled", "the instance was not to be idle"),
        (
            "box1 says starting shop #1",
            "idled",
            "the instance was not to be idle",
        ),
        (
            "box1 says starting shop #1",
            "woken",
            "the instance was not idle",
        ),
    ] {
        let script = format!("{SHOP}\ndeploy shop 1\n{before}\nbox1 says {what} shop #1");
        let world = run(&script).unwrap();
        assert!(
            world.out.ends_with(&format!("refused: {why}\n")),
            "{}",
            world.out
        );
    }
    let script = format!(
        "{SHOP}{V1_SERVES}
        machine box2 wasm-http
        box2 says idled shop #1"
    );
    let world = run(&script).unwrap();
    assert!(
        world
            .out
            .ends_with("refused: the instance does not run there\n"),
        "{}",
        world.out
    );
    let script = format!(
        "{SHOP}{V1_SERVES}
        box1 says idled shop #1
        box1 says woken-with-a-machine-s-key shop #1"
    );
    let world = run(&script).unwrap();
    assert!(
        world.out.ends_with("refused: its key belongs to another\n"),
        "{}",
        world.out
    );
}

/// A deploy of an idle app: the new instance comes up beside it, and it is retired as it sleeps.
#[test]
fn an_idle_instance_is_replaced_and_moved_like_another() {
    let script = format!(
        "{SHOP}{V1_SERVES}
        box1 says idled shop #1
        deploy shop 2
        box1 says starting shop #2
        box1 says started shop #2
        box1 says healthy shop #2
        box1 says stopped shop #1"
    );
    let world = run(&script).unwrap();
    let said = world.out.split("> deploy shop 2\n").nth(1).unwrap();
    expect![[r#"
          platform.hosts.box1 app_placed d2 v2 as #2 on box1 slot 0.0 epoch 2
          tenant_main.apps app_placed d2 v2 as #2 on box1 slot 0.0 epoch 2
        > box1 says starting shop #2
          tenant_main.apps app_starting #2
        > box1 says started shop #2
          platform.mesh.peers lease_granted #2 on box1 epoch 2
          tenant_main.apps app_started #2
        > box1 says healthy shop #2
          platform.hosts.box1 app_stop_requested #1 within 30000 ms
          tenant_main.apps app_healthy #2
          tenant_main.apps traffic_shifted d2 v2 to #2
          tenant_main.apps deploy_finished d2 Succeeded
          tenant_main.apps app_stop_requested #1 within 30000 ms
        > box1 says stopped shop #1
          platform.mesh.peers lease_released #1
          tenant_main.apps app_stopped #1
    "#]]
    .assert_eq(said);
    assert_eq!(door_at(&world, AppUla::derive(app_id("shop")).addr()), None);
    holds(&world).unwrap();
}

/// What its machine shows for the shop's first instance, with a key.
fn exchanged(world: &World, key: u8) -> Result<Option<Append>, Refusal> {
    let now = Timestamp::from_secs(1_000);
    let machine = world.state.hosts.values().next().unwrap().clone();
    let certificate = HostCertificate {
        host: machine.host.clone(),
        tenant: Tenant::system(),
        tags: machine.tags.clone(),
        address: machine.address,
        key: machine.key,
        signing: VerifyingKeyBytes([0; 32]),
        not_after: now.plus(Duration::from_secs(60)),
    };
    let ticket = SpawnTicket {
        app: app_id("shop"),
        instance: InstanceId(1),
        not_after: certificate.not_after,
    };
    exchange(
        &world.state,
        &certificate,
        &ticket,
        &MeshKey([key; 32]),
        now,
    )
}

/// The lease goes to this key, and the one before is nobody's.
fn moves(world: &mut World, key: u8) {
    let address = AppUla::derive(app_id("shop")).addr();
    let before = find(&world.state, address).unwrap().key;
    let batch = exchanged(world, key).unwrap().unwrap();
    world.append(batch).unwrap();
    let granted: &LeaseGranted = find(&world.state, address).unwrap();
    assert_eq!(granted.key, MeshKey([key; 32]));
    assert!(holder(&world.state, Ask::Key(before)).is_none());
    let holds_it = holder(&world.state, Ask::Key(MeshKey([key; 32])));
    assert!(matches!(holds_it, Some(Holder::Instance(_))));
    assert!(exchanged(world, key).unwrap().is_none(), "it has it");
}

fn is_taken(world: &World, key: u8) -> bool {
    matches!(exchanged(world, key), Err(Refusal::Conflict(_)))
}

/// The process that an idle instance had has ended: the lease goes to the key of the next one. That may end, too,
/// before its machine has said that it answers: then it goes to the key of the one after.
#[test]
fn a_ticket_moves_the_lease_of_an_idle_instance_until_app_woken() {
    let mut world = run(&format!("{SHOP}{V1_SERVES}")).unwrap();
    assert!(is_taken(&world, 7), "it is not idle");
    world.command("box1 says idled shop #1").unwrap();
    moves(&mut world, 7);
    // Still its machine's doorbell leads there, until it is said that it answers.
    assert!(door_at(&world, AppUla::derive(app_id("shop")).addr()).is_some());
    // The machine's supervisor ended, and found a process that was idle again: it has said nothing of it.
    moves(&mut world, 8);
    world.command("box1 says woken shop #1").unwrap();
    assert!(is_taken(&world, 9), "it is awake");
    world.command("box1 says idled shop #1").unwrap();
    moves(&mut world, 9);
}

/// A rollout that succeeds while one of its instances sleeps may raise that one's epoch.
#[test]
fn a_lease_that_is_written_anew_for_its_epoch_keeps_nobody_asleep() {
    let script = format!("{SHOP}{V1_SERVES}\nbox1 says idled shop #1");
    let mut world = run(&script).unwrap();
    let lease = find(&world.state, AppUla::derive(app_id("shop")).addr()).unwrap();
    let raised = LeaseGranted {
        epoch: lease.epoch.next(),
        ..lease.clone()
    };
    world.one(Segment::peers(), app_id("shop"), raised).unwrap();
    moves(&mut world, 7);
}
