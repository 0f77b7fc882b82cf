//! What waits for one peer behind a TLS connection: two lanes, each bounded in bytes. What is urgent
//! goes first; when a lane is full its oldest is dropped, since what is newest is worth most.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

/// LIMIT: bytes that wait in each lane, with their bookkeeping.
const URGENT_BYTES_MAX: usize = 64 * 1024;
const BULK_BYTES_MAX: usize = 256 * 1024;
const OVERHEAD: usize = 64;

#[derive(Debug)]
pub(crate) struct Queue {
    lanes: Mutex<Lanes>,
    filled: Notify,
}

#[derive(Debug, Default)]
struct Lanes {
    urgent: Lane,
    bulk: Lane,
    closed: bool,
}

#[derive(Debug, Default)]
struct Lane {
    messages: VecDeque<Bytes>,
    bytes: usize,
}

impl Lane {
    /// How many were dropped for it.
    fn push(&mut self, message: Bytes, most: usize) -> u64 {
        self.bytes += message.len() + OVERHEAD;
        self.messages.push_back(message);
        let mut dropped = 0;
        while self.bytes > most {
            let Some(oldest) = self.messages.pop_front() else {
                break;
            };
            self.bytes -= oldest.len() + OVERHEAD;
            dropped += 1;
        }
        dropped
    }

    fn pop(&mut self) -> Option<Bytes> {
        let message = self.messages.pop_front()?;
        self.bytes -= message.len() + OVERHEAD;
        Some(message)
    }
}

impl Queue {
    pub(crate) fn new() -> Self {
        Self {
            lanes: Mutex::default(),
            filled: Notify::new(),
        }
    }

    /// Takes a message; how many others were dropped for it.
    pub(crate) fn push(&self, message: Bytes, urgent: bool) -> u64 {
        let mut lanes = self.lanes();
        if lanes.closed {
            return 1;
        }
        let dropped = if urgent {
            lanes.urgent.push(message, URGENT_BYTES_MAX)
        } else {
            lanes.bulk.push(message, BULK_BYTES_MAX)
        };
        drop(lanes);
        self.filled.notify_one();
        dropped
    }

    /// Takes what goes next, if there is something.
    pub(crate) fn try_pop(&self) -> Option<Bytes> {
        let mut lanes = self.lanes();
        lanes.urgent.pop().or_else(|| lanes.bulk.pop())
    }

    /// Waits for what goes next; `None` when the queue was closed. Safe to cancel.
    pub(crate) async fn pop(&self) -> Option<Bytes> {
        loop {
            if let Some(message) = self.try_pop() {
                return Some(message);
            }
            if self.lanes().closed {
                return None;
            }
            self.filled.notified().await;
        }
    }

    /// Ends whoever waits.
    pub(crate) fn close(&self) {
        self.lanes().closed = true;
        self.filled.notify_one();
    }

    fn lanes(&self) -> MutexGuard<'_, Lanes> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(n: u64, len: usize) -> Bytes {
        let mut bytes = n.to_be_bytes().to_vec();
        bytes.resize(len.max(8), 0);
        bytes.into()
    }

    fn number(message: &Bytes) -> u64 {
        u64::from_be_bytes(*message.first_chunk().unwrap())
    }

    #[test]
    fn handshakes_pass_a_saturated_lane() {
        let queue = Queue::new();
        for n in 0..1000 {
            queue.push(message(n, 1452), false);
        }
        queue.push(message(5000, 148), true);
        assert_eq!(queue.try_pop().as_ref().map(number), Some(5000));
        // The oldest were dropped, the newest are there, in order.
        let rest: Vec<u64> = std::iter::from_fn(|| queue.try_pop())
            .map(|m| number(&m))
            .collect();
        assert_eq!(rest.last(), Some(&999));
        assert!(rest.windows(2).all(|pair| pair[0] + 1 == pair[1]));
        assert!(rest.len() * (1452 + OVERHEAD) <= BULK_BYTES_MAX);
    }

    #[tokio::test]
    async fn closing_ends_who_waits() {
        let queue = Queue::new();
        let (popped, ()) = tokio::join!(queue.pop(), async { queue.close() });
        assert_eq!(popped, None);
        assert_eq!(queue.push(message(1, 8), true), 1);
    }

    proptest! {
        #[test]
        fn bounded_and_counted(pushes in proptest::collection::vec((any::<bool>(), 8usize..3000), 0..600)) {
            let (queue, mut dropped) = (Queue::new(), 0);
            for (n, (urgent, len)) in pushes.iter().enumerate() {
                dropped += queue.push(message(n as u64, *len), *urgent);
                let lanes = queue.lanes();
                prop_assert!(lanes.urgent.bytes <= URGENT_BYTES_MAX && lanes.bulk.bytes <= BULK_BYTES_MAX);
            }
            let left = std::iter::from_fn(|| queue.try_pop()).count() as u64;
            prop_assert_eq!(left + dropped, pushes.len() as u64);
            let lanes = queue.lanes();
            prop_assert_eq!((lanes.urgent.bytes, lanes.bulk.bytes), (0, 0));
        }
    }
}
