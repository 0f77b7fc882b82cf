//! `cargo xtask bench <name>`: measures ours beside what people would run instead, prints the table
//! and writes `target/bench/<name>.json`, the list of DESIGN section 16.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde_json::Value;

use crate::run::{root, step};
use crate::setup;

/// What can be measured: its package, the program in it, and where its peers come from.
struct Bench {
    name: &'static str,
    package: &'static str,
    program: &'static str,
    /// A program to look for, and the Debian package that has it.
    peers: &'static [(&'static str, &'static str)],
    /// Crates that have programs, and their versions: built once, into `target/bench-peers`.
    crates: &'static [(&'static str, &'static str)],
}

const BENCHES: [Bench; 3] = [
    Bench {
        name: "log",
        package: "tabbify-log",
        program: "peers",
        peers: &[
            ("psql", "postgresql"),
            ("redis-server", "redis-server"),
            ("nats-server", "nats-server"),
        ],
        crates: &[],
    },
    Bench {
        name: "mesh",
        package: "tabbify-mesh",
        program: "throughput",
        peers: &[
            ("ip", "iproute2"),
            ("iperf3", "iperf3"),
            ("wg", "wireguard-tools"),
            ("wireguard-go", "wireguard-go"),
        ],
        crates: &[("boringtun-cli", "0.7.1"), ("gotatun-cli", "0.10.2")],
    },
    Bench {
        name: "runtimes",
        package: "tabbify-runner",
        program: "runtimes",
        peers: &[("wrk", "wrk")],
        // The engine's own version. Building it takes as long as building us.
        crates: &[("wasmtime-cli", "48.0.8")],
    },
];

/// Measures; with `check`, a ratio whose aim does not hold is an error. `more` goes to the program.
pub(crate) fn bench(name: &str, check: bool, more: &[String]) -> anyhow::Result<()> {
    let names: Vec<&str> = BENCHES.iter().map(|bench| bench.name).collect();
    let bench = BENCHES.iter().find(|bench| bench.name == name);
    let bench = bench.with_context(|| format!("{name} is not measured; {}", names.join(", ")))?;
    setup::compiler()?;
    setup::programs(bench.peers)?;
    for (name, version) in bench.crates {
        install(name, version)?;
    }
    let out = out(name);
    let out_text = out.to_string_lossy();
    let mut line = vec![
        "cargo",
        "bench",
        "-p",
        bench.package,
        "--bench",
        bench.program,
        "--",
        "--out",
        &out_text,
    ];
    line.extend(more.iter().map(String::as_str));
    step(&line)?;
    println!("── {}", out.display());
    if check { judge(&out) } else { Ok(()) }
}

/// Does nothing if this version is there.
fn install(name: &str, version: &str) -> anyhow::Result<()> {
    let into = root().join("target/bench-peers");
    let into = into.to_string_lossy();
    let line = ["cargo", "install", "--locked", "--root", &into];
    step(&[&line[..], &[name, "--version", version]].concat())
}

fn out(name: &str) -> PathBuf {
    root().join("target/bench").join(format!("{name}.json"))
}

/// Every aim of a ratio holds, or the error names those that do not.
fn judge(list: &Path) -> anyhow::Result<()> {
    let rows: Vec<Value> = serde_json::from_slice(&std::fs::read(list)?)?;
    let failed = rows.iter().filter(|row| row["holds"] == Value::Bool(false));
    let failed: Vec<String> = failed
        .map(|row| {
            format!(
                "{} against {}: {} where the aim is {}",
                row["metric"], row["peer_name"], row["ratio"], row["aim"]
            )
        })
        .collect();
    if failed.is_empty() {
        return Ok(());
    }
    bail!("aims that do not hold:\n{}", failed.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_ratio_that_does_not_hold_fails() {
        let check = |holds: &str, fails: bool| {
            let dir = tempfile::tempdir().unwrap();
            let list = dir.path().join("list.json");
            let row = format!(
                "{{\"metric\":\"m\",\"unit\":\"u\",\"ours\":1.0,\"peer\":2.0,\"peer_name\":\"p\",\
                 \"ratio\":0.5,\"aim\":\"≥ 2×\",\"holds\":{holds}}}"
            );
            std::fs::write(&list, format!("[{row}]")).unwrap();
            let judged = judge(&list);
            assert_eq!(judged.is_err(), fails, "{holds}: {judged:?}");
        };
        check("true", false);
        check("null", false);
        check("false", true);
    }
}
