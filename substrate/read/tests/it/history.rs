//! Histories: a plain life of an app, and random ones that make as little sense as possible.

use std::collections::BTreeMap;

use proptest::prelude::*;
use tabbify_types::event::v1::{
    Access, AppDestroyed, AppFailed, AppHealthy, AppPlaced, AppRegistered, AppStarted, AppStarting,
    AppStopped, DeployFinished, DeployOutcome, DeployRequested, DeploySuperseded, FailureReason,
    InstanceRef, LeaseGranted, LeaseReleased, Placement, RunConfig, RuntimeKind, TrafficShifted,
    VersionPublished, VersionReserved,
};
use tabbify_types::{
    AppId, AppUla, ByteSize, Digest, Epoch, HostName, InstanceId, InstanceUla, MeshKey, NewEvent,
    SlotId, Tenant, VersionNumber,
};

use crate::support::{app, deploy, event, raw};

pub(crate) fn host() -> HostName {
    "box1".parse().expect("a host name")
}

pub(crate) fn run_config() -> RunConfig {
    RunConfig {
        runtime: RuntimeKind::WasmHttp,
        entry: "app.wasm".to_owned(),
        memory: ByteSize(64 << 20),
        env: BTreeMap::new(),
        stop_timeout_ms: 30_000,
        healthy_within_ms: 60_000,
        image: None,
        secrets: BTreeMap::new(),
        egress: Vec::new(),
        idle_after_ms: None,
        volume: None,
        ports: Vec::new(),
    }
}

pub(crate) fn registered(tenant: &Tenant, id: AppId, name: &str) -> NewEvent {
    let event_of = AppRegistered {
        app: id,
        tenant: tenant.clone(),
        name: name.parse().expect("an app name"),
        address: AppUla::derive(id),
    };
    event(&format!("tenant_{tenant}.apps"), id, event_of)
}

pub(crate) fn published(id: AppId, version: u32) -> VersionPublished {
    VersionPublished {
        app: id,
        version: VersionNumber(version),
        artifact: Digest::of(b"artifact"),
        config: Digest::of(b"config"),
        access: Access::Private,
        run: run_config(),
        secrets: vec!["api-key".to_owned()],
        placement: Placement::default(),
        further: Vec::new(),
    }
}

pub(crate) fn placed(tenant: &Tenant, id: AppId, of: u128, instance: u32) -> AppPlaced {
    AppPlaced {
        app: id,
        tenant: tenant.clone(),
        deploy: deploy(of),
        version: VersionNumber(1),
        host: host(),
        slot: SlotId::FIRST,
        epoch: Epoch(instance),
        instance: InstanceId(instance),
        artifact: Digest::of(b"artifact"),
        run: run_config(),
    }
}

/// From nothing to an app that serves version 1 by instance 1 of deploy `of`.
pub(crate) fn served(tenant: &Tenant, id: AppId, name: &str, of: u128) -> Vec<NewEvent> {
    let place = format!("tenant_{tenant}.apps");
    let of_instance = InstanceRef {
        app: id,
        instance: InstanceId(1),
    };
    let version = VersionNumber(1);
    let deploy = deploy(of);
    vec![
        registered(tenant, id, name),
        event(
            &place,
            format!("versions/{id}"),
            VersionReserved { app: id, version },
        ),
        event(&place, id, published(id, 1)),
        event(
            &place,
            id,
            DeployRequested {
                app: id,
                deploy,
                version,
            },
        ),
        event(&place, id, placed(tenant, id, of, 1)),
        event(&place, id, AppStarting { of: of_instance }),
        event(&place, id, started(of_instance)),
        event(&place, id, AppHealthy { of: of_instance }),
        event(&place, id, shifted(id, of, vec![1])),
        event(&place, id, finished(id, of, DeployOutcome::Succeeded)),
    ]
}

pub(crate) fn started(of: InstanceRef) -> AppStarted {
    AppStarted {
        of,
        app_ula: AppUla::derive(of.app),
        instance_ula: InstanceUla::derive(of.app, of.instance),
        key: MeshKey([7; 32]),
        secrets: BTreeMap::new(),
    }
}

pub(crate) fn shifted(id: AppId, of: u128, instances: Vec<u32>) -> TrafficShifted {
    TrafficShifted {
        app: id,
        deploy: deploy(of),
        version: VersionNumber(1),
        primary: InstanceId(instances.first().copied().unwrap_or(1)),
        instances: instances.into_iter().map(InstanceId).collect(),
    }
}

pub(crate) fn finished(id: AppId, of: u128, outcome: DeployOutcome) -> DeployFinished {
    DeployFinished {
        app: id,
        deploy: deploy(of),
        outcome,
        detail: "it did not answer".to_owned(),
    }
}

pub(crate) fn failed(of: InstanceRef) -> AppFailed {
    AppFailed {
        of,
        reason: FailureReason::Exited,
        detail: "it exited with 3".to_owned(),
        log_tail: String::new(),
    }
}

/// What of a small world an event is about, so that random events meet.
#[derive(Debug, Clone, Copy)]
struct About {
    tenant: usize,
    app: u128,
    deploy: u128,
    instance: u32,
}

const TENANTS: [&str; 2] = ["main", "other"];

/// Where an event stands: mostly where it belongs, sometimes where it means nothing.
fn place(about: About, odd: u8) -> String {
    let tenant = TENANTS[about.tenant];
    match odd {
        0 => "platform.hosts.box1.reports".to_owned(),
        1 => format!("tenant_{tenant}.chat"),
        2 => "platform.mesh.peers".to_owned(),
        _ => format!("tenant_{tenant}.apps"),
    }
}

fn made(about: About, kind: u8, odd: u8) -> NewEvent {
    let tenant: Tenant = TENANTS[about.tenant].parse().expect("a tenant");
    let (id, version) = (app(about.app), VersionNumber(about.instance));
    let instance = InstanceId(about.instance);
    let of = InstanceRef { app: id, instance };
    let place = place(about, odd);
    match kind {
        0 => registered(&tenant, id, &format!("app-{}", about.app)),
        1 => event(&place, id, VersionReserved { app: id, version }),
        2 => event(&place, id, published(id, about.instance)),
        3 => event(
            &place,
            id,
            DeployRequested {
                app: id,
                deploy: deploy(about.deploy),
                version,
            },
        ),
        4 => event(
            &place,
            id,
            placed(&tenant, id, about.deploy, about.instance),
        ),
        5 => event(&place, id, AppStarting { of }),
        6 => event(&place, id, started(of)),
        7 => event(&place, id, AppHealthy { of }),
        8 => event(
            &place,
            id,
            shifted(id, about.deploy, vec![about.instance, 1]),
        ),
        9 => event(&place, id, failed(of)),
        10 => event(&place, id, AppStopped { of }),
        11 => event(
            &place,
            id,
            finished(id, about.deploy, DeployOutcome::Failed),
        ),
        12 => event(
            &place,
            id,
            DeploySuperseded {
                app: id,
                deploy: deploy(about.deploy),
                by: deploy(about.deploy + 1),
            },
        ),
        other => made_elsewhere(about, other, &place),
    }
}

fn made_elsewhere(about: About, kind: u8, place: &str) -> NewEvent {
    let (id, instance) = (app(about.app), InstanceId(about.instance));
    let lease = LeaseGranted {
        app: id,
        tenant: TENANTS[about.tenant].parse().expect("a tenant"),
        slot: SlotId::FIRST,
        epoch: Epoch(about.instance),
        instance,
        key: MeshKey([1; 32]),
        host: host(),
    };
    match kind {
        13 => event("platform.mesh.peers", id, lease),
        14 => event(
            "platform.mesh.peers",
            id,
            LeaseReleased { app: id, instance },
        ),
        15 => event(place, id, AppDestroyed { app: id }),
        16 => raw(
            place,
            "key",
            "later_thing",
            1,
            r#"{"words":"quick brown fox"}"#,
        ),
        _ => raw(
            place,
            "\u{0}\"*'",
            "x.odd",
            9,
            r#"{"a":"\u0000 ' \" NEAR OR"}"#,
        ),
    }
}

/// A random history. About one in a hundred of its events is of a version that nobody knows, or has
/// data of another shape, so that some histories stop a projection and some do not.
pub(crate) fn any_history() -> impl Strategy<Value = Vec<NewEvent>> {
    let about =
        (0..2_usize, 0..3_u128, 0..4_u128, 1..5_u32).prop_map(|(tenant, app, deploy, instance)| {
            About {
                tenant,
                app,
                deploy,
                instance,
            }
        });
    let one = (about, 0..18_u8, 0..12_u8, 0..200_u8).prop_map(|(about, kind, odd, spoilt)| {
        let mut event = made(about, kind, odd);
        match spoilt {
            // What `Newer` makes an unknown version of a known type.
            0 => event.kind = format!("x.newer_{}", event.kind.trim_start_matches("x.")),
            1 => event.data = raw("platform", "k", "k", 1, r#"{"app":7}"#).data,
            _ => {}
        }
        event
    });
    proptest::collection::vec(one, 1..120)
}
