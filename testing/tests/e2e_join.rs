//! A second machine: one command makes it a supervisor of a platform, apps that are placed there answer
//! through the node, and a restart needs no token. What is refused says why, and what to do.

use std::path::Path;

use anyhow::{Context as _, ensure};
use tabbify_testing::machine::{Machine, refused, token_file};
use tabbify_testing::process::runners;
use tabbify_testing::role::{self, done};
use tabbify_testing::{Platform, wait};

/// Lets machines join, over loopback.
const CONFIG: &str = "[coordinator]\nlisten = \"127.0.0.1:0\"\n";

/// Where the coordinator of a data directory listens.
fn coordinator(data: &Path) -> anyhow::Result<String> {
    let record = std::fs::read(data.join("coordinator.json"))?;
    let record: serde_json::Value = serde_json::from_slice(&record)?;
    let listen = record["listen"].as_str().context("it listens")?;
    Ok(listen.to_owned())
}

/// Asks an app for its greeting until it has it.
async fn greets(platform: &Platform, id: &str) -> anyhow::Result<()> {
    let path = format!("/app/{id}/there");
    wait::until("the app answers", async || {
        let (status, text) = platform.get(&path).await.ok()?;
        (status == 200 && text.contains("hello from /there")).then_some(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_joined_runs_apps() -> anyhow::Result<()> {
    let platform = Platform::start_with(CONFIG).await?;
    let at = coordinator(&platform.data())?;
    // By name before the platform's own machine: of two that are empty, it is chosen.
    let mut box2 = Machine::new(&platform, "box2", None);
    box2.join(&platform.data(), &at).await?;
    let folder = platform.copy_app("examples/hello-wasm", "hello")?;
    platform.succeed(&folder, &["push"]).await?;
    let id = platform.status(&folder).await?["id"]
        .as_str()
        .context("id")?
        .to_owned();
    greets(&platform, &id).await?;
    let runner = runners(&box2.data)?;
    ensure!(runner.len() == 1, "{runner:?}\n{}", box2.log());
    ensure!(runners(&platform.data())?.is_empty(), "it is elsewhere");

    // Its supervisor dies: the app answers, and the next supervisor adopts it, without a token.
    box2.kill().await?;
    greets(&platform, &id).await?;
    box2.start().await?;
    greets(&platform, &id).await?;
    ensure!(
        runners(&box2.data)? == runner,
        "another runner\n{}",
        box2.log()
    );
    platform.succeed(&folder, &["push"]).await?;
    greets(&platform, &id).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_join_is_told_why() -> anyhow::Result<()> {
    let platform = Platform::start_with(CONFIG).await?;
    let (data, at) = (platform.data(), coordinator(&platform.data())?);
    let other = Platform::start_with(CONFIG).await?;
    let invited = async |file: &str| {
        let token = done(&["invite", "box2"], &data).await?;
        token_file(&platform.scratch(file), &token)
    };
    let first = invited("first").await?;
    let home = |name: &str| platform.scratch(name);

    let said = refused("127.0.0.1:1", &first, &home("a")).await?;
    ensure!(
        said.contains("firewall") && said.contains("127.0.0.1:1"),
        "{said}"
    );
    let said = refused(&coordinator(&other.data())?, &first, &home("a")).await?;
    ensure!(
        said.contains("not the coordinator that the token names"),
        "{said}"
    );
    let nonsense = token_file(&platform.scratch("nonsense"), "tbj_x")?;
    let said = refused(&at, &nonsense, &home("a")).await?;
    ensure!(said.contains("tabbify invite"), "{said}");

    // None of this used it up. A second machine that has it comes too late.
    let joined = Machine::new(&platform, "a", None);
    let words = ["join", &at, "--no-run", "--token-file", "first"];
    let path = first.to_str().context("text")?;
    let words: Vec<&str> = words
        .iter()
        .map(|word| if *word == "first" { path } else { word })
        .collect();
    let said = done(&words, &joined.data).await?;
    ensure!(said.starts_with("box2 · fd5a:1f00:1:2::1"), "{said}");
    let said = refused(&at, &first, &home("b")).await?;
    ensure!(said.contains("used by another machine"), "{said}");
    // The same machine may: its answer may have been lost.
    done(&words, &joined.data).await?;
    Ok(())
}

/// The platform's roles as processes of their own: the log's machine joins its own platform, and from then
/// on a supervisor elsewhere reads its orders there, over the mesh.
#[tokio::test(flavor = "multi_thread")]
async fn a_supervisor_follows_a_log_that_runs_alone() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let (data, config) = (dir.path().join("data"), dir.path().join("coordinator.toml"));
    done(&["init"], &data).await?;
    let log = role::start("transaction-node", &data).await?;
    done(&["token", "coordinator"], &data).await?;
    std::fs::write(&config, CONFIG)?;
    let flags = [
        "--config".as_ref(),
        config.as_os_str(),
        "--data-dir".as_ref(),
        data.as_os_str(),
    ];
    let _coordinator = role::start_with("coordinator", &flags).await?;
    let at = coordinator(&data)?;
    let tags = [
        "--tag",
        "role:transaction-node",
        "--tag",
        "role:registry",
        "--no-apps",
    ];
    let invite = [&["invite", "box1"], tags.as_slice()].concat();
    let token = token_file(&dir.path().join("token"), &done(&invite, &data).await?)?;
    let token = token.to_str().context("text")?;
    done(&["join", &at, "--no-run", "--token-file", token], &data).await?;
    role::end(log).await?;
    let _log = role::start("transaction-node", &data).await?;

    let mut box2 = Machine::below(dir.path(), "box2", None);
    box2.join(&data, &at).await?;
    wait::until("its orders are read", async || {
        box2.log().contains("its orders are read").then_some(())
    })
    .await?;
    box2.end().await
}
