//! Agents, hosts and runners: listed, renewed by proof of their key, taken back while they are open.

use std::time::Duration;

use tabbify_api::auth::issue::{Caller, TokenOrder};
use tabbify_api::auth::people::{Role, RoleRequest, SubjectRequest};
use tabbify_api::auth::{
    AuthError, Authority as _, Issuer as _, People as _, RequestError, Revocations as _,
};
use tabbify_process::Clock as _;
use tabbify_types::{AppId, InstanceId, MeshKey, Tenant};

use crate::support::{Fallible, NOW, Platform, WATCHDOG, agent_order, invalid};

const KEY: MeshKey = MeshKey([2; 32]);

fn host_order(audience: Option<&str>) -> TokenOrder {
    TokenOrder::Host {
        host: "box2".parse().expect("INVARIANT: it is a name"),
        tenant: Tenant::system(),
        tags: vec!["gpu".to_owned()],
        ulas: vec![
            "fd5a:1f00:1:2::1"
                .parse()
                .expect("INVARIANT: it is an address"),
        ],
        key: KEY,
        audience: audience.map(str::to_owned),
    }
}

fn proven(token: &str, key: Option<MeshKey>) -> Caller<'_> {
    Caller {
        proven: key,
        ..Caller::bearer(token)
    }
}

async fn coordinator(platform: &Platform) -> Fallible<String> {
    platform.role("coordinator", &["auth:issue"]).await
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "one story, told in order")]
async fn an_agent_is_listed_until_it_is_revoked() {
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(dir.path(), NOW).await.unwrap();
    let dave = platform.person("dave", Role::Developer).await.unwrap();
    let vera = platform.person("vera", Role::Viewer).await.unwrap();
    let owner = platform.owner().await.unwrap();
    let auth = &platform.auth;
    let order = agent_order("claude", &["deploy", "apps:read"]);
    let issued = auth
        .issue(Caller::bearer(&dave), order.clone())
        .await
        .unwrap();
    assert!(issued.token.starts_with("tba_"));
    assert_eq!(
        issued.expires,
        NOW.plus(Duration::from_secs(30 * 24 * 3600))
    );
    let identity = auth.verify(&issued.token).unwrap();
    assert_eq!(
        (identity.subject.as_str(), identity.kind.as_str()),
        ("agent:main/claude", "agent")
    );
    assert_eq!(identity.scopes, ["deploy", "apps:read"]);
    let again = auth.issue(Caller::bearer(&owner), order.clone()).await;
    assert!(
        matches!(again, Err(RequestError::Conflict(_))),
        "one of a name"
    );

    let listed = auth.tokens(Caller::bearer(&dave)).await.unwrap();
    assert_eq!(listed.len(), 1);
    let record = &listed[0];
    assert_eq!(
        (record.by.as_deref(), record.revoked),
        (Some("user:dave"), false)
    );
    assert_eq!(record.scopes, ["deploy", "apps:read"]);
    assert_eq!(auth.tokens(Caller::bearer(&owner)).await.unwrap(), listed);
    assert_eq!(auth.tokens(Caller::bearer(&vera)).await.unwrap(), []);
    let jti = record.jti.clone();
    let not_hers = auth.revoke(Caller::bearer(&vera), &jti).await;
    assert!(matches!(not_hers, Err(RequestError::NotFound(_))));
    for nobodys in ["", "x", "../x", "0191e7c2-1111-7222-8333-444455556666"] {
        let unknown = auth.revoke(Caller::bearer(&owner), nobodys).await;
        assert!(
            matches!(unknown, Err(RequestError::NotFound(_))),
            "{nobodys}"
        );
    }
    assert!(platform.stop().await);

    // All of it is a replay; so is the end of it.
    let platform = Platform::start(dir.path(), NOW).await.unwrap();
    let auth = &platform.auth;
    assert_eq!(auth.tokens(Caller::bearer(&dave)).await.unwrap(), listed);
    auth.revoke(Caller::bearer(&dave), &jti).await.unwrap();
    auth.revoke(Caller::bearer(&dave), &jti).await.unwrap();
    assert_eq!(platform.count("token_revoked").await.unwrap(), 1);
    assert!(matches!(
        auth.verify(&issued.token),
        Err(AuthError::Invalid(_))
    ));
    assert!(auth.tokens(Caller::bearer(&dave)).await.unwrap()[0].revoked);
    assert!(platform.stop().await);
    let platform = Platform::start(dir.path(), NOW).await.unwrap();
    assert!(matches!(
        platform.auth.verify(&issued.token),
        Err(AuthError::Invalid(_))
    ));
    platform
        .auth
        .issue(Caller::bearer(&dave), order)
        .await
        .unwrap();
    assert!(platform.stop().await);
}

#[tokio::test]
async fn agents_end_with_the_role_of_whom_they_act_for() {
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(dir.path(), NOW).await.unwrap();
    let dave = platform.person("dave", Role::Developer).await.unwrap();
    let owner = platform.owner().await.unwrap();
    let auth = &platform.auth;
    let order = agent_order("claude", &["deploy"]);
    let agent = auth
        .issue(Caller::bearer(&dave), order)
        .await
        .unwrap()
        .token;
    let role = RoleRequest {
        user: "dave".to_owned(),
        role: Some(Role::Viewer),
    };
    auth.set_role(Caller::bearer(&owner), role).await.unwrap();
    assert!(matches!(auth.verify(&agent), Err(AuthError::Invalid(_))));
    assert!(
        invalid(&auth.tokens(Caller::bearer(&dave)).await),
        "nor do his sessions count"
    );
    assert!(platform.stop().await);
}

#[tokio::test]
async fn a_host_renews_with_its_key_and_not_without() {
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(dir.path(), NOW).await.unwrap();
    let by = coordinator(&platform).await.unwrap();
    let auth = &platform.auth;
    let checker = auth.checker();
    for audience in [None, Some("tabbify-log")] {
        let order = host_order(audience);
        let token = auth.issue(Caller::bearer(&by), order).await.unwrap().token;
        let aud = audience.unwrap_or("tabbify-api");
        let before = checker.check(&token, &["host"], aud, Some(KEY)).unwrap();
        assert_eq!(
            (before.subject.as_str(), before.tags[0].as_str()),
            ("host:box2", "gpu")
        );
        assert_eq!((before.key, before.ulas.len()), (Some(KEY), 1));
        for wrong in [None, Some(MeshKey([9; 32]))] {
            assert!(checker.check(&token, &["host"], aud, wrong).is_err());
            assert!(invalid(&auth.renew(proven(&token, wrong)).await));
        }
        platform.clock.advance(Duration::from_secs(1800));
        let renewed = auth.renew(proven(&token, Some(KEY))).await.unwrap();
        let after = checker
            .check(&renewed.token, &["host"], aud, Some(KEY))
            .unwrap();
        assert_eq!(after.issued, platform.clock.now());
        assert_ne!(after.jti, before.jti);
        let unchanged = |verified: tabbify_api::auth::Verified| {
            (
                verified.subject,
                verified.tenant,
                verified.tags,
                verified.ulas,
                verified.key,
                verified.scopes,
            )
        };
        assert_eq!(unchanged(after), unchanged(before));
    }
    // What people have is not renewed; they prove themselves again.
    let owner = platform.owner().await.unwrap();
    assert!(invalid(&auth.renew(Caller::bearer(&owner)).await));
    let join = platform.join_token().await.unwrap();
    assert!(invalid(&auth.renew(Caller::bearer(&join)).await));
    assert!(platform.stop().await);
}

/// Somebody who keeps a connection open hears of the revocation of what opened it, at once.
#[tokio::test]
async fn open_sessions_hear_of_a_revocation() {
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(dir.path(), NOW).await.unwrap();
    let another = platform.another().await.unwrap();
    let by = coordinator(&platform).await.unwrap();
    let auth = &platform.auth;
    let runner = |instance: u32| TokenOrder::Runner {
        app: AppId::from_uuid(tabbify_types::RequestId::mint().uuid()),
        instance: InstanceId(instance),
        tenant: Tenant::main(),
        ulas: Vec::new(),
        key: KEY,
        audience: None,
    };
    let checker = another.checker();
    let mut open = Vec::new();
    for instance in 1..=3 {
        let token = auth
            .issue(Caller::bearer(&by), runner(instance))
            .await
            .unwrap()
            .token;
        open.push(
            checker
                .check(&token, &["runner"], "tabbify-api", Some(KEY))
                .unwrap(),
        );
    }
    let seen = checker.changes();
    assert!(open.iter().all(|runner| checker.still(runner).is_ok()));

    let watching = checker.changed(seen);
    let subject = open[1].subject.clone();
    let request = SubjectRequest { subject };
    auth.end_sessions(Caller::bearer(&by), request)
        .await
        .unwrap();
    let heard = tokio::time::timeout(WATCHDOG, watching).await.unwrap();
    assert!(heard > seen);
    let still: Vec<bool> = open
        .iter()
        .map(|runner| checker.still(runner).is_ok())
        .collect();
    assert_eq!(still, [true, false, true]);

    // The same instance may get another one, in the same second even.
    let app = open[1]
        .subject
        .split(['/', ':'])
        .nth(1)
        .unwrap()
        .parse()
        .unwrap();
    let order = TokenOrder::Runner {
        app,
        instance: InstanceId(2),
        tenant: Tenant::main(),
        ulas: Vec::new(),
        key: KEY,
        audience: None,
    };
    let token = auth.issue(Caller::bearer(&by), order).await.unwrap().token;
    auth.checker()
        .check(&token, &["runner"], "tabbify-api", Some(KEY))
        .unwrap();
    platform.clock.advance(Duration::from_secs(1831));
    assert!(matches!(
        checker.still(&open[0]),
        Err(AuthError::Expired(_))
    ));
    let revoked: Vec<bool> = open.iter().map(|it| checker.is_revoked(it)).collect();
    assert_eq!(revoked, [false, true, false], "over or not");
    assert!(platform.stop().await);
}

#[tokio::test]
async fn signing_out_ends_what_was_open() {
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(dir.path(), NOW).await.unwrap();
    let auth = &platform.auth;
    let owner = platform.owner().await.unwrap();
    let me = auth.verify(&owner).unwrap();
    let app = AppId::mint();
    let ticket = auth.ticket(&me, app).await.unwrap().token;
    let session = auth.session(&ticket, app).await.unwrap().token;
    let unused = auth.ticket(&me, app).await.unwrap().token;
    auth.verify_session(&session, app).unwrap();
    let subject = me.subject.clone();
    auth.end_sessions(Caller::bearer(&owner), SubjectRequest { subject })
        .await
        .unwrap();
    for refused in [
        auth.verify(&owner).map(drop),
        auth.verify_session(&session, app).map(drop),
        auth.session(&unused, app).await.map(drop),
    ] {
        assert!(matches!(refused, Err(AuthError::Invalid(_))), "{refused:?}");
    }
    // Signing in again is not affected, at once; nor is signing out again, in the same second.
    for _ in 0..3 {
        let owner = platform.owner().await.unwrap();
        let subject = auth.verify(&owner).unwrap().subject;
        let request = SubjectRequest { subject };
        auth.end_sessions(Caller::bearer(&owner), request)
            .await
            .unwrap();
        assert!(matches!(auth.verify(&owner), Err(AuthError::Invalid(_))));
    }
    assert!(platform.stop().await);
}

/// A token says what it is; the log says the same of it and has no token in it.
#[tokio::test]
async fn whatever_is_issued_is_on_record_and_no_token_is() {
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(dir.path(), NOW).await.unwrap();
    let by = coordinator(&platform).await.unwrap();
    let owner = platform.owner().await.unwrap();
    let auth = &platform.auth;
    let mut tokens = vec![
        by.clone(),
        owner.clone(),
        platform.join_token().await.unwrap(),
    ];
    for (asker, order) in [
        (&owner, agent_order("claude", &["deploy"])),
        (&by, host_order(None)),
        (
            &by,
            TokenOrder::Service {
                role: "node".to_owned(),
                scopes: Vec::new(),
                key: Some(KEY),
                audience: None,
            },
        ),
    ] {
        tokens.push(
            auth.issue(Caller::bearer(asker), order)
                .await
                .unwrap()
                .token,
        );
    }
    tokens.push(platform.person("dave", Role::Viewer).await.unwrap());
    let history = platform.history().await.unwrap();
    let issued = history
        .iter()
        .filter(|event| event.kind == "token_issued")
        .count();
    assert!(issued >= tokens.len());
    for token in &tokens {
        let signature = token.rsplit('.').next().unwrap();
        let payload = token.split('.').nth(1).unwrap();
        assert!(history.iter().all(|event| {
            let data = event.data.get();
            !data.contains(signature) && !data.contains(payload)
        }));
    }
    assert!(platform.stop().await);
}
