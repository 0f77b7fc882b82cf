//! From an entry file to something that can be instantiated for every request: the checks that
//! tell a developer what is wrong with the upload, in words that say what to do.

use std::path::Path;

use tabbify_api::runner::Failure;
use tabbify_types::ByteSize;
use tabbify_types::event::v1::{FailureReason, RunConfig};
use wasmtime::component::{Component, Linker};
use wasmtime::{Config, Engine, InstanceAllocationStrategy, PoolingAllocationConfig};
use wasmtime_wasi_http::p2::bindings::ProxyPre;

use super::aot::Cache;
use super::guest::Guest;
use super::memory::TABLE_ELEMENTS_MAX;

/// LIMIT: address space of one linear memory: all that 32-bit code can reach. What a guest may
/// really use is decided by `memory::Memory`.
const MEMORY_ADDRESSES: usize = 4 << 30;

/// LIMIT: core instances and tables that the pool keeps for each request. A component made from
/// Rust needs three; one that carries an interpreter needs more, and the pool is shared.
const PARTS_PER_REQUEST: u32 = 8;

/// LIMIT: linear memories that the pool keeps for each request.
const MEMORIES_PER_REQUEST: u32 = 2;

/// LIMIT: frames of a trap's backtrace.
const FRAMES_MAX: usize = 32;

/// What every request of an app must export.
const HANDLER: &str = "wasi:http/incoming-handler";

/// An engine for at most `requests_max` requests at a time.
pub(super) fn engine(requests_max: u32) -> wasmtime::Result<Engine> {
    let mut pool = PoolingAllocationConfig::new();
    let parts = requests_max.saturating_mul(PARTS_PER_REQUEST);
    pool.total_component_instances(requests_max)
        .total_core_instances(parts)
        .total_tables(parts)
        .total_memories(requests_max.saturating_mul(MEMORIES_PER_REQUEST))
        .total_stacks(requests_max)
        .max_memory_size(MEMORY_ADDRESSES)
        .table_elements(TABLE_ELEMENTS_MAX);
    let mut config = Config::new();
    config
        .epoch_interruption(true)
        .wasm_backtrace_max_frames(std::num::NonZeroUsize::new(FRAMES_MAX))
        .allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    Engine::new(&config)
}

/// The machine's compiled components, in their part of its `directory`. Without them, every start compiles.
pub(super) fn cache(directory: &Path) -> Option<Cache> {
    let opened = Cache::open(&directory.join("components"));
    opened
        .inspect_err(|error| tracing::warn!(%error, "compiled components are not kept"))
        .ok()
}

/// Compiles `entry`, unless `cache` has it, and links it with all that an app may import. Takes seconds of processor time
/// for a large one.
///
/// # Errors
/// Why it is not an app, for its developer.
pub(super) fn prepare(
    engine: &Engine,
    run: &RunConfig,
    entry: &[u8],
    cache: Option<&Cache>,
) -> Result<ProxyPre<Guest>, Failure> {
    let name = &run.entry;
    is_component(name, entry)?;
    let component = match cache {
        Some(cache) => cache
            .component(engine, entry)
            .map(|(component, _)| component),
        None => Component::new(engine, entry),
    };
    let component = component.map_err(|error| Failure {
        reason: FailureReason::NotAComponent,
        detail: format!("{name} is not a valid component: {error:#}"),
    })?;
    exports_handler(name, engine, &component)?;
    fits(name, &component, run.memory)?;
    let linker = linker(engine).map_err(|error| Failure {
        reason: FailureReason::Spawn,
        detail: format!("the platform's own interfaces cannot be linked: {error:#}"),
    })?;
    let wrong = |error: wasmtime::Error| Failure {
        reason: FailureReason::WrongWorld,
        detail: format!("{name} does not fit wasi:http/proxy 0.2: {error:#}"),
    };
    ProxyPre::new(linker.instantiate_pre(&component).map_err(wrong)?).map_err(wrong)
}

/// `wasi:http/proxy`, and `wasi:cli` with what belongs to it: the standard library of Rust and of
/// other languages imports it, and gets a world that is empty but for the app's volume.
fn linker(engine: &Engine) -> wasmtime::Result<Linker<Guest>> {
    let mut linker = Linker::new(engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker)?;
    Ok(linker)
}

fn is_component(name: &str, entry: &[u8]) -> Result<(), Failure> {
    let found = match entry {
        [b'\0', b'a', b's', b'm', _, _, 1, 0, ..] => return Ok(()),
        [b'\0', b'a', b's', b'm', ..] => "is a WebAssembly module, not a component",
        [] => "is empty",
        _ => "is not WebAssembly",
    };
    Err(Failure {
        reason: FailureReason::NotAComponent,
        detail: format!(
            "{name} {found}. In Rust: cargo build --release --target wasm32-wasip2, and the file \
             it makes under target/wasm32-wasip2/release"
        ),
    })
}

fn exports_handler(name: &str, engine: &Engine, component: &Component) -> Result<(), Failure> {
    let of_type = component.component_type();
    let mut exports: Vec<&str> = of_type.exports(engine).map(|(name, _)| name).collect();
    let is_handler = |export: &&str| export.split('@').next() == Some(HANDLER);
    if exports.iter().any(is_handler) {
        return Ok(());
    }
    exports.truncate(8);
    let exports = match exports.join(", ") {
        none if none.is_empty() => "nothing".to_owned(),
        some => some,
    };
    Err(Failure {
        reason: FailureReason::WrongWorld,
        detail: format!(
            "{name} does not export {HANDLER}@0.2: it exports {exports}. In Rust: \
             wasi::http::proxy::export!(…) in a library with crate-type = [\"cdylib\"]"
        ),
    })
}

/// Refuses now what every request would be refused for.
fn fits(name: &str, component: &Component, memory: ByteSize) -> Result<(), Failure> {
    const PAGE: u64 = 64 * 1024;
    let needs = component
        .resources_required()
        .and_then(|needs| needs.max_initial_memory_size)
        .map_or(0, |pages| pages.saturating_mul(PAGE));
    if needs <= memory.bytes() {
        return Ok(());
    }
    let needs = ByteSize(needs);
    Err(Failure {
        reason: FailureReason::Spawn,
        detail: format!(
            "{name} needs {needs} of memory to begin with and may have {memory}. Set [runtime] \
             memory = \"{needs}\" or more"
        ),
    })
}
