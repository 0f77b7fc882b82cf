//! Join tokens: one key, once, within their time; decided by the log.

use std::time::Duration;

use tabbify_api::auth::issue::{Admission, AdmitRequest, Caller};
use tabbify_api::auth::{AuthError, Issuer as _, RequestError, Revocations as _};
use tabbify_auth::Auth;
use tabbify_process::Clock as _;
use tabbify_token::{Claims, JoinTerms, Kind};
use tabbify_types::{EventId, MeshKey, Tenant, Timestamp};

use crate::support::{Fallible, NOW, Platform, forbidden, invalid, join_order};

async fn admit(auth: &Auth, by: &str, token: &str, key: u8) -> Result<Admission, RequestError> {
    let request = AdmitRequest {
        token: token.to_owned(),
        key: MeshKey([key; 32]),
    };
    auth.admit(Caller::bearer(by), request).await
}

async fn coordinator(platform: &Platform) -> Fallible<String> {
    platform.role("coordinator", &["auth:issue"]).await
}

const REPLAYED: RequestError = RequestError::Caller(AuthError::Replayed);

#[tokio::test]
async fn the_first_key_has_it_and_keeps_it() {
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(dir.path(), NOW).await.unwrap();
    let by = coordinator(&platform).await.unwrap();
    let token = platform.join_token().await.unwrap();
    assert!(token.starts_with("tbj_"));

    let admitted = admit(&platform.auth, &by, &token, 7).await.unwrap();
    assert_eq!(admitted.host.as_str(), "box2");
    assert_eq!(
        (admitted.tenant.as_str(), admitted.key),
        ("main", MeshKey([7; 32]))
    );
    assert_eq!(
        (admitted.tags, admitted.capabilities),
        (vec!["gpu".to_owned()], vec!["docker".to_owned()])
    );
    assert_eq!(admitted.root, platform.keys.root.public());
    assert_eq!(admitted.expires, NOW.plus(Duration::from_secs(600)));
    let again = admit(&platform.auth, &by, &token, 7).await.unwrap();
    assert_eq!(again.jti, admitted.jti);
    assert_eq!(
        admit(&platform.auth, &by, &token, 8).await.unwrap_err(),
        REPLAYED
    );
    assert_eq!(platform.count("token_used").await.unwrap(), 1);
    assert!(platform.stop().await);

    // A restart is a replay.
    let platform = Platform::start(dir.path(), NOW).await.unwrap();
    let by = coordinator(&platform).await.unwrap();
    assert_eq!(
        admit(&platform.auth, &by, &token, 8).await.unwrap_err(),
        REPLAYED
    );
    assert_eq!(admit(&platform.auth, &by, &token, 7).await.unwrap(), again);
    assert_eq!(platform.count("token_used").await.unwrap(), 1);
    platform.clock.advance(Duration::from_secs(630));
    let by = coordinator(&platform).await.unwrap();
    for key in [7, 8] {
        let late = admit(&platform.auth, &by, &token, key).await.unwrap_err();
        assert!(
            matches!(late, RequestError::Caller(AuthError::Expired(_))),
            "{late}"
        );
    }
    assert!(platform.stop().await);
}

#[tokio::test]
async fn only_a_service_that_may_admits() {
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(dir.path(), NOW).await.unwrap();
    let token = platform.join_token().await.unwrap();
    let owner = platform.owner().await.unwrap();
    let node = platform.role("node", &["apps:read"]).await.unwrap();
    assert!(forbidden(&admit(&platform.auth, &node, &token, 7).await));
    for by in [owner.as_str(), token.as_str(), ""] {
        assert!(invalid(&admit(&platform.auth, by, &token, 7).await));
    }
    assert_eq!(platform.count("token_used").await.unwrap(), 0);
    assert!(platform.stop().await);
}

#[tokio::test]
async fn what_is_no_join_token_admits_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(dir.path(), NOW).await.unwrap();
    let by = coordinator(&platform).await.unwrap();
    let owner = platform.owner().await.unwrap();
    let good = platform.join_token().await.unwrap();
    let bare = good.strip_prefix("tbj_").unwrap().to_owned();
    for token in [
        "",
        "tbj_",
        &owner,
        &by,
        &bare,
        &format!("tba_{bare}"),
        &good[..good.len() - 2],
    ] {
        assert!(
            invalid(&admit(&platform.auth, &by, token, 7).await),
            "{token}"
        );
    }
    // Signed by the issuer, and on record nowhere: somebody else has the issuer's key.
    let signer = platform.auth.signer();
    let forged = Claims {
        iss: signer.platform().clone(),
        sub: "host:box9".to_owned(),
        aud: "tabbify-api".to_owned(),
        kind: Kind::Join,
        tenant: Tenant::system(),
        tags: Vec::new(),
        scopes: Vec::new(),
        ulas: Vec::new(),
        cnf: None,
        join: Some(JoinTerms {
            root: platform.keys.root.public(),
            coordinator: "x".to_owned(),
            capabilities: Vec::new(),
        }),
        iat: NOW,
        nbf: NOW,
        exp: NOW.plus(Duration::from_secs(60)),
        jti: EventId::mint().to_string(),
    };
    let forged = signer.sign(&forged).unwrap();
    assert!(invalid(&admit(&platform.auth, &by, &forged, 7).await));
    assert_eq!(platform.count("token_used").await.unwrap(), 0);
    assert!(platform.stop().await);
}

#[tokio::test]
async fn revoked_before_use_or_after_it_is_over() {
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(dir.path(), NOW).await.unwrap();
    let by = coordinator(&platform).await.unwrap();
    let owner = platform.owner().await.unwrap();
    for used in [false, true] {
        let token = platform.join_token().await.unwrap();
        if used {
            admit(&platform.auth, &by, &token, 7).await.unwrap();
        }
        let checker = platform.auth.checker();
        let jti = checker
            .check(&token, &["join"], "tabbify-api", None)
            .unwrap()
            .jti;
        platform
            .auth
            .revoke(Caller::bearer(&owner), &jti)
            .await
            .unwrap();
        for key in [7, 8] {
            assert!(
                invalid(&admit(&platform.auth, &by, &token, key).await),
                "{used}"
            );
        }
    }
    assert!(platform.stop().await);
}

/// Two issuers on one log, and a machine behind each of many keys: one is admitted.
#[tokio::test]
async fn a_race_has_one_winner() {
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(dir.path(), NOW).await.unwrap();
    let another = platform.another().await.unwrap();
    let by = coordinator(&platform).await.unwrap();
    let owner = platform.owner().await.unwrap();
    for round in 0..10 {
        let token = platform.join_token().await.unwrap();
        let asked = (0..20_u8).map(|key| {
            let auth = if key % 2 == 0 {
                &platform.auth
            } else {
                &another
            };
            admit(auth, &by, &token, key + 1)
        });
        let answers = futures_util::future::join_all(asked).await;
        let mut winners = answers.iter().flatten().map(|admitted| admitted.key);
        let winner = winners.next().unwrap();
        assert_eq!(winners.next(), None, "round {round}");
        let losers = answers
            .iter()
            .filter(|answer| **answer == Err(REPLAYED))
            .count();
        assert_eq!(losers, 19, "round {round}");
        // Both tell the winner the same, and everybody else that they are late.
        for auth in [&platform.auth, &another] {
            assert_eq!(
                admit(auth, &by, &token, winner.0[0]).await.unwrap().key,
                winner
            );
        }
    }
    assert_eq!(platform.count("token_used").await.unwrap(), 10);

    // Using and revoking at once: either nobody is admitted, or somebody was before the revocation.
    for round in 0..10 {
        let token = platform.join_token().await.unwrap();
        let checker = platform.auth.checker();
        let jti = checker
            .check(&token, &["join"], "tabbify-api", None)
            .unwrap()
            .jti;
        let (admitted, revoked) = tokio::join!(
            admit(&another, &by, &token, 7),
            platform.auth.revoke(Caller::bearer(&owner), &jti)
        );
        revoked.unwrap();
        let history = platform.history().await.unwrap();
        let order: Vec<&str> = history
            .iter()
            .filter(|event| event.key == jti)
            .map(|event| event.kind.as_str())
            .collect();
        let expected: &[&str] = match admitted {
            Ok(_) => &["token_issued", "token_used", "token_revoked"],
            Err(_) => &["token_issued", "token_revoked"],
        };
        assert_eq!(order, expected, "round {round}");
        assert!(admit(&platform.auth, &by, &token, 7).await.is_err());
    }
    assert!(platform.stop().await);
}

#[tokio::test]
async fn a_clock_an_hour_off_admits_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(dir.path(), NOW).await.unwrap();
    let token = platform.join_token().await.unwrap();
    platform.clock.advance(Duration::from_secs(3600));
    assert_eq!(platform.clock.now(), NOW.plus(Duration::from_secs(3600)));
    let by = coordinator(&platform).await.unwrap();
    let late = admit(&platform.auth, &by, &token, 7).await.unwrap_err();
    assert!(
        matches!(late, RequestError::Caller(AuthError::Expired(_))),
        "{late}"
    );
    assert!(platform.stop().await);

    let early = Timestamp::from_secs(NOW.secs() - 3600);
    let platform = Platform::start(dir.path(), early).await.unwrap();
    let by = coordinator(&platform).await.unwrap();
    assert!(invalid(&admit(&platform.auth, &by, &token, 7).await));
    let owner = platform.owner().await.unwrap();
    platform
        .auth
        .issue(Caller::bearer(&owner), join_order())
        .await
        .unwrap();
    assert!(platform.stop().await);
}
