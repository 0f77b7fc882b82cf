//! The substrate of this process: the log, its consumers, and both on a unix socket for other
//! processes of this machine.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use tabbify_api::log::{Authorize, EventLog, LogEngine, LogScope};
use tabbify_log::{Consumers, Log, LogId, Options, Publisher, RateLimited, Service, postgres};
use tabbify_process::connect::UnixSocket;
use tabbify_process::{Clock, Importance, Tasks, chain, unix};
use tabbify_token::SecretKey;
use tabbify_types::Position;
use tokio::net::UnixListener;

use crate::checkpoints::Checkpoints;
use crate::data_dir::DataDir;
use crate::log_settings::Settings;

/// Name of the log's socket in the data directory.
pub(crate) const LOG_SOCKET: &str = "log.sock";
/// Name of auth's socket in the data directory.
pub(crate) const AUTH_SOCKET: &str = "auth.sock";
/// Name of the coordinator's socket in the data directory.
pub(crate) const COORDINATOR_SOCKET: &str = "coordinator.sock";
/// Name of the read model's socket in the data directory.
pub(crate) const READ_SOCKET: &str = "read.sock";

/// The log, in either engine. Clones are the same log.
#[derive(Debug, Clone)]
pub(crate) enum Engine {
    /// In the data directory.
    Embedded(Arc<Log>),
    /// In a database, led by this process.
    Postgres(Arc<postgres::Engine>),
}

impl Engine {
    /// As what is built on a log takes it.
    fn as_log(&self) -> Arc<dyn LogEngine> {
        match self {
            Self::Embedded(log) => Arc::clone(log) as _,
            Self::Postgres(engine) => Arc::clone(engine) as _,
        }
    }

    /// The log as `scope` may use it.
    pub(crate) fn client(&self, scope: LogScope) -> Arc<dyn EventLog> {
        match self {
            Self::Embedded(log) => log.client(scope),
            Self::Postgres(engine) => engine.client(scope),
        }
    }

    pub(crate) fn log_id(&self) -> LogId {
        match self {
            Self::Embedded(log) => log.log_id(),
            Self::Postgres(engine) => engine.log_id(),
        }
    }

    pub(crate) fn head(&self) -> Position {
        match self {
            Self::Embedded(log) => log.head(),
            Self::Postgres(engine) => engine.head(),
        }
    }

    async fn stopped(&self) {
        match self {
            Self::Embedded(log) => log.stopped().await,
            Self::Postgres(engine) => engine.stopped().await,
        }
    }

    async fn close(&self) {
        match self {
            Self::Embedded(log) => log.close().await,
            Self::Postgres(engine) => engine.close().await,
        }
    }
}

/// An open log and its consumers.
#[derive(Debug)]
pub(crate) struct Substrate {
    /// The log; closed last.
    pub(crate) log: Engine,
    /// The same, with what each tenant may append in a second.
    pub(crate) limited: Arc<RateLimited>,
    consumers: Arc<Consumers>,
    /// Signs the embedded log; a database has its replicas for a witness.
    publisher: Option<Publisher>,
}

impl Substrate {
    /// Opens the log that `settings` name. The embedded one must be what was signed of it, and goes on
    /// being signed; one in PostgreSQL is led from here on. The process stops if the writer ends before
    /// it was told to.
    pub(crate) async fn open(
        data: &DataDir,
        settings: &Settings,
        root: &SecretKey,
        clock: &Arc<dyn Clock>,
        tasks: &Tasks,
    ) -> anyhow::Result<Self> {
        let (log, publisher) = match &settings.postgres {
            None => {
                let (log, publisher) = embedded(data, settings, root, clock, tasks).await?;
                (Engine::Embedded(log), Some(publisher))
            }
            Some(postgres) => {
                settings.refuse_beside_postgres()?;
                let options = postgres.options(Arc::clone(clock))?;
                let engine = postgres::Engine::lead(options).await?;
                (Engine::Postgres(Arc::new(engine)), None)
            }
        };
        let (written, stop) = (log.clone(), tasks.token());
        tasks.spawn("log writer", Importance::Essential, async move {
            tokio::select! {
                () = written.stopped() => {}
                () = stop.cancelled() => {}
            }
        });
        let limited = Arc::new(RateLimited::new(log.as_log(), settings.rates()));
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
        let Some(publisher) = &self.publisher else {
            return;
        };
        if let Err(error) = publisher.finish().await {
            tracing::warn!(error = %chain(&error), "the end of the log is not signed");
        }
    }

    /// Serves both in the data directory to whoever has a token, until the tasks end; gives the service,
    /// which may be served elsewhere too.
    pub(crate) fn serve(
        &self,
        data: &DataDir,
        authorize: Arc<dyn Authorize>,
        tasks: &Tasks,
    ) -> anyhow::Result<Service> {
        let listener = bind(data.path(), LOG_SOCKET)?;
        let engine: Arc<dyn LogEngine> = Arc::clone(&self.limited) as _;
        let service = Service::new(engine, Arc::clone(&self.consumers), authorize, tasks);
        let local = service.clone();
        tasks.spawn("log service", Importance::Essential, async move {
            local.serve_unix(listener).await;
        });
        Ok(service)
    }
}

/// Opens the log in the data directory, and signs it from now on.
async fn embedded(
    data: &DataDir,
    settings: &Settings,
    root: &SecretKey,
    clock: &Arc<dyn Clock>,
    tasks: &Tasks,
) -> anyhow::Result<(Arc<Log>, Publisher)> {
    // Before the log is opened: what it must be.
    let checkpoints = Checkpoints::open(data, settings, root).await?;
    let options = Options::new(Arc::clone(clock))
        .checkpoint(checkpoints.newest())
        .cold(settings.cold(data)?);
    let dir = data.log();
    let log = tokio::task::spawn_blocking(move || Log::open(&dir, options));
    let log = Arc::new(log.await??);
    let publisher = checkpoints.start(&log, tasks);
    Ok((log, publisher))
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
