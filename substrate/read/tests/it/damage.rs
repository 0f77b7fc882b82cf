//! Files that were cut, overwritten, or changed behind the node's back: built again, or found out.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tabbify_api::log::EventLog;
use tabbify_api::read::{AuditFilter, ReadModel as _, ReadScope, Window};
use tabbify_types::{Digest, Tenant};

use crate::history::served;
use crate::rebuild::{from_zero, text_index_is_whole};
use crate::support::{Outcome, Running, WATCHDOG, Wrong, app, append, open_log};

/// SQLite's page.
const PAGE_LEN: usize = 4096;

/// A log, the read model of it at rest, and the digest that it must have.
async fn at_rest(dir: &Path) -> Result<(tabbify_log::Log, Arc<dyn EventLog>, Digest), Wrong> {
    let (handle, log) = open_log(&dir.join("log"))?;
    for number in 0..30 {
        let events = served(
            &Tenant::main(),
            app(number),
            &format!("app-{number}"),
            number,
        );
        append(&log, events).await?;
    }
    let running = Running::start(&dir.join("read"), &log).await?;
    running.reach(log.head()).await?;
    let digest = running.node.digest().await?;
    running.stop().await?;
    Ok((handle, log, digest))
}

fn current(home: &Path) -> Result<PathBuf, Wrong> {
    Ok(home.join(std::fs::read_to_string(home.join("CURRENT"))?))
}

/// Asks until everything is answered and is as it must be: whoever comes upon damage has the file
/// built again.
async fn mended(home: &Path, log: &Arc<dyn EventLog>, expected: Digest, about: &str) -> Outcome {
    let running = Running::start(home, log).await?;
    let node = &running.node;
    let asking = async {
        loop {
            running.reach(log.head()).await?;
            let filter = AuditFilter {
                text: Some("app*".to_owned()),
                ..AuditFilter::default()
            };
            let window = Window::first(500);
            let found = node
                .audit(ReadScope::Platform, filter, window.clone())
                .await;
            let listed = node.apps(ReadScope::Platform, None, window).await;
            if let (Ok(found), Ok(listed), Ok(digest)) = (found, listed, node.digest().await)
                && (found.rows.len(), listed.rows.len(), digest) == (300, 30, expected)
            {
                return Ok::<_, Wrong>(());
            }
            tokio::task::yield_now().await;
        }
    };
    let asked = tokio::time::timeout(WATCHDOG, asking).await;
    asked.map_err(|_| format!("{about}: {:?}", node.status()))??;
    running.stop().await
}

#[tokio::test]
async fn files_that_were_cut_or_overwritten_are_built_again() -> Outcome {
    let dir = tempfile::tempdir()?;
    let home = dir.path().join("read");
    let (_handle, log, expected) = at_rest(dir.path()).await?;
    let good = std::fs::read(current(&home)?)?;
    let pages = good.len() / PAGE_LEN;
    assert!(pages > 30);
    for len in [
        0,
        1,
        100,
        PAGE_LEN,
        good.len() / 2,
        good.len() - PAGE_LEN,
        good.len() - 1,
    ] {
        std::fs::write(current(&home)?, &good[..len])?;
        mended(&home, &log, expected, &format!("cut at {len}")).await?;
        text_index_is_whole(&home).map_err(|error| format!("cut at {len}: {error}"))?;
    }
    // Every page in the long run, some of them in the default one.
    let step = if crate::support::long() { 1 } else { pages / 7 };
    for page in (0..pages).step_by(step) {
        let mut bad = good.clone();
        let mut noise = blake3::Hasher::new()
            .update(&page.to_le_bytes())
            .finalize_xof();
        noise.fill(&mut bad[page * PAGE_LEN..][..PAGE_LEN]);
        std::fs::write(current(&home)?, &bad)?;
        mended(&home, &log, expected, &format!("noise in page {page}")).await?;
    }
    Ok(())
}

#[tokio::test]
async fn damage_under_a_running_node_is_found_by_questions() -> Outcome {
    let dir = tempfile::tempdir()?;
    let home = dir.path().join("read");
    let (_handle, log, expected) = at_rest(dir.path()).await?;
    let running = Running::start(&home, &log).await?;
    running.reach(log.head()).await?;
    let before = current(&home)?;
    let file = File::options().write(true).open(&before)?;
    let len = usize::try_from(file.metadata()?.len())?;
    for page in 1..len / PAGE_LEN {
        file.write_all_at(&[0xa5; PAGE_LEN], (page * PAGE_LEN) as u64)?;
    }
    // Nothing is written: a question is the first to see it.
    let asking = async {
        // For a moment no file is current.
        while current(&home).ok().as_ref() == Some(&before) {
            // It may be answered from pages in memory, or not at all.
            let _ = running
                .node
                .apps(ReadScope::Platform, None, Window::first(1))
                .await;
            tokio::task::yield_now().await;
        }
        Ok::<_, Wrong>(())
    };
    tokio::time::timeout(WATCHDOG, asking).await??;
    while running.node.digest().await.ok() != Some(expected) {
        running.reach(log.head()).await?;
    }
    running.stop().await
}

#[tokio::test]
async fn rows_that_were_changed_are_found_by_a_rebuild() -> Outcome {
    let dir = tempfile::tempdir()?;
    let home = dir.path().join("read");
    let (_handle, log, expected) = at_rest(dir.path()).await?;
    let conn = rusqlite::Connection::open(current(&home)?)?;
    conn.execute("UPDATE apps SET name = 'forged' WHERE name = 'app-7'", [])?;
    drop(conn);
    let running = Running::start(&home, &log).await?;
    let rebuilt = running.node.rebuild().await?;
    assert_ne!(rebuilt.before, expected);
    assert_eq!(rebuilt.digest, expected);
    assert_eq!(running.node.digest().await?, from_zero(&log).await?);
    running.stop().await
}

#[tokio::test]
async fn a_file_without_its_tables_is_built_again() -> Outcome {
    let dir = tempfile::tempdir()?;
    let home = dir.path().join("read");
    let (_handle, log, expected) = at_rest(dir.path()).await?;
    for spoil in [
        "DROP TABLE meta",
        "DELETE FROM meta",
        "UPDATE projections SET name = name || '-2'",
        "UPDATE meta SET position = 99999999",
        "PRAGMA user_version = 999",
    ] {
        let conn = rusqlite::Connection::open(current(&home)?)?;
        conn.execute_batch(spoil)?;
        drop(conn);
        mended(&home, &log, expected, spoil).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_rebuild_goes_on_with_what_is_served() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (_handle, log, _) = at_rest(dir.path()).await?;
    let running = Running::start(&dir.path().join("read"), &log).await?;
    running.reach(log.head()).await?;
    // Events come while it is built; all of them are in both when it is done.
    let (rebuilt, written) = tokio::join!(running.node.rebuild(), async {
        for number in 100..110 {
            let events = served(
                &Tenant::main(),
                app(number),
                &format!("late-{number}"),
                number,
            );
            let last = append(&log, events).await?;
            running.reach(last).await?;
        }
        Ok::<_, Wrong>(())
    });
    written?;
    let rebuilt = rebuilt?;
    assert_eq!(rebuilt.digest, rebuilt.before);
    running.reach(log.head()).await?;
    assert_eq!(running.node.digest().await?, from_zero(&log).await?);
    running.stop().await
}
