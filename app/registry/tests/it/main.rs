//! The registry over the real mesh: an app's instances read what is theirs, in full, and nobody else
//! anything, whatever they ask for.

mod support;

use std::net::SocketAddrV6;

use http::{Method, StatusCode};
use tabbify_api::artifact::ARTIFACT_FILE;
use tabbify_api::{ErrorCode, Problem};
use tabbify_registry::Limits;
use tabbify_types::{AppId, AppUla, HostUla, InstanceId, InstanceUla};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use support::{Fallible, Peer, Site, eventually, watched};

/// More than any buffer on the way holds.
const LARGE: usize = 3 * 1024 * 1024 + 7;

fn bytes(len: usize) -> Vec<u8> {
    let text = blake3_stream(len);
    assert_eq!(text.len(), len);
    text
}

/// Bytes that no wrong offset makes right.
fn blake3_stream(len: usize) -> Vec<u8> {
    (0..len.div_ceil(32))
        .flat_map(|n| tabbify_types::Digest::of(&n.to_le_bytes()).0)
        .take(len)
        .collect()
}

/// What was refused, and its status.
async fn refused(peer: &Peer, method: Method, path: &str) -> Fallible<(StatusCode, ErrorCode)> {
    let (parts, body) = peer.ask(method, path).await?;
    let problem: Problem = serde_json::from_slice(&body)?;
    assert_eq!(parts.headers["content-type"], "application/problem+json");
    assert!(problem.request.is_some(), "it can be found in the log");
    assert_eq!(problem.status, parts.status.as_u16());
    Ok((parts.status, problem.code))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_app_reads_its_own_versions() {
    let mut site = Site::new(&Limits::default()).unwrap();
    let app = AppId::mint();
    let large = bytes(LARGE);
    site.put(app, 1, "app.wasm", &large).unwrap();
    site.put(app, 2, "static/a b.css", b"body {}").unwrap();
    site.put(app, 2, ARTIFACT_FILE, b"").unwrap();
    // From the app's address, and from an instance's own.
    let primary = site.peer(AppUla::derive(app).addr()).unwrap();
    let instance = InstanceUla::derive(app, InstanceId(70_000)).addr();
    let instance = site.peer(instance).unwrap();
    for peer in [&primary, &instance] {
        for (path, expected) in [
            ("v1/app.wasm", large.as_slice()),
            ("v2/static/a%20b.css", b"body {}"),
            ("v2/artifact.json", b""),
        ] {
            let path = format!("/v1/artifacts/apps/{app}/{path}");
            let (parts, body) = peer.ask(Method::GET, &path).await.unwrap();
            assert_eq!(parts.status, StatusCode::OK, "{path}");
            assert_eq!(parts.headers["content-length"], expected.len().to_string());
            assert!(body == expected, "{path}: {} bytes", body.len());
        }
    }
    assert_eq!(site.service.stats().served, 6);
    site.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_else_reads_anything() {
    let mut site = Site::new(&Limits::default()).unwrap();
    let (app, other) = (AppId::mint(), AppId::mint());
    site.put(app, 1, "app.wasm", b"secret").unwrap();
    site.put(other, 1, "app.wasm", b"other").unwrap();
    let path = format!("/v1/artifacts/apps/{app}/v1/app.wasm");
    let missing = format!("/v1/artifacts/apps/{app}/v9/app.wasm");
    let stranger = site.peer(AppUla::derive(other).addr()).unwrap();
    let machine = site.peer(HostUla::new(1, 7).addr()).unwrap();
    for peer in [&stranger, &machine] {
        // Whether it is there is not told either.
        for path in [&path, &missing] {
            let refusal = refused(peer, Method::GET, path).await.unwrap();
            assert_eq!(refusal, (StatusCode::FORBIDDEN, ErrorCode::Forbidden));
        }
    }
    assert_eq!(site.service.stats().denied, 4);

    let own = site.peer(AppUla::derive(app).addr()).unwrap();
    for (method, path, expected) in [
        (Method::GET, missing.as_str(), ErrorCode::NotFound),
        (Method::GET, "/", ErrorCode::NotFound),
        (Method::GET, "/v1/artifacts/", ErrorCode::NotFound),
        (Method::POST, &path, ErrorCode::MethodNotAllowed),
        (Method::DELETE, &path, ErrorCode::MethodNotAllowed),
    ] {
        let (status, code) = refused(&own, method, path).await.unwrap();
        assert_eq!(
            (status.as_u16(), code),
            (expected.status(), expected),
            "{path}"
        );
    }
    // Out of the folder, into another app's, in every spelling.
    let up = format!("../../{other}/v1/app.wasm");
    for rest in [
        format!("v1/{up}"),
        format!("v1/{}", up.replace("..", "%2e%2e")),
        format!("v1/{}", up.replace('/', "%2f")),
        "v1/..%5c..%5clatest".to_owned(),
        "v1//app.wasm".to_owned(),
        "v1/%00".to_owned(),
        "v1/%ff%fe".to_owned(),
        "v01/app.wasm".to_owned(),
        format!("v1/{}", "a/".repeat(2000)),
    ] {
        let path = format!("/v1/artifacts/apps/{app}/{rest}");
        let refusal = refused(&own, Method::GET, &path).await.unwrap();
        assert_eq!(
            refusal,
            (StatusCode::BAD_REQUEST, ErrorCode::BadRequest),
            "{path}"
        );
    }
    assert_eq!(site.service.stats().served, 0);
    // And it still serves.
    let (parts, body) = own.ask(Method::GET, &path).await.unwrap();
    assert_eq!((parts.status, &body[..]), (StatusCode::OK, &b"secret"[..]));
    site.end().await;
}

/// What is no request ends its own connection, and nothing else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_are_no_request_harm_nobody() {
    let mut site = Site::new(&Limits::default()).unwrap();
    let app = AppId::mint();
    site.put(app, 1, "app.wasm", b"fine").unwrap();
    let peer = site.peer(AppUla::derive(app).addr()).unwrap();
    let endless = format!("GET /{} HTTP/1.1\r\n", "a".repeat(80 * 1024));
    for hostile in [
        &b"\0\xff\x16\x03\x01"[..],
        b"GET\r\n\r\n",
        endless.as_bytes(),
    ] {
        let mut stream = peer.mesh.dial(site.address).await.unwrap();
        stream.write_all(hostile).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut said = Vec::new();
        // A reset is an answer as well.
        let _ = watched(stream.read_to_end(&mut said)).await.unwrap();
        assert!(
            said.is_empty() || said.starts_with(b"HTTP/1.1 4"),
            "{said:?}"
        );
    }
    let path = format!("/v1/artifacts/apps/{app}/v1/app.wasm");
    let (parts, _) = peer.ask(Method::GET, &path).await.unwrap();
    assert_eq!(parts.status, StatusCode::OK);
    site.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_app_does_not_take_the_connections_of_all() {
    let limits = Limits {
        connections_each: 2,
        ..Limits::default()
    };
    let mut site = Site::new(&limits).unwrap();
    let (greedy, modest) = (AppId::mint(), AppId::mint());
    site.put(modest, 1, "app.wasm", b"fine").unwrap();
    let first = site.peer(AppUla::derive(greedy).addr()).unwrap();
    let remote: SocketAddrV6 = site.address;
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(first.mesh.dial(remote).await.unwrap());
    }
    let service = site.service.clone();
    eventually(|| service.stats().limited == 1).await.unwrap();
    let second = site.peer(AppUla::derive(modest).addr()).unwrap();
    let path = format!("/v1/artifacts/apps/{modest}/v1/app.wasm");
    let (parts, _) = second.ask(Method::GET, &path).await.unwrap();
    assert_eq!(parts.status, StatusCode::OK);
    // A place that is given back is there for the next.
    drop(held);
    let path = format!("/v1/artifacts/apps/{greedy}/v1/app.wasm");
    let again = watched(async {
        loop {
            if let Ok(refusal) = refused(&first, Method::GET, &path).await {
                return refusal;
            }
        }
    });
    assert_eq!(again.await.unwrap().1, ErrorCode::NotFound);
    site.end().await;
}
