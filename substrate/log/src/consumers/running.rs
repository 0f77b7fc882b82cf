//! One consumer at work: the core, the subscription that feeds it, the file behind it.
//!
//! Whoever polls also reads: the member that finds nothing takes the subscription, feeds the core,
//! and wakes the others. So no task runs for a consumer, and a consumer without members reads nothing.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use tabbify_api::consumers::{
    Ack, Consumer, ConsumerError, ConsumerName, ConsumerStatus, Delivered, MEMBERS_MAX, Nack,
    Parked, Poll, WAIT_MS_MAX,
};
use tabbify_api::log::{Delivery, EventLog, Filter, ReadError, Subscribe};
use tabbify_process::{Clock, files};
use tabbify_types::{Position, Recorded, SegmentGlob};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::core::{Core, Now, Refused, Rules};
use super::state::{Snapshot, Stored};

/// LIMIT: events of one page when unsettled events are read again.
const PAGE_EVENTS: usize = 256;

/// One consumer.
#[derive(Debug)]
pub(crate) struct Running {
    name: ConsumerName,
    file: PathBuf,
    owner: String,
    consumer: Consumer,
    globs: Vec<SegmentGlob>,
    log: Arc<dyn EventLog>,
    clock: Arc<dyn Clock>,
    opened: Instant,
    core: Mutex<Core>,
    source: tokio::sync::Mutex<Option<Source>>,
    /// Wakes members that wait.
    news: Notify,
    /// Tells the writing task.
    changed: Arc<Notify>,
    unsaved: AtomicBool,
    /// One writer of the file at a time, each with the newest state.
    saving: tokio::sync::Mutex<()>,
    removed: CancellationToken,
}

/// A subscription, and which beginning of the consumer it belongs to.
#[derive(Debug)]
struct Source {
    generation: u64,
    subscription: Box<dyn Subscribe>,
}

impl Running {
    /// A consumer as it is stored. The position of an event that the log does not give, and what
    /// the log said, are the error.
    pub(crate) async fn open(
        name: ConsumerName,
        file: PathBuf,
        stored: Stored,
        log: Arc<dyn EventLog>,
        clock: Arc<dyn Clock>,
        changed: Arc<Notify>,
    ) -> Result<Self, (Position, Option<ReadError>)> {
        let Stored {
            owner,
            consumer,
            globs,
            state,
        } = stored;
        let rules = Rules {
            ack_timeout: Duration::from_millis(consumer.ack_timeout_ms),
            attempts_max: consumer.attempts_max,
        };
        let events = unsettled_events(&*log, &consumer.filter, &globs, &state).await?;
        let core = Core::restore(rules, state, events).map_err(|position| (position, None))?;
        Ok(Self {
            name,
            file,
            owner,
            consumer,
            globs,
            log,
            clock,
            opened: Instant::now(),
            core: Mutex::new(core),
            source: tokio::sync::Mutex::default(),
            news: Notify::new(),
            changed,
            unsaved: AtomicBool::new(false),
            saving: tokio::sync::Mutex::default(),
            removed: CancellationToken::new(),
        })
    }

    pub(crate) const fn consumer(&self) -> &Consumer {
        &self.consumer
    }

    /// The segments that it reads.
    pub(crate) fn globs(&self) -> &[SegmentGlob] {
        &self.globs
    }

    pub(crate) fn status(&self) -> ConsumerStatus {
        let now = self.now();
        let mut core = self.core();
        if core.tick(now) {
            self.touched();
        }
        let (floor, head) = (core.floor(), self.log.head());
        let full = core.take_is_refused();
        ConsumerStatus {
            name: self.name.clone(),
            consumer: self.consumer.clone(),
            floor,
            read: core.read(),
            head,
            lag: head.get().saturating_sub(floor.get()),
            in_flight: core.in_flight(),
            waiting: core.waiting(),
            parked: core.parked().len(),
            members: core.members(),
            stopped: full.map(|refused| self.refusal(refused).to_string()),
        }
    }

    /// Events for a member; waits for the first one as long as it was asked to, until `closing`.
    pub(crate) async fn next(
        &self,
        poll: &Poll,
        closing: &CancellationToken,
    ) -> Result<Vec<Delivered>, ConsumerError> {
        let wait = Duration::from_millis(poll.wait_ms.min(WAIT_MS_MAX));
        let deadline = Instant::now() + wait;
        let mut last_look = false;
        loop {
            let news = self.news.notified();
            tokio::pin!(news);
            news.as_mut().enable();
            let (taken, room, wakes) = self.take(poll)?;
            if !taken.is_empty() || last_look {
                return Ok(taken);
            }
            let until = wakes.map_or(deadline, |wakes| deadline.min(self.opened + wakes));
            tokio::select! {
                biased;
                () = self.removed.cancelled() => return Err(self.unknown()),
                () = closing.cancelled() => return Err(ConsumerError::Read(ReadError::Stopping)),
                read = self.read_on(poll.max), if room => read?,
                () = &mut news => {}
                () = tokio::time::sleep_until(until) => last_look = until == deadline,
            }
        }
    }

    /// What there is for a member at once, whether more may be read, and when time alone changes that.
    fn take(&self, poll: &Poll) -> Result<(Vec<Delivered>, bool, Option<Duration>), ConsumerError> {
        if self.removed.is_cancelled() {
            return Err(self.unknown());
        }
        let now = self.now();
        let mut core = self.core();
        if core.tick(now) {
            self.touched();
        }
        let taken = core.take(&poll.member, poll.max, now);
        let taken = taken.map_err(|refused| self.refusal(refused))?;
        Ok((taken, core.has_room(), core.wakes()))
    }

    /// Waits for something to read and feeds it to the core, with what comes without waiting, up to
    /// `enough` events. Safe to cancel: what was received has been fed.
    async fn read_on(&self, enough: usize) -> Result<(), ConsumerError> {
        let mut source = self.source.lock().await;
        let (generation, read) = {
            let core = self.core();
            (core.generation(), core.read())
        };
        if source
            .as_ref()
            .is_none_or(|source| source.generation != generation)
        {
            let filter = narrowed(&self.consumer.filter, &self.globs);
            let subscribed = self.log.subscribe(filter, read);
            *source = Some(Source {
                generation,
                subscription: subscribed.map_err(ConsumerError::Read)?,
            });
        }
        let Some(Source { subscription, .. }) = source.as_mut() else {
            return Ok(());
        };
        let mut received = Some(subscription.next().await);
        let mut events = 0;
        while let Some(delivery) = received.take() {
            match delivery {
                Ok(delivery) => {
                    events += usize::from(matches!(delivery, Delivery::Event(_)));
                    let room = self.feed(delivery, generation);
                    if room && events < enough {
                        received = subscription.next().now_or_never();
                    }
                }
                Err(error) => {
                    // The next member begins a new one, behind what has been fed.
                    *source = None;
                    return Err(ConsumerError::Read(error));
                }
            }
        }
        Ok(())
    }

    /// Feeds the core, unless the consumer has begun again meanwhile. Whether there is more room.
    fn feed(&self, delivery: Delivery, generation: u64) -> bool {
        let mut core = self.core();
        if core.generation() != generation {
            return false;
        }
        match delivery {
            Delivery::Event(event) => core.feed(event),
            Delivery::CaughtUp(position) | Delivery::Progress(position) => core.skip_to(position),
        }
        self.touched();
        core.has_room()
    }

    pub(crate) fn ack(&self, ack: &Ack) -> Result<(), ConsumerError> {
        let now = self.now();
        let acked = self.core().ack(&ack.member, &ack.positions, now);
        self.touched();
        acked.map_err(|positions| ConsumerError::NotDelivered { positions })
    }

    pub(crate) fn nack(&self, nack: &Nack) -> Result<(), ConsumerError> {
        let (now, position) = (self.now(), nack.position);
        let leased = self.core().nack(&nack.member, position, &nack.reason, now);
        self.touched();
        let not_delivered = || ConsumerError::NotDelivered {
            positions: vec![position],
        };
        leased.then_some(()).ok_or_else(not_delivered)
    }

    pub(crate) fn parked(&self, after: Position, limit: usize) -> Vec<Parked> {
        let core = self.core();
        let later = core.parked().range(after.next()..);
        later
            .take(limit)
            .map(|(_, parked)| parked.clone())
            .collect()
    }

    pub(crate) async fn retry(&self, position: Position) -> Result<(), ConsumerError> {
        let not_parked = || ConsumerError::NotParked { position };
        if !self.core().parked().contains_key(&position) {
            return Err(not_parked());
        }
        let filter = narrowed(&self.consumer.filter, &self.globs);
        let before = Position(position.get().saturating_sub(1));
        let page = self.log.read(filter, before, 1).await;
        let event = page.map_err(ConsumerError::Read)?.events.pop();
        let event = event.filter(|event| event.position == position);
        let event = event.ok_or_else(not_parked)?;
        if !self.core().retry(event) {
            return Err(not_parked());
        }
        self.touched();
        self.save().await
    }

    pub(crate) async fn drop_parked(&self, position: Position) -> Result<(), ConsumerError> {
        if !self.core().drop_parked(position) {
            return Err(ConsumerError::NotParked { position });
        }
        self.touched();
        self.save().await
    }

    pub(crate) async fn reset(&self, position: Position) -> Result<(), ConsumerError> {
        let head = self.log.head();
        if position > head {
            let after = position;
            return Err(ConsumerError::Read(ReadError::BeyondHead { after, head }));
        }
        self.core().reset(position);
        self.touched();
        self.save().await
    }

    /// Ends it: members that wait learn so, and the file goes.
    pub(crate) async fn remove(&self) -> Result<(), ConsumerError> {
        let _alone = self.saving.lock().await;
        let file = self.file.clone();
        blocking(move || {
            std::fs::remove_file(&file)?;
            file.parent().map_or(Ok(()), files::sync_dir)
        })
        .await?;
        self.removed.cancel();
        Ok(())
    }

    pub(crate) async fn save_if_changed(&self) -> Result<(), ConsumerError> {
        if self.unsaved.load(Ordering::Acquire) {
            self.save().await
        } else {
            Ok(())
        }
    }

    /// Writes the state as it is when its turn comes.
    pub(crate) async fn save(&self) -> Result<(), ConsumerError> {
        let _alone = self.saving.lock().await;
        if self.removed.is_cancelled() {
            return Err(self.unknown());
        }
        self.unsaved.store(false, Ordering::Release);
        let state = self.core().snapshot();
        let stored = Stored {
            owner: self.owner.clone(),
            consumer: self.consumer.clone(),
            globs: self.globs.clone(),
            state,
        };
        let file = self.file.clone();
        let written = blocking(move || files::write_atomic(&file, &stored.encode(), 0o600)).await;
        if let Err(error) = &written {
            tracing::error!(consumer = %self.name, %error, "progress is not stored; it may be repeated");
            self.unsaved.store(true, Ordering::Release);
        }
        written
    }

    /// Something has changed: for members that wait, and for the file.
    fn touched(&self) {
        self.unsaved.store(true, Ordering::Release);
        self.changed.notify_one();
        self.news.notify_waiters();
    }

    fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Now {
        Now {
            elapsed: self.opened.elapsed(),
            wall: self.clock.now(),
        }
    }

    fn unknown(&self) -> ConsumerError {
        ConsumerError::Unknown {
            name: self.name.clone(),
        }
    }

    fn refusal(&self, refused: Refused) -> ConsumerError {
        match refused {
            Refused::ParkedFull(parked) => {
                tracing::error!(consumer = %self.name, parked, "too many events are parked");
                ConsumerError::ParkedFull { parked }
            }
            Refused::Members => ConsumerError::TooMany {
                what: "members".to_owned(),
                max: MEMBERS_MAX,
            },
        }
    }
}

/// The filter of a consumer with its segments named, as they were when it was made.
fn narrowed(filter: &Filter, globs: &[SegmentGlob]) -> Filter {
    Filter {
        segments: globs.to_vec(),
        ..filter.clone()
    }
}

/// The unsettled events of a snapshot, as far as the log gives them.
async fn unsettled_events(
    log: &dyn EventLog,
    filter: &Filter,
    globs: &[SegmentGlob],
    state: &Snapshot,
) -> Result<Vec<Arc<Recorded>>, (Position, Option<ReadError>)> {
    let wanted: Vec<Position> = state.unsettled.iter().map(|one| one.position).collect();
    let mut wanted = wanted.into_iter().peekable();
    let mut events = Vec::new();
    while let Some(position) = wanted.peek().copied() {
        let before = Position(position.get().saturating_sub(1));
        let page = log.read(narrowed(filter, globs), before, PAGE_EVENTS).await;
        let page = page.map_err(|error| (position, Some(error)))?;
        for event in page.events {
            if wanted.next_if(|wanted| *wanted == event.position).is_some() {
                events.push(event);
            }
        }
        if wanted.peek() == Some(&position) {
            return Err((position, None));
        }
    }
    Ok(events)
}

async fn blocking(
    act: impl FnOnce() -> std::io::Result<()> + Send + 'static,
) -> Result<(), ConsumerError> {
    let done = tokio::task::spawn_blocking(act).await;
    let done = done.map_err(|_| ConsumerError::Read(ReadError::Stopping))?;
    done.map_err(|error| ConsumerError::Storage {
        detail: error.to_string(),
    })
}
