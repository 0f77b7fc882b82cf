//! A disk in memory that does to unsynced data whatever a real one may, for the proofs.
//!
//! Every file and every name is there twice: as programs see it, and as it is on disk. What lies
//! between is a list of changes, of which a loss of power keeps any. A recorder keeps the whole state
//! after every change; faults are switches. `state` is what is kept, `crash` what may be left of it.

pub(crate) mod crash;
mod objects;
mod state;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Disk, DiskFile, Guard, LockAttempt, SyncPoint};
pub(crate) use objects::SimObjects;
pub(crate) use state::State;
use state::{Change, Content, NameChange, Node};

/// What the disk is told to do wrong.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Faults {
    /// Changes until the power goes; from then on everything fails.
    pub(crate) power: Option<u64>,
    /// Bytes that there are; more is refused.
    pub(crate) space: Option<usize>,
    /// This sync fails the next time, when of each change so many bytes are on disk. The rest is
    /// seen as before, and no later sync writes it: Linux may do that.
    pub(crate) fail: Option<(SyncPoint, usize)>,
    /// Writing back fails the next time, of a file whose name ends so.
    pub(crate) fail_write_back: Option<&'static str>,
    /// This sync says that it has done its work, and has not.
    pub(crate) skip: Option<SyncPoint>,
    /// The object store does not answer.
    pub(crate) objects_away: bool,
}

#[derive(Debug, Default)]
struct Inner {
    state: State,
    faults: Faults,
    /// The state before the first change and after each one, if they are recorded.
    recorded: Option<Vec<State>>,
    locked: bool,
    synced: BTreeMap<SyncPoint, usize>,
}

/// Implements [`Disk`]. Clones are the same disk.
#[derive(Debug, Clone, Default)]
pub(crate) struct SimDisk(Arc<Mutex<Inner>>);

impl SimDisk {
    /// A disk that is in this state, with no program using it.
    pub(crate) fn of(state: State) -> Self {
        let disk = Self::default();
        disk.inner().state = state;
        disk
    }

    /// The same disk, on which this sync does nothing.
    pub(crate) fn skipping(self, point: Option<SyncPoint>) -> Self {
        self.inner().faults.skip = point;
        self
    }

    /// From here on keeps the state after every change.
    pub(crate) fn record(&self) {
        let mut inner = self.inner();
        inner.recorded = Some(vec![inner.state.clone()]);
    }

    /// What has been recorded since the last time.
    pub(crate) fn drain_recorded(&self) -> Vec<State> {
        let mut inner = self.inner();
        inner
            .recorded
            .as_mut()
            .map(std::mem::take)
            .unwrap_or_default()
    }

    pub(crate) fn state(&self) -> State {
        self.inner().state.clone()
    }

    /// Changes the faults.
    pub(crate) fn faults(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.inner().faults);
    }

    /// Ends what [`Faults::power`] and [`Faults::fail`] do. Whether there has been power all the time.
    pub(crate) fn heal(&self) -> bool {
        let faults = &mut self.inner().faults;
        faults.fail = None;
        faults.power.take() != Some(0)
    }

    /// Leaves `room` bytes, or as many as are asked for.
    pub(crate) fn leave_space(&self, room: Option<usize>) {
        let mut inner = self.inner();
        inner.faults.space = room.map(|room| inner.state.used() + room);
    }

    /// How often each point has been synced.
    pub(crate) fn synced(&self) -> BTreeMap<SyncPoint, usize> {
        self.inner().synced.clone()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does one change, if there is still power, and records it.
    fn change<R>(&self, act: impl FnOnce(&mut Inner) -> io::Result<R>) -> io::Result<R> {
        let mut inner = self.inner();
        inner.power()?;
        let done = act(&mut inner);
        let state = inner.state.clone();
        if let Some(recorded) = inner.recorded.as_mut().filter(|_| done.is_ok()) {
            recorded.push(state);
        }
        done
    }

    fn handle(&self, file: usize) -> Arc<dyn DiskFile> {
        Arc::new(SimFile {
            disk: self.clone(),
            file,
        })
    }
}

fn broken() -> io::Error {
    rustix::io::Errno::IO.into()
}

impl Inner {
    fn power(&mut self) -> io::Result<()> {
        match &mut self.faults.power {
            None => Ok(()),
            Some(0) => Err(io::Error::other("the power is gone")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
        }
    }

    fn grow(&self, more: usize) -> io::Result<()> {
        let used = self.state.used().saturating_add(more);
        if more > 0 && self.faults.space.is_some_and(|space| used > space) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    /// Whether a sync is to do its work; an error is its failure.
    fn sync(&mut self, point: SyncPoint) -> io::Result<bool> {
        *self.synced.entry(point).or_default() += 1;
        if self.faults.fail.is_some_and(|(due, _)| due == point) {
            return Err(broken());
        }
        Ok(self.faults.skip != Some(point))
    }
}

impl Disk for SimDisk {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let file = self.change(|inner| {
            let state = &mut inner.state;
            let dir = path.parent().and_then(|dir| state.seen.get(dir));
            if dir != Some(&Node::Dir) {
                return Err(io::ErrorKind::NotFound.into());
            }
            if state.seen.contains_key(path) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            let file = state.files.len();
            state.files.push(Content::default());
            state.name(NameChange::Add(path.to_owned(), Node::File(file)));
            Ok(file)
        })?;
        Ok(self.handle(file))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let file = self.inner().state.file(path)?;
        Ok(self.handle(file))
    }

    fn open_to_write(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.open(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.change(|inner| {
            let node = Node::File(inner.state.file(from)?);
            let change = NameChange::Rename(from.to_owned(), to.to_owned(), node);
            inner.state.name(change);
            Ok(())
        })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        // What is not there is refused and changes nothing.
        self.inner().state.file(path)?;
        self.change(|inner| {
            inner.state.name(NameChange::Remove(path.to_owned()));
            Ok(())
        })
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        let inner = self.inner();
        let names = inner.state.seen.keys();
        Ok(names
            .filter(|path| path.parent() == Some(dir))
            .cloned()
            .collect())
    }

    fn is_dir(&self, path: &Path) -> bool {
        self.inner().state.seen.get(path) == Some(&Node::Dir)
    }

    fn make_dir(&self, dir: &Path) -> io::Result<()> {
        self.change(|inner| {
            if inner.state.seen.contains_key(dir) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            let change = NameChange::Add(dir.to_owned(), Node::Dir);
            inner.state.name(change);
            Ok(())
        })
    }

    fn sync_dir(&self, dir: &Path, point: SyncPoint) -> io::Result<()> {
        self.change(|inner| {
            let work = inner.sync(point);
            if work.is_err() {
                inner.faults.fail = None;
            }
            if work? {
                let State { durable, dirty, .. } = &mut inner.state;
                dirty.retain(|change| {
                    let due = change.dir() == Some(dir);
                    if due {
                        change.apply(durable);
                    }
                    !due
                });
            }
            Ok(())
        })
    }

    fn lock(&self, _path: &Path) -> io::Result<LockAttempt> {
        let mut inner = self.inner();
        if inner.locked {
            return Ok(LockAttempt::HeldBy("another process".to_owned()));
        }
        inner.locked = true;
        Ok(LockAttempt::Ours(Box::new(SimLock(self.clone()))))
    }
}

#[derive(Debug)]
struct SimLock(SimDisk);

impl Guard for SimLock {}

impl Drop for SimLock {
    fn drop(&mut self) {
        self.0.inner().locked = false;
    }
}

#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    file: usize,
}

impl SimFile {
    fn change(&self, act: impl FnOnce(&mut Inner, usize) -> io::Result<()>) -> io::Result<()> {
        self.disk.change(|inner| {
            inner.state.touched = Some(self.file);
            act(inner, self.file)
        })
    }
}

/// An offset or length in memory.
fn size(n: u64) -> io::Result<usize> {
    usize::try_from(n).map_err(|_| io::ErrorKind::InvalidInput.into())
}

impl DiskFile for SimFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.inner().state.files[self.file].seen.len() as u64)
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let seen = Arc::clone(&self.disk.inner().state.files[self.file].seen);
        let start = size(offset)?;
        let bytes = seen.get(start..start.saturating_add(buf.len()));
        buf.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let start = size(offset)?;
        self.change(|inner, file| {
            let len = inner.state.files[file].seen.len();
            inner.grow((start + bytes.len()).saturating_sub(len))?;
            inner.state.files[file].change(Change::Bytes(start, bytes.to_vec()));
            Ok(())
        })
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        let len = size(len)?;
        self.change(|inner, file| {
            inner.grow(len.saturating_sub(inner.state.files[file].seen.len()))?;
            inner.state.files[file].change(Change::Len(len));
            Ok(())
        })
    }

    fn write_back(&self) -> io::Result<()> {
        let mut inner = self.disk.inner();
        let due = |suffix: &str| inner.state.is_named(self.file, suffix);
        if !inner.faults.fail_write_back.is_some_and(due) {
            return Ok(());
        }
        inner.faults.fail_write_back = None;
        inner.state.files[self.file].forsake(0);
        Err(broken())
    }

    fn sync_data(&self, point: SyncPoint) -> io::Result<()> {
        self.change(|inner, file| {
            let work = inner.sync(point);
            let content = &mut inner.state.files[file];
            match work {
                Ok(true) => content.sync(),
                Ok(false) => {}
                Err(_) => content.forsake(inner.faults.fail.take().map_or(0, |(_, kept)| kept)),
            }
            work.map(|_| ())
        })
    }
}
