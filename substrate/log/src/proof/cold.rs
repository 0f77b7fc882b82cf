//! Stored extents: what a store that is away, has lost or damaged something takes from readers, and that
//! it takes nothing from writers; and every flipped byte of what is stored.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tabbify_api::log::{Append, AppendError, Filter, ReadError};
use tabbify_types::{Position, Rev};

use super::Wrong;
use super::engine::{DIR, Engine, SEGMENTS, Seal, event, tiered};
use crate::Log;
use crate::cold::{ColdError, Done};
use crate::disk::sim::{SimDisk, State};
use crate::disk::{Disk as _, Tiered};
use crate::error::OpenError;
use crate::index::page::PAGE_LEN;

const EXTENT_LEN: u64 = 8192;
/// Events of the log; the first of them are stored.
const EVENTS: u128 = 12;
/// One byte in so many is flipped under a whole log; a prime.
const SAMPLE_EVERY: usize = 13;

fn one(n: u128) -> Append {
    let key = format!("k{}", n % 3);
    Append::of(vec![event(n * 0x1_0000_0001, SEGMENTS[0], &key, 2000)])
}

fn open(disk: &SimDisk) -> Result<Engine, OpenError> {
    Engine::open_sealing(disk, EXTENT_LEN, Seal::Always)
}

/// Every event, whole.
async fn all(engine: &Engine) -> Result<Vec<String>, Wrong> {
    let events = engine.read_all().await?;
    Ok(events.iter().map(|event| format!("{event:?}")).collect())
}

/// A log of which every extent that may be is only in the store; and what it said before it was.
async fn stored_log() -> Result<(State, Vec<String>), Wrong> {
    stored_log_of(one).await
}

/// The same, of these batches.
async fn stored_log_of(batch: impl Fn(u128) -> Append) -> Result<(State, Vec<String>), Wrong> {
    let disk = SimDisk::default();
    let mut engine = open(&disk)?;
    for n in 1..=EVENTS {
        engine.append(batch(n))?;
    }
    let before = all(&engine).await?;
    let local = disk.state().ending_in(".extent").len();
    while engine.cool()? == Done::More {}
    let state = disk.state();
    let stored = state.ending_in(".cold").len();
    if stored < 3
        || state.ending_in(".extent").len() + stored != local
        || stored != state.objects.len()
    {
        return Err(format!("{stored} of {local} extents are stored").into());
    }
    Ok((state, before))
}

#[tokio::test]
async fn what_is_stored_is_read_as_before() {
    let (state, before) = stored_log().await.unwrap();
    let disk = SimDisk::of(state.clone());
    let mut engine = open(&disk).unwrap();
    assert_eq!(all(&engine).await.unwrap(), before);
    // One key's events, and a batch whose first answer is in the store.
    let key = Filter {
        key: Some("k1".to_owned()),
        segments: vec![SEGMENTS[0].parse().unwrap()],
        ..Filter::default()
    };
    let page = engine.client().read(key, Position(0), 100).await.unwrap();
    let positions: Vec<u64> = page.events.iter().map(|it| it.position.get()).collect();
    assert_eq!(positions, [1, 4, 7, 10]);
    assert_eq!(engine.append(one(2)).unwrap().first, Position(2));
    assert_eq!(engine.append(one(13)).unwrap().first, Position(13));
    drop(engine);
    let verified = Log::verify_on(&tiered(&disk), Path::new(DIR)).unwrap();
    assert_eq!(verified.head, Position(13));
}

/// The log goes on, and what is stored cannot be read; answers what is said then.
async fn goes_on(disk: &SimDisk) -> Result<String, Wrong> {
    let mut engine = open(disk)?;
    for n in [20, 21, 22] {
        engine.append(one(n))?;
    }
    // Of a log that cannot be read at its beginning the end is read.
    let after = Position(u64::try_from(EVENTS)?);
    let page = engine.client().read(Filter::default(), after, 10).await?;
    if page.events.len() != 3 {
        return Err(format!("{} new events", page.events.len()).into());
    }
    match engine.read_all().await {
        Ok(_) => Err("what is not there is read".into()),
        Err(error) => match error.downcast::<ReadError>().map(|error| *error) {
            Ok(ReadError::Stored { detail }) => Ok(detail),
            other => Err(format!("{other:?}").into()),
        },
    }
}

#[tokio::test]
async fn a_store_that_is_away_takes_nothing_from_writers() {
    let (state, before) = stored_log().await.unwrap();
    let disk = SimDisk::of(state);
    disk.faults(|faults| faults.objects_away = true);
    let told = goes_on(&disk).await.unwrap();
    assert!(
        told.contains("cannot be reached") && told.contains("Nothing is lost"),
        "{told}"
    );
    let verified = Log::verify_on(&tiered(&disk), Path::new(DIR));
    assert!(
        matches!(&verified, Err(OpenError::Stored { source, .. }) if source.passes()),
        "{verified:?}"
    );
    disk.faults(|faults| faults.objects_away = false);
    let again = all(&open(&disk).unwrap()).await.unwrap();
    assert_eq!(again[..before.len()], before);
}

#[tokio::test(start_paused = true)]
async fn an_index_that_is_damaged_meanwhile_refuses_batches_and_not_the_log() {
    // Nothing in memory tells of a key that was last written long ago.
    let batch = |n: u128| {
        let key = if n < EVENTS / 2 { "early" } else { "late" };
        Append::of(vec![event(n, SEGMENTS[0], key, 2000)])
    };
    let (state, _) = stored_log_of(batch).await.unwrap();
    // It expects nothing: the index is asked for the revision that it gets.
    let next = || Append::of(vec![event(20, SEGMENTS[0], "early", 10)]);
    let mut refused = 0;
    for (run, bytes) in state.ending_in(".run") {
        for at in (100..bytes.len()).step_by(PAGE_LEN) {
            let disk = SimDisk::of(state.clone());
            let mut engine = open(&disk).unwrap();
            let file = disk.open_to_write(&run).unwrap();
            file.write_all_at(&[bytes[at] ^ 1], at as u64).unwrap();
            disk.faults(|faults| faults.objects_away = true);
            match engine.append(next()) {
                Ok(_) => {}
                Err(AppendError::Stopping) => refused += 1,
                Err(other) => panic!("{} byte {at}: {other}", run.display()),
            }
            disk.faults(|faults| faults.objects_away = false);
            // A store that did not answer is left alone for a while.
            tokio::time::advance(Duration::from_secs(3)).await;
            let rev = engine.append(next()).unwrap().revs;
            assert_eq!(rev, [Rev(6)]);
        }
    }
    assert!(refused > 0, "no page was needed");
}

#[tokio::test]
async fn an_object_that_is_missing_is_named_with_what_to_do() {
    let (mut state, _) = stored_log().await.unwrap();
    let mut objects = state.objects.as_ref().clone();
    let (name, _) = objects.pop_first().unwrap();
    state.objects = Arc::new(objects);
    let disk = SimDisk::of(state);
    let told = goes_on(&disk).await.unwrap();
    let what = [name.as_str(), "is missing", "tabbify log restore"];
    assert!(what.iter().all(|part| told.contains(part)), "{told}");
}

#[tokio::test]
async fn without_a_store_the_configuration_is_named() {
    let (state, _) = stored_log().await.unwrap();
    let local = Tiered::new(Arc::new(SimDisk::of(state)), None);
    let refused = Log::verify_on(&local, Path::new(DIR));
    let Err(OpenError::Stored { source, .. }) = refused else {
        panic!("{refused:?}");
    };
    assert!(matches!(source, ColdError::NoStore { .. }), "{source}");
    assert!(source.to_string().contains("[log.cold]"), "{source}");
}

#[tokio::test]
async fn flipped_bytes_of_what_is_stored_are_reported_and_never_read() {
    let (state, before) = stored_log().await.unwrap();
    let mut reported = 0;
    let places: Vec<(String, usize)> = state
        .objects
        .iter()
        .flat_map(|(name, object)| (0..object.len()).map(move |at| (name.clone(), at)))
        .collect();
    for (name, at) in places.into_iter().step_by(SAMPLE_EVERY) {
        let mut objects = state.objects.as_ref().clone();
        let object = Arc::make_mut(objects.get_mut(&name).unwrap());
        object[at] ^= 1 << (at % 8);
        let mut flipped = state.clone();
        flipped.objects = Arc::new(objects);
        let disk = SimDisk::of(flipped);
        let mut engine = open(&disk).unwrap();
        match all(&engine).await {
            // The index in the object: what is read is the record's.
            Ok(all) => assert!(all == before, "{name} byte {at}"),
            Err(error) => {
                let told = error.to_string();
                assert!(
                    told.contains(&name) && told.contains("is damaged"),
                    "{told}"
                );
                reported += 1;
            }
        }
        engine.append(one(50)).unwrap();
    }
    assert!(reported > 20, "{reported} of the flips are in blocks");
}

#[tokio::test]
async fn flipped_bytes_of_a_record_are_reported() {
    let (state, _) = stored_log().await.unwrap();
    let records: Vec<PathBuf> = state.ending_in(".cold").into_keys().collect();
    let record = &records[1];
    let len = state.ending_in(".cold")[record].len();
    for at in (0..len).step_by(SAMPLE_EVERY) {
        let disk = SimDisk::of(state.clone());
        let file = disk.open_to_write(record).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at as u64).unwrap();
        file.write_all_at(&[byte[0] ^ 0x10], at as u64).unwrap();
        let refused = Log::verify_on(&tiered(&disk), Path::new(DIR)).err();
        let Some(OpenError::Stored { source, .. }) = refused else {
            panic!("byte {at}: {refused:?}");
        };
        let told = matches!(source, ColdError::Record { .. } | ColdError::Newer { .. });
        assert!(told, "byte {at}: {source}");
    }
}

#[tokio::test]
async fn an_object_that_was_damaged_is_put_again_before_its_extent_goes() {
    let (state, before) = stored_log().await.unwrap();
    // The extents are back, as from a copy, and an object of them is not what it was.
    let whole = SimDisk::default();
    let mut engine = open(&whole).unwrap();
    for n in 1..=EVENTS {
        engine.append(one(n)).unwrap();
    }
    let mut with_both = whole.state();
    drop(engine);
    let mut objects = state.objects.as_ref().clone();
    let (name, object) = objects.iter_mut().next().unwrap();
    let name = name.clone();
    let good = Arc::clone(object);
    Arc::make_mut(object)[100] ^= 1;
    with_both.objects = Arc::new(objects);
    let disk = SimDisk::of(with_both);
    let engine = open(&disk).unwrap();
    while engine.cool().unwrap() == Done::More {}
    assert_eq!(disk.state().objects[&name], good);
    assert_eq!(all(&engine).await.unwrap(), before);
}
