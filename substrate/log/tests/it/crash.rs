//! `kill -9` at random moments of a real process on a real disk: nothing that was answered is lost,
//! and nothing is there that nobody wrote.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tabbify_api::log::{Append, Filter};
use tabbify_log::Log;
use tabbify_types::Position;
use tokio::task::JoinSet;

use crate::support::{Outcome, Wrong, event, long, open, read_all};

/// Rounds on one directory, and on fresh ones: two on each.
const ROUNDS: u64 = 60;
const ROUNDS_FRESH: u64 = 40;
/// The long version has so many times more.
const LONG_TIMES: u64 = 40;
/// On one directory; then a new one, so that reading it all stays quick.
const ROUNDS_OF_ONE: u64 = 60;
const WRITERS: u64 = 6;
const EXTENT_LEN: u64 = 1 << 15;
/// Names the directory to the child; without it the child's test does nothing.
const DIR: &str = "TABBIFY_LOG_CRASH_DIR";

/// The child: appends for ever, each writer to its own key, and prints what it is going to append and
/// what was answered.
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
        let (_log, client) = open(Path::new(&dir), EXTENT_LEN)?;
        let mut writers: JoinSet<Result<(), String>> = JoinSet::new();
        for writer in 0..WRITERS {
            let client = client.clone();
            writers.spawn(async move {
                for n in 0_usize.. {
                    let (key, len) = (format!("w{writer}"), n % 9 * 173);
                    let data = format!("{{\"text\":\"{}\"}}", "x".repeat(len));
                    let one = |_| event("platform", &key, &data);
                    let batch = Append::of((0..1 + n % 3).map(one).collect());
                    let ids: Vec<String> = batch.events.iter().map(|e| e.id.to_string()).collect();
                    let ids = ids.join(" ");
                    println!("try {ids}");
                    let answer = client.append(batch).await;
                    let answer = answer.map_err(|error| error.to_string())?;
                    println!("ack {} {key} {len} {ids}", answer.first);
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

/// When a child is killed.
#[derive(Debug, Clone, Copy)]
enum Moment {
    /// After so many answers have been seen.
    Answers(u64),
    /// After a time, which may be before it has opened the log.
    After(Duration),
}

/// What the children of one directory have said.
#[derive(Debug, Default)]
struct Record {
    /// Id, key and length of what was answered, by position.
    acked: BTreeMap<u64, (String, String, usize)>,
    tried: BTreeSet<String>,
}

impl Record {
    /// One line; whether it is an answer. The kill may have cut it.
    fn line(&mut self, line: &str) -> Option<bool> {
        // libtest prints the name of the test without a line end.
        if let Some((_, ids)) = line.split_once("try ") {
            self.tried.extend(ids.split(' ').map(str::to_owned));
            return Some(false);
        }
        let (_, ack) = line.split_once("ack ")?;
        let mut words = ack.split(' ');
        let first: u64 = words.next()?.parse().ok()?;
        let (key, len) = (words.next()?.to_owned(), words.next()?.parse().ok()?);
        let ids: Vec<&str> = words.collect();
        if ids.is_empty() || ids.iter().any(|id| id.len() != 36) {
            return None;
        }
        for (position, id) in (first..).zip(ids) {
            let said = (id.to_owned(), key.clone(), len);
            self.acked.insert(position, said);
        }
        Some(true)
    }

    /// Opens what is left and compares.
    async fn compare(&self, dir: &Path) -> Result<Position, Wrong> {
        let (log, client) = open(dir, EXTENT_LEN)?;
        let all = read_all(&*client, Filter::default(), 1000).await?;
        let head = log.head();
        let positions = all.iter().map(|event| event.position.get());
        if !positions.eq(1..=head.get()) {
            return Err("positions have gaps".into());
        }
        for (position, (id, key, len)) in &self.acked {
            let event = all.get(usize::try_from(*position)? - 1);
            let event = event.ok_or_else(|| format!("{position} is lost; the head is {head}"))?;
            let text = event
                .data
                .get()
                .bytes()
                .filter(|byte| *byte == b'x')
                .count();
            // The name of the field has an x as well.
            if (&event.id.to_string(), &event.key, text) != (id, key, len + 1) {
                return Err(format!("position {position} is {event:?}, not {id}").into());
            }
        }
        let mut revs: BTreeMap<&str, u64> = BTreeMap::new();
        for event in &all {
            let rev = revs.entry(event.key.as_str()).or_default();
            *rev += 1;
            if event.rev.get() != *rev || !self.tried.contains(&event.id.to_string()) {
                return Err(format!("nobody wrote {event:?} as {rev}").into());
            }
        }
        log.close().await;
        Ok(head)
    }
}

/// Runs the child until its moment, kills it, and takes down what it has said. Whether it answered.
fn crash(dir: &Path, moment: Moment, record: &mut Record) -> Result<bool, Wrong> {
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
    let (done, never_done) = sync_channel::<()>(0);
    let killer = match moment {
        Moment::Answers(_) => None,
        Moment::After(time) => {
            let pid = Pid::from_child(&child);
            // Nobody has waited for the child, so the number is still its own.
            Some(thread::spawn(move || {
                let _ = never_done.recv_timeout(time);
                kill_process(pid, Signal::KILL)
            }))
        }
    };
    let mut answers = 0;
    // The pipe still holds answers that were printed before the kill: they count as well.
    for line in BufReader::new(stdout).split(b'\n') {
        if record.line(&String::from_utf8(line?)?) == Some(true) {
            answers += 1;
        }
        if matches!(moment, Moment::Answers(count) if answers == count) {
            child.kill()?;
        }
    }
    if let Some(killer) = killer {
        killer.join().map_err(|_| "the killer has panicked")??;
    }
    drop(done);
    child.kill()?;
    child.wait()?;
    Ok(answers > 0)
}

/// A linear congruential generator (Knuth, MMIX): a run is repeated by its printed seed.
struct Chance(u64);

impl Chance {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005);
        self.0 = self.0.wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }

    fn moment(&mut self) -> Moment {
        if self.below(2) == 0 {
            Moment::Answers(1 + self.below(150))
        } else {
            Moment::After(Duration::from_micros(self.below(120_000)))
        }
    }
}

#[expect(
    clippy::print_stdout,
    reason = "what a failed run needs to be understood; shown then"
)]
async fn rounds(total: u64, of_one: u64) -> Outcome {
    let mut chance = Chance(u64::from_le_bytes(tabbify_process::random()));
    println!("seed {}", chance.0);
    let (mut round, mut answered) = (0, 0);
    while round < total {
        let (dir, mut record) = (tempfile::tempdir()?, Record::default());
        for _ in 0..of_one {
            let moment = chance.moment();
            answered += u64::from(crash(dir.path(), moment, &mut record)?);
            let compared = record.compare(dir.path()).await;
            compared.map_err(|error| format!("round {round}, {moment:?}: {error}"))?;
            round += 1;
        }
        let verified = Log::verify(dir.path())?;
        let acked = record.acked.len();
        println!(
            "{acked} answers, {} events in {} extents",
            verified.head, verified.extents
        );
        assert_eq!(verified.torn, None);
    }
    // At least those that were killed for their answers have answered.
    assert!(answered > total / 4, "{answered} of {total} answered");
    Ok(())
}

fn times() -> u64 {
    if long() { LONG_TIMES } else { 1 }
}

#[tokio::test]
async fn kill_9_loses_nothing_that_was_answered() -> Outcome {
    rounds(ROUNDS * times(), ROUNDS_OF_ONE).await
}

#[tokio::test]
async fn kill_9_of_a_new_log_loses_nothing_that_was_answered() -> Outcome {
    rounds(ROUNDS_FRESH * times(), 2).await
}

#[tokio::test]
async fn another_process_is_refused() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (_log, client) = open(dir.path(), EXTENT_LEN)?;
    let mut record = Record::default();
    assert!(!crash(dir.path(), Moment::Answers(1), &mut record)?);
    assert!(record.tried.is_empty());
    assert_eq!(client.head(), Position(0));
    Ok(())
}
