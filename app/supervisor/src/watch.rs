//! Holds on to one living runner: knows its state from the control socket and its end from the
//! kernel. One task per runner; it never looks at the clock while nothing happens.

use std::sync::Arc;
use std::time::Duration;

use tabbify_api::mesh::{Leases, PeerRecord};
use tabbify_api::runner::{Failure, StateName, Status};
use tabbify_process::{Clock, chain};
use tabbify_types::event::v1::FailureReason;
use tokio::process::Child;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, sleep};

use crate::control::Connection;
use crate::failpoint::{Point, pass};
use crate::news::{News, What};
use crate::pid::{Holder, Process, holder};
use crate::plan::{Control, Life};
use crate::report;
use crate::runner_dir::RunnerDir;
use crate::{Error, Identity};

/// First pause between two attempts to reach a runner; doubles.
const RETRY_MIN: Duration = Duration::from_millis(2);
/// LIMIT: pause between two attempts while the runner may be just about to listen.
const RETRY_EARLY_MAX: Duration = Duration::from_millis(100);
/// LIMIT: pause between two attempts once it has been given up.
const RETRY_MAX: Duration = Duration::from_secs(5);
/// After so long without an answer a runner counts as unreachable.
const UNREACHABLE_AFTER: Duration = Duration::from_secs(5);

/// One runner to hold on to.
#[derive(Debug)]
pub(crate) struct Watch {
    pub(crate) dir: RunnerDir,
    /// The process, if it is our child: then its exit status is ours to collect.
    pub(crate) child: Option<Child>,
    /// Who may call it now; `None` if its boot document says the same.
    pub(crate) peers: Option<Vec<PeerRecord>>,
    pub(crate) leases: Arc<dyn Leases>,
    /// What spawn tickets are signed with.
    pub(crate) identity: Option<Identity>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) news: mpsc::Sender<News>,
    /// LIMIT: runners that are being connected to at once.
    pub(crate) connecting: Arc<Semaphore>,
}

/// Something that ends, once.
enum Mortal {
    Child(Child),
    Adopted(Process),
}

impl Mortal {
    /// Its exit status, if that is ours to know. Safe to cancel.
    async fn ended(&mut self) -> Option<report::Status> {
        match self {
            Self::Child(child) => {
                use std::os::unix::process::ExitStatusExt as _;
                let status = child.wait().await.ok()?;
                report::Status::of_wait(status.into_raw())
            }
            Self::Adopted(process) => {
                process.ended().await;
                process.exit_status()
            }
        }
    }
}

impl Watch {
    /// Tells the news of the runner until its end.
    pub(crate) async fn run(mut self) {
        let mortal = match self.child.take() {
            Some(child) => Some(Mortal::Child(child)),
            None => self.identify().await.map(Mortal::Adopted),
        };
        let Some(mut mortal) = mortal else {
            // It ended before we could hold it: the directory tells the rest.
            let life = self.dir.life().unwrap_or(Life::Unborn);
            return self.tell(What::Seen(life)).await;
        };
        let status = tokio::select! {
            status = mortal.ended() => status,
            never = self.follow() => match never {},
        };
        let mut end = self.dir.end();
        end.status = status;
        self.tell(What::Seen(Life::Dead(end))).await;
    }

    /// The process that holds the lock; `None` once the lock is free. A process between fork and
    /// its first words is found by its descriptors, so this rarely takes a second round.
    async fn identify(&self) -> Option<Process> {
        let mut pause = RETRY_MIN;
        let mut warned = false;
        loop {
            match holder(&self.dir) {
                Ok(Holder::Process(process)) => return Some(process),
                Ok(Holder::Nobody) => return None,
                Ok(Holder::Unknown) => {}
                Err(error) if !warned => {
                    let path = self.dir.path().display();
                    tracing::warn!(%path, error = %chain(&error), "the lock of a runner cannot be read");
                    warned = true;
                }
                Err(_) => {}
            }
            sleep(pause).await;
            pause = (pause * 2).min(RETRY_MAX);
        }
    }

    /// Keeps a control connection for as long as the runner lives.
    async fn follow(&self) -> std::convert::Infallible {
        let mut since = Instant::now();
        let mut pause = RETRY_MIN;
        let mut given_up = false;
        loop {
            let (talked, error) = self.talk().await;
            if talked {
                (since, pause, given_up) = (Instant::now(), RETRY_MIN, false);
            }
            if !given_up && since.elapsed() >= UNREACHABLE_AFTER {
                given_up = true;
                let path = self.dir.path().display();
                tracing::warn!(%path, error = %chain(&error), "a living runner does not answer");
                self.tell(What::Seen(Life::Alive(Control::Unreachable)))
                    .await;
            }
            sleep(pause).await;
            let limit = if given_up { RETRY_MAX } else { RETRY_EARLY_MAX };
            pause = (pause * 2).min(limit);
        }
    }

    /// One connection: whether the runner answered on it, and why it ended.
    async fn talk(&self) -> (bool, Error) {
        let permit = self.connecting.acquire().await;
        let first = self.greet().await;
        drop(permit);
        let (mut connection, mut status) = match first {
            Ok(first) => first,
            Err(error) => return (false, error),
        };
        // Who has a lease of its own tells the coordinator itself where it is.
        let tells = self.dir.boot().is_ok_and(|boot| boot.coordinator.is_some());
        let identity = self.identity.as_ref().filter(|_| tells);
        let mut place = None;
        loop {
            if !tells {
                // Candidates are soft state of the coordinator: told again whenever we hear of them.
                let candidates = vec![status.underlay];
                self.leases.report_candidates(status.key, candidates);
            }
            let mut seen = status.state;
            self.tell(what(status)).await;
            // It may not be where the runner was told, by its boot document or since then.
            let now = identity.map(Identity::coordinator);
            if let Some(at) = now.filter(|at| place.as_ref() != Some(&at.doors)) {
                place = Some(at.doors.clone());
                if let Err(error) = connection.set_coordinator(at).await {
                    return (true, error);
                }
            }
            if seen == StateName::Unleased {
                match self.give_ticket(&mut connection).await {
                    Ok(given) => seen = given,
                    Err(error) => return (true, error),
                }
            }
            match connection.wait(seen).await {
                Ok(next) => status = next,
                Err(error) => return (true, error),
            }
        }
    }

    /// Gives a ticket to a runner that waits for one; the state that it is in then.
    async fn give_ticket(&self, connection: &mut Connection) -> Result<StateName, Error> {
        let Some(identity) = &self.identity else {
            let path = self.dir.path().display();
            tracing::warn!(%path, "a runner waits for a spawn ticket, and this machine signs none");
            return Ok(StateName::Unleased);
        };
        let ticket = identity.ticket(self.dir.of(), self.clock.now());
        connection.spawn(ticket.map_err(Error::Ticket)?).await?;
        Ok(StateName::Starting)
    }

    async fn greet(&self) -> Result<(Connection, Status), Error> {
        let mut connection = Connection::open(&self.dir).await?;
        if let Some(peers) = &self.peers {
            connection.set_peers(peers.clone()).await?;
        }
        let status = connection.status().await?;
        pass(Point::Met);
        Ok((connection, status))
    }

    async fn tell(&self, what: What) {
        let of = self.dir.of();
        // An error means that the loop has ended: nobody needs to know.
        let _ = self.news.send(News { of, what }).await;
    }
}

fn what(status: Status) -> What {
    let control = match status.state {
        StateName::Unleased | StateName::Starting => Control::Starting,
        StateName::Ready => Control::Ready {
            key: status.key,
            secrets: status.secrets,
        },
        StateName::Idle => Control::Idle {
            key: status.key,
            secrets: status.secrets,
        },
        StateName::Draining => Control::Draining,
        StateName::Failed => {
            return What::Failed(status.failure.unwrap_or_else(|| Failure {
                reason: FailureReason::Exited,
                detail: "its runner failed and does not say why".to_owned(),
            }));
        }
    };
    What::Seen(Life::Alive(control))
}
