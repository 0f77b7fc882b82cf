//! Checkpoints and extents in a bucket, over signed requests.

use std::time::Duration;

use object_store::path::Path as At;
use object_store::{ObjectStoreExt as _, PutMode};
use tabbify_api::log::{Append, Filter, LogScope};
use tabbify_log::{
    Anchor, CheckpointStore, Cold, ColdStore, Files, Log, LogKey, Options, Publisher,
};
use tabbify_process::SystemClock;
use tabbify_token::SecretKey;
use tabbify_types::{EventId, NewEvent, Position, SegmentGlob};

use super::super::Place;
use super::peer::{ACCESS_KEY, Peer, SECRET_KEY};
use super::*;
use crate::secret::Secret;

type Wrong = Box<dyn std::error::Error + Send + Sync>;

/// A bucket that is served, and what a configuration says of it.
struct Story {
    peer: Peer,
    objects: Objects,
    tasks: Tasks,
    dir: tempfile::TempDir,
}

impl Story {
    async fn new() -> Result<Self, Wrong> {
        let (peer, tasks, dir) = (Peer::default(), Tasks::new(), tempfile::tempdir()?);
        let secret = |name: &str, text: &str| -> Result<Secret, Wrong> {
            let path = dir.path().join(name);
            std::fs::write(&path, format!("{text}\n"))?;
            Ok(Secret(format!("file:{}", path.display())))
        };
        let objects = Objects {
            endpoint: Some(peer.serve(&tasks).await?),
            authorities: None,
            region: Some("garage".to_owned()),
            access_key: Some(secret("access", ACCESS_KEY)?),
            secret_key: Some(secret("secret", SECRET_KEY)?),
        };
        Ok(Self {
            peer,
            objects,
            tasks,
            dir,
        })
    }

    fn place(&self, text: &str) -> Result<(Arc<dyn ObjectStore>, At, String), Wrong> {
        match Place::read("a key", text, &self.objects)? {
            Place::Bucket { store, base, shown } => Ok((store, base, shown)),
            other @ Place::Directory(_) => Err(format!("{other:?}").into()),
        }
    }
}

#[tokio::test]
async fn requests_are_signed_and_answers_understood() -> Result<(), Wrong> {
    let story = Story::new().await?;
    let (store, base, _) = story.place("s3://bucket/a path")?;
    let at = base.clone().join("one object");
    store.put(&at, "hello, bucket".into()).await?;
    let again = store
        .put_opts(&at, "other".into(), PutMode::Create.into())
        .await;
    assert!(
        matches!(again, Err(object_store::Error::AlreadyExists { .. })),
        "{again:?}"
    );
    assert_eq!(&store.get_range(&at, 7..13).await?[..], b"bucket");
    assert_eq!(store.head(&at).await?.size, 13);
    let absent = store.get(&base.join("nothing")).await;
    assert!(matches!(absent, Err(object_store::Error::NotFound { .. })));
    // A busy store is asked again.
    story.peer.bucket().busy = 2;
    assert_eq!(store.get(&at).await?.bytes().await?.len(), 13);
    store.delete(&at).await?;
    assert!(store.head(&at).await.is_err());
    assert_eq!(story.peer.bucket().forged, 0);

    // Another key is nobody.
    let path = story.dir.path().join("other");
    std::fs::write(&path, "another secret")?;
    let objects = Objects {
        secret_key: Some(Secret(format!("file:{}", path.display()))),
        ..story.objects.clone()
    };
    let other = Place::read("a key", "s3://bucket", &objects)?;
    let Place::Bucket { store, .. } = other else {
        return Err("a directory".into());
    };
    assert!(store.get(&at).await.is_err());
    assert_eq!(story.peer.bucket().forged, 1);
    story.tasks.shutdown(Duration::from_secs(20)).await;
    Ok(())
}

#[test]
fn a_bucket_that_cannot_be_used_is_refused_by_its_key() {
    let whole = Objects {
        endpoint: Some("http://127.0.0.1:9000".to_owned()),
        authorities: None,
        region: None,
        access_key: Some(Secret("file:/nowhere".to_owned())),
        secret_key: Some(Secret("env:NOTHING_HERE".to_owned())),
    };
    let shown = |objects: &Objects| {
        let refused = Place::read("cold.store", "s3://bucket/x", objects).err();
        refused
            .map(|error| format!("{error:#}"))
            .unwrap_or_default()
    };
    assert!(shown(&Objects::default()).contains("objects.endpoint"));
    assert!(
        shown(&whole).contains("objects.access_key"),
        "{}",
        shown(&whole)
    );
    for endpoint in ["ftp://s3.example", "127.0.0.1:9000", "http://host/path", ""] {
        let objects = Objects {
            endpoint: Some(endpoint.to_owned()),
            ..whole.clone()
        };
        assert!(shown(&objects).contains("objects.endpoint"), "{endpoint}");
    }
}

#[tokio::test]
async fn over_tls_only_a_store_that_is_vouched_for_is_spoken_to() -> Result<(), Wrong> {
    let story = Story::new().await?;
    let dir = tempfile::tempdir()?;
    let endpoint = story.peer.serve_tls(dir.path(), &story.tasks).await?;
    let with = |authority: &str| Objects {
        endpoint: Some(endpoint.clone()),
        authorities: Some(dir.path().join(authority)),
        ..story.objects.clone()
    };
    let open = |objects: &Objects| match Place::read("a key", "s3://bucket", objects)? {
        Place::Bucket { store, .. } => Ok(store),
        other @ Place::Directory(_) => Err(Wrong::from(format!("{other:?}"))),
    };
    let store = open(&with("authority.pem"))?;
    let at = At::from("an object");
    store.put(&at, "over tls".into()).await?;
    assert_eq!(&store.get(&at).await?.bytes().await?[..], b"over tls");
    // One that only vouches for itself: its own certificate is no authority.
    let stranger = open(&with("store.pem"))?;
    assert!(stranger.get(&at).await.is_err());
    let key = Place::read("a key", "s3://bucket", &with("store.key"));
    assert!(key.is_err(), "no authority is in there");
    assert!(Place::read("a key", "s3://bucket", &with("nothing")).is_err());
    {
        let bucket = story.peer.bucket();
        assert_eq!((bucket.objects.len(), bucket.forged), (1, 0));
    }
    story.tasks.shutdown(Duration::from_secs(20)).await;
    Ok(())
}

fn scope() -> LogScope {
    LogScope {
        actor: "test".to_owned(),
        write: vec![SegmentGlob::all()],
        read: vec![SegmentGlob::all()],
    }
}

/// Events of some 200 KiB together.
fn batch() -> Result<Append, Wrong> {
    let mut events = Vec::new();
    for n in 0..4 {
        let text = format!("{n}").repeat(50_000);
        events.push(NewEvent {
            id: EventId::mint(),
            segment: "tenant_main.apps".parse()?,
            key: "shop".to_owned(),
            kind: "x.happened".to_owned(),
            version: 1,
            cause: None,
            trace: None,
            data: serde_json::value::to_raw_value(&serde_json::json!({ "text": text }))?,
        });
    }
    Ok(Append::of(events))
}

// Looking at a log blocks, and the bucket answers in the same process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_keeps_its_checkpoints_and_its_extents_in_a_bucket() -> Result<(), Wrong> {
    let story = Story::new().await?;
    let (store, base, shown) = story.place("s3://bucket/cold")?;
    let cold = ColdStore::new(store, base, &shown)?;
    let (store, base, shown) = story.place("s3://bucket/signed")?;
    let checkpoints = CheckpointStore::new(store, base, &shown);
    let root = SecretKey::generate()?;
    let anchor = || Anchor::Root(root.public());
    let key = LogKey::certified(SecretKey::generate()?, &root);

    let (dir, tasks) = (story.dir.path().join("log"), Tasks::new());
    let options = Options::new(Arc::new(SystemClock))
        .extent_lens(1 << 18, 1 << 18)
        .cold(Some(Cold::new(cold.clone(), 0)));
    let log = Log::open(&dir, options)?;
    let trust = checkpoints.trust(anchor()).await?;
    let publisher = Publisher::start(&log, checkpoints.clone(), trust, key, None, &tasks);
    let client = log.client(scope());
    for _ in 0..12 {
        client.append(batch()?).await?;
    }
    let files = Files::new(Some(&cold));
    let settled = async {
        while files.usage(&dir)?.only_stored < 6 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok::<_, Wrong>(())
    };
    tokio::time::timeout(Duration::from_secs(60), settled).await??;
    let page = client.read(Filter::default(), Position(0), 10).await?;
    assert_eq!(page.events.len(), 10);
    tasks.shutdown(Duration::from_secs(20)).await;
    log.close().await;
    assert_eq!(publisher.finish().await?, Some(Position(48)));

    // Everybody else agrees: by the same place, and by nothing but it and the root key.
    let trust = checkpoints.trust(anchor()).await?;
    let signed = checkpoints.all(&trust).await?;
    let audited = files.audit(&dir, &signed)?;
    assert_eq!(
        (audited.upto, audited.signed_upto),
        (Position(48), Some(Position(48)))
    );
    {
        let bucket = story.peer.bucket();
        let below = |prefix: &str| {
            let paths = bucket.objects.keys();
            paths.filter(|path| path.starts_with(prefix)).count()
        };
        assert!(below("/bucket/cold/") >= 6 && below("/bucket/signed/history/") >= 1);
        assert_eq!(bucket.forged, 0);
    }
    // What is given up after a loss is moved there too.
    assert!(checkpoints.give_up_beyond(Position(0)).await? >= 1);
    assert!(checkpoints.newest(&trust).await?.is_none());
    story.tasks.shutdown(Duration::from_secs(20)).await;
    Ok(())
}
