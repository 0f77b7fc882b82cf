//! A hundred thousand known apps: what an answer, a change and a plan cost is counted, and does not grow
//! with them; what an idle app takes of memory is printed.

use std::collections::BTreeMap;
use std::time::Duration;

use tabbify_api::coordinator::{Ask, Change};
use tabbify_api::fold::Fold as _;
use tabbify_coordinator::leases::{Holder, holder};
use tabbify_coordinator::plan::plan;
use tabbify_coordinator::state::News;
use tabbify_coordinator::{OVERCOMMIT_PERCENT, State};
use tabbify_types::event::Event;
use tabbify_types::event::v1::{
    Access, AppPlaced, AppRegistered, AppStarted, DeployRequested, InstanceRef, LeaseGranted,
    Placement, RunConfig, RuntimeKind, TrafficShifted, VersionPublished,
};
use tabbify_types::{
    AppId, AppUla, ByteSize, DeployId, Digest, Epoch, HostName, InstanceId, InstanceUla, MeshKey,
    NewEvent, Position, Recorded, Rev, Segment, SlotId, Tenant, VersionNumber,
};
use tokio::time::Instant;

use crate::support::{Fallible, NOW};

/// Known apps.
const APPS: usize = 100_000;

/// Writes events as a log would, without one: it is the fold that is counted here.
struct Writer {
    state: State,
    position: u64,
    host: HostName,
}

impl Writer {
    fn write(
        &mut self,
        segment: Segment,
        app: AppId,
        rev: u64,
        event: &Event,
    ) -> Fallible<Option<News>> {
        self.position += 1;
        let new = NewEvent::new(segment, app, event)?;
        let recorded = Recorded {
            position: Position(self.position),
            segment: new.segment,
            key: new.key,
            rev: Rev(rev),
            id: new.id,
            kind: new.kind,
            version: new.version,
            at: NOW,
            actor: "test".to_owned(),
            cause: None,
            trace: None,
            data: new.data,
        };
        Ok(self.state.apply(&recorded)?)
    }

    /// An app that serves and does nothing.
    fn app(&mut self) -> Fallible<AppId> {
        let (app, tenant) = (AppId::mint(), Tenant::main());
        let (apps, peers) = (Segment::apps(&tenant), Segment::peers());
        let (deploy, version, instance) = (DeployId::mint(), VersionNumber(1), InstanceId(1));
        let run = RunConfig {
            runtime: RuntimeKind::WasmHttp,
            entry: "app.wasm".to_owned(),
            memory: ByteSize::mib(64),
            env: BTreeMap::new(),
            stop_timeout_ms: 1000,
            healthy_within_ms: 1000,
            image: None,
            secrets: BTreeMap::new(),
            egress: Vec::new(),
            idle_after_ms: None,
            volume: None,
            ports: Vec::new(),
        };
        let registered = AppRegistered {
            app,
            tenant: tenant.clone(),
            name: "shop".parse()?,
            address: AppUla::derive(app),
        };
        let published = VersionPublished {
            app,
            version,
            artifact: Digest::of(b"artifact"),
            config: Digest::of(b"config"),
            access: Access::Private,
            run: run.clone(),
            secrets: Vec::new(),
            placement: Placement::default(),
            further: Vec::new(),
        };
        let placed = AppPlaced {
            app,
            tenant: tenant.clone(),
            deploy,
            version,
            host: self.host.clone(),
            slot: SlotId::FIRST,
            epoch: Epoch(1),
            instance,
            artifact: Digest::of(b"artifact"),
            run,
        };
        let lease = LeaseGranted {
            app,
            tenant,
            slot: SlotId::FIRST,
            epoch: Epoch(1),
            instance,
            key: key_of(app),
            host: self.host.clone(),
        };
        let shifted = TrafficShifted {
            app,
            deploy,
            version,
            instances: vec![instance],
            primary: instance,
        };
        self.write(apps.clone(), app, 1, &registered.into())?;
        self.write(apps.clone(), app, 2, &published.into())?;
        self.write(apps.clone(), app, 3, &placed.into())?;
        self.write(peers, app, 1, &lease.into())?;
        self.write(apps, app, 4, &shifted.into())?;
        Ok(app)
    }
}

fn key_of(app: AppId) -> MeshKey {
    MeshKey(Digest::of(app.uuid().as_bytes()).0)
}

/// Resident memory of this process, in bytes.
fn resident() -> Fallible<usize> {
    let text = std::fs::read_to_string("/proc/self/statm")?;
    let pages: usize = text.split(' ').nth(1).ok_or("no such field")?.parse()?;
    Ok(pages * 4096)
}

/// What an answer by address, one by key, and a change take, with as many apps as there are: the
/// quickest of some rounds, for other work on the machine only adds to it.
fn costs(writer: &mut Writer, apps: &[AppId]) -> Fallible<[Duration; 2]> {
    let some: Vec<AppId> = apps.iter().step_by(apps.len() / 500).copied().collect();
    let mut least = [Duration::MAX; 2];
    for _ in 0..7 {
        let began = Instant::now();
        for app in &some {
            let address = Ask::Address(AppUla::derive(*app).addr());
            let found = [address, Ask::Key(key_of(*app))].map(|ask| holder(&writer.state, ask));
            assert!(found.iter().all(Option::is_some));
        }
        least[0] = least[0].min(began.elapsed());
        let began = Instant::now();
        for app in &some {
            let lease = LeaseGranted {
                app: *app,
                tenant: Tenant::main(),
                slot: SlotId::FIRST,
                epoch: Epoch(1),
                instance: InstanceId(1),
                key: key_of(*app),
                host: writer.host.clone(),
            };
            writer.write(Segment::peers(), *app, 2, &lease.into())?;
        }
        least[1] = least[1].min(began.elapsed());
    }
    Ok(least.map(|least| least / u32::try_from(some.len()).unwrap_or(u32::MAX)))
}

/// Whether an app is found by every address and key that it has.
fn is_found(state: &State, app: AppId) -> bool {
    let (at, own) = (
        AppUla::derive(app).addr(),
        InstanceUla::derive(app, InstanceId(1)).addr(),
    );
    let asks = [Ask::Address(at), Ask::Address(own), Ask::Key(key_of(app))];
    asks.into_iter().all(|ask| {
        let found = holder(state, ask);
        matches!(found, Some(Holder::Instance(lease)) if lease.app == app)
    })
}

#[test]
fn a_hundred_thousand_idle_apps() {
    let writer = || Writer {
        state: State::default(),
        position: 0,
        host: "box1".parse().unwrap(),
    };
    let (mut small, mut writer) = (writer(), writer());
    let few_apps: Vec<AppId> = (0..APPS / 100).map(|_| small.app().unwrap()).collect();
    let mut apps = Vec::with_capacity(APPS);
    let before = resident().unwrap();
    for _ in 0..APPS {
        apps.push(writer.app().unwrap());
    }
    let after = resident().unwrap();
    // In turn, so that what else the machine does meets both.
    let (mut few, mut many) = ([Duration::MAX; 2], [Duration::MAX; 2]);
    for _ in 0..3 {
        for (least, writer, apps) in [
            (&mut few, &mut small, &few_apps),
            (&mut many, &mut writer, &apps),
        ] {
            let costs = costs(writer, apps).unwrap();
            *least = [least[0].min(costs[0]), least[1].min(costs[1])];
        }
    }
    println!("an answer and a change with 1,000 apps: {few:?}, with 100,000: {many:?}");
    // A search through all of them would take a hundred times as long.
    assert!(
        many[0] < few[0] * 20 && many[1] < few[1] * 20,
        "{few:?} {many:?}"
    );
    println!("an idle app takes {} bytes", (after - before) / APPS);

    for app in [apps[0], apps[APPS / 2], apps[APPS - 1]] {
        assert!(is_found(&writer.state, app));
    }
    // Nothing is open: a plan looks at no app, and after a request at one.
    assert!(writer.state.waiting.is_empty());
    let app = apps[APPS / 3];
    let requested = DeployRequested {
        app,
        deploy: DeployId::mint(),
        version: VersionNumber(1),
    };
    let segment = Segment::apps(&Tenant::main());
    writer.write(segment, app, 5, &requested.into()).unwrap();
    assert_eq!(writer.state.waiting.iter().collect::<Vec<_>>(), [&app]);
    assert_eq!(plan(&writer.state, OVERCOMMIT_PERCENT).unwrap().len(), 1);
    // A change is news of one app.
    let of = InstanceRef {
        app,
        instance: InstanceId(1),
    };
    let started = AppStarted {
        of,
        app_ula: AppUla::derive(app),
        instance_ula: InstanceUla::derive(app, of.instance),
        key: key_of(app),
        secrets: BTreeMap::new(),
    };
    let lease = LeaseGranted {
        app,
        tenant: Tenant::main(),
        slot: SlotId::FIRST,
        epoch: Epoch(1),
        instance: of.instance,
        key: key_of(app),
        host: writer.host.clone(),
    };
    let news = writer
        .write(Segment::peers(), app, 2, &lease.into())
        .unwrap();
    assert_eq!(news, Some(News::Changed(Change::App { app, gone: None })));
    let elsewhere = Segment::host_reports(&"box9".parse().unwrap());
    let news = writer.write(elsewhere, app, 1, &started.into()).unwrap();
    assert!(matches!(news, Some(News::Rejected(_))));
}
