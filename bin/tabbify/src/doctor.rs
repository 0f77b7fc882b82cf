//! `tabbify doctor`: what this machine can run, what it lacks for the rest, and how to get that.

use std::path::PathBuf;
use std::process::{ExitCode, Stdio};

use anyhow::Context as _;
use tabbify_api::runner::MicroVms;
use tabbify_process::env;
use tabbify_supervisor::probe_capabilities;
use tokio::process::Command;

use crate::{config, role, up};

/// Flags of `tabbify doctor`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Configuration of `tabbify up` (docs/operating/up.toml), whose [microvm] counts; none is needed
    #[arg(long)]
    config: Option<PathBuf>,
}

/// Says it; a machine that runs nothing at all is a failure.
pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let config = config::read(arguments.config.as_deref())?;
    let runner = up::runner_program()?;
    let made_of = config.microvm.found(&runner);
    let engine = env::read(env::DOCKER_HOST);
    let capabilities = probe_capabilities(&runner, engine.as_deref(), Some(&made_of)).await;
    let mut said = String::new();
    for capability in &capabilities {
        let mark = if capability.works { "✓" } else { "✗" };
        said += &format!("{mark} {:<11} {}\n", capability.runtime, capability.detail);
    }
    said += "\nmicroVMs are made of:\n";
    said += &microvms_of(&runner, &made_of).await?;
    role::say(&said);
    let any = capabilities.iter().any(|capability| capability.works);
    Ok(if any {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// As the runner says, which makes them.
async fn microvms_of(runner: &std::path::Path, made_of: &MicroVms) -> anyhow::Result<String> {
    let output = Command::new(runner)
        .arg("--doctor")
        .arg(serde_json::to_string(made_of)?)
        .env_clear()
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .with_context(|| runner.display().to_string())?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().map(|line| format!("  {line}\n")).collect())
}
