//! The examples, as their readers meet them: hello, and streams in every direction.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tabbify_api::logs::Stream;
use tabbify_runner::traffic::Counts;
use tabbify_runner::wasm_http::Limits;

use crate::harness::{get, request, sent_body, serve, serve_with, text, watched};
use crate::wasm::Package;

const MIB: usize = 1 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hello_greets_prints_and_sees_only_the_apps_own() {
    let app = serve(Package::Hello).await.unwrap();
    let response = app.get("/some/path?x=1").await.unwrap();
    assert_eq!(response.status(), 200);
    let body = text(response).await.unwrap();
    assert_eq!(body, "good day from /some/path?x=1\n");

    let mut headers = get("/headers").unwrap();
    for (name, value) in [
        ("x-tabbify-user", "user:owner"),
        ("X-Tabbify-Error", "internal"),
        ("x-tabbify-anything", "forged"),
        ("x_tabbify_user", "forged"),
        ("X-Tabbify_App", "forged"),
        ("x-mine", "kept"),
    ] {
        headers.headers_mut().append(name, value.parse().unwrap());
    }
    let mut client = app.connect().await.unwrap();
    let seen = text(client.send_request(headers).await.unwrap())
        .await
        .unwrap();
    let mut seen: Vec<&str> = seen.lines().collect();
    seen.sort_unstable(); // HTTP keeps no order between different headers.
    assert_eq!(seen, ["x-mine: kept", "x-tabbify-user: user:owner"]);

    app.idle().await.unwrap();
    let lines = app.lines().await.unwrap();
    let printed: Vec<_> = lines
        .iter()
        .map(|line| (line.stream, line.line.as_str()))
        .collect();
    assert_eq!(
        printed,
        [
            (Stream::Stdout, "Method::Get /some/path?x=1"),
            (Stream::Stdout, "Method::Get /headers"),
        ]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_connection_serves_many_requests() {
    let app = serve(Package::Hello).await.unwrap();
    let mut client = app.connect().await.unwrap();
    for i in 0..20 {
        client.ready().await.unwrap();
        let response = client
            .send_request(get(&format!("/{i}")).unwrap())
            .await
            .unwrap();
        assert_eq!(
            text(response).await.unwrap(),
            format!("good day from /{i}\n")
        );
    }
    client.ready().await.unwrap();
    let head = request("HEAD", "/head", get("/").unwrap().into_body()).unwrap();
    let response = client.send_request(head).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(text(response).await.unwrap(), "");
    app.idle().await.unwrap();
    let counts = app.traffic.counts();
    assert_eq!((counts.total, counts.connections), (21, 1));
}

/// Chunk n + 1 is sent only after the echo of chunk n has come back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn echo_in_lockstep() {
    let app = serve(Package::Stream).await.unwrap();
    let mut client = app.connect().await.unwrap();
    let (chunks, body) = sent_body();
    let sending = client.send_request(request("POST", "/echo", body).unwrap());
    let mut echoed: Option<Incoming> = None;
    let mut sending = std::pin::pin!(sending);
    for i in 0..100 {
        let chunk = Bytes::from(format!("chunk {i};"));
        chunks.send(chunk.clone()).await.unwrap();
        if echoed.is_none() {
            let response = watched(&mut sending).await.unwrap().unwrap();
            echoed = Some(response.into_body());
        }
        let body = echoed.as_mut().unwrap();
        let mut back = Vec::new();
        while back.len() < chunk.len() {
            let frame = watched(body.frame()).await.unwrap().unwrap().unwrap();
            back.extend_from_slice(frame.data_ref().unwrap());
        }
        assert_eq!(back, chunk);
    }
    drop(chunks);
    assert!(watched(echoed.unwrap().frame()).await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn download_64_mib() {
    let app = serve(Package::Stream).await.unwrap();
    let bytes = 64 * MIB + 7;
    let response = app.get(&format!("/download?bytes={bytes}")).await.unwrap();
    let mut body = response.into_body();
    let mut position = 0_usize;
    while let Some(frame) = watched(body.frame()).await.unwrap() {
        for byte in frame.unwrap().into_data().unwrap() {
            assert_eq!(usize::from(byte), position % 251);
            position += 1;
        }
    }
    assert_eq!(position, bytes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upload_64_mib() {
    let app = serve(Package::Stream).await.unwrap();
    let mut client = app.connect().await.unwrap();
    let (chunks, body) = sent_body();
    let upload = request("POST", "/upload", body).unwrap();
    let sending = async {
        let chunk = Bytes::from_iter((0..=240).cycle().take(MIB));
        for _ in 0..64 {
            chunks.send(chunk.clone()).await.unwrap();
        }
        drop(chunks);
        chunk
    };
    let (response, chunk) = watched(async { tokio::join!(client.send_request(upload), sending) })
        .await
        .unwrap();
    let mut fnv1a = 0xcbf2_9ce4_8422_2325_u64;
    for byte in chunk.iter().cycle().take(64 * MIB) {
        fnv1a = (fnv1a ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    }
    let expected = format!("{} bytes, fnv1a {fnv1a:016x}\n", 64 * MIB);
    assert_eq!(text(response.unwrap()).await.unwrap(), expected);
}

/// Every line arrives as it is made: the guest makes the next one 20 ms later, so that lines
/// which are held back would come together.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_arrives_piecewise_and_waiting_is_no_work() {
    // Ten lines take 200 ms of waiting, twenty times what a guest may compute.
    let limits = Limits {
        cpu: std::time::Duration::from_millis(10),
        ..Limits::DEFAULT
    };
    let app = serve_with(Package::Stream, limits).await.unwrap();
    let response = app.get("/slow?n=10&ms=20").await.unwrap();
    let mut body = response.into_body();
    let mut frames = Vec::new();
    while let Some(frame) = watched(body.frame()).await.unwrap() {
        let data = frame.unwrap().into_data().unwrap();
        frames.push(String::from_utf8(data.to_vec()).unwrap());
    }
    let expected: Vec<String> = (1..=10).map(|i| format!("{i} of 10\n")).collect();
    assert_eq!(frames, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trailers_pass_both_ways() {
    let app = serve(Package::Trap).await.unwrap();
    let mut client = app.connect().await.unwrap();
    let trailers = HeaderMap::from_iter([
        (
            HeaderName::from_static("x-sum"),
            HeaderValue::from_static("42"),
        ),
        (
            HeaderName::from_static("x-tabbify-user"),
            HeaderValue::from_static("forged"),
        ),
    ]);
    // A body of known length would go without chunks, and so without trailers.
    let (chunks, body) = sent_body();
    chunks.send(Bytes::from_static(b"content")).await.unwrap();
    drop(chunks);
    let body = body.with_trailers(std::future::ready(Some(Ok(trailers))));
    let mut sent = request("POST", "/trailers", body.boxed_unsync()).unwrap();
    sent.headers_mut()
        .insert("te", HeaderValue::from_static("trailers"));
    let names = HeaderValue::from_static("x-sum, x-tabbify-user");
    sent.headers_mut().insert("trailer", names);
    let response = watched(client.send_request(sent)).await.unwrap().unwrap();
    assert_eq!(response.status(), 200);
    let whole = watched(response.into_body().collect())
        .await
        .unwrap()
        .unwrap();
    let trailers = whole.trailers().unwrap().clone();
    assert_eq!(whole.to_bytes(), "with trailers");
    assert_eq!(trailers.len(), 1, "{trailers:?}");
    assert_eq!(trailers["x-sum"], "42");
}

/// A caller that leaves takes its guest along, before the head and after it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_leaves_stops_its_guest() {
    let app = serve(Package::Stream).await.unwrap();
    let response = app.get("/slow?n=1000000&ms=50").await.unwrap();
    let mut body = response.into_body();
    watched(body.frame()).await.unwrap().unwrap().unwrap();
    assert_eq!(app.traffic.counts().active, 1);
    drop(body);
    app.idle().await.unwrap();

    let (_chunks, body) = sent_body();
    let mut client = app.connect().await.unwrap();
    let upload = client.send_request(request("POST", "/echo", body).unwrap());
    drop(watched(upload).await.unwrap().unwrap());
    drop(client);
    app.idle().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drain_finishes_what_has_begun_and_takes_nothing_new() {
    let app = serve(Package::Stream).await.unwrap();
    let mut idle = app.connect().await.unwrap();
    text(idle.send_request(get("/slow?n=0").unwrap()).await.unwrap())
        .await
        .unwrap();
    let begun = app.get("/slow?n=20&ms=20").await.unwrap();
    let stuck = app.get("/slow?n=1000000&ms=50").await.unwrap();

    let traffic = app.traffic.clone();
    let draining = traffic.drain(std::time::Duration::from_secs(2));
    let finishing = async {
        let whole = text(begun).await.unwrap();
        assert!(whole.ends_with("20 of 20\n"));
    };
    let (drained, ()) = tokio::join!(draining, finishing);
    assert_eq!((drained.finished, drained.cut), (1, 1));
    // The idle connection was closed, and the one that was cut does not look complete.
    assert!(watched(idle.ready()).await.unwrap().is_err());
    assert!(text(stuck).await.is_err());
    app.idle().await.unwrap();
    assert_eq!(
        app.traffic.counts(),
        Counts {
            active: 0,
            total: 3,
            connections: 0,
            listening: false,
        }
    );
}
