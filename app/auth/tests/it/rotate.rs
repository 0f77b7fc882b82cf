//! The issuer key changes while everything goes on.

use std::time::Duration;

use tabbify_api::auth::{AuthError, Authority as _};
use tabbify_auth::RotateError;
use tabbify_token::SecretKey;

use crate::support::{NOW, Platform, until};

fn kids(platform: &Platform) -> Vec<String> {
    let jwks = platform.auth.jwks();
    let keys = jwks["keys"].as_array().cloned().unwrap_or_default();
    keys.iter()
        .map(|key| key["kid"].as_str().unwrap_or_default().to_owned())
        .collect()
}

#[tokio::test]
async fn two_keys_count_and_the_newest_signs() {
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(dir.path(), NOW).await.unwrap();
    let root = platform.keys.root.clone();
    let first = platform.keys.issuer.id().to_string();
    let old = platform.owner().await.unwrap();

    let second = platform.auth.rotate(&root).await.unwrap().to_string();
    assert_eq!(
        kids(&platform),
        [second.clone(), first.clone()],
        "newest first"
    );
    assert_eq!(platform.auth.signer().kid().to_string(), second);
    let new = platform.owner().await.unwrap();
    for token in [&old, &new] {
        platform.auth.verify(token).unwrap();
    }
    assert!(platform.stop().await);

    // The new key is found again after a restart, and the owner's files are as they were.
    let platform = Platform::start(dir.path(), NOW).await.unwrap();
    assert_eq!(platform.keys.issuer.id().to_string(), first);
    assert_eq!(platform.auth.signer().kid().to_string(), second);
    assert_eq!(kids(&platform), [second.clone(), first]);
    platform.auth.verify(&old).unwrap();

    let third = platform.auth.rotate(&root).await.unwrap().to_string();
    assert_eq!(kids(&platform), [third.clone(), second.clone()]);
    assert!(
        matches!(platform.auth.verify(&old), Err(AuthError::Invalid(_))),
        "its key counts no more"
    );
    platform.auth.verify(&new).unwrap();
    let fourth = platform.auth.rotate(&root).await.unwrap().to_string();
    let files: Vec<String> = std::fs::read_dir(dir.path().join("keys"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("issuer-"))
        .collect();
    assert!(
        files
            .iter()
            .all(|name| name.contains(&third) || name.contains(&fourth)),
        "{files:?}"
    );
    assert_eq!(files.len(), 2);
    assert!(platform.stop().await);
}

#[tokio::test]
async fn only_the_root_key_of_this_platform_can() {
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(dir.path(), NOW).await.unwrap();
    for wrong in [
        &platform.keys.issuer,
        &platform.keys.owner,
        &SecretKey::from_seed(&[9; 32]),
    ] {
        let refused = platform.auth.rotate(wrong).await.unwrap_err();
        assert!(
            matches!(refused, RotateError::OtherPlatform { .. }),
            "{refused}"
        );
    }
    assert_eq!(platform.count("issuer_key_rotated").await.unwrap(), 1);
    assert!(platform.stop().await);
}

/// Another issuer of the same directory signs with the new key as soon as it hears of it; of two that
/// rotate at once one is told that it was late.
#[tokio::test]
async fn issuers_of_one_directory_follow_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(dir.path(), NOW).await.unwrap();
    let another = platform.another().await.unwrap();
    let root = platform.keys.root.clone();
    let second = platform.auth.rotate(&root).await.unwrap();
    until(|| another.signer().kid() == second).await.unwrap();

    let (mine, theirs) = tokio::join!(platform.auth.rotate(&root), another.rotate(&root));
    let won: Vec<_> = [&mine, &theirs].into_iter().flatten().collect();
    assert!(!won.is_empty());
    for lost in [&mine, &theirs]
        .into_iter()
        .filter_map(|answer| answer.as_ref().err())
    {
        assert!(matches!(lost, RotateError::Meanwhile), "{lost}");
    }
    let newest = kids(&platform)[0].clone();
    assert!(won.iter().any(|kid| kid.as_str() == newest));
    until(|| another.signer().kid().as_str() == newest)
        .await
        .unwrap();
    assert_eq!(platform.auth.signer().kid().as_str(), newest);
    assert!(platform.stop().await);
}

/// No valid token is refused while keys change, as long as none outlives two changes.
#[tokio::test]
async fn nobody_notices_a_rotation() {
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(dir.path(), NOW).await.unwrap();
    let root = platform.keys.root.clone();
    let mut last = platform.owner().await.unwrap();
    for _ in 0..10 {
        let asking = async {
            let mut refused = 0;
            for _ in 0..50 {
                refused += usize::from(platform.auth.verify(&last).is_err());
                tokio::task::yield_now().await;
            }
            refused
        };
        let (rotated, refused) = tokio::join!(platform.auth.rotate(&root), asking);
        rotated.unwrap();
        assert_eq!(refused, 0);
        platform.auth.verify(&last).unwrap();
        last = platform.owner().await.unwrap();
        platform.clock.advance(Duration::from_secs(10));
    }
    assert_eq!(platform.count("issuer_key_rotated").await.unwrap(), 11);
    assert!(platform.stop().await);
}
