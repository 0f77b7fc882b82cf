//! What a chain alone cannot show: a tail that is gone, and another history. With checkpoints outside
//! the log's directory each is found, at the next open and by an audit.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use object_store::ObjectStore;
use object_store::limit::LimitStore;
use object_store::memory::InMemory;
use object_store::path::Path as At;
use serde_json::{Value, json};
use tabbify_log::{
    CheckpointError, CheckpointStore, Log, LogKey, OpenError, Proof, ProofError, Publisher,
    StoreError, Trust, audit, audit_open, prove,
};
use tabbify_process::Tasks;
use tabbify_token::SecretKey;
use tabbify_types::Position;

use crate::signed::{Platform, frames, position};
use crate::support::{Outcome, Wrong, copy_log, extents, options};

/// The checkpoint that an error names, and the rest of what it says.
fn named(error: &OpenError) -> Result<(Position, String), Wrong> {
    match error {
        OpenError::Checkpoint {
            position,
            what,
            checkpoint,
            ..
        } => {
            assert!(checkpoint.contains("history/"), "{checkpoint}");
            assert!(error.to_string().contains(&position.to_string()));
            Ok((*position, what.clone()))
        }
        other => Err(format!("another error: {other}").into()),
    }
}

/// What the next open and an audit say of a log that is not what was signed.
async fn found(platform: &Platform) -> Result<(Position, String), Wrong> {
    let before = content(&platform.log())?;
    let told = named(&platform.refused().await?)?;
    let audited = audit(&platform.log(), &platform.all().await?);
    let audited = audited.err().ok_or("the audit finds nothing")?;
    assert!(matches!(audited, OpenError::Checkpoint { .. }), "{audited}");
    assert!(
        content(&platform.log())? == before,
        "a refused log was changed"
    );
    Ok(told)
}

fn content(dir: &Path) -> Result<Vec<Vec<u8>>, Wrong> {
    let files = extents(dir)?;
    Ok(files.iter().map(fs::read).collect::<Result<_, _>>()?)
}

#[tokio::test]
async fn a_tail_cut_at_a_frame_is_found() -> Outcome {
    let platform = Platform::new()?;
    platform.filled(40, 5).await?;
    let files = extents(&platform.log())?;
    assert!(files.len() > 2, "{files:?}");
    // Whole extents are gone.
    let last = files.last().ok_or("an extent")?;
    let bytes = fs::read(last)?;
    fs::remove_file(last)?;
    assert!(
        Log::verify(&platform.log()).is_ok(),
        "the chain shows nothing"
    );
    let (signed, what) = found(&platform).await?;
    assert_eq!(
        signed,
        platform.newest().await?.ok_or("one")?.checkpoint.position
    );
    assert!(what.contains("ends at position"), "{what}");
    // The last frames of the last extent are gone.
    let mut cut = bytes.clone();
    fs::write(last, &bytes)?;
    let (start, end) = frames(last)?.pop().ok_or("a frame")?;
    cut[start..end].fill(0);
    fs::write(last, &cut)?;
    assert!(
        Log::verify(&platform.log()).is_ok(),
        "the chain shows nothing"
    );
    assert!(found(&platform).await?.1.contains("ends at position"));
    // What was there opens.
    fs::write(last, &bytes)?;
    platform.open(1 << 13).await?.close().await
}

#[tokio::test]
async fn a_zeroed_sector_of_a_signed_frame_is_damage_and_no_torn_tail() -> Outcome {
    let platform = Platform::new()?;
    platform.filled(4, 4).await?;
    let open = platform.open(1 << 13).await?;
    open.client.append(crate::support::sized(1500)).await?;
    open.close().await?;
    let last = extents(&platform.log())?.pop().ok_or("an extent")?;
    let (start, end) = frames(&last)?.pop().ok_or("a frame")?;
    assert!(end - start > 3 * 512);
    let mut bytes = fs::read(&last)?;
    bytes[start + 512..start + 1024].fill(0);
    fs::write(&last, &bytes)?;
    assert!(
        Log::verify(&platform.log())?.torn.is_some(),
        "the chain shows a torn tail"
    );
    found(&platform).await?;
    // Without the checkpoint it would have been cut and forgotten.
    let copy = tempfile::tempdir()?;
    copy_log(&platform.log(), copy.path())?;
    let log = Log::open(copy.path(), options())?;
    assert!(log.head() < platform.newest().await?.ok_or("one")?.checkpoint.position);
    log.close().await;
    Ok(())
}

#[tokio::test]
async fn a_log_that_is_gone_is_not_made_anew() -> Outcome {
    let platform = Platform::new()?;
    platform.filled(5, 5).await?;
    fs::remove_dir_all(platform.log())?;
    let (_, what) = named(&platform.refused().await?)?;
    assert!(what.contains("there is no log"), "{what}");
    assert!(extents(&platform.log())?.is_empty());
    assert!(matches!(
        audit(&platform.log(), &platform.all().await?),
        Err(OpenError::Checkpoint { .. })
    ));
    Ok(())
}

/// The same beginning, then another history, with a chain of its own: what somebody leaves behind who
/// can write the log's files and recomputes every hash.
#[tokio::test]
async fn a_history_that_was_swapped_is_found() -> Outcome {
    let platform = Platform::new()?;
    platform.filled(6, 3).await?;
    let backup = tempfile::tempdir()?;
    copy_log(&platform.log(), backup.path())?;
    {
        let open = platform.open(1 << 13).await?;
        for n in 7..=12 {
            open.append(n).await?;
        }
        open.close().await?;
    }
    let signed = platform.newest().await?.ok_or("one")?.checkpoint.position;
    fs::remove_dir_all(platform.log())?;
    fs::create_dir(platform.log())?;
    copy_log(backup.path(), &platform.log())?;
    // The engine itself recomputes the chain, and goes further than what was signed.
    let forked = Log::open(&platform.log(), options().extent_lens(1 << 13, 1 << 13))?;
    let client = forked.client(crate::support::scope("test", &["**"], &["**"])?);
    while forked.head() < Position(signed.get() + 4) {
        client.append(crate::support::sized(30)).await?;
    }
    forked.close().await;
    assert!(Log::verify(&platform.log()).is_ok(), "its chain is sound");
    let (position, what) = found(&platform).await?;
    assert_eq!(position, signed);
    assert!(
        what.contains("another one") || what.contains("no frame ends"),
        "{what}"
    );
    Ok(())
}

#[tokio::test]
async fn another_log_in_its_place_is_found() -> Outcome {
    let platform = Platform::new()?;
    platform.filled(6, 3).await?;
    let other = Platform::new()?;
    other.filled(12, 3).await?;
    fs::remove_dir_all(platform.log())?;
    fs::rename(other.log(), platform.log())?;
    assert!(found(&platform).await?.1.contains("it is log"));
    Ok(())
}

#[tokio::test]
async fn checkpoints_that_cannot_be_relied_on_are_not_passed_over() -> Outcome {
    let platform = Platform::new()?;
    platform.filled(6, 2).await?;
    let signed = platform.newest().await?.ok_or("one")?;
    let file = platform
        .other("checkpoints")
        .join(signed.name.rsplit_once("checkpoints/").ok_or("a name")?.1);
    let good = fs::read_to_string(&file)?;
    // Another root key, with a key and a signature that agree with each other.
    let (root, secret) = (SecretKey::generate()?, SecretKey::generate()?);
    let foreign = LogKey::certified(secret, &root);
    platform.store.certify(foreign.certificate()).await?;
    assert_eq!(
        platform.all().await?.len(),
        3,
        "a stranger's word takes nothing away"
    );
    let changed = good.replace("position ", "position 9");
    for (bad, what) in [
        (changed.as_str(), "a forged text"),
        (&good[..good.len() - 10], "a truncated note"),
        ("", "nothing"),
        ("tabbify/0000000000000000\n\n", "another platform"),
        ("\u{0}\u{1}", "bytes"),
    ] {
        fs::write(&file, bad)?;
        let refused = platform.newest().await.err().ok_or(what)?;
        assert!(
            matches!(&refused, StoreError::Checkpoint { place, .. } if place.contains("history/")),
            "{what}: {refused}"
        );
        assert!(platform.all().await.is_err(), "{what}");
    }
    // An old one under a new name.
    let older = platform.other("checkpoints/history");
    let mut names: Vec<_> = fs::read_dir(&older)?.collect::<Result<_, _>>()?;
    names.sort_by_key(fs::DirEntry::file_name);
    fs::copy(names[0].path(), &file)?;
    assert!(matches!(
        platform.newest().await,
        Err(StoreError::Checkpoint {
            source: CheckpointError::Malformed(_),
            ..
        })
    ));
    fs::write(&file, good)?;
    platform.open(1 << 13).await?.close().await
}

#[tokio::test]
async fn a_second_log_cannot_sign_the_same_positions() -> Outcome {
    let platform = Platform::new()?;
    platform.filled(3, 3).await?;
    // The same key, the same place, another log that nobody held against the checkpoints.
    let dir = tempfile::tempdir()?;
    let log = Log::open(dir.path(), options())?;
    let client = log.client(crate::support::scope("test", &["**"], &["**"])?);
    let tasks = Tasks::new();
    while log.head() < platform.newest().await?.ok_or("one")?.checkpoint.position {
        client.append(crate::support::sized(30)).await?;
    }
    let (store, trust) = (platform.store.clone(), platform.trust().await?);
    let publisher = Publisher::start(&log, store, trust, platform.key.clone(), None, &tasks);
    // The task finds it first, and ends the process; whoever asks is told as well.
    tasks.token().cancelled().await;
    assert!(
        tasks
            .failure()
            .ok_or("a reason")?
            .contains("log checkpoints")
    );
    let refused = publisher.finish().await.err().ok_or("it signs")?;
    let shown = tabbify_process::chain(&refused).to_string();
    assert!(shown.contains("two logs"), "{shown}");
    Ok(())
}

#[tokio::test]
async fn a_new_key_goes_on_and_both_count() -> Outcome {
    let mut platform = Platform::new()?;
    platform.filled(4, 2).await?;
    platform.key = LogKey::certified(SecretKey::generate()?, &platform.root);
    let open = platform.open(1 << 13).await?;
    open.append(5).await?;
    open.close().await?;
    let all = platform.all().await?;
    assert_eq!(all.len(), 3);
    let audited = audit(&platform.log(), &all)?;
    assert_eq!((audited.checkpoints, audited.upto), (3, position(6)));
    assert_eq!(audited.signed_upto, Some(position(6)));
    Ok(())
}

#[tokio::test]
async fn the_task_signs_what_is_durable_by_itself() -> Outcome {
    let platform = Platform::new()?;
    let open = platform.open(1 << 13).await?;
    for n in 1..=3 {
        open.append(n).await?;
    }
    let signed = async {
        loop {
            let newest = platform.newest().await?;
            if newest.is_some_and(|signed| signed.checkpoint.position == position(4)) {
                return Ok::<_, Wrong>(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), signed).await??;
    open.close().await?;
    // Nothing new, nothing written: at most one for each of the four positions that were ends.
    let count = platform.all().await?.len();
    platform.open(1 << 13).await?.close().await?;
    assert_eq!(platform.all().await?.len(), count);
    Ok(())
}

#[tokio::test]
async fn a_log_without_checkpoints_is_followed_from_its_beginning() -> Outcome {
    let platform = Platform::new()?;
    let log = Log::open(&platform.log(), options().extent_lens(1 << 13, 1 << 13))?;
    let client = log.client(crate::support::scope("test", &["**"], &["**"])?);
    for _ in 0..30 {
        client.append(crate::support::sized(300)).await?;
    }
    log.close().await;
    assert!(audit_open(&platform.log(), &[])?.is_none());
    platform.open(1 << 13).await?.close().await?;
    let all = platform.all().await?;
    let audited = audit(&platform.log(), &all)?;
    assert_eq!((audited.upto, audited.frames), (position(30), 30));
    assert_eq!(audited.signed_upto, Some(position(30)));
    Ok(())
}

#[tokio::test]
async fn an_open_log_is_audited_up_to_its_checkpoint() -> Outcome {
    let platform = Platform::new()?;
    let open = platform.open(1 << 13).await?;
    for n in 1..=10 {
        open.append(n).await?;
    }
    open.publisher.finish().await?;
    let all = platform.all().await?;
    open.append(11).await?;
    assert!(matches!(
        audit(&platform.log(), &all),
        Err(OpenError::Locked { .. })
    ));
    let audited = audit_open(&platform.log(), &all)?.ok_or("a checkpoint")?;
    assert_eq!(audited.upto, position(13));
    assert_eq!(audited.log_id, open.log.log_id());
    // The same while a byte of it is another.
    let first = extents(&platform.log())?.remove(0);
    let mut bytes = fs::read(&first)?;
    bytes[512 + 120] ^= 1;
    fs::write(&first, &bytes)?;
    assert!(matches!(
        audit_open(&platform.log(), &all),
        Err(OpenError::Damaged { .. })
    ));
    bytes[512 + 120] ^= 1;
    fs::write(&first, &bytes)?;
    open.close().await
}

#[tokio::test]
async fn a_bucket_keeps_checkpoints_as_a_directory_does() -> Outcome {
    let mut platform = Platform::new()?;
    let bucket: Arc<dyn ObjectStore> = Arc::new(LimitStore::new(InMemory::new(), 1));
    platform.store = CheckpointStore::new(bucket, At::from("a/b"), "memory:///a/b");
    platform.filled(9, 3).await?;
    let newest = platform.newest().await?.ok_or("one")?;
    assert!(
        newest.name.starts_with("memory:///a/b/history/"),
        "{}",
        newest.name
    );
    assert_eq!(platform.all().await?.len(), 3);
    let lost = platform
        .store
        .give_up_beyond(Position(newest.checkpoint.position.get() - 1));
    assert_eq!(lost.await?, 1);
    assert_eq!(platform.all().await?.len(), 2);
    Ok(())
}

#[tokio::test]
async fn every_event_can_be_proven_and_no_other() -> Outcome {
    let platform = Platform::new()?;
    platform.filled(11, 4).await?;
    let all = platform.all().await?;
    let (first, newest) = (&all[0], all.last().ok_or("one")?);
    let certificates = vec![platform.key.certificate().clone()];
    let upto = newest.checkpoint.position;
    for n in 1..=upto.get() {
        for since in [None, Some(first)] {
            let proof = prove(
                &platform.log(),
                Position(n),
                newest,
                since,
                certificates.clone(),
            )?;
            let text = serde_json::to_vec_pretty(&proof)?;
            let proven = Proof::read(&text)?.check(platform.anchor())?;
            assert_eq!(proven.event.position, Position(n));
            assert_eq!(proven.signed_upto, upto);
            assert_eq!(proven.log_id, newest.checkpoint.log_id);
            let from = proven.since.map(|(_, position)| position);
            assert_eq!(from, since.map(|signed| signed.checkpoint.position));
        }
    }
    for n in [0, upto.get() + 1] {
        let refused = prove(&platform.log(), Position(n), newest, None, Vec::new());
        assert!(matches!(refused, Err(ProofError::Beyond { .. })), "{n}");
    }
    // Successive checkpoints go on from each other, and not the other way round.
    for pair in all.windows(2) {
        let (earlier, later) = (&pair[0], &pair[1]);
        let one = prove(
            &platform.log(),
            Position(1),
            later,
            Some(earlier),
            certificates.clone(),
        )?;
        one.check(platform.anchor())?;
        let back = prove(
            &platform.log(),
            Position(1),
            earlier,
            Some(later),
            Vec::new(),
        );
        assert!(matches!(back, Err(ProofError::NotExtended)));
    }
    Ok(())
}

/// Sets what a JSON pointer names.
fn with(proof: &Value, at: &str, value: Value) -> Result<Vec<u8>, Wrong> {
    let mut changed = proof.clone();
    let place = changed.pointer_mut(at).ok_or(at)?;
    assert!(*place != value, "{at} is as it was");
    *place = value;
    Ok(serde_json::to_vec(&changed)?)
}

/// Other values for every field of a proof: most of them out of another proof that holds.
fn changes(
    proof: &Value,
    other: &Value,
    [first, second, newest]: [&String; 3],
    key: &str,
) -> Vec<(&'static str, Value)> {
    vec![
        ("/format", "tabbify-audit-proof-2".into()),
        ("/position", 3.into()),
        ("/position", 6.into()),
        ("/event", other["event"].clone()),
        ("/event/actor", "somebody".into()),
        ("/event/data", json!({"n": 4})),
        ("/event/at", "2020-01-01T00:00:00.000Z".into()),
        ("/frame", other["frame"].clone()),
        ("/frame", "".into()),
        ("/frame", "not base64".into()),
        ("/index", 0.into()),
        ("/index", u64::MAX.into()),
        ("/path", other["path"].clone()),
        ("/path", json!([])),
        ("/path/0", other["path"][1].clone()),
        ("/path/0", "AAAA".into()),
        ("/path", vec![proof["path"][0].clone(); 66].into()),
        ("/checkpoint", first.clone().into()),
        ("/checkpoint", newest.replace("position", "pos1tion").into()),
        ("/certificates", json!([])),
        ("/certificates/0/signature", "AAAA".into()),
        ("/certificates/0/root", key.into()),
        ("/certificates/0/log_key", key.into()),
        ("/since/checkpoint", second.clone().into()),
        ("/since/checkpoint", "".into()),
        ("/since/path", other["since"]["path"].clone()),
        ("/since/path", json!([])),
    ]
}

#[tokio::test]
async fn a_proof_with_any_field_changed_is_refused() -> Outcome {
    let platform = Platform::new()?;
    platform.filled(11, 4).await?;
    let all = platform.all().await?;
    let (first, newest) = (&all[0], all.last().ok_or("one")?);
    let certificates = vec![platform.key.certificate().clone()];
    let one = prove(
        &platform.log(),
        Position(4),
        newest,
        Some(first),
        certificates.clone(),
    )?;
    let proof = serde_json::to_value(&one)?;
    Proof::read(&serde_json::to_vec(&proof)?)?.check(platform.anchor())?;
    let two = prove(
        &platform.log(),
        Position(6),
        newest,
        Some(&all[1]),
        certificates,
    )?;
    let other = serde_json::to_value(&two)?;
    let stranger = Platform::new()?;
    let key = stranger.root.public().to_string();
    let notes = [&first.note, &all[1].note, &newest.note];
    for (at, value) in changes(&proof, &other, notes, &key) {
        let text = with(&proof, at, value)?;
        let checked = Proof::read(&text).and_then(|proof| proof.check(platform.anchor()));
        assert!(
            checked.is_err(),
            "{at}: {:?}",
            checked.map(|proven| proven.event)
        );
    }
    for (object, at) in [("", "more"), ("/event", "more"), ("/since", "more")] {
        let mut changed = proof.clone();
        let place = changed.pointer_mut(object).and_then(|v| v.as_object_mut());
        place.ok_or("an object")?.insert(at.to_owned(), 1.into());
        let text = serde_json::to_vec(&changed)?;
        let checked = Proof::read(&text).and_then(|proof| proof.check(platform.anchor()));
        assert!(checked.is_err(), "{object}/{at}");
    }
    // The whole proof, of somebody whom the reader does not know.
    assert!(matches!(
        one.check(stranger.anchor()),
        Err(ProofError::Certificate(_))
    ));
    let trust = Trust::new(stranger.anchor());
    assert!(trust.platform() != &newest.checkpoint.platform);
    Ok(())
}
