//! Installs what a fresh machine lacks, through rustup, cargo and, as root on Debian, apt.

use anyhow::{Context as _, bail};

use crate::run::{output, step, works};

/// Versions of the tools, so that every machine checks alike.
const TOOLS: [(&str, &str); 3] = [
    ("cargo-nextest", "0.9.143"),
    ("cargo-deny", "0.20.2"),
    ("cargo-machete", "0.9.2"),
];

/// A C compiler for the few crates that build C or assembly, and a linker.
pub(crate) fn compiler() -> anyhow::Result<()> {
    if works(&["cc", "--version"]) {
        return Ok(());
    }
    apt(&["gcc", "libc6-dev"]).context("a C compiler is missing")
}

/// The target that wasm apps are built for.
pub(crate) fn wasm_target() -> anyhow::Result<()> {
    let installed = output(&["rustup", "target", "list", "--installed"])
        .context("rustup is missing; see https://rustup.rs")?;
    if installed.lines().any(|target| target == "wasm32-wasip2") {
        return Ok(());
    }
    step(&["rustup", "target", "add", "wasm32-wasip2"])
}

/// The programs that the checks run.
pub(crate) fn tools() -> anyhow::Result<()> {
    for (tool, version) in TOOLS {
        if !works(&["which", tool]) {
            // Unoptimised: they run for seconds and would take minutes to optimise.
            step(&[
                "cargo",
                "install",
                "--locked",
                "--debug",
                tool,
                "--version",
                version,
            ])?;
        }
    }
    Ok(())
}

/// The server that the tests of the log start. Without it they say that they did not run.
pub(crate) fn postgresql() {
    let installed =
        std::fs::read_dir("/usr/lib/postgresql").is_ok_and(|mut dir| dir.next().is_some());
    if installed || works(&["which", "initdb"]) {
        return;
    }
    if let Err(error) = apt(&["postgresql"]) {
        println!("the tests of the log in PostgreSQL will not run: {error:#}");
    }
}

/// What makes the networks of the mesh's tests. Without it they say that they did not run.
pub(crate) fn networks() {
    if let Err(error) = programs(&[("ip", "iproute2"), ("nft", "nftables")]) {
        println!("the tests of the mesh behind NATs will not run: {error:#}");
    }
    if let Err(error) = programs(&[("miniupnpd", "miniupnpd-nftables")]) {
        println!("the test of a NAT that gives ports will not run: {error:#}");
    }
}

/// The other implementation that the mesh's tests talk to. Without it they say that they did not run.
pub(crate) fn wireguard() {
    if let Err(error) = programs(&[("wireguard-go", "wireguard-go")]) {
        println!("the tests of the mesh with wireguard-go will not run: {error:#}");
    }
}

/// Programs that are looked for and installed with their packages if they are missing.
pub(crate) fn programs(wanted: &[(&str, &str)]) -> anyhow::Result<()> {
    let missing = wanted
        .iter()
        .filter(|(program, _)| !works(&["which", program]));
    let missing: Vec<&str> = missing.map(|(_, package)| *package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    apt(&missing).with_context(|| format!("{} is missing", missing.join(", ")))
}

fn apt(packages: &[&str]) -> anyhow::Result<()> {
    if !works(&["apt-get", "--version"]) || output(&["id", "-u"])?.trim() != "0" {
        bail!("install with your package manager: {}", packages.join(" "));
    }
    step(&["apt-get", "update", "-q"])?;
    let mut line = vec!["apt-get", "install", "-qy", "--no-install-recommends"];
    line.extend(packages);
    step(&line)
}
