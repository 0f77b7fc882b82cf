//! Projections in memory: the same state however they came to it.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use proptest::test_runner::{Config as Cases, TestCaseError, TestRunner};
use tabbify_api::log::{EventLog, Line};
use tabbify_log::Log;
use tabbify_process::fold::{Fold, Follow, FollowError, Link, Start};
use tabbify_process::{Clock, Importance, ManualClock, SystemClock, Tasks};
use tabbify_types::{Position, Timestamp};

use crate::support::{Diary, NewerDiary, Outcome, WATCHDOG, Wrong, client, open_log, say};

const CHAT: &str = "tenant_main.chat";

fn follow(log: &Arc<dyn EventLog>, dir: Option<&Path>) -> Follow<Diary> {
    Follow::open(
        Diary::default(),
        Arc::clone(log),
        dir,
        Arc::new(SystemClock),
    )
}

/// The state of a follower that has no snapshot and was never interrupted.
async fn from_zero(log: &Arc<dyn EventLog>) -> Result<Diary, Wrong> {
    let mut follow = follow(log, None);
    follow.catch_up().await?;
    Ok(follow.read(|view| view.state.clone()))
}

/// Takes steps until the follower is as wanted.
async fn until<F: Fold>(
    follow: &mut Follow<F>,
    wanted: impl Fn(&Link, Position) -> bool,
) -> Outcome {
    let stepping = async {
        while !follow.read(|view| wanted(&view.link, view.position)) {
            follow.next().await.map_err(|error| error.to_string())?;
        }
        Ok::<(), String>(())
    };
    Ok(tokio::time::timeout(WATCHDOG, stepping).await??)
}

fn is_live(position: Position) -> impl Fn(&Link, Position) -> bool {
    move |link, at| *link == Link::Live && at >= position
}

fn is_away(link: &Link, _: Position) -> bool {
    matches!(link, Link::Away { .. })
}

#[tokio::test]
async fn it_catches_up_stays_live_and_tells_its_readers() -> Outcome {
    let dir = tempfile::tempdir()?;
    let log = open_log(dir.path())?;
    let writer = client(&log);
    for n in 0..20 {
        say(&*writer, CHAT, "a", &n.to_string()).await?;
        say(&*writer, "platform", "a", "not for the diary").await?;
    }
    let (history, live) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (old, new) = (Arc::clone(&history), Arc::clone(&live));
    let mut follow = follow(&writer, None).hear(move |heard| {
        let counter = if heard.live { &new } else { &old };
        counter.fetch_add(1, Ordering::Relaxed);
        assert!(heard.news.contains("text") && heard.event.key == "a");
    });
    assert_eq!(follow.catch_up().await?, Start::CaughtUp);
    let tasks = Tasks::new();
    let folded = follow.spawn("diary", Importance::Essential, &tasks);
    assert_eq!(folded.read(|view| view.state.count), 20);

    let last = say(&*writer, CHAT, "a", "hello").await?;
    assert!(folded.reach(last, WATCHDOG).await);
    let found = folded.find(|view| {
        view.state
            .said
            .get(&("a".to_owned(), tabbify_types::Rev(21)))
            .cloned()
    });
    assert_eq!(found.await.ok_or("it was said")?.0, last);
    // What is not for the diary moves it on as well: nobody waits for it in vain.
    let last = say(&*writer, "platform", "a", "nothing").await?;
    assert!(folded.reach(last, WATCHDOG).await);
    assert!(!folded.reach(last.next(), Duration::from_millis(20)).await);
    assert_eq!(
        folded.read(|view| view.age(Timestamp::from_secs(u64::MAX))),
        Duration::ZERO
    );
    assert_eq!(
        (
            history.load(Ordering::Relaxed),
            live.load(Ordering::Relaxed)
        ),
        (20, 1)
    );

    assert!(tasks.shutdown(WATCHDOG).await);
    assert!(!folded.reach(last.next(), WATCHDOG).await, "it has ended");
    Ok(())
}

#[tokio::test]
async fn it_goes_on_from_its_snapshot() -> Outcome {
    let dir = tempfile::tempdir()?;
    let log = open_log(&dir.path().join("log"))?;
    let home = dir.path().join("folds");
    let writer = client(&log);
    for n in 0..30 {
        say(&*writer, CHAT, "a", &n.to_string()).await?;
    }
    let mut first = follow(&writer, Some(&home));
    first.catch_up().await?;
    let last = say(&*writer, CHAT, "b", "after the first snapshot").await?;
    until(&mut first, is_live(last)).await?;
    first.close().await;

    for n in 0..5 {
        say(&*writer, CHAT, "c", &n.to_string()).await?;
    }
    let heard = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&heard);
    let mut second = follow(&writer, Some(&home)).hear(move |_| {
        counter.fetch_add(1, Ordering::Relaxed);
    });
    assert_eq!(
        second.read(|view| (view.state.count, view.position)),
        (31, last)
    );
    second.catch_up().await?;
    assert_eq!(heard.load(Ordering::Relaxed), 5, "only what is new is read");
    assert_eq!(
        second.read(|view| view.state.clone()),
        from_zero(&writer).await?
    );

    // A program that was killed has what it stored when it had caught up.
    drop(second);
    let mut third = follow(&writer, Some(&home));
    third.catch_up().await?;
    assert_eq!(
        third.read(|view| view.state.clone()),
        from_zero(&writer).await?
    );
    Ok(())
}

#[tokio::test]
async fn it_starts_while_the_log_is_down_and_says_how_old_it_is() -> Outcome {
    let dir = tempfile::tempdir()?;
    let log = open_log(&dir.path().join("log"))?;
    let home = dir.path().join("folds");
    let writer = client(&log);
    let line = Line::to(Arc::clone(&writer));
    let reached: Arc<dyn EventLog> = line.clone();
    let clock = Arc::new(ManualClock::at(SystemClock.now()));
    let open = || {
        Follow::open(
            Diary::default(),
            Arc::clone(&reached),
            Some(&home),
            clock.clone(),
        )
    };
    for n in 0..3 {
        say(&*writer, CHAT, "a", &n.to_string()).await?;
    }
    let mut first = open();
    first.catch_up().await?;
    first.close().await;

    line.join(None);
    clock.advance(Duration::from_secs(90));
    let mut second = open();
    let age = Duration::from_secs(90);
    assert_eq!(second.catch_up().await?, Start::Snapshot { age });
    assert_eq!(second.read(|view| view.state.count), 3);
    assert!(matches!(
        second.read(|view| view.link.clone()),
        Link::Away { .. }
    ));
    // It goes on trying, and is what it would have been when the log is there again.
    until(&mut second, is_away).await?;
    let last = say(&*writer, CHAT, "a", "meanwhile").await?;
    line.join(Some(Arc::clone(&writer)));
    until(&mut second, is_live(last)).await?;
    assert_eq!(
        second.read(|view| view.state.clone()),
        from_zero(&writer).await?
    );
    assert_eq!(second.read(|view| view.age(clock.now())), Duration::ZERO);

    // A log that closes under it is away as well, and how old the state is begins to count then.
    clock.advance(Duration::from_secs(5));
    log.close().await;
    until(&mut second, is_away).await?;
    clock.advance(Duration::from_secs(7));
    assert_eq!(
        second.read(|view| view.age(clock.now())),
        Duration::from_secs(7)
    );
    Ok(())
}

#[tokio::test]
async fn without_a_snapshot_it_waits_for_the_log() -> Outcome {
    let dir = tempfile::tempdir()?;
    let log = open_log(&dir.path().join("log"))?;
    let writer = client(&log);
    say(&*writer, CHAT, "a", "hello").await?;
    let line = Arc::new(Line::default());
    let reached: Arc<dyn EventLog> = line.clone();
    let mut waiting = follow(&reached, None);
    let patience = Duration::from_millis(200);
    assert!(
        tokio::time::timeout(patience, waiting.catch_up())
            .await
            .is_err()
    );
    line.join(Some(writer));
    assert_eq!(waiting.catch_up().await?, Start::CaughtUp);
    assert_eq!(waiting.read(|view| view.state.count), 1);
    Ok(())
}

/// A directory with a snapshot of these events, and the log they are in.
async fn stored(dir: &Path, texts: &[&str]) -> Result<(Log, Arc<dyn EventLog>), Wrong> {
    let log = open_log(&dir.join("log"))?;
    let writer = client(&log);
    for text in texts {
        say(&*writer, CHAT, "a", text).await?;
    }
    let mut follow = follow(&writer, Some(&dir.join("folds")));
    follow.catch_up().await?;
    follow.close().await;
    Ok((log, writer))
}

#[tokio::test]
async fn a_snapshot_of_another_log_is_folded_again() -> Outcome {
    let dir = tempfile::tempdir()?;
    stored(dir.path(), &["one", "two", "three"]).await?;
    let snapshot = std::fs::read(dir.path().join("folds/diary.snapshot"))?;
    // Shorter, as long, longer, and so short that it is empty.
    for (name, count) in [("shorter", 1), ("equal", 3), ("longer", 9), ("empty", 0)] {
        let home = dir.path().join(name);
        let texts = vec!["something else"; count];
        let (_log, writer) = stored(&home, &texts).await?;
        std::fs::write(home.join("folds/diary.snapshot"), &snapshot)?;
        let mut follow = follow(&writer, Some(&home.join("folds")));
        assert_eq!(follow.read(|view| view.state.count), 3);
        assert_eq!(follow.catch_up().await?, Start::CaughtUp, "{name}");
        assert_eq!(
            follow.read(|view| view.state.clone()),
            from_zero(&writer).await?,
            "{name}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_state_that_was_in_use_is_not_exchanged_for_another() -> Outcome {
    let dir = tempfile::tempdir()?;
    let home = dir.path().join("folds");
    stored(dir.path(), &["one", "two", "three"]).await?;
    let (_other, other) = stored(&dir.path().join("other"), &["four"; 9]).await?;
    let line = Arc::new(Line::default());
    let reached: Arc<dyn EventLog> = line.clone();
    let mut used = follow(&reached, Some(&home));
    assert!(matches!(used.catch_up().await?, Start::Snapshot { .. }));
    line.join(Some(Arc::clone(&other)));
    let ended = loop {
        if let Err(error) = used.next().await {
            break error;
        }
    };
    assert!(
        matches!(
            ended,
            FollowError::OtherLog {
                position: Position(3),
                ..
            }
        ),
        "{ended}"
    );
    used.close().await;
    // Starting again is a new beginning.
    let mut again = follow(&reached, Some(&home));
    assert_eq!(again.catch_up().await?, Start::CaughtUp);
    assert_eq!(
        again.read(|view| view.state.clone()),
        from_zero(&other).await?
    );
    Ok(())
}

#[tokio::test]
async fn a_snapshot_that_cannot_be_used_is_ignored() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (_log, writer) = stored(dir.path(), &["one", "two"]).await?;
    let home = dir.path().join("folds");
    let file = home.join("diary.snapshot");
    let expected = from_zero(&writer).await?;
    // Of a program with another version of the fold.
    let mut newer = Follow::open(
        NewerDiary::default(),
        Arc::clone(&writer),
        Some(&home),
        Arc::new(SystemClock),
    );
    assert_eq!(newer.read(|view| view.position), Position(0));
    newer.catch_up().await?;
    newer.close().await;
    let mut older = follow(&writer, Some(&home));
    assert_eq!(older.read(|view| view.position), Position(0));
    older.catch_up().await?;
    older.close().await;

    let good = std::fs::read(&file)?;
    let half = &good[..good.len() / 2];
    for bad in [&b""[..], b"no snapshot", half] {
        std::fs::write(&file, bad)?;
        std::fs::write(home.join(".diary.snapshot.0123"), "half-written")?;
        let mut follow = follow(&writer, Some(&home));
        assert_eq!(follow.read(|view| view.position), Position(0));
        follow.catch_up().await?;
        assert_eq!(follow.read(|view| view.state.clone()), expected);
        follow.close().await;
        assert_eq!(std::fs::read(&file)?.len(), good.len());
        assert_eq!(
            std::fs::read_dir(&home)?.count(),
            1,
            "nothing is left behind"
        );
    }
    // A directory that is none: it goes on without.
    let mut follow = follow(&writer, Some(&file));
    follow.catch_up().await?;
    assert_eq!(follow.read(|view| view.state.clone()), expected);
    follow.close().await;
    Ok(())
}

#[tokio::test]
async fn an_event_that_is_not_understood_stops_it_loudly() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (_log, writer) = stored(dir.path(), &["one"]).await?;
    let before = from_zero(&writer).await?;
    let home = dir.path().join("folds");
    let mut live = follow(&writer, Some(&home));
    live.catch_up().await?;
    let tasks = Tasks::new();
    let folded = live.spawn("diary", Importance::Essential, &tasks);
    let last = say(&*writer, CHAT, "a", "unspeakable").await?;
    assert!(!folded.reach(last, WATCHDOG).await);
    tasks.token().cancelled().await;
    assert!(tasks.failure().ok_or("a failure")?.contains("diary"));
    assert_eq!(folded.read(|view| view.state.clone()), before);
    // So it is at every start, until the program understands it.
    let mut again = follow(&writer, Some(&home));
    let refused = again.catch_up().await.err().ok_or("it cannot go on")?;
    assert!(matches!(refused, FollowError::Fold { position, .. } if position == last));
    assert!(
        refused
            .to_string()
            .contains("event 2 cannot be folded into diary")
    );
    Ok(())
}

/// Steps of a story: things said, programs that end, lines that are cut.
async fn interrupted(steps: &[(u8, u8)]) -> Outcome {
    let dir = tempfile::tempdir()?;
    let log = open_log(&dir.path().join("log"))?;
    let home = dir.path().join("folds");
    let writer = client(&log);
    let line = Line::to(Arc::clone(&writer));
    let reached: Arc<dyn EventLog> = line.clone();
    let mut follower = follow(&reached, Some(&home));
    for &(what, n) in steps {
        match what {
            0..4 => {
                let segment = if what == 0 { "platform" } else { CHAT };
                for n in 0..n {
                    say(&*writer, segment, &format!("room-{}", n % 3), "text").await?;
                }
            }
            4 => {
                follower.close().await;
                follower = follow(&reached, Some(&home));
            }
            // Killed: nothing is stored any more.
            5 => follower = follow(&reached, Some(&home)),
            6 => line.join(None),
            7 => line.join(Some(Arc::clone(&writer))),
            // It gets as far as it gets.
            _ => {
                for _ in 0..n {
                    let step = Duration::from_millis(5);
                    if let Ok(stepped) = tokio::time::timeout(step, follower.next()).await {
                        stepped?;
                    }
                }
            }
        }
    }
    line.join(Some(Arc::clone(&writer)));
    until(&mut follower, is_live(writer.head())).await?;
    assert_eq!(
        follower.read(|view| view.state.clone()),
        from_zero(&writer).await?
    );
    Ok(())
}

#[test]
fn random_stories_end_with_the_state_of_the_log() -> Outcome {
    let runtime = tokio::runtime::Runtime::new()?;
    let mut runner = TestRunner::new(Cases {
        cases: 40,
        failure_persistence: None,
        ..Cases::default()
    });
    let steps = proptest::collection::vec((0..10_u8, 0..12_u8), 1..12);
    runner.run(&steps, |steps| {
        let outcome = runtime.block_on(interrupted(&steps));
        outcome.map_err(|error| TestCaseError::fail(error.to_string()))
    })?;
    Ok(())
}
