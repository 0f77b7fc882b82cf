//! A disk that is full or broken, which takes a disk that is told to be.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tabbify_api::log::{Append, AppendError, Delivery, Filter, ReadError};
use tabbify_types::{NewEvent, Position, Rev};

use crate::disk::SyncPoint;
use crate::disk::sim::SimDisk;
use crate::proof::Wrong;
use crate::proof::engine::{DIR, event, options, scope};
use crate::{Log, OpenError};

const EXTENT_LEN: u64 = 8192;

fn one(id: u128, data_len: usize) -> NewEvent {
    event(id, "tenant_main.apps", "k", data_len)
}

fn open(disk: &SimDisk) -> Result<Log, OpenError> {
    Log::open(Path::new(DIR), options(disk, EXTENT_LEN))
}

fn commits(disk: &SimDisk) -> usize {
    disk.synced().get(&SyncPoint::Commit).copied().unwrap_or(0)
}

#[tokio::test]
async fn a_failed_sync_is_never_retried_and_stops_everything() -> Result<(), Wrong> {
    let (disk, failures) = (SimDisk::default(), Arc::new(AtomicUsize::new(0)));
    let seen = Arc::clone(&failures);
    let counting = options(&disk, EXTENT_LEN).on_failed_sync(move |error| {
        let broken = Some(rustix::io::Errno::IO.raw_os_error());
        assert_eq!(error.raw_os_error(), broken);
        seen.fetch_add(1, Ordering::SeqCst);
    });
    let log = Log::open(Path::new(DIR), counting)?;
    let client = log.client(scope());
    let (good, lost) = (one(1, 10), one(2, 10));
    client.append(Append::of(vec![good.clone()])).await?;
    let mut subscription = client.subscribe(Filter::default(), Position(1))?;
    assert!(matches!(
        subscription.next().await?,
        Delivery::CaughtUp(Position(1))
    ));

    disk.faults(|faults| faults.fail = Some((SyncPoint::Commit, 0)));
    let answer = client.append(Append::of(vec![lost.clone()])).await;
    assert_eq!(answer, Err(AppendError::Stopping));
    // The disk is well again, but what it holds is unknown: nothing is tried again.
    let answer = client.append(Append::of(vec![one(3, 10)])).await;
    assert_eq!(answer, Err(AppendError::Stopping));
    assert_eq!((failures.load(Ordering::SeqCst), commits(&disk)), (1, 2));
    log.stopped().await;
    // Nobody is shown what was not synced; what was stays readable.
    assert_eq!(subscription.next().await.err(), Some(ReadError::Stopping));
    assert_eq!(client.head(), Position(1));
    let page = client.read(Filter::default(), Position(0), 10).await?;
    assert_eq!(page.events.len(), 1);
    log.close().await;
    drop(log);

    // Opening looks at the disk again. The unanswered batch may be there; repeating it is right
    // in both cases, and so is what comes after.
    let log = open(&SimDisk::of(disk.state()))?;
    let client = log.client(scope());
    let again = client.append(Append::of(vec![lost])).await?;
    assert_eq!((again.first, again.revs), (Position(2), vec![Rev(2)]));
    let known = client.append(Append::of(vec![good])).await?;
    assert_eq!(known.first, Position(1));
    Ok(())
}

#[tokio::test]
async fn what_a_failed_sync_left_in_memory_is_on_disk_before_it_is_shown() -> Result<(), Wrong> {
    let disk = SimDisk::default();
    let log = open(&disk)?;
    let client = log.client(scope());
    client.append(Append::of(vec![one(1, 10)])).await?;
    disk.faults(|faults| faults.fail = Some((SyncPoint::Commit, 0)));
    let answer = client.append(Append::of(vec![one(2, 900)])).await;
    assert_eq!(answer, Err(AppendError::Stopping));
    log.close().await;
    drop(log);

    // The machine goes on, and its memory shows the frame as if it had been written.
    let disk = SimDisk::of(disk.state());
    let log = open(&disk)?;
    assert_eq!(log.head(), Position(2));
    drop(log);
    let left = SimDisk::of(disk.state().torn(0).state());
    assert_eq!(open(&left)?.head(), Position(2));
    Ok(())
}

#[tokio::test]
async fn any_failed_sync_of_a_new_extent_stops_everything() -> Result<(), Wrong> {
    for point in [SyncPoint::ExtentContent, SyncPoint::ExtentName] {
        let disk = SimDisk::default();
        let log = open(&disk)?;
        let client = log.client(scope());
        disk.faults(|faults| faults.fail = Some((point, 0)));
        let mut answers = Vec::new();
        for id in 1..=5 {
            answers.push(client.append(Append::of(vec![one(id, 1500)])).await);
        }
        // Three frames of 2048 fit.
        assert!(
            answers[..3].iter().all(Result::is_ok),
            "{point:?}: {answers:?}"
        );
        let stopped = |answer: &_| *answer == Err(AppendError::Stopping);
        assert!(answers[3..].iter().all(stopped), "{point:?}: {answers:?}");
        log.stopped().await;
        drop(log);
        let log = open(&SimDisk::of(disk.state()))?;
        assert_eq!(log.head(), Position(3));
        let next = log
            .client(scope())
            .append(Append::of(vec![one(4, 1500)]))
            .await?;
        assert_eq!(next.first, Position(4));
    }
    Ok(())
}

#[tokio::test]
async fn a_disk_that_fails_while_the_next_extent_is_prepared_is_not_asked_again()
-> Result<(), Wrong> {
    let disk = SimDisk::default();
    disk.faults(|faults| faults.fail_write_back = Some("next.spare"));
    assert!(matches!(open(&disk), Err(OpenError::Io { .. })));
    let log = open(&disk)?;
    let client = log.client(scope());
    // The second extent is there; the third is prepared when it is taken.
    disk.faults(|faults| faults.fail_write_back = Some("next.spare"));
    let mut count = 0;
    let refused = loop {
        match client.append(Append::of(vec![one(count + 1, 1500)])).await {
            Ok(_) => count += 1,
            Err(refused) => break refused,
        }
        assert!(count < 100, "the disk is broken and appends go on");
    };
    assert_eq!((count, refused), (6, AppendError::Stopping));
    Ok(())
}

#[tokio::test]
async fn a_full_disk_refuses_before_the_commit_and_recovers() -> Result<(), Wrong> {
    let disk = SimDisk::default();
    let log = open(&disk)?;
    let client = log.client(scope());
    // The first extent and its spare were allocated; from now on the disk is full.
    disk.leave_space(Some(0));
    let first = one(1, 1500);
    let (mut count, mut next) = (0, first.clone());
    let refused = loop {
        match client.append(Append::of(vec![next])).await {
            Ok(_) => count += 1,
            Err(refused) => break refused,
        }
        assert!(count < 100, "the disk is full and appends go on");
        next = one(count + 1, 1500);
    };
    assert!(matches!(refused, AppendError::NoSpace { .. }), "{refused}");
    // 8192 bytes hold a header and three frames of 2048; two extents were there.
    assert_eq!(count, 6);
    // A smaller one still fits, and what was refused has left no trace.
    let small = client.append(Append::of(vec![one(100, 10)])).await?;
    assert_eq!((small.first, small.revs), (Position(7), vec![Rev(7)]));
    // A repetition needs no space.
    let known = client.append(Append::of(vec![first])).await?;
    assert_eq!(known.first, Position(1));

    disk.leave_space(None);
    let next = client.append(Append::of(vec![one(101, 1500)])).await?;
    assert_eq!(next.first, Position(8));
    log.close().await;
    drop(log);
    assert_eq!(Log::verify_on(&disk, Path::new(DIR))?.head, Position(8));
    Ok(())
}
