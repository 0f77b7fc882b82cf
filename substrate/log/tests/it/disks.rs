//! Disks that refuse, for real: a small file system that is full, and one that is read-only. Each
//! test runs itself again as a child in a mount namespace of its own, which ends with it.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tabbify_api::log::{Append, AppendError};
use tabbify_log::{Log, OpenError};
use tabbify_types::Position;

use crate::support::{Outcome, Wrong, event, extents, open, options, sized};

/// Names the mount point to the child; without it the children's tests do nothing.
const DIR: &str = "TABBIFY_LOG_MOUNT";
const MOUNT: &str = "mount -t tmpfs -o size=256k,mode=700 tmpfs \"$1\"";
const EXTENT_LEN: u64 = 1 << 14;

/// A shell in a mount namespace of its own, with a file system of 256 KiB at `dir`.
fn namespace(script: &str, dir: &Path) -> Result<Command, Wrong> {
    let mut command = Command::new("unshare");
    command.arg("--mount");
    if !rustix::process::getuid().is_root() {
        command.arg("--map-root-user");
    }
    let script = format!("{MOUNT} && {script}");
    command.args(["sh", "-c", &script, "sh"]).arg(dir);
    command.arg(env::current_exe()?);
    Ok(command)
}

/// Runs a test of this file in such a namespace, or says by name that it cannot.
#[expect(
    clippy::print_stderr,
    reason = "a test that cannot run here does not pass silently"
)]
fn run(child: &str) -> Outcome {
    let dir = tempfile::tempdir()?;
    let possible = namespace("true", dir.path())?.output();
    if !possible.as_ref().is_ok_and(|done| done.status.success()) {
        eprintln!("not run: {child}: no mount namespace here: {possible:?}");
        return Ok(());
    }
    let test = format!("disks::{child}");
    let script = format!("exec \"$2\" {test} --exact --nocapture --test-threads=1");
    let done = namespace(&script, dir.path())?
        .env(DIR, dir.path())
        .output()?;
    let said = String::from_utf8_lossy(&done.stdout);
    if done.status.success() && said.contains("1 passed") {
        Ok(())
    } else {
        Err(format!("{said}\n{}", String::from_utf8_lossy(&done.stderr)).into())
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the test's own re-execution, not configuration"
)]
fn mounted() -> Option<PathBuf> {
    env::var_os(DIR).map(PathBuf::from)
}

#[test]
fn a_full_file_system_refuses_and_goes_on_when_there_is_space() -> Outcome {
    run("full_child")
}

#[tokio::test]
async fn full_child() -> Outcome {
    let Some(disk) = mounted() else {
        return Ok(());
    };
    let (dir, filler) = (disk.join("log"), disk.join("filler"));
    fs::write(&filler, vec![1; 64 * 1024])?;
    let (log, client) = open(&dir, EXTENT_LEN)?;
    let first = sized(3000);
    client.append(first.clone()).await?;
    let mut count = 1;
    let refused = loop {
        match client.append(sized(3000)).await {
            Ok(_) => count += 1,
            Err(refused) => break refused,
        }
        assert!(count < 100, "the disk is full and appends go on");
    };
    let AppendError::NoSpace { detail } = &refused else {
        return Err(refused.into());
    };
    assert!(detail.contains("No space"), "{detail}");
    assert!(count > 20, "{count} appends in 192 KiB");
    // What was refused has left no trace; a repetition needs no space; what fits is taken.
    assert_eq!(log.head(), Position(count));
    assert_eq!(client.append(first).await?.first, Position(1));
    let small = Append::of(vec![event("tenant_main.apps", "small", "{}")]);
    assert_eq!(client.append(small).await?.first, Position(count + 1));
    // So it is for the next process, which opens a log on a full disk.
    log.close().await;
    let (log, client) = open(&dir, EXTENT_LEN)?;
    assert_eq!(log.head(), Position(count + 1));
    let again = client.append(sized(3000)).await;
    assert!(
        matches!(again, Err(AppendError::NoSpace { .. })),
        "{again:?}"
    );

    fs::remove_file(&filler)?;
    for n in 2..10 {
        assert_eq!(client.append(sized(3000)).await?.first, Position(count + n));
    }
    log.close().await;
    let verified = Log::verify(&dir)?;
    assert_eq!((verified.head, verified.torn), (Position(count + 9), None));
    Ok(())
}

#[test]
fn a_read_only_file_system_is_refused_and_left_alone() -> Outcome {
    run("read_only_child")
}

#[tokio::test]
async fn read_only_child() -> Outcome {
    let Some(disk) = mounted() else {
        return Ok(());
    };
    let dir = disk.join("log");
    let (log, client) = open(&dir, EXTENT_LEN)?;
    client.append(sized(100)).await?;
    log.close().await;
    let before = fs::read(&extents(&dir)?[0])?;
    let remounted = Command::new("mount")
        .args(["-o", "remount,ro"])
        .arg(&disk)
        .status()?;
    assert!(remounted.success());
    for missing in [false, true] {
        let dir = if missing {
            disk.join("other")
        } else {
            dir.clone()
        };
        let refused = Log::open(&dir, options()).err().ok_or("it opens")?;
        let OpenError::Io { path, source, .. } = &refused else {
            return Err(refused.into());
        };
        assert_eq!(source.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
        assert!(path.starts_with(&dir), "{refused}");
    }
    assert!(fs::read(&extents(&dir)?[0])? == before);
    Ok(())
}
