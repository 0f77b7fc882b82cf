//! Why a guest ended, in two voices: to the caller, who may be anybody, and to the app's people.

use std::time::Duration;

use tabbify_api::ErrorCode;
use tabbify_types::ByteSize;
use wasmtime::{PoolConcurrencyLimitError, Trap, WasmBacktrace};
use wasmtime_wasi::I32Exit;

use super::memory::{Memory, Refused};
use crate::runtime::RequestError;

/// LIMIT: frames of a backtrace that are shown.
const FRAMES_SHOWN: usize = 8;

/// Raised in a guest that used up its processor time.
#[derive(Debug, thiserror::Error)]
#[error("the processor time without progress is used up")]
pub(super) struct CpuExceeded;

/// A failed request: what its caller gets and what the app's log gets.
#[derive(Debug)]
pub(super) struct Explained {
    pub(super) error: RequestError,
    pub(super) lines: Vec<String>,
}

impl Explained {
    fn new(code: ErrorCode, detail: &str, line: String) -> Self {
        Self {
            error: RequestError::new(code, detail),
            lines: vec![line],
        }
    }
}

/// Explains the error that ended a guest.
pub(super) fn explain(error: &wasmtime::Error, memory: &Memory, cpu: Duration) -> Explained {
    if error.is::<CpuExceeded>() {
        return Explained::new(
            ErrorCode::AppCpu,
            "The app used its processor time without sending or reading anything.",
            format!(
                "tabbify: stopped after {cpu:?} of computing without sending or reading a byte"
            ),
        );
    }
    if error.is::<PoolConcurrencyLimitError>() {
        return Explained::new(
            ErrorCode::Unavailable,
            "The app is serving as many requests as it can. Try again.",
            format!("tabbify: refused a request: {error:#}"),
        );
    }
    if let Some(refused) = memory.refused() {
        return out_of_memory(refused, memory.max(), error);
    }
    if let Some(I32Exit(code)) = error.downcast_ref() {
        return Explained::new(
            ErrorCode::AppNoResponse,
            "The app ended without a whole answer.",
            format!("tabbify: the app exited with code {code} instead of answering"),
        );
    }
    trapped(error)
}

/// The guest returned, and left its answer incomplete.
pub(super) fn unfinished() -> Explained {
    Explained::new(
        ErrorCode::AppTrapped,
        "The app did not complete its answer.",
        "tabbify: the app returned without finishing its response body".to_owned(),
    )
}

/// The host side of the guest failed.
pub(super) fn internal() -> RequestError {
    RequestError::new(ErrorCode::Internal, "The app's runtime failed.")
}

fn out_of_memory(refused: Refused, max: u64, error: &wasmtime::Error) -> Explained {
    let max = ByteSize(max);
    let line = match refused {
        Refused::Own => format!(
            "tabbify: out of memory: a request may have {max}. Set [runtime] memory to more"
        ),
        Refused::Shared => format!(
            "tabbify: out of memory: all requests together had as much as they may, at {max} each"
        ),
    };
    let mut explained = Explained::new(
        ErrorCode::AppMemory,
        "The app wanted more memory than it may have.",
        line,
    );
    explained.lines.extend(backtrace(error));
    explained
}

fn trapped(error: &wasmtime::Error) -> Explained {
    let why = match error.downcast_ref::<Trap>() {
        Some(trap) => trap.to_string(),
        None => error.root_cause().to_string(),
    };
    let why = why.strip_prefix("wasm trap: ").unwrap_or(&why);
    let mut explained = Explained::new(
        ErrorCode::AppTrapped,
        "The app failed. Its log says why.",
        format!("trap: {why}"),
    );
    explained.lines.extend(backtrace(error));
    explained
}

/// The innermost frames of the app's own code.
fn backtrace(error: &wasmtime::Error) -> impl Iterator<Item = String> + '_ {
    let frames = error
        .downcast_ref::<WasmBacktrace>()
        .map_or(&[][..], WasmBacktrace::frames);
    let names = frames.iter().filter_map(|frame| frame.func_name());
    let names = names.map(|name| format!("{:#}", rustc_demangle::demangle(name)));
    names
        .filter(|name| !is_machinery(name))
        .take(FRAMES_SHOWN)
        .map(|name| format!("  in {name}"))
}

/// Whether a frame belongs to what every panic goes through.
fn is_machinery(name: &str) -> bool {
    const OF: [&str; 5] = ["std::", "core::", "alloc::", "__rust", "abort"];
    OF.iter().any(|prefix| name.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_machinery_is_not_shown() {
        for (mangled, shown) in [
            ("_RNvNtCshXfaRvt2tfW_3std7process5abort", false),
            ("_RNvCsfLfy6EI15iL_7___rustc10rust_panic", false),
            ("abort", false),
            ("_ZN4core9panicking9panic_fmt17h0123456789abcdefE", false),
            ("_ZN4shop6handle17h0123456789abcdefE", true),
            ("wasi:http/incoming-handler@0.2.0#handle", true),
            ("PyEval_EvalCode", true),
        ] {
            let name = format!("{:#}", rustc_demangle::demangle(mangled));
            assert_eq!(!is_machinery(&name), shown, "{name}");
        }
    }
}
