//! Bodies: in lockstep, large, with trailers, and broken off.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use tokio::sync::Semaphore;

use crate::app::{App, Body, echo, text};
use crate::harness::Platform;
use crate::http_client::{self, Raw, channel, full, soon};

const MIB: usize = 1024 * 1024;

#[tokio::test]
async fn a_hundred_round_trips_on_one_request() -> Result<()> {
    let platform = Platform::start().await?;
    let app = App::start(&platform.tasks, echo).await?;
    let id = platform.serving("shop", "public", &app).await?;
    let (frames, body) = channel();
    let request = Request::post(format!("/app/{id}/echo"))
        .header("host", "localhost")
        .header("te", "trailers")
        .header("trailer", "x-sum")
        .body(body)?;
    let mut client = platform.client().await?;
    let mut answer = client.send(request).await?;
    for n in 0..100 {
        let sent = Bytes::from(format!("chunk {n}").repeat(n + 1));
        frames.send(Frame::data(sent.clone())).await?;
        let mut seen = Vec::new();
        while seen.len() < sent.len() {
            let frame = soon("an echo", answer.frame())
                .await?
                .context("an open answer")??;
            seen.extend_from_slice(&frame.into_data().map_err(|_| anyhow::anyhow!("no data"))?);
        }
        ensure!(seen == sent, "round trip {n}");
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", HeaderValue::from_static("5050"));
    frames.send(Frame::trailers(trailers)).await?;
    drop(frames);
    let last = soon("the trailers", answer.frame())
        .await?
        .context("trailers")??;
    let trailers = last
        .into_trailers()
        .map_err(|_| anyhow::anyhow!("no trailers"))?;
    ensure!(trailers["x-sum"] == "5050");
    ensure!(app.requests() == 1);
    Ok(())
}

fn rss() -> Result<usize> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .context("VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<usize>()? * 1024)
}

/// `len` bytes in frames of 64 KiB, made as they are asked for.
fn bytes(len: usize) -> Body {
    let chunk = Bytes::from(vec![0xa5; 64 * 1024]);
    let frames = stream::iter(0..len / chunk.len()).map(move |_| Ok(Frame::data(chunk.clone())));
    StreamBody::new(frames).boxed_unsync()
}

#[tokio::test]
async fn large_bodies_take_little_memory() -> Result<()> {
    let platform = Platform::start().await?;
    // Reads everything and tells how much, or gives as much as the path says.
    let app = App::start(&platform.tasks, |request| async move {
        let give = request
            .uri()
            .path()
            .trim_start_matches('/')
            .parse::<usize>();
        if let Ok(len) = give {
            return Response::new(bytes(len));
        }
        let mut len = 0;
        let mut body = request.into_body();
        while let Some(Ok(frame)) = body.frame().await {
            len += frame.data_ref().map_or(0, Bytes::len);
        }
        text(len.to_string())
    })
    .await?;
    platform.serving("shop", "public", &app).await?;
    let mut client = platform.client().await?;
    // Once small, so that buffers and pools are there.
    for len in [MIB, 128 * MIB] {
        let before = rss()?;
        let up: http_client::Body = bytes(len);
        let request = Request::post("/up")
            .header("host", "shop.localhost")
            .body(up)?;
        let answer = crate::http_client::Answer::of(client.send(request).await?).await?;
        ensure!(answer.text() == len.to_string());
        let request = Request::get(format!("/{len}")).header("host", "shop.localhost");
        let mut answer = client.send(request.body(full(""))?).await?;
        let (mut seen, mut most) = (0, 0);
        while let Some(frame) = soon("a frame", answer.frame()).await? {
            seen += frame?.data_ref().map_or(0, Bytes::len);
            if seen % (8 * MIB) < 64 * 1024 {
                most = most.max(rss()?);
            }
        }
        ensure!(seen == len);
        let grown = most.saturating_sub(before);
        ensure!(
            grown < 48 * MIB,
            "{len} bytes each way took {grown} bytes of memory"
        );
    }
    Ok(())
}

/// Tells when it is dropped.
struct Dropped(Arc<Semaphore>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.add_permits(1);
    }
}

#[tokio::test]
async fn a_caller_who_leaves_cancels_the_app() -> Result<()> {
    let platform = Platform::start().await?;
    let (begun, ended) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let app = {
        let (begun, ended) = (Arc::clone(&begun), Arc::clone(&ended));
        App::start(&platform.tasks, move |request| {
            let (begun, dropped) = (Arc::clone(&begun), Dropped(Arc::clone(&ended)));
            async move {
                begun.add_permits(1);
                match request.uri().path() {
                    "/never" => {
                        std::future::pending::<()>().await;
                        drop(dropped);
                        text("")
                    }
                    // One frame, and then nothing more, with the guard in the body.
                    "/quiet" => {
                        let frames = stream::unfold((0, dropped), |(n, dropped)| async move {
                            if n > 0 {
                                std::future::pending::<()>().await;
                            }
                            Some((
                                Ok(Frame::data(Bytes::from_static(b"first"))),
                                (n + 1, dropped),
                            ))
                        });
                        Response::new(StreamBody::new(frames).boxed_unsync())
                    }
                    // Reads the request for as long as it comes.
                    _ => {
                        let _ = request.into_body().collect().await;
                        drop(dropped);
                        text("")
                    }
                }
            }
        })
        .await?
    };
    platform.serving("shop", "public", &app).await?;
    let head =
        |line: &str, rest: &str| format!("{line} HTTP/1.1\r\nHost: shop.localhost\r\n{rest}\r\n");
    for (what, bytes, read) in [
        ("before the answer", head("GET /never", ""), ""),
        ("in the answer", head("GET /quiet", ""), "first"),
        (
            "in the request",
            head("POST /read", "Content-Length: 100\r\n") + "some",
            "",
        ),
        (
            "in a chunk",
            head("POST /read", "Transfer-Encoding: chunked\r\n") + "9\r\nsome",
            "",
        ),
    ] {
        let mut raw = Raw::connect(platform.node).await?;
        raw.write(bytes).await?;
        soon(what, begun.acquire()).await??.forget();
        if !read.is_empty() {
            raw.read_until(read).await?;
        }
        drop(raw);
        soon(what, ended.acquire()).await??.forget();
    }
    Ok(())
}

#[tokio::test]
async fn a_slow_reader_stops_the_app() -> Result<()> {
    let platform = Platform::start().await?;
    let made = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let app = {
        let made = Arc::clone(&made);
        App::start(&platform.tasks, move |_| {
            let made = Arc::clone(&made);
            async move {
                let chunk = Bytes::from(vec![1; 64 * 1024]);
                let frames = stream::repeat_with(move || {
                    made.fetch_add(chunk.len(), std::sync::atomic::Ordering::SeqCst);
                    Ok(Frame::data(chunk.clone()))
                });
                // Lets others run, as a real app does while it makes its bytes.
                let frames = frames.then(|frame| async {
                    tokio::task::yield_now().await;
                    frame
                });
                Response::new(StreamBody::new(frames).boxed_unsync())
            }
        })
        .await?
    };
    platform.serving("shop", "public", &app).await?;
    let mut raw = Raw::connect(platform.node).await?;
    raw.write("GET / HTTP/1.1\r\nHost: shop.localhost\r\n\r\n")
        .await?;
    raw.read_until("\r\n\r\n").await?;
    // Nobody reads: the endless answer comes to rest, at what the sockets between hold.
    let count = || made.load(std::sync::atomic::Ordering::SeqCst);
    let mut last = count();
    soon("rest", async {
        let mut quiet = 0;
        while quiet < 20 {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            quiet = if count() == last { quiet + 1 } else { 0 };
            last = count();
        }
    })
    .await?;
    ensure!(last < 32 * MIB, "{last} bytes were made for nobody");
    Ok(())
}

#[tokio::test]
async fn an_early_answer_does_not_wait_for_the_body() -> Result<()> {
    let platform = Platform::start().await?;
    let app = App::start(&platform.tasks, |_| async {
        let mut answer = text("too much");
        *answer.status_mut() = StatusCode::PAYLOAD_TOO_LARGE;
        answer
    })
    .await?;
    platform.serving("shop", "public", &app).await?;
    for _ in 0..3 {
        let (frames, body) = channel();
        let request = Request::post("/")
            .header("host", "shop.localhost")
            .body(body)?;
        let mut client = platform.client().await?;
        let answer = client.send(request).await?;
        ensure!(answer.status() == StatusCode::PAYLOAD_TOO_LARGE);
        let body = soon("the answer", answer.into_body().collect())
            .await??
            .to_bytes();
        ensure!(body == "too much");
        drop(frames);
    }
    Ok(())
}
