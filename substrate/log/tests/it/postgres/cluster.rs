//! PostgreSQL started by a test: a primary and its standbys, each in a directory of its own, on unix
//! sockets only, with every sync of the disk on.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio_postgres::{Client, NoTls};

use crate::support::{Outcome, Wrong};

/// A watchdog, not a measure: nothing here takes a tenth of it.
const WITHIN: Duration = Duration::from_secs(60);
const SETTINGS: &str = "
listen_addresses = ''
fsync = on
full_page_writes = on
synchronous_commit = on
wal_level = replica
hot_standby = on
max_wal_senders = 6
max_connections = 90
shared_buffers = 32MB
log_min_messages = warning
log_timezone = 'UTC'
timezone = 'UTC'
";

/// Where the server's programs are; `None` if this machine has none.
#[expect(
    clippy::disallowed_methods,
    reason = "where programs are, not configuration"
)]
fn programs() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").ok();
    let debian = versions
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path().join("bin"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let elsewhere = std::env::split_paths(&path).collect::<Vec<_>>();
    let all = ["postgres", "initdb", "pg_basebackup"];
    let whole = |dir: &PathBuf| all.iter().all(|program| dir.join(program).exists());
    let mut found: Vec<_> = debian.filter(whole).collect();
    found.sort();
    found.pop().or_else(|| elsewhere.into_iter().find(whole))
}

/// The user that the server runs as: it refuses root.
#[derive(Debug, Clone, Copy)]
struct User {
    uid: u32,
    gid: u32,
}

impl User {
    /// `None` if this process is not root and needs no other.
    fn other() -> Result<Option<Self>, Wrong> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        let id = |what: &str| -> Result<u32, Wrong> {
            let output = Command::new("id").args([what, "postgres"]).output()?;
            Ok(String::from_utf8(output.stdout)?.trim().parse()?)
        };
        Ok(Some(Self {
            uid: id("-u")?,
            gid: id("-g")?,
        }))
    }
}

/// A primary and its standbys.
pub(crate) struct Cluster {
    programs: PathBuf,
    user: Option<User>,
    pub(crate) nodes: Vec<Node>,
    base: tempfile::TempDir,
}

/// One server.
pub(crate) struct Node {
    /// Holds the socket; not the data, of which standbys take copies.
    socket: PathBuf,
    child: Child,
}

impl Cluster {
    /// A primary that waits for any one of `standbys` that follow it; `None`, and said so, if this
    /// machine has no PostgreSQL.
    pub(crate) async fn start(standbys: usize) -> Result<Option<Self>, Wrong> {
        let Some(programs) = programs() else {
            let test = std::thread::current();
            let test = test.name().unwrap_or("a test");
            let why = "this machine has no PostgreSQL; as root, `cargo xtask test` installs it";
            writeln!(std::io::stdout(), "{test}: NOT RUN: {why}")?;
            return Ok(None);
        };
        let base = tempfile::tempdir()?;
        let user = User::other()?;
        if let Some(user) = user {
            chown(base.path(), Some(user.uid), Some(user.gid))?;
        }
        let mut cluster = Self {
            programs,
            user,
            nodes: Vec::new(),
            base,
        };
        cluster.start_primary(standbys)?;
        cluster.wait_for(0).await?;
        for index in 1..=standbys {
            cluster.start_standby(index)?;
        }
        cluster.wait_for_standbys(0, standbys).await?;
        Ok(Some(cluster))
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.current_dir(self.base.path()).env("LC_ALL", "C");
        if let Some(user) = self.user {
            command.uid(user.uid).gid(user.gid);
        }
        command
    }

    fn dir(&self, index: usize) -> PathBuf {
        self.base.path().join(format!("n{index}"))
    }

    fn socket(&self, index: usize) -> PathBuf {
        self.base.path().join(format!("s{index}"))
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Outcome {
        let output = self
            .command(program)
            .args(arguments)
            .stderr(Stdio::piped())
            .output()?;
        if output.status.success() {
            return Ok(());
        }
        Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr)).into())
    }

    fn start_primary(&mut self, standbys: usize) -> Outcome {
        let dir = self.dir(0);
        let data = text(&dir)?;
        self.run(
            "initdb",
            &[
                "-D",
                data,
                "-U",
                "postgres",
                "-A",
                "trust",
                "-E",
                "UTF8",
                "--locale=C",
                "-N",
            ],
        )?;
        let names: Vec<String> = (1..=standbys).map(|index| format!("s{index}")).collect();
        let waits_for = match standbys {
            0 => String::new(),
            _ => format!("ANY 1 ({})", names.join(", ")),
        };
        append(
            &dir,
            &format!("{SETTINGS}synchronous_standby_names = '{waits_for}'\n"),
        )?;
        self.start_node(0)
    }

    fn start_standby(&mut self, index: usize) -> Outcome {
        let dir = self.dir(index);
        let from = text(&self.nodes[0].socket)?.to_owned();
        let data = text(&dir)?;
        self.run(
            "pg_basebackup",
            &[
                "-D", data, "-h", &from, "-U", "postgres", "-X", "stream", "-c", "fast", "-N",
            ],
        )?;
        self.follow(index, 0)?;
        fs::write(dir.join("standby.signal"), "")?;
        self.start_node(index)
    }

    /// Writes down that `index` follows `of`.
    fn follow(&self, index: usize, of: usize) -> Outcome {
        let from = self.socket(of);
        append(
            &self.dir(index),
            &format!(
                "primary_conninfo = 'host={} user=postgres application_name=s{index}'\n",
                text(&from)?
            ),
        )
    }

    fn start_node(&mut self, index: usize) -> Outcome {
        let (dir, socket) = (self.dir(index), self.socket(index));
        fs::create_dir(&socket)?;
        if let Some(user) = self.user {
            chown(&socket, Some(user.uid), Some(user.gid))?;
        }
        let log = fs::File::create(self.base.path().join(format!("n{index}.log")))?;
        let child = self
            .command("postgres")
            .arg("-D")
            .arg(&dir)
            .arg("-c")
            .arg(format!("unix_socket_directories={}", text(&socket)?))
            .stderr(log)
            .spawn()?;
        self.nodes.push(Node { socket, child });
        Ok(())
    }

    /// Conninfo of all nodes, in order; the engine takes the one that takes writes.
    pub(crate) fn conninfo(&self) -> String {
        let hosts: Vec<_> = self
            .nodes
            .iter()
            .map(|node| node.socket.to_string_lossy().into_owned())
            .collect();
        format!("host={} user=postgres dbname=postgres", hosts.join(","))
    }

    /// A session of a test's own with one node.
    pub(crate) async fn session(&self, index: usize) -> Result<Client, Wrong> {
        let node = format!(
            "host={} user=postgres dbname=postgres",
            text(&self.nodes[index].socket)?
        );
        let (client, connection) = tokio_postgres::connect(&node, NoTls).await?;
        #[expect(clippy::disallowed_methods, reason = "a test's own connection")]
        tokio::spawn(connection);
        Ok(client)
    }

    async fn wait_for(&self, index: usize) -> Outcome {
        self.until("it takes connections", || async {
            Ok(self.session(index).await.is_ok())
        })
        .await
    }

    /// Returns when `count` standbys follow the node.
    pub(crate) async fn wait_for_standbys(&self, index: usize, count: usize) -> Outcome {
        let streaming = "select count(*) from pg_stat_replication where state = 'streaming' \
             and sync_state in ('quorum', 'sync')";
        self.until("its standbys follow", || async {
            let session = self.session(index).await?;
            let row = session.query_one(streaming, &[]).await?;
            Ok(usize::try_from(row.get::<_, i64>(0))? >= count)
        })
        .await
    }

    async fn until<F: Future<Output = Result<bool, Wrong>>>(
        &self,
        what: &str,
        mut holds: impl FnMut() -> F,
    ) -> Outcome {
        let waiting = async {
            while !holds().await? {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Ok(())
        };
        match tokio::time::timeout(WITHIN, waiting).await {
            Ok(done) => done,
            Err(_) => {
                Err(format!("PostgreSQL: {what}, not within {WITHIN:?}: {}", self.logs()).into())
            }
        }
    }

    fn logs(&self) -> String {
        let logs = (0..self.nodes.len()).map(|index| {
            let log = self.base.path().join(format!("n{index}.log"));
            fs::read_to_string(log).unwrap_or_default()
        });
        logs.collect()
    }

    /// Kills the server of a node, as a loss of its machine would: no process of it goes on.
    pub(crate) fn kill(&mut self, index: usize) -> Outcome {
        signal(&self.nodes[index].child, Signal::KILL)?;
        self.nodes[index].child.wait()?;
        Ok(())
    }

    /// Stops the processes of a standby as they are, so that it takes nothing any more.
    pub(crate) fn pause(&self, index: usize) -> Outcome {
        self.signal_all(index, Signal::STOP)
    }

    /// Lets a paused standby go on.
    pub(crate) fn go_on(&self, index: usize) -> Outcome {
        self.signal_all(index, Signal::CONT)
    }

    /// To the server and to each process that it has started.
    fn signal_all(&self, index: usize, what: Signal) -> Outcome {
        let server = &self.nodes[index].child;
        signal(server, what)?;
        let children = format!("/proc/{0}/task/{0}/children", server.id());
        for pid in fs::read_to_string(children)?.split_whitespace() {
            let pid = Pid::from_raw(pid.parse()?).ok_or("a process")?;
            kill_process(pid, what)?;
        }
        Ok(())
    }

    /// Makes the standby that has received most the primary, and has the others follow it. Answers
    /// which. The old primary is gone.
    pub(crate) async fn promote_furthest(&mut self) -> Result<usize, Wrong> {
        let mut furthest: Option<(i64, usize)> = None;
        for index in 1..self.nodes.len() {
            let session = self.session(index).await?;
            let received = "select (pg_last_wal_receive_lsn() - '0/0'::pg_lsn)::bigint";
            let received: i64 = session.query_one(received, &[]).await?.get(0);
            if furthest.is_none_or(|(most, _)| received > most) {
                furthest = Some((received, index));
            }
        }
        let (_, promoted) = furthest.ok_or("a standby")?;
        let session = self.session(promoted).await?;
        let ended: bool = session.query_one("select pg_promote()", &[]).await?.get(0);
        assert!(ended, "promoted");
        for index in (1..self.nodes.len()).filter(|index| *index != promoted) {
            self.follow(index, promoted)?;
            signal(&self.nodes[index].child, Signal::HUP)?;
        }
        self.wait_for_standbys(promoted, self.nodes.len() - 2)
            .await?;
        Ok(promoted)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Standbys first, so that none of them complains; at once, since nothing has to be kept.
        for index in (0..self.nodes.len()).rev() {
            // Whoever has been waited for is not a process of ours any more.
            if !matches!(self.nodes[index].child.try_wait(), Ok(None)) {
                continue;
            }
            // One that is paused would not hear it.
            let _ = self.go_on(index);
            let child = &mut self.nodes[index].child;
            if signal(child, Signal::QUIT).is_ok() {
                let _ = child.wait();
            }
        }
    }
}

fn signal(child: &Child, signal: Signal) -> Outcome {
    let pid = Pid::from_raw(i32::try_from(child.id())?).ok_or("a process")?;
    Ok(kill_process(pid, signal)?)
}

fn text(path: &Path) -> Result<&str, Wrong> {
    path.to_str().ok_or_else(|| "a path in UTF-8".into())
}

fn append(dir: &Path, lines: &str) -> Outcome {
    let path = dir.join("postgresql.conf");
    let mut settings = fs::read_to_string(&path)?;
    settings.push_str(lines);
    fs::write(path, settings)?;
    Ok(())
}
