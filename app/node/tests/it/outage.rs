//! The log is away when the node starts: what it knew is served, and nothing is taken that would have
//! to be written.

use anyhow::{Result, ensure};
use http::StatusCode;
use serde_json::{Value, json};
use tabbify_process::Tasks;
use tabbify_types::{AppId, Digest};

use crate::app::{App, mirror};
use crate::harness::{LogIs, Platform};
use crate::http_client::until;

#[tokio::test]
async fn what_is_known_is_served_while_the_log_is_down() -> Result<()> {
    let platform = Platform::start().await?;
    // The app outlives the node.
    let tasks = Tasks::new();
    let app = App::start(&tasks, mirror).await?;
    let id = platform.serving("shop", "private", &app).await?;
    let before = platform.get("/v1/apps", "reader").await?.json()?;

    let platform = platform.restart_where(LogIs::Away, |_| Ok(())).await?;
    platform.leads_to(id, &app);
    let path = format!("/app/{id}/still");
    let answer = platform.get(&path, "owner").await?;
    ensure!(answer.status == StatusCode::OK, "{}", answer.text());
    let refused = platform.get(&path, "acme").await?.problem()?;
    ensure!(refused == (404, "unknown_app".to_owned()), "{refused:?}");
    let mut now = platform.get("/v1/apps", "reader").await?.json()?;
    for apps in [&before, &now] {
        ensure!(apps["apps"][0]["serving"] == 1, "{apps}");
    }
    // The port is another one.
    now["apps"][0]["url"] = before["apps"][0]["url"].clone();
    ensure!(now == before, "{now}");
    let health = platform.get("/health", "").await?.json()?;
    ensure!(health["log_away_s"].is_u64(), "{health}");

    let late = json!({ "id": AppId::mint(), "name": "late" });
    let refused = platform
        .post("/v1/apps", "owner", late.clone())
        .await?
        .problem()?;
    ensure!(refused == (503, "unavailable".to_owned()), "{refused:?}");

    platform.lay(LogIs::There);
    let answer = platform.post("/v1/apps", "owner", late).await?;
    ensure!(answer.status == StatusCode::CREATED, "{}", answer.text());
    until("it is up to date", async || {
        let health = platform.get("/health", "").await;
        let health = health.and_then(|answer| answer.json());
        health.is_ok_and(|health| health["log_away_s"] == Value::Null)
    })
    .await?;
    let answer = platform.get(&path, "owner").await?;
    ensure!(answer.status == StatusCode::OK, "{}", answer.text());
    tasks.stop();
    Ok(())
}

/// The same snapshot, of a program with another version of the fold.
fn of_another_version(snapshot: &[u8]) -> Result<Vec<u8>> {
    let text = std::str::from_utf8(snapshot)?;
    let (_, body) = text.split_once('\n').unwrap_or_default();
    let body = body.replacen(r#""version":4"#, r#""version":99"#, 1);
    let digest = Digest::of(body.as_bytes());
    Ok(format!("tabbify-fold 1 {digest}\n{body}").into_bytes())
}

#[tokio::test]
async fn a_view_that_cannot_be_used_is_made_anew() -> Result<()> {
    let (mut platform, other) = (Platform::start().await?, Platform::start().await?);
    for name in ["shop", "blog"] {
        platform.register(name).await?;
    }
    other.register("foreign").await?;
    // Stored by the end of each.
    let mut of_another_log = Vec::new();
    let take = |path: &std::path::Path| {
        of_another_log = std::fs::read(path)?;
        Ok(())
    };
    other.restart_where(LogIs::There, take).await?;
    let mut good = Vec::new();
    let take = |path: &std::path::Path| {
        good = std::fs::read(path)?;
        Ok(())
    };
    platform = platform.restart_where(LogIs::There, take).await?;

    let mut damaged = good.clone();
    damaged[good.len() / 2] ^= 1;
    for (what, bytes) in [
        ("of another log", of_another_log),
        ("of another version", of_another_version(&good)?),
        ("damaged", damaged),
    ] {
        let exchange = |path: &std::path::Path| Ok(std::fs::write(path, &bytes)?);
        platform = platform.restart_where(LogIs::There, exchange).await?;
        let apps = platform.get("/v1/apps", "reader").await?.json()?;
        let names: Vec<&str> = apps["apps"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|app| app["name"].as_str())
            .collect();
        ensure!(names == ["blog", "shop"], "{what}: {names:?}");
        let stored = platform.snapshot();
        until("it is stored anew", async || {
            std::fs::read(&stored).is_ok_and(|stored| stored != bytes)
        })
        .await?;
    }
    Ok(())
}
