//! `tabbify down`: ends `tabbify up` of a data directory and drains and stops its apps.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::bail;
use tabbify_supervisor::stop_all_runners;

use crate::data_dir::DataDir;

/// How long an app may finish what it has begun.
const DRAIN: Duration = Duration::from_secs(5);
/// LIMIT: how long `tabbify up` may take to end.
const UP_ENDS_WITHIN: Duration = Duration::from_secs(30);
/// How often it is looked at.
const INTERVAL: Duration = Duration::from_millis(50);

/// Its flags.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The data directory; default `$XDG_DATA_HOME/tabbify`
    #[arg(long)]
    data_dir: Option<PathBuf>,
}

/// Ends what runs on the data directory.
#[expect(clippy::print_stdout, reason = "a command for people")]
pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let data = DataDir::choose(arguments.data_dir)?;
    if !data.path().is_dir() {
        bail!("{} is not there: nothing runs on it", data.path().display());
    }
    // First the one who would start them again.
    if let Some(up) = data.running() {
        end(&data, up.pid).await?;
        println!("tabbify up (pid {}) has ended", up.pid);
    }
    let report = stop_all_runners(data.path(), DRAIN).await?;
    for of in &report.killed {
        println!(
            "{} instance {} did not end in time and was killed",
            of.app, of.instance
        );
    }
    println!(
        "{} apps stopped · {} requests finished · {} cut off",
        report.stopped.len(),
        report.finished,
        report.cut
    );
    if let Some((of, why)) = report.failed.first() {
        bail!(
            "{} runners may still live; {} instance {}: {why}",
            report.failed.len(),
            of.app,
            of.instance
        );
    }
    Ok(())
}

async fn end(data: &DataDir, pid: u32) -> anyhow::Result<()> {
    let process = i32::try_from(pid)
        .ok()
        .and_then(rustix::process::Pid::from_raw);
    let Some(process) = process else {
        bail!("{pid} is not a process id")
    };
    // It may have ended by itself since its record was read.
    let _ = rustix::process::kill_process(process, rustix::process::Signal::TERM);
    let deadline = tokio::time::Instant::now() + UP_ENDS_WITHIN;
    while data.running().is_some() {
        if tokio::time::Instant::now() > deadline {
            bail!(
                "tabbify up (pid {pid}) did not end within {} s",
                UP_ENDS_WITHIN.as_secs()
            );
        }
        tokio::time::sleep(INTERVAL).await;
    }
    Ok(())
}
