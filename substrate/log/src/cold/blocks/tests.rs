//! What reading costs: one block for one event, nothing twice, and no more memory than there is.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;
use tabbify_types::Position;

use super::super::objects::Object;
use super::*;
use crate::extent::ExtentHeader;
use crate::frame::FrameHash;

/// One object, and what is asked of it.
#[derive(Debug, Default)]
struct Counted {
    object: Vec<u8>,
    requests: AtomicUsize,
    bytes: AtomicU64,
    away: AtomicBool,
}

impl Counted {
    fn take(&self) -> (usize, u64) {
        let requests = self.requests.swap(0, Ordering::SeqCst);
        (requests, self.bytes.swap(0, Ordering::SeqCst))
    }
}

impl Objects for Counted {
    fn put(&self, _: &str, _: Object, _: &AtomicBool) -> Result<(), ObjectsError> {
        Err(ObjectsError::Unreachable("read only".to_owned()))
    }

    fn get(&self, _: &str, range: Range<u64>, _: &AtomicBool) -> Result<Bytes, ObjectsError> {
        self.requests.fetch_add(1, Ordering::SeqCst);
        if self.away.load(Ordering::SeqCst) {
            return Err(ObjectsError::Unreachable("away".to_owned()));
        }
        self.bytes
            .fetch_add(range.end - range.start, Ordering::SeqCst);
        let at = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        Ok(Bytes::copy_from_slice(
            &self.object[at(range.start)..at(range.end)],
        ))
    }

    fn list(&self, _: &str) -> Result<Vec<(String, u64)>, ObjectsError> {
        Ok(Vec::new())
    }

    fn shown(&self) -> &'static str {
        "counted"
    }
}

/// An extent of this many blocks whose bytes do not compress; its reader, its bytes.
fn stored(blocks: usize) -> (Arc<Counted>, StoredFile, Vec<u8>) {
    let header = ExtentHeader {
        len: (blocks * BLOCK_LEN) as u64,
        first: Position(1),
        log_id: [3; 16],
        previous: FrameHash([0; 32]),
    };
    let mut bytes = header.encode();
    let mut random = blake3::Hasher::new().finalize_xof();
    bytes.resize(blocks * BLOCK_LEN, 0);
    random.fill(&mut bytes[EXTENT_HEADER_LEN..]);
    let read = |buf: &mut [u8], at: u64| {
        let at = usize::try_from(at).map_err(io::Error::other)?;
        buf.copy_from_slice(&bytes[at..at + buf.len()]);
        Ok(())
    };
    let made = Stored::compress(&header, Position(9), read);
    let (stored, parts) = made.expect("memory can be read");
    let object = Counted {
        object: parts.concat(),
        ..Counted::default()
    };
    let object = Arc::new(object);
    let store = ColdStore::of(Arc::clone(&object) as Arc<dyn Objects>);
    let blocks = Arc::new(Blocks::of(Some(&store)));
    (
        object,
        StoredFile::new(Path::new("x"), stored, blocks),
        bytes,
    )
}

fn read(file: &StoredFile, offset: usize, len: usize) -> io::Result<Vec<u8>> {
    let mut buf = vec![0; len];
    file.read_exact_at(&mut buf, offset as u64)?;
    Ok(buf)
}

#[test]
fn an_event_costs_its_block_and_the_next_one_nothing() {
    let (object, file, bytes) = stored(20);
    assert_eq!(
        read(&file, 0, EXTENT_HEADER_LEN).unwrap(),
        bytes[..EXTENT_HEADER_LEN]
    );
    assert_eq!(object.take(), (0, 0), "the header is in the record");
    let at = 7 * BLOCK_LEN + 1000;
    assert_eq!(read(&file, at, 300).unwrap(), bytes[at..at + 300]);
    let (requests, len) = object.take();
    assert!(
        requests == 1 && len < (BLOCK_LEN + BLOCK_LEN / 50) as u64,
        "{len}"
    );
    assert_eq!(
        read(&file, at + 5000, 300).unwrap(),
        bytes[at + 5000..at + 5300]
    );
    assert_eq!(object.take(), (0, 0));
    // Over the end of what is known: only what is not.
    let across = 8 * BLOCK_LEN - 100;
    assert_eq!(
        read(&file, across, 200).unwrap(),
        bytes[across..across + 200]
    );
    assert_eq!(object.take().0, 1);
    assert_eq!(read(&file, 0, bytes.len()).unwrap(), bytes);
    assert!(object.take().0 <= 4, "neighbors come together");
    let beyond = read(&file, bytes.len() - 10, 11).unwrap_err();
    assert_eq!(beyond.kind(), io::ErrorKind::UnexpectedEof);
    assert!(file.write_all_at(&[1], 0).is_err());
}

#[test]
fn memory_is_bounded_and_the_oldest_goes() {
    let (object, file, bytes) = stored(CACHE_MAX + 10);
    assert_eq!(read(&file, 0, bytes.len()).unwrap(), bytes);
    let held = file.blocks.cache.lock().unwrap().len();
    assert_eq!(held, CACHE_MAX);
    object.take();
    let last = bytes.len() - BLOCK_LEN;
    assert_eq!(read(&file, last, BLOCK_LEN).unwrap(), bytes[last..]);
    assert_eq!(object.take().0, 0);
    assert_eq!(read(&file, 600, 1).unwrap(), bytes[600..601]);
    assert_eq!(object.take().0, 1);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_away_is_asked_now_and_then() {
    let (object, file, bytes) = stored(3);
    object.away.store(true, Ordering::SeqCst);
    for _ in 0..5 {
        let error = read(&file, 1000, 1).unwrap_err();
        let told = ColdError::within(&error).unwrap();
        assert!(matches!(told, ColdError::Unreachable { .. }), "{told}");
    }
    assert_eq!(object.take().0, 1, "told at once");
    object.away.store(false, Ordering::SeqCst);
    tokio::time::advance(AWAY_FOR).await;
    assert_eq!(read(&file, 1000, 1).unwrap(), bytes[1000..1001]);
}
