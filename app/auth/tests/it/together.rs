//! Two issuers on one log: what counts once counts once, whoever is asked.

use std::time::Duration;

use tabbify_api::auth::issue::Caller;
use tabbify_api::auth::people::{AcceptRequest, LoginRequest, Role, RoleRequest};
use tabbify_api::auth::{AuthError, Authority as _, Issuer as _, People as _, Revocations as _};
use tabbify_types::AppId;

use crate::support::{NOW, PASSWORD, Platform, WATCHDOG, agent_order, secret, until};

#[tokio::test]
async fn a_proof_counts_at_one_of_them() {
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(dir.path(), NOW).await.unwrap();
    let another = platform.another().await.unwrap();
    for n in 0..20 {
        let proof = platform.proof(&format!("raced-{n}")).unwrap();
        let (mine, theirs) = tokio::join!(platform.auth.exchange(&proof), another.exchange(&proof));
        let answers = [mine, theirs];
        assert_eq!(
            answers.iter().filter(|answer| answer.is_ok()).count(),
            1,
            "{n}"
        );
        let lost = answers
            .iter()
            .find_map(|answer| answer.as_ref().err())
            .unwrap();
        assert_eq!(*lost, AuthError::Replayed);
        for auth in [&platform.auth, &another] {
            assert_eq!(
                auth.exchange(&proof).await.unwrap_err(),
                AuthError::Replayed
            );
        }
        platform.clock.advance(Duration::from_secs(60));
    }
    assert_eq!(platform.count("token_issued").await.unwrap(), 20);
    assert!(platform.stop().await);
}

#[tokio::test]
async fn a_ticket_opens_one_session() {
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(dir.path(), NOW).await.unwrap();
    let another = platform.another().await.unwrap();
    let owner = platform.owner().await.unwrap();
    let me = another.verify(&owner).unwrap();
    for n in 0..10 {
        let app = AppId::mint();
        let ticket = platform.auth.ticket(&me, app).await.unwrap().token;
        let (mine, theirs) = tokio::join!(
            platform.auth.session(&ticket, app),
            another.session(&ticket, app)
        );
        let answers = [mine, theirs];
        let sessions: Vec<_> = answers.iter().flatten().collect();
        assert_eq!(sessions.len(), 1, "{n}");
        for auth in [&platform.auth, &another] {
            assert_eq!(
                auth.verify_session(&sessions[0].token, app)
                    .unwrap()
                    .subject,
                me.subject
            );
        }
    }
    assert!(platform.stop().await);
}

#[tokio::test]
async fn they_agree_about_people() {
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(dir.path(), NOW).await.unwrap();
    let another = platform.another().await.unwrap();
    let owner = platform.owner().await.unwrap();
    let request = tabbify_api::auth::people::InviteRequest {
        user: "anna".to_owned(),
        role: Role::Developer,
        email: None,
    };
    let invited = platform
        .auth
        .invite(Caller::bearer(&owner), request)
        .await
        .unwrap();
    until(|| {
        another
            .checker()
            .with_state(|state| state.person("user:anna").is_some())
    })
    .await
    .unwrap();
    let accept = |auth: tabbify_auth::Auth, password: &'static str| {
        let request = AcceptRequest {
            invitation: secret(&invited.invitation),
            password: secret(password),
        };
        async move { auth.accept(Caller::bearer(""), request).await }
    };
    let (mine, theirs) = tokio::join!(
        accept(platform.auth.clone(), PASSWORD),
        accept(another.clone(), "battery staple horse")
    );
    let password = match (&mine, &theirs) {
        (Ok(_), Err(_)) => PASSWORD,
        (Err(_), Ok(_)) => "battery staple horse",
        both => panic!("{both:?}"),
    };
    assert_eq!(
        platform.count("user_registered").await.unwrap(),
        2,
        "the owner and she"
    );
    let login = || LoginRequest {
        user: "anna".to_owned(),
        password: secret(password),
        tenant: None,
    };
    for auth in [&platform.auth, &another] {
        until(|| {
            auth.checker()
                .with_state(|state| state.user("user:anna").is_some())
        })
        .await
        .unwrap();
        auth.login(Caller::bearer(""), login()).await.unwrap();
    }

    // Both change her at once: both are recorded in some order, or one is told to look again.
    let roles = [Role::Viewer, Role::Owner].map(|role| RoleRequest {
        user: "anna".to_owned(),
        role: Some(role),
    });
    let [viewer, owner_role] = roles;
    let (mine, theirs) = tokio::join!(
        platform.auth.set_role(Caller::bearer(&owner), viewer),
        another.set_role(Caller::bearer(&owner), owner_role)
    );
    assert!(mine.is_ok() || theirs.is_ok(), "{mine:?} {theirs:?}");
    assert!(platform.stop().await);
}

#[tokio::test]
async fn a_revocation_reaches_the_other_within_a_second() {
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(dir.path(), NOW).await.unwrap();
    let another = platform.another().await.unwrap();
    let owner = platform.owner().await.unwrap();
    let mut worst = Duration::ZERO;
    for n in 0..20 {
        let order = agent_order(&format!("a{n}"), &["deploy"]);
        let token = platform
            .auth
            .issue(Caller::bearer(&owner), order)
            .await
            .unwrap()
            .token;
        let checker = another.checker();
        let verified = checker
            .check(&token, &["agent"], "tabbify-api", None)
            .unwrap();
        let seen = checker.changes();
        let began = tokio::time::Instant::now();
        platform
            .auth
            .revoke(Caller::bearer(&owner), &verified.jti)
            .await
            .unwrap();
        tokio::time::timeout(WATCHDOG, checker.changed(seen))
            .await
            .unwrap();
        assert!(another.verify(&token).is_err());
        worst = worst.max(began.elapsed());
    }
    println!("revoked at one, refused at the other: {worst:?} at worst of 20, with the append");
    assert!(platform.stop().await);
}
