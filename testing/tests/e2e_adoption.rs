//! `kill -9` of `tabbify` at random moments: no acknowledged event is lost, and every runner keeps
//! its process, is adopted, and answers without a push.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use tabbify_testing::process::{runners, runs};
use tabbify_testing::{Platform, long, wait};

/// Numbers from a seed that is printed, so that a failure can be repeated.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

async fn answers(platform: &Platform, id: &str) -> anyhow::Result<()> {
    wait::until("the app answers", async || {
        let answer = platform.get(&format!("/app/{id}/")).await.ok()?;
        (answer.0 == 200 && answer.1.contains("hello")).then_some(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
#[expect(
    clippy::disallowed_methods,
    reason = "the seed is the time, and printed"
)]
async fn a_killed_platform_comes_back_with_the_same_runner() -> anyhow::Result<()> {
    let seed = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)?
        .as_secs();
    println!("seed {seed}");
    let mut random = Random(seed);
    let mut platform = Platform::start().await?;
    let folder = platform.copy_app("examples/hello-wasm", "hello-wasm")?;
    platform.succeed(&folder, &["push"]).await?;
    let id = platform.status(&folder).await?["id"]
        .as_str()
        .context("id")?
        .to_owned();
    answers(&platform, &id).await?;
    let before = runners(&platform.data())?;
    ensure!(before.len() == 1, "{before:?}");

    let rounds = if long() { 50 } else { 10 };
    for round in 0..rounds {
        // Something is being written at the moment of the kill: registrations, each acknowledged.
        let mut acknowledged = Vec::new();
        let moment = Duration::from_millis(random.below(300));
        let deadline = tokio::time::sleep(moment);
        tokio::pin!(deadline);
        let token = platform.token().await?;
        loop {
            let app = tabbify_types::AppId::mint();
            let name = format!("n{}", app.to_string().replace('-', ""));
            let body = serde_json::json!({ "id": app, "name": name }).to_string();
            let request = hyper::Request::post("/v1/apps")
                .header("host", &platform.authority)
                .header("authorization", format!("Bearer {token}"))
                .body(tabbify_testing::http::full(body))?;
            tokio::select! {
                () = &mut deadline => break,
                answer = tabbify_testing::http::send(&platform.authority, request) => {
                    ensure!(answer?.status() == 201, "registering");
                    acknowledged.push(app.to_string());
                }
            }
        }
        platform.kill().await?;
        ensure!(
            runs(before[0]),
            "round {round}: the runner ended with tabbify"
        );
        platform.up().await?;
        answers(&platform, &id).await?;
        let after = runners(&platform.data())?;
        ensure!(
            after == before,
            "round {round}: runners {before:?}, then {after:?}"
        );
        let (status, apps) = platform.get("/v1/apps").await?;
        ensure!(status == 200, "{apps}");
        for app in acknowledged {
            ensure!(
                apps.contains(&app),
                "round {round}: {app} was acknowledged and is lost"
            );
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_platform_killed_during_a_push_ends_with_one_runner() -> anyhow::Result<()> {
    let mut platform = Platform::start().await?;
    let folder = platform.copy_app("examples/hello-wasm", "hello-wasm")?;
    platform.succeed(&folder, &["push"]).await?;
    let id = platform.status(&folder).await?["id"]
        .as_str()
        .context("id")?
        .to_owned();
    for (round, moment) in [0, 40, 120, 300].into_iter().enumerate() {
        let mut push = platform.tcli(&folder)?.arg("push").spawn()?;
        // From the reservation of the version on, so that the kill falls into the deploy.
        tokio::time::sleep(Duration::from_millis(400 + moment)).await;
        platform.kill().await?;
        platform.up().await?;
        // The push itself may fail or not; what counts is what is left.
        push.wait().await?;
        answers(&platform, &id).await?;
        wait::until(&format!("round {round}: one runner"), async || {
            let running = runners(&platform.data()).ok()?;
            (running.len() == 1).then_some(())
        })
        .await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_runner_is_replaced() -> anyhow::Result<()> {
    let platform = Platform::start().await?;
    let folder = platform.copy_app("examples/hello-wasm", "hello-wasm")?;
    platform.succeed(&folder, &["push"]).await?;
    let id = platform.status(&folder).await?["id"]
        .as_str()
        .context("id")?
        .to_owned();
    let first = *runners(&platform.data())?.first().context("a runner")?;
    let killed = std::process::Command::new("kill")
        .args(["-9", &first.to_string()])
        .status()?;
    ensure!(killed.success(), "kill: {killed}");
    wait::until("another runner", async || {
        let running = runners(&platform.data()).ok()?;
        (running.len() == 1 && running[0] != first).then_some(())
    })
    .await?;
    answers(&platform, &id).await
}
