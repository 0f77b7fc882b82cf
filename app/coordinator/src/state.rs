//! What the coordinator knows: a pure fold of machines, apps, reports and policy.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv6Addr;

use serde::{Deserialize, Serialize};
use tabbify_api::coordinator::{Change, EndorsedKey};
use tabbify_api::fold::{self, Fold};
use tabbify_api::log::{Filter, Revs};
use tabbify_api::policy::Policy;
use tabbify_types::event::v1::{
    AppPlaced, AppRegistered, Capability, DeployRequested, InstanceRef, IssuerKeyRotated,
    LeaseGranted, LeaseReleased, PeerJoined, SupervisorJoined, TrafficShifted, VersionPublished,
};
use tabbify_types::event::{Event, EventError};
use tabbify_types::{
    AppId, AppName, AppUla, ByteSize, DeployId, HostName, InstanceId, MeshKey, Position, Recorded,
    Segment, SegmentGlob, Tenant,
};

use crate::app::{App, Cause, Instance, Phase, Release, Rollout, Serving, What};
use crate::device::{ABOUT_PEOPLE, DeviceTable};
use crate::report::{self, Rejected};
use crate::trouble::{Mark, Trouble};

/// Issuer keys that are told to members: as many as count at one time, and one for those that are late.
const ISSUERS_TOLD: usize = 3;
/// The type of event in `platform.auth` that concerns the coordinator; all else there does not.
const ISSUER_KEY_ROTATED: &str = "issuer_key_rotated";

/// The fold. Equal logs give equal states.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Numbers of networks, by name.
    pub networks: BTreeMap<String, u16>,
    /// The highest number of a machine ever, by network.
    pub last_index: BTreeMap<String, u16>,
    /// Machines of the mesh.
    pub hosts: BTreeMap<HostName, PeerJoined>,
    /// The same by their keys.
    pub host_keys: BTreeMap<MeshKey, HostName>,
    /// The same by their addresses.
    pub host_addresses: BTreeMap<Ipv6Addr, HostName>,
    /// Machines that can run apps, with what they can do.
    pub supervisors: BTreeMap<HostName, Machine>,
    /// What is wrong with machines, where something is.
    pub troubles: BTreeMap<HostName, Trouble>,
    /// What was placed on each machine and has not ended.
    pub homes: BTreeMap<HostName, BTreeSet<InstanceRef>>,
    /// The memory that those may use, in bytes.
    pub promised: BTreeMap<HostName, u64>,
    /// Every app.
    pub apps: BTreeMap<AppId, App>,
    /// Apps by their names; the first to have one keeps it.
    #[serde(with = "fold::pairs")]
    pub names: BTreeMap<(Tenant, AppName), AppId>,
    /// Apps with something that is not answered yet.
    pub waiting: BTreeSet<AppId>,
    /// Apps that cannot stay as they are: an instance must move, or nothing can run them.
    pub unsettled: BTreeSet<AppId>,
    /// WireGuard keys of living instances.
    pub keys: BTreeMap<MeshKey, InstanceRef>,
    /// Apps by their address; the first to have it keeps it.
    pub addresses: BTreeMap<Ipv6Addr, AppId>,
    /// Who may reach whom beside the default.
    pub policy: Policy,
    /// People's devices behind a gateway.
    pub devices: DeviceTable,
    /// The newest issuer keys, oldest first.
    pub issuers: Vec<EndorsedKey>,
    /// Revisions of machines, networks and policies.
    #[serde(with = "fold::pairs")]
    pub revs: Revs,
}

/// What a machine can do for apps.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Runtimes, as checked.
    pub capabilities: Vec<Capability>,
    /// Its memory for apps, if it said so.
    pub memory: Option<ByteSize>,
}

impl Machine {
    /// That it is there, as the log has it.
    #[must_use]
    pub fn joined(&self, host: &HostName) -> SupervisorJoined {
        SupervisorJoined {
            host: host.clone(),
            capabilities: self.capabilities.clone(),
            memory: self.memory,
        }
    }
}

/// Why the log cannot be followed further.
#[derive(Debug, thiserror::Error)]
pub enum FoldError {
    /// An event that the coordinator must understand is not understood.
    #[error("event {position} cannot be understood")]
    Event {
        /// Its position.
        position: Position,
        /// Why.
        #[source]
        source: EventError,
    },
}

/// What an event told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// A report that cannot be true; it has changed nothing.
    Rejected(Rejected),
    /// What watchers hear.
    Changed(Change),
}

/// Where an event stands.
enum Place {
    Peers,
    Supervisors,
    Auth,
    Apps,
    Reports(HostName),
    Elsewhere,
}

impl Place {
    fn of(segment: &Segment) -> Self {
        if *segment == Segment::peers() {
            return Self::Peers;
        }
        if *segment == Segment::supervisors() {
            return Self::Supervisors;
        }
        if *segment == Segment::auth() {
            return Self::Auth;
        }
        if segment
            .tenant()
            .is_some_and(|tenant| Segment::apps(&tenant) == *segment)
        {
            return Self::Apps;
        }
        let host = segment.as_str().strip_prefix("platform.hosts.");
        let host = host.and_then(|rest| rest.strip_suffix(".reports")?.parse().ok());
        host.map_or(Self::Elsewhere, Self::Reports)
    }
}

impl Fold for State {
    const NAME: &'static str = "coordinator";
    const VERSION: u32 = 4;
    type News = Option<News>;
    type Error = FoldError;

    fn filter(&self) -> Filter {
        Filter::segments([
            SegmentGlob::from(&Segment::peers()),
            SegmentGlob::from(&Segment::supervisors()),
            SegmentGlob::from(&Segment::auth()),
            SegmentGlob::all_apps(),
            SegmentGlob::all_host_reports(),
        ])
    }

    /// Fails where the coordinator must stop rather than go on without the event. What a host writes
    /// into its reports can never do that.
    fn apply(&mut self, recorded: &Recorded) -> Result<Option<News>, FoldError> {
        let position = recorded.position;
        let understood = |event: Result<Option<Event>, EventError>| {
            event.map_err(|source| FoldError::Event { position, source })
        };
        Ok(match Place::of(&recorded.segment) {
            Place::Reports(host) => {
                let taken = report::take(self, &host, recorded, recorded.event());
                taken.err().map(News::Rejected)
            }
            Place::Auth if recorded.kind == ISSUER_KEY_ROTATED => {
                match understood(recorded.event())? {
                    Some(Event::IssuerKeyRotated(data)) => Some(self.issuer(data)),
                    _ => None,
                }
            }
            Place::Auth if ABOUT_PEOPLE.contains(&recorded.kind.as_str()) => {
                if let Some(event) = understood(recorded.event())? {
                    self.devices.person(position, event);
                }
                None
            }
            Place::Auth | Place::Elsewhere => None,
            Place::Apps => {
                let event = understood(recorded.event())?;
                self.app_event(recorded, event).map(News::Changed)
            }
            Place::Peers | Place::Supervisors => {
                let event = understood(recorded.event())?;
                event.and_then(|event| self.mesh_event(recorded, event))
            }
        })
    }
}

impl State {
    /// Whether an instance may have `key`: nobody else does.
    #[must_use]
    pub fn may_have(&self, key: &MeshKey, of: InstanceRef) -> bool {
        let others = self.keys.get(key).is_some_and(|known| *known != of);
        !others && !self.host_keys.contains_key(key)
    }

    /// Notes what is to be answered.
    pub(crate) fn ask(&mut self, id: AppId, position: Position, cause: Cause) {
        if let Some(app) = self.apps.get_mut(&id) {
            app.open.insert(position, cause);
            self.waiting.insert(id);
        }
    }

    fn issuer(&mut self, data: IssuerKeyRotated) -> News {
        let (public, signature) = (data.public, data.signature);
        self.issuers.retain(|known| known.public != public);
        self.issuers.push(EndorsedKey { public, signature });
        let late = self.issuers.len().saturating_sub(ISSUERS_TOLD);
        self.issuers.drain(..late);
        News::Changed(Change::Issuers)
    }

    fn mesh_event(&mut self, recorded: &Recorded, event: Event) -> Option<News> {
        let change = match event {
            Event::NetworkAllocated(data) => {
                self.networks.insert(data.network, data.number);
                None
            }
            Event::PeerJoined(data) => {
                // Rules go by tags, and it may have others.
                self.devices.touch(recorded.position);
                Some(self.joined(data))
            }
            Event::PeerLeft(data) => self.left(recorded, &data.host),
            Event::SupervisorJoined(data) => {
                self.well(&data.host);
                let machine = Machine {
                    capabilities: data.capabilities,
                    memory: data.memory,
                };
                self.supervisors.insert(data.host, machine);
                None
            }
            Event::SupervisorLost(data) => {
                self.lost(recorded, &data.host);
                None
            }
            Event::SupervisorDrainRequested(data) => {
                self.emptying(recorded, data);
                None
            }
            Event::SupervisorDrained(data) => {
                self.drained(&data.host);
                None
            }
            Event::PolicyChanged(data) => {
                self.policy.set(data.tenant.clone(), data.allow);
                self.devices.touch(recorded.position);
                Some(Change::Policy {
                    tenant: data.tenant,
                })
            }
            event @ (Event::DeviceAdded(_) | Event::DeviceRemoved(_)) => {
                self.devices.event(recorded.position, event);
                None
            }
            Event::LeaseGranted(data) => return self.granted(recorded, data).map(News::Changed),
            Event::LeaseReleased(data) => return self.released(recorded, &data).map(News::Changed),
            _ => return None,
        };
        let key = (recorded.segment.clone(), recorded.key.clone());
        self.revs.insert(key, recorded.rev);
        change.map(News::Changed)
    }

    fn joined(&mut self, data: PeerJoined) -> Change {
        let last = self.last_index.entry(data.network.clone()).or_default();
        *last = data.index.max(*last);
        let (host, address, key) = (data.host.clone(), data.address, data.key);
        let before = self.hosts.insert(host.clone(), data);
        let gone = before.map(|before| {
            self.host_addresses.remove(&before.address.addr());
            self.host_keys.remove(&before.key);
            before.key
        });
        self.host_keys.insert(key, host.clone());
        self.host_addresses.insert(address.addr(), host.clone());
        let gone = gone.filter(|gone| *gone != key);
        Change::Host {
            host,
            address,
            gone,
        }
    }

    fn left(&mut self, recorded: &Recorded, host: &HostName) -> Option<Change> {
        let before = self.hosts.remove(host)?;
        self.deserted(recorded, host);
        self.host_addresses.remove(&before.address.addr());
        self.host_keys.remove(&before.key);
        Some(Change::Host {
            host: before.host,
            address: before.address,
            gone: Some(before.key),
        })
    }

    fn granted(&mut self, recorded: &Recorded, data: LeaseGranted) -> Option<Change> {
        let app = self.apps.get_mut(&data.app)?;
        app.mesh_rev = recorded.rev;
        let (id, instance) = (data.app, data.instance);
        let living = app.instances.get_mut(&instance)?;
        let key = data.key;
        // Until the log says that it is awake, the process that got the lease may end like the one before.
        if living.rekeys {
            living.key = Some(key);
        }
        living.key.get_or_insert(key);
        living.epoch = data.epoch;
        let last = app.epochs.entry(data.slot).or_default();
        *last = data.epoch.max(*last);
        let before = app.leases.insert(instance, data);
        // That of a process that ended while it was idle.
        let gone = before.map(|before| before.key).filter(|gone| *gone != key);
        if let Some(gone) = gone {
            self.keys.remove(&gone);
        }
        self.keys.insert(key, InstanceRef { app: id, instance });
        Some(Change::App { app: id, gone })
    }

    fn released(&mut self, recorded: &Recorded, data: &LeaseReleased) -> Option<Change> {
        let app = self.apps.get_mut(&data.app)?;
        app.mesh_rev = recorded.rev;
        let gone = app.leases.remove(&data.instance)?;
        Some(Change::App {
            app: data.app,
            gone: Some(gone.key),
        })
    }

    /// An event of a tenant's segment: counts for the tenant's own apps only.
    fn app_event(&mut self, recorded: &Recorded, event: Option<Event>) -> Option<Change> {
        if let Some(Event::AppRegistered(data)) = &event {
            self.registered(recorded, data);
        }
        let id = recorded.key.parse::<AppId>().ok()?;
        let app = self.apps.get_mut(&id)?;
        if Segment::apps(&app.tenant) != recorded.segment {
            return None;
        }
        app.rev = recorded.rev;
        let event = event?;
        if answers(&event)
            && let Some(cause) = recorded.cause
        {
            app.open.remove(&cause);
            if app.open.is_empty() {
                self.waiting.remove(&id);
            }
        }
        match event {
            Event::VersionPublished(data) => published(app, data),
            Event::DeployRequested(data) => self.requested(recorded, id, &data),
            Event::DeploySuperseded(data) => finished(app, data.deploy),
            Event::DeployFinished(data) => finished(app, data.deploy),
            Event::AppPlaced(data) => {
                let (host, instance) = (data.host.clone(), data.instance);
                let memory = data.run.memory;
                placed(app, data);
                self.moved_in(&host, InstanceRef { app: id, instance }, memory);
            }
            Event::AppStopRequested(data) => {
                if let Some(instance) = app.instances.get_mut(&data.of.instance) {
                    instance.stop_requested = true;
                }
                self.look_at(id);
            }
            Event::AppHealthy(data) => {
                if let Some(instance) = app.instances.get_mut(&data.of.instance) {
                    instance.answers = true;
                }
            }
            Event::AppUnavailable(_) => {
                app.unavailable = Some(Mark::of(recorded));
                self.look_at(id);
            }
            Event::TrafficShifted(data) => {
                shifted(app, recorded, &data);
                self.look_at(id);
                return Some(Change::App {
                    app: id,
                    gone: None,
                });
            }
            Event::AppIdled(data) => return idles(app, data.of, true),
            Event::AppWoken(data) => return idles(app, data.of, false),
            Event::AppFailed(data) => self.ended(id, data.of.instance),
            Event::AppStopped(data) => self.ended(id, data.of.instance),
            _ => {}
        }
        None
    }

    fn requested(&mut self, recorded: &Recorded, id: AppId, data: &DeployRequested) {
        let Some(app) = self.apps.get_mut(&id) else {
            return;
        };
        if app.deploys.insert(data.deploy) {
            let what = What::Deploy {
                deploy: data.deploy,
                version: data.version,
            };
            let cause = Cause {
                id: recorded.id,
                what,
            };
            self.ask(id, recorded.position, cause);
        }
    }

    fn ended(&mut self, id: AppId, instance: InstanceId) {
        let app = self.apps.get_mut(&id);
        let Some(ended) = app.and_then(|app| app.instances.remove(&instance)) else {
            return;
        };
        if let Some(key) = ended.key {
            self.keys.remove(&key);
        }
        let of = InstanceRef { app: id, instance };
        self.moved_out(&ended.host, of, ended.memory);
    }

    fn registered(&mut self, recorded: &Recorded, data: &AppRegistered) {
        let own = Segment::apps(&data.tenant) == recorded.segment
            && recorded.key == data.app.to_string()
            && data.address == AppUla::derive(data.app);
        let free = !self.addresses.contains_key(&data.address.addr());
        if own && free && !self.apps.contains_key(&data.app) {
            self.addresses.insert(data.address.addr(), data.app);
            let (tenant, name) = (data.tenant.clone(), data.name.clone());
            let bearer = self.names.entry((tenant.clone(), name.clone()));
            bearer.or_insert(data.app);
            self.apps.insert(data.app, App::new(tenant, name));
        }
    }
}

/// Whether the event is one that [`crate::plan`] writes first for a cause.
const fn answers(event: &Event) -> bool {
    matches!(
        event,
        Event::AppPlaced(_)
            | Event::DeployFinished(_)
            | Event::AppStarting(_)
            | Event::AppStarted(_)
            | Event::AppHealthy(_)
            | Event::InstanceDrained(_)
            | Event::AppIdled(_)
            | Event::AppWoken(_)
            | Event::AppFailed(_)
            | Event::AppStopped(_)
    )
}

/// From here on an instance is reached through its machine's doorbell, or by itself again.
fn idles(app: &mut App, of: InstanceRef, idle: bool) -> Option<Change> {
    let instance = app.instances.get_mut(&of.instance)?;
    (instance.idle, instance.rekeys) = (idle, idle);
    Some(Change::App {
        app: of.app,
        gone: None,
    })
}

fn published(app: &mut App, data: VersionPublished) {
    app.releases.entry(data.version).or_insert(Release {
        artifact: data.artifact,
        run: data.run,
        placement: data.placement,
        further: data.further,
    });
}

fn finished(app: &mut App, deploy: DeployId) {
    if app
        .rollout
        .as_ref()
        .is_some_and(|rollout| rollout.deploy == deploy)
    {
        app.rollout = None;
    }
}

fn placed(app: &mut App, data: AppPlaced) {
    let replaces = app
        .serving
        .as_ref()
        .is_some_and(|serving| serving.deploy == data.deploy);
    let (slot, instance) = (data.slot, data.instance);
    if replaces {
        app.successors.insert(slot, instance);
        let replaced = app.replaced.entry(slot).or_default();
        *replaced = replaced.saturating_add(1);
    } else {
        let rollout = app.rollout.take();
        let mut rollout = rollout
            .filter(|rollout| rollout.deploy == data.deploy)
            .unwrap_or_else(|| Rollout {
                deploy: data.deploy,
                version: data.version,
                instances: BTreeMap::new(),
            });
        rollout.instances.insert(slot, instance);
        app.rollout = Some(rollout);
    }
    let release = app.releases.get(&data.version);
    if app.volume_on.is_none() && release.is_some_and(Release::has_volume) {
        app.volume_on = Some(data.host.clone());
    }
    app.last_instance = app.last_instance.max(data.instance);
    let epoch = app.epochs.entry(data.slot).or_default();
    *epoch = data.epoch.max(*epoch);
    let instance = Instance {
        deploy: data.deploy,
        version: data.version,
        host: data.host,
        slot: data.slot,
        epoch: data.epoch,
        memory: data.run.memory,
        reported: Phase::Placed,
        key: None,
        healthy_at: None,
        answers: false,
        stop_requested: false,
        drained: false,
        dozing: false,
        idle: false,
        rekeys: false,
    };
    app.instances.insert(data.instance, instance);
}

fn shifted(app: &mut App, recorded: &Recorded, data: &TrafficShifted) {
    let same = app
        .serving
        .as_ref()
        .is_some_and(|serving| serving.deploy == data.deploy);
    if same {
        let serves = |instance: &InstanceId| data.instances.contains(instance);
        app.successors.retain(|_, instance| !serves(instance));
    } else {
        app.replaced.clear();
        app.successors.clear();
    }
    app.unavailable = None;
    app.serving = Some(Serving {
        deploy: data.deploy,
        version: data.version,
        primary: data.primary,
        instances: data.instances.iter().copied().collect(),
        mark: Mark::of(recorded),
    });
}
