//! The log, as its people see it: who did what, in order, by name.

use anyhow::{Context as _, ensure};
use serde_json::Value;
use tabbify_testing::Platform;
use tokio::io::{AsyncBufReadExt as _, BufReader};

#[tokio::test(flavor = "multi_thread")]
async fn a_deploy_can_be_read_back_and_followed() -> anyhow::Result<()> {
    let platform = Platform::start().await?;
    let folder = platform.copy_app("examples/hello-wasm", "hello-wasm")?;
    // Followed from before there is anything.
    let mut following = platform
        .tcli(&folder)?
        .args(["--json", "events", "--follow", "--type", "deploy_finished"])
        .stdout(std::process::Stdio::piped())
        .spawn()?;
    let mut live = BufReader::new(following.stdout.take().context("piped")?).lines();

    platform.succeed(&folder, &["push"]).await?;
    let said = platform
        .succeed(&folder, &["--json", "events", "--app", "hello-wasm"])
        .await?;
    let events: Vec<Value> = said
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    let life: Vec<(&str, &str)> = events
        .iter()
        .filter_map(|event| Some((event["type"].as_str()?, event["actor"].as_str()?)))
        .collect();
    // The people's part in their own name, the platform's in its own.
    let expected = [
        ("app_registered", "user:owner"),
        ("version_published", "user:owner"),
        ("deploy_requested", "user:owner"),
        ("app_placed", "service:coordinator"),
        ("app_starting", "service:coordinator"),
        ("app_started", "service:coordinator"),
        ("app_healthy", "service:coordinator"),
        ("traffic_shifted", "service:coordinator"),
        ("deploy_finished", "service:coordinator"),
    ];
    ensure!(life == expected, "{life:?}");
    let positions: Vec<u64> = events
        .iter()
        .filter_map(|event| event["position"].as_u64())
        .collect();
    ensure!(positions.is_sorted(), "{positions:?}");

    let line = live.next_line().await?.context("a live event")?;
    let finished: Value = serde_json::from_str(&line)?;
    ensure!(
        finished["position"] == events[events.len() - 1]["position"],
        "{line}"
    );
    following.kill().await?;
    Ok(())
}
