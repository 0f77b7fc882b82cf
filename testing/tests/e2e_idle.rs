//! Apps that stop when they have nothing to do, and are there when somebody comes: by the node, by name from
//! another app, many at once, and at the very moment of falling asleep.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use hyper::Request;
use tabbify_testing::machine::Machine;
use tabbify_testing::process::runners;
use tabbify_testing::{Platform, http, wait};

/// Callers at once while an app sleeps.
const CALLERS: usize = 50;

/// An app that stops after a second.
async fn push(platform: &Platform, from: &str, name: &str) -> anyhow::Result<(PathBuf, String)> {
    let folder = platform.copy_app(from, name)?;
    let path = folder.join("tabbify.toml");
    let manifest = std::fs::read_to_string(&path)?;
    std::fs::write(
        &path,
        format!("{manifest}\n[runtime]\nidle_timeout = \"1s\"\n"),
    )?;
    platform.succeed(&folder, &["push"]).await?;
    let status = platform.status(&folder).await?;
    let id = status["id"].as_str().context("id")?.to_owned();
    Ok((folder, id))
}

/// Calls apps as the owner, without another `tcli` each time.
#[derive(Clone)]
struct Caller {
    authority: String,
    token: String,
}

impl Caller {
    async fn of(platform: &Platform) -> anyhow::Result<Self> {
        Ok(Self {
            authority: platform.authority.clone(),
            token: platform.token().await?,
        })
    }

    async fn call(&self, method: &str, path: &str) -> anyhow::Result<(u16, String)> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", &self.authority)
            .header("authorization", format!("Bearer {}", self.token))
            .body(http::full(if method == "POST" { "a body" } else { "" }))?;
        let answer = http::send(&self.authority, request).await?;
        Ok((answer.status().as_u16(), http::text(answer).await?))
    }

    async fn hello(&self, method: &str, id: &str) -> anyhow::Result<()> {
        let (status, body) = self.call(method, &format!("/app/{id}/there")).await?;
        ensure!(
            status == 200 && body.contains("hello from /there"),
            "{method}: {status} {body}"
        );
        Ok(())
    }
}

async fn asleep(platform: &Platform, folder: &Path, awake: usize) -> anyhow::Result<()> {
    wait::until("it sleeps", async || {
        let status = platform.status(folder).await.ok()?;
        let running = runners(&platform.data()).ok()?;
        (status["status"] == "idle" && running.len() == awake).then_some(())
    })
    .await
    .with_context(|| platform.log())
}

/// How often this happened to the app of a folder.
async fn count(platform: &Platform, folder: &Path, kind: &str) -> anyhow::Result<usize> {
    let asked = ["--json", "events", "--app", "hello-wasm", "--type", kind];
    let said = platform.succeed(folder, &asked).await?;
    Ok(said.lines().filter(|line| line.contains(kind)).count())
}

#[tokio::test(flavor = "multi_thread")]
async fn many_who_come_at_once_wake_an_app_once() -> anyhow::Result<()> {
    let platform = Platform::start().await?;
    let (folder, id) = push(&platform, "examples/hello-wasm", "hello").await?;
    let caller = Caller::of(&platform).await?;
    caller.hello("GET", &id).await?;
    for round in 1..=2 {
        asleep(&platform, &folder, 0).await?;
        ensure!(
            count(&platform, &folder, "app_idled").await? == round,
            "it idled"
        );
        let mut calls = tokio::task::JoinSet::new();
        for n in 0..CALLERS {
            let (caller, id) = (caller.clone(), id.clone());
            let method = if n % 2 == 0 { "GET" } else { "POST" };
            calls.spawn(async move { caller.hello(method, &id).await });
        }
        while let Some(called) = calls.join_next().await {
            called?.with_context(|| platform.log())?;
        }
        let running = runners(&platform.data())?;
        ensure!(running.len() <= 1, "one process of it: {running:?}");
        wait::until("it is said that it woke up", async || {
            let woken = count(&platform, &folder, "app_woken").await.ok()?;
            (woken >= round).then_some(())
        })
        .await?;
        ensure!(
            count(&platform, &folder, "app_woken").await? == round,
            "it woke up once"
        );
    }
    // It was never anything but the same instance.
    for kind in ["app_placed", "app_started", "traffic_shifted"] {
        ensure!(count(&platform, &folder, kind).await? == 1, "{kind}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_wakes_another_by_name_and_a_deploy_finds_it_asleep() -> anyhow::Result<()> {
    let mut platform = Platform::start().await?;
    let (folder, id) = push(&platform, "examples/hello-wasm", "hello").await?;
    let ask = platform.copy_app("testing/fixtures/wasm/ask", "ask")?;
    platform.succeed(&ask, &["push"]).await?;
    let status = platform.status(&ask).await?;
    let asks = status["id"].as_str().context("id")?.to_owned();
    let caller = Caller::of(&platform).await?;
    for _ in 0..2 {
        asleep(&platform, &folder, 1).await?;
        let path = format!("/app/{asks}/hello-wasm.main.internal/headers");
        let (status, seen) = caller.call("GET", &path).await?;
        ensure!(status == 200, "{status}: {seen}\n{}", platform.log());
        // Whoever comes through the doorbell is who the mesh says, and nobody else.
        ensure!(seen.contains(&format!("x-tabbify-app: {asks}")), "{seen}");
        ensure!(!seen.contains("forged"), "{seen}");
    }

    // A crash of everything but the runners finds it asleep, and it wakes up after it.
    asleep(&platform, &folder, 1).await?;
    platform.kill().await?;
    platform.up().await?;
    let caller = Caller::of(&platform).await?;
    wait::until("it is woken after a crash", async || {
        caller.hello("GET", &id).await.ok()
    })
    .await
    .with_context(|| platform.log())?;

    // A new version comes up beside it, and what sleeps is retired without being woken.
    asleep(&platform, &folder, 1).await?;
    let woken = count(&platform, &folder, "app_woken").await?;
    platform.succeed(&folder, &["push"]).await?;
    caller.hello("GET", &id).await?;
    ensure!(
        count(&platform, &folder, "app_woken").await? == woken,
        "nobody woke it"
    );
    wait::until("what slept is retired", async || {
        let stopped = count(&platform, &folder, "app_stopped").await.ok()?;
        (stopped == 1).then_some(())
    })
    .await
}

/// Where the coordinator of a data directory listens.
fn coordinator(data: &Path) -> anyhow::Result<String> {
    let record = std::fs::read(data.join("coordinator.json"))?;
    let record: serde_json::Value = serde_json::from_slice(&record)?;
    let listen = record["listen"].as_str().context("it listens")?;
    Ok(listen.to_owned())
}

/// The doorbell of another machine, over the network. Its supervisor is replaced under a stream of requests,
/// once as a crash does it and once as an upgrade does, and none of them is lost.
#[tokio::test(flavor = "multi_thread")]
async fn what_sleeps_on_another_machine_is_woken_there() -> anyhow::Result<()> {
    let platform = Platform::start_with("[coordinator]\nlisten = \"127.0.0.1:0\"\n").await?;
    let at = coordinator(&platform.data())?;
    // By name before the platform's own machine: of two that are empty, it is chosen.
    let mut box2 = Machine::new(&platform, "box2", None);
    box2.join(&platform.data(), &at).await?;
    let (folder, id) = push(&platform, "examples/hello-wasm", "hello").await?;
    let caller = Caller::of(&platform).await?;
    caller.hello("GET", &id).await?;
    let sleeps = async |machine: &Machine| {
        wait::until("it sleeps there", async || {
            let status = platform.status(&folder).await.ok()?;
            let running = runners(&machine.data).ok()?;
            (status["status"] == "idle" && running.is_empty()).then_some(())
        })
        .await
        .with_context(|| format!("{}\n{}", platform.log(), machine.log()))
    };
    ensure!(runners(&platform.data())?.is_empty(), "it is elsewhere");
    for method in ["POST", "GET"] {
        sleeps(&box2).await?;
        caller
            .hello(method, &id)
            .await
            .with_context(|| box2.log())?;
    }

    let (stop, stopped) = tokio::sync::watch::channel(false);
    let mut streams = tokio::task::JoinSet::new();
    for n in 0..4 {
        let (caller, id, stopped) = (caller.clone(), id.clone(), stopped.clone());
        let method = if n % 2 == 0 { "GET" } else { "POST" };
        streams.spawn(async move {
            let mut served = 0_u32;
            while !*stopped.borrow() {
                caller.hello(method, &id).await?;
                served += 1;
            }
            anyhow::Ok(served)
        });
    }
    let runner = wait::until("it is awake", async || {
        runners(&box2.data)
            .ok()
            .filter(|running| running.len() == 1)
    })
    .await?;
    // From here on it is reached directly: who was let in through the doorbell ends with it.
    wait::until("it is said that it is awake", async || {
        let status = platform.status(&folder).await.ok()?;
        (status["status"] == "healthy").then_some(())
    })
    .await?;
    for crash in [true, false] {
        match crash {
            true => box2.kill().await?,
            false => box2.end().await?,
        }
        // The time without a supervisor is what is tried.
        tokio::time::sleep(Duration::from_millis(300)).await;
        box2.start().await?;
    }
    stop.send_replace(true);
    while let Some(served) = streams.join_next().await {
        let served = served?.with_context(|| box2.log())?;
        ensure!(served > 10, "{served} requests");
    }
    ensure!(runners(&box2.data)? == runner, "it was adopted");
    sleeps(&box2).await
}

/// The times between requests are about the time after which it stops, so that they come at every moment of
/// its falling asleep. None is refused, and none is lost.
#[tokio::test(flavor = "multi_thread")]
async fn who_comes_while_it_falls_asleep_is_served() -> anyhow::Result<()> {
    let platform = Platform::start().await?;
    let (folder, id) = push(&platform, "examples/hello-wasm", "hello").await?;
    let caller = Caller::of(&platform).await?;
    for n in 0..16_u64 {
        let method = if n % 2 == 0 { "POST" } else { "GET" };
        caller
            .hello(method, &id)
            .await
            .with_context(|| platform.log())?;
        // The moment is what is tried.
        tokio::time::sleep(Duration::from_millis(900 + n * 100)).await;
    }
    let idled = count(&platform, &folder, "app_idled").await?;
    ensure!(idled >= 3, "it fell asleep {idled} times");
    Ok(())
}
