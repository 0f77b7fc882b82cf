//! What every request of this node shares.

use std::collections::VecDeque;
use std::sync::Arc;

use object_store::ObjectStore;
use tabbify_api::auth::{Authority, Revocations};
use tabbify_api::log::{EventLog, LogAccess};
use tabbify_api::logs::AppLogs;
use tabbify_api::secrets::Vault;
use tabbify_api::volumes::AppVolumes;
use tabbify_process::fold::Follow;
use tabbify_process::{Clock, Tasks};
use tabbify_types::{AppId, HostName, VersionNumber};
use tokio::sync::{Mutex, MutexGuard, Semaphore};

use crate::config::{Config, UPLOADS_MAX};
use crate::dial::Dial;
use crate::pool::Pool;
use crate::projection::Projection;
use crate::rest::stored::Announced;
use crate::view::{Noticed, Urls, View};

/// What a node works with; everything that tests replace is behind a trait.
#[derive(Debug, Clone)]
pub struct Deps {
    /// The log, with the node's scope: reads `tenant_*.apps`, writes nothing.
    pub log: Arc<dyn EventLog>,
    /// The log for those who call the node: what they ask for is written in their name.
    pub writers: Arc<dyn LogAccess>,
    /// Signs people in, and opens apps in browsers.
    pub authority: Arc<dyn Authority>,
    /// Says who a token is, and when it counts no more.
    pub tokens: Arc<dyn Revocations>,
    /// Reaches runners.
    pub dial: Arc<dyn Dial>,
    /// Holds artifacts.
    pub store: Arc<dyn ObjectStore>,
    /// This machine.
    pub host: HostName,
    /// Where the values of secrets go; none comes back from there.
    pub vault: Arc<dyn Vault>,
    /// What apps have printed on this machine; what they have on others is asked for over `dial`.
    pub logs: Arc<dyn AppLogs>,
    /// What apps keep on this machine; the others are asked over `dial`.
    pub volumes: Arc<dyn AppVolumes>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Owner of every task.
    pub tasks: Tasks,
}

/// Stripes of the lock that keeps two publications of one app apart.
const STRIPES: usize = 64;

/// Announced files of the versions that are being uploaded.
pub(crate) type Lists = VecDeque<((AppId, VersionNumber), Arc<Announced>)>;

/// The shared state.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) config: Config,
    pub(crate) urls: Urls,
    pub(crate) log: Arc<dyn EventLog>,
    pub(crate) writers: Arc<dyn LogAccess>,
    pub(crate) authority: Arc<dyn Authority>,
    pub(crate) tokens: Arc<dyn Revocations>,
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) host: HostName,
    pub(crate) vault: Arc<dyn Vault>,
    pub(crate) logs: Arc<dyn AppLogs>,
    pub(crate) volumes: Arc<dyn AppVolumes>,
    pub(crate) dial: Arc<dyn Dial>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) tasks: Tasks,
    pub(crate) projection: Projection,
    pub(crate) pool: Arc<Pool>,
    /// Bounds the memory of uploads.
    pub(crate) uploads: Semaphore,
    /// Lists of files of versions that are being uploaded, the one used last at the end.
    pub(crate) announced: std::sync::Mutex<Lists>,
    publishing: [Mutex<()>; STRIPES],
}

impl Node {
    /// The state, and what follows the log for it.
    pub(crate) fn new(config: Config, urls: Urls, deps: Deps) -> (Self, Follow<View>) {
        let tasks = deps.tasks;
        let pool = Pool::new(
            Arc::clone(&deps.dial),
            tasks.clone(),
            config.timeouts.clone(),
        );
        let pool = Arc::new(pool);
        let (log, clock) = (Arc::clone(&deps.log), Arc::clone(&deps.clock));
        let follow = Follow::open(View::default(), log, config.snapshots.as_deref(), clock);
        // Before the view with it is seen, so that a request that has waited for a switch goes to the
        // new instance.
        let switched = Arc::clone(&pool);
        let follow = follow.hear(move |heard| {
            if let Noticed::Switched(app, replicas) = &heard.news {
                switched.switch(*app, replicas);
            }
        });
        let node = Self {
            config,
            urls,
            log: deps.log,
            writers: deps.writers,
            authority: deps.authority,
            tokens: deps.tokens,
            store: deps.store,
            host: deps.host,
            vault: deps.vault,
            logs: deps.logs,
            volumes: deps.volumes,
            dial: deps.dial,
            clock: deps.clock,
            tasks,
            projection: Projection::new(follow.folded()),
            pool,
            uploads: Semaphore::new(UPLOADS_MAX),
            announced: std::sync::Mutex::default(),
            publishing: std::array::from_fn(|_| Mutex::new(())),
        };
        (node, follow)
    }

    /// Held while a version of `app` becomes the newest.
    pub(crate) async fn publishing(&self, app: AppId) -> MutexGuard<'_, ()> {
        let stripe = usize::from(app.uuid().as_bytes()[15]) % STRIPES;
        self.publishing[stripe].lock().await
    }
}
