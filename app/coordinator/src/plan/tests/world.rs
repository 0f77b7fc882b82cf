//! A little log without disk, and the script language that moves it.

use std::collections::{BTreeMap, BTreeSet};

use tabbify_types::event::v1::{
    Access, AppFailed, AppHealthy, AppIdled, AppRegistered, AppStarted, AppStarting, AppStopped,
    AppWoken, Capability, DeployRequested, DeployTarget, FailureReason, InstanceDrained, Machines,
    Placement, RunConfig, RuntimeKind, VersionPublished,
};
use tabbify_types::{AppUla, ByteSize, Digest, InstanceUla, MeshKey, Recorded, Tenant, Timestamp};

use tabbify_api::fold::Fold as _;

use super::super::*;
use crate::Config;
use crate::join::{JoinError, join, leave};
use crate::standing::{back, drain, drained, lost, resume};
use crate::state::News;

pub(super) type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

/// Of a machine's memory, how many hundredths may be promised.
pub(super) const PERCENT: u32 = 150;

/// LIMIT: rounds of planning after one command; more means that the plan does not come to rest.
pub(super) const ROUNDS_MAX: usize = 16;

#[derive(Default)]
pub(super) struct World {
    pub(super) state: State,
    pub(super) log: Vec<Recorded>,
    pub(super) revs: BTreeMap<(Segment, String), Rev>,
    pub(super) ids: BTreeSet<EventId>,
    pub(super) deploys: Vec<DeployId>,
    pub(super) secs: u64,
    pub(super) out: String,
}

impl World {
    pub(super) fn append(&mut self, batch: Append) -> Fallible<()> {
        for it in &batch.expect {
            let actual = self
                .revs
                .get(&(it.segment.clone(), it.key.clone()))
                .copied();
            let expected = match it.expect {
                Expect::None => None,
                Expect::Rev(rev) => Some(rev),
            };
            if actual != expected {
                return Err(format!("{} {} is at {actual:?}", it.segment, it.key).into());
            }
        }
        for new in batch.events {
            if !self.ids.insert(new.id) {
                return Err(format!("id {} twice", new.id).into());
            }
            let rev = self
                .revs
                .entry((new.segment.clone(), new.key.clone()))
                .or_default();
            *rev = rev.next();
            let recorded = Recorded {
                position: Position(self.log.len() as u64 + 1),
                rev: *rev,
                segment: new.segment,
                key: new.key,
                id: new.id,
                kind: new.kind,
                version: new.version,
                at: Timestamp::from_secs(self.secs),
                actor: "test".to_owned(),
                cause: new.cause,
                trace: None,
                data: new.data,
            };
            if let Some(News::Rejected(rejected)) = self.state.apply(&recorded)? {
                self.say(&format!("  refused: {}", rejected.why));
            }
            self.log.push(recorded);
        }
        for app in self.state.apps.values() {
            if app.holders().count() > 1 {
                return Err(format!("a volume has several holders: {:?}", app.instances).into());
            }
        }
        Ok(())
    }

    pub(super) fn say(&mut self, line: &str) {
        self.out.push_str(line);
        self.out.push('\n');
    }

    pub(super) fn one(
        &mut self,
        segment: Segment,
        key: impl ToString,
        event: impl Into<Event>,
    ) -> Fallible<()> {
        self.append(Append::of(vec![NewEvent::new(
            segment,
            key,
            &event.into(),
        )?]))
    }

    /// Writes what is planned until nothing is.
    pub(super) fn settle(&mut self) -> Fallible<()> {
        for _ in 0..ROUNDS_MAX {
            let steps = plan(&self.state, PERCENT)?;
            // A second coordinator, or the same one after a crash, plans the same to the byte.
            let again = plan(&self.state, PERCENT)?;
            for (step, again) in steps.iter().zip(&again) {
                let text = |step: &Step| serde_json::to_string(&step.batch);
                if text(step)? != text(again)? {
                    return Err("planned differently twice".into());
                }
            }
            if steps.is_empty() {
                return Ok(());
            }
            for Step { batch, .. } in steps {
                for event in &batch.events {
                    let line = self.line(event)?;
                    self.say(&line);
                }
                self.append(batch)?;
            }
        }
        Err("the plan does not come to rest".into())
    }

    pub(super) fn line(&self, new: &NewEvent) -> Fallible<String> {
        let event = Event::decode(&new.kind, new.version, new.data.get())?.ok_or("not ours")?;
        let deploy = |id: DeployId| {
            let n = self
                .deploys
                .iter()
                .position(|known| *known == id)
                .map_or(0, |n| n + 1);
            format!("d{n}")
        };
        let text = match event {
            Event::AppPlaced(it) => format!(
                "{} v{} as #{} on {} slot {} epoch {}",
                deploy(it.deploy),
                it.version,
                it.instance,
                it.host,
                it.slot,
                it.epoch
            ),
            Event::AppStarting(it) => format!("#{}", it.of.instance),
            Event::AppStarted(it) => format!("#{}", it.of.instance),
            Event::AppHealthy(it) => format!("#{}", it.of.instance),
            Event::AppStopped(it) => format!("#{}", it.of.instance),
            Event::AppFailed(it) => format!("#{} {:?}", it.of.instance, it.reason),
            Event::InstanceDrained(it) => format!("#{}", it.of.instance),
            Event::AppStopRequested(it) => format!("#{} within {} ms", it.of.instance, it.drain_ms),
            Event::LeaseGranted(it) => {
                format!("#{} on {} epoch {}", it.instance, it.host, it.epoch)
            }
            Event::LeaseReleased(it) => format!("#{}", it.instance),
            Event::TrafficShifted(it) => {
                let mut text = format!("{} v{} to #{}", deploy(it.deploy), it.version, it.primary);
                for other in it.instances.iter().filter(|other| **other != it.primary) {
                    // Writing to a string does not fail.
                    let _ = write!(text, ", #{other}");
                }
                text
            }
            Event::DeployFinished(it) => {
                format!("{} {:?} {}", deploy(it.deploy), it.outcome, it.detail)
            }
            Event::AppUnavailable(it) => format!("{:?} {}", it.reason, it.remedy),
            Event::DeploySuperseded(it) => format!("{} by {}", deploy(it.deploy), deploy(it.by)),
            other => format!("{other:?}"),
        };
        Ok(format!(
            "  {} {} {}",
            new.segment,
            new.kind,
            text.trim_end()
        ))
    }

    /// One line of a script.
    pub(super) fn command(&mut self, line: &str) -> Fallible<()> {
        self.secs += 1;
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["machine", host, capabilities @ ..] => self.machine(host, capabilities)?,
            ["app", app] => {
                let id = app_id(app);
                let registered = AppRegistered {
                    app: id,
                    tenant: Tenant::main(),
                    name: app.parse()?,
                    address: AppUla::derive(id),
                };
                self.one(apps(), id, registered)?;
            }
            ["publish", app, version, runtime, how @ ..] => {
                self.publish(app, version, runtime, how)?;
            }
            ["deploy", app, version] => {
                let deploy = DeployId::mint();
                self.deploys.push(deploy);
                let (app, version) = (app_id(app), version.parse()?);
                self.one(
                    apps(),
                    app,
                    DeployRequested {
                        app,
                        deploy,
                        version,
                    },
                )?;
            }
            ["deploy", app, version, "again"] => {
                let deploy = *self.deploys.last().ok_or("no deploy yet")?;
                let (app, version) = (app_id(app), version.parse()?);
                self.one(
                    apps(),
                    app,
                    DeployRequested {
                        app,
                        deploy,
                        version,
                    },
                )?;
            }
            ["lost", host] => self.standing(host, lost)?,
            ["back", host] => self.standing(host, back)?,
            ["drain", host] => {
                self.standing(host, |state, host| drain(state, host, "user:owner"))?
            }
            ["resume", host] => self.standing(host, resume)?,
            ["leaves", host] => self.standing(host, leave)?,
            ["minutes", n] => self.secs += n.parse::<u64>()? * 60,
            [host, "says", what, app, instance] => self.report(host, what, app, instance)?,
            _ => return Err(format!("not a command: {line}").into()),
        }
        self.settle()?;
        // What the coordinator's eye on the machines does.
        let hosts: Vec<HostName> = self.state.supervisors.keys().cloned().collect();
        for host in hosts {
            if let Some(batch) = drained(&self.state, &host)? {
                self.say(&format!("  platform.supervisors supervisor_drained {host}"));
                self.append(batch)?;
            }
        }
        Ok(())
    }

    /// Something is said of a machine, if it is not so already.
    fn standing(
        &mut self,
        host: &str,
        decide: impl Fn(&State, &HostName) -> Result<Option<Append>, JoinError>,
    ) -> Fallible<()> {
        let host = host.parse()?;
        if let Some(batch) = decide(&self.state, &host)? {
            self.append(batch)?;
        }
        assert!(decide(&self.state, &host)?.is_none(), "said once");
        Ok(())
    }

    pub(super) fn machine(&mut self, host: &str, capabilities: &[&str]) -> Fallible<()> {
        let capability = |text: &&str| match text.split_once("=") {
            None => Capability {
                runtime: (*text).to_owned(),
                works: true,
                detail: String::new(),
            },
            Some((runtime, detail)) => Capability {
                runtime: runtime.to_owned(),
                works: false,
                detail: detail.replace('_', " "),
            },
        };
        let (mut tags, mut memory, mut runtimes) = (Vec::new(), None, Vec::new());
        for word in capabilities {
            match word.split_once(':') {
                Some(("tag", tag)) => tags.push(tag.to_owned()),
                Some(("memory", size)) => memory = Some(size.parse()?),
                _ => runtimes.push(capability(word)),
            }
        }
        let config = Config {
            host: host.parse()?,
            key: MeshKey(*blake3_of(host).first_chunk().ok_or("short")?),
            tags,
            capabilities: runtimes,
            memory,
        };
        if let Some(batch) = join(&self.state, &config)? {
            self.append(batch)?;
        }
        assert!(join(&self.state, &config)?.is_none(), "joined once");
        Ok(())
    }

    pub(super) fn publish(
        &mut self,
        app: &str,
        version: &str,
        runtime: &str,
        how: &[&str],
    ) -> Fallible<()> {
        // Further targets follow after `and` each: `wasm-http replicas:2 and docker tag:gpu`.
        let mut blocks = how.split(|word| *word == "and");
        let DeployTarget { run, placement } = target(runtime, blocks.next().unwrap_or_default())?;
        let further = blocks.map(|block| {
            let (runtime, how) = block.split_first().ok_or("a target without a runtime")?;
            target(runtime, how)
        });
        let published = VersionPublished {
            app: app_id(app),
            version: version.parse()?,
            artifact: Digest::of(version.as_bytes()),
            config: Digest::of(b"config"),
            access: Access::Private,
            run,
            secrets: Vec::new(),
            placement,
            further: further.collect::<Fallible<_>>()?,
        };
        self.one(apps(), app_id(app), published)
    }

    pub(super) fn report(
        &mut self,
        host: &str,
        what: &str,
        app: &str,
        instance: &str,
    ) -> Fallible<()> {
        let (app, instance) = (
            app_id(app),
            InstanceId(instance.trim_start_matches('#').parse()?),
        );
        let of = InstanceRef { app, instance };
        let key = MeshKey(
            *blake3_of(&format!("{app} {instance}"))
                .first_chunk()
                .ok_or("short")?,
        );
        let (app_ula, instance_ula) = (AppUla::derive(app), InstanceUla::derive(app, instance));
        let started = AppStarted {
            of,
            app_ula,
            instance_ula,
            key,
            secrets: BTreeMap::new(),
        };
        let event = match what {
            "starting" => Event::from(AppStarting { of }),
            "started" => Event::from(started),
            "started-with-a-machine-s-key" => {
                let key = self.state.hosts.values().next().ok_or("no machine")?.key;
                Event::from(AppStarted { key, ..started })
            }
            "started-elsewhere" => {
                let app_ula = AppUla::derive(AppId::mint());
                Event::from(AppStarted { app_ula, ..started })
            }
            "healthy" => Event::from(AppHealthy { of }),
            "stopped" => Event::from(AppStopped { of }),
            "idled" => Event::from(AppIdled { of }),
            "woken" => woken(of, key),
            "woken-with-another-key" => {
                woken(of, MeshKey(blake3_of(&format!("{app} {instance} again"))))
            }
            "woken-with-a-machine-s-key" => {
                let key = self.state.hosts.values().next().ok_or("no machine")?.key;
                woken(of, key)
            }
            "drained" => Event::from(InstanceDrained {
                of,
                finished: 3,
                cut: 0,
            }),
            "failed" => Event::from(AppFailed {
                of,
                reason: FailureReason::Exited,
                detail: "It exited with code 1".to_owned(),
                log_tail: "é".repeat(9_000),
            }),
            "traffic" => {
                let (deploy, version) = (DeployId::mint(), VersionNumber(1));
                let (instances, primary) = (vec![instance], instance);
                Event::from(TrafficShifted {
                    app,
                    deploy,
                    version,
                    instances,
                    primary,
                })
            }
            other => return Err(format!("not a report: {other}").into()),
        };
        self.one(Segment::host_reports(&host.parse()?), app, event)
    }
}

fn woken(of: InstanceRef, key: MeshKey) -> Event {
    let (key, secrets) = (Some(key), BTreeMap::new());
    AppWoken { of, key, secrets }.into()
}

/// A target of a manifest.
fn target(runtime: &str, how: &[&str]) -> Fallible<DeployTarget> {
    let (mut placement, mut memory) = (Placement::default(), ByteSize::mib(64));
    for word in how {
        match word.split_once(':') {
            Some(("name", name)) => placement.on = Machines::Name(name.parse()?),
            Some(("tag", tag)) => placement.on = Machines::Tag(tag.to_owned()),
            Some(("memory", size)) => memory = size.parse()?,
            Some(("replicas", replicas)) => placement.replicas = replicas.parse()?,
            None if *word == "volume" => placement.volume = true,
            _ => return Err(format!("not a placement: {word}").into()),
        }
    }
    let (runtime, filler) = match runtime.split_once('+') {
        Some((runtime, bytes)) => (runtime, bytes.parse()?),
        None => (runtime, 0),
    };
    let runtime: RuntimeKind = serde_json::from_value(runtime.into())?;
    let env = BTreeMap::from([("FILLER".to_owned(), "x".repeat(filler))]);
    let run = RunConfig {
        runtime,
        entry: "app.wasm".to_owned(),
        memory,
        env,
        stop_timeout_ms: 30_000,
        healthy_within_ms: 60_000,
        image: None,
        secrets: BTreeMap::new(),
        egress: Vec::new(),
        idle_after_ms: None,
        volume: None,
        ports: Vec::new(),
    };
    Ok(DeployTarget { run, placement })
}

pub(super) fn apps() -> Segment {
    Segment::apps(&Tenant::main())
}

pub(super) fn blake3_of(text: &str) -> [u8; 32] {
    Digest::of(text.as_bytes()).0
}

/// A UUID of the name, so that scripts are stable.
pub(super) fn app_id(name: &str) -> AppId {
    let bytes = blake3_of(name);
    let mut text = String::new();
    for (n, byte) in bytes.iter().take(16).enumerate() {
        if [4, 6, 8, 10].contains(&n) {
            text.push('-');
        }
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    text.parse()
        .expect("hex digits with hyphens in the right places are a UUID")
}

pub(super) fn run(script: &str) -> Fallible<World> {
    let mut world = World::default();
    for line in script
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
    {
        world.say(&format!("> {line}"));
        world.command(line)?;
    }
    Ok(world)
}
