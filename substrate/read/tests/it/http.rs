//! The service as any program sees it: bytes in, bytes out.

use std::time::Duration;

use tabbify_api::Problem;
use tabbify_api::read::{Listing, QueryError, ReadModel as _, ReadScope, Window};
use tabbify_types::{Position, Tenant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::history::served;
use crate::support::{Outcome, Running, Served, Wrong, app, append, open_log, scope, tenant};

/// Sends a request as it stands and reads the whole answer: head and body.
async fn send(served: &Served, request: &[u8]) -> Result<(String, String), Wrong> {
    let mut stream = served.stream().await?;
    stream.write_all(request).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    let answer = String::from_utf8(answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("an answer")?;
    Ok((head.to_owned(), body.to_owned()))
}

fn request(path: &str, token: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nhost: read\r\nconnection: close\r\nauthorization: Bearer {token}\r\n\r\n"
    )
}

fn status(head: &str) -> Result<u16, Wrong> {
    Ok(head.split(' ').nth(1).ok_or("a status")?.parse()?)
}

/// The status and the body of a `GET`.
pub(crate) async fn get(served: &Served, path: &str, token: &str) -> Result<(u16, String), Wrong> {
    let (head, body) = send(served, request(path, token).as_bytes()).await?;
    Ok((status(&head)?, body))
}

/// Two tenants with an app each, and a service.
async fn two_apps(dir: &std::path::Path) -> Result<(tabbify_log::Log, Running, Served), Wrong> {
    let (handle, log) = open_log(&dir.join("log"))?;
    append(&log, served_app("main", 1)).await?;
    append(&log, served_app("other", 2)).await?;
    let running = Running::start(&dir.join("read"), &log).await?;
    running.reach(log.head()).await?;
    let service = Served::start(&running.node, &running.tasks)?;
    Ok((handle, running, service))
}

fn served_app(slug: &str, number: u128) -> Vec<tabbify_types::NewEvent> {
    served(
        &tenant(slug),
        app(number),
        &format!("shop-{number}"),
        number,
    )
}

const ALL: &str = "platform";
const MAIN: &str = "tenant:main";

/// What is asked, by whom, and the code of the refusal. `{2}` is the app of the other tenant, `{9}` nobody's.
const MISTAKES: &[(&str, &str, &str)] = &[
    ("apps", "forged", "token_invalid"),
    ("apps", "old", "token_expired"),
    ("apps", "nothing", "forbidden"),
    ("apps?scope=platform", MAIN, "forbidden"),
    ("apps?scope=tenant:other", MAIN, "forbidden"),
    ("apps?scope=all", ALL, "bad_request"),
    ("", ALL, "not_found"),
    ("appsx", ALL, "not_found"),
    ("apps/shop", ALL, "bad_uuid"),
    ("apps/{2}/", ALL, "not_found"),
    ("apps/{2}/deploys", ALL, "not_found"),
    ("apps/{2}", MAIN, "unknown_app"),
    ("apps/{9}", ALL, "unknown_app"),
    ("apps?limit=0", ALL, "bad_request"),
    ("apps?limit=501", ALL, "bad_request"),
    ("apps?limit=x", ALL, "bad_request"),
    ("apps?limits=3", ALL, "bad_request"),
    ("apps?limit=3&limit=3", ALL, "bad_request"),
    ("apps?cursor=x", ALL, "bad_request"),
    ("deploys?app=shop", ALL, "bad_request"),
    ("approvals?status=maybe", ALL, "bad_request"),
    ("audit?segment=**.x", ALL, "bad_request"),
    ("audit?after=-1", ALL, "bad_request"),
    ("audit?text=%ff", ALL, "bad_request"),
    ("status?limit=3", ALL, "bad_request"),
    ("apps?min_position=99&wait_ms=1", ALL, "behind"),
    ("apps?min_position=x", ALL, "bad_request"),
];

#[tokio::test]
async fn every_mistake_has_its_code() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (_log, running, served) = two_apps(dir.path()).await?;
    let apps = request("/v1/read/apps", ALL);
    let long = format!("/v1/read/apps?name={}", "x".repeat(257));
    let mut cases = vec![
        (apps.replace("authorization", "x-other"), "token_missing"),
        (apps.replace("Bearer", "Basic"), "token_missing"),
        (apps.replace("GET", "POST"), "method_not_allowed"),
        (request(&long, ALL), "bad_request"),
    ];
    for (path, token, code) in MISTAKES {
        let path = path.replace("{2}", &app(2).to_string());
        let path = path.replace("{9}", &app(9).to_string());
        cases.push((request(&format!("/v1/read/{path}"), token), code));
    }
    for (request, code) in cases {
        let (head, body) = send(&served, request.as_bytes()).await?;
        let problem: Problem = serde_json::from_str(&body)?;
        let about = format!("{request}\n{head}\n{body}");
        assert_eq!(problem.code.as_str(), code, "{about}");
        assert_eq!(status(&head)?, problem.code.status(), "{about}");
        assert!(problem.request.is_some(), "{about}");
        assert!(head.contains("x-tabbify-position: 20\r\n"), "{about}");
    }
    running.stop().await
}

#[tokio::test]
async fn the_token_says_what_is_seen() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (_log, running, served) = two_apps(dir.path()).await?;
    for (token, query, count) in [
        ("platform", "", 2),
        ("platform", "?scope=platform", 2),
        ("platform", "?scope=tenant:main", 1),
        ("tenant:main", "", 1),
        ("tenant:main", "?scope=tenant:main", 1),
        ("tenant:nobody", "", 0),
    ] {
        let (code, body) = get(&served, &format!("/v1/read/apps{query}"), token).await?;
        let listing: Listing<serde_json::Value> = serde_json::from_str(&body)?;
        assert_eq!((code, listing.rows.len()), (200, count), "{token} {query}");
    }
    // A typed client that asks for more than its token gives is refused, not answered with less.
    let client = served.remote("tenant:main").await?;
    let mine = client.apps(scope("main"), None, Window::first(9)).await?;
    assert_eq!(mine.rows.len(), 1);
    for more in [ReadScope::Platform, scope("other")] {
        let refused = client.apps(more.clone(), None, Window::first(9)).await;
        assert!(matches!(refused, Err(QueryError::Refused { .. })), "{more}");
        let refused = client.app(more, app(2)).await;
        assert!(matches!(refused, Err(QueryError::Refused { .. })));
    }
    assert!(served.remote("forged").await.is_err());
    running.stop().await
}

#[tokio::test]
async fn a_writer_reads_what_it_wrote() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (log, running, served) = two_apps(dir.path()).await?;
    let writer = crate::support::client(&log, "user:owner");
    for number in 3..20_u128 {
        let events = served_app("main", number);
        let last = append(&writer, events).await?;
        let path = format!(
            "/v1/read/apps/{}?min_position={last}&wait_ms=30000",
            app(number)
        );
        let (head, body) = send(&served, request(&path, "tenant:main").as_bytes()).await?;
        assert_eq!(status(&head)?, 200, "{body}");
        let header = |name: &str| -> Option<u64> {
            let line = head.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().parse().ok()
        };
        assert!(header("x-tabbify-position:") >= Some(last.get()), "{head}");
        assert!(header("x-tabbify-head:") >= Some(last.get()), "{head}");
        assert!(header("x-tabbify-lag-ms:").is_some(), "{head}");
    }
    running.stop().await
}

#[tokio::test]
async fn bytes_that_are_no_request_end_the_connection_and_nothing_else() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (_log, running, served) = two_apps(dir.path()).await?;
    let head = "x".repeat(200_000);
    let hostile: [Vec<u8>; 5] = [
        b"\0\xff\xfe\r\n\r\n".to_vec(),
        b"GET /v1/read/apps HTTP/3\r\n\r\n".to_vec(),
        format!("GET /{head} HTTP/1.1\r\n\r\n").into_bytes(),
        format!("GET / HTTP/1.1\r\nx: {head}\r\n\r\n").into_bytes(),
        b"GET / HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n".to_vec(),
    ];
    for bytes in hostile {
        let mut stream = served.stream().await?;
        // The service may have closed it before everything was written.
        let _ = stream.write_all(&bytes).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert!(!answer.starts_with(b"HTTP/1.1 200"));
        assert_eq!(get(&served, "/v1/read/status", "platform").await?.0, 200);
    }
    running.stop().await
}

#[tokio::test]
async fn the_end_of_the_service_ends_a_wait_and_is_told() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (_log, running, served) = two_apps(dir.path()).await?;
    let client = served.remote("platform").await?;
    let never = Position(1_000_000);
    let waiting = client.wait_for(never, Duration::from_secs(300));
    let mut waiting = std::pin::pin!(waiting);
    let patience = Duration::from_millis(100);
    assert!(tokio::time::timeout(patience, &mut waiting).await.is_err());
    running.tasks.stop();
    let ended = tokio::time::timeout(crate::support::WATCHDOG, waiting).await?;
    assert!(
        matches!(ended, Err(QueryError::Unavailable { .. })),
        "{ended:?}"
    );
    let gone = client
        .apps(scope(Tenant::main().as_str()), None, Window::first(1))
        .await;
    assert!(
        matches!(gone, Err(QueryError::Unavailable { .. })),
        "{gone:?}"
    );
    running.stop().await
}
