//! A hundred thousand idle apps in one node: what each takes of its memory is printed, and has a limit.
//! In the mesh an app that nobody talks to takes nothing: a session is made by the first dial, and
//! forgotten three minutes after the last packet.

use super::*;

/// Known apps.
const APPS: usize = 100_000;
/// LIMIT: what an idle app may take, in bytes.
const BYTES_MAX: usize = 6 * 1024;

/// Resident memory of this process, in bytes.
fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = text.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

fn placed(app: AppId, deploy: DeployId) -> AppPlaced {
    AppPlaced {
        app,
        tenant: Tenant::main(),
        deploy,
        version: VersionNumber(1),
        host: "box1".parse().unwrap(),
        slot: SlotId::FIRST,
        epoch: Epoch(1),
        instance: InstanceId(1),
        artifact: Digest::of(b"a"),
        run: run(),
    }
}

/// An app that was pushed once, and serves.
fn pushed(app: AppId, n: usize) -> Vec<Event> {
    let (deploy, version) = (DeployId::mint(), VersionNumber(1));
    let instance = InstanceId(1);
    let of = InstanceRef { app, instance };
    let name = format!("shop-{n}").parse().unwrap();
    let address = AppUla::derive(app);
    vec![
        AppRegistered {
            app,
            tenant: Tenant::main(),
            name,
            address,
        }
        .into(),
        VersionReserved { app, version }.into(),
        VersionPublished {
            app,
            version,
            artifact: Digest::of(b"a"),
            config: Digest::of(b"c"),
            access: Access::Private,
            run: run(),
            secrets: Vec::new(),
            placement: Placement::default(),
            further: Vec::new(),
        }
        .into(),
        DeployRequested {
            app,
            deploy,
            version,
        }
        .into(),
        placed(app, deploy).into(),
        AppStarting { of }.into(),
        AppStarted {
            of,
            app_ula: address,
            instance_ula: InstanceUla::derive(app, instance),
            key: MeshKey(Digest::of(app.uuid().as_bytes()).0),
            secrets: BTreeMap::new(),
        }
        .into(),
        AppHealthy { of }.into(),
        TrafficShifted {
            app,
            deploy,
            version,
            instances: vec![instance],
            primary: instance,
        }
        .into(),
        DeployFinished {
            app,
            deploy,
            outcome: DeployOutcome::Succeeded,
            detail: String::new(),
        }
        .into(),
    ]
}

#[test]
fn a_hundred_thousand_idle_apps() {
    let mut view = View::default();
    // The fold itself: what an event looks like on its way is not what is measured.
    let mut history = History::default();
    let mut recorded = history.registered("main", app_id(1), "shop").0.remove(0);
    let before = resident();
    let mut last = None;
    for n in 0..APPS {
        let app = AppId::mint();
        recorded.key = app.to_string();
        for event in pushed(app, n) {
            view.fold(Tenant::main(), &recorded, event);
        }
        last = Some(app);
    }
    let each = (resident() - before) / APPS;
    println!("an idle app takes {each} bytes of a node that knows {APPS}");
    assert!(each < BYTES_MAX, "{each}");
    // It is there, with everything that a request wants to know.
    let app = view.app(last.unwrap()).unwrap();
    assert_eq!(app.replicas(), Replicas::of([InstanceId(1)]));
    let name = format!("shop-{}", APPS - 1).parse().unwrap();
    assert_eq!(view.app_named(&Tenant::main(), &name), Some(app));
    assert_eq!(
        view.app(app.id).and_then(App::latest),
        Some(VersionNumber(1))
    );
}
