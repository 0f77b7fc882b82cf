//! The plan, by text scripts: commands of people and machines go in, what is appended comes out.
//!
//! A little log without disk gives positions and revisions; every batch that is planned is written
//! and read back until nothing is left to answer.

use std::collections::{BTreeMap, BTreeSet};

use expect_test::{Expect as Snapshot, expect};
use proptest::prelude::{
    Just, ProptestConfig, Strategy, any, prop_assert_eq, prop_oneof, proptest,
};
use tabbify_api::fold::Fold as _;
use tabbify_types::AppUla;
use tabbify_types::event::v1::{AppRegistered, AppStopped, DeployRequested};

use super::*;
use crate::app::{Instance, Phase};
use crate::state::State;

mod idle;
mod machines;
mod place;
mod replicas;
mod world;

use world::{Fallible, PERCENT, World, app_id, run};

/// Runs a script; what it says is as expected, and what always holds does.
fn check(script: &str, expected: &Snapshot) {
    let world = run(script).unwrap();
    expected.assert_eq(&world.out);
    holds(&world).unwrap();
}

const SHOP: &str = "
    machine box1 wasm-http
    app shop
    publish shop 1 wasm-http
    publish shop 2 wasm-http
    publish shop 3 wasm-http
";

const V1_SERVES: &str = "
    deploy shop 1
    box1 says starting shop #1
    box1 says started shop #1
    box1 says healthy shop #1
";

#[test]
fn a_first_deploy_and_the_next() {
    let script = format!(
        "{SHOP}{V1_SERVES}
        deploy shop 2
        box1 says starting shop #2
        box1 says started shop #2
        box1 says healthy shop #2
        box1 says drained shop #1
        box1 says stopped shop #1"
    );
    check(
        &script,
        &expect![[r#"
        > machine box1 wasm-http
        > app shop
        > publish shop 1 wasm-http
        > publish shop 2 wasm-http
        > publish shop 3 wasm-http
        > deploy shop 1
          platform.hosts.box1 app_placed d1 v1 as #1 on box1 slot 0.0 epoch 1
          tenant_main.apps app_placed d1 v1 as #1 on box1 slot 0.0 epoch 1
        > box1 says starting shop #1
          tenant_main.apps app_starting #1
        > box1 says started shop #1
          platform.mesh.peers lease_granted #1 on box1 epoch 1
          tenant_main.apps app_started #1
        > box1 says healthy shop #1
          tenant_main.apps app_healthy #1
          tenant_main.apps traffic_shifted d1 v1 to #1
          tenant_main.apps deploy_finished d1 Succeeded
        > deploy shop 2
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
        > box1 says drained shop #1
          tenant_main.apps instance_drained #1
        > box1 says stopped shop #1
          platform.mesh.peers lease_released #1
          tenant_main.apps app_stopped #1
    "#]],
    );
}

#[test]
fn a_deploy_that_fails_leaves_what_serves() {
    let script = format!(
        "{SHOP}
        deploy shop 1
        box1 says failed shop #1
        deploy shop 2
        box1 says starting shop #2
        box1 says started shop #2
        box1 says healthy shop #2
        deploy shop 3
        box1 says started shop #3
        box1 says failed shop #3
        deploy shop 9"
    );
    check(
        &script,
        &expect![[r#"
        > machine box1 wasm-http
        > app shop
        > publish shop 1 wasm-http
        > publish shop 2 wasm-http
        > publish shop 3 wasm-http
        > deploy shop 1
          platform.hosts.box1 app_placed d1 v1 as #1 on box1 slot 0.0 epoch 1
          tenant_main.apps app_placed d1 v1 as #1 on box1 slot 0.0 epoch 1
        > box1 says failed shop #1
          tenant_main.apps app_failed #1 Exited
          tenant_main.apps deploy_finished d1 Failed It exited with code 1.
        > deploy shop 2
          platform.hosts.box1 app_placed d2 v2 as #2 on box1 slot 0.0 epoch 2
          tenant_main.apps app_placed d2 v2 as #2 on box1 slot 0.0 epoch 2
        > box1 says starting shop #2
          tenant_main.apps app_starting #2
        > box1 says started shop #2
          platform.mesh.peers lease_granted #2 on box1 epoch 2
          tenant_main.apps app_started #2
        > box1 says healthy shop #2
          tenant_main.apps app_healthy #2
          tenant_main.apps traffic_shifted d2 v2 to #2
          tenant_main.apps deploy_finished d2 Succeeded
        > deploy shop 3
          platform.hosts.box1 app_placed d3 v3 as #3 on box1 slot 0.0 epoch 3
          tenant_main.apps app_placed d3 v3 as #3 on box1 slot 0.0 epoch 3
        > box1 says started shop #3
          platform.mesh.peers lease_granted #3 on box1 epoch 3
          tenant_main.apps app_started #3
        > box1 says failed shop #3
          platform.mesh.peers lease_released #3
          tenant_main.apps app_failed #3 Exited
          tenant_main.apps deploy_finished d3 Failed It exited with code 1. v2 still serves.
        > deploy shop 9
          tenant_main.apps deploy_finished d4 Failed v9 is not published. v2 still serves.
    "#]],
    );
}

#[test]
fn a_newer_deploy_supersedes() {
    let script = format!(
        "{SHOP}{V1_SERVES}
        deploy shop 2
        box1 says started shop #2
        deploy shop 3
        deploy shop 3 again
        box1 says healthy shop #2
        box1 says stopped shop #2
        box1 says started shop #3
        box1 says healthy shop #3"
    );
    check(
        &script,
        &expect![[r#"
        > machine box1 wasm-http
        > app shop
        > publish shop 1 wasm-http
        > publish shop 2 wasm-http
        > publish shop 3 wasm-http
        > deploy shop 1
          platform.hosts.box1 app_placed d1 v1 as #1 on box1 slot 0.0 epoch 1
          tenant_main.apps app_placed d1 v1 as #1 on box1 slot 0.0 epoch 1
        > box1 says starting shop #1
          tenant_main.apps app_starting #1
        > box1 says started shop #1
          platform.mesh.peers lease_granted #1 on box1 epoch 1
          tenant_main.apps app_started #1
        > box1 says healthy shop #1
          tenant_main.apps app_healthy #1
          tenant_main.apps traffic_shifted d1 v1 to #1
          tenant_main.apps deploy_finished d1 Succeeded
        > deploy shop 2
          platform.hosts.box1 app_placed d2 v2 as #2 on box1 slot 0.0 epoch 2
          tenant_main.apps app_placed d2 v2 as #2 on box1 slot 0.0 epoch 2
        > box1 says started shop #2
          platform.mesh.peers lease_granted #2 on box1 epoch 2
          tenant_main.apps app_started #2
        > deploy shop 3
          platform.hosts.box1 app_stop_requested #2 within 30000 ms
          platform.hosts.box1 app_placed d3 v3 as #3 on box1 slot 0.0 epoch 3
          tenant_main.apps deploy_superseded d2 by d3
          tenant_main.apps app_stop_requested #2 within 30000 ms
          tenant_main.apps app_placed d3 v3 as #3 on box1 slot 0.0 epoch 3
        > deploy shop 3 again
        > box1 says healthy shop #2
          tenant_main.apps app_healthy #2
        > box1 says stopped shop #2
          platform.mesh.peers lease_released #2
          tenant_main.apps app_stopped #2
        > box1 says started shop #3
          platform.mesh.peers lease_granted #3 on box1 epoch 3
          tenant_main.apps app_started #3
        > box1 says healthy shop #3
          platform.hosts.box1 app_stop_requested #1 within 30000 ms
          tenant_main.apps app_healthy #3
          tenant_main.apps traffic_shifted d3 v3 to #3
          tenant_main.apps deploy_finished d3 Succeeded
          tenant_main.apps app_stop_requested #1 within 30000 ms
    "#]],
    );
}

#[test]
fn a_deploy_that_cannot_begin_takes_nothing_over() {
    let script = "
        machine box1 wasm-http docker=/var/run/docker.sock,_permission_denied
        machine booooooooooooooooooooooooooooooooooooooooooooooooooooooooooooox wasm-http
        app shop
        publish shop 1 wasm-http
        publish shop 2 docker
        publish shop 3 wasm-http+65115
        deploy shop 1
        deploy shop 2
        deploy shop 3
        box1 says started shop #1
        box1 says healthy shop #1
        deploy shop 2";
    check(
        script,
        &expect![[r#"
            > machine box1 wasm-http docker=/var/run/docker.sock,_permission_denied
            > machine booooooooooooooooooooooooooooooooooooooooooooooooooooooooooooox wasm-http
            > app shop
            > publish shop 1 wasm-http
            > publish shop 2 docker
            > publish shop 3 wasm-http+65115
            > deploy shop 1
              platform.hosts.booooooooooooooooooooooooooooooooooooooooooooooooooooooooooooox app_placed d1 v1 as #1 on booooooooooooooooooooooooooooooooooooooooooooooooooooooooooooox slot 0.0 epoch 1
              tenant_main.apps app_placed d1 v1 as #1 on booooooooooooooooooooooooooooooooooooooooooooooooooooooooooooox slot 0.0 epoch 1
            > deploy shop 2
              tenant_main.apps deploy_finished d2 Failed No machine can run docker. booooooooooooooooooooooooooooooooooooooooooooooooooooooooooooox: cannot run it. box1: /var/run/docker.sock, permission denied.
            > deploy shop 3
              platform.hosts.booooooooooooooooooooooooooooooooooooooooooooooooooooooooooooox app_stop_requested #1 within 30000 ms
              platform.hosts.box1 app_placed d3 v3 as #2 on box1 slot 0.0 epoch 2
              tenant_main.apps deploy_superseded d1 by d3
              tenant_main.apps app_stop_requested #1 within 30000 ms
              tenant_main.apps app_placed d3 v3 as #2 on box1 slot 0.0 epoch 2
            > box1 says started shop #1
              refused: the instance does not run there
            > box1 says healthy shop #1
              refused: the instance does not run there
            > deploy shop 2
              tenant_main.apps deploy_finished d4 Failed No machine can run docker. booooooooooooooooooooooooooooooooooooooooooooooooooooooooooooox: cannot run it. box1: /var/run/docker.sock, permission denied.
        "#]],
    );
}

#[test]
fn machines_share_the_load() {
    let script = "
        app a
        app b
        app c
        publish a 1 wasm-http
        publish b 1 wasm-http
        publish c 1 docker
        deploy a 1
        machine box2 wasm-http docker
        machine box1 wasm-http
        deploy a 1
        deploy b 1
        deploy c 1";
    check(
        script,
        &expect![[r#"
        > app a
        > app b
        > app c
        > publish a 1 wasm-http
        > publish b 1 wasm-http
        > publish c 1 docker
        > deploy a 1
          tenant_main.apps deploy_finished d1 Failed No machine can run wasm-http. No machine has joined.
        > machine box2 wasm-http docker
        > machine box1 wasm-http
        > deploy a 1
          platform.hosts.box1 app_placed d2 v1 as #1 on box1 slot 0.0 epoch 1
          tenant_main.apps app_placed d2 v1 as #1 on box1 slot 0.0 epoch 1
        > deploy b 1
          platform.hosts.box2 app_placed d3 v1 as #1 on box2 slot 0.0 epoch 1
          tenant_main.apps app_placed d3 v1 as #1 on box2 slot 0.0 epoch 1
        > deploy c 1
          platform.hosts.box2 app_placed d4 v1 as #1 on box2 slot 0.0 epoch 1
          tenant_main.apps app_placed d4 v1 as #1 on box2 slot 0.0 epoch 1
    "#]],
    );
}

#[test]
fn what_serves_is_replaced_when_it_dies() {
    let script = format!(
        "{SHOP}{V1_SERVES}
        box1 says failed shop #1
        box1 says failed shop #2
        box1 says started shop #3
        deploy shop 2
        box1 says healthy shop #3
        box1 says started shop #4
        box1 says healthy shop #4
        box1 says failed shop #3
        box1 says failed shop #4"
    );
    check(
        &script,
        &expect![[r#"
        > machine box1 wasm-http
        > app shop
        > publish shop 1 wasm-http
        > publish shop 2 wasm-http
        > publish shop 3 wasm-http
        > deploy shop 1
          platform.hosts.box1 app_placed d1 v1 as #1 on box1 slot 0.0 epoch 1
          tenant_main.apps app_placed d1 v1 as #1 on box1 slot 0.0 epoch 1
        > box1 says starting shop #1
          tenant_main.apps app_starting #1
        > box1 says started shop #1
          platform.mesh.peers lease_granted #1 on box1 epoch 1
          tenant_main.apps app_started #1
        > box1 says healthy shop #1
          tenant_main.apps app_healthy #1
          tenant_main.apps traffic_shifted d1 v1 to #1
          tenant_main.apps deploy_finished d1 Succeeded
        > box1 says failed shop #1
          platform.hosts.box1 app_placed d1 v1 as #2 on box1 slot 0.0 epoch 2
          platform.mesh.peers lease_released #1
          tenant_main.apps app_failed #1 Exited
          tenant_main.apps app_placed d1 v1 as #2 on box1 slot 0.0 epoch 2
        > box1 says failed shop #2
          platform.hosts.box1 app_placed d1 v1 as #3 on box1 slot 0.0 epoch 3
          tenant_main.apps app_failed #2 Exited
          tenant_main.apps app_placed d1 v1 as #3 on box1 slot 0.0 epoch 3
        > box1 says started shop #3
          platform.mesh.peers lease_granted #3 on box1 epoch 3
          tenant_main.apps app_started #3
        > deploy shop 2
          platform.hosts.box1 app_placed d2 v2 as #4 on box1 slot 0.0 epoch 4
          tenant_main.apps app_placed d2 v2 as #4 on box1 slot 0.0 epoch 4
        > box1 says healthy shop #3
          tenant_main.apps app_healthy #3
          tenant_main.apps traffic_shifted d1 v1 to #3
        > box1 says started shop #4
          platform.mesh.peers lease_granted #4 on box1 epoch 4
          tenant_main.apps app_started #4
        > box1 says healthy shop #4
          platform.hosts.box1 app_stop_requested #3 within 30000 ms
          tenant_main.apps app_healthy #4
          tenant_main.apps traffic_shifted d2 v2 to #4
          tenant_main.apps deploy_finished d2 Succeeded
          tenant_main.apps app_stop_requested #3 within 30000 ms
        > box1 says failed shop #3
          platform.mesh.peers lease_released #3
          tenant_main.apps app_failed #3 Exited
        > box1 says failed shop #4
          platform.hosts.box1 app_placed d2 v2 as #5 on box1 slot 0.0 epoch 5
          platform.mesh.peers lease_released #4
          tenant_main.apps app_failed #4 Exited
          tenant_main.apps app_placed d2 v2 as #5 on box1 slot 0.0 epoch 5
    "#]],
    );
}

#[test]
fn replacements_in_a_row_are_limited() {
    let mut script = format!("{SHOP}{V1_SERVES}");
    for n in 1..=11 {
        // It even becomes healthy each time: that alone does not start the count again.
        script.push_str(&format!(
            "box1 says failed shop #{n}\nbox1 says started shop #{}\n",
            n + 1
        ));
        script.push_str(&format!("box1 says healthy shop #{}\n", n + 1));
    }
    let world = run(&script).unwrap();
    let placed = world
        .log
        .iter()
        .filter(|event| event.kind == "app_placed")
        .count();
    // Once in the tenant's segment and once in the host's, for the first and ten successors.
    assert_eq!(placed, 2 * 11, "{}", world.out);

    let mut script = format!("{SHOP}{V1_SERVES}");
    for n in 1..=15 {
        script.push_str(&format!("minutes 10\nbox1 says failed shop #{n}\n"));
        script.push_str(&format!("box1 says started shop #{}\n", n + 1));
        script.push_str(&format!("box1 says healthy shop #{}\n", n + 1));
    }
    let world = run(&script).unwrap();
    let placed = world
        .log
        .iter()
        .filter(|event| event.kind == "app_placed")
        .count();
    assert_eq!(placed, 2 * 16, "{}", world.out);
}

#[test]
fn what_cannot_be_true_is_refused() {
    let script = format!(
        "{SHOP}
        machine box2 docker
        deploy shop 1
        box1 says healthy shop #1
        box1 says drained shop #1
        box2 says starting shop #1
        box1 says starting shop #2
        box1 says starting other #1
        box1 says traffic shop #1
        box1 says started-elsewhere shop #1
        box1 says started-with-a-machine-s-key shop #1
        box1 says started shop #1
        box1 says started shop #1
        box1 says starting shop #1
        box1 says failed shop #1
        box1 says healthy shop #1
        box1 says stopped shop #1"
    );
    check(
        &script,
        &expect![[r#"
            > machine box1 wasm-http
            > app shop
            > publish shop 1 wasm-http
            > publish shop 2 wasm-http
            > publish shop 3 wasm-http
            > machine box2 docker
            > deploy shop 1
              platform.hosts.box1 app_placed d1 v1 as #1 on box1 slot 0.0 epoch 1
              tenant_main.apps app_placed d1 v1 as #1 on box1 slot 0.0 epoch 1
            > box1 says healthy shop #1
              refused: app_healthy cannot follow Placed
            > box1 says drained shop #1
              refused: the instance was not to drain
            > box2 says starting shop #1
              refused: the instance does not run there
            > box1 says starting shop #2
              refused: the instance does not run there
            > box1 says starting other #1
              refused: there is no such app
            > box1 says traffic shop #1
              refused: a host does not report traffic_shifted
            > box1 says started-elsewhere shop #1
              refused: its addresses are not the instance's
            > box1 says started-with-a-machine-s-key shop #1
              refused: its key belongs to another
            > box1 says started shop #1
              platform.mesh.peers lease_granted #1 on box1 epoch 1
              tenant_main.apps app_started #1
            > box1 says started shop #1
              refused: app_started cannot follow Started
            > box1 says starting shop #1
              refused: app_starting cannot follow Started
            > box1 says failed shop #1
              platform.mesh.peers lease_released #1
              tenant_main.apps app_failed #1 Exited
              tenant_main.apps deploy_finished d1 Failed It exited with code 1.
            > box1 says healthy shop #1
              refused: the instance does not run there
            > box1 says stopped shop #1
              refused: the instance does not run there
        "#]],
    );
}

#[test]
fn reports_that_are_not_events_stop_nothing() {
    let mut world = run(SHOP).unwrap();
    let host = Segment::host_reports(&"box1".parse().unwrap());
    let event = Event::from(AppStopped {
        of: InstanceRef {
            app: app_id("shop"),
            instance: InstanceId(1),
        },
    });
    let mut new = NewEvent::new(host, "shop", &event).unwrap();
    new.version = 9;
    world.append(Append::of(vec![new])).unwrap();
    assert!(
        world
            .out
            .ends_with("newer than this program understands; upgrade it\n"),
        "{}",
        world.out
    );
}

#[test]
fn another_tenant_cannot_speak_about_an_app() {
    let mut world = run(SHOP).unwrap();
    let before = world.state.clone();
    let (app, deploy, version) = (app_id("shop"), DeployId::mint(), VersionNumber(1));
    let other = Segment::apps(&"other".parse().unwrap());
    world
        .one(
            other.clone(),
            app,
            DeployRequested {
                app,
                deploy,
                version,
            },
        )
        .unwrap();
    let (tenant, name) = ("other".parse().unwrap(), "shop".parse().unwrap());
    let address = AppUla::derive(app);
    world
        .one(
            other,
            app,
            AppRegistered {
                app,
                tenant,
                name,
                address,
            },
        )
        .unwrap();
    assert_eq!(world.state.apps, before.apps);
    assert_eq!(world.state.addresses, before.addresses);
    assert!(plan(&world.state, PERCENT).unwrap().is_empty());
}

/// What is true of everything that was written; the deploys that have an outcome.
fn log_holds(world: &World) -> Fallible<BTreeSet<DeployId>> {
    let mut numbers = BTreeSet::new();
    let mut epochs: BTreeMap<(AppId, SlotId), u32> = BTreeMap::new();
    let mut finished = BTreeSet::new();
    let mut orders = 0_i32;
    for event in &world.log {
        let host = event.segment.as_str().starts_with("platform.hosts.");
        match event.event()? {
            Some(Event::AppPlaced(_) | Event::AppStopRequested(_)) if host => orders += 1,
            Some(Event::AppPlaced(it)) => {
                orders -= 1;
                assert!(
                    numbers.insert((it.app, it.instance)),
                    "an instance number twice"
                );
                let last = epochs.insert((it.app, it.slot), it.epoch.get());
                assert!(last.unwrap_or(0) < it.epoch.get(), "an epoch does not grow");
            }
            Some(Event::AppStopRequested(_)) => orders -= 1,
            Some(Event::DeployFinished(it)) => {
                assert!(finished.insert(it.deploy), "a deploy has two outcomes");
            }
            Some(Event::DeploySuperseded(it)) => {
                assert!(finished.insert(it.deploy), "a deploy has two outcomes");
            }
            _ => {}
        }
    }
    assert_eq!(
        orders, 0,
        "every order to a host is also a fact, and the other way round"
    );
    Ok(finished)
}

/// What is true after every script, whatever machines say.
fn holds(world: &World) -> Fallible<()> {
    let finished = log_holds(world)?;
    indexes_hold(&world.state);
    for app in world.state.apps.values() {
        let waits = |cause: &Cause| match &cause.what {
            What::Deploy { .. } => {
                let mut holders = app.holders().map(|it| &app.instances[&it]);
                app.holders().next().is_some() && holders.all(|it| it.stop_requested)
            }
            What::Report { .. } => false,
        };
        assert!(app.open.values().all(waits), "a cause is left");
        for (id, instance) in &app.instances {
            assert!(
                instance.reported < Phase::Ended,
                "an ended instance is kept"
            );
            let wanted = app.rollout.as_ref().is_some_and(|it| it.awaits(*id))
                || app
                    .serving
                    .as_ref()
                    .is_some_and(|it| it.instances.contains(id))
                || app.successors.values().any(|it| it == id);
            assert!(wanted || instance.stop_requested, "#{id} runs for nothing");
            assert_eq!(
                instance.key.is_some(),
                app.leases.contains_key(id),
                "lease of #{id}"
            );
        }
        assert!(
            app.leases.keys().all(|id| app.instances.contains_key(id)),
            "a lease outlives"
        );
        for deploy in &app.deploys {
            let waits = app.open.values().any(|cause| match &cause.what {
                What::Deploy {
                    deploy: waiting, ..
                } => waiting == deploy,
                What::Report { .. } => false,
            });
            let rollout = app.rollout.as_ref();
            let under_way = waits || rollout.is_some_and(|it| it.deploy == *deploy);
            assert!(
                under_way != finished.contains(deploy),
                "a deploy has no outcome"
            );
        }
    }
    Ok(())
}

/// What is kept beside the apps, so that nobody has to look at all of them, says the same as they do.
fn indexes_hold(state: &State) {
    let instances = || {
        let apps = state.apps.iter();
        apps.flat_map(|(id, app)| app.instances.iter().map(|(n, it)| (*id, *n, it)))
    };
    let mut homes: BTreeMap<HostName, BTreeSet<InstanceRef>> = BTreeMap::new();
    for (app, instance, it) in instances() {
        let home = homes.entry(it.host.clone()).or_default();
        home.insert(InstanceRef { app, instance });
    }
    assert_eq!(homes, state.homes);
    let mut promised: BTreeMap<HostName, u64> = BTreeMap::new();
    for (_, _, it) in instances() {
        *promised.entry(it.host.clone()).or_default() += it.memory.bytes();
    }
    assert_eq!(promised, state.promised);
    let unsettled = state.apps.iter().filter(|(_, app)| {
        let moves = |it: &Instance| {
            let trouble = state.troubles.get(&it.host);
            trouble.is_some_and(|trouble| trouble.is_gone() || !it.stop_requested)
        };
        app.unavailable.is_some()
            || app.instances.values().any(moves)
            || !state.vacant(app).is_empty()
    });
    let unsettled: BTreeSet<AppId> = unsettled.map(|(id, _)| *id).collect();
    assert_eq!(unsettled, state.unsettled);
    for (host, trouble) in &state.troubles {
        assert!(trouble.mark().is_some(), "nothing is wrong with {host}");
        assert!(
            trouble.left.is_none() || homes.contains_key(host),
            "{host} is remembered for nothing"
        );
    }
    let keys = instances()
        .filter_map(|(app, instance, it)| Some((it.key?, InstanceRef { app, instance })));
    assert_eq!(keys.collect::<BTreeMap<_, _>>(), state.keys);
    let waiting = state.apps.iter().filter(|(_, app)| !app.open.is_empty());
    let waiting: BTreeSet<AppId> = waiting.map(|(id, _)| *id).collect();
    assert_eq!(waiting, state.waiting);
    let hosts = state.hosts.values();
    let keys: BTreeMap<MeshKey, HostName> = hosts.map(|it| (it.key, it.host.clone())).collect();
    assert_eq!(keys, state.host_keys);
}

/// A random line of a script, mostly plausible.
fn line() -> impl Strategy<Value = String> {
    let app = prop_oneof![Just("shop"), Just("blog")];
    let report = prop_oneof![
        4 => Just("started"), 4 => Just("healthy"), 2 => Just("failed"), 2 => Just("stopped"),
        1 => Just("starting"), 1 => Just("drained"), 1 => Just("traffic"),
    ];
    let standing = prop_oneof![
        2 => Just("lost"), 2 => Just("back"), 1 => Just("drain"), 1 => Just("resume"),
        1 => Just("leaves"),
    ];
    prop_oneof![
        1 => (app.clone(), 1_u8..7).prop_map(|(app, version)| format!("deploy {app} {version}")),
        1 => (0_u8..15).prop_map(|minutes| format!("minutes {minutes}")),
        2 => (standing, 1_u8..3).prop_map(|(what, host)| format!("{what} box{host}")),
        1 => (1_u8..3).prop_map(|host| format!("machine box{host} wasm-http")),
        1 => (1_u8..3).prop_map(|host| format!("machine box{host} wasm-http memory:400MiB")),
        8 => (1_u8..3, report, app, 1_u8..12).prop_map(|(host, report, app, instance)| {
            format!("box{host} says {report} {app} #{instance}")
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None, cases: 128, ..ProptestConfig::default()
    })]

    #[test]
    fn whatever_machines_say_the_plan_holds(
        lines in proptest::collection::vec(line(), 0..120),
        cut in any::<proptest::sample::Index>(),
    ) {
        let mut script = SHOP.to_owned();
        script.push_str("machine box2 wasm-http\napp blog\npublish blog 1 wasm-http\n");
        script.push_str("publish blog 2 docker\npublish blog 3 wasm-http volume\n");
        script.push_str("publish blog 4 wasm-http volume memory:512MiB\n");
        script.push_str("publish blog 5 wasm-http replicas:3\n");
        script.push_str("publish shop 5 wasm-http replicas:2 and wasm-http name:box2\n");
        script.push_str("publish shop 6 wasm-http replicas:2 memory:300MiB\n");
        script.push_str(&lines.join("\n"));
        let world = run(&script).unwrap();
        holds(&world).unwrap();

        // Replay: whole, and cut in two anywhere, even in the middle of a batch.
        let mut whole = State::default();
        for event in &world.log {
            whole.apply(event).unwrap();
        }
        prop_assert_eq!(&whole, &world.state);
        let (prefix, suffix) = world.log.split_at(cut.index(world.log.len() + 1));
        let mut part = State::default();
        for event in prefix {
            part.apply(event).unwrap();
        }
        // What is stored of it is all of it.
        let stored = serde_json::to_vec(&part).unwrap();
        let mut resumed: State = serde_json::from_slice(&stored).unwrap();
        prop_assert_eq!(&resumed, &part);
        for event in suffix {
            resumed.apply(event).unwrap();
        }
        prop_assert_eq!(&resumed, &world.state);

        // A coordinator that is behind plans what is already there: the same ids, nothing new, or
        // a batch that the app's revision refuses.
        for Step { app, batch, .. } in plan(&part, PERCENT).unwrap() {
            let behind = part.apps[&app].rev < world.state.apps[&app].rev;
            let known = batch.events.iter().all(|event| world.ids.contains(&event.id));
            proptest::prop_assert!(behind || known);
        }
    }
}
