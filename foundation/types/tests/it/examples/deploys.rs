//! `tenant_*.apps`.

use std::collections::BTreeMap;

use tabbify_types::event::v1::{
    Access, AppCommandAdmitted, AppDestroyRequested, AppDestroyed, AppFailed, AppHealthy, AppIdled,
    AppNameClaimed, AppPlaced, AppPortAdmitted, AppRegistered, AppRestartRequested, AppRolledBack,
    AppStartRequested, AppStarted, AppStarting, AppStopRequested, AppStopped, AppUnavailable,
    AppWakeRequested, AppWoken, DeployFinished, DeployOutcome, DeployRequested, DeploySuperseded,
    DeployTarget, DomainAdded, DomainRemoved, FailureReason, InstanceDrained, InstanceRef,
    Machines, Placement, RunConfig, RuntimeKind, TrafficShifted, UnavailableReason,
    VersionPublished, VersionReserved,
};
use tabbify_types::{
    ByteSize, Epoch, Event, InstanceId, InstanceUla, SecretVersion, SlotId, Tenant, VersionNumber,
};

use super::{address, app, deploy, digest, host, mesh_key, the};

pub(super) fn all() -> Vec<Event> {
    let mut all = versions();
    all.extend(rollout());
    all.extend(instances());
    all.extend(outcomes());
    all.extend(requests());
    all
}

fn run() -> RunConfig {
    RunConfig {
        runtime: RuntimeKind::WasmHttp,
        entry: "app.wasm".to_owned(),
        memory: ByteSize::mib(64),
        env: BTreeMap::from([("GREETING".to_owned(), "hello".to_owned())]),
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

fn of() -> InstanceRef {
    InstanceRef {
        app: app(),
        instance: InstanceId(7),
    }
}

fn versions() -> Vec<Event> {
    vec![
        AppNameClaimed {
            name: the("shop"),
            app: app(),
        }
        .into(),
        AppRegistered {
            app: app(),
            tenant: Tenant::main(),
            name: the("shop"),
            address: address(),
        }
        .into(),
        VersionReserved {
            app: app(),
            version: VersionNumber(2),
        }
        .into(),
        VersionPublished {
            app: app(),
            version: VersionNumber(2),
            artifact: digest("artifact.json"),
            config: digest("tabbify.toml"),
            access: Access::Private,
            run: run(),
            secrets: vec!["api-key".to_owned()],
            placement: Placement {
                on: Machines::Tag("gpu".to_owned()),
                volume: false,
                replicas: 1,
            },
            further: vec![DeployTarget {
                run: run(),
                placement: Placement::default(),
            }],
        }
        .into(),
    ]
}

fn rollout() -> Vec<Event> {
    vec![
        DeployRequested {
            app: app(),
            deploy: deploy(),
            version: VersionNumber(2),
        }
        .into(),
        DeploySuperseded {
            app: app(),
            deploy: deploy(),
            by: the("0191e7c3-0000-7000-8000-000000000002"),
        }
        .into(),
        AppPlaced {
            app: app(),
            tenant: Tenant::main(),
            deploy: deploy(),
            version: VersionNumber(2),
            host: host(),
            slot: SlotId::FIRST,
            epoch: Epoch(3),
            instance: InstanceId(7),
            artifact: digest("artifact.json"),
            run: run(),
        }
        .into(),
    ]
}

fn instances() -> Vec<Event> {
    vec![
        AppStarting { of: of() }.into(),
        AppStarted {
            of: of(),
            app_ula: address(),
            instance_ula: InstanceUla::derive(app(), InstanceId(7)),
            key: mesh_key(),
            secrets: [(the("api-key"), SecretVersion(3))].into(),
        }
        .into(),
        AppHealthy { of: of() }.into(),
        TrafficShifted {
            app: app(),
            deploy: deploy(),
            version: VersionNumber(2),
            instances: vec![InstanceId(7)],
            primary: InstanceId(7),
        }
        .into(),
        InstanceDrained {
            of: of(),
            finished: 3,
            cut: 0,
        }
        .into(),
        AppFailed {
            of: of(),
            reason: FailureReason::Unhealthy,
            detail: "shop v2 did not answer in 60 s. v1 still serves.".to_owned(),
            log_tail: "listening on 127.0.0.1:3000\n".to_owned(),
        }
        .into(),
        AppIdled { of: of() }.into(),
        AppWoken {
            of: of(),
            key: Some(mesh_key()),
            secrets: [(the("api-key"), SecretVersion(3))].into(),
        }
        .into(),
    ]
}

fn outcomes() -> Vec<Event> {
    vec![
        AppUnavailable {
            app: app(),
            reason: UnavailableReason::VolumeLost,
            remedy: "Start box1, or restore a snapshot: tcli volumes restore".to_owned(),
        }
        .into(),
        AppStopped { of: of() }.into(),
        DeployFinished {
            app: app(),
            deploy: deploy(),
            outcome: DeployOutcome::Failed,
            detail: "shop v2 did not answer. v1 still serves.".to_owned(),
        }
        .into(),
        AppRolledBack {
            app: app(),
            deploy: deploy(),
            from: VersionNumber(2),
            to: VersionNumber(1),
        }
        .into(),
        DomainAdded {
            app: app(),
            domain: the("www.shop.example"),
        }
        .into(),
        DomainRemoved {
            app: app(),
            domain: the("www.shop.example"),
        }
        .into(),
        AppDestroyed { app: app() }.into(),
    ]
}

fn requests() -> Vec<Event> {
    vec![
        AppStartRequested { app: app() }.into(),
        AppStopRequested {
            of: of(),
            drain_ms: 30_000,
        }
        .into(),
        AppRestartRequested { app: app() }.into(),
        AppWakeRequested { app: app() }.into(),
        AppDestroyRequested { app: app() }.into(),
        AppCommandAdmitted {
            of: of(),
            program: "/bin/sh".to_owned(),
        }
        .into(),
        AppPortAdmitted {
            app: app(),
            port: 5432,
        }
        .into(),
    ]
}
