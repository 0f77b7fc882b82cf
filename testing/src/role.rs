//! Roles as processes of their own.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context as _, ensure};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use crate::platform::binary;
use crate::wait::WATCHDOG;

/// Starts `tabbify <name>` on a data directory and waits until it says that it serves.
///
/// # Errors
/// If it ends before, or says something else.
pub async fn start(name: &str, data: &Path) -> anyhow::Result<Child> {
    start_with(name, &[OsStr::new("--data-dir"), data.as_os_str()]).await
}

/// As [`start`], with these flags.
///
/// # Errors
/// As [`start`].
pub async fn start_with(name: &str, flags: &[&OsStr]) -> anyhow::Result<Child> {
    Ok(start_saying(name, flags, 1).await?.0)
}

/// As [`start_with`], and gives the first lines that it says.
///
/// # Errors
/// As [`start`], and if it says less.
pub async fn start_saying(
    name: &str,
    flags: &[&OsStr],
    lines: usize,
) -> anyhow::Result<(Child, Vec<String>)> {
    let mut child = Command::new(binary("tabbify")?)
        .arg(name)
        .args(flags)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut reader = BufReader::new(child.stdout.take().context("piped")?).lines();
    let mut said = Vec::new();
    while said.len() < lines {
        let line = reader.next_line().await?.unwrap_or_default();
        ensure!(
            !said.is_empty() || line.starts_with(name),
            "{name} says {line:?}"
        );
        ensure!(!line.is_empty(), "{name} says no more than {said:?}");
        said.push(line);
    }
    Ok((child, said))
}

/// Asks a role to end, as a service manager does, and waits until it has.
///
/// # Errors
/// If it does not end in time, or not well.
pub async fn end(mut role: Child) -> anyhow::Result<()> {
    let pid = role.id().context("it runs")?.to_string();
    let asked = Command::new("kill").args(["-TERM", &pid]).status().await?;
    ensure!(asked.success(), "kill -TERM {pid}");
    let ended = tokio::time::timeout(WATCHDOG, role.wait()).await;
    let ended = ended.context("it does not end")??;
    ensure!(ended.success(), "it ended with {ended}");
    Ok(())
}

/// Runs a command of `tabbify` on a data directory to its end and gives what it said.
///
/// # Errors
/// If it fails, with what it complained of.
pub async fn done(words: &[&str], data: &Path) -> anyhow::Result<String> {
    let mut command = Command::new(binary("tabbify")?);
    command.args(words).arg("--data-dir").arg(data);
    let output = command.output().await?;
    let complained = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "tabbify {words:?}: {complained}");
    Ok(String::from_utf8(output.stdout)?)
}
