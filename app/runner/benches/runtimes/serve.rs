//! The server of ours: a component in the runner's runtime, behind the runner's HTTP, over TCP.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::anyhow;
use tabbify_process::{Importance, SystemClock, Tasks};
use tabbify_runner::output::Output;
use tabbify_runner::runtime::{self, Entry, Start};
use tabbify_runner::secrets::Secrets;
use tabbify_runner::server::Server;
use tabbify_runner::traffic::Traffic;
use tabbify_runner::wasm_http::Limits;
use tabbify_runner::wasm_http::neighbors::Neighbors;
use tabbify_types::event::v1::{InstanceRef, RunConfig, RuntimeKind};
use tabbify_types::{AppId, ByteSize, InstanceId};
use tokio::net::TcpListener;

use crate::Fallible;

/// As many threads as a runner has.
const WORKERS: usize = 2;

/// Serves until it is killed.
pub(crate) fn run(component: &Path, cache: &Path, port: u16) -> Fallible {
    let workers = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build()?;
    workers.block_on(serve(component, cache, port))
}

async fn serve(component: &Path, cache: &Path, port: u16) -> Fallible {
    let tasks = Tasks::new();
    let logs = tempfile::tempdir()?;
    let of = InstanceRef {
        app: AppId::mint(),
        instance: InstanceId(1),
    };
    let start = Start {
        run: RunConfig {
            runtime: RuntimeKind::WasmHttp,
            entry: "app.wasm".to_owned(),
            memory: ByteSize::mib(64),
            env: BTreeMap::new(),
            stop_timeout_ms: 1000,
            healthy_within_ms: 60_000,
            image: None,
            secrets: BTreeMap::new(),
            egress: Vec::new(),
            idle_after_ms: None,
            volume: None,
            ports: Vec::new(),
        },
        secrets: Secrets::default(),
        of,
        engine: None,
        microvms: None,
        cache: cache.to_owned(),
        directory: logs.path().to_owned(),
        entry: Entry::Memory(std::fs::read(component)?.into()),
        output: Output::open(logs.path(), of.instance, Arc::new(SystemClock), &tasks)?,
        tasks: tasks.clone(),
        limits: Limits::DEFAULT,
        neighbors: Neighbors::none(of.app),
        volume: None,
    };
    let runtime = runtime::start(start).await;
    let runtime = runtime.map_err(|failure| anyhow!("{failure:?}"))?;
    let server = Server::new(runtime, Traffic::new(Limits::DEFAULT.requests.into()));
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let connection = server.clone().connection(stream);
        tasks.spawn("connection", Importance::Detached, connection);
    }
}
