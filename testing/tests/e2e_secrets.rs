//! A secret from `tcli secrets set` to a variable of a running app, through real processes: pushed with,
//! changed, taken away. Its values are found nowhere but in the app's memory.

use std::fs;
use std::path::Path;
use std::process::{Output, Stdio};

use anyhow::{Context as _, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use serde_json::Value;
use tabbify_testing::{Platform, wait};
use tokio::io::AsyncWriteExt as _;

const FIRST: &str = "canary-first-3f6c1a9e57d24b80";
const SECOND: &str = "canary-second-b81f0de2c4a7956d";

/// FNV-1a, as the fixture computes it.
fn digest(text: &str) -> String {
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{hash:016x}")
}

/// `tcli secrets set api-key`, with the value on standard input.
async fn set(platform: &Platform, folder: &Path, value: &str) -> anyhow::Result<String> {
    let mut command = platform.tcli(folder)?;
    command.args(["secrets", "set", "api-key"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.stderr(Stdio::piped()).spawn()?;
    let mut stdin = child.stdin.take().context("its standard input")?;
    stdin.write_all(format!("{value}\n").as_bytes()).await?;
    drop(stdin);
    let output = child.wait_with_output().await?;
    ensure!(output.status.success(), "{}", said(&output));
    Ok(said(&output))
}

fn said(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    format!(
        "{}{}",
        String::from_utf8_lossy(out),
        String::from_utf8_lossy(err)
    )
}

/// The versions of secrets that instances started with, in order.
async fn started_with(platform: &Platform, folder: &Path) -> anyhow::Result<Vec<Value>> {
    let line = [
        "--json",
        "events",
        "--segment",
        "apps",
        "--type",
        "app_started",
    ];
    let lines = platform.succeed(folder, &line).await?;
    let events = lines.lines().filter(|line| !line.is_empty());
    let events =
        events.map(|line| Ok(serde_json::from_str::<Value>(line)?["data"]["secrets"].take()));
    events.collect()
}

/// Everything that could hold a value: files of the platform and of its user, what it has logged, and the
/// environments and command lines of its processes.
fn everywhere(platform: &Platform, folder: &Path) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let mut all = vec![("its log".to_owned(), platform.log().into_bytes())];
    for root in [platform.data(), platform.config(), folder.to_path_buf()] {
        walk(&root, &mut all)?;
    }
    ensure!(all.len() > 20, "{} files", all.len());
    let births = all.iter().filter(|(path, _)| path.ends_with("birth.json"));
    let pids: Vec<u64> = births
        .filter_map(|(_, bytes)| serde_json::from_slice::<Value>(bytes).ok()?["pid"].as_u64())
        .chain([platform.pid()?.into()])
        .collect();
    ensure!(pids.len() > 1, "no runner lives");
    for pid in pids {
        for file in ["environ", "cmdline"] {
            let path = format!("/proc/{pid}/{file}");
            // An instance that has ended meanwhile has neither.
            let bytes = fs::read(&path).unwrap_or_default();
            all.push((path, bytes));
        }
    }
    Ok(all)
}

fn walk(root: &Path, found: &mut Vec<(String, Vec<u8>)>) -> anyhow::Result<()> {
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        let (path, kind) = (entry.path(), entry.file_type()?);
        if kind.is_dir() {
            walk(&path, found)?;
        } else if kind.is_file() {
            // Files come and go in a running platform.
            let bytes = fs::read(&path).unwrap_or_default();
            found.push((path.display().to_string(), bytes));
        }
    }
    Ok(())
}

fn nowhere(platform: &Platform, folder: &Path) -> anyhow::Result<()> {
    let all = everywhere(platform, folder)?;
    for value in [FIRST, SECOND] {
        let hex: String = value.bytes().map(|byte| format!("{byte:02x}")).collect();
        // Base64 of the whole, and of what begins one or two bytes later.
        let encoded = (0..3).map(|at| STANDARD_NO_PAD.encode(&value[at..value.len() - 2]));
        let forms = [value.to_owned(), hex].into_iter().chain(encoded);
        for form in forms {
            // The last digits depend on what follows.
            let form = &form.as_bytes()[..form.len() - 2];
            let holder = all
                .iter()
                .find(|(_, bytes)| bytes.windows(form.len()).any(|window| window == form));
            ensure!(holder.is_none(), "{:?}", holder.map(|(path, _)| path));
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn from_a_prompt_to_the_app_and_nowhere_else() -> anyhow::Result<()> {
    let mut platform = Platform::start().await?;
    let folder = platform.copy_app("testing/fixtures/wasm/secret", "secret")?;
    let refused = platform.run(&folder, &["push"]).await?;
    let expected = "Secret \"api-key\" (tabbify.toml:12) does not exist. \
                    Run: tcli secrets set api-key. Nothing was uploaded.";
    ensure!(said(&refused).contains(expected), "{}", said(&refused));
    ensure!(refused.status.code() == Some(2), "{}", refused.status);
    let apps = platform.json(&folder, &["apps"]).await?;
    ensure!(apps["apps"].as_array().is_some_and(Vec::is_empty), "{apps}");

    let told = set(&platform, &folder, FIRST).await?;
    ensure!(told.contains("api-key v1 is set"), "{told}");
    platform.succeed(&folder, &["push"]).await?;
    let id = platform.status(&folder).await?;
    let at = format!("/app/{}/", id["id"].as_str().context("an id")?);
    let answers = async |platform: &Platform, value: &str| -> anyhow::Result<()> {
        let (status, text) = platform.get(&at).await?;
        let expected = format!("{} as before\n", digest(value));
        ensure!(
            status == 200 && text == expected,
            "{status} {text}\n{}",
            platform.log()
        );
        Ok(())
    };
    answers(&platform, FIRST).await?;
    ensure!(started_with(&platform, &folder).await? == [serde_json::json!({ "api-key": 1 })]);
    nowhere(&platform, &folder)?;

    // A new value: who runs keeps the old one, until it starts anew.
    let told = set(&platform, &folder, SECOND).await?;
    ensure!(
        told.contains("v2 is set") && told.contains("tcli restart secret"),
        "{told}"
    );
    answers(&platform, FIRST).await?;
    platform.succeed(&folder, &["restart"]).await?;
    answers(&platform, SECOND).await?;
    let versions = [1, 2].map(|version| serde_json::json!({ "api-key": version }));
    ensure!(started_with(&platform, &folder).await? == versions);

    // What the app prints and what the platform says has names alone.
    platform.get(&format!("{at}print")).await?;
    let logs = platform.succeed(&folder, &["logs"]).await?;
    ensure!(logs.contains("the key has 30 bytes"), "{logs}");
    let listed = platform.succeed(&folder, &["secrets", "list"]).await?;
    ensure!(
        listed.contains("api-key  v2") && listed.contains("secret"),
        "{listed}"
    );
    nowhere(&platform, &folder)?;

    // The platform is killed and comes again: the app has gone on, and the vault has what it had.
    platform.kill().await?;
    platform.up().await?;
    let again = async || answers(&platform, SECOND).await.ok();
    wait::until("the app answers again", again).await?;
    platform.succeed(&folder, &["restart"]).await?;
    answers(&platform, SECOND).await?;

    // Taken away: a start fails and says what to run; what serves goes on.
    let told = platform
        .succeed(&folder, &["secrets", "rm", "api-key"])
        .await?;
    ensure!(told.contains("do not start again: secret"), "{told}");
    let failed = platform.run(&folder, &["restart"]).await?;
    let expected = "Secret \"api-key\" does not exist. Run: tcli secrets set api-key";
    ensure!(said(&failed).contains(expected), "{}", said(&failed));
    ensure!(failed.status.code() == Some(1), "{}", failed.status);
    answers(&platform, SECOND).await?;
    nowhere(&platform, &folder)?;
    let vault = platform.data().join("vault");
    for part in ["keys", "values"] {
        ensure!(fs::read_dir(vault.join(part))?.next().is_none(), "{part}");
    }
    Ok(())
}
