//! The substrate's roles as processes of their own: each starts alone, shows its token, and outlives
//! the death of the other.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::ensure;
use tabbify_api::read::{QueryError, ReadModel as _, ReadScope, Window};
use tabbify_process::Tasks;
use tabbify_process::connect::UnixSocket;
use tabbify_read::RemoteReadModel;
use tabbify_testing::role::{self, done};
use tabbify_testing::wait;

async fn model(data: &Path, token: &str, tasks: &Tasks) -> Result<RemoteReadModel, QueryError> {
    let socket = UnixSocket {
        directory: data.to_path_buf(),
        name: "read.sock".to_owned(),
    };
    let token = token.to_owned();
    RemoteReadModel::connect(Arc::new(socket), Arc::new(move || token.clone()), tasks).await
}

/// Subjects of the tokens that the model knows.
async fn subjects(model: &RemoteReadModel) -> anyhow::Result<Vec<String>> {
    let listing = model
        .tokens(ReadScope::Platform, Window::first(100))
        .await?;
    Ok(listing.rows.into_iter().map(|row| row.subject).collect())
}

/// Waits until the model knows a token of `subject`.
async fn knows(model: &RemoteReadModel, subject: &str) -> anyhow::Result<()> {
    wait::until(&format!("the read model knows {subject}"), async || {
        let known = subjects(model).await.ok()?;
        known.iter().any(|it| it == subject).then_some(())
    })
    .await
}

#[tokio::test]
async fn roles_run_alone_and_outlive_each_other() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let data: PathBuf = dir.path().join("data");
    let missing = done(&["token", "read-node"], &data).await;
    ensure!(missing.is_err(), "there is no platform yet");
    done(&["init"], &data).await?;
    let mut log = role::start("transaction-node", &data).await?;
    let second = role::start("transaction-node", &data).await;
    ensure!(second.is_err(), "two processes have opened one log");

    done(&["token", "read-node"], &data).await?;
    let file = data.join("tokens/read-node");
    assert_eq!(
        std::fs::metadata(&file)?.permissions().mode() & 0o777,
        0o600
    );
    let _read = role::start("read-node", &data).await?;

    let tasks = Tasks::new();
    let forged = model(&data, "eyJ.eyJ.x", &tasks).await;
    assert!(
        matches!(forged, Err(QueryError::Refused { .. })),
        "{forged:?}"
    );
    let model = model(&data, &std::fs::read_to_string(&file)?, &tasks).await?;
    knows(&model, "service:read-node").await?;

    // The log dies: what is folded is still answered, and folding goes on once it is back.
    log.kill().await?;
    assert!(!subjects(&model).await?.is_empty());
    let mut log = role::start("transaction-node", &data).await?;
    done(&["token", "coordinator"], &data).await?;
    knows(&model, "service:coordinator").await?;
    log.kill().await?;
    tasks.shutdown(std::time::Duration::from_secs(10)).await;
    done(&["log", "verify"], &data).await?;
    Ok(())
}
