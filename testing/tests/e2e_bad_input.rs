//! What bad input gets: a clear refusal, and what served before still serves.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hyper::Request;
use tabbify_testing::process::runners;
use tabbify_testing::{Platform, http, wait};
use tabbify_token::{Claims, SecretKey, Signer};
use tabbify_types::Timestamp;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

async fn app_id(platform: &Platform, folder: &Path) -> anyhow::Result<String> {
    let shown = platform.status(folder).await?;
    Ok(shown["id"].as_str().context("id")?.to_owned())
}

/// Pushes `folder`, which must fail, and gives the exit code and all that was said.
async fn refused(platform: &Platform, folder: &Path) -> anyhow::Result<(i32, String)> {
    let output = platform.run(folder, &["push"]).await?;
    let mut said = String::from_utf8_lossy(&output.stdout).into_owned();
    said.push_str(&String::from_utf8_lossy(&output.stderr));
    ensure!(!output.status.success(), "pushed: {said}");
    Ok((output.status.code().context("an exit code")?, said))
}

fn manifest(folder: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder)?;
    Ok(std::fs::write(folder.join("tabbify.toml"), text)?)
}

/// What `/v1/apps` says to a caller with this `Authorization`: status and code.
async fn asked_with(
    platform: &Platform,
    authorization: Option<&str>,
) -> anyhow::Result<(u16, String)> {
    let mut request = Request::get("/v1/apps").header("host", &platform.authority);
    if let Some(authorization) = authorization {
        request = request.header("authorization", authorization);
    }
    let answer = http::send(&platform.authority, request.body(http::full(""))?).await?;
    let status = answer.status().as_u16();
    let problem: serde_json::Value = serde_json::from_str(&http::text(answer).await?)?;
    Ok((
        status,
        problem["code"].as_str().unwrap_or_default().to_owned(),
    ))
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_forged_and_expired_tokens_are_told_apart() -> anyhow::Result<()> {
    let platform = Platform::start().await?;
    let good = platform.token().await?;
    ensure!(
        asked_with(&platform, Some(&format!("Bearer {good}")))
            .await?
            .0
            == 200
    );
    ensure!(asked_with(&platform, None).await? == (401, "token_missing".to_owned()));

    // The same claims as the good token's, an hour in the past, signed by the real issuer: only
    // whoever has the data directory can make one.
    let key = std::fs::read_to_string(platform.data().join("keys/issuer.key"))?;
    let key = SecretKey::from_text(&key)?;
    let payload = good.split('.').nth(1).context("a JWS")?;
    let mut claims: Claims = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload)?)?;
    let hour_ago = |time: Timestamp| Timestamp::from_secs(time.secs() - 3600);
    (claims.iat, claims.nbf, claims.exp) = (
        hour_ago(claims.iat),
        hour_ago(claims.nbf),
        hour_ago(claims.exp),
    );
    let old = Signer::new(key, claims.iss.clone()).sign(&claims)?;
    ensure!(
        asked_with(&platform, Some(&format!("Bearer {old}"))).await?
            == (401, "token_expired".to_owned())
    );

    // The good claims signed by a key that nobody endorsed, and no JWS at all.
    let now: Claims = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload)?)?;
    let forged = Signer::new(SecretKey::generate()?, now.iss.clone()).sign(&now)?;
    for token in [forged.as_str(), "nonsense", &format!("{good}A")] {
        let said = asked_with(&platform, Some(&format!("Bearer {token}"))).await?;
        ensure!(said == (401, "token_invalid".to_owned()), "{said:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn manifest_with_an_unknown_key_uploads_nothing() -> anyhow::Result<()> {
    let platform = Platform::start().await?;
    let folder = platform.scratch("shop");
    let text = "[app]\nname = \"shop\"\n[build]\nwasm = \"a.wasm\"\n[runtime]\nmemry = \"1GiB\"\n";
    manifest(&folder, text)?;
    let (code, said) = refused(&platform, &folder).await?;
    ensure!(code == 2, "{code}: {said}");
    ensure!(
        said.contains("tabbify.toml:6") && said.contains("memory"),
        "{said}"
    );
    // A feature that is not built yet is refused by name, never ignored.
    manifest(
        &folder,
        "[app]\nname = \"shop\"\n[build]\nwasm = \"a.wasm\"\n[events]\nemit = [\"chat\"]\n",
    )?;
    let (code, said) = refused(&platform, &folder).await?;
    ensure!(
        code == 2 && said.contains("emit") && said.contains("not supported yet"),
        "{said}"
    );
    ensure!(
        !folder.join("tabbify.lock").exists(),
        "a refused push left a lock file"
    );
    let (_, apps) = platform.get("/v1/apps").await?;
    ensure!(!apps.contains("shop"), "{apps}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_component_of_ours_never_serves() -> anyhow::Result<()> {
    let platform = Platform::start().await?;
    // A good version first: it must go on serving.
    let folder = platform.copy_app("examples/hello-wasm", "hello-wasm")?;
    platform.succeed(&folder, &["push"]).await?;
    let id = app_id(&platform, &folder).await?;

    // Not WebAssembly at all: refused on this side, nothing is uploaded.
    let good = std::fs::read_to_string(folder.join("tabbify.toml"))?;
    std::fs::write(folder.join("not.wasm"), b"hello, I am a text")?;
    manifest(
        &folder,
        "[app]\nname = \"hello-wasm\"\n[build]\nwasm = \"not.wasm\"\n",
    )?;
    let (code, said) = refused(&platform, &folder).await?;
    ensure!(code == 1 && said.contains("not.wasm"), "{code}: {said}");

    // The right first bytes and nothing behind them: the runner finds out.
    std::fs::write(
        folder.join("not.wasm"),
        b"\0asm\x0d\0\x01\0 and then nonsense",
    )?;
    let (code, said) = refused(&platform, &folder).await?;
    ensure!(
        code == 1 && said.contains("component") && said.contains("v1 still serves"),
        "{code}: {said}"
    );

    // A component without wasi:http/incoming-handler.
    let other = platform.copy_app("testing/fixtures/wasm/no-handler", "no-handler")?;
    let built = platform.run(&other, &["push"]).await?;
    let said = String::from_utf8_lossy(&built.stderr).into_owned()
        + &String::from_utf8_lossy(&built.stdout);
    ensure!(
        built.status.code() == Some(1) && said.contains("incoming-handler"),
        "{said}"
    );

    std::fs::write(folder.join("tabbify.toml"), good)?;
    let (status, body) = platform.get(&format!("/app/{id}/")).await?;
    ensure!(status == 200 && body.contains("hello"), "{status}: {body}");
    let running = wait::until("only the good one runs", async || {
        runners(&platform.data())
            .ok()
            .filter(|running| running.len() == 1)
    });
    running.await?;
    Ok(())
}

/// Pushes a fixture and requests it; gives status and problem code.
async fn provoke(platform: &Platform, name: &str, path: &str) -> anyhow::Result<(u16, String)> {
    let folder = platform.copy_app(&format!("testing/fixtures/wasm/{name}"), name)?;
    platform.succeed(&folder, &["push"]).await?;
    let id = app_id(platform, &folder).await?;
    let (status, body) = platform.get(&format!("/app/{id}/{path}")).await?;
    let problem: serde_json::Value = serde_json::from_str(&body).with_context(|| body.clone())?;
    Ok((
        status,
        problem["code"].as_str().context("a code")?.to_owned(),
    ))
}

#[tokio::test(flavor = "multi_thread")]
async fn apps_that_trap_loop_or_eat_memory_hurt_only_themselves() -> anyhow::Result<()> {
    let platform = Platform::start().await?;
    ensure!(provoke(&platform, "trap", "").await? == (502, "app_trapped".to_owned()));
    ensure!(provoke(&platform, "memory", "").await? == (502, "app_memory".to_owned()));
    ensure!(provoke(&platform, "loop", "").await? == (504, "app_cpu".to_owned()));
    // The trap stands in the app's own log, and every runner is alive.
    let said = platform
        .succeed(&platform.scratch("trap"), &["logs"])
        .await?;
    ensure!(said.contains("trap") || said.contains("panicked"), "{said}");
    ensure!(runners(&platform.data())?.len() == 3);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_cut_in_the_middle_leaves_nothing() -> anyhow::Result<()> {
    let platform = Platform::start().await?;
    let token = platform.token().await?;
    let app = tabbify_types::AppId::mint();
    let body = serde_json::json!({ "id": app, "name": "cut" }).to_string();
    platform
        .request("POST", "/v1/apps", http::full(body))
        .await?;
    let content = vec![7_u8; 100_000];
    let digest = tabbify_types::Digest::of(&content);
    let toml = format!("[app]\nname = \"cut\"\nid = \"{app}\"\n[build]\nwasm = \"app.wasm\"\n");
    let files = serde_json::json!([
        { "path": "app.wasm", "size": content.len(), "digest": digest },
        { "path": "tabbify.toml", "size": toml.len(), "digest": tabbify_types::Digest::of(toml.as_bytes()) },
    ]);
    let reserve = serde_json::json!({ "files": files }).to_string();
    let path = format!("/v1/apps/{app}/versions");
    let answer = platform
        .request("POST", &path, http::full(reserve.clone()))
        .await?;
    ensure!(answer.status() == 201, "{}", http::text(answer).await?);

    // Half of what was announced, then the line is cut.
    let mut line = tokio::net::TcpStream::connect(&platform.authority).await?;
    let head = format!(
        "PUT {path}/1/files/app.wasm HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {token}\r\ncontent-length: {}\r\n\r\n",
        platform.authority,
        content.len()
    );
    line.write_all(head.as_bytes()).await?;
    line.write_all(&content[..50_000]).await?;
    line.shutdown().await?;
    // The node answers or closes; either way it has noticed.
    let mut rest = Vec::new();
    let _ = line.read_to_end(&mut rest).await;

    let answer = platform
        .request(
            "POST",
            &format!("{path}/1/commit"),
            http::full(reserve.clone()),
        )
        .await?;
    ensure!(answer.status().is_client_error(), "{}", answer.status());
    ensure!(
        !stored(&platform)
            .iter()
            .any(|file| file.ends_with("app.wasm")),
        "{:?}",
        stored(&platform)
    );

    // The same upload whole: everything is fine.
    for (name, bytes) in [("app.wasm", content), ("tabbify.toml", toml.into_bytes())] {
        let answer = platform
            .request("PUT", &format!("{path}/1/files/{name}"), http::full(bytes))
            .await?;
        ensure!(
            answer.status() == 204,
            "{name}: {}",
            http::text(answer).await?
        );
    }
    let answer = platform
        .request("POST", &format!("{path}/1/commit"), http::full(reserve))
        .await?;
    ensure!(
        answer.status().is_success(),
        "{}",
        http::text(answer).await?
    );
    Ok(())
}

/// Every file of the object store.
fn stored(platform: &Platform) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut left = vec![platform.data().join("objects")];
    while let Some(directory) = left.pop() {
        for entry in std::fs::read_dir(&directory)
            .into_iter()
            .flatten()
            .flatten()
        {
            let path = entry.path();
            if path.is_dir() {
                left.push(path)
            } else {
                found.push(path)
            }
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn two_pushes_at_once_get_two_versions() -> anyhow::Result<()> {
    let platform = Platform::start().await?;
    let folder = platform.copy_app("examples/hello-wasm", "hello-wasm")?;
    platform.succeed(&folder, &["push"]).await?;
    let (first, second) = tokio::join!(
        platform.run(&folder, &["push"]),
        platform.run(&folder, &["push"])
    );
    let said = |output: &std::process::Output| {
        String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr)
    };
    let (first, second) = (first?, second?);
    // One of them may be told that the other took over; neither is an error of the platform's.
    for output in [&first, &second] {
        ensure!(output.status.code() != Some(3), "{}", said(output));
    }
    ensure!(
        first.status.success() || second.status.success(),
        "{}{}",
        said(&first),
        said(&second)
    );
    let id = app_id(&platform, &folder).await?;
    let shown = platform.status(&folder).await?;
    ensure!(shown["latest"] == 3, "{shown}");
    let (status, body) = platform.get(&format!("/app/{id}/")).await?;
    ensure!(status == 200, "{body}");
    wait::until("one runner is left", async || {
        runners(&platform.data())
            .ok()
            .filter(|running| running.len() == 1)
    })
    .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_file_from_another_app_is_refused() -> anyhow::Result<()> {
    let platform = Platform::start().await?;
    let hello = platform.copy_app("examples/hello-wasm", "hello-wasm")?;
    let stream = platform.copy_app("examples/stream-wasm", "stream-wasm")?;
    platform.succeed(&hello, &["push", "--no-deploy"]).await?;
    std::fs::copy(hello.join("tabbify.lock"), stream.join("tabbify.lock"))?;
    let (code, said) = refused(&platform, &stream).await?;
    ensure!(
        code == 2 && said.contains("hello-wasm") && said.contains("stream-wasm"),
        "{code}: {said}"
    );
    // Without a lock, the name of an existing app is not taken over silently.
    std::fs::remove_file(hello.join("tabbify.lock"))?;
    let (code, said) = refused(&platform, &hello).await?;
    ensure!(
        code == 2 && said.contains("tcli push --app hello-wasm"),
        "{code}: {said}"
    );
    platform
        .succeed(&hello, &["push", "--app", "hello-wasm", "--no-deploy"])
        .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_never_reach_the_app() -> anyhow::Result<()> {
    let platform = Platform::start().await?;
    let folder = platform.copy_app("examples/hello-wasm", "hello-wasm")?;
    platform.succeed(&folder, &["push"]).await?;
    let id = app_id(&platform, &folder).await?;
    let token = platform.token().await?;

    // By program, with our bearer in Authorization.
    let request = Request::get(format!("/app/{id}/headers"))
        .header("host", &platform.authority)
        .header("authorization", format!("Bearer {token}"))
        .header("cookie", "theirs=kept; tabbify_session=forged; tabbify_x=1")
        .header("x-tabbify-user", "somebody-else")
        .body(http::full(""))?;
    let seen = http::text(http::send(&platform.authority, request).await?)
        .await?
        .to_lowercase();
    ensure!(
        !seen.contains(&token.to_lowercase()) && !seen.contains("authorization"),
        "{seen}"
    );
    ensure!(
        seen.contains("theirs=kept") && !seen.contains("tabbify_"),
        "{seen}"
    );
    ensure!(
        !seen.contains("somebody-else") && seen.contains("user:owner"),
        "{seen}"
    );

    // By program, with our bearer beside the app's own Authorization.
    let request = Request::get(format!("/app/{id}/headers"))
        .header("host", &platform.authority)
        .header("authorization", "Basic YXBwOm93bg==")
        .header("x-tabbify-token", &token)
        .body(http::full(""))?;
    let seen = http::text(http::send(&platform.authority, request).await?).await?;
    ensure!(
        seen.contains("Basic YXBwOm93bg==") && !seen.contains(&token),
        "{seen}"
    );

    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_is_signed_in_once_and_its_cookie_stays_with_the_node() -> anyhow::Result<()> {
    let platform = Platform::start().await?;
    let folder = platform.copy_app("examples/hello-wasm", "hello-wasm")?;
    platform.succeed(&folder, &["push"]).await?;
    let port = platform.authority.rsplit(':').next().context("port")?;
    let link = platform.json(&folder, &["open", "--print"]).await?;
    let link = link["url"].as_str().context("url")?;
    let host = format!("hello-wasm.localhost:{port}");
    let path = link.split_once(&host).context("the app's own host")?.1;
    let visit = Request::get(path)
        .header("host", &host)
        .body(http::full(""))?;
    let answer = http::send(&platform.authority, visit).await?;
    ensure!(answer.status() == 303, "{}", answer.status());
    let cookie = answer
        .headers()
        .get("set-cookie")
        .context("a cookie")?
        .to_str()?
        .to_owned();
    ensure!(
        cookie.contains("HttpOnly") && !cookie.to_lowercase().contains("domain"),
        "{cookie}"
    );
    let pair = cookie.split(';').next().context("a pair")?.to_owned();
    let again = Request::get(path)
        .header("host", &host)
        .body(http::full(""))?;
    ensure!(
        http::send(&platform.authority, again).await?.status() == 401,
        "a link opens once"
    );
    let request = Request::get("/headers")
        .header("host", &host)
        .header("cookie", &pair)
        .body(http::full(""))?;
    let answer = http::send(&platform.authority, request).await?;
    ensure!(answer.status() == 200);
    let seen = http::text(answer).await?;
    ensure!(
        !seen.contains(&pair) && !seen.contains("tabbify_session"),
        "{seen}"
    );
    Ok(())
}
