//! Auth over a socket: the same answers as in process, and what no client of ours would send.

use std::path::PathBuf;
use std::sync::Arc;

use tabbify_api::auth::issue::{AdmitRequest, Caller};
use tabbify_api::auth::people::{LoginRequest, Role, SubjectRequest};
use tabbify_api::auth::{AuthError, Authority, Issuer, People, RequestError, Revocations as _};
use tabbify_auth::{Checker, Peer, RemoteAuthority, Service, UnixSocket};
use tabbify_process::{Clock, Importance, ManualClock};
use tabbify_types::{AppId, MeshKey};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::{
    Fallible, NOW, PASSWORD, Platform, WATCHDOG, agent_order, forbidden, invalid, secret,
};

/// Serves the platform's auth over a unix socket, and gives it as another process would have it.
async fn serve(platform: &Platform, directory: PathBuf) -> Fallible<RemoteAuthority> {
    let listener = tabbify_process::unix::bind(&directory, "auth.sock")?;
    let service = Service::new(platform.auth.clone(), &platform.tasks);
    platform.tasks.spawn(
        "auth service",
        Importance::Essential,
        service.serve_unix(listener),
    );
    let clock: Arc<dyn Clock> = Arc::<ManualClock>::clone(&platform.clock);
    let log = Arc::clone(&platform.client);
    let checker = Checker::start(log, None, clock, &platform.tasks).await?;
    let name = "auth.sock".to_owned();
    let socket = Arc::new(UnixSocket { directory, name });
    Ok(RemoteAuthority::new(checker, socket, &platform.tasks))
}

/// Why something was refused, where it must be.
fn why<T: std::fmt::Debug, E>(answer: Result<T, E>) -> Fallible<E> {
    match answer {
        Ok(value) => Err(format!("it was not refused: {value:?}").into()),
        Err(error) => Ok(error),
    }
}

/// What a role does with auth, in process or not.
async fn walk(platform: &Platform, auth: &(impl Authority + Issuer + People)) -> Fallible<()> {
    let proof = platform.proof(&tabbify_types::EventId::mint().to_string())?;
    let owner = auth.exchange(&proof).await?.token;
    assert_eq!(why(auth.exchange(&proof).await)?, AuthError::Replayed);
    let me = auth.verify(&owner)?;
    assert_eq!(me.subject, "user:owner");
    assert_eq!(auth.platform(), platform.auth.platform());
    assert_eq!(auth.jwks(), platform.auth.jwks());

    let app = AppId::mint();
    let ticket = auth.ticket(&me, app).await?.token;
    let session = auth.session(&ticket, app).await?.token;
    assert_eq!(why(auth.session(&ticket, app).await)?, AuthError::Replayed);
    assert_eq!(auth.verify_session(&session, app)?.subject, me.subject);

    let order = agent_order(&format!("a-{}", &app.to_string()[..8]), &["deploy"]);
    let agent = auth
        .issue(Caller::bearer(&owner), order.clone())
        .await?
        .token;
    let taken = why(auth.issue(Caller::bearer(&owner), order).await)?;
    assert!(matches!(taken, RequestError::Conflict(_)));
    let listed = auth.tokens(Caller::bearer(&owner)).await?;
    let mine = listed
        .iter()
        .find(|record| !record.revoked && record.kind == "agent");
    let jti = mine.ok_or("it is not listed")?.jti.clone();
    assert!(forbidden(
        &auth
            .issue(Caller::bearer(&agent), agent_order("b", &["deploy"]))
            .await
    ));
    auth.revoke(Caller::bearer(&owner), &jti).await?;
    let unknown = why(auth.revoke(Caller::bearer(&owner), "no-such-token").await)?;
    assert_eq!(unknown, RequestError::NotFound("such token".to_owned()));

    let by = platform.role("coordinator", &["auth:issue"]).await?;
    let token = platform.join_token().await?;
    let admit = |key: u8| AdmitRequest {
        token: token.clone(),
        key: MeshKey([key; 32]),
    };
    let first = auth.admit(Caller::bearer(&by), admit(1)).await?;
    assert_eq!(auth.admit(Caller::bearer(&by), admit(1)).await?, first);
    let second = why(auth.admit(Caller::bearer(&by), admit(2)).await)?;
    assert_eq!(second, RequestError::Caller(AuthError::Replayed));
    let renewed = auth.renew(Caller::bearer(&by)).await?;
    auth.tokens(Caller::bearer(&renewed.token)).await?;

    let login = |password: &str| LoginRequest {
        user: "anna".to_owned(),
        password: secret(password),
        tenant: None,
    };
    let session = auth.login(Caller::bearer(""), login(PASSWORD)).await?.token;
    assert!(invalid(
        &auth
            .login(Caller::bearer(""), login("a wrong password"))
            .await
    ));
    let subject = "user:anna".to_owned();
    auth.end_sessions(Caller::bearer(&session), SubjectRequest { subject })
        .await?;
    assert!(invalid(&auth.tokens(Caller::bearer(&session)).await));
    Ok(())
}

#[tokio::test]
async fn another_process_gets_the_same_answers() {
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(dir.path(), NOW).await.unwrap();
    platform.person("anna", Role::Viewer).await.unwrap();
    let remote = serve(&platform, dir.path().to_owned()).await.unwrap();
    walk(&platform, &platform.auth).await.unwrap();
    walk(&platform, &remote).await.unwrap();
    assert!(remote.checker().changes() > 0);
    assert!(platform.stop().await);
}

#[tokio::test]
async fn tokens_are_checked_while_auth_is_away() {
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(dir.path(), NOW).await.unwrap();
    let clock: Arc<dyn Clock> = Arc::<ManualClock>::clone(&platform.clock);
    let log = Arc::clone(&platform.client);
    let checker = Checker::start(log, None, clock, &platform.tasks)
        .await
        .unwrap();
    let directory = dir.path().to_owned();
    let name = "nobody.sock".to_owned();
    let socket = Arc::new(UnixSocket { directory, name });
    let remote = RemoteAuthority::new(checker, socket, &platform.tasks);
    let owner = platform.owner().await.unwrap();
    remote.verify(&owner).unwrap();
    let proof = platform.proof("away").unwrap();
    let refused = remote.exchange(&proof).await.unwrap_err();
    assert!(matches!(refused, AuthError::Unavailable(_)), "{refused}");
    assert!(platform.stop().await);
}

/// One connection by hand: what is written, and all that is answered.
async fn by_hand(platform: &Platform, peer: Peer, text: &[u8]) -> Fallible<String> {
    let (mut mine, theirs) = tokio::io::duplex(256 * 1024);
    let service = Service::new(platform.auth.clone(), &platform.tasks);
    let serving = service.connection(theirs, peer);
    platform
        .tasks
        .spawn("auth connection", Importance::Detached, serving);
    mine.write_all(text).await?;
    let mut answer = Vec::new();
    let reading = mine.read_to_end(&mut answer);
    tokio::time::timeout(WATCHDOG, reading).await??;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn request(method: &str, path: &str, headers: &str, body: &str) -> Vec<u8> {
    let len = body.len();
    format!(
        "{method} {path} HTTP/1.1\r\nhost: auth\r\nconnection: close\r\ncontent-length: {len}\r\n{headers}\r\n{body}"
    )
    .into_bytes()
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "a table reads best whole")]
async fn what_no_client_of_ours_sends() {
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(dir.path(), NOW).await.unwrap();
    let owner = platform.owner().await.unwrap();
    let bearer = format!("authorization: Bearer {owner}\r\n");
    let big = format!(r#"{{"proof":"{}"}}"#, "a".repeat(40_000));
    let app = AppId::mint();
    let ticket = format!(
        r#"{{"identity":{{"subject":"user:owner","tenant":"main","kind":"user","scopes":["*"],"expires":"2030-01-01T00:00:00Z"}},"app":"{app}"}}"#
    );
    let password = r#"{"user":"anna","password":"hunter2hunter2","extra":1}"#;
    let cases: Vec<(&str, Vec<u8>, u16, &str)> = vec![
        (
            "no such path",
            request("GET", "/", "", ""),
            404,
            "not_found",
        ),
        (
            "no such path below",
            request("GET", "/v1/auth/tokens/x/y", &bearer, ""),
            405,
            "method_not_allowed",
        ),
        (
            "wrong method",
            request("GET", "/v1/auth/login", "", ""),
            405,
            "method_not_allowed",
        ),
        (
            "no token",
            request("GET", "/v1/auth/tokens", "", ""),
            401,
            "token_missing",
        ),
        (
            "basic",
            request(
                "GET",
                "/v1/auth/tokens",
                "authorization: Basic YTpi\r\n",
                "",
            ),
            401,
            "token_missing",
        ),
        (
            "garbage",
            request("GET", "/v1/auth/tokens", "authorization: Bearer x\r\n", ""),
            401,
            "token_invalid",
        ),
        (
            "two tokens",
            request("GET", "/v1/auth/tokens", &bearer.repeat(2), ""),
            400,
            "bad_request",
        ),
        (
            "no body",
            request("POST", "/v1/auth/token", "", ""),
            400,
            "bad_request",
        ),
        (
            "not JSON",
            request("POST", "/v1/auth/token", "", "proof=x"),
            400,
            "bad_request",
        ),
        (
            "a list",
            request("POST", "/v1/auth/token", "", "[]"),
            400,
            "bad_request",
        ),
        (
            "deep",
            request("POST", "/v1/auth/token", "", &"[".repeat(20_000)),
            400,
            "bad_request",
        ),
        (
            "too long",
            request("POST", "/v1/auth/token", "", &big),
            413,
            "too_large",
        ),
        (
            "unknown field",
            request("POST", "/v1/auth/login", "", password),
            400,
            "bad_request",
        ),
        (
            "a stranger's ticket",
            request("POST", "/v1/auth/tickets", &bearer, &ticket),
            403,
            "forbidden",
        ),
        (
            "a forged session",
            request(
                "POST",
                "/v1/auth/sessions",
                "",
                &format!(r#"{{"ticket":"{owner}","app":"{app}"}}"#),
            ),
            401,
            "token_invalid",
        ),
        (
            "an order of nothing",
            request("POST", "/v1/auth/tokens", &bearer, r#"{"kind":"root"}"#),
            400,
            "bad_request",
        ),
    ];
    for (what, text, status, code) in cases {
        let answer = by_hand(&platform, Peer::at("192.0.2.7"), &text)
            .await
            .unwrap();
        let expected = format!("HTTP/1.1 {status} ");
        assert!(answer.starts_with(&expected), "{what}: {answer}");
        assert!(
            answer.contains(&format!("\"code\":\"{code}\"")),
            "{what}: {answer}"
        );
        assert!(
            answer.contains("application/problem+json") && answer.contains("no-store"),
            "{what}"
        );
        assert_eq!(answer.contains("www-authenticate"), status == 401, "{what}");
        assert!(
            !answer.contains("hunter2"),
            "a password is repeated: {answer}"
        );
    }
    // The same ticket for the node itself.
    let asked = request("POST", "/v1/auth/tickets", "", &ticket);
    let answer = by_hand(&platform, Peer::role(), &asked).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    // Bytes that are no request, and a head that does not end.
    for garbage in [
        &b"\x16\x03\x01\x02\x00"[..],
        b"\r\n\r\n\r\n",
        &[b'a'; 40_000],
    ] {
        let mut garbage = garbage.to_vec();
        garbage.extend_from_slice(b"\r\n\r\n");
        let answer = by_hand(&platform, Peer::at("192.0.2.7"), &garbage)
            .await
            .unwrap();
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 4"),
            "{answer}"
        );
    }
    assert!(platform.stop().await);
}

#[tokio::test]
async fn failures_are_limited_by_source() {
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(dir.path(), NOW).await.unwrap();
    let ask = |peer: Peer, headers: &str| {
        let text = request("POST", "/v1/auth/token", headers, r#"{"proof":"a.b.c"}"#);
        let platform = &platform;
        async move { by_hand(platform, peer, &text).await.unwrap() }
    };
    let mut limited = 0;
    for _ in 0..30 {
        let answer = ask(Peer::at("192.0.2.7"), "").await;
        limited +=
            usize::from(answer.starts_with("HTTP/1.1 429 ") && answer.contains("retry-after"));
    }
    assert_eq!(limited, 10);
    assert!(
        ask(Peer::at("192.0.2.8"), "")
            .await
            .starts_with("HTTP/1.1 401 ")
    );
    // A stranger does not get another budget by saying that they are somebody else; a role does.
    let said = "x-tabbify-source: 203.0.113.1\r\n";
    assert!(
        ask(Peer::at("192.0.2.7"), said)
            .await
            .starts_with("HTTP/1.1 429 ")
    );
    assert!(ask(Peer::role(), said).await.starts_with("HTTP/1.1 401 "));
    // And whoever has a valid proof is let in.
    let proof = platform.proof("good").unwrap();
    let body = format!(r#"{{"proof":"{proof}"}}"#);
    let text = request("POST", "/v1/auth/token", "", &body);
    let answer = by_hand(&platform, Peer::at("192.0.2.7"), &text)
        .await
        .unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(platform.stop().await);
}

#[tokio::test]
async fn the_key_that_a_connection_proved_counts() {
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(dir.path(), NOW).await.unwrap();
    let by = platform.role("coordinator", &["auth:issue"]).await.unwrap();
    let order = tabbify_api::auth::issue::TokenOrder::Host {
        host: "box2".parse().unwrap(),
        tenant: tabbify_types::Tenant::system(),
        tags: Vec::new(),
        ulas: Vec::new(),
        key: MeshKey([2; 32]),
        audience: None,
    };
    let host = platform
        .auth
        .issue(Caller::bearer(&by), order)
        .await
        .unwrap()
        .token;
    let headers = format!("authorization: Bearer {host}\r\n");
    let text = request("POST", "/v1/auth/renew", &headers, "");
    for (proven, status) in [
        (None, 401),
        (Some(MeshKey([9; 32])), 401),
        (Some(MeshKey([2; 32])), 200),
    ] {
        let peer = Peer {
            proven,
            ..Peer::at("fd5a:1f00:1:2::1")
        };
        let answer = by_hand(&platform, peer, &text).await.unwrap();
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{proven:?}: {answer}"
        );
    }
    let asked = |key: Option<MeshKey>| {
        let key = key.map_or(String::new(), |key| format!(r#","key":"{key}""#));
        request(
            "POST",
            "/v1/auth/validate",
            "",
            &format!(r#"{{"token":"{host}"{key}}}"#),
        )
    };
    for (key, status) in [(None, 401), (Some(MeshKey([2; 32])), 200)] {
        let answer = by_hand(&platform, Peer::at("192.0.2.7"), &asked(key))
            .await
            .unwrap();
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{answer}"
        );
    }
    assert!(platform.stop().await);
}
