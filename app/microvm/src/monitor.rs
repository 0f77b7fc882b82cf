//! QEMU's machine protocol (QMP), as far as it is asked: which ports it forwards.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;

/// LIMIT: one message of QEMU's.
const LINE_LEN_MAX: u64 = 64 << 10;
/// LIMIT: how long it may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Where the guest's ports are on loopback.
pub(crate) async fn forwarded(stream: UnixStream) -> io::Result<Vec<(u16, SocketAddr)>> {
    let ask = async {
        let mut stream = BufReader::new(stream);
        message(&mut stream).await?; // its greeting
        execute(&mut stream, json!({"execute": "qmp_capabilities"})).await?;
        let line = json!({"command-line": "info usernet"});
        let command = json!({"execute": "human-monitor-command", "arguments": line});
        let answer = execute(&mut stream, command).await?;
        Ok(table(answer.as_str().unwrap_or_default()))
    };
    tokio::time::timeout(ANSWER_WITHIN, ask)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

async fn execute(stream: &mut BufReader<UnixStream>, command: Value) -> io::Result<Value> {
    let mut line = command.to_string();
    line.push('\n');
    stream.write_all(line.as_bytes()).await?;
    loop {
        let mut message = message(stream).await?;
        if let Some(answer) = message.get_mut("return") {
            return Ok(answer.take());
        }
        if let Some(error) = message.get("error") {
            return Err(io::Error::other(error.to_string()));
        }
        // Events come between.
    }
}

async fn message(stream: &mut BufReader<UnixStream>) -> io::Result<Value> {
    let mut line = String::new();
    stream.take(LINE_LEN_MAX).read_line(&mut line).await?;
    serde_json::from_str(&line).map_err(io::Error::other)
}

/// Reads rows such as `TCP[HOST_FORWARD]  10  127.0.0.1 40683  10.0.2.15  8080  0  0`.
fn table(text: &str) -> Vec<(u16, SocketAddr)> {
    let rows = text.lines().filter_map(|line| {
        let mut fields = line.split_whitespace();
        let forward = fields.next()? == "TCP[HOST_FORWARD]";
        let _descriptor = fields.next()?;
        let address: Ipv4Addr = fields.next()?.parse().ok()?;
        let port: u16 = fields.next()?.parse().ok()?;
        let _guest = fields.next()?;
        let of: u16 = fields.next()?.parse().ok()?;
        forward.then_some((of, SocketAddr::from((address, port))))
    });
    rows.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_are_forwarded_ports() {
        let text = "Hub -1 (net):\r\n  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\r\n  \
                    TCP[HOST_FORWARD]  10       127.0.0.1 40683       10.0.2.15  8080     0     0\r\n  \
                    TCP[ESTABLISHED]  11       127.0.0.1 40683       10.0.2.15  9999     0     0\r\n";
        assert_eq!(
            table(text),
            [(8080, SocketAddr::from(([127, 0, 0, 1], 40683)))]
        );
        assert_eq!(table(""), []);
    }
}
