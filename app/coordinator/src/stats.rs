//! What was answered and what was refused, counted.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What happened so far, since the start.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub struct Stats {
            $($(#[$doc])* pub $name: u64,)*
            /// Lines for watches.
            pub told: u64,
        }

        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $(pub(crate) $name: AtomicU64,)*
        }

        impl Counters {
            pub(crate) fn stats(&self, told: u64) -> Stats {
                Stats {
                    $($name: self.$name.load(Ordering::Relaxed),)*
                    told,
                }
            }
        }
    };
}

counters! {
    /// Connections whose WireGuard key was proven.
    proven,
    /// Connections that proved none, or too late.
    unproven,
    /// Requests, and connections, beyond what one key or one address may make.
    limited,
    /// Requests of keys that are nobody's.
    strangers,
    /// Leases that were given to those who asked for them.
    resolved,
    /// Questions about what nobody holds.
    unresolved,
    /// Questions that policy does not allow an answer to.
    denied,
    /// Names that were answered.
    named,
    /// Names that nobody has whom the asker may reach.
    unnamed,
    /// Leases that were given for spawn tickets, or renewed.
    granted,
    /// Spawn tickets that were refused, and renewals of no lease.
    not_granted,
    /// Renewals of instances that a newer one has taken over from.
    fenced,
    /// Machines that joined, or asked again.
    joined,
    /// Join tokens that were refused.
    not_joined,
    /// Machines that this coordinator has declared lost.
    lost,
}

/// One more.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
