//! People with passwords: invited once, signed in, limited, changed, erased.

use std::time::Duration;

use tabbify_api::auth::issue::Caller;
use tabbify_api::auth::people::{
    AcceptRequest, InviteRequest, LoginRequest, PasswordRequest, Role, RoleRequest, SubjectRequest,
};
use tabbify_api::auth::{
    AuthError, Authority as _, IssuedToken, Issuer as _, People as _, RequestError,
};
use tabbify_auth::{Auth, Cost};
use tabbify_types::event::Event;
use tabbify_types::event::v1::{RoleChanged, SignInsRefused, TenantCreated};
use tabbify_types::{NewEvent, Segment, Tenant};

use crate::support::{Fallible, NOW, PASSWORD, Platform, forbidden, invalid, secret};

type Answer = Result<IssuedToken, RequestError>;

fn is_limited(answer: &Answer) -> bool {
    matches!(answer, Err(RequestError::Caller(AuthError::RateLimited)))
}

async fn login_from(auth: &Auth, source: &str, user: &str, password: &str) -> Answer {
    let request = LoginRequest {
        user: user.to_owned(),
        password: secret(password),
        tenant: None,
    };
    let caller = Caller {
        source,
        ..Caller::bearer("")
    };
    auth.login(caller, request).await
}

async fn login(auth: &Auth, user: &str, password: &str) -> Answer {
    login_from(auth, "192.0.2.1", user, password).await
}

async fn invited(platform: &Platform, user: &str) -> Fallible<String> {
    let owner = platform.owner().await?;
    let request = InviteRequest {
        user: user.to_owned(),
        role: Role::Developer,
        email: Some(secret("anna@example.com")),
    };
    Ok(platform
        .auth
        .invite(Caller::bearer(&owner), request)
        .await?
        .invitation)
}

async fn accept(auth: &Auth, invitation: &str, password: &str) -> Answer {
    let request = AcceptRequest {
        invitation: secret(invitation),
        password: secret(password),
    };
    auth.accept(Caller::bearer(""), request).await
}

#[tokio::test]
async fn invited_registered_signed_in() {
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(dir.path(), NOW).await.unwrap();
    let auth = &platform.auth;
    let invitation = invited(&platform, "anna").await.unwrap();
    assert!(invitation.starts_with("tbi_"));
    assert!(invalid(&login(auth, "anna", PASSWORD).await), "not yet");
    for plain in ["short", "aaaaaaaaaaaaaaaaaaa"] {
        let answer = accept(auth, &invitation, plain).await;
        assert!(
            matches!(answer, Err(RequestError::BadRequest(_))),
            "{answer:?}"
        );
    }
    let session = accept(auth, &invitation, PASSWORD).await.unwrap();
    assert_eq!(session.expires, NOW.plus(Duration::from_secs(12 * 3600)));
    let identity = auth.checker().console(&session.token).unwrap();
    assert_eq!(
        (identity.subject.as_str(), identity.tenant.as_str()),
        ("user:anna", "main")
    );
    assert!(identity.allows("deploy") && !identity.allows("people:write"));
    // The console's session is for the console.
    assert!(auth.verify(&session.token).is_err());
    assert!(invalid(&accept(auth, &invitation, PASSWORD).await), "once");

    for user in ["anna", "user:anna"] {
        login(auth, user, PASSWORD).await.unwrap();
    }
    for (user, password) in [
        ("anna", "correct horse batterz"),
        ("anna", ""),
        ("bob", PASSWORD),
    ] {
        assert!(invalid(&login(auth, user, password).await), "{user}");
    }
    // Neither the password, nor its hash, nor the address is in the log in clear.
    let history = platform.history().await.unwrap();
    for event in &history {
        let data = event.data.get();
        for clear in [PASSWORD, "argon2", "example.com", &invitation] {
            assert!(!data.contains(clear), "{}", event.kind);
        }
    }
    assert!(platform.stop().await);

    let platform = Platform::start(dir.path(), NOW).await.unwrap();
    login(&platform.auth, "anna", PASSWORD).await.unwrap();
    assert!(
        invalid(&accept(&platform.auth, &invitation, PASSWORD).await),
        "once, for ever"
    );
    assert!(platform.stop().await);
}

#[tokio::test]
async fn an_invitation_is_replaced_withdrawn_and_ends() {
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(dir.path(), NOW).await.unwrap();
    let auth = &platform.auth;
    let first = invited(&platform, "anna").await.unwrap();
    let second = invited(&platform, "anna").await.unwrap();
    assert!(invalid(&accept(auth, &first, PASSWORD).await));
    let owner = platform.owner().await.unwrap();
    for garbage in ["", "tbi_", "tbi_a.b.c", &owner, &second[..second.len() - 1]] {
        assert!(invalid(&accept(auth, garbage, PASSWORD).await), "{garbage}");
    }
    platform.clock.advance(Duration::from_secs(8 * 24 * 3600));
    assert!(invalid(&accept(auth, &second, PASSWORD).await), "ended");
    let third = invited(&platform, "anna").await.unwrap();
    // Of many who have it, one registers.
    let all = (0..8).map(|_| accept(auth, &third, PASSWORD));
    let answers = futures_util::future::join_all(all).await;
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 1);
    assert_eq!(platform.count("password_changed").await.unwrap(), 1);
    let owner = platform.owner().await.unwrap();
    for name in ["anna", "owner"] {
        let request = InviteRequest {
            user: name.to_owned(),
            role: Role::Viewer,
            email: None,
        };
        let again = auth.invite(Caller::bearer(&owner), request).await;
        assert!(matches!(again, Err(RequestError::Conflict(_))), "{name}");
    }
    for name in [
        "",
        "Anna",
        "anna bell",
        "-anna",
        "user:user:a",
        "a/b",
        "a\n",
        &"a".repeat(64),
    ] {
        let request = InviteRequest {
            user: name.to_owned(),
            role: Role::Viewer,
            email: None,
        };
        let refused = auth.invite(Caller::bearer(&owner), request).await;
        assert!(
            matches!(refused, Err(RequestError::BadRequest(_))),
            "{name:?}"
        );
    }
    assert!(platform.stop().await);
}

#[tokio::test]
async fn a_new_password_ends_what_the_old_one_opened() {
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(dir.path(), NOW).await.unwrap();
    let auth = &platform.auth;
    let session = platform.person("anna", Role::Viewer).await.unwrap();
    let change = |user: &str, current: Option<&str>, proof: Option<String>, new: &str| {
        let request = PasswordRequest {
            user: user.to_owned(),
            current: current.map(secret),
            proof,
            new: secret(new),
        };
        async move { auth.change_password(Caller::bearer(""), request).await }
    };
    let new = "battery staple horse";
    assert!(invalid(
        &change("anna", Some("wrong wrong wrong"), None, new).await
    ));
    assert!(matches!(
        change("anna", None, None, new).await,
        Err(RequestError::BadRequest(_))
    ));
    assert!(matches!(
        change("anna", Some(PASSWORD), None, "short").await,
        Err(RequestError::BadRequest(_))
    ));
    auth.checker().console(&session).unwrap();
    change("anna", Some(PASSWORD), None, new).await.unwrap();
    assert!(auth.checker().console(&session).is_err());
    assert!(invalid(&login(auth, "anna", PASSWORD).await));
    let fresh = login(auth, "anna", new).await.unwrap();
    auth.checker().console(&fresh.token).unwrap();

    // Whoever signs in with a key gets a password by it; nobody gets another's.
    let (proof, theirs) = (
        platform.proof("claim").unwrap(),
        platform.proof("theft").unwrap(),
    );
    assert!(invalid(&login(auth, "owner", new).await));
    assert!(invalid(&change("anna", None, Some(theirs), new).await));
    change("owner", None, Some(proof.clone()), new)
        .await
        .unwrap();
    assert_eq!(
        change("owner", None, Some(proof), new).await,
        Err(RequestError::Caller(AuthError::Replayed))
    );
    let session = login(auth, "owner", new).await.unwrap();
    assert!(
        auth.checker()
            .console(&session.token)
            .unwrap()
            .allows("people:write")
    );
    assert!(platform.stop().await);
}

#[tokio::test]
async fn guessing_is_slow_and_seen() {
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(dir.path(), NOW).await.unwrap();
    let auth = &platform.auth;
    platform.person("anna", Role::Viewer).await.unwrap();
    auth.write_refusals().await;
    let before = platform.count("sign_ins_refused").await.unwrap();
    let mut answers = Vec::new();
    for _ in 0..40 {
        answers.push(login_from(auth, "198.51.100.9", "anna", "a wrong password").await);
    }
    let limited = |answers: &[Answer]| answers.iter().filter(|answer| is_limited(answer)).count();
    assert_eq!(limited(&answers), 35, "five tries");
    // From elsewhere she signs in as ever, and the source has a budget for other names.
    login(auth, "anna", PASSWORD).await.unwrap();
    assert!(invalid(
        &login_from(auth, "198.51.100.9", "bob", "another password").await
    ));
    // The right password too waits its turn there, so that guessing it is not seen by the answer.
    let waits = login_from(auth, "198.51.100.9", "anna", PASSWORD).await;
    assert!(is_limited(&waits), "{waits:?}");
    platform.clock.advance(Duration::from_secs(30));
    login_from(auth, "198.51.100.9", "anna", PASSWORD)
        .await
        .unwrap();

    // A thousand addresses have fifty tries between them.
    let mut answers = Vec::new();
    for n in 0..200 {
        let source = format!("2001:db8::{n:x}");
        answers.push(login_from(auth, &source, "anna", "a wrong password").await);
    }
    let looked_at = answers.len() - limited(&answers);
    assert!((45..=53).contains(&looked_at), "{looked_at}");

    auth.write_refusals().await;
    let history = platform.history().await.unwrap();
    let refused: Vec<SignInsRefused> = history
        .iter()
        .filter_map(|event| match event.event().unwrap() {
            Some(Event::SignInsRefused(refused)) => Some(refused),
            _ => None,
        })
        .skip(before)
        .collect();
    assert_eq!(refused.len(), 2, "{refused:?}");
    let annas = refused
        .iter()
        .find(|event| event.subject.is_some())
        .unwrap();
    assert_eq!(annas.subject.as_deref(), Some("user:anna"));
    assert_eq!(annas.count, 40 + 1 + 200);
    let strangers = refused
        .iter()
        .find(|event| event.subject.is_none())
        .unwrap();
    assert_eq!((strangers.count, strangers.how.as_str()), (1, "password"));
    auth.write_refusals().await;
    assert_eq!(
        platform.count("sign_ins_refused").await.unwrap(),
        before + 2,
        "and no more"
    );
    assert!(platform.stop().await);
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "one story, told in order")]
async fn somebody_is_something_else_in_each_tenant() {
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(dir.path(), NOW).await.unwrap();
    let auth = &platform.auth;
    let other: Tenant = "other".parse().unwrap();
    platform.person("anna", Role::Viewer).await.unwrap();
    for event in [
        Event::from(TenantCreated {
            tenant: other.clone(),
        }),
        Event::from(RoleChanged {
            user: "user:anna".to_owned(),
            tenant: other.clone(),
            role: Some("owner".to_owned()),
        }),
    ] {
        let event = NewEvent::new(Segment::auth(), "user:anna", &event).unwrap();
        let batch = tabbify_api::log::Append::of(vec![event]);
        platform.client.append(batch).await.unwrap();
    }
    let there = |tenant: &str| LoginRequest {
        user: "anna".to_owned(),
        password: secret(PASSWORD),
        tenant: Some(tenant.parse().expect("INVARIANT: it is a name")),
    };
    let session = |tenant: &'static str| auth.login(Caller::bearer(""), there(tenant));
    let mut at_other = None;
    for _ in 0..100 {
        // The event of her role is on its way.
        at_other = session("other").await.ok();
        if at_other.is_some() {
            break;
        }
        platform.clock.advance(Duration::from_secs(60));
        tokio::task::yield_now().await;
    }
    let at_other = at_other.unwrap().token;
    let at_main = session("main").await.unwrap().token;
    let console = |token: &str| auth.checker().console(token).unwrap();
    assert!(!console(&at_main).allows("deploy"));
    assert!(console(&at_other).allows("people:write"));
    // In a tenant where she is nobody she is told what a stranger is told.
    let nowhere = session("nowhere").await;
    let wrong = login(auth, "anna", "a wrong password").await;
    assert_eq!(nowhere.unwrap_err(), wrong.unwrap_err());

    // The owner of one tenant invites there, and says nothing about people of another.
    let request = InviteRequest {
        user: "zoe".to_owned(),
        role: Role::Owner,
        email: None,
    };
    let invited = auth
        .invite(Caller::bearer(&at_other), request)
        .await
        .unwrap();
    let zoe = accept(auth, &invited.invitation, PASSWORD)
        .await
        .unwrap()
        .token;
    assert_eq!(console(&zoe).tenant, other);
    platform.person("dave", Role::Developer).await.unwrap();
    for (subject, found) in [
        ("user:dave", false),
        ("user:owner", false),
        ("user:zoe", true),
    ] {
        let request = SubjectRequest {
            subject: subject.to_owned(),
        };
        let ended = auth
            .end_sessions(Caller::bearer(&at_other), request.clone())
            .await;
        assert_eq!(ended.is_ok(), found, "{subject}");
        let erased = auth.erase(Caller::bearer(&at_other), request).await;
        assert_eq!(erased.is_ok(), found, "{subject}");
    }
    let mut machine = crate::support::join_order();
    if let tabbify_api::auth::issue::TokenOrder::Join { tags, .. } = &mut machine {
        // Tags are the platform owner's to give.
        tags.clear();
    }
    let joined = auth
        .issue(Caller::bearer(&at_other), machine.clone())
        .await
        .unwrap();
    assert!(joined.token.starts_with("tbj_"), "for her own tenant");
    let mut system = machine;
    if let tabbify_api::auth::issue::TokenOrder::Join { tenant, .. } = &mut system {
        *tenant = Some(Tenant::system());
    }
    assert!(forbidden(
        &auth.issue(Caller::bearer(&at_other), system).await
    ));
    assert!(platform.stop().await);
}

#[tokio::test]
async fn who_is_erased_cannot_be_read_any_more() {
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(dir.path(), NOW).await.unwrap();
    let auth = &platform.auth;
    platform.person("anna", Role::Viewer).await.unwrap();
    let keys = dir.path().join("keys/subjects");
    let left = || std::fs::read_dir(&keys).unwrap().count();
    assert_eq!(left(), 1);
    let kept: Vec<_> = std::fs::read_dir(&keys)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    let copy = std::fs::read(&kept[0]).unwrap();
    let owner = platform.owner().await.unwrap();
    let request = SubjectRequest {
        subject: "user:anna".to_owned(),
    };
    auth.erase(Caller::bearer(&owner), request).await.unwrap();
    assert_eq!(left(), 0);
    assert!(invalid(&login(auth, "anna", PASSWORD).await));
    assert!(platform.stop().await);

    // A key that comes back, as from a crash between the event and the deletion, goes again.
    std::fs::write(&kept[0], copy).unwrap();
    let platform = Platform::start(dir.path(), NOW).await.unwrap();
    assert_eq!(left(), 0);
    assert!(invalid(&login(&platform.auth, "anna", PASSWORD).await));
    assert!(platform.stop().await);
}

#[tokio::test]
async fn a_role_is_taken_away() {
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(dir.path(), NOW).await.unwrap();
    let auth = &platform.auth;
    platform.person("anna", Role::Developer).await.unwrap();
    let owner = platform.owner().await.unwrap();
    let set = |role: Option<Role>| {
        let request = RoleRequest {
            user: "anna".to_owned(),
            role,
        };
        auth.set_role(Caller::bearer(&owner), request)
    };
    set(None).await.unwrap();
    assert!(invalid(&login(auth, "anna", PASSWORD).await));
    set(Some(Role::Viewer)).await.unwrap();
    login(auth, "anna", PASSWORD).await.unwrap();
    let nobody = RoleRequest {
        user: "nobody".to_owned(),
        role: None,
    };
    let nobody = auth.set_role(Caller::bearer(&owner), nobody).await;
    assert!(matches!(nobody, Err(RequestError::NotFound(_))));
    assert!(platform.stop().await);
}

/// What everybody else here leaves out for speed.
#[test]
fn hashes_cost_what_rfc_9106_recommends() {
    let dir = tempfile::tempdir().unwrap();
    let keys = tabbify_auth::Keys::open(&dir.path().join("keys")).unwrap();
    let config = tabbify_auth::Config::of(&keys);
    assert_eq!(config.password, Cost::RECOMMENDED);
    let Cost {
        memory_kib,
        passes,
        lanes,
    } = config.password;
    assert_eq!((memory_kib, passes, lanes), (65_536, 3, 4));
}
