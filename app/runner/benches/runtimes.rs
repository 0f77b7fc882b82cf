//! What a runtime costs beside what people would run instead, in turns: requests a second of a component
//! beside `wasmtime serve`, and the time from nothing to the first byte.
//!
//! The program is also the server of ours, which it starts as a process of its own: the runner's runtime and
//! its HTTP, over TCP as the peer has it; the mesh has a bench of its own. Wants `wrk`; `wasmtime` is measured
//! if it is in the path or in `target/bench-peers/bin`, where `cargo xtask bench runtimes` builds it.
#![expect(clippy::print_stdout, reason = "a command for people")]

#[path = "runtimes/load.rs"]
mod load;
#[path = "runtimes/serve.rs"]
mod serve;
#[path = "runtimes/servers.rs"]
mod servers;
#[path = "../tests/it/wasm.rs"]
#[expect(dead_code, reason = "the tests have more of them")]
mod wasm;

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use load::Load;
use servers::{Kind, Wasmtime};

pub(crate) type Fallible<T = ()> = anyhow::Result<T>;

/// How often everything is measured.
const ROUNDS: usize = 5;
/// How often a start is.
const STARTS: usize = 15;

fn main() -> Fallible {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["serve", component, cache, port] => {
            serve::run(Path::new(component), Path::new(cache), port.parse()?)
        }
        _ => measure(&out(&arguments)),
    }
}

/// Where the list goes.
fn out(arguments: &[String]) -> PathBuf {
    let after = arguments.iter().skip_while(|word| *word != "--out").nth(1);
    after.map_or_else(|| root().join("target/bench/runtimes.json"), PathBuf::from)
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn measure(out: &Path) -> Fallible {
    let scratch = tempfile::tempdir()?;
    let component = scratch.path().join("hello.wasm");
    std::fs::write(&component, wasm::component(wasm::Package::Hello)?)?;
    let peer = Wasmtime::find(&root().join("target/bench-peers/bin"));
    let mut rows = Vec::new();
    match peer {
        Some(peer) => {
            println!("peer: {}", peer.version);
            let ours = Kind::ours(&component, &scratch.path().join("cache"))?;
            let theirs = peer.kind(&component, scratch.path())?;
            rows.extend(requests(&ours, &theirs, &peer.version)?);
            rows.push(starts(&ours, &theirs, &peer.version)?);
        }
        None => println!("NOT RUN: components beside wasmtime: there is no `wasmtime`"),
    }
    report(out, &rows)
}

/// Requests a second, and how long the slowest of a hundred takes, at 64 connections.
fn requests(ours: &Kind, theirs: &Kind, version: &str) -> Fallible<Vec<Value>> {
    if !load::is_here() {
        println!("NOT RUN: requests a second: there is no `wrk`");
        return Ok(Vec::new());
    }
    let (ours, theirs) = (ours.start()?, theirs.start()?);
    let mut measured: [Vec<Load>; 2] = Default::default();
    for round in 0..=ROUNDS {
        for (which, server) in [&ours, &theirs].into_iter().enumerate() {
            let load = load::measure(server.address)?;
            println!(
                "round {round}, {}: {:.0} requests/s, p99 {:.2} ms",
                server.name, load.requests_per_second, load.p99_ms
            );
            // The first warms up.
            if round > 0 {
                measured[which].push(load);
            }
        }
    }
    let of = |which: usize, what: fn(&Load) -> f64| median(measured[which].iter().map(what));
    let rate = |load: &Load| load.requests_per_second;
    let slowest = |load: &Load| load.p99_ms;
    Ok(vec![
        row(
            "hello component, 64 connections, requests/s",
            [of(0, rate), of(1, rate)],
            version,
            Aim::AtLeast(1.3),
        ),
        row(
            "hello component, 64 connections, p99, ms",
            [of(0, slowest), of(1, slowest)],
            version,
            Aim::AtMost(1.0),
        ),
    ])
}

/// From the start of a process that finds compiled code to the first byte.
fn starts(ours: &Kind, theirs: &Kind, version: &str) -> Fallible<Value> {
    let mut measured: [Vec<f64>; 2] = Default::default();
    for round in 0..=STARTS {
        for (which, kind) in [ours, theirs].into_iter().enumerate() {
            let took = kind.first_byte()?;
            if round > 0 {
                measured[which].push(took.as_secs_f64() * 1000.0);
            }
        }
    }
    let [ours, theirs] = measured.map(|figures| median(figures.into_iter()));
    Ok(row(
        "component, process start to first byte, precompiled, ms",
        [ours, theirs],
        version,
        Aim::AtMost(0.25),
    ))
}

/// What a ratio should be.
enum Aim {
    AtLeast(f64),
    AtMost(f64),
}

/// A row of DESIGN section 16.
fn row(metric: &str, [ours, peer]: [f64; 2], peer_name: &str, aim: Aim) -> Value {
    let ratio = ours / peer;
    let (text, holds) = match aim {
        Aim::AtLeast(least) => (format!(">= {least}"), ratio >= least),
        Aim::AtMost(most) => (format!("<= {most}"), ratio <= most),
    };
    json!({
        "metric": metric, "unit": metric.rsplit(' ').next(), "ours": ours, "peer": peer,
        "peer_name": peer_name, "ratio": ratio, "aim": text, "holds": holds,
    })
}

fn median(figures: impl Iterator<Item = f64>) -> f64 {
    let mut figures: Vec<f64> = figures.collect();
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}

fn report(out: &Path, rows: &[Value]) -> Fallible {
    for row in rows {
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
