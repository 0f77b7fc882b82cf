//! A log moves between engines, and is the same log.

use std::fs;
use std::path::Path;

use tabbify_api::log::{Append, EventLog, Expect, Filter};
use tabbify_log::postgres::{Engine, OpenError};
use tabbify_log::transfer::{self, TransferError};
use tabbify_log::{Log, LogId};
use tabbify_types::{Position, Recorded, Rev};

use super::cluster::Cluster;
use super::{lead, options};
use crate::support::{self, Outcome, Wrong, event, open, read_all, segment};

const APPS: &str = "tenant_main.apps";

/// Batches of every shape; answers them, to be sent again.
async fn fill(client: &dyn EventLog) -> Result<Vec<Append>, Wrong> {
    let mut batches = Vec::new();
    for n in 0..40_usize {
        let wide = "x".repeat(n * 997 % 30_000);
        let mut events: Vec<_> = (0..1 + n % 5)
            .map(|i| {
                let data = format!("{{ \"n\":{n},\n\t\"text\" : \"{wide}é\" }}");
                event([APPS, "platform"][i % 2], &format!("k\0{}", n % 7), &data)
            })
            .collect();
        events[0].trace = (n % 2 == 0).then(|| format!("trace-{n}"));
        events[0].cause = (n > 0).then_some(Position(1));
        events[0].version = u16::try_from(1 + n)?;
        let batch = Append::of(events);
        client.append(batch.clone()).await?;
        batches.push(batch);
    }
    Ok(batches)
}

/// Everything that readers get, as one text an event.
async fn all(client: &dyn EventLog) -> Result<Vec<String>, Wrong> {
    let text = |event: &Recorded| -> Result<String, Wrong> { Ok(serde_json::to_string(event)?) };
    let events = read_all(client, Filter::default(), 100).await?;
    events.iter().map(|event| text(event)).collect()
}

/// What was appended before the move is known after it, and what comes next follows on.
async fn goes_on(client: &dyn EventLog, batches: &[Append]) -> Outcome {
    let head = client.head();
    for batch in batches {
        let answer = client.append(batch.clone()).await?;
        assert_eq!(answer.revs.len(), batch.events.len());
    }
    assert_eq!(client.head(), head);
    let next = Append::of(vec![event(APPS, "k\0new", "{}")]);
    let next = next.expecting(segment(APPS), "k\0new", Expect::None);
    let answer = client.append(next).await?;
    assert_eq!((answer.first, answer.revs), (head.next(), vec![Rev(1)]));
    Ok(())
}

fn same_file(one: &Path, other: &Path) -> Outcome {
    assert!(fs::read(one)? == fs::read(other)?, "the exports differ");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_log_moves_to_postgresql_and_back_and_stays_the_same() -> Outcome {
    let Some(cluster) = Cluster::start(0).await? else {
        return Ok(());
    };
    let (dir, files) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let file = |name: &str| files.path().join(name);
    let (log, client) = open(dir.path(), 1 << 16)?;
    let batches = fill(&*client).await?;
    let (log_id, written): (LogId, _) = (log.log_id(), all(&*client).await?);
    log.close().await;
    drop((log, client));
    let content = transfer::export_log(dir.path(), &file("1"))?;
    assert_eq!(
        (content.log_id, content.head),
        (log_id, Position(written.len() as u64))
    );
    assert_eq!(transfer::content(dir.path())?, content);

    let options = || options(&cluster, "moved");
    assert_eq!(Engine::import(options()?, &file("1")).await?, content);
    assert_eq!(Engine::verify(options()?).await?.content, content);
    let taken = Engine::import(options()?, &file("1")).await;
    assert!(
        matches!(taken, Err(TransferError::Postgres(OpenError::Taken { .. }))),
        "{taken:?}"
    );
    assert_eq!(Engine::export(options()?, &file("2")).await?, content);
    same_file(&file("1"), &file("2"))?;
    let (engine, client) = lead(&cluster, "moved").await?;
    assert_eq!(
        (engine.log_id(), all(&*client).await?),
        (log_id, written.clone())
    );
    goes_on(&*client, &batches).await?;
    let written = all(&*client).await?;
    engine.close().await;

    // Commits of another grouping than the first log's: the same file all the same.
    let content = Engine::export(options()?, &file("3")).await?;
    assert_eq!(Engine::verify(options()?).await?.content, content);
    let back = files.path().join("back");
    let small = support::options().extent_lens(1 << 14, 1 << 16);
    assert_eq!(transfer::import_log(&file("3"), &back, &small)?, content);
    assert!(Log::verify(&back)?.extents > 1);
    assert_eq!(transfer::content(&back)?, content);
    transfer::export_log(&back, &file("4"))?;
    same_file(&file("3"), &file("4"))?;
    let (log, client) = open(&back, 1 << 16)?;
    assert_eq!((log.log_id(), all(&*client).await?), (log_id, written));
    let batch = Append::of(vec![event(APPS, "k\0new", "{}")]);
    let after = batch.expecting(segment(APPS), "k\0new", Expect::Rev(Rev(1)));
    client.append(after).await?;
    for batch in &batches {
        client.append(batch.clone()).await?;
    }
    assert_eq!(client.head(), content.head.next());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_export_that_was_changed_or_cut_leaves_nothing_behind() -> Outcome {
    let Some(cluster) = Cluster::start(0).await? else {
        return Ok(());
    };
    let (dir, files) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let file = |name: &str| files.path().join(name);
    let (log, client) = open(dir.path(), 1 << 16)?;
    fill(&*client).await?;
    log.close().await;
    drop((log, client));
    transfer::export_log(dir.path(), &file("good"))?;
    let good = fs::read(file("good"))?;
    // A name that is taken is not written over.
    assert!(transfer::export_log(dir.path(), &file("good")).is_err());
    assert!(fs::read(file("good"))? == good);

    let cut = good.len() - 700;
    let mut changed = good.clone();
    changed[cut] ^= 1;
    let cases = [
        ("cut", good[..cut].to_vec(), Some(cut as u64)),
        ("changed", changed, None),
        ("empty", Vec::new(), Some(0)),
        ("another file", b"not an export".repeat(100), Some(0)),
    ];
    for (name, bytes, at) in cases {
        fs::write(file("bad"), bytes)?;
        let embedded = transfer::import_log(&file("bad"), &file("log"), &support::options());
        let database = Engine::import(options(&cluster, "never")?, &file("bad")).await;
        for refused in [embedded, database] {
            let Err(TransferError::Damaged { byte, .. }) = refused else {
                panic!("{name}: {refused:?}")
            };
            assert!(
                at.is_none_or(|at| at == byte) && byte <= cut as u64,
                "{name}: {byte}"
            );
        }
    }
    let mut left: Vec<_> = fs::read_dir(files.path())?
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect::<Result<_, _>>()?;
    left.sort();
    assert_eq!(left, ["bad", "good"]);
    let missing = Engine::verify(options(&cluster, "never")?).await;
    assert!(
        matches!(missing, Err(OpenError::Missing { .. })),
        "{missing:?}"
    );
    // An embedded log is made only where nothing is.
    let taken = transfer::import_log(&file("good"), dir.path(), &support::options());
    assert!(
        matches!(taken, Err(TransferError::Taken { .. })),
        "{taken:?}"
    );
    let empty = tempfile::tempdir()?;
    transfer::import_log(&file("good"), empty.path(), &support::options())?;
    let (_log, client) = open(empty.path(), 1 << 16)?;
    assert_eq!(all(&*client).await?.len() as u64, client.head().get());
    Ok(())
}
