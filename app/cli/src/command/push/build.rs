//! Runs `build.command` and shows what it prints; keeps the last lines for when it fails.

use std::collections::VecDeque;
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::clock::{self, Stopwatch};
use crate::env;
use crate::error::{Code, Failure, Result};
use crate::output::printable;
use crate::progress::Progress;

/// LIMIT: last lines of a build that are kept for its failure.
const TAIL_LINES_MAX: usize = 30;
/// LIMIT: one line of a build's output, in bytes; a longer one is cut into several.
const LINE_LEN_MAX: u64 = 16 * 1024;

pub(crate) fn run(progress: Progress, command: &str, context: &Path) -> Result<()> {
    let watch = Stopwatch::start();
    let bar = progress.spinner("building");
    let failed = |what: String| Failure::new(Code::BuildFailed, what);
    let (mut child, output) = start(command, context).map_err(|error| {
        failed(format!(
            "Cannot run `{command}` in {}: {error}.",
            context.display()
        ))
    })?;
    let mut output = BufReader::new(output);
    let mut tail = VecDeque::with_capacity(TAIL_LINES_MAX);
    let mut line = Vec::new();
    loop {
        line.clear();
        // An error of the pipe is its end: the exit status tells how the build went.
        match output
            .by_ref()
            .take(LINE_LEN_MAX)
            .read_until(b'\n', &mut line)
        {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
        let text = printable(String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r']));
        bar.line(&text);
        if tail.len() == TAIL_LINES_MAX {
            tail.pop_front();
        }
        tail.push_back(text);
    }
    let status = child
        .wait()
        .map_err(|error| failed(format!("Lost the build: {error}.")))?;
    drop(bar);
    if status.success() {
        progress.done(&format!("built  {}", clock::seconds(watch.elapsed())));
        return Ok(());
    }
    let tail: Vec<String> = tail.into();
    if let Some(target) = missing_target(&tail) {
        let what = format!("Rust target {target} is missing.");
        return Err(failed(what).fix(format!("Run: rustup target add {target}")));
    }
    let mut what = vec![format!("The build failed ({status}): {command}")];
    if !tail.is_empty() {
        what.push("Last lines:".to_owned());
        what.extend(tail.iter().map(|line| format!("  | {line}")));
    }
    Err(failed(what.join("\n")).fix("Nothing was uploaded."))
}

/// Both streams of the build go into one pipe, so that their lines keep their order.
fn start(command: &str, context: &Path) -> io::Result<(Child, io::PipeReader)> {
    let (output, writer) = io::pipe()?;
    let child = Command::new("sh")
        .args(["-c", command])
        .current_dir(context)
        // A build runs the code of others; it has no business with our token.
        .env_remove(env::TOKEN)
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .spawn()?;
    Ok((child, output))
}

/// The Rust target that a build lacks, as rustc says it: "the `wasm32-wasip2` target may not be
/// installed".
fn missing_target(lines: &[String]) -> Option<&str> {
    lines.iter().find_map(|line| {
        let (before, _) = line.split_once("` target may not be installed")?;
        let (_, target) = before.rsplit_once('`')?;
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_' || b == b'.';
        (!target.is_empty() && target.bytes().all(plain)).then_some(target)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_target_is_recognized() {
        let check = |line: &str, expected: Option<&str>| {
            assert_eq!(missing_target(&[line.to_owned()]), expected, "{line}");
        };
        check(
            "  = note: the `wasm32-wasip2` target may not be installed",
            Some("wasm32-wasip2"),
        );
        check("the `` target may not be installed", None);
        check("the `a b` target may not be installed", None);
        check("error[E0463]: can't find crate for `core`", None);
    }
}
