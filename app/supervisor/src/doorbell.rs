//! The doorbell of this machine: whoever dials an instance that is asleep here waits here for it, and is then
//! connected with its new process, byte for byte.
//!
//! ```text
//! knock ─▶ placed here? ─▶ may it? ─▶ room? ─▶ held ─▶ wanted ─▶ loop: wake ─▶ control socket ─▶ may it still? ─▶ bytes
//!           no: ask anew    no: no     no: busy            └──── what became of it ◀─┘
//! ```
//!
//! Nothing of the log is on this path: it works while that is away. The tunnel of the caller ends in this process,
//! so its bytes pass through it in any case; callers that come later dial the instance itself.

mod judge;
mod table;
mod visit;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddrV6;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tabbify_api::attach::ATTACH_PORT;
use tabbify_api::doorbell::{DoorAsk, Doorbells, Heard, KNOCK_LEN, Knock, WAITING_MAX};
use tabbify_api::runner::Visitor;
use tabbify_types::event::v1::InstanceRef;
use tabbify_types::{APP_PORT, MeshKey};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{Semaphore, SemaphorePermit, mpsc};
use tokio::time::timeout;

use crate::failpoint::{Point, pass};
use crate::news::News;

use self::judge::{Judge, Unjudged};
pub(crate) use self::table::{Resident, Standing};
use self::table::{Table, Want};

/// LIMIT: how long a caller may take to say whom it wants.
const KNOCK_WITHIN: Duration = Duration::from_secs(5);
/// LIMIT: how long a knock waits for a supervisor that has just started to know what is placed here.
const KNOWN_WITHIN: Duration = Duration::from_secs(5);
/// LIMIT: how long a caller is held. Nodes give up before, after the time that an app may take for its answer.
const HELD_MAX: Duration = Duration::from_secs(90);
/// LIMIT: connections that wait for one instance, of all that wait.
const WAITING_FOR_ONE_MAX: usize = WAITING_MAX / 16;

/// See the module. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Doorbell(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    runners: PathBuf,
    judge: Judge,
    table: Table,
    waiting: Semaphore,
    news: mpsc::Sender<News>,
}

/// Who rings, as the mesh has proven it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Guest {
    /// Its key.
    pub peer: MeshKey,
    /// Its inner address and port.
    pub remote: SocketAddrV6,
    /// Whether the platform calls it a public edge.
    pub is_node: bool,
}

impl Doorbell {
    pub(crate) fn new(
        runners: PathBuf,
        doors: Option<Arc<dyn Doorbells>>,
        news: mpsc::Sender<News>,
    ) -> Self {
        Self(Arc::new(Inner {
            runners,
            judge: Judge::new(doors),
            table: Table::default(),
            waiting: Semaphore::new(WAITING_MAX),
            news,
        }))
    }

    /// Returns when somebody wants an instance that nobody wanted before, from now on. Safe to cancel.
    pub(crate) async fn rung(&self) {
        self.0.table.rung().await;
    }

    /// The instances that somebody waits for.
    pub(crate) fn wanted(&self) -> BTreeSet<InstanceRef> {
        self.0.table.wanted()
    }

    /// How every instance stands that is placed here; of the others nobody will come.
    pub(crate) fn publish(&self, residents: BTreeMap<InstanceRef, Resident>) {
        self.0.table.publish(residents);
    }

    /// Serves one caller, to the end of its connection.
    pub async fn serve<S>(&self, guest: Guest, mut stream: S)
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let mut bytes = [0; KNOCK_LEN];
        let read = timeout(KNOCK_WITHIN, stream.read_exact(&mut bytes)).await;
        let (Ok(Ok(_)), Some(knock)) = (read, Knock::from_bytes(&bytes)) else {
            tracing::debug!(peer = %guest.peer, "somebody rang for nobody");
            return;
        };
        let room = match self.judge(&guest, knock).await {
            Ok(()) => self.room(knock.of).ok_or(Heard::Busy),
            Err(refusal) => Err(refusal),
        };
        let refusal = match room {
            Ok((want, place)) => {
                pass(Point::Rung);
                if stream.write_all(&[Heard::Held as u8]).await.is_err() {
                    return;
                }
                let visitor = Visitor {
                    port: knock.port,
                    peer: guest.peer,
                    remote: guest.remote,
                    is_node: guest.is_node,
                };
                return self.hold(want, place, visitor, stream).await;
            }
            Err(refusal) => refusal,
        };
        tracing::debug!(app = %knock.of.app, instance = %knock.of.instance, peer = %guest.peer, ?refusal, "not let in at the doorbell");
        // Whoever does not hear it has gone.
        let _ = stream.write_all(&[refusal as u8]).await;
        let _ = stream.shutdown().await;
    }

    /// Room to wait in, if there is any. Whoever comes first for an instance needs none: those who wait for others
    /// do not keep it asleep.
    fn room(&self, of: InstanceRef) -> Option<(Want, Option<SemaphorePermit<'_>>)> {
        let want = self.0.table.want(of, WAITING_FOR_ONE_MAX)?;
        if want.is_first {
            return Some((want, None));
        }
        let place = self.0.waiting.try_acquire().ok()?;
        Some((want, Some(place)))
    }

    /// Whether the guest may wait, as the instance itself would let it in.
    async fn judge(&self, guest: &Guest, knock: Knock) -> Result<(), Heard> {
        let inner = &self.0;
        let placed = timeout(KNOWN_WITHIN, inner.table.ports(knock.of)).await;
        let Some(ports) = placed.ok().flatten() else {
            return Err(Heard::NotHere);
        };
        // Where nobody would listen, nobody is woken for.
        let is_open = match knock.port {
            APP_PORT => true,
            ATTACH_PORT if guest.is_node => true,
            port => ports.contains(&port),
        };
        if !is_open {
            return Err(Heard::Forbidden);
        }
        // What no node may reach is the app's own affair.
        if guest.is_node {
            return Ok(());
        }
        let ask = DoorAsk {
            of: knock.of,
            guest: Some(guest.peer),
        };
        match inner.judge.of_new(ask, guest.peer).await {
            Ok(ports) if ports.admit(knock.port) => Ok(()),
            Ok(_) => Err(Heard::Forbidden),
            Err(Unjudged::Busy) => Err(Heard::Busy),
            // It asks again, as it does where an instance cannot be told who it is.
            Err(Unjudged::Unknown) => Err(Heard::NotHere),
        }
    }
}
