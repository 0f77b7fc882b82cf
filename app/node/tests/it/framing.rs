//! Step 1 with raw bytes: what is refused before anything is routed.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tabbify_node::{BindError, Config};

use crate::app::{App, mirror};
use crate::harness::Platform;
use crate::http_client::{Raw, until};

/// Messages that a sloppy pair of parsers would cut at different places.
const SMUGGLERS: &[(&str, &str)] = &[
    (
        "both lengths",
        "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /evil HTTP/1.1\r\n",
    ),
    (
        "both, the other way",
        "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\nGET",
    ),
    (
        "two equal lengths",
        "Content-Length: 1\r\nContent-Length: 1\r\n\r\na",
    ),
    (
        "two lengths",
        "Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    ),
    ("a list of lengths", "Content-Length: 1, 1\r\n\r\na"),
    ("a signed length", "Content-Length: +1\r\n\r\na"),
    (
        "two codings",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "a coding before",
        "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "an unknown coding",
        "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "a space before the colon",
        "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "a folded line",
        "Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "a bad chunk size",
        "Transfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
    ),
    (
        "a second host",
        "Host: shop.localhost\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
    ),
];

#[tokio::test]
async fn smuggling_is_refused() -> Result<()> {
    let platform = Platform::start().await?;
    let app = App::start(&platform.tasks, mirror).await?;
    let id = platform.serving("shop", "public", &app).await?;
    let before = app.requests();
    let head = format!("POST /app/{id}/x HTTP/1.1\r\nHost: localhost\r\n");
    for (what, rest) in SMUGGLERS {
        let mut raw = Raw::connect(platform.node).await?;
        raw.write(format!("{head}{rest}")).await?;
        let answer = raw.rest().await.context(*what)?;
        ensure!(answer.starts_with("HTTP/1.1 400 "), "{what}: {answer}");
        ensure!(answer.matches("HTTP/1.1 ").count() == 1, "{what}: {answer}");
    }
    // Those that only hyper's repair would have let through say so.
    let mut raw = Raw::connect(platform.node).await?;
    raw.write(format!(
        "{head}Content-Length: 1\r\nContent-Length: 1\r\n\r\na"
    ))
    .await?;
    let answer = raw.rest().await?;
    ensure!(answer.contains("\"code\":\"bad_framing\""), "{answer}");
    // A bad chunk is only seen once the app has the head; none of the others reached it.
    ensure!(
        app.requests() <= before + 1,
        "{} requests",
        app.requests() - before
    );
    Ok(())
}

#[tokio::test]
async fn a_request_needs_a_host() -> Result<()> {
    let platform = Platform::start().await?;
    let mut raw = Raw::connect(platform.node).await?;
    raw.write("GET /health HTTP/1.1\r\nConnection: close\r\n\r\n")
        .await?;
    ensure!(raw.rest().await?.starts_with("HTTP/1.1 400 "));
    let mut raw = Raw::connect(platform.node).await?;
    raw.write("GET /health HTTP/1.0\r\n\r\n").await?;
    ensure!(raw.rest().await?.starts_with("HTTP/1.0 200 "));
    // The target's own host counts, not the header (RFC 9112 3.2.2).
    let mut raw = Raw::connect(platform.node).await?;
    raw.write("GET http://nobody.localhost/health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .await?;
    ensure!(raw.rest().await?.contains("unknown_app"));
    Ok(())
}

#[tokio::test]
async fn heads_are_limited_in_size_and_time() -> Result<()> {
    let quick = |config: &mut Config| config.timeouts.head = Duration::from_millis(200);
    let platform = Platform::start_with(quick).await?;
    // In the first bytes, in a head, and between requests.
    for begin in [
        "",
        "PRI",
        "GET /health HTTP/1.1\r\nHost: loc",
        "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ] {
        let mut raw = Raw::connect(platform.node).await?;
        raw.write(begin).await?;
        raw.rest().await?;
    }
    let platform = Platform::start().await?;
    let mut raw = Raw::connect(platform.node).await?;
    let long = "a".repeat(tabbify_node::config::HEAD_LEN_MAX);
    // The node may close before it has read all of it.
    let _ = raw
        .write(format!(
            "GET /health HTTP/1.1\r\nHost: localhost\r\nX: {long}\r\n\r\n"
        ))
        .await;
    let answer = raw.rest().await?;
    ensure!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 431 "),
        "{answer}"
    );
    let mut raw = Raw::connect(platform.node).await?;
    let many = "a: b\r\n".repeat(tabbify_node::config::HEADERS_MAX);
    raw.write(format!(
        "GET /health HTTP/1.1\r\nHost: localhost\r\n{many}\r\n"
    ))
    .await?;
    ensure!(raw.rest().await?.starts_with("HTTP/1.1 431 "));
    Ok(())
}

#[tokio::test]
async fn one_connection_too_many() -> Result<()> {
    let platform = Platform::start_with(|config| config.connections = 1).await?;
    let ask = "GET /health HTTP/1.1\r\nHost: localhost\r\n";
    let mut first = Raw::connect(platform.node).await?;
    first.write(format!("{ask}\r\n")).await?;
    first.read_until("}").await?;
    let second = Raw::connect(platform.node).await?.rest().await?;
    ensure!(second.starts_with("HTTP/1.1 429 "), "{second}");
    ensure!(second.contains("\"code\":\"rate_limited\""), "{second}");
    // The first one is none the worse for it, and its place is free once it ends.
    first
        .write(format!("{ask}Connection: close\r\n\r\n"))
        .await?;
    ensure!(first.rest().await?.starts_with("HTTP/1.1 200 "));
    until("a free place", async || {
        let Ok(mut next) = Raw::connect(platform.node).await else {
            return false;
        };
        let wrote = next.write(format!("{ask}Connection: close\r\n\r\n")).await;
        wrote.is_ok()
            && next
                .rest()
                .await
                .is_ok_and(|text| text.starts_with("HTTP/1.1 200 "))
    })
    .await
}

#[tokio::test]
async fn nothing_listens_beyond_loopback() -> Result<()> {
    let open = |config: &mut Config| config.listen = vec![SocketAddr::from(([0, 0, 0, 0], 0))];
    let refused = Platform::start_with(open).await.err();
    let refused = refused.and_then(|error| error.downcast::<BindError>().ok());
    ensure!(
        matches!(refused, Some(BindError::NotLoopback(_))),
        "{refused:?}"
    );
    let platform = Platform::start().await?;
    let taken = platform.node;
    let same = |config: &mut Config| config.listen = vec![taken];
    let refused = Platform::start_with(same).await.err();
    let refused = refused.and_then(|error| error.downcast::<BindError>().ok());
    ensure!(
        matches!(refused, Some(BindError::Bind { .. })),
        "{refused:?}"
    );
    Ok(())
}
