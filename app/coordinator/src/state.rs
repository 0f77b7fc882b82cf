//! What the coordinator knows: a pure fold of machines, apps and reports.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv6Addr;

use tabbify_api::log::{Filter, Revs};
use tabbify_types::event::v1::{
    AppPlaced, AppRegistered, Capability, DeployRequested, LeaseGranted, PeerJoined,
    TrafficShifted, VersionPublished,
};
use tabbify_types::event::{Event, EventError};
use tabbify_types::{
    AppId, AppUla, DeployId, HostName, InstanceId, MeshKey, Position, Recorded, Segment,
    SegmentGlob,
};

use crate::app::{App, Cause, Instance, Phase, Release, Rollout, Serving, What};
use crate::report::{self, Rejected};

/// The fold. Equal logs give equal states.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    position: Position,
    /// Numbers of networks, by name.
    pub networks: BTreeMap<String, u16>,
    /// Machines of the mesh.
    pub hosts: BTreeMap<HostName, PeerJoined>,
    /// Machines that can run apps, with what they can do.
    pub supervisors: BTreeMap<HostName, Vec<Capability>>,
    /// Every app.
    pub apps: BTreeMap<AppId, App>,
    /// WireGuard keys of living instances.
    pub keys: BTreeSet<MeshKey>,
    /// Apps by their address; the first to have it keeps it.
    pub addresses: BTreeMap<Ipv6Addr, AppId>,
    /// Revisions of machines and networks.
    pub revs: Revs,
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

/// Where an event stands.
enum Place {
    Peers,
    Supervisors,
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

impl State {
    /// What the fold reads.
    #[must_use]
    pub fn filter() -> Filter {
        Filter::segments([
            SegmentGlob::from(&Segment::peers()),
            SegmentGlob::from(&Segment::supervisors()),
            SegmentGlob::all_apps(),
            SegmentGlob::all_host_reports(),
        ])
    }

    /// Position up to which the log has been looked at.
    #[must_use]
    pub const fn position(&self) -> Position {
        self.position
    }

    /// Notes that nothing up to `position` concerns the coordinator.
    pub fn skip_to(&mut self, position: Position) {
        self.position = self.position.max(position);
    }

    /// Applies the next event. A report that cannot be true is returned and changes nothing.
    ///
    /// # Errors
    /// [`FoldError`]: the coordinator must stop rather than go on without the event. What a host
    /// writes into its reports can never do that.
    pub fn apply(&mut self, recorded: &Recorded) -> Result<Option<Rejected>, FoldError> {
        let position = recorded.position;
        self.position = position;
        let event = recorded.event();
        match Place::of(&recorded.segment) {
            Place::Reports(host) => Ok(report::take(self, &host, recorded, event).err()),
            Place::Elsewhere => Ok(None),
            place => {
                let event = event.map_err(|source| FoldError::Event { position, source })?;
                match (place, event) {
                    (Place::Apps, event) => self.app_event(recorded, event),
                    (_, Some(event)) => self.machine_event(recorded, event),
                    (_, None) => {}
                }
                Ok(None)
            }
        }
    }

    fn machine_event(&mut self, recorded: &Recorded, event: Event) {
        let key = (recorded.segment.clone(), recorded.key.clone());
        match event {
            Event::NetworkAllocated(data) => {
                self.networks.insert(data.network, data.number);
            }
            Event::PeerJoined(data) => {
                self.hosts.insert(data.host.clone(), data);
            }
            Event::SupervisorJoined(data) => {
                self.supervisors.insert(data.host, data.capabilities);
            }
            Event::LeaseGranted(data) => return self.lease_granted(data),
            Event::LeaseReleased(data) => {
                if let Some(app) = self.apps.get_mut(&data.app) {
                    app.leases.remove(&data.instance);
                }
                return;
            }
            _ => return,
        }
        self.revs.insert(key, recorded.rev);
    }

    fn lease_granted(&mut self, data: LeaseGranted) {
        if let Some(app) = self.apps.get_mut(&data.app) {
            app.leases.insert(data.instance, data);
        }
    }

    /// An event of a tenant's segment: counts for the tenant's own apps only.
    fn app_event(&mut self, recorded: &Recorded, event: Option<Event>) {
        if let Some(Event::AppRegistered(data)) = &event {
            self.registered(recorded, data);
        }
        let Ok(id) = recorded.key.parse::<AppId>() else {
            return;
        };
        let Some(app) = self.apps.get_mut(&id) else {
            return;
        };
        if Segment::apps(&app.tenant) != recorded.segment {
            return;
        }
        app.rev = recorded.rev;
        let Some(event) = event else { return };
        if answers(&event)
            && let Some(cause) = recorded.cause
        {
            app.open.remove(&cause);
        }
        match event {
            Event::VersionPublished(data) => published(app, data),
            Event::DeployRequested(data) => requested(app, recorded, &data),
            Event::DeploySuperseded(data) => finished(app, data.deploy),
            Event::DeployFinished(data) => finished(app, data.deploy),
            Event::AppPlaced(data) => placed(app, data),
            Event::AppStopRequested(data) => {
                if let Some(instance) = app.instances.get_mut(&data.of.instance) {
                    instance.stop_requested = true;
                }
            }
            Event::TrafficShifted(data) => shifted(app, &data),
            Event::AppFailed(data) => ended(app, &mut self.keys, data.of.instance),
            Event::AppStopped(data) => ended(app, &mut self.keys, data.of.instance),
            _ => {}
        }
    }

    fn registered(&mut self, recorded: &Recorded, data: &AppRegistered) {
        let own = Segment::apps(&data.tenant) == recorded.segment
            && recorded.key == data.app.to_string()
            && data.address == AppUla::derive(data.app);
        let free = !self.addresses.contains_key(&data.address.addr());
        if own && free && !self.apps.contains_key(&data.app) {
            self.addresses.insert(data.address.addr(), data.app);
            self.apps.insert(data.app, App::new(data.tenant.clone()));
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
            | Event::AppFailed(_)
            | Event::AppStopped(_)
    )
}

fn published(app: &mut App, data: VersionPublished) {
    app.releases.entry(data.version).or_insert(Release {
        artifact: data.artifact,
        run: data.run,
    });
}

fn requested(app: &mut App, recorded: &Recorded, data: &DeployRequested) {
    if app.deploys.insert(data.deploy) {
        let what = What::Deploy {
            deploy: data.deploy,
            version: data.version,
        };
        app.open.insert(
            recorded.position,
            Cause {
                id: recorded.id,
                what,
            },
        );
    }
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
    if replaces {
        app.successor = Some(data.instance);
        app.replaced = app.replaced.saturating_add(1);
    } else {
        let (deploy, version, instance) = (data.deploy, data.version, data.instance);
        app.rollout = Some(Rollout {
            deploy,
            version,
            instance,
        });
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
        reported: Phase::Placed,
        key: None,
        healthy_at: None,
        stop_requested: false,
        drained: false,
    };
    app.instances.insert(data.instance, instance);
}

fn shifted(app: &mut App, data: &TrafficShifted) {
    let same = app
        .serving
        .as_ref()
        .is_some_and(|serving| serving.deploy == data.deploy);
    if !same {
        app.replaced = 0;
    }
    app.successor = None;
    let (deploy, version, primary) = (data.deploy, data.version, data.primary);
    app.serving = Some(Serving {
        deploy,
        version,
        primary,
    });
}

fn ended(app: &mut App, keys: &mut BTreeSet<MeshKey>, instance: InstanceId) {
    if let Some(key) = app
        .instances
        .remove(&instance)
        .and_then(|instance| instance.key)
    {
        keys.remove(&key);
    }
}
