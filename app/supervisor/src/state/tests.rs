//! The fold: what counts, what does not, and that it does not matter where replay begins again.

use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any, prop_oneof, proptest};
use proptest::sample::Index;
use tabbify_types::event::v1::{
    AppHealthy, AppStarted, AppStarting, AppStopRequested, AppStopped, FailureReason,
    InstanceDrained, RunConfig, RuntimeKind, TenantCreated,
};
use tabbify_types::{
    AppUla, ByteSize, Digest, Epoch, InstanceId, InstanceUla, MeshKey, NewEvent, Rev, SlotId,
    Tenant, VersionNumber,
};

use super::*;

pub(crate) fn host() -> HostName {
    "box1".parse().expect("a host name")
}

/// The `n`th app; the same for every caller.
pub(crate) fn app(n: u8) -> AppId {
    let text = format!("0191e7c2-1111-7222-8333-4444555566{n:02x}");
    text.parse().expect("an app id")
}

pub(crate) fn of(n: u8, instance: u32) -> InstanceRef {
    InstanceRef {
        app: app(n),
        instance: InstanceId(instance),
    }
}

fn deploy(n: u8) -> DeployId {
    let text = format!("0191e7c2-2222-7222-8333-4444555566{n:02x}");
    text.parse().expect("a deploy id")
}

pub(crate) fn placement(of: InstanceRef, deployed: u8) -> AppPlaced {
    AppPlaced {
        app: of.app,
        tenant: Tenant::main(),
        deploy: deploy(deployed),
        version: VersionNumber(u32::from(deployed)),
        host: host(),
        slot: SlotId::FIRST,
        epoch: Epoch(of.instance.get()),
        instance: of.instance,
        artifact: Digest::of(b"artifact.json"),
        run: RunConfig {
            runtime: RuntimeKind::WasmHttp,
            entry: "app.wasm".to_owned(),
            memory: ByteSize::mib(64),
            env: BTreeMap::new(),
            stop_timeout_ms: 30_000,
            healthy_within_ms: 60_000,
            image: None,
            secrets: BTreeMap::new(),
            egress: Vec::new(),
            idle_after_ms: None,
            volume: None,
            ports: Vec::new(),
        },
    }
}

/// A placed instance, outside of any fold.
pub(crate) fn placed(n: u8, instance: u32) -> Placed {
    Placed {
        event: id(1),
        position: Position(1),
        app: placement(of(n, instance), 1),
        stop: None,
        said: Said::default(),
    }
}

fn id(position: u64) -> EventId {
    let text = format!("0191e7c2-3333-7222-8333-{position:012x}");
    text.parse().expect("an event id")
}

/// One event as the log hands it out.
fn recorded(position: Position, segment: &Segment, at: Timestamp, event: &Event) -> Recorded {
    let id = id(position.get());
    let new = NewEvent::with_id(id, segment.clone(), "key", event).expect("a small event");
    Recorded {
        position,
        segment: new.segment,
        key: new.key,
        rev: Rev(position.get()),
        id: new.id,
        kind: new.kind,
        version: new.version,
        at,
        actor: "test".to_owned(),
        cause: None,
        trace: None,
        data: new.data,
    }
}

/// What is desired, and how many events say so: the next has the next position.
#[derive(Debug, Clone)]
pub(crate) struct Story {
    pub(crate) desired: Desired,
    told: u64,
}

impl Story {
    pub(crate) fn new() -> Self {
        Self {
            desired: Desired::new(host()),
            told: 0,
        }
    }

    /// The next event, which is not folded yet.
    pub(crate) fn next(&mut self, segment: &Segment, at: Timestamp, event: &Event) -> Recorded {
        self.told += 1;
        recorded(Position(self.told), segment, at, event)
    }

    /// Folds an event in this segment.
    fn fold_in(&mut self, segment: &Segment, at: Timestamp, event: &Event) {
        let recorded = self.next(segment, at, event);
        self.desired
            .apply(&recorded)
            .expect("an event of version 1");
    }

    /// Folds an event in the segment where it belongs.
    pub(crate) fn fold(&mut self, at: Timestamp, event: &Event) {
        self.fold_in(&home(event), at, event);
    }
}

/// Where an event belongs.
pub(crate) fn home(event: &Event) -> Segment {
    match event {
        Event::AppPlaced(_) | Event::AppStopRequested(_) => Segment::host(&host()),
        _ => Segment::host_reports(&host()),
    }
}

pub(crate) fn started(of: InstanceRef) -> Event {
    Event::from(AppStarted {
        of,
        app_ula: AppUla::derive(of.app),
        instance_ula: InstanceUla::derive(of.app, of.instance),
        key: MeshKey([7; 32]),
        secrets: BTreeMap::new(),
    })
}

pub(crate) fn failed(of: InstanceRef) -> Event {
    Event::from(AppFailed {
        of,
        reason: FailureReason::Exited,
        detail: String::new(),
        log_tail: String::new(),
    })
}

fn secs(secs: u64) -> Timestamp {
    Timestamp::from_secs(secs)
}

#[test]
fn orders_and_reports_count_only_where_they_belong() {
    let mut story = Story::new();
    let it = of(1, 1);
    let order = Event::from(placement(it, 1));
    for segment in ["platform.hosts.box2", "platform.hosts.box1.reports"] {
        story.fold_in(&segment.parse().unwrap(), secs(1), &order);
        assert!(story.desired.placed().is_empty(), "{segment}");
    }
    let mut foreign = placement(it, 1);
    foreign.host = "box2".parse().unwrap();
    story.fold(secs(1), &Event::from(foreign));
    assert!(story.desired.placed().is_empty());

    story.fold(secs(1), &order);
    let forged = Event::from(AppStopped { of: it });
    story.fold_in(&Segment::host(&host()), secs(1), &forged);
    assert!(story.desired.placed().contains_key(&it));
}

#[test]
fn an_instance_is_placed_once() {
    let mut story = Story::new();
    let it = of(1, 1);
    story.fold(secs(1), &Event::from(placement(it, 1)));
    story.fold(secs(2), &Event::from(AppStopped { of: it }));
    assert!(story.desired.has_ended(it));
    story.fold(secs(3), &Event::from(placement(it, 1)));
    assert!(story.desired.placed().is_empty());
}

#[test]
fn failures_are_counted_per_deploy_and_forgiven_to_the_stable() {
    let mut story = Story::new();
    let failures = |story: &Story| story.desired.history(app(1)).map(|it| it.failures);
    for instance in 1..=3 {
        let it = of(1, instance);
        story.fold(secs(1), &Event::from(placement(it, 1)));
        story.fold(secs(1), &failed(it));
        assert_eq!(failures(&story), Some(instance));
    }
    // Healthy, but not for long.
    let it = of(1, 4);
    story.fold(secs(10), &Event::from(placement(it, 1)));
    story.fold(secs(10), &Event::from(AppHealthy { of: it }));
    story.fold(secs(69), &failed(it));
    assert_eq!(failures(&story), Some(4));
    let it = of(1, 5);
    story.fold(secs(70), &Event::from(placement(it, 1)));
    story.fold(secs(70), &Event::from(AppHealthy { of: it }));
    story.fold(secs(130), &failed(it));
    assert_eq!(failures(&story), Some(0));

    let it = of(1, 6);
    story.fold(secs(131), &Event::from(placement(it, 1)));
    story.fold(secs(131), &failed(it));
    assert_eq!(failures(&story), Some(1));
    let it = of(1, 7);
    story.fold(secs(132), &Event::from(placement(it, 2)));
    assert_eq!(failures(&story), Some(0));
}

#[test]
fn a_later_version_stops_the_fold() {
    let mut story = Story::new();
    let order = Event::from(placement(of(1, 1), 1));
    let mut later = story.next(&home(&order), secs(1), &order);
    later.version = 2;
    let error = story.desired.apply(&later).unwrap_err();
    assert!(matches!(error, EventError::Version { version: 2, .. }));
    assert_eq!(story.desired, Desired::new(host()));
}

fn any_event() -> impl Strategy<Value = Event> {
    let of = || (0..3_u8, 1..4_u32).prop_map(|(app, instance)| of(app, instance));
    prop_oneof![
        (of(), 1..3_u8).prop_map(|(of, deploy)| Event::from(placement(of, deploy))),
        (of(), any::<u64>())
            .prop_map(|(of, drain_ms)| Event::from(AppStopRequested { of, drain_ms })),
        of().prop_map(|of| Event::from(AppStarting { of })),
        of().prop_map(started),
        of().prop_map(|of| Event::from(AppHealthy { of })),
        of().prop_map(|of| Event::from(InstanceDrained {
            of,
            finished: 1,
            cut: 0
        })),
        of().prop_map(failed),
        of().prop_map(|of| Event::from(AppStopped { of })),
        Just(Event::from(TenantCreated {
            tenant: Tenant::main()
        })),
    ]
}

proptest! {
    /// Replaying a prefix and then the rest gives what replaying all gives, also when the prefix was
    /// stored and read back.
    #[test]
    fn replay_may_begin_again_anywhere(
        events in vec((any_event(), 0..1_000_u64), 0..40),
        cut in any::<Index>(),
    ) {
        let mut story = Story::new();
        let mut log = Vec::new();
        for (event, at) in &events {
            log.push(story.next(&home(event), secs(*at), event));
        }
        let mut whole = Desired::new(host());
        for event in &log {
            whole.apply(event).unwrap();
        }
        let cut = cut.index(log.len() + 1);
        let mut half = Desired::new(host());
        for event in &log[..cut] {
            half.apply(event).unwrap();
        }
        let stored = serde_json::to_vec(&half).unwrap();
        let mut resumed: Desired = serde_json::from_slice(&stored).unwrap();
        assert_eq!(resumed, half);
        for event in &log[cut..] {
            resumed.apply(event).unwrap();
        }
        assert_eq!(whole, resumed);
        // Nothing is both placed and ended, whatever order reports come in.
        assert!(whole.placed().keys().all(|of| !whole.has_ended(*of)));
    }
}
