//! Who gets an answer: whoever has proven a member's key, about what the log says of that key.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::Full;
use tabbify_api::coordinator::{
    CERTIFICATE_PATH, ISSUERS_PATH, JOIN_PATH, LEASE_PATH, LEAVE_PATH, REPORT_PATH, RESOLVE_PATH,
    Reachable, Report, WATCH_PATH,
};
use tabbify_api::mesh::{ResolveError, Resolver as _};
use tabbify_coordinator::{Door, TlsKey};
use tabbify_http::{Again, Client};
use tabbify_process::Tasks;
use tabbify_process::connect::Connect as _;
use tabbify_types::{AppUla, Tenant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::platform::{Invitation, Member, Platform, asks, at, secret_named};
use crate::support::{Fallible, WATCHDOG, eventually, key_of, secret_of};

/// Posts bytes; gives the status.
pub(crate) async fn post(door: &Door, path: &str, body: Vec<u8>, tasks: &Tasks) -> Fallible<u16> {
    send(door, Method::POST, path, body, tasks).await
}

async fn send(
    door: &Door,
    method: Method,
    path: &str,
    body: Vec<u8>,
    tasks: &Tasks,
) -> Fallible<u16> {
    // Its connection ends with it, and nobody waits for that.
    let client = Client::new("test", Arc::new(door.clone()), WATCHDOG, &tasks.child());
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "coordinator")
        .body(Full::new(Bytes::from(body)))?;
    let answer = client.send(request, Again::Never).await?;
    Ok(answer.status().as_u16())
}

#[tokio::test]
async fn a_key_that_is_nobodys_gets_nothing() {
    let platform = Platform::start().await.unwrap();
    let tasks = Tasks::new();
    let stranger = platform.door(&secret_named("stranger")).unwrap();
    let core = serde_json::json!({"address": "fd5a:1f00:1:1::1"}).to_string();
    for (path, body) in [
        (RESOLVE_PATH, core.as_str()),
        (REPORT_PATH, "{}"),
        (WATCH_PATH, "{}"),
        (LEASE_PATH, "{}"),
        (LEAVE_PATH, "null"),
    ] {
        let status = post(&stranger, path, body.into(), &tasks).await.unwrap();
        assert_eq!(status, 403, "{path}");
    }
    assert_eq!(platform.coordinator.stats().strangers, 5);
    assert!(tasks.shutdown(WATCHDOG).await);
    platform.stop().await;
}

#[tokio::test]
async fn what_is_no_request_of_ours_is_refused() {
    let platform = Platform::start().await.unwrap();
    let member = platform.join(&Invitation::of("box2")).await.unwrap();
    let tasks = Tasks::new();
    let door = platform.door(&member.secret).unwrap();
    let check = async |method: Method, path: &str, body: &[u8], expected: u16| {
        let status = send(&door, method, path, body.to_vec(), &tasks)
            .await
            .unwrap();
        assert_eq!(
            status,
            expected,
            "{path} {:?}",
            String::from_utf8_lossy(body)
        );
    };
    check(Method::GET, ISSUERS_PATH, b"", 200).await;
    check(Method::POST, ISSUERS_PATH, b"", 405).await;
    check(Method::GET, RESOLVE_PATH, b"", 405).await;
    check(Method::POST, "/v1/coordinator", b"", 404).await;
    check(Method::POST, "/", b"", 404).await;
    for path in [JOIN_PATH, CERTIFICATE_PATH, RESOLVE_PATH] {
        for body in ["", "{}", "null", "[]", "\u{0}", "{\"address\":1}"] {
            check(Method::POST, path, body.as_bytes(), 400).await;
        }
        check(Method::POST, path, &vec![b' '; 200_000], 413).await;
    }
    let long = Reachable {
        key: member.secret.public(),
        candidates: vec![at(1)],
    };
    let many = Report {
        keys: vec![long; 513],
    };
    check(
        Method::POST,
        REPORT_PATH,
        &serde_json::to_vec(&many).unwrap(),
        400,
    )
    .await;
    assert!(tasks.shutdown(WATCHDOG).await);
    platform.stop().await;
}

/// Bytes that are no TLS, TLS without a proof, and silence: none of them reaches a request.
#[tokio::test]
async fn a_connection_that_proves_nothing_ends() {
    let platform = Platform::start().await.unwrap();
    let ended = async |bytes: &[u8]| {
        let mut stream = TcpStream::connect(platform.address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut rest = Vec::new();
        // It ends with a TLS alert, or is reset: either way it ends.
        let read = tokio::time::timeout(WATCHDOG, stream.read_to_end(&mut rest));
        let _ = read.await.unwrap();
        assert!(!rest.windows(4).any(|bytes| bytes == b"HTTP"), "{rest:?}");
    };
    ended(b"GET /v1/coordinator/issuers HTTP/1.1\r\nhost: x\r\n\r\n").await;
    ended(&[0; 64]).await;
    ended(&[0x16, 3, 1, 0xff, 0xff]).await;
    let unproven = || platform.coordinator.stats().unproven;
    eventually(|| async { if unproven() >= 3 { Ok(()) } else { Err(()) } })
        .await
        .unwrap();
    assert_eq!(platform.coordinator.stats().proven, 0);
    platform.stop().await;
}

#[tokio::test]
async fn a_coordinator_with_another_key_is_not_believed() {
    let platform = Platform::start().await.unwrap();
    let member = platform
        .join(&Invitation::of("box2").tagged("role:node"))
        .await
        .unwrap();
    let dir = tempfile::tempdir().unwrap();
    let other = TlsKey::load_or_create(&dir.path().join("other.key")).unwrap();
    let door = Door::new(platform.connect(), other.pin(), member.secret.clone()).unwrap();
    let error = door.connect().await.err().unwrap();
    assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
    assert!(error.to_string().contains("has another key"), "{error}");
    let tasks = Tasks::new();
    let remote = platform
        .remote_with(vec![door], platform.clock(), &tasks)
        .unwrap();
    let core = "fd5a:1f00:1:1::1".parse().unwrap();
    let refused = remote.by_address(core).await.unwrap_err();
    assert!(
        matches!(refused, ResolveError::Unreachable(_)),
        "{refused:?}"
    );
    assert!(!remote.is_live());
    assert!(tasks.shutdown(WATCHDOG).await);
    platform.stop().await;
}

/// Where somebody is reached is theirs to say, and that of the machine that they run on.
#[tokio::test]
async fn nobody_speaks_for_another() {
    let platform = Platform::start().await.unwrap();
    let box2 = platform.join(&Invitation::of("box2")).await.unwrap();
    let box3 = platform.join(&Invitation::of("box3")).await.unwrap();
    let shop = platform.app(&Tenant::main(), "shop").await.unwrap();
    let placed = platform.place(&Tenant::main(), "blog").await.unwrap();
    let (blog, on) = (platform.run(&placed).await.unwrap(), placed.host);
    let address = AppUla::derive(blog.app).addr();
    let truth = asks(&platform, shop, address).await.unwrap().unwrap();
    assert_eq!((truth.key, &truth.endpoints), (key_of(blog), &vec![at(9)]));
    assert!(truth.addresses.contains(&address));

    let tasks = Tasks::new();
    let claim = |port| Report {
        keys: vec![Reachable {
            key: key_of(blog),
            candidates: vec![at(port)],
        }],
    };
    let said = async |door: Door, port| {
        let body = serde_json::to_vec(&claim(port)).unwrap();
        post(&door, REPORT_PATH, body, &tasks).await.unwrap()
    };
    // Another instance may not; another machine may say it, and nobody listens.
    assert_eq!(
        said(platform.door(&secret_of(shop)).unwrap(), 666).await,
        403
    );
    let runs_on = |member: &Member| member.membership.certificate.host == on;
    let (here, elsewhere) = if runs_on(&box2) {
        (&box2, &box3)
    } else {
        (&box3, &box2)
    };
    assert_eq!(
        said(platform.door(&elsewhere.secret).unwrap(), 667).await,
        200
    );
    let now = asks(&platform, shop, address).await.unwrap().unwrap();
    assert_eq!(now.endpoints, truth.endpoints);
    assert_eq!(said(platform.door(&here.secret).unwrap(), 668).await, 200);
    let now = asks(&platform, shop, address).await.unwrap().unwrap();
    assert_eq!(now.endpoints, vec![at(668)]);
    // The instance says where it is itself.
    assert_eq!(
        said(platform.door(&secret_of(blog)).unwrap(), 669).await,
        200
    );
    let now = asks(&platform, shop, address).await.unwrap().unwrap();
    assert_eq!(now.endpoints, vec![at(669)]);
    platform
        .clock
        .advance(tabbify_coordinator::REPORT_LIFE + Duration::from_secs(1));
    let later = asks(&platform, shop, address).await.unwrap().unwrap();
    assert_eq!(
        later.endpoints,
        vec![at(9)],
        "what is not repeated is forgotten"
    );
    assert!(tasks.shutdown(WATCHDOG).await);
    platform.stop().await;
}
