//! The process ends between any two steps: what the log names is there, and what it does not name goes.

use crate::support::{Fallible, Fate, Site, files};

#[tokio::test]
async fn sealed_and_never_recorded() -> Fallible<()> {
    let site = Site::new().await?;
    site.set("owner", "api-key", b"one").await?;
    for name in ["api-key", "new"] {
        site.fate(Fate::Lost);
        let unknown = site.set("owner", name, b"two").await.unwrap_err();
        assert_eq!(unknown.code().as_str(), "unavailable", "{unknown}");
    }
    assert_eq!(
        site.records()?,
        3,
        "nobody knows yet whether they are named"
    );
    let site = site.killed().await?;
    assert_eq!(site.records()?, 1);
    assert_eq!(site.list("owner").await?, ["api-key@1"]);
    let instance = site.instance("main", &["api-key"]).await?;
    assert_eq!(site.release(&instance).await?, ["api-key@1=one"]);
    // And it goes on from there.
    site.set("owner", "new", b"two").await?;
    site.set("owner", "api-key", b"two").await?;
    assert_eq!(site.list("owner").await?, ["api-key@2", "new@1"]);
    assert_eq!(site.release(&instance).await?, ["api-key@2=two"]);
    Ok(())
}

#[tokio::test]
async fn recorded_and_nobody_heard_of_it() -> Fallible<()> {
    let site = Site::new().await?;
    site.set("owner", "api-key", b"one").await?;
    let instance = site.instance("main", &["api-key"]).await?;
    site.fate(Fate::Unheard);
    let unknown = site.set("owner", "api-key", b"two").await.unwrap_err();
    assert!(unknown.to_string().contains("Do it again"), "{unknown}");
    assert_eq!(site.records()?, 2, "what is before it is not destroyed yet");
    let site = site.killed().await?;
    assert_eq!(site.records()?, 1);
    assert_eq!(site.release(&instance).await?, ["api-key@2=two"]);

    // The same for a removal: recorded, and its record still there.
    site.fate(Fate::Unheard);
    site.remove("owner", "api-key").await.unwrap_err();
    assert_eq!(site.records()?, 1);
    let site = site.killed().await?;
    assert_eq!(site.records()?, 0);
    assert_eq!(site.list("owner").await?, Vec::<String>::new());
    Ok(())
}

#[tokio::test]
async fn recorded_and_the_value_before_it_not_destroyed() -> Fallible<()> {
    let site = Site::new().await?;
    site.set("owner", "api-key", b"one").await?;
    let before = files(&site.vault_dir())?;
    site.set("owner", "api-key", b"two").await?;
    for (path, bytes) in before {
        std::fs::write(path, bytes)?;
    }
    // Half of one that was being written.
    let half = site.vault_dir().join("values");
    std::fs::write(
        half.join(tabbify_types::EventId::mint().to_string()),
        "TBV1",
    )?;
    let site = site.killed().await?;
    assert_eq!(site.records()?, 1);
    let instance = site.instance("main", &["api-key"]).await?;
    assert_eq!(site.release(&instance).await?, ["api-key@2=two"]);
    Ok(())
}

#[tokio::test]
async fn somebody_else_was_faster() -> Fallible<()> {
    let site = Site::new().await?;
    site.fate(Fate::Overtaken);
    // The other one's value is nowhere here: its version is set over.
    let view = site.set("owner", "api-key", b"mine").await?;
    assert_eq!(view.version.0, 2);
    assert_eq!(site.records()?, 1);
    let instance = site.instance("main", &["api-key"]).await?;
    assert_eq!(site.release(&instance).await?, ["api-key@2=mine"]);

    site.fate(Fate::Refused);
    let refused = site.set("owner", "api-key", b"more").await.unwrap_err();
    assert_eq!(refused.code().as_str(), "append_rate");
    assert_eq!(site.records()?, 1, "nothing is left behind");
    Ok(())
}

/// A log that names none of what is here is more likely the wrong log.
#[tokio::test]
async fn too_much_that_nobody_names_is_kept() -> Fallible<()> {
    let site = Site::new().await?;
    site.set("owner", "api-key", b"one").await?;
    let stray = |site: &Site| -> Fallible<()> {
        for dir in ["keys", "values"] {
            let id = tabbify_types::EventId::mint().to_string();
            std::fs::write(site.vault_dir().join(dir).join(id), "stray")?;
        }
        Ok(())
    };
    (0..40).try_for_each(|_| stray(&site))?;
    let site = site.killed().await?;
    assert_eq!(files(&site.vault_dir())?.len(), 82);
    assert_eq!(site.list("owner").await?, ["api-key@1"]);
    Ok(())
}

/// Values that the log names and that are gone: said, and mended by setting them again.
#[tokio::test]
async fn a_lost_value_is_said_and_set_again() -> Fallible<()> {
    let site = Site::new().await?;
    site.set("owner", "api-key", b"one").await?;
    std::fs::remove_dir_all(site.vault_dir())?;
    let site = site.killed().await?;
    let instance = site.instance("main", &["api-key"]).await?;
    let lost = site.release(&instance).await.unwrap_err();
    assert_eq!(lost.code().as_str(), "secret_missing");
    let fix = lost.problem().fix.unwrap();
    assert_eq!(fix, "Run: tcli secrets set api-key");
    site.set("owner", "api-key", b"two").await?;
    assert_eq!(site.release(&instance).await?, ["api-key@2=two"]);
    Ok(())
}

/// Records that were exchanged, cut or changed on the disk open as nothing.
#[tokio::test]
async fn a_record_in_anothers_place() -> Fallible<()> {
    let site = Site::new().await?;
    site.set("owner", "a", b"value-a").await?;
    site.set("acme", "a", b"value-b").await?;
    let of_acme = site.instance("acme", &["a"]).await?;
    let of_main = site.instance("main", &["a"]).await?;
    assert_eq!(site.release(&of_acme).await?, ["a@1=value-b"]);
    for dir in ["keys", "values"] {
        let found = files(&site.vault_dir().join(dir))?;
        let [(one, first), (two, second)] = found.as_slice() else {
            panic!("{found:?}");
        };
        std::fs::write(one, second)?;
        std::fs::write(two, first)?;
    }
    for instance in [&of_acme, &of_main] {
        let refused = site.release(instance).await.unwrap_err();
        assert_eq!(refused.code().as_str(), "internal", "{refused}");
        assert!(!format!("{refused:?}").contains("value-"));
    }
    Ok(())
}
