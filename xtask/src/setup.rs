//! Installs what a fresh machine lacks, through rustup, cargo and, as root on Debian, apt.

use std::process::Command;

use anyhow::{Context as _, bail};

use crate::run::{output, root, step, works};

/// Versions of the tools, so that every machine checks alike.
const TOOLS: [(&str, &str); 3] = [
    ("cargo-nextest", "0.9.143"),
    ("cargo-deny", "0.20.2"),
    ("cargo-machete", "0.9.2"),
];

/// The target of programs that run anywhere: in a guest, in an image from scratch.
const STATIC: &str = "x86_64-unknown-linux-musl";

/// A C compiler for the few crates that build C or assembly, and a linker.
pub(crate) fn compiler() -> anyhow::Result<()> {
    if works(&["cc", "--version"]) {
        return Ok(());
    }
    apt(&["gcc", "libc6-dev"]).context("a C compiler is missing")
}

/// The target that wasm apps are built for.
pub(crate) fn wasm_target() -> anyhow::Result<()> {
    target("wasm32-wasip2")
}

fn target(wanted: &str) -> anyhow::Result<()> {
    let installed = output(&["rustup", "target", "list", "--installed"])
        .context("rustup is missing; see https://rustup.rs")?;
    if installed.lines().any(|target| target == wanted) {
        return Ok(());
    }
    step(&["rustup", "target", "add", wanted])
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

/// The engine whose containers tests run, and what their images are made of. Without it they say that they
/// did not run.
pub(crate) fn containers() {
    let engine = [
        ("dockerd", "docker.io"),
        ("iptables", "iptables"),
        ("busybox", "busybox-static"),
    ];
    if let Err(error) = programs(&engine) {
        println!("the tests of containers will not run: {error:#}");
    }
}

/// What runs the machines of the microVM tests, the target that their programs are built for, and a kernel
/// for their guests. Without it they say that they did not run.
pub(crate) fn machines() {
    let made = programs(&[
        ("qemu-system-x86_64", "qemu-system-x86"),
        ("sqfstar", "squashfs-tools"),
        ("mkfs.ext4", "e2fsprogs"),
        ("dpkg-deb", "dpkg"),
    ]);
    let made = made.and_then(|()| target(STATIC)).and_then(|()| kernel());
    // The tests build it as well, and find it built: theirs is a time that is watched.
    let init = |()| {
        step(&[
            "cargo",
            "build",
            "--package",
            "tabbify-guest-init",
            "--bin",
            "tabbify-guest-init",
            "--release",
            "--target",
            STATIC,
            "--config",
            "profile.release.panic=\"abort\"",
            "--config",
            "profile.release.strip=true",
            "--config",
            "profile.release.opt-level=\"s\"",
        ])
    };
    if let Err(error) = made.and_then(init) {
        println!("the tests of microVMs will not run: {error:#}");
    }
}

/// Debian's kernel for virtual machines, unpacked and not installed.
fn kernel() -> anyhow::Result<()> {
    let unpacked = root().join("target/microvm");
    if unpacked.join("boot").is_dir() {
        return Ok(());
    }
    // The name stands for the newest: it depends on the package that has the kernel.
    let depends = output(&["apt-cache", "depends", "linux-image-cloud-amd64"])?;
    let package = depends
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: "))
        .context("apt knows no kernel for virtual machines. Run: apt-get update")?;
    let part = tempfile::tempdir_in(root().join("target"))?;
    let directory = part.path();
    let downloaded = Command::new("apt-get")
        .args(["download", "-q", package])
        .current_dir(directory)
        .status()?;
    if !downloaded.success() {
        bail!("apt-get download {package}");
    }
    let archive = std::fs::read_dir(directory)?
        .next()
        .context("apt-get downloaded nothing")??;
    let contents = directory.join("contents");
    let unpack = Command::new("dpkg-deb")
        .arg("--extract")
        .args([archive.path(), contents.clone()])
        .status()?;
    if !unpack.success() {
        bail!("dpkg-deb --extract {package}");
    }
    std::fs::rename(contents, unpacked)?;
    Ok(())
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
