//! What this machine has been seen to be able to run.

use std::io;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tabbify_api::runner::MicroVms;
use tabbify_types::event::v1::Capability;
use tokio::process::Command;
use tokio::time::timeout;

/// LIMIT: how long the runner program may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// LIMIT: characters of an answer that are kept.
const LINE_LEN_MAX: usize = 200;

/// Tries every runtime with the `tabbify-runner` program, which speaks to the container engine at `engine`
/// (without, at the usual socket), and makes microVMs of `microvms`; each answer says what was seen.
pub async fn probe_capabilities(
    runner: &Path,
    engine: Option<&str>,
    microvms: Option<&MicroVms>,
) -> Vec<Capability> {
    let named = |error: io::Error| format!("{}: {error}", runner.display());
    let probe = ["--probe-docker"].into_iter().chain(engine);
    // Plain data in memory: this does not fail.
    let made_of = microvms.and_then(|made_of| serde_json::to_string(made_of).ok());
    let machines = async {
        match &made_of {
            Some(made_of) => Some(ask(runner, ["--probe-microvms", made_of]).await),
            None => None,
        }
    };
    let (version, docker, machines) =
        tokio::join!(ask(runner, ["--version"]), ask(runner, probe), machines);
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
    let answered = |said: io::Result<Said>| match (&version, said) {
        (Err(why), _) => Err(why.clone()),
        (_, Ok(Said::Yes(said))) => Ok(said),
        (_, Ok(Said::No(why, _))) => Err(why),
        (_, Err(error)) => Err(named(error)),
    };
    let docker = answered(docker);
    let machines = match machines {
        Some(said) => answered(said),
        None => Err("nothing says what microVMs are made of".to_owned()),
    };
    let capability = |runtime: &str, found: Result<String, String>| Capability {
        runtime: runtime.to_owned(),
        works: found.is_ok(),
        detail: found.unwrap_or_else(|why| why),
    };
    vec![
        capability("wasm-http", version),
        capability("docker", docker),
        capability("firecracker", machines),
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
    use tabbify_api::runner::Acceleration;

    use super::*;

    async fn check(runner: &str, works: bool, seen: &str) {
        let made_of = MicroVms {
            kernel: "/no/vmlinuz".into(),
            modules: None,
            init: "/no/init".into(),
            monitor: None,
            acceleration: Acceleration::Auto,
        };
        let engine = Some("unix:///no/engine");
        let found = probe_capabilities(Path::new(runner), engine, Some(&made_of)).await;
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
