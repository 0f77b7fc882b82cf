//! Machines that are lost, leave or are emptied, by text scripts.

use super::*;

const TWO: &str = "
    machine box1 wasm-http
    machine box2 wasm-http
    app shop
    publish shop 1 wasm-http
    publish shop 2 wasm-http
";

#[test]
fn a_lost_machine_s_apps_go_elsewhere() {
    let script = format!(
        "{TWO}{V1_SERVES}
        lost box1
        box2 says started shop #2
        box2 says healthy shop #2
        back box1
        box1 says stopped shop #1"
    );
    check(
        &script,
        &expect![[r#"
        > machine box1 wasm-http
        > machine box2 wasm-http
        > app shop
        > publish shop 1 wasm-http
        > publish shop 2 wasm-http
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
        > lost box1
          platform.hosts.box1 app_stop_requested #1 within 30000 ms
          platform.hosts.box2 app_placed d1 v1 as #2 on box2 slot 0.0 epoch 2
          platform.mesh.peers lease_released #1
          tenant_main.apps app_stop_requested #1 within 30000 ms
          tenant_main.apps app_failed #1 Exited
          tenant_main.apps app_placed d1 v1 as #2 on box2 slot 0.0 epoch 2
        > box2 says started shop #2
          platform.mesh.peers lease_granted #2 on box2 epoch 2
          tenant_main.apps app_started #2
        > box2 says healthy shop #2
          tenant_main.apps app_healthy #2
          tenant_main.apps traffic_shifted d1 v1 to #2
        > back box1
        > box1 says stopped shop #1
          refused: the instance does not run there
    "#]],
    );
}

#[test]
fn what_nothing_else_can_run_stays_until_its_machine_is_back() {
    let script = format!("{SHOP}{V1_SERVES} lost box1\n lost box1\n back box1");
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
        > lost box1
          tenant_main.apps app_unavailable NoMachine box1: it is lost, and no other machine can run it. Bring box1 back, or run `tabbify join` on another machine, or deploy again.
        > lost box1
        > back box1
          tenant_main.apps traffic_shifted d1 v1 to #1
    "#]],
    );
}

#[test]
fn what_nothing_could_run_runs_when_something_can() {
    let script = format!(
        "{SHOP}{V1_SERVES}
        lost box1
        machine box2 wasm-http
        box2 says started shop #2
        box2 says healthy shop #2"
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
        > lost box1
          tenant_main.apps app_unavailable NoMachine box1: it is lost, and no other machine can run it. Bring box1 back, or run `tabbify join` on another machine, or deploy again.
        > machine box2 wasm-http
          platform.hosts.box1 app_stop_requested #1 within 30000 ms
          platform.hosts.box2 app_placed d1 v1 as #2 on box2 slot 0.0 epoch 2
          platform.mesh.peers lease_released #1
          tenant_main.apps app_stop_requested #1 within 30000 ms
          tenant_main.apps app_failed #1 Exited
          tenant_main.apps app_placed d1 v1 as #2 on box2 slot 0.0 epoch 2
        > box2 says started shop #2
          platform.mesh.peers lease_granted #2 on box2 epoch 2
          tenant_main.apps app_started #2
        > box2 says healthy shop #2
          tenant_main.apps app_healthy #2
          tenant_main.apps traffic_shifted d1 v1 to #2
    "#]],
    );
}

#[test]
fn a_machine_that_leaves_loses_its_leases() {
    let script = format!(
        "{SHOP}{V1_SERVES}
        leaves box1
        machine box2 wasm-http
        box2 says started shop #2
        box2 says healthy shop #2"
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
        > leaves box1
          platform.hosts.box1 app_stop_requested #1 within 30000 ms
          platform.mesh.peers lease_released #1
          tenant_main.apps app_stop_requested #1 within 30000 ms
          tenant_main.apps app_failed #1 Exited
          tenant_main.apps app_unavailable NoMachine box1: it has left, and no other machine can run it. Bring box1 back, or run `tabbify join` on another machine, or deploy again.
        > machine box2 wasm-http
          platform.hosts.box2 app_placed d1 v1 as #2 on box2 slot 0.0 epoch 2
          tenant_main.apps app_placed d1 v1 as #2 on box2 slot 0.0 epoch 2
        > box2 says started shop #2
          platform.mesh.peers lease_granted #2 on box2 epoch 2
          tenant_main.apps app_started #2
        > box2 says healthy shop #2
          tenant_main.apps app_healthy #2
          tenant_main.apps traffic_shifted d1 v1 to #2
    "#]],
    );
}

#[test]
fn a_deploy_goes_on_elsewhere() {
    let script = format!(
        "{TWO}{V1_SERVES}
        deploy shop 2
        box2 says started shop #2
        lost box2
        box1 says started shop #3
        lost box1
        back box2"
    );
    check(
        &script,
        &expect![[r#"
        > machine box1 wasm-http
        > machine box2 wasm-http
        > app shop
        > publish shop 1 wasm-http
        > publish shop 2 wasm-http
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
          platform.hosts.box2 app_placed d2 v2 as #2 on box2 slot 0.0 epoch 2
          tenant_main.apps app_placed d2 v2 as #2 on box2 slot 0.0 epoch 2
        > box2 says started shop #2
          platform.mesh.peers lease_granted #2 on box2 epoch 2
          tenant_main.apps app_started #2
        > lost box2
          platform.hosts.box2 app_stop_requested #2 within 30000 ms
          platform.hosts.box1 app_placed d2 v2 as #3 on box1 slot 0.0 epoch 3
          platform.mesh.peers lease_released #2
          tenant_main.apps app_stop_requested #2 within 30000 ms
          tenant_main.apps app_failed #2 Exited
          tenant_main.apps app_placed d2 v2 as #3 on box1 slot 0.0 epoch 3
        > box1 says started shop #3
          platform.mesh.peers lease_granted #3 on box1 epoch 3
          tenant_main.apps app_started #3
        > lost box1
          tenant_main.apps app_unavailable NoMachine box1: it is lost, and no other machine can run it. Bring box1 back, or run `tabbify join` on another machine, or deploy again.
          platform.hosts.box1 app_stop_requested #3 within 30000 ms
          platform.mesh.peers lease_released #3
          tenant_main.apps app_stop_requested #3 within 30000 ms
          tenant_main.apps app_failed #3 Exited
          tenant_main.apps deploy_finished d2 Failed box1: it is lost.
        > back box2
          platform.hosts.box1 app_stop_requested #1 within 30000 ms
          platform.hosts.box2 app_placed d1 v1 as #4 on box2 slot 0.0 epoch 4
          platform.mesh.peers lease_released #1
          tenant_main.apps app_stop_requested #1 within 30000 ms
          tenant_main.apps app_failed #1 Exited
          tenant_main.apps app_placed d1 v1 as #4 on box2 slot 0.0 epoch 4
    "#]],
    );
}

#[test]
fn an_emptied_machine_stops_what_runs_elsewhere() {
    let script = format!(
        "{TWO}{V1_SERVES}
        drain box1
        box2 says started shop #2
        box2 says healthy shop #2
        box1 says stopped shop #1
        deploy shop 2
        resume box1
        drain box2"
    );
    check(
        &script,
        &expect![[r#"
        > machine box1 wasm-http
        > machine box2 wasm-http
        > app shop
        > publish shop 1 wasm-http
        > publish shop 2 wasm-http
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
        > drain box1
          platform.hosts.box2 app_placed d1 v1 as #2 on box2 slot 0.0 epoch 2
          tenant_main.apps app_placed d1 v1 as #2 on box2 slot 0.0 epoch 2
        > box2 says started shop #2
          platform.mesh.peers lease_granted #2 on box2 epoch 2
          tenant_main.apps app_started #2
        > box2 says healthy shop #2
          platform.hosts.box1 app_stop_requested #1 within 30000 ms
          tenant_main.apps app_healthy #2
          tenant_main.apps traffic_shifted d1 v1 to #2
          tenant_main.apps app_stop_requested #1 within 30000 ms
        > box1 says stopped shop #1
          platform.mesh.peers lease_released #1
          tenant_main.apps app_stopped #1
          platform.supervisors supervisor_drained box1
        > deploy shop 2
          platform.hosts.box2 app_placed d2 v2 as #3 on box2 slot 0.0 epoch 3
          tenant_main.apps app_placed d2 v2 as #3 on box2 slot 0.0 epoch 3
        > resume box1
        > drain box2
          platform.hosts.box1 app_placed d2 v2 as #4 on box1 slot 0.0 epoch 4
          platform.hosts.box2 app_stop_requested #3 within 30000 ms
          tenant_main.apps app_placed d2 v2 as #4 on box1 slot 0.0 epoch 4
          tenant_main.apps app_stop_requested #3 within 30000 ms
    "#]],
    );
}

#[test]
fn the_only_machine_goes_on_until_another_can_take_over() {
    let script = format!(
        "{SHOP}{V1_SERVES}
        drain box1
        deploy shop 2
        machine box2 wasm-http
        machine box1 wasm-http docker"
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
        > drain box1
        > deploy shop 2
          tenant_main.apps deploy_finished d2 Failed No machine can run wasm-http. box1: it is being emptied. v1 still serves.
        > machine box2 wasm-http
          platform.hosts.box2 app_placed d1 v1 as #2 on box2 slot 0.0 epoch 2
          tenant_main.apps app_placed d1 v1 as #2 on box2 slot 0.0 epoch 2
        > machine box1 wasm-http docker
    "#]],
    );
}

#[test]
fn what_a_machine_leaves_behind_is_spread() {
    let mut script = "machine box1 wasm-http\n".to_owned();
    let apps = ["shop", "blog", "wiki", "mail"];
    for app in apps {
        let lines = format!("app {app}\npublish {app} 1 wasm-http\ndeploy {app} 1\n");
        script.push_str(&lines);
    }
    script.push_str("machine box2 wasm-http\nmachine box3 wasm-http\nlost box1");
    let world = run(&script).unwrap();
    holds(&world).unwrap();
    let load = |host: &str| world.state.load(&host.parse().unwrap());
    assert_eq!((load("box1"), load("box2"), load("box3")), (0, 2, 2));
}
