//! One app, as the coordinator knows it: releases, instances, the deploy under way, what serves.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use tabbify_api::fold;
use tabbify_types::event::Event;
use tabbify_types::event::v1::{InstanceRef, LeaseGranted, RunConfig};
use tabbify_types::{
    AppName, DeployId, Digest, Epoch, EventId, HostName, InstanceId, MeshKey, Position, Rev,
    SlotId, Tenant, Timestamp, VersionNumber,
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
    /// How far its machine says that it has come.
    pub reported: Phase,
    /// The WireGuard key that it made, once started.
    pub key: Option<MeshKey>,
    /// When its machine said that it answers, by the log's clock.
    pub healthy_at: Option<Timestamp>,
    /// Whether it was told to end.
    pub stop_requested: bool,
    /// Whether its machine has said that it has drained.
    pub drained: bool,
}

/// A published version: what it takes to run it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// Digest of `artifact.json`.
    pub artifact: Digest,
    /// What an instance needs to run.
    pub run: RunConfig,
}

/// The deploy under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollout {
    /// The attempt.
    pub deploy: DeployId,
    /// The version to put into service.
    pub version: VersionNumber,
    /// The instance that must become healthy.
    pub instance: InstanceId,
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
    /// The instance that is to take over from a serving one that died.
    pub successor: Option<InstanceId>,
    /// Replacements since the last deploy, or since an instance lived long.
    pub replaced: u32,
    /// Since when it cannot run, and nothing can be done about it.
    pub unavailable: Option<Mark>,
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
            successor: None,
            replaced: 0,
            unavailable: None,
            leases: BTreeMap::new(),
            deploys: BTreeSet::new(),
        }
    }

    /// Whether a newer instance has taken the slot over, and gets the traffic: the lease of an earlier
    /// one is not renewed. While the newer one is only starting, the one before it holds the slot.
    #[must_use]
    pub fn is_fenced(&self, lease: &LeaseGranted) -> bool {
        let primary = self.serving.as_ref().map(|serving| serving.primary);
        let primary = primary.and_then(|primary| self.leases.get(&primary));
        primary.is_some_and(|primary| primary.slot == lease.slot && primary.epoch > lease.epoch)
    }

    /// The version that really serves: its instance has not ended, and can be reached.
    #[must_use]
    pub fn served(&self) -> Option<VersionNumber> {
        let serving = self
            .serving
            .as_ref()
            .filter(|_| self.unavailable.is_none())?;
        let primary = self.instances.get(&serving.primary)?;
        (primary.reported < Phase::Ended).then_some(serving.version)
    }
}
