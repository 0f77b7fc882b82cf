//! `tabbify up` as an operator meets it: stopping in order, stopping at once, a port that is taken,
//! a directory that is in use, a configuration with a mistake.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use http_body_util::BodyExt as _;
use hyper::Request;
use tabbify_testing::platform::binary;
use tabbify_testing::process::{runners, runs};
use tabbify_testing::role::done;
use tabbify_testing::{Platform, http, wait};

async fn signal(pid: u32, name: &str) -> anyhow::Result<()> {
    let status = tokio::process::Command::new("kill")
        .args([name, &pid.to_string()])
        .status()
        .await?;
    ensure!(status.success(), "kill {name} {pid}: {status}");
    Ok(())
}

/// Pushes `stream-wasm` and begins an answer that takes `pieces` × 100 ms.
async fn slow_answer(platform: &Platform, pieces: u32) -> anyhow::Result<hyper::body::Incoming> {
    let folder = platform.copy_app("examples/stream-wasm", "stream-wasm")?;
    platform.succeed(&folder, &["push"]).await?;
    let id = platform.status(&folder).await?["id"]
        .as_str()
        .context("id")?
        .to_owned();
    let request = Request::get(format!("/app/{id}/slow?n={pieces}&ms=100"))
        .header("host", &platform.authority)
        .header(
            "authorization",
            format!("Bearer {}", platform.token().await?),
        )
        .body(http::full(""))?;
    let mut body = http::send(&platform.authority, request).await?.into_body();
    body.frame().await.context("the answer begins")??;
    Ok(body)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_lets_requests_end_and_apps_live() -> anyhow::Result<()> {
    let mut platform = Platform::start().await?;
    let mut answer = slow_answer(&platform, 20).await?;
    let runner = *runners(&platform.data())?.first().context("a runner")?;
    signal(platform.pid()?, "-TERM").await?;
    let mut pieces = 1;
    while let Some(frame) = answer.frame().await {
        pieces += usize::from(frame?.is_data());
    }
    ensure!(pieces >= 20, "the answer was cut after {pieces} pieces");
    let status = platform.wait().await?;
    ensure!(status.success(), "{status}\n{}", platform.log());
    ensure!(runs(runner), "the app ended with tabbify");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_exits_at_once() -> anyhow::Result<()> {
    let mut platform = Platform::start().await?;
    let answer = slow_answer(&platform, 600).await?;
    let pid = platform.pid()?;
    signal(pid, "-INT").await?;
    wait::until("it says that it is stopping", async || {
        platform
            .log()
            .contains("a second signal exits at once")
            .then_some(())
    })
    .await?;
    ensure!(runs(pid), "it did not wait for the request");
    signal(pid, "-INT").await?;
    let status = platform.wait().await?;
    ensure!(status.code() == Some(130), "{status}");
    drop(answer);
    Ok(())
}

/// Runs `tabbify up` with these flags, which must fail, and gives what it says.
async fn refused(flags: &[&str]) -> anyhow::Result<String> {
    let up = tokio::process::Command::new(binary("tabbify")?)
        .arg("up")
        .args(flags)
        .env("TABBIFY_LOG", "off")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(Duration::from_secs(60), up).await??;
    ensure!(!output.status.success());
    Ok(String::from_utf8_lossy(&output.stderr).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stands_in_the_way_is_named() -> anyhow::Result<()> {
    let platform = Platform::start().await?;
    let text = |path: std::path::PathBuf| path.display().to_string();
    let (data, other) = (text(platform.data()), text(platform.scratch("other")));
    let (pid, port) = (
        platform.pid()?,
        platform.authority.rsplit(':').next().context("port")?,
    );

    let said = refused(&["--data-dir", &other, "--listen", &platform.authority]).await?;
    ensure!(
        said.contains(&format!("{port} is taken by tabbify (pid {pid})")),
        "{said}"
    );
    let said = refused(&["--data-dir", &data, "--listen", "127.0.0.1:0"]).await?;
    ensure!(
        said.contains(&format!("in use by tabbify (pid {pid})")),
        "{said}"
    );
    let said = refused(&["--data-dir", &other, "--listen", "0.0.0.0:0"]).await?;
    ensure!(said.contains("beyond loopback"), "{said}");

    let file = platform.scratch("up.toml");
    std::fs::write(&file, "[node]\nlisten = \"127.0.0.1:0\"\nlimt = 3\n")?;
    let said = refused(&["--data-dir", &other, "--config", &text(file)]).await?;
    ensure!(said.contains("limt") && said.contains("up.toml"), "{said}");

    // Ports of the other roles name their holder, and the key that moves them.
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let at = taken.local_addr()?;
    let own = std::process::id();
    let configs = [
        (
            format!("[coordinator]\nlisten = \"{at}\"\n"),
            "[coordinator] listen",
        ),
        (format!("[relay]\nlisten = \"{at}\"\n"), "[relay] listen"),
    ];
    for (config, key) in configs {
        let file = platform.scratch("taken.toml");
        std::fs::write(&file, config)?;
        let flags = ["--data-dir", &other, "--listen", "127.0.0.1:0", "--config"];
        let said = refused(&[flags.as_slice(), &[&text(file)]].concat()).await?;
        ensure!(
            said.contains(&format!("(pid {own})")) && said.contains(key),
            "{said}"
        );
    }

    // What can be seen to be wrong leaves no directory behind.
    let fresh = text(platform.scratch("fresh"));
    for (config, key) in [
        ("[gateway]\nlisten = \"0.0.0.0:0\"\n", "[gateway]"),
        (
            "[relay]\nlisten = \"127.0.0.1:0\"\nname = \"ä b\"\n",
            "[relay] name",
        ),
    ] {
        let file = platform.scratch("wrong.toml");
        std::fs::write(&file, config)?;
        let said = refused(&["--data-dir", &fresh, "--config", &text(file)]).await?;
        ensure!(said.contains(key), "{said}");
        ensure!(!std::path::Path::new(&fresh).exists(), "it made {fresh}");
    }

    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invitation_needs_the_platform_and_says_so() -> anyhow::Result<()> {
    let mut platform = Platform::start().await?;
    platform.kill().await?;
    let refused = done(&["invite", "box2"], &platform.data()).await;
    let said = format!("{:#}", refused.err().context("it gives a token")?);
    ensure!(said.contains("tabbify up --data-dir"), "{said}");
    Ok(())
}
