//! The index under the real engine: against a list, with hashes that collide, with its files damaged;
//! and what it reads and holds, counted.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;
use serde_json::value::RawValue;
use tabbify_api::log::{Append, AppendError, EventLog, Expect, Filter, LogScope};
use tabbify_process::SystemClock;
use tabbify_types::{NewEvent, Segment, SegmentGlob};
use uuid::Uuid;

use super::page::PAGE_LEN;
use super::*;
use crate::disk::{DiskFile, LockAttempt, RealDisk, SyncPoint};
use crate::{Log, Options};

mod damage;
mod flips;

type Wrong = Box<dyn std::error::Error + Send + Sync>;

const SEGMENTS: [&str; 2] = ["tenant_a.apps", "tenant_b.apps"];

/// The machine's disk, counting what is read.
#[derive(Debug, Clone, Default)]
struct Counting(Arc<AtomicU64>);

#[derive(Debug)]
struct CountingFile(Arc<dyn DiskFile>, Arc<AtomicU64>);

impl Counting {
    fn take(&self) -> u64 {
        self.0.swap(0, Ordering::SeqCst)
    }

    fn file(&self, file: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        Arc::new(CountingFile(file, Arc::clone(&self.0)))
    }
}

impl Disk for Counting {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        RealDisk.create(path).map(|file| self.file(file))
    }
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        RealDisk.open(path).map(|file| self.file(file))
    }
    fn open_to_write(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        RealDisk.open_to_write(path).map(|file| self.file(file))
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        RealDisk.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        RealDisk.remove(path)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        RealDisk.list(dir)
    }
    fn is_dir(&self, path: &Path) -> bool {
        RealDisk.is_dir(path)
    }
    fn make_dir(&self, dir: &Path) -> io::Result<()> {
        RealDisk.make_dir(dir)
    }
    fn sync_dir(&self, dir: &Path, point: SyncPoint) -> io::Result<()> {
        RealDisk.sync_dir(dir, point)
    }
    fn lock(&self, path: &Path) -> io::Result<LockAttempt> {
        RealDisk.lock(path)
    }
}

impl DiskFile for CountingFile {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.1.fetch_add(buf.len() as u64, Ordering::SeqCst);
        self.0.read_exact_at(buf, offset)
    }
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }
    fn allocate(&self, len: u64) -> io::Result<()> {
        self.0.allocate(len)
    }
    fn write_back(&self) -> io::Result<()> {
        Ok(())
    }
    fn sync_data(&self, _point: SyncPoint) -> io::Result<()> {
        Ok(())
    }
}

/// One of eight hashes.
fn colliding(segment: &str, key: &str) -> KeyHash {
    let hash = KeyHash::of(segment, key);
    let sort = hash.sort & 7 << 125;
    KeyHash { sort, ..hash }
}

fn options(disk: &Counting, extent_len: u64) -> Options {
    let mut options = Options::new(Arc::new(SystemClock)).extent_lens(extent_len, extent_len);
    options.disk = Arc::new(disk.clone());
    options.scrub = false;
    options.seal_len = 0;
    options
}

fn everything() -> LogScope {
    let all = vec![SegmentGlob::all()];
    LogScope {
        actor: "test".to_owned(),
        write: all.clone(),
        read: all,
    }
}

fn event(id: u128, segment: &str, key: &str, data_len: usize) -> Result<NewEvent, Wrong> {
    let text = "x".repeat(data_len);
    Ok(NewEvent {
        id: EventId::from_uuid(Uuid::from_u128(id)),
        segment: segment.parse()?,
        key: key.to_owned(),
        kind: "x.happened".to_owned(),
        version: 1,
        cause: None,
        trace: None,
        data: RawValue::from_string(format!("{{\"x\":\"{text}\"}}"))?,
    })
}

fn of_key(segment: &str, key: &str) -> Result<Filter, Wrong> {
    let segment: Segment = segment.parse()?;
    Ok(Filter {
        key: Some(key.to_owned()),
        ..Filter::segments([(&segment).into()])
    })
}

/// Positions of what a filter selects.
async fn positions(
    client: &dyn EventLog,
    filter: &Filter,
    mut after: Position,
    page: usize,
) -> Result<Vec<u64>, Wrong> {
    let mut found = Vec::new();
    while after < client.head() {
        let page = client.read(filter.clone(), after, page).await?;
        assert!(page.next_after > after, "no progress behind {after}");
        found.extend(page.events.iter().map(|event| event.position.get()));
        after = page.next_after;
    }
    Ok(found)
}

fn files(dir: &Path, extension: &str) -> Result<Vec<PathBuf>, Wrong> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|it| it == extension) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

#[derive(Debug, Clone)]
enum Act {
    /// Events of these segments and keys, and the length of their data.
    Append(Vec<(u8, u8)>, u16),
    /// An earlier batch again.
    Repeat(prop::sample::Index),
    Reopen,
    /// A byte of a file of the index changes while the log is in use, or before it is opened again.
    Flip(prop::sample::Index, prop::sample::Index),
    Remove(prop::sample::Index),
    Read(prop::sample::Index, u8, u8),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let index = any::<prop::sample::Index>;
    let one = prop_oneof![
        12 => (prop::collection::vec((0..2_u8, 0..12_u8), 1..5), 0..2500_u16)
            .prop_map(|(keys, len)| Act::Append(keys, len)),
        2 => index().prop_map(Act::Repeat),
        2 => Just(Act::Reopen),
        2 => (index(), index()).prop_map(|(file, byte)| Act::Flip(file, byte)),
        1 => index().prop_map(Act::Remove),
        3 => (index(), 0..2_u8, 0..13_u8).prop_map(|(after, s, k)| Act::Read(after, s, k)),
    ];
    prop::collection::vec(one, 20..90)
}

/// Every event so far, as its segment and key.
type Model = Vec<(u8, u8)>;

fn rev(model: &Model, of: (u8, u8)) -> Rev {
    Rev(model.iter().filter(|it| **it == of).count() as u64)
}

#[expect(clippy::too_many_lines, reason = "one arm for each act")]
async fn play(acts: Vec<Act>) -> Result<(), Wrong> {
    let dir = tempfile::tempdir()?;
    let open = || {
        let mut options = options(&Counting::default(), 8192);
        options.hash_key = colliding;
        Log::open(dir.path(), options)
    };
    let (mut log, mut model) = (open()?, Model::new());
    let mut batches = Vec::new();
    for act in acts {
        let client = log.client(everything());
        match act {
            Act::Append(keys, len) => {
                let mut batch = Append::default();
                for (n, (s, k)) in keys.iter().enumerate() {
                    let id = (model.len() + n + 1) as u128;
                    let (segment, key) = (SEGMENTS[usize::from(*s)], format!("k{k}"));
                    batch.events.push(event(id, segment, &key, len.into())?);
                }
                // Not written where the index is wrong about the key's last revision.
                let at = rev(&model, keys[0]);
                let (segment, key) = (batch.events[0].segment.clone(), batch.events[0].key.clone());
                let ahead =
                    batch
                        .clone()
                        .expecting(segment.clone(), key.clone(), Expect::Rev(at.next()));
                assert!(
                    matches!(client.append(ahead).await, Err(AppendError::ExpectAhead { actual, .. }) if actual == at)
                );
                let batch = batch.expecting(segment, key, Expect::Rev(at));
                let answer = client.append(batch.clone()).await?;
                assert_eq!(answer.first.get(), model.len() as u64 + 1);
                for (of, told) in keys.into_iter().zip(&answer.revs) {
                    model.push(of);
                    assert_eq!(*told, rev(&model, of));
                }
                batches.push((batch, answer));
            }
            Act::Repeat(which) if !batches.is_empty() => {
                let (batch, answer) = which.get(&batches);
                assert_eq!(&client.append(batch.clone()).await?, answer);
            }
            Act::Reopen => {
                log.close().await;
                log = open()?;
                assert_eq!(log.head().get(), model.len() as u64);
            }
            Act::Flip(file, byte) => {
                let runs = files(dir.path(), "run")?;
                if !runs.is_empty() {
                    let path = file.get(&runs);
                    // It may be merged, or just be made, at this moment.
                    let read = std::fs::read(path).ok();
                    if let Some(mut bytes) = read.filter(|bytes| !bytes.is_empty()) {
                        let len = bytes.len();
                        bytes[byte.index(len)] ^= 0x20;
                        std::fs::write(path, bytes)?;
                    }
                }
            }
            Act::Remove(file) => {
                // One that is being written has no positions yet, and must not go.
                let mut runs = files(dir.path(), "run")?;
                runs.retain(|path| super::run::named(path).is_some());
                if !runs.is_empty() {
                    // It may be merged at this moment.
                    let _ = std::fs::remove_file(file.get(&runs));
                }
            }
            Act::Read(after, s, k) => {
                let after = after.index(model.len() + 1);
                let filter = of_key(SEGMENTS[usize::from(s)], &format!("k{k}"))?;
                let found = positions(&*client, &filter, Position(after as u64), 3).await?;
                let mine = (after..model.len()).filter(|n| model[*n] == (s, k));
                assert!(mine.map(|n| n as u64 + 1).eq(found));
            }
            Act::Repeat(_) => {}
        }
    }
    log.close().await;
    let log = open()?;
    let client = log.client(everything());
    let all = positions(&*client, &Filter::default(), Position(0), 50).await?;
    assert!(all.into_iter().eq(1..=model.len() as u64));
    // Two segments of one key at once, in the order of their positions.
    let both = Filter {
        segments: vec![SEGMENTS[1].parse()?, SEGMENTS[0].parse()?],
        ..of_key(SEGMENTS[0], "k3")?
    };
    let found = positions(&*client, &both, Position(0), 2).await?;
    let mine = (0..model.len()).filter(|n| model[*n].1 == 3);
    assert!(mine.map(|n| n as u64 + 1).eq(found));
    log.close().await;
    assert_eq!(Log::verify(dir.path())?.head.get(), model.len() as u64);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 40, ..ProptestConfig::default() })]
    #[test]
    fn the_index_is_a_list_whatever_becomes_of_its_files(acts in acts()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(play(acts)).unwrap();
    }
}

/// Appends so many events of so many keys, in batches.
async fn fill(log: &Log, events: u128, keys: u128) -> Result<(), Wrong> {
    let client = log.client(everything());
    let first = u128::from(log.head().get()) + 1;
    let mut next = first;
    while next < first + events {
        let mut batch = Append::default();
        for n in next..(next + 200).min(first + events) {
            let key = format!("k{}", n % keys);
            batch
                .events
                .push(event(n * 0x1_0000_0001, SEGMENTS[0], &key, 60)?);
        }
        next += 200;
        client.append(batch).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_start_and_a_key_read_what_they_need_however_long_the_log_is() -> Result<(), Wrong> {
    let (dir, disk) = (tempfile::tempdir()?, Counting::default());
    let (mut starts, mut keys, mut lengths) = (Vec::new(), Vec::new(), Vec::new());
    for events in [10_000, 70_000] {
        let log = Log::open(dir.path(), options(&disk, 1 << 16))?;
        fill(&log, events, 500).await?;
        log.close().await;
        // Whatever is closed is sealed by the next start, which is not the one that is measured.
        Log::open(dir.path(), options(&disk, 1 << 16))?
            .close()
            .await;
        disk.take();
        // Without threads that read meanwhile.
        let (log, _shared, _writer) = Log::open_in_steps(dir.path(), options(&disk, 1 << 16))?;
        starts.push(disk.take());
        let client = log.client(everything());
        // Ten in the middle of a key's history.
        let after = Position(log.head().get() / 2);
        let page = client.read(of_key(SEGMENTS[0], "k7")?, after, 10).await?;
        assert_eq!(page.events.len(), 10);
        assert!(page.events.iter().all(|event| event.key == "k7"));
        keys.push(disk.take());
        let extents = files(dir.path(), "extent")?;
        lengths.push(extents.len() as u64 * (1 << 16));
    }
    let (short, long) = (lengths[0], lengths[1]);
    assert!(long > 6 * short, "{lengths:?}");
    // Header and link of every extent, and a window of the last.
    assert!(starts[1] < long / 20, "{starts:?} of {lengths:?}");
    // Pages of the trees, and ten records, not the frames that they are in.
    assert!(keys[1] < 60 * PAGE_LEN as u64, "{keys:?} of {lengths:?}");
    Ok(())
}

#[tokio::test]
async fn an_event_that_no_run_covers_is_read_without_its_neighbors() -> Result<(), Wrong> {
    let (dir, disk) = (tempfile::tempdir()?, Counting::default());
    let open = || Log::open(dir.path(), options(&disk, 1 << 22));
    let log = open()?;
    fill(&log, 2_000, 500).await?;
    log.close().await;
    let log = open()?;
    assert_eq!(files(dir.path(), "run")?.len(), 0);
    disk.take();
    let client = log.client(everything());
    // What has just been written is in memory; these are four of its frames of 200.
    let found = positions(&*client, &of_key(SEGMENTS[0], "k7")?, Position(0), 10).await?;
    assert_eq!(found, [7, 507, 1007, 1507]);
    let read = disk.take();
    assert!((1..4096).contains(&read), "{read} bytes for four records");
    Ok(())
}

/// Tells the child to measure; without it the child's test does nothing.
const MEASURE: &str = "TABBIFY_LOG_MEASURE";

/// In a process of its own, whatever runs the tests: resident memory is that of all threads.
#[test]
fn memory_does_not_grow_with_the_log() -> Result<(), Wrong> {
    let child = std::process::Command::new(std::env::current_exe()?)
        .args(["index::tests::measured_child", "--exact", "--nocapture"])
        .env(MEASURE, "1")
        .status()?;
    assert!(child.success(), "see above");
    Ok(())
}

#[tokio::test]
async fn measured_child() -> Result<(), Wrong> {
    if tabbify_process::env::read(MEASURE).is_none() {
        return Ok(());
    }
    let (dir, disk) = (tempfile::tempdir()?, Counting::default());
    let mut options = options(&disk, 1 << 17);
    options.index_cache_len = 1 << 20;
    let log = Log::open(dir.path(), options)?;
    let resident = || -> Result<u64, Wrong> {
        let text = std::fs::read_to_string("/proc/self/statm")?;
        let pages: u64 = text.split(' ').nth(1).ok_or("a number")?.parse()?;
        Ok(pages * 4096)
    };
    let mut measured = Vec::new();
    for events in [20_000, 120_000] {
        // Every event of a key of its own: the most that there is to keep.
        fill(&log, events, u128::MAX).await?;
        let parts = log.shared().index.parts();
        assert!(parts.closed.len() <= CLOSED_MAX, "{}", parts.closed.len());
        drop(parts);
        measured.push(resident()?);
    }
    // Seven times as long; the index of 120,000 events would be some 20 MB.
    assert!(measured[1] < measured[0] + 5_000_000, "{measured:?}");
    log.close().await;
    Ok(())
}
