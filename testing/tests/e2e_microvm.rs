//! An image in a file, pushed to a platform of real processes, runs in a virtual machine of its own: answers,
//! streams, logs, gives way to its next version, survives bad ones and the end of its runner, and leaves nothing.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use http_body_util::BodyExt as _;
use serde_json::json;
use tabbify_api::runner::MicroVms;
use tabbify_testing::image::Image;
use tabbify_testing::platform::binary;
use tabbify_testing::process::{mentioning, runners};
use tabbify_testing::wait::until;
use tabbify_testing::{Platform, guest, http, role};

const NAME: &str = "an_image_is_pushed_and_runs_in_a_machine";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_is_pushed_and_runs_in_a_machine() {
    match guest::microvms().unwrap() {
        Ok(made_of) => pushed(&made_of).await.unwrap(),
        Err(why) => eprintln!("NOT RUN: {NAME}: {why}"),
    }
}

/// The program of the conformance suite, which does as its words say.
fn image(program: &[u8], words: &[&str]) -> Image {
    let command: Vec<&str> = ["/bin/app"].iter().chain(words).copied().collect();
    let image = Image::default().empty().with("Entrypoint", json!(command));
    let image = image.with("ExposedPorts", json!({ "3000/tcp": {} }));
    image.file("bin/app", 0o755, program)
}

fn config(made_of: &MicroVms) -> String {
    let modules = made_of.modules.as_deref().unwrap_or_else(|| Path::new(""));
    format!(
        "[microvm]\nkernel = {:?}\nmodules = {modules:?}\ninit = {:?}\nacceleration = \"tcg\"\n",
        made_of.kernel, made_of.init
    )
}

fn folder(platform: &Platform) -> anyhow::Result<PathBuf> {
    let folder = platform.scratch("boxed");
    std::fs::create_dir(&folder)?;
    write_manifest(&folder, "hello")?;
    Ok(folder)
}

fn write_manifest(folder: &Path, greeting: &str) -> anyhow::Result<()> {
    let manifest = format!(
        "[app]\nname = \"boxed\"\n\n[build]\nimage = \"oci-archive:boxed.tar\"\n\n\
         [runtime]\ntype = \"firecracker\"\nmemory = \"64MiB\"\nhealth.path = \"/hello\"\n\n\
         [env]\nGREETING = \"{greeting}\"\n"
    );
    Ok(std::fs::write(folder.join("tabbify.toml"), manifest)?)
}

async fn pushed(made_of: &MicroVms) -> anyhow::Result<()> {
    let program = guest::program("conform/server.rs")?;
    let platform = Platform::start_with(&config(made_of)).await?;
    doctor(&platform, made_of)?;
    let folder = folder(&platform)?;
    let archive = folder.join("boxed.tar");
    image(&program, &["serve"]).save_oci(&archive)?;
    platform.succeed(&folder, &["push"]).await?;
    let id = platform.status(&folder).await?["id"]
        .as_str()
        .context("id")?
        .to_owned();
    let greeting = format!("/app/{id}/env?GREETING");
    ensure!(platform.get(&greeting).await? == (200, "hello".to_owned()));
    ensure!(platform.get(&format!("/app/{id}/env?PORT")).await?.1 == "3000");
    streams(&platform, &id).await?;
    let logs = platform.succeed(&folder, &["logs"]).await?;
    ensure!(logs.lines().any(|line| line.ends_with("serving")), "{logs}");

    write_manifest(&folder, "hello again")?;
    platform.succeed(&folder, &["push"]).await?;
    ensure!(platform.get(&greeting).await? == (200, "hello again".to_owned()));
    until("the first version is gone", async || {
        machines(&platform)
            .is_ok_and(|all| all.len() == 1)
            .then_some(())
    })
    .await?;
    bad(&platform, &folder, &program).await?;
    ensure!(
        platform.get(&greeting).await? == (200, "hello again".to_owned()),
        "v2 still serves"
    );
    killed(&platform, &greeting).await?;

    let data = platform.data();
    role::done(&["down"], &data).await?;
    ensure!(machines(&platform)?.is_empty(), "{:?}", machines(&platform));
    ensure!(mentioning(&data)?.is_empty(), "{:?}", mentioning(&data));
    Ok(())
}

/// What the machine can run is said, and what is missing where it is told to look elsewhere.
fn doctor(platform: &Platform, made_of: &MicroVms) -> anyhow::Result<()> {
    let told = platform.scratch("doctor.toml");
    let says = |config: String| {
        std::fs::write(&told, config)?;
        let mut doctor = Command::new(binary("tabbify")?);
        let output = doctor.args(["doctor", "--config"]).arg(&told).output()?;
        anyhow::Ok(String::from_utf8(output.stdout)?)
    };
    let said = says(config(made_of))?;
    ensure!(said.contains("✓ firecracker QEMU"), "{said}");
    ensure!(said.contains("are loaded into each guest"), "{said}");
    let said = says("[microvm]\nkernel = \"/none/vmlinuz\"\n".to_owned())?;
    for part in [
        "✗ firecracker",
        "(/none/vmlinuz): missing",
        "docs/operating/microvms.md",
    ] {
        ensure!(said.contains(part), "{part:?} is not in: {said}");
    }
    Ok(())
}

/// The monitors that work below the platform's directory.
fn machines(platform: &Platform) -> anyhow::Result<Vec<u32>> {
    let data = platform.data().canonicalize()?;
    let mut found = Vec::new();
    for process in std::fs::read_dir("/proc")? {
        let process = process?;
        let Ok(pid) = process.file_name().to_string_lossy().parse() else {
            continue;
        };
        let cwd = std::fs::read_link(process.path().join("cwd"));
        if cwd.is_ok_and(|cwd| cwd.starts_with(&data) && cwd.ends_with("machine")) {
            found.push(pid);
        }
    }
    Ok(found)
}

/// What is sent comes back while more is still to come.
async fn streams(platform: &Platform, id: &str) -> anyhow::Result<()> {
    let path = format!("/app/{id}/endless");
    let answer = platform.request("GET", &path, http::full("")).await?;
    let mut body = answer.into_body();
    let mut seen = 0;
    while seen < 1 << 20 {
        let frame = body.frame().await.context("its end")??;
        seen += frame.data_ref().map_or(0, |data| data.len());
    }
    Ok(())
}

/// Versions that cannot serve: each says why, to a person.
async fn bad(platform: &Platform, folder: &Path, program: &[u8]) -> anyhow::Result<()> {
    let archive = folder.join("boxed.tar");
    for (image, why) in [
        (
            image(program, &["exit", "3"]),
            ["it ended with exit code 3", "no database"],
        ),
        (
            image(program, &[]).for_architecture("s390x"),
            ["is for linux/s390x", "--platform linux/"],
        ),
        (
            image(program, &[]).traversing(),
            ["an entry that is refused", "leaves the image"],
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
    Ok(())
}

/// A runner that is killed takes its machine along, and is replaced.
async fn killed(platform: &Platform, page: &str) -> anyhow::Result<()> {
    let old = machines(platform)?;
    for pid in runners(&platform.data())? {
        let killed = Command::new("kill")
            .args(["-9", &pid.to_string()])
            .status()?;
        ensure!(killed.success());
    }
    until("another machine serves, alone", async || {
        let now = machines(platform).ok()?;
        let answer = platform.get(page).await.ok()?;
        let serves = answer == (200, "hello again".to_owned());
        (now.len() == 1 && now != old && serves).then_some(())
    })
    .await
    .with_context(|| platform.log())
}
