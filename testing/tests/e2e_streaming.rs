//! Bodies stream both ways through node, tunnel and runner, in lockstep and in constant memory.
#![expect(
    clippy::print_stdout,
    reason = "the figures are part of what the test is for"
)]

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::Request;
use hyper::body::Incoming;
use tabbify_testing::http::{self, SendBody};
use tabbify_testing::process::{memory, reset_peak, runners};
use tabbify_testing::{Platform, long};

/// What each process may grow by while a large body passes.
const GROWTH_MAX: u64 = 64 << 20;
const CHUNK: usize = 64 << 10;

struct Pushed {
    platform: Platform,
    id: String,
    token: String,
}

async fn pushed() -> anyhow::Result<Pushed> {
    let platform = Platform::start().await?;
    let folder = platform.copy_app("examples/stream-wasm", "stream-wasm")?;
    platform.succeed(&folder, &["push"]).await?;
    let id = platform.status(&folder).await?["id"]
        .as_str()
        .context("id")?
        .to_owned();
    let token = platform.token().await?;
    Ok(Pushed {
        platform,
        id,
        token,
    })
}

impl Pushed {
    async fn send(
        &self,
        method: &str,
        path: &str,
        body: SendBody,
    ) -> anyhow::Result<hyper::Response<Incoming>> {
        let request = Request::builder()
            .method(method)
            .uri(format!("/app/{}/{path}", self.id))
            .header("host", &self.platform.authority)
            .header("authorization", format!("Bearer {}", self.token))
            .body(body)?;
        let response = http::send(&self.platform.authority, request).await?;
        ensure!(
            response.status() == 200,
            "{path}: {}",
            http::text(response).await?
        );
        Ok(response)
    }

    /// Runs `load` and checks how much `tabbify` and the runner grew at their peak.
    async fn growth(
        &self,
        what: &str,
        load: impl Future<Output = anyhow::Result<()>>,
    ) -> anyhow::Result<()> {
        let runner = *runners(&self.platform.data())?
            .first()
            .context("a runner")?;
        let mut before = Vec::new();
        for pid in [self.platform.pid()?, runner] {
            reset_peak(pid)?;
            before.push((pid, memory(pid, "VmRSS:")?));
        }
        load.await?;
        for ((pid, before), name) in before.into_iter().zip(["tabbify", "tabbify-runner"]) {
            let grown = memory(pid, "VmHWM:")?.saturating_sub(before);
            println!("{what}: {name} grew by {} KiB at its peak", grown >> 10);
            ensure!(grown < GROWTH_MAX, "{what}: {name} grew by {grown} bytes");
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_round_trips_in_lockstep_on_one_request() -> anyhow::Result<()> {
    let app = pushed().await?;
    let (mut sender, body) = http::streaming();
    let sending = app.send("POST", "echo", body);
    // The app answers its head before it has read anything.
    let mut answer = sending.await?.into_body();
    for round in 0..100 {
        let chunk = Bytes::from(format!("chunk {round:03}\n"));
        sender.send_data(chunk.clone()).await?;
        // Only the echo of this chunk lets the next one be sent.
        let mut echoed = Vec::new();
        while echoed.len() < chunk.len() {
            let frame = answer.frame().await.context("the answer goes on")??;
            echoed.extend_from_slice(frame.data_ref().context("data")?);
        }
        ensure!(echoed == chunk, "round {round}: {echoed:?}");
    }
    drop(sender);
    ensure!(
        answer.frame().await.is_none(),
        "the answer ends with the request"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn large_bodies_pass_in_constant_memory() -> anyhow::Result<()> {
    let app = pushed().await?;
    let total: usize = if long() { 1 << 30 } else { 256 << 20 };
    // A first request of each kind, so that growth is of the body and not of the first use.
    app.send("GET", "download?bytes=1000000", http::full(""))
        .await?
        .into_body()
        .collect()
        .await?;

    app.growth("download", async {
        let mut body = app
            .send("GET", &format!("download?bytes={total}"), http::full(""))
            .await?
            .into_body();
        let mut received = 0;
        while let Some(frame) = body.frame().await {
            received += frame?.data_ref().map_or(0, Bytes::len);
        }
        ensure!(received == total, "{received} of {total} bytes");
        Ok(())
    })
    .await?;

    app.growth("upload", async {
        let (mut sender, body) = http::streaming();
        let chunk = Bytes::from(vec![0x5a; CHUNK]);
        let (answer, sent) = tokio::join!(app.send("POST", "upload", body), async move {
            for _ in 0..total / CHUNK {
                sender.send_data(chunk.clone()).await?;
            }
            anyhow::Ok(())
        });
        sent?;
        let said = http::text(answer?).await?;
        ensure!(said.contains(&total.to_string()), "{said}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_answer_arrives_piece_by_piece() -> anyhow::Result<()> {
    let app = pushed().await?;
    let mut body = app
        .send("GET", "slow?n=5&ms=200", http::full(""))
        .await?
        .into_body();
    let mut pieces = 0;
    while let Some(frame) = body.frame().await {
        // Were the answer buffered anywhere, it would arrive as one piece.
        pieces += usize::from(frame?.data_ref().is_some_and(|data| !data.is_empty()));
    }
    ensure!(pieces >= 5, "{pieces} pieces");
    Ok(())
}
