//! Runs programs in the project's folder and says how long each took.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};

/// The project's folder.
pub(crate) fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_path_buf()
}

/// A command line, as it is shown and run.
pub(crate) fn command(line: &[&str]) -> Command {
    let mut command = Command::new(line[0]);
    command
        .args(&line[1..])
        .current_dir(root())
        .stdin(Stdio::null());
    command
}

/// Runs `line`, shown; an error names the line.
pub(crate) fn step(line: &[&str]) -> anyhow::Result<()> {
    step_with(line, &[])
}

/// The same with variables set.
#[expect(clippy::disallowed_types, reason = "shown to people, never compared")]
pub(crate) fn step_with(line: &[&str], variables: &[(&str, &str)]) -> anyhow::Result<()> {
    let shown = line.join(" ");
    println!("── {shown}");
    let began = std::time::Instant::now();
    let status = command(line)
        .envs(variables.iter().copied())
        .status()
        .with_context(|| format!("cannot run {shown}"))?;
    if !status.success() {
        bail!("{shown}: {status}");
    }
    println!("── {:.1} s: {shown}", began.elapsed().as_secs_f64());
    Ok(())
}

/// Whether `line` runs and succeeds; its output is not shown.
pub(crate) fn works(line: &[&str]) -> bool {
    let quiet = command(line)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    quiet.is_ok_and(|status| status.success())
}

/// What `line` prints.
pub(crate) fn output(line: &[&str]) -> anyhow::Result<String> {
    let shown = line.join(" ");
    let output = command(line)
        .output()
        .with_context(|| format!("cannot run {shown}"))?;
    if !output.status.success() {
        bail!(
            "{shown}: {}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(String::from_utf8(output.stdout)?)
}
