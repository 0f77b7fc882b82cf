//! A disk that is full: a clear state, no crash, and it goes on by itself when there is room.

use std::env;
use std::path::Path;
use std::process::Command;

use tabbify_api::read::{ReadModel as _, ReadScope, Window};
use tabbify_types::Tenant;

use crate::history::served;
use crate::rebuild::from_zero;
use crate::support::{Outcome, Running, WATCHDOG, app, append, open_log};

/// Names the small file system to the child; without it the child's test does nothing.
const DIR: &str = "TABBIFY_READ_FULL_DIR";
/// Mounts a small file system that only the child sees, and becomes the child.
const MOUNT: &str =
    "mount -t tmpfs -o size=1m,mode=0700 none \"$1\" || exit 77; shift; exec \"$@\"";
/// What [`MOUNT`] ends with where that is not allowed.
const CANNOT_MOUNT: i32 = 77;

#[test]
fn a_full_disk_is_a_state_and_not_the_end() -> Outcome {
    let small = tempfile::tempdir()?;
    let child = Command::new("unshare")
        .args(["--map-root-user", "--mount", "sh", "-c", MOUNT, "sh"])
        .arg(small.path())
        .arg(env::current_exe()?)
        .args([
            "full_disk::full_disk_child",
            "--exact",
            "--nocapture",
            "--test-threads=1",
        ])
        .env(DIR, small.path())
        .output();
    let output = match child {
        Ok(output) if output.status.code() != Some(CANNOT_MOUNT) => output,
        other => {
            println!(
                "NOT RUN: a_full_disk_is_a_state_and_not_the_end: no mount namespace: {other:?}"
            );
            return Ok(());
        }
    };
    let says = String::from_utf8_lossy(&output.stdout);
    let error = String::from_utf8_lossy(&output.stderr);
    if error.contains("unshare failed") {
        println!("NOT RUN: a_full_disk_is_a_state_and_not_the_end: {error}");
        return Ok(());
    }
    assert!(
        output.status.success() && says.contains("survived"),
        "{says}\n{error}"
    );
    Ok(())
}

/// The child, which is alone on its small file system.
#[tokio::test]
#[expect(
    clippy::disallowed_methods,
    reason = "the test's own re-execution, not configuration"
)]
async fn full_disk_child() -> Outcome {
    let Some(small) = env::var_os(DIR) else {
        return Ok(());
    };
    let (small, dir) = (Path::new(&small), tempfile::tempdir()?);
    let (_handle, log) = open_log(&dir.path().join("log"))?;
    append(&log, served(&Tenant::main(), app(0), "app-0", 0)).await?;
    let running = Running::start(&small.join("read"), &log).await?;
    running.reach(log.head()).await?;
    for number in 1..200 {
        let events = served(
            &Tenant::main(),
            app(number),
            &format!("app-{number}"),
            number,
        );
        append(&log, events).await?;
    }
    let full = async {
        loop {
            let status = running.node.status();
            if status
                .stopped
                .as_ref()
                .is_some_and(|why| why.contains("full"))
            {
                return status;
            }
            tokio::task::yield_now().await;
        }
    };
    let status = tokio::time::timeout(WATCHDOG, full).await?;
    assert!(status.lag_events > 0 && status.lag_ms > 0, "{status:?}");
    // What is folded is served, and a rebuild that has no room leaves it as it is.
    let apps = running
        .node
        .apps(ReadScope::Platform, None, Window::first(500))
        .await?;
    assert!(!apps.rows.is_empty() && apps.rows.len() < 200);
    assert!(running.node.rebuild().await.is_err());
    let again = running
        .node
        .apps(ReadScope::Platform, None, Window::first(500))
        .await?;
    assert!(again.rows.len() >= apps.rows.len());

    let remount = ["-o", "remount,size=64m"];
    let grown = Command::new("mount").args(remount).arg(small).status()?;
    assert!(grown.success());
    running.reach(log.head()).await?;
    assert_eq!(running.node.digest().await?, from_zero(&log).await?);
    running.stop().await?;
    println!("survived");
    Ok(())
}
