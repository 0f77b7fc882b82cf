//! First start, sign-in by key, tickets and sessions, restart.

use std::sync::Arc;
use std::time::Duration;

use tabbify_api::auth::{AuthError, Authority};
use tabbify_api::log::Append;
use tabbify_auth::{Auth, BootstrapError, Keys, OWNER, StartError, bootstrap};
use tabbify_process::{Clock, ManualClock};
use tabbify_token::{OwnerProof, PlatformId, SecretKey, endorse_issuer};
use tabbify_types::event::Event;
use tabbify_types::event::v1::{IssuerKeyRotated, TenantCreated, UserRegistered};
use tabbify_types::{AppId, NewEvent, Position, Segment, Tenant};

use crate::support::{NOW, Platform, WATCHDOG, open, until};

fn rotation(root: &SecretKey, issuer: &SecretKey) -> Event {
    let public = issuer.public();
    let signature = endorse_issuer(root, &public);
    IssuerKeyRotated {
        kid: public.id(),
        public,
        signature,
    }
    .into()
}

#[tokio::test]
async fn an_empty_directory_becomes_a_platform_once() {
    let dir = tempfile::tempdir().unwrap();
    for _ in 0..3 {
        let platform = Platform::start(dir.path(), NOW).await.unwrap();
        let events = platform.history().await.unwrap();
        let kinds: Vec<&str> = events.iter().map(|event| event.kind.as_str()).collect();
        let expected = [
            "platform_initialized",
            "tenant_created",
            "issuer_key_rotated",
            "user_registered",
        ];
        assert_eq!(kinds, expected);
        let secret = platform.keys.owner.to_text();
        assert!(
            events
                .iter()
                .all(|event| !event.data.get().contains(secret.as_str()))
        );
        assert_eq!(platform.auth.platform().0, platform.platform().to_string());
        assert!(platform.stop().await);
    }
}

#[tokio::test]
async fn two_first_starts_at_once_make_one_platform() {
    let dir = tempfile::tempdir().unwrap();
    let (log, client) = open(dir.path()).unwrap();
    let keys = Keys::open(&dir.path().join("keys")).unwrap();
    let (a, b) = tokio::join!(bootstrap(&*client, &keys), bootstrap(&*client, &keys));
    assert_eq!(a.unwrap(), b.unwrap());
    assert_eq!(client.head(), Position(4));
    log.close().await;
}

#[tokio::test]
async fn other_keys_and_other_logs_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(dir.path(), NOW).await.unwrap();
    let other = Keys::open(&dir.path().join("other")).unwrap();
    let refused = bootstrap(&*platform.client, &other).await.unwrap_err();
    assert!(
        matches!(refused, BootstrapError::OtherPlatform { .. }),
        "{refused}"
    );

    // The right root key beside an issuer key that the log does not know.
    let mixed = Keys {
        issuer: other.issuer,
        dir: None,
        ..platform.keys.clone()
    };
    let clock: Arc<dyn Clock> = Arc::<ManualClock>::clone(&platform.clock);
    let client = Arc::clone(&platform.client);
    let refused = Auth::start(client, &mixed, clock, &platform.tasks)
        .await
        .unwrap_err();
    assert!(matches!(refused, StartError::IssuerKey { .. }), "{refused}");
    assert!(platform.stop().await);

    let elsewhere = tempfile::tempdir().unwrap();
    let (log, client) = open(elsewhere.path()).unwrap();
    let event = Event::from(TenantCreated {
        tenant: Tenant::main(),
    });
    let event = NewEvent::new(Segment::auth(), "main", &event).unwrap();
    client.append(Append::of(vec![event])).await.unwrap();
    let refused = bootstrap(&*client, &mixed).await.unwrap_err();
    assert!(
        matches!(refused, BootstrapError::NotAPlatform { .. }),
        "{refused}"
    );
    log.close().await;
}

#[tokio::test]
async fn the_owner_signs_in() {
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(dir.path(), NOW).await.unwrap();
    let auth = &platform.auth;
    let issued = auth
        .exchange(&platform.proof("one").unwrap())
        .await
        .unwrap();
    assert_eq!(issued.expires, NOW.plus(Duration::from_secs(900)));
    let identity = auth.verify(&issued.token).unwrap();
    assert_eq!(
        (identity.subject.as_str(), identity.kind.as_str()),
        (OWNER, "user")
    );
    assert_eq!(identity.tenant, Tenant::main());
    assert!(identity.allows("deploy"));

    // It is on record, without the token.
    let events = platform.history().await.unwrap();
    let last = events.last().unwrap();
    let Some(Event::TokenIssued(record)) = last.event().unwrap() else {
        panic!("not on record")
    };
    assert_eq!(
        (record.subject.as_str(), record.expires),
        (OWNER, issued.expires)
    );
    assert_eq!(
        (last.key.as_str(), record.tenant.as_ref()),
        (record.jti.as_str(), Some(&Tenant::main()))
    );
    assert_eq!(record.scopes, ["*"]);
    assert!(!last.data.get().contains(&issued.token));

    // It ends.
    platform.clock.advance(Duration::from_secs(900 + 29));
    assert!(auth.verify(&issued.token).is_ok());
    platform.clock.advance(Duration::from_secs(1));
    assert_eq!(
        auth.verify(&issued.token),
        Err(AuthError::Expired(issued.expires))
    );
    assert!(platform.stop().await);
}

#[tokio::test]
async fn a_proof_counts_once() {
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(dir.path(), NOW).await.unwrap();
    let auth = &platform.auth;
    let proof = platform.proof("once").unwrap();
    auth.exchange(&proof).await.unwrap();
    assert_eq!(
        auth.exchange(&proof).await.unwrap_err(),
        AuthError::Replayed
    );
    platform.clock.advance(Duration::from_secs(89));
    assert_eq!(
        auth.exchange(&proof).await.unwrap_err(),
        AuthError::Replayed
    );
    platform.clock.advance(Duration::from_secs(1));
    assert!(matches!(
        auth.exchange(&proof).await,
        Err(AuthError::Expired(_))
    ));

    assert!(platform.stop().await);
}

#[tokio::test]
async fn a_proof_counts_only_from_the_key_of_its_user() {
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(dir.path(), NOW).await.unwrap();
    let auth = &platform.auth;
    let other = SecretKey::from_seed(&[9; 32]);
    let mine = OwnerProof::new(platform.platform(), OWNER, "a", NOW);
    let foreign = OwnerProof {
        aud: PlatformId::of(&other.public()),
        ..mine.clone()
    };
    let anna = OwnerProof {
        sub: "user:anna".to_owned(),
        ..mine.clone()
    };
    let registered = UserRegistered {
        user: anna.sub.clone(),
        tenant: Tenant::main(),
        key: Some(other.public()),
    };
    platform.append(registered.into()).await.unwrap();
    for (name, proof) in [
        ("another's name", anna.sign(&platform.keys.owner).unwrap()),
        (
            "another's platform",
            foreign.sign(&platform.keys.owner).unwrap(),
        ),
        (
            "the issuer's key",
            mine.sign(&platform.keys.issuer).unwrap(),
        ),
        ("the root key", mine.sign(&platform.keys.root).unwrap()),
        ("the owner's name by anna's key", mine.sign(&other).unwrap()),
        ("nothing", String::new()),
        ("garbage", "a.b.c".to_owned()),
    ] {
        let refused = auth.exchange(&proof).await.unwrap_err();
        assert!(
            matches!(refused, AuthError::Invalid(_)),
            "{name}: {refused}"
        );
    }
    // Anna signs in, and is not the owner.
    let signing_in = async {
        for n in 0.. {
            let jti = format!("anna-{n}");
            let proof = OwnerProof {
                jti,
                ..anna.clone()
            }
            .sign(&other)
            .unwrap();
            match auth.exchange(&proof).await {
                Ok(issued) => return issued,
                // The event of her registration is on its way.
                Err(_) => tokio::task::yield_now().await,
            }
        }
        unreachable!("the loop has no end of its own")
    };
    let issued = tokio::time::timeout(WATCHDOG, signing_in).await.unwrap();
    let identity = auth.verify(&issued.token).unwrap();
    assert_eq!(identity.subject, "user:anna");
    assert!(identity.allows("deploy") && !identity.allows("*"));
    assert!(platform.stop().await);
}

#[tokio::test]
async fn failures_are_limited_and_lock_nobody_out() {
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(dir.path(), NOW).await.unwrap();
    let mut limited = 0;
    for _ in 0..100 {
        let refused = platform.auth.exchange("a.b.c").await.unwrap_err();
        limited += usize::from(refused == AuthError::RateLimited);
    }
    assert_eq!(limited, 80);
    platform
        .auth
        .exchange(&platform.proof("one").unwrap())
        .await
        .unwrap();
    assert!(platform.stop().await);
}

#[tokio::test]
async fn a_ticket_opens_one_app_once() {
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(dir.path(), NOW).await.unwrap();
    let auth = &platform.auth;
    let token = auth
        .exchange(&platform.proof("one").unwrap())
        .await
        .unwrap()
        .token;
    let owner = auth.verify(&token).unwrap();
    let (app, other) = (AppId::mint(), AppId::mint());

    let ticket = auth.ticket(&owner, app).await.unwrap();
    assert_eq!(ticket.expires, NOW.plus(Duration::from_secs(60)));
    let invalid = |answer: AuthError| assert!(matches!(answer, AuthError::Invalid(_)), "{answer}");
    invalid(auth.session(&ticket.token, other).await.unwrap_err());
    let session = auth.session(&ticket.token, app).await.unwrap();
    assert_eq!(session.expires, NOW.plus(Duration::from_secs(12 * 3600)));
    assert_eq!(
        auth.session(&ticket.token, app).await.unwrap_err(),
        AuthError::Replayed
    );

    let identity = auth.verify_session(&session.token, app).unwrap();
    assert_eq!(identity.subject, OWNER);
    assert_eq!(identity.scopes, ["app:open"]);
    // Each is good for its own place only.
    invalid(auth.verify_session(&session.token, other).unwrap_err());
    invalid(auth.verify_session(&ticket.token, app).unwrap_err());
    invalid(auth.verify_session(&token, app).unwrap_err());
    invalid(auth.verify(&session.token).unwrap_err());
    invalid(auth.verify(&ticket.token).unwrap_err());
    invalid(auth.session(&token, app).await.unwrap_err());
    invalid(auth.session(&session.token, app).await.unwrap_err());
    invalid(auth.exchange(&session.token).await.unwrap_err());

    let late = auth.ticket(&owner, app).await.unwrap();
    platform.clock.advance(Duration::from_secs(90));
    let refused = auth.session(&late.token, app).await.unwrap_err();
    assert_eq!(refused, AuthError::Expired(late.expires));
    platform.clock.advance(Duration::from_secs(12 * 3600));
    assert!(matches!(
        auth.verify_session(&session.token, app),
        Err(AuthError::Expired(_))
    ));
    assert!(platform.stop().await);
}

#[tokio::test]
async fn a_restart_keeps_tokens_and_opens_no_window() {
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(dir.path(), NOW).await.unwrap();
    let (used, unused) = (
        platform.proof("used").unwrap(),
        platform.proof("unused").unwrap(),
    );
    let token = platform.auth.exchange(&used).await.unwrap().token;
    let owner = platform.auth.verify(&token).unwrap();
    let app = AppId::mint();
    let ticket = platform.auth.ticket(&owner, app).await.unwrap().token;
    platform.auth.session(&ticket, app).await.unwrap();
    assert!(platform.stop().await);

    let later = NOW.plus(Duration::from_secs(5));
    let platform = Platform::start(dir.path(), later).await.unwrap();
    let auth = &platform.auth;
    assert_eq!(auth.verify(&token).unwrap(), owner);
    assert_eq!(auth.exchange(&used).await.unwrap_err(), AuthError::Replayed);
    // Whether it was used is not known any more, so it is not accepted.
    assert_eq!(
        auth.exchange(&unused).await.unwrap_err(),
        AuthError::Replayed
    );
    assert_eq!(
        auth.session(&ticket, app).await.unwrap_err(),
        AuthError::Replayed
    );
    auth.exchange(&platform.proof("fresh").unwrap())
        .await
        .unwrap();
    assert!(platform.stop().await);
}

#[tokio::test]
async fn a_rotation_is_followed_without_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(dir.path(), NOW).await.unwrap();
    let token = platform
        .auth
        .exchange(&platform.proof("one").unwrap())
        .await
        .unwrap()
        .token;
    let jwks = platform.auth.jwks();
    let issuer = platform.keys.issuer.public();
    let expected = serde_json::json!({ "keys": [{
        "kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA",
        "kid": issuer.id(), "x": issuer,
    }]});
    assert_eq!(jwks, expected);

    let (second, third) = (
        SecretKey::from_seed(&[2; 32]),
        SecretKey::from_seed(&[3; 32]),
    );
    platform
        .append(rotation(&platform.keys.root, &second))
        .await
        .unwrap();
    until(|| platform.jwks_len() == 2).await.unwrap();
    assert_eq!(
        platform.auth.jwks()["keys"][0]["kid"],
        second.id().as_str(),
        "newest first"
    );
    assert!(platform.auth.verify(&token).is_ok());
    platform
        .append(rotation(&platform.keys.root, &third))
        .await
        .unwrap();
    until(|| platform.auth.verify(&token).is_err())
        .await
        .unwrap();
    assert_eq!(platform.jwks_len(), 2);

    // What the root key has not signed stops auth: it does not go on without knowing.
    platform.append(rotation(&second, &third)).await.unwrap();
    let stopped = platform.tasks.token();
    tokio::time::timeout(WATCHDOG, stopped.cancelled())
        .await
        .unwrap();
    assert!(platform.tasks.failure().unwrap().contains("auth-follow"));
    assert!(!platform.stop().await);
}
