//! Deploys under a steady load: requests on kept connections and on new ones, that may be asked twice and that
//! may not; each is answered, by the version before or by the one after.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use futures_util::future::try_join_all;
use hyper::Request;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tabbify_process::{Importance, Tasks};
use tabbify_testing::http::{SendBody, full, send, text};
use tabbify_testing::{Platform, long, wait};
use tokio::net::TcpStream;
use tokio::time::{MissedTickBehavior, interval};

/// Callers at a time: half of them keep their connection, half make one for each request; half of each ask
/// with GET, half send a body with POST.
const CALLERS: usize = 8;
/// How often each asks.
const EVERY: Duration = Duration::from_millis(16);

struct Load<'a> {
    platform: &'a Platform,
    id: &'a str,
    token: &'a str,
    tasks: &'a Tasks,
    is_over: AtomicBool,
}

impl Load<'_> {
    fn request(&self, method: &str) -> anyhow::Result<Request<SendBody>> {
        let body = if method == "POST" { "a body" } else { "" };
        Ok(Request::builder()
            .method(method)
            .uri(format!("/app/{}/", self.id))
            .header("host", &self.platform.authority)
            .header("authorization", format!("Bearer {}", self.token))
            .body(full(body))?)
    }

    async fn connection(&self) -> anyhow::Result<SendRequest<SendBody>> {
        let stream = TcpStream::connect(&self.platform.authority).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        self.tasks.spawn("caller", Importance::Detached, async {
            // An error also reaches the request; there it is seen.
            let _ = connection.await;
        });
        Ok(sender)
    }

    /// Asks until the load is over; how often.
    async fn caller(&self, n: usize) -> anyhow::Result<usize> {
        let method = if n.is_multiple_of(2) { "GET" } else { "POST" };
        let mut kept = match n % 4 {
            0 | 1 => Some(self.connection().await?),
            _ => None,
        };
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut asked = 0;
        while !self.is_over.load(Ordering::Relaxed) {
            ticks.tick().await;
            let request = self.request(method)?;
            let answer = match &mut kept {
                Some(connection) => {
                    connection.ready().await?;
                    connection.send_request(request).await.map_err(Into::into)
                }
                None => send(&self.platform.authority, request).await,
            };
            let answer = answer.with_context(|| format!("{method} {asked} of caller {n}"))?;
            let status = answer.status();
            let said = text(answer).await?;
            ensure!(
                status == 200,
                "{method} {asked} of caller {n}: {status} {said}"
            );
            asked += 1;
        }
        Ok(asked)
    }

    /// Brings a version into service.
    async fn deploy(&self, version: u32) -> anyhow::Result<()> {
        let id = tabbify_types::DeployId::mint();
        let wanted = serde_json::json!({ "id": id, "app": self.id, "version": version });
        let (path, body) = ("/v1/deploys", full(wanted.to_string()));
        let answer = self.platform.request("POST", path, body).await?;
        ensure!(answer.status() == 202, "{}", text(answer).await?);
        wait::until("the deploy has ended", async || {
            let (_, said) = self
                .platform
                .get(&format!("{path}/{id}?wait_s=5"))
                .await
                .ok()?;
            let said: serde_json::Value = serde_json::from_str(&said).ok()?;
            match said["status"].as_str()? {
                "running" => None,
                ended => Some(
                    (ended == "succeeded")
                        .then_some(())
                        .context(said.to_string()),
                ),
            }
        })
        .await?
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn deploys_under_load_fail_no_request() -> anyhow::Result<()> {
    let platform = Platform::start().await?;
    let folder = platform.copy_app("examples/hello-wasm", "hello-wasm")?;
    for _ in 0..2 {
        platform.succeed(&folder, &["push"]).await?;
    }
    let id = platform.status(&folder).await?["id"]
        .as_str()
        .context("id")?
        .to_owned();
    let (token, tasks) = (platform.token().await?, Tasks::new());
    let load = Load {
        platform: &platform,
        id: &id,
        token: &token,
        tasks: &tasks,
        is_over: AtomicBool::new(false),
    };
    let rounds = if long() { 50 } else { 5 };
    let deploys = async {
        for round in 0..rounds {
            let deployed = load.deploy(1 + round % 2).await;
            deployed.with_context(|| format!("deploy {round}"))?;
        }
        load.is_over.store(true, Ordering::Relaxed);
        anyhow::Ok(())
    };
    let callers = try_join_all((0..CALLERS).map(|n| load.caller(n)));
    let both = async { tokio::try_join!(callers, deploys) }.await;
    let (asked, ()) = both.with_context(|| platform.log())?;
    let asked: usize = asked.into_iter().sum();
    println!("{rounds} deploys under {asked} requests: 0 failed");
    ensure!(asked > CALLERS * 10, "{asked} requests are no load");
    tasks.stop();
    Ok(())
}
