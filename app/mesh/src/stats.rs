//! Counters of one endpoint: what passed, and what was dropped and why.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// A snapshot of the counters, all since the endpoint was bound.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct Stats {
            /// Peers with a session now.
            pub sessions: u64,
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Stats {
            /// The counters with their names, in the order above.
            #[must_use]
            pub fn named(&self) -> Vec<(String, u64)> {
                let mut named = vec![("sessions".to_owned(), self.sessions)];
                $(named.push((stringify!($name).to_owned(), self.$name));)*
                named
            }
        }

        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $(pub(crate) $name: AtomicU64,)*
        }

        impl Counters {
            pub(crate) fn snapshot(&self, sessions: usize) -> Stats {
                Stats {
                    sessions: sessions as u64,
                    $($name: self.$name.load(Ordering::Relaxed),)*
                }
            }
        }
    };
}

counters! {
    /// Bytes of UDP payload received.
    bytes_in,
    /// Bytes of UDP payload sent.
    bytes_out,
    /// UDP datagrams received.
    datagrams_in,
    /// UDP datagrams sent.
    datagrams_out,
    /// Of the datagrams received, those that a relay passed on.
    relayed_in,
    /// Of the datagrams sent, those to a relay.
    relayed_out,
    /// Handshakes completed, as either side.
    handshakes,
    /// TCP connections accepted.
    accepted,
    /// TCP connections dialed with success.
    dialed,
    /// Dropped: not a WireGuard message.
    dropped_malformed,
    /// Dropped: for a session that does not exist (any more).
    dropped_unknown_session,
    /// Dropped: a handshake whose key the resolver does not know or refuses.
    dropped_unknown_key,
    /// Dropped: a handshake that does not authenticate, or is a replay.
    dropped_handshake,
    /// Answered with a cookie instead, or not at all: too many handshakes, of all or from one address.
    dropped_rate_limited,
    /// Dropped: a probe that does not authenticate, or of nobody we talk to.
    dropped_probe,
    /// Dropped: a transport message that does not authenticate.
    dropped_forged,
    /// Dropped: a transport message seen before, or too old to tell.
    dropped_replayed,
    /// Sessions that were cut because their peer may not talk to us any more.
    revoked,
    /// Dropped: the opening of a connection that policy does not allow, or a handshake of who may reach
    /// nothing here.
    dropped_forbidden,
    /// Dropped: an inner packet from an address that its sender does not own.
    dropped_spoofed_source,
    /// Dropped: an inner packet that is not IPv6, or not for us.
    dropped_inner,
    /// Dropped: more arrived than could be worked off.
    dropped_overload,
    /// Dropped: the network did not take a datagram.
    dropped_unsent,
}

/// Adds one.
pub(crate) fn count(counter: &AtomicU64) {
    add(counter, 1);
}

/// Adds `n`.
pub(crate) fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}
