//! Machines join over the network: with a token, once; each gets a number that nobody else ever had.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tabbify_api::ErrorCode;
use tabbify_api::auth::issue::{Caller, Issuer as _};
use tabbify_coordinator::{Door, JoinFailed, Limits, RequestFailed, TlsKey};
use tabbify_process::connect::TcpSocket;
use tabbify_process::{ManualClock, Tasks};
use tabbify_types::event::Event;
use tabbify_types::event::v1::PeerJoined;
use tabbify_types::{HostUla, Tenant};

use crate::platform::{Invitation, Platform, coordinator, secret_named, serve, signing_of, works};
use crate::support::{Fallible, NOW, WATCHDOG, eventually, history, secret_of};

/// Everybody who has joined, in the order of the log.
async fn peers(platform: &Platform) -> Fallible<Vec<PeerJoined>> {
    let history = history(&*platform.client).await?;
    let peers = history.iter().filter_map(|event| match event.event() {
        Ok(Some(Event::PeerJoined(peer))) => Some(peer),
        _ => None,
    });
    Ok(peers.collect())
}

fn code(failed: &JoinFailed) -> Option<ErrorCode> {
    match failed {
        JoinFailed::Request(RequestFailed::Refused(problem)) => Some(problem.code),
        _ => None,
    }
}

#[tokio::test]
async fn a_machine_joins_with_a_token_once() {
    let platform = Platform::start().await.unwrap();
    let invitation = Invitation::of("box2").tagged("gpu").tagged("tenant:evil");
    let token = platform.invite(&invitation).await.unwrap();
    let secret = secret_named("box2");
    let first = platform
        .show(&token, &secret, &*platform.clock)
        .await
        .unwrap();
    let certificate = &first.certificate;
    assert_eq!(certificate.host.as_str(), "box2");
    assert_eq!(certificate.address, HostUla::new(1, 2));
    assert_eq!(certificate.key, secret.public());
    assert_eq!(certificate.tags, ["gpu"], "a tenant is no tag to claim");
    assert_eq!(certificate.tenant, Tenant::system());
    let system: Vec<&str> = first.system.iter().map(|it| it.host.as_str()).collect();
    assert_eq!(system, ["core"], "the machines with roles of the platform");
    assert_eq!(first.root, platform.keys.root.public());

    // The same machine, which has not heard the answer, asks again; another is too late.
    let again = platform
        .show(&token, &secret, &*platform.clock)
        .await
        .unwrap();
    assert_eq!(again.certificate.address, certificate.address);
    let thief = secret_named("box3");
    let late = platform
        .show(&token, &thief, &*platform.clock)
        .await
        .unwrap_err();
    assert_eq!(code(&late), Some(ErrorCode::TokenInvalid), "{late:?}");
    let joined = peers(&platform).await.unwrap();
    assert_eq!(joined.len(), 2, "core and box2, each once");

    // What it has seen work counts as far as the token allows it.
    let history = history(&*platform.client).await.unwrap();
    let able = history.iter().find_map(|event| match event.event() {
        Ok(Some(Event::SupervisorJoined(it))) if it.host.as_str() == "box2" => Some(it),
        _ => None,
    });
    assert_eq!(able.unwrap().capabilities, [works("wasm-http")]);
    let stats = platform.coordinator.stats();
    assert_eq!((stats.joined, stats.not_joined), (2, 1));
    platform.stop().await;
}

#[tokio::test]
async fn a_token_that_does_not_count_admits_nobody() {
    let platform = Platform::start().await.unwrap();
    let secret = secret_named("box2");
    let expired = platform.invite(&Invitation::of("box2")).await.unwrap();
    let revoked = platform.invite(&Invitation::of("box2")).await.unwrap();
    let owner = platform.owner().await.unwrap();
    let checker = platform.auth.checker();
    use tabbify_api::auth::Revocations as _;
    let verified = checker.check(&revoked, &["join"], "tabbify-api", None);
    let jti = verified.unwrap().jti;
    platform
        .auth
        .revoke(Caller::bearer(&owner), &jti)
        .await
        .unwrap();
    let refused = platform.show(&revoked, &secret, &*platform.clock).await;
    assert_eq!(code(&refused.unwrap_err()), Some(ErrorCode::TokenInvalid));

    let mut forged = expired.clone();
    forged.replace_range(forged.len() - 6..forged.len() - 4, "AA");
    let refused = platform.show(&forged, &secret, &*platform.clock).await;
    assert_eq!(code(&refused.unwrap_err()), Some(ErrorCode::TokenInvalid));
    let refused = platform.show("tbj_x.y.z", &secret, &*platform.clock).await;
    assert!(matches!(refused.unwrap_err(), JoinFailed::Token(_)));

    // An hour later, by the platform's clock, and by the machine's.
    platform.clock.advance(Duration::from_secs(3600));
    let refused = platform.show(&expired, &secret, &*platform.clock).await;
    assert_eq!(code(&refused.unwrap_err()), Some(ErrorCode::TokenExpired));
    assert_eq!(peers(&platform).await.unwrap().len(), 1);
    assert_eq!(platform.coordinator.stats().not_joined, 3);
    platform.stop().await;
}

#[tokio::test]
async fn a_machine_whose_clock_is_an_hour_off_is_told_so() {
    let platform = Platform::start().await.unwrap();
    for seconds in [NOW.secs() - 3600, NOW.secs() + 3600] {
        let token = platform.invite(&Invitation::of("box2")).await.unwrap();
        let wrong = ManualClock::at(tabbify_types::Timestamp::from_secs(seconds));
        let refused = platform.show(&token, &secret_named("box2"), &wrong).await;
        let refused = refused.unwrap_err();
        assert!(matches!(refused, JoinFailed::Clock(_)), "{refused:?}");
        assert!(refused.to_string().contains("3600 s"), "{refused}");
    }
    platform.stop().await;
}

/// A token pins the coordinator's key: whoever else answers there gets neither the token nor a proof.
#[tokio::test]
async fn a_coordinator_with_another_key_gets_no_token() {
    let platform = Platform::start().await.unwrap();
    let token = platform.invite(&Invitation::of("box2")).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let other = TlsKey::load_or_create(&dir.path().join("other.key")).unwrap();
    let limits = Limits::default();
    let (coordinator, auth) = (&platform.coordinator, &platform.auth);
    let address = serve(coordinator, auth, &other, &limits, &platform.tasks)
        .await
        .unwrap();
    let before = platform.coordinator.stats();
    let secret = secret_named("box2");
    let signing = signing_of(&secret);
    let joined = tabbify_coordinator::join_platform(
        Arc::new(TcpSocket { address }),
        &token,
        secret.clone(),
        &signing,
        Vec::new(),
        &*platform.clock,
        &platform.tasks,
    );
    let refused = joined.await.unwrap_err();
    let text = tabbify_process::chain(&refused).to_string();
    assert!(text.contains("has another key"), "{text}");
    let after = platform.coordinator.stats();
    assert_eq!(
        (after.proven, after.not_joined),
        (before.proven, before.not_joined)
    );
    // It still counts where it belongs.
    platform
        .show(&token, &secret, &*platform.clock)
        .await
        .unwrap();
    platform.stop().await;
}

/// Two coordinators on one log, each with its own door; machines join at both at the same time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_coordinators_never_give_one_number_twice() {
    const MACHINES: usize = 24;
    let platform = Platform::start().await.unwrap();
    let mine = platform
        .log
        .client(tabbify_coordinator::Coordinator::log_scope());
    let tasks = &platform.tasks;
    let clock = platform.clock();
    let second = coordinator("core2", mine, &platform.auth, clock, None, tasks)
        .await
        .unwrap();
    let dir = tempfile::tempdir().unwrap();
    // The same key at both: a token pins one.
    let limits = Limits {
        joins: (100, Duration::from_secs(1)),
        ..Limits::default()
    };
    let (auth, tls) = (&platform.auth, &platform.tls);
    let doors = [
        serve(&platform.coordinator, auth, tls, &limits, tasks)
            .await
            .unwrap(),
        serve(&second, auth, tls, &limits, tasks).await.unwrap(),
    ];
    drop(dir);
    let mut tokens = Vec::new();
    for n in 0..MACHINES {
        let invitation = Invitation::of(&format!("box{n}"));
        tokens.push(platform.invite(&invitation).await.unwrap());
    }
    let joining = tokens.iter().enumerate().map(|(n, token)| {
        let secret = secret_named(&format!("box{n}"));
        let address = doors[n % 2];
        let platform = &platform;
        async move {
            tabbify_coordinator::join_platform(
                Arc::new(TcpSocket { address }),
                token,
                secret.clone(),
                &signing_of(&secret),
                Vec::new(),
                &*platform.clock,
                &platform.tasks,
            )
            .await
        }
    });
    let joined = futures_util::future::join_all(joining).await;
    let addresses: BTreeSet<_> = joined
        .iter()
        .map(|joined| joined.as_ref().unwrap().certificate.address)
        .collect();
    assert_eq!(addresses.len(), MACHINES);
    let peers = peers(&platform).await.unwrap();
    let indexes: BTreeSet<u16> = peers.iter().map(|peer| peer.index).collect();
    assert_eq!(peers.len(), MACHINES + 2, "core, core2 and everybody else");
    assert_eq!(
        indexes,
        (1..=26).collect(),
        "without a gap, without a double"
    );
    platform.stop().await;
}

#[tokio::test]
async fn who_leaves_is_nobody_and_its_number_nobodys() {
    let platform = Platform::start().await.unwrap();
    let member = platform.join(&Invitation::of("box2")).await.unwrap();
    let tasks = Tasks::new();
    let remote = platform.remote(&member.secret, &tasks).unwrap();
    remote.leave().await.unwrap();
    let refused = remote.certificate(&member.signing).await.unwrap_err();
    assert_eq!(code(&refused), Some(ErrorCode::Forbidden), "{refused:?}");
    assert!(remote.leave().await.is_err(), "it is no member any more");
    assert!(platform.coordinator.stats().strangers >= 2);

    let other = platform.join(&Invitation::of("box3")).await.unwrap();
    assert_eq!(other.membership.certificate.address, HostUla::new(1, 3));
    let back = platform.join(&Invitation::of("box2")).await.unwrap();
    assert_eq!(back.membership.certificate.address, HostUla::new(1, 4));

    // Wiped, it comes back with another key under a new token, and keeps its number.
    let token = platform.invite(&Invitation::of("box3")).await.unwrap();
    let anew = secret_named("box3 anew");
    let joined = platform
        .show(&token, &anew, &*platform.clock)
        .await
        .unwrap();
    assert_eq!(joined.certificate.address, HostUla::new(1, 3));
    let before = platform.remote(&other.secret, &tasks).unwrap();
    let refused = before.certificate(&other.signing).await.unwrap_err();
    assert_eq!(code(&refused), Some(ErrorCode::Forbidden));

    // Another machine cannot come with a key that is taken.
    let token = platform.invite(&Invitation::of("box5")).await.unwrap();
    let refused = platform
        .show(&token, &anew, &*platform.clock)
        .await
        .unwrap_err();
    assert_eq!(code(&refused), Some(ErrorCode::Conflict), "{refused:?}");
    assert!(tasks.shutdown(WATCHDOG).await);
    platform.stop().await;
}

/// A machine that is shown the token of another one's name does not use it up.
#[tokio::test]
async fn a_token_that_would_be_refused_is_not_used_up() {
    let platform = Platform::start().await.unwrap();
    let member = platform.join(&Invitation::of("box2")).await.unwrap();
    let tasks = Tasks::new();
    platform.remote(&member.secret, &tasks).unwrap();
    let host = "box2".parse().unwrap();
    eventually(|| async { platform.coordinator.last_heard(&host).ok_or(()) })
        .await
        .unwrap();
    let token = platform.invite(&Invitation::of("box2")).await.unwrap();
    let other = secret_named("another machine");
    let refused = platform.show(&token, &other, &*platform.clock).await;
    let refused = refused.unwrap_err();
    assert_eq!(code(&refused), Some(ErrorCode::Conflict), "{refused:?}");
    // The key of an instance cannot be a machine's either.
    let shop = platform.app(&Tenant::main(), "shop").await.unwrap();
    let spare = platform.invite(&Invitation::of("box3")).await.unwrap();
    let refused = platform
        .show(&spare, &secret_of(shop), &*platform.clock)
        .await;
    let refused = refused.unwrap_err();
    assert_eq!(code(&refused), Some(ErrorCode::Conflict), "{refused:?}");
    // Both still count, once, for whom they are meant.
    let (own, new) = (&member.secret, &secret_named("box3"));
    for (token, secret) in [(&token, own), (&spare, new)] {
        let shown = platform.show(token, secret, &*platform.clock).await;
        shown.unwrap();
    }
    let again = platform.show(&spare, &other, &*platform.clock).await;
    assert_eq!(code(&again.unwrap_err()), Some(ErrorCode::TokenInvalid));
    assert!(tasks.shutdown(WATCHDOG).await);
    platform.stop().await;
}

#[tokio::test]
async fn a_certificate_is_renewed_and_its_signing_key_must_consent() {
    let platform = Platform::start().await.unwrap();
    let member = platform.join(&Invitation::of("box2")).await.unwrap();
    let tasks = Tasks::new();
    let remote = platform.remote(&member.secret, &tasks).unwrap();
    platform.clock.advance(Duration::from_secs(12 * 3600));
    let renewed = remote.certificate(&member.signing).await.unwrap();
    let longer =
        renewed.certificate.not_after.millis() - member.membership.certificate.not_after.millis();
    assert_eq!(longer, 12 * 3600 * 1000);

    // A key that has consented to speak for another machine, and one that has not consented at all.
    let other = secret_named("box3").public();
    let platform_id = platform.root();
    let elsewhere = tabbify_coordinator::consent(&platform_id, other, &member.signing).unwrap();
    let request = |consent: String| tabbify_api::coordinator::CertificateRequest {
        signing: member.signing.public(),
        consent,
    };
    let door: Door = platform.door(&member.secret).unwrap();
    for consent in [elsewhere, "x.y.z".to_owned()] {
        let body = serde_json::to_vec(&request(consent)).unwrap();
        let path = tabbify_api::coordinator::CERTIFICATE_PATH;
        let status = crate::network::post(&door, path, body, &tasks)
            .await
            .unwrap();
        assert_eq!(status, 400);
    }
    assert!(tasks.shutdown(WATCHDOG).await);
    platform.stop().await;
}
