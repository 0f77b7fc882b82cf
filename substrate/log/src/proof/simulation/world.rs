//! One life: a disk, a log on it or not, those who use it, and what goes wrong.

use std::collections::VecDeque;
use std::sync::Arc;

use tabbify_api::log::{Append, AppendError, Expect};
use tabbify_types::{Position, Recorded, Rev};

use super::Transcript;
use super::consumer::Worked;
use super::readers::{self, Reader};
use crate::disk::SyncPoint;
use crate::disk::sim::SimDisk;
use crate::error::OpenError;
use crate::proof::Wrong;
use crate::proof::engine::{Engine, SEGMENTS, Seal, Waiting, event};
use crate::proof::model::{Model, agree};
use crate::proof::random::Random;
use crate::writer::Step;

const EXTENT_LEN: u64 = 8192;
/// Batches that wait for the writer at most.
const WAITING_MAX: usize = 12;
const KEYS: [&str; 4] = ["a", "b", "c", "d"];

/// A batch in the queue.
struct Submitted {
    batch: Append,
    waiting: Waiting,
}

/// Everything in one life.
pub(super) struct World {
    random: Random,
    transcript: Transcript,
    disk: SimDisk,
    engine: Option<Engine>,
    /// What has been answered or recovered.
    model: Model,
    queue: VecDeque<Submitted>,
    /// What was ever submitted.
    past: Vec<Append>,
    /// What was submitted to the process that is gone, and not answered: written or not.
    uncertain: Vec<Append>,
    /// What has been uncertain; it is submitted again.
    again: VecDeque<Append>,
    readers: Vec<Reader>,
    consumer: Worked,
    /// The disk has been short of space since the log was opened.
    short: bool,
    /// Whether the log of this life has an index in files, and so extents that are stored.
    seal: Seal,
}

impl World {
    pub(super) async fn new(mut random: Random, transcript: Transcript) -> Result<Self, Wrong> {
        let consumer = Worked::new(&mut random)?;
        let readers = (0..random.below(4))
            .map(|_| Reader::new(&mut random))
            .collect();
        let seal = if random.chance(1, 2) {
            Seal::Always
        } else {
            Seal::Never
        };
        let mut world = Self {
            seal,
            disk: SimDisk::default(),
            engine: None,
            model: Model::default(),
            queue: VecDeque::new(),
            past: Vec::new(),
            uncertain: Vec::new(),
            again: VecDeque::new(),
            readers,
            consumer,
            short: false,
            random,
            transcript,
        };
        world.recover().await?;
        Ok(world)
    }

    /// One thing happens.
    pub(super) async fn step(&mut self) -> Result<(), Wrong> {
        match self.random.below(100) {
            0..36 => self.submit()?,
            36..38 => self.cool()?,
            38..60 => self.commit()?,
            60..72 => self.read(false).await?,
            72..74 => {
                let engine = self.engine.as_ref().ok_or("an open log")?;
                readers::page(&**engine.client(), &self.model, &mut self.random).await?;
            }
            74..88 => {
                let Self {
                    consumer,
                    model,
                    random,
                    transcript,
                    ..
                } = self;
                consumer.work(model, random, transcript).await?;
            }
            88..89 => self.consumer.save().await?,
            89..91 => self.restart().await?,
            91..94 => self.crash().await?,
            94..96 => self.fail().await?,
            96..99 => {
                let room = self.random.index(20_000);
                self.disk.leave_space(Some(room));
                self.short = true;
                self.transcript.add(&("space", room));
            }
            _ => self.disk.leave_space(None),
        }
        Ok(())
    }

    /// The end: everything heals, everybody finishes, and the log says what the model says.
    pub(super) async fn end(mut self) -> Result<[u8; 32], Wrong> {
        self.disk.leave_space(None);
        self.restart().await?;
        while let Some(batch) = self.again.pop_front() {
            let (ours, expected) = (
                self.engine_mut()?.append(batch.clone()),
                self.model.append(&batch),
            );
            if !agree(&ours, &expected) {
                return Err(format!("repeated: {ours:?}, not {expected:?}").into());
            }
        }
        for reader in &mut self.readers {
            let engine = self.engine.as_ref().ok_or("an open log")?;
            let all = 2 + 2 * self.model.head().get();
            reader
                .read(
                    &**engine.client(),
                    &self.model,
                    all,
                    false,
                    &mut self.transcript,
                )
                .await?;
        }
        self.consumer.finish(&self.model).await?;
        let found = self.engine()?.read_all().await?;
        if let Some(wrong) = self.model.differs(&found) {
            return Err(wrong.into());
        }
        if found.len() as u64 != self.model.head().get() {
            return Err(format!("{} events, not {}", found.len(), self.model.head()).into());
        }
        self.transcript.add(&self.disk.state().image().hash());
        self.consumer.crash();
        Ok(*self.transcript.hasher.finalize().as_bytes())
    }

    fn engine(&self) -> Result<&Engine, Wrong> {
        self.engine
            .as_ref()
            .ok_or_else(|| "the log is not open".into())
    }

    fn engine_mut(&mut self) -> Result<&mut Engine, Wrong> {
        self.engine
            .as_mut()
            .ok_or_else(|| "the log is not open".into())
    }

    fn submit(&mut self) -> Result<(), Wrong> {
        if self.queue.len() >= WAITING_MAX {
            return Ok(());
        }
        let batch = self.some_batch();
        self.past.push(batch.clone());
        let waiting = self.engine()?.submit(batch.clone());
        self.transcript.add(&("submit", &batch));
        self.queue.push_back(Submitted { batch, waiting });
        Ok(())
    }

    /// A new batch, an earlier one, or one that contradicts an earlier one.
    fn some_batch(&mut self) -> Append {
        if let Some(batch) = self.again.pop_front() {
            return batch;
        }
        let random = &mut self.random;
        let earlier = match self.past.len() {
            0 => None,
            len => self.past.get(random.index(len)).cloned(),
        };
        match (random.below(10), earlier) {
            (0, Some(batch)) => batch,
            (1, Some(mut batch)) => {
                // The same ids, or some of them, with other content, or not all of it.
                let other = event(random.id(), SEGMENTS[0], "a", 3);
                match random.below(3) {
                    0 => batch.events[0].key.push('x'),
                    1 => batch.events.push(other),
                    _ => batch.events.insert(0, other),
                }
                batch
            }
            _ => self.new_batch(),
        }
    }

    fn new_batch(&mut self) -> Append {
        let random = &mut self.random;
        let mut events = Vec::new();
        for _ in 0..=random.below(4) {
            let len = if random.chance(1, 12) { 4000 } else { 900 };
            let (segment, key) = (SEGMENTS[random.index(3)], KEYS[random.index(4)]);
            let mut event = event(random.id(), segment, key, random.index(len));
            if random.chance(1, 8) && self.model.head() > Position(0) {
                event.cause = Some(Position(1 + random.below(self.model.head().get())));
            }
            events.push(event);
        }
        let (segment, key) = (events[0].segment.clone(), events[0].key.clone());
        let now = self.model.rev(&segment, &key);
        let expected = match random.below(6) {
            0 => Rev(random.below(5)),
            1..3 => now,
            _ => return Append::of(events),
        };
        let expect = match expected {
            Rev(0) => Expect::None,
            rev => Expect::Rev(rev),
        };
        Append::of(events).expecting(segment, key, expect)
    }

    /// The writer commits once.
    fn commit(&mut self) -> Result<(), Wrong> {
        let step = self.engine_mut()?.step();
        self.transcript.add(&("commit", step));
        if step == Step::Failed {
            return Err("the disk has failed, and nobody broke it".into());
        }
        self.answers()
    }

    /// Compares the answers that are there, in the order in which the batches were submitted.
    fn answers(&mut self) -> Result<(), Wrong> {
        while let Some(first) = self.queue.front_mut() {
            let Some(answer) = first.waiting.answer() else {
                break;
            };
            let Some(Submitted { batch, .. }) = self.queue.pop_front() else {
                break;
            };
            self.transcript.add(&("answer", &answer));
            match answer {
                Err(AppendError::NoSpace { .. }) if self.short => {}
                Err(AppendError::Stopping) => self.uncertain.push(batch),
                answer => {
                    let expected = self.model.append(&batch);
                    if !agree(&answer, &expected) {
                        return Err(format!("answered {answer:?}, not {expected:?}").into());
                    }
                }
            }
        }
        let (shown, head) = (self.engine()?.head(), self.model.head());
        if shown == head {
            Ok(())
        } else {
            Err(format!("head {shown}, answered {head}").into())
        }
    }

    /// A closed extent is stored, or removed from the disk; or the store is away.
    fn cool(&mut self) -> Result<(), Wrong> {
        let away = self.random.chance(1, 4);
        self.disk.faults(|faults| faults.objects_away = away);
        let done = self.engine()?.cool();
        self.disk.faults(|faults| faults.objects_away = false);
        self.transcript.add(&("cool", away, &done));
        done.map(drop).map_err(Into::into)
    }

    async fn read(&mut self, stopped: bool) -> Result<(), Wrong> {
        let count = 1 + self.random.below(8);
        if self.readers.is_empty() {
            return Ok(());
        }
        let which = self.random.index(self.readers.len());
        let engine = self.engine.as_ref().ok_or("an open log")?;
        let client = engine.client();
        let (reader, transcript) = (&mut self.readers[which], &mut self.transcript);
        reader
            .read(&**client, &self.model, count, stopped, transcript)
            .await
    }

    /// Closed in order, with what is in the queue, and opened again.
    async fn restart(&mut self) -> Result<(), Wrong> {
        while self.engine_mut()?.step() == Step::Done {}
        self.answers()?;
        self.consumer.close().await?;
        self.disk.leave_space(None);
        self.gone();
        self.recover().await
    }

    /// The process is killed, or the power goes, in the middle of what is to be done.
    async fn crash(&mut self) -> Result<(), Wrong> {
        let changes = self.random.below(12);
        self.disk.faults(|faults| faults.power = Some(changes));
        if self.random.chance(1, 3) {
            // What it says is of a process that is gone.
            let done = self.engine()?.cool();
            self.transcript.add(&("cool", &done));
        }
        while self.engine_mut()?.step() == Step::Done {
            self.answers()?;
        }
        let powerless = self.random.chance(2, 3);
        self.down(powerless);
        self.recover().await
    }

    /// A sync fails: the process ends, the machine goes on.
    async fn fail(&mut self) -> Result<(), Wrong> {
        let points = [
            SyncPoint::Commit,
            SyncPoint::ExtentContent,
            SyncPoint::ExtentName,
        ];
        let (point, kept) = (points[self.random.index(3)], 512 * self.random.index(6));
        self.disk.faults(|faults| faults.fail = Some((point, kept)));
        let mut step = Step::Done;
        while step == Step::Done {
            step = self.engine_mut()?.step();
            if step == Step::Done {
                self.answers()?;
            }
        }
        self.disk.faults(|faults| faults.fail = None);
        self.transcript.add(&("failing", point, step));
        if step == Step::Failed {
            // Whoever waits is told, and what is durable is still read.
            let answers = self.queue.iter_mut().map(|one| one.waiting.answer());
            if let Some(other) = answers
                .into_iter()
                .find(|a| *a != Some(Err(AppendError::Stopping)))
            {
                return Err(format!("after a failed sync: {other:?}").into());
            }
            self.read(true).await?;
            self.down(false);
            self.recover().await?;
        }
        Ok(())
    }

    /// Nobody is served any more.
    fn gone(&mut self) {
        self.uncertain
            .extend(self.queue.drain(..).map(|one| one.batch));
        for reader in &mut self.readers {
            reader.disconnect();
        }
        self.engine = None;
    }

    /// The process is gone, and perhaps the power.
    fn down(&mut self, powerless: bool) {
        self.consumer.crash();
        self.gone();
        let state = self.disk.state();
        let state = if powerless {
            state.crash(&mut self.random).state()
        } else {
            state
        };
        self.disk = SimDisk::of(state);
        self.transcript.add(&("down", powerless));
    }

    /// Opens the log, which may take several attempts, and finds what is promised.
    async fn recover(&mut self) -> Result<(), Wrong> {
        let engine = loop {
            let disturbed = self.disturb();
            let opened = Engine::open_sealing(&self.disk, EXTENT_LEN, self.seal);
            let lived = self.disk.heal();
            match opened {
                Ok(engine) if lived => break engine,
                Ok(_) | Err(OpenError::Io { .. }) if disturbed => {
                    let powerless = self.random.chance(1, 2);
                    self.down(powerless);
                }
                Err(OpenError::Io { .. }) if self.short => self.disk.leave_space(None),
                Err(other) => return Err(other.into()),
                Ok(_) => return Err("a disk without power, and nobody cut it".into()),
            }
        };
        let found = engine.read_all().await?;
        self.match_uncertain(&found);
        if let Some(wrong) = self.model.differs(&found) {
            return Err(format!("recovered: {wrong}").into());
        }
        if found.len() as u64 != self.model.head().get() {
            return Err(format!(
                "recovered {} events, not {}",
                found.len(),
                self.model.head()
            )
            .into());
        }
        self.short = false;
        self.consumer.open(&engine).await?;
        self.engine = Some(engine);
        self.transcript.add(&(
            "recovered",
            self.model.head(),
            self.disk.state().image().hash(),
        ));
        Ok(())
    }
    /// Something goes wrong within the recovery that follows, or nothing does.
    fn disturb(&mut self) -> bool {
        let (changes, kept) = (self.random.below(16), 512 * self.random.index(6));
        let point = SyncPoint::ALL[self.random.index(SyncPoint::ALL.len())];
        match self.random.below(5) {
            0 => self.disk.faults(|faults| faults.power = Some(changes)),
            1 => self.disk.faults(|faults| faults.fail = Some((point, kept))),
            _ => return false,
        }
        true
    }

    /// Takes into the model what is found of that which was not answered. In the order in which it
    /// was submitted; unless there was no space, nothing is left out.
    fn match_uncertain(&mut self, found: &[Arc<Recorded>]) {
        let mut ended = false;
        for batch in std::mem::take(&mut self.uncertain) {
            let mut with = self.model.clone();
            let new = with.append(&batch).is_ok() && with.head() > self.model.head();
            let there = found.iter().any(|event| event.id == batch.events[0].id);
            if new && there && !ended {
                self.model = with;
            }
            ended |= new && !there && !self.short;
            self.again.push_back(batch);
        }
    }
}
