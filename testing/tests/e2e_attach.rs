//! A worker that speaks no HTTP, of one program in an image from scratch: it gets secrets that nothing on disk
//! has, is reached on its raw port by `tcli forward`, and runs commands for `tcli exec`.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, ensure};
use serde_json::json;
use tabbify_testing::apart::is_apart;
use tabbify_testing::dockerd::Dockerd;
use tabbify_testing::image::Image;
use tabbify_testing::wait::until;
use tabbify_testing::{Platform, guest, role};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

const NAME: &str = "people_reach_into_a_worker";
const VARIABLE: &str = "canary-variable-5d0f1c7ab3e84296";
const FILE: &str = "canary-file-90e1b6d37fa2c548";

#[test]
fn people_reach_into_a_worker() {
    if let Some(why) = Dockerd::missing() {
        eprintln!("NOT RUN: {NAME}: {why}");
        return;
    }
    if !is_apart(NAME).unwrap() {
        return;
    }
    let init = match guest::init() {
        Ok(init) => init,
        Err(why) => {
            eprintln!("NOT RUN: {NAME}: {why:#}");
            return;
        }
    };
    let dockerd = Dockerd::start(&[]).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(reached(&dockerd, &init)).unwrap();
}

/// FNV-1a, as the app computes it.
fn digest(text: &str) -> String {
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{hash:016x}")
}

const MANIFEST: &str = r#"[app]
name = "raw"

[build]
image = "oci-archive:raw.tar"

[runtime]
port = false
memory = "64MiB"

[secrets]
API_KEY = "api-key"
TLS_KEY = { name = "tls-key", as = "file" }

[[port]]
number = 5432
"#;

async fn reached(dockerd: &Dockerd, init: &Path) -> anyhow::Result<()> {
    let before = dockerd.holds()?;
    let config = format!("[microvm]\ninit = {init:?}\n");
    let address = dockerd.address();
    let platform = Platform::start_in(&config, &[("DOCKER_HOST", &address)]).await?;
    let folder = platform.scratch("raw");
    std::fs::create_dir(&folder)?;
    std::fs::write(folder.join("tabbify.toml"), MANIFEST)?;
    Image::default()
        .empty()
        .with("Cmd", json!(["/raw"]))
        .with("User", json!("1000"))
        .file("raw", 0o755, guest::program("raw.rs")?)
        .save_oci(&folder.join("raw.tar"))?;
    set(&platform, &folder, "api-key", VARIABLE).await?;
    set(&platform, &folder, "tls-key", FILE).await?;
    platform.succeed(&folder, &["push"]).await?;
    // A worker serves from its start on; what it makes of that, it says.
    until("the app listens", async || {
        let logs = platform.succeed(&folder, &["logs"]).await.ok()?;
        logs.contains("listening").then_some(())
    })
    .await?;

    forwarded(&platform, &folder).await.context("forward")?;
    commands(&platform, &folder).await.context("exec")?;
    given_up(&platform, &folder, dockerd)
        .await
        .context("given up")?;
    nowhere(&platform, dockerd)?;
    recorded(&platform, &folder).await?;
    role::done(&["down"], &platform.data()).await?;
    ensure!(dockerd.holds()? == before, "{:?}", dockerd.holds()?);
    Ok(())
}

async fn set(platform: &Platform, folder: &Path, name: &str, value: &str) -> anyhow::Result<()> {
    let mut command = platform.tcli(folder)?;
    command.args(["secrets", "set", name, "--exact"]);
    let mut child = command.stdin(Stdio::piped()).spawn()?;
    let mut stdin = child.stdin.take().context("its standard input")?;
    stdin.write_all(value.as_bytes()).await?;
    drop(stdin);
    ensure!(child.wait().await?.success());
    Ok(())
}

/// Lines through a port of this machine, over the node and the mesh, into the container.
async fn forwarded(platform: &Platform, folder: &Path) -> anyhow::Result<()> {
    let mut command = platform.tcli(folder)?;
    command.args(["forward", "raw", "0:5432"]);
    let mut forward = command.stdout(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(forward.stdout.take().context("piped")?).lines();
    let said = lines.next_line().await?.context("where it listens")?;
    let at = said.split(' ').next().context("an address")?.to_owned();
    let stream = TcpStream::connect(&at).await?;
    let (reader, mut writer) = stream.into_split();
    let mut answers = BufReader::new(reader).lines();
    for (line, expected) in [
        ("hello", "you said hello".to_owned()),
        ("variable", digest(VARIABLE)),
        ("file", digest(FILE)),
    ] {
        writer.write_all(format!("{line}\n").as_bytes()).await?;
        let answer = answers.next_line().await?;
        ensure!(answer.as_deref() == Some(expected.as_str()), "{answer:?}");
    }
    // Our end ends, and the app still answers what it has heard.
    let line = "y".repeat(100_000);
    writer.write_all(format!("{line}\n").as_bytes()).await?;
    drop(writer);
    let answer = answers.next_line().await?.context("the long line")?;
    ensure!(
        answer == format!("you said {line}"),
        "{} bytes",
        answer.len()
    );
    ensure!(answers.next_line().await?.as_deref() == Some("bye"));
    ensure!(answers.next_line().await?.is_none());
    forward.kill().await?;

    let output = platform.run(folder, &["forward", "raw", "0:5433"]).await?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(
        output.status.code() == Some(2) && said.contains("it has 5432"),
        "{said}"
    );
    Ok(())
}

async fn commands(platform: &Platform, folder: &Path) -> anyhow::Result<()> {
    let said = platform
        .succeed(folder, &["exec", "--", "/raw", "secrets"])
        .await?;
    ensure!(
        said == format!("{} {}\n", digest(VARIABLE), digest(FILE)),
        "{said}"
    );
    let much = platform
        .succeed(folder, &["exec", "raw", "--", "/raw", "much"])
        .await?;
    ensure!(much.len() == 2 << 20, "{} bytes", much.len());
    let failed = platform
        .run(folder, &["exec", "--", "/raw", "fail"])
        .await?;
    ensure!(failed.status.code() == Some(7), "{:?}", failed.status);
    ensure!(failed.stderr == b"as asked\n", "{failed:?}");
    let absent = platform.run(folder, &["exec", "--", "/absent"]).await?;
    ensure!(absent.status.code() == Some(127), "{absent:?}");
    Ok(())
}

/// A command ends with whoever asked for it.
async fn given_up(platform: &Platform, folder: &Path, dockerd: &Dockerd) -> anyhow::Result<()> {
    let ids = dockerd.client(&["ps", "--quiet"])?;
    let id = ids.first().context("a container")?;
    let programs = || dockerd.client(&["top", id]).map(|lines| lines.len() - 1);
    ensure!(programs()? == 1);
    let mut command = platform.tcli(folder)?;
    command.args(["exec", "--", "/raw", "wait"]);
    let mut exec = command.stdout(Stdio::piped()).spawn()?;
    let mut said = [0; 8];
    let mut stdout = exec.stdout.take().context("piped")?;
    stdout.read_exact(&mut said).await?;
    ensure!(&said == b"waiting\n" && programs()? == 2);
    exec.kill().await?;
    until("the command has ended", async || {
        programs().is_ok_and(|count| count == 1).then_some(())
    })
    .await
}

/// What was set is in no file of the engine, nor in what it tells of the container.
fn nowhere(platform: &Platform, dockerd: &Dockerd) -> anyhow::Result<()> {
    let ids = dockerd.client(&["ps", "--quiet"])?;
    let told = dockerd.client(&["inspect", ids.first().context("a container")?])?;
    let mut all = vec![("docker inspect".into(), told.join("\n").into_bytes())];
    for root in [dockerd.dir().to_path_buf(), platform.data()] {
        walk(&root, &mut all)?;
    }
    ensure!(all.len() > 50, "{} files", all.len());
    let has = |bytes: &[u8], text: &str| bytes.windows(text.len()).any(|it| it == text.as_bytes());
    for (path, bytes) in &all {
        ensure!(
            !has(bytes, VARIABLE) && !has(bytes, FILE),
            "{}",
            path.display()
        );
    }
    let log = platform.log();
    ensure!(!log.contains(VARIABLE) && !log.contains(FILE), "its log");
    Ok(())
}

/// Every file below `directory`, whole: one that cannot be read may have what is looked for.
fn walk(directory: &Path, all: &mut Vec<(PathBuf, Vec<u8>)>) -> anyhow::Result<()> {
    // Handles of network namespaces, which have no bytes and fail when they are read.
    if directory.ends_with("exec-root/netns") {
        return Ok(());
    }
    let Some(entries) = there(directory, std::fs::read_dir(directory))? else {
        return Ok(());
    };
    for entry in entries {
        let Some(entry) = there(directory, entry)? else {
            continue;
        };
        let path = entry.path();
        let Some(kind) = there(&path, entry.file_type())? else {
            continue;
        };
        if kind.is_dir() {
            walk(&path, all)?;
        } else if kind.is_file()
            && let Some(bytes) = there(&path, std::fs::read(&path))?
        {
            all.push((path, bytes));
        }
    }
    Ok(())
}

/// What was found, if it is still there: what goes while we look was never there.
fn there<T>(path: &Path, found: io::Result<T>) -> anyhow::Result<Option<T>> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| path.display().to_string()),
    }
}

/// Who did what is in the log, without what may be secret.
async fn recorded(platform: &Platform, folder: &Path) -> anyhow::Result<()> {
    let events = platform
        .succeed(folder, &["--json", "events", "--segment", "apps"])
        .await?;
    let of = |kind: &str| events.lines().filter(|line| line.contains(kind)).count();
    ensure!(
        of("app_port_admitted") == 1 && of("app_command_admitted") == 5,
        "{events}"
    );
    ensure!(events.contains("\"program\":\"/raw\"") && !events.contains("much"));
    Ok(())
}
