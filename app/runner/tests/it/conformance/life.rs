//! Beginnings and ends: the first, the sixth and the seventh sentence of the law, and what an app may use.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use tabbify_api::attach::CommandLine;
use tabbify_api::runner::Failure;
use tabbify_types::ByteSize;
use tabbify_types::event::v1::{FailureReason, ImagePort};
use tokio::sync::mpsc;

use super::site::{App, Site};
use super::{Kind, has};
use crate::harness::{WATCHDOG, watched};

fn is(failure: &Failure, reason: FailureReason, part: &str) -> anyhow::Result<()> {
    ensure!(failure.reason == reason, "{failure:?}");
    has(&failure.detail, part)
}

/// It prints and ends by a code, as the app's user, and what is not there says so.
pub(super) async fn a_command_beside_the_app(app: &App) -> anyhow::Result<()> {
    let run = async |command: &[&str]| {
        let command = command.iter().map(|word| (*word).to_owned()).collect();
        let (sender, mut output) = mpsc::channel(1);
        let running = app.runtime.exec(command, sender);
        let reading = async {
            let mut printed = Vec::new();
            while let Some(line) = output.recv().await {
                if let CommandLine::Stdout(piece) | CommandLine::Stderr(piece) = line {
                    printed.extend(piece.0);
                }
            }
            String::from_utf8_lossy(&printed).into_owned()
        };
        watched(async { tokio::join!(running, reading) }).await
    };
    let (code, printed) = run(&["/bin/app", "exit", "7"]).await?;
    ensure!(
        code == Ok(7) && printed == "no database\n",
        "{code:?} {printed}"
    );
    let (code, _) = run(&["/bin/none"]).await?;
    ensure!(code != Ok(0), "{code:?}");
    ensure!(app.text("/hello").await? == "hello");
    Ok(())
}

/// What has begun is finished by the server before; then it ends as its image says, with its last words.
pub(super) async fn stops_in_order(app: &App) -> anyhow::Result<()> {
    let drained = app.traffic.drain(Duration::from_secs(10)).await;
    ensure!(drained.cut == 0, "{drained:?}");
    watched(app.runtime.stop(WATCHDOG)).await?;
    if app.kind != Kind::WasmHttp {
        let lines = app.lines().await?;
        ensure!(
            lines.last().is_some_and(|line| line.line == "bye"),
            "{lines:?}"
        );
    }
    Ok(())
}

pub(super) async fn what_ignores_its_signal_is_killed(site: &Site) -> anyhow::Result<()> {
    let app = site.start(&["stubborn"], |_, _| {}).await?.app()?;
    ensure!(app.text("/hello").await? == "hello");
    watched(app.runtime.stop(Duration::from_millis(500))).await?;
    let lines = app.lines().await?;
    ensure!(lines.iter().all(|line| line.line != "bye"), "{lines:?}");
    let answer = app.get("/hello").await?;
    ensure!(answer.status() == 502, "{}", answer.status());
    Ok(())
}

pub(super) async fn an_end_while_it_serves_is_told(site: &Site) -> anyhow::Result<()> {
    let app = site.serving().await?;
    app.text("/print?last").await?;
    let answer = app.get("/exit?9").await?;
    ensure!(answer.status() == 502, "{}", answer.status());
    is(
        &app.ended().await?,
        FailureReason::Exited,
        "it ended with exit code 9, ",
    )?;
    // All that it printed is in the log by then.
    let lines = app.lines().await?;
    ensure!(
        lines.iter().any(|line| line.line == "out last"),
        "{lines:?}"
    );
    watched(app.runtime.stop(Duration::from_secs(1))).await
}

pub(super) async fn an_end_at_once_is_told(site: &Site) -> anyhow::Result<()> {
    let tried = site.start(&["exit", "3"], |_, _| {}).await?;
    is(
        tried.failure()?,
        FailureReason::Exited,
        "it ended with exit code 3, ",
    )?;
    let lines = tried.lines().await?;
    ensure!(
        lines.iter().any(|line| line.line == "no database"),
        "{lines:?}"
    );
    Ok(())
}

pub(super) async fn a_worker_answers_nobody(site: &Site) -> anyhow::Result<()> {
    let tried = site.start(&["idle"], |_, image| image.port = ImagePort::None);
    let app = tried.await?.app()?;
    let answer = app.get("/hello").await?;
    ensure!(answer.status() == 502, "{}", answer.status());
    let printed = async {
        while !app
            .lines()
            .await?
            .iter()
            .any(|line| line.line == "idle, port none")
        {
            tokio::task::yield_now().await;
        }
        anyhow::Ok(())
    };
    watched(printed).await??;
    watched(app.runtime.stop(Duration::from_millis(500))).await
}

pub(super) async fn memory_has_an_end(site: &Site) -> anyhow::Result<()> {
    let tried = site.start(&["eat"], |_, _| {}).await?;
    let failure = tried.failure()?;
    is(failure, FailureReason::Memory, "it was killed at 64MiB, ")?;
    has(&failure.detail, "Set memory = \"128MiB\"")
}

/// The machine goes on, and it can be stopped.
pub(super) async fn forks_without_end_have_one(site: &Site) -> anyhow::Result<()> {
    let tried = site.start(&["forks"], |_, image| image.port = ImagePort::None);
    let app = match tried.await?.app {
        Ok(app) => app,
        // Where it ends of it by itself, that is a reason as well.
        Err(failure) => return is(&failure, FailureReason::Memory, "it was killed"),
    };
    let forking = async {
        while !app.lines().await?.iter().any(|line| line.line == "forking") {
            tokio::task::yield_now().await;
        }
        anyhow::Ok(())
    };
    watched(forking).await??;
    watched(app.runtime.stop(Duration::from_millis(500))).await
}

pub(super) async fn a_full_disk_is_the_apps_own(site: &Site) -> anyhow::Result<()> {
    // Where the disk is memory, there is enough of that for all of the disk.
    let enough = ByteSize::mib(256);
    let app = site.start(&["fill", "/tmp/big"], |run, _| run.memory = enough);
    let app = app.await?.app()?;
    let lines = app.lines().await?;
    ensure!(
        lines.iter().any(|line| line.line == "full: StorageFull"),
        "{lines:?}"
    );
    ensure!(app.text("/hello").await? == "hello");
    watched(app.runtime.stop(WATCHDOG)).await
}

pub(super) async fn listening_elsewhere_is_said(site: &Site) -> anyhow::Result<()> {
    let tried = site
        .start(&["elsewhere"], |run, _| run.healthy_within_ms = 3000)
        .await?;
    let expected =
        "it did not answer on :8080 in 3 s; it listens on 127.0.0.1:3000. Listen on 0.0.0.0:$PORT";
    is(tried.failure()?, FailureReason::Unhealthy, expected)
}

pub(super) async fn never_healthy_is_said(site: &Site) -> anyhow::Result<()> {
    let tried = site.start(&["serve"], |run, image| {
        run.healthy_within_ms = 3000;
        image.health_path = Some("/status?503".to_owned());
    });
    let tried = tried.await?;
    let expected = "it answered :8080/status?503 with 503 Service Unavailable for 3 s";
    is(tried.failure()?, FailureReason::Unhealthy, expected)?;
    let said = tried.lines().await?;
    said.first()
        .context("what it printed is in the log")
        .map(drop)
}
