//! Many runners, and a supervisor that is killed: how long the next one takes to have them all again, and what
//! it costs while nothing happens. The runners are small ones: processes that hold their locks and answer on
//! their control sockets as real ones do, and run nothing. Figures are printed, not judged: they depend on the
//! machine.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tabbify_api::runner::{
    Answer, BIRTH_FILE, BOOT_FILE, Birth, Boot, CONTROL_SOCKET, Request, StateName, Status,
};
use tabbify_process::{Clock as _, SystemClock, env, unix};
use tabbify_types::{AppId, Digest, MeshKey};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::points::{Ended, HOME, long};
use crate::support::{App, Machine, Outcome, Wrong, instance, processes_below};

/// As [`Wrong`], for what another task may say.
type Fallible<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// What a small runner is told: its directory.
const SMALL: &str = "TABBIFY_TEST_SMALL";
/// What a supervisor is told: how many runners there are.
const RUNNERS: &str = "TABBIFY_TEST_RUNNERS";
/// LIMIT: how long a thousand processes may take to be made.
const ALL_WITHIN: Duration = Duration::from_secs(300);
/// How long the supervisor is looked at while nothing happens.
const QUIET: Duration = Duration::from_secs(10);

/// The runner program of these tests: this one, as a small runner.
fn program(home: &Path) -> Result<PathBuf, Wrong> {
    let path = home.join("small-runner");
    let test = std::env::current_exe()?;
    let text = format!(
        "#!/bin/sh\n{SMALL}=\"$1\" exec {} adopt::small_runner --exact --nocapture\n",
        test.display()
    );
    let mut file = File::create(&path)?;
    file.write_all(text.as_bytes())?;
    file.set_permissions(std::fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

fn machine(home: &Path) -> Result<Machine, Wrong> {
    let mut machine = Machine::at(home)?;
    machine.config.runner = home.join("small-runner");
    Ok(machine)
}

/// A small runner, if this process is to be one.
#[tokio::test]
async fn small_runner() -> Outcome {
    let Some(dir) = env::read(SMALL).map(PathBuf::from) else {
        return Ok(());
    };
    // A session leader is refused, and has what it asks for.
    let _ = rustix::process::setsid();
    let boot: Boot = serde_json::from_slice(&std::fs::read(dir.join(BOOT_FILE))?)?;
    let birth = Birth {
        of: boot.of,
        pid: std::process::id(),
        at: SystemClock.now(),
    };
    std::fs::write(dir.join(BIRTH_FILE), serde_json::to_vec(&birth)?)?;
    let secret: [u8; 32] = URL_SAFE_NO_PAD
        .decode(&boot.secret)?
        .as_slice()
        .try_into()?;
    let listener = unix::bind(&dir, CONTROL_SOCKET)?;
    let mut callers = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, boot) = (accepted?.0, boot.clone());
                // Whoever is wrong is not answered any more.
                callers.spawn(async move { converse(stream, &boot, &secret).await.unwrap_or(false) });
            }
            Some(Ok(true)) = callers.join_next() => return Ok(()),
        }
    }
}

/// Serves one caller; whether it said that the runner is to end.
async fn converse(stream: UnixStream, boot: &Boot, secret: &[u8; 32]) -> Fallible<bool> {
    let status = || Status {
        state: StateName::Ready,
        failure: None,
        of: boot.of,
        pid: std::process::id(),
        key: MeshKey(Digest::of(format!("{:?}", boot.of).as_bytes()).0),
        underlay: ([127, 0, 0, 1], 1).into(),
        active: 0,
        total: 0,
        secrets: std::collections::BTreeMap::new(),
    };
    let mut stream = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return Ok(false);
        }
        let request: Request = serde_json::from_str(&line)?;
        let ends = matches!(request, Request::Stop);
        let answer = match request {
            Request::Hello { nonce, .. } => {
                let nonce = URL_SAFE_NO_PAD.decode(nonce)?;
                let text = [b"tabbify-control-runner-v1\0".as_slice(), &nonce].concat();
                let proof = blake3::keyed_hash(secret, &text).to_hex().to_string();
                Answer::Hello { proof }
            }
            Request::Wait {
                seen: StateName::Ready,
            } => {
                tokio::time::sleep(Duration::from_secs(30)).await;
                Answer::Status(status())
            }
            Request::Status | Request::Wait { .. } => Answer::Status(status()),
            Request::Drain { .. } | Request::Sleep { .. } => Answer::Drained {
                finished: 0,
                cut: 0,
            },
            _ => Answer::Done,
        };
        let mut line = serde_json::to_vec(&answer)?;
        line.push(b'\n');
        stream.write_all(&line).await?;
        if ends {
            return Ok(true);
        }
    }
}

/// A supervisor in a process of its own, until it is killed; says when it has all runners, and after how long.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn supervisor_child() -> Outcome {
    let (Some(home), Some(runners)) = (env::read(HOME), env::read(RUNNERS)) else {
        return Ok(());
    };
    let begun = Instant::now();
    let machine = machine(Path::new(&home))?;
    let mut supervisor = machine.supervisor().await?;
    let runners: usize = runners.parse()?;
    supervisor
        .until(|now| now.caught_up && now.ready == runners)
        .await;
    println!("ALL {}", begun.elapsed().as_micros());
    std::future::pending().await
}

/// Starts the child, and waits until it has all runners; after how long, by its own clock.
async fn supervise(home: &Path, runners: usize) -> Result<(Child, Duration), Wrong> {
    let said = File::options()
        .create(true)
        .append(true)
        .open(home.join("child.log"))?;
    let mut child = Command::new(std::env::current_exe()?)
        .args(["adopt::supervisor_child", "--exact", "--nocapture"])
        .env(HOME, home)
        .env(RUNNERS, runners.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(said)
        .kill_on_drop(true)
        .spawn()?;
    let mut lines = BufReader::new(child.stdout.take().ok_or("piped")?).lines();
    let heard = async {
        while let Some(line) = lines.next_line().await? {
            if let Some((_, micros)) = line.split_once("ALL ") {
                return Ok::<_, Wrong>(Duration::from_micros(micros.trim().parse()?));
            }
        }
        let log = std::fs::read_to_string(home.join("child.log"))?;
        Err(format!("the supervisor has ended:\n{log}").into())
    };
    let took = timeout(ALL_WITHIN, heard)
        .await
        .map_err(|_| "not all runners are there")??;
    Ok((child, took))
}

/// A process's memory in KiB, and the processor time that it has used, in ticks of 10 ms.
fn cost(pid: u32) -> Result<(u64, u64), Wrong> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line
        .and_then(|line| line.split_whitespace().next())
        .ok_or("a size")?;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(')').ok_or("a name")?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    Ok((kib.parse()?, ticks))
}

#[tokio::test(flavor = "multi_thread")]
async fn many_runners_are_adopted_after_a_kill() -> Outcome {
    let runners = if long() { 1_000 } else { 40 };
    let home = tempfile::tempdir()?;
    let _ended = Ended(home.path());
    program(home.path())?;
    let placing = machine(home.path())?;
    let first = AppId::mint();
    placing.place(instance(first, 1), App::Picture).await?;
    for _ in 1..runners {
        placing
            .place(instance(AppId::mint(), 1), App::Picture)
            .await?;
    }
    drop(placing);

    let (mut child, made) = supervise(home.path(), runners).await?;
    let below = || -> BTreeSet<u32> {
        processes_below(&home.path().join("data/runners"))
            .into_iter()
            .collect()
    };
    let before = below();
    assert_eq!(before.len(), runners);
    child.kill().await?;
    let (mut child, adopted) = supervise(home.path(), runners).await?;
    assert_eq!(below(), before, "the same processes");

    let pid = child.id().ok_or("it runs")?;
    let (_, began) = cost(pid)?;
    // What is measured is that nothing happens.
    tokio::time::sleep(if long() {
        QUIET
    } else {
        Duration::from_secs(1)
    })
    .await;
    let (kib, ended) = cost(pid)?;
    println!(
        "{runners} runners: made in {made:?}, adopted {adopted:?} after the start; idle: {kib} KiB resident, {} ms \
         of processor time meanwhile",
        (ended - began) * 10
    );
    child.kill().await?;
    Ok(())
}
