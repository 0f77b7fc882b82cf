//! The service as any program sees it: bytes in, bytes out.

use tabbify_api::Problem;
use tabbify_api::log::{Append, BODY_LEN_MAX, Filter};
use tabbify_types::Position;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};

use crate::conformance::{OnSocket, Served};
use crate::support::{Outcome, Wrong, event, read_all, scope, sized};

const APPS: &str = "tenant_main.apps";

async fn served(dir: &std::path::Path) -> Result<(OnSocket, String), Wrong> {
    let served = OnSocket::open(dir, 1 << 16).await?;
    let token = served.token(scope("user:owner", &["tenant_main.*"], &["tenant_main.*"])?);
    Ok((served, token))
}

/// Sends a request as it stands and reads the whole answer: status and body.
async fn send(served: &OnSocket, request: &str) -> Result<(u16, String), Wrong> {
    let mut stream = served.stream().await?;
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("an answer")?;
    let status = head.split(' ').nth(1).ok_or("a status")?.parse()?;
    Ok((status, body.to_owned()))
}

fn get(path: &str, token: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nhost: log\r\nconnection: close\r\nauthorization: Bearer {token}\r\n\r\n"
    )
}

fn post(path: &str, token: &str, body: &str) -> String {
    let len = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nhost: log\r\nconnection: close\r\nauthorization: Bearer {token}\r\n\
         content-length: {len}\r\n\r\n{body}"
    )
}

fn batch(extra: &str) -> String {
    format!(
        "{{\"events\":[{{\"id\":\"0191e7c2-1111-7222-8333-444455556666\",\"segment\":\"{APPS}\",\
         \"key\":\"shop\",\"type\":\"thing_happened\",\"version\":1,\"data\":{{}}{extra}}}]}}"
    )
}

#[tokio::test]
async fn every_mistake_has_its_code() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (served, token) = served(dir.path()).await?;
    let t = &token;
    let append = "/v1/log/append";
    let glob = batch("").replace(APPS, "tenant_*.apps");
    let elsewhere = batch("").replace(APPS, "platform");
    let announced = format!(
        "POST {append} HTTP/1.1\r\nhost: log\r\nauthorization: Bearer {t}\r\n\
         connection: close\r\ncontent-length: {}\r\n\r\n",
        BODY_LEN_MAX + 1
    );
    let nobody = get("/v1/log/head", t).replace("authorization", "x-other");
    let one = "/v1/log/consumers/one";
    let poll = "{\"member\":\"m\",\"max\":1}";
    let cases = [
        (nobody, 401, "token_missing"),
        (
            get("/v1/log/head", t).replace("Bearer", "Basic"),
            401,
            "token_missing",
        ),
        (get("/v1/log/head", "token-99"), 401, "token_invalid"),
        (get("/v1/log", t), 404, "not_found"),
        (get("/v1/log/session", t), 400, "bad_request"),
        (get("/v1/log/verify", t), 403, "forbidden"),
        (get("/v1/log/consumersx", t), 404, "not_found"),
        (get(append, t), 405, "method_not_allowed"),
        (post("/v1/log/head", t, ""), 405, "method_not_allowed"),
        (post(append, t, "{"), 400, "bad_json"),
        (post(append, t, "{\"event\":[]}"), 400, "bad_request"),
        (post(append, t, &glob), 400, "glob_in_append"),
        // The actor is the bearer, never what a body says.
        (
            post(append, t, &batch(",\"actor\":\"root\"")),
            400,
            "bad_request",
        ),
        (post(append, t, "{\"events\":[]}"), 422, "invalid_batch"),
        (post(append, t, &elsewhere), 403, "forbidden"),
        (announced, 413, "too_large"),
        (get("/v1/log/events?segments=x", t), 400, "bad_request"),
        (get("/v1/log/events?after=99", t), 416, "beyond_head"),
        (get("/v1/log/events?segment=**", t), 403, "forbidden"),
        (get("/v1/log/subscribe?after=99", t), 416, "beyond_head"),
        (
            get("/v1/log/subscribe", t).replace("connection", "last-event-id: x\r\nconnection"),
            400,
            "bad_request",
        ),
        (get("/v1/log/consumers/A", t), 400, "bad_request"),
        (get(one, t), 404, "unknown_consumer"),
        (
            post(&format!("{one}/next"), t, poll),
            404,
            "unknown_consumer",
        ),
        (post(&format!("{one}/other"), t, poll), 404, "not_found"),
        (post(one, t, "{}"), 405, "method_not_allowed"),
    ];
    for (request, status, code) in cases {
        let (answered, body) = send(&served, &request).await?;
        let problem: Problem = serde_json::from_str(&body)?;
        let about = format!("{request}\n{body}");
        assert_eq!((answered, problem.code.as_str()), (status, code), "{about}");
        assert!(
            problem.request.is_some() && problem.status == status,
            "{about}"
        );
    }
    assert_eq!(served.head(), Position(0));
    Ok(())
}

#[tokio::test]
async fn a_page_is_lines_and_a_conflict_says_the_revision() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (served, token) = served(dir.path()).await?;
    let (status, body) = send(&served, &post("/v1/log/append", &token, &batch(""))).await?;
    assert_eq!(
        (status, &*body),
        (200, "{\"first\":1,\"last\":1,\"revs\":[1]}")
    );
    let expecting = batch("").replace("444455556666", "444455556667").replace(
        "]}",
        &format!(
            "],\"expect\":[{{\"segment\":\"{APPS}\",\"key\":\"shop\",\"expect\":\"none\"}}]}}"
        ),
    );
    let (status, body) = send(&served, &post("/v1/log/append", &token, &expecting)).await?;
    let problem: serde_json::Value = serde_json::from_str(&body)?;
    assert_eq!((status, &problem["code"]), (409, &"conflict".into()));
    assert_eq!(problem["log"]["conflict"]["rev"], 1, "{body}");

    let writer = served.client(scope("w", &["**"], &["**"])?).await?;
    writer
        .append(Append::of(vec![
            event("platform", "x", "{}"),
            event(APPS, "b", "{\n\"a\": 1\r}"),
        ]))
        .await?;
    let (status, body) = send(
        &served,
        &get("/v1/log/events?segment=tenant_main.*", &token),
    )
    .await?;
    assert_eq!(status, 200);
    let lines: Vec<&str> = body.lines().filter(|line| line.starts_with('{')).collect();
    assert_eq!(lines.len(), 2, "{body}");
    let value: serde_json::Value = serde_json::from_str(lines[0])?;
    assert_eq!(
        (&value["actor"], &value["position"]),
        (&"user:owner".into(), &1.into())
    );
    let value: serde_json::Value = serde_json::from_str(lines[1])?;
    assert_eq!(
        (&value["data"]["a"], &value["verbatim"]),
        (&1.into(), &"{\n\"a\": 1\r}".into())
    );
    Ok(())
}

#[tokio::test]
async fn a_browser_resumes_by_the_last_id() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (served, token) = served(dir.path()).await?;
    let writer = served.client(scope("w", &["**"], &["**"])?).await?;
    for _ in 0..3 {
        writer.append(sized(10)).await?;
    }
    let request = get("/v1/log/subscribe?after=1", &token);
    let request = request.replace("connection: close", "last-event-id: 2");
    let mut stream = BufReader::new(served.stream().await?);
    stream.write_all(request.as_bytes()).await?;
    let mut seen = Vec::new();
    let mut line = String::new();
    while !seen.iter().any(|line: &String| line.contains("tick")) {
        line.clear();
        assert!(stream.read_line(&mut line).await? > 0, "{seen:?}");
        seen.push(line.trim_end().to_owned());
        if line.contains("\"position\":3}")
            && line.starts_with("data: {\"pos")
            && seen.iter().any(|l| l == "event: caught_up")
        {
            writer
                .append(Append::of(vec![event(APPS, "shop", "{\"tick\":1}")]))
                .await?;
        }
    }
    assert!(seen[0].contains("200") && seen.iter().any(|l| l.contains("text/event-stream")));
    let ids: Vec<&String> = seen
        .iter()
        .filter(|line| line.starts_with("id: "))
        .collect();
    assert_eq!(ids, ["id: 3", "id: 3", "id: 4"], "{seen:?}");
    // The service ends: the subscription is told, and then closed.
    served.stop();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).await?;
    assert!(
        rest.contains("event: end") && rest.contains("unavailable"),
        "{rest}"
    );
    Ok(())
}

#[tokio::test]
async fn a_reader_that_does_not_read_costs_the_writer_nothing() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (served, token) = served(dir.path()).await?;
    let mut sleeper = served.stream().await?;
    sleeper
        .write_all(get("/v1/log/subscribe", &token).as_bytes())
        .await?;
    let writer = served.client(scope("w", &["**"], &["**"])?).await?;
    let wide = "x".repeat(30_000);
    for n in 0..400 {
        let data = format!("{{\"n\":{n},\"text\":\"{wide}\"}}");
        let batch = Append::of(vec![event(APPS, "shop", &data)]);
        writer.append(batch).await?;
    }
    assert_eq!(read_all(&*writer, Filter::default(), 50).await?.len(), 400);
    // Twelve megabytes later it wakes up, and nothing is missing.
    let mut stream = BufReader::new(sleeper);
    let (mut due, mut line) = (0, String::new());
    while due < 400 {
        line.clear();
        assert!(stream.read_line(&mut line).await? > 0);
        if let Some(id) = line
            .strip_prefix("id: ")
            .and_then(|id| id.trim().parse::<u64>().ok())
        {
            assert!(id == due + 1 || id == due, "{id} after {due}");
            due = id;
        }
    }
    Ok(())
}
