//! What an endpoint tells about its peers: for `tabbify mesh status` and `explain`.

use std::time::Duration;

use tabbify_types::MeshKey;

use crate::path::Path;

/// Where a peer is reached, and why not better.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PeerStatus {
    /// The peer.
    pub key: MeshKey,
    /// The path that data takes; `None` before anything was heard.
    pub path: Option<Path>,
    /// Its round trip, where probes have measured it.
    pub rtt: Option<Duration>,
    /// Since when nothing authentic came from the peer; `None` if nothing ever did.
    pub silent: Option<Duration>,
    /// How often the path changed.
    pub changes: u64,
    /// Why there is no direct path, for people; `None` if there is.
    pub why_relayed: Option<&'static str>,
}
