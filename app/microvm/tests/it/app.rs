//! An app in a machine: all that only looks at it shares one boot.

use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::json;
use tabbify_microvm::order::Status;
use tabbify_microvm::{Ending, Source, signal_number, volume};
use tabbify_process::{Clock as _, SystemClock};
use tabbify_types::ByteSize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::{ELSEWHERE, Host, Running, WATCHDOG};

const TERM: i32 = 15;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_runs_as_it_says() {
    let Some(host) = Host::find("an_image_runs_as_it_says").unwrap() else {
        return;
    };
    let before = SystemClock.now().millis() / 1000;
    let settings = json!({
        "Entrypoint": ["app", "serve"], "Cmd": ["one", "two words"], "User": "web",
        "Env": ["GREETING=hello = there", "PATH=/bin"], "WorkingDir": "/srv/shop",
    });
    let (mut running, machine) = host.boot(settings, |_, _| {}).await.unwrap();

    let answer = running.get("/path?q").await.unwrap();
    assert!(answer.ends_with("hello from /path?q\n"), "{answer}");
    let printed = running.printed(Source::Stdout, "time ").await.unwrap();
    for line in [
        "args serve one two words",
        "env GREETING=hello = there",
        "env PATH=/bin",
        "env PORT=8080",
        "env HOME=/home/web",
        "env HOSTNAME=shop",
        "uid 1000 1000 1000 1000",
        "gid 1001 1001 1001 1001",
        "groups 44",
        "cwd /srv/shop",
    ] {
        assert!(
            printed.lines().any(|found| found == line),
            "{line} is not in\n{printed}"
        );
    }
    let errors = running.printed(Source::Stderr, "\n").await.unwrap();
    assert_eq!(errors, "serving on 8080\n");
    let clock = printed.lines().find_map(|line| line.strip_prefix("time "));
    let clock: u64 = clock.unwrap().parse().unwrap();
    assert!(
        (before..before + 600).contains(&clock),
        "the guest's clock is at {clock}, ours was at {before}"
    );

    let listeners = running.vm.listeners().await.unwrap();
    assert_eq!(listeners, [([0, 0, 0, 0], 8080).into()]);
    elsewhere(&running).await.unwrap();
    beside(&running).await.unwrap();
    closed(&running).await.unwrap();
    out(&running).await.unwrap();
    full(&running).await.unwrap();
    let answer = running.get("/still").await.unwrap();
    assert!(answer.contains("/still"), "{answer}");

    // The app has a handler for SIGTERM that ends it with 3.
    let ending = running.vm.stop(TERM, Duration::from_secs(30)).await;
    let expected = Ending::Exited {
        status: Status::Code(3),
        out_of_memory: false,
    };
    assert_eq!(ending, expected);
    assert!(!machine.directory.exists());
    let address = running.vm.address(8080).unwrap();
    tokio::net::TcpStream::connect(address).await.unwrap_err();
    running
        .vm
        .exec(vec!["/bin/app".to_owned()])
        .await
        .map(drop)
        .unwrap_err();
}

/// What listens where the host does not reach it is named.
async fn elsewhere(running: &Running) -> Result<()> {
    let command = vec!["app".to_owned(), "elsewhere".to_owned()];
    let mut exec = running.vm.exec(command).await?;
    exec.output().await.context("it listens")?;
    let looked = running
        .vm
        .listening(ELSEWHERE, Duration::from_millis(100))
        .await;
    let error = looked.err().context("it is reached")?.to_string();
    let expected = "it did not listen on :3000 in 100ms; it listens on 127.0.0.1:3000, 0.0.0.0:8080. \
                    Listen on 0.0.0.0:$PORT";
    assert_eq!(error, expected);
    // With nobody who waits for it, it is killed.
    drop(exec);
    let gone = async {
        let alone = [([0, 0, 0, 0], 8080).into()];
        while running.vm.listeners().await? != alone {}
        anyhow::Ok(())
    };
    tokio::time::timeout(WATCHDOG, gone).await?
}

/// Programs beside the app are its user's, and end by themselves.
async fn beside(running: &Running) -> Result<()> {
    let (printed, status) = running.exec(&["id"]).await?;
    assert!(
        printed.contains("uid 1000") && printed.contains("cwd /srv/shop"),
        "{printed}"
    );
    assert_eq!(status, Status::Code(0));
    let (_, status) = running.exec(&["exit", "7"]).await?;
    assert_eq!(status, Status::Code(7));
    let (printed, _) = running.exec(&["shout"]).await?;
    assert_eq!(printed.len(), 4 << 20, "output is neither lost nor doubled");
    let (printed, _) = running.exec(&["cat", "/etc/hosts"]).await?;
    assert!(printed.contains("10.0.2.15 shop"), "{printed}");
    let (printed, _) = running.exec(&["put", "/bin/app", "x"]).await?;
    assert!(printed.contains("PermissionDenied"), "{printed}");
    let missing = running.vm.exec(vec!["/bin/none".to_owned()]).await?;
    let error = missing.end().await.err().context("it ran")?;
    assert_eq!(error.to_string(), "/bin/none is not in the image");
    let noise = running.vm.exec(vec!["noise".to_owned()]).await?;
    let error = noise.end().await.err().context("it ran")?;
    assert!(
        error.to_string().contains("no program of this machine"),
        "{error}"
    );
    let script = running.vm.exec(vec!["/bin/script".to_owned()]).await?;
    let error = script.end().await.err().context("it ran")?;
    assert!(
        error.to_string().contains("a loader or an interpreter"),
        "{error}"
    );
    Ok(())
}

/// Nothing leads out: not to the host by the address that QEMU gives it, not to its loopback, and not on.
async fn closed(running: &Running) -> Result<()> {
    let host = std::net::TcpListener::bind("0.0.0.0:0")?;
    let port = host.local_addr()?.port();
    for address in [
        format!("10.0.2.2:{port}"),
        "10.0.2.3:53".to_owned(),
        "192.0.2.1:80".to_owned(),
    ] {
        let (printed, _) = running.exec(&["connect", &address]).await?;
        assert!(printed.starts_with("refused"), "{address}: {printed}");
    }
    // The same test would see a way if there were one.
    let (printed, _) = running.exec(&["connect", "127.0.0.1:8080"]).await?;
    assert_eq!(printed, "connected\n");
    Ok(())
}

/// What a program sends to the proxy's port comes to whoever has the machine's connections, in pieces, both
/// ways, and ends as it does there.
async fn out(running: &Running) -> Result<()> {
    let mut connections = running.vm.connections().context("a way out")?;
    anyhow::ensure!(running.vm.connections().is_none(), "once");
    let echo = async {
        let mut count = 0;
        while let Some(mut connection) = connections.recv().await {
            let mut seen = vec![0; 7];
            connection.read_exact(&mut seen).await?;
            if seen == *b"hang up" {
                count += 1;
                if count == 2 {
                    return anyhow::Ok(());
                }
                continue;
            }
            connection.write_all(&seen).await?;
            let (mut from, mut to) = tokio::io::split(connection);
            tokio::io::copy(&mut from, &mut to).await?;
            to.shutdown().await?;
        }
        anyhow::bail!("the machine has ended")
    };
    let ask = async {
        let (printed, _) = running.exec(&["mirror", "127.0.0.1:731"]).await?;
        anyhow::ensure!(printed == "4194304 bytes came back\n", "{printed}");
        for _ in 0..2 {
            let (printed, _) = running.exec(&["ended", "127.0.0.1:731"]).await?;
            anyhow::ensure!(printed == "ended\n", "{printed}");
        }
        Ok(())
    };
    let both = async { tokio::join!(echo, ask) };
    let (echoed, asked) = tokio::time::timeout(WATCHDOG, both).await?;
    echoed.and(asked)
}

/// Files outside a volume have an end, and everything else goes on.
async fn full(running: &Running) -> Result<()> {
    let (printed, _) = running.exec(&["fill", "/tmp/big"]).await?;
    assert!(printed.contains("StorageFull"), "{printed}");
    let mib: u64 = printed
        .split_whitespace()
        .nth(2)
        .context("a number")?
        .parse()?;
    assert!((16..=24).contains(&mib), "{printed}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_stays_and_what_ignores_its_signal_is_killed() {
    let Some(host) = Host::find("a_volume_stays_and_what_ignores_its_signal_is_killed").unwrap()
    else {
        return;
    };
    let path = host.dir.path().join("volume.ext4");
    volume(&path, ByteSize::mib(32)).await.unwrap();
    let settings = |mode: &str, more: &[&str]| {
        let command = [&["/bin/app", mode], more].concat();
        json!({"Entrypoint": command})
    };
    let with = |machine: &mut tabbify_microvm::Machine, app: &mut tabbify_microvm::App| {
        machine.volume = Some(path.clone());
        app.volume = Some("/data".to_owned());
    };
    let (mut running, _) = host.boot(settings("ignore", &[]), with).await.unwrap();
    running.printed(Source::Stderr, "serving").await.unwrap();
    let (printed, _) = running
        .exec(&["put", "/data/kept", "what was written"])
        .await
        .unwrap();
    assert_eq!(printed, "Ok(())\n");
    let quit = signal_number("SIGTERM").unwrap();
    let ending = running.vm.stop(quit, Duration::from_millis(300)).await;
    let killed = Ending::Exited {
        status: Status::Signal(9),
        out_of_memory: false,
    };
    assert_eq!(ending, killed);
    // It is made once, and what is in it stays.
    volume(&path, ByteSize::mib(32)).await.unwrap();
    let (mut running, _) = host
        .boot(settings("cat", &["/data/kept"]), with)
        .await
        .unwrap();
    let ending = running.over().await.unwrap();
    assert_eq!(running.all(Source::Stdout), "what was written");
    assert!(
        matches!(
            ending,
            Ending::Exited {
                status: Status::Code(0),
                ..
            }
        ),
        "{ending:?}"
    );
}
