//! Several instances of one version: replicas, further targets, and what becomes of one of them.

use super::*;

const SHOP3: &str = "
    machine box1 wasm-http
    machine box2 wasm-http
    machine box3 wasm-http tag:gpu
    app shop
    publish shop 1 wasm-http replicas:3
    publish shop 2 wasm-http replicas:2
    publish shop 3 wasm-http
    publish shop 4 wasm-http and wasm-http tag:gpu replicas:2
    publish shop 5 wasm-http and docker
    publish shop 6 wasm-http replicas:2 volume
    publish shop 7 wasm-http replicas:129
";

/// As [`check`], without what the beginning says that others show.
fn check_after(before: &str, script: &str, expected: &Snapshot) {
    let known = run(before).unwrap().out.len();
    let world = run(&format!("{before}{script}")).unwrap();
    expected.assert_eq(&world.out[known..]);
    holds(&world).unwrap();
}

/// All three serve.
const SERVE: &str = "
    deploy shop 1
    box1 says started shop #1
    box2 says started shop #2
    box3 says started shop #3
    box1 says healthy shop #1
    box3 says healthy shop #3
    box2 says healthy shop #2
";

#[test]
fn one_deploy_is_healthy_when_all_are() {
    check_after(
        SHOP3,
        SERVE,
        &expect![[r#"
            > deploy shop 1
              platform.hosts.box1 app_placed d1 v1 as #1 on box1 slot 0.0 epoch 1
              platform.hosts.box2 app_placed d1 v1 as #2 on box2 slot 0.1 epoch 1
              platform.hosts.box3 app_placed d1 v1 as #3 on box3 slot 0.2 epoch 1
              tenant_main.apps app_placed d1 v1 as #1 on box1 slot 0.0 epoch 1
              tenant_main.apps app_placed d1 v1 as #2 on box2 slot 0.1 epoch 1
              tenant_main.apps app_placed d1 v1 as #3 on box3 slot 0.2 epoch 1
            > box1 says started shop #1
              platform.mesh.peers lease_granted #1 on box1 epoch 1
              tenant_main.apps app_started #1
            > box2 says started shop #2
              platform.mesh.peers lease_granted #2 on box2 epoch 1
              tenant_main.apps app_started #2
            > box3 says started shop #3
              platform.mesh.peers lease_granted #3 on box3 epoch 1
              tenant_main.apps app_started #3
            > box1 says healthy shop #1
              tenant_main.apps app_healthy #1
            > box3 says healthy shop #3
              tenant_main.apps app_healthy #3
            > box2 says healthy shop #2
              tenant_main.apps app_healthy #2
              tenant_main.apps traffic_shifted d1 v1 to #1, #2, #3
              tenant_main.apps deploy_finished d1 Succeeded
        "#]],
    );
}

#[test]
fn one_that_fails_takes_the_deploy_with_it() {
    let script = "
        deploy shop 2
        box1 says started shop #4
        box1 says healthy shop #4
        box2 says failed shop #5
        box1 says stopped shop #4";
    check_after(
        &format!("{SHOP3}{SERVE}"),
        script,
        &expect![[r#"
            > deploy shop 2
              platform.hosts.box1 app_placed d2 v2 as #4 on box1 slot 0.0 epoch 2
              platform.hosts.box2 app_placed d2 v2 as #5 on box2 slot 0.1 epoch 2
              tenant_main.apps app_placed d2 v2 as #4 on box1 slot 0.0 epoch 2
              tenant_main.apps app_placed d2 v2 as #5 on box2 slot 0.1 epoch 2
            > box1 says started shop #4
              platform.mesh.peers lease_granted #4 on box1 epoch 2
              tenant_main.apps app_started #4
            > box1 says healthy shop #4
              tenant_main.apps app_healthy #4
            > box2 says failed shop #5
              platform.hosts.box1 app_stop_requested #4 within 30000 ms
              tenant_main.apps app_failed #5 Exited
              tenant_main.apps deploy_finished d2 Failed It exited with code 1. v1 still serves.
              tenant_main.apps app_stop_requested #4 within 30000 ms
            > box1 says stopped shop #4
              platform.mesh.peers lease_released #4
              tenant_main.apps app_stopped #4
        "#]],
    );
}

/// One takes over from three.
const DOWN: &str = "
    deploy shop 3
    box1 says started shop #4
    box1 says healthy shop #4
    box1 says stopped shop #1
    box2 says stopped shop #2
    box3 says stopped shop #3
";

#[test]
fn fewer_with_another_version() {
    check_after(
        &format!("{SHOP3}{SERVE}"),
        DOWN,
        &expect![[r#"
        > deploy shop 3
          platform.hosts.box1 app_placed d2 v3 as #4 on box1 slot 0.0 epoch 2
          tenant_main.apps app_placed d2 v3 as #4 on box1 slot 0.0 epoch 2
        > box1 says started shop #4
          platform.mesh.peers lease_granted #4 on box1 epoch 2
          tenant_main.apps app_started #4
        > box1 says healthy shop #4
          platform.hosts.box1 app_stop_requested #1 within 30000 ms
          platform.hosts.box2 app_stop_requested #2 within 30000 ms
          platform.hosts.box3 app_stop_requested #3 within 30000 ms
          tenant_main.apps app_healthy #4
          tenant_main.apps traffic_shifted d2 v3 to #4
          tenant_main.apps deploy_finished d2 Succeeded
          tenant_main.apps app_stop_requested #1 within 30000 ms
          tenant_main.apps app_stop_requested #2 within 30000 ms
          tenant_main.apps app_stop_requested #3 within 30000 ms
        > box1 says stopped shop #1
          platform.mesh.peers lease_released #1
          tenant_main.apps app_stopped #1
        > box2 says stopped shop #2
          platform.mesh.peers lease_released #2
          tenant_main.apps app_stopped #2
        > box3 says stopped shop #3
          platform.mesh.peers lease_released #3
          tenant_main.apps app_stopped #3
    "#]],
    );
}

#[test]
fn and_more_with_the_one_before() {
    let script = "
        deploy shop 1
        box2 says started shop #5
        box3 says started shop #6
        box1 says started shop #7
        box2 says healthy shop #5
        box3 says healthy shop #6
        box1 says healthy shop #7";
    check_after(
        &format!("{SHOP3}{SERVE}{DOWN}"),
        script,
        &expect![[r#"
        > deploy shop 1
          platform.hosts.box2 app_placed d3 v1 as #5 on box2 slot 0.0 epoch 3
          platform.hosts.box3 app_placed d3 v1 as #6 on box3 slot 0.1 epoch 2
          platform.hosts.box1 app_placed d3 v1 as #7 on box1 slot 0.2 epoch 2
          tenant_main.apps app_placed d3 v1 as #5 on box2 slot 0.0 epoch 3
          tenant_main.apps app_placed d3 v1 as #6 on box3 slot 0.1 epoch 2
          tenant_main.apps app_placed d3 v1 as #7 on box1 slot 0.2 epoch 2
        > box2 says started shop #5
          platform.mesh.peers lease_granted #5 on box2 epoch 3
          tenant_main.apps app_started #5
        > box3 says started shop #6
          platform.mesh.peers lease_granted #6 on box3 epoch 2
          tenant_main.apps app_started #6
        > box1 says started shop #7
          platform.mesh.peers lease_granted #7 on box1 epoch 2
          tenant_main.apps app_started #7
        > box2 says healthy shop #5
          tenant_main.apps app_healthy #5
        > box3 says healthy shop #6
          tenant_main.apps app_healthy #6
        > box1 says healthy shop #7
          platform.hosts.box1 app_stop_requested #4 within 30000 ms
          tenant_main.apps app_healthy #7
          tenant_main.apps traffic_shifted d3 v1 to #5, #6, #7
          tenant_main.apps deploy_finished d3 Succeeded
          tenant_main.apps app_stop_requested #4 within 30000 ms
    "#]],
    );
}

#[test]
fn one_that_dies_is_replaced_and_the_others_serve() {
    let script = "
        box1 says failed shop #1
        box1 says started shop #4
        box1 says healthy shop #4
        box2 says failed shop #2
        box3 says failed shop #3";
    check_after(
        &format!("{SHOP3}{SERVE}"),
        script,
        &expect![[r#"
            > box1 says failed shop #1
              platform.hosts.box1 app_placed d1 v1 as #4 on box1 slot 0.0 epoch 2
              platform.mesh.peers lease_released #1
              tenant_main.apps app_failed #1 Exited
              tenant_main.apps traffic_shifted d1 v1 to #2, #3
              tenant_main.apps app_placed d1 v1 as #4 on box1 slot 0.0 epoch 2
            > box1 says started shop #4
              platform.mesh.peers lease_granted #4 on box1 epoch 2
              tenant_main.apps app_started #4
            > box1 says healthy shop #4
              tenant_main.apps app_healthy #4
              tenant_main.apps traffic_shifted d1 v1 to #2, #3, #4
            > box2 says failed shop #2
              platform.hosts.box1 app_placed d1 v1 as #5 on box1 slot 0.1 epoch 2
              platform.mesh.peers lease_released #2
              tenant_main.apps app_failed #2 Exited
              tenant_main.apps traffic_shifted d1 v1 to #4, #3
              tenant_main.apps app_placed d1 v1 as #5 on box1 slot 0.1 epoch 2
            > box3 says failed shop #3
              platform.hosts.box2 app_placed d1 v1 as #6 on box2 slot 0.2 epoch 2
              platform.mesh.peers lease_released #3
              tenant_main.apps app_failed #3 Exited
              tenant_main.apps traffic_shifted d1 v1 to #4
              tenant_main.apps app_placed d1 v1 as #6 on box2 slot 0.2 epoch 2
        "#]],
    );
}

#[test]
fn each_slot_has_its_own_patience() {
    let mut script = format!("{SHOP3}{SERVE}");
    for instance in [1].into_iter().chain(4..14) {
        script.push_str(&format!("\nbox1 says failed shop #{instance}"));
        script.push_str(&format!("\nbox2 says failed shop #{instance}"));
        script.push_str(&format!("\nbox3 says failed shop #{instance}"));
    }
    let world = run(&script).unwrap();
    holds(&world).unwrap();
    let shop = &world.state.apps[&app_id("shop")];
    let serving = shop.serving.as_ref().unwrap();
    let all: Vec<u32> = serving.instances.iter().map(|it| it.get()).collect();
    assert_eq!((all.as_slice(), serving.primary.get()), (&[2, 3][..], 2));
    assert_eq!(shop.last_instance.get(), 3 + REPLACEMENTS_MAX);
    // Another slot begins with none.
    script.push_str("\nbox2 says failed shop #2");
    let world = run(&script).unwrap();
    holds(&world).unwrap();
    let shop = &world.state.apps[&app_id("shop")];
    assert_eq!(shop.last_instance.get(), 4 + REPLACEMENTS_MAX);
}

#[test]
fn a_lost_machine_s_slots_alone_are_placed_anew() {
    let script = "
        lost box2
        box1 says started shop #4
        box1 says healthy shop #4
        back box2
        box2 says stopped shop #2";
    check_after(
        &format!("{SHOP3}{SERVE}"),
        script,
        &expect![[r#"
            > lost box2
              platform.hosts.box2 app_stop_requested #2 within 30000 ms
              platform.hosts.box1 app_placed d1 v1 as #4 on box1 slot 0.1 epoch 2
              platform.mesh.peers lease_released #2
              tenant_main.apps app_stop_requested #2 within 30000 ms
              tenant_main.apps app_failed #2 Exited
              tenant_main.apps traffic_shifted d1 v1 to #1, #3
              tenant_main.apps app_placed d1 v1 as #4 on box1 slot 0.1 epoch 2
            > box1 says started shop #4
              platform.mesh.peers lease_granted #4 on box1 epoch 2
              tenant_main.apps app_started #4
            > box1 says healthy shop #4
              tenant_main.apps app_healthy #4
              tenant_main.apps traffic_shifted d1 v1 to #1, #3, #4
            > back box2
            > box2 says stopped shop #2
              refused: the instance does not run there
        "#]],
    );
}

#[test]
fn a_slot_that_has_no_place_is_filled_as_soon_as_it_has_one() {
    let before = "
        machine box1 wasm-http memory:100MiB
        machine box2 wasm-http memory:100MiB
        app shop
        publish shop 1 wasm-http replicas:2 memory:90MiB
        deploy shop 1
        box1 says started shop #1
        box2 says started shop #2
        box1 says healthy shop #1
        box2 says healthy shop #2";
    let script = "
        lost box1
        machine box3 wasm-http
        box3 says started shop #3
        box3 says healthy shop #3
        lost box2
        lost box3
        back box3
        back box2
        box2 says stopped shop #2";
    check_after(
        before,
        script,
        &expect![[r#"
            > lost box1
              platform.hosts.box1 app_stop_requested #1 within 30000 ms
              platform.mesh.peers lease_released #1
              tenant_main.apps app_stop_requested #1 within 30000 ms
              tenant_main.apps app_failed #1 Exited
              tenant_main.apps traffic_shifted d1 v1 to #2
            > machine box3 wasm-http
              platform.hosts.box3 app_placed d1 v1 as #3 on box3 slot 0.0 epoch 2
              tenant_main.apps app_placed d1 v1 as #3 on box3 slot 0.0 epoch 2
            > box3 says started shop #3
              platform.mesh.peers lease_granted #3 on box3 epoch 2
              tenant_main.apps app_started #3
            > box3 says healthy shop #3
              tenant_main.apps app_healthy #3
              tenant_main.apps traffic_shifted d1 v1 to #2, #3
            > lost box2
              platform.hosts.box2 app_stop_requested #2 within 30000 ms
              platform.hosts.box3 app_placed d1 v1 as #4 on box3 slot 0.1 epoch 2
              platform.mesh.peers lease_released #2
              tenant_main.apps app_stop_requested #2 within 30000 ms
              tenant_main.apps app_failed #2 Exited
              tenant_main.apps traffic_shifted d1 v1 to #3
              tenant_main.apps app_placed d1 v1 as #4 on box3 slot 0.1 epoch 2
            > lost box3
              tenant_main.apps app_unavailable NoMachine box3: it is lost, and no other machine can run it. Bring box3 back, or run `tabbify join` on another machine, or deploy again.
            > back box3
              tenant_main.apps traffic_shifted d1 v1 to #3
            > back box2
            > box2 says stopped shop #2
              refused: the instance does not run there
        "#]],
    );
}

#[test]
fn a_machine_that_is_emptied_gives_its_slots_away_first() {
    let script = "
        drain box3
        box1 says started shop #4
        box1 says healthy shop #4
        box3 says stopped shop #3";
    check_after(
        &format!("{SHOP3}{SERVE}"),
        script,
        &expect![[r#"
            > drain box3
              platform.hosts.box1 app_placed d1 v1 as #4 on box1 slot 0.2 epoch 2
              tenant_main.apps app_placed d1 v1 as #4 on box1 slot 0.2 epoch 2
            > box1 says started shop #4
              platform.mesh.peers lease_granted #4 on box1 epoch 2
              tenant_main.apps app_started #4
            > box1 says healthy shop #4
              platform.hosts.box3 app_stop_requested #3 within 30000 ms
              tenant_main.apps app_healthy #4
              tenant_main.apps traffic_shifted d1 v1 to #1, #2, #4
              tenant_main.apps app_stop_requested #3 within 30000 ms
            > box3 says stopped shop #3
              platform.mesh.peers lease_released #3
              tenant_main.apps app_stopped #3
              platform.supervisors supervisor_drained box3
        "#]],
    );
}

#[test]
fn a_machine_is_lost_while_they_start() {
    let script = "
        deploy shop 1
        box1 says started shop #1
        box1 says healthy shop #1
        lost box1
        box2 says started shop #2
        box2 says healthy shop #2
        lost box2
        lost box3";
    check_after(
        SHOP3,
        script,
        &expect![[r#"
            > deploy shop 1
              platform.hosts.box1 app_placed d1 v1 as #1 on box1 slot 0.0 epoch 1
              platform.hosts.box2 app_placed d1 v1 as #2 on box2 slot 0.1 epoch 1
              platform.hosts.box3 app_placed d1 v1 as #3 on box3 slot 0.2 epoch 1
              tenant_main.apps app_placed d1 v1 as #1 on box1 slot 0.0 epoch 1
              tenant_main.apps app_placed d1 v1 as #2 on box2 slot 0.1 epoch 1
              tenant_main.apps app_placed d1 v1 as #3 on box3 slot 0.2 epoch 1
            > box1 says started shop #1
              platform.mesh.peers lease_granted #1 on box1 epoch 1
              tenant_main.apps app_started #1
            > box1 says healthy shop #1
              tenant_main.apps app_healthy #1
            > lost box1
              platform.hosts.box1 app_stop_requested #1 within 30000 ms
              platform.hosts.box2 app_placed d1 v1 as #4 on box2 slot 0.0 epoch 2
              platform.mesh.peers lease_released #1
              tenant_main.apps app_stop_requested #1 within 30000 ms
              tenant_main.apps app_failed #1 Exited
              tenant_main.apps app_placed d1 v1 as #4 on box2 slot 0.0 epoch 2
            > box2 says started shop #2
              platform.mesh.peers lease_granted #2 on box2 epoch 1
              tenant_main.apps app_started #2
            > box2 says healthy shop #2
              tenant_main.apps app_healthy #2
            > lost box2
              platform.hosts.box2 app_stop_requested #2 within 30000 ms
              platform.hosts.box3 app_placed d1 v1 as #5 on box3 slot 0.1 epoch 2
              platform.mesh.peers lease_released #2
              tenant_main.apps app_stop_requested #2 within 30000 ms
              tenant_main.apps app_failed #2 Exited
              tenant_main.apps app_placed d1 v1 as #5 on box3 slot 0.1 epoch 2
              platform.hosts.box2 app_stop_requested #4 within 30000 ms
              platform.hosts.box3 app_placed d1 v1 as #6 on box3 slot 0.0 epoch 3
              tenant_main.apps app_stop_requested #4 within 30000 ms
              tenant_main.apps app_failed #4 Exited
              tenant_main.apps app_placed d1 v1 as #6 on box3 slot 0.0 epoch 3
            > lost box3
              platform.hosts.box3 app_stop_requested #3 within 30000 ms
              platform.hosts.box3 app_stop_requested #6 within 30000 ms
              platform.hosts.box3 app_stop_requested #5 within 30000 ms
              tenant_main.apps app_stop_requested #3 within 30000 ms
              tenant_main.apps app_failed #3 Exited
              tenant_main.apps deploy_finished d1 Failed box3: it is lost.
              tenant_main.apps app_stop_requested #6 within 30000 ms
              tenant_main.apps app_stop_requested #5 within 30000 ms
              tenant_main.apps app_failed #5 Exited
              tenant_main.apps app_failed #6 Exited
        "#]],
    );
}

#[test]
fn targets_are_placed_where_they_are_meant() {
    let script = "
        deploy shop 4
        box1 says started shop #1
        box3 says started shop #2
        box3 says started shop #3
        box3 says healthy shop #3
        box3 says healthy shop #2
        box1 says healthy shop #1
        lost box3
        deploy shop 5
        deploy shop 6
        deploy shop 7";
    check_after(
        SHOP3,
        script,
        &expect![[r#"
            > deploy shop 4
              platform.hosts.box1 app_placed d1 v4 as #1 on box1 slot 0.0 epoch 1
              platform.hosts.box3 app_placed d1 v4 as #2 on box3 slot 1.0 epoch 1
              platform.hosts.box3 app_placed d1 v4 as #3 on box3 slot 1.1 epoch 1
              tenant_main.apps app_placed d1 v4 as #1 on box1 slot 0.0 epoch 1
              tenant_main.apps app_placed d1 v4 as #2 on box3 slot 1.0 epoch 1
              tenant_main.apps app_placed d1 v4 as #3 on box3 slot 1.1 epoch 1
            > box1 says started shop #1
              platform.mesh.peers lease_granted #1 on box1 epoch 1
              tenant_main.apps app_started #1
            > box3 says started shop #2
              platform.mesh.peers lease_granted #2 on box3 epoch 1
              tenant_main.apps app_started #2
            > box3 says started shop #3
              platform.mesh.peers lease_granted #3 on box3 epoch 1
              tenant_main.apps app_started #3
            > box3 says healthy shop #3
              tenant_main.apps app_healthy #3
            > box3 says healthy shop #2
              tenant_main.apps app_healthy #2
            > box1 says healthy shop #1
              tenant_main.apps app_healthy #1
              tenant_main.apps traffic_shifted d1 v4 to #1, #2, #3
              tenant_main.apps deploy_finished d1 Succeeded
            > lost box3
              platform.hosts.box3 app_stop_requested #2 within 30000 ms
              platform.mesh.peers lease_released #2
              tenant_main.apps app_stop_requested #2 within 30000 ms
              tenant_main.apps app_failed #2 Exited
              tenant_main.apps traffic_shifted d1 v4 to #1
              platform.hosts.box3 app_stop_requested #3 within 30000 ms
              platform.mesh.peers lease_released #3
              tenant_main.apps app_stop_requested #3 within 30000 ms
              tenant_main.apps app_failed #3 Exited
            > deploy shop 5
              tenant_main.apps deploy_finished d2 Failed 1 of 2 instances have a place. No machine can run docker. box1: cannot run it. box2: cannot run it. box3: it is lost. v4 still serves.
            > deploy shop 6
              tenant_main.apps deploy_finished d3 Failed v6 has a volume, which one instance alone can have. v4 still serves.
            > deploy shop 7
              tenant_main.apps deploy_finished d4 Failed v7 wants more than 128 instances of the app. v4 still serves.
        "#]],
    );
}

#[test]
fn who_has_taken_over_takes_all_of_it() {
    let script = "
        deploy shop 2
        deploy shop 1
        box1 says failed shop #1";
    check_after(
        &format!("{SHOP3}{SERVE}"),
        script,
        &expect![[r#"
            > deploy shop 2
              platform.hosts.box1 app_placed d2 v2 as #4 on box1 slot 0.0 epoch 2
              platform.hosts.box2 app_placed d2 v2 as #5 on box2 slot 0.1 epoch 2
              tenant_main.apps app_placed d2 v2 as #4 on box1 slot 0.0 epoch 2
              tenant_main.apps app_placed d2 v2 as #5 on box2 slot 0.1 epoch 2
            > deploy shop 1
              platform.hosts.box1 app_stop_requested #4 within 30000 ms
              platform.hosts.box2 app_stop_requested #5 within 30000 ms
              platform.hosts.box3 app_placed d3 v1 as #6 on box3 slot 0.0 epoch 3
              platform.hosts.box1 app_placed d3 v1 as #7 on box1 slot 0.1 epoch 3
              platform.hosts.box2 app_placed d3 v1 as #8 on box2 slot 0.2 epoch 2
              tenant_main.apps deploy_superseded d2 by d3
              tenant_main.apps app_stop_requested #4 within 30000 ms
              tenant_main.apps app_stop_requested #5 within 30000 ms
              tenant_main.apps app_placed d3 v1 as #6 on box3 slot 0.0 epoch 3
              tenant_main.apps app_placed d3 v1 as #7 on box1 slot 0.1 epoch 3
              tenant_main.apps app_placed d3 v1 as #8 on box2 slot 0.2 epoch 2
            > box1 says failed shop #1
              platform.hosts.box3 app_placed d1 v1 as #9 on box3 slot 0.0 epoch 4
              platform.mesh.peers lease_released #1
              tenant_main.apps app_failed #1 Exited
              tenant_main.apps traffic_shifted d1 v1 to #2, #3
              tenant_main.apps app_placed d1 v1 as #9 on box3 slot 0.0 epoch 4
        "#]],
    );
}

#[test]
fn what_is_too_large_for_all_of_them_is_too_large() {
    let script = "
        machine box1 wasm-http
        app shop
        publish shop 1 wasm-http+50000 replicas:60
        publish shop 2 wasm-http+50000 replicas:2
        deploy shop 1
        deploy shop 2";
    check(
        script,
        &expect![[r#"
        > machine box1 wasm-http
        > app shop
        > publish shop 1 wasm-http+50000 replicas:60
        > publish shop 2 wasm-http+50000 replicas:2
        > deploy shop 1
          tenant_main.apps deploy_finished d1 Failed The configuration of v1 is too large for 60 instances.
        > deploy shop 2
          platform.hosts.box1 app_placed d2 v2 as #1 on box1 slot 0.0 epoch 1
          platform.hosts.box1 app_placed d2 v2 as #2 on box1 slot 0.1 epoch 1
          tenant_main.apps app_placed d2 v2 as #1 on box1 slot 0.0 epoch 1
          tenant_main.apps app_placed d2 v2 as #2 on box1 slot 0.1 epoch 1
    "#]],
    );
}

/// While the next version starts, what serves dies and is replaced: the address goes to later epochs only.
#[test]
fn who_serves_later_has_the_later_epoch() {
    let script = "
        machine box1 wasm-http
        app shop
        publish shop 1 wasm-http
        publish shop 2 wasm-http
        deploy shop 1
        box1 says started shop #1
        box1 says healthy shop #1
        deploy shop 2
        box1 says started shop #2
        box1 says failed shop #1
        box1 says started shop #3
        box1 says healthy shop #3
        box1 says healthy shop #2
        box1 says stopped shop #3
        deploy shop 1";
    check(
        script,
        &expect![[r#"
        > machine box1 wasm-http
        > app shop
        > publish shop 1 wasm-http
        > publish shop 2 wasm-http
        > deploy shop 1
          platform.hosts.box1 app_placed d1 v1 as #1 on box1 slot 0.0 epoch 1
          tenant_main.apps app_placed d1 v1 as #1 on box1 slot 0.0 epoch 1
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
        > box1 says failed shop #1
          platform.hosts.box1 app_placed d1 v1 as #3 on box1 slot 0.0 epoch 3
          platform.mesh.peers lease_released #1
          tenant_main.apps app_failed #1 Exited
          tenant_main.apps app_placed d1 v1 as #3 on box1 slot 0.0 epoch 3
        > box1 says started shop #3
          platform.mesh.peers lease_granted #3 on box1 epoch 3
          tenant_main.apps app_started #3
        > box1 says healthy shop #3
          tenant_main.apps app_healthy #3
          tenant_main.apps traffic_shifted d1 v1 to #3
        > box1 says healthy shop #2
          platform.hosts.box1 app_stop_requested #3 within 30000 ms
          platform.mesh.peers lease_granted #2 on box1 epoch 4
          tenant_main.apps app_healthy #2
          tenant_main.apps traffic_shifted d2 v2 to #2
          tenant_main.apps deploy_finished d2 Succeeded
          tenant_main.apps app_stop_requested #3 within 30000 ms
        > box1 says stopped shop #3
          platform.mesh.peers lease_released #3
          tenant_main.apps app_stopped #3
        > deploy shop 1
          platform.hosts.box1 app_placed d3 v1 as #4 on box1 slot 0.0 epoch 5
          tenant_main.apps app_placed d3 v1 as #4 on box1 slot 0.0 epoch 5
    "#]],
    );
}
