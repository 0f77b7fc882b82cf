//! JetStream of Debian's nats-server 2.9, which acknowledges before the disk has anything: a row for
//! comparison, marked as what it is. The protocol is lines of text, spoken by hand.

use std::fmt;
use std::net::SocketAddr;
use std::process::Command;

use tabbify_types::EventId;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

use crate::append::Writer;
use crate::ours::{key, payload};
use crate::process::{self, Running};

#[derive(Debug)]
pub(crate) struct Nats {
    _running: Running,
    _dir: tempfile::TempDir,
    address: SocketAddr,
    version: String,
}

impl Nats {
    pub(crate) async fn start() -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let address = process::free_address()?;
        let mut server = Command::new("nats-server");
        server.args([
            "-a",
            "127.0.0.1",
            "-p",
            &address.port().to_string(),
            "-js",
            "-sd",
        ]);
        server.arg(dir.path());
        let running = process::start(&mut server)?;
        process::listening(address).await?;
        let version = process::output(Command::new("nats-server").arg("--version"))?;
        let nats = Self {
            _running: running,
            _dir: dir,
            address,
            version,
        };
        let mut line = nats.connect(0).await?;
        let stream = r#"{"name":"events","subjects":["events.*"],"storage":"file"}"#;
        let answer = line
            .request("$JS.API.STREAM.CREATE.events", "", stream.as_bytes())
            .await?;
        anyhow::ensure!(!answer.contains("\"error\""), "nats-server says {answer}");
        Ok(nats)
    }

    async fn connect(&self, number: usize) -> anyhow::Result<NatsWriter> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let mut writer = NatsWriter {
            stream: BufReader::new(stream),
            inbox: format!("_INBOX.bench.{number}"),
            out: Vec::new(),
            line: String::new(),
        };
        let hello = format!(
            "CONNECT {{\"verbose\":false,\"headers\":true}}\r\nSUB {} 1\r\n",
            writer.inbox
        );
        writer.stream.get_mut().write_all(hello.as_bytes()).await?;
        Ok(writer)
    }

    pub(crate) async fn writers(&self, count: usize) -> anyhow::Result<Vec<NatsWriter>> {
        let mut writers = Vec::new();
        for number in 0..count {
            writers.push(self.connect(number).await?);
        }
        Ok(writers)
    }
}

impl fmt::Display for Nats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "peer: {}, -js, file storage; one publish with an id per event; NOT durable: it cannot \
             sync every write",
            self.version
        )
    }
}

#[derive(Debug)]
pub(crate) struct NatsWriter {
    stream: BufReader<TcpStream>,
    inbox: String,
    out: Vec<u8>,
    line: String,
}

impl NatsWriter {
    /// Publishes and waits for what comes back. `headers` ends with an empty line, or is nothing.
    async fn request(
        &mut self,
        subject: &str,
        headers: &str,
        body: &[u8],
    ) -> anyhow::Result<String> {
        let (inbox, len) = (&self.inbox, headers.len() + body.len());
        let head = match headers.len() {
            0 => format!("PUB {subject} {inbox} {len}\r\n"),
            headers => format!("HPUB {subject} {inbox} {headers} {len}\r\n"),
        };
        self.out.clear();
        self.out.extend_from_slice(head.as_bytes());
        self.out.extend_from_slice(headers.as_bytes());
        self.out.extend_from_slice(body);
        self.out.extend_from_slice(b"\r\n");
        self.stream.get_mut().write_all(&self.out).await?;
        loop {
            self.line.clear();
            self.stream.read_line(&mut self.line).await?;
            let line = self.line.trim_end();
            if line == "PING" {
                self.stream.get_mut().write_all(b"PONG\r\n").await?;
            } else if line.starts_with("MSG ") {
                let len = line
                    .rsplit(' ')
                    .next()
                    .unwrap_or_default()
                    .parse::<usize>()?;
                self.out.resize(len + 2, 0);
                self.stream.read_exact(&mut self.out).await?;
                return Ok(String::from_utf8_lossy(&self.out).into_owned());
            } else if line.starts_with("-ERR") || line.is_empty() {
                anyhow::bail!("nats-server says {line:?}");
            }
        }
    }
}

impl Writer for NatsWriter {
    async fn append(&mut self, n: u64) -> anyhow::Result<()> {
        let headers = format!("NATS/1.0\r\nNats-Msg-Id: {}\r\n\r\n", EventId::mint());
        let subject = format!("events.{}", key(n, 1_000));
        let answer = self
            .request(&subject, &headers, payload(n).as_bytes())
            .await?;
        anyhow::ensure!(!answer.contains("\"error\""), "nats-server says {answer}");
        Ok(())
    }
}
