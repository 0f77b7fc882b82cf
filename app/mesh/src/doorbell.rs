//! Idle instances: their machine is dialed in their place, and told whom it is about (`tabbify_api::doorbell`).
//! A process that dials an instance of its own machine is connected inside, for it has no tunnel to itself.

use std::fmt;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::sync::PoisonError;
use std::time::Duration;

use tabbify_api::doorbell::{DOORBELL_PORT, Heard, Knock};
use tabbify_api::mesh::PeerRecord;
use tabbify_types::event::v1::InstanceRef;
use tabbify_types::{AppUla, InstanceUla};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout_at};

use crate::doubt::Asked;
use crate::stream::OwnStream;
use crate::{DialError, Incoming, Listener, Mesh, MeshError, Stream};

/// LIMIT: bytes of a connection inside this process that were not read yet, for each direction.
const OWN_LEN_MAX: usize = 64 * 1024;
/// LIMIT: connections inside this process that were not taken yet.
const OWN_BACKLOG: usize = 128;
/// How long after a doorbell has said that the instance is not behind it the resolver is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(50);

/// Where callers of this machine's idle instances come in. Dropping it closes it.
pub struct Doorbell {
    listener: Listener,
    own: mpsc::Receiver<Incoming>,
    mesh: Mesh,
}

/// How a process finds its own doorbell.
#[derive(Debug, Clone)]
pub(crate) struct OwnDoor {
    incoming: mpsc::Sender<Incoming>,
    is_node: bool,
}

impl Doorbell {
    /// Waits until somebody rings. Safe to cancel.
    ///
    /// # Errors
    /// [`MeshError::Closed`] when the mesh was dropped.
    pub async fn accept(&mut self) -> Result<Incoming, MeshError> {
        tokio::select! {
            incoming = self.listener.accept() => incoming,
            Some(incoming) = self.own.recv() => Ok(incoming),
        }
    }
}

impl Drop for Doorbell {
    fn drop(&mut self) {
        self.mesh.set_own_door(None);
    }
}

impl fmt::Debug for Doorbell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Doorbell").finish_non_exhaustive()
    }
}

/// Whether `address` is the app's or the instance's.
pub(crate) fn is_of(of: InstanceRef, address: Ipv6Addr) -> bool {
    AppUla::derive(of.app).addr() == address
        || InstanceUla::derive(of.app, of.instance).addr() == address
}

impl Mesh {
    /// Answers for the idle instances of this machine; `is_node` says whether the platform calls the machine
    /// itself a public edge, for what it dials from inside.
    ///
    /// # Errors
    /// Those of [`Mesh::listen`].
    pub fn doorbell(&self, is_node: bool) -> Result<Doorbell, MeshError> {
        let listener = self.listen(DOORBELL_PORT)?;
        let (incoming, own) = mpsc::channel(OWN_BACKLOG);
        self.set_own_door(Some(OwnDoor { incoming, is_node }));
        Ok(Doorbell {
            listener,
            own,
            mesh: self.clone(),
        })
    }

    fn set_own_door(&self, door: Option<OwnDoor>) {
        let own = &self.endpoint().own_door;
        *own.lock().unwrap_or_else(PoisonError::into_inner) = door;
    }

    /// A connection to an instance through its machine's doorbell; none if who answers for the address has to
    /// be asked again.
    pub(crate) async fn knock(
        &self,
        of: InstanceRef,
        (record, asked): (&PeerRecord, Asked),
        remote: SocketAddrV6,
        deadline: Instant,
    ) -> Result<Option<Stream>, DialError> {
        let Some(door) = record.addresses.first() else {
            return Err(DialError::NoLease(remote));
        };
        let door = SocketAddrV6::new(*door, DOORBELL_PORT, 0, 0);
        let reached = if record.key == self.public_key() {
            Some(self.own_door(remote, deadline).await?)
        } else {
            let reached = self.dial_at((record, asked), door, remote, deadline);
            Box::pin(reached).await?
        };
        let Some(mut stream) = reached else {
            return Ok(None);
        };
        let port = remote.port();
        let rung = async {
            stream.write_all(&Knock { of, port }.to_bytes()).await?;
            stream.flush().await?;
            stream.read_u8().await
        };
        let heard = timeout_at(deadline, rung).await;
        match heard.map_err(|_| DialError::TimedOut(remote))? {
            Ok(byte) => match Heard::of(byte) {
                Some(Heard::Held) => return Ok(Some(stream)),
                Some(Heard::Forbidden) => return Err(DialError::Forbidden(remote)),
                Some(Heard::Busy) => {
                    return Err(DialError::Busy {
                        what: "connections wait for idle apps of one machine",
                        limit: tabbify_api::doorbell::WAITING_MAX,
                    });
                }
                Some(Heard::NotHere) | None => {}
            },
            Err(error) => tracing::debug!(%remote, %error, "a doorbell broke off"),
        }
        self.endpoint().resolver.doubt(*remote.ip());
        sleep(ASK_AGAIN).await;
        Ok(None)
    }

    /// A connection to the doorbell of this process.
    async fn own_door(&self, remote: SocketAddrV6, deadline: Instant) -> Result<Stream, DialError> {
        let endpoint = self.endpoint();
        let door = endpoint.own_door.lock();
        let door = door.unwrap_or_else(PoisonError::into_inner).clone();
        let Some(OwnDoor { incoming, is_node }) = door else {
            return Err(DialError::Refused(remote));
        };
        let (key, address) = (self.public_key(), endpoint.ours.addresses[0]);
        let local = SocketAddrV6::new(address, DOORBELL_PORT, 0, 0);
        let ours = SocketAddrV6::new(address, 0, 0, 0);
        let (near, far) = duplex(OWN_LEN_MAX);
        let far = OwnStream::new(far, key, (local, ours));
        let rings = incoming.send(Incoming {
            stream: Stream::own(far),
            peer: key,
            is_node,
            remote: ours,
            local,
        });
        match timeout_at(deadline, rings).await {
            Ok(Ok(())) => Ok(Stream::own(OwnStream::new(near, key, (ours, local)))),
            Ok(Err(_)) => Err(DialError::Refused(remote)),
            Err(_) => Err(DialError::TimedOut(remote)),
        }
    }
}
