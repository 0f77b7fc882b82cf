//! Counters of the gateway.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// A snapshot of the counters, all since the gateway was started.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[non_exhaustive]
        pub struct Stats {
            /// Devices with a session now.
            pub devices: u64,
            /// Connections now.
            pub connections: u64,
            $($(#[$doc])* pub $name: u64,)*
        }

        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $(pub(crate) $name: AtomicU64,)*
        }

        impl Counters {
            pub(crate) fn snapshot(&self, devices: u64, connections: usize) -> Stats {
                Stats {
                    devices,
                    connections: connections as u64,
                    $($name: self.$name.load(Ordering::Relaxed),)*
                }
            }
        }
    };
}

counters! {
    /// Connections that were carried to their destination.
    carried,
    /// Connections that policy refused.
    refused,
    /// Connections that were refused because there were too many.
    refused_full,
    /// Connections whose destination did not answer.
    unreachable,
    /// Connections that were cut because a device or a rule was taken away.
    cut,
    /// Bytes that devices sent.
    bytes_up,
    /// Bytes that devices were sent.
    bytes_down,
}

/// Adds one.
pub(crate) fn count(counter: &AtomicU64) {
    add(counter, 1);
}

/// Adds `n`.
pub(crate) fn add(counter: &AtomicU64, n: usize) {
    counter.fetch_add(n as u64, Ordering::Relaxed);
}
