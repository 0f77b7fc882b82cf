//! What runs an app: one trait, one module per runtime.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use tabbify_api::attach::CommandLine;
use tabbify_api::runner::{Boot, Failure, MicroVms};
use tabbify_api::{BoxFuture, ErrorCode};
use tabbify_process::connect::Stream;
use tabbify_process::{Tasks, chain};
use tabbify_types::event::v1::{FailureReason, InstanceRef, RunConfig, RuntimeKind};
use tokio::sync::mpsc;

use crate::docker::Docker;
use crate::microvm::Microvm;
use crate::output::Output;
use crate::secrets::Secrets;
use crate::traffic::Permit;
use crate::wasm_http::neighbors::Neighbors;
use crate::wasm_http::{Limits, WasmHttp};

/// A body on its way through: frames as they come, never collected.
pub type Body = UnsyncBoxBody<Bytes, BodyError>;

/// Why a body ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The connection to the caller broke.
    #[error("the caller's connection broke")]
    Caller(#[source] hyper::Error),
    /// The app failed while it was sending.
    #[error("the app failed while it was sending: {0}")]
    App(String),
}

/// A request that the app did not answer. What the caller sees is in here, and safe to show.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct RequestError {
    /// For programs; its status is the answer's.
    pub code: ErrorCode,
    /// For people: one sentence.
    pub detail: String,
}

impl RequestError {
    pub(crate) fn new(code: ErrorCode, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        Self { code, detail }
    }
}

/// Runs an app.
///
/// Law:
/// 1. [`start`] returns a runtime that can serve, or says why there is none. It verifies nothing:
///    the entry it gets is what was published.
/// 2. [`serve`](Self::serve) may be called many times at once, and one request's failure, endless
///    loop or hunger for memory never disturbs another's. Its answer comes as soon as the app has
///    sent the head; both bodies then stream with back-pressure, holding a bounded part of them.
/// 3. An app that fails before the head gives a [`RequestError`]; after it, the body ends with a
///    [`BodyError`], never as if it were complete.
/// 4. Dropping the future or the body stops what the app does for that request. A body that was
///    taken to its end lets the app finish its work, for a bounded time.
/// 5. The permit is dropped when nothing of the request runs any more; then and only then does the
///    request count as served.
/// 6. [`ended`](Self::ended) returns only if what runs the app has ended by itself, with all that it printed
///    in the log. What ends with the runner never does.
/// 7. After [`stop`](Self::stop), nothing that was made for the app is left on the machine. A [`start`] that
///    failed has left nothing either; what one that was cut off has left, [`clean`] removes.
pub trait Runtime: Send + Sync + fmt::Debug {
    /// Answers one request.
    fn serve(
        &self,
        request: http::Request<Body>,
        permit: Permit,
    ) -> BoxFuture<'_, Result<http::Response<Body>, RequestError>>;

    /// Connects to a TCP port of the app.
    ///
    /// # Errors
    /// Those of connecting; a runtime whose apps have no ports says so.
    fn dial(&self, _port: u16) -> BoxFuture<'_, io::Result<Box<dyn Stream>>> {
        let error = io::Error::new(io::ErrorKind::Unsupported, "it has no ports");
        Box::pin(std::future::ready(Err(error)))
    }

    /// Runs a command beside the app, as its user, with its variables; its exit code. The command waits while
    /// nobody takes its output, and is ended when this is dropped, or the receiver of the output is.
    ///
    /// # Errors
    /// Why it was not run, for people.
    fn exec(
        &self,
        _command: Vec<String>,
        _output: mpsc::Sender<CommandLine>,
    ) -> BoxFuture<'_, Result<i64, String>> {
        let why = "a component has no commands: there is no program and no shell beside it";
        Box::pin(std::future::ready(Err(why.to_owned())))
    }

    /// Returns why what runs the app has ended.
    fn ended(&self) -> BoxFuture<'_, Failure> {
        Box::pin(std::future::pending())
    }

    /// Asks what runs the app to end, ends it after `grace`, and removes it.
    fn stop(&self, _grace: Duration) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}

/// What a version runs.
#[derive(Debug, Clone)]
pub enum Entry {
    /// A component, in memory.
    Memory(Bytes),
    /// An image, in a file of its own.
    File(PathBuf),
}

/// What a runtime starts from.
#[derive(Debug)]
pub struct Start {
    /// How to run it.
    pub run: RunConfig,
    /// What it gets of the vault, as variables beside those of `run`.
    pub secrets: Secrets,
    /// Which instance it is.
    pub of: InstanceRef,
    /// The container engine's address; without, the usual one.
    pub engine: Option<String>,
    /// What microVMs are made of; without, there are none.
    pub microvms: Option<MicroVms>,
    /// Where what is made of images is kept, for all runners of the machine.
    pub cache: PathBuf,
    /// The runner's directory: whatever makes something outside of the runner's process writes
    /// [`OUTSIDE_FILE`] there before it does.
    pub directory: PathBuf,
    /// The verified entry file.
    pub entry: Entry,
    /// Where the app's output goes.
    pub output: Output,
    /// Owner of what it spawns.
    pub tasks: Tasks,
    /// What one request may use.
    pub limits: Limits,
    /// Other apps, by name.
    pub neighbors: Neighbors,
    /// What it keeps, if `run` names a volume: for a component a directory that this process alone sees, for a
    /// container a block device with an ext4 or a directory, for a microVM a file with an ext4.
    pub volume: Option<PathBuf>,
}

/// Starts the runtime that the version asks for.
///
/// # Errors
/// Why this version cannot run, for the deploy to show.
pub async fn start(start: Start) -> Result<Arc<dyn Runtime>, Failure> {
    if start.run.runtime == RuntimeKind::WasmHttp && start.secrets.files().next().is_some() {
        return Err(Failure {
            reason: FailureReason::Secret,
            detail:
                "a component gets secrets as variables only: write VARIABLE = \"name\" in [secrets]"
                    .into(),
        });
    }
    match start.run.runtime {
        RuntimeKind::WasmHttp => Ok(Arc::new(Box::pin(WasmHttp::start(start)).await?)),
        RuntimeKind::Docker => Ok(Arc::new(Box::pin(Docker::start(start)).await?)),
        RuntimeKind::Firecracker => Ok(Arc::new(Box::pin(Microvm::start(start)).await?)),
    }
}

/// File in a runner's directory that says that something may be left of it elsewhere: in an engine.
pub const OUTSIDE_FILE: &str = "outside";

/// Removes what an instance has outside of its runner's process, which is dead or has none of it in use.
///
/// # Errors
/// Why something may be left.
pub async fn clean(directory: &Path, boot: &Boot) -> Result<(), String> {
    if !directory.join(OUTSIDE_FILE).exists() {
        return Ok(());
    }
    let (of, engine) = (boot.of, boot.engine.as_deref());
    match boot.run.runtime {
        RuntimeKind::WasmHttp => Ok(()),
        RuntimeKind::Firecracker => crate::microvm::reap(directory).await,
        RuntimeKind::Docker => {
            let reaped = crate::docker::reap(of, engine).await;
            reaped.map(drop).map_err(|error| chain(&error).to_string())
        }
    }
}
