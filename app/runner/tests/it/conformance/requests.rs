//! Requests and what an app is given: the second, third and fifth sentence of the law.

use anyhow::ensure;
use http::HeaderValue;
use tabbify_api::logs::Stream;

use super::has;
use super::site::{App, SECRET};
use crate::harness::{get, request, sent_body, text, watched};

/// Requests at the same time.
const MANY: usize = 40;

pub(super) async fn answers(app: &App) -> anyhow::Result<()> {
    ensure!(app.text("/hello").await? == "hello");
    ensure!(app.get("/absent").await?.status() == 404);
    // Many on one connection, also behind one without a body.
    let mut client = app.connect().await?;
    for _ in 0..10 {
        client.ready().await?;
        let answer = watched(client.send_request(get("/hello")?)).await??;
        ensure!(text(answer).await? == "hello");
        client.ready().await?;
        let head = request("HEAD", "/hello", get("/")?.into_body())?;
        let answer = watched(client.send_request(head)).await??;
        ensure!(answer.status() == 200 && text(answer).await?.is_empty());
    }
    app.idle().await
}

pub(super) async fn statuses_pass(app: &App) -> anyhow::Result<()> {
    for status in [200, 204, 304, 418, 500, 503] {
        let answer = app.get(&format!("/status?{status}")).await?;
        ensure!(answer.status() == status, "{}", answer.status());
        ensure!(text(answer).await?.is_empty());
    }
    Ok(())
}

pub(super) async fn headers_pass_and_forged_ones_do_not(app: &App) -> anyhow::Result<()> {
    for (name, expected) in [
        ("x-mine", "kept"),
        ("x-tabbify-user", "user:owner"),
        ("x-tabbify-app", "unset"),
        ("x-tabbify-error", "unset"),
    ] {
        let mut sent = get(&format!("/header?{name}"))?;
        let value = if name == "x-tabbify-user" {
            "user:owner"
        } else {
            "kept"
        };
        sent.headers_mut()
            .insert(name, HeaderValue::from_static(value));
        let seen = text(app.send(sent).await?).await?;
        ensure!(seen == expected, "{name}: {seen}");
    }
    Ok(())
}

pub(super) async fn variables(app: &App) -> anyhow::Result<()> {
    ensure!(app.text("/env?GREETING").await? == "good day");
    // What the runner itself has is not the app's.
    ensure!(app.text("/env?CARGO_MANIFEST_DIR").await? == "unset");
    Ok(())
}

pub(super) async fn secrets(app: &App) -> anyhow::Result<()> {
    let (variable, value) = SECRET;
    let seen = app.text(&format!("/env?{variable}")).await?;
    ensure!(seen == value, "{seen}");
    Ok(())
}

pub(super) async fn what_is_printed_is_in_the_log(app: &App) -> anyhow::Result<()> {
    app.text("/print?a-line").await?;
    let both = async {
        loop {
            let lines = app.lines().await?;
            let is_there = |stream: Stream, text: &str| {
                lines
                    .iter()
                    .any(|line| line.stream == stream && line.line == text)
            };
            if is_there(Stream::Stdout, "out a-line") && is_there(Stream::Stderr, "err a-line") {
                return anyhow::Ok(());
            }
            tokio::task::yield_now().await;
        }
    };
    watched(both).await?
}

pub(super) async fn many_at_once(app: &App) -> anyhow::Result<()> {
    let one = async |number: usize| {
        let (chunks, body) = sent_body();
        let echo = app.send(request("POST", "/echo", body)?);
        let said = format!("request {number}");
        let sending = async {
            chunks.send(said.clone().into()).await?;
            drop(chunks);
            anyhow::Ok(())
        };
        let (answer, sent) = tokio::join!(echo, sending);
        sent?;
        let back = text(answer?).await?;
        ensure!(back == said, "{back}");
        anyhow::Ok(())
    };
    let all = futures_util::future::join_all((0..MANY).map(one)).await;
    all.into_iter().collect::<anyhow::Result<()>>()?;
    app.idle().await
}

pub(super) async fn a_failure_before_the_head_is_told(app: &App) -> anyhow::Result<()> {
    let answer = app.get("/fail").await?;
    ensure!(answer.status() == 502, "{}", answer.status());
    ensure!(answer.headers().contains_key("x-tabbify-error"));
    has(&text(answer).await?, "The app")?;
    app.idle().await
}

pub(super) async fn a_failure_after_the_head_never_looks_whole(app: &App) -> anyhow::Result<()> {
    broken(app).await?;
    app.idle().await
}

/// Whether the head comes before the end or not, there is no whole answer.
async fn broken(app: &App) -> anyhow::Result<()> {
    if let Ok(answer) = app.get("/break").await {
        ensure!(answer.status() == 200, "{}", answer.status());
        ensure!(text(answer).await.is_err(), "it looks whole");
    }
    Ok(())
}

/// A request that is under way does not notice what becomes of others.
pub(super) async fn one_failure_disturbs_nobody(app: &App) -> anyhow::Result<()> {
    use http_body_util::BodyExt as _;
    let (chunks, body) = sent_body();
    chunks.send("before".into()).await?;
    let mut echoed = app.send(request("POST", "/echo", body)?).await?.into_body();
    let mut next = async || {
        let frame = watched(echoed.frame()).await?.transpose()?;
        anyhow::Ok(frame.and_then(|frame| frame.into_data().ok()))
    };
    ensure!(next().await?.as_deref() == Some(&b"before"[..]));
    for _ in 0..3 {
        app.get("/fail").await?;
        broken(app).await?;
    }
    chunks.send("after".into()).await?;
    ensure!(next().await?.as_deref() == Some(&b"after"[..]));
    drop(chunks);
    ensure!(next().await?.is_none());
    app.idle().await
}

pub(super) async fn memory_without_end_fails_its_request(app: &App) -> anyhow::Result<()> {
    let answer = app.get("/eat").await?;
    ensure!(answer.status().is_server_error(), "{}", answer.status());
    ensure!(app.text("/hello").await? == "hello");
    app.idle().await
}

/// Whether it is ended by a limit or by its caller, nobody else waits for it.
pub(super) async fn an_endless_loop_holds_nobody_else(app: &App) -> anyhow::Result<()> {
    let mut client = app.connect().await?;
    let spinning = client.send_request(get("/spin")?);
    let mut spinning = Box::pin(spinning);
    // It is under way while the others are answered.
    let others = async {
        while app.traffic.counts().active == 0 {
            tokio::task::yield_now().await;
        }
        for _ in 0..5 {
            ensure!(app.text("/hello").await? == "hello");
        }
        anyhow::Ok(())
    };
    tokio::select! {
        others = watched(others) => others??,
        answer = &mut spinning => {
            let status = answer?.status();
            ensure!(status.is_server_error(), "{status}");
            ensure!(app.text("/hello").await? == "hello");
            return app.idle().await;
        }
    }
    // Whoever asked leaves.
    drop(spinning);
    drop(client);
    app.idle().await
}
