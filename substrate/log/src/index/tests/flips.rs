//! Every byte of the index: a flip is seen by the checksum of its page, and whatever is damaged, cut or
//! gone, the log answers as it did.

use std::path::Path;
use std::sync::Arc;

use tabbify_api::log::{Append, Expect, Filter};

use super::super::page::{PAGE_LEN, Page};
use super::*;
use crate::disk::sim::{SimDisk, State};
use crate::proof::engine::{Engine, SEGMENTS as PROVEN, Seal, event as proven};
use crate::proof::long;

const SHORT_EXTENT: u64 = 1 << 14;
const KEYS: u128 = 5;
const BATCHES: u128 = 42;
/// One byte in so many is flipped under an open log; a prime. The long version flips one in seven.
const SAMPLE_EVERY: usize = 2003;
const SAMPLE_EVERY_LONG: usize = 7;

fn batch(n: u128) -> Append {
    let (segment, key) = (
        PROVEN[usize::from(n.is_multiple_of(2))],
        format!("k{}", n % KEYS),
    );
    Append::of(vec![
        proven(n * 10, segment, &key, 1500),
        proven(n * 10 + 1, PROVEN[2], &key, 10),
    ])
}

fn opened(disk: &SimDisk) -> Result<Engine, OpenError> {
    Engine::open_sealing(disk, SHORT_EXTENT, Seal::Always)
}

/// A log with runs of single extents and a merged one.
fn indexed() -> Result<State, Wrong> {
    let disk = SimDisk::default();
    let mut engine = opened(&disk)?;
    for n in 1..=BATCHES {
        engine.append(batch(n))?;
    }
    drop(engine);
    let state = disk.state();
    let runs = state.ending_in(".run").len();
    match runs {
        2.. => Ok(state),
        _ => Err(format!("{runs} runs").into()),
    }
}

/// Asks for ids, heads, places and histories in every part of the log.
async fn answers(disk: &SimDisk) -> Result<(), Wrong> {
    let mut engine = opened(disk)?;
    for n in [1, 2, 9, 20, BATCHES] {
        let known = engine.append(batch(n))?;
        if known.first != Position(u64::try_from(2 * n - 1)?) {
            return Err(format!("batch {n} is at {}", known.first).into());
        }
    }
    for n in 0..KEYS {
        let of_key = (1..=BATCHES).filter(|batch| batch % KEYS == n);
        let rev = Rev(of_key.clone().count() as u64);
        let (segment, key): (Segment, _) = (PROVEN[2].parse()?, format!("k{n}"));
        let filter = Filter {
            key: Some(key.clone()),
            ..Filter::segments([(&segment).into()])
        };
        let page = engine.client().read(filter, Position(0), 100).await?;
        let found = page.events.iter().map(|event| event.position.get());
        if !found.eq(of_key.map(|batch| u64::try_from(2 * batch).unwrap_or(0))) {
            return Err(format!("the history of {key} is another").into());
        }
        // Written only where the last revision is known.
        let id = 100_000 + n;
        let next = Append::of(vec![proven(id, PROVEN[2], &key, 1)]);
        engine.append(next.expecting(segment, key, Expect::Rev(rev)))?;
    }
    let all = engine.read_all().await?;
    if all.len() as u128 != 2 * BATCHES + KEYS {
        return Err(format!("{} events", all.len()).into());
    }
    Ok(())
}

#[test]
fn every_flipped_byte_of_a_run_is_seen() {
    let state = indexed().unwrap();
    let (mut seen, mut pages) = (0, 0);
    for (path, bytes) in state.ending_in(".run") {
        assert_eq!(bytes.len() % PAGE_LEN, 0);
        for (number, page) in bytes.chunks(PAGE_LEN).enumerate() {
            let number = u32::try_from(number).unwrap();
            let page: [u8; PAGE_LEN] = page.try_into().unwrap();
            assert!(
                Page::check(Box::new(page), number).is_some(),
                "{}",
                path.display()
            );
            pages += 1;
            for at in 0..PAGE_LEN {
                let mut flipped = Box::new(page);
                flipped[at] ^= 1 << (at % 8);
                assert!(
                    Page::check(flipped, number).is_none(),
                    "{} page {number} byte {at}",
                    path.display()
                );
                seen += 1;
            }
        }
    }
    assert!(seen == pages * PAGE_LEN && pages >= 14, "{pages} pages");
}

/// The log with a file of its index changed.
fn changed(
    state: &State,
    path: &Path,
    change: impl FnOnce(&mut Vec<u8>),
) -> Result<SimDisk, Wrong> {
    let mut bytes = state.ending_in(".run")[path].as_ref().clone();
    change(&mut bytes);
    let disk = SimDisk::of(state.clone());
    disk.remove(path)?;
    disk.create(path)?.write_all_at(&bytes, 0)?;
    Ok(SimDisk::of(disk.state()))
}

#[tokio::test]
async fn a_log_with_a_flipped_byte_in_its_index_answers_as_before() {
    let state = indexed().unwrap();
    answers(&SimDisk::of(state.clone())).await.unwrap();
    let every = if long() {
        SAMPLE_EVERY_LONG
    } else {
        SAMPLE_EVERY
    };
    for (path, bytes) in state.ending_in(".run") {
        for at in (0..bytes.len()).step_by(every) {
            let disk = changed(&state, &path, |bytes| bytes[at] ^= 0x10).unwrap();
            let wrong = answers(&disk).await.err();
            assert!(wrong.is_none(), "{} byte {at}: {wrong:?}", path.display());
        }
    }
}

#[tokio::test]
async fn a_log_with_a_cut_or_missing_index_answers_as_before() {
    let state = indexed().unwrap();
    for (path, bytes) in state.ending_in(".run") {
        let cuts = [
            0,
            1,
            PAGE_LEN,
            bytes.len() - PAGE_LEN,
            bytes.len() - 512,
            bytes.len() - 1,
        ];
        for cut in cuts {
            let disk = changed(&state, &path, |bytes| bytes.truncate(cut)).unwrap();
            let wrong = answers(&disk).await.err();
            assert!(
                wrong.is_none(),
                "{} cut at {cut}: {wrong:?}",
                path.display()
            );
        }
        // Its sectors are there in part, as after a loss of power.
        for kept in [0, 1] {
            let disk = changed(&state, &path, |bytes| {
                for (n, sector) in bytes.chunks_mut(512).enumerate() {
                    if n % 2 == kept {
                        sector.fill(0);
                    }
                }
            })
            .unwrap();
            answers(&disk).await.unwrap();
        }
        let disk = SimDisk::of(state.clone());
        disk.remove(&path).unwrap();
        answers(&SimDisk::of(disk.state())).await.unwrap();
    }
}

#[tokio::test]
async fn flips_under_an_open_log_are_mended_by_whoever_meets_them() {
    let state = indexed().unwrap();
    let runs: Vec<_> = state.ending_in(".run").into_iter().collect();
    let disk = SimDisk::of(state);
    let mut engine = opened(&disk).unwrap();
    for (path, bytes) in &runs {
        let file = disk.open_to_write(path).unwrap();
        for page in (0..bytes.len()).step_by(PAGE_LEN) {
            let at = page + 9;
            file.write_all_at(&[bytes[at] ^ 4], at as u64).unwrap();
        }
    }
    for n in 1..=BATCHES {
        let known = engine.append(batch(n)).unwrap();
        assert_eq!(known.first.get(), u64::try_from(2 * n - 1).unwrap());
    }
    let all: Vec<Arc<_>> = engine.read_all().await.unwrap();
    assert_eq!(all.len() as u128, 2 * BATCHES);
}
