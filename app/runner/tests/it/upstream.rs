//! The law of a runtime, for an app that listens at an address: bodies, ends, connections, other protocols.
//! The apps are written by hand, byte by byte where it matters.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tabbify_api::BoxFuture;
use tabbify_process::{Importance, Tasks};
use tabbify_runner::runtime::{Body, RequestError, Runtime};
use tabbify_runner::server::{Caller, Server};
use tabbify_runner::traffic::{Permit, Traffic};
use tabbify_runner::upstream::Upstream;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use crate::harness::{Client, client, get, request, sent_body, text, watched};

/// The least of a runtime: an app that is there.
#[derive(Debug)]
struct There(Upstream);

impl Runtime for There {
    fn serve(
        &self,
        request: Request<Body>,
        permit: Permit,
    ) -> BoxFuture<'_, Result<Response<Body>, RequestError>> {
        Box::pin(self.0.serve(request, permit))
    }
}

/// A runner's server before an app, and a node that calls it.
struct Site {
    tasks: Tasks,
    traffic: Traffic,
    address: SocketAddr,
}

impl Site {
    async fn before(app: SocketAddr) -> anyhow::Result<Self> {
        let (tasks, traffic) = (Tasks::new(), Traffic::new(100));
        let upstream = Upstream::new(app, &tasks);
        let server = Server::new(Arc::new(There(upstream)), traffic.clone());
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let owner = tasks.clone();
        tasks.spawn("accept", Importance::Detached, async move {
            while let Ok((stream, _)) = listener.accept().await {
                let connection = server.clone().called_by(Caller::Node).connection(stream);
                owner.spawn("connection", Importance::Detached, connection);
            }
        });
        Ok(Self {
            tasks,
            traffic,
            address,
        })
    }

    async fn client(&self) -> anyhow::Result<Client> {
        client(TcpStream::connect(self.address).await?, &self.tasks).await
    }

    async fn get(&self, path: &str) -> anyhow::Result<Response<Incoming>> {
        Ok(watched(self.client().await?.send_request(get(path)?)).await??)
    }

    async fn idle(&self) -> anyhow::Result<()> {
        watched(async {
            while self.traffic.counts().active > 0 {
                tokio::task::yield_now().await;
            }
        })
        .await
    }
}

/// An app whose every connection is given to `serve`.
async fn app<F>(
    tasks: &Tasks,
    serve: impl Fn(TcpStream, usize) -> F + Send + Sync + 'static,
) -> anyhow::Result<SocketAddr>
where
    F: Future<Output = std::io::Result<()>> + Send + 'static,
{
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let address = listener.local_addr()?;
    let owner = tasks.clone();
    tasks.spawn("app", Importance::Detached, async move {
        let mut count = 0;
        while let Ok((stream, _)) = listener.accept().await {
            count += 1;
            let serving = serve(stream, count);
            owner.spawn("app's connection", Importance::Detached, async {
                // A connection that breaks is what some tests are about.
                drop(serving.await);
            });
        }
    });
    Ok(address)
}

/// Reads a request's head; empty at the connection's end.
async fn head(stream: &mut TcpStream) -> std::io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => break,
            Err(error) => return Err(error),
        }
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

/// An app that says this to everybody and closes.
async fn saying(tasks: &Tasks, answer: &'static [u8]) -> anyhow::Result<SocketAddr> {
    let serve = move |mut stream: TcpStream, _| async move {
        head(&mut stream).await?;
        stream.write_all(answer).await
    };
    app(tasks, serve).await
}

#[tokio::test]
async fn bodies_stream_both_ways_in_lockstep() {
    let tasks = Tasks::new();
    let echo = app(&tasks, |stream, _| async {
        let echo = service_fn(|request: Request<Incoming>| async {
            Ok::<_, Infallible>(Response::new(request.into_body()))
        });
        let served = http1::Builder::new().serve_connection(TokioIo::new(stream), echo);
        served.await.map_err(std::io::Error::other)
    });
    let site = Site::before(echo.await.unwrap()).await.unwrap();
    let mut client = site.client().await.unwrap();
    let (chunks, body) = sent_body();
    let asked = client.send_request(request("POST", "/echo", body).unwrap());
    let mut answer = watched(asked).await.unwrap().unwrap().into_body();
    for round in 0..20 {
        let chunk = Bytes::from(format!("round {round}"));
        chunks.send(chunk.clone()).await.unwrap();
        let frame = watched(answer.frame()).await.unwrap().unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), chunk);
    }
    assert_eq!(site.traffic.counts().active, 1);
    drop(chunks);
    assert!(watched(answer.frame()).await.unwrap().is_none());
    site.idle().await.unwrap();
    tasks.stop();
}

#[tokio::test]
async fn an_answer_that_breaks_off_never_looks_whole() {
    let tasks = Tasks::new();
    for cut in [
        &b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc"[..],
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n9\r\nabc",
    ] {
        let site = Site::before(saying(&tasks, cut).await.unwrap())
            .await
            .unwrap();
        let answer = site.get("/").await.unwrap();
        assert_eq!(answer.status(), 200);
        assert!(
            text(answer).await.is_err(),
            "{:?}",
            String::from_utf8_lossy(cut)
        );
        site.idle().await.unwrap();
    }
    // One whose end is the connection's, as HTTP/1.0 has it.
    let old = b"HTTP/1.0 200 OK\r\n\r\nabc";
    let site = Site::before(saying(&tasks, old).await.unwrap())
        .await
        .unwrap();
    assert_eq!(text(site.get("/").await.unwrap()).await.unwrap(), "abc");
}

#[tokio::test]
async fn no_answer_is_a_502_that_says_why() {
    let tasks = Tasks::new();
    for (answer, why) in [
        (&b""[..], "ended the connection"),
        (b"HTTP/1.1 200", "ended the connection"),
        (b"hello, I am not HTTP\r\n\r\n", "not answer in HTTP"),
        (
            b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n",
            "another protocol",
        ),
    ] {
        let site = Site::before(saying(&tasks, answer).await.unwrap())
            .await
            .unwrap();
        let answer = site.get("/").await.unwrap();
        assert_eq!(answer.headers()["x-tabbify-error"], "app_no_response");
        assert_eq!(answer.status(), 502);
        let told = text(answer).await.unwrap();
        assert!(told.contains(why), "{told}");
        site.idle().await.unwrap();
    }
    let nobody = TcpListener::bind(("127.0.0.1", 0))
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let site = Site::before(nobody).await.unwrap();
    let told = text(site.get("/").await.unwrap()).await.unwrap();
    assert!(told.contains("does not take connections"), "{told}");
}

/// Connections are kept; one that the app has closed meanwhile costs nobody an answer.
#[tokio::test]
async fn connections_are_kept_until_the_app_closes_them() {
    let tasks = Tasks::new();
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&connections);
    // Answers twice on each, and closes when the third request is there: the worst moment.
    let address = app(&tasks, move |mut stream, count| {
        counted.store(count, Ordering::SeqCst);
        async move {
            for _ in 0..2 {
                head(&mut stream).await?;
                let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n{count}");
                stream.write_all(answer.as_bytes()).await?;
            }
            head(&mut stream).await.map(drop)
        }
    });
    let site = Site::before(address.await.unwrap()).await.unwrap();
    let mut client = site.client().await.unwrap();
    let mut by = String::new();
    for _ in 0..6 {
        watched(client.ready()).await.unwrap().unwrap();
        let answer = watched(client.send_request(get("/").unwrap()))
            .await
            .unwrap()
            .unwrap();
        by.push_str(&text(answer).await.unwrap());
    }
    assert_eq!(by, "112233");
    assert_eq!(connections.load(Ordering::SeqCst), 3);
    // What is not harmless twice is never sent twice: its caller is told.
    let (chunks, body) = sent_body();
    drop(chunks);
    watched(client.ready()).await.unwrap().unwrap();
    let answer = client.send_request(request("POST", "/", body).unwrap());
    assert_eq!(watched(answer).await.unwrap().unwrap().status(), 502);
}

#[tokio::test]
async fn a_caller_that_goes_takes_the_request_along() {
    let tasks = Tasks::new();
    let (gone, mut noticed) = mpsc::channel(1);
    let endless = app(&tasks, move |mut stream, _| {
        let gone = gone.clone();
        async move {
            let path = head(&mut stream).await?;
            if path.starts_with("GET /body") {
                stream
                    .write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n")
                    .await?;
            }
            // Returns when the other end has closed.
            let closed = stream.read(&mut [0; 1]).await;
            // The test may have ended.
            let _ = gone.send(closed.is_err() || matches!(closed, Ok(0))).await;
            Ok(())
        }
    });
    let site = Site::before(endless.await.unwrap()).await.unwrap();
    let mut answer = site.get("/body").await.unwrap().into_body();
    watched(answer.frame()).await.unwrap().unwrap().unwrap();
    drop(answer);
    assert_eq!(watched(noticed.recv()).await.unwrap(), Some(true));
    site.idle().await.unwrap();
    // And before there is a head.
    {
        let mut client = site.client().await.unwrap();
        let asked = client.send_request(get("/head").unwrap());
        let began = async {
            while site.traffic.counts().active == 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            _ = asked => panic!("there is no answer"),
            () = began => {}
        }
    }
    assert_eq!(watched(noticed.recv()).await.unwrap(), Some(true));
    site.idle().await.unwrap();
}

/// An answer that nobody reads stops the app, which has then written no more than fits on the way.
#[tokio::test]
async fn who_does_not_read_holds_the_app_back() {
    let tasks = Tasks::new();
    let written = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&written);
    let endless = app(&tasks, move |mut stream, _| {
        let counted = Arc::clone(&counted);
        async move {
            head(&mut stream).await?;
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
            loop {
                counted.fetch_add(stream.write(&[0; 65_536]).await?, Ordering::SeqCst);
            }
        }
    });
    let site = Site::before(endless.await.unwrap()).await.unwrap();
    let answer = site.get("/").await.unwrap();
    let mut last = 0;
    watched(async {
        loop {
            // Quiet for long enough to be stuck.
            tokio::time::sleep(std::time::Duration::from_millis(300)).await;
            let now = written.load(Ordering::SeqCst);
            if now > 0 && now == last {
                return;
            }
            last = now;
        }
    })
    .await
    .unwrap();
    assert!(last < 32 << 20, "{last} bytes");
    drop(answer);
    site.idle().await.unwrap();
}

#[tokio::test]
async fn another_protocol_passes_until_an_end_of_it() {
    let tasks = Tasks::new();
    let switching = app(&tasks, |mut stream, _| async move {
        let head = head(&mut stream).await?;
        let asked = head.to_lowercase();
        assert!(asked.contains("connection: upgrade\r\n"), "{head}");
        assert!(asked.contains("upgrade: echo\r\n"), "{head}");
        stream
            .write_all(b"HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: echo\r\n\r\nhi ")
            .await?;
        let (mut reader, mut writer) = stream.split();
        tokio::io::copy(&mut reader, &mut writer).await?;
        writer.shutdown().await
    });
    let site = Site::before(switching.await.unwrap()).await.unwrap();
    let stream = TcpStream::connect(site.address).await.unwrap();
    let (mut client, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    site.tasks.spawn("client", Importance::Detached, async {
        drop(connection.with_upgrades().await);
    });
    let request = Request::get("/socket")
        .header("host", "app.localhost")
        .header("connection", "Upgrade")
        .header("upgrade", "echo")
        .body(Empty::<Bytes>::new())
        .unwrap();
    let mut answer = watched(client.send_request(request))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["upgrade"]),
        (101, &"echo".parse().unwrap())
    );
    let upgraded = watched(hyper::upgrade::on(&mut answer))
        .await
        .unwrap()
        .unwrap();
    let mut upgraded = TokioIo::new(upgraded);
    let mut greeting = [0; 3];
    watched(upgraded.read_exact(&mut greeting))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(&greeting, b"hi ");
    for word in [&b"ping"[..], b"pong"] {
        upgraded.write_all(word).await.unwrap();
        let mut echoed = [0; 4];
        watched(upgraded.read_exact(&mut echoed))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(echoed, word);
    }
    assert_eq!(site.traffic.counts().active, 1, "it counts as being served");
    upgraded.shutdown().await.unwrap();
    let mut rest = Vec::new();
    watched(upgraded.read_to_end(&mut rest))
        .await
        .unwrap()
        .unwrap();
    site.idle().await.unwrap();
}

#[tokio::test]
async fn what_is_of_one_connection_goes_no_further() {
    let tasks = Tasks::new();
    let (heads, mut seen) = mpsc::channel(1);
    let telling = app(&tasks, move |mut stream, _| {
        let heads = heads.clone();
        async move {
            let told = head(&mut stream).await?;
            drop(heads.send(told).await);
            stream
                .write_all(
                    b"HTTP/1.1 204 No Content\r\nconnection: x-secret\r\nx-secret: 1\r\n\
                      keep-alive: timeout=5\r\nx-mine: kept\r\nx-tabbify-user: forged\r\n\r\n",
                )
                .await
        }
    });
    let site = Site::before(telling.await.unwrap()).await.unwrap();
    let mut asked = get("/a?b=c%20d").unwrap();
    for (name, value) in [
        ("connection", "keep-alive, x-drop"),
        ("x-drop", "1"),
        ("te", "trailers"),
        ("upgrade", "h2c"),
        ("expect", "100-continue"),
        ("x-mine", "kept"),
        ("x-tabbify-user", "user:owner"),
    ] {
        asked.headers_mut().append(name, value.parse().unwrap());
    }
    let mut client = site.client().await.unwrap();
    let answer = watched(client.send_request(asked)).await.unwrap().unwrap();
    assert_eq!(answer.status(), 204);
    assert_eq!(answer.headers()["x-mine"], "kept");
    for gone in ["x-secret", "keep-alive", "x-tabbify-user"] {
        assert!(!answer.headers().contains_key(gone), "{gone}");
    }
    let told = watched(seen.recv()).await.unwrap().unwrap();
    let mut lines: Vec<&str> = told.trim_end().split("\r\n").collect();
    assert_eq!(lines.remove(0), "GET /a?b=c%20d HTTP/1.1");
    lines.sort_unstable();
    assert_eq!(
        lines,
        [
            "host: app.localhost",
            "x-mine: kept",
            "x-tabbify-user: user:owner"
        ]
    );
    check(&site).await.unwrap();
}

/// It still serves.
async fn check(site: &Site) -> anyhow::Result<()> {
    site.idle().await?;
    let counts = site.traffic.counts();
    ensure!(counts.total == 1, "{counts:?}");
    tokio::net::TcpStream::connect(site.address)
        .await
        .context("it listens")
        .map(drop)
}
