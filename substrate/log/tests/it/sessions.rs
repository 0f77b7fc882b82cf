//! What lasts longer than a request: sessions of appends and subscriptions over tokens that end,
//! connections that break, and readers that sleep; and the verification of a log in use.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::try_join_all;
use tabbify_api::log::{
    Append, AppendError, Appended, Delivery, EventLog, Filter, ReadError, Subscribe,
    VerificationState,
};
use tabbify_api::{ErrorCode, Problem};
use tabbify_log::{Log, Rates, RemoteLog};
use tabbify_types::{EventId, Position, Recorded};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::serving::Serving;
use crate::support::{Outcome, Wrong, event, extents, next, read_all, scope, sized};

const APPS: &str = "tenant_main.apps";
/// A watchdog, not a measure.
const SOON: Duration = Duration::from_secs(30);

async fn open(dir: &std::path::Path) -> Result<Serving, Wrong> {
    let serving = Serving::open(dir, Rates::default()).await?;
    serving.tokens.carry(scope("user:owner", &["**"], &["**"])?);
    Ok(serving)
}

async fn next_event(subscription: &mut dyn Subscribe) -> Result<Arc<Recorded>, Wrong> {
    loop {
        if let Delivery::Event(event) = next(subscription).await? {
            return Ok(event);
        }
    }
}

/// Appends as a writer does that is told that the log is stopping: the same batch again.
async fn insist(log: &dyn EventLog, batch: Append) -> Result<Appended, AppendError> {
    for _ in 0..100 {
        match log.append(batch.clone()).await {
            Err(AppendError::Stopping) => {}
            answer => return answer,
        }
    }
    Err(AppendError::Stopping)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_at_once_share_a_session_and_each_has_its_own_answer() -> Outcome {
    let dir = tempfile::tempdir()?;
    let serving = open(dir.path()).await?;
    let remote = serving.remote().await?;
    let one = |n: u64| {
        let (remote, id) = (remote.clone(), EventId::mint());
        async move {
            let mut event = event(APPS, &format!("k{}", n % 7), &format!("{{\"n\":{n}}}"));
            event.id = id;
            let answer = remote.append(Append::of(vec![event])).await?;
            Ok::<_, AppendError>((answer.first, id))
        }
    };
    // More than the service takes at once, and more than the client sends at once.
    let answers = try_join_all((0..1_000).map(one)).await?;
    let written = read_all(&remote, Filter::default(), 10_000).await?;
    let at = |position: Position| written.get(usize::try_from(position.get() - 1).unwrap());
    assert_eq!(written.len(), 1_000);
    for (position, id) in answers {
        assert_eq!(at(position).map(|event| event.id), Some(id));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appends_and_readers_outlive_their_connections() -> Outcome {
    const EVENTS: u64 = 400;
    let dir = tempfile::tempdir()?;
    let serving = open(dir.path()).await?;
    // A connection takes between a few events and none; one in five only says hello.
    let remote = serving.fragile(&[2_000, 9_000, 400, 3_500, 20_000]).await?;
    let writer = |n: u64| {
        let remote = remote.clone();
        async move {
            for i in 0..EVENTS / 8 {
                let event = event(APPS, &format!("w{n}"), &format!("{{\"i\":{i}}}"));
                insist(&remote, Append::of(vec![event])).await?;
            }
            Ok::<_, AppendError>(())
        }
    };
    let reading = async {
        let mut subscription = remote.subscribe(Filter::default(), Position(0))?;
        let mut due = 1;
        while due <= EVENTS {
            match tokio::time::timeout(SOON, subscription.next()).await? {
                Ok(Delivery::Event(event)) => {
                    assert_eq!(event.position, Position(due), "a gap, or twice");
                    due += 1;
                }
                // Too many connections in a row brought nothing; asking again goes on.
                Ok(_) | Err(ReadError::Stopping) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok::<_, Wrong>(())
    };
    let writing = async { Ok::<_, Wrong>(try_join_all((0..8).map(writer)).await?) };
    tokio::try_join!(reading, writing)?;
    // Every event once, and each writer's in its order.
    let inside = serving.client(scope("test", &[], &["**"])?);
    let all = read_all(&*inside, Filter::default(), 1_000).await?;
    assert_eq!(all.len(), 400);
    assert_eq!(all.iter().map(|e| e.id).collect::<BTreeSet<_>>().len(), 400);
    for n in 0..8 {
        let key = format!("w{n}");
        let own: Vec<&str> = all
            .iter()
            .filter(|event| event.key == key)
            .map(|event| event.data.get())
            .collect();
        let expected: Vec<String> = (0..50).map(|i| format!("{{\"i\":{i}}}")).collect();
        assert_eq!(own, expected);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_outlives_its_token_and_says_when_there_is_no_other() -> Outcome {
    let dir = tempfile::tempdir()?;
    let serving = open(dir.path()).await?;
    let remote = serving.remote().await?;
    let writer = serving.client(scope("w", &["**"], &[])?);
    let mut subscription = remote.subscribe(Filter::default(), Position(0))?;
    for n in 1..=5 {
        writer.append(sized(10)).await?;
        let event = next_event(&mut *subscription).await?;
        assert_eq!(event.position, Position(n));
        // The token ends in mid-stream, and there is a new one.
        serving.tokens.end_all();
        serving.tokens.carry(scope("user:owner", &[], &["**"])?);
    }
    serving.tokens.end_all();
    writer.append(sized(10)).await?;
    // What was on its way may still come, and then the reason.
    let refused = tokio::time::timeout(SOON, async {
        loop {
            writer.append(sized(10)).await?;
            if let Err(error) = subscription.next().await {
                return Ok::<_, Wrong>(error);
            }
        }
    });
    let refused = refused.await??;
    let ReadError::Refused { code, .. } = &refused else {
        return Err(format!("{refused:?}").into());
    };
    assert_eq!(*code, ErrorCode::TokenExpired);
    // With a token again it goes on where it was.
    serving.tokens.carry(scope("user:owner", &[], &["**"])?);
    let mut seen = BTreeSet::new();
    let head = serving.log.head();
    let first = next_event(&mut *subscription).await?.position;
    seen.insert(first);
    while !seen.contains(&head) {
        let position = next_event(&mut *subscription).await?.position;
        assert_eq!(seen.last().map(|last| last.next()), Some(position));
        seen.insert(position);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appends_end_with_their_token_and_go_on_with_the_next() -> Outcome {
    let dir = tempfile::tempdir()?;
    let serving = open(dir.path()).await?;
    let remote = serving.remote().await?;
    remote.append(sized(10)).await?;
    serving.tokens.end_all();
    let refused = tokio::time::timeout(SOON, async {
        loop {
            if let Err(error) = remote.append(sized(10)).await {
                return error;
            }
        }
    });
    let refused = refused.await?;
    assert!(
        matches!(&refused, AppendError::Refused { code, .. } if *code == ErrorCode::TokenExpired),
        "{refused:?}"
    );
    let head = serving.log.head();
    serving.tokens.carry(scope("user:other", &["**"], &["**"])?);
    assert_eq!(remote.append(sized(10)).await?.first, head.next());
    let page = remote.read(Filter::default(), head, 1).await?;
    assert_eq!(page.events[0].actor, "user:other");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_sleeps_misses_nothing_and_holds_nobody_up() -> Outcome {
    const EVENTS: u64 = 700;
    let dir = tempfile::tempdir()?;
    let serving = open(dir.path()).await?;
    let remote = serving.remote().await?;
    let mut sleeper = remote.subscribe(Filter::default(), Position(0))?;
    remote.append(sized(10)).await?;
    assert_eq!(next_event(&mut *sleeper).await?.position, Position(1));
    // It sleeps. Twenty megabytes are written: several times what the log remembers, the service
    // buffers and a socket takes. Each is acknowledged before the reader moves again.
    let mut awake = remote.subscribe(Filter::default(), Position(1))?;
    for n in 2..=EVENTS {
        assert_eq!(remote.append(sized(30_000)).await?.last, Position(n));
        assert_eq!(next_event(&mut *awake).await?.position, Position(n));
    }
    for n in 2..=EVENTS {
        assert_eq!(next_event(&mut *sleeper).await?.position, Position(n));
    }
    remote.append(sized(10)).await?;
    let live = next_event(&mut *sleeper).await?;
    assert_eq!(live.position, Position(EVENTS + 1));
    Ok(())
}

/// A session by hand: bytes out, frames in.
async fn session(serving: &Serving, token: &str) -> Result<tokio::net::UnixStream, Wrong> {
    let mut stream = serving.stream().await?;
    let request = format!(
        "GET /v1/log/session HTTP/1.1\r\nhost: log\r\nauthorization: Bearer {token}\r\n\
         connection: upgrade\r\nupgrade: tabbify-log-session/1\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8(head)?;
    if !head.starts_with("HTTP/1.1 101 ") {
        return Err(head.into());
    }
    Ok(stream)
}

async fn frame(stream: &mut tokio::net::UnixStream) -> Result<(u8, Vec<u8>), Wrong> {
    let len = stream.read_u32_le().await?;
    let mut bytes = vec![0; usize::try_from(len)?];
    stream.read_exact(&mut bytes).await?;
    let body = bytes.split_off(1);
    Ok((bytes[0], body))
}

#[tokio::test]
async fn a_session_by_hand_as_the_page_describes_it() -> Outcome {
    let dir = tempfile::tempdir()?;
    let serving = open(dir.path()).await?;
    let token = serving
        .tokens
        .issue(scope("user:owner", &["tenant_main.**"], &[])?);
    let mut stream = session(&serving, &token).await?;
    let batch = |number: u32, segment: &str, data: &str| {
        let mut body = vec![4];
        body.extend_from_slice(&number.to_le_bytes());
        body.extend_from_slice(&1u32.to_le_bytes());
        body.extend_from_slice(&0u32.to_le_bytes());
        body.extend_from_slice(EventId::mint().uuid().as_bytes());
        body.extend_from_slice(&1u16.to_le_bytes());
        body.push(0);
        for text in [segment, "shop", "thing_happened", data] {
            body.extend_from_slice(&u32::try_from(text.len()).unwrap().to_le_bytes());
            body.extend_from_slice(text.as_bytes());
        }
        let mut frame = u32::try_from(body.len()).unwrap().to_le_bytes().to_vec();
        frame.append(&mut body);
        frame
    };
    // Kinds that are not known are skipped; a refusal leaves the session as it was.
    stream.write_all(&[1, 0, 0, 0, 99]).await?;
    for (segment, data, code) in [
        ("tenant_*.apps", "{}", ErrorCode::GlobInAppend),
        (APPS, "{", ErrorCode::BadJson),
        (APPS, "[]", ErrorCode::InvalidBatch),
        ("platform", "{}", ErrorCode::Forbidden),
    ] {
        stream.write_all(&batch(7, segment, data)).await?;
        let (kind, body) = frame(&mut stream).await?;
        assert_eq!((kind, &body[..4]), (6, &7u32.to_le_bytes()[..]));
        let problem: Problem = serde_json::from_slice(&body[4..])?;
        assert_eq!(problem.code, code);
    }
    stream.write_all(&batch(8, APPS, "{}")).await?;
    let (kind, body) = frame(&mut stream).await?;
    let number = |n: u64| n.to_le_bytes();
    let expected = [&8u32.to_le_bytes()[..], &number(1), &number(1), &number(1)].concat();
    assert_eq!((kind, body), (5, expected));
    // What is no frame ends it, with the reason.
    stream.write_all(&[0, 0, 0, 0]).await?;
    let (kind, body) = frame(&mut stream).await?;
    let problem: Problem = serde_json::from_slice(&body)?;
    assert_eq!((kind, problem.code), (7, ErrorCode::BadRequest));
    assert_eq!(stream.read(&mut [0; 1]).await?, 0);
    // And so does the end of the token.
    let mut stream = session(&serving, &token).await?;
    serving.tokens.end_all();
    let (kind, body) = frame(&mut stream).await?;
    let problem: Problem = serde_json::from_slice(&body)?;
    assert_eq!((kind, problem.code), (7, ErrorCode::TokenExpired));
    Ok(())
}

async fn verified(remote: &RemoteLog) -> Result<tabbify_api::log::Verification, Wrong> {
    remote.verify().await?;
    let finished = tokio::time::timeout(SOON, async {
        loop {
            let now = remote.verification().await?;
            if now.state != VerificationState::Running {
                return Ok::<_, ReadError>(now);
            }
            tokio::task::yield_now().await;
        }
    });
    Ok(finished.await??)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_in_use_is_verified_and_damage_is_found() -> Outcome {
    let dir = tempfile::tempdir()?;
    let log = Log::open(
        dir.path(),
        crate::support::options().extent_lens(1 << 16, 1 << 16),
    )?;
    let writer = log.client(scope("w", &["**"], &[])?);
    for _ in 0..100 {
        writer.append(sized(3_000)).await?;
    }
    log.close().await;
    drop(log);
    let serving = open(dir.path()).await?;
    let remote = serving.remote().await?;
    let none = remote.verification().await;
    assert!(matches!(none, Err(ReadError::Refused { code, .. }) if code == ErrorCode::NotFound));
    let whole = verified(&remote).await?;
    assert_eq!(whole.state, VerificationState::Intact);
    assert_eq!((whole.verified, whole.upto), (Position(100), Position(100)));
    // One byte in the midst of it.
    let path = &extents(dir.path())?[2];
    let mut bytes = std::fs::read(path)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(path, bytes)?;
    let damaged = verified(&remote).await?;
    let VerificationState::Damaged { detail } = &damaged.state else {
        return Err(format!("{damaged:?}").into());
    };
    assert!(detail.contains("extent"), "{detail}");
    assert!(damaged.verified < damaged.upto);
    // Whoever may not read everything may not know.
    serving
        .tokens
        .carry(scope("user:owner", &["**"], &["tenant_main.**"])?);
    let stranger = serving.remote().await?;
    let refused = stranger.verify().await;
    assert!(matches!(refused, Err(ReadError::Forbidden { .. })));
    Ok(())
}
