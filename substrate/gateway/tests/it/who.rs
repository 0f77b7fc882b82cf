//! Who gets what: people set in their own tenant, instances read what their release names.

use tabbify_api::auth::issue::Caller;
use tabbify_api::secrets::{RELEASE_VALUES_LEN_MAX, SECRETS_MAX, VALUE_LEN_MAX};
use tabbify_gateway::Peer;
use tabbify_types::event::v1::{AppStopped, LeaseReleased};
use tabbify_types::{HostUla, InstanceId, InstanceUla, MeshKey, Segment};

use crate::support::{Fallible, Site};

#[tokio::test]
async fn people_set_and_the_log_has_names_alone() -> Fallible<()> {
    let site = Site::new().await?;
    assert_eq!(site.set("owner", "api-key", b"one").await?.version.0, 1);
    assert_eq!(site.set("owner", "api-key", b"two").await?.version.0, 2);
    site.remove("owner", "api-key").await?;
    // Its versions go on: no two values are ever of one.
    assert_eq!(site.set("owner", "api-key", b"three").await?.version.0, 3);
    let recorded = site.recorded().await?;
    let expected = [
        "secret_registered api-key@1 by user:owner",
        "secret_rotated api-key@2 by user:owner",
        "secret_removed api-key by user:owner",
        "secret_registered api-key@3 by user:owner",
    ];
    assert_eq!(recorded, expected);
    let (name, value) = (
        "api-key".parse()?,
        tabbify_api::secrets::SecretValue::new(b"x".to_vec()),
    );
    let (view, is_new) = site.vault.set(Caller::bearer("owner"), name, value).await?;
    assert!(!is_new && view.created < view.changed || view.created == view.changed);
    Ok(())
}

#[tokio::test]
async fn who_may_not() -> Fallible<()> {
    let site = Site::new().await?;
    for (token, code) in [
        ("", "token_missing"),
        ("forged", "token_invalid"),
        ("old", "token_expired"),
        ("viewer", "forbidden"),
        ("agent", "forbidden"),
    ] {
        let refused = site.set(token, "a", b"x").await.unwrap_err();
        assert_eq!(refused.code().as_str(), code, "{token}");
        let refused = site.remove(token, "a").await.unwrap_err();
        assert_eq!(refused.code().as_str(), code, "{token}");
    }
    // What acts for a person may see which there are.
    assert!(site.list("agent").await?.is_empty());
    assert!(site.list("viewer").await.is_err());
    assert_eq!(site.records()?, 0);
    let missing = site.remove("owner", "a").await.unwrap_err();
    assert_eq!(missing.code().as_str(), "secret_missing");
    Ok(())
}

#[tokio::test]
async fn two_tenants_with_one_name() -> Fallible<()> {
    let site = Site::new().await?;
    site.set("owner", "api-key", b"of main").await?;
    site.set("acme", "api-key", b"of acme").await?;
    site.set("acme", "other", b"more").await?;
    assert_eq!(site.list("owner").await?, ["api-key@1"]);
    assert_eq!(site.list("acme").await?, ["api-key@1", "other@1"]);
    let (main, acme) = (
        site.instance("main", &["api-key"]).await?,
        site.instance("acme", &["api-key"]).await?,
    );
    assert_eq!(site.release(&main).await?, ["api-key@1=of main"]);
    assert_eq!(site.release(&acme).await?, ["api-key@1=of acme"]);
    site.remove("acme", "api-key").await?;
    assert_eq!(site.release(&main).await?, ["api-key@1=of main"]);
    let missing = site.release(&acme).await.unwrap_err();
    assert_eq!(missing.to_string(), "secret \"api-key\" does not exist");
    Ok(())
}

/// Exactly what a release names, and all of it or nothing.
#[tokio::test]
async fn an_instance_gets_its_release() -> Fallible<()> {
    let site = Site::new().await?;
    for name in ["a", "b", "c"] {
        site.set("owner", name, name.as_bytes()).await?;
    }
    let instance = site.instance("main", &["c", "a", "a"]).await?;
    assert_eq!(site.release(&instance).await?, ["a@1=a", "c@1=c"]);
    site.set("owner", "a", b"newer").await?;
    assert_eq!(site.release(&instance).await?, ["a@2=newer", "c@1=c"]);
    let wants = site
        .instance("main", &["a", "not-there", "nor-this"])
        .await?;
    let missing = site.release(&wants).await.unwrap_err();
    let expected = "secrets \"nor-this\", \"not-there\" do not exist";
    assert_eq!(missing.to_string(), expected);
    Ok(())
}

#[tokio::test]
async fn who_is_no_such_instance_gets_nothing() -> Fallible<()> {
    let site = Site::new().await?;
    site.set("owner", "a", b"value").await?;
    let instance = site.instance("main", &["a"]).await?;
    let other = site.instance("main", &["a"]).await?;
    let without = site.instance("main", &[]).await?;
    let own = InstanceUla::derive(instance.of.app, instance.of.instance).addr();
    let release = site
        .vault
        .release(&Peer::on_mesh(instance.key, own))
        .await?;
    assert_eq!(release.secrets.len(), 1, "from its own address, too");
    let next = InstanceUla::derive(instance.of.app, InstanceId(2)).addr();
    for (what, peer) in [
        ("a process of this machine", Peer::local()),
        (
            "a stranger",
            Peer::on_mesh(MeshKey([9; 32]), instance.address()),
        ),
        (
            "one app from another's address",
            Peer::on_mesh(instance.key, other.address()),
        ),
        (
            "one instance from another's",
            Peer::on_mesh(instance.key, next),
        ),
        (
            "a machine",
            Peer::on_mesh(instance.key, HostUla::new(1, 1).addr()),
        ),
        ("an app without secrets", without.peer()),
    ] {
        let refused = site.vault.release(&peer).await.unwrap_err();
        assert_eq!(refused.code().as_str(), "forbidden", "{what}");
    }

    // Whoever has ended gets nothing more.
    let stopped = AppStopped { of: instance.of };
    let apps = Segment::apps(&instance.tenant);
    site.append(&apps, instance.of.app, stopped.into()).await?;
    let released = LeaseReleased {
        app: other.of.app,
        instance: other.of.instance,
    };
    site.append(&Segment::peers(), other.of.app, released.into())
        .await?;
    for gone in [&instance, &other] {
        let refused = site.release(gone).await.unwrap_err();
        assert_eq!(refused.code().as_str(), "forbidden");
    }
    // Nor does a start from what was known before change that.
    let site = site.killed().await?;
    assert!(site.release(&instance).await.is_err());
    Ok(())
}

#[tokio::test]
async fn limits() -> Fallible<()> {
    let site = Site::new().await?;
    let check = |refused: tabbify_gateway::Error, code: &str| {
        assert_eq!(refused.code().as_str(), code, "{refused}");
    };
    check(
        site.set("owner", "a", b"").await.unwrap_err(),
        "bad_request",
    );
    let largest = vec![b'x'; VALUE_LEN_MAX];
    let larger = vec![b'x'; VALUE_LEN_MAX + 1];
    check(
        site.set("owner", "a", &larger).await.unwrap_err(),
        "too_large",
    );
    let several = RELEASE_VALUES_LEN_MAX / VALUE_LEN_MAX;
    let names: Vec<String> = (0..=several).map(|n| format!("large-{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    for name in &names {
        site.set("owner", name, &largest).await?;
    }
    let fits = site.instance("main", &names[..several]).await?;
    assert_eq!(site.release(&fits).await?.len(), several);
    let too_much = site.instance("main", &names).await?;
    check(site.release(&too_much).await.unwrap_err(), "too_large");

    // As many as there may be: the last ones are named by hand, for each has its two syncs.
    let secrets = Segment::secrets(&"acme".parse()?);
    let batch = (0..SECRETS_MAX).map(|n| {
        let name = format!("s{n}");
        let registered = tabbify_types::event::v1::SecretRegistered {
            name: name.parse()?,
            version: tabbify_types::SecretVersion(1),
        };
        Ok(tabbify_types::NewEvent::new(
            secrets.clone(),
            &name,
            &registered.into(),
        )?)
    });
    let batch: Fallible<Vec<_>> = batch.collect();
    site.all
        .append(tabbify_api::log::Append::of(batch?))
        .await?;
    check(
        site.set("acme", "one-more", b"x").await.unwrap_err(),
        "secret_limit",
    );
    site.set("acme", "s1", b"a new value of one").await?;
    site.remove("acme", "s2").await?;
    site.set("acme", "one-more", b"x").await?;
    Ok(())
}
