//! What a gigabyte through the tunnel costs: two network namespaces with a veth between them, one and
//! eight TCP streams, processor seconds of both ends together, ours and the peers' in turn.
//!
//! The program is also the two ends of ours, which it starts in the namespaces. Peers are driven as
//! people use them: a TUN device, `wg`, and `iperf3` over it. Wants root, `ip`, `wg`, `iperf3` and
//! `wireguard-go`; `boringtun-cli` and `gotatun` are measured too if they are in the path or in
//! `target/bench-peers/bin`, where `cargo xtask bench mesh` builds them.
#![expect(clippy::print_stdout, reason = "a command for people")]

#[path = "throughput/ends.rs"]
mod ends;
#[path = "throughput/flood.rs"]
mod flood;
#[path = "../tests/common/initiations.rs"]
mod initiations;
#[path = "throughput/lab.rs"]
mod lab;
#[path = "throughput/peers.rs"]
mod peers;

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use lab::{Lab, Measured};
use peers::Peer;

pub(crate) type Fallible<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// How long one measurement sends, in seconds, and how many are made of each.
const SECONDS: u64 = 3;
const ROUNDS: usize = 5;
/// How often each flood is measured, both ways.
const FLOODS: usize = 3;
/// What a flood is to leave of a stream.
const GOODPUT: f64 = 0.9;

const OURS: &str = "tabbify";
const OURS_IN_USER_SPACE: &str = "tabbify (smoltcp)";
const REFERENCE: &str = "wireguard-go";

fn main() -> Fallible {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["end", role, stack, streams, seconds] => {
            ends::run(role, stack, streams.parse()?, seconds.parse()?)
        }
        ["flood", kind, port] => flood::run(kind, port.parse()?),
        _ => measure(&out(&arguments)),
    }
}

/// Where the list goes.
fn out(arguments: &[String]) -> PathBuf {
    let after = arguments.iter().skip_while(|word| *word != "--out").nth(1);
    after.map_or_else(|| root().join("target/bench/mesh.json"), PathBuf::from)
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// One measurement's name and figures.
struct Series {
    name: &'static str,
    streams: usize,
    measured: Vec<Measured>,
}

fn measure(out: &Path) -> Fallible {
    let missing = lab::missing();
    if !missing.is_empty() {
        println!("NOT RUN: bench mesh: {}", missing.join(", "));
        return Ok(());
    }
    let lab = Lab::new()?;
    let peers: Vec<Peer> = peers::found(&root().join("target/bench-peers/bin"));
    for peer in &peers {
        println!("peer: {} ({})", peer.name, peer.version);
    }
    let mut all: Vec<Series> = Vec::new();
    for round in 1..=ROUNDS {
        for streams in [1, 8] {
            let mut note = |name, measured: Measured| {
                println!(
                    "round {round}, {streams} streams, {name}: {:.2} CPU-s/GB, {:.2} Gbit/s",
                    measured.cpu_per_gigabyte(),
                    measured.gigabits_per_second()
                );
                match all
                    .iter_mut()
                    .find(|series| series.name == name && series.streams == streams)
                {
                    Some(series) => series.measured.push(measured),
                    None => all.push(Series {
                        name,
                        streams,
                        measured: vec![measured],
                    }),
                }
            };
            note(OURS, lab.ours("kernel", streams, SECONDS)?);
            for peer in &peers {
                note(peer.name, peer.measure(&lab, streams, SECONDS)?);
            }
            note(OURS_IN_USER_SPACE, lab.ours("userspace", streams, SECONDS)?);
            note("no tunnel", lab.bare(streams, SECONDS)?);
        }
    }
    let mut rows = rows(&all, &peers);
    for (kind, name) in flood::KINDS {
        rows.push(flooded(&lab, kind, name)?);
    }
    report(out, &rows)
}

/// The row of one kind of flood.
fn flooded(lab: &Lab, kind: &str, name: &str) -> Fallible<Value> {
    let (mut open, mut closed) = (Vec::new(), Vec::new());
    for round in 1..=FLOODS {
        closed.push(flood::measure(lab, kind, false, SECONDS)?.gigabits_per_second());
        open.push(flood::measure(lab, kind, true, SECONDS)?.gigabits_per_second());
        println!(
            "round {round}, {name}: {:?}, closed port {:?}",
            open.last(),
            closed.last()
        );
    }
    let median = |mut figures: Vec<f64>| {
        figures.sort_by(f64::total_cmp);
        figures[figures.len() / 2]
    };
    let (ours, peer) = (median(open), median(closed));
    let ratio = ours / peer;
    Ok(json!({
        "metric": format!("goodput under 5,000 {name} a second, 1 stream"), "unit": "Gbit/s",
        "ours": ours, "peer": peer, "peer_name": "the same packets to a closed port",
        "ratio": ratio, "aim": format!(">= {GOODPUT}"), "holds": ratio >= GOODPUT,
    }))
}

/// The rows of DESIGN section 16.
fn rows(all: &[Series], peers: &[Peer]) -> Vec<Value> {
    let median = |name: &str, streams: usize, of: fn(&Measured) -> f64| {
        all.iter()
            .find(|series| series.name == name && series.streams == streams)
            .map(|series| spread(series, of)[1])
    };
    let mut rows = Vec::new();
    for streams in [1, 8] {
        for (metric, unit, of) in [
            (
                "tunnel, both ends",
                "CPU-s/GB",
                Measured::cpu_per_gigabyte as fn(&Measured) -> f64,
            ),
            (
                "tunnel, throughput",
                "Gbit/s",
                Measured::gigabits_per_second,
            ),
        ] {
            let metric = format!("{metric}, {streams} streams");
            let ours = median(OURS, streams, of);
            for peer in peers {
                let theirs = median(peer.name, streams, of);
                let ratio = ours.zip(theirs).map(|(ours, theirs)| ours / theirs);
                // An aim is for the cost only; throughput depends on what else the machine does.
                let aim = (unit == "CPU-s/GB").then_some(peer.aim);
                rows.push(json!({
                    "metric": metric, "unit": unit, "ours": ours,
                    "peer": theirs, "peer_name": format!("{} {}", peer.name, peer.version),
                    "ratio": ratio, "aim": aim.map(|aim| format!("<= {aim}")),
                    "holds": aim.zip(ratio).map(|(aim, ratio)| ratio <= aim),
                }));
            }
            for (name, what) in [(OURS_IN_USER_SPACE, "smoltcp"), ("no tunnel", "no tunnel")] {
                rows.push(json!({
                    "metric": format!("{metric}, {what}"), "unit": unit,
                    "ours": median(name, streams, of), "peer": null, "peer_name": null,
                    "ratio": null, "aim": null, "holds": null,
                }));
            }
        }
    }
    for series in all {
        let [low, middle, high] = spread(series, Measured::cpu_per_gigabyte);
        println!(
            "{}, {} streams: {middle:.2} CPU-s/GB ({low:.2} to {high:.2})",
            series.name, series.streams
        );
    }
    rows
}

/// Least, median and most.
fn spread(series: &Series, of: fn(&Measured) -> f64) -> [f64; 3] {
    let mut figures: Vec<f64> = series.measured.iter().map(of).collect();
    figures.sort_by(f64::total_cmp);
    let last = figures.len() - 1;
    [figures[0], figures[last / 2], figures[last]]
}

fn report(out: &Path, rows: &[Value]) -> Fallible {
    for row in rows.iter().filter(|row| !row["ratio"].is_null()) {
        println!(
            "{} | ours {:.2} | {} {:.2} | ratio {:.2} | aim {} | holds {}",
            row["metric"].as_str().unwrap_or_default(),
            row["ours"].as_f64().unwrap_or_default(),
            row["peer_name"].as_str().unwrap_or_default(),
            row["peer"].as_f64().unwrap_or_default(),
            row["ratio"].as_f64().unwrap_or_default(),
            row["aim"].as_str().unwrap_or("-"),
            row["holds"]
        );
    }
    if let Some(directory) = out.parent() {
        std::fs::create_dir_all(directory)?;
    }
    std::fs::write(out, serde_json::to_string_pretty(rows)?)?;
    Ok(())
}
