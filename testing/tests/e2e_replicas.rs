//! Several instances of one app: all of them answer, the death of one is not noticed by who asks, further
//! targets answer beside the first, and another version takes over from all of them. On several machines they
//! are spread, and of a machine that is lost its slot alone is filled elsewhere.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, ensure};
use futures_util::future::try_join_all;
use hyper::Request;
use serde_json::Value;
use tabbify_testing::http::{full, send, text};
use tabbify_testing::machine::Machine;
use tabbify_testing::process::runners;
use tabbify_testing::{Platform, wait};

/// Requests that are sent to see who answers.
const ASKED: usize = 60;

/// What serves now, by `tcli status`: the version, and of each instance the number and the slot.
async fn serving(
    platform: &Platform,
    folder: &std::path::Path,
) -> anyhow::Result<(u64, BTreeSet<u64>, Vec<(u64, u64)>)> {
    let status = platform.status(folder).await?;
    let version = status["serving"].as_u64().context("it serves")?;
    let all = status["instances"].as_array().cloned().unwrap_or_default();
    let number = |of: &Value, name: &str| of[name].as_u64().context(of.to_string());
    let numbers = all.iter().map(|it| number(it, "instance"));
    let slots = all.iter().map(|it| {
        let slot = &it["slot"];
        Ok((number(slot, "target")?, number(slot, "ordinal")?))
    });
    let slots = slots.collect::<anyhow::Result<_>>()?;
    Ok((version, numbers.collect::<anyhow::Result<_>>()?, slots))
}

/// Asks many times at once; the different answers.
async fn answers(platform: &Platform, id: &str) -> anyhow::Result<BTreeSet<String>> {
    let token = platform.token().await?;
    let ask = async || {
        let request = Request::builder()
            .uri(format!("/app/{id}/"))
            .header("host", &platform.authority)
            .header("authorization", format!("Bearer {token}"))
            .body(full(""))?;
        let answer = send(&platform.authority, request).await?;
        anyhow::Ok((answer.status().as_u16(), text(answer).await?))
    };
    let all = try_join_all((0..ASKED).map(|_| ask())).await?;
    for (status, text) in &all {
        ensure!(*status == 200, "{status} {text}");
    }
    Ok(all.into_iter().map(|(_, text)| text).collect())
}

/// The instances that have printed something.
async fn printed(platform: &Platform, folder: &std::path::Path) -> anyhow::Result<BTreeSet<u64>> {
    let lines = platform.succeed(folder, &["--json", "logs"]).await?;
    let lines = lines.lines().map(serde_json::from_str::<Value>);
    let numbers = lines.map(|line| line?["instance"].as_u64().context("an instance"));
    numbers.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_and_targets_answer_together() -> anyhow::Result<()> {
    let platform = Platform::start().await?;
    let folder = platform.copy_app("examples/hello-wasm", "hello-wasm")?;
    let manifest = folder.join("tabbify.toml");
    let plain = std::fs::read_to_string(&manifest)?;
    std::fs::write(&manifest, format!("{plain}\n[runtime]\nreplicas = 3\n"))?;
    platform.succeed(&folder, &["push"]).await?;
    let id = platform.status(&folder).await?["id"]
        .as_str()
        .context("id")?
        .to_owned();
    let (version, first, slots) = serving(&platform, &folder).await?;
    ensure!(version == 1 && first.len() == 3, "{version} {first:?}");
    ensure!(slots == [(0, 0), (0, 1), (0, 2)], "{slots:?}");
    answers(&platform, &id).await?;
    wait::until("each of them has answered", async || {
        let printed = printed(&platform, &folder).await.ok()?;
        (printed == first).then_some(())
    })
    .await?;

    // One dies: who asks does not notice, and another takes its place.
    let running = runners(&platform.data())?;
    ensure!(running.len() == 3, "{running:?}");
    let killed = std::process::Command::new("kill")
        .args(["-9", &running[0].to_string()])
        .status()?;
    ensure!(killed.success(), "kill -9: {killed}");
    answers(&platform, &id).await?;
    wait::until("there are three again", async || {
        let (_, now, slots) = serving(&platform, &folder).await.ok()?;
        (now.len() == 3 && now != first && slots.len() == 3).then_some(())
    })
    .await?;
    answers(&platform, &id).await?;

    // Two targets with an environment each, in the place of three replicas.
    let status = platform.status(&folder).await?;
    let host = status["instances"][0]["host"].as_str().context("a host")?;
    let targets = format!(
        "
[[deploy]]
supervisor = \"any\"
[[deploy]]
supervisor = \"name:{host}\"
env = {{ GREETING = \"salut\" }}
"
    );
    std::fs::write(&manifest, format!("{plain}{targets}"))?;
    platform.succeed(&folder, &["push"]).await?;
    let (version, second, slots) = serving(&platform, &folder).await?;
    ensure!(version == 2 && second.len() == 2, "{version} {second:?}");
    ensure!(slots == [(0, 0), (1, 0)], "{slots:?}");
    let both = BTreeSet::from(["hello from /\n".to_owned(), "salut from /\n".to_owned()]);
    let said = answers(&platform, &id).await?;
    ensure!(said == both, "{said:?}");
    wait::until("those before have ended", async || {
        let running = runners(&platform.data()).ok()?;
        (running.len() == 2).then_some(())
    })
    .await?;

    // And back.
    platform.succeed(&folder, &["deploy", "v1"]).await?;
    let (version, third, _) = serving(&platform, &folder).await?;
    ensure!(version == 1 && third.len() == 3, "{version} {third:?}");
    ensure!(third.is_disjoint(&second), "{third:?} {second:?}");
    let said = answers(&platform, &id).await?;
    ensure!(
        said == BTreeSet::from(["hello from /\n".to_owned()]),
        "{said:?}"
    );
    Ok(())
}

/// On which machine each slot is.
async fn machines_of(
    platform: &Platform,
    folder: &std::path::Path,
) -> anyhow::Result<BTreeMap<u64, String>> {
    let status = platform.status(folder).await?;
    let all = status["instances"].as_array().context("instances")?;
    let host = |it: &Value| {
        let host = it["host"].as_str().context("a host")?.to_owned();
        Ok((it["slot"]["ordinal"].as_u64().context("a slot")?, host))
    };
    all.iter().map(host).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_are_spread_and_one_outlives_its_machine() -> anyhow::Result<()> {
    let config = "[coordinator]\nlisten = \"127.0.0.1:0\"\nlost_after_s = 3\n";
    let platform = Platform::start_with(config).await?;
    let record = std::fs::read(platform.data().join("coordinator.json"))?;
    let record: Value = serde_json::from_slice(&record)?;
    let at = record["listen"].as_str().context("it listens")?;
    let mut box2 = Machine::new(&platform, "box2", None);
    let mut box3 = Machine::new(&platform, "box3", None);
    box2.join(&platform.data(), at).await?;
    box3.join(&platform.data(), at).await?;
    let folder = platform.copy_app("examples/hello-wasm", "hello")?;
    let manifest = folder.join("tabbify.toml");
    let plain = std::fs::read_to_string(&manifest)?;
    std::fs::write(&manifest, format!("{plain}\n[runtime]\nreplicas = 3\n"))?;
    platform.succeed(&folder, &["push"]).await?;
    let id = platform.status(&folder).await?["id"]
        .as_str()
        .context("id")?
        .to_owned();
    let before = machines_of(&platform, &folder).await?;
    let hosts: BTreeSet<&String> = before.values().collect();
    ensure!(hosts.len() == 3, "{before:?}");
    answers(&platform, &id).await?;

    // The machine goes down: its supervisor, and the runner that it had.
    let runner = runners(&box2.data)?;
    ensure!(runner.len() == 1, "{runner:?}\n{}", box2.log());
    box2.kill().await?;
    let killed = std::process::Command::new("kill")
        .args(["-9", &runner[0].to_string()])
        .status()?;
    ensure!(killed.success(), "kill -9: {killed}");
    answers(&platform, &id).await?;
    let after = wait::until("its slot is filled elsewhere", async || {
        let now = machines_of(&platform, &folder).await.ok()?;
        let is_moved = now.len() == 3 && now.values().all(|host| host != "box2");
        is_moved.then_some(now)
    })
    .await?;
    for (slot, host) in before.iter().filter(|(_, host)| *host != "box2") {
        ensure!(after.get(slot) == Some(host), "{before:?} {after:?}");
    }
    answers(&platform, &id).await?;

    // It is back, and has nothing of it.
    box2.start().await?;
    answers(&platform, &id).await?;
    let now = machines_of(&platform, &folder).await?;
    ensure!(now == after && runners(&box2.data)?.is_empty(), "{now:?}");
    Ok(())
}
