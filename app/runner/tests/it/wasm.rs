//! Builds the examples and fixtures for `wasm32-wasip2`, each once.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, ensure};
use bytes::Bytes;

/// A package that makes a component.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Package {
    Hello,
    Stream,
    Trap,
    Loop,
    Memory,
    NoHandler,
    Ask,
    Disk,
    Conform,
}

impl Package {
    const fn paths(self) -> (&'static str, &'static str) {
        match self {
            Self::Hello => ("examples/hello-wasm", "hello_wasm.wasm"),
            Self::Stream => ("examples/stream-wasm", "stream_wasm.wasm"),
            Self::Trap => ("testing/fixtures/wasm/trap", "trap_wasm.wasm"),
            Self::Loop => ("testing/fixtures/wasm/loop", "loop_wasm.wasm"),
            Self::Memory => ("testing/fixtures/wasm/memory", "memory_wasm.wasm"),
            Self::Ask => ("testing/fixtures/wasm/ask", "ask_wasm.wasm"),
            Self::Disk => ("testing/fixtures/wasm/disk", "disk_wasm.wasm"),
            Self::Conform => ("testing/fixtures/wasm/conform", "conform_wasm.wasm"),
            Self::NoHandler => ("testing/fixtures/wasm/no-handler", "no-handler-wasm.wasm"),
        }
    }
}

/// The component that `package` makes.
pub(crate) fn component(package: Package) -> anyhow::Result<Bytes> {
    static BUILT: Mutex<Option<HashMap<Package, Bytes>>> = Mutex::new(None);
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    let built = built.get_or_insert_default();
    if let Some(bytes) = built.get(&package) {
        return Ok(bytes.clone());
    }
    let bytes = build(package)?;
    built.insert(package, bytes.clone());
    Ok(bytes)
}

fn build(package: Package) -> anyhow::Result<Bytes> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let (directory, file) = package.paths();
    // Shared, so that what they depend on is built once.
    let target: PathBuf = root.join("target/wasm-fixtures");
    let status = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--release", "--locked"])
        .args(["--target", "wasm32-wasip2", "--target-dir"])
        .arg(&target)
        .current_dir(root.join(directory))
        .status()
        .context("running cargo")?;
    ensure!(
        status.success(),
        "{directory} does not build. Is the target there? rustup target add wasm32-wasip2"
    );
    let path = target.join("wasm32-wasip2/release").join(file);
    let bytes = std::fs::read(&path).with_context(|| path.display().to_string())?;
    Ok(bytes.into())
}
