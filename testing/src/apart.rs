//! A test in a network of its own: it is started once more in a fresh network namespace, where nothing is
//! but a loopback interface that is up. Without privilege the namespace is in a user namespace. Files of the
//! machine that say how its network is used may be others there.

use std::process::Command;

use anyhow::{Context as _, ensure};

/// Names the test that runs apart already.
const APART: &str = "TABBIFY_TEST_APART";

/// Names the test that has its own files already.
const FURNISHED: &str = "TABBIFY_TEST_FURNISHED";

/// How a namespace is had: with the right to make one, and without.
const WAYS: [&[&str]; 2] = [&["--net"], &["--user", "--map-root-user", "--net"]];

/// Whether the caller is apart and goes on. Otherwise the test `name`, as the test runner knows it, has
/// been run apart, or has said by name that it cannot be.
///
/// # Errors
/// If it failed there.
#[expect(clippy::print_stderr, reason = "what the test says is passed on")]
#[expect(
    clippy::disallowed_methods,
    reason = "the one way to tell the second start from the first"
)]
pub fn is_apart(name: &str) -> anyhow::Result<bool> {
    if std::env::var_os(APART).is_some_and(|apart| apart == name) {
        let up = Command::new("ip")
            .args(["link", "set", "lo", "up"])
            .status();
        let up = up.context("ip (iproute2)")?;
        ensure!(up.success(), "the loopback interface does not come up");
        return Ok(true);
    }
    let program = std::env::current_exe()?;
    let mut why = String::new();
    for way in WAYS {
        let mut command = Command::new("unshare");
        command.args(way).arg(&program);
        command.args([name, "--exact", "--nocapture"]);
        let output = match command.env(APART, name).output() {
            Ok(output) => output,
            Err(error) => {
                why = format!("unshare: {error}");
                continue;
            }
        };
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if let Some(refused) = said.lines().find(|line| line.starts_with("unshare:")) {
            refused.clone_into(&mut why);
            continue;
        }
        eprint!("{said}");
        let told = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "{name}, apart:\n{told}{said}");
        ensure!(told.contains("1 passed"), "{name} is no test:\n{told}");
        return Ok(false);
    }
    eprintln!("NOT RUN: {name}: no network namespace: {why}");
    Ok(false)
}

/// The same, in a network where these addresses (`8.8.8.8/32`) are this machine's, and these files of the machine
/// have this content: a third start, in a mount namespace. Files that are not there cannot be others.
///
/// # Errors
/// If it failed there.
#[expect(clippy::print_stderr, reason = "what the test says is passed on")]
#[expect(
    clippy::disallowed_methods,
    reason = "the one way to tell the third start from the second"
)]
pub fn is_furnished(
    name: &str,
    addresses: &[&str],
    files: &[(&str, &str)],
) -> anyhow::Result<bool> {
    if !is_apart(name)? {
        return Ok(false);
    }
    if std::env::var_os(FURNISHED).is_some() {
        return Ok(true);
    }
    for address in addresses {
        let mut command = Command::new("ip");
        command.args(["addr", "add", address, "dev", "lo"]);
        if address.contains(':') {
            command.arg("nodad");
        }
        ensure!(command.status()?.success(), "{address} cannot be had");
    }
    let dir = tempfile::tempdir()?;
    // Pairs of files, and what is to be started after them.
    let script = "while [ \"$1\" != -- ]; do mount --bind \"$1\" \"$2\" || exit; shift 2; done; \
        shift; exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script, "furnish"]);
    for (n, (path, content)) in files.iter().enumerate() {
        let ours = dir.path().join(n.to_string());
        std::fs::write(&ours, content)?;
        command.arg(ours).arg(path);
    }
    command.arg("--").arg(std::env::current_exe()?);
    command.args([name, "--exact", "--nocapture"]);
    let output = command.env(FURNISHED, name).output().context("unshare")?;
    let said = String::from_utf8_lossy(&output.stderr);
    eprint!("{said}");
    let told = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{name}, furnished:\n{told}{said}");
    ensure!(told.contains("1 passed"), "{name} is no test:\n{told}");
    Ok(false)
}
