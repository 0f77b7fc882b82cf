//! The loop: takes in the log and the news of runners, plans, starts actions. The only owner of
//! what is desired and observed; everything it starts ends with it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tabbify_api::log::EventLog;
use tabbify_api::mesh::Leases;
use tabbify_process::fold::{Follow, Link};
use tabbify_process::{Clock, Importance, Tasks, chain};
use tabbify_types::Position;
use tabbify_types::event::v1::InstanceRef;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tracing::Instrument as _;

use crate::act::{Hands, Spawned};
use crate::doorbell::{Doorbell, Resident, Standing};
use crate::news::{Done, News, What};
use crate::plan::{Action, Control, Life, Observed, Plan, plan};
use crate::runner_dir::RunnerDir;
use crate::state::{Desired, Placed};
use crate::supervisor::Overview;
use crate::tracked::{Busy, Owned, Tracked};
use crate::watch::Watch;
use crate::{Config, Error};

/// LIMIT: news that wait for the loop; who has more waits.
const NEWS_MAX: usize = 256;
/// LIMIT: runners that are being connected to at once.
const CONNECTING_MAX: usize = 64;
/// LIMIT: how far ahead a timer is set; deadlines come from the log and may be absurd.
const LOOK_AGAIN_WITHIN: Duration = Duration::from_secs(3600);

/// How far it can be relied on what is desired.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Footing {
    /// Not at all: it is being read.
    None,
    /// It was so when it was stored, and the log is away: what lives is held on to. Nothing is
    /// started, stopped or removed, since what has happened after it may say otherwise.
    Snapshot,
    /// It is what the log says, or said when it was there last.
    Log,
}

/// Everything the loop owns.
#[derive(Debug)]
pub(crate) struct Supervision {
    desired: Follow<Desired>,
    footing: Footing,
    runners: BTreeMap<InstanceRef, Tracked>,
    hands: Arc<Hands>,
    leases: Arc<dyn Leases>,
    clock: Arc<dyn Clock>,
    tasks: Tasks,
    news: mpsc::Sender<News>,
    inbox: mpsc::Receiver<News>,
    connecting: Arc<Semaphore>,
    doorbell: Doorbell,
    overview: watch::Sender<Overview>,
}

impl Supervision {
    /// Reads what was stored; nothing is done before [`Supervision::run`].
    pub(crate) fn new(
        config: Config,
        log: Arc<dyn EventLog>,
        leases: Arc<dyn Leases>,
        clock: Arc<dyn Clock>,
        tasks: &Tasks,
    ) -> (Self, watch::Receiver<Overview>) {
        let (news, inbox) = mpsc::channel(NEWS_MAX);
        let (overview, seen) = watch::channel(Overview::default());
        let (nothing, snapshots) = (Desired::new(config.host.clone()), config.snapshots_dir());
        let orders = Arc::clone(&log);
        let supervision = Self {
            desired: Follow::open(nothing, orders, Some(&snapshots), Arc::clone(&clock)),
            footing: Footing::None,
            runners: BTreeMap::new(),
            doorbell: Doorbell::new(config.runners_dir(), config.doors.clone(), news.clone()),
            hands: Arc::new(Hands::new(config, log)),
            leases,
            clock,
            tasks: tasks.clone(),
            news,
            inbox,
            connecting: Arc::new(Semaphore::new(CONNECTING_MAX)),
            overview,
        };
        (supervision, seen)
    }

    /// Where callers of what is asleep here come in.
    pub(crate) fn doorbell(&self) -> Doorbell {
        self.doorbell.clone()
    }

    /// Observes what the directories tell.
    pub(crate) fn look(&mut self, runners: &std::path::Path) -> Result<(), Error> {
        for dir in RunnerDir::scan(runners).map_err(Error::file(runners))? {
            let life = dir.life().map_err(Error::file(dir.path()))?;
            let mut tracked = Tracked::new(life);
            if let Some(birth) = dir.birth() {
                // The clock may have been set since: then its time to start begins again.
                let age = self.clock.now().millis().checked_sub(birth.at.millis());
                let age = Duration::from_millis(age.unwrap_or(0));
                tracked.since = tracked.since.checked_sub(age).unwrap_or(tracked.since);
            }
            self.runners.insert(dir.of(), tracked);
        }
        Ok(())
    }

    /// Follows the log until the tasks' token is cancelled, then stores what is desired.
    pub(crate) async fn run(mut self) -> Result<(), Error> {
        let token = self.tasks.token();
        let ended = loop {
            let wake = self.turn();
            let pause = sleep_until(wake.unwrap_or_else(Instant::now));
            tokio::select! {
                () = token.cancelled() => break Ok(()),
                followed = self.desired.next() => match followed {
                    Ok(()) => self.stand(),
                    Err(error) => break Err(Error::Follow(error)),
                },
                Some(news) = self.inbox.recv() => {
                    self.hear(news);
                    // What else is there already needs no plan of its own.
                    while let Ok(news) = self.inbox.try_recv() {
                        self.hear(news);
                    }
                }
                () = self.doorbell.rung() => {}
                () = pause, if wake.is_some() => {}
            }
        };
        self.desired.close().await;
        ended
    }

    /// Finds out whether more can be relied on than before; it never becomes less.
    fn stand(&mut self) {
        let footing = self.desired.read(|view| match view.link {
            Link::Live => Footing::Log,
            Link::Away { .. } if view.position > Position(0) => Footing::Snapshot,
            Link::Away { .. } | Link::CatchingUp => Footing::None,
        });
        self.footing = self.footing.max(footing);
    }

    fn hear(&mut self, news: News) {
        // News of a runner whose directory has been removed meanwhile say nothing new.
        let Some(tracked) = self.runners.get_mut(&news.of) else {
            return;
        };
        match news.what {
            What::Seen(mut life) => {
                // Where nobody could wake it, nobody goes to sleep.
                if let Life::Alive(Control::Idle { key, secrets }) = &mut life
                    && self.hands.config.doors.is_none()
                {
                    let (key, secrets) = (*key, std::mem::take(secrets));
                    life = Life::Alive(Control::Ready { key, secrets });
                }
                if !matches!(life, Life::Alive(Control::Idle { .. })) {
                    tracked.told = None;
                }
                if matches!(life, Life::Dead(_) | Life::Unborn) {
                    tracked.watch = None;
                }
                tracked.observed.life = life;
            }
            What::Failed(failure) => {
                tracked.observed.failure = Some(failure);
                tracked.observed.life = Life::Alive(Control::Failed);
            }
            What::Visited => tracked.observed.is_visited = true,
            What::Done(Ok(done)) => self.done(news.of, done),
            What::Done(Err(error)) => {
                tracked.rest();
                tracing::warn!(app = %news.of.app, instance = %news.of.instance, error = %chain(&error), "an action failed and will be tried again");
            }
        }
    }

    fn done(&mut self, of: InstanceRef, done: Done) {
        let Some(tracked) = self.runners.get_mut(&of) else {
            return;
        };
        tracked.setbacks = 0;
        tracked.busy = Busy::No;
        match done {
            Done::Spawned(Spawned::Child(child)) => {
                tracked.since = Instant::now();
                tracked.observed.is_visited = false;
                self.watch(of, Some(child));
            }
            Done::Spawned(Spawned::Never(why)) => tracked.observed.unspawnable = Some(why),
            Done::Spawned(Spawned::Other(life)) => tracked.observed.life = life,
            Done::Reported(position) => tracked.busy = Busy::Until(position),
            Done::Drained(drain) => {
                tracked.observed.drain = drain;
                // One that does not go to sleep is asked anew.
                tracked.told = None;
            }
            Done::Told => tracked.told = Some(Instant::now()),
            Done::Stopped => {
                tracked.watch = None;
                if matches!(tracked.observed.life, Life::Alive(_)) {
                    tracked.observed.life = Life::Dead(self.hands.dir(of).end());
                }
            }
            Done::Removed => {
                self.runners.remove(&of);
            }
        }
    }

    /// Plans and starts what is to be done; when to look again at the latest.
    fn turn(&mut self) -> Option<Instant> {
        if self.footing == Footing::None {
            return None;
        }
        let now = Instant::now();
        let folded = self.desired.read(|view| view.position);
        let mut wake = None;
        let mut soonest =
            |at: Instant| wake = Some(wake.map_or(at, |other: Instant| other.min(at)));
        let wanted = self.wanted();
        let mut observed = BTreeMap::new();
        for (of, tracked) in &mut self.runners {
            tracked.refresh(now, folded);
            tracked.observed.is_wanted = wanted.contains(of);
            if let Busy::Resting(until) = tracked.busy {
                soonest(until);
            }
            observed.insert(*of, tracked.observed.clone());
        }
        let planned = |desired: &Desired| plan(desired, &observed, self.clock.now());
        let Plan { actions, wake_in } = self.desired.read(|view| planned(&view.state));
        if let Some(span) = wake_in {
            soonest(now + span.min(LOOK_AGAIN_WITHIN));
        }
        for action in actions {
            if self.footing == Footing::Log || matches!(action, Action::Adopt(_)) {
                self.begin(action);
            }
        }
        self.show_doorbell();
        self.overview.send_if_modified(|shown| {
            let overview = overview(&self.runners, self.footing == Footing::Log);
            std::mem::replace(shown, overview) != overview
        });
        wake
    }

    /// Who is waited for at the doorbell; one that is asleep has nothing here before.
    fn wanted(&mut self) -> BTreeSet<InstanceRef> {
        let wanted = self.doorbell.wanted();
        let asleep = self.desired.read(|view| {
            let asleep = |of: &InstanceRef| {
                let placed = view.state.placed().get(of);
                placed.is_some_and(|placed| placed.said.idle && placed.stop.is_none())
            };
            wanted.iter().copied().filter(asleep).collect::<Vec<_>>()
        });
        for of in asleep {
            let unborn = || Tracked::new(Life::Unborn);
            self.runners.entry(of).or_insert_with(unborn);
        }
        wanted
    }

    /// Says at the doorbell how everything stands that is placed here and stays.
    fn show_doorbell(&self) {
        let standing = |of: &InstanceRef| {
            let Some(tracked) = self.runners.get(of) else {
                return Standing::Down;
            };
            let observed = &tracked.observed;
            match &observed.life {
                Life::Alive(Control::Draining) => Standing::Down,
                Life::Alive(Control::Failed) => failed(observed),
                Life::Alive(_) => Standing::Alive,
                Life::Dead(end) if !end.is_clean() => failed(observed),
                Life::Unborn if observed.unspawnable.is_some() => failed(observed),
                Life::Unborn | Life::Dead(_) => Standing::Down,
            }
        };
        let residents = self.desired.read(|view| {
            let placed = view.state.placed().iter();
            let stays = placed.filter(|(_, placed)| placed.stop.is_none());
            let resident = |(of, placed): (&InstanceRef, &Placed)| {
                let (standing, ports) = (standing(of), placed.app.run.ports.clone());
                (*of, Resident { standing, ports })
            };
            stays.map(resident).collect()
        });
        self.doorbell.publish(residents);
    }

    fn begin(&mut self, action: Action) {
        let of = action.of();
        let (app, instance) = (of.app, of.instance);
        match &action {
            Action::Quarantine(_) => self.quarantine(of),
            Action::Adopt(_) => {
                tracing::info!(%app, %instance, "adopting a living runner");
                self.watch(of, None);
            }
            _ => {
                tracing::info!(%app, %instance, %action, "acting");
                self.act(of, action);
            }
        }
    }

    fn quarantine(&mut self, of: InstanceRef) {
        if let Some(tracked) = self.runners.get_mut(&of) {
            tracked.observed.quarantined = true;
            let alive = matches!(tracked.observed.life, Life::Alive(_));
            let path = self.hands.dir(of).path().display().to_string();
            tracing::warn!(app = %of.app, instance = %of.instance, alive, path, "nobody placed this runner here, leaving it alone");
        }
    }

    fn watch(&mut self, of: InstanceRef, child: Option<tokio::process::Child>) {
        let Some(tracked) = self.runners.get_mut(&of) else {
            return;
        };
        // A runner of our own has just been told; an adopted one was told by another's list.
        let peers = child.is_none().then(|| self.hands.config.peers.clone());
        let watch = Watch {
            dir: self.hands.dir(of),
            child,
            peers,
            leases: Arc::clone(&self.leases),
            identity: self.hands.config.identity.clone(),
            clock: Arc::clone(&self.clock),
            news: self.news.clone(),
            connecting: Arc::clone(&self.connecting),
        };
        let span = tracing::info_span!("runner", app = %of.app, instance = %of.instance);
        let run = watch.run().instrument(span);
        let task = self.tasks.spawn("runner-watch", Importance::Detached, run);
        tracked.watch = Some(Owned(task));
        tracked.observed.life = Life::Alive(Control::Connecting);
    }

    fn act(&mut self, of: InstanceRef, action: Action) {
        let hands = Arc::clone(&self.hands);
        let placed = self
            .desired
            .read(|view| view.state.placed().get(&of).cloned());
        let news = self.news.clone();
        let doing = async move {
            let done = match (action, placed) {
                (Action::Spawn(_), Some(placed)) => hands.spawn(&placed).await.map(Done::Spawned),
                (Action::Wake(_), Some(placed)) => hands.wake(&placed).await.map(Done::Spawned),
                (Action::Tell(_), _) => hands.tell(of).await.map(|()| Done::Told),
                (Action::Sleep(_, ms), _) => {
                    let deadline = Duration::from_millis(ms);
                    hands.sleep(of, deadline).await.map(Done::Drained)
                }
                (Action::Report(_, reports), Some(placed)) => {
                    hands.report(&placed, &reports).await.map(Done::Reported)
                }
                (Action::Drain(_, ms), _) => {
                    let deadline = Duration::from_millis(ms);
                    Ok(Done::Drained(hands.drain(of, deadline).await))
                }
                (Action::Stop(_), _) => hands.stop(of).await.map(|()| Done::Stopped),
                (Action::Remove(_), _) => hands.remove(of).await.map(|()| Done::Removed),
                // Planned from the same fold, so they are placed; the others are not ours.
                (Action::Spawn(_) | Action::Wake(_) | Action::Report(..), None)
                | (Action::Adopt(_) | Action::Quarantine(_), _) => return,
            };
            let what = What::Done(done);
            // The loop has ended: the next supervisor finds out by looking.
            let _ = news.send(News { of, what }).await;
        };
        let span = tracing::info_span!("runner", app = %of.app, instance = %of.instance);
        let task = self.tasks.spawn(
            "runner-action",
            Importance::Detached,
            doing.instrument(span),
        );
        let unborn = || Tracked::new(Life::Unborn);
        let tracked = self.runners.entry(of).or_insert_with(unborn);
        tracked.busy = Busy::Acting {
            _action: Owned(task),
        };
    }
}

/// Why an instance whose process cannot live does not.
fn failed(observed: &Observed) -> Standing {
    let failure = observed.failure.as_ref();
    let why = failure.map(|failure| failure.detail.clone());
    let why = why.or_else(|| observed.unspawnable.clone());
    Standing::Failed(why.unwrap_or_else(|| match &observed.life {
        Life::Dead(end) => end.failure(None).detail,
        Life::Alive(_) | Life::Unborn => "it does not say why".to_owned(),
    }))
}

fn overview(runners: &BTreeMap<InstanceRef, Tracked>, caught_up: bool) -> Overview {
    let count = |wanted: fn(&Tracked) -> bool| runners.values().filter(|it| wanted(it)).count();
    let ready = |it: &Tracked| {
        let ready = matches!(
            it.observed.life,
            Life::Alive(Control::Ready { .. } | Control::Idle { .. })
        );
        it.watch.is_some() && ready
    };
    Overview {
        caught_up,
        watched: count(|it| it.watch.is_some()),
        ready: count(ready),
    }
}
