//! Reading while others write: order, ends, growth, rotation, and bytes that are not ours.

use std::fs::OpenOptions;
use std::io::Write as _;

use proptest::collection::vec;
use proptest::prelude::{any, proptest};
use tabbify_api::logs::Stream;
use tabbify_types::Timestamp;

use super::*;
use crate::state::tests::app;

/// LIMIT: how long a test waits for a line that must come.
const WATCHDOG: Duration = Duration::from_secs(30);

struct Home {
    dir: tempfile::TempDir,
}

impl Home {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let home = Self { dir };
        fs::create_dir_all(home.logs()).expect("an empty directory takes another");
        home
    }

    fn logs(&self) -> PathBuf {
        self.dir.path().join("logs").join(app(1).to_string())
    }

    fn write(&self, file: &str, bytes: &[u8]) {
        let path = self.logs().join(file);
        let file = OpenOptions::new().append(true).create(true).open(path);
        file.and_then(|mut file| file.write_all(bytes))
            .expect("a writable directory");
    }

    async fn open(&self, query: LogQuery) -> Box<dyn LogReader> {
        let logs = FileLogs::new(self.dir.path());
        logs.open(app(1), query).await.expect("readable logs")
    }

    /// What the query gives, as the lines' texts.
    async fn read(&self, query: LogQuery) -> Vec<String> {
        let mut reader = self.open(query).await;
        let mut lines = Vec::new();
        while let Some(line) = reader.next().await.expect("readable logs") {
            lines.push(line.line);
        }
        lines
    }
}

fn line(instance: u32, secs: u64, text: &str) -> Vec<u8> {
    let line = LogLine {
        at: Timestamp::from_secs(secs),
        instance: InstanceId(instance),
        stream: Stream::Stdout,
        line: text.to_owned(),
    };
    let mut bytes = serde_json::to_vec(&line).expect("plain data");
    bytes.push(b'\n');
    bytes
}

fn tail(newest: usize) -> LogQuery {
    LogQuery {
        tail: Some(newest),
        ..LogQuery::default()
    }
}

fn since(secs: u64) -> LogQuery {
    LogQuery {
        since: Some(Timestamp::from_secs(secs)),
        ..LogQuery::default()
    }
}

#[tokio::test]
async fn instances_and_rotated_files_are_one_story() {
    let home = Home::new();
    assert!(home.read(LogQuery::default()).await.is_empty());
    home.write("1.1.ndjson", &line(1, 1, "a"));
    home.write("1.ndjson", &[line(1, 2, "b"), line(1, 5, "e")].concat());
    home.write("2.ndjson", &[line(2, 3, "c"), line(2, 4, "d")].concat());
    home.write("10.ndjson", &line(10, 6, "f"));
    home.write("x.ndjson", &line(3, 6, "not an instance"));
    home.write("1.runner.log", b"not a log of ours\n");
    let all = ["a", "b", "c", "d", "e", "f"];
    assert_eq!(home.read(LogQuery::default()).await, all);
    for newest in 0..8 {
        let from = all.len().saturating_sub(newest);
        assert_eq!(home.read(tail(newest)).await, all[from..], "{newest}");
    }
    assert_eq!(home.read(since(4)).await, all[3..]);
    let both = LogQuery {
        tail: Some(2),
        ..since(2)
    };
    assert_eq!(home.read(both).await, all[4..]);
    assert_eq!(home.read(since(7)).await, [""; 0]);
}

#[tokio::test]
async fn bytes_that_are_not_ours_are_skipped() {
    let home = Home::new();
    home.write("1.ndjson", b"\xff\xfe\n\n{}\n");
    home.write("1.ndjson", &line(1, 1, "first"));
    home.write("1.ndjson", &line(2, 2, "says that it is another instance"));
    let mut endless = vec![b'x'; 3 * LINE_LEN_MAX];
    endless.push(b'\n');
    home.write("1.ndjson", &endless);
    home.write("1.ndjson", &line(1, 3, "second"));
    let torn = line(1, 4, "torn");
    home.write("1.ndjson", &torn[..torn.len() / 2]);
    assert_eq!(home.read(LogQuery::default()).await, ["first", "second"]);
    assert_eq!(home.read(tail(1)).await, ["second"]);
    assert_eq!(home.read(tail(2)).await, ["first", "second"]);
    assert_eq!(home.read(tail(9)).await, ["first", "second"]);
    assert_eq!(log_tail(&home.logs(), InstanceId(1), 8192), "first\nsecond");
    // The next start of the runner ends the torn line and goes on.
    home.write("1.ndjson", b"\n");
    home.write("1.ndjson", &line(1, 5, "third"));
    assert_eq!(home.read(tail(2)).await, ["second", "third"]);
}

#[tokio::test]
async fn a_follower_sees_growth_new_instances_and_rotation() {
    let home = Home::new();
    home.write(
        "1.ndjson",
        &[line(1, 1, "old"), line(1, 2, "last")].concat(),
    );
    let follow = LogQuery {
        follow: true,
        ..tail(1)
    };
    let mut reader = home.open(follow).await;
    let mut expect = async |text: &str| {
        let next = tokio::time::timeout(WATCHDOG, reader.next()).await;
        assert_eq!(next.unwrap().unwrap().unwrap().line, text);
    };
    expect("last").await;
    home.write("1.ndjson", &line(1, 3, "grown"));
    expect("grown").await;
    let halves = line(1, 4, "in two writes");
    home.write("1.ndjson", &halves[..9]);
    home.write("2.ndjson", &line(2, 4, "from a new instance"));
    expect("from a new instance").await;
    home.write("1.ndjson", &halves[9..]);
    expect("in two writes").await;
    home.write("1.ndjson", &line(1, 5, "before the rotation"));
    let (from, to) = (home.logs().join("1.ndjson"), home.logs().join("1.1.ndjson"));
    fs::rename(from, to).unwrap();
    home.write("1.ndjson", &line(1, 6, "after the rotation"));
    expect("before the rotation").await;
    expect("after the rotation").await;
}

#[tokio::test]
async fn dropping_a_next_loses_nothing() {
    let home = Home::new();
    let mut lines = Vec::new();
    for n in 0..500 {
        lines.append(&mut line(1, n, &n.to_string()));
    }
    home.write("1.ndjson", &lines);
    let mut reader = home.open(LogQuery::default()).await;
    let mut read: u64 = 0;
    loop {
        // The first poll starts the work, and the future is dropped before it is done.
        let once = std::future::poll_fn(|context| {
            let polled = reader.next().as_mut().poll(context);
            std::task::Poll::Ready(polled)
        });
        match once.await {
            std::task::Poll::Ready(Ok(Some(line))) => {
                assert_eq!(line.line, read.to_string());
                read += 1;
            }
            std::task::Poll::Ready(end) => {
                assert!(matches!(end, Ok(None)), "{end:?}");
                break;
            }
            std::task::Poll::Pending => tokio::task::yield_now().await,
        }
    }
    assert_eq!(read, 500);
}

#[test]
fn the_tail_of_a_failure_is_short_and_at_the_end() {
    let home = Home::new();
    assert_eq!(log_tail(&home.logs(), InstanceId(1), 100), "");
    home.write("1.1.ndjson", &line(1, 1, "rotated"));
    home.write("1.ndjson", &line(1, 1, "here"));
    assert_eq!(log_tail(&home.logs(), InstanceId(1), 100), "rotated\nhere");
    for n in 0..1_000 {
        home.write("1.ndjson", &line(1, 2, &format!("line {n}")));
    }
    let tail = log_tail(&home.logs(), InstanceId(1), 100);
    assert!(tail.len() <= 100 && tail.starts_with("line "), "{tail}");
    assert!(tail.ends_with("line 998\nline 999"), "{tail}");
    home.write("1.ndjson", &line(1, 3, &"y".repeat(16 * 1024)));
    assert_eq!(log_tail(&home.logs(), InstanceId(1), 100), "y".repeat(100));
}

proptest! {
    /// Backwards gives what forwards gives, for any bytes and around the block's length.
    #[test]
    fn backwards_is_forwards(
        pieces in vec((vec(any::<u8>(), 0..40), 0..3_usize, 0..70_000_usize), 0..6),
    ) {
        let mut bytes = Vec::new();
        for (text, ends, padding) in pieces {
            bytes.extend(text);
            bytes.extend(std::iter::repeat_n(b'\n', ends));
            bytes.extend(std::iter::repeat_n(b'.', padding));
        }
        let home = Home::new();
        home.write("1.ndjson", &bytes);
        let file = fs::File::open(home.logs().join("1.ndjson")).unwrap();
        let mut found = Vec::new();
        backward::lines(&file, |offset, line| {
            found.push((offset, line.to_vec()));
            true
        }).unwrap();
        found.reverse();
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(&[][..], |end| &bytes[..=end]);
        let mut offset = 0;
        let mut expected = Vec::new();
        for line in whole.split_inclusive(|byte| *byte == b'\n') {
            expected.push((offset, line[..line.len() - 1].to_vec()));
            offset += line.len() as u64;
        }
        let short = |lines: Vec<(u64, Vec<u8>)>| -> Vec<_> {
            lines.into_iter().filter(|(_, line)| line.len() <= LINE_LEN_MAX - 64 * 1024).collect()
        };
        assert_eq!(short(found), short(expected));
    }
}
