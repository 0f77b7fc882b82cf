//! Uploads: from a reserved number to a release, and everything that can go wrong between.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use futures_util::TryStreamExt as _;
use http::StatusCode;
use object_store::ObjectStoreExt as _;
use object_store::path::Path;
use serde_json::json;
use tabbify_api::artifact::{Artifact, file_key, latest_key, version_prefix};
use tabbify_types::{AppId, Digest, VersionNumber};

use crate::harness::{Platform, files, list};
use crate::http_client::{Raw, until};

/// What is visible below a version.
async fn stored(platform: &Platform, app: AppId, version: u32) -> Result<BTreeSet<String>> {
    let prefix = Path::from(version_prefix(app, VersionNumber(version)));
    let found: Vec<_> = platform.store.list(Some(&prefix)).try_collect().await?;
    let names = found.iter().map(|object| {
        let name = object
            .location
            .as_ref()
            .strip_prefix(prefix.as_ref())
            .unwrap_or_default();
        name.trim_start_matches('/').to_owned()
    });
    Ok(names.collect())
}

async fn object(platform: &Platform, key: String) -> Result<Vec<u8>> {
    Ok(platform
        .store
        .get(&Path::from(key))
        .await?
        .bytes()
        .await?
        .to_vec())
}

#[tokio::test]
async fn from_reserve_to_release() -> Result<()> {
    let platform = Platform::start().await?;
    let app = platform.register("shop").await?;
    let mut files = files(app, "shop", "public");
    files.push(("static/a b.css".to_owned(), b"body{}".to_vec()));
    files.push(("empty".to_owned(), Vec::new()));
    // Longer than one part of a multipart upload.
    files.push(("big".to_owned(), vec![7; 11 * 1024 * 1024]));
    let encoded: Vec<(String, Vec<u8>)> = files
        .iter()
        .map(|(path, bytes)| (path.replace(' ', "%20"), bytes.clone()))
        .collect();
    let version = platform.reserve(app, &files).await?;
    ensure!(version == 1);
    for (path, bytes) in encoded {
        let answer = platform.put(app, version, &path, bytes).await?;
        ensure!(
            answer.status == StatusCode::NO_CONTENT,
            "{path}: {}",
            answer.text()
        );
    }
    let answer = platform.commit(app, version, &files).await?;
    ensure!(answer.status == StatusCode::OK, "{}", answer.text());
    let view = answer.json()?;
    let bytes = object(&platform, file_key(app, VersionNumber(1), "artifact.json")).await?;
    ensure!(view["artifact"] == Digest::of(&bytes).to_string());
    ensure!(view["runtime"] == "wasm-http" && view["version"] == 1);
    let artifact: Artifact = serde_json::from_slice(&bytes)?;
    ensure!(artifact.files.is_sorted_by(|a, b| a.path < b.path));
    for file in &artifact.files {
        let bytes = object(
            &platform,
            file_key(app, VersionNumber(1), file.path.as_str()),
        )
        .await?;
        ensure!(Digest::of(&bytes) == file.digest && bytes.len() as u64 == file.size);
    }
    let expected = [
        "app.wasm",
        "artifact.json",
        "big",
        "empty",
        "static/a b.css",
        "tabbify.toml",
    ];
    ensure!(
        stored(&platform, app, 1)
            .await?
            .iter()
            .map(String::as_str)
            .eq(expected)
    );
    ensure!(object(&platform, latest_key(app)).await? == b"1");

    // The same commit again is fine; anything else is not, and nothing can be uploaded any more.
    ensure!(platform.commit(app, version, &files).await?.json()? == view);
    let other = platform
        .commit(app, version, &files[..2])
        .await?
        .problem()?;
    ensure!(other.1 == "version_conflict");
    let late = platform
        .put(app, version, "app.wasm", files[1].1.clone())
        .await?
        .problem()?;
    ensure!(late.1 == "version_conflict");
    let seen = platform
        .get(&format!("/v1/apps/{app}"), "reader")
        .await?
        .json()?;
    ensure!(seen["latest"] == 1 && seen["access"] == "public", "{seen}");
    Ok(())
}

#[tokio::test]
async fn an_upload_that_is_cut_leaves_nothing() -> Result<()> {
    let platform = Platform::start().await?;
    let app = platform.register("shop").await?;
    let mut files = files(app, "shop", "public");
    files.push(("big".to_owned(), vec![7; 8 * 1024 * 1024]));
    let version = platform.reserve(app, &files).await?;
    for sent in [1000, 6 * 1024 * 1024] {
        let mut raw = Raw::connect(platform.node).await?;
        let head = format!(
            "PUT /v1/apps/{app}/versions/{version}/files/big HTTP/1.1\r\nHost: localhost\r\n\
             Authorization: Bearer owner\r\nContent-Length: {}\r\n\r\n",
            files[2].1.len()
        );
        raw.write(head).await?;
        raw.write(&files[2].1[..sent]).await?;
        drop(raw);
    }
    // Chunked, and cut at the end of a chunk.
    let mut raw = Raw::connect(platform.node).await?;
    raw.write(format!(
        "PUT /v1/apps/{app}/versions/{version}/files/app.wasm HTTP/1.1\r\nHost: localhost\r\n\
         Authorization: Bearer owner\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n\0asm\r\n"
    ))
    .await?;
    drop(raw);
    // Neither an object nor, on disk, a part of one.
    let folder = platform
        .objects()
        .join(version_prefix(app, VersionNumber(version)));
    until("the parts are gone", async || {
        let names = std::fs::read_dir(&folder).into_iter().flatten().flatten();
        names.map(|entry| entry.file_name()).eq([".reserved.json"])
    })
    .await?;
    let early = platform.commit(app, version, &files).await?.problem()?;
    ensure!(early == (422, "digest_mismatch".to_owned()), "{early:?}");
    for (path, bytes) in &files {
        let answer = platform.put(app, version, path, bytes.clone()).await?;
        ensure!(answer.status == StatusCode::NO_CONTENT, "{}", answer.text());
    }
    ensure!(platform.commit(app, version, &files).await?.status == StatusCode::OK);
    Ok(())
}

#[tokio::test]
async fn what_arrives_must_be_what_was_announced() -> Result<()> {
    let platform = Platform::start().await?;
    let app = platform.register("shop").await?;
    let files = files(app, "shop", "public");
    let version = platform.reserve(app, &files).await?;
    let wasm = &files[1].1;
    let mut other = wasm.clone();
    other[5] ^= 1;
    for (path, bytes, expected) in [
        ("app.wasm", other, (422, "digest_mismatch")),
        ("app.wasm", wasm[..3].to_vec(), (422, "digest_mismatch")),
        (
            "app.wasm",
            [wasm.as_slice(), b"more"].concat(),
            (422, "digest_mismatch"),
        ),
        ("unannounced", b"x".to_vec(), (400, "bad_request")),
        ("artifact.json", b"x".to_vec(), (400, "bad_request")),
        (".reserved.json", b"x".to_vec(), (400, "bad_request")),
        ("..%2fapp.wasm", b"x".to_vec(), (400, "bad_request")),
    ] {
        let (status, code) = platform.put(app, version, path, bytes).await?.problem()?;
        ensure!(
            (status, code.as_str()) == expected,
            "{path}: {status} {code}"
        );
    }
    // Without a length in the head, the bytes are counted as they come.
    let mut raw = Raw::connect(platform.node).await?;
    raw.write(format!(
        "PUT /v1/apps/{app}/versions/{version}/files/app.wasm HTTP/1.1\r\nHost: localhost\r\n\
         Connection: close\r\nAuthorization: Bearer owner\r\nTransfer-Encoding: chunked\r\n\r\n\
         20\r\n0123456789abcdef0123456789abcdef\r\n0\r\n\r\n"
    ))
    .await?;
    ensure!(raw.rest().await?.contains("digest_mismatch"));
    let unreserved = platform
        .put(app, version + 1, "app.wasm", wasm.clone())
        .await?
        .problem()?;
    ensure!(unreserved.1 == "version_conflict");
    ensure!(
        stored(&platform, app, version)
            .await?
            .iter()
            .eq([".reserved.json"])
    );
    // A list that cannot be an app is refused before it has a number.
    let path = format!("/v1/apps/{app}/versions");
    let bad = json!({ "files": list(&files[1..])? });
    ensure!(platform.post(&path, "owner", bad).await?.problem()?.1 == "bad_request");
    let foreign = platform
        .post(&path, "acme", json!({ "files": list(&files)? }))
        .await?;
    ensure!(foreign.problem()?.1 == "unknown_app");
    ensure!(platform.reserve(app, &files).await? == version + 1);
    Ok(())
}

#[tokio::test]
async fn pushes_at_once_get_different_numbers() -> Result<()> {
    let platform = Platform::start().await?;
    let app = platform.register("shop").await?;
    let files = files(app, "shop", "public");
    let reserving = (0..12).map(|_| platform.reserve(app, &files));
    let numbers = futures_util::future::try_join_all(reserving).await?;
    let distinct: BTreeSet<u32> = numbers.iter().copied().collect();
    ensure!(distinct.iter().copied().eq(1..=12), "{numbers:?}");
    Ok(())
}

#[tokio::test]
async fn manifests_that_do_not_fit() -> Result<()> {
    let platform = Platform::start().await?;
    let (app, other) = (
        platform.register("shop").await?,
        platform.register("other").await?,
    );
    let check = async |manifest: String, expected: (u16, &str), part: &str| -> Result<()> {
        let mut files = files(app, "shop", "public");
        files[0].1 = manifest.into_bytes();
        let version = platform.upload(app, &files).await?;
        let answer = platform.commit(app, version, &files).await?;
        let (status, code) = answer.problem()?;
        ensure!((status, code.as_str()) == expected, "{}", answer.text());
        ensure!(answer.text().contains(part), "{}", answer.text());
        Ok(())
    };
    let manifest = |id: AppId, name: &str, more: &str| {
        format!("[app]\nname = \"{name}\"\nid = \"{id}\"\n{more}\n[build]\nwasm = \"x.wasm\"\n")
    };
    // A lock file from another app.
    let id = other.to_string();
    check(manifest(other, "shop", ""), (409, "app_mismatch"), &id).await?;
    check(manifest(app, "other", ""), (409, "app_mismatch"), "other").await?;
    let unknown = manifest(app, "shop", "acces = \"public\"");
    check(unknown, (422, "invalid_manifest"), "tabbify.toml:4").await?;
    let later = manifest(
        app,
        "shop",
        "[secrets]\nKEY = \"key\"\n[events]\nemit = [\"chat\"]",
    );
    check(later, (422, "not_supported_yet"), "emit").await?;
    let seen = platform
        .get(&format!("/v1/apps/{app}"), "owner")
        .await?
        .json()?;
    ensure!(seen["latest"].is_null(), "nothing was published: {seen}");
    // Other files than announced.
    let files = files(app, "shop", "public");
    let version = platform.upload(app, &files).await?;
    let answer = platform
        .commit(app, version, &files[..1])
        .await?
        .problem()?;
    ensure!(answer.1 == "digest_mismatch");
    let answer = platform.commit(app, version + 1, &files).await?.problem()?;
    ensure!(answer.1 == "version_conflict");
    Ok(())
}

#[tokio::test]
async fn an_upload_goes_on_after_a_restart_and_latest_never_goes_back() -> Result<()> {
    let platform = Platform::start().await?;
    let app = platform.register("shop").await?;
    let files = files(app, "shop", "public");
    let first = platform.reserve(app, &files).await?;
    platform
        .put(app, first, "app.wasm", files[1].1.clone())
        .await?;
    let second = platform.upload(app, &files).await?;
    ensure!(platform.commit(app, second, &files).await?.status == StatusCode::OK);

    let platform = platform.restart().await?;
    let put = platform
        .put(app, first, "tabbify.toml", files[0].1.clone())
        .await?;
    ensure!(put.status == StatusCode::NO_CONTENT, "{}", put.text());
    let answer = platform.commit(app, first, &files).await?;
    ensure!(answer.status == StatusCode::OK, "{}", answer.text());
    ensure!(object(&platform, latest_key(app)).await? == b"2");
    let seen = platform
        .get(&format!("/v1/apps/{app}"), "owner")
        .await?
        .json()?;
    ensure!(seen["latest"].as_u64().context("latest")? == 2);
    ensure!(platform.reserve(app, &files).await? == 3);
    Ok(())
}
