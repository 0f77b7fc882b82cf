//! A disk that is full or broken, which takes faults that the public interface does not offer.

use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::value::RawValue;
use tabbify_api::log::{Delivery, Filter, LogScope, ReadError};
use tabbify_process::SystemClock;
use tabbify_types::{EventId, NewEvent, Rev, SegmentGlob};

use super::*;
use crate::Log;

type Wrong = Box<dyn std::error::Error>;

/// A switch, and how often it was asked.
#[derive(Default)]
struct Fault {
    on: AtomicBool,
    asked: AtomicUsize,
}

impl Fault {
    fn ask(&self, errno: rustix::io::Errno) -> io::Result<()> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        if self.on.load(Ordering::SeqCst) {
            Err(errno.into())
        } else {
            Ok(())
        }
    }
}

fn scope() -> LogScope {
    let all = vec![SegmentGlob::all()];
    LogScope {
        actor: "test".to_owned(),
        write: all.clone(),
        read: all,
    }
}

fn event(data_len: usize) -> Result<NewEvent, Wrong> {
    let text = "x".repeat(data_len);
    Ok(NewEvent {
        id: EventId::mint(),
        segment: "tenant_main.apps".parse()?,
        key: "k".to_owned(),
        kind: "thing_happened".to_owned(),
        version: 1,
        cause: None,
        trace: None,
        data: RawValue::from_string(format!("{{\"text\":\"{text}\"}}"))?,
    })
}

#[tokio::test]
async fn a_failed_sync_is_never_retried_and_stops_everything() -> Result<(), Wrong> {
    let dir = tempfile::tempdir()?;
    let (sync, failures) = (Arc::new(Fault::default()), Arc::new(AtomicUsize::new(0)));
    let seen = Arc::clone(&failures);
    let mut options = Options::new(Arc::new(SystemClock)).on_failed_sync(move |error| {
        assert_eq!(
            error.raw_os_error(),
            Some(rustix::io::Errno::IO.raw_os_error())
        );
        seen.fetch_add(1, Ordering::SeqCst);
    });
    let asked = Arc::clone(&sync);
    options.faults.on_sync = Arc::new(move || asked.ask(rustix::io::Errno::IO));
    let log = Log::open(dir.path(), options)?;
    let client = log.client(scope());
    let good = event(10)?;
    client.append(Append::of(vec![good.clone()])).await?;
    let mut subscription = client.subscribe(Filter::default(), Position(1))?;
    assert!(matches!(
        subscription.next().await?,
        Delivery::CaughtUp(Position(1))
    ));

    sync.on.store(true, Ordering::SeqCst);
    let lost = event(10)?;
    let answer = client.append(Append::of(vec![lost.clone()])).await;
    assert_eq!(answer, Err(AppendError::Stopping));
    sync.on.store(false, Ordering::SeqCst);
    // The disk is well again, but what it holds is unknown: nothing is tried again.
    let answer = client.append(Append::of(vec![event(10)?])).await;
    assert_eq!(answer, Err(AppendError::Stopping));
    assert_eq!(
        (
            failures.load(Ordering::SeqCst),
            sync.asked.load(Ordering::SeqCst)
        ),
        (1, 2)
    );
    log.stopped().await;
    // Nobody is shown what was not synced; what was stays readable.
    assert_eq!(subscription.next().await.err(), Some(ReadError::Stopping));
    assert_eq!(client.head(), Position(1));
    assert_eq!(
        client
            .read(Filter::default(), Position(0), 10)
            .await?
            .events
            .len(),
        1
    );
    log.close().await;
    drop(log);

    // Opening looks at the disk again. The unanswered batch may be there; repeating it is right
    // in both cases, and so is what comes after.
    let log = Log::open(dir.path(), Options::new(Arc::new(SystemClock)))?;
    let client = log.client(scope());
    let again = client.append(Append::of(vec![lost])).await?;
    assert_eq!((again.first, again.revs), (Position(2), vec![Rev(2)]));
    let known = client.append(Append::of(vec![good])).await?;
    assert_eq!(known.first, Position(1));
    Ok(())
}

#[tokio::test]
async fn a_full_disk_refuses_before_the_commit_and_recovers() -> Result<(), Wrong> {
    let dir = tempfile::tempdir()?;
    let full = Arc::new(Fault::default());
    let mut options = Options::new(Arc::new(SystemClock)).extent_lens(8192, 8192);
    let asked = Arc::clone(&full);
    options.faults.on_allocate = Arc::new(move || asked.ask(rustix::io::Errno::NOSPC));
    let log = Log::open(dir.path(), options)?;
    let client = log.client(scope());
    // The first extent and its spare were allocated; from now on the disk is full.
    while full.asked.load(Ordering::SeqCst) < 2 {
        tokio::task::yield_now().await;
    }
    full.on.store(true, Ordering::SeqCst);
    let (mut count, first) = (0, event(1500)?);
    let mut next = first.clone();
    let refused = loop {
        match client.append(Append::of(vec![next])).await {
            Ok(_) => count += 1,
            Err(refused) => break refused,
        }
        assert!(count < 100, "the disk is full and appends go on");
        next = event(1500)?;
    };
    assert!(matches!(refused, AppendError::NoSpace { .. }), "{refused}");
    // 8192 bytes hold a header and three frames of 2048; two extents were there.
    assert_eq!(count, 6);
    // A smaller one still fits, and what was refused has left no trace.
    let small = client.append(Append::of(vec![event(10)?])).await?;
    assert_eq!((small.first, small.revs), (Position(7), vec![Rev(7)]));
    // A repetition needs no space.
    assert_eq!(
        client.append(Append::of(vec![first])).await?.first,
        Position(1)
    );

    full.on.store(false, Ordering::SeqCst);
    let next = client.append(Append::of(vec![event(1500)?])).await?;
    assert_eq!(next.first, Position(8));
    log.close().await;
    drop(log);
    assert_eq!(Log::verify(dir.path())?.head, Position(8));
    Ok(())
}
