//! The peers that a relay knows, and how each is reached: over UDP, over TLS, or both; whichever it
//! was last heard on is used.

use std::collections::HashMap;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use tabbify_api::mesh::PeerRecord;
use tabbify_types::{MeshKey, Tenant};
use tokio::time::Instant;

use super::bucket::Bucket;
use super::frame::Token;
use super::queue::Queue;
use super::server::RelayLimits;
use crate::doubt::Concern;
use crate::path::Tag;
use crate::underlay::Socket;

/// A peer that was silent for so long on UDP, three keep-alives, is not there any more.
const UDP_TIMEOUT: Duration = Duration::from_secs(90);

/// A registered peer.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) key: MeshKey,
    pub(super) tag: Tag,
    pub(super) token: Token,
    bucket: Mutex<Bucket>,
    ways: Mutex<Ways>,
    standing: Mutex<Standing>,
}

/// What says which changes concern a peer; nothing before it was told.
#[derive(Debug, Default)]
struct Standing {
    addresses: Option<Vec<Ipv6Addr>>,
    rules_of: Vec<Tenant>,
}

#[derive(Debug, Default)]
struct Ways {
    udp: Option<(Arc<Socket>, SocketAddr, Instant)>,
    tls: Option<(Arc<Queue>, Instant)>,
}

/// How a peer is reached now.
#[derive(Debug)]
pub(super) enum Way {
    Udp(Arc<Socket>, SocketAddr),
    Tls(Arc<Queue>),
}

/// Why a peer is not registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    Full,
    /// Another key has the same tag.
    Tag,
}

/// All of them.
#[derive(Debug)]
pub(super) struct Clients {
    limits: RelayLimits,
    tags: RwLock<HashMap<Tag, Arc<Client>>>,
    places: RwLock<HashMap<SocketAddr, Arc<Client>>>,
}

impl Client {
    fn ways(&self) -> MutexGuard<'_, Ways> {
        self.ways.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn way(&self) -> Option<Way> {
        let ways = self.ways();
        match (&ways.udp, &ways.tls) {
            (Some((socket, to, udp)), Some((_, tls))) if udp >= tls => {
                Some(Way::Udp(Arc::clone(socket), *to))
            }
            (_, Some((queue, _))) => Some(Way::Tls(Arc::clone(queue))),
            (Some((socket, to, _)), None) => Some(Way::Udp(Arc::clone(socket), *to)),
            (None, None) => None,
        }
    }

    /// Takes what the platform says of the peer.
    pub(super) fn stands(&self, record: &PeerRecord) {
        *self.standing() = Standing {
            addresses: Some(record.addresses.clone()),
            rules_of: record.rules_of.clone(),
        };
    }

    fn standing(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn heard_on_udp(&self, now: Instant) {
        if let Some((_, _, heard)) = &mut self.ways().udp {
            *heard = now;
        }
    }

    pub(super) fn heard_on_tls(&self, now: Instant) {
        if let Some((_, heard)) = &mut self.ways().tls {
            *heard = now;
        }
    }

    /// Whether it may send so many bytes now.
    pub(super) fn may_send(&self, bytes: usize, now: Instant) -> bool {
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        bucket.take(bytes as u64, now)
    }

    /// Takes this connection back, if no later one took its place; whether nothing is left.
    fn leave_tls(&self, queue: &Arc<Queue>) -> bool {
        let mut ways = self.ways();
        if ways
            .tls
            .as_ref()
            .is_some_and(|(known, _)| Arc::ptr_eq(known, queue))
        {
            ways.tls = None;
        }
        ways.udp.is_none() && ways.tls.is_none()
    }
}

impl Clients {
    pub(super) fn new(limits: RelayLimits) -> Self {
        Self {
            limits,
            tags: RwLock::default(),
            places: RwLock::default(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.tags
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }

    pub(super) fn by_tag(&self, tag: Tag) -> Option<Arc<Client>> {
        let tags = self.tags.read().unwrap_or_else(PoisonError::into_inner);
        tags.get(&tag).cloned()
    }

    /// Who is registered from this address, with this token.
    pub(super) fn by_place(&self, from: SocketAddr, token: Token) -> Option<Arc<Client>> {
        let places = self.places.read().unwrap_or_else(PoisonError::into_inner);
        places
            .get(&from)
            .filter(|client| client.token == token)
            .cloned()
    }

    /// The client with this key, made if there is none. Whoever calls it keeps the lock until the
    /// client has a way, so that it is not swept away before.
    fn client(
        &self,
        tags: &mut HashMap<Tag, Arc<Client>>,
        key: MeshKey,
        now: Instant,
    ) -> Result<Arc<Client>, Refusal> {
        let tag = Tag::of(key);
        if let Some(client) = tags.get(&tag) {
            return if client.key == key {
                Ok(Arc::clone(client))
            } else {
                Err(Refusal::Tag)
            };
        }
        if tags.len() >= self.limits.clients {
            return Err(Refusal::Full);
        }
        let (rate, burst) = (self.limits.bytes_per_second, self.limits.burst_bytes);
        let client = Arc::new(Client {
            key,
            tag,
            token: tabbify_process::random(),
            bucket: Mutex::new(Bucket::new(rate, burst, now)),
            ways: Mutex::default(),
            standing: Mutex::default(),
        });
        tags.insert(tag, Arc::clone(&client));
        Ok(client)
    }

    /// Registers a peer that has proven its key and to be at this address.
    pub(super) fn register_udp(
        &self,
        key: MeshKey,
        socket: &Arc<Socket>,
        from: SocketAddr,
        now: Instant,
    ) -> Result<Arc<Client>, Refusal> {
        let mut tags = self.tags.write().unwrap_or_else(PoisonError::into_inner);
        let client = self.client(&mut tags, key, now)?;
        let before = client.ways().udp.replace((Arc::clone(socket), from, now));
        let mut places = self.places.write().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, before, _)) = before.filter(|(_, before, _)| *before != from) {
            places.remove(&before);
        }
        // Who was there before is not there any more.
        if let Some(other) = places.insert(from, Arc::clone(&client))
            && !Arc::ptr_eq(&other, &client)
        {
            other.ways().udp = None;
        }
        Ok(client)
    }

    /// Registers a peer that has proven its key on a connection; an earlier one of it ends.
    pub(super) fn register_tls(
        &self,
        key: MeshKey,
        queue: &Arc<Queue>,
        now: Instant,
    ) -> Result<Arc<Client>, Refusal> {
        let mut tags = self.tags.write().unwrap_or_else(PoisonError::into_inner);
        let client = self.client(&mut tags, key, now)?;
        if let Some((before, _)) = client.ways().tls.replace((Arc::clone(queue), now)) {
            before.close();
        }
        Ok(client)
    }

    /// A connection has ended.
    pub(super) fn leave_tls(&self, client: &Arc<Client>, queue: &Arc<Queue>) {
        let mut tags = self.tags.write().unwrap_or_else(PoisonError::into_inner);
        let is_known = tags
            .get(&client.tag)
            .is_some_and(|known| Arc::ptr_eq(known, client));
        if client.leave_tls(queue) && is_known {
            tags.remove(&client.tag);
        }
    }

    /// Who is registered with this key.
    pub(super) fn by_key(&self, key: MeshKey) -> Option<Arc<Client>> {
        let client = self.by_tag(Tag::of(key));
        client.filter(|client| client.key == key)
    }

    /// Who is registered now, of those that this is about.
    pub(super) fn keys(&self, is_meant: impl Fn(Concern<'_>) -> bool) -> Vec<MeshKey> {
        let tags = self.tags.read().unwrap_or_else(PoisonError::into_inner);
        let is_meant = |client: &&Arc<Client>| {
            let standing = client.standing();
            is_meant(Concern {
                key: client.key,
                addresses: standing.addresses.as_deref(),
                rules_of: &standing.rules_of,
            })
        };
        let meant = tags.values().filter(is_meant);
        meant.map(|client| client.key).collect()
    }

    /// Forgets a peer that may not use the relay any more, whatever it is reached over; whether it was there.
    pub(super) fn remove(&self, key: MeshKey) -> bool {
        let mut tags = self.tags.write().unwrap_or_else(PoisonError::into_inner);
        let tag = Tag::of(key);
        if tags.get(&tag).is_none_or(|client| client.key != key) {
            return false;
        }
        let Some(client) = tags.remove(&tag) else {
            return false;
        };
        let ways = std::mem::take(&mut *client.ways());
        if let Some((_, from, _)) = ways.udp {
            let mut places = self.places.write().unwrap_or_else(PoisonError::into_inner);
            if places
                .get(&from)
                .is_some_and(|known| Arc::ptr_eq(known, &client))
            {
                places.remove(&from);
            }
        }
        if let Some((queue, _)) = ways.tls {
            queue.close();
        }
        true
    }

    /// Forgets who was silent for too long.
    pub(super) fn sweep(&self, now: Instant) {
        let mut tags = self.tags.write().unwrap_or_else(PoisonError::into_inner);
        let mut places = self.places.write().unwrap_or_else(PoisonError::into_inner);
        tags.retain(|_, client| {
            let mut ways = client.ways();
            if let Some((_, from, heard)) = &ways.udp
                && now >= *heard + UDP_TIMEOUT
            {
                if places
                    .get(from)
                    .is_some_and(|known| Arc::ptr_eq(known, client))
                {
                    places.remove(from);
                }
                ways.udp = None;
            }
            ways.udp.is_some() || ways.tls.is_some()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket() -> Arc<Socket> {
        Arc::new(Socket::bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap())
    }

    fn at(port: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], port))
    }

    fn key(n: u8) -> MeshKey {
        MeshKey([n; 32])
    }

    #[tokio::test]
    async fn the_way_is_where_it_was_heard_last() {
        let (clients, socket, now) = (
            Clients::new(RelayLimits::default()),
            socket(),
            Instant::now(),
        );
        let step = Duration::from_secs(1);
        let client = clients.register_udp(key(1), &socket, at(1), now).unwrap();
        assert!(matches!(client.way(), Some(Way::Udp(_, to)) if to == at(1)));
        let queue = Arc::new(Queue::new());
        clients.register_tls(key(1), &queue, now + step).unwrap();
        assert!(matches!(client.way(), Some(Way::Tls(_))));
        client.heard_on_udp(now + step * 2);
        assert!(matches!(client.way(), Some(Way::Udp(..))));
        // A second connection ends the first, whose end then changes nothing.
        let second = Arc::new(Queue::new());
        clients
            .register_tls(key(1), &second, now + step * 3)
            .unwrap();
        assert_eq!(queue.pop().await, None);
        clients.leave_tls(&client, &queue);
        assert!(matches!(client.way(), Some(Way::Tls(_))));
        clients.leave_tls(&client, &second);
        assert!(matches!(client.way(), Some(Way::Udp(..))));
        clients.sweep(now + step * 200);
        assert_eq!((clients.len(), client.way().is_none()), (0, true));
        assert!(clients.by_place(at(1), client.token).is_none());
    }

    #[tokio::test]
    async fn who_is_removed_is_on_no_way_any_more() {
        let (clients, socket, now) = (
            Clients::new(RelayLimits::default()),
            socket(),
            Instant::now(),
        );
        let client = clients.register_udp(key(1), &socket, at(1), now).unwrap();
        let queue = Arc::new(Queue::new());
        clients.register_tls(key(1), &queue, now).unwrap();
        clients.register_udp(key(2), &socket, at(2), now).unwrap();
        let mut alike = key(1);
        alike.0[31] = 9;
        assert!(!clients.remove(alike), "another key with the same tag");
        assert!(clients.remove(key(1)) && !clients.remove(key(1)));
        assert!(client.way().is_none());
        assert_eq!(queue.pop().await, None, "its connection ends");
        assert!(clients.by_tag(Tag::of(key(1))).is_none());
        assert!(clients.by_place(at(1), client.token).is_none());
        assert_eq!(clients.keys(|_| true), [key(2)]);
        // The end of its connection changes nothing for whoever comes after it.
        clients.register_udp(key(1), &socket, at(1), now).unwrap();
        clients.leave_tls(&client, &queue);
        assert_eq!(clients.len(), 2);
    }

    #[tokio::test]
    async fn a_place_is_of_one_peer_and_a_tag_of_one_key() {
        let limits = RelayLimits {
            clients: 2,
            ..RelayLimits::default()
        };
        let (clients, socket, now) = (Clients::new(limits), socket(), Instant::now());
        let first = clients.register_udp(key(1), &socket, at(1), now).unwrap();
        assert!(clients.by_place(at(1), [0; 8]).is_none(), "a guessed token");
        let second = clients.register_udp(key(2), &socket, at(1), now).unwrap();
        assert!(first.way().is_none());
        assert!(clients.by_place(at(1), second.token).is_some());
        assert_eq!(
            clients
                .register_udp(key(3), &socket, at(3), now)
                .unwrap_err(),
            Refusal::Full
        );
        let mut thief = key(1);
        thief.0[31] = 9;
        assert_eq!(
            clients
                .register_udp(thief, &socket, at(4), now)
                .unwrap_err(),
            Refusal::Tag
        );
        // It moves: its old address is nobody's.
        clients.register_udp(key(2), &socket, at(5), now).unwrap();
        assert!(clients.by_place(at(1), second.token).is_none());
    }
}
