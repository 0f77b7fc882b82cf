//! Real log services over TCP: order, ends, machines that are away, and that come back.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tabbify_api::logs::AppLogs;
use tabbify_process::{Importance, SystemClock, Tasks};
use tabbify_supervisor::{FileLogs, LogService};
use tabbify_types::{HostUla, Timestamp};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::dial::{Dial, DialError, Stream as Connection};

/// LIMIT: how long a test waits for a line that must come.
const WATCHDOG: Duration = Duration::from_secs(60);

fn app() -> AppId {
    "0191e7c2-1111-7222-8333-444455556666"
        .parse()
        .expect("a UUID")
}

/// Where machines listen, by their addresses in the mesh.
#[derive(Debug, Default)]
struct Net(Mutex<HashMap<Ipv6Addr, SocketAddr>>);

impl Net {
    fn known(&self) -> MutexGuard<'_, HashMap<Ipv6Addr, SocketAddr>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Dial for Net {
    fn dial(&self, to: SocketAddrV6) -> BoxFuture<'_, Result<Box<dyn Connection>, DialError>> {
        let at = self.known().get(to.ip()).copied();
        Box::pin(async move {
            let at = at.ok_or(DialError::NoLease(to))?;
            let stream = TcpStream::connect(at).await;
            let stream = stream.map_err(|_| DialError::Refused(to))?;
            Ok(Box::new(stream) as Box<dyn Connection>)
        })
    }
}

/// A machine with what its apps printed.
struct Computer {
    dir: TempDir,
    index: u16,
    net: Arc<Net>,
    tasks: Tasks,
}

impl Computer {
    fn new(index: u16, net: &Arc<Net>) -> Self {
        Self {
            dir: tempfile::tempdir().expect("a temporary directory"),
            index,
            net: Arc::clone(net),
            tasks: Tasks::new(),
        }
    }

    fn logs(&self) -> FileLogs {
        FileLogs::new(self.dir.path())
    }

    /// Its supervisor is there from now on, until its tasks are stopped.
    async fn serve(&mut self) {
        self.tasks = Tasks::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let at = listener.local_addr().expect("a bound socket");
        self.net.known().insert(self.address().addr(), at);
        let service = LogService::new(Arc::new(self.logs()), &self.tasks);
        let (tasks, stop) = (self.tasks.clone(), self.tasks.token());
        self.tasks
            .spawn("listener", Importance::Detached, async move {
                while let Some(Ok((stream, _))) = stop.run_until_cancelled(listener.accept()).await
                {
                    let serving = service.clone().connection(stream);
                    tasks.spawn("connection", Importance::Detached, serving);
                }
            });
    }

    fn address(&self) -> HostUla {
        HostUla::new(1, self.index)
    }

    fn machine(&self) -> Machine {
        Machine {
            host: format!("box{}", self.index).parse().expect("a host's name"),
            address: self.address(),
            dial: Arc::clone(&self.net) as Arc<dyn Dial>,
            tasks: self.tasks.clone(),
        }
    }

    /// One line of an instance that has the machine's number.
    fn prints(&self, secs: u64, text: &str) {
        let line = LogLine {
            at: Timestamp::from_secs(secs),
            instance: InstanceId(self.index.into()),
            stream: Stream::Stdout,
            line: text.to_owned(),
        };
        let mut bytes = serde_json::to_vec(&line).expect("plain data");
        bytes.push(b'\n');
        let directory = self.dir.path().join("logs").join(app().to_string());
        std::fs::create_dir_all(&directory).expect("a writable directory");
        let path = directory.join(format!("{}.ndjson", self.index));
        let file = OpenOptions::new().append(true).create(true).open(path);
        file.and_then(|mut file| file.write_all(&bytes))
            .expect("a writable directory");
    }
}

async fn merged(here: &Computer, there: &[&Computer], query: LogQuery) -> Merged {
    let reader = here.logs().open(app(), query.clone()).await;
    let machines = there.iter().map(|there| there.machine()).collect();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let reader = reader.expect("readable logs");
    Merged::open(reader, machines, app(), &query, &clock).await
}

async fn next(merged: &mut Merged) -> Option<String> {
    let next = timeout(WATCHDOG, merged.next()).await;
    let line = next.expect("a line comes, or the end");
    line.expect("readable logs").map(|line| line.line)
}

async fn all(mut merged: Merged) -> Vec<String> {
    let mut lines = Vec::new();
    while let Some(line) = next(&mut merged).await {
        lines.push(line);
    }
    lines
}

async fn three() -> [Computer; 3] {
    let net = Arc::default();
    let mut computers = [1, 2, 3].map(|index| Computer::new(index, &net));
    for (at, text) in [(1, "a"), (4, "d"), (7, "g")] {
        computers[0].prints(at, text);
    }
    for (at, text) in [(2, "b"), (5, "e")] {
        computers[1].prints(at, text);
    }
    for (at, text) in [(3, "c"), (6, "f")] {
        computers[2].prints(at, text);
    }
    computers[1].serve().await;
    computers[2].serve().await;
    computers
}

#[tokio::test]
async fn lines_of_all_machines_in_the_order_of_their_times() {
    let [here, two, three] = three().await;
    let there = [&two, &three];
    let read = |query| merged(&here, &there, query);
    let lines = all(read(LogQuery::default()).await).await;
    assert_eq!(lines, ["a", "b", "c", "d", "e", "f", "g"]);
    for (tail, expected) in [
        (3, "efg"),
        (1, "g"),
        (0, ""),
        (7, "abcdefg"),
        (99, "abcdefg"),
    ] {
        let query = LogQuery {
            tail: Some(tail),
            ..LogQuery::default()
        };
        assert_eq!(all(read(query).await).await.concat(), expected, "{tail}");
    }
    let query = LogQuery {
        since: Some(Timestamp::from_secs(5)),
        ..LogQuery::default()
    };
    assert_eq!(all(read(query).await).await.concat(), "efg");
}

#[tokio::test]
async fn a_machine_that_is_away_is_named_and_the_others_are_shown() {
    let [here, two, _] = three().await;
    let away = Computer::new(9, &Arc::default());
    let lines = all(merged(&here, &[&two, &away], LogQuery::default()).await).await;
    assert_eq!(lines[..5], ["a", "b", "d", "e", "g"]);
    let said = &lines[5..];
    let [said] = said else {
        panic!("one line about box9: {said:?}");
    };
    assert!(
        said.starts_with("tabbify: what box9 has is missing here: "),
        "{said}"
    );
}

#[tokio::test]
async fn who_follows_hears_every_machine_and_goes_on_after_its_restart() {
    let [here, mut two, _] = three().await;
    let query = LogQuery {
        tail: Some(0),
        follow: true,
        since: None,
    };
    let mut merged = merged(&here, &[&two], query).await;
    two.prints(100, "one");
    assert_eq!(next(&mut merged).await.as_deref(), Some("one"));
    here.prints(101, "two");
    assert_eq!(next(&mut merged).await.as_deref(), Some("two"));
    // Two of the same moment, of which one has been read when the supervisor ends.
    two.prints(102, "three");
    assert_eq!(next(&mut merged).await.as_deref(), Some("three"));
    two.tasks.stop();
    let said = next(&mut merged).await.expect("a line about it");
    assert!(said.contains("what box2 has is missing here"), "{said}");
    two.prints(102, "four");
    two.prints(103, "five");
    two.serve().await;
    assert_eq!(next(&mut merged).await.as_deref(), Some("four"));
    assert_eq!(next(&mut merged).await.as_deref(), Some("five"));
    here.prints(104, "six");
    assert_eq!(next(&mut merged).await.as_deref(), Some("six"));
}
