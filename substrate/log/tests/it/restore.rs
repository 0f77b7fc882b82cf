//! Restoring: what is put together from copies is verified before it counts, what was there is kept,
//! and what is lost is said.

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::{ProptestConfig, any, prop_assert, proptest};
use tabbify_log::{Log, OpenError, RestoreError, Restored, audit, restore};
use tabbify_types::Position;

use crate::signed::{Platform, frames};
use crate::support::{Outcome, Wrong, copy_log, extents, options, scope, sized};

/// A copy of the log's extents as they are now.
fn backup(platform: &Platform, name: &str) -> Result<PathBuf, Wrong> {
    let to = platform.other(name);
    fs::create_dir(&to)?;
    copy_log(&platform.log(), &to)?;
    Ok(to)
}

fn content(dir: &Path) -> Result<Vec<(PathBuf, Vec<u8>)>, Wrong> {
    let mut all = Vec::new();
    for path in extents(dir)? {
        let name = path.file_name().ok_or("a name")?.into();
        all.push((name, fs::read(&path)?));
    }
    Ok(all)
}

async fn restored(platform: &Platform, from: &[PathBuf]) -> Result<Restored, Wrong> {
    Ok(restore(
        &platform.log(),
        from,
        &platform.all().await?,
        false,
    )?)
}

/// The platform opens its log again, goes on, and everything agrees.
async fn goes_on(platform: &Platform) -> Outcome {
    let open = platform.open(1 << 13).await?;
    open.append(1000).await?;
    open.close().await?;
    audit(&platform.log(), &platform.all().await?)?;
    Ok(())
}

#[tokio::test]
async fn a_damaged_log_is_made_whole_from_a_copy_and_itself() -> Outcome {
    let platform = Platform::new()?;
    platform.filled(32, 8).await?;
    let copy = backup(&platform, "copy")?;
    // The copy is older than the log: what follows is only in the log itself.
    let open = platform.open(1 << 13).await?;
    for n in 33..=50 {
        open.append(n).await?;
    }
    open.close().await?;
    let whole = content(&platform.log())?;
    let head = Log::verify(&platform.log())?.head;
    // A flipped byte, a missing extent, and one cut short, all within what the copy has.
    let files = extents(&platform.log())?;
    let mut bytes = fs::read(&files[0])?;
    bytes[700] ^= 1;
    fs::write(&files[0], &bytes)?;
    fs::remove_file(&files[1])?;
    assert!(matches!(
        Log::verify(&platform.log()),
        Err(OpenError::Damaged { .. })
    ));

    let done = restored(&platform, std::slice::from_ref(&copy)).await?;
    assert_eq!((done.head, done.signed_upto), (head, Some(head)));
    assert!(
        content(&platform.log())? == whole,
        "not bit for bit what it was"
    );
    assert_eq!(
        done.taken.iter().map(|taken| taken.events).sum::<u64>(),
        head.get()
    );
    assert!(done.taken.iter().all(|taken| taken.events > 0));
    // What was there is kept, damage and all.
    let aside = done.aside.ok_or("the damaged log")?;
    assert_eq!(
        fs::read(aside.join(files[0].file_name().ok_or("a name")?))?,
        bytes
    );
    goes_on(&platform).await
}

#[tokio::test]
async fn a_log_that_is_gone_comes_back_from_a_copy() -> Outcome {
    let platform = Platform::new()?;
    platform.filled(20, 5).await?;
    let whole = content(&platform.log())?;
    let copy = backup(&platform, "copy")?;
    fs::remove_dir_all(platform.log())?;
    let done = restored(&platform, &[copy]).await?;
    assert_eq!(done.aside, None);
    assert!(content(&platform.log())? == whole);
    goes_on(&platform).await
}

#[tokio::test]
async fn two_damaged_copies_make_a_whole_log() -> Outcome {
    let platform = Platform::new()?;
    platform.filled(30, 10).await?;
    let whole = content(&platform.log())?;
    let (one, two) = (backup(&platform, "one")?, backup(&platform, "two")?);
    // Every other frame is damaged in each, in the other half.
    for (dir, odd) in [(&one, 0), (&two, 1)] {
        for path in extents(dir)? {
            let mut bytes = fs::read(&path)?;
            for (n, (start, _)) in frames(&path)?.into_iter().enumerate() {
                if n % 2 == odd {
                    bytes[start + 130] ^= 0x40;
                }
            }
            fs::write(&path, bytes)?;
        }
    }
    fs::remove_dir_all(platform.log())?;
    let alone = restore(&platform.log(), std::slice::from_ref(&two), &[], false);
    let reached = match alone {
        Ok(done) => done.head,
        Err(error) => return Err(error.into()),
    };
    assert_eq!(reached, Position(1), "the second frame of it is damaged");
    fs::remove_dir_all(platform.log())?;
    restored(&platform, &[one, two]).await?;
    assert!(content(&platform.log())? == whole);
    goes_on(&platform).await
}

#[tokio::test]
async fn a_swapped_history_gives_way_to_the_true_one() -> Outcome {
    let platform = Platform::new()?;
    platform.filled(6, 3).await?;
    let early = backup(&platform, "early")?;
    {
        let open = platform.open(1 << 13).await?;
        for n in 7..=12 {
            open.append(n).await?;
        }
        open.close().await?;
    }
    let truth = backup(&platform, "truth")?;
    let whole = content(&truth)?;
    // Somebody goes on from an early copy with a history of their own.
    fs::remove_dir_all(platform.log())?;
    fs::rename(&early, platform.log())?;
    let forked = Log::open(&platform.log(), options().extent_lens(1 << 13, 1 << 13))?;
    let client = forked.client(scope("test", &["**"], &["**"])?);
    for _ in 0..20 {
        client.append(sized(30)).await?;
    }
    forked.close().await;
    let lie = backup(&platform, "lie")?;
    // A copy of the lie is found out, and nothing changes.
    let before = content(&platform.log())?;
    let refused = restored(&platform, std::slice::from_ref(&lie)).await;
    let refused = refused.err().ok_or("a lie was restored")?.to_string();
    assert!(
        refused.contains("lie") && refused.contains("give another copy"),
        "{refused}"
    );
    assert!(content(&platform.log())? == before);
    restored(&platform, &[truth]).await?;
    assert!(content(&platform.log())? == whole);
    goes_on(&platform).await
}

#[tokio::test]
async fn a_loss_must_be_accepted_and_is_named() -> Outcome {
    let platform = Platform::new()?;
    platform.filled(9, 3).await?;
    let early = backup(&platform, "early")?;
    let reached = Log::verify(&early)?.head;
    {
        let open = platform.open(1 << 13).await?;
        for n in 10..=12 {
            open.append(n).await?;
        }
        open.close().await?;
    }
    let signed = platform.newest().await?.ok_or("one")?.checkpoint.position;
    fs::remove_dir_all(platform.log())?;
    let all = platform.all().await?;
    let refused = restore(&platform.log(), std::slice::from_ref(&early), &all, false);
    assert!(
        matches!(&refused, Err(RestoreError::Loss { head, signed: upto })
            if *head == reached && *upto == signed),
        "{refused:?}"
    );
    assert!(!platform.log().exists(), "nothing was put in place");
    let done = restore(&platform.log(), &[early], &all, true)?;
    assert_eq!((done.head, done.signed_upto), (reached, Some(signed)));
    // As long as the loss is not given up, the log does not open.
    assert!(matches!(
        platform.refused().await?,
        OpenError::Checkpoint { .. }
    ));
    assert!(platform.store.give_up_beyond(reached).await? > 0);
    goes_on(&platform).await
}

#[tokio::test]
async fn a_tail_that_no_copy_has_can_be_given_up() -> Outcome {
    let platform = Platform::new()?;
    platform.filled(9, 3).await?;
    let last = extents(&platform.log())?.pop().ok_or("an extent")?;
    let (start, end) = frames(&last)?.pop().ok_or("a frame")?;
    let mut bytes = fs::read(&last)?;
    bytes[start..end].fill(0);
    fs::write(&last, bytes)?;
    let (before, all) = (content(&platform.log())?, platform.all().await?);
    let refused = restore(&platform.log(), &[], &all, false);
    assert!(
        matches!(refused, Err(RestoreError::Loss { .. })),
        "{refused:?}"
    );
    let done = restore(&platform.log(), &[], &all, true)?;
    assert!(
        done.signed_upto > Some(done.head) && done.aside.is_none(),
        "{done:?}"
    );
    assert!(
        content(&platform.log())? == before,
        "what is left is in place"
    );
    assert_eq!(platform.store.give_up_beyond(done.head).await?, 1);
    goes_on(&platform).await
}

#[tokio::test]
async fn what_needs_no_repair_or_has_no_copy_is_left_alone() -> Outcome {
    let platform = Platform::new()?;
    platform.filled(9, 3).await?;
    let copy = backup(&platform, "copy")?;
    let all = platform.all().await?;
    let before = content(&platform.log())?;
    let intact = restore(&platform.log(), std::slice::from_ref(&copy), &all, false);
    assert!(
        matches!(intact, Err(RestoreError::Intact { .. })),
        "{intact:?}"
    );
    assert!(content(&platform.log())? == before);

    let (log, _) = crate::support::open(&platform.log(), 1 << 13)?;
    let in_use = restore(&platform.log(), &[copy], &all, false);
    assert!(
        matches!(in_use, Err(RestoreError::Open(OpenError::Locked { .. }))),
        "{in_use:?}"
    );
    log.close().await;

    let nowhere = restore(&platform.other("none"), &[], &[], false);
    assert!(matches!(nowhere, Err(RestoreError::Nothing)), "{nowhere:?}");
    let missing = restore(&platform.log(), &[platform.other("gone")], &all, false);
    assert!(
        matches!(missing, Err(RestoreError::Open(OpenError::Io { .. }))),
        "{missing:?}"
    );
    let left: Vec<_> = fs::read_dir(platform.home.path())?
        .map(|entry| Ok(entry?.file_name()))
        .collect::<Result<_, std::io::Error>>()?;
    assert!(
        !left
            .iter()
            .any(|name| name.to_string_lossy().contains("restoring")),
        "{left:?}"
    );
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Any bytes under the names of extents, with the beginnings of frames among them.
    #[test]
    fn no_bytes_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..4096),
        marks in proptest::collection::vec(0_usize..8, 0..4),
    ) {
        let home = tempfile::tempdir()?;
        let (copy, log) = (home.path().join("copy"), home.path().join("log"));
        fs::create_dir(&copy)?;
        let mut bytes = bytes;
        for mark in marks {
            let at = mark * 512;
            if let Some(place) = bytes.get_mut(at..at + 8) {
                place.copy_from_slice(b"tabFRAME");
            }
        }
        for name in [1_u64, 2, u64::MAX] {
            fs::write(copy.join(format!("{name:020}.extent")), &bytes)?;
        }
        prop_assert!(restore(&log, &[copy], &[], true).is_err());
        prop_assert!(!log.exists());
    }
}
