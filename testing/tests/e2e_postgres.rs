//! A transaction-node whose log is in PostgreSQL, and the commands that look at such a log: one story,
//! from an embedded log that moves there to damage that somebody does to its tables.

#[path = "../../substrate/log/tests/it/postgres/cluster.rs"]
#[expect(dead_code, reason = "standbys are the log's own tests'")]
mod cluster;

/// As the cluster knows it.
mod support {
    pub(crate) type Wrong = Box<dyn std::error::Error + Send + Sync>;
    pub(crate) type Outcome = Result<(), Wrong>;
}

use std::ffi::OsStr;
use std::path::Path;
use std::process::Output;

use tabbify_testing::platform::binary;
use tabbify_testing::role::{self, done};
use tokio::process::Command;

use cluster::Cluster;
use support::{Outcome, Wrong};

async fn tabbify(words: &[&str], file: &Path) -> Result<Output, Wrong> {
    let mut command = Command::new(binary("tabbify")?);
    command.args(words).env("TABBIFY_LOG", "off");
    Ok(command.arg("--config").arg(file).output().await?)
}

fn told(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    String::from_utf8_lossy(out).into_owned() + &String::from_utf8_lossy(err)
}

/// The line that both engines print of the same log.
fn content(text: &str) -> Option<&str> {
    text.lines().find(|line| line.starts_with("content "))
}

#[tokio::test]
async fn a_log_moves_to_postgresql_and_is_served_from_there() -> Outcome {
    let Some(cluster) = Cluster::start(0).await? else {
        return Ok(());
    };
    let dir = tempfile::tempdir()?;
    let (data, export) = (dir.path().join("data"), dir.path().join("export"));
    let secret = dir.path().join("connection");
    std::fs::write(&secret, cluster.conninfo() + "\n")?;
    let file = dir.path().join("transaction-node.toml");
    let connection = format!("file:{}", secret.display());
    let table = format!(
        "[transaction_node]\ndata_dir = {data:?}\n[transaction_node.postgres]\n\
         connection = {connection:?}\nwithout_standby = true\n"
    );
    std::fs::write(&file, table)?;

    done(&["init"], &data).await?;
    let export_to = export.to_str().ok_or("UTF-8")?;
    done(&["log", "export", export_to], &data).await?;
    let before = done(&["log", "verify"], &data).await?;
    let imported = tabbify(&["log", "import", export_to], &file).await?;
    assert!(imported.status.success(), "{}", told(&imported));
    let after = tabbify(&["log", "verify"], &file).await?;
    assert!(content(&before).is_some(), "{before}");
    assert_eq!(content(&told(&after)), content(&before));

    let flags = [OsStr::new("--config"), file.as_os_str()];
    let node = role::start_with("transaction-node", &flags).await?;
    // Whatever comes over the socket is in the database.
    done(&["token", "read-node"], &data).await?;
    role::end(node).await?;
    let grown = tabbify(&["log", "verify"], &file).await?;
    assert!(grown.status.success(), "{}", told(&grown));
    assert_ne!(content(&told(&grown)), content(&before));
    assert_eq!(
        done(&["log", "verify"], &data).await?,
        before,
        "the embedded one is left"
    );

    // Somebody changes a fact.
    let session = cluster.session(0).await?;
    let change = "update tabbify_log.events set actor = 'root' where position = 2";
    assert_eq!(session.execute(change, &[]).await?, 1);
    let refused = tabbify(&["log", "verify"], &file).await?;
    assert_eq!(refused.status.code(), Some(3), "{}", told(&refused));
    assert!(
        told(&refused).contains("damaged at position"),
        "{}",
        told(&refused)
    );
    // What cannot be looked at is no damage; and a secret is only referred to.
    let words = [
        "log",
        "verify",
        "--postgres",
        "host=/nowhere password=hunter2",
    ];
    let inline = tabbify(&words, &file).await?;
    assert_eq!(inline.status.code(), Some(1));
    let said = told(&inline);
    assert!(
        said.contains("env:NAME or file:PATH") && !said.contains("hunter2"),
        "{said}"
    );
    Ok(())
}
