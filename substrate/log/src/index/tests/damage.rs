//! Damage: of sealed extents, which a start has not read, and of the index itself.

use std::fs;
use std::sync::PoisonError;
use std::time::Duration;

use super::*;

const EXTENT_LEN: u64 = 1 << 13;

fn opened(dir: &Path) -> Result<Log, OpenError> {
    Log::open(dir, options(&Counting::default(), EXTENT_LEN))
}

fn sized(id: u128) -> Result<Append, Wrong> {
    Ok(Append::of(vec![event(id, SEGMENTS[0], "shop", 2200)?]))
}

/// A log of five extents, four of them sealed.
async fn five_extents(dir: &Path) -> Result<(), Wrong> {
    let log = opened(dir)?;
    let client = log.client(everything());
    for n in 1..=14 {
        client.append(sized(n)?).await?;
    }
    log.close().await;
    assert_eq!(files(dir, "extent")?.len(), 5);
    opened(dir)?.close().await;
    assert!(!files(dir, "run")?.is_empty());
    Ok(())
}

#[tokio::test]
async fn damage_in_a_sealed_extent_ends_the_log_soon_after_its_start() -> Result<(), Wrong> {
    let dir = tempfile::tempdir()?;
    five_extents(dir.path()).await?;
    let extent = files(dir.path(), "extent")?.remove(2);
    let mut bytes = fs::read(&extent)?;
    // A byte of the second frame's data.
    bytes[512 + 2560 + 300] ^= 4;
    fs::write(&extent, bytes)?;

    // Asked to read everything first, it does not start.
    let plain = || options(&Counting::default(), EXTENT_LEN);
    let refused = Log::open(dir.path(), plain().verify_whole());
    let refused = refused.err().ok_or("it opens")?;
    let verified = Log::verify(dir.path()).err().ok_or("it verifies")?;
    assert_eq!(refused.to_string(), verified.to_string());

    let told: Arc<Mutex<Vec<String>>> = Arc::default();
    let tell = Arc::clone(&told);
    let mut scrubbed = plain().on_failed_sync(move |error| {
        let mut told = tell.lock().unwrap_or_else(PoisonError::into_inner);
        told.push(error.to_string());
    });
    scrubbed.scrub = true;
    let log = Log::open(dir.path(), scrubbed)?;
    let client = log.client(everything());
    tokio::time::timeout(Duration::from_secs(60), log.stopped()).await?;
    let answer = client.append(sized(15)?).await;
    assert_eq!(answer, Err(AppendError::Stopping));
    let told = told.lock().unwrap_or_else(PoisonError::into_inner).clone();
    assert_eq!(told, [verified.to_string()], "extent and byte, once");
    Ok(())
}

#[tokio::test]
async fn a_scrub_of_an_intact_log_ends_and_changes_nothing() -> Result<(), Wrong> {
    let dir = tempfile::tempdir()?;
    five_extents(dir.path()).await?;
    let mut scrubbed = options(&Counting::default(), EXTENT_LEN);
    scrubbed.scrub = true;
    let log = Log::open(dir.path(), scrubbed)?;
    assert_eq!(log.shared().index.sealed_at_start(), Position(12));
    tokio::time::timeout(Duration::from_secs(60), async {
        while !log.shared().index.work().scrubbed {
            tokio::task::yield_now().await;
        }
    })
    .await?;
    let answer = log.client(everything()).append(sized(15)?).await?;
    assert_eq!(answer.first, Position(15));
    log.close().await;
    Ok(())
}

/// The log in `from` as of now, in another place.
fn copied(from: &Path) -> Result<tempfile::TempDir, Wrong> {
    let to = tempfile::tempdir()?;
    for extension in ["extent", "run"] {
        for path in files(from, extension)? {
            fs::copy(&path, to.path().join(path.file_name().ok_or("a name")?))?;
        }
    }
    Ok(to)
}

#[tokio::test]
async fn an_index_that_is_gone_or_damaged_is_made_anew() -> Result<(), Wrong> {
    let dir = tempfile::tempdir()?;
    five_extents(dir.path()).await?;
    for file in files(dir.path(), "run")? {
        let whole = fs::read(&file)?;
        // Each page in turn, cut off, empty, and gone.
        let pages = (0..whole.len()).step_by(PAGE_LEN).map(|page| {
            let mut bytes = whole.clone();
            bytes[page + 9] ^= 1;
            Some(bytes)
        });
        let cut = Some(whole[..whole.len() - PAGE_LEN].to_vec());
        for bytes in pages.chain([cut, Some(Vec::new()), None]) {
            let copy = copied(dir.path())?;
            let there = copy.path().join(file.file_name().ok_or("a name")?);
            match bytes {
                Some(bytes) => fs::write(&there, bytes)?,
                None => fs::remove_file(&there)?,
            }
            let log = opened(copy.path())?;
            let client = log.client(everything());
            let known = client.append(sized(2)?).await?;
            assert_eq!((known.first, known.revs[0]), (Position(2), Rev(2)));
            let answer = client.append(sized(15)?).await?;
            assert_eq!((answer.first, answer.revs[0]), (Position(15), Rev(15)));
            let key = of_key(SEGMENTS[0], "shop")?;
            for filter in [key, Filter::default()] {
                let all = positions(&*client, &filter, Position(0), 4).await?;
                assert!(all.into_iter().eq(1..=15));
            }
            log.close().await;
        }
    }
    Ok(())
}

#[tokio::test]
async fn what_a_crash_leaves_of_the_index_is_cleared_away() -> Result<(), Wrong> {
    let dir = tempfile::tempdir()?;
    five_extents(dir.path()).await?;
    for draft in ["sealed.run", "merged.run", "healed.run"] {
        fs::write(dir.path().join(draft), "half")?;
    }
    // Of another log, and of a position that no extent starts at.
    let other = tempfile::tempdir()?;
    five_extents(other.path()).await?;
    let theirs = files(other.path(), "run")?.remove(0);
    fs::copy(
        &theirs,
        super::run::path(dir.path(), Position(2), Position(3)),
    )?;
    let log = opened(dir.path())?;
    let all = positions(
        &*log.client(everything()),
        &Filter::default(),
        Position(0),
        9,
    )
    .await?;
    assert_eq!(all.len(), 14);
    log.close().await;
    for path in files(dir.path(), "run")? {
        assert!(
            Run::open(&RealDisk, &path).is_ok(),
            "{} stays",
            path.display()
        );
    }
    Ok(())
}

#[tokio::test]
async fn extents_that_the_index_knows_are_missed() -> Result<(), Wrong> {
    let dir = tempfile::tempdir()?;
    five_extents(dir.path()).await?;
    let last = files(dir.path(), "extent")?.pop().ok_or("an extent")?;
    fs::remove_file(&last)?;
    let refused = opened(dir.path()).err();
    let Some(OpenError::Damaged { extent, what, .. }) = refused else {
        return Err(format!("{refused:?}").into());
    };
    assert_eq!(extent, last);
    assert!(what.contains("it is missing"), "{what}");
    // Put back on purpose, it opens without its index.
    for run in files(dir.path(), "run")? {
        fs::remove_file(run)?;
    }
    let log = opened(dir.path())?;
    assert_eq!(log.head(), Position(12));
    log.close().await;
    Ok(())
}
