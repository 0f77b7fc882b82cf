//! Steps 2 to 5 with whole messages: who gets to an app, and what it and its callers see.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use serde_json::Value;
use tabbify_node::Config;
use tabbify_process::Importance;
use tabbify_types::{AppId, RequestId};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore};

use crate::app::{App, echo, mirror, text};
use crate::harness::Platform;
use crate::http_client::{Answer, Body, Raw, full, soon};

fn get(uri: &str, host: &str, headers: &[(&'static str, &str)]) -> Result<Request<Body>> {
    let mut request = Request::get(uri).header("host", host);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    Ok(request.body(full(""))?)
}

async fn check(platform: &Platform, request: Request<Body>, expected: (u16, &str)) -> Result<()> {
    let what = format!("{} {:?}", request.uri(), request.headers());
    let (status, code) = platform.send(request).await?.problem()?;
    ensure!(
        (status, code.as_str()) == expected,
        "{what}: {status} {code}"
    );
    Ok(())
}

#[tokio::test]
async fn who_gets_in() -> Result<()> {
    let platform = Platform::start().await?;
    let app = App::start(&platform.tasks, mirror).await?;
    let id = platform.serving("shop", "private", &app).await?;
    let path = format!("/app/{id}/x");
    let bearer = |token: &str| format!("Bearer {token}");
    let try_path = async |headers: &[(&'static str, &str)], expected| {
        check(&platform, get(&path, "localhost", headers)?, expected).await
    };
    try_path(&[], (401, "token_missing")).await?;
    try_path(
        &[("authorization", &bearer("forged"))],
        (401, "token_invalid"),
    )
    .await?;
    try_path(&[("authorization", &bearer("old"))], (401, "token_expired")).await?;
    try_path(&[("authorization", &bearer("reader"))], (403, "forbidden")).await?;
    // Another tenant cannot tell it from an app that is not there.
    try_path(&[("authorization", &bearer("acme"))], (404, "unknown_app")).await?;
    let missing = format!("/app/{}/x", AppId::mint());
    let unknown = get(&missing, "localhost", &[("authorization", &bearer("acme"))])?;
    check(&platform, unknown, (404, "unknown_app")).await?;
    check(
        &platform,
        get("/app/nope/x", "localhost", &[])?,
        (400, "bad_uuid"),
    )
    .await?;
    check(
        &platform,
        get("/", "nobody.localhost", &[])?,
        (404, "unknown_app"),
    )
    .await?;
    check(
        &platform,
        get("/", "evil.example", &[])?,
        (404, "unknown_app"),
    )
    .await?;
    ensure!(app.requests() == 0);
    for header in ["authorization", "x-tabbify-token"] {
        let value = if header == "authorization" {
            bearer("owner")
        } else {
            "owner".to_owned()
        };
        let answer = platform
            .send(get(&path, "localhost", &[(header, &value)])?)
            .await?;
        ensure!(
            answer.status == StatusCode::OK,
            "{header}: {}",
            answer.text()
        );
        ensure!(
            answer.text().contains("x-tabbify-user: user:owner\n"),
            "{}",
            answer.text()
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_browser_signs_in_by_a_link() -> Result<()> {
    let platform = Platform::start().await?;
    let app = App::start(&platform.tasks, mirror).await?;
    let id = platform.serving("shop", "private", &app).await?;
    let other = platform.serving("other", "private", &app).await?;
    let page = get("/", "shop.localhost", &[("accept", "text/html,*/*")])?;
    let page = platform.send(page).await?;
    ensure!(page.status == StatusCode::UNAUTHORIZED && page.text().contains("tcli open"));
    ensure!(
        page.headers["content-type"]
            .to_str()?
            .starts_with("text/html")
    );

    let link = platform
        .post(&format!("/v1/apps/{id}/open"), "owner", Value::Null)
        .await?;
    let link = link.json()?["url"].as_str().context("a link")?.to_owned();
    let begin = format!(
        "http://shop.localhost:{}/.tabbify/open?ticket=",
        platform.node.port()
    );
    ensure!(link.starts_with(&begin), "{link}");
    let (_, target) = link
        .split_once(&platform.node.port().to_string())
        .context("a target")?;
    check(
        &platform,
        get(target, "other.localhost", &[])?,
        (401, "token_invalid"),
    )
    .await?;
    // Looking at the link does not use it up.
    let head = Request::head(target)
        .header("host", "shop.localhost")
        .body(full(""))?;
    ensure!(platform.send(head).await?.status == StatusCode::METHOD_NOT_ALLOWED);
    let opened = platform.send(get(target, "shop.localhost", &[])?).await?;
    ensure!(opened.status == StatusCode::SEE_OTHER && opened.headers["location"] == "/");
    let cookie = opened.headers["set-cookie"].to_str()?;
    ensure!(
        cookie.contains("; HttpOnly; SameSite=Lax; Path=/"),
        "{cookie}"
    );
    ensure!(!cookie.contains("Domain"), "{cookie}");
    let session = cookie.split(';').next().context("a cookie")?.to_owned();
    check(
        &platform,
        get(target, "shop.localhost", &[])?,
        (401, "token_invalid"),
    )
    .await?;

    let cookies = format!("a=1; {session}; b=2");
    let inside = platform
        .send(get("/v1/apps", "shop.localhost", &[("cookie", &cookies)])?)
        .await?;
    ensure!(inside.status == StatusCode::OK, "{}", inside.text());
    let seen = inside.text();
    ensure!(
        seen.starts_with("GET /v1/apps\n"),
        "on its host every path is the app's: {seen}"
    );
    ensure!(seen.contains("\ncookie: a=1; b=2\n") && seen.contains("x-tabbify-user: user:owner"));
    // Good for this app's host alone.
    let elsewhere = get("/", "other.localhost", &[("cookie", &session)])?;
    check(&platform, elsewhere, (401, "token_invalid")).await?;
    let by_path = get(&format!("/app/{id}/"), "localhost", &[("cookie", &session)])?;
    check(&platform, by_path, (401, "token_missing")).await?;
    ensure!(
        platform
            .post(&format!("/v1/apps/{other}/open"), "acme", Value::Null)
            .await?
            .problem()?
            .0
            == 404
    );
    Ok(())
}

#[tokio::test]
async fn what_the_app_sees() -> Result<()> {
    let platform = Platform::start().await?;
    let app = App::start(&platform.tasks, mirror).await?;
    let id = platform.serving("shop", "public", &app).await?;
    let headers = [
        ("authorization", "Bearer owner"),
        ("x-tabbify-token", "owner"),
        ("x-tabbify-user", "user:root"),
        ("x_tabbify_user", "user:root"),
        ("cookie", "tabbify_session=secret; mine=1"),
        ("x-forwarded-for", "6.6.6.6"),
        ("forwarded", "for=6.6.6.6"),
        ("connection", "x-hop"),
        ("x-hop", "1"),
        ("proxy-authorization", "secret"),
        ("te", "trailers"),
    ];
    let answer = platform
        .send(get("/a/../b?q=1", "Shop.localhost:8090", &headers)?)
        .await?;
    let seen = answer.text();
    ensure!(seen.starts_with("GET /a/../b?q=1\n"), "{seen}");
    for gone in [
        "Bearer",
        "secret",
        "root",
        "6.6.6.6",
        "x-hop",
        "x-tabbify-token",
        "proxy",
    ] {
        ensure!(!seen.contains(gone), "{gone}: {seen}");
    }
    for there in [
        "\nhost: Shop.localhost:8090\n",
        "\ncookie: mine=1\n",
        "\nx-tabbify-user: user:owner\n",
        "\nx-forwarded-for: 127.0.0.1\n",
        "\nx-forwarded-host: Shop.localhost:8090\n",
        "\nx-forwarded-proto: http\n",
        "\nforwarded: for=127.0.0.1;host=\"Shop.localhost:8090\";proto=http\n",
        "\nte: trailers\n",
    ] {
        ensure!(seen.contains(there), "{there}: {seen}");
    }
    // An app that has an `Authorization` of its own keeps it.
    let own = [
        ("authorization", "Basic YTpi"),
        ("x-tabbify-token", "owner"),
    ];
    let seen = platform
        .send(get(&format!("/app/{id}?x"), "localhost", &own)?)
        .await?
        .text();
    ensure!(
        seen.starts_with("GET /?x\n") && seen.contains("authorization: Basic YTpi"),
        "{seen}"
    );
    ensure!(
        seen.contains(&format!("\nx-forwarded-prefix: /app/{id}\n")),
        "{seen}"
    );
    let body = Request::post("/")
        .header("host", "shop.localhost")
        .body(full("hello"))?;
    let seen = platform.send(body).await?.text();
    ensure!(
        seen.contains("\ncontent-length: 5\n") && seen.ends_with("\n\nhello"),
        "{seen}"
    );
    Ok(())
}

/// Answers with everything that an app may not do, and in a runner's place under `/error/<code>`.
async fn rude(request: Request<hyper::body::Incoming>) -> Response<crate::app::Body> {
    let mut answer = text("hi");
    let headers = answer.headers_mut();
    for (name, value) in [
        ("set-cookie", "mine=1"),
        ("clear-site-data", "\"*\""),
        ("service-worker-allowed", "/"),
        ("strict-transport-security", "max-age=1"),
        ("x-tabbify-request", "forged"),
        ("x-tabbify-secret", "1"),
        ("x-own", "1"),
        ("connection", "x-hop"),
        ("x-hop", "1"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    let cookie = HeaderValue::from_static("tabbify_session=evil; Path=/");
    headers.append("set-cookie", cookie);
    if let Some(code) = request.uri().path().strip_prefix("/error/") {
        let said = HeaderValue::from_str(code).expect("a code");
        headers.insert("x-tabbify-error", said);
        *answer.status_mut() = StatusCode::IM_A_TEAPOT;
    }
    answer
}

#[tokio::test]
async fn what_the_caller_sees() -> Result<()> {
    let platform = Platform::start().await?;
    let app = App::start(&platform.tasks, rude).await?;
    let id = platform.serving("shop", "public", &app).await?;
    let by_host = platform.send(get("/", "shop.localhost", &[])?).await?;
    let cookies: Vec<_> = by_host.headers.get_all("set-cookie").iter().collect();
    ensure!(
        cookies == ["mine=1"] && by_host.headers["x-own"] == "1",
        "{by_host:?}"
    );
    ensure!(by_host.headers.contains_key("clear-site-data"));
    ensure!(!by_host.headers.contains_key("x-tabbify-secret"));
    ensure!(!by_host.headers.contains_key("x-hop"));
    by_host.headers["x-tabbify-request"]
        .to_str()?
        .parse::<RequestId>()?;
    ensure!(!by_host.headers.contains_key("content-security-policy"));

    let by_path = platform
        .send(get(&format!("/app/{id}/"), "localhost", &[])?)
        .await?;
    for gone in [
        "set-cookie",
        "clear-site-data",
        "service-worker-allowed",
        "strict-transport-security",
    ] {
        ensure!(!by_path.headers.contains_key(gone), "{gone}");
    }
    let policy = by_path.headers["content-security-policy"].to_str()?;
    ensure!(
        policy.starts_with("sandbox ") && !policy.contains("allow-same-origin"),
        "{policy}"
    );

    // What the runner says in the app's place becomes a problem, or a page for a browser.
    let trapped = get("/error/app_trapped", "shop.localhost", &[])?;
    check(&platform, trapped, (502, "app_trapped")).await?;
    check(
        &platform,
        get("/error/app_cpu", "shop.localhost", &[])?,
        (504, "app_cpu"),
    )
    .await?;
    let accept = [("accept", "text/html")];
    let page = platform
        .send(get("/error/app_memory", "shop.localhost", &accept)?)
        .await?;
    ensure!(page.status == StatusCode::BAD_GATEWAY && page.text().starts_with("<!doctype html>"));
    Ok(())
}

#[tokio::test]
async fn no_way_to_the_app() -> Result<()> {
    let short = |config: &mut Config| config.timeouts.first_byte = Duration::from_millis(200);
    let platform = Platform::start_with(short).await?;
    let request = || get("/", "shop.localhost", &[]);
    let hanging = App::start(&platform.tasks, |_| std::future::pending()).await?;
    let id = platform.serving("shop", "public", &hanging).await?;
    check(&platform, request()?, (504, "app_timeout")).await?;

    // Nobody listens any more.
    let gone = TcpListener::bind("127.0.0.1:0").await?;
    let mut nowhere = hanging.clone();
    nowhere.address = gone.local_addr()?;
    drop(gone);
    platform.leads_to(id, &nowhere);
    check(&platform, request()?, (502, "app_unreachable")).await?;

    // Registered and never deployed.
    platform.register("new").await?;
    let token = [("x-tabbify-token", "owner")];
    check(
        &platform,
        get("/", "new.localhost", &token)?,
        (502, "no_lease"),
    )
    .await?;

    // Accepts and hangs up.
    let rude = TcpListener::bind("127.0.0.1:0").await?;
    nowhere.address = rude.local_addr()?;
    platform
        .tasks
        .spawn("rude app", Importance::Detached, async move {
            while rude.accept().await.is_ok() {}
        });
    platform.leads_to(id, &nowhere);
    check(&platform, request()?, (502, "app_unreachable")).await?;
    let connect = Request::builder()
        .method(Method::TRACE)
        .uri("/")
        .header("host", "shop.localhost");
    check(
        &platform,
        connect.body(full(""))?,
        (405, "method_not_allowed"),
    )
    .await?;
    Ok(())
}

#[tokio::test]
async fn connections_are_kept_and_dropped_at_a_switch() -> Result<()> {
    let platform = Platform::start().await?;
    let gate = Arc::new(Notify::new());
    let started = Arc::new(Semaphore::new(0));
    let old = {
        let (gate, started) = (Arc::clone(&gate), Arc::clone(&started));
        App::start(&platform.tasks, move |request| {
            let (gate, started) = (Arc::clone(&gate), Arc::clone(&started));
            async move {
                if request.uri().path() == "/slow" {
                    started.add_permits(1);
                    gate.notified().await;
                }
                text("old")
            }
        })
        .await?
    };
    let new = App::start(&platform.tasks, |_| async { text("new") }).await?;
    let id = platform.serving("shop", "public", &old).await?;
    let ask = async |path: &str| {
        anyhow::Ok(
            platform
                .send(get(path, "shop.localhost", &[])?)
                .await?
                .text(),
        )
    };
    for _ in 0..5 {
        ensure!(ask("/").await? == "old");
    }
    ensure!(old.connections() == 1, "{} connections", old.connections());

    let slow = ask("/slow");
    let switch = async {
        let begun = soon("the slow request", started.acquire()).await??;
        begun.forget();
        // Before the switch is on record, a kept connection leads to the old instance.
        ensure!(ask("/").await? == "old");
        platform.leads_to(id, &new);
        ensure!(ask("/").await? == "old");
        platform.shift(id, 1, 2).await?;
        ensure!(ask("/").await? == "new");
        gate.notify_one();
        Ok(())
    };
    let (slow, ()) = futures_util::future::try_join(slow, switch).await?;
    ensure!(slow == "old", "what was under way goes on");
    // Its connection is of before the switch and is not used again.
    ensure!(ask("/").await? == "new" && new.connections() == 1);
    Ok(())
}

#[tokio::test]
async fn a_kept_connection_that_died_is_replaced() -> Result<()> {
    let platform = Platform::start().await?;
    // An app that promises to keep the connection and closes it once it has the next head, so that
    // the death shows as late as possible.
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    platform
        .tasks
        .spawn("closing app", Importance::Detached, async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = vec![0; 4096];
                if !matches!(stream.read(&mut head).await, Ok(len) if len > 0) {
                    continue;
                }
                let answer = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                let _ = stream.write_all(answer.as_bytes()).await;
                let _ = stream.read(&mut head).await;
            }
        });
    let mut app = App::start(&platform.tasks, mirror).await?;
    app.address = address;
    platform.serving("shop", "public", &app).await?;
    for n in 0..6 {
        let answer = platform.send(get("/", "shop.localhost", &[])?).await?;
        ensure!(answer.status == StatusCode::OK, "{n}: {}", answer.text());
    }
    // What might have had an effect is not sent twice.
    let post = Request::post("/")
        .header("host", "shop.localhost")
        .body(full("x"))?;
    check(&platform, post, (502, "app_unreachable")).await?;
    Ok(())
}

#[tokio::test]
async fn upgrades_become_tunnels() -> Result<()> {
    let platform = Platform::start().await?;
    let ended = Arc::new(Semaphore::new(0));
    let app = {
        let (tasks, ended) = (platform.tasks.clone(), Arc::clone(&ended));
        App::start(&platform.tasks, move |mut request| {
            let (tasks, ended) = (tasks.clone(), Arc::clone(&ended));
            async move {
                if !request.headers().contains_key("upgrade") {
                    return text("no upgrade");
                }
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
                let headers = answer.headers_mut();
                headers.insert("upgrade", HeaderValue::from_static("websocket"));
                headers.insert("connection", HeaderValue::from_static("upgrade"));
                headers.insert("sec-websocket-accept", HeaderValue::from_static("yes"));
                answer
            }
        })
        .await?
    };
    platform.serving("shop", "public", &app).await?;
    let head = |upgrade: &str| {
        format!(
            "GET /chat HTTP/1.1\r\nHost: shop.localhost\r\nConnection: keep-alive, Upgrade\r\n\
             Upgrade: {upgrade}\r\nSec-WebSocket-Key: k\r\n\r\n"
        )
    };
    let mut raw = Raw::connect(platform.node).await?;
    raw.write(head("websocket")).await?;
    let answer = raw.read_until("\r\n\r\n").await?.to_ascii_lowercase();
    ensure!(answer.starts_with("http/1.1 101 "), "{answer}");
    ensure!(
        answer.contains("upgrade: websocket\r\n") && answer.contains("sec-websocket-accept: yes")
    );
    for n in 0..100 {
        // Bytes that look like a bad head are just bytes here.
        let line = format!("Content-Length: {n}\r\nContent-Length: {n}\r\n\r\n#");
        raw.write(&line).await?;
        ensure!(raw.read_until("#").await? == line);
    }
    drop(raw);
    soon("the app's side ends", ended.acquire())
        .await??
        .forget();

    // `h2c` is between a caller and the node; an app never hears of it.
    let mut raw = Raw::connect(platform.node).await?;
    raw.write(head("h2c")).await?;
    ensure!(
        raw.read_until("no upgrade")
            .await?
            .starts_with("HTTP/1.1 200 ")
    );
    Ok(())
}

#[tokio::test]
async fn http2_callers() -> Result<()> {
    let platform = Platform::start().await?;
    let app = App::start(&platform.tasks, mirror).await?;
    platform.serving("shop", "public", &app).await?;
    let stream = tokio::net::TcpStream::connect(platform.node).await?;
    let tasks = platform.tasks.clone();
    let (mut sender, connection) = hyper::client::conn::http2::handshake(
        Streams(tasks.clone()),
        hyper_util::rt::TokioIo::new(stream),
    )
    .await?;
    tasks.spawn("h2 client", Importance::Detached, async move {
        let _ = connection.await;
    });
    let request = Request::post("http://shop.localhost/a?b")
        .header("cookie", "a=1")
        .header("cookie", "b=2");
    let answer = soon(
        "an answer",
        sender.send_request(request.body(full("hello"))?),
    )
    .await??;
    let seen = Answer::of(answer).await?.text();
    ensure!(
        seen.starts_with("POST /a?b\n") && seen.ends_with("\n\nhello"),
        "{seen}"
    );
    ensure!(
        seen.contains("\nhost: shop.localhost\n") && seen.contains("\ncookie: a=1; b=2\n"),
        "{seen}"
    );
    Ok(())
}

#[derive(Clone)]
struct Streams(tabbify_process::Tasks);

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Streams {
    fn execute(&self, stream: F) {
        self.0
            .spawn("h2 client stream", Importance::Detached, stream);
    }
}

#[tokio::test]
async fn a_node_that_stops_lets_requests_end() -> Result<()> {
    let platform = Platform::start().await?;
    let app = App::start(&platform.tasks, echo).await?;
    platform.serving("shop", "public", &app).await?;
    let mut client = platform.client().await?;
    let (frames, body) = crate::http_client::channel();
    let request = Request::post("/")
        .header("host", "shop.localhost")
        .body(body)?;
    let mut answer: Response<_> = client.send(request).await?;
    platform.stop();
    frames
        .send(hyper::body::Frame::data("still".into()))
        .await?;
    let frame = soon("the echo", answer.frame())
        .await?
        .context("a frame")??;
    ensure!(frame.into_data().is_ok_and(|data| data == "still"));
    drop(frames);
    soon("the end", answer.body_mut().collect()).await??;
    Ok(())
}
