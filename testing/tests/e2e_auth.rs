//! Auth as a process of its own: on a log elsewhere, without the log, with a new key; and what the
//! node does when a token is revoked.

use std::ffi::OsStr;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use http_body_util::BodyExt as _;
use hyper::Request;
use tabbify_api::auth::issue::TokenOrder;
use tabbify_api::auth::people::SubjectRequest;
use tabbify_api::auth::{AuthError, Authority as _, Caller, Issuer as _, People as _};
use tabbify_auth::{Checker, Keys, OWNER, RemoteAuthority};
use tabbify_log::RemoteLog;
use tabbify_process::connect::UnixSocket;
use tabbify_process::{Clock as _, SystemClock, Tasks};
use tabbify_testing::role::{self, done};
use tabbify_testing::{Platform, http, wait};
use tabbify_token::{OwnerProof, PlatformId};
use tabbify_types::EventId;
use tokio::process::Child;

fn socket(directory: &Path, name: &str) -> UnixSocket {
    UnixSocket {
        directory: directory.to_path_buf(),
        name: name.to_owned(),
    }
}

/// Auth as another role has it: tokens are checked by the log in `data`, and asked for in `home`.
async fn auth(data: &Path, home: &Path, tasks: &Tasks) -> anyhow::Result<RemoteAuthority> {
    done(&["token", "read-node"], data).await?;
    let token = std::fs::read_to_string(data.join("tokens/read-node"))?;
    let bearer = Arc::new(move || token.clone());
    let log = RemoteLog::connect(Arc::new(socket(data, "log.sock")), bearer, tasks).await?;
    let checker = Checker::start(Arc::new(log), None, Arc::new(SystemClock), tasks).await?;
    let asked = Arc::new(socket(home, "auth.sock"));
    Ok(RemoteAuthority::new(checker, asked, tasks))
}

/// A proof of the owner's.
fn proof(keys: &Keys) -> anyhow::Result<String> {
    let platform = PlatformId::of(&keys.root.public());
    let jti = EventId::mint().to_string();
    let proof = OwnerProof::new(platform, OWNER, &jti, SystemClock.now());
    Ok(proof.sign(&keys.owner)?)
}

/// An issuer that has one key and nothing else of the platform's.
struct Elsewhere {
    config: PathBuf,
    home: PathBuf,
}

impl Elsewhere {
    fn new(dir: &Path, data: &Path, platform: &str) -> anyhow::Result<Self> {
        let (config, home) = (dir.join("auth.toml"), dir.join("elsewhere"));
        let issuer = dir.join("issuer.key");
        let mut private = std::fs::OpenOptions::new();
        let mut file = private
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&issuer)?;
        std::io::copy(
            &mut std::fs::File::open(data.join("keys/issuer.key"))?,
            &mut file,
        )?;
        let text = format!(
            "[auth]\ndata_dir = {home:?}\nlog = {data:?}\nissuer = \"file:{}\"\nplatform = {platform:?}\n",
            issuer.display()
        );
        std::fs::write(&config, text)?;
        Ok(Self { config, home })
    }

    async fn start(&self) -> anyhow::Result<Child> {
        role::start_with("auth", &[OsStr::new("--config"), self.config.as_os_str()]).await
    }
}

#[tokio::test]
async fn auth_runs_alone_elsewhere_and_without_the_log() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let data = dir.path().join("data");
    let said = done(&["init"], &data).await?;
    let platform = said.split_whitespace().nth(1).context("the platform")?;
    let elsewhere = Elsewhere::new(dir.path(), &data, platform)?;
    let mut log = role::start("transaction-node", &data).await?;
    let issuer = elsewhere.start().await?;
    let second = elsewhere.start().await;
    ensure!(second.is_err(), "two processes serve one directory");
    for name in ["auth.sock", "auth.lock"] {
        let mode = std::fs::metadata(elsewhere.home.join(name))?.permissions();
        assert_eq!(mode.mode() & 0o777, 0o600, "{name}");
    }

    let (keys, tasks) = (Keys::open(&data.join("keys"))?, Tasks::new());
    let auth = auth(&data, &elsewhere.home, &tasks).await?;
    assert_eq!(auth.platform().0, platform);
    let owner = auth.exchange(&proof(&keys)?).await?.token;
    assert_eq!(auth.verify(&owner)?.subject, OWNER);
    let order = TokenOrder::Agent {
        name: "claude".to_owned(),
        scopes: vec!["deploy".to_owned()],
        life_s: None,
    };
    auth.issue(Caller::bearer(&owner), order).await?;
    let listed = auth.tokens(Caller::bearer(&owner)).await?;
    assert_eq!(listed.len(), 1);

    // The log dies, and auth is started without it: it knows what it knew.
    log.kill().await?;
    role::end(issuer).await?;
    let issuer = elsewhere.start().await?;
    assert_eq!(auth.tokens(Caller::bearer(&owner)).await?, listed);
    let refused = auth.exchange(&proof(&keys)?).await;
    ensure!(
        matches!(refused, Err(AuthError::Unavailable(_))),
        "{refused:?}"
    );
    let mut log = role::start("transaction-node", &data).await?;
    wait::until("auth signs in again", async || {
        auth.exchange(&proof(&keys).ok()?).await.ok()
    })
    .await?;
    role::end(issuer).await?;

    // A directory without keys is no platform, and gets no keys.
    log.kill().await?;
    // Its connections end with it.
    drop(auth);
    tasks.shutdown(wait::WATCHDOG).await;
    let vain = role::start("auth", &dir.path().join("nothing")).await;
    ensure!(vain.is_err() && !dir.path().join("nothing/keys").exists());
    Ok(())
}

/// `GET /v1/whoami` with a token: its status.
async fn whoami(platform: &Platform, token: &str) -> anyhow::Result<u16> {
    let request = Request::get("/v1/whoami")
        .header("host", &platform.authority)
        .header("authorization", format!("Bearer {token}"));
    let answer = http::send(&platform.authority, request.body(http::full(""))?).await?;
    Ok(answer.status().as_u16())
}

/// The ids of the issuer keys that count for the node, newest first.
async fn kids(platform: &Platform) -> anyhow::Result<Vec<String>> {
    let request = Request::get("/v1/jwks").header("host", &platform.authority);
    let answer = http::send(&platform.authority, request.body(http::full(""))?).await?;
    let jwks: serde_json::Value = serde_json::from_str(&http::text(answer).await?)?;
    let keys = jwks["keys"].as_array().context("keys")?;
    let kids = keys.iter().filter_map(|key| key["kid"].as_str());
    Ok(kids.map(str::to_owned).collect())
}

#[tokio::test]
async fn a_person_rotates_the_issuer_key_under_a_running_platform() -> anyhow::Result<()> {
    let mut platform = Platform::start().await?;
    let data = platform.data();
    let (keys, tasks) = (Keys::open(&data.join("keys"))?, Tasks::new());
    let auth = auth(&data, &data, &tasks).await?;
    let mut tokens = vec![auth.exchange(&proof(&keys)?).await?.token];
    for round in 1..=3 {
        let said = done(&["auth", "rotate"], &data).await?;
        let kid = said.split_whitespace().nth(2).context("a kid")?.to_owned();
        ensure!(said.contains("signs from now on"), "{said}");
        ensure!(
            said.contains("counts no more") == (round > 1),
            "{round}: {said}"
        );
        wait::until("the new key is heard of", async || {
            let kids = kids(&platform).await.ok()?;
            (kids.first() == Some(&kid)).then_some(())
        })
        .await?;
        assert_eq!(kids(&platform).await?.len(), 2);
        tokens.push(auth.exchange(&proof(&keys)?).await?.token);
        // The two newest count, whoever signed.
        for (age, token) in tokens.iter().rev().enumerate() {
            let expected = if age < 2 { 200 } else { 401 };
            assert_eq!(whoami(&platform, token).await?, expected, "{round}, {age}");
        }
    }
    // Commands that sign for themselves find the key that counts, and so does the next start.
    done(&["token", "read-node"], &data).await?;
    platform.kill().await?;
    platform.up().await?;
    for (age, token) in tokens.iter().rev().enumerate() {
        let expected = if age < 2 { 200 } else { 401 };
        assert_eq!(
            whoami(&platform, token).await?,
            expected,
            "restarted, {age}"
        );
    }
    // Its connections end with it.
    drop(auth);
    tasks.shutdown(wait::WATCHDOG).await;
    Ok(())
}

#[tokio::test]
async fn signing_out_ends_what_is_open() -> anyhow::Result<()> {
    let platform = Platform::start().await?;
    let data = platform.data();
    let (keys, tasks) = (Keys::open(&data.join("keys"))?, Tasks::new());
    let auth = auth(&data, &data, &tasks).await?;
    let token = auth.exchange(&proof(&keys)?).await?.token;
    let request = Request::get("/v1/events?follow=true")
        .header("host", &platform.authority)
        .header("authorization", format!("Bearer {token}"));
    let mut events = http::send(&platform.authority, request.body(http::full(""))?).await?;
    ensure!(events.status() == 200, "{}", events.status());

    let subject = SubjectRequest {
        subject: OWNER.to_owned(),
    };
    let began = tokio::time::Instant::now();
    auth.end_sessions(Caller::bearer(&token), subject).await?;
    let ending = async { while let Some(Ok(_)) = events.frame().await {} };
    let ended = tokio::time::timeout(wait::WATCHDOG, ending).await;
    ended.context("the stream goes on")?;
    println!(
        "signed out to cut off, with the append: {:?}",
        began.elapsed()
    );
    assert_eq!(whoami(&platform, &token).await?, 401);
    let again = auth.exchange(&proof(&keys)?).await?.token;
    assert_eq!(whoami(&platform, &again).await?, 200);
    // Its connections end with it.
    drop(auth);
    tasks.shutdown(wait::WATCHDOG).await;
    Ok(())
}
