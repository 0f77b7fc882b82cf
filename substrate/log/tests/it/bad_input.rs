//! What bad input gets: for each kind of it one code, the same error in process and over a network,
//! and nothing written. docs/protocols/status.md says who reacts how.

use std::time::Duration;

use tabbify_api::consumers::{Ack, Consumer, ConsumerError, Poll};
use tabbify_api::log::{
    Append, AppendError, Appended, BATCH_EVENTS_MAX, EventLog, Expect, Filter, LogScope, ReadError,
};
use tabbify_api::{ErrorCode, Problem};
use tabbify_log::{Rates, RemoteLog};
use tabbify_types::{Position, Rev, Segment, Tenant};

use crate::serving::Serving;
use crate::support::{Outcome, Wrong, event, read_all, refused_subscription, scope, segment};

const APPS: &str = "tenant_main.apps";

/// One log, reached in every way there is.
struct Ways {
    serving: Serving,
    remote: RemoteLog,
    token: String,
    _dir: tempfile::TempDir,
}

impl Ways {
    async fn open(rates: Rates) -> Result<Self, Wrong> {
        let dir = tempfile::tempdir()?;
        let serving = Serving::open(dir.path(), rates).await?;
        let token = serving.tokens.issue(writer()?);
        serving.tokens.carry(writer()?);
        let remote = serving.remote().await?;
        Ok(Self {
            serving,
            remote,
            token,
            _dir: dir,
        })
    }

    /// Posts a body as it stands; gives the head of the answer and the problem.
    async fn post(&self, path: &str, body: &str) -> Result<(String, Problem), Wrong> {
        let request = format!(
            "POST {path} HTTP/1.1\r\nhost: log\r\nconnection: close\r\nauthorization: Bearer {}\r\n\
             content-length: {}\r\n\r\n{body}",
            self.token,
            body.len()
        );
        let (head, body) = self.serving.send(&request).await?;
        Ok((head, serde_json::from_str(&body)?))
    }

    /// The batch is refused with this error everywhere, with this code over HTTP, and nothing of it
    /// is written.
    async fn refuse(&self, batch: &Append, expected: &AppendError, code: ErrorCode) -> Outcome {
        let head = self.serving.log.head();
        let inside = self.serving.client(writer()?);
        assert_eq!(inside.append(batch.clone()).await, Err(expected.clone()));
        let outside = self.remote.append(batch.clone()).await;
        assert_eq!(outside, Err(expected.clone()), "in a session");
        let body = serde_json::to_string(batch)?;
        let (status, problem) = self.post("/v1/log/append", &body).await?;
        assert_eq!(problem.code, code, "{problem:?}");
        assert!(status.starts_with(&format!("HTTP/1.1 {} ", code.status())));
        assert_eq!(self.serving.log.head(), head, "something is written");
        Ok(())
    }

    async fn append(&self, batch: Append) -> Result<Appended, AppendError> {
        self.remote.append(batch).await
    }
}

fn writer() -> Result<LogScope, Wrong> {
    scope("user:owner", &["tenant_main.**", "platform"], &["**"])
}

async fn unlimited() -> Result<Ways, Wrong> {
    Ways::open(Rates::default()).await
}

fn wide(len: usize) -> String {
    format!("{{\"a\":\"{}\"}}", "x".repeat(len))
}

#[tokio::test]
async fn an_oversized_event() -> Outcome {
    let ways = unlimited().await?;
    let batch = Append::of(vec![
        event(APPS, "a", "{}"),
        event(APPS, "a", &wide(64 * 1024)),
    ]);
    let detail = "event 1: 65544 bytes of data, at most 65536".to_owned();
    let error = AppendError::EventTooLarge { detail };
    ways.refuse(&batch, &error, ErrorCode::EventTooLarge).await
}

#[tokio::test]
async fn an_oversized_batch() -> Outcome {
    let ways = unlimited().await?;
    let batch =
        |count: usize, data: &str| Append::of((0..count).map(|_| event(APPS, "a", data)).collect());
    let many = batch(BATCH_EVENTS_MAX + 1, "{}");
    let detail = "1025 events, at most 1024".to_owned();
    let error = AppendError::BatchTooLarge { detail };
    ways.refuse(&many, &error, ErrorCode::BatchTooLarge).await?;
    let long = batch(65, &wide(65_000));
    let Err(error) = ways.append(long.clone()).await else {
        return Err("it is taken".into());
    };
    assert!(error.to_string().contains("bytes, at most 4194304"));
    ways.refuse(&long, &error, ErrorCode::BatchTooLarge).await?;
    // What is too long for a frame is not even sent.
    let endless = batch(200, &wide(60_000));
    let refused = ways.append(endless).await;
    assert!(matches!(refused, Err(AppendError::BatchTooLarge { .. })));
    Ok(())
}

#[tokio::test]
async fn an_unknown_segment() -> Outcome {
    let ways = unlimited().await?;
    let mut own = event("tenant_main.orders", "o1", "{}");
    let batch = Append::of(vec![event(APPS, "a", "{}"), own.clone()]);
    let nowhere = segment("tenant_main.orders");
    let error = AppendError::UnknownSegment { segment: nowhere };
    ways.refuse(&batch, &error, ErrorCode::UnknownSegment)
        .await?;
    // An app's own types may stand in a segment of its own.
    own.kind = "x.order_placed".to_owned();
    ways.append(Append::of(vec![own])).await?;
    Ok(())
}

#[tokio::test]
async fn a_glob_in_an_append() -> Outcome {
    let ways = unlimited().await?;
    let one = serde_json::to_string(&Append::of(vec![event(APPS, "a", "{}")]))?;
    let expecting = Append::of(vec![event("platform", "a", "{}")]);
    let expecting = expecting.expecting(segment(APPS), "a", Expect::None);
    for body in [one, serde_json::to_string(&expecting)?] {
        let body = body.replace(APPS, "tenant_*.apps");
        let (status, problem) = ways.post("/v1/log/append", &body).await?;
        assert_eq!(problem.code, ErrorCode::GlobInAppend);
        assert!(status.starts_with("HTTP/1.1 400 ") && problem.detail.contains("tenant_*.apps"));
    }
    assert_eq!(ways.serving.log.head(), Position(0));
    Ok(())
}

#[tokio::test]
async fn bad_json() -> Outcome {
    let ways = unlimited().await?;
    for (body, code) in [
        ("", ErrorCode::BadJson),
        ("{\"events\":[}", ErrorCode::BadJson),
        ("{\"events\":[]", ErrorCode::BadJson),
        ("[]", ErrorCode::BadRequest),
        ("{\"event\":[]}", ErrorCode::BadRequest),
    ] {
        let (status, problem) = ways.post("/v1/log/append", body).await?;
        assert_eq!(problem.code, code, "{body}: {problem:?}");
        assert!(status.starts_with("HTTP/1.1 400 "));
    }
    Ok(())
}

#[tokio::test]
async fn an_expectation_of_the_future() -> Outcome {
    let ways = unlimited().await?;
    ways.append(Append::of(vec![event(APPS, "a", "{}")]))
        .await?;
    let expecting = |rev: u64| {
        let batch = Append::of(vec![event(APPS, "a", "{}")]);
        batch.expecting(segment(APPS), "a", Expect::Rev(Rev(rev)))
    };
    let error = AppendError::ExpectAhead {
        segment: segment(APPS),
        key: "a".to_owned(),
        expected: Rev(2),
        actual: Rev(1),
    };
    ways.refuse(&expecting(2), &error, ErrorCode::ExpectAhead)
        .await?;
    // The past is a conflict, which reading again mends.
    let error = AppendError::Conflict {
        segment: segment(APPS),
        key: "a".to_owned(),
        actual: Rev(1),
    };
    ways.refuse(&expecting(0), &error, ErrorCode::Conflict)
        .await?;
    ways.append(expecting(1)).await?;
    Ok(())
}

#[tokio::test]
async fn a_consumer_that_acknowledges_what_it_was_not_given() -> Outcome {
    let ways = unlimited().await?;
    let inside = ways.serving.consumers.client(writer()?);
    let name: tabbify_api::consumers::ConsumerName = "one".parse()?;
    inside
        .create(name.clone(), Consumer::of(Filter::default()))
        .await?;
    ways.append(Append::of(vec![
        event(APPS, "a", "{}"),
        event(APPS, "b", "{}"),
    ]))
    .await?;
    let poll = Poll {
        member: "m".parse()?,
        max: 1,
        wait_ms: 10_000,
    };
    let given = inside.next(name.clone(), poll).await?;
    assert_eq!(given.len(), 1);
    let ack = Ack {
        member: "m".parse()?,
        positions: vec![Position(2)],
    };
    let error = ConsumerError::NotDelivered {
        positions: vec![Position(2)],
    };
    let refused = inside.ack(name.clone(), ack.clone()).await;
    assert_eq!(refused, Err(error.clone()));
    let refused = ways.remote.consumers().ack(name, ack.clone()).await;
    assert_eq!(refused, Err(error));
    let body = serde_json::to_string(&ack)?;
    let (_, problem) = ways.post("/v1/log/consumers/one/ack", &body).await?;
    assert_eq!(problem.code, ErrorCode::NotDelivered);
    Ok(())
}

#[tokio::test]
async fn a_subscriber_from_beyond_the_head() -> Outcome {
    let ways = unlimited().await?;
    ways.append(Append::of(vec![event(APPS, "a", "{}")]))
        .await?;
    let error = ReadError::BeyondHead {
        after: Position(2),
        head: Position(1),
    };
    let inside = ways.serving.client(writer()?);
    for client in [&*inside, &ways.remote as &dyn EventLog] {
        let refused = refused_subscription(client, Filter::default(), Position(2)).await?;
        assert_eq!(refused, error);
        let refused = client.read(Filter::default(), Position(2), 1).await;
        assert_eq!(refused.err(), Some(error.clone()));
    }
    Ok(())
}

#[tokio::test]
async fn one_id_with_other_content() -> Outcome {
    let ways = unlimited().await?;
    let first = event(APPS, "a", "{\"n\":1}");
    ways.append(Append::of(vec![first.clone()])).await?;
    let mut other = first.clone();
    other.data = event(APPS, "a", "{\"n\":2}").data;
    let error = AppendError::IdConflict { id: first.id };
    let batch = Append::of(vec![other]);
    ways.refuse(&batch, &error, ErrorCode::IdConflict).await
}

#[tokio::test]
async fn an_unknown_version_of_a_known_type() -> Outcome {
    let ways = unlimited().await?;
    let of = |kind: &str, version: u16| {
        let mut event = event(APPS, "a", "{}");
        event.kind = kind.to_owned();
        event.version = version;
        Append::of(vec![event])
    };
    let error = AppendError::UnknownVersion {
        kind: "app_started".to_owned(),
        version: 9_999,
        newest: 1,
    };
    let batch = of("app_started", 9_999);
    ways.refuse(&batch, &error, ErrorCode::UnknownVersion)
        .await?;
    // A type that is not known is kept whatever its version, and so is an app's own.
    ways.append(of("thing_happened", 9_999)).await?;
    ways.append(of("x.app_started", 9_999)).await?;
    ways.append(of("app_started", 1)).await?;
    Ok(())
}

/// The smallest bursts there may be, and what flows in is soon there.
const TIGHT: Rates = Rates {
    events_per_second: 20_000,
    events_burst: 1,
    bytes_per_second: 100_000_000,
    bytes_burst: 1,
};

fn full_batch(of: &Segment) -> Append {
    let events = (0..BATCH_EVENTS_MAX).map(|_| event(of.as_str(), "a", "{}"));
    Append::of(events.collect())
}

#[tokio::test]
async fn a_tenant_over_its_append_rate() -> Outcome {
    let slow = Rates {
        events_per_second: 1,
        ..TIGHT
    };
    let ways = Ways::open(slow).await?;
    let inside = ways.serving.client(writer()?);
    ways.append(full_batch(&segment(APPS))).await?;
    // In process, in a session and over HTTP it is one and the same rate.
    let batch = full_batch(&segment(APPS));
    let refused = [
        inside.append(batch.clone()).await,
        ways.append(batch.clone()).await,
    ];
    for refused in refused {
        let Err(AppendError::Rate {
            tenant,
            retry_after_ms,
        }) = refused
        else {
            return Err(format!("{refused:?}").into());
        };
        assert_eq!(tenant, Tenant::main());
        assert!((1..=512_000).contains(&retry_after_ms), "{retry_after_ms}");
    }
    let (head, problem) = ways
        .post("/v1/log/append", &serde_json::to_string(&batch)?)
        .await?;
    assert_eq!(problem.code, ErrorCode::AppendRate);
    let retry = head.lines().find_map(|line| {
        line.to_lowercase()
            .strip_prefix("retry-after: ")?
            .parse()
            .ok()
    });
    assert!(
        retry.is_some_and(|seconds: u64| (1..=512).contains(&seconds)),
        "{head}"
    );
    assert_eq!(ways.serving.log.head(), Position(1024));
    // The platform's segments have no rate, other tenants their own, and its roles a reserve.
    ways.append(full_batch(&Segment::platform())).await?;
    let platform = ways
        .serving
        .client(scope("service:coordinator", &["tenant_*.apps"], &["**"])?);
    platform
        .append(full_batch(&segment("tenant_other.apps")))
        .await?;
    let fact = Append::of(vec![event(APPS, "a", "{}")]);
    platform.append(fact).await?;
    Ok(())
}

#[tokio::test]
async fn a_tenant_goes_on_when_it_has_waited() -> Outcome {
    let ways = Ways::open(TIGHT).await?;
    let mut refusals = 0;
    for _ in 0..8 {
        let batch = full_batch(&segment(APPS));
        while let Err(refused) = ways.append(batch.clone()).await {
            let AppendError::Rate { retry_after_ms, .. } = refused else {
                return Err(format!("{refused:?}").into());
            };
            refusals += 1;
            assert!(refusals < 1_000, "it is never let in again");
            tokio::time::sleep(Duration::from_millis(retry_after_ms)).await;
        }
    }
    assert!(refusals > 0, "it was never too fast");
    let inside = ways.serving.client(writer()?);
    let all = read_all(&*inside, Filter::default(), 10_000).await?;
    assert_eq!(all.len(), 8 * BATCH_EVENTS_MAX);
    Ok(())
}

#[tokio::test]
async fn whoever_may_not_write_there_costs_the_tenant_nothing() -> Outcome {
    let ways = Ways::open(Rates {
        events_per_second: 1,
        ..TIGHT
    })
    .await?;
    let stranger = ways
        .serving
        .client(scope("user:other", &["tenant_other.**"], &["**"])?);
    for _ in 0..5 {
        let refused = stranger.append(full_batch(&segment(APPS))).await;
        assert!(matches!(refused, Err(AppendError::Forbidden { .. })));
    }
    ways.append(full_batch(&segment(APPS))).await?;
    Ok(())
}
