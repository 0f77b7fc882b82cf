//! Redis as Debian has it, with its append-only file synced for every answer. The protocol is small
//! enough to be spoken by hand (RESP2).

use std::fmt;
use std::net::SocketAddr;
use std::process::Command;

use tabbify_types::EventId;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

use crate::append::Writer;
use crate::ours::{key, payload, segment};
use crate::process::{self, Running};

const SETTINGS: [&str; 6] = [
    "--appendonly",
    "yes",
    "--appendfsync",
    "always",
    "--save",
    "",
];

#[derive(Debug)]
pub(crate) struct Redis {
    _running: Running,
    _dir: tempfile::TempDir,
    address: SocketAddr,
    version: String,
}

impl Redis {
    pub(crate) async fn start() -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let address = process::free_address()?;
        let mut server = Command::new("redis-server");
        server.args(["--bind", "127.0.0.1", "--port", &address.port().to_string()]);
        server.args(SETTINGS).arg("--dir").arg(dir.path());
        let running = process::start(&mut server)?;
        process::listening(address).await?;
        let version = process::output(Command::new("redis-server").arg("--version"))?;
        Ok(Self {
            _running: running,
            _dir: dir,
            address,
            version: version.split(" sha=").next().unwrap_or_default().to_owned(),
        })
    }

    pub(crate) async fn writers(&self, count: usize) -> anyhow::Result<Vec<RedisWriter>> {
        let mut writers = Vec::new();
        for _ in 0..count {
            let stream = TcpStream::connect(self.address).await?;
            stream.set_nodelay(true)?;
            writers.push(RedisWriter {
                stream: BufReader::new(stream),
                segment: segment().to_string(),
                request: Vec::new(),
                line: Vec::new(),
            });
        }
        Ok(writers)
    }
}

impl fmt::Display for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let settings = SETTINGS.join(" ");
        write!(
            f,
            "peer: {}, {settings}\"\"; one XADD per event",
            self.version
        )
    }
}

#[derive(Debug)]
pub(crate) struct RedisWriter {
    stream: BufReader<TcpStream>,
    segment: String,
    request: Vec<u8>,
    line: Vec<u8>,
}

impl Writer for RedisWriter {
    async fn append(&mut self, n: u64) -> anyhow::Result<()> {
        let (id, key, data) = (EventId::mint().to_string(), key(n, 1_000), payload(n));
        let words = [
            "XADD",
            &self.segment,
            "*",
            "id",
            &id,
            "key",
            &key,
            "type",
            "x.thing_happened",
            "data",
            &data,
        ];
        self.request.clear();
        self.request
            .extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
        for word in words {
            self.request
                .extend_from_slice(format!("${}\r\n{word}\r\n", word.len()).as_bytes());
        }
        self.stream.get_mut().write_all(&self.request).await?;
        self.line.clear();
        self.stream.read_until(b'\n', &mut self.line).await?;
        let line = std::str::from_utf8(&self.line)?.trim_end();
        let len = line
            .strip_prefix('$')
            .and_then(|len| len.parse::<usize>().ok());
        let Some(len) = len else {
            anyhow::bail!("redis says {line}");
        };
        self.line.resize(len + 2, 0);
        self.stream.read_exact(&mut self.line).await?;
        Ok(())
    }
}
