//! The fold: what counts and what does not, and that it does not matter where replay begins again.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::{ProptestConfig, any, proptest};
use tabbify_types::event::v1::{
    AppFailed, AppPlaced, AppStopped, FailureReason, LeaseGranted, LeaseReleased, RunConfig,
    RuntimeKind, SecretDelivery, SecretRegistered, SecretRemoved, SecretRotated, SecretUse,
};
use tabbify_types::{
    AppId, ByteSize, DeployId, Digest, Epoch, InstanceId, NewEvent, Position, SlotId, VersionNumber,
};

use super::*;

/// Writes a log by hand.
#[derive(Default)]
struct Story {
    state: State,
    revs: BTreeMap<(Segment, String), Rev>,
    position: u64,
    events: Vec<Recorded>,
}

impl Story {
    fn add(&mut self, segment: &Segment, key: &str, event: impl Into<Event>) -> EventId {
        let made = NewEvent::new(segment.clone(), key, &event.into()).expect("our own event");
        let rev = self.revs.entry((segment.clone(), key.to_owned()));
        let rev = rev.or_default();
        *rev = rev.next();
        self.position += 1;
        let recorded = Recorded {
            position: Position(self.position),
            segment: made.segment,
            key: made.key,
            rev: *rev,
            id: made.id,
            kind: made.kind,
            version: made.version,
            at: Timestamp::from_millis(self.position * 10),
            actor: "test".to_owned(),
            cause: None,
            trace: None,
            data: made.data,
        };
        let filter = self.state.filter();
        if filter.matches(&recorded) {
            self.state.apply(&recorded).expect("a known shape");
        }
        self.events.push(recorded);
        made.id
    }

    fn set(&mut self, tenant: &str, name: &str, version: u32) -> EventId {
        let segment = Segment::secrets(&slug(tenant));
        let (named, version) = (name.parse().expect("a name"), SecretVersion(version));
        if version == SecretVersion(1) {
            let name_of = SecretRegistered {
                name: named,
                version,
            };
            self.add(&segment, name, name_of)
        } else {
            self.add(
                &segment,
                name,
                SecretRotated {
                    name: named,
                    version,
                },
            )
        }
    }

    fn remove(&mut self, tenant: &str, name: &str) {
        let removed = SecretRemoved {
            name: name.parse().expect("a name"),
        };
        self.add(&Segment::secrets(&slug(tenant)), name, removed);
    }

    fn placed(&mut self, of: InstanceRef, tenant: &str, names: &[&str]) {
        let tenant = slug(tenant);
        let placed = placed(of, &tenant, names);
        self.add(&Segment::apps(&tenant), &of.app.to_string(), placed);
    }

    fn granted(&mut self, of: InstanceRef, key: u8) {
        let granted = LeaseGranted {
            app: of.app,
            tenant: Tenant::main(),
            slot: SlotId::FIRST,
            epoch: Epoch(1),
            instance: of.instance,
            key: MeshKey([key; 32]),
            host: "box1".parse().expect("a host name"),
        };
        self.add(&Segment::peers(), &of.app.to_string(), granted);
    }
}

fn slug(tenant: &str) -> Tenant {
    tenant.parse().expect("a tenant")
}

fn of(instance: u32) -> InstanceRef {
    let app: AppId = "0191e7c2-1111-7222-8333-444455556666"
        .parse()
        .expect("an app id");
    InstanceRef {
        app,
        instance: InstanceId(instance),
    }
}

fn placed(of: InstanceRef, tenant: &Tenant, names: &[&str]) -> AppPlaced {
    let uses = names.iter().enumerate().map(|(n, name)| {
        let used = SecretUse {
            name: name.parse().expect("a name"),
            delivery: SecretDelivery::Env,
        };
        (format!("VARIABLE_{n}"), used)
    });
    AppPlaced {
        app: of.app,
        tenant: tenant.clone(),
        deploy: DeployId::mint(),
        version: VersionNumber(1),
        host: "box1".parse().expect("a host name"),
        slot: SlotId::FIRST,
        epoch: Epoch(1),
        instance: of.instance,
        artifact: Digest::of(b"artifact.json"),
        run: RunConfig {
            runtime: RuntimeKind::WasmHttp,
            entry: "app.wasm".to_owned(),
            memory: ByteSize::mib(64),
            env: BTreeMap::new(),
            stop_timeout_ms: 1000,
            healthy_within_ms: 1000,
            image: None,
            secrets: uses.collect(),
            egress: Vec::new(),
            idle_after_ms: None,
            volume: None,
            ports: Vec::new(),
        },
    }
}

#[test]
fn a_secret_by_its_events() {
    let mut story = Story::default();
    let main = Tenant::main();
    let name: SecretName = "api-key".parse().unwrap();
    let first = story.set("main", "api-key", 1);
    let seen = story.state.view(&main, &name).unwrap();
    assert_eq!((seen.version.0, seen.created), (1, seen.changed));
    assert_eq!(story.state.records().collect::<Vec<_>>(), [first]);

    let second = story.set("main", "api-key", 2);
    let seen = story.state.view(&main, &name).unwrap();
    assert!(seen.version.0 == 2 && seen.created < seen.changed);
    assert_eq!(story.state.records().collect::<Vec<_>>(), [second]);
    assert_eq!(story.state.entry(&main, &name).unwrap().rev, Rev(2));

    // Another tenant's of the same name is another secret.
    story.set("acme", "api-key", 1);
    assert_eq!(story.state.count(&main), 1);
    story.remove("main", "api-key");
    assert_eq!(story.state.views(&main), []);
    assert_eq!(
        (story.state.count(&main), story.state.count(&slug("acme"))),
        (0, 1)
    );
    let entry = story.state.entry(&main, &name).unwrap();
    assert_eq!(
        (entry.version.0, entry.rev),
        (2, Rev(3)),
        "it goes on from there"
    );
}

#[test]
fn what_stands_elsewhere_counts_for_nothing() {
    let mut story = Story::default();
    let named = SecretRegistered {
        name: "api-key".parse().unwrap(),
        version: SecretVersion(1),
    };
    for segment in [Segment::apps(&Tenant::main()), Segment::peers()] {
        story.add(&segment, "api-key", named.clone());
    }
    story.add(&Segment::secrets(&Tenant::main()), "other", named);
    // A placement of another tenant's app in one's own segment.
    let foreign = placed(of(1), &slug("acme"), &["api-key"]);
    story.add(&Segment::apps(&Tenant::main()), "x", foreign);
    story.granted(of(1), 1);
    assert_eq!(story.state, State::default());
}

#[test]
fn who_holds_a_lease_may_have_what_its_release_names() {
    let mut story = Story::default();
    let key = MeshKey([1; 32]);
    story.placed(of(1), "main", &["a", "b", "a"]);
    assert!(story.state.holder(&key).is_none(), "no lease yet");
    story.granted(of(1), 1);
    let (found, uses) = story.state.holder(&key).unwrap();
    assert_eq!((found, uses.names.len()), (of(1), 2));
    assert!(story.state.holder(&MeshKey([2; 32])).is_none());

    // An app without secrets is nobody here.
    story.placed(of(2), "main", &[]);
    story.granted(of(2), 2);
    assert!(story.state.holder(&MeshKey([2; 32])).is_none());

    let ends: [fn(&mut Story); 3] = [
        |story| {
            let stopped = AppStopped { of: of(1) };
            story.add(&Segment::apps(&Tenant::main()), "a", stopped);
        },
        |story| {
            let failed = AppFailed {
                of: of(1),
                reason: FailureReason::Exited,
                detail: String::new(),
                log_tail: String::new(),
            };
            story.add(&Segment::apps(&Tenant::main()), "a", failed);
        },
        |story| {
            let released = LeaseReleased {
                app: of(1).app,
                instance: of(1).instance,
            };
            story.add(&Segment::peers(), "a", released);
        },
    ];
    for end in ends {
        story.placed(of(1), "main", &["a"]);
        story.granted(of(1), 1);
        assert!(story.state.holder(&key).is_some());
        end(&mut story);
        assert!(story.state.holder(&key).is_none());
        assert!(story.state.instances.is_empty() && story.state.holders.is_empty());
    }
}

/// One of the things that can happen, chosen by two numbers.
fn happen(story: &mut Story, what: u8, which: u8) {
    let (tenant, name) = (
        ["main", "acme"][usize::from(which) % 2],
        ["a", "b"][usize::from(which / 2) % 2],
    );
    let instance = of(u32::from(which % 3) + 1);
    match what % 6 {
        0 => drop(story.set(tenant, name, 1)),
        1 => drop(story.set(tenant, name, u32::from(which) + 2)),
        2 => story.remove(tenant, name),
        3 => story.placed(instance, tenant, &[name]),
        4 => story.granted(instance, which),
        _ => drop(story.add(
            &Segment::apps(&slug(tenant)),
            "a",
            AppStopped { of: instance },
        )),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn replay_goes_on_from_any_snapshot(steps in vec((any::<u8>(), any::<u8>()), 0..40), at in any::<u8>()) {
        let mut story = Story::default();
        for (what, which) in steps {
            happen(&mut story, what, which);
        }
        let cut = usize::from(at) % (story.events.len() + 1);
        let mut replayed = State::default();
        for (n, event) in story.events.iter().enumerate() {
            if n == cut {
                let stored = serde_json::to_vec(&replayed).unwrap();
                replayed = serde_json::from_slice(&stored).unwrap();
            }
            if replayed.filter().matches(event) {
                replayed.apply(event).unwrap();
            }
        }
        proptest::prop_assert_eq!(&replayed, &story.state);
        // Keys lead to instances that are there, and instances to their keys.
        for (key, of) in &replayed.holders {
            proptest::prop_assert_eq!(replayed.instances.get(of).and_then(|uses| uses.key), Some(*key));
        }
    }
}
