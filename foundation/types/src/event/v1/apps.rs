//! `tenant_*.apps`: an app, its names and versions, what people ask of it. Bringing a version into
//! service is in `deploys`.

use serde::{Deserialize, Serialize};

use super::{ASKED, DeployTarget, FACT, InstanceRef, ORDER, Placement, REPORT, RunConfig};
use crate::{AppId, AppName, AppUla, DeployId, Digest, DomainName, Tenant, VersionNumber};

/// Who may open an app without a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    /// Only callers with a token of the right scope.
    Private,
    /// Everybody.
    Public,
}

events! {
    /// A name in a tenant is taken by an app: `expect: none` refuses a second claim.
    AppNameClaimed = "app_name_claimed" at [ASKED] key "`name/<name>`" {
        name: AppName => "The name.",
        app: AppId => "The app that has it.",
    }

    /// An app exists.
    AppRegistered = "app_registered" at [ASKED] key "the app" {
        app: AppId => "The app.",
        tenant: Tenant => "Its tenant.",
        name: AppName => "Its name, unique in the tenant.",
        address: AppUla => "Its address.",
    }

    /// A version number is taken by an upload. Its key is its own, so that `expect` on the last
    /// revision decides between two pushes and the events under the app's key do not disturb them.
    VersionReserved = "version_reserved" at [ASKED] key "`versions/<app>`" {
        app: AppId => "The app.",
        version: VersionNumber => "The number that this upload has.",
    }

    /// A version is an immutable release.
    VersionPublished = "version_published" at [ASKED] key "the app" {
        app: AppId => "The app.",
        version: VersionNumber => "Its number.",
        artifact: Digest =>
            "Digest of `artifact.json`, which lists every file with size and digest.",
        config: Digest => "Digest of the uploaded `tabbify.toml`.",
        access: Access => "Who may open the app while this version serves.",
        run: RunConfig => "What an instance of it needs to run.",
        #[serde(default)] secrets: Vec<String> =>
            "Names of the secrets it needs, without versions.",
        #[serde(default)] placement: Placement =>
            "Where its instances may run: on any machine, unless it says otherwise.",
        #[serde(default, skip_serializing_if = "Vec::is_empty")] further: Vec<DeployTarget> =>
            "Further targets, which run at the same time; left out if there are none.",
    }

    /// An earlier version is to serve again; in the same batch as its `deploy_requested`.
    AppRolledBack = "app_rolled_back" at [ASKED] key "the app" {
        app: AppId => "The app.",
        deploy: DeployId => "The deploy that brings the earlier version back.",
        from: VersionNumber => "The version that served.",
        to: VersionNumber => "The version that is to serve.",
    }

    /// A domain leads to an app.
    DomainAdded = "domain_added" at [ASKED] key "the app" {
        app: AppId => "The app.",
        domain: DomainName => "The domain.",
    }

    /// A domain leads to an app no longer.
    DomainRemoved = "domain_removed" at [ASKED] key "the app" {
        app: AppId => "The app.",
        domain: DomainName => "The domain.",
    }

    /// An app that was stopped is to run.
    AppStartRequested = "app_start_requested" at [ASKED] key "the app" {
        app: AppId => "The app.",
    }

    /// An instance is to end.
    AppStopRequested = "app_stop_requested" at [FACT, ORDER] key "the app" {
        #[serde(flatten)] of: InstanceRef => "Which instance.",
        drain_ms: u64 => "How long it may finish what it has begun, in milliseconds.",
    }

    /// An app is to run in new instances of the same version; an app that was parked runs again.
    AppRestartRequested = "app_restart_requested" at [ASKED] key "the app" {
        app: AppId => "The app.",
    }

    /// An idle app has a request waiting: at the node, or at the doorbell of its host.
    AppWakeRequested = "app_wake_requested" at [ASKED, REPORT, FACT] key "the app" {
        app: AppId => "The app.",
    }

    /// Somebody is let run a command in an instance. Its key is its own: it changes nothing about the app.
    AppCommandAdmitted = "app_command_admitted" at [ASKED] key "`access/<app>`" {
        #[serde(flatten)] of: InstanceRef => "Which instance.",
        program: String =>
            "The program, at most 256 bytes of its name. Arguments may be secret: they are not here.",
    }

    /// Somebody is let connect to a raw port of an app, from now on until the connection ends.
    AppPortAdmitted = "app_port_admitted" at [ASKED] key "`access/<app>`" {
        app: AppId => "The app.",
        port: u16 => "The port.",
    }

    /// An app is to end for ever.
    AppDestroyRequested = "app_destroy_requested" at [ASKED] key "the app" {
        app: AppId => "The app.",
    }

    /// An app has ended for ever. Its name is free; its id and address are not.
    AppDestroyed = "app_destroyed" at [FACT] key "the app" {
        app: AppId => "The app.",
    }
}
