//! `kill -9` at random moments of a real process: nothing that was answered is lost.

use std::collections::BTreeMap;
use std::env;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use tabbify_api::log::{Append, Filter};
use tabbify_log::Log;
use tabbify_types::Position;
use tokio::task::JoinSet;

use crate::support::{Outcome, Wrong, event, open, read_all};

const ROUNDS: u64 = 20;
const WRITERS: u64 = 6;
/// Names the directory to the child; without it the child's test does nothing.
const DIR: &str = "TABBIFY_LOG_CRASH_DIR";

/// The child: appends for ever, each writer to its own key, and prints what was answered.
#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "the test's own re-execution, not configuration"
)]
fn crash_child() -> Outcome {
    let Some(dir) = env::var_os(DIR) else {
        return Ok(());
    };
    tokio::runtime::Runtime::new()?.block_on(async {
        let (_log, client) = open(Path::new(&dir), 1 << 15)?;
        let mut writers: JoinSet<Result<(), String>> = JoinSet::new();
        for writer in 0..WRITERS {
            let client = client.clone();
            writers.spawn(async move {
                for n in 0_usize.. {
                    let key = format!("w{writer}");
                    let data = format!("{{\"text\":\"{}\"}}", "x".repeat(n % 9 * 173));
                    let one = |_| event("platform", &key, &data);
                    let batch = Append::of((0..1 + n % 3).map(one).collect());
                    let ids: Vec<String> = batch.events.iter().map(|e| e.id.to_string()).collect();
                    let answer = client
                        .append(batch)
                        .await
                        .map_err(|error| error.to_string())?;
                    println!("ack {} {}", answer.first, ids.join(" "));
                }
                Ok(())
            });
        }
        while let Some(done) = writers.join_next().await {
            done??;
        }
        Ok(())
    })
}

/// Runs the child until it has printed `acks` answers, kills it, and answers all that it printed.
fn crash(dir: &Path, acks: u64) -> Result<BTreeMap<u64, String>, Wrong> {
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
    let (mut acked, mut count) = (BTreeMap::new(), 0);
    let mut lines = BufReader::new(stdout).split(b'\n');
    // The pipe still holds answers that were printed before the kill: they count as well.
    while let Some(line) = lines.next().transpose()? {
        let line = String::from_utf8(line)?;
        // libtest prints the name of the test without a line end.
        let Some((_, ack)) = line.split_once("ack ") else {
            continue;
        };
        let mut words = ack.split(' ');
        let first: u64 = words.next().ok_or("a position")?.parse()?;
        let ids: Vec<&str> = words.collect();
        // The kill may cut the last line.
        if ids.iter().any(|id| id.len() != 36) {
            continue;
        }
        acked.extend((first..).zip(ids.into_iter().map(str::to_owned)));
        count += 1;
        if count == acks {
            child.kill()?;
        }
    }
    child.kill()?;
    child.wait()?;
    Ok(acked)
}

#[tokio::test]
async fn kill_9_loses_nothing_that_was_answered() -> Outcome {
    let dir = tempfile::tempdir()?;
    let mut acked: BTreeMap<u64, String> = BTreeMap::new();
    let mut random: u64 = tabbify_process::random::<8>()
        .into_iter()
        .fold(0, |n, b| n << 8 | u64::from(b));
    println!("seed {random}");
    for round in 0..ROUNDS {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let fresh = crash(dir.path(), 1 + (random >> 33) % 150)?;
        assert!(
            !fresh.is_empty(),
            "round {round}: the child answered nothing"
        );
        acked.extend(fresh);

        let verified = Log::verify(dir.path())?;
        let (log, client) = open(dir.path(), 1 << 15)?;
        assert_eq!(verified.head, log.head());
        let all = read_all(&*client, Filter::default(), 1000).await?;
        assert!(
            all.iter()
                .map(|event| event.position.get())
                .eq(1..=log.head().get())
        );
        for (position, id) in &acked {
            let index = usize::try_from(*position)? - 1;
            let event = all
                .get(index)
                .ok_or_else(|| format!("{position} is lost"))?;
            assert_eq!(
                event.id.to_string(),
                *id,
                "round {round}: position {position}"
            );
        }
        let mut revs: BTreeMap<&str, u64> = BTreeMap::new();
        for event in &all {
            let rev = revs.entry(event.key.as_str()).or_default();
            *rev += 1;
            assert_eq!(
                event.rev.get(),
                *rev,
                "round {round}: position {}",
                event.position
            );
        }
        log.close().await;
    }
    let verified = Log::verify(dir.path())?;
    println!("{} events in {} extents", verified.head, verified.extents);
    assert!(verified.head >= Position(acked.len() as u64) && verified.extents > 1);
    Ok(())
}

#[tokio::test]
async fn another_process_is_refused() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (_log, client) = open(dir.path(), 1 << 15)?;
    assert!(crash(dir.path(), 1)?.is_empty());
    assert_eq!(client.head(), Position(0));
    Ok(())
}
