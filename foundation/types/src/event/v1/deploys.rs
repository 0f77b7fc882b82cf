//! `tenant_*.apps`: bringing a version into service, and what becomes of its instances. What a host
//! reports, the coordinator checks and records here.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{ASKED, FACT, FailureReason, InstanceRef, ORDER, REPORT, RunConfig};
use crate::{
    AppId, AppUla, DeployId, Digest, Epoch, HostName, InstanceId, InstanceUla, MeshKey, SecretName,
    SecretVersion, SlotId, Tenant, VersionNumber,
};

/// Why an app cannot run at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnavailableReason {
    /// No machine can run it.
    NoMachine,
    /// The machine that has its volume is lost.
    VolumeLost,
    /// It has failed too often and is tried no more.
    Parked,
}

/// How a deploy ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeployOutcome {
    /// The version serves.
    Succeeded,
    /// It does not; what served before still does.
    Failed,
}

events! {
    /// Somebody wants a version in service.
    DeployRequested = "deploy_requested" at [ASKED] key "the app" {
        app: AppId => "The app.",
        deploy: DeployId => "This attempt; also the Operation's id.",
        version: VersionNumber => "The version to put into service.",
    }

    /// A newer deploy took over.
    DeploySuperseded = "deploy_superseded" at [FACT] key "the app" {
        app: AppId => "The app.",
        deploy: DeployId => "The attempt that ends.",
        by: DeployId => "The newer attempt.",
    }

    /// An instance has a slot on a machine.
    AppPlaced = "app_placed" at [FACT, ORDER] key "the app" {
        app: AppId => "The app.",
        tenant: Tenant => "Its tenant.",
        deploy: DeployId => "The attempt that this belongs to.",
        version: VersionNumber => "The version to run.",
        host: HostName => "The machine.",
        slot: SlotId => "The slot on it.",
        epoch: Epoch => "Fences earlier holders of the slot.",
        instance: InstanceId => "The number of the new instance.",
        artifact: Digest => "Digest of `artifact.json`.",
        run: RunConfig => "What it needs to run.",
    }

    /// An instance is about to be spawned: the intent.
    AppStarting = "app_starting" at [REPORT, FACT] key "the app" {
        #[serde(flatten)] of: InstanceRef => "Which instance.",
    }

    /// An instance runs: the outcome.
    AppStarted = "app_started" at [REPORT, FACT] key "the app" {
        #[serde(flatten)] of: InstanceRef => "Which instance.",
        app_ula: AppUla => "The app's address.",
        instance_ula: InstanceUla => "The instance's own address.",
        key: MeshKey => "The WireGuard key that the runner made.",
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        secrets: BTreeMap<SecretName, SecretVersion> =>
            "The secrets that it got, with the versions of their values; left out if there are none.",
    }

    /// An instance answers.
    AppHealthy = "app_healthy" at [REPORT, FACT] key "the app" {
        #[serde(flatten)] of: InstanceRef => "Which instance.",
    }

    /// These instances get the traffic from here on.
    TrafficShifted = "traffic_shifted" at [FACT] key "the app" {
        app: AppId => "The app.",
        deploy: DeployId => "The attempt that caused it.",
        version: VersionNumber => "The version that serves from here on.",
        instances: Vec<InstanceId> => "Instances that get traffic.",
        primary: InstanceId => "The one that the app's address means.",
    }

    /// An instance gets no new work and has finished what it had, or its deadline has come.
    InstanceDrained = "instance_drained" at [REPORT, FACT] key "the app" {
        #[serde(flatten)] of: InstanceRef => "Which instance.",
        finished: u64 => "Requests that it finished after it got no new ones.",
        cut: u64 => "Requests that its deadline cut off.",
    }

    /// An instance cannot run or died.
    AppFailed = "app_failed" at [REPORT, FACT] key "the app" {
        #[serde(flatten)] of: InstanceRef => "Which instance.",
        reason: FailureReason => "Why, for programs.",
        detail: String => "Why, for people: what happened and what to do. At most 4 KiB.",
        #[serde(default)] log_tail: String => "The last lines of its output, at most 8 KiB.",
    }

    /// An instance has had no request for its idle timeout and is to end until one comes.
    AppIdled = "app_idled" at [REPORT, FACT] key "the app" {
        #[serde(flatten)] of: InstanceRef => "Which instance.",
    }

    /// An app that was idle answers again.
    AppWoken = "app_woken" at [REPORT, FACT] key "the app" {
        #[serde(flatten)] of: InstanceRef => "The instance that answers.",
        #[serde(default, skip_serializing_if = "Option::is_none")] key: Option<MeshKey> =>
            "The WireGuard key that it has now: a new one, unless it was asked before it had ended.",
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        secrets: BTreeMap<SecretName, SecretVersion> =>
            "The secrets that it got this time, with the versions of their values.",
    }

    /// An app cannot run, and the platform can do nothing about it by itself.
    AppUnavailable = "app_unavailable" at [FACT] key "the app" {
        app: AppId => "The app.",
        reason: UnavailableReason => "Why, for programs.",
        remedy: String => "What a person can do, at most 4 KiB.",
    }

    /// An instance has ended because it was told to.
    AppStopped = "app_stopped" at [REPORT, FACT] key "the app" {
        #[serde(flatten)] of: InstanceRef => "Which instance.",
    }

    /// A deploy has an outcome.
    DeployFinished = "deploy_finished" at [FACT] key "the app" {
        app: AppId => "The app.",
        deploy: DeployId => "The attempt.",
        outcome: DeployOutcome => "How it ended.",
        #[serde(default)] detail: String =>
            "For a failure: why, in one sentence, and what still serves.",
    }
}
