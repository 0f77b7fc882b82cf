//! Where instances may run, by text scripts: machines that are named, tags, memory, volumes.

use super::*;

#[test]
fn a_machine_that_is_meant_and_can() {
    check(
        "machine box1 docker=/var/run/docker.sock,_permission_denied.
        machine box2 docker tag:gpu
        machine box3 docker tag:tenant:other
        app shop
        publish shop 1 docker tag:gpu
        publish shop 2 docker name:box1
        publish shop 3 docker tag:arm
        publish shop 4 docker name:box3
        publish shop 5 firecracker
        publish shop 6 docker
        deploy shop 2
        deploy shop 1
        deploy shop 3
        deploy shop 4
        deploy shop 5
        deploy shop 6
        lost box2",
        &expect![[r#"
            > machine box1 docker=/var/run/docker.sock,_permission_denied.
            > machine box2 docker tag:gpu
            > machine box3 docker tag:tenant:other
            > app shop
            > publish shop 1 docker tag:gpu
            > publish shop 2 docker name:box1
            > publish shop 3 docker tag:arm
            > publish shop 4 docker name:box3
            > publish shop 5 firecracker
            > publish shop 6 docker
            > deploy shop 2
              tenant_main.apps deploy_finished d1 Failed box1 cannot run docker. box1: /var/run/docker.sock, permission denied.
            > deploy shop 1
              platform.hosts.box2 app_placed d2 v1 as #1 on box2 slot 0.0 epoch 1
              tenant_main.apps app_placed d2 v1 as #1 on box2 slot 0.0 epoch 1
            > deploy shop 3
              tenant_main.apps deploy_finished d3 Failed No machine with the tag arm can run docker. No machine has joined whose token claims it.
            > deploy shop 4
              tenant_main.apps deploy_finished d4 Failed box3 cannot run docker. No machine of this name has joined.
            > deploy shop 5
              tenant_main.apps deploy_finished d5 Failed No machine can run firecracker. box1: cannot run it. box2: cannot run it.
            > deploy shop 6
              platform.hosts.box2 app_stop_requested #1 within 30000 ms
              platform.hosts.box2 app_placed d6 v6 as #2 on box2 slot 0.0 epoch 2
              tenant_main.apps deploy_superseded d2 by d6
              tenant_main.apps app_stop_requested #1 within 30000 ms
              tenant_main.apps app_placed d6 v6 as #2 on box2 slot 0.0 epoch 2
            > lost box2
              tenant_main.apps app_failed #1 Exited
              platform.hosts.box2 app_stop_requested #2 within 30000 ms
              tenant_main.apps app_stop_requested #2 within 30000 ms
              tenant_main.apps app_failed #2 Exited
              tenant_main.apps deploy_finished d6 Failed box2: it is lost.
        "#]],
    );
}

#[test]
fn memory_is_promised_up_to_a_limit() {
    check(
        "machine box1 wasm-http memory:1GiB
        machine box2 wasm-http memory:200MiB
        app shop
        publish shop 1 wasm-http memory:1GiB
        publish shop 2 wasm-http memory:2GiB
        app blog
        publish blog 1 wasm-http memory:500MiB
        publish blog 2 wasm-http memory:300MiB
        app wiki
        publish wiki 1 wasm-http memory:500MiB
        deploy shop 1
        box1 says started shop #1
        box1 says healthy shop #1
        deploy shop 2
        deploy blog 1
        deploy blog 2
        deploy wiki 1
        box1 says failed blog #1
        deploy wiki 1",
        &expect![[r#"
            > machine box1 wasm-http memory:1GiB
            > machine box2 wasm-http memory:200MiB
            > app shop
            > publish shop 1 wasm-http memory:1GiB
            > publish shop 2 wasm-http memory:2GiB
            > app blog
            > publish blog 1 wasm-http memory:500MiB
            > publish blog 2 wasm-http memory:300MiB
            > app wiki
            > publish wiki 1 wasm-http memory:500MiB
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
              tenant_main.apps deploy_finished d2 Failed No machine can run wasm-http. box1: 511MiB of memory are left for apps, and it may use 2GiB. box2: 300MiB of memory are left for apps, and it may use 2GiB. v1 still serves.
            > deploy blog 1
              platform.hosts.box1 app_placed d3 v1 as #1 on box1 slot 0.0 epoch 1
              tenant_main.apps app_placed d3 v1 as #1 on box1 slot 0.0 epoch 1
            > deploy blog 2
              platform.hosts.box1 app_stop_requested #1 within 30000 ms
              platform.hosts.box2 app_placed d4 v2 as #2 on box2 slot 0.0 epoch 2
              tenant_main.apps deploy_superseded d3 by d4
              tenant_main.apps app_stop_requested #1 within 30000 ms
              tenant_main.apps app_placed d4 v2 as #2 on box2 slot 0.0 epoch 2
            > deploy wiki 1
              tenant_main.apps deploy_finished d5 Failed No machine can run wasm-http. box1: 11MiB of memory are left for apps, and it may use 500MiB. box2: 0B of memory are left for apps, and it may use 500MiB.
            > box1 says failed blog #1
              tenant_main.apps app_failed #1 Exited
            > deploy wiki 1
              platform.hosts.box1 app_placed d6 v1 as #1 on box1 slot 0.0 epoch 1
              tenant_main.apps app_placed d6 v1 as #1 on box1 slot 0.0 epoch 1
        "#]],
    );
}

const WIKI: &str = "
    machine box1 wasm-http
    machine box2 wasm-http
    app wiki
    publish wiki 1 wasm-http volume
    publish wiki 2 wasm-http volume
    deploy wiki 1
    box1 says started wiki #1
    box1 says healthy wiki #1
";

#[test]
fn a_volume_has_one_holder_after_the_other() {
    let script = format!(
        "{WIKI}
        deploy wiki 2
        box1 says drained wiki #1
        box1 says stopped wiki #1
        box1 says started wiki #2
        box1 says healthy wiki #2
        box1 says failed wiki #2"
    );
    check(
        &script,
        &expect![[r#"
        > machine box1 wasm-http
        > machine box2 wasm-http
        > app wiki
        > publish wiki 1 wasm-http volume
        > publish wiki 2 wasm-http volume
        > deploy wiki 1
          platform.hosts.box1 app_placed d1 v1 as #1 on box1 slot 0.0 epoch 1
          tenant_main.apps app_placed d1 v1 as #1 on box1 slot 0.0 epoch 1
        > box1 says started wiki #1
          platform.mesh.peers lease_granted #1 on box1 epoch 1
          tenant_main.apps app_started #1
        > box1 says healthy wiki #1
          tenant_main.apps app_healthy #1
          tenant_main.apps traffic_shifted d1 v1 to #1
          tenant_main.apps deploy_finished d1 Succeeded
        > deploy wiki 2
          platform.hosts.box1 app_stop_requested #1 within 30000 ms
          tenant_main.apps app_stop_requested #1 within 30000 ms
        > box1 says drained wiki #1
          tenant_main.apps instance_drained #1
        > box1 says stopped wiki #1
          platform.mesh.peers lease_released #1
          tenant_main.apps app_stopped #1
          platform.hosts.box1 app_placed d2 v2 as #2 on box1 slot 0.0 epoch 2
          tenant_main.apps app_placed d2 v2 as #2 on box1 slot 0.0 epoch 2
        > box1 says started wiki #2
          platform.mesh.peers lease_granted #2 on box1 epoch 2
          tenant_main.apps app_started #2
        > box1 says healthy wiki #2
          tenant_main.apps app_healthy #2
          tenant_main.apps traffic_shifted d2 v2 to #2
          tenant_main.apps deploy_finished d2 Succeeded
        > box1 says failed wiki #2
          platform.hosts.box1 app_placed d2 v2 as #3 on box1 slot 0.0 epoch 3
          platform.mesh.peers lease_released #2
          tenant_main.apps app_failed #2 Exited
          tenant_main.apps app_placed d2 v2 as #3 on box1 slot 0.0 epoch 3
    "#]],
    );
}

#[test]
fn what_served_gets_its_volume_back() {
    let script = format!(
        "{WIKI}
        deploy wiki 2
        box1 says stopped wiki #1
        box1 says failed wiki #2
        box1 says started wiki #3
        box1 says healthy wiki #3"
    );
    check(
        &script,
        &expect![[r#"
        > machine box1 wasm-http
        > machine box2 wasm-http
        > app wiki
        > publish wiki 1 wasm-http volume
        > publish wiki 2 wasm-http volume
        > deploy wiki 1
          platform.hosts.box1 app_placed d1 v1 as #1 on box1 slot 0.0 epoch 1
          tenant_main.apps app_placed d1 v1 as #1 on box1 slot 0.0 epoch 1
        > box1 says started wiki #1
          platform.mesh.peers lease_granted #1 on box1 epoch 1
          tenant_main.apps app_started #1
        > box1 says healthy wiki #1
          tenant_main.apps app_healthy #1
          tenant_main.apps traffic_shifted d1 v1 to #1
          tenant_main.apps deploy_finished d1 Succeeded
        > deploy wiki 2
          platform.hosts.box1 app_stop_requested #1 within 30000 ms
          tenant_main.apps app_stop_requested #1 within 30000 ms
        > box1 says stopped wiki #1
          platform.mesh.peers lease_released #1
          tenant_main.apps app_stopped #1
          platform.hosts.box1 app_placed d2 v2 as #2 on box1 slot 0.0 epoch 2
          tenant_main.apps app_placed d2 v2 as #2 on box1 slot 0.0 epoch 2
        > box1 says failed wiki #2
          platform.hosts.box1 app_placed d1 v1 as #3 on box1 slot 0.0 epoch 3
          tenant_main.apps app_failed #2 Exited
          tenant_main.apps deploy_finished d2 Failed It exited with code 1.
          tenant_main.apps app_placed d1 v1 as #3 on box1 slot 0.0 epoch 3
        > box1 says started wiki #3
          platform.mesh.peers lease_granted #3 on box1 epoch 3
          tenant_main.apps app_started #3
        > box1 says healthy wiki #3
          tenant_main.apps app_healthy #3
          tenant_main.apps traffic_shifted d1 v1 to #3
    "#]],
    );
}

#[test]
fn a_volume_goes_nowhere_by_itself() {
    let script = format!(
        "{WIKI}
        drain box1
        deploy wiki 2
        resume box1
        lost box1
        deploy wiki 2
        back box1
        leaves box1
        machine box1 wasm-http
        box1 says started wiki #2
        box1 says healthy wiki #2"
    );
    check(
        &script,
        &expect![[r#"
        > machine box1 wasm-http
        > machine box2 wasm-http
        > app wiki
        > publish wiki 1 wasm-http volume
        > publish wiki 2 wasm-http volume
        > deploy wiki 1
          platform.hosts.box1 app_placed d1 v1 as #1 on box1 slot 0.0 epoch 1
          tenant_main.apps app_placed d1 v1 as #1 on box1 slot 0.0 epoch 1
        > box1 says started wiki #1
          platform.mesh.peers lease_granted #1 on box1 epoch 1
          tenant_main.apps app_started #1
        > box1 says healthy wiki #1
          tenant_main.apps app_healthy #1
          tenant_main.apps traffic_shifted d1 v1 to #1
          tenant_main.apps deploy_finished d1 Succeeded
        > drain box1
        > deploy wiki 2
          tenant_main.apps deploy_finished d2 Failed No machine can run wasm-http. box1: it is being emptied. box2: the app's volume is on another machine. v1 still serves.
        > resume box1
        > lost box1
          tenant_main.apps app_unavailable VolumeLost box1: it is lost, and the app's volume is there. Bring box1 back.
        > deploy wiki 2
          tenant_main.apps deploy_finished d3 Failed No machine can run wasm-http. box1: it is lost. box2: the app's volume is on another machine.
        > back box1
          tenant_main.apps traffic_shifted d1 v1 to #1
        > leaves box1
          platform.hosts.box1 app_stop_requested #1 within 30000 ms
          platform.mesh.peers lease_released #1
          tenant_main.apps app_stop_requested #1 within 30000 ms
          tenant_main.apps app_failed #1 Exited
          tenant_main.apps app_unavailable VolumeLost box1: it has left, and the app's volume is there. Bring box1 back.
        > machine box1 wasm-http
          platform.hosts.box1 app_placed d1 v1 as #2 on box1 slot 0.0 epoch 2
          tenant_main.apps app_placed d1 v1 as #2 on box1 slot 0.0 epoch 2
        > box1 says started wiki #2
          platform.mesh.peers lease_granted #2 on box1 epoch 2
          tenant_main.apps app_started #2
        > box1 says healthy wiki #2
          tenant_main.apps app_healthy #2
          tenant_main.apps traffic_shifted d1 v1 to #2
    "#]],
    );
}

/// Its machine is lost while one version has ended for another.
#[test]
fn a_volume_between_two_versions_is_not_forgotten() {
    let script = format!(
        "{WIKI}
        deploy wiki 2
        lost box1
        back box1"
    );
    check(
        &script,
        &expect![[r#"
            > machine box1 wasm-http
            > machine box2 wasm-http
            > app wiki
            > publish wiki 1 wasm-http volume
            > publish wiki 2 wasm-http volume
            > deploy wiki 1
              platform.hosts.box1 app_placed d1 v1 as #1 on box1 slot 0.0 epoch 1
              tenant_main.apps app_placed d1 v1 as #1 on box1 slot 0.0 epoch 1
            > box1 says started wiki #1
              platform.mesh.peers lease_granted #1 on box1 epoch 1
              tenant_main.apps app_started #1
            > box1 says healthy wiki #1
              tenant_main.apps app_healthy #1
              tenant_main.apps traffic_shifted d1 v1 to #1
              tenant_main.apps deploy_finished d1 Succeeded
            > deploy wiki 2
              platform.hosts.box1 app_stop_requested #1 within 30000 ms
              tenant_main.apps app_stop_requested #1 within 30000 ms
            > lost box1
              tenant_main.apps deploy_finished d2 Failed No machine can run wasm-http. box1: it is lost. box2: the app's volume is on another machine.
              tenant_main.apps app_unavailable VolumeLost No machine can run wasm-http. box1: it is lost. box2: the app's volume is on another machine.
              platform.mesh.peers lease_released #1
              tenant_main.apps app_failed #1 Exited
            > back box1
              platform.hosts.box1 app_placed d1 v1 as #2 on box1 slot 0.0 epoch 2
              tenant_main.apps app_placed d1 v1 as #2 on box1 slot 0.0 epoch 2
        "#]],
    );
}

/// The same, once the next one has begun.
#[test]
fn a_volume_that_the_next_version_had_is_given_back_when_its_machine_is() {
    let script = format!(
        "{WIKI}
        deploy wiki 2
        box1 says stopped wiki #1
        lost box1
        back box1"
    );
    check(
        &script,
        &expect![[r#"
        > machine box1 wasm-http
        > machine box2 wasm-http
        > app wiki
        > publish wiki 1 wasm-http volume
        > publish wiki 2 wasm-http volume
        > deploy wiki 1
          platform.hosts.box1 app_placed d1 v1 as #1 on box1 slot 0.0 epoch 1
          tenant_main.apps app_placed d1 v1 as #1 on box1 slot 0.0 epoch 1
        > box1 says started wiki #1
          platform.mesh.peers lease_granted #1 on box1 epoch 1
          tenant_main.apps app_started #1
        > box1 says healthy wiki #1
          tenant_main.apps app_healthy #1
          tenant_main.apps traffic_shifted d1 v1 to #1
          tenant_main.apps deploy_finished d1 Succeeded
        > deploy wiki 2
          platform.hosts.box1 app_stop_requested #1 within 30000 ms
          tenant_main.apps app_stop_requested #1 within 30000 ms
        > box1 says stopped wiki #1
          platform.mesh.peers lease_released #1
          tenant_main.apps app_stopped #1
          platform.hosts.box1 app_placed d2 v2 as #2 on box1 slot 0.0 epoch 2
          tenant_main.apps app_placed d2 v2 as #2 on box1 slot 0.0 epoch 2
        > lost box1
          platform.hosts.box1 app_stop_requested #2 within 30000 ms
          tenant_main.apps app_stop_requested #2 within 30000 ms
          tenant_main.apps app_failed #2 Exited
          tenant_main.apps deploy_finished d2 Failed box1: it is lost.
          tenant_main.apps app_unavailable VolumeLost box1: it is lost, and the app's volume is there. Bring box1 back.
        > back box1
          platform.hosts.box1 app_placed d1 v1 as #3 on box1 slot 0.0 epoch 3
          tenant_main.apps app_placed d1 v1 as #3 on box1 slot 0.0 epoch 3
    "#]],
    );
}
