//! What must not stand in the node's own log: tokens, tickets, sessions, queries, bodies.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result, ensure};
use http::Request;
use serde_json::{Value, json};
use tracing_subscriber::fmt::MakeWriter;

use crate::app::{App, mirror};
use crate::harness::Platform;
use crate::http_client::full;

/// Keeps what is logged.
#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl Captured {
    fn text(&self) -> String {
        let bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl io::Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut captured = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        captured.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Captured {
    type Writer = Self;
    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// Everything runs on this test's own thread, so its subscriber sees everything.
#[tokio::test]
async fn no_secret_is_logged() -> Result<()> {
    let captured = Captured::default();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
        .with_ansi(false)
        .with_writer(captured.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);

    let platform = Platform::start().await?;
    let app = App::start(&platform.tasks, mirror).await?;
    let id = platform.serving("shop", "private", &app).await?;
    let link = platform
        .post(&format!("/v1/apps/{id}/open"), "owner", Value::Null)
        .await?;
    let link = link.json()?["url"].as_str().context("a link")?.to_owned();
    let (_, ticket) = link.split_once("ticket=").context("a ticket")?;
    let target = format!("/.tabbify/open?ticket={ticket}");
    for _ in 0..2 {
        let request = Request::get(&target)
            .header("host", "shop.localhost")
            .body(full(""))?;
        platform.send(request).await?;
    }
    platform.get("/v1/apps", "s3cret-bearer").await?;
    platform
        .post("/v1/auth/token", "", json!({ "proof": "s3cret-proof" }))
        .await?;
    let request = Request::post("/visible/path?q=s3cret-query")
        .header("host", "shop.localhost")
        .header("x-tabbify-token", "owner")
        .header(
            "cookie",
            "tabbify_session=s3cret-session; own=s3cret-cookie",
        )
        .header("authorization", "Basic s3cret-basic")
        .body(full("s3cret-body"))?;
    ensure!(platform.send(request).await?.status.is_success());

    let log = captured.text();
    ensure!(
        log.contains("tabbify::event::request") && log.contains("/visible/path"),
        "{log}"
    );
    let random = ticket
        .rsplit("%2F")
        .next()
        .context("the ticket's random part")?;
    let plain = random.replace("%2D", "-");
    let session = format!("session.{id}");
    for secret in ["s3cret", random, &plain, "Bearer", &session] {
        let line = log.lines().find(|line| line.contains(secret));
        ensure!(line.is_none(), "{secret}: {line:?}");
    }
    Ok(())
}
