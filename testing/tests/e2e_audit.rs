//! The log of a real platform against its checkpoints, by the real program: verified, proven to
//! somebody else, cut off, refused, restored.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use anyhow::{Context as _, ensure};
use tabbify_testing::Platform;
use tabbify_testing::platform::binary;

/// `tabbify <line>`, with the platform's data directory if asked for.
async fn tabbify(data: Option<&Path>, line: &[&str]) -> anyhow::Result<Output> {
    let mut command = tokio::process::Command::new(binary("tabbify")?);
    command.args(line).env("TABBIFY_LOG", "off");
    if let Some(data) = data {
        command.arg("--data-dir").arg(data);
    }
    Ok(command
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await?)
}

/// The same, which must end with `code`; what it said, on either stream.
async fn says(data: Option<&Path>, line: &[&str], code: i32) -> anyhow::Result<String> {
    let output = tabbify(data, line).await?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    ensure!(
        output.status.code() == Some(code),
        "{line:?}: {}\n{said}",
        output.status
    );
    Ok(said)
}

/// Ends `tabbify up` as an operator does.
async fn stop(platform: &mut Platform) -> anyhow::Result<()> {
    let pid = platform.pid()?.to_string();
    let kill = tokio::process::Command::new("kill")
        .arg(pid)
        .status()
        .await?;
    ensure!(kill.success(), "kill: {kill}");
    let ended = platform.wait().await?;
    ensure!(ended.success(), "{ended}\n{}", platform.log());
    Ok(())
}

/// Files of a directory, in order.
fn files(dir: &Path, ending: &str) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let path = entry?.path();
        if path.to_string_lossy().ends_with(ending) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(to)?;
    for path in files(from, ".extent")? {
        std::fs::copy(&path, to.join(path.file_name().context("a name")?))?;
    }
    Ok(())
}

/// Zeroes the last frame of the log: a tail cut off where the chain cannot show it.
fn cut(log: &Path) -> anyhow::Result<()> {
    let last = files(log, ".extent")?.pop().context("an extent")?;
    let mut bytes = std::fs::read(&last)?;
    let starts: Vec<usize> = (512..bytes.len())
        .step_by(512)
        .filter(|at| bytes[*at..].starts_with(b"tabFRAME"))
        .collect();
    let start = *starts.last().context("a frame")?;
    bytes[start..].fill(0);
    Ok(std::fs::write(&last, bytes)?)
}

#[tokio::test(flavor = "multi_thread")]
#[expect(
    clippy::too_many_lines,
    reason = "one story of one platform, in the order in which it is told"
)]
async fn a_log_is_what_was_signed_or_does_not_start() -> anyhow::Result<()> {
    let mut platform = Platform::start().await?;
    let (data, log) = (platform.data(), platform.data().join("log"));
    stop(&mut platform).await?;

    // In order, and the whole of it is signed.
    let said = says(Some(&data), &["audit", "verify"], 0).await?;
    let notes = files(&data.join("checkpoints/history"), ".checkpoint")?;
    let newest = notes.last().context("a checkpoint")?;
    let note = std::fs::read_to_string(newest)?;
    let position = note
        .lines()
        .find_map(|line| line.strip_prefix("position "))
        .context("a position")?
        .to_owned();
    ensure!(
        said.contains(&format!("verified to position {position}")),
        "{said}"
    );
    ensure!(
        said.contains(&format!("the last of position {position}")),
        "{said}"
    );

    // An event is proven to somebody who knows nothing but the platform.
    let platform_id = note
        .lines()
        .next()
        .and_then(|line| line.strip_prefix("tabbify/"))
        .context("an origin")?;
    let (proof, kept) = (platform.scratch("proof.json"), platform.scratch("kept"));
    std::fs::copy(&notes[0], &kept)?;
    let (proof_text, kept_text) = (proof.display().to_string(), kept.display().to_string());
    let said = says(
        Some(&data),
        &["audit", "prove", "1", "--since", &kept_text],
        0,
    )
    .await?;
    std::fs::write(&proof, &said)?;
    let line = ["audit", "check", &proof_text, "--platform", platform_id];
    let checked = says(None, &[&line[..], &["--since", &kept_text]].concat(), 0).await?;
    ensure!(checked.contains("platform_initialized"), "{checked}");
    std::fs::write(&proof, said.replacen("\"index\": 0", "\"index\": 1", 1))?;
    says(None, &line, 3).await?;
    std::fs::write(&proof, &said)?;
    let other = [
        "audit",
        "check",
        &proof_text,
        "--platform",
        "0000000000000000",
    ];
    says(None, &other, 3).await?;
    says(Some(&data), &["audit", "prove", "999999"], 1).await?;

    // While it runs the frames up to its checkpoint can be looked at.
    platform.up().await?;
    let said = says(Some(&data), &["audit", "verify"], 0).await?;
    ensure!(said.contains("it is in use by process"), "{said}");
    stop(&mut platform).await?;
    let backup = platform.scratch("backup");
    copy(&log, &backup)?;

    // A tail that is gone: the chain alone is sound, and yet nothing starts.
    cut(&log)?;
    says(Some(&data), &["log", "verify"], 0).await?;
    let said = says(Some(&data), &["audit", "verify"], 3).await?;
    ensure!(said.contains("has signed up to position"), "{said}");
    let refused = platform.up().await.err().context("it starts")?.to_string();
    ensure!(refused.contains("has signed up to position"), "{refused}");

    // The copy brings it back; what was there is kept.
    let backup_text = backup.display().to_string();
    let line = ["log", "restore", "--from", &backup_text];
    let said = says(Some(&data), &line, 0).await?;
    ensure!(said.contains("nothing that was signed is lost"), "{said}");
    ensure!(data.join("log.damaged-1").is_dir(), "{said}");
    says(Some(&data), &["audit", "verify"], 0).await?;
    let said = says(Some(&data), &line, 1).await?;
    ensure!(said.contains("there is nothing to restore"), "{said}");
    platform.up().await?;
    stop(&mut platform).await?;

    // The whole log is gone, and the only copy lacks what was signed last.
    std::fs::remove_dir_all(&log)?;
    cut(&backup)?;
    let said = says(Some(&data), &line, 1).await?;
    ensure!(said.contains("would be lost"), "{said}");
    ensure!(!log.exists(), "a part was put in place");
    let said = says(Some(&data), &[&line[..], &["--accept-loss"]].concat(), 0).await?;
    ensure!(said.contains("are given up"), "{said}");
    platform.up().await?;
    stop(&mut platform).await?;
    says(Some(&data), &["audit", "verify"], 0).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_looked_at_is_no_mismatch() -> anyhow::Result<()> {
    let home = tempfile::tempdir()?;
    let said = says(Some(&home.path().join("none")), &["audit", "verify"], 1).await?;
    ensure!(said.contains("is not there"), "{said}");
    let said = says(Some(home.path()), &["audit", "verify"], 1).await?;
    ensure!(said.contains("give --platform"), "{said}");
    let line = ["audit", "verify", "--platform", "62640abc84ca9d1f"];
    let said = says(Some(home.path()), &line, 1).await?;
    ensure!(said.contains("holds no log"), "{said}");
    let within = home.path().join("log/checkpoints").display().to_string();
    let line = [&line[..], &["--checkpoints", &within]].concat();
    let said = says(Some(home.path()), &line, 1).await?;
    ensure!(said.contains("is within the log's own directory"), "{said}");
    says(None, &["audit", "prove", "x"], 2).await?;
    says(None, &["audit", "check", "x"], 2).await?;
    Ok(())
}
