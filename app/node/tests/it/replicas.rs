//! Several instances of one app: who gets how much, and what is lost when one goes.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use futures_util::future::try_join_all;
use futures_util::stream;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use tabbify_process::Importance;
use tabbify_types::AppId;
use tokio::io::AsyncReadExt as _;
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::app::{self, App, text};
use crate::harness::Platform;
use crate::http_client::{Body, Client, full, soon, until};

/// An app whose instances these are, numbered from 1 in this order.
async fn serving(platform: &Platform, instances: &[&App]) -> Result<AppId> {
    let id = platform.serving("shop", "public", instances[0]).await?;
    let mut numbers = Vec::new();
    for (n, instance) in (1..).zip(instances) {
        platform.instance_leads_to(id, n, Some(instance));
        numbers.push(n);
    }
    platform.shift_to(id, 1, &numbers).await?;
    Ok(id)
}

fn request(method: Method, path: &str) -> Result<Request<Body>> {
    let body = if method == Method::POST { "x" } else { "" };
    let request = Request::builder().method(method).uri(path);
    Ok(request.header("host", "shop.localhost").body(full(body))?)
}

/// `n` requests one after the other on a connection of their own; all must be answered.
async fn ask(platform: &Platform, method: Method, n: usize) -> Result<()> {
    let mut client = platform.client().await?;
    for i in 0..n {
        let answer = client.send(request(method.clone(), "/")?).await?;
        let status = answer.status();
        let body = answer.into_body().collect().await?.to_bytes();
        ensure!(status == StatusCode::OK, "request {i}: {status} {body:?}");
    }
    Ok(())
}

async fn quick(_: Request<Incoming>) -> Response<app::Body> {
    text("quick")
}

#[tokio::test]
async fn two_instances_share_the_load() -> Result<()> {
    let platform = Platform::start().await?;
    let one = App::start(&platform.tasks, quick).await?;
    let two = App::start(&platform.tasks, quick).await?;
    serving(&platform, &[&one, &two]).await?;
    try_join_all((0..8).map(|_| ask(&platform, Method::POST, 50))).await?;
    let (first, second) = (one.requests(), two.requests());
    ensure!(first + second == 400, "{first} + {second}");
    // Even chances and a preference for who has less: far from what a lucky series could do.
    ensure!(first.min(second) >= 100, "{first} and {second}");
    // Connections are kept for each: about as many as there were callers.
    let connections = one.connections() + two.connections();
    ensure!(connections <= 40, "{connections} connections");
    ensure!(platform.pool.stats().elsewhere == 0);
    Ok(())
}

#[tokio::test]
async fn who_is_slow_gets_less() -> Result<()> {
    let platform = Platform::start().await?;
    let gate = Arc::new(Semaphore::new(0));
    let opened = Arc::clone(&gate);
    let slow = App::start(&platform.tasks, move |_| {
        let gate = Arc::clone(&opened);
        async move {
            let _held = gate.acquire().await;
            text("slow")
        }
    })
    .await?;
    let fast = App::start(&platform.tasks, quick).await?;
    serving(&platform, &[&slow, &fast]).await?;
    // Whoever meets the slow one waits; all others are answered meanwhile.
    let asked = async {
        let asking = (0..12).map(|_| ask(&platform, Method::GET, 60));
        try_join_all(asking).await
    };
    let answered = async {
        until("the fast one has answered the most", async || {
            // Each of the twelve callers can be held once; the others go on.
            fast.requests() >= 100
        })
        .await?;
        let held = slow.requests();
        gate.add_permits(1000);
        Ok::<_, anyhow::Error>(held)
    };
    let (asked, held) = tokio::join!(asked, answered);
    asked?;
    let held = held?;
    // It gets one only while it has no more than the fast one.
    ensure!(
        held <= 8,
        "{held} of {} went to the slow one",
        fast.requests()
    );
    Ok(())
}

#[tokio::test]
async fn one_dies_and_nothing_fails_beyond_what_it_had() -> Result<()> {
    let platform = Platform::start().await?;
    let one = App::start(&platform.tasks, quick).await?;
    let two = App::start(&platform.tasks, quick).await?;
    serving(&platform, &[&one, &two]).await?;
    ask(&platform, Method::POST, 40).await?;
    ensure!(one.requests() > 0 && two.requests() > 0);
    // The log says nothing of it: what follows is found out by dialing.
    one.kill();
    until("its connections have ended", async || {
        tokio::net::TcpStream::connect(one.address).await.is_err()
    })
    .await?;
    try_join_all((0..4).map(|_| ask(&platform, Method::GET, 50))).await?;
    ask(&platform, Method::POST, 50).await?;
    let stats = platform.pool.stats();
    ensure!(
        stats.elsewhere >= 1 && stats.failed == stats.elsewhere,
        "{stats:?}"
    );
    // It is not tried for each request.
    ensure!(stats.elsewhere <= 20, "{stats:?}");
    Ok(())
}

#[tokio::test]
async fn one_that_is_silent_costs_one_request_some_time() -> Result<()> {
    let platform = Platform::start_with(|config| {
        config.timeouts.elsewhere = Duration::from_secs(1);
    })
    .await?;
    let one = App::start(&platform.tasks, quick).await?;
    let id = serving(&platform, &[&one]).await?;
    platform.instance_leads_to(id, 2, None);
    platform.shift_to(id, 1, &[1, 2]).await?;
    // Until it is tried, which is a matter of chance.
    soon("the silent one is tried", async {
        while platform.pool.stats().elsewhere == 0 {
            ask(&platform, Method::POST, 1).await?;
        }
        Ok::<_, anyhow::Error>(())
    })
    .await??;
    let before = one.requests();
    ask(&platform, Method::POST, 10).await?;
    ensure!(one.requests() == before + 10);
    ensure!(
        platform.pool.stats().elsewhere <= 4,
        "{:?}",
        platform.pool.stats()
    );

    // The only instance there is, is waited for as before: nobody else could answer.
    platform.shift_to(id, 1, &[2]).await?;
    let mut client = platform.client().await?;
    let waiting = client.send(request(Method::GET, "/")?);
    ensure!(
        tokio::time::timeout(Duration::from_millis(1_500), waiting)
            .await
            .is_err(),
        "it is not given up after the time that is meant for several"
    );
    Ok(())
}

/// Begins an answer, and ends it when it is told.
fn slowly(begun: Arc<Notify>, end: Arc<Notify>) -> Response<app::Body> {
    let frames = stream::unfold(0, move |n| {
        let (begun, end) = (Arc::clone(&begun), Arc::clone(&end));
        async move {
            let piece: &'static [u8] = match n {
                0 => b"begun ",
                1 => {
                    begun.notify_one();
                    end.notified().await;
                    b"ended"
                }
                _ => return None,
            };
            let frame = Frame::data(Bytes::from_static(piece));
            Some((Ok::<_, Infallible>(frame), n + 1))
        }
    });
    let body = StreamBody::new(frames).map_err(|never| match never {});
    Response::new(body.boxed_unsync())
}

#[tokio::test]
async fn a_switch_loses_nothing() -> Result<()> {
    let platform = Platform::start().await?;
    let (begun, end) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (said, told) = (Arc::clone(&begun), Arc::clone(&end));
    let old = App::start(&platform.tasks, move |request: Request<Incoming>| {
        let (said, told) = (Arc::clone(&said), Arc::clone(&told));
        async move {
            match request.uri().path() {
                "/stream" => slowly(said, told),
                _ => text("old"),
            }
        }
    })
    .await?;
    let new = App::start(&platform.tasks, quick).await?;
    let id = serving(&platform, &[&old]).await?;
    platform.instance_leads_to(id, 2, Some(&new));

    let mut client = platform.client().await?;
    let answer = client.send(request(Method::GET, "/stream")?).await?;
    soon("the stream has begun", begun.notified()).await?;
    let switched = CancellationToken::new();
    let caller = async || {
        while !switched.is_cancelled() {
            ask(&platform, Method::POST, 10).await?;
        }
        ask(&platform, Method::POST, 10).await
    };
    let load = try_join_all((0..6).map(|_| caller()));
    let switch = async {
        until("there is load on the old one", async || old.requests() > 20).await?;
        platform.shift_to(id, 1, &[2, 1]).await?;
        until("both have some", async || new.requests() > 20).await?;
        platform.shift_to(id, 1, &[2]).await?;
        switched.cancel();
        Ok::<_, anyhow::Error>(())
    };
    let (load, switch) = tokio::join!(soon("the load", load), switch);
    load?.context("a request was lost")?;
    switch?;
    // No new request for the one that has left, although its listener and connections are still there.
    let before = old.requests();
    ask(&platform, Method::POST, 50).await?;
    ensure!(
        old.requests() == before,
        "{} after the switch",
        old.requests() - before
    );
    end.notify_one();
    let whole = soon("the stream's end", answer.into_body().collect())
        .await??
        .to_bytes();
    ensure!(whole == "begun ended", "{whole:?}");
    Ok(())
}

#[tokio::test]
async fn an_instance_that_has_gone_is_found_by_the_address_of_its_app() -> Result<()> {
    let platform = Platform::start().await?;
    let one = App::start(&platform.tasks, quick).await?;
    let two = App::start(&platform.tasks, quick).await?;
    let id = serving(&platform, &[&one]).await?;
    ask(&platform, Method::POST, 5).await?;
    // The coordinator knows of another primary; the node has not been told yet.
    one.kill();
    until("nobody listens", async || {
        tokio::net::TcpStream::connect(one.address).await.is_err()
    })
    .await?;
    platform.leads_to(id, &two);
    ask(&platform, Method::GET, 20).await?;
    ensure!(two.requests() == 20 && platform.pool.stats().elsewhere >= 1);
    Ok(())
}

/// It lets connections in and closes each as soon as a request has come: as one that is about to end.
async fn leaving(platform: &Platform) -> Result<std::net::SocketAddr> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    platform
        .tasks
        .spawn("leaving", Importance::Detached, async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.read(&mut [0; 1024]).await;
            }
        });
    Ok(address)
}

/// What was not answered and may be asked twice is asked elsewhere, once; what may not is the caller's to ask
/// again.
#[tokio::test]
async fn an_instance_that_goes_under_a_request_costs_nobody() -> Result<()> {
    let platform = Platform::start().await?;
    let stays = App::start(&platform.tasks, quick).await?;
    let id = serving(&platform, &[&stays]).await?;
    platform.instance_leads_at(id, 2, leaving(&platform).await?);
    platform.shift_to(id, 1, &[1, 2]).await?;
    // Until it is tried, which is a matter of chance; and after that, whoever else meets it.
    soon("the one that leaves is met", async {
        while platform.pool.stats().elsewhere == 0 {
            ask(&platform, Method::GET, 1).await?;
        }
        Ok::<_, anyhow::Error>(())
    })
    .await??;
    try_join_all((0..8).map(|_| ask(&platform, Method::GET, 50))).await?;

    // It is the only one that is known: whom the app's address leads to is asked.
    platform.shift_to(id, 1, &[2]).await?;
    ask(&platform, Method::GET, 1).await?;
    let before = stays.requests();
    let mut client = platform.client().await?;
    let refused = client.send(request(Method::POST, "/")?).await?;
    ensure!(refused.status() == StatusCode::BAD_GATEWAY, "{refused:?}");
    ensure!(stays.requests() == before, "it may have been done");

    // Once: with nobody else there it is an error, and no loop.
    platform.leads_at(id, leaving(&platform).await?);
    let before = platform.pool.stats().elsewhere;
    let mut client = platform.client().await?;
    let refused = client.send(request(Method::GET, "/")?).await?;
    ensure!(refused.status() == StatusCode::BAD_GATEWAY, "{refused:?}");
    ensure!(platform.pool.stats().elsewhere == before + 1);
    Ok(())
}

/// What is under way counts also after its instance has left.
#[tokio::test]
async fn what_is_under_way_counts_to_its_end() -> Result<()> {
    let platform = Platform::start().await?;
    let (begun, end) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (said, told) = (Arc::clone(&begun), Arc::clone(&end));
    let old = App::start(&platform.tasks, move |_| {
        let (said, told) = (Arc::clone(&said), Arc::clone(&told));
        async move { slowly(said, told) }
    })
    .await?;
    let new = App::start(&platform.tasks, quick).await?;
    let id = serving(&platform, &[&old]).await?;
    platform.instance_leads_to(id, 2, Some(&new));
    let mut client = platform.client().await?;
    let answer = client.send(request(Method::GET, "/")?).await?;
    soon("the stream has begun", begun.notified()).await?;
    platform.shift_to(id, 1, &[2]).await?;
    ensure!(
        platform.pool.stats().outstanding == 1,
        "{:?}",
        platform.pool.stats()
    );
    end.notify_one();
    soon("the stream's end", answer.into_body().collect()).await??;
    until("nothing is under way", async || {
        platform.pool.stats().outstanding == 0
    })
    .await
}

/// A client that goes away gives its place on the instance back.
#[tokio::test]
async fn abandoned_requests_weigh_nothing() -> Result<()> {
    let platform = Platform::start().await?;
    let never = || App::start(&platform.tasks, |_| std::future::pending());
    let (one, two) = (never().await?, never().await?);
    serving(&platform, &[&one, &two]).await?;
    for n in 1..=6 {
        let mut client = Client::connect(&platform.tasks, platform.node).await?;
        client.sender.ready().await?;
        let asked = client.sender.send_request(request(Method::GET, "/")?);
        let seen = until("it is asked", async || one.requests() + two.requests() >= n);
        tokio::select! {
            _ = asked => ensure!(false, "nobody answers"),
            seen = seen => seen?,
        }
        // Here the client goes.
    }
    until("all are let go", async || {
        platform.pool.stats().outstanding == 0
    })
    .await
}
