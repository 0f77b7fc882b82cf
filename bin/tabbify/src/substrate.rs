//! The substrate of this process: the log, its consumers, and both on a unix socket for other
//! processes of this machine.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use tabbify_api::log::{Authorize, LogEngine};
use tabbify_log::{Consumers, Log, Options, Publisher, RateLimited, Rates, Service};
use tabbify_process::connect::UnixSocket;
use tabbify_process::{Clock, Importance, Tasks, chain, unix};
use tabbify_token::SecretKey;
use tokio::net::UnixListener;

use crate::checkpoints::Checkpoints;
use crate::data_dir::DataDir;

/// Name of the log's socket in the data directory.
pub(crate) const LOG_SOCKET: &str = "log.sock";
/// Name of the read model's socket in the data directory.
pub(crate) const READ_SOCKET: &str = "read.sock";

/// An open log and its consumers.
#[derive(Debug)]
pub(crate) struct Substrate {
    /// The log; closed last.
    pub(crate) log: Arc<Log>,
    /// The same, with what each tenant may append in a second.
    pub(crate) limited: Arc<RateLimited>,
    consumers: Arc<Consumers>,
    publisher: Publisher,
}

impl Substrate {
    /// Opens the log, which must be what was signed of it, and goes on signing it; `place` is where,
    /// if not in the data directory. The process stops if the writer ends before it was told to.
    pub(crate) async fn open(
        data: &DataDir,
        place: Option<&str>,
        root: &SecretKey,
        clock: &Arc<dyn Clock>,
        tasks: &Tasks,
    ) -> anyhow::Result<Self> {
        // Before the log is opened: what it must be.
        let checkpoints = Checkpoints::open(data, place, root).await?;
        let options = Options::new(Arc::clone(clock)).checkpoint(checkpoints.newest());
        let dir = data.log();
        let log = Arc::new(tokio::task::spawn_blocking(move || Log::open(&dir, options)).await??);
        let (written, stop) = (Arc::clone(&log), tasks.token());
        tasks.spawn("log writer", Importance::Essential, async move {
            tokio::select! {
                () = written.stopped() => {}
                () = stop.cancelled() => {}
            }
        });
        let publisher = checkpoints.start(&log, tasks);
        let engine: Arc<dyn LogEngine> = Arc::clone(&log) as _;
        let limited = Arc::new(RateLimited::new(engine, Rates::default()));
        let engine: Arc<dyn LogEngine> = Arc::clone(&limited) as _;
        let clock = Arc::clone(clock);
        let consumers = Consumers::open(&data.consumers(), engine, clock, tasks).await?;
        Ok(Self {
            log,
            limited,
            consumers: Arc::new(consumers),
            publisher,
        })
    }

    /// Closes the log and signs its end. The tasks have ended before.
    pub(crate) async fn close(&self) {
        self.log.close().await;
        if let Err(error) = self.publisher.finish().await {
            tracing::warn!(error = %chain(&error), "the end of the log is not signed");
        }
    }

    /// Serves both in the data directory to whoever has a token, until the tasks end.
    pub(crate) fn serve(
        &self,
        data: &DataDir,
        authorize: Arc<dyn Authorize>,
        tasks: &Tasks,
    ) -> anyhow::Result<()> {
        let listener = bind(data.path(), LOG_SOCKET)?;
        let engine: Arc<dyn LogEngine> = Arc::clone(&self.limited) as _;
        let service = Service::new(engine, Arc::clone(&self.consumers), authorize, tasks);
        tasks.spawn("log service", Importance::Essential, async move {
            service.serve_unix(listener).await;
        });
        Ok(())
    }
}

/// Where another process of this machine reaches the log of the data directory.
pub(crate) fn log_socket(data: &DataDir) -> UnixSocket {
    UnixSocket {
        directory: data.path().to_path_buf(),
        name: LOG_SOCKET.to_owned(),
    }
}

/// Binds a socket that only this user can open: the directory is private, and so is the socket.
/// Whoever calls holds the directory, so what an earlier process left behind is replaced.
pub(crate) fn bind(directory: &Path, name: &str) -> anyhow::Result<UnixListener> {
    let path = directory.join(name);
    let cannot = || format!("cannot listen on {}", path.display());
    let listener = unix::bind(directory, name).with_context(cannot)?;
    std::fs::set_permissions(&path, Permissions::from_mode(0o600)).with_context(cannot)?;
    Ok(listener)
}
