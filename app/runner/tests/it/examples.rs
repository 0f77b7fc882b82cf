//! The examples in JavaScript and Python, built by their own tools and run as apps, where those tools are. They carry
//! whole interpreters: what a component made from Rust does not need of the engine, these do.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use tabbify_runner::wasm_http::Limits;
use tabbify_types::ByteSize;
use tabbify_types::event::v1::RunConfig;

use crate::harness::{run_config, start, text};

fn example(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    root.join("examples").join(name)
}

/// A copy that the tools may write to, with a part of it left where it is.
fn copy(name: &str, files: &[&str]) -> anyhow::Result<tempfile::TempDir> {
    let dir = tempfile::tempdir()?;
    for file in files {
        let to = dir.path().join(file);
        std::fs::create_dir_all(to.parent().context("a directory")?)?;
        std::fs::copy(example(name).join(file), to).with_context(|| (*file).to_owned())?;
    }
    Ok(dir)
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {said}");
    Ok(())
}

async fn says_hello(component: &Path, memory: ByteSize, hello: &str) -> anyhow::Result<()> {
    let run = RunConfig {
        memory,
        ..run_config()
    };
    let entry = std::fs::read(component)?;
    let app = start(entry.into(), run, Limits::DEFAULT).await?;
    let app = app.map_err(|failure| anyhow::anyhow!("{failure:?}"))?;
    for n in 0..3 {
        let answer = app.get(&format!("/{n}")).await?;
        ensure!(answer.status() == 200, "{answer:?}");
        let said = text(answer).await?;
        ensure!(said == format!("{hello} at /{n}\n"), "{said}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_javascript() {
    let modules = example("hello-js").join("node_modules");
    if !modules.is_dir() {
        eprintln!("NOT RUN: examples::in_javascript: npm install was not run in examples/hello-js");
        return;
    }
    let dir = copy("hello-js", &["app.js", "build.mjs", "package.json"]).unwrap();
    std::os::unix::fs::symlink(modules, dir.path().join("node_modules")).unwrap();
    run(Command::new("node").arg("build.mjs").current_dir(&dir)).unwrap();
    let component = dir.path().join("app.wasm");
    says_hello(&component, ByteSize::mib(128), "hello from JavaScript")
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_python() {
    if Command::new("componentize-py")
        .arg("--version")
        .output()
        .is_err()
    {
        eprintln!(
            "NOT RUN: examples::in_python: componentize-py is not installed (PyPI: componentize-py)"
        );
        return;
    }
    let dir = copy("hello-python", &["app.py", "build.sh", "wit/world.wit"]).unwrap();
    // As `wkg wit fetch` would get them: these came with the engine that runs the component.
    let interfaces = interfaces().unwrap();
    run(Command::new("cp")
        .arg("-r")
        .arg(interfaces)
        .arg(dir.path().join("wit/deps")))
    .unwrap();
    run(Command::new("sh").arg("build.sh").current_dir(&dir)).unwrap();
    let component = dir.path().join("app.wasm");
    says_hello(&component, ByteSize::mib(256), "hello from Python")
        .await
        .unwrap();
}

/// Where the sources of `wasmtime-wasi-http` have the interfaces of wasi:http.
fn interfaces() -> anyhow::Result<PathBuf> {
    let mut command = Command::new(env!("CARGO"));
    command.args(["metadata", "--format-version", "1", "--offline"]);
    let output = command.current_dir(env!("CARGO_MANIFEST_DIR")).output()?;
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"].as_array().context("packages")?;
    let mut packages = packages.iter();
    let found = packages.find(|package| package["name"] == "wasmtime-wasi-http");
    let manifest = found.and_then(|package| package["manifest_path"].as_str());
    let manifest = Path::new(manifest.context("wasmtime-wasi-http")?);
    Ok(manifest.with_file_name("wit").join("deps"))
}
