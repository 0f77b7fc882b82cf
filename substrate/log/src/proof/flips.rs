//! Every single flipped byte of a closed log of 1 MiB is reported.
//!
//! Each byte: the sector, frame or tail that it is in is looked at as verification does, alone. A
//! sample of them, and in the long version all: the whole log is verified.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use tabbify_api::log::Append;
use tabbify_types::Position;

use super::engine::{DIR, Engine, SEGMENTS, event};
use super::random::Random;
use super::{Wrong, long};
use crate::disk::Disk as _;
use crate::disk::sim::{SimDisk, State};
use crate::error::OpenError;
use crate::extent::{EXTENT_HEADER_LEN, ExtentHeader};
use crate::fields::size;
use crate::frame::{Frame, FrameError, FrameHash, FrameHeader};
use crate::scan::Window;
use crate::tail::{self, Tail};
use crate::{Log, Verified};

const EXTENT_LEN: usize = 64 * 1024;
const EXTENTS: usize = 16;
/// One byte in so many is flipped under a verification of the whole log; a prime.
const SAMPLE_EVERY: usize = 4001;
/// What a byte is changed by, in turn.
const MASKS: [u8; 9] = [0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80, 0xff];

fn mask(at: usize) -> u8 {
    MASKS[at % MASKS.len()]
}

/// A log of 16 full extents, closed.
fn closed_log() -> Result<State, Wrong> {
    let (disk, mut random) = (SimDisk::default(), Random::new(7));
    let mut engine = Engine::open(&disk, EXTENT_LEN as u64)?;
    loop {
        let events = (0..=random.below(4)).map(|_| {
            let (segment, key) = (SEGMENTS[random.index(3)], format!("k{}", random.below(50)));
            event(random.id(), segment, &key, random.index(1800))
        });
        let before = disk.state();
        engine.append(Append::of(events.collect()))?;
        if disk.state().ending_in(".extent").len() > EXTENTS {
            return Ok(before);
        }
    }
}

/// One extent, and where things are in it.
struct Extent {
    path: PathBuf,
    bytes: Vec<u8>,
    frames: Vec<Range<usize>>,
    links: Vec<FrameHash>,
}

impl Extent {
    fn new(path: PathBuf, bytes: &[u8]) -> Self {
        let (mut frames, mut links) = (Vec::new(), Vec::new());
        let mut at = EXTENT_HEADER_LEN;
        while let Ok(frame) = Frame::decode(&bytes[at..]) {
            let end = at + size(frame.header.len);
            frames.push(at..end);
            links.push(frame.hash);
            at = end;
        }
        Self {
            path,
            bytes: bytes.to_vec(),
            frames,
            links,
        }
    }

    fn end(&self) -> usize {
        self.frames
            .last()
            .map_or(EXTENT_HEADER_LEN, |frame| frame.end)
    }

    /// Whether a flip of the byte at `at` is seen by looking at what is around it.
    fn sees(&mut self, at: usize) -> Result<bool, Wrong> {
        self.bytes[at] ^= mask(at);
        let seen = self.sees_flipped(at);
        self.bytes[at] ^= mask(at);
        seen
    }

    fn sees_flipped(&self, at: usize) -> Result<bool, Wrong> {
        if at < EXTENT_HEADER_LEN {
            return Ok(ExtentHeader::decode(&self.bytes).is_err());
        }
        let which = self.frames.partition_point(|frame| frame.end <= at);
        let Some(frame) = self.frames.get(which) else {
            let end = self.frames.last().ok_or("a frame")?.end;
            return self.tail_is_damaged(end);
        };
        match Frame::decode(&self.bytes[frame.clone()]) {
            // Nobody would continue the chain from it.
            Ok(frame) => Ok(frame.hash != self.links[which]),
            Err(_) if which + 1 == self.frames.len() => self.tail_is_damaged(frame.start),
            // Behind it stands an intact frame, so it is no torn tail.
            Err(_) => Ok(Frame::decode(&self.bytes[self.frames[which + 1].clone()]).is_ok()),
        }
    }

    /// What verification says of everything from `from` on, where the good frames end.
    fn tail_is_damaged(&self, from: usize) -> Result<bool, Wrong> {
        let (disk, path) = (SimDisk::default(), Path::new("/tail"));
        // Everything before is as it was; the tail is judged by itself.
        disk.create(path)?.write_all_at(&self.bytes[from..], 0)?;
        let error = match FrameHeader::decode(&self.bytes[from..]) {
            Err(error) => error,
            Ok(_) => Frame::decode(&self.bytes[from..])
                .err()
                .unwrap_or(FrameError::EndMark),
        };
        let mut window = Window::open(&disk, path)?;
        Ok(matches!(
            tail::judge(&mut window, 0, error)?,
            Tail::Damaged { .. }
        ))
    }
}

/// The whole log with one byte changed.
fn verify_flipped(state: &State, path: &Path, at: usize) -> Result<Verified, OpenError> {
    let disk = SimDisk::of(state.clone());
    let changed = disk.open_to_write(path).and_then(|file| {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at as u64)?;
        file.write_all_at(&[byte[0] ^ mask(at)], at as u64)
    });
    changed.map_err(OpenError::io("flip a byte of", path))?;
    Log::verify_on(&disk, Path::new(DIR))
}

#[test]
fn every_flipped_byte_of_a_mebibyte_is_reported() {
    let state = closed_log().unwrap();
    let verified = Log::verify_on(&SimDisk::of(state.clone()), Path::new(DIR)).unwrap();
    assert_eq!((verified.extents, verified.torn), (EXTENTS, None));
    assert!(verified.head > Position(500), "{} events", verified.head);
    let mut seen = 0;
    for (path, bytes) in state.ending_in(".extent") {
        let mut extent = Extent::new(path, &bytes);
        assert!(
            EXTENT_LEN - extent.end() < 12 * 1024,
            "the extents are full"
        );
        for at in 0..EXTENT_LEN {
            let reported = extent.sees(at).unwrap();
            assert!(
                reported,
                "{} byte {at} ^ {:#x}",
                extent.path.display(),
                mask(at)
            );
            seen += 1;
        }
    }
    assert_eq!(seen, 1024 * 1024);
}

#[test]
fn verifying_the_whole_log_reports_flipped_bytes() {
    let state = closed_log().unwrap();
    let files: Vec<PathBuf> = state.ending_in(".extent").into_keys().collect();
    let step = if long() { 1 } else { SAMPLE_EVERY };
    let workers = thread::available_parallelism().map_or(1, usize::from);
    let flips: usize = thread::scope(|scope| {
        let work = |worker: usize| {
            let (state, files) = (&state, &files);
            scope.spawn(move || {
                let mut flips = 0;
                let mine = (worker * step..EXTENTS * EXTENT_LEN).step_by(workers * step);
                for at in mine {
                    let (path, at) = (&files[at / EXTENT_LEN], at % EXTENT_LEN);
                    match verify_flipped(state, path, at) {
                        Err(OpenError::Damaged { extent, .. }) if extent == *path => flips += 1,
                        other => panic!("{} byte {at}: {other:?}", path.display()),
                    }
                }
                flips
            })
        };
        let working: Vec<_> = (0..workers).map(work).collect();
        working.into_iter().map(|one| one.join().unwrap()).sum()
    });
    assert_eq!(flips, (EXTENTS * EXTENT_LEN).div_ceil(step));
}

#[test]
fn a_flip_that_is_undone_is_none() {
    // What the tests above would say if they said it of everything.
    let state = closed_log().unwrap();
    for (path, bytes) in state.ending_in(".extent") {
        let extent = Extent::new(path, &bytes);
        assert!(!extent.sees_flipped(0).unwrap());
        for frame in &extent.frames[..extent.frames.len() - 1] {
            assert!(!extent.sees_flipped(frame.start).unwrap());
        }
        assert!(!extent.tail_is_damaged(extent.end()).unwrap());
        let all: Arc<Vec<u8>> = bytes;
        assert_eq!(all.len(), EXTENT_LEN);
    }
}
