//! `tabbify mesh status | ping | explain`: asks the process that runs on a data directory about its end of
//! the mesh (docs/operating/mesh.md).

use std::fmt::Write as _;
use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::{BodyExt as _, Full};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tabbify_api::Problem;
use tabbify_api::endpoint::{
    CandidateFrom, EXPLAIN_PATH, EndpointStatus, ExplainRequest, Explained, MESH_SOCKET, Nat,
    OwnSide, PING_PATH, PathView, PeerView, PingLine, PingRequest, STATUS_PATH, TriedPath,
};
use tabbify_http::{Again, Answer, Client};
use tabbify_process::Tasks;
use tabbify_process::connect::UnixSocket;

use crate::data_dir::DataDir;
use crate::gateway_devices;
use crate::role::say;

/// LIMIT: how long the head of an answer may take: finding a peer and making keys with it are in it.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);
/// LIMIT: bytes of an answer, and of one line of it.
const ANSWER_LEN_MAX: usize = 16 * 1024 * 1024;

/// The commands.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// This machine's end of the mesh: addresses, NAT, stack, and the path to every peer
    Status(Status),
    /// Measure round trips to an app or a machine, by name or by address
    Ping(Ping),
    /// How a peer is reached, which addresses were tried, and why not directly
    Explain(Explain),
    #[command(flatten)]
    Devices(gateway_devices::Command),
}

/// Of `status`.
#[derive(Debug, clap::Args)]
pub(crate) struct Status {
    #[command(flatten)]
    at: At,
}

/// Of `ping`.
#[derive(Debug, clap::Args)]
pub(crate) struct Ping {
    /// An app (shop.main.internal), a machine (box2.internal), or an inner address (fd5a:…)
    to: String,
    /// How many round trips
    #[arg(short, long, default_value_t = 5)]
    count: u32,
    /// Milliseconds from one to the next
    #[arg(short, long, value_name = "MS", default_value_t = 1000)]
    interval: u64,
    /// Milliseconds that an answer may take
    #[arg(short = 'W', long, value_name = "MS", default_value_t = 2000)]
    timeout: u64,
    #[command(flatten)]
    at: At,
}

/// Of `explain`.
#[derive(Debug, clap::Args)]
pub(crate) struct Explain {
    /// A name, an inner address, or the beginning of a key as `status` shows it
    peer: String,
    #[command(flatten)]
    at: At,
}

/// Whom to ask, and how to show it.
#[derive(Debug, clap::Args)]
struct At {
    /// The data directory of the process to ask [default: $XDG_DATA_HOME/tabbify]
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// JSON instead of text (docs/operating/mesh.md)
    #[arg(long)]
    json: bool,
}

/// Does what the command line says.
pub(crate) async fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Status(Status { at }) => {
            let asked = Asked::open(at.data_dir)?;
            let status: EndpointStatus = asked.whole(Method::GET, STATUS_PATH, &()).await?;
            shown(at.json, &status, || status_text(&status));
        }
        Command::Explain(Explain { peer, at }) => {
            let asked = Asked::open(at.data_dir)?;
            let request = ExplainRequest { peer };
            let told: Explained = asked.whole(Method::POST, EXPLAIN_PATH, &request).await?;
            shown(at.json, &told, || explained_text(&told));
        }
        Command::Ping(asked) => return ping(asked).await,
        Command::Devices(command) => gateway_devices::run(command).await?,
    }
    Ok(ExitCode::SUCCESS)
}

fn shown(json: bool, document: &impl Serialize, text: impl FnOnce() -> String) {
    if json {
        let mut document = serde_json::to_string_pretty(document)
            .expect("INVARIANT: our own shapes have texts as keys");
        document.push('\n');
        say(&document);
    } else {
        say(&text());
    }
}

/// The process that runs on a data directory.
struct Asked {
    client: Client,
    data: DataDir,
    _tasks: Tasks,
}

impl Asked {
    fn open(data_dir: Option<PathBuf>) -> anyhow::Result<Self> {
        let data = DataDir::choose(data_dir)?;
        let tasks = Tasks::new();
        let socket = UnixSocket {
            directory: data.path().to_path_buf(),
            name: MESH_SOCKET.to_owned(),
        };
        let client = Client::new("mesh", Arc::new(socket), ANSWER_WITHIN, &tasks);
        Ok(Self {
            client,
            data,
            _tasks: tasks,
        })
    }

    async fn ask(
        &self,
        method: Method,
        path: &'static str,
        body: &impl Serialize,
    ) -> anyhow::Result<Answer> {
        let bytes = match method {
            Method::GET => Bytes::new(),
            _ => serde_json::to_vec(body)?.into(),
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "mesh")
            .body(Full::new(bytes))?;
        let sent = self.client.send(request, Again::Never).await;
        let answer = sent.with_context(|| {
            let data = self.data.path().display();
            format!(
                "nothing answers at {data}/{MESH_SOCKET}. Does `tabbify up` or a machine that joined run on \
                 that directory? Name another with --data-dir"
            )
        })?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let (parts, bytes) = answer.whole(ANSWER_LEN_MAX).await?;
        Err(refused(&Problem::of_answer(parts.status.as_u16(), &bytes)))
    }

    async fn whole<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &'static str,
        body: &impl Serialize,
    ) -> anyhow::Result<T> {
        let answer = self.ask(method, path, body).await?;
        let (_, bytes) = answer.whole(ANSWER_LEN_MAX).await?;
        serde_json::from_slice(&bytes)
            .context("the answer is not understood: is it another version?")
    }
}

fn refused(problem: &Problem) -> anyhow::Error {
    let fix = problem.fix.as_deref().unwrap_or_default();
    anyhow!("{}: {}. {fix}", problem.title, problem.detail)
}

/// Exit code 1 if nothing came back.
async fn ping(ping: Ping) -> anyhow::Result<ExitCode> {
    let asked = Asked::open(ping.at.data_dir)?;
    let request = PingRequest {
        to: ping.to,
        count: ping.count,
        interval_ms: ping.interval,
        timeout_ms: ping.timeout,
    };
    let answer = asked.ask(Method::POST, PING_PATH, &request).await?;
    let (_, mut body, _connection) = answer.into_parts();
    let mut trips = Trips::default();
    let mut waiting = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else {
            continue;
        };
        waiting.extend_from_slice(&data);
        if waiting.len() > ANSWER_LEN_MAX {
            bail!("a line of the answer has no end");
        }
        while let Some(end) = waiting.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = waiting.drain(..=end).collect();
            let told: PingLine = serde_json::from_slice(&line)?;
            if ping.at.json {
                say(&String::from_utf8_lossy(&line));
            } else {
                say(&ping_text(&told));
            }
            trips.take(&told)?;
        }
    }
    if !ping.at.json {
        say(&trips.text());
    }
    Ok(match trips.answered.len() {
        0 => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    })
}

/// What came of all pings.
#[derive(Debug, Default)]
struct Trips {
    answered: Vec<u64>,
    lost: usize,
}

impl Trips {
    fn take(&mut self, line: &PingLine) -> anyhow::Result<()> {
        match line {
            PingLine::Answer { rtt_us, .. } => self.answered.push(*rtt_us),
            PingLine::Lost { .. } => self.lost += 1,
            PingLine::Failed { problem } => return Err(refused(problem)),
            PingLine::To { .. } | PingLine::Handshake { .. } => {}
        }
        Ok(())
    }

    fn text(&self) -> String {
        let sent = self.answered.len() + self.lost;
        let mut text = format!("{sent} sent, {} answered", self.answered.len());
        let sum: u64 = self.answered.iter().sum();
        if let (Some(min), Some(max)) = (self.answered.iter().min(), self.answered.iter().max()) {
            let mean = sum / self.answered.len() as u64;
            let (min, mean, max) = (millis(*min), millis(mean), millis(*max));
            let _ = write!(
                text,
                ", round trip {min} / {mean} / {max} (least, mean, most)"
            );
        }
        text.push('\n');
        text
    }
}

fn ping_text(line: &PingLine) -> String {
    match line {
        PingLine::To { address, key, name } => match name {
            Some(name) => format!("{name} is {address}, key {key}\n"),
            None => format!("{address}, key {key}\n"),
        },
        PingLine::Handshake { took_us } => format!("handshake {}\n", millis(*took_us)),
        PingLine::Answer { seq, rtt_us, path } => {
            format!("{seq}: {} · {}\n", millis(*rtt_us), path_text(*path))
        }
        PingLine::Lost { seq, path } => {
            let path = path.map_or_else(|| "no path".to_owned(), path_text);
            format!("{seq}: no answer · {path}\n")
        }
        PingLine::Failed { .. } => String::new(),
    }
}

fn status_text(status: &EndpointStatus) -> String {
    let mut text = own_text(&status.own);
    if status.peers.is_empty() {
        text.push_str(
            "no peers: sessions begin with the first connection, and end when nobody needs them\n",
        );
        return text;
    }
    let head = [
        "peer",
        "path",
        "round trip",
        "handshake",
        "heard",
        "in",
        "out",
    ];
    let mut rows = vec![head.map(str::to_owned)];
    rows.extend(status.peers.iter().map(peer_row));
    text.push_str(&table(&rows));
    for peer in &status.peers {
        if let Some(why) = &peer.why_relayed {
            let _ = writeln!(text, "{}: {why}", called(peer));
        }
    }
    text
}

fn own_text(own: &OwnSide) -> String {
    let addresses: Vec<String> = own.addresses.iter().map(Ipv6Addr::to_string).collect();
    let mut text = format!("{} · key {}\n", addresses.join(", "), own.key);
    let _ = write!(text, "stack {}", own.stack);
    if let Some(why) = &own.why_not_kernel {
        let _ = write!(text, " ({why})");
    }
    let nat = match own.nat {
        Nat::Unknown => "unknown: no STUN server has answered",
        Nat::Open => "none",
        Nat::Easy => "easy: one port for all destinations",
        Nat::Hard => "hard: another port for every destination",
    };
    let (connected, configured) = (own.relays_connected.len(), own.relays_configured);
    let _ = writeln!(
        text,
        "\nUDP {} · NAT {nat} · relays {connected} of {configured}",
        own.underlay
    );
    for candidate in &own.candidates {
        let from = from_text(candidate.from);
        let _ = writeln!(text, "reachable at {} ({from})", candidate.address);
    }
    text
}

fn explained_text(told: &Explained) -> String {
    let peer = &told.peer;
    let mut text = own_text(&told.own);
    let _ = writeln!(text, "\n{} · key {}", called(peer), peer.key);
    let how = match peer.path {
        Some(path) => format!("reached by {}", path_text(path)),
        None => "not reached".to_owned(),
    };
    let rtt = peer.rtt_us.map(|rtt| format!(", {}", millis(rtt)));
    let _ = writeln!(text, "{how}{}", rtt.unwrap_or_default());
    let nat = match told.their_nat {
        Nat::Unknown => "it has not said what its NAT does",
        Nat::Open => "it has no NAT",
        Nat::Easy => "its NAT keeps one port for all destinations",
        Nat::Hard => "its NAT takes another port for every destination",
    };
    let probes = if told.probes {
        ""
    } else {
        "; it answers no probes"
    };
    let _ = writeln!(text, "{nat}{probes}");
    if !told.tried.is_empty() {
        let head = [
            "tried",
            "known from",
            "round trip",
            "proven",
            "heard",
            "unanswered",
        ];
        let mut rows = vec![head.map(str::to_owned)];
        rows.extend(told.tried.iter().map(tried_row));
        text.push_str(&table(&rows));
    }
    for why in &told.why_not_direct {
        let _ = writeln!(text, "not direct: {why}");
    }
    for advice in &told.advice {
        let _ = writeln!(text, "try: {advice}");
    }
    text
}

fn peer_row(peer: &PeerView) -> [String; 7] {
    [
        called(peer),
        peer.path.map_or_else(|| "none yet".to_owned(), path_text),
        peer.rtt_us.map_or_else(|| "-".to_owned(), millis),
        ago(peer.handshake_age_ms),
        ago(peer.silent_ms),
        size(peer.bytes_in),
        size(peer.bytes_out),
    ]
}

fn tried_row(tried: &TriedPath) -> [String; 6] {
    let in_use = if tried.in_use { " (in use)" } else { "" };
    [
        format!("{}{in_use}", path_text(tried.path)),
        tried.from.map_or("-", from_text).to_owned(),
        tried.rtt_us.map_or_else(|| "-".to_owned(), millis),
        ago(tried.proven_ms),
        ago(tried.heard_ms),
        tried.unanswered.to_string(),
    ]
}

fn called(peer: &PeerView) -> String {
    match (&peer.name, peer.addresses.first()) {
        (Some(name), _) => name.to_string(),
        (None, Some(address)) => address.to_string(),
        (None, None) => peer.key.to_string(),
    }
}

fn path_text(path: PathView) -> String {
    match path {
        PathView::Direct(to) => format!("direct {to}"),
        PathView::Spare(to) => format!("direct {to}, from a spare socket"),
        PathView::Relay(n) => format!("relay {n}"),
    }
}

const fn from_text(from: CandidateFrom) -> &'static str {
    match from {
        CandidateFrom::Interface => "interface",
        CandidateFrom::Stun => "STUN",
        CandidateFrom::Mapped => "asked of the NAT",
        CandidateFrom::Record => "coordinator",
        CandidateFrom::Seen => "seen",
    }
}

fn millis(us: u64) -> String {
    format!("{}.{:02} ms", us / 1000, us % 1000 / 10)
}

fn ago(ms: Option<u64>) -> String {
    match ms {
        None => "never".to_owned(),
        Some(ms) if ms < 10_000 => format!("{}.{} s ago", ms / 1000, ms % 1000 / 100),
        Some(ms) if ms < 120_000 => format!("{} s ago", ms / 1000),
        Some(ms) => format!("{} min ago", ms / 60_000),
    }
}

fn size(bytes: u64) -> String {
    match bytes {
        0..1000 => format!("{bytes} B"),
        1000..1_000_000 => format!("{} KB", bytes / 1000),
        1_000_000..1_000_000_000 => format!("{} MB", bytes / 1_000_000),
        _ => format!("{} GB", bytes / 1_000_000_000),
    }
}

/// Rows whose columns are as wide as their widest cell.
fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.max().unwrap_or(0)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    for row in rows {
        let cells = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use tabbify_types::MeshKey;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(subcommand)]
        command: Command,
    }

    #[test]
    fn the_command_line() {
        let parsed = |line: &str| Line::try_parse_from(line.split(' ')).is_ok();
        for good in [
            "mesh status",
            "mesh status --json --data-dir d",
            "mesh ping shop.main.internal",
            "mesh ping fd5a:1f00:1:1::1 -c 3 -i 200 -W 500 --json",
            "mesh explain box2.internal",
        ] {
            assert!(parsed(good), "{good}");
        }
        for bad in ["mesh", "mesh ping", "mesh explain", "mesh ping x -c -1"] {
            assert!(!parsed(bad), "{bad}");
        }
    }

    #[test]
    fn what_a_person_reads() {
        let peer = PeerView {
            key: MeshKey([7; 32]),
            name: Some("shop.main.internal".parse().unwrap()),
            addresses: vec!["fd5a:1f02:1:2:3::1".parse().unwrap()],
            path: Some(PathView::Relay(0)),
            rtt_us: Some(12_345),
            handshake_age_ms: Some(32_000),
            silent_ms: Some(400),
            bytes_in: 1_234_567,
            bytes_out: 999,
            changes: 1,
            why_relayed: Some("no direct path is proven yet".to_owned()),
        };
        let own = OwnSide {
            key: MeshKey([1; 32]),
            addresses: vec!["fd5a:1f00:1:1::1".parse().unwrap()],
            underlay: "0.0.0.0:4000".parse().unwrap(),
            stack: "user space".to_owned(),
            why_not_kernel: Some("configured".to_owned()),
            candidates: Vec::new(),
            nat: Nat::Hard,
            relays_configured: 2,
            relays_connected: vec![0],
        };
        let mut status = EndpointStatus {
            own,
            peers: vec![peer],
            counters: Vec::new(),
        };
        let text = status_text(&status);
        for part in [
            "stack user space (configured)",
            "NAT hard",
            "relays 1 of 2",
            "shop.main.internal  relay 0  12.34 ms    32 s ago   0.4 s ago  1 MB  999 B\n",
            "shop.main.internal: no direct path is proven yet\n",
        ] {
            assert!(text.contains(part), "{part:?} is not in:\n{text}");
        }
        status.peers.clear();
        assert!(status_text(&status).contains("no peers"));
        let mut trips = Trips::default();
        for rtt_us in [1000, 3000] {
            let path = PathView::Relay(0);
            let answer = PingLine::Answer {
                seq: 1,
                rtt_us,
                path,
            };
            trips.take(&answer).unwrap();
        }
        trips.take(&PingLine::Lost { seq: 3, path: None }).unwrap();
        assert_eq!(
            trips.text(),
            "3 sent, 2 answered, round trip 1.00 ms / 2.00 ms / 3.00 ms (least, mean, most)\n"
        );
        assert_eq!(Trips::default().text(), "0 sent, 0 answered\n");
        assert_eq!(ago(Some(7_200_000)), "120 min ago");
    }
}
