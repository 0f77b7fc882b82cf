//! Secrets through the node: they go to the real vault behind a socket, and only names come back.

use anyhow::{Result, ensure};
use http::{Method, Request, StatusCode};
use serde_json::Value;
use tabbify_api::secrets::{SecretList, SecretView, VALUE_LEN_MAX};

use crate::harness::Platform;
use crate::http_client::{Answer, full};

async fn set(platform: &Platform, token: &str, name: &str, value: &[u8]) -> Result<Answer> {
    let request = Request::put(format!("/v1/secrets/{name}"))
        .header("host", "localhost")
        .header("authorization", format!("Bearer {token}"))
        .body(full(value.to_vec()))?;
    platform.send(request).await
}

async fn list(platform: &Platform, token: &str) -> Result<Vec<SecretView>> {
    let answer = platform.get("/v1/secrets", token).await?;
    ensure!(answer.status == StatusCode::OK, "{}", answer.text());
    ensure!(!answer.text().contains("hunter2"));
    let list: SecretList = serde_json::from_value(answer.json()?)?;
    Ok(list.secrets)
}

#[tokio::test]
async fn a_secret_comes_and_goes_and_never_back() -> Result<()> {
    let platform = Platform::start().await?;
    let made = set(&platform, "owner", "api-key", b"hunter2").await?;
    ensure!(made.status == StatusCode::CREATED, "{}", made.text());
    let again = set(&platform, "owner", "api-key", b"hunter2\xff\0").await?;
    ensure!(again.status == StatusCode::OK, "{}", again.text());
    let seen = list(&platform, "owner").await?;
    ensure!(seen.len() == 1 && seen[0].name.as_str() == "api-key");
    ensure!(seen[0].version.0 == 2 && seen[0].apps.is_empty());
    ensure!(list(&platform, "acme").await?.is_empty(), "another tenant");
    // No path gives a value.
    for path in ["/v1/secrets/api-key", "/v1/vault/release"] {
        let answer = platform.get(path, "owner").await?;
        ensure!([404, 405].contains(&answer.status.as_u16()), "{path}");
    }
    let gone = async |token: &str| -> Result<Answer> {
        let path = "/v1/secrets/api-key";
        platform
            .call(Method::DELETE, path, token, Value::Null)
            .await
    };
    let (status, code) = gone("acme").await?.problem()?;
    ensure!((status, code.as_str()) == (404, "secret_missing"));
    ensure!(gone("owner").await?.status == StatusCode::NO_CONTENT);
    let (status, code) = gone("owner").await?.problem()?;
    ensure!((status, code.as_str()) == (404, "secret_missing"));
    ensure!(list(&platform, "owner").await?.is_empty());
    Ok(())
}

#[tokio::test]
async fn who_may_and_what_is_refused() -> Result<()> {
    let platform = Platform::start().await?;
    let check = |answer: Answer, expected: (u16, &str)| -> Result<()> {
        let (status, code) = answer.problem()?;
        ensure!((status, code.as_str()) == expected, "{}", answer.text());
        ensure!(!answer.text().contains("hunter2"));
        Ok(())
    };
    for (token, expected) in [
        ("forged", (401, "token_invalid")),
        ("old", (401, "token_expired")),
        ("reader", (403, "forbidden")),
    ] {
        check(set(&platform, token, "a", b"hunter2").await?, expected)?;
        check(platform.get("/v1/secrets", token).await?, expected)?;
    }
    let largest = set(&platform, "owner", "a", &vec![b'x'; VALUE_LEN_MAX]).await?;
    ensure!(largest.status == StatusCode::CREATED, "{}", largest.text());
    let larger = vec![b'x'; VALUE_LEN_MAX + 1];
    check(
        set(&platform, "owner", "a", &larger).await?,
        (413, "too_large"),
    )?;
    check(
        set(&platform, "owner", "a", b"").await?,
        (400, "bad_request"),
    )?;
    for name in ["-a", "a%20hunter2", "..", "%00"] {
        let refused = set(&platform, "owner", name, b"hunter2").await?;
        check(refused, (400, "bad_request"))?;
    }
    ensure!(list(&platform, "owner").await?.len() == 1);
    Ok(())
}

/// Whoever sets one is told who gets it.
#[tokio::test]
async fn apps_that_use_it() -> Result<()> {
    let platform = Platform::start().await?;
    let app = platform.register("shop").await?;
    let mut files = crate::harness::files(app, "shop", "private");
    for (path, bytes) in &mut files {
        if path == "tabbify.toml" {
            bytes.extend_from_slice(b"\n[secrets]\nAPI_KEY = \"api-key\"\n");
        }
    }
    let version = platform.upload(app, &files).await?;
    let published = platform.commit(app, version, &files).await?;
    ensure!(published.status == StatusCode::OK, "{}", published.text());
    let made = set(&platform, "owner", "api-key", b"hunter2").await?;
    let view: SecretView = serde_json::from_value(made.json()?)?;
    ensure!(view.apps.len() == 1 && view.apps[0].as_str() == "shop");
    ensure!(set(&platform, "owner", "other", b"x").await?.json()?["apps"].is_null());
    let seen = list(&platform, "owner").await?;
    ensure!(seen[0].apps.len() == 1 && seen[1].apps.is_empty());
    Ok(())
}
