//! What one instance of the app has: its memory, its resources, its output, and the way out that it may take.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use tabbify_api::logs::Stream;
use tabbify_egress::Client;
use wasmtime::component::ResourceTable;
use wasmtime_wasi::filesystem::FsPerms;
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_http::p2::body::HostOutgoingBody;
use wasmtime_wasi_http::{
    Error, RequestOptions, WasiBody, WasiHttpCtx, WasiHttpCtxView, WasiHttpHooks, WasiHttpView,
};

use super::exchange::{Answered, NotSent};
use super::memory::Memory;
use super::meter::Meter;
use super::neighbors::{self, Neighbors};
use super::world;
use crate::output::{Output, Printer};

/// LIMIT: resources (streams, bodies, headers, …) that a guest may hold at a time. Each has a part
/// outside the guest's own memory.
const RESOURCES_MAX: usize = 1024;

/// LIMIT: headers that a guest makes, in bytes, for each set of them.
const FIELDS_LEN_MAX: usize = 64 * 1024;

/// LIMIT: bytes of a response body in one piece; two pieces wait between guest and connection.
const CHUNK_LEN_MAX: usize = 32 * 1024;

/// LIMIT: random bytes that a guest may ask for at a time.
const RANDOM_LEN_MAX: u64 = 1 << 20;

/// The state of one instance, in its store.
pub(super) struct Guest {
    wasi: WasiCtx,
    http: WasiHttpCtx,
    table: ResourceTable,
    egress: Egress,
    printers: [Printer; 2],
    pub(super) memory: Memory,
}

impl fmt::Debug for Guest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guest")
            .field("memory", &self.memory)
            .finish_non_exhaustive()
    }
}

impl Guest {
    /// An instance with these variables, no arguments, no sockets, no names, and no files but those of the
    /// app's volume: a directory, and where the app sees it.
    ///
    /// # Errors
    /// If the directory cannot be opened.
    pub(super) fn new<'a>(
        variables: impl Iterator<Item = (&'a str, &'a str)>,
        volume: Option<(&Path, &str)>,
        output: &Output,
        memory: Memory,
        egress: Egress,
    ) -> wasmtime::Result<Self> {
        let printers = [Stream::Stdout, Stream::Stderr].map(|stream| output.printer(stream));
        let mut wasi = WasiCtx::builder();
        wasi.stdout(printers[0].clone())
            .stderr(printers[1].clone())
            .allow_tcp(false)
            .allow_udp(false)
            .allow_ip_name_lookup(false)
            .max_random_size(RANDOM_LEN_MAX);
        for (name, value) in variables {
            wasi.env(name, value);
        }
        if let Some((directory, mount)) = volume {
            wasi.preopened_dir(directory, mount, FsPerms::ReadWrite)?;
        }
        let mut http = WasiHttpCtx::new();
        http.set_field_size_limit(FIELDS_LEN_MAX);
        let mut table = ResourceTable::new();
        table.set_max_capacity(RESOURCES_MAX);
        Ok(Self {
            wasi: wasi.build(),
            http,
            table,
            egress,
            printers,
            memory,
        })
    }

    /// Whether it began a response body and did not say that it is complete.
    pub(super) fn holds_unfinished_body(&mut self) -> bool {
        let mut entries = self.table.iter_mut();
        entries.any(|entry| entry.is::<HostOutgoingBody>())
    }

    /// What it prints to, for the last line.
    pub(super) fn printers(&self) -> [Printer; 2] {
        self.printers.clone()
    }
}

impl WasiView for Guest {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView {
            ctx: &mut self.wasi,
            table: &mut self.table,
        }
    }
}

impl WasiHttpView for Guest {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView {
            hooks: &mut self.egress,
            table: &mut self.table,
            ctx: &mut self.http,
        }
    }
}

/// The way out: to other apps, by name, and to the world as `[network] egress` says.
#[derive(Clone)]
pub(super) struct Egress {
    output: Output,
    neighbors: Neighbors,
    client: Client,
    meter: Arc<Meter>,
}

impl Egress {
    /// For one instance, whose `meter` sees what moves.
    pub(super) fn new(
        output: &Output,
        neighbors: &Neighbors,
        client: &Client,
        meter: &Arc<Meter>,
    ) -> Self {
        Self {
            output: output.clone(),
            neighbors: neighbors.clone(),
            client: client.clone(),
            meter: Arc::clone(meter),
        }
    }

    async fn send(self, request: http::Request<WasiBody>, options: Option<RequestOptions>) -> Sent {
        let sent = if neighbors::is_meant(request.uri()) {
            let host = request.uri().authority().map_or("", |host| host.as_str());
            let host = host.to_owned();
            let sent = self.neighbors.send(request, options, self.meter).await;
            sent.map_err(|not| NotSent {
                why: format!("tabbify: {host} was not reached: {}", not.why),
                ..not
            })
        } else {
            world::send(&self.client, request, options, self.meter).await
        };
        match sent {
            Ok(answered) => Ok(answered),
            Err(NotSent { code, why }) => {
                self.output.platform(&why).await;
                Err(code)
            }
        }
    }
}

type Sent = wasmtime_wasi_http::Result<Answered>;

impl WasiHttpHooks for Egress {
    fn send_request(
        &mut self,
        request: http::Request<WasiBody>,
        options: Option<RequestOptions>,
        _: Box<dyn Future<Output = Result<(), Error>> + Send>,
    ) -> Box<dyn Future<Output = Sent> + Send> {
        Box::new(self.clone().send(request, options))
    }

    fn p2_outgoing_body_buffer_chunks(&mut self) -> usize {
        1
    }

    fn p2_outgoing_body_chunk_size(&mut self) -> usize {
        CHUNK_LEN_MAX
    }
}
