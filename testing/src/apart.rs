//! A test in a network of its own: it is started once more in a fresh network namespace, where nothing is
//! but a loopback interface that is up. Without privilege the namespace is in a user namespace.

use std::process::Command;

use anyhow::{Context as _, ensure};

/// Names the test that runs apart already.
const APART: &str = "TABBIFY_TEST_APART";

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
