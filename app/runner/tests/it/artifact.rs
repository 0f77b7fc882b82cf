//! What the runner fetches: exactly what was published, or a reason.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use tabbify_api::artifact::{ARTIFACT_FILE, Artifact, ArtifactFile, file_key};
use tabbify_api::runner::{Boot, Failure};
use tabbify_runner::artifact::open_directory;
use tabbify_types::event::v1::{FailureReason, InstanceRef};
use tabbify_types::{AppId, DeployId, Digest, Epoch, InstanceId, SlotId, VersionNumber};

use crate::harness::run_config;

/// Publishes version 1 of `app` with `entry` as `app.wasm`; returns the digest of the list.
pub(crate) fn publish(store: &Path, app: AppId, entry: &[u8]) -> anyhow::Result<Digest> {
    let list = Artifact {
        format: 1,
        app,
        version: VersionNumber(1),
        files: vec![ArtifactFile {
            path: "app.wasm".parse()?,
            size: entry.len() as u64,
            digest: Digest::of(entry),
        }],
    };
    write(store, app, "app.wasm", entry)?;
    let list = serde_json::to_vec(&list)?;
    write(store, app, ARTIFACT_FILE, &list)?;
    Ok(Digest::of(&list))
}

fn write(store: &Path, app: AppId, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
    let path = stored(store, app, name);
    std::fs::create_dir_all(path.with_file_name(""))?;
    Ok(std::fs::write(path, bytes)?)
}

fn stored(store: &Path, app: AppId, name: &str) -> PathBuf {
    store.join(file_key(app, VersionNumber(1), name))
}

/// A boot document for version 1 of an app.
pub(crate) fn boot(directory: &Path, app: AppId, artifact: Digest) -> anyhow::Result<Boot> {
    Ok(Boot {
        of: InstanceRef {
            app,
            instance: InstanceId(1),
        },
        tenant: "main".parse()?,
        name: Some("shop".parse()?),
        deploy: DeployId::mint(),
        version: VersionNumber(1),
        slot: SlotId::FIRST,
        epoch: Epoch(1),
        artifact,
        run: run_config(),
        store: format!("file://{}", directory.join("objects").display()),
        vault: None,
        logs: directory.join("logs"),
        cache: directory.join("cache"),
        volumes: Some(directory.join("volumes")),
        engine: None,
        microvms: None,
        underlay: ([127, 0, 0, 1], 0).into(),
        peers: vec![],
        coordinator: None,
        woken: false,
        secret: String::new(),
    })
}

async fn fetch(boot: &Boot) -> Result<Bytes, Failure> {
    tabbify_runner::artifact::fetch(boot, &open_directory(&boot.store)?).await
}

#[tokio::test]
async fn what_was_published_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("objects");
    let app = AppId::mint();
    let digest = publish(&store, app, b"the entry").unwrap();
    let good = boot(dir.path(), app, digest).unwrap();
    assert_eq!(fetch(&good).await.unwrap(), &b"the entry"[..]);

    let with = |change: fn(&mut Boot)| {
        let mut boot = good.clone();
        change(&mut boot);
        boot
    };
    let wrong = [
        (with(|b| b.artifact = Digest::of(b"other")), "has digest"),
        (
            with(|b| b.version = VersionNumber(2)),
            "v2/artifact.json is not in the object store",
        ),
        (
            with(|b| b.run.entry = "other.wasm".into()),
            "does not list the entry",
        ),
        (
            with(|b| b.run.entry = "../v1/app.wasm".into()),
            "does not list the entry",
        ),
        (
            with(|b| b.store = "s3://bucket".into()),
            "is neither a file:///… URL",
        ),
        (
            with(|b| b.store = "file:///nowhere/at/all".into()),
            "cannot be opened",
        ),
    ];
    for (boot, said) in wrong {
        let failure = fetch(&boot).await.unwrap_err();
        assert_eq!(failure.reason, FailureReason::Artifact);
        assert!(failure.detail.contains(said), "{}", failure.detail);
    }
}

#[tokio::test]
async fn damage_is_found_before_it_runs() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("objects");
    let app = AppId::mint();
    let digest = publish(&store, app, b"the entry").unwrap();
    let boot = boot(dir.path(), app, digest).unwrap();
    for (entry, said) in [
        (&b"the antry"[..], "has digest"),
        (b"the entr", "has 8 bytes and was published with 9"),
    ] {
        std::fs::write(stored(&store, app, "app.wasm"), entry).unwrap();
        let failure = fetch(&boot).await.unwrap_err();
        assert!(failure.detail.contains(said), "{}", failure.detail);
    }
    std::fs::remove_file(stored(&store, app, "app.wasm")).unwrap();
    let failure = fetch(&boot).await.unwrap_err();
    assert!(
        failure
            .detail
            .contains("app.wasm is not in the object store"),
        "{failure:?}"
    );
}

/// A list that is genuine, and belongs to another app.
#[tokio::test]
async fn another_apps_list_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("objects");
    let (ours, other) = (AppId::mint(), AppId::mint());
    let digest = publish(&store, other, b"the entry").unwrap();
    publish(&store, ours, b"the entry").unwrap();
    let list = stored(&store, other, ARTIFACT_FILE);
    std::fs::copy(list, stored(&store, ours, ARTIFACT_FILE)).unwrap();
    let boot = boot(dir.path(), ours, digest).unwrap();
    let failure = fetch(&boot).await.unwrap_err();
    assert!(failure.detail.contains("is of another app"), "{failure:?}");
}
