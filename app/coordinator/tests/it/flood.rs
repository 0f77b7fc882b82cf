//! Floods: of connections, of requests, of join tokens. What is too much is refused and counted; others
//! are answered.

use std::time::Duration;

use tabbify_api::coordinator::{ISSUERS_PATH, JOIN_PATH, JoinRequest};
use tabbify_coordinator::{Limits, consent};
use tabbify_process::Tasks;
use tabbify_process::connect::Connect as _;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use crate::network::post;
use crate::platform::{Invitation, Platform, secret_named, signing_of};
use crate::support::{WATCHDOG, eventually};

/// Longer than any test: a budget that is spent stays spent.
const LONG: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn connections_of_one_address_are_limited() {
    let limits = Limits {
        by_address: (5, LONG),
        ..Limits::default()
    };
    let platform = Platform::with(&limits).await.unwrap();
    let secret = secret_named("box2");
    let door = platform.door(&secret).unwrap();
    let mut open = Vec::new();
    for _ in 0..5 {
        open.push(door.connect().await.unwrap());
    }
    for _ in 0..20 {
        assert!(door.connect().await.is_err());
    }
    assert_eq!(platform.coordinator.stats().limited, 20);
    assert_eq!(platform.coordinator.stats().proven, 5);
    drop(open);
    platform.stop().await;
}

/// Connections that prove nothing take the places of those that prove nothing, for a while; whoever is
/// there already is answered.
#[tokio::test]
async fn connections_that_say_nothing_are_limited() {
    let limits = Limits {
        handshakes: 4,
        ..Limits::default()
    };
    let platform = Platform::with(&limits).await.unwrap();
    let member = platform.join(&Invitation::of("box2")).await.unwrap();
    let tasks = Tasks::new();
    let remote = platform.remote(&member.secret, &tasks).unwrap();
    remote.certificate(&member.signing).await.unwrap();
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(TcpStream::connect(platform.address).await.unwrap());
    }
    let limited = || platform.coordinator.stats().limited;
    eventually(|| async { if limited() >= 16 { Ok(()) } else { Err(()) } })
        .await
        .unwrap();
    // Over the connection that it has.
    remote.certificate(&member.signing).await.unwrap();
    // And the silent are gone after a while.
    let mut end = Vec::new();
    for mut stream in silent {
        let ended = tokio::time::timeout(WATCHDOG, stream.read_to_end(&mut end)).await;
        assert!(ended.is_ok());
    }
    assert!(
        platform
            .door(&member.secret)
            .unwrap()
            .connect()
            .await
            .is_ok()
    );
    assert!(tasks.shutdown(WATCHDOG).await);
    platform.stop().await;
}

#[tokio::test]
async fn requests_of_one_key_are_limited() {
    let limits = Limits {
        by_key: (10, LONG),
        ..Limits::default()
    };
    let platform = Platform::with(&limits).await.unwrap();
    let tasks = Tasks::new();
    let flood = platform.door(&secret_named("flood")).unwrap();
    for n in 0..30 {
        let status = post(&flood, ISSUERS_PATH, Vec::new(), &tasks)
            .await
            .unwrap();
        assert_eq!(status, if n < 10 { 405 } else { 429 }, "{n}");
    }
    assert_eq!(platform.coordinator.stats().limited, 20);
    let other = platform.door(&secret_named("other")).unwrap();
    assert_eq!(
        post(&other, ISSUERS_PATH, Vec::new(), &tasks)
            .await
            .unwrap(),
        405
    );
    assert!(tasks.shutdown(WATCHDOG).await);
    platform.stop().await;
}

#[tokio::test]
async fn join_tokens_cannot_be_guessed_for_long() {
    let limits = Limits {
        joins: (3, LONG),
        ..Limits::default()
    };
    let platform = Platform::with(&limits).await.unwrap();
    let tasks = Tasks::new();
    for n in 0..6 {
        // Another key each time: it is the address that counts.
        let secret = secret_named(&format!("box{n}"));
        let signing = signing_of(&secret);
        let request = JoinRequest {
            token: format!("tbj_{n}.{n}.{n}"),
            capabilities: Vec::new(),
            memory: None,
            signing: signing.public(),
            consent: consent(&platform.root(), secret.public(), &signing).unwrap(),
        };
        let body = serde_json::to_vec(&request).unwrap();
        let door = platform.door(&secret).unwrap();
        let status = post(&door, JOIN_PATH, body, &tasks).await.unwrap();
        assert_eq!(status, if n < 3 { 401 } else { 429 }, "{n}");
    }
    assert!(tasks.shutdown(WATCHDOG).await);
    platform.stop().await;
}
