//! The consumer of one life: two members that acknowledge, fail and forget, and a state on disk that
//! a crash sets back to how it was some time before.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tabbify_api::consumers::{
    Ack, Consumer, ConsumerError, ConsumerName, Consumers as ConsumersTrait, Delivered, Nack, Poll,
};
use tabbify_api::log::Filter;
use tabbify_process::{ManualClock, Tasks};
use tabbify_types::{NewEvent, Position};

use super::Transcript;
use super::readers::{some_filter, wants};
use crate::consumers::Consumers;
use crate::proof::Wrong;
use crate::proof::engine::{Engine, scope};
use crate::proof::model::{Model, is};
use crate::proof::random::Random;

/// An event may fail so often.
const ATTEMPTS: u32 = 2;
/// Longer than the pause before a second attempt and than the time between two writings of the state.
const REST: Duration = Duration::from_secs(5);
const ACK_TIMEOUT: Duration = Duration::from_secs(30);

type Positions = BTreeSet<Position>;

/// What was known when a state was written.
#[derive(Debug, Clone, Default)]
struct Saved {
    bytes: Option<Vec<u8>>,
    done: Positions,
}

/// One consumer.
pub(super) struct Worked {
    dir: tempfile::TempDir,
    opened: u32,
    filter: Filter,
    open: Option<(Consumers, Tasks)>,
    /// Delivered and not answered, with the member.
    held: Vec<(usize, Position)>,
    /// Acknowledged or parked, ever.
    done: Positions,
    /// Of these the state that is open knows: they do not come again.
    settled: Positions,
    saved: Saved,
}

fn name() -> ConsumerName {
    "work".parse().expect("a name of a test")
}

impl Worked {
    pub(super) fn new(random: &mut Random) -> Result<Self, Wrong> {
        Ok(Self {
            dir: tempfile::tempdir()?,
            opened: 0,
            filter: some_filter(random),
            open: None,
            held: Vec::new(),
            done: Positions::new(),
            settled: Positions::new(),
            saved: Saved::default(),
        })
    }

    /// A directory for each opening: what a process that is gone still writes is lost.
    fn path(&self) -> PathBuf {
        self.dir.path().join(self.opened.to_string())
    }

    /// Opens it as it was saved last.
    pub(super) async fn open(&mut self, engine: &Engine) -> Result<(), Wrong> {
        self.opened += 1;
        let dir = self.path();
        std::fs::create_dir(&dir)?;
        if let Some(bytes) = &self.saved.bytes {
            std::fs::write(dir.join("work.consumer"), bytes)?;
        }
        let tasks = Tasks::new();
        let clock = Arc::new(ManualClock::default());
        let clients = Arc::new(engine.clients());
        let consumers = Consumers::open(&dir, clients, clock, &tasks).await?;
        let consumer = Consumer {
            attempts_max: ATTEMPTS,
            ack_timeout_ms: u64::try_from(ACK_TIMEOUT.as_millis())?,
            ..Consumer::of(self.filter.clone())
        };
        consumers.client(scope()).create(name(), consumer).await?;
        self.settled = self.saved.done.clone();
        self.open = Some((consumers, tasks));
        Ok(())
    }

    /// The process is gone, with what was not saved.
    pub(super) fn crash(&mut self) {
        if let Some((_, tasks)) = self.open.take() {
            tasks.stop();
        }
        self.held.clear();
    }

    /// The process ends in order: everything is saved.
    pub(super) async fn close(&mut self) -> Result<(), Wrong> {
        if let Some((_, tasks)) = self.open.take()
            && !tasks.shutdown(REST).await
        {
            return Err("the consumers do not stop".into());
        }
        self.held.clear();
        self.keep()
    }

    /// Time enough to write the state; from here on a crash sets it back to this.
    pub(super) async fn save(&mut self) -> Result<(), Wrong> {
        tokio::time::sleep(REST).await;
        self.keep()
    }

    fn keep(&mut self) -> Result<(), Wrong> {
        let bytes = std::fs::read(self.path().join("work.consumer"))?;
        self.saved = Saved {
            bytes: Some(bytes),
            done: self.settled.clone(),
        };
        Ok(())
    }

    fn settle(&mut self, positions: impl Iterator<Item = Position>) {
        for position in positions {
            self.done.insert(position);
            self.settled.insert(position);
        }
    }

    /// One thing that a member does.
    pub(super) async fn work(
        &mut self,
        model: &Model,
        random: &mut Random,
        transcript: &mut Transcript,
    ) -> Result<(), Wrong> {
        let Some((consumers, _)) = &self.open else {
            return Ok(());
        };
        let client = consumers.client(scope());
        let (member, max) = (random.index(2), 1 + random.index(4));
        match random.below(8) {
            0..4 => {
                let taken = client.next(name(), poll(member, max)).await;
                transcript.add(&("taken", member, &taken));
                // One whose time has run out too often is parked, and its key goes on at once.
                let parked = client.parked(name(), Position(0), 10_000).await?;
                self.settle(parked.iter().map(|parked| parked.position));
                self.taken(member, &taken?, model)?;
            }
            4..6 => self.ack(&*client, member, max, transcript).await?,
            6 => self.nack(&*client, transcript).await,
            _ => tokio::time::sleep(ACK_TIMEOUT + REST).await,
        }
        let parked = client.parked(name(), Position(0), 10_000).await?;
        self.settle(parked.iter().map(|parked| parked.position));
        Ok(())
    }

    /// A member acknowledges some of what it holds, or held.
    async fn ack(
        &mut self,
        client: &dyn ConsumersTrait,
        member: usize,
        max: usize,
        transcript: &mut Transcript,
    ) -> Result<(), Wrong> {
        let mine = |(holder, _): &mut (usize, Position)| *holder == member;
        let positions: Vec<Position> = self
            .held
            .extract_if(.., mine)
            .take(max)
            .map(|(_, position)| position)
            .collect();
        if positions.is_empty() {
            return Ok(());
        }
        let ack = Ack {
            member: member_name(member),
            positions: positions.clone(),
        };
        let answer = client.ack(name(), ack).await;
        transcript.add(&("acked", member, &positions, &answer));
        let late = match answer {
            Ok(()) => Vec::new(),
            Err(ConsumerError::NotDelivered { positions }) => positions,
            Err(error) => return Err(error.into()),
        };
        self.settle(positions.into_iter().filter(|at| !late.contains(at)));
        Ok(())
    }

    /// A member fails at what was given last.
    async fn nack(&mut self, client: &dyn ConsumersTrait, transcript: &mut Transcript) {
        if let Some((member, position)) = self.held.pop() {
            let nack = Nack {
                member: member_name(member),
                position,
                reason: "by chance".to_owned(),
            };
            let answer = client.nack(name(), nack).await;
            transcript.add(&("nacked", position, &answer));
        }
    }

    /// Delivered events are those of the log, in the order of their key, and none that is settled.
    fn taken(&mut self, member: usize, taken: &[Delivered], model: &Model) -> Result<(), Wrong> {
        for Delivered { event, .. } in taken {
            let position = event.position;
            let before = Position(position.get() - 1);
            let due = model.after(before).next();
            if !due.is_some_and(|(_, due)| is(event, due) && wants(&self.filter, due)) {
                return Err(format!("delivered {event:?}, not {due:?}").into());
            }
            if self.settled.contains(&position) {
                return Err(format!("{position} was settled and comes again").into());
            }
            let of_key = |(at, earlier): &(Position, &NewEvent)| {
                *at < position && earlier.segment == event.segment && earlier.key == event.key
            };
            let mut earlier = model.after(Position(0)).filter(of_key);
            if let Some((at, _)) = earlier.find(|(at, _)| !self.done.contains(at)) {
                return Err(format!("{position} comes before {at} of its key is done").into());
            }
            let given = (member, position);
            self.held.retain(|held| *held != given);
            self.held.push(given);
        }
        Ok(())
    }

    /// Works until nothing is left; then everything has been acknowledged or parked.
    pub(super) async fn finish(&mut self, model: &Model) -> Result<(), Wrong> {
        let Some((consumers, _)) = &self.open else {
            return Err("it is not open".into());
        };
        let client = consumers.client(scope());
        // What is with members comes back.
        tokio::time::sleep(ACK_TIMEOUT + REST).await;
        self.held.clear();
        loop {
            let taken = client.next(name(), poll(0, 100)).await?;
            let parked = client.parked(name(), Position(0), 10_000).await?;
            self.settle(parked.iter().map(|parked| parked.position));
            self.taken(0, &taken, model)?;
            let status = client.status(name()).await?;
            if taken.is_empty() && status.lag == 0 {
                break;
            }
            let positions: Vec<Position> = taken.iter().map(|one| one.event.position).collect();
            if positions.is_empty() && status.waiting == 0 {
                return Err(format!("nothing to do, and a lag of {}", status.lag).into());
            }
            self.settle(positions.iter().copied());
            client
                .ack(
                    name(),
                    Ack {
                        member: member_name(0),
                        positions,
                    },
                )
                .await?;
        }
        let mut wanted = model
            .after(Position(0))
            .filter(|(_, event)| wants(&self.filter, event));
        match wanted.find(|(at, _)| !self.done.contains(at)) {
            None => Ok(()),
            Some((at, _)) => Err(format!("the consumer has skipped {at}").into()),
        }
    }
}

fn member_name(member: usize) -> tabbify_api::consumers::MemberName {
    ["one", "other"][member].parse().expect("a name of a test")
}

fn poll(member: usize, max: usize) -> Poll {
    Poll {
        member: member_name(member),
        max,
        wait_ms: 2_000,
    }
}
