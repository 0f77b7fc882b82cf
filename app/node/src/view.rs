//! The node's view of the log: a pure fold over `tenant_*.apps`, and over the machines of the platform.
//!
//! INVARIANT: folding a prefix and then the rest gives the same view as folding everything. Events
//! of unknown types are skipped; an unknown version of a type in [`CLAIMED`] is an error.

mod deploy;
pub(crate) mod machines;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};
use tabbify_api::apps::{AppStatus, AppView, InstanceView, Operation, VersionView};
use tabbify_api::log::Filter;
use tabbify_process::fold::{Fold, pairs};
use tabbify_types::event::EventError;
use tabbify_types::event::v1::{Access, AppPlaced, InstanceRef, VersionPublished};
use tabbify_types::{
    AppId, AppName, AppUla, DeployId, Event, HostName, HostUla, InstanceId, Recorded, Rev,
    SecretName, Segment, SegmentGlob, SlotId, Tenant, Timestamp, VersionNumber,
};

use self::deploy::{Deploy, Stage};
use self::machines::Machines;
use crate::config::DEPLOYS_MAX;
use crate::replicas::Replicas;
use crate::route::host_of;

/// Types that the view reads.
pub(crate) const CLAIMED: &[&str] = &[
    "app_registered",
    "version_reserved",
    "version_published",
    "deploy_requested",
    "deploy_superseded",
    "app_placed",
    "app_starting",
    "app_started",
    "app_healthy",
    "traffic_shifted",
    "app_failed",
    "app_stop_requested",
    "app_stopped",
    "app_idled",
    "app_woken",
    "deploy_finished",
    "peer_joined",
    "peer_left",
    "supervisor_joined",
    "supervisor_lost",
    "supervisor_drain_requested",
    "supervisor_drained",
];

/// LIMIT: instances of one app whose deploy is remembered.
const INSTANCES_MAX: usize = 256;
/// LIMIT: machines of one app whose lines are asked for: the last ones that ran it.
const HOSTS_MAX: usize = 32;

/// Key of a tenant's apps segment under which an app's version numbers are reserved: its own, so
/// that the many events under the app's key do not disturb a push.
pub(crate) fn versions_key(app: AppId) -> String {
    format!("versions/{app}")
}

/// Everything that the node knows from the log.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct View {
    apps: BTreeMap<AppId, App>,
    #[serde(with = "pairs")]
    names: BTreeMap<(Tenant, AppName), AppId>,
    deploys: BTreeMap<DeployId, AppId>,
    pub(crate) machines: Machines,
}

/// An app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct App {
    pub(crate) id: AppId,
    pub(crate) tenant: Tenant,
    pub(crate) name: AppName,
    address: AppUla,
    created: Timestamp,
    /// The newest reserved number; 0 before the first.
    pub(crate) reserved: VersionNumber,
    /// Revision of [`versions_key`].
    pub(crate) versions_rev: Rev,
    /// Boxed, for a map has room for eleven at once and most apps have few.
    published: BTreeMap<VersionNumber, Box<Published>>,
    /// Oldest first, at most [`DEPLOYS_MAX`].
    deploys: VecDeque<Deploy>,
    instances: BTreeMap<InstanceId, DeployId>,
    /// Where those are that have not ended, oldest first, at most [`INSTANCES_MAX`].
    places: Vec<Place>,
    /// The machines that it was placed on, the last one at the end: they have what it printed.
    hosts: Vec<HostName>,
    traffic: Option<Traffic>,
    /// Why the last instance that failed did.
    failure: Option<String>,
}

/// A published version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Published {
    event: VersionPublished,
    at: Timestamp,
}

/// Where an instance is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Place {
    instance: InstanceId,
    slot: SlotId,
    host: HostName,
}

/// Who gets an app's traffic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Traffic {
    version: VersionNumber,
    primary: InstanceId,
    instances: BTreeSet<InstanceId>,
    /// Those of them that have not ended.
    live: BTreeSet<InstanceId>,
    /// Those of them that were told to end: they get no new request.
    leaving: BTreeSet<InstanceId>,
    /// Those of them that sleep, or are about to: a new request wakes them, and none goes to a connection that
    /// was kept.
    #[serde(default)]
    idle: BTreeSet<InstanceId>,
}

impl Traffic {
    /// Those that may get a new request.
    fn replicas(&self) -> Replicas {
        Replicas::of(self.live.difference(&self.leaving).copied())
    }

    /// Those whose connections may be kept.
    fn awake(&self) -> Replicas {
        let live = self.live.difference(&self.leaving).copied();
        Replicas::of(live.filter(|instance| !self.idle.contains(instance)))
    }

    /// Whether all that may get a request sleep.
    fn is_idle(&self) -> bool {
        self.live.is_subset(&self.idle)
    }
}

/// What an event means beyond the view itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Noticed {
    /// Nothing.
    Nothing,
    /// Other instances than before get new requests, these: what is kept to others is not used again.
    Switched(AppId, Replicas),
}

/// Where apps are, for people.
#[derive(Debug, Clone)]
pub(crate) struct Urls {
    /// The platform's host.
    pub(crate) base: String,
    /// The public port.
    pub(crate) port: u16,
}

impl Urls {
    /// The URL of an app, without a slash at the end.
    pub(crate) fn app(&self, tenant: &Tenant, name: &AppName) -> String {
        let host = host_of(tenant, name, &self.base);
        if self.port == 80 {
            format!("http://{host}")
        } else {
            format!("http://{host}:{}", self.port)
        }
    }
}

impl Fold for View {
    const NAME: &'static str = "node";
    const VERSION: u32 = 4;
    type News = Noticed;
    /// A claimed type that this program does not understand.
    type Error = EventError;

    fn filter(&self) -> Filter {
        Filter {
            kinds: CLAIMED.iter().map(|&kind| kind.to_owned()).collect(),
            ..Filter::segments([
                SegmentGlob::all_apps(),
                SegmentGlob::from(&Segment::peers()),
                SegmentGlob::from(&Segment::supervisors()),
            ])
        }
    }

    fn apply(&mut self, recorded: &Recorded) -> Result<Noticed, EventError> {
        if !CLAIMED.contains(&recorded.kind.as_str()) {
            return Ok(Noticed::Nothing);
        }
        let Some(event) = recorded.event()? else {
            return Ok(Noticed::Nothing);
        };
        match recorded.segment.tenant() {
            Some(tenant) => Ok(self.fold(tenant, recorded, event)),
            None => {
                self.machines.fold(&recorded.segment, recorded.at, event);
                Ok(Noticed::Nothing)
            }
        }
    }
}

impl View {
    /// An app by id.
    pub(crate) fn app(&self, id: AppId) -> Option<&App> {
        self.apps.get(&id)
    }

    /// An app by name.
    pub(crate) fn app_named(&self, tenant: &Tenant, name: &AppName) -> Option<&App> {
        let id = self.names.get(&(tenant.clone(), name.clone()))?;
        self.apps.get(id)
    }

    /// Every app of a tenant, by name.
    pub(crate) fn apps_of<'a>(&'a self, tenant: &'a Tenant) -> impl Iterator<Item = &'a App> {
        let of_tenant = self.names.iter().filter(move |((t, _), _)| t == tenant);
        of_tenant.filter_map(|(_, id)| self.apps.get(id))
    }

    /// The machines that an app was placed on and that are there, with their addresses.
    pub(crate) fn machines_of(&self, app: &App) -> Vec<(HostName, HostUla)> {
        let known = app.hosts.iter().filter_map(|host| {
            let address = self.machines.address(host)?;
            Some((host.clone(), address))
        });
        known.collect()
    }

    /// The apps of a tenant whose serving or newest version names this secret, by name.
    pub(crate) fn users_of(&self, tenant: &Tenant, secret: &SecretName) -> Vec<AppName> {
        let apps = self.apps_of(tenant).filter(|app| app.uses(secret));
        apps.map(|app| app.name.clone()).collect()
    }

    /// The app that a deploy is about.
    pub(crate) fn app_of_deploy(&self, deploy: DeployId) -> Option<&App> {
        self.apps.get(self.deploys.get(&deploy)?)
    }

    fn fold(&mut self, tenant: Tenant, recorded: &Recorded, event: Event) -> Noticed {
        let at = recorded.at;
        if let Event::AppRegistered(event) = event {
            let name = (tenant.clone(), event.name.clone());
            // The first registration counts; the log's expectations let no second one in.
            self.names.entry(name).or_insert(event.app);
            self.apps.entry(event.app).or_insert_with(|| App {
                id: event.app,
                tenant,
                name: event.name,
                address: event.address,
                created: at,
                reserved: VersionNumber(0),
                versions_rev: Rev(0),
                published: BTreeMap::new(),
                deploys: VecDeque::new(),
                instances: BTreeMap::new(),
                places: Vec::new(),
                hosts: Vec::new(),
                traffic: None,
                failure: None,
            });
            return Noticed::Nothing;
        }
        // A tenant's segment speaks about its own apps only.
        let id = app_of(&event);
        let Some(app) = id
            .and_then(|id| self.apps.get_mut(&id))
            .filter(|app| app.tenant == tenant)
        else {
            return Noticed::Nothing;
        };
        if let Event::DeployRequested(event) = &event {
            if self.deploys.contains_key(&event.deploy) {
                return Noticed::Nothing;
            }
            self.deploys.insert(event.deploy, app.id);
            if let Some(forgotten) = app.requested(Deploy::requested(event, at)) {
                self.deploys.remove(&forgotten);
            }
            return Noticed::Nothing;
        }
        app.fold(recorded, event)
    }
}

impl App {
    /// Whether its serving or newest version names this secret.
    fn uses(&self, secret: &SecretName) -> bool {
        let serving = self.traffic.as_ref().map(|traffic| traffic.version);
        let serving = serving.and_then(|version| self.published.get(&version));
        let newest = self.published.values().next_back();
        let mut versions = serving.into_iter().chain(newest);
        versions.any(|version| {
            let names = &version.event.secrets;
            names.iter().any(|name| name == secret.as_str())
        })
    }

    /// Adds a deploy; the id of the oldest one if there are too many now.
    fn requested(&mut self, deploy: Deploy) -> Option<DeployId> {
        self.deploys.push_back(deploy);
        if self.deploys.len() <= DEPLOYS_MAX {
            return None;
        }
        self.deploys.pop_front().map(|deploy| deploy.id)
    }

    fn fold(&mut self, recorded: &Recorded, event: Event) -> Noticed {
        let at = recorded.at;
        match event {
            Event::VersionReserved(event) => {
                self.reserved = self.reserved.max(event.version);
                if recorded.key == versions_key(self.id) {
                    self.versions_rev = recorded.rev;
                }
            }
            Event::VersionPublished(event) => {
                let version = event.version;
                self.published
                    .entry(version)
                    .or_insert_with(|| Box::new(Published { event, at }));
            }
            Event::DeploySuperseded(event) => {
                if let Some(deploy) = self.deploy_mut(event.deploy) {
                    deploy.superseded();
                }
            }
            Event::AppPlaced(event) => self.placed(event, at),
            Event::AppStarting(event) => self.instance_step(event.of, Stage::Starting, at),
            Event::AppStarted(event) => self.instance_step(event.of, Stage::Started, at),
            Event::AppHealthy(event) => {
                if let Some(traffic) = &mut self.traffic
                    && traffic.instances.contains(&event.of.instance)
                {
                    traffic.live.insert(event.of.instance);
                }
                self.instance_step(event.of, Stage::Healthy, at);
            }
            Event::TrafficShifted(event) => {
                let instances: BTreeSet<InstanceId> = event.instances.into_iter().collect();
                self.traffic = Some(Traffic {
                    version: event.version,
                    primary: event.primary,
                    live: instances.clone(),
                    instances,
                    leaving: BTreeSet::new(),
                    idle: BTreeSet::new(),
                });
                self.step(event.deploy, Stage::Shifted, at);
                return self.switched();
            }
            Event::AppFailed(event) => {
                let switched = self.ended(event.of.instance);
                if let Some(deploy) = self.deploy_of(event.of) {
                    deploy.instance_failed(&event, at);
                }
                self.failure = Some(event.detail);
                return switched;
            }
            // Also after a switch: a connection by the app's address that was made before everybody had
            // seen the switch may still lead to the old instance, which is about to close it.
            Event::AppStopRequested(event) => return self.leaves(event.of.instance),
            Event::AppStopped(event) => return self.ended(event.of.instance),
            Event::AppIdled(event) => return self.idles(event.of.instance, true),
            // Whoever came meanwhile came through its machine's doorbell.
            Event::AppWoken(event) => return self.idles(event.of.instance, false),
            Event::DeployFinished(event) => {
                if let Some(deploy) = self.deploy_mut(event.deploy) {
                    deploy.finished(&event, at);
                }
            }
            _ => {}
        }
        Noticed::Nothing
    }

    fn placed(&mut self, event: AppPlaced, at: Timestamp) {
        self.instances.insert(event.instance, event.deploy);
        if self.instances.len() > INSTANCES_MAX {
            self.instances.pop_first();
        }
        if self.places.len() >= INSTANCES_MAX {
            self.places.remove(0);
        }
        // Most apps have one, and there are many apps.
        self.places.reserve_exact(1);
        self.places.push(Place {
            instance: event.instance,
            slot: event.slot,
            host: event.host.clone(),
        });
        self.hosts.retain(|host| *host != event.host);
        self.hosts.push(event.host);
        if self.hosts.len() > HOSTS_MAX {
            self.hosts.remove(0);
        }
        self.step(event.deploy, Stage::Placed, at);
    }

    fn ended(&mut self, instance: InstanceId) -> Noticed {
        self.places.retain(|place| place.instance != instance);
        let traffic = self.traffic.as_mut();
        if traffic.is_some_and(|traffic| traffic.live.remove(&instance)) {
            return self.switched();
        }
        Noticed::Nothing
    }

    /// From here on it sleeps, or does not: nothing that was kept to it is used again.
    fn idles(&mut self, instance: InstanceId, idle: bool) -> Noticed {
        let traffic = self.traffic.as_mut();
        let Some(traffic) = traffic.filter(|traffic| traffic.instances.contains(&instance)) else {
            return Noticed::Nothing;
        };
        traffic.idle.insert(instance);
        let others = traffic.awake();
        if !idle {
            traffic.idle.remove(&instance);
        }
        Noticed::Switched(self.id, others)
    }

    fn leaves(&mut self, instance: InstanceId) -> Noticed {
        let traffic = self.traffic.as_mut();
        if let Some(traffic) = traffic.filter(|traffic| traffic.instances.contains(&instance)) {
            traffic.leaving.insert(instance);
        }
        self.switched()
    }

    fn switched(&self) -> Noticed {
        Noticed::Switched(self.id, self.replicas())
    }

    /// The instances that may get a new request.
    pub(crate) fn replicas(&self) -> Replicas {
        let traffic = self.traffic.as_ref();
        traffic.map_or(Replicas::Unknown, Traffic::replicas)
    }

    /// The one that the app's address means, or, once that has ended, another that serves.
    pub(crate) fn primary(&self) -> Option<InstanceId> {
        let traffic = self.traffic.as_ref()?;
        let primary = traffic.live.get(&traffic.primary);
        primary.or_else(|| traffic.live.first()).copied()
    }

    /// The raw ports of the version that serves.
    pub(crate) fn ports(&self) -> &[u16] {
        let traffic = self.traffic.as_ref();
        let serves = traffic.and_then(|traffic| self.published.get(&traffic.version));
        serves.map_or(&[], |published| &published.event.run.ports)
    }

    fn deploy_mut(&mut self, id: DeployId) -> Option<&mut Deploy> {
        self.deploys.iter_mut().rev().find(|deploy| deploy.id == id)
    }

    fn deploy_of(&mut self, of: InstanceRef) -> Option<&mut Deploy> {
        let id = *self.instances.get(&of.instance)?;
        self.deploy_mut(id)
    }

    fn step(&mut self, id: DeployId, stage: Stage, at: Timestamp) {
        if let Some(deploy) = self.deploy_mut(id) {
            deploy.reached(stage, at);
        }
    }

    fn instance_step(&mut self, of: InstanceRef, stage: Stage, at: Timestamp) {
        if let Some(deploy) = self.deploy_of(of) {
            deploy.reached(stage, at);
        }
    }

    fn serving(&self) -> Option<&Traffic> {
        self.traffic
            .as_ref()
            .filter(|traffic| !traffic.live.is_empty())
    }

    /// Who may open it: as the version says that serves or served last, else the newest one.
    pub(crate) fn access(&self) -> Access {
        let version = match &self.traffic {
            Some(traffic) => self.published.get(&traffic.version),
            None => self.published.values().next_back(),
        };
        version.map_or(Access::Private, |version| version.event.access)
    }

    /// A published version.
    pub(crate) fn version(&self, version: VersionNumber) -> Option<VersionView> {
        let published = self.published.get(&version)?;
        Some(VersionView {
            app: self.id,
            version,
            artifact: published.event.artifact,
            runtime: published.event.run.runtime,
            created: published.at,
        })
    }

    /// The newest published version.
    pub(crate) fn latest(&self) -> Option<VersionNumber> {
        self.published.keys().next_back().copied()
    }

    /// As its tenant sees it.
    pub(crate) fn view(&self, urls: &Urls) -> AppView {
        let serving = self.serving();
        let status = match serving {
            Some(traffic) if traffic.is_idle() => AppStatus::Idle,
            Some(_) => AppStatus::Healthy,
            None if self
                .deploys
                .iter()
                .any(|deploy| !deploy.status().is_final()) =>
            {
                AppStatus::Deploying
            }
            None if self.deploys.is_empty() => AppStatus::New,
            None => AppStatus::Failed,
        };
        let said = self.deploys.back().and_then(Deploy::problem);
        let problem = (status == AppStatus::Failed)
            .then(|| said.or_else(|| self.failure.clone()))
            .flatten();
        AppView {
            id: self.id,
            name: self.name.clone(),
            tenant: self.tenant.clone(),
            address: self.address,
            url: urls.app(&self.tenant, &self.name),
            access: self.access(),
            status,
            serving: serving.map(|traffic| traffic.version),
            latest: self.latest(),
            primary: serving.map(|traffic| traffic.primary),
            instances: serving.map_or_else(Vec::new, |traffic| self.serve(traffic)),
            created: self.created,
            problem,
        }
    }

    /// The instances that get its traffic, by slot.
    fn serve(&self, traffic: &Traffic) -> Vec<InstanceView> {
        let places = self.places.iter();
        let live = places.filter(|place| traffic.live.contains(&place.instance));
        let version = self.published.get(&traffic.version);
        let views = live.filter_map(|place| {
            let published = &version?.event;
            let nth = usize::from(place.slot.target).checked_sub(1);
            let further = nth.and_then(|nth| published.further.get(nth));
            let run = further.map_or(&published.run, |target| &target.run);
            Some(InstanceView {
                instance: place.instance,
                slot: place.slot,
                host: place.host.clone(),
                runtime: run.runtime,
            })
        });
        let mut views: Vec<_> = views.collect();
        views.sort_by_key(|view| (view.slot, view.instance));
        views
    }

    /// A deploy of it.
    pub(crate) fn operation(&self, id: DeployId, urls: &Urls) -> Option<Operation> {
        let deploy = self.deploys.iter().rev().find(|deploy| deploy.id == id)?;
        Some(deploy.operation(self.id, &urls.app(&self.tenant, &self.name)))
    }

    /// Its deploys, newest first.
    pub(crate) fn operations(&self, urls: &Urls) -> Vec<Operation> {
        let url = urls.app(&self.tenant, &self.name);
        let newest_first = self.deploys.iter().rev();
        newest_first
            .map(|deploy| deploy.operation(self.id, &url))
            .collect()
    }
}

/// The app that a claimed event is about.
fn app_of(event: &Event) -> Option<AppId> {
    match event {
        Event::VersionReserved(event) => Some(event.app),
        Event::VersionPublished(event) => Some(event.app),
        Event::DeployRequested(event) => Some(event.app),
        Event::DeploySuperseded(event) => Some(event.app),
        Event::AppPlaced(event) => Some(event.app),
        Event::AppStarting(event) => Some(event.of.app),
        Event::AppStarted(event) => Some(event.of.app),
        Event::AppHealthy(event) => Some(event.of.app),
        Event::TrafficShifted(event) => Some(event.app),
        Event::AppFailed(event) => Some(event.of.app),
        Event::AppStopRequested(event) => Some(event.of.app),
        Event::AppStopped(event) => Some(event.of.app),
        Event::AppIdled(event) => Some(event.of.app),
        Event::AppWoken(event) => Some(event.of.app),
        Event::DeployFinished(event) => Some(event.app),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
