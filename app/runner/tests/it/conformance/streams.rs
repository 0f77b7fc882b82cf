//! Bodies of any length, both ways, as they come; and what happens when either side does not go on.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::site::App;
use crate::harness::{request, sent_body, text, watched};

const MIB: usize = 1 << 20;
/// Of a body that no runtime may hold.
const LARGE: usize = 24 * MIB;
/// What may be under way between two who do not read: buffers of sockets and queues, however many.
const HELD_MAX: usize = 48 * MIB;
/// How long nothing moves where nothing can: what is still taken then is not held back.
const STUCK_FOR: Duration = Duration::from_secs(2);

/// Chunk n + 1 is sent only after the echo of chunk n has come back.
pub(super) async fn echo_in_lockstep(app: &App) -> anyhow::Result<()> {
    let (chunks, body) = sent_body();
    chunks.send("chunk;".into()).await?;
    let mut echoed = app.send(request("POST", "/echo", body)?).await?.into_body();
    for round in 0..30 {
        let mut back = Vec::new();
        while back.len() < "chunk;".len() {
            let frame = watched(echoed.frame()).await?.context("its end")??;
            back.extend(frame.into_data().unwrap_or_default());
        }
        ensure!(back == b"chunk;", "round {round}");
        chunks.send("chunk;".into()).await?;
    }
    drop(chunks);
    let rest = watched(echoed.collect()).await??.to_bytes();
    ensure!(rest == "chunk;");
    app.idle().await
}

pub(super) async fn large_bodies_pass_unchanged(app: &App) -> anyhow::Result<()> {
    let (chunks, body) = sent_body();
    let chunk = Bytes::from_iter((0..=240).cycle().take(MIB));
    let sending = async {
        for _ in 0..LARGE / MIB {
            chunks.send(chunk.clone()).await?;
        }
        drop(chunks);
        anyhow::Ok(())
    };
    let (answer, sent) = tokio::join!(app.send(request("POST", "/upload", body)?), sending);
    sent?;
    let mut fnv1a = 0xcbf2_9ce4_8422_2325_u64;
    for byte in chunk.iter().cycle().take(LARGE) {
        fnv1a = (fnv1a ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    }
    let said = text(answer?).await?;
    ensure!(
        said == format!("{LARGE} bytes, fnv1a {fnv1a:016x}"),
        "{said}"
    );

    let bytes = LARGE + 7;
    let mut body = app.get(&format!("/download?{bytes}")).await?.into_body();
    let mut position = 0_usize;
    while let Some(frame) = watched(body.frame()).await? {
        for byte in frame?.into_data().unwrap_or_default() {
            ensure!(usize::from(byte) == position % 251, "at {position}");
            position += 1;
        }
    }
    ensure!(position == bytes, "{position}");
    app.idle().await
}

pub(super) async fn an_endless_answer_ends_with_its_caller(app: &App) -> anyhow::Result<()> {
    let mut body = app.get("/endless").await?.into_body();
    let mut seen = 0;
    while seen < 4 * MIB {
        let frame = watched(body.frame()).await?.context("its end")??;
        seen += frame.data_ref().map_or(0, Bytes::len);
    }
    ensure!(app.traffic.counts().active == 1);
    drop(body);
    app.idle().await
}

pub(super) async fn a_caller_that_leaves_ends_its_request(app: &App) -> anyhow::Result<()> {
    let (chunks, body) = sent_body();
    chunks.send("part".into()).await?;
    let mut client = app.connect().await?;
    let echo = watched(client.send_request(request("POST", "/echo", body)?)).await??;
    drop(echo);
    drop(client);
    app.idle().await?;
    drop(chunks);
    // And one whose body stops before it was whole, without an answer.
    let (chunks, body) = sent_body();
    chunks.send("part".into()).await?;
    let mut client = app.connect().await?;
    {
        let upload = client.send_request(request("POST", "/upload", body)?);
        let mut upload = std::pin::pin!(upload);
        let begun = async {
            while app.traffic.counts().active == 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            _ = &mut upload => anyhow::bail!("it answered"),
            begun = watched(begun) => begun?,
        }
    }
    drop(client);
    app.idle().await
}

/// An echo that nobody reads: soon nobody takes what is sent, and nothing is lost when it is read after all.
pub(super) async fn nobody_reads_for_a_caller_who_does_not(app: &App) -> anyhow::Result<()> {
    let (chunks, body) = sent_body();
    let chunk = Bytes::from(vec![b'x'; MIB]);
    chunks.send(chunk.clone()).await?;
    let mut echoed = app.send(request("POST", "/echo", body)?).await?.into_body();
    let mut sent = MIB;
    while let Ok(taken) = tokio::time::timeout(STUCK_FOR, chunks.send(chunk.clone())).await {
        taken?;
        sent += MIB;
        ensure!(
            sent < HELD_MAX,
            "{sent} bytes were taken, and none was read"
        );
    }
    drop(chunks);
    let mut back = 0;
    while let Some(frame) = watched(echoed.frame()).await? {
        back += frame?.data_ref().map_or(0, Bytes::len);
    }
    ensure!(back == sent, "{back} of {sent} bytes came back");
    app.idle().await
}

pub(super) async fn another_protocol_passes(app: &App) -> anyhow::Result<()> {
    let stream = TokioIo::new(app.stream().await?);
    let (mut client, connection) = hyper::client::conn::http1::handshake(stream).await?;
    app.spawn(async {
        // Its errors come out of the requests.
        drop(connection.with_upgrades().await);
    });
    let asked = Request::get("/socket")
        .header("host", "app.localhost")
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
        .body(Empty::<Bytes>::new())?;
    let mut answer = watched(client.send_request(asked)).await??;
    ensure!(answer.status() == StatusCode::SWITCHING_PROTOCOLS);
    let mut upgraded = TokioIo::new(watched(hyper::upgrade::on(&mut answer)).await??);
    for word in [&b"ping"[..], b"pong"] {
        upgraded.write_all(word).await?;
        let mut echoed = [0; 4];
        watched(upgraded.read_exact(&mut echoed)).await??;
        ensure!(echoed == word);
    }
    ensure!(
        app.traffic.counts().active == 1,
        "it counts as being served"
    );
    upgraded.shutdown().await?;
    let mut rest = Vec::new();
    watched(upgraded.read_to_end(&mut rest)).await??;
    ensure!(rest.is_empty());
    app.idle().await
}
