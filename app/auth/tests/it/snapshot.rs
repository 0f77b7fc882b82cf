//! Auth goes on without the log: it starts with what it stored, and hears of the rest later.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tabbify_api::auth::issue::Caller;
use tabbify_api::auth::people::Role;
use tabbify_api::auth::{AuthError, Authority as _, Issuer as _, Revocations as _};
use tabbify_api::log::{EventLog, Line};
use tabbify_auth::{Auth, Config, FollowError, StartError, State};
use tabbify_process::{Clock, ManualClock, Tasks};
use tabbify_types::Digest;

use crate::support::{Fallible, NOW, PASSWORD, Platform, WATCHDOG, agent_order, config};

/// An issuer that reaches the log over a line and stores what it knows in `home`.
struct Issuer {
    auth: Auth,
    tasks: Tasks,
}

async fn start(platform: &Platform, line: &Arc<Line>, home: &Path) -> Result<Issuer, StartError> {
    start_in(platform, line, home, Tasks::new()).await
}

async fn start_in(
    platform: &Platform,
    line: &Arc<Line>,
    home: &Path,
    tasks: Tasks,
) -> Result<Issuer, StartError> {
    let config = Config {
        snapshots: Some(home.to_owned()),
        ..config(&platform.keys)
    };
    let clock: Arc<dyn Clock> = Arc::<ManualClock>::clone(&platform.clock);
    let log: Arc<dyn EventLog> = Arc::<Line>::clone(line);
    let auth = Auth::open(log, config, clock, &tasks).await?;
    Ok(Issuer { auth, tasks })
}

impl Issuer {
    /// Waits until it knows all that is in the log, and ends it.
    async fn end(self, platform: &Platform) -> Fallible<State> {
        self.auth.checker().reached(platform.client.head()).await?;
        let state = self.auth.checker().with_state(State::clone);
        assert!(self.tasks.shutdown(WATCHDOG).await && self.tasks.failure().is_none());
        Ok(state)
    }
}

fn file(home: &Path) -> PathBuf {
    home.join("auth.snapshot")
}

async fn agent(platform: &Platform, name: &str) -> Fallible<(String, String)> {
    let owner = platform.owner().await?;
    let order = agent_order(name, &["deploy"]);
    let token = platform.auth.issue(Caller::bearer(&owner), order).await?;
    let checked = platform
        .auth
        .checker()
        .check(&token.token, &["agent"], "tabbify-api", None)?;
    Ok((token.token, checked.jti))
}

async fn revoke(platform: &Platform, jti: &str) -> Fallible<()> {
    let owner = platform.owner().await?;
    platform.auth.revoke(Caller::bearer(&owner), jti).await?;
    Ok(())
}

#[tokio::test]
async fn it_starts_while_the_log_is_down_and_hears_of_the_rest_later() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("snapshots");
    let platform = Platform::start(dir.path(), NOW).await.unwrap();
    let line = Line::to(Arc::clone(&platform.client));
    let first = start(&platform, &line, &home).await.unwrap();
    let (kept, _) = agent(&platform, "kept").await.unwrap();
    let (gone, gone_jti) = agent(&platform, "gone").await.unwrap();
    let (later, later_jti) = agent(&platform, "later").await.unwrap();
    revoke(&platform, &gone_jti).await.unwrap();
    let owner = platform.owner().await.unwrap();
    let before = first.end(&platform).await.unwrap();

    line.join(None);
    let second = start(&platform, &line, &home).await.unwrap();
    let auth = &second.auth;
    assert_eq!(auth.checker().with_state(State::clone), before);
    auth.verify(&kept).unwrap();
    auth.verify(&later).unwrap();
    assert!(matches!(auth.verify(&gone), Err(AuthError::Invalid(_))));
    assert_eq!(auth.jwks(), platform.auth.jwks());
    assert_eq!(
        auth.tokens(Caller::bearer(&owner)).await.unwrap(),
        platform.auth.tokens(Caller::bearer(&owner)).await.unwrap()
    );
    // Nothing is given away that is not on record.
    let proof = platform.proof("while-it-is-down").unwrap();
    let refused = auth.exchange(&proof).await.unwrap_err();
    assert!(matches!(refused, AuthError::Unavailable(_)), "{refused}");

    let seen = auth.checker().changes();
    revoke(&platform, &later_jti).await.unwrap();
    platform.auth.rotate(&platform.keys.root).await.unwrap();
    auth.verify(&later).unwrap();
    line.join(Some(Arc::clone(&platform.client)));
    let heard = auth.checker();
    tokio::time::timeout(WATCHDOG, heard.changed(seen))
        .await
        .unwrap();
    assert!(matches!(auth.verify(&later), Err(AuthError::Invalid(_))));
    heard.reached(platform.client.head()).await.unwrap();
    assert_eq!(auth.signer().kid(), platform.auth.signer().kid());
    auth.exchange(&platform.proof("when-it-is-back").unwrap())
        .await
        .unwrap();
    let after = second.end(&platform).await.unwrap();
    assert_eq!(after, platform.auth.checker().with_state(State::clone));
    assert!(platform.stop().await);
}

#[tokio::test]
async fn what_is_stored_is_private_and_tells_no_secret() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("snapshots");
    let platform = Platform::start(dir.path(), NOW).await.unwrap();
    let line = Line::to(Arc::clone(&platform.client));
    let issuer = start(&platform, &line, &home).await.unwrap();
    let (token, _) = agent(&platform, "claude").await.unwrap();
    let session = platform.person("anna", Role::Viewer).await.unwrap();
    issuer.end(&platform).await.unwrap();

    let metadata = std::fs::metadata(file(&home)).unwrap();
    assert_eq!(metadata.mode() & 0o777, 0o600);
    assert_eq!(std::fs::metadata(&home).unwrap().mode() & 0o777, 0o700);
    let text = std::fs::read_to_string(file(&home)).unwrap();
    assert!(text.contains("user:anna") && text.contains("agent:main/claude"));
    let signature = |token: &str| token.rsplit('.').next().map(str::to_owned).unwrap();
    let secrets = [
        signature(&token),
        signature(&session),
        PASSWORD.to_owned(),
        "somebody@example.com".to_owned(),
        "argon2id".to_owned(),
        platform.keys.issuer.to_text().to_string(),
        platform.keys.owner.to_text().to_string(),
    ];
    for secret in &secrets {
        assert!(!text.contains(secret), "{secret}");
    }
    assert!(platform.stop().await);
}

/// The same snapshot, of a program with another version of the fold.
fn of_another_version(snapshot: &[u8]) -> Fallible<Vec<u8>> {
    let text = std::str::from_utf8(snapshot)?;
    let (_, body) = text.split_once('\n').ok_or("a line and the rest")?;
    let body = body.replacen(r#""version":1"#, r#""version":99"#, 1);
    let digest = Digest::of(body.as_bytes());
    Ok(format!("tabbify-fold 1 {digest}\n{body}").into_bytes())
}

#[tokio::test]
async fn a_snapshot_that_cannot_be_used_is_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    let (home, elsewhere) = (dir.path().join("snapshots"), dir.path().join("elsewhere"));
    let platform = Platform::start(dir.path(), NOW).await.unwrap();
    let line = Line::to(Arc::clone(&platform.client));
    agent(&platform, "claude").await.unwrap();
    let issuer = start(&platform, &line, &home).await.unwrap();
    let expected = issuer.end(&platform).await.unwrap();
    let good = std::fs::read(file(&home)).unwrap();

    let other = Platform::start(&dir.path().join("other"), NOW)
        .await
        .unwrap();
    let other_line = Line::to(Arc::clone(&other.client));
    let issuer = start(&other, &other_line, &elsewhere).await.unwrap();
    issuer.end(&other).await.unwrap();
    let of_another_log = std::fs::read(file(&elsewhere)).unwrap();
    assert!(other.stop().await);

    let newer = of_another_version(&good).unwrap();
    let mut damaged = good.clone();
    damaged[good.len() / 2] ^= 1;
    for (what, bytes) in [
        ("of another log", &of_another_log),
        ("of another version", &newer),
        ("damaged", &damaged),
        ("cut off", &good[..good.len() / 2].to_vec()),
    ] {
        std::fs::write(file(&home), bytes).unwrap();
        let issuer = start(&platform, &line, &home).await.unwrap();
        assert_eq!(issuer.end(&platform).await.unwrap(), expected, "{what}");
        let stored = std::fs::read(file(&home)).unwrap();
        assert_ne!(stored, *bytes, "{what}: it is stored anew");
    }

    // With nothing that can be used, it waits for the log, for as long as it is wanted.
    std::fs::write(file(&home), &damaged).unwrap();
    line.join(None);
    let tasks = Tasks::new();
    let ending = async { tasks.stop() };
    let starting = start_in(&platform, &line, &home, tasks.clone());
    let (stopped, ()) = tokio::join!(starting, ending);
    assert!(matches!(
        stopped.err().unwrap(),
        StartError::Follow(FollowError::Stopped)
    ));
    assert!(platform.stop().await);
}
