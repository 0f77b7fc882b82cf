//! Closed extents in an object store, on real files: everything that reads a log reads them, and a log
//! whose machine is gone comes back from them.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tabbify_api::log::{Append, AppendError, Delivery, Filter, ReadError};
use tabbify_log::{
    Cold, ColdError, ColdStore, Files, Log, OpenError, Options, Proof, RestoreError, Usage,
    transfer,
};
use tabbify_types::{NewEvent, Position, Recorded};

use crate::signed::{Open, Platform};
use crate::support::{Outcome, Wrong, event, extents, next, options, read_all};

/// Extents of this length: some dozens of them make a run.
const EXTENT_LEN: u64 = 1 << 16;
/// What stays on the local disk, at least: less than is not sealed yet.
const LOCAL_LEN: u64 = 1 << 18;
/// Extents that are sealed by then, or more.
const STORED: usize = 15;
const BATCHES: u64 = 120;
const BATCH: u64 = 5;
const KEYS: u64 = 7;

/// A platform whose log goes to an object store, a directory beside it.
struct Story {
    platform: Platform,
    store: ColdStore,
}

impl Story {
    fn new() -> Result<Self, Wrong> {
        let platform = Platform::new()?;
        let store = ColdStore::local(&platform.other("objects"))?;
        Ok(Self { platform, store })
    }

    fn options(&self) -> Options {
        let cold = Cold::new(self.store.clone(), LOCAL_LEN);
        options()
            .extent_lens(EXTENT_LEN, EXTENT_LEN)
            .cold(Some(cold))
    }

    fn files(&self) -> Files {
        Files::new(Some(&self.store))
    }

    fn usage(&self) -> Result<Usage, Wrong> {
        Ok(self.files().usage(&self.platform.log())?)
    }

    /// A log of which most is only in the store; its batches.
    async fn told(&self) -> Result<Vec<Append>, Wrong> {
        let open = self.platform.open_with(self.options()).await?;
        let mut batches = Vec::new();
        for n in 0..BATCHES {
            let batch = Append::of((0..BATCH).map(|at| one(n * BATCH + at)).collect());
            open.client.append(batch.clone()).await?;
            batches.push(batch);
        }
        self.settled().await?;
        open.close().await?;
        Ok(batches)
    }

    /// Returns when no more extents are to go.
    async fn settled(&self) -> Outcome {
        let settled = async {
            loop {
                let usage = self.usage()?;
                if usage.only_stored >= STORED && usage.only_stored == usage.stored {
                    return Ok(());
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), settled).await?
    }

    /// The objects, as files.
    fn objects(&self) -> Result<Vec<PathBuf>, Wrong> {
        let mut found = Vec::new();
        for log in fs::read_dir(self.platform.other("objects"))? {
            for object in fs::read_dir(log?.path())? {
                found.push(object?.path());
            }
        }
        found.sort();
        Ok(found)
    }

    async fn open(&self) -> Result<Open, Wrong> {
        self.platform.open_with(self.options()).await
    }
}

fn one(n: u64) -> NewEvent {
    let text = format!("{n:09}").repeat(400);
    let data = format!("{{\"n\":{n},\"text\":\"{text}\"}}");
    event("tenant_main.apps", &format!("k{}", n % KEYS), &data)
}

fn shown(event: &Arc<Recorded>) -> String {
    format!("{event:?}")
}

fn damaged_object(story: &Story) -> Result<PathBuf, Wrong> {
    let object = story.objects()?.remove(1);
    let mut bytes = fs::read(&object)?;
    let at = bytes.len() / 3;
    bytes[at] ^= 1;
    fs::write(&object, bytes)?;
    Ok(object)
}

#[tokio::test]
async fn everything_that_reads_a_log_reads_what_is_stored() -> Outcome {
    let story = Story::new()?;
    let batches = story.told().await?;
    let (dir, files) = (story.platform.log(), story.files());
    let usage = story.usage()?;
    assert!(usage.stored_len * 4 < usage.stored_extents_len, "{usage:?}");
    assert!(usage.local_len < BATCHES * EXTENT_LEN, "{usage:?}");

    // Looked at by hand.
    let verified = files.verify(&dir)?;
    assert_eq!(verified.head, Position(BATCHES * BATCH));
    let all = story.platform.all().await?;
    let newest = all.last().ok_or("a checkpoint")?;
    assert_eq!(files.audit(&dir, &all)?.signed_upto, Some(verified.head));
    let proof = files.prove(
        &dir,
        Position(3),
        newest,
        None,
        vec![story.platform.key.certificate().clone()],
    )?;
    let proven = Proof::read(&serde_json::to_vec(&proof)?)?.check(story.platform.anchor())?;
    assert_eq!(proven.event.position, Position(3));
    let (content, export) = (files.content(&dir)?, story.platform.other("export"));
    assert_eq!(files.export(&dir, &export)?, content);
    let copy = story.platform.other("imported");
    assert_eq!(transfer::import_log(&export, &copy, &options())?, content);

    // In use: pages, one key, from the beginning on, and a batch that was appended long ago.
    let open = story.open().await?;
    let events = read_all(&*open.client, Filter::default(), 100).await?;
    assert!(
        events
            .iter()
            .map(|it| it.position.get())
            .eq(1..=BATCHES * BATCH)
    );
    let key = Filter {
        key: Some("k3".to_owned()),
        ..Filter::segments(["tenant_main.apps".parse()?])
    };
    let history = read_all(&*open.client, key, 9).await?;
    let mine = events.iter().filter(|event| event.key == "k3");
    assert!(mine.map(shown).eq(history.iter().map(shown)));
    let mut subscription = open.client.subscribe(Filter::default(), Position(0))?;
    for due in 1..=BATCHES * BATCH {
        match next(&mut *subscription).await? {
            Delivery::Event(event) => assert_eq!(event.position, Position(due)),
            other => return Err(format!("{other:?} before {due}").into()),
        }
    }
    let again = open.client.append(batches[0].clone()).await?;
    assert_eq!(again.first, Position(1));
    open.close().await
}

#[tokio::test]
async fn a_lost_machine_comes_back_from_the_store_and_a_copy_of_the_end() -> Outcome {
    let story = Story::new()?;
    story.told().await?;
    let (dir, files) = (story.platform.log(), story.files());
    let content = files.content(&dir)?;
    let all = story.platform.all().await?;
    // All that is left is what was on the local disk last, somewhere else; no record, no index.
    let end = story.platform.other("end");
    fs::create_dir(&end)?;
    for path in extents(&dir)? {
        fs::rename(&path, end.join(path.file_name().ok_or("a name")?))?;
    }
    fs::remove_dir_all(&dir)?;
    // The store alone does not have what was signed.
    let short = files.restore(&dir, &[], &all, false);
    assert!(matches!(short, Err(RestoreError::Loss { .. })), "{short:?}");
    // And without it the beginning is nowhere.
    let none = Files::new(None).restore(&dir, std::slice::from_ref(&end), &all, false);
    assert!(none.is_err(), "{none:?}");

    let done = files.restore(&dir, &[end], &all, false)?;
    assert_eq!(done.head, content.head);
    let from_store = done.taken.last().ok_or("the store")?;
    assert!(
        from_store.events > 0 && from_store.from.ends_with("objects"),
        "{from_store:?}"
    );
    assert_eq!(files.content(&dir)?, content);
    // All of it is local again; opened, it finds its extents stored and gives them up again.
    assert_eq!(story.usage()?.stored, 0);
    let written = |path: &PathBuf| fs::metadata(path).and_then(|it| it.modified());
    let before = story.objects()?;
    let times: Vec<_> = before.iter().map(written).collect::<Result<_, _>>()?;
    let open = story.open().await?;
    story.settled().await?;
    open.close().await?;
    let now: Vec<_> = before.iter().map(written).collect::<Result<_, _>>()?;
    assert_eq!(now, times, "what is there is not written again");
    assert_eq!(files.content(&dir)?, content);
    Ok(())
}

#[tokio::test]
async fn a_damaged_object_is_named_and_the_log_takes_appends() -> Outcome {
    let story = Story::new()?;
    story.told().await?;
    let object = damaged_object(&story)?;
    let name = object
        .file_name()
        .and_then(|name| name.to_str())
        .ok_or("a name")?;
    let refused = story.files().verify(&story.platform.log()).err();
    let Some(OpenError::Stored { source, .. }) = &refused else {
        return Err(format!("{refused:?}").into());
    };
    assert!(matches!(source, ColdError::Damaged { .. }) && source.to_string().contains(name));

    let open = story.open().await?;
    let read = read_all(&*open.client, Filter::default(), 100).await;
    let read = read.err().ok_or("it is read")?.downcast::<ReadError>()?;
    let ReadError::Stored { detail } = *read else {
        return Err(format!("{read}").into());
    };
    assert!(
        detail.contains(name) && detail.contains("tabbify log restore"),
        "{detail}"
    );
    let answer = open.client.append(Append::of(vec![one(10_000)])).await?;
    assert_eq!(answer.first, Position(BATCHES * BATCH + 1));
    open.close().await
}

#[tokio::test]
async fn without_its_store_a_log_opens_and_says_what_is_missing() -> Outcome {
    let story = Story::new()?;
    story.told().await?;
    let log = Log::open(
        &story.platform.log(),
        options().extent_lens(EXTENT_LEN, EXTENT_LEN),
    )?;
    let client = log.client(crate::support::scope("test", &["**"], &["**"])?);
    let answer: Result<_, AppendError> = client.append(Append::of(vec![one(10_001)])).await;
    assert_eq!(answer?.first, Position(BATCHES * BATCH + 1));
    let page = client.read(Filter::default(), Position(0), 10).await;
    let Err(ReadError::Stored { detail }) = page else {
        return Err(format!("{page:?}").into());
    };
    assert!(detail.contains("[log.cold]"), "{detail}");
    log.close().await;
    let verified = Log::verify(&story.platform.log());
    assert!(
        matches!(
            &verified,
            Err(OpenError::Stored {
                source: ColdError::NoStore { .. },
                ..
            })
        ),
        "{verified:?}"
    );
    Ok(())
}
