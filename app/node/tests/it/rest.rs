//! The REST: sign-in, apps, deploys, logs.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tabbify_types::event::v1::{DeployFinished, DeployOutcome, InstanceDrained, InstanceRef};
use tabbify_types::{AppId, AppUla, DeployId, InstanceId};

use crate::harness::{Platform, files};
use crate::http_client::{full, soon};

#[tokio::test]
async fn who_may() -> Result<()> {
    let platform = Platform::start().await?;
    let health = platform.get("/health", "").await?;
    ensure!(health.json()?["platform"] == "test-platform");
    for (token, expected) in [
        ("", (401, "token_missing")),
        ("forged", (401, "token_invalid")),
        ("old", (401, "token_expired")),
    ] {
        let answer = platform.get("/v1/apps", token).await?;
        let (status, code) = answer.problem()?;
        ensure!(
            (status, code.as_str()) == expected,
            "{token}: {status} {code}"
        );
        ensure!(
            answer.headers["www-authenticate"]
                .to_str()?
                .starts_with("Bearer ")
        );
    }
    let body = json!({ "id": AppId::mint(), "name": "shop" });
    let (status, code) = platform.post("/v1/apps", "reader", body).await?.problem()?;
    ensure!((status, code.as_str()) == (403, "forbidden"));
    ensure!(platform.get("/v1/apps", "reader").await?.status == StatusCode::OK);
    ensure!(platform.get("/v1/whoami", "owner").await?.json()?["subject"] == "user:owner");
    ensure!(platform.get("/v1/jwks", "").await?.json()?["keys"].is_array());
    for (proof, expected) in [("good", 200), ("bad", 401), ("again", 401), ("flood", 429)] {
        let answer = platform
            .post("/v1/auth/token", "", json!({ "proof": proof }))
            .await?;
        ensure!(
            answer.status.as_u16() == expected,
            "{proof}: {}",
            answer.text()
        );
    }
    Ok(())
}

#[tokio::test]
async fn wrong_calls() -> Result<()> {
    let platform = Platform::start().await?;
    let check =
        async |method: Method, path: &str, body: Value, expected: (u16, &str)| -> Result<()> {
            let (status, code) = platform
                .call(method, path, "owner", body)
                .await?
                .problem()?;
            ensure!(
                (status, code.as_str()) == expected,
                "{path}: {status} {code}"
            );
            Ok(())
        };
    check(Method::GET, "/v1/apps/nope", Value::Null, (400, "bad_uuid")).await?;
    check(
        Method::GET,
        &format!("/v1/apps/{}", AppId::mint()),
        Value::Null,
        (404, "unknown_app"),
    )
    .await?;
    check(Method::GET, "/v1/nothing", Value::Null, (404, "not_found")).await?;
    check(Method::GET, "/", Value::Null, (404, "not_found")).await?;
    check(
        Method::DELETE,
        "/v1/apps",
        Value::Null,
        (405, "method_not_allowed"),
    )
    .await?;
    check(
        Method::POST,
        "/v1/apps",
        json!({ "id": 1 }),
        (400, "bad_request"),
    )
    .await?;
    let extra = json!({ "id": AppId::mint(), "name": "a", "x": 1 });
    check(Method::POST, "/v1/apps", extra, (400, "bad_request")).await?;
    let v4 = json!({ "id": "0191e7c2-1111-4222-8333-444455556666", "name": "a" });
    check(Method::POST, "/v1/apps", v4, (400, "bad_request")).await?;
    let name = json!({ "id": AppId::mint(), "name": "A b" });
    check(Method::POST, "/v1/apps", name, (400, "bad_request")).await?;
    let large = json!({ "id": AppId::mint(), "name": "a".repeat(100_000) });
    check(Method::POST, "/v1/apps", large, (413, "too_large")).await?;
    check(
        Method::GET,
        "/v1/deploys",
        Value::Null,
        (400, "bad_request"),
    )
    .await?;
    check(
        Method::GET,
        "/v1/deploys?app=x",
        Value::Null,
        (400, "bad_uuid"),
    )
    .await?;
    check(
        Method::GET,
        &format!("/v1/deploys/{}", DeployId::mint()),
        Value::Null,
        (404, "not_found"),
    )
    .await?;
    Ok(())
}

#[tokio::test]
async fn registering() -> Result<()> {
    let platform = Platform::start().await?;
    let (id, other) = (AppId::mint(), AppId::mint());
    let body = |id: AppId, name: &str| json!({ "id": id, "name": name });
    let first = platform.post("/v1/apps", "owner", body(id, "shop")).await?;
    ensure!(first.status == StatusCode::CREATED, "{}", first.text());
    let view = first.json()?;
    let port = platform.node.port();
    ensure!(
        view["url"] == format!("http://shop.localhost:{port}"),
        "{view}"
    );
    ensure!(view["address"] == AppUla::derive(id).to_string() && view["status"] == "new");
    // Read your writes, and the same again.
    ensure!(
        platform
            .get(&format!("/v1/apps/{id}"), "reader")
            .await?
            .json()?
            == view
    );
    let again = platform.post("/v1/apps", "owner", body(id, "shop")).await?;
    ensure!(again.status == StatusCode::OK && again.json()? == view);

    let refused = async |token: &str, body: Value, expected: &str| -> Result<()> {
        let (status, code) = platform.post("/v1/apps", token, body).await?.problem()?;
        ensure!(
            (status, code.as_str()) == (409, expected),
            "{status} {code}"
        );
        Ok(())
    };
    refused("owner", body(other, "shop"), "name_taken").await?;
    refused("owner", body(id, "shoe"), "app_mismatch").await?;
    refused("acme", body(id, "shop"), "app_mismatch").await?;
    // Names are the tenant's; apps of others do not exist.
    let acme = platform
        .post("/v1/apps", "acme", body(other, "shop"))
        .await?;
    ensure!(acme.json()?["url"] == format!("http://shop--acme.localhost:{port}"));
    ensure!(
        platform
            .get(&format!("/v1/apps/{other}"), "owner")
            .await?
            .problem()?
            .1
            == "unknown_app"
    );
    let listed = platform.get("/v1/apps", "owner").await?.json()?;
    ensure!(
        listed["apps"].as_array().context("apps")?.len() == 1,
        "{listed}"
    );
    Ok(())
}

#[tokio::test]
async fn registering_at_once() -> Result<()> {
    let platform = Platform::start().await?;
    // Everybody wants one name; two of them are the same caller who lost patience.
    let ids: Vec<AppId> = (0..6).map(|_| AppId::mint()).collect();
    let calls = ids
        .iter()
        .chain([&ids[0]])
        .map(|id| platform.post("/v1/apps", "owner", json!({ "id": id, "name": "shop" })));
    let answers = futures_util::future::try_join_all(calls).await?;
    let ok = answers
        .iter()
        .filter(|answer| answer.status.is_success())
        .count();
    let created = answers
        .iter()
        .filter(|answer| answer.status == StatusCode::CREATED)
        .count();
    ensure!(created == 1 && ok <= 2, "{created} created, {ok} fine");
    for answer in answers.iter().filter(|answer| !answer.status.is_success()) {
        ensure!(answer.problem()?.1 == "name_taken", "{}", answer.text());
    }
    Ok(())
}

#[tokio::test]
async fn deploying() -> Result<()> {
    let platform = Platform::start().await?;
    let app = platform.register("shop").await?;
    let files = files(app, "shop", "private");
    let version = platform.upload(app, &files).await?;
    let id = DeployId::mint();
    let body = json!({ "id": id, "app": app, "version": version });
    let early = platform.post("/v1/deploys", "owner", body.clone()).await?;
    ensure!(
        early.problem()?.1 == "version_conflict",
        "not published yet"
    );
    platform.commit(app, version, &files).await?;

    let first = platform.post("/v1/deploys", "owner", body.clone()).await?;
    ensure!(first.status == StatusCode::ACCEPTED, "{}", first.text());
    ensure!(first.json()?["status"] == "running" && first.json()?["operation"] == id.to_string());
    let again = platform.post("/v1/deploys", "owner", body).await?;
    ensure!(again.status == StatusCode::ACCEPTED);
    let listed = platform
        .get(&format!("/v1/deploys?app={app}"), "reader")
        .await?
        .json()?;
    ensure!(
        listed["deploys"].as_array().context("deploys")?.len() == 1,
        "{listed}"
    );
    let other = platform.register("other").await?;
    let stolen = json!({ "id": id, "app": other, "version": 1 });
    ensure!(
        platform
            .post("/v1/deploys", "owner", stolen)
            .await?
            .status
            .is_client_error()
    );
    let foreign = platform.get(&format!("/v1/deploys/{id}"), "acme").await?;
    ensure!(foreign.problem()?.1 == "not_found");

    // At once, since there is a step beyond the none that were seen.
    let now = platform
        .get(&format!("/v1/deploys/{id}?wait_s=50&seen=0"), "reader")
        .await?;
    ensure!(now.json()?["steps"][0]["name"] == "requested");
    // An event that the view does not read still moves its position, and does not end a wait.
    let drained = InstanceDrained {
        of: InstanceRef {
            app,
            instance: InstanceId(1),
        },
        finished: 0,
        cut: 0,
    };
    platform.append(app, drained.into()).await?;
    // Waits for the next one.
    let path = format!("/v1/deploys/{id}?wait_s=50&seen=1");
    let waiting = platform.get(&path, "reader");
    let finished = DeployFinished {
        app,
        deploy: id,
        outcome: DeployOutcome::Failed,
        detail: "no machine can run it".to_owned(),
    };
    let finishing = platform.append(app, finished.into());
    let (answer, ()) = soon(
        "the wait",
        futures_util::future::try_join(waiting, finishing),
    )
    .await??;
    let operation = answer.json()?;
    ensure!(operation["status"] == "failed", "{operation}");
    ensure!(operation["error"]["title"] == "no machine can run it");
    Ok(())
}

#[tokio::test]
async fn a_wait_ends() -> Result<()> {
    let platform = Platform::start().await?;
    let app = platform.register("shop").await?;
    let files = files(app, "shop", "private");
    let version = platform.upload(app, &files).await?;
    platform.commit(app, version, &files).await?;
    let id = DeployId::mint();
    let body = json!({ "id": id, "app": app, "version": version });
    platform.post("/v1/deploys", "owner", body).await?;
    let began = tokio::time::Instant::now();
    let answer = platform
        .get(&format!("/v1/deploys/{id}?wait_s=1&seen=1"), "owner")
        .await?;
    ensure!(answer.json()?["status"] == "running");
    ensure!(began.elapsed() >= Duration::from_secs(1));
    Ok(())
}

#[tokio::test]
async fn reading_logs() -> Result<()> {
    let platform = Platform::start().await?;
    let app = platform.register("shop").await?;
    let lines = async |query: &str| -> Result<Vec<String>> {
        let answer = platform
            .get(&format!("/v1/apps/{app}/logs{query}"), "reader")
            .await?;
        ensure!(
            answer.headers["content-type"] == "application/x-ndjson",
            "{}",
            answer.text()
        );
        let lines = answer.text();
        let lines = lines.lines().map(|line| {
            let line: Value = serde_json::from_str(line)?;
            Ok(line["line"].as_str().context("a line")?.to_owned())
        });
        lines.collect()
    };
    ensure!(lines("").await? == ["line 1", "line 2", "line 3"]);
    ensure!(lines("?since=1970-01-01T00:00:03Z").await? == ["line 3"]);
    ensure!(lines("?tail=0").await?.is_empty());
    for bad in ["?tail=x", "?since=yesterday", "?follow=perhaps", "?what=1"] {
        let answer = platform
            .get(&format!("/v1/apps/{app}/logs{bad}"), "reader")
            .await?;
        ensure!(answer.problem()?.0 == 400, "{bad}");
    }
    // Followed: what is there comes at once, and the answer stays open.
    let request = Request::get(format!("/v1/apps/{app}/logs?follow=true"))
        .header("host", "localhost")
        .header("authorization", "Bearer reader")
        .body(full(""))?;
    let mut client = platform.client().await?;
    let mut body = client.send(request).await?.into_body();
    let mut seen = Vec::new();
    while seen.iter().filter(|byte| **byte == b'\n').count() < 3 {
        let frame = soon("a line", body.frame())
            .await?
            .context("an open answer")??;
        seen.extend_from_slice(&frame.into_data().unwrap_or_default());
    }
    let more = tokio::time::timeout(Duration::from_millis(50), body.frame()).await;
    ensure!(more.is_err(), "a followed log does not end");
    Ok(())
}
