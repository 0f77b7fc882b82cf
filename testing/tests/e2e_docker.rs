//! An image in a file, pushed to a platform of real processes, runs in a container of a real engine: answers,
//! streams, logs, gives way to its next version, survives a bad one, and leaves nothing.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use http_body_util::BodyExt as _;
use serde_json::json;
use tabbify_testing::apart::is_apart;
use tabbify_testing::dockerd::Dockerd;
use tabbify_testing::image::Image;
use tabbify_testing::process::runners;
use tabbify_testing::wait::until;
use tabbify_testing::{Platform, http, role};

const NAME: &str = "an_image_is_pushed_and_runs";

#[test]
fn an_image_is_pushed_and_runs() {
    if let Some(why) = Dockerd::missing() {
        eprintln!("NOT RUN: {NAME}: {why}");
        return;
    }
    if !is_apart(NAME).unwrap() {
        return;
    }
    let dockerd = Dockerd::start(&[]).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(pushed(&dockerd)).unwrap();
}

fn image(version: &str) -> Image {
    // Says when it takes requests and when it is asked to end.
    let script = "trap 'echo bye; exit 0' TERM; httpd -f -p $PORT -h /data & echo up; wait";
    let stream = "#!/bin/sh\nprintf 'content-type: text/plain\\r\\n\\r\\n'; echo first; \
        while [ ! -e /tmp/go ]; do sleep 0.1; done; echo second\n";
    let go = "#!/bin/sh\ntouch /tmp/go; printf 'content-type: text/plain\\r\\n\\r\\n'\n";
    Image::script(script)
        .with("ExposedPorts", json!({ "3000/tcp": {} }))
        .file("data/index.html", 0o644, format!("hello {version}\n"))
        .file("data/cgi-bin/stream", 0o755, stream)
        .file("data/cgi-bin/go", 0o755, go)
}

fn folder(platform: &Platform) -> anyhow::Result<PathBuf> {
    let folder = platform.scratch("docked");
    std::fs::create_dir(&folder)?;
    let manifest = "[app]\nname = \"docked\"\n\n[build]\nimage = \"oci-archive:docked.tar\"\n\n\
        [runtime]\nmemory = \"64MiB\"\nhealth.path = \"/index.html\"\n";
    std::fs::write(folder.join("tabbify.toml"), manifest)?;
    Ok(folder)
}

async fn pushed(dockerd: &Dockerd) -> anyhow::Result<()> {
    let before = dockerd.holds()?;
    let address = dockerd.address();
    let platform = Platform::start_in("", &[("DOCKER_HOST", &address)]).await?;
    let folder = folder(&platform)?;
    image("one").save_oci(&folder.join("docked.tar"))?;
    platform.succeed(&folder, &["push"]).await?;
    let id = platform.status(&folder).await?["id"]
        .as_str()
        .context("id")?
        .to_owned();
    let page = format!("/app/{id}/");
    ensure!(platform.get(&page).await? == (200, "hello one\n".to_owned()));
    streams(&platform, &id).await?;
    let logs = platform.succeed(&folder, &["logs"]).await?;
    ensure!(logs.lines().any(|line| line.ends_with("up")), "{logs}");

    image("two").save_docker(&folder.join("docked.tar"))?;
    platform.succeed(&folder, &["push"]).await?;
    ensure!(platform.get(&page).await? == (200, "hello two\n".to_owned()));
    let containers = || dockerd.client(&["ps", "--all", "--quiet"]);
    until("the first version is gone", async || {
        containers().is_ok_and(|all| all.len() == 1).then_some(())
    })
    .await?;

    bad(&platform, &folder).await?;
    ensure!(
        platform.get(&page).await? == (200, "hello two\n".to_owned()),
        "v2 still serves"
    );
    killed(&platform, dockerd, &page).await?;

    role::done(&["down"], &platform.data()).await?;
    ensure!(
        dockerd.holds()? == before,
        "left: {:?}\n{}",
        dockerd.holds()?,
        platform.log()
    );
    Ok(())
}

/// The first half of an answer arrives while the app waits for what another request does.
async fn streams(platform: &Platform, id: &str) -> anyhow::Result<()> {
    let path = format!("/app/{id}/cgi-bin/stream");
    let answer = platform.request("GET", &path, http::full("")).await?;
    let mut body = answer.into_body();
    let frame = body.frame().await.context("a first frame")??;
    ensure!(
        frame.data_ref().is_some_and(|data| &data[..] == b"first\n"),
        "{frame:?}"
    );
    let (status, said) = platform.get(&format!("/app/{id}/cgi-bin/go")).await?;
    ensure!(status == 200, "{said}");
    let rest = body.collect().await?.to_bytes();
    ensure!(&rest[..] == b"second\n", "{rest:?}");
    Ok(())
}

/// Versions that cannot serve: each says why, to a person.
async fn bad(platform: &Platform, folder: &Path) -> anyhow::Result<()> {
    let archive = folder.join("docked.tar");
    for (image, why) in [
        (
            Image::script("echo no database >&2; exit 3"),
            ["it ended with exit code 3", "no database"],
        ),
        (
            image("three").for_architecture("s390x"),
            ["is for linux/s390x", "--platform linux/"],
        ),
    ] {
        image.save_oci(&archive)?;
        let output = platform.run(folder, &["push"]).await?;
        let told = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(1), "{}: {told}", output.status);
        for part in why {
            ensure!(told.contains(part), "{part:?} is not in: {told}");
        }
    }
    std::fs::write(&archive, b"\x1f\x8b\x08 compressed")?;
    let output = platform.run(folder, &["push"]).await?;
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(told.contains("is compressed with gzip"), "{told}");
    Ok(())
}

/// A runner that is killed is replaced, and its container goes with its directory.
async fn killed(platform: &Platform, dockerd: &Dockerd, page: &str) -> anyhow::Result<()> {
    let ids = || {
        dockerd
            .client(&["ps", "--all", "--quiet"])
            .unwrap_or_default()
    };
    let old = ids();
    for pid in runners(&platform.data())? {
        let killed = Command::new("kill")
            .args(["-9", &pid.to_string()])
            .status()?;
        ensure!(killed.success());
    }
    until("another container serves, alone", async || {
        let now = ids();
        let answer = platform.get(page).await.ok()?;
        (now.len() == 1 && now != old && answer == (200, "hello two\n".to_owned())).then_some(())
    })
    .await
    .with_context(|| platform.log())
}
