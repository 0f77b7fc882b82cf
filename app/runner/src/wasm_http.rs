//! The wasm-http runtime: a component with `wasi:http/incoming-handler`, a fresh instance for each
//! request.
//!
//! ```text
//! request ─▶ serve ─┬─▶ task `guest`: Store<Guest>, metered ([`meter`]), ticked ([`epoch`])
//!                   │      │ head, then body chunks, then a verdict
//! response ◀────────┴──────┘
//! ```
//! The guest's task and the response hold each other by three threads: the body's channel, the
//! `answered` signal (the caller has everything; or has gone, if it is dropped), and the verdict,
//! which is set before the body can end.

mod aot;
mod body;
mod compile;
mod epoch;
mod exchange;
mod failure;
mod guest;
mod memory;
mod meter;
pub mod neighbors;
mod world;

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http_body_util::BodyExt as _;
use tabbify_api::runner::Failure;
use tabbify_api::{BoxFuture, ErrorCode};
use tabbify_egress::Client;
use tabbify_process::{Importance, Tasks};
use tabbify_types::event::v1::{FailureReason, RunConfig};
use tokio::sync::oneshot;
use wasmtime::component::Resource;
use wasmtime::{Store, UpdateDeadline};
use wasmtime_wasi_http::WasiHttpView as _;
use wasmtime_wasi_http::p2::bindings::ProxyPre;
use wasmtime_wasi_http::p2::bindings::http::types::{ErrorCode as GuestError, Scheme};
use wasmtime_wasi_http::p2::body::HyperOutgoingBody;
use wasmtime_wasi_http::p2::types::{HostIncomingRequest, HostResponseOutparam};

use self::body::{FromGuest, Watched};
use self::epoch::Ticker;
use self::failure::{CpuExceeded, Explained};
use self::guest::{Egress, Guest};
use self::memory::{Memory, Pot};
use self::meter::{Meter, Metered};
use self::neighbors::Neighbors;
use crate::egress;
use crate::output::Output;
use crate::runtime::{Body, Entry, RequestError, Runtime, Start};
use crate::secrets::Secrets;
use crate::traffic::Permit;

/// LIMIT: memory, in bytes, that a guest may ask the host to hold for one call.
const HOSTCALL_LEN_MAX: usize = 1 << 20;

/// What one request may use, besides memory, which its manifest says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Requests at a time.
    pub requests: u32,
    /// Processor time without a byte of either body moving.
    pub cpu: Duration,
    /// How long a guest may go on after its answer is out.
    pub run_on: Duration,
}

impl Limits {
    /// LIMIT: what the runner grants.
    pub const DEFAULT: Self = Self {
        requests: 256,
        cpu: Duration::from_secs(5),
        run_on: Duration::from_secs(30),
    };
}

/// How a guest ended; empty while it runs.
type Verdict = Arc<OnceLock<Result<(), RequestError>>>;

fn is_failed(verdict: &Verdict) -> bool {
    matches!(verdict.get(), Some(Err(_)))
}

type Head = Result<hyper::Response<HyperOutgoingBody>, GuestError>;

/// A compiled app.
pub struct WasmHttp {
    app: ProxyPre<Guest>,
    run: RunConfig,
    /// The directory of the app's volume, and where the app sees it.
    volume: Option<(PathBuf, String)>,
    secrets: Secrets,
    output: Output,
    tasks: Tasks,
    limits: Limits,
    neighbors: Neighbors,
    client: Client,
    pot: Arc<Pot>,
    ticker: Ticker,
}

impl std::fmt::Debug for WasmHttp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WasmHttp")
            .field("entry", &self.run.entry)
            .finish_non_exhaustive()
    }
}

impl WasmHttp {
    /// Compiles the app, on a thread where that may take long.
    ///
    /// # Errors
    /// Why it is not an app, or cannot run here.
    pub async fn start(start: Start) -> Result<Self, Failure> {
        let here = |detail: String| Failure {
            reason: FailureReason::Spawn,
            detail,
        };
        let client = Client::new(egress::guard(&start.run.egress)?);
        let Start {
            run,
            entry,
            limits,
            cache,
            volume,
            ..
        } = start;
        let Entry::Memory(entry) = entry else {
            return Err(here("a component is compiled in memory".to_owned()));
        };
        let compiling = tokio::task::spawn_blocking(move || {
            let engine = compile::engine(limits.requests)
                .map_err(|error| here(format!("wasm cannot run on this machine: {error:#}")))?;
            let cache = compile::cache(&cache);
            let app = compile::prepare(&engine, &run, &entry, cache.as_ref())?;
            let ticker = Ticker::start(&engine)
                .map_err(|error| here(format!("no thread for the epoch: {error}")))?;
            Ok((app, ticker, run))
        });
        let (app, ticker, run) = compiling
            .await
            .map_err(|panic| here(format!("the compiler failed: {panic}")))??;
        Ok(Self {
            app,
            pot: Arc::new(Pot::new(run.memory.bytes())),
            volume: volume.zip(run.volume.as_ref().map(|used| used.mount.clone())),
            run,
            secrets: start.secrets,
            output: start.output,
            tasks: start.tasks,
            limits,
            neighbors: start.neighbors,
            client,
            ticker,
        })
    }

    async fn answer(
        &self,
        request: http::Request<Body>,
        permit: Permit,
    ) -> Result<http::Response<Body>, RequestError> {
        let permit = Arc::new(permit);
        let line = format!("{} {}", request.method(), request.uri().path());
        let bodiless_request = request.method() == http::Method::HEAD;
        let meter = Arc::new(Meter::new(self.limits.cpu));
        let mut store = self.store(&meter)?;
        let (head, head_there) = oneshot::channel();
        let handles = hand_over(&mut store, request, &meter, head)?;
        let (answered, caller) = oneshot::channel();
        let verdict = Verdict::default();
        let guest = self.run(store, handles, Arc::clone(&verdict), caller, &meter);
        let held = Arc::clone(&permit);
        self.tasks.spawn("guest", Importance::Detached, async move {
            guest.await;
            drop(held);
        });

        let response = match head_there.await {
            Ok(Ok(response)) => match verdict.get() {
                // It failed right after the head: there is still time to say so.
                Some(Err(error)) => return Err(error.clone()),
                _ => response,
            },
            Ok(Err(code)) => {
                let why = format!("tabbify: {line} was answered with the error {code:?}");
                return Err(self.unanswered(&why).await);
            }
            // The guest is gone and with it the other end; or it threw its answer away.
            Err(_) => match verdict.get() {
                Some(Err(error)) => return Err(error.clone()),
                _ => {
                    let why = format!("tabbify: {line} was not answered");
                    return Err(self.unanswered(&why).await);
                }
            },
        };
        let status = response.status();
        if status.is_informational() {
            let why = format!("tabbify: {line} was answered with {status}, which is not final");
            return Err(self.unanswered(&why).await);
        }
        let bodiless = bodiless_request || matches!(status.as_u16(), 204 | 304);
        let (head, body) = response.into_parts();
        let expected = if bodiless {
            Some(0)
        } else {
            content_length(&head.headers)
        };
        let body = FromGuest {
            body,
            meter,
            verdict,
            expected,
            ended: false,
            answered: Some(answered),
            _permit: permit,
        };
        Ok(http::Response::from_parts(head, body.boxed_unsync()))
    }

    async fn unanswered(&self, line: &str) -> RequestError {
        self.output.platform(line).await;
        RequestError::new(ErrorCode::AppNoResponse, "The app ended without an answer.")
    }

    /// A store with its limits, in which nothing runs yet.
    fn store(&self, meter: &Arc<Meter>) -> Result<Store<Guest>, RequestError> {
        let memory = Memory::new(Arc::clone(&self.pot), self.run.memory.bytes());
        let egress = Egress::new(&self.output, &self.neighbors, &self.client, meter);
        let variables = self.run.env.iter();
        let variables = variables.map(|(name, value)| (name.as_str(), value.as_str()));
        let variables = variables.chain(self.secrets.variables());
        let volume = self.volume.as_ref();
        let volume = volume.map(|(directory, mount)| (directory.as_path(), mount.as_str()));
        let guest = Guest::new(variables, volume, &self.output, memory, egress);
        let guest = guest.map_err(|error| {
            tracing::error!(
                error = format!("{error:#}"),
                "the app's volume cannot be given"
            );
            failure::internal()
        })?;
        let mut store = Store::new(self.app.engine(), guest);
        store.limiter(|guest| &mut guest.memory);
        store.set_hostcall_fuel(HOSTCALL_LEN_MAX);
        let meter = Arc::clone(meter);
        store.set_epoch_deadline(1);
        store.epoch_deadline_callback(move |_| {
            if meter.exceeded() {
                return Err(CpuExceeded.into());
            }
            let turn = Box::pin(tokio::task::yield_now());
            Ok(UpdateDeadline::YieldCustom(1, turn))
        });
        Ok(store)
    }

    /// Runs a guest to its end, or until its caller has gone.
    fn run(
        &self,
        mut store: Store<Guest>,
        handles: Handles,
        verdict: Verdict,
        caller: oneshot::Receiver<()>,
        meter: &Arc<Meter>,
    ) -> impl Future<Output = ()> + Send + 'static {
        let (app, output, limits) = (self.app.clone(), self.output.clone(), self.limits);
        let ticking = self.ticker.begin();
        let guest = async move {
            // However this ends, a verdict is there before the store goes and closes the body:
            // what is made in here is dropped before what was moved into here.
            let verdict = SetOnDrop(verdict);
            let called = call(&app, &mut store, handles).await;
            let explained = match called {
                Ok(()) if !store.data_mut().holds_unfinished_body() => None,
                Ok(()) => Some(failure::unfinished()),
                Err(error) => {
                    let memory = &store.data().memory;
                    Some(failure::explain(&error, memory, limits.cpu))
                }
            };
            for printer in store.data().printers() {
                printer.finish().await;
            }
            let (ended, lines) = match explained {
                None => (Ok(()), Vec::new()),
                Some(Explained { error, lines }) => (Err(error), lines),
            };
            for line in lines {
                output.platform(&line).await;
            }
            // Nobody else sets it while this runs.
            let _ = verdict.0.set(ended);
        };
        let guest = Metered::new(Arc::clone(meter), guest);
        async move {
            tokio::select! {
                () = guest => {}
                () = gone(caller, limits.run_on) => {}
            }
            drop(ticking);
        }
    }
}

impl Runtime for WasmHttp {
    fn serve(
        &self,
        request: http::Request<Body>,
        permit: Permit,
    ) -> BoxFuture<'_, Result<http::Response<Body>, RequestError>> {
        Box::pin(self.answer(request, permit))
    }
}

/// What the guest's handler is called with.
type Handles = (
    Resource<HostIncomingRequest>,
    Resource<HostResponseOutparam>,
);

fn hand_over(
    store: &mut Store<Guest>,
    request: http::Request<Body>,
    meter: &Arc<Meter>,
    head: oneshot::Sender<Head>,
) -> Result<Handles, RequestError> {
    let meter = Arc::clone(meter);
    let request = request.map(|body| Watched { body, meter });
    let mut http = store.data_mut().http();
    let request = http
        .new_incoming_request(Scheme::Http, request)
        .map_err(|error| RequestError::new(ErrorCode::BadRequest, format!("{error}.")))?;
    let out = http.new_response_outparam(head).map_err(|error| {
        tracing::error!(error = format!("{error:#}"), "a request cannot be prepared");
        failure::internal()
    })?;
    Ok((request, out))
}

async fn call(
    app: &ProxyPre<Guest>,
    store: &mut Store<Guest>,
    (request, out): Handles,
) -> wasmtime::Result<()> {
    let proxy = app.instantiate_async(&mut *store).await?;
    let handler = proxy.wasi_http_incoming_handler();
    handler.call_handle(store, request, out).await
}

/// Returns when the caller has gone, or has had everything for `run_on`.
async fn gone(caller: oneshot::Receiver<()>, run_on: Duration) {
    if caller.await.is_ok() {
        tokio::time::sleep(run_on).await;
    }
}

fn content_length(headers: &http::HeaderMap) -> Option<u64> {
    let value = headers.get(http::header::CONTENT_LENGTH)?;
    value.to_str().ok()?.parse().ok()
}

/// Leaves a verdict where a panic left none.
struct SetOnDrop(Verdict);

impl Drop for SetOnDrop {
    fn drop(&mut self) {
        self.0.get_or_init(|| Err(failure::internal()));
    }
}
