//! What a session tells about its peer, and round trips on demand.

use std::time::Duration as StdDuration;

use smoltcp::time::Instant;
use tabbify_types::MeshKey;

use super::{Outbox, Session};
use crate::path::{Path, Wishes};
use crate::status::{Examined, PeerStatus};

impl Session {
    /// Where the peer is reached.
    pub(crate) fn status(&self, key: MeshKey, now: Instant) -> PeerStatus {
        let path = self.agent.current();
        let why_relayed = match path {
            None => Some("nothing was heard of it yet"),
            Some(path) if !path.is_relayed() => None,
            Some(_) if self.agent.is_hopeless() => {
                Some("both NATs take another port for every destination")
            }
            Some(_) => Some("no direct path is proven yet; it is looked for while there is data"),
        };
        let (_, sent, received, ..) = self.tunn.stats();
        PeerStatus {
            key,
            addresses: self.theirs.clone(),
            path,
            rtt: self.agent.rtt().map(Into::into),
            handshake: self.tunn.time_since_last_handshake(),
            silent: self.heard.map(|heard| (now - heard).into()),
            bytes_in: received as u64,
            bytes_out: sent as u64,
            changes: self.agent.changes(),
            why_relayed,
        }
    }

    /// The paths that are known.
    pub(crate) fn examine(&self, now: Instant) -> Examined {
        self.agent.examine(now)
    }

    /// Whether there are keys, so that the peer has a session too and answers probes.
    pub(crate) fn is_ready(&self) -> bool {
        self.tunn.has_active_session() && self.heard.is_some()
    }

    /// Sends a ping; says on which path, and by which id [`Self::echoed`] knows it.
    pub(crate) fn ping(&mut self, out: &mut Outbox, now: Instant) -> Option<(Path, u64)> {
        let mut wishes = Wishes::default();
        let asked = self.agent.ping(&mut wishes, now);
        self.grant(wishes, out);
        // The session is in use, though no data is.
        self.traffic = now;
        asked
    }

    /// How long a ping took, once its answer is there.
    pub(crate) fn echoed(&self, id: u64) -> Option<StdDuration> {
        self.agent.echoed(id).map(Into::into)
    }
}
