//! The life of a request, hop by hop: one assertion for each row of the first table of
//! ARCHITECTURE.md, through real processes and the real mesh.

use anyhow::Context as _;
use hyper::Request;
use tabbify_testing::{Platform, http};
use tabbify_types::{AppId, AppUla};

async fn status(platform: &Platform, path: &str, token: Option<&str>) -> anyhow::Result<u16> {
    let mut request = Request::get(path).header("host", &platform.authority);
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let answer = http::send(&platform.authority, request.body(http::full(""))?).await?;
    Ok(answer.status().as_u16())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_passes_every_hop() -> anyhow::Result<()> {
    let platform = Platform::start().await?;
    let folder = platform.copy_app("examples/hello-wasm", "hello-wasm")?;
    platform.succeed(&folder, &["push"]).await?;
    let shown = platform.status(&folder).await?;
    let id = shown["id"].as_str().context("id")?.to_owned();
    let token = platform.token().await?;
    let path = format!("/app/{id}/greet");

    // 1. The edge takes the connection and gives the request an id.
    let health = Request::get("/health").header("host", &platform.authority);
    let health = http::send(&platform.authority, health.body(http::full(""))?).await?;
    assert_eq!(health.status(), 200);
    assert!(health.headers().contains_key("x-tabbify-request"));

    // 2. The bearer becomes claims: none, forged and right are told apart.
    assert_eq!(status(&platform, &path, None).await?, 401);
    assert_eq!(
        status(&platform, &path, Some(&format!("{token}x"))).await?,
        401
    );
    assert_eq!(status(&platform, &path, Some(&token)).await?, 200);

    // 3. The id becomes the address, the same for everybody; a bad id is the caller's fault.
    let address = AppUla::derive(id.parse::<AppId>()?);
    assert_eq!(shown["address"], address.to_string());
    let offline = platform.json(&folder, &["address", &id]).await?;
    assert_eq!(offline["address"], address.to_string());
    assert_eq!(
        status(&platform, "/app/not-a-uuid/", Some(&token)).await?,
        400
    );

    // 4. The edge dials [address]:8730: an address that nobody holds is not reached.
    let unknown = AppId::mint();
    assert_eq!(
        status(&platform, &format!("/app/{unknown}/"), Some(&token)).await?,
        404
    );
    let idle = platform.scratch("idle");
    std::fs::create_dir_all(&idle)?;
    let register = serde_json::json!({ "id": unknown, "name": "idle" }).to_string();
    let registered = platform
        .request("POST", "/v1/apps", http::full(register))
        .await?;
    assert_eq!(registered.status(), 201);
    let answer = platform
        .request("GET", &format!("/app/{unknown}/"), http::full(""))
        .await?;
    assert_eq!(answer.status(), 502);
    let problem: serde_json::Value = serde_json::from_str(&http::text(answer).await?)?;
    assert_eq!(problem["code"], "no_lease");

    // 5. The runner hands it to the runtime, which sees the path without the platform's prefix.
    let (code, body) = platform.get(&path).await?;
    assert_eq!(code, 200);
    assert!(body.contains("hello") && body.contains("/greet"), "{body}");

    // 6. The body comes back whole, by id and by the app's own host.
    let host = format!(
        "hello-wasm.localhost:{}",
        platform.authority.rsplit(':').next().context("port")?
    );
    let by_host = Request::get("/greet")
        .header("host", host)
        .header("authorization", format!("Bearer {token}"))
        .body(http::full(""))?;
    let by_host = http::send(&platform.authority, by_host).await?;
    assert_eq!(by_host.status(), 200);
    assert_eq!(http::text(by_host).await?, body);
    Ok(())
}
