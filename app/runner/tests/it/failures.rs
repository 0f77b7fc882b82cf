//! Apps that fail, each in its own way: what the caller gets, and what the app's log says.

use std::time::Duration;

use bytes::Bytes;
use http::Response;
use hyper::body::Incoming;
use tabbify_api::apps::ERROR_HEADER;
use tabbify_api::logs::{LINE_LEN_MAX, Stream};
use tabbify_api::runner::Failure;
use tabbify_runner::wasm_http::Limits;
use tabbify_types::ByteSize;
use tabbify_types::event::v1::{FailureReason, RunConfig, RuntimeKind};

use crate::harness::{App, get, request, run_config, serve, serve_with, start, text, watched};
use crate::wasm::{Package, component};

/// The status and the code of an answer that is not the app's.
fn refused(response: &Response<Incoming>) -> (u16, &str) {
    let code = response.headers().get(ERROR_HEADER);
    let code = code.and_then(|code| code.to_str().ok()).unwrap_or("none");
    (response.status().as_u16(), code)
}

async fn platform_lines(app: &App) -> anyhow::Result<String> {
    let lines = app.lines().await?;
    let ours = lines
        .into_iter()
        .filter(|line| line.stream == Stream::Platform);
    Ok(ours.map(|line| line.line + "\n").collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trap_before_the_head_is_an_answer() {
    let app = serve(Package::Trap).await.unwrap();
    let response = app.get("/").await.unwrap();
    assert_eq!(refused(&response), (502, "app_trapped"));
    assert_eq!(
        text(response).await.unwrap(),
        "The app failed. Its log says why.\n"
    );
    let lines = app.lines().await.unwrap();
    assert!(
        lines
            .iter()
            .any(|line| line.stream == Stream::Stderr && line.line == "on purpose"),
        "{lines:?}"
    );
    let log = platform_lines(&app).await.unwrap();
    assert!(
        log.starts_with("trap: wasm `unreachable` instruction executed\n"),
        "{log}"
    );
    assert!(log.contains("\n  in "), "{log}");
    // The next request is none the worse for it.
    assert_eq!(app.get("/platform").await.unwrap().status(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_was_cut_never_looks_complete() {
    let app = serve(Package::Trap).await.unwrap();
    for (path, said) in [
        ("/after-head", "trap: wasm `unreachable`"),
        ("/unfinished", "without finishing its response body"),
    ] {
        // How far the answer had come when the app failed is chance; that it failed is not.
        match app.get(path).await {
            Ok(response) if response.status() == 200 => {
                assert!(text(response).await.is_err(), "{path}");
            }
            Ok(response) => assert_eq!(refused(&response), (502, "app_trapped"), "{path}"),
            Err(_) => {}
        }
        app.idle().await.unwrap();
        let log = platform_lines(&app).await.unwrap();
        assert!(log.contains(said), "{path}: {log}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_answer_is_said_so() {
    let app = serve(Package::Trap).await.unwrap();
    for (path, said) in [
        ("/silent", "GET /silent was not answered"),
        ("/exit", "exited with code 1"),
        ("/switching", "101 Switching Protocols, which is not final"),
    ] {
        let response = app.get(path).await.unwrap();
        assert_eq!(refused(&response), (502, "app_no_response"), "{path}");
        let log = platform_lines(&app).await.unwrap();
        assert!(log.contains(said), "{path}: {log}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endless_loop_is_stopped_and_disturbs_nobody() {
    let limits = Limits {
        cpu: Duration::from_millis(400),
        ..Limits::DEFAULT
    };
    let app = serve_with(Package::Loop, limits).await.unwrap();
    // More loops than there are workers, and others are answered meanwhile.
    let (looping, quick) = tokio::join!(
        async { tokio::join!(app.get("/"), app.get("/"), app.get("/")) },
        async {
            while app.traffic.counts().active < 3 {
                tokio::task::yield_now().await;
            }
            let quick = app.get("/quick").await;
            (quick, app.traffic.counts().active)
        },
    );
    assert_eq!(quick.0.unwrap().status(), 200);
    assert!(quick.1 >= 3, "the loops were still running");
    let (first, second, third) = looping;
    for response in [first, second, third] {
        assert_eq!(refused(&response.unwrap()), (504, "app_cpu"));
    }
    let log = platform_lines(&app).await.unwrap();
    assert!(log.contains("stopped after 400ms of computing"), "{log}");

    let response = app.get("/after-head").await.unwrap();
    assert!(text(response).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_leaves_stops_an_endless_loop() {
    let limits = Limits {
        cpu: Duration::from_secs(3600),
        ..Limits::DEFAULT
    };
    let app = serve_with(Package::Loop, limits).await.unwrap();
    let mut client = app.connect().await.unwrap();
    let mut looping = Box::pin(client.send_request(get("/").unwrap()));
    while app.traffic.counts().active == 0 {
        let yielded = tokio::task::yield_now();
        tokio::select! { _ = &mut looping => unreachable!("it loops"), () = yielded => {} }
    }
    drop(looping);
    drop(client);
    app.idle().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_has_a_limit_and_the_log_says_which() {
    let app = serve(Package::Memory).await.unwrap();
    let response = app.get("/").await.unwrap();
    assert_eq!(refused(&response), (502, "app_memory"));
    let log = platform_lines(&app).await.unwrap();
    assert!(
        log.contains("a request may have 64MiB. Set [runtime] memory"),
        "{log}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_way_out_is_closed() {
    let app = serve(Package::Trap).await.unwrap();
    let answer = text(app.get("/outgoing").await.unwrap()).await.unwrap();
    assert!(answer.contains("HttpRequestDenied"), "{answer}");
    let log = platform_lines(&app).await.unwrap();
    let said = "tabbify: blocked api.example.com:81. Add it to [network] egress.\n";
    assert_eq!(log, said);
    let answer = text(app.get("/socket").await.unwrap()).await.unwrap();
    assert!(answer.contains("PermissionDenied"), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn platform_headers_are_the_platforms() {
    let app = serve(Package::Trap).await.unwrap();
    let response = app.get("/platform").await.unwrap();
    assert_eq!(refused(&response), (200, "none"));
    assert!(!response.headers().contains_key("x-tabbify-user"));
    assert_eq!(response.headers()["x-mine"], "forged");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn output_is_kept_whole_in_bounded_lines() {
    let app = serve(Package::Trap).await.unwrap();
    assert_eq!(
        text(app.get("/chatty").await.unwrap()).await.unwrap(),
        "printed"
    );
    app.idle().await.unwrap();
    let lines = app.lines().await.unwrap();
    let of = |stream| lines.iter().filter(move |line| line.stream == stream);
    let printed: Vec<&str> = of(Stream::Stdout).map(|line| line.line.as_str()).collect();
    assert_eq!(printed.len(), 1001);
    assert_eq!((printed[0], printed[999]), ("line 0", "line 999"));
    assert_eq!(printed[1000], "no line end");
    let long: Vec<usize> = of(Stream::Stderr).map(|line| line.line.len()).collect();
    assert_eq!(long.iter().sum::<usize>(), 100_000);
    assert!(long.iter().all(|len| *len <= LINE_LEN_MAX));
    assert_eq!(of(Stream::Platform).count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_requests_than_may_be_are_refused() {
    let limits = Limits {
        requests: 2,
        ..Limits::DEFAULT
    };
    let app = serve_with(Package::Stream, limits).await.unwrap();
    let first = app.get("/slow?n=1000000&ms=50").await.unwrap();
    let second = app.get("/slow?n=1000000&ms=50").await.unwrap();
    let third = app.get("/slow?n=1").await.unwrap();
    assert_eq!(refused(&third), (503, "unavailable"));
    drop(first);
    watched(async {
        while app.traffic.counts().active > 1 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    assert_eq!(app.get("/slow?n=1").await.unwrap().status(), 200);
    drop(second);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_app_is_no_proxy() {
    let app = serve(Package::Hello).await.unwrap();
    let mut client = app.connect().await.unwrap();
    let connect = request("CONNECT", "example.com:443", get("/").unwrap().into_body()).unwrap();
    let response = client.send_request(connect).await.unwrap();
    assert_eq!(refused(&response), (405, "method_not_allowed"));
}

async fn not_started(entry: Bytes, run: RunConfig) -> anyhow::Result<Failure> {
    let started = start(entry, run, Limits::DEFAULT).await?;
    started.err().ok_or_else(|| anyhow::anyhow!("it started"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_a_component_says_what_it_is() {
    let module = b"\0asm\x01\0\0\0";
    let torn = &component(Package::Hello).unwrap()[..5000];
    for (entry, said) in [
        (&b"hello, I am a text"[..], "app.wasm is not WebAssembly"),
        (b"", "app.wasm is empty"),
        (module, "is a WebAssembly module, not a component"),
        (torn, "is not a valid component"),
    ] {
        let failure = not_started(Bytes::copy_from_slice(entry), run_config())
            .await
            .unwrap();
        assert_eq!(failure.reason, FailureReason::NotAComponent, "{failure:?}");
        assert!(failure.detail.contains(said), "{}", failure.detail);
    }
}

fn replaced<const N: usize>(bytes: &[u8], from: &[u8; N], to: &[u8; N]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for at in 0..bytes.len().saturating_sub(N) {
        if bytes[at..].starts_with(from) {
            bytes[at..at + N].copy_from_slice(to);
        }
    }
    bytes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_fit_says_what_is_missing() {
    let entry = component(Package::NoHandler).unwrap();
    let failure = not_started(entry, run_config()).await.unwrap();
    assert_eq!(failure.reason, FailureReason::WrongWorld);
    let detail = failure.detail;
    assert!(
        detail.contains("does not export wasi:http/incoming-handler"),
        "{detail}"
    );
    assert!(detail.contains("it exports wasi:cli/run@0.2"), "{detail}");

    // The same app, with an import that nobody has: names of one length keep a component valid.
    let entry = component(Package::Hello).unwrap();
    let entry = replaced(&entry, b"wasi:cli/environment", b"acme:kvs/environment");
    let failure = not_started(entry.into(), run_config()).await.unwrap();
    assert_eq!(failure.reason, FailureReason::WrongWorld);
    assert!(
        failure.detail.contains("acme:kvs/environment@0.2"),
        "{failure:?}"
    );

    let small = RunConfig {
        memory: ByteSize(64 * 1024),
        ..run_config()
    };
    let entry = component(Package::Hello).unwrap();
    let failure = not_started(entry.clone(), small).await.unwrap();
    assert_eq!(failure.reason, FailureReason::Spawn);
    assert!(
        failure.detail.contains("Set [runtime] memory"),
        "{failure:?}"
    );

    let docker = RunConfig {
        runtime: RuntimeKind::Docker,
        ..run_config()
    };
    let failure = not_started(entry, docker).await.unwrap();
    assert_eq!(failure.reason, FailureReason::Spawn);
}
