//! Who hears what when something changes: those who have asked for it before, and public edges, which
//! see every app. What it costs does not grow with what there is, only with what changed and who hears it.
//!
//! ```text
//!   news of the fold ─▶ by what changed ─▶ keys that have asked for it ─┬─▶ queue of a watch ─▶ its lines
//!                                       └▶ watches of everything ───────┘   full? one reset instead
//! ```

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tabbify_api::coordinator::{Change, Told};
use tabbify_types::{AppId, HostName, MeshKey, Position};
use tokio::sync::Notify;

/// LIMIT: changes that wait for one watch; then it is reset.
pub(crate) const QUEUE_MAX: usize = 1024;
/// LIMIT: things that one key is told about; then its watches are reset, and it begins again.
pub(crate) const INTEREST_MAX: usize = 8192;
/// LIMIT: watches of one key; an older one ends for a new one.
const WATCHES_PER_KEY_MAX: usize = 2;
/// LIMIT: changes that are remembered for watches of everything that come back.
const RECENT_MAX: usize = 4096;

/// What somebody may be told about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Topic {
    App(AppId),
    Host(HostName),
}

/// Every watch. Clones are the same ones.
#[derive(Clone, Default)]
pub(crate) struct Watchers(Arc<Mutex<Table>>);

#[derive(Default)]
struct Table {
    next: u64,
    watches: BTreeMap<u64, Entry>,
    by_key: BTreeMap<MeshKey, Watching>,
    /// Watches of everything.
    everything: BTreeSet<u64>,
    by_topic: BTreeMap<Topic, BTreeSet<MeshKey>>,
    /// The newest changes of apps and machines, and from when on they are all of them.
    recent: VecDeque<Told>,
    since: Position,
    /// Up to where everything was told.
    position: Position,
    /// Lines that were put into queues.
    delivered: u64,
}

struct Entry {
    key: MeshKey,
    /// Of this process: it does not end for others of the same key.
    is_own: bool,
    cell: Arc<Cell>,
}

/// What the watches of one key have in common.
#[derive(Default)]
struct Watching {
    ids: BTreeSet<u64>,
    topics: BTreeSet<Topic>,
}

#[derive(Default)]
struct Cell {
    queue: Mutex<Queue>,
    wake: Notify,
}

#[derive(Default)]
struct Queue {
    told: VecDeque<Told>,
    ended: bool,
}

/// One watch. Dropping it ends it.
pub(crate) struct Watch {
    id: u64,
    cell: Arc<Cell>,
    watchers: Watchers,
}

impl Watchers {
    /// Changes before `position` were never told: whoever knows less begins anew.
    pub(crate) fn begin_at(&self, position: Position) {
        let mut table = self.table();
        (table.since, table.position) = (position, position);
    }

    /// Begins a watch of `key`, which knows everything up to `after`: of everything, or of what the
    /// key asks for from here on.
    pub(crate) fn open(&self, key: MeshKey, everything: bool, after: Option<Position>) -> Watch {
        self.begin(key, everything, after, false)
    }

    /// Begins a watch of a part of this process, which speaks for `key`.
    pub(crate) fn open_own(&self, key: MeshKey, everything: bool) -> Watch {
        self.begin(key, everything, None, true)
    }

    fn begin(
        &self,
        key: MeshKey,
        everything: bool,
        after: Option<Position>,
        is_own: bool,
    ) -> Watch {
        let mut table = self.table();
        let table = &mut *table;
        let id = table.next;
        table.next += 1;
        let cell = Arc::new(Cell::default());
        // Only watches of everything can come back to what they know: what others have asked for is
        // forgotten with their watch.
        let known =
            after.filter(|after| everything && (table.since..=table.position).contains(after));
        let told: VecDeque<Told> = match known {
            Some(after) => {
                let missed = table.recent.iter().filter(|told| told.position > after);
                missed.cloned().collect()
            }
            None => VecDeque::from([reset(table.position)]),
        };
        cell.queue().told = match told.len() > QUEUE_MAX {
            true => VecDeque::from([reset(table.position)]),
            false => told,
        };
        let entry = Entry {
            key,
            is_own,
            cell: Arc::clone(&cell),
        };
        table.watches.insert(id, entry);
        if everything {
            table.everything.insert(id);
        }
        let watching = table.by_key.entry(key).or_default();
        watching.ids.insert(id);
        let remote = watching.ids.iter().copied();
        let remote = remote.filter(|id| table.watches.get(id).is_some_and(|it| !it.is_own));
        let remote: Vec<u64> = remote.collect();
        if remote.len() > WATCHES_PER_KEY_MAX {
            table.end(remote[0]);
        }
        Watch {
            id,
            cell,
            watchers: self.clone(),
        }
    }

    /// From here on `key` is told about `topic`, if it watches.
    pub(crate) fn asked(&self, key: &MeshKey, topic: Topic) {
        let mut table = self.table();
        let table = &mut *table;
        let Some(watching) = table.by_key.get_mut(key) else {
            return;
        };
        if watching.ids.iter().all(|id| table.everything.contains(id)) {
            return;
        }
        let mut begun_again = BTreeSet::new();
        if watching.topics.len() >= INTEREST_MAX && !watching.topics.contains(&topic) {
            begun_again = std::mem::take(&mut watching.topics);
            for id in &watching.ids {
                if let Some(entry) = table.watches.get(id) {
                    entry.cell.begin_again(table.position);
                }
            }
        }
        watching.topics.insert(topic.clone());
        for gone in &begun_again {
            table.forget(gone, key);
        }
        table.by_topic.entry(topic).or_default().insert(*key);
    }

    /// Tells that something changed, after whoever asks again gets the new answer. How many watches
    /// heard it.
    pub(crate) fn publish(&self, position: Position, change: Change) -> usize {
        let mut table = self.table();
        table.position = table.position.max(position);
        let told = Told { position, change };
        if table.recent.len() >= RECENT_MAX
            && let Some(oldest) = table.recent.pop_front()
        {
            table.since = table.since.max(oldest.position);
        }
        table.recent.push_back(told.clone());
        table.deliver(&told)
    }

    /// Tells what stands in no log, after whoever asks again gets the new answer. Who is away meanwhile cannot
    /// be told later, and so begins anew. How many watches heard it.
    pub(crate) fn publish_soft(&self, change: Change) -> usize {
        let mut table = self.table();
        let position = table.position;
        table.since = table.since.max(Position(position.get() + 1));
        table.deliver(&Told { position, change })
    }

    /// Ends the watches of a key that is nobody's any more.
    pub(crate) fn end_of(&self, key: &MeshKey) {
        let mut table = self.table();
        let ids = table.by_key.get(key).map(|watching| watching.ids.clone());
        for id in ids.into_iter().flatten() {
            table.end(id);
        }
    }

    /// Lines that were put into queues so far.
    pub(crate) fn delivered(&self) -> u64 {
        self.table().delivered
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// Puts a line into the queues of those that it concerns; how many they are.
    fn deliver(&mut self, told: &Told) -> usize {
        let topic = match &told.change {
            Change::App { app, .. } => Some(Topic::App(*app)),
            Change::Host { host, .. } => Some(Topic::Host(host.clone())),
            Change::Reset | Change::Alive | Change::Policy { .. } | Change::Issuers => None,
        };
        let ids: BTreeSet<u64> = match topic {
            // Few things concern everybody, and they are rare.
            None => self.watches.keys().copied().collect(),
            Some(topic) => {
                let keys = self.by_topic.get(&topic).into_iter().flatten();
                let asked = keys.filter_map(|key| self.by_key.get(key));
                let asked = asked.flat_map(|watching| &watching.ids);
                asked.chain(&self.everything).copied().collect()
            }
        };
        for id in &ids {
            if let Some(entry) = self.watches.get(id) {
                entry.cell.push(told);
            }
        }
        self.delivered += ids.len() as u64;
        ids.len()
    }

    fn end(&mut self, id: u64) {
        let Some(entry) = self.watches.remove(&id) else {
            return;
        };
        self.everything.remove(&id);
        let Some(watching) = self.by_key.get_mut(&entry.key) else {
            return;
        };
        watching.ids.remove(&id);
        if watching.ids.is_empty() {
            let topics = std::mem::take(&mut watching.topics);
            self.by_key.remove(&entry.key);
            for topic in &topics {
                self.forget(topic, &entry.key);
            }
        }
        entry.cell.queue().ended = true;
        entry.cell.wake.notify_one();
    }

    fn forget(&mut self, topic: &Topic, key: &MeshKey) {
        if let Some(keys) = self.by_topic.get_mut(topic) {
            keys.remove(key);
            if keys.is_empty() {
                self.by_topic.remove(topic);
            }
        }
    }
}

impl Cell {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, told: &Told) {
        let mut queue = self.queue();
        if queue.told.len() >= QUEUE_MAX {
            queue.told.clear();
            queue.told.push_back(reset(told.position));
        } else {
            queue.told.push_back(told.clone());
        }
        drop(queue);
        self.wake.notify_one();
    }

    fn begin_again(&self, position: Position) {
        self.queue().told = VecDeque::from([reset(position)]);
        self.wake.notify_one();
    }
}

impl Watch {
    /// The next line; none if the watch was ended. Safe to cancel.
    pub(crate) async fn next(&self) -> Option<Told> {
        loop {
            {
                let mut queue = self.cell.queue();
                if queue.ended {
                    return None;
                }
                if let Some(told) = queue.told.pop_front() {
                    return Some(told);
                }
            }
            self.cell.wake.notified().await;
        }
    }

    /// What is said when nothing is to be said.
    pub(crate) fn alive(&self) -> Told {
        Told {
            position: self.watchers.table().position,
            change: Change::Alive,
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.watchers.table().end(self.id);
    }
}

const fn reset(position: Position) -> Told {
    Told {
        position,
        change: Change::Reset,
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Watch({})", self.id)
    }
}

impl fmt::Debug for Watchers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let table = self.table();
        f.debug_struct("Watchers")
            .field("watches", &table.watches.len())
            .field("topics", &table.by_topic.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
