//! What this machine has been seen to be able to run.

use std::io;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tabbify_types::event::v1::Capability;
use tokio::process::Command;
use tokio::time::timeout;

/// LIMIT: how long the runner program may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// LIMIT: characters of an answer that are kept.
const LINE_LEN_MAX: usize = 200;

/// Tries every runtime with the `tabbify-runner` program, which speaks to the container engine at `engine`
/// (without, at the usual socket); each answer says what was seen.
pub async fn probe_capabilities(runner: &Path, engine: Option<&str>) -> Vec<Capability> {
    let named = |error: io::Error| format!("{}: {error}", runner.display());
    let probe = ["--probe-docker"].into_iter().chain(engine);
    let (version, docker) = tokio::join!(ask(runner, ["--version"]), ask(runner, probe));
    let version = version.map_err(named).and_then(|said| match said {
        Said::Yes(version) => Ok(version),
        Said::No(said, status) => {
            let runner = runner.display();
            Err(format!(
                "{runner} --version printed {said:?} and ended with {status}"
            ))
        }
    });
    // One that is no runner of ours says anything to anything.
    let docker = version
        .as_ref()
        .map_err(Clone::clone)
        .and_then(|_| match docker {
            Ok(Said::Yes(said)) => Ok(said),
            Ok(Said::No(why, _)) => Err(why),
            Err(error) => Err(named(error)),
        });
    let capability = |runtime: &str, found: Result<String, String>| Capability {
        runtime: runtime.to_owned(),
        works: found.is_ok(),
        detail: found.unwrap_or_else(|why| why),
    };
    vec![
        capability("wasm-http", version),
        capability("docker", docker),
        capability("firecracker", Err("not supported yet".to_owned())),
    ]
}

/// What a program said to a question, in its first line, and whether it was a yes.
enum Said {
    Yes(String),
    No(String, ExitStatus),
}

async fn ask<'a>(runner: &Path, words: impl IntoIterator<Item = &'a str>) -> io::Result<Said> {
    let asked = Command::new(runner)
        .args(words)
        .env_clear()
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = timeout(ANSWER_WITHIN, asked)
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().next().unwrap_or_default().trim();
    let line: String = line.chars().take(LINE_LEN_MAX).collect();
    match output.status.success() && !line.is_empty() {
        true => Ok(Said::Yes(line)),
        false if line.is_empty() => {
            let ended = format!("it ended with {}", output.status);
            Ok(Said::No(ended, output.status))
        }
        false => Ok(Said::No(line, output.status)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn check(runner: &str, works: bool, seen: &str) {
        let found = probe_capabilities(Path::new(runner), Some("unix:///no/engine")).await;
        assert_eq!(found.len(), 3);
        let wasm = found.iter().find(|it| it.runtime == "wasm-http").unwrap();
        assert_eq!(wasm.works, works, "{found:?}");
        assert!(wasm.detail.contains(seen), "{found:?}");
        let others = found.iter().filter(|it| it.runtime != "wasm-http");
        assert_eq!(others.filter(|it| it.works).count(), 0, "{found:?}");
    }

    #[tokio::test]
    async fn only_what_was_seen_to_work_works() {
        check("/bin/bash", true, "bash").await;
        check("/bin/false", false, "exit status: 1").await;
        check("/no/such/runner", false, "/no/such/runner: No such file").await;
    }
}
