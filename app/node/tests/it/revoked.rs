//! What a token opened ends when it is revoked; what others opened goes on.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http::header::SET_COOKIE;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::{Frame, Incoming};
use serde_json::Value;
use tabbify_process::Importance;
use tabbify_types::event::v1::DeployRequested;
use tabbify_types::{AppId, DeployId, VersionNumber};
use tokio::sync::{Semaphore, mpsc};

use crate::app::{App, echo, text};
use crate::harness::{Platform, files};
use crate::http_client::{Answer, Raw, channel, full, soon};

/// An exchange with an app that sends back what it is sent.
struct Echo {
    frames: mpsc::Sender<Frame<Bytes>>,
    answer: Response<Incoming>,
}

impl Echo {
    async fn open(platform: &Platform, header: (&str, &str)) -> Result<Self> {
        let (frames, body) = channel();
        let request = Request::post("/")
            .header("host", "shop.localhost")
            .header(header.0, header.1)
            .body(body)?;
        let answer = platform.client().await?.send(request).await?;
        ensure!(answer.status() == StatusCode::OK, "{}", answer.status());
        let mut echo = Self { frames, answer };
        echo.goes_on().await?;
        Ok(echo)
    }

    async fn goes_on(&mut self) -> Result<()> {
        self.frames.send(Frame::data("ping".into())).await?;
        let frame = soon("the echo", self.answer.frame()).await?;
        let data = frame.context("a frame")??.into_data();
        ensure!(data.is_ok_and(|data| data == "ping"));
        Ok(())
    }

    async fn breaks_off(&mut self) -> Result<()> {
        let frame = soon("the end", self.answer.frame()).await?;
        ensure!(matches!(frame, Some(Err(_))), "{frame:?}");
        Ok(())
    }
}

/// A session with the app, as a browser has it: the cookie.
async fn session(platform: &Platform, app: AppId, token: &str) -> Result<String> {
    let link = platform
        .post(&format!("/v1/apps/{app}/open"), token, Value::Null)
        .await?;
    let link = link.json()?["url"].as_str().context("a link")?.to_owned();
    let (_, target) = link.split_once("localhost").context("a link")?;
    let (_, target) = target.split_once('/').context("a path")?;
    let request = Request::get(format!("/{target}")).header("host", "shop.localhost");
    let opened = platform.send(request.body(full(""))?).await?;
    let cookie = opened.headers[SET_COOKIE].to_str()?;
    Ok(cookie.split(';').next().unwrap_or_default().to_owned())
}

#[tokio::test]
async fn streams_and_sessions_end_with_their_token() -> Result<()> {
    let platform = Platform::start().await?;
    let app = App::start(&platform.tasks, echo).await?;
    let id = platform.serving("shop", "private", &app).await?;
    let bound = format!("Bearer bound.{id}");
    let cookie = session(&platform, id, "owner").await?;
    let mut by_token = Echo::open(&platform, ("authorization", "Bearer owner")).await?;
    let mut by_session = Echo::open(&platform, ("cookie", &cookie)).await?;
    let mut others = Echo::open(&platform, ("authorization", &bound)).await?;

    // Somebody's else revocation ends nothing.
    platform.words.revoke("reader");
    for echo in [&mut by_token, &mut by_session, &mut others] {
        echo.goes_on().await?;
    }
    platform.words.revoke("owner");
    by_token.breaks_off().await?;
    by_session.breaks_off().await?;
    others.goes_on().await?;
    Ok(())
}

#[tokio::test]
async fn a_public_app_loses_whom_it_knew() -> Result<()> {
    let platform = Platform::start().await?;
    let app = App::start(&platform.tasks, echo).await?;
    platform.serving("shop", "public", &app).await?;
    let mut known = Echo::open(&platform, ("authorization", "Bearer owner")).await?;
    let mut unknown = Echo::open(&platform, ("x-any", "thing")).await?;
    platform.words.revoke("owner");
    known.breaks_off().await?;
    unknown.goes_on().await?;
    Ok(())
}

#[tokio::test]
async fn who_waits_is_told() -> Result<()> {
    let platform = Platform::start().await?;
    let asked = Arc::new(Semaphore::new(0));
    let app = {
        let asked = Arc::clone(&asked);
        App::start(&platform.tasks, move |_| {
            asked.add_permits(1);
            std::future::pending()
        })
        .await?
    };
    let id = platform.serving("shop", "private", &app).await?;
    let deploy = DeployId::mint();
    let requested = DeployRequested {
        app: id,
        deploy,
        version: VersionNumber(1),
    };
    platform.append(id, requested.into()).await?;
    let (frames, upload) = channel();
    let version = platform.reserve(id, &files(id, "shop", "private")).await?;
    let path = format!("/v1/apps/{id}/versions/{version}/files/app.wasm");
    let upload = Request::put(path)
        .header("host", "localhost")
        .header("authorization", "Bearer owner")
        .body(upload)?;
    frames.send(Frame::data("\0a".into())).await?;

    let path = format!("/app/{id}/");
    let (wait, seen) = (format!("/v1/deploys/{deploy}?wait_s=50&seen=1"), async {
        soon("the request", asked.acquire()).await??.forget();
        platform.words.revoke("owner");
        anyhow::Ok(())
    });
    let (app, upload, wait, ()) = futures_util::future::try_join4(
        platform.get(&path, "owner"),
        platform.send(upload),
        platform.get(&wait, "owner"),
        seen,
    )
    .await?;
    for (what, answer) in [("app", app), ("upload", upload), ("wait", wait)] {
        let refused = answer.problem()?;
        ensure!(
            refused == (401, "token_invalid".to_owned()),
            "{what}: {refused:?}"
        );
    }
    drop(frames);
    Ok(())
}

#[tokio::test]
async fn followers_of_events_and_logs_are_cut_off() -> Result<()> {
    let platform = Platform::start().await?;
    let id = platform.register("shop").await?;
    let mut following = Vec::new();
    for path in [
        "/v1/events?follow=true".to_owned(),
        format!("/v1/apps/{id}/logs?follow=true"),
    ] {
        let request = Request::get(&path)
            .header("host", "localhost")
            .header("authorization", "Bearer owner")
            .body(full(""))?;
        let mut answer = platform.client().await?.send(request).await?;
        ensure!(answer.status() == StatusCode::OK, "{path}");
        let first = soon("the history", answer.frame()).await?;
        ensure!(matches!(first, Some(Ok(_))), "{path}: {first:?}");
        following.push((path, answer));
    }
    platform.words.revoke("owner");
    for (path, answer) in following {
        let rest = soon("the end", answer.into_body().collect()).await?;
        ensure!(rest.is_err(), "{path}: it ended as if it were whole");
    }
    Ok(())
}

#[tokio::test]
async fn tunnels_end_with_their_token() -> Result<()> {
    let platform = Platform::start().await?;
    let ended = Arc::new(Semaphore::new(0));
    let app = {
        let (tasks, ended) = (platform.tasks.clone(), Arc::clone(&ended));
        App::start(&platform.tasks, move |mut request| {
            let (tasks, ended) = (tasks.clone(), Arc::clone(&ended));
            async move {
                let upgrade = hyper::upgrade::on(&mut request);
                tasks.spawn("echo", Importance::Detached, async move {
                    if let Ok(stream) = upgrade.await {
                        let stream = hyper_util::rt::TokioIo::new(stream);
                        let (mut read, mut write) = tokio::io::split(stream);
                        let _ = tokio::io::copy(&mut read, &mut write).await;
                    }
                    ended.add_permits(1);
                });
                let mut answer = text("");
                *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
                for (name, value) in [("upgrade", "chat"), ("connection", "upgrade")] {
                    let value = http::HeaderValue::from_static(value);
                    answer.headers_mut().insert(name, value);
                }
                answer
            }
        })
        .await?
    };
    let id = platform.serving("shop", "private", &app).await?;
    let open = async |token: &str| -> Result<Raw> {
        let mut raw = Raw::connect(platform.node).await?;
        raw.write(format!(
            "GET /chat HTTP/1.1\r\nHost: shop.localhost\r\nConnection: Upgrade\r\n\
             Upgrade: chat\r\nX-Tabbify-Token: {token}\r\n\r\n"
        ))
        .await?;
        let answer = raw.read_until("\r\n\r\n").await?;
        ensure!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
        raw.write("ping#").await?;
        ensure!(raw.read_until("#").await? == "ping#");
        Ok(raw)
    };
    let mut mine = open("owner").await?;
    let mut others = open(&format!("bound.{id}")).await?;
    platform.words.revoke("owner");
    ensure!(mine.rest().await?.is_empty());
    soon("the app's side ends", ended.acquire())
        .await??
        .forget();
    others.write("still#").await?;
    ensure!(others.read_until("#").await? == "still#");
    ensure!(ended.available_permits() == 0, "only one has ended");
    Ok(())
}

/// A token for one app is good for that app alone.
#[tokio::test]
async fn a_token_for_one_app() -> Result<()> {
    let platform = Platform::start().await?;
    let app = App::start(&platform.tasks, crate::app::mirror).await?;
    let mine = platform.serving("shop", "private", &app).await?;
    let other = platform.serving("other", "private", &app).await?;
    let token = format!("bound.{mine}");
    let apps = platform.get("/v1/apps", &token).await?.json()?;
    let apps = apps["apps"].as_array().context("a list")?;
    ensure!(apps.len() == 1 && apps[0]["name"] == "shop", "{apps:?}");
    for (app, status) in [(mine, StatusCode::OK), (other, StatusCode::FORBIDDEN)] {
        for path in [
            format!("/app/{app}/"),
            format!("/v1/apps/{app}"),
            format!("/v1/apps/{app}/logs"),
            format!("/v1/deploys?app={app}"),
        ] {
            let answer = platform.get(&path, &token).await?;
            ensure!(answer.status == status, "{path}: {}", answer.status);
        }
        let link = format!("/v1/apps/{app}/open");
        let link = platform.post(&link, &token, Value::Null).await?;
        ensure!(link.status == status, "{}", link.text());
        let name = if app == mine { "shop" } else { "other" };
        let known = serde_json::json!({ "id": app, "name": name });
        let answer = platform.post("/v1/apps", &token, known).await?;
        ensure!(answer.status == status, "{}", answer.text());
    }
    let list = crate::harness::list(&files(mine, "shop", "private"))?;
    for (app, status) in [(mine, StatusCode::CREATED), (other, StatusCode::FORBIDDEN)] {
        let path = format!("/v1/apps/{app}/versions");
        let files = serde_json::json!({ "files": list });
        let answer: Answer = platform.post(&path, &token, files).await?;
        ensure!(answer.status == status, "{}", answer.text());
        let deploy = serde_json::json!({ "id": DeployId::mint(), "app": app, "version": 1 });
        let answer = platform.post("/v1/deploys", &token, deploy).await?;
        let asked = answer.status == StatusCode::ACCEPTED;
        ensure!(asked == (app == mine), "{}", answer.text());
    }
    let refused = platform.get("/v1/events", &token).await?.problem()?;
    ensure!(refused.0 == 403, "{refused:?}");
    Ok(())
}
