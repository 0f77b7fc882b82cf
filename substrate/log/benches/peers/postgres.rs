//! PostgreSQL as Debian has it: a table with the same fields and the same two promises, unique ids
//! and an order.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::Context as _;
use futures_util::{SinkExt as _, StreamExt as _};
use tabbify_types::EventId;
use tokio_postgres::{Client, NoTls, Statement};

use crate::append::Writer;
use crate::ours::{key, payload, segment};
use crate::process::{self, Running};

const TABLE: &str = "create table events (
    position bigint generated always as identity primary key,
    id uuid not null unique,
    segment text not null,
    key text not null,
    type text not null,
    at timestamptz not null default now(),
    data json not null)";
const INSERT: &str = "insert into events (id, segment, key, type, data)
    values ($1, $2, $3, $4, $5::text::json) returning position";
const READ: &str = "select position, id::text, segment, key, type, data::text
    from events order by position";
/// Settings beyond the defaults: checkpoints must not fall into a turn.
const SETTINGS: [&str; 4] = [
    "max_connections=100",
    "max_wal_size=8GB",
    "checkpoint_timeout=1h",
    "unix_socket_directories=",
];

#[derive(Debug)]
pub(crate) struct Postgres {
    _running: Running,
    _dir: tempfile::TempDir,
    port: u16,
    version: String,
}

impl Postgres {
    pub(crate) async fn start() -> anyhow::Result<Self> {
        let bin = bin()?;
        let dir = tempfile::tempdir()?;
        let mut init = Command::new(bin.join("initdb"));
        init.args([
            "--auth=trust",
            "--no-instructions",
            "--username=postgres",
            "-D",
        ]);
        init.arg(dir.path()).current_dir("/");
        process::run_as(&mut init, "postgres", dir.path())?;
        process::output(&mut init)?;
        let address = process::free_address()?;
        let mut server = Command::new(bin.join("postgres"));
        server.arg("-D").arg(dir.path()).current_dir("/");
        server.args(["-h", "127.0.0.1", "-p", &address.port().to_string()]);
        for setting in SETTINGS {
            server.args(["-c", setting]);
        }
        process::run_as(&mut server, "postgres", dir.path())?;
        let running = process::start(&mut server)?;
        process::listening(address).await?;
        let version = process::output(Command::new(bin.join("postgres")).arg("--version"))?;
        let postgres = Self {
            _running: running,
            _dir: dir,
            port: address.port(),
            version,
        };
        postgres.ready().await?.batch_execute(TABLE).await?;
        Ok(postgres)
    }

    /// It listens before it takes connections.
    async fn ready(&self) -> anyhow::Result<Client> {
        for _ in 0..200 {
            if let Ok(client) = self.connect().await {
                return Ok(client);
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        self.connect().await
    }

    async fn connect(&self) -> anyhow::Result<Client> {
        let config = format!(
            "host=127.0.0.1 port={} user=postgres dbname=postgres",
            self.port
        );
        let (client, connection) = tokio_postgres::connect(&config, NoTls).await?;
        let tasks = tabbify_process::Tasks::new();
        let running = async move {
            // Its end is the client's to notice.
            let _ = connection.await;
        };
        tasks.spawn("postgres", tabbify_process::Importance::Detached, running);
        Ok(client)
    }

    pub(crate) async fn writers(&self, count: usize) -> anyhow::Result<Vec<PgWriter>> {
        let mut writers = Vec::new();
        for _ in 0..count {
            let client = self.connect().await?;
            let insert = client.prepare(INSERT).await?;
            let segment = segment().to_string();
            writers.push(PgWriter {
                client,
                insert,
                segment: Arc::from(segment),
            });
        }
        Ok(writers)
    }

    /// The same events as ours, in order.
    pub(crate) async fn fill(&self, count: u64, keys: u64) -> anyhow::Result<()> {
        let client = self.connect().await?;
        let copy = "copy events (id, segment, key, type, data) from stdin";
        let sink = client.copy_in::<_, bytes::Bytes>(copy).await?;
        let mut sink = std::pin::pin!(sink);
        let segment = segment();
        let mut from = 0;
        while from < count {
            let mut text = String::new();
            for n in from..count.min(from + 1_000) {
                let (id, key, data) = (EventId::mint(), key(n, keys), payload(n));
                text.push_str(&format!(
                    "{id}\t{segment}\t{key}\tx.thing_happened\t{data}\n"
                ));
            }
            sink.send(text.into()).await?;
            from += 1_000;
        }
        sink.finish().await?;
        // Neither may stand in a transaction, and two in one call would.
        client.batch_execute("vacuum analyze events").await?;
        client.batch_execute("checkpoint").await?;
        Ok(())
    }

    /// Reads every event, in order, and looks at every field; how many there were.
    pub(crate) async fn read_all(&self) -> anyhow::Result<u64> {
        let client = self.connect().await?;
        let rows = client
            .query_raw(
                READ,
                std::iter::empty::<&(dyn tokio_postgres::types::ToSql + Sync)>(),
            )
            .await?;
        let mut rows = std::pin::pin!(rows);
        let mut due = 0;
        while let Some(row) = rows.next().await {
            let row = row?;
            let position: i64 = row.get(0);
            let texts: [&str; 5] = std::array::from_fn(|at| row.get(at + 1));
            due += 1;
            anyhow::ensure!(
                u64::try_from(position)? == due && texts[4].len() == 256,
                "the wrong event at {due}"
            );
        }
        Ok(due)
    }
}

impl fmt::Display for Postgres {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let settings = SETTINGS.join(" ");
        write!(
            f,
            "peer: {}, fsync and synchronous_commit on as by default, {settings}; one prepared \
             INSERT per event, primary key and unique id",
            self.version
        )
    }
}

/// The newest version that is installed.
fn bin() -> anyhow::Result<PathBuf> {
    let versions = Path::new("/usr/lib/postgresql");
    let found = std::fs::read_dir(versions).context("postgresql is not installed")?;
    let mut found: Vec<PathBuf> = found
        .map(|entry| Ok(entry?.path()))
        .collect::<std::io::Result<_>>()?;
    found.sort();
    Ok(found
        .pop()
        .context("postgresql is not installed")?
        .join("bin"))
}

#[derive(Debug)]
pub(crate) struct PgWriter {
    client: Client,
    insert: Statement,
    segment: Arc<str>,
}

impl Writer for PgWriter {
    async fn append(&mut self, n: u64) -> anyhow::Result<()> {
        let (id, key, data) = (EventId::mint().uuid(), key(n, 1_000), payload(n));
        let segment = &*self.segment;
        self.client
            .query_one(
                &self.insert,
                &[&id, &segment, &key, &"x.thing_happened", &data],
            )
            .await?;
        Ok(())
    }
}
