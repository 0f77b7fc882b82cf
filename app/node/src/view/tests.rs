//! The fold: what callers see after each kind of history, and that replay is exact.

use proptest::prelude::*;
use serde_json::value::RawValue;
use tabbify_api::apps::{OperationStatus, StepStatus};
use tabbify_types::event::v1::{
    AppFailed, AppHealthy, AppIdled, AppPlaced, AppRegistered, AppStarted, AppStarting,
    AppStopRequested, AppStopped, AppWoken, DeployFinished, DeployOutcome, DeployRequested,
    DeploySuperseded, FailureReason, Placement, RunConfig, RuntimeKind, TrafficShifted,
    VersionReserved,
};
use tabbify_types::{
    ByteSize, Digest, Epoch, EventId, InstanceUla, MeshKey, Position, Segment, SlotId,
};

use super::*;

mod scale;

fn app_id(n: u8) -> AppId {
    format!("0191e7c2-1111-7222-8333-4444555566{n:02x}")
        .parse()
        .unwrap()
}

fn deploy_id(n: u8) -> DeployId {
    format!("0191e7c2-2222-7222-8333-4444555566{n:02x}")
        .parse()
        .unwrap()
}

fn urls() -> Urls {
    Urls {
        base: "localhost".to_owned(),
        port: 8090,
    }
}

fn run() -> RunConfig {
    RunConfig {
        runtime: RuntimeKind::WasmHttp,
        entry: "app.wasm".to_owned(),
        memory: ByteSize::mib(64),
        env: BTreeMap::new(),
        stop_timeout_ms: 1,
        healthy_within_ms: 1,
        image: None,
        secrets: BTreeMap::new(),
        egress: Vec::new(),
        idle_after_ms: None,
        volume: None,
        ports: Vec::new(),
    }
}

/// A history that numbers its events; event n is at n × 10 ms.
#[derive(Default)]
struct History(Vec<Recorded>);

impl History {
    fn add(&mut self, tenant: &str, key: impl ToString, event: impl Into<Event>) -> &mut Self {
        let (event, n) = (event.into(), self.0.len() as u64 + 1);
        let segment = Segment::apps(&tenant.parse().unwrap());
        let key = key.to_string();
        let rev = self
            .0
            .iter()
            .filter(|e| e.segment == segment && e.key == key)
            .count() as u64
            + 1;
        self.0.push(Recorded {
            position: Position(n),
            segment,
            key,
            rev: Rev(rev),
            id: EventId::mint(),
            kind: event.kind().to_owned(),
            version: event.version(),
            at: Timestamp::from_millis(n * 10),
            actor: "test".to_owned(),
            cause: None,
            trace: None,
            data: event.data().unwrap(),
        });
        self
    }

    fn registered(&mut self, tenant: &str, app: AppId, name: &str) -> &mut Self {
        let event = AppRegistered {
            app,
            tenant: tenant.parse().unwrap(),
            name: name.parse().unwrap(),
            address: AppUla::derive(app),
        };
        self.add(tenant, app, event)
    }

    fn published(&mut self, app: AppId, n: u32, access: Access) -> &mut Self {
        let version = VersionNumber(n);
        self.add("main", versions_key(app), VersionReserved { app, version });
        let event = VersionPublished {
            app,
            version,
            artifact: Digest::of(b"a"),
            config: Digest::of(b"c"),
            access,
            run: run(),
            secrets: Vec::new(),
            placement: Placement::default(),
            further: Vec::new(),
        };
        self.add("main", app, event)
    }

    fn placed(&mut self, app: AppId, deploy: DeployId, n: u32, instance: u32) -> &mut Self {
        let event = AppPlaced {
            app,
            tenant: Tenant::main(),
            deploy,
            version: VersionNumber(n),
            host: "box1".parse().unwrap(),
            slot: SlotId::FIRST,
            epoch: Epoch(instance),
            instance: InstanceId(instance),
            artifact: Digest::of(b"a"),
            run: run(),
        };
        self.add("main", app, event)
    }

    /// Everything of a deploy that goes well.
    fn deployed(&mut self, app: AppId, deploy: DeployId, n: u32, instance: u32) -> &mut Self {
        let of = InstanceRef {
            app,
            instance: InstanceId(instance),
        };
        let version = VersionNumber(n);
        self.add(
            "main",
            app,
            DeployRequested {
                app,
                deploy,
                version,
            },
        );
        self.placed(app, deploy, n, instance);
        self.add("main", app, AppStarting { of });
        let started = AppStarted {
            of,
            app_ula: AppUla::derive(app),
            instance_ula: InstanceUla::derive(app, of.instance),
            key: MeshKey([1; 32]),
            secrets: BTreeMap::new(),
        };
        self.add("main", app, started);
        self.add("main", app, AppHealthy { of });
        let shifted = TrafficShifted {
            app,
            deploy,
            version,
            instances: vec![of.instance],
            primary: of.instance,
        };
        self.add("main", app, shifted);
        self.finished(app, deploy, DeployOutcome::Succeeded, "")
    }

    fn finished(
        &mut self,
        app: AppId,
        deploy: DeployId,
        outcome: DeployOutcome,
        detail: &str,
    ) -> &mut Self {
        let detail = detail.to_owned();
        self.add(
            "main",
            app,
            DeployFinished {
                app,
                deploy,
                outcome,
                detail,
            },
        )
    }

    fn failed(&mut self, app: AppId, instance: u32, reason: FailureReason) -> &mut Self {
        let event = AppFailed {
            of: InstanceRef {
                app,
                instance: InstanceId(instance),
            },
            reason,
            detail: "it broke".to_owned(),
            log_tail: "last line".to_owned(),
        };
        self.add("main", app, event)
    }

    fn view(&self) -> View {
        let mut view = View::default();
        for event in &self.0 {
            view.apply(event).unwrap();
        }
        view
    }
}

fn history() -> History {
    let (one, two) = (app_id(1), app_id(2));
    let mut history = History::default();
    history
        .registered("main", one, "shop")
        .published(one, 1, Access::Private);
    history.deployed(one, deploy_id(1), 1, 1);
    history.registered("acme", two, "shop");
    history.published(one, 2, Access::Public);
    history.deployed(one, deploy_id(2), 2, 2);
    let of = InstanceRef {
        app: one,
        instance: InstanceId(1),
    };
    history.add("main", one, AppStopped { of });
    history.add(
        "main",
        one,
        DeployRequested {
            app: one,
            deploy: deploy_id(3),
            version: VersionNumber(1),
        },
    );
    history
        .placed(one, deploy_id(3), 1, 3)
        .failed(one, 3, FailureReason::Unhealthy);
    history.finished(
        one,
        deploy_id(3),
        DeployOutcome::Failed,
        "v1 did not answer; v2 still serves",
    );
    history
}

#[test]
fn a_deploy_step_by_step() {
    let one = app_id(1);
    let mut history = History::default();
    history
        .registered("main", one, "shop")
        .published(one, 1, Access::Private);
    let view = history.view();
    let app = view.app(one).unwrap().view(&urls());
    assert_eq!((app.status, app.serving), (AppStatus::New, None));
    assert_eq!(app.latest, Some(VersionNumber(1)));
    assert_eq!(app.url, "http://shop.localhost:8090");

    history.deployed(one, deploy_id(1), 1, 1);
    let view = history.view();
    let app = view.app(one).unwrap();
    assert_eq!(app.view(&urls()).status, AppStatus::Healthy);
    assert_eq!(app.view(&urls()).primary, Some(InstanceId(1)));
    let operation = app.operation(deploy_id(1), &urls()).unwrap();
    let steps: Vec<(&str, u64)> = operation
        .steps
        .iter()
        .map(|s| (s.name.as_str(), s.ms))
        .collect();
    let expected = [
        ("requested", 0),
        ("placed", 10),
        ("starting", 20),
        ("started", 30),
        ("healthy", 40),
        ("shifted", 50),
        ("finished", 60),
    ];
    assert_eq!(steps, expected);
    assert_eq!(operation.status, OperationStatus::Succeeded);
    assert_eq!(operation.url.as_deref(), Some("http://shop.localhost:8090"));
}

#[test]
fn an_app_that_sleeps_serves_and_nothing_is_kept_to_it() {
    let one = app_id(1);
    let mut history = History::default();
    history
        .registered("main", one, "shop")
        .published(one, 1, Access::Private)
        .deployed(one, deploy_id(1), 1, 1);
    let of = InstanceRef {
        app: one,
        instance: InstanceId(1),
    };
    let noticed = |history: &History| {
        let mut view = View::default();
        let all = history.0.iter().map(|event| view.apply(event).unwrap());
        all.last().unwrap()
    };
    let shown = |history: &History| {
        let view = history.view();
        let app = view.app(one).unwrap();
        (app.view(&urls()).status, app.replicas())
    };
    let served_by = Replicas::of([of.instance]);
    history.add("main", one, AppIdled { of });
    // The next request still goes there.
    assert_eq!(shown(&history), (AppStatus::Idle, served_by.clone()));
    assert_eq!(noticed(&history), Noticed::Switched(one, Replicas::Unknown));
    let woken = AppWoken {
        of,
        key: None,
        secrets: BTreeMap::new(),
    };
    history.add("main", one, woken);
    assert_eq!(shown(&history), (AppStatus::Healthy, served_by));
    // What was kept meanwhile leads through the doorbell.
    assert_eq!(noticed(&history), Noticed::Switched(one, Replicas::Unknown));
    // Another's sleep is nobody's business.
    let other = InstanceRef {
        app: one,
        instance: InstanceId(2),
    };
    history.add("main", one, AppIdled { of: other });
    assert_eq!(shown(&history).0, AppStatus::Healthy);
    assert_eq!(noticed(&history), Noticed::Nothing);
}

#[test]
fn every_instance_that_serves_is_shown() {
    let one = app_id(1);
    let mut history = History::default();
    history
        .registered("main", one, "shop")
        .published(one, 1, Access::Private);
    history.placed(one, deploy_id(1), 1, 1);
    let second = AppPlaced {
        app: one,
        tenant: Tenant::main(),
        deploy: deploy_id(1),
        version: VersionNumber(1),
        host: "box2".parse().unwrap(),
        slot: SlotId {
            target: 0,
            ordinal: 1,
        },
        epoch: Epoch(1),
        instance: InstanceId(2),
        artifact: Digest::of(b"a"),
        run: run(),
    };
    history.add("main", one, second);
    let shown = |history: &History| {
        let seen = history.view().app(one).unwrap().view(&urls());
        let all = seen.instances.into_iter();
        let all = all.map(|it| format!("{} #{} on {}", it.slot, it.instance, it.host));
        all.collect::<Vec<_>>()
    };
    assert_eq!(shown(&history), [""; 0], "nothing serves yet");
    let shifted = TrafficShifted {
        app: one,
        deploy: deploy_id(1),
        version: VersionNumber(1),
        instances: vec![InstanceId(1), InstanceId(2)],
        primary: InstanceId(2),
    };
    history.add("main", one, shifted);
    assert_eq!(shown(&history), ["0.0 #1 on box1", "0.1 #2 on box2"]);
    history.failed(one, 1, FailureReason::Exited);
    assert_eq!(shown(&history), ["0.1 #2 on box2"]);
}

#[test]
fn a_failed_deploy_leaves_what_serves() {
    let view = history().view();
    let app = view.app(app_id(1)).unwrap();
    let seen = app.view(&urls());
    assert_eq!(
        (seen.status, seen.serving),
        (AppStatus::Healthy, Some(VersionNumber(2)))
    );
    assert_eq!(seen.problem, None);
    let operation = app.operation(deploy_id(3), &urls()).unwrap();
    assert_eq!(operation.status, OperationStatus::Failed);
    let error = operation.error.unwrap();
    assert_eq!(error.code, "unhealthy");
    assert_eq!(error.title, "v1 did not answer; v2 still serves");
    assert_eq!(error.detail, "it broke");
    assert_eq!(operation.log_tail, "last line");
    let failed: Vec<&str> = operation
        .steps
        .iter()
        .filter(|step| step.status == StepStatus::Failed)
        .map(|step| step.name.as_str())
        .collect();
    assert_eq!(failed, ["healthy", "finished"]);
    let listed: Vec<DeployId> = app
        .operations(&urls())
        .iter()
        .map(|o| o.operation)
        .collect();
    assert_eq!(listed, [deploy_id(3), deploy_id(2), deploy_id(1)]);
}

#[test]
fn the_instance_that_serves_dies_and_comes_back() {
    let mut history = history();
    history.failed(app_id(1), 2, FailureReason::Exited);
    let seen = history.view().app(app_id(1)).unwrap().view(&urls());
    assert_eq!((seen.status, seen.serving), (AppStatus::Failed, None));
    assert!(seen.problem.is_some());
    // Access stays what it was: nothing private opens, nothing public closes.
    assert_eq!(seen.access, Access::Public);
    let of = InstanceRef {
        app: app_id(1),
        instance: InstanceId(2),
    };
    history.add("main", app_id(1), AppHealthy { of });
    let seen = history.view().app(app_id(1)).unwrap().view(&urls());
    assert_eq!(seen.status, AppStatus::Healthy);
}

#[test]
fn names_live_in_their_tenant_and_tenants_do_not_speak_for_each_other() {
    let mut history = history();
    let acme: Tenant = "acme".parse().unwrap();
    let name: AppName = "shop".parse().unwrap();
    let view = history.view();
    assert_eq!(
        view.app_named(&Tenant::main(), &name).unwrap().id,
        app_id(1)
    );
    assert_eq!(view.app_named(&acme, &name).unwrap().id, app_id(2));
    assert_eq!(view.apps_of(&acme).count(), 1);
    // A foreign segment that names our app changes nothing.
    let forged = VersionReserved {
        app: app_id(1),
        version: VersionNumber(9),
    };
    history.add("acme", versions_key(app_id(1)), forged);
    assert_eq!(
        history.view().app(app_id(1)).unwrap().reserved,
        VersionNumber(2)
    );
}

#[test]
fn versions_are_counted_under_their_own_key() {
    let view = history().view();
    let app = view.app(app_id(1)).unwrap();
    assert_eq!((app.reserved, app.versions_rev), (VersionNumber(2), Rev(2)));
}

#[test]
fn superseded_and_forgotten_deploys() {
    let one = app_id(1);
    let mut history = History::default();
    history.registered("main", one, "shop");
    let version = VersionNumber(1);
    let many = u8::try_from(DEPLOYS_MAX).unwrap() + 1;
    for n in 0..many {
        history.add(
            "main",
            one,
            DeployRequested {
                app: one,
                deploy: deploy_id(n),
                version,
            },
        );
    }
    let (deploy, by) = (deploy_id(1), deploy_id(2));
    history.add(
        "main",
        one,
        DeploySuperseded {
            app: one,
            deploy,
            by,
        },
    );
    // Ends once: what comes later is about instances, not about the deploy.
    history.finished(one, deploy, DeployOutcome::Succeeded, "");
    let view = history.view();
    assert!(
        view.app_of_deploy(deploy_id(0)).is_none(),
        "the oldest is forgotten"
    );
    let app = view.app_of_deploy(deploy).unwrap();
    assert_eq!(
        app.operation(deploy, &urls()).unwrap().status,
        OperationStatus::Superseded
    );
    assert_eq!(app.operations(&urls()).len(), DEPLOYS_MAX);
    assert_eq!(app.view(&urls()).status, AppStatus::Deploying);
}

#[test]
fn unknown_types_are_skipped_and_unknown_versions_stop() {
    let mut view = history().view();
    let before = view.clone();
    let mut event = history().0[0].clone();
    event.kind = "app_danced".to_owned();
    event.data = RawValue::from_string("{}".to_owned()).unwrap();
    assert_eq!(view.apply(&event).unwrap(), Noticed::Nothing);
    assert_eq!(view, before);
    event.kind = "app_registered".to_owned();
    event.version = 2;
    assert!(matches!(
        view.apply(&event),
        Err(EventError::Version { .. })
    ));
    // Of a type that is somebody else's, no version is too new.
    event.kind = "lease_granted".to_owned();
    assert_eq!(view.apply(&event).unwrap(), Noticed::Nothing);
}

#[test]
fn a_switch_is_noticed() {
    let mut view = View::default();
    let mut history = history();
    let of = InstanceRef {
        app: app_id(1),
        instance: InstanceId(1),
    };
    history.add("main", app_id(1), AppStopRequested { of, drain_ms: 1 });
    let noticed: Vec<Noticed> = history.0.iter().map(|e| view.apply(e).unwrap()).collect();
    let switched = noticed.into_iter().filter_map(|noticed| match noticed {
        Noticed::Switched(app, replicas) if app == app_id(1) => Some(replicas),
        _ => None,
    });
    let (one, two) = (Replicas::One(InstanceId(1)), Replicas::One(InstanceId(2)));
    assert_eq!(
        switched.collect::<Vec<_>>(),
        [one, two.clone(), two],
        "two shifts, and the stop of what they left behind"
    );
}

#[test]
fn who_gets_requests() {
    let app = app_id(7);
    let mut history = History::default();
    history.registered("main", app, "many");
    let shift = TrafficShifted {
        app,
        deploy: deploy_id(1),
        version: VersionNumber(1),
        instances: [1, 2, 3].map(InstanceId).to_vec(),
        primary: InstanceId(1),
    };
    let of = |n| InstanceRef {
        app,
        instance: InstanceId(n),
    };
    let failed = AppFailed {
        of: of(2),
        reason: FailureReason::Exited,
        detail: String::new(),
        log_tail: String::new(),
    };
    let replicas = |history: &History| history.view().app(app).unwrap().replicas();
    let of_numbers = |numbers: &[u32]| Replicas::of(numbers.iter().copied().map(InstanceId));
    assert_eq!(replicas(&history), Replicas::Unknown);
    history.add("main", app, shift.clone());
    assert_eq!(replicas(&history), of_numbers(&[1, 2, 3]));
    history.add("main", app, failed);
    assert_eq!(replicas(&history), of_numbers(&[1, 3]));
    // What belongs to no traffic changes nothing, and neither does the health of who was not meant.
    history.add(
        "main",
        app,
        AppStopRequested {
            of: of(9),
            drain_ms: 1,
        },
    );
    history.add("main", app, AppHealthy { of: of(9) });
    assert_eq!(replicas(&history), of_numbers(&[1, 3]));
    history.add(
        "main",
        app,
        AppStopRequested {
            of: of(1),
            drain_ms: 1,
        },
    );
    assert_eq!(replicas(&history), of_numbers(&[3]), "it is draining");
    assert!(
        history
            .view()
            .app(app)
            .unwrap()
            .view(&urls())
            .serving
            .is_some()
    );
    history.add("main", app, AppStopped { of: of(3) });
    assert_eq!(replicas(&history), Replicas::Unknown);
    history.add("main", app, shift);
    assert_eq!(replicas(&history), of_numbers(&[1, 2, 3]), "a new switch");
}

proptest! {
    /// Any selection of the history's events, in any order, folded in two parts or in one.
    #[test]
    fn replay_is_exact(
        order in proptest::collection::vec(any::<proptest::sample::Index>(), 0..60),
        cut in any::<proptest::sample::Index>(),
    ) {
        let all = history().0;
        let events: Vec<&Recorded> = order.iter().map(|index| index.get(&all)).collect();
        let mut whole = View::default();
        for event in &events {
            whole.apply(event).unwrap();
        }
        let cut = if events.is_empty() { 0 } else { cut.index(events.len()) };
        let mut first = View::default();
        for event in &events[..cut] {
            first.apply(event).unwrap();
        }
        // As from a snapshot.
        let stored = serde_json::to_vec(&first).unwrap();
        let mut second: View = serde_json::from_slice(&stored).unwrap();
        prop_assert_eq!(&second, &first);
        for event in &events[cut..] {
            second.apply(event).unwrap();
        }
        prop_assert_eq!(whole, second);
    }
}
