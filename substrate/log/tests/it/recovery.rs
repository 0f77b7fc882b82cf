//! What opening does with bytes: a torn tail is cut, anything else is refused and left alone.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use tabbify_api::log::{Append, Filter};
use tabbify_log::{Log, OpenError};
use tabbify_types::Position;

use crate::support::{Outcome, Wrong, copy_log, event, extents, open, options, read_all, sized};

const SECTOR: usize = 512;
const END_MARK_LEN: usize = 4;

/// A log of three events in one extent, the last frame `sectors` long, and its first and end byte.
async fn three_frames(dir: &Path, sectors: usize) -> Result<(PathBuf, usize, usize), Wrong> {
    let (log, client) = open(dir, 1 << 15)?;
    client.append(sized(10)).await?;
    client.append(sized(700)).await?;
    client.append(sized(sectors * SECTOR - 300)).await?;
    log.close().await;
    let extent = extents(dir)?.remove(0);
    // Header, one sector, two sectors.
    let start = SECTOR + SECTOR + 2 * SECTOR;
    let end = start + sectors * SECTOR;
    let bytes = fs::read(&extent)?;
    assert_eq!(&bytes[start..start + 8], b"tabFRAME");
    assert_eq!(&bytes[end - 4..end], b"/tab");
    assert!(bytes[end..].iter().all(|byte| *byte == 0));
    Ok((extent, start, end))
}

/// Opens, finds `head`, appends, and finds everything intact afterwards.
async fn recovers_to(dir: &Path, head: u64) -> Outcome {
    let (log, client) = open(dir, 1 << 15)?;
    assert_eq!(log.head(), Position(head));
    let answer = client.append(sized(20)).await?;
    assert_eq!(answer.revs[0].get(), head + 1);
    log.close().await;
    let verified = Log::verify(dir)?;
    assert_eq!((verified.head, verified.torn), (Position(head + 1), None));
    Ok(())
}

fn damaged(dir: &Path) -> Result<String, Wrong> {
    let before: Vec<Vec<u8>> = extents(dir)?
        .iter()
        .map(fs::read)
        .collect::<Result<_, _>>()?;
    let refused = Log::open(dir, options().verify_whole())
        .err()
        .ok_or("damage was not seen")?;
    assert!(matches!(refused, OpenError::Damaged { .. }), "{refused}");
    let verified = Log::verify(dir)
        .err()
        .ok_or("damage was not seen by verify")?;
    assert_eq!(verified.to_string(), refused.to_string());
    let after: Vec<Vec<u8>> = extents(dir)?
        .iter()
        .map(fs::read)
        .collect::<Result<_, _>>()?;
    assert!(before == after, "a refused log was changed");
    Ok(refused.to_string())
}

#[tokio::test]
async fn a_tail_torn_at_any_byte_recovers_to_the_frame_before() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (extent, start, end) = three_frames(dir.path(), 3).await?;
    let whole = fs::read(&extent)?;
    for cut in start..end {
        let copy = tempfile::tempdir()?;
        let mut bytes = whole.clone();
        bytes[cut..end].fill(0);
        fs::write(
            copy.path().join(extent.file_name().ok_or("a name")?),
            &bytes,
        )?;
        match cut - start {
            0 => recovers_to(copy.path(), 2).await?,
            // One byte alone cannot be told from a flipped one; no disk tears there.
            1 => assert!(
                damaged(copy.path())?.contains("at byte 2048"),
                "cut at {cut}"
            ),
            // All content is there, and the end mark is not: that is no torn sector either.
            _ if cut >= end - END_MARK_LEN => {
                assert!(damaged(copy.path())?.contains("end mark"), "cut at {cut}");
            }
            // Recovery in full is slow; what is torn is known to verify for every byte.
            _ if cut % SECTOR != 0 && cut % 61 != 0 => {
                let verified = Log::verify(copy.path())?;
                assert_eq!(verified.head, Position(2), "cut at {cut}");
                let torn = verified.torn.ok_or("a torn tail")?;
                assert_eq!(torn.from, start as u64, "cut at {cut}");
            }
            _ => recovers_to(copy.path(), 2).await?,
        }
    }
    Ok(())
}

#[tokio::test]
async fn any_set_of_missing_sectors_recovers_to_the_frame_before() -> Outcome {
    const SECTORS: usize = 6;
    let dir = tempfile::tempdir()?;
    let (extent, start, end) = three_frames(dir.path(), SECTORS).await?;
    let whole = fs::read(&extent)?;
    for written in 0..1_usize << SECTORS {
        let copy = tempfile::tempdir()?;
        let mut bytes = whole.clone();
        for (n, sector) in bytes[start..end].chunks_mut(SECTOR).enumerate() {
            if written & (1 << n) == 0 {
                sector.fill(0);
            }
        }
        fs::write(
            copy.path().join(extent.file_name().ok_or("a name")?),
            &bytes,
        )?;
        let head = if written == (1 << SECTORS) - 1 { 3 } else { 2 };
        recovers_to(copy.path(), head).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_crash_within_the_cut_is_cut_again() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (extent, start, end) = three_frames(dir.path(), 4).await?;
    let mut torn = fs::read(&extent)?;
    torn[start + SECTOR..start + 2 * SECTOR].fill(0);
    // The cut writes zeroes over three sectors, of which any may reach the disk.
    for zeroed in 0..1_usize << 4 {
        let copy = tempfile::tempdir()?;
        let mut bytes = torn.clone();
        for (n, sector) in bytes[start..end].chunks_mut(SECTOR).enumerate() {
            if zeroed & (1 << n) != 0 {
                sector.fill(0);
            }
        }
        fs::write(
            copy.path().join(extent.file_name().ok_or("a name")?),
            &bytes,
        )?;
        recovers_to(copy.path(), 2).await?;
    }
    Ok(())
}

type Change = Box<dyn Fn(&mut Vec<u8>)>;

fn zero(from: usize, to: usize) -> Change {
    Box::new(move |bytes| bytes[from..to].fill(0))
}

fn set(at: usize, with: &[u8]) -> Change {
    let with = with.to_vec();
    Box::new(move |bytes| bytes[at..at + with.len()].copy_from_slice(&with))
}

/// What happens to a log, what is said about it, and how it is done. The last frame is `last`,
/// and `end` is where it ends.
fn damages(last: &[u8], start: usize, end: usize) -> Vec<(&'static str, &'static str, Change)> {
    let longer: Change = Box::new(|bytes| bytes.resize(40_000, 0));
    let shorter: Change = Box::new(|bytes| bytes.truncate(4096));
    let follows = "an intact frame follows";
    vec![
        ("a frame missing in the middle", follows, zero(1024, 2048)),
        ("the first frame missing", follows, zero(512, 1024)),
        ("a sector missing in the middle", follows, zero(1536, 2048)),
        (
            "a flip in the last frame",
            "contradicts its checksum",
            set(start + 300, &[0]),
        ),
        (
            "a stray byte behind the end",
            "stray byte",
            set(end + 700, &[1]),
        ),
        (
            "a stray frame behind a gap",
            follows,
            set(end + SECTOR, last),
        ),
        (
            "an old frame behind the end",
            "where 4 is due",
            set(end, last),
        ),
        ("text behind the end", "no frame magic", set(end, b"hello")),
        ("no header", "no extent magic", zero(0, 512)),
        ("cut off", "in a file that must have 32768", shorter),
        ("longer", "in a file that must have 32768", longer),
        ("empty", "without a whole header", Box::new(Vec::clear)),
    ]
}

#[tokio::test]
async fn damage_is_told_from_a_torn_tail() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (extent, start, end) = three_frames(dir.path(), 3).await?;
    let name = extent.file_name().ok_or("a name")?;
    let whole = fs::read(&extent)?;
    let cases = damages(&whole[start..end], start, end);
    for (what, part, change) in cases {
        let copy = tempfile::tempdir()?;
        let mut bytes = whole.clone();
        change(&mut bytes);
        fs::write(copy.path().join(name), &bytes)?;
        let told = damaged(copy.path()).map_err(|error| format!("{what}: {error}"))?;
        assert!(told.contains(part), "{what}: {told}");
    }
    Ok(())
}

#[tokio::test]
async fn every_flipped_byte_of_a_closed_log_is_reported() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (log, client) = open(dir.path(), 1 << 13)?;
    for n in 0..7 {
        client
            .append(Append::of(vec![event("platform", "k", "{}"); 1]))
            .await?;
        client.append(sized(150 * n)).await?;
    }
    log.close().await;
    let files = extents(dir.path())?;
    assert_eq!(files.len(), 2);
    let (mut flips, mut masks) = (0, [0x01, 0x10, 0x80, 0xff].into_iter().cycle());
    for path in &files {
        let file = fs::OpenOptions::new().read(true).write(true).open(path)?;
        // Header, frames, padding, and the space behind that nothing has been written to.
        for at in 0..file.metadata()?.len() {
            let mask = masks.next().ok_or("a mask")?;
            let mut byte = [0];
            file.read_exact_at(&mut byte, at)?;
            file.write_all_at(&[byte[0] ^ mask], at)?;
            match Log::verify(dir.path()) {
                Err(OpenError::Damaged { .. }) => flips += 1,
                other => {
                    return Err(
                        format!("{} byte {at} ^ {mask:#x}: {other:?}", path.display()).into(),
                    );
                }
            }
            if at % 97 == 0 {
                damaged(dir.path())?;
            }
            file.write_all_at(&byte, at)?;
        }
    }
    assert_eq!(flips, 2 * 8192);
    assert_eq!(Log::verify(dir.path())?.head, Position(14));
    Ok(())
}

#[tokio::test]
async fn every_moment_of_a_rollover_can_be_the_last() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (log, client) = open(dir.path(), 1 << 13)?;
    for _ in 0..7 {
        client.append(sized(2200)).await?;
    }
    log.close().await;
    let files = extents(dir.path())?;
    assert_eq!(files.len(), 3, "three frames each: {files:?}");
    let last = fs::read(&files[2])?;
    let header_only = [&last[..SECTOR], &vec![0; last.len() - SECTOR]].concat();
    let spare = "next.spare";
    let name = |path: &Path| path.file_name().map(PathBuf::from).ok_or("a name");
    let last_name = name(&files[2])?;
    let torn = [&last[..3 * SECTOR], &vec![0; last.len() - 3 * SECTOR]].concat();
    let half = last[..2000].to_vec();
    type File<'a> = Option<(&'a Path, Vec<u8>)>;
    let cases: [(&str, File<'_>, u64); 7] = [
        ("before the spare is there", None, 6),
        (
            "in the middle of making the spare",
            Some((Path::new(spare), vec![0; 1000])),
            6,
        ),
        (
            "a spare of an unknown past",
            Some((Path::new(spare), half)),
            6,
        ),
        (
            "its header is written",
            Some((Path::new(spare), header_only.clone())),
            6,
        ),
        ("it is renamed", Some((&last_name, header_only)), 6),
        ("its first frame is torn", Some((&last_name, torn)), 6),
        (
            "its first frame is whole",
            Some((&last_name, last.clone())),
            7,
        ),
    ];
    for (what, file, head) in cases {
        let copy = tempfile::tempdir()?;
        copy_log(dir.path(), copy.path())?;
        fs::remove_file(copy.path().join(&last_name))?;
        if let Some((path, bytes)) = file {
            fs::write(copy.path().join(path), bytes)?;
        }
        recovers_to(copy.path(), head)
            .await
            .map_err(|error| format!("{what}: {error}"))?;
    }
    // An extent before the last has no torn tail; one that is missing is missed.
    for index in [0, 1] {
        let copy = tempfile::tempdir()?;
        copy_log(dir.path(), copy.path())?;
        let path = copy.path().join(name(&files[index])?);
        let mut bytes = fs::read(&path)?;
        let end = bytes.iter().rposition(|byte| *byte != 0).ok_or("bytes")? + 1;
        bytes[end - 2 * SECTOR..].fill(0);
        fs::write(&path, bytes)?;
        assert!(
            damaged(copy.path())?.contains("not the last"),
            "extent {index}"
        );
        fs::remove_file(&path)?;
        assert!(damaged(copy.path())?.contains("is due"), "extent {index}");
    }
    Ok(())
}

#[tokio::test]
async fn extents_of_another_log_are_refused() -> Outcome {
    let (ours, theirs) = (tempfile::tempdir()?, tempfile::tempdir()?);
    for dir in [&ours, &theirs] {
        let (log, client) = open(dir.path(), 1 << 13)?;
        for _ in 0..5 {
            client.append(sized(2200)).await?;
        }
        log.close().await;
    }
    let (from, to) = (extents(theirs.path())?, extents(ours.path())?);
    fs::copy(&from[1], &to[1])?;
    assert!(damaged(ours.path())?.contains("another log"));
    fs::rename(&to[1], ours.path().join("5.extent"))?;
    assert!(damaged(ours.path())?.contains("not a position"));
    Ok(())
}

#[tokio::test]
async fn a_newer_format_says_so() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (extent, start, _) = three_frames(dir.path(), 2).await?;
    let whole = fs::read(&extent)?;
    // Version 2 with a checksum that agrees: of the extent, then of the last frame.
    for (at, len) in [(0, 512), (start, 96)] {
        let mut bytes = whole.clone();
        bytes[at + 8] = 2;
        let sum = crc32c(&bytes[at..at + len - 4]).to_le_bytes();
        bytes[at + len - 4..at + len].copy_from_slice(&sum);
        fs::write(&extent, &bytes)?;
        for refused in [
            Log::open(dir.path(), options()).err(),
            Log::verify(dir.path()).err(),
        ] {
            assert!(
                matches!(refused, Some(OpenError::Newer { version: 2, .. })),
                "{refused:?}"
            );
        }
        assert!(fs::read(&extent)? == bytes);
    }
    Ok(())
}

/// CRC-32C, bit by bit: the documented checksum without the library that wrote it.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |sum: u32, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
            (sum >> 1) ^ (0x82f6_3b78 & 0_u32.wrapping_sub(sum & 1))
        })
    })
}

#[tokio::test]
async fn one_directory_has_one_opener() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (log, client) = open(dir.path(), 1 << 13)?;
    client.append(sized(10)).await?;
    for refused in [
        Log::open(dir.path(), options()).err(),
        Log::verify(dir.path()).err(),
    ] {
        let refused = refused.ok_or("a second opener")?;
        assert!(matches!(refused, OpenError::Locked { .. }));
        assert!(
            refused
                .to_string()
                .contains(&format!("process {}", std::process::id()))
        );
    }
    drop(log);
    // Clients do not hold the directory.
    let (_log, again) = open(dir.path(), 1 << 13)?;
    assert_eq!(read_all(&*again, Filter::default(), 10).await?.len(), 1);
    assert!(client.append(sized(10)).await.is_err());
    Ok(())
}

#[tokio::test]
async fn a_directory_without_a_log_is_missed_or_made() -> Outcome {
    let dir = tempfile::tempdir()?;
    for path in [dir.path().to_owned(), dir.path().join("deep/er")] {
        assert!(matches!(Log::verify(&path), Err(OpenError::Missing { .. })));
    }
    let (log, _) = open(&dir.path().join("deep/er"), 1 << 13)?;
    assert_eq!(log.head(), Position(0));
    log.close().await;
    assert_eq!(Log::verify(&dir.path().join("deep/er"))?.head, Position(0));
    fs::write(dir.path().join("file"), "")?;
    let refused = Log::open(&dir.path().join("file"), options()).err();
    assert!(matches!(refused, Some(OpenError::Io { .. })), "{refused:?}");
    Ok(())
}
