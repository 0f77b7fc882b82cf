//! What runs an app: one trait, one module per runtime.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use tabbify_api::runner::Failure;
use tabbify_api::{BoxFuture, ErrorCode};
use tabbify_process::Tasks;
use tabbify_types::event::v1::{FailureReason, RunConfig, RuntimeKind};

use crate::output::Output;
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
pub trait Runtime: Send + Sync + fmt::Debug {
    /// Answers one request.
    fn serve(
        &self,
        request: http::Request<Body>,
        permit: Permit,
    ) -> BoxFuture<'_, Result<http::Response<Body>, RequestError>>;
}

/// What a runtime starts from.
#[derive(Debug)]
pub struct Start {
    /// How to run it.
    pub run: RunConfig,
    /// The verified entry file.
    pub entry: Bytes,
    /// Where the app's output goes.
    pub output: Output,
    /// Owner of what it spawns.
    pub tasks: Tasks,
    /// What one request may use.
    pub limits: Limits,
    /// Other apps, by name.
    pub neighbors: Neighbors,
}

/// Starts the runtime that the version asks for.
///
/// # Errors
/// Why this version cannot run, for the deploy to show.
pub async fn start(start: Start) -> Result<Arc<dyn Runtime>, Failure> {
    match start.run.runtime {
        RuntimeKind::WasmHttp => Ok(Arc::new(WasmHttp::start(start).await?)),
        RuntimeKind::Docker | RuntimeKind::Firecracker => Err(Failure {
            reason: FailureReason::Spawn,
            detail: "this runner runs wasm-http only. Set [runtime] type = \"wasm-http\"".into(),
        }),
    }
}
