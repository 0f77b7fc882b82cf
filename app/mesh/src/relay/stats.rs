//! Counters of one relay.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// A snapshot of a relay's counters, all since it was made.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct RelayStats {
            /// Peers that are registered now.
            pub clients: u64,
            $($(#[$doc])* pub $name: u64,)*
        }

        #[derive(Debug, Default)]
        pub(super) struct Counters {
            $(pub(super) $name: AtomicU64,)*
        }

        impl Counters {
            pub(super) fn snapshot(&self, clients: usize) -> RelayStats {
                RelayStats {
                    clients: clients as u64,
                    $($name: self.$name.load(Ordering::Relaxed),)*
                }
            }
        }
    };
}

counters! {
    /// Datagrams passed on.
    datagrams,
    /// Bytes of them, without framing.
    bytes,
    /// Peers registered over UDP, each time.
    registered_udp,
    /// Peers registered over TLS, each time.
    registered_tls,
    /// STUN requests answered.
    stun,
    /// Refused: no proof of possession of the key.
    refused_proof,
    /// Refused: a key that nobody knows, or another one with the same tag.
    refused_key,
    /// Registered peers that were removed because their key is nobody's any more.
    revoked,
    /// Refused: too many, at once or in a second.
    refused_limit,
    /// Dropped: not a frame, or from who is not registered.
    dropped_malformed,
    /// Dropped: nobody with that tag is registered.
    dropped_absent,
    /// Dropped: more than the sender may send.
    dropped_rate,
    /// Dropped: the receiver takes less than it is sent.
    dropped_queue,
}

/// Adds one.
pub(super) fn count(counter: &AtomicU64) {
    add(counter, 1);
}

/// Adds `n`.
pub(super) fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}
