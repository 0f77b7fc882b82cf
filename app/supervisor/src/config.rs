//! What a supervisor is given: everything it needs, by value, without hidden defaults.

use std::net::{SocketAddr, SocketAddrV6};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tabbify_api::doorbell::Doorbells;
use tabbify_api::mesh::PeerRecord;
use tabbify_api::runner::MicroVms;
use tabbify_types::HostName;
use tabbify_types::event::v1::InstanceRef;

use crate::Identity;

/// Configuration of one supervisor.
#[derive(Debug, Clone)]
pub struct Config {
    /// This machine's name: which segment of the log is meant for it.
    pub host: HostName,
    /// Base of its files: `runners/<app>/<instance>/`, `logs/<app>/<instance>.ndjson`, `cache/`,
    /// `volumes/<app>/`, `snapshots/`.
    pub data_dir: PathBuf,
    /// The `tabbify-runner` program.
    pub runner: PathBuf,
    /// Where runners fetch artifacts, as in [`Boot::store`](tabbify_api::runner::Boot::store).
    pub store: String,
    /// The container engine's socket, as in [`Boot::engine`](tabbify_api::runner::Boot::engine).
    pub engine: Option<String>,
    /// What microVMs are made of, as in [`Boot::microvms`](tabbify_api::runner::Boot::microvms).
    pub microvms: Option<MicroVms>,
    /// Where runners get their secrets, over their own mesh; without, no app that names some starts here.
    pub vault: Option<SocketAddrV6>,
    /// Where runners bind their WireGuard sockets; port 0 lets each pick one.
    pub underlay: SocketAddr,
    /// Who may call the runners: the nodes. With an identity, they count while no coordinator can be
    /// reached.
    pub peers: Vec<PeerRecord>,
    /// What the platform says of apps that are idle here: without, none goes to sleep.
    pub doors: Option<Arc<dyn Doorbells>>,
    /// What the coordinator knows this machine by: runners get their leases from there, for tickets
    /// that the machine signs. Without, the supervisor's reports are all there is.
    pub identity: Option<Identity>,
}

impl Config {
    /// Where runners have their directories.
    pub(crate) fn runners_dir(&self) -> PathBuf {
        runners_dir(&self.data_dir)
    }

    /// Where an app's output is kept.
    pub(crate) fn logs_dir(&self, of: InstanceRef) -> PathBuf {
        self.data_dir.join("logs").join(of.app.to_string())
    }

    /// Where what is desired is stored, so that a supervisor starts while the log is away.
    pub(crate) fn snapshots_dir(&self) -> PathBuf {
        self.data_dir.join("snapshots")
    }

    /// Where apps keep what outlives their instances.
    pub(crate) fn volumes_dir(&self) -> PathBuf {
        volumes_dir(&self.data_dir)
    }

    /// Where compiled code is kept.
    pub(crate) fn cache_dir(&self) -> PathBuf {
        self.data_dir.join("cache")
    }
}

/// Where runners have their directories below a data directory.
pub(crate) fn runners_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("runners")
}

/// Where apps keep what outlives their instances, below a data directory.
pub(crate) fn volumes_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("volumes")
}
