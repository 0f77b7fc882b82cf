//! What becomes of events: rows, in order, and what happens when one is not understood.

use std::sync::Arc;
use std::time::Duration;

use tabbify_api::apps::OperationStatus;
use tabbify_api::log::EventLog;
use tabbify_api::read::{
    ApprovalStatus, BuildStatus, InstanceState, QueryError, ReadModel as _, ReadScope,
    SupervisorState, Window,
};
use tabbify_types::event::v1::{
    AppDestroyed, AppStopped, ApprovalConsumed, ApprovalExpired, ApprovalGranted,
    ApprovalRequested, BuildFailed, BuildRequested, BuildStage, BuildStarted, Capability,
    DeployOutcome, DeployRequested, Fault, InstanceRef, LeaseGranted, LeaseReleased, PeerJoined,
    Source, SupervisorJoined, SupervisorLost, Target, TokenIssued, TokenRevoked, UserRegistered,
};
use tabbify_types::{
    ApprovalId, BuildId, Digest, Epoch, EventId, HostUla, InstanceId, MeshKey, Position, Rev,
    SlotId, Tenant, Timestamp, VersionNumber,
};

use crate::history::{failed, finished, host, placed, served};
use crate::http::get;
use crate::support::{
    Newer, Outcome, Running, Served, WATCHDOG, Way, app, append, deploy, event, open_log, raw,
    scope, segment, tenant,
};

const ALL: ReadScope = ReadScope::Platform;
const PAGE: Window = Window::first(100);

#[tokio::test]
async fn an_app_from_registration_to_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let (_log, log) = open_log(&dir.path().join("log")).unwrap();
    let running = Running::start(&dir.path().join("read"), &log)
        .await
        .unwrap();
    let node = &running.node;
    let (main, id) = (Tenant::main(), app(1));
    let last = append(&log, served(&main, id, "shop", 1)).await.unwrap();
    running.reach(last).await.unwrap();

    let detail = node.app(scope("main"), id).await.unwrap().unwrap();
    assert_eq!(detail.position, last);
    assert_eq!(detail.app.name.as_str(), "shop");
    assert_eq!(detail.app.latest, Some(VersionNumber(1)));
    assert_eq!(detail.app.serving, Some(VersionNumber(1)));
    assert_eq!(detail.app.primary, Some(InstanceId(1)));
    assert_eq!(detail.instances[0].state, InstanceState::Healthy);
    assert!(detail.instances[0].traffic);
    let versions = node.versions(ALL, id, PAGE).await.unwrap();
    assert_eq!(versions.rows[0].secrets, ["api-key"]);
    assert_eq!(versions.rows[0].actor, "user:owner");
    let deploys = node.deploys(scope("main"), Some(id), PAGE).await.unwrap();
    let row = &deploys.rows[0];
    assert_eq!(row.status, OperationStatus::Succeeded);
    let steps: Vec<_> = row.steps.iter().map(|step| step.step.as_str()).collect();
    let expected = [
        "requested",
        "placed",
        "starting",
        "started",
        "healthy",
        "shifted",
        "finished",
    ];
    assert_eq!(steps, expected);

    running.stop().await.unwrap();
}

#[tokio::test]
async fn a_deploy_that_fails_and_an_app_that_ends() {
    let dir = tempfile::tempdir().unwrap();
    let (_log, log) = open_log(&dir.path().join("log")).unwrap();
    let running = Running::start(&dir.path().join("read"), &log)
        .await
        .unwrap();
    let node = &running.node;
    let (main, id) = (Tenant::main(), app(1));
    append(&log, served(&main, id, "shop", 1)).await.unwrap();
    // A second deploy fails, the first instance dies: nothing serves, and the app says why.
    let apps = "tenant_main.apps";
    let of = |number| InstanceRef {
        app: id,
        instance: InstanceId(number),
    };
    let again = DeployRequested {
        app: id,
        deploy: deploy(2),
        version: VersionNumber(1),
    };
    let events = vec![
        event(apps, id, again),
        event(apps, id, placed(&main, id, 2, 2)),
        event(apps, id, failed(of(2))),
        event(apps, id, finished(id, 2, DeployOutcome::Failed)),
        event(apps, id, finished(id, 2, DeployOutcome::Succeeded)),
        event(apps, id, failed(of(1))),
    ];
    running
        .reach(append(&log, events).await.unwrap())
        .await
        .unwrap();
    let detail = node.app(ALL, id).await.unwrap().unwrap();
    assert_eq!((detail.app.serving, detail.app.primary), (None, None));
    assert_eq!(detail.app.failure.as_deref(), Some("it exited with 3"));
    let deploys = node.deploys(ALL, None, PAGE).await.unwrap();
    assert_eq!(deploys.rows[0].deploy, deploy(2));
    assert_eq!(
        deploys.rows[0].status,
        OperationStatus::Failed,
        "an outcome is final"
    );
    assert_eq!(deploys.rows[0].detail.as_deref(), Some("it did not answer"));

    let events = vec![
        event(apps, id, AppStopped { of: of(1) }),
        event(apps, id, AppDestroyed { app: id }),
    ];
    running
        .reach(append(&log, events).await.unwrap())
        .await
        .unwrap();
    assert!(node.apps(ALL, None, PAGE).await.unwrap().rows.is_empty());
    let detail = node.app(ALL, id).await.unwrap().unwrap();
    assert!(detail.app.destroyed.is_some() && detail.instances.is_empty());
    running.stop().await.unwrap();
}

fn lease(instance: u32) -> LeaseGranted {
    LeaseGranted {
        app: app(1),
        tenant: Tenant::main(),
        slot: SlotId::FIRST,
        epoch: Epoch(instance),
        instance: InstanceId(instance),
        key: MeshKey([1; 32]),
        host: host(),
    }
}

fn released(instance: u32) -> LeaseReleased {
    LeaseReleased {
        app: app(1),
        instance: InstanceId(instance),
    }
}

#[tokio::test]
async fn machines_and_leases() {
    let dir = tempfile::tempdir().unwrap();
    let (_log, log) = open_log(&dir.path().join("log")).unwrap();
    let running = Running::start(&dir.path().join("read"), &log)
        .await
        .unwrap();
    let (peers, supervisors) = ("platform.mesh.peers", "platform.supervisors");
    let joined = PeerJoined {
        host: host(),
        network: "main".to_owned(),
        index: 1,
        address: HostUla::new(1, 1),
        key: MeshKey([2; 32]),
        tags: vec!["gpu".to_owned()],
    };
    let able = Capability {
        runtime: "docker".to_owned(),
        works: true,
        detail: String::new(),
    };
    let ready = SupervisorJoined {
        host: host(),
        capabilities: vec![able],
        memory: None,
    };
    let events = vec![
        event(peers, "box1", joined),
        event(supervisors, "box1", ready),
        event(supervisors, "box1", SupervisorLost { host: host() }),
        event(peers, app(1), lease(1)),
        event(peers, app(1), lease(2)),
        event(peers, app(1), released(1)),
        // Said in the wrong place, it is not so.
        event("tenant_other.apps", app(1), released(2)),
    ];
    let last = append(&log, events).await.unwrap();
    running.reach(last).await.unwrap();

    let machines = running.node.peers(ALL, PAGE).await.unwrap().rows;
    let supervisor = machines[0].supervisor.as_ref().unwrap();
    assert_eq!(supervisor.state, SupervisorState::Lost);
    assert_eq!(supervisor.capabilities[0].runtime, "docker");
    assert_eq!(machines[0].tags, ["gpu"]);
    let leases = running.node.leases(scope("main"), None, PAGE).await;
    let leases = leases.unwrap().rows;
    assert_eq!(leases.len(), 1);
    assert_eq!(leases[0].instance, InstanceId(2));
    running.stop().await.unwrap();
}

#[tokio::test]
async fn tokens_belong_to_the_tenant_of_their_subject() {
    let dir = tempfile::tempdir().unwrap();
    let (_log, log) = open_log(&dir.path().join("log")).unwrap();
    let running = Running::start(&dir.path().join("read"), &log)
        .await
        .unwrap();
    let expires = Timestamp::from_secs(2_000_000_000);
    let issued = |jti: &str, subject: &str| TokenIssued {
        jti: jti.to_owned(),
        kind: "agent".to_owned(),
        subject: subject.to_owned(),
        expires,
        tenant: None,
        scopes: Vec::new(),
        tags: Vec::new(),
        by: None,
    };
    let user = |slug: &str| UserRegistered {
        user: "user:anna".to_owned(),
        tenant: tenant(slug),
        key: None,
    };
    let revoked = TokenRevoked {
        jti: "a".to_owned(),
        expires,
    };
    let auth = "platform.auth";
    let events = vec![
        event(auth, "a", issued("a", "user:anna")),
        event(auth, "b", issued("b", "svc:node")),
        event(auth, "user:anna", user("other")),
        event(auth, "user:anna", user("main")),
        event(auth, "a", revoked),
    ];
    let last = append(&log, events).await.unwrap();
    running.reach(last).await.unwrap();

    let tokens = running.node.tokens(ALL, PAGE).await.unwrap().rows;
    let ids: Vec<_> = tokens.iter().map(|token| token.jti.as_str()).collect();
    assert_eq!(ids, ["b", "a"]);
    assert!(tokens[1].revoked.is_some() && tokens[0].revoked.is_none());
    let annas = running
        .node
        .tokens(scope("other"), PAGE)
        .await
        .unwrap()
        .rows;
    assert_eq!(annas.len(), 1);
    assert_eq!(annas[0].tenant, Some(tenant("other")));
    let others = running.node.tokens(scope("main"), PAGE).await.unwrap().rows;
    assert!(others.is_empty(), "nobody moves to another tenant");
    running.stop().await.unwrap();
}

#[tokio::test]
async fn builds() {
    let dir = tempfile::tempdir().unwrap();
    let (_log, log) = open_log(&dir.path().join("log")).unwrap();
    let running = Running::start(&dir.path().join("read"), &log)
        .await
        .unwrap();
    let (place, build) = ("tenant_main.builds", BuildId::mint());
    let requested = BuildRequested {
        build,
        app: app(1),
        source: Source::Upload {
            archive: Digest::of(b"archive"),
        },
    };
    let failure = BuildFailed {
        build,
        stage: BuildStage::Build,
        fault: Fault::User,
        detail: "no such file".to_owned(),
        log_tail: String::new(),
    };
    let started = BuildStarted {
        build,
        host: host(),
    };
    let events = vec![
        event(place, build, requested),
        event(place, build, started.clone()),
        event(place, build, failure),
        event(place, build, started),
    ];
    let last = append(&log, events).await.unwrap();
    running.reach(last).await.unwrap();
    let rows = running.node.builds(scope("main"), Some(app(1)), PAGE).await;
    let rows = rows.unwrap().rows;
    assert_eq!(rows[0].status, BuildStatus::Failed, "an outcome is final");
    assert_eq!(rows[0].failure.as_ref().unwrap().detail, "no such file");
    assert_eq!(rows[0].host, Some(host()));
    running.stop().await.unwrap();
}

fn asked(approval: ApprovalId) -> ApprovalRequested {
    ApprovalRequested {
        approval,
        action: "deploy".to_owned(),
        arguments: Digest::of(b"arguments"),
        plan: Digest::of(b"plan"),
        target: Target {
            segment: segment("tenant_main.apps"),
            key: "shop".to_owned(),
            rev: Rev(3),
        },
        requester: "agent:claude".to_owned(),
        on_behalf_of: Some("user:anna".to_owned()),
        why: "the button was blue".to_owned(),
        expires: Timestamp::from_secs(2_000_000_000),
    }
}

fn granted(approval: ApprovalId) -> ApprovalGranted {
    ApprovalGranted {
        approval,
        by: "user:anna".to_owned(),
        plan: Digest::of(b"plan"),
        standing: None,
    }
}

#[tokio::test]
async fn approvals() {
    let dir = tempfile::tempdir().unwrap();
    let (_log, log) = open_log(&dir.path().join("log")).unwrap();
    let running = Running::start(&dir.path().join("read"), &log)
        .await
        .unwrap();
    let place = "tenant_main.approvals";
    let (used, late) = (ApprovalId::mint(), ApprovalId::mint());
    let consumption = ApprovalConsumed {
        approval: used,
        intent: EventId::mint(),
    };
    let events = vec![
        event(place, used, asked(used)),
        event(place, late, asked(late)),
        event(place, used, granted(used)),
        event(place, used, consumption),
        event(place, late, ApprovalExpired { approval: late }),
        event(place, late, granted(late)),
    ];
    let last = append(&log, events).await.unwrap();
    running.reach(last).await.unwrap();
    let rows = running.node.approvals(scope("main"), None, PAGE).await;
    let rows = rows.unwrap().rows;
    let seen: Vec<_> = rows
        .iter()
        .map(|row| (row.request.approval, row.status))
        .collect();
    let (expired, consumed) = (ApprovalStatus::Expired, ApprovalStatus::Consumed);
    assert_eq!(
        seen,
        [(late, expired), (used, consumed)],
        "a late yes changes nothing"
    );
    assert_eq!(rows[1].by.as_deref(), Some("user:anna"));
    let consumed = running.node.approvals(ALL, Some(consumed), PAGE).await;
    assert_eq!(consumed.unwrap().rows.len(), 1);
    running.stop().await.unwrap();
}

/// Read as a `deploy_requested` of version 9.
const NEWER: &str = "x.newer_deploy_requested";

#[tokio::test]
async fn what_is_not_understood_stops_one_projection() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("read");
    let (_log, log) = open_log(&dir.path().join("log")).unwrap();
    let log: Arc<dyn EventLog> = Arc::new(Newer(log));
    let running = Running::start(&home, &log).await.unwrap();
    let (main, id) = (Tenant::main(), app(1));
    append(&log, served(&main, id, "shop", 1)).await.unwrap();
    // A host's reports stop nothing, whatever they say; an unknown type is skipped.
    let reports = "platform.hosts.box1.reports";
    append(
        &log,
        vec![
            raw(reports, "shop", "x.newer_deploy_requested", 1, "{}"),
            raw("tenant_main.apps", "shop", "later_thing", 9, "{}"),
        ],
    )
    .await
    .unwrap();
    let before = log.head();
    append(&log, vec![raw("tenant_main.apps", "shop", NEWER, 1, "{}")])
        .await
        .unwrap();
    let last = append(&log, served(&main, app(2), "blog", 2))
        .await
        .unwrap();

    let mut running = running;
    for round in ["live", "after a restart"] {
        running.reach(last).await.unwrap();
        let status = running.node.status();
        assert_eq!((status.lag_events, status.lag_ms), (0, 0), "{round}");
        assert_eq!(status.stopped, None);
        for projection in &status.projections {
            if projection.name == "deploys" {
                assert_eq!(projection.position, before, "{round}");
                let reason = projection.stopped.as_deref().unwrap();
                assert!(reason.contains("deploy_requested v9"), "{reason}");
            } else {
                assert_eq!(
                    (projection.position, &projection.stopped),
                    (last, &None),
                    "{round}"
                );
            }
        }
        // Whoever must see what the stopped projection has not folded is told, not shown less.
        let served = Served::start(&running.node, &running.tasks).unwrap();
        let far = served.remote("platform").await.unwrap();
        assert_eq!(far.status().projections, status.projections);
        let deploys = far.deploys(ALL, None, PAGE).await.unwrap();
        assert_eq!(deploys.position, before);
        let path = format!("/v1/read/deploys?min_position={last}");
        let (code, body) = get(&served, &path, "platform").await.unwrap();
        assert_eq!(code, 503, "{body}");
        assert!(body.contains("\"projection_stopped\""), "{body}");
        let path = format!("/v1/read/apps?min_position={last}");
        assert_eq!(get(&served, &path, "platform").await.unwrap().0, 200);
        // Both apps are there; of the deploys only what came before.
        assert_eq!(
            running.node.apps(ALL, None, PAGE).await.unwrap().rows.len(),
            2
        );
        let deploys = running.node.deploys(ALL, None, PAGE).await.unwrap();
        assert_eq!((deploys.rows.len(), deploys.position), (1, before));
        running.stop().await.unwrap();
        running = Running::start(&home, &log).await.unwrap();
    }
    running.stop().await.unwrap();
}

#[tokio::test]
async fn a_projection_that_understands_again_catches_up() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("read");
    let (_log, log) = open_log(&dir.path().join("log")).unwrap();
    let running = Running::start(&home, &log).await.unwrap();
    let last = append(&log, served(&Tenant::main(), app(1), "shop", 1))
        .await
        .unwrap();
    running.reach(last).await.unwrap();
    let digest = running.node.digest().await.unwrap();
    running.stop().await.unwrap();

    // As an older program would have left the file: stopped before the deploy's first event.
    let name = std::fs::read_to_string(home.join("CURRENT")).unwrap();
    let conn = rusqlite::Connection::open(home.join(name)).unwrap();
    conn.execute_batch(
        "DELETE FROM deploys; DELETE FROM deploy_steps; DELETE FROM deploy_instances;
         UPDATE projections SET position = 3, stopped = 'position 4: too new'
         WHERE name = 'deploys';",
    )
    .unwrap();
    drop(conn);
    let running = Running::start(&home, &log).await.unwrap();
    let last = append(&log, vec![raw("platform", "p", "x.a", 1, "{}")])
        .await
        .unwrap();
    running.reach(last).await.unwrap();
    let status = running.node.status();
    assert!(
        status
            .projections
            .iter()
            .all(|one| one.stopped.is_none() && one.position == last)
    );
    let steps = &running.node.deploys(ALL, None, PAGE).await.unwrap().rows[0].steps;
    assert_eq!(steps.len(), 7);
    let rebuilt = running.node.rebuild().await.unwrap();
    assert_eq!(rebuilt.digest, rebuilt.before);
    assert_ne!(rebuilt.digest, digest, "an event more is another content");
    running.stop().await.unwrap();
}

pub(crate) async fn waiting_says_when_it_is_there_and_how_far_it_is_not(way: Way) -> Outcome {
    let dir = tempfile::tempdir()?;
    let (_log, log) = open_log(&dir.path().join("log"))?;
    let running = Running::start_as(way, &dir.path().join("read"), &log).await?;
    let short = Duration::from_millis(20);
    let waited = running.model.wait_for(Position(5), short).await;
    let (wanted, position) = (Position(5), Position(0));
    assert_eq!(waited, Err(QueryError::Behind { wanted, position }));
    // Whoever waits is woken by the event.
    let (waited, last) = tokio::join!(
        running.model.wait_for(Position(10), WATCHDOG),
        append(&log, served(&Tenant::main(), app(1), "shop", 1))
    );
    assert_eq!((waited, last?), (Ok(()), Position(10)));
    let apps = running.model.apps(ALL, None, PAGE).await?;
    assert_eq!((apps.rows.len(), apps.position), (1, Position(10)));
    let status = running.model.status();
    assert_eq!((status.position, status.head), (Position(10), Position(10)));
    assert_eq!((status.lag_events, status.lag_ms), (0, 0));
    assert_eq!(status.projections.len(), 7);
    running.stop().await
}

#[tokio::test]
async fn a_node_that_has_ended_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let (_log, log) = open_log(&dir.path().join("log")).unwrap();
    let running = Running::start(&dir.path().join("read"), &log)
        .await
        .unwrap();
    let node = running.node.clone();
    running.stop().await.unwrap();
    let reason = node.status().stopped.unwrap();
    assert!(reason.contains("has ended"), "{reason}");
    assert!(node.rebuild().await.is_err());
}
