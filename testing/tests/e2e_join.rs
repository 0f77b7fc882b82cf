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
    // Of two machines of which one has an app, the other is chosen: the instance before ends here.
    wait::until("the instance before has ended", async || {
        let (here, there) = (runners(&box2.data).ok()?, runners(&platform.data()).ok()?);
        (here.is_empty() && there.len() == 1).then_some(())
    })
    .await?;

    // Each machine sees the other, by name, and a name that is nobody's says where names stand.
    for (from, to) in [
        (platform.data(), "box2.internal"),
        (box2.data.clone(), "local.internal"),
    ] {
        let said = done(&["mesh", "ping", to, "-c", "1"], &from).await?;
        ensure!(said.contains("1 sent, 1 answered"), "{to}: {said}");
        let said = done(&["mesh", "explain", to], &from).await?;
        ensure!(said.contains("reached by direct"), "{to}: {said}");
    }
    let nobody = done(&["mesh", "ping", "box9.internal"], &platform.data()).await;
    let said = format!("{:#}", nobody.err().context("it is nobody")?);
    ensure!(said.contains("tcli machines list"), "{said}");
    Ok(())
}

/// A machine that was silent for long, and whose name another one has now, is told so when it speaks again.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_was_put_out_says_so() -> anyhow::Result<()> {
    let config = format!("{CONFIG}lost_after_s = 2\n");
    let platform = Platform::start_with(&config).await?;
    let (data, at) = (platform.data(), coordinator(&platform.data())?);
    let mut box2 = Machine::new(&platform, "box2", None);
    box2.join(&data, &at).await?;
    box2.signal("-STOP").await?;
    let home = platform.scratch("another");
    wait::until("its name is free", async || {
        let token = done(&["invite", "box2"], &data).await.ok()?;
        let file = platform.scratch("again.token");
        let _ = std::fs::remove_file(&file);
        let file = token_file(&file, &token).ok()?;
        let file = file.to_str()?;
        done(&["join", &at, "--no-run", "--token-file", file], &home)
            .await
            .ok()
    })
    .await?;
    ensure!(
        !box2.log().contains("does not know this machine"),
        "{}",
        box2.log()
    );
    box2.signal("-CONT").await?;
    wait::until("it says that it was put out", async || {
        let said = box2.log();
        let is_told = said.contains("does not know this machine any more");
        (is_told && said.contains("tabbify invite box2")).then_some(())
    })
    .await
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
    ensure!(
        !said.contains("does not let"),
        "nobody was there to refuse: {said}"
    );
    let said = refused("https://apps.example.com/", &first, &home("a")).await?;
    ensure!(said.contains("tabbify join apps.example.com"), "{said}");
    // Without a port it is the coordinator's own, where nobody listens, or somebody else does.
    let said = refused("127.0.0.1", &first, &home("a")).await?;
    ensure!(said.contains("127.0.0.1:8888"), "{said}");
    let said = refused("nobody.invalid", &first, &home("a")).await?;
    ensure!(
        said.contains("nobody.invalid:8888 cannot be looked up"),
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

/// A relay on a machine of its own says what the coordinator is to be told, and then serves members.
#[tokio::test(flavor = "multi_thread")]
async fn a_relay_runs_on_a_machine_of_its_own() -> anyhow::Result<()> {
    let mut platform = Platform::start_with(CONFIG).await?;
    let (data, at) = (platform.data(), coordinator(&platform.data())?);
    let joined = async |name: &str, tags: &[&str]| -> anyhow::Result<std::path::PathBuf> {
        let invite = [&["invite", name, "--no-apps"], tags].concat();
        let token = done(&invite, &data).await?;
        let token = token_file(&platform.scratch(&format!("{name}.token")), &token)?;
        let home = platform.scratch(name);
        let token = token.to_str().context("text")?;
        done(&["join", &at, "--no-run", "--token-file", token], &home).await?;
        Ok(home)
    };
    let plain = joined("plain", &[]).await?;
    let refused = done(&["relay"], &plain).await.err().context("it relays")?;
    ensure!(refused.to_string().contains("role:relay"), "{refused:#}");

    let edge = joined("edge", &["--tag", "role:relay"]).await?;
    let config = platform.scratch("relay.toml");
    let loopback = "[relay]\nudp = \"127.0.0.1:0\"\nlisten = \"127.0.0.1:0\"\n";
    std::fs::write(&config, loopback)?;
    let flags = [
        "--config".as_ref(),
        config.as_os_str(),
        "--data-dir".as_ref(),
        edge.as_os_str(),
    ];
    let (relay, said) = role::start_saying("relay", &flags, 5).await?;
    let table = said[1..].join("\n");
    // Where members know it.
    let restarted = format!("[coordinator]\nlisten = \"{at}\"\n{table}\n");
    platform.restart_with(&restarted).await?;
    wait::until("a member is at the relay", async || {
        let status = done(&["mesh", "status"], &data).await.ok()?;
        status.contains("relays 1 of 1").then_some(())
    })
    .await?;
    role::end(relay).await
}
