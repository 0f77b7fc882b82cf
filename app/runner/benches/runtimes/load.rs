//! Load on an HTTP server, by `wrk`.

use std::net::SocketAddr;
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};

use crate::Fallible;

/// What a server did for a while.
pub(crate) struct Load {
    pub(crate) requests_per_second: f64,
    pub(crate) p99_ms: f64,
}

pub(crate) fn is_here() -> bool {
    let asked = Command::new("wrk")
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    asked.is_ok()
}

/// 64 connections for some seconds.
pub(crate) fn measure(address: SocketAddr) -> Fallible<Load> {
    let url = format!("http://{address}/");
    let output = Command::new("wrk")
        .args(["-t1", "-c64", "-d3s", "--latency", &url])
        .output()
        .context("running wrk")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "wrk failed: {text}");
    for bad in ["Non-2xx", "Socket errors"] {
        ensure!(!text.contains(bad), "not every request was served: {text}");
    }
    read(&text).with_context(|| format!("wrk says something else: {text}"))
}

fn read(text: &str) -> Option<Load> {
    let after = |name: &str| {
        let line = text.lines().find(|line| line.trim().starts_with(name))?;
        line.split_whitespace().nth(1)
    };
    Some(Load {
        requests_per_second: after("Requests/sec:")?.parse().ok()?,
        p99_ms: milliseconds(after("99%")?)?,
    })
}

/// `3.96ms`, `850.00us`, `1.20s`.
fn milliseconds(text: &str) -> Option<f64> {
    let number = text.trim_end_matches(char::is_alphabetic);
    let factor = match &text[number.len()..] {
        "us" => 0.001,
        "ms" => 1.0,
        "s" => 1000.0,
        _ => return None,
    };
    Some(number.parse::<f64>().ok()? * factor)
}
