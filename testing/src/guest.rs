//! What runs in a container or a machine, and what a machine needs: programs that are linked statically, and what
//! `cargo xtask test` has put into `target` for microVMs.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use tabbify_api::runner::{Acceleration, MicroVms};

use crate::platform::root;

/// The target of programs that need nothing of the system that they run on.
pub const STATIC: &str = "x86_64-unknown-linux-musl";

/// What microVMs are made of here, in software, so that every machine tests the same; or what is missing, in words
/// for `NOT RUN`.
///
/// # Errors
/// If the guests' first process cannot be built.
pub fn microvms() -> anyhow::Result<Result<MicroVms, String>> {
    let path: Vec<PathBuf> = std::env::split_paths("/usr/sbin:/usr/bin:/sbin:/bin").collect();
    for (program, package) in [
        ("qemu-system-x86_64", "qemu-system-x86"),
        ("sqfstar", "squashfs-tools"),
        ("mkfs.ext4", "e2fsprogs"),
    ] {
        if !path.iter().any(|dir| dir.join(program).is_file()) {
            return Ok(Err(format!("{package} is not installed")));
        }
    }
    let unpacked = root().join("target/microvm");
    let Ok(modules) = only(&unpacked.join("lib/modules")) else {
        let place = unpacked.display();
        return Ok(Err(format!(
            "no kernel in {place}: cargo xtask test puts one there"
        )));
    };
    let release = modules.file_name().context("a release")?.to_string_lossy();
    Ok(Ok(MicroVms {
        kernel: unpacked.join(format!("boot/vmlinuz-{release}")),
        modules: Some(modules.clone()),
        init: init()?,
        monitor: None,
        acceleration: Acceleration::Tcg,
    }))
}

fn only(directory: &Path) -> anyhow::Result<PathBuf> {
    let mut entries = std::fs::read_dir(directory)?;
    let first = entries
        .next()
        .with_context(|| format!("{} is empty", directory.display()))?;
    Ok(first?.path())
}

/// The guests' first process, built as it is shipped; nothing to do but for the first test.
///
/// # Errors
/// If it cannot be built.
pub fn init() -> anyhow::Result<PathBuf> {
    let output = Command::new("cargo")
        .args(["build", "--quiet", "--package", "tabbify-guest-init"])
        .args(["--bin", "tabbify-guest-init", "--release"])
        .args(["--target", STATIC])
        .args(["--config", "profile.release.panic=\"abort\""])
        .args(["--config", "profile.release.strip=true"])
        .args(["--config", "profile.release.opt-level=\"s\""])
        .current_dir(root())
        .output()
        .context("cargo")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "the init is not built: {said}");
    let built = root().join("target").join(STATIC);
    Ok(built.join("release/tabbify-guest-init"))
}

/// Compiles a Rust source (a path below `testing/fixtures`) without dependencies into a program that runs in an
/// image with nothing else in it. Its bytes.
///
/// # Errors
/// If it cannot be compiled.
pub fn program(source: &str) -> anyhow::Result<Vec<u8>> {
    let dir = tempfile::tempdir()?;
    let to = dir.path().join("program");
    let output = Command::new("rustc")
        .args(["--edition", "2024", "--target", STATIC])
        .args(["-C", "opt-level=1", "-C", "strip=symbols", "-o"])
        .arg(&to)
        .arg(root().join("testing/fixtures").join(source))
        .output()
        .context("rustc")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{source} is not compiled: {said}");
    Ok(std::fs::read(to)?)
}
