//! `kill -9` of a real process in the middle of folding: nothing that was folded is lost, nothing is
//! folded twice.

use std::env;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use tabbify_api::read::ReadModel as _;
use tabbify_types::{Position, Tenant};

use crate::history::served;
use crate::rebuild::{from_zero, text_index_is_whole};
use crate::support::{Outcome, Running, Wrong, app, append, open_log};

/// Rounds of the default run; `cargo xtask test --long` has more.
const ROUNDS: u64 = 10;
/// Names the directory to the child; without it the child's test does nothing.
const DIR: &str = "TABBIFY_READ_CRASH_DIR";
/// Batches between two rebuilds: some of the kills come into one.
const REBUILD_EVERY: u128 = 7;

/// The child: appends for ever, folds, rebuilds, and prints how far it is.
#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "the test's own re-execution, not configuration"
)]
fn crash_child() -> Outcome {
    let Some(dir) = env::var_os(DIR) else {
        return Ok(());
    };
    let dir = Path::new(&dir);
    tokio::runtime::Runtime::new()?.block_on(async {
        let (_handle, log) = open_log(&dir.join("log"))?;
        let running = Running::start(&dir.join("read"), &log).await?;
        let begun = u128::from(log.head().get());
        for number in begun.. {
            let events = served(
                &Tenant::main(),
                app(number),
                &format!("app-{number}"),
                number,
            );
            append(&log, events).await?;
            println!("folded {}", running.node.status().position);
            if number % REBUILD_EVERY == 0 {
                let rebuilt = running.node.rebuild().await?;
                assert_eq!(rebuilt.digest, rebuilt.before);
            }
        }
        Ok(())
    })
}

/// Runs the child until it has printed `lines`, kills it, and answers how far it was at least.
fn crash(dir: &Path, lines: u64) -> Result<Position, Wrong> {
    let mut child = Command::new(env::current_exe()?)
        .args([
            "crash::crash_child",
            "--exact",
            "--nocapture",
            "--test-threads=1",
        ])
        .env(DIR, dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let stdout = child.stdout.take().ok_or("a pipe")?;
    let (mut folded, mut count) = (Position(0), 0);
    for line in BufReader::new(stdout).lines() {
        let line = line?;
        // libtest prints the name of the test without a line end.
        if let Some((_, position)) = line.split_once("folded ") {
            folded = folded.max(position.parse()?);
            count += 1;
            if count == lines {
                child.kill()?;
            }
        }
    }
    child.wait()?;
    match count >= lines {
        true => Ok(folded),
        false => Err(format!("the child ended by itself after {count} lines").into()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_processes_lose_nothing() -> Outcome {
    let dir = tempfile::tempdir()?;
    let home = dir.path().join("read");
    let rounds = if crate::support::long() {
        100 * ROUNDS
    } else {
        ROUNDS
    };
    for round in 0..rounds {
        // No two rounds alike, and the same ones in every run.
        let folded = crash(dir.path(), 1 + round * 13 % 29)?;
        let (handle, log) = open_log(&dir.path().join("log"))?;
        let running = Running::start(&home, &log).await?;
        let found = running.node.status().position;
        assert!(found >= folded, "round {round}: {found} after {folded}");
        running.reach(log.head()).await?;
        if round % 3 == 0 || round + 1 == rounds {
            let digest = running.node.digest().await?;
            assert_eq!(digest, from_zero(&log).await?, "round {round}");
        }
        running.stop().await?;
        text_index_is_whole(&home)?;
        handle.close().await;
    }
    Ok(())
}
