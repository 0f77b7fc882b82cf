//! Round trips to a peer on demand: authenticated probes on the path that data takes.

use std::fmt;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::sync::Arc;
use std::time::Duration;

use tabbify_types::MeshKey;
use tokio::time::Instant;

use crate::endpoint::Endpoint;
use crate::path::Path;
use crate::peer::{Peer, send_all};
use crate::session::Outbox;
use crate::{DialError, Mesh};

/// How often it is looked whether a handshake is over: it is told to nobody.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// A peer that is there to be pinged.
pub struct Reached {
    endpoint: Arc<Endpoint>,
    peer: Arc<Peer>,
    handshake: Option<Duration>,
}

impl fmt::Debug for Reached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reached")
            .field("key", &self.peer.key)
            .field("handshake", &self.handshake)
            .finish_non_exhaustive()
    }
}

/// What came of one ping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pinged {
    /// The path that it took; none if there is none.
    pub path: Option<Path>,
    /// How long it took; none if no answer came in time.
    pub rtt: Option<Duration>,
}

impl Mesh {
    /// Finds the peer that answers for an inner address, and makes keys with it if there are none.
    ///
    /// # Errors
    /// Those of [`Mesh::dial`] that are not about a port.
    pub async fn reach(&self, address: Ipv6Addr) -> Result<Reached, DialError> {
        let (began, endpoint) = (Instant::now(), self.endpoint());
        let deadline = began + endpoint.ours.limits.dial_timeout;
        let peer = self.meet(address, deadline).await?;
        let ready = peer.session().is_ready();
        if !ready {
            let now = peer.epoch.now();
            peer.session().nudge(now);
            peer.kick();
        }
        while !peer.session().is_ready() {
            if endpoint.stop.is_cancelled() {
                return Err(DialError::Closed);
            }
            if Instant::now() >= deadline {
                let remote = SocketAddrV6::new(address, 0, 0, 0);
                return Err(DialError::Unreachable(remote));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(Reached {
            endpoint: Arc::clone(endpoint),
            peer,
            handshake: (!ready).then(|| began.elapsed()),
        })
    }
}

impl Reached {
    /// The peer's key.
    #[must_use]
    pub fn key(&self) -> MeshKey {
        self.peer.key
    }

    /// How long the handshake took, if one was needed.
    #[must_use]
    pub const fn handshake(&self) -> Option<Duration> {
        self.handshake
    }

    /// One round trip, at most `within`.
    pub async fn ping(&self, within: Duration) -> Pinged {
        let mut out = Outbox::default();
        let now = self.peer.epoch.now();
        let asked = self.peer.session().ping(&mut out, now);
        let Some((path, id)) = asked else {
            return Pinged {
                path: None,
                rtt: None,
            };
        };
        send_all(&out.datagrams, &self.endpoint).await;
        // The path agent has something to do now.
        self.peer.kick();
        let around = &self.endpoint.ours.around;
        let answered = async {
            loop {
                let mut echoed = std::pin::pin!(around.echoed.notified());
                echoed.as_mut().enable();
                if let Some(rtt) = self.peer.session().echoed(id) {
                    return rtt;
                }
                echoed.await;
            }
        };
        let rtt = tokio::time::timeout(within, answered).await.ok();
        Pinged {
            path: Some(path),
            rtt,
        }
    }
}
