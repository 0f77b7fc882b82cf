//! Every connection there is: how many, whose, where to, and how to cut one.

use std::collections::HashMap;
use std::net::SocketAddrV6;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tabbify_types::MeshKey;
use tokio_util::sync::CancellationToken;

/// The connections. Clones are the same ones.
#[derive(Debug, Clone)]
pub(crate) struct Live {
    max: usize,
    table: Arc<Mutex<Table>>,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    connections: HashMap<u64, Connection>,
}

#[derive(Debug)]
struct Connection {
    device: MeshKey,
    to: SocketAddrV6,
    cut: CancellationToken,
}

/// A connection's place; free again when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    number: u64,
    /// Cancelled when the connection is not allowed any more.
    pub(crate) cut: CancellationToken,
    live: Live,
}

impl Live {
    pub(crate) fn new(max: usize) -> Self {
        Self {
            max,
            table: Arc::default(),
        }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.table().connections.len()
    }

    /// Whether there is room for another.
    pub(crate) fn has_room(&self) -> bool {
        self.len() < self.max
    }

    /// Takes one in; none if there is no room.
    pub(crate) fn enter(&self, device: MeshKey, to: SocketAddrV6) -> Option<Place> {
        let mut table = self.table();
        if table.connections.len() >= self.max {
            return None;
        }
        let number = table.next;
        table.next += 1;
        let cut = CancellationToken::new();
        let connection = Connection {
            device,
            to,
            cut: cut.clone(),
        };
        table.connections.insert(number, connection);
        Some(Place {
            number,
            cut,
            live: self.clone(),
        })
    }

    /// Cuts those that are not allowed.
    pub(crate) fn keep(&self, is_allowed: impl Fn(&MeshKey, &SocketAddrV6) -> bool) {
        // Policy is not asked under the lock, which every SYN takes.
        let all: Vec<(MeshKey, SocketAddrV6, CancellationToken)> = {
            let table = self.table();
            let all = table.connections.values();
            all.map(|it| (it.device, it.to, it.cut.clone())).collect()
        };
        for (device, to, cut) in all {
            if !is_allowed(&device, &to) {
                cut.cancel();
            }
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.live.table().connections.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_given_back_and_cut() {
        let live = Live::new(2);
        let to = |port| SocketAddrV6::new("fd5a:1f02:1:2:3::1".parse().unwrap(), port, 0, 0);
        let (anna, ben) = (MeshKey([1; 32]), MeshKey([2; 32]));
        let first = live.enter(anna, to(80)).unwrap();
        let second = live.enter(ben, to(22)).unwrap();
        assert!(!live.has_room() && live.enter(anna, to(80)).is_none());
        live.keep(|device, to| *device == anna || to.port() == 80);
        assert!(!first.cut.is_cancelled() && second.cut.is_cancelled());
        drop(second);
        assert_eq!(live.len(), 1);
        assert!(live.has_room() && live.enter(ben, to(80)).is_some());
    }
}
