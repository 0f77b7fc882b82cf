//! Whatever happened on the way, the content is what the log says.

use std::path::Path;
use std::sync::Arc;

use proptest::test_runner::{Config as Cases, TestRunner};
use tabbify_api::log::EventLog;
use tabbify_api::read::ReadModel as _;
use tabbify_types::{Digest, NewEvent, Position, Tenant};

use crate::history::{any_history, served};
use crate::support::{Newer, Outcome, Running, Wrong, app, append, client, open_log, raw};

/// The digest of a read model that folds the whole log in one go.
pub(crate) async fn from_zero(log: &Arc<dyn EventLog>) -> Result<Digest, Wrong> {
    let dir = tempfile::tempdir()?;
    let running = Running::start(dir.path(), log).await?;
    running.reach(log.head()).await?;
    let digest = running.node.digest().await?;
    running.stop().await?;
    Ok(digest)
}

/// What a process that was killed leaves: everything as it is, nothing closed.
fn killed(from: &Path, to: &Path, wal_lost: u64) -> Outcome {
    for entry in std::fs::read_dir(from)? {
        let path = entry?.path();
        let copy = to.join(path.file_name().ok_or("a file")?);
        std::fs::copy(&path, &copy)?;
        if copy
            .extension()
            .is_some_and(|extension| extension == "sqlite-shm")
        {
            std::fs::remove_file(&copy)?;
        } else if copy.to_string_lossy().ends_with("-wal") {
            // The power went with the last commits of the write-ahead log.
            let wal = std::fs::File::options().write(true).open(&copy)?;
            wal.set_len(wal.metadata()?.len().saturating_sub(wal_lost))?;
        }
    }
    Ok(())
}

/// Writes `events` in parts; the node sees each part live, is restarted or killed between them, and
/// ends with the content of a read model that never was interrupted.
async fn interrupted(events: Vec<NewEvent>, cuts: &[(usize, u8)]) -> Outcome {
    let dir = tempfile::tempdir()?;
    let (_log, client) = open_log(&dir.path().join("log"))?;
    let client: Arc<dyn EventLog> = Arc::new(Newer(client));
    let mut home = tempfile::tempdir()?;
    let mut running = Running::start(home.path(), &client).await?;
    let mut left = events.into_iter();
    for &(part, how) in cuts {
        let part: Vec<NewEvent> = left.by_ref().take(part).collect();
        append(&client, part).await?;
        match how {
            // Killed wherever it is: nothing waits for the fold here.
            0 | 1 => {
                let copy = tempfile::tempdir()?;
                running.reach(client.head()).await?;
                killed(home.path(), copy.path(), u64::from(how) * 5000)?;
                running.stop().await?;
                home = copy;
                running = Running::start(home.path(), &client).await?;
            }
            2 => {
                running.stop().await?;
                running = Running::start(home.path(), &client).await?;
            }
            _ => running.reach(client.head()).await?,
        }
    }
    append(&client, left.collect()).await?;
    running.reach(client.head()).await?;
    let live = running.node.digest().await?;
    // The index as it grew, with every cut, before a rebuild makes it anew.
    running.stop().await?;
    text_index_is_whole(home.path())?;
    running = Running::start(home.path(), &client).await?;
    assert_eq!(live, from_zero(&client).await?, "live and from zero");
    let rebuilt = running.node.rebuild().await?;
    assert_eq!((rebuilt.before, rebuilt.digest), (live, live));
    assert_eq!(running.node.digest().await?, live, "after the swap");
    running.stop().await?;
    text_index_is_whole(home.path())
}

/// The digest is of the tables; that the text index says the same, SQLite checks.
pub(crate) fn text_index_is_whole(home: &Path) -> Outcome {
    let name = std::fs::read_to_string(home.join("CURRENT"))?;
    let conn = rusqlite::Connection::open(home.join(name))?;
    let check = "INSERT INTO audit_text (audit_text, rank) VALUES ('integrity-check', 1)";
    conn.execute(check, [])?;
    let found: String = conn.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
    match found.as_str() {
        "ok" => Ok(()),
        wrong => Err(wrong.into()),
    }
}

#[test]
fn random_histories_however_cut_are_their_rebuild() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut runner = TestRunner::new(Cases {
        cases: 24,
        failure_persistence: None,
        ..Cases::default()
    });
    let cuts = proptest::collection::vec((0..60_usize, 0..4_u8), 0..4);
    runner
        .run(&(any_history(), cuts), |(events, cuts)| {
            let outcome = runtime.block_on(interrupted(events, &cuts));
            outcome.map_err(|error| proptest::test_runner::TestCaseError::fail(error.to_string()))
        })
        .unwrap();
}

#[tokio::test]
async fn a_rebuild_serves_on_and_leaves_one_file() {
    let dir = tempfile::tempdir().unwrap();
    let (_log, client) = open_log(&dir.path().join("log")).unwrap();
    let home = dir.path().join("read");
    append(&client, served(&Tenant::main(), app(1), "shop", 1))
        .await
        .unwrap();
    let running = Running::start(&home, &client).await.unwrap();
    running.reach(client.head()).await.unwrap();
    let rebuilt = running.node.rebuild().await.unwrap();
    assert_eq!(rebuilt.position, client.head());
    assert_eq!(rebuilt.digest, rebuilt.before);
    // It goes on in the new file, and the old one is gone.
    let last = append(&client, served(&Tenant::main(), app(2), "blog", 2))
        .await
        .unwrap();
    running.reach(last).await.unwrap();
    let files: Vec<_> = std::fs::read_dir(&home)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".sqlite"))
        .collect();
    assert_eq!(files, ["read-0000000002.sqlite"]);
    assert_eq!(
        running.node.digest().await.unwrap(),
        from_zero(&client).await.unwrap()
    );
    running.stop().await.unwrap();
}

#[tokio::test]
async fn a_file_of_another_log_is_built_again() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("read");
    let (_long, long) = open_log(&dir.path().join("long")).unwrap();
    append(&long, served(&Tenant::main(), app(1), "shop", 1))
        .await
        .unwrap();
    let running = Running::start(&home, &long).await.unwrap();
    running.reach(long.head()).await.unwrap();
    running.stop().await.unwrap();

    // A log that is shorter, and one that is as long but says something else.
    for name in ["short", "other"] {
        let (_log, other) = open_log(&dir.path().join(name)).unwrap();
        let mut events = served(&Tenant::main(), app(2), "blog", 2);
        events.truncate(if name == "short" { 3 } else { 10 });
        append(&other, events).await.unwrap();
        let running = Running::start(&home, &other).await.unwrap();
        running.reach(other.head()).await.unwrap();
        let digest = running.node.digest().await.unwrap();
        assert_eq!(digest, from_zero(&other).await.unwrap(), "{name}");
        assert_eq!(running.node.status().position, other.head());
        running.stop().await.unwrap();
    }
}

#[tokio::test]
async fn damage_and_other_tables_are_built_again() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("read");
    let (_log, client) = open_log(&dir.path().join("log")).unwrap();
    append(&client, served(&Tenant::main(), app(1), "shop", 1))
        .await
        .unwrap();
    let expected = from_zero(&client).await.unwrap();
    let spoil: [fn(&Path) -> Outcome; 3] = [
        |path| Ok(std::fs::write(path, b"this is no database at all")?),
        |path| {
            let conn = rusqlite::Connection::open(path)?;
            Ok(conn.pragma_update(None, "user_version", 999)?)
        },
        |path| {
            Ok(std::fs::write(
                path.with_file_name("CURRENT"),
                b"../elsewhere",
            )?)
        },
    ];
    for spoil in spoil {
        let running = Running::start(&home, &client).await.unwrap();
        running.reach(client.head()).await.unwrap();
        assert_eq!(running.node.digest().await.unwrap(), expected);
        running.stop().await.unwrap();
        let name = std::fs::read_to_string(home.join("CURRENT")).unwrap();
        spoil(&home.join(name)).unwrap();
    }
    let running = Running::start(&home, &client).await.unwrap();
    running.reach(client.head()).await.unwrap();
    assert_eq!(running.node.digest().await.unwrap(), expected);
    running.stop().await.unwrap();
}

#[tokio::test]
async fn two_nodes_cannot_share_a_directory_and_a_partial_view_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("read");
    let (log, client_of_all) = open_log(&dir.path().join("log")).unwrap();
    append(&client_of_all, vec![raw("platform", "p", "x.a", 1, "{}")])
        .await
        .unwrap();
    append(&client_of_all, served(&Tenant::main(), app(1), "shop", 1))
        .await
        .unwrap();
    let running = Running::start(&home, &client_of_all).await.unwrap();
    let second = Running::start(&home, &client_of_all).await;
    assert!(second.is_err_and(|error| error.to_string().contains("in use")));
    running.stop().await.unwrap();

    let partial = log.client(tabbify_api::log::LogScope {
        actor: "svc:read".to_owned(),
        write: Vec::new(),
        read: vec!["tenant_*.apps".parse().unwrap()],
    });
    let blind = Running::start(&dir.path().join("blind"), &partial)
        .await
        .unwrap();
    assert!(
        blind
            .node
            .wait_for(Position(1), std::time::Duration::from_millis(200))
            .await
            .is_err()
    );
    let mut status = blind.node.status();
    while status.stopped.is_none() {
        tokio::task::yield_now().await;
        status = blind.node.status();
    }
    assert!(status.stopped.unwrap().contains("must see every event"));
    blind.stop().await.unwrap();
    drop(client(&log, "svc:other"));
}
