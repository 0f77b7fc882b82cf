//! `tabbify read-node`: the read model as a process of its own, beside a transaction-node or a
//! `tabbify up` of the same data directory.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use tabbify_api::log::EventLog;
use tabbify_auth::Checker;
use tabbify_log::RemoteLog;
use tabbify_process::connect::Bearer;
use tabbify_process::{Clock, Importance, SystemClock, Tasks, files, signals};
use tabbify_read::{ReadNode, Service};

use crate::authorize::Tokens;
use crate::data_dir::DataDir;
use crate::role::{self, Arguments};
use crate::substrate::{LOG_SOCKET, READ_SOCKET, bind, log_socket};

/// Folds and answers until a signal.
pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let Config { read_node } = arguments.config()?;
    let data = arguments.data_dir(read_node.data_dir)?;
    let tasks = Tasks::new();
    signals::stop_on_signals(&tasks)?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let log: Arc<dyn EventLog> = Arc::new(connect(&data, "read-node", &tasks).await?);
    let snapshots = data.snapshots().join("read-node");
    let (events, time) = (Arc::clone(&log), Arc::clone(&clock));
    let checker = Checker::start(events, Some(&snapshots), time, &tasks).await?;
    let node = start(&data, log, &clock, &tasks).await?;
    serve(&data, node, Tokens::new(checker), &tasks)?;
    let socket = data.path().join(READ_SOCKET);
    role::say(&format!("read-node · {}\n", socket.display()));
    role::until_stopped(&tasks).await
}

/// Starts folding; gives what can be asked.
pub(crate) async fn start(
    data: &DataDir,
    log: Arc<dyn EventLog>,
    clock: &Arc<dyn Clock>,
    tasks: &Tasks,
) -> anyhow::Result<ReadNode> {
    let config = tabbify_read::Config { dir: data.read() };
    Ok(ReadNode::start(config, log, Arc::clone(clock), tasks).await?)
}

/// Answers in the data directory to whoever has a token, until the tasks end; gives the service, which
/// may be served elsewhere too.
pub(crate) fn serve(
    data: &DataDir,
    node: ReadNode,
    tokens: Tokens,
    tasks: &Tasks,
) -> anyhow::Result<Service> {
    let listener = bind(data.path(), READ_SOCKET)?;
    let service = Service::new(Arc::new(node), Arc::new(tokens), tasks);
    let local = service.clone();
    tasks.spawn("read service", Importance::Detached, async move {
        local.serve_unix(listener).await;
    });
    Ok(service)
}

/// The log that a transaction-node or `tabbify up` of the data directory serves, as `role` may use it.
pub(crate) async fn connect(
    data: &DataDir,
    role: &str,
    tasks: &Tasks,
) -> anyhow::Result<RemoteLog> {
    let connected =
        RemoteLog::connect(Arc::new(log_socket(data)), bearer(data.token(role)), tasks).await;
    connected.with_context(|| {
        let dir = data.path().display();
        format!(
            "cannot use the log at {dir}/{LOG_SOCKET} as {role}. \
             Is tabbify transaction-node running? Is {} of today? \
             Run: tabbify token {role} --data-dir {dir}",
            data.token(role).display()
        )
    })
}

/// The token in a file, read again for each request, since tokens end.
fn bearer(path: PathBuf) -> Bearer {
    Arc::new(move || token(&path).unwrap_or_default())
}

fn token(path: &Path) -> Option<String> {
    let read = files::read_secret(path).map_err(|error| {
        tracing::warn!(%error, token = %path.display(), "no token for the log");
    });
    let text = String::from_utf8(read.ok()?).ok()?;
    Some(text.trim().to_owned())
}

/// The file: `[read_node]` alone.
#[derive(Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    read_node: Section,
}

/// `[read_node]`.
#[derive(Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Section {
    /// The data directory. Default `$XDG_DATA_HOME/tabbify`.
    data_dir: Option<PathBuf>,
}
