//! Real sockets: limits, upgrades, and connections that end when nobody expects it.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tabbify_http::{Again, AnswerError, Client, Handle, Limits, Origin, Server};
use tabbify_process::connect::UnixSocket;
use tabbify_process::{Importance, Tasks};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::Notify;

type Fallible = Result<(), Box<dyn std::error::Error>>;

const LIMITS: Limits = Limits {
    connections: 2,
    buffer_len: 16 * 1024,
    idle: Duration::from_secs(60),
    stalled: Some(Duration::from_secs(20)),
};
const WATCHDOG: Duration = Duration::from_secs(30);

/// What the service under test has been asked, and how it is let go on.
#[derive(Clone, Default)]
struct Echo {
    tasks: Option<Tasks>,
    connections: Arc<AtomicUsize>,
    requests: Arc<AtomicUsize>,
    asked: Arc<Notify>,
    go_on: Arc<Notify>,
}

impl Handle for Echo {
    type Body = Full<Bytes>;

    async fn handle(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let mut response = Response::new(Full::new(Bytes::from(request.uri().path().to_owned())));
        match request.uri().path() {
            "/slow" => {
                self.asked.notify_one();
                self.go_on.notified().await;
            }
            "/long" => *response.body_mut() = Full::new(Bytes::from(vec![7; 4096])),
            "/last" => {
                let close = http::HeaderValue::from_static("close");
                response
                    .headers_mut()
                    .insert(http::header::CONNECTION, close);
            }
            "/upper" => {
                *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
                let upgrade = hyper::upgrade::on(request);
                let tasks = self.tasks.as_ref().expect("set by the test");
                tasks.spawn("upper", Importance::Detached, async move {
                    let Ok(upgraded) = upgrade.await else { return };
                    let mut stream = TokioIo::new(upgraded);
                    let Ok(byte) = stream.read_u8().await else {
                        return;
                    };
                    let _ = stream.write_u8(byte.to_ascii_uppercase()).await;
                });
            }
            _ => {}
        }
        response
    }
}

fn serve(directory: &Path, echo: &Echo, limits: Limits, tasks: &Tasks) -> io::Result<()> {
    let listener = tabbify_process::unix::bind(directory, "echo.sock")?;
    let echo = Echo {
        tasks: Some(tasks.clone()),
        ..echo.clone()
    };
    let server = Server::new("echo", limits, tasks);
    let serving = server.serve(listener, move |origin| {
        assert_eq!(origin, Origin::Local);
        echo.connections.fetch_add(1, Ordering::Relaxed);
        echo.clone()
    });
    tasks.spawn("echo service", Importance::Detached, serving);
    Ok(())
}

fn client(directory: &Path, tasks: &Tasks) -> Client {
    let socket = UnixSocket {
        directory: directory.to_owned(),
        name: "echo.sock".to_owned(),
    };
    Client::new("echo client", Arc::new(socket), WATCHDOG, tasks)
}

fn get(path: &str) -> Request<Full<Bytes>> {
    let request = Request::get(path).header("host", "echo");
    request.body(Full::default()).expect("it is well formed")
}

#[tokio::test]
async fn a_connection_serves_many_requests() -> Fallible {
    let (dir, tasks, echo) = (tempfile::tempdir()?, Tasks::default(), Echo::default());
    serve(dir.path(), &echo, LIMITS, &tasks)?;
    let client = client(dir.path(), &tasks);
    for _ in 0..10 {
        let (parts, body) = client.ask(get("/x"), Again::Never, 100).await?;
        assert_eq!((parts.status, &*body), (StatusCode::OK, &b"/x"[..]));
    }
    assert_eq!(echo.connections.load(Ordering::Relaxed), 1);
    Ok(())
}

#[tokio::test]
async fn a_connection_that_ended_between_requests_is_replaced() -> Fallible {
    let (dir, tasks, echo) = (tempfile::tempdir()?, Tasks::default(), Echo::default());
    serve(dir.path(), &echo, LIMITS, &tasks)?;
    let client = client(dir.path(), &tasks);
    for _ in 0..5 {
        // The service ends the connection behind its answer, which the client may not have seen yet.
        client.ask(get("/last"), Again::Harmless, 100).await?;
    }
    assert_eq!(echo.requests.load(Ordering::Relaxed), 5);
    assert_eq!(echo.connections.load(Ordering::Relaxed), 5);
    Ok(())
}

#[tokio::test]
async fn an_answer_that_is_too_long_is_not_taken() -> Fallible {
    let (dir, tasks, echo) = (tempfile::tempdir()?, Tasks::default(), Echo::default());
    serve(dir.path(), &echo, LIMITS, &tasks)?;
    let client = client(dir.path(), &tasks);
    let long = client.ask(get("/long"), Again::Harmless, 4095).await;
    assert!(matches!(long, Err(AnswerError::TooLong { limit: 4095 })));
    let (_, whole) = client.ask(get("/long"), Again::Harmless, 4096).await?;
    assert_eq!(whole.len(), 4096);
    Ok(())
}

#[tokio::test]
async fn nobody_there_is_said() -> Fallible {
    let (dir, tasks) = (tempfile::tempdir()?, Tasks::default());
    let asked = client(dir.path(), &tasks)
        .ask(get("/x"), Again::Harmless, 100)
        .await;
    assert!(matches!(asked, Err(AnswerError::Connect(_))));
    Ok(())
}

#[tokio::test]
async fn an_upgraded_connection_speaks_its_own_protocol() -> Fallible {
    let (dir, tasks, echo) = (tempfile::tempdir()?, Tasks::default(), Echo::default());
    serve(dir.path(), &echo, LIMITS, &tasks)?;
    let client = client(dir.path(), &tasks);
    let upgraded = client.upgrade(get("/upper"), "upper").await?;
    let mut stream = TokioIo::new(upgraded.map_err(|answer| format!("{answer:?}"))?);
    stream.write_u8(b'q').await?;
    assert_eq!(stream.read_u8().await?, b'Q');
    let refused = client.upgrade(get("/x"), "upper").await?;
    assert_eq!(refused.map(drop).unwrap_err().status(), StatusCode::OK);
    Ok(())
}

#[tokio::test]
async fn a_connection_too_many_is_closed_and_its_place_comes_back() -> Fallible {
    let (dir, tasks, echo) = (tempfile::tempdir()?, Tasks::default(), Echo::default());
    serve(dir.path(), &echo, LIMITS, &tasks)?;
    let mut held = Vec::new();
    for _ in 0..LIMITS.connections {
        let mut stream = tabbify_process::unix::connect(dir.path(), "echo.sock").await?;
        exchange(&mut stream).await?;
        held.push(stream);
    }
    let mut further = tabbify_process::unix::connect(dir.path(), "echo.sock").await?;
    let closed = tokio::time::timeout(WATCHDOG, further.read(&mut [0; 1])).await?;
    assert!(matches!(closed, Ok(0) | Err(_)));
    held.clear();
    tokio::time::timeout(WATCHDOG, async {
        loop {
            let mut stream = tabbify_process::unix::connect(dir.path(), "echo.sock").await?;
            if exchange(&mut stream).await.is_ok() {
                return Ok::<_, io::Error>(());
            }
        }
    })
    .await??;
    Ok(())
}

/// One request by hand.
async fn exchange(stream: &mut UnixStream) -> io::Result<()> {
    stream
        .write_all(b"GET /x HTTP/1.1\r\nhost: echo\r\n\r\n")
        .await?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"/x") {
        let mut byte = [0];
        stream.read_exact(&mut byte).await?;
        answer.extend_from_slice(&byte);
    }
    Ok(())
}

#[tokio::test]
async fn what_is_being_answered_at_the_end_is_answered() -> Fallible {
    let (dir, tasks, echo) = (tempfile::tempdir()?, Tasks::default(), Echo::default());
    serve(dir.path(), &echo, LIMITS, &tasks)?;
    // The client must outlive the service's tasks.
    let ours = Tasks::default();
    let client = client(dir.path(), &ours);
    let asking = client.ask(get("/slow"), Again::Never, 100);
    let ending = async {
        echo.asked.notified().await;
        tasks.token().cancel();
        echo.go_on.notify_one();
    };
    let (answered, ()) = tokio::join!(asking, ending);
    assert_eq!(&*answered?.1, b"/slow");
    let after = tokio::time::timeout(WATCHDOG, async {
        while client.ask(get("/x"), Again::Never, 100).await.is_ok() {}
    });
    after.await?;
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_connection_without_a_request_ends() -> Fallible {
    let tasks = Tasks::default();
    let (mut near, far) = tokio::io::duplex(1024);
    let server = Server::new("echo", LIMITS, &tasks);
    let serving = server.connection(far, Echo::default());
    let began = tokio::time::Instant::now();
    let ((), read) = tokio::join!(serving, async {
        near.write_all(b"GET /x HT").await?;
        near.read(&mut [0; 512]).await
    });
    // Nothing, or that it took too long.
    read?;
    assert!(began.elapsed() >= LIMITS.idle);
    Ok(())
}
