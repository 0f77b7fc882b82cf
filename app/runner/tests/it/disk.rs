//! What a component keeps: its volume where it sees it, and nothing else of the machine's files; and compiled code,
//! which another start finds.

use std::path::Path;

use anyhow::ensure;
use tabbify_runner::wasm_http::Limits;
use tabbify_types::ByteSize;
use tabbify_types::event::v1::{RunConfig, VolumeUse};

use crate::harness::{App, Has, run_config, start_having, text};
use crate::wasm::{Package, component};

async fn app(volume: Option<&Path>, cache: &Path) -> anyhow::Result<App> {
    let run = RunConfig {
        volume: volume.map(|_| VolumeUse {
            mount: "/data".to_owned(),
            size: ByteSize::mib(16),
            snapshots: None,
        }),
        ..run_config()
    };
    let has = Has {
        volume: volume.map(Path::to_owned),
        cache: Some(cache.to_owned()),
        ..Has::default()
    };
    let app = start_having(has, component(Package::Disk)?, run, Limits::DEFAULT).await?;
    app.map_err(|failure| anyhow::anyhow!("{failure:?}"))
}

async fn said(app: &App, path: &str) -> anyhow::Result<(u16, String)> {
    let answer = app.get(path).await?;
    Ok((answer.status().as_u16(), text(answer).await?))
}

async fn done(app: &App, path: &str) -> anyhow::Result<String> {
    let (status, said) = said(app, path).await?;
    ensure!(status == 200, "{path}: {status} {said}");
    Ok(said)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_is_all_that_a_component_sees_of_the_disk() {
    let (volume, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let first = app(Some(volume.path()), cache.path()).await.unwrap();
    done(&first, "/write/data/notes?one").await.unwrap();
    done(&first, "/write/data/notes?two").await.unwrap();
    drop(first);
    // Another instance of the app has what the first one kept.
    let second = app(Some(volume.path()), cache.path()).await.unwrap();
    assert_eq!(done(&second, "/read/data/notes").await.unwrap(), "onetwo");
    assert_eq!(done(&second, "/list/data").await.unwrap(), "[\"notes\"]");
    let kept = std::fs::read_to_string(volume.path().join("notes")).unwrap();
    assert_eq!(kept, "onetwo");
    // Nor does any path lead out, whoever made it.
    std::os::unix::fs::symlink("/etc", volume.path().join("etc")).unwrap();
    std::os::unix::fs::symlink("../../../../../../etc", volume.path().join("up")).unwrap();
    for path in [
        "/read/etc/passwd",
        "/read/data/../../../../../../etc/passwd",
        "/read/data/etc/passwd",
        "/read/data/up/passwd",
        "/list/",
        "/write/tmp/x?y",
        "/link/data/own?/etc",
    ] {
        let (status, said) = said(&second, path).await.unwrap();
        assert_eq!(status, 500, "{path}: {said}");
    }
    done(&second, "/remove/data/notes").await.unwrap();
    assert!(!volume.path().join("notes").exists());
    // Without a volume there is nothing at all.
    let none = app(None, cache.path()).await.unwrap();
    for path in [
        "/list/",
        "/list/data",
        "/write/data/x?y",
        "/read/etc/passwd",
    ] {
        let (status, said) = said(&none, path).await.unwrap();
        assert_eq!(status, 500, "{path}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_compiled_is_found_again_and_what_was_spoilt_is_not_run() {
    let cache = tempfile::tempdir().unwrap();
    let kept = || {
        let all = std::fs::read_dir(cache.path().join("components")).unwrap();
        let all = all.map(|entry| entry.unwrap().path());
        let mut all: Vec<_> = all
            .filter(|path| path.extension().is_some_and(|it| it == "cwasm"))
            .collect();
        assert_eq!(all.len(), 1, "{all:?}");
        let path = all.remove(0);
        let written = std::fs::metadata(&path).unwrap();
        let inode = std::os::unix::fs::MetadataExt::ino(&written);
        (path, inode)
    };
    app(None, cache.path()).await.unwrap();
    let (path, made) = kept();
    app(None, cache.path()).await.unwrap();
    assert_eq!(kept().1, made, "it was made again");
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x40;
    std::fs::write(&path, &bytes).unwrap();
    let app = app(None, cache.path()).await.unwrap();
    assert_eq!(said(&app, "/none").await.unwrap().0, 500);
    assert_ne!(
        std::fs::read(&path).unwrap(),
        bytes,
        "what was spoilt is there still"
    );
}
