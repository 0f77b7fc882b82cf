//! What the loop and those who wait tell each other: who is wanted, and how it stands.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tabbify_types::event::v1::InstanceRef;
use tokio::sync::{Notify, watch};

/// How an instance that is placed here stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Standing {
    /// A process of it lives, and may take visitors.
    Alive,
    /// None does, or it takes no visitors.
    Down,
    /// None can live: why.
    Failed(String),
    /// It is here no more: why, if it failed before.
    Gone(Option<String>),
}

/// An instance that is placed here and stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Resident {
    /// How it stands.
    pub(crate) standing: Standing,
    /// Its raw ports.
    pub(crate) ports: Vec<u16>,
}

/// See the module. Clones are the same one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Table(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    state: Mutex<State>,
    rung: Notify,
    /// Published for the first time.
    known: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct State {
    placed: BTreeMap<InstanceRef, Resident>,
    wants: BTreeMap<InstanceRef, Wanted>,
}

/// Somebody waits for it.
#[derive(Debug)]
struct Wanted {
    by: usize,
    standing: watch::Sender<Standing>,
}

/// One that waits. Dropped, it does no more.
#[derive(Debug)]
pub(super) struct Want {
    pub(super) of: InstanceRef,
    /// Whether nobody else waited for it.
    pub(super) is_first: bool,
    pub(super) standing: watch::Receiver<Standing>,
    table: Table,
}

impl Table {
    pub(super) async fn rung(&self) {
        self.0.rung.notified().await;
    }

    pub(super) fn wanted(&self) -> BTreeSet<InstanceRef> {
        self.lock().wants.keys().copied().collect()
    }

    pub(super) fn publish(&self, placed: BTreeMap<InstanceRef, Resident>) {
        let mut state = self.lock();
        for (of, wanted) in &state.wants {
            wanted.standing.send_if_modified(|standing| {
                let now = placed.get(of).map(|resident| resident.standing.clone());
                let now = now.unwrap_or_else(|| match standing {
                    Standing::Failed(why) => Standing::Gone(Some(why.clone())),
                    Standing::Gone(why) => Standing::Gone(why.clone()),
                    Standing::Alive | Standing::Down => Standing::Gone(None),
                });
                let is_news = *standing != now;
                *standing = now;
                is_news
            });
        }
        state.placed = placed;
        drop(state);
        self.0
            .known
            .send_if_modified(|known| !std::mem::replace(known, true));
    }

    /// The raw ports of the instance if it is placed here, as soon as that can be known.
    pub(super) async fn ports(&self, of: InstanceRef) -> Option<Vec<u16>> {
        // An error means that the table is gone, and with it everybody who could ask.
        let _ = self.0.known.subscribe().wait_for(|known| *known).await;
        let state = self.lock();
        state.placed.get(&of).map(|resident| resident.ports.clone())
    }

    /// Waits for an instance, if not so many do already.
    pub(super) fn want(&self, of: InstanceRef, waiting_max: usize) -> Option<Want> {
        let mut state = self.lock();
        let now = state.placed.get(&of);
        let now = now.map(|resident| resident.standing.clone());
        let (is_first, standing) = match state.wants.entry(of) {
            Entry::Occupied(mut known) => {
                let wanted = known.get_mut();
                if wanted.by >= waiting_max {
                    return None;
                }
                wanted.by += 1;
                (false, wanted.standing.subscribe())
            }
            Entry::Vacant(new) => {
                let now = now.unwrap_or(Standing::Gone(None));
                let standing = watch::Sender::new(now);
                let subscribed = standing.subscribe();
                new.insert(Wanted { by: 1, standing });
                self.0.rung.notify_one();
                (true, subscribed)
            }
        };
        let table = self.clone();
        Some(Want {
            of,
            is_first,
            standing,
            table,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Want {
    fn drop(&mut self) {
        let mut state = self.table.lock();
        if let Entry::Occupied(mut known) = state.wants.entry(self.of) {
            known.get_mut().by -= 1;
            if known.get().by == 0 {
                known.remove();
                // Nobody wants it any more: that changes what is to be done, too.
                self.table.0.rung.notify_one();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::tests::of;

    #[tokio::test]
    async fn those_who_wait_for_one_hear_the_same() {
        let (table, it) = (Table::default(), of(1, 1));
        let publish = |standing: Option<Standing>| {
            let ports = vec![5432];
            let resident = standing.map(|standing| Resident { standing, ports });
            table.publish(
                resident
                    .map(|resident| (it, resident))
                    .into_iter()
                    .collect(),
            );
        };
        publish(Some(Standing::Down));
        assert_eq!(table.ports(it).await, Some(vec![5432]));
        assert_eq!(table.ports(of(1, 2)).await, None);
        let (one, two) = (table.want(it, 2).unwrap(), table.want(it, 2).unwrap());
        assert!(one.is_first && !two.is_first);
        assert!(table.want(it, 2).is_none(), "as many as may");
        assert!(table.want(of(1, 2), 2).is_some(), "of each");
        table.rung().await;
        assert_eq!(table.wanted(), [it].into());
        for standing in [Standing::Alive, Standing::Failed("no memory".to_owned())] {
            publish(Some(standing.clone()));
            assert_eq!(*one.standing.borrow(), standing);
        }
        publish(None);
        publish(None);
        let gone = Standing::Gone(Some("no memory".to_owned()));
        assert_eq!(*two.standing.borrow(), gone, "and why stays known");
        drop(one);
        assert_eq!(table.wanted(), [it].into());
        drop(two);
        assert!(table.wanted().is_empty());
        assert_eq!(
            *table.want(it, 2).unwrap().standing.borrow(),
            Standing::Gone(None)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_placed_is_known_once_it_was_said() {
        let (table, it) = (Table::default(), of(1, 1));
        let soon = std::time::Duration::from_secs(1);
        assert!(tokio::time::timeout(soon, table.ports(it)).await.is_err());
        table.publish(BTreeMap::new());
        assert_eq!(table.ports(it).await, None);
    }
}
