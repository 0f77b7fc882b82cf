//! One app, as the coordinator knows it: releases, instances, the deploy under way, what serves.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use tabbify_api::fold;
use tabbify_types::event::Event;
use tabbify_types::event::v1::{DeployTarget, InstanceRef, LeaseGranted, Placement, RunConfig};
use tabbify_types::{
    AppName, ByteSize, DeployId, Digest, Epoch, EventId, HostName, InstanceId, MeshKey, Position,
    Rev, SlotId, Tenant, Timestamp, VersionNumber,
};

use crate::trouble::Mark;

/// How far an instance has come. Only ever forwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Phase {
    /// It has a slot on a machine.
    Placed,
    /// It is about to be spawned.
    Starting,
    /// It runs and has a key.
    Started,
    /// It answers.
    Healthy,
    /// It has failed or stopped.
    Ended,
}

/// An instance that has not ended, or whose end is not recorded yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// The attempt that it belongs to.
    pub deploy: DeployId,
    /// The version that it runs.
    pub version: VersionNumber,
    /// Its machine.
    pub host: HostName,
    /// The slot it fills.
    pub slot: SlotId,
    /// Its fence.
    pub epoch: Epoch,
    /// The most memory that it may use.
    pub memory: ByteSize,
    /// How far its machine says that it has come.
    pub reported: Phase,
    /// The WireGuard key that it made, once started.
    pub key: Option<MeshKey>,
    /// When its machine said that it answers, by the log's clock.
    pub healthy_at: Option<Timestamp>,
    /// The same, recorded.
    pub answers: bool,
    /// Whether it was told to end.
    pub stop_requested: bool,
    /// Whether its machine has said that it has drained.
    pub drained: bool,
    /// Whether its machine has said that it is idle, and not yet that it is awake again.
    #[serde(default)]
    pub dozing: bool,
    /// The same, recorded: whoever asks for it is sent to its machine's doorbell.
    #[serde(default)]
    pub idle: bool,
    /// Its process may have ended since it was idle: each one that comes has another key, until its machine has
    /// said of one that it answers, and that is recorded.
    #[serde(default)]
    pub rekeys: bool,
}

/// A published version: what it takes to run it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// Digest of `artifact.json`.
    pub artifact: Digest,
    /// What an instance of the first target needs to run.
    pub run: RunConfig,
    /// Where it may run.
    pub placement: Placement,
    /// The targets after the first.
    pub further: Vec<DeployTarget>,
}

impl Release {
    /// What an instance in this slot needs to run.
    #[must_use]
    pub fn run_in(&self, slot: SlotId) -> &RunConfig {
        self.further_at(slot).map_or(&self.run, |it| &it.run)
    }

    /// Where it may run.
    #[must_use]
    pub fn placement_in(&self, slot: SlotId) -> &Placement {
        let further = self.further_at(slot);
        further.map_or(&self.placement, |it| &it.placement)
    }

    fn further_at(&self, slot: SlotId) -> Option<&DeployTarget> {
        let nth = usize::from(slot.target).checked_sub(1)?;
        self.further.get(nth)
    }

    /// Every slot that is to be filled, in order: of each target as many as it has replicas.
    pub fn slots(&self) -> impl Iterator<Item = SlotId> {
        let further = self.further.iter().map(|it| &it.placement);
        let targets = std::iter::once(&self.placement).chain(further);
        (0..).zip(targets).flat_map(|(target, placement)| {
            (0..placement.replicas.max(1)).map(move |ordinal| SlotId { target, ordinal })
        })
    }

    /// Whether its instances have a volume.
    #[must_use]
    pub fn has_volume(&self) -> bool {
        self.placement.volume || self.further.iter().any(|it| it.placement.volume)
    }
}

/// The deploy under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollout {
    /// The attempt.
    pub deploy: DeployId,
    /// The version to put into service.
    pub version: VersionNumber,
    /// The instances that must become healthy, all of them, by their slots.
    #[serde(with = "fold::pairs")]
    pub instances: BTreeMap<SlotId, InstanceId>,
}

impl Rollout {
    /// Whether it waits for the instance.
    #[must_use]
    pub fn awaits(&self, instance: InstanceId) -> bool {
        self.instances.values().any(|it| *it == instance)
    }
}

/// What gets the traffic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Serving {
    /// The attempt that put it there.
    pub deploy: DeployId,
    /// The version.
    pub version: VersionNumber,
    /// The instance that the app's address means.
    pub primary: InstanceId,
    /// All that get traffic.
    pub instances: BTreeSet<InstanceId>,
    /// What said so last.
    pub mark: Mark,
}

/// Something that has not been answered yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    /// Its event's id: the answer's ids derive from it.
    pub id: EventId,
    /// What it is.
    pub what: What,
}

/// The two sorts of causes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum What {
    /// Somebody wants a version in service.
    Deploy {
        /// The attempt.
        deploy: DeployId,
        /// The version.
        version: VersionNumber,
    },
    /// A machine says what happened; judged as valid.
    Report {
        /// Which instance.
        of: InstanceRef,
        /// What it says, as it will be recorded.
        #[serde(with = "fold::event")]
        event: Box<Event>,
    },
}

/// One app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct App {
    /// Its tenant: only this tenant's segment speaks about it.
    pub tenant: Tenant,
    /// Its name in the tenant.
    pub name: AppName,
    /// Revision of the app in its tenant's segment.
    pub rev: Rev,
    /// Revision of the app in the mesh's segment, where its leases are.
    pub mesh_rev: Rev,
    /// Published versions.
    pub releases: BTreeMap<VersionNumber, Release>,
    /// What is to be answered, by position.
    pub open: BTreeMap<Position, Cause>,
    /// Instances that have not ended.
    pub instances: BTreeMap<InstanceId, Instance>,
    /// The highest instance number given out.
    pub last_instance: InstanceId,
    /// The highest epoch given out, by slot.
    #[serde(with = "fold::pairs")]
    pub epochs: BTreeMap<SlotId, Epoch>,
    /// The deploy under way.
    pub rollout: Option<Rollout>,
    /// What gets the traffic; its instance may have ended.
    pub serving: Option<Serving>,
    /// By their slots, instances that are to take over from serving ones that died; they may have ended.
    #[serde(with = "fold::pairs")]
    pub successors: BTreeMap<SlotId, InstanceId>,
    /// By slots, replacements since the last deploy, or since an instance lived long.
    #[serde(with = "fold::pairs")]
    pub replaced: BTreeMap<SlotId, u32>,
    /// Since when it cannot run, and nothing can be done about it.
    pub unavailable: Option<Mark>,
    /// The machine where its volume was made, if it has one.
    pub volume_on: Option<HostName>,
    /// Live leases.
    pub leases: BTreeMap<InstanceId, LeaseGranted>,
    /// Attempts that were requested, so that a request counts once.
    pub deploys: BTreeSet<DeployId>,
}

impl App {
    /// An app without a past.
    #[must_use]
    pub const fn new(tenant: Tenant, name: AppName) -> Self {
        Self {
            tenant,
            name,
            rev: Rev(0),
            mesh_rev: Rev(0),
            releases: BTreeMap::new(),
            open: BTreeMap::new(),
            instances: BTreeMap::new(),
            last_instance: InstanceId(0),
            epochs: BTreeMap::new(),
            rollout: None,
            serving: None,
            successors: BTreeMap::new(),
            replaced: BTreeMap::new(),
            unavailable: None,
            volume_on: None,
            leases: BTreeMap::new(),
            deploys: BTreeSet::new(),
        }
    }

    /// Whether a newer instance has taken the slot over, and gets traffic: the lease of an earlier one is not
    /// renewed. While the newer one is only starting, the one before it holds the slot. Epochs of other slots
    /// say nothing: each replica has its own.
    #[must_use]
    pub fn is_fenced(&self, lease: &LeaseGranted) -> bool {
        let Some(serving) = &self.serving else {
            return false;
        };
        let all = serving.instances.iter().chain([&serving.primary]);
        let mut leases = all.filter_map(|instance| self.leases.get(instance));
        leases.any(|newer| newer.slot == lease.slot && newer.epoch > lease.epoch)
    }

    /// Instances that have not ended and have the app's volume.
    pub fn holders(&self) -> impl Iterator<Item = InstanceId> {
        let has_one = |it: &Instance| {
            let release = self.releases.get(&it.version);
            release.is_some_and(Release::has_volume)
        };
        let living = self.instances.iter();
        living
            .filter(move |(_, it)| has_one(it))
            .map(|(instance, _)| *instance)
    }

    /// The version that really serves: its instance has not ended nor is told to, and can be reached.
    #[must_use]
    pub fn served(&self) -> Option<VersionNumber> {
        let serving = self
            .serving
            .as_ref()
            .filter(|_| self.unavailable.is_none())?;
        let mut all = serving.instances.iter();
        all.any(|it| self.lives(*it)).then_some(serving.version)
    }

    /// Whether the instance has neither ended nor is told to.
    #[must_use]
    pub fn lives(&self, instance: InstanceId) -> bool {
        let living = self.instances.get(&instance);
        living.is_some_and(|it| it.reported < Phase::Ended && !it.stop_requested)
    }

    /// Whether it is recorded that the instance answers, and it has not ended since.
    #[must_use]
    pub fn answers(&self, instance: InstanceId) -> bool {
        let living = self.instances.get(&instance);
        living.is_some_and(|it| it.answers && it.reported < Phase::Ended)
    }

    /// How often what serves in a slot was replaced of late.
    #[must_use]
    pub fn replaced(&self, slot: SlotId) -> u32 {
        self.replaced.get(&slot).copied().unwrap_or_default()
    }

    /// Slots of the version that serves in which no instance of that deploy is, whatever state it is in.
    #[must_use]
    pub fn unfilled(&self) -> Vec<SlotId> {
        let Some(serving) = &self.serving else {
            return Vec::new();
        };
        let Some(release) = self.releases.get(&serving.version) else {
            return Vec::new();
        };
        let is_filled = |slot: &SlotId| {
            let mut all = self.instances.values();
            all.any(|it| it.slot == *slot && it.deploy == serving.deploy)
        };
        release.slots().filter(|slot| !is_filled(slot)).collect()
    }
}

#[cfg(test)]
mod tests {
    use tabbify_types::AppId;

    use super::*;

    /// An app with a lease for each of these: instance, ordinal, epoch; the first is the primary of those
    /// that serve.
    fn app(leases: &[(u32, u16, u32)], serve: &[u32]) -> App {
        let id = AppId::mint();
        let mut app = App::new(Tenant::main(), "shop".parse().unwrap());
        for (instance, ordinal, epoch) in leases.iter().copied() {
            let lease = LeaseGranted {
                app: id,
                tenant: Tenant::main(),
                slot: SlotId { target: 0, ordinal },
                epoch: Epoch(epoch),
                instance: InstanceId(instance),
                key: MeshKey([0; 32]),
                host: "box1".parse().unwrap(),
            };
            app.leases.insert(InstanceId(instance), lease);
        }
        app.serving = serve.first().map(|primary| Serving {
            deploy: DeployId::mint(),
            version: VersionNumber(1),
            primary: InstanceId(*primary),
            instances: serve.iter().copied().map(InstanceId).collect(),
            mark: Mark {
                position: Position(1),
                id: EventId::mint(),
            },
        });
        app
    }

    #[test]
    fn a_newer_instance_of_the_same_slot_fences_and_no_other() {
        let check = |leases: &[(u32, u16, u32)], serve: &[u32], fenced: &[u32]| {
            let app = app(leases, serve);
            let found = app.leases.iter().filter(|(_, lease)| app.is_fenced(lease));
            let found: Vec<u32> = found.map(|(instance, _)| instance.get()).collect();
            assert_eq!(found, fenced, "{leases:?} {serve:?}");
        };
        check(&[(1, 0, 1), (2, 0, 2)], &[], &[]);
        check(&[(1, 0, 1), (2, 0, 2)], &[1], &[]);
        check(&[(1, 0, 1), (2, 0, 2)], &[2], &[1]);
        // Two replicas, of which the second was replaced often: the first has a small epoch and serves.
        let replicas = [(1, 0, 1), (2, 1, 1), (3, 1, 2), (4, 1, 7)];
        check(&replicas, &[1, 4], &[2, 3]);
        check(&replicas, &[1, 2], &[]);
        check(&replicas, &[4, 1], &[2, 3]);
    }
}
