//! What this machine has been seen to be able to run.

use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tabbify_types::event::v1::Capability;
use tokio::process::Command;
use tokio::time::timeout;

/// LIMIT: how long the runner program may take to say its version.
const VERSION_WITHIN: Duration = Duration::from_secs(30);

/// Tries every runtime with the `tabbify-runner` program; each answer says what was seen.
pub async fn probe_capabilities(runner: &Path) -> Vec<Capability> {
    let (works, detail) = match runner_version(runner).await {
        Ok(version) => (true, version),
        Err(error) => (false, format!("{}: {error}", runner.display())),
    };
    let later = |runtime: &str| Capability {
        runtime: runtime.to_owned(),
        works: false,
        detail: "not supported yet".to_owned(),
    };
    vec![
        Capability {
            runtime: "wasm-http".to_owned(),
            works,
            detail,
        },
        later("docker"),
        later("firecracker"),
    ]
}

async fn runner_version(runner: &Path) -> io::Result<String> {
    let asked = Command::new(runner)
        .arg("--version")
        .env_clear()
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = timeout(VERSION_WITHIN, asked)
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text.lines().next().unwrap_or_default().trim();
    if output.status.success() && !version.is_empty() {
        Ok(version.chars().take(200).collect())
    } else {
        Err(io::Error::other(format!(
            "--version printed {version:?} and ended with {}",
            output.status
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn check(runner: &str, works: bool, seen: &str) {
        let found = probe_capabilities(Path::new(runner)).await;
        assert_eq!(found.len(), 3);
        assert_eq!(found[0].works, works, "{found:?}");
        assert!(found[0].detail.contains(seen), "{found:?}");
        assert!(found[1..].iter().all(|later| !later.works));
    }

    #[tokio::test]
    async fn only_what_was_seen_to_work_works() {
        check("/bin/bash", true, "bash").await;
        check("/bin/false", false, "exit status: 1").await;
        check("/no/such/runner", false, "/no/such/runner: No such file").await;
    }
}
