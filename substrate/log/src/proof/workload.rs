//! What is done to a log while its disk is recorded, and what must be true at each moment of it.

use std::sync::Arc;

use tabbify_api::log::{Append, Expect};
use tabbify_types::{Position, Rev};

use super::Wrong;
use super::engine::{Engine, SEGMENTS, Seal, Waiting, event};
use super::model::{Answer, Model, agree};
use crate::cold::Done;
use crate::disk::SyncPoint;
use crate::disk::sim::{SimDisk, State};
use crate::writer::Step;

/// Extents are of this length: room for a header and seven sectors.
pub(crate) const EXTENT_LEN: u64 = 4096;

/// One thing that is done.
#[derive(Debug, Clone)]
pub(crate) enum Act {
    /// A batch is put into the queue; several before a [`Act::Commit`] share a frame.
    Submit(Append),
    /// The writer commits until its queue is empty.
    Commit,
    /// The log is closed and opened again.
    Reopen,
    /// The process is killed after so many changes of the disk, the machine lives on, and the log is
    /// opened again.
    Kill(u64),
    /// The power goes within the next commit, of whose frame so many bytes reach the disk, and the log
    /// is opened again.
    Tear(usize),
    /// Closed extents are stored, and removed from the disk, until none is left to.
    Cool,
    /// The process is killed in that after so many changes of disk and store, the machine lives on, and
    /// the log is opened again.
    KillCooling(u64),
}

/// How the log of a run is.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Setup {
    /// On every disk this sync does nothing.
    pub(crate) skip: Option<SyncPoint>,
    /// Whether closed extents become runs.
    pub(crate) seal: Seal,
}

/// A moment at which the power may go. The default is a new disk.
#[derive(Debug, Clone, Default)]
pub(crate) struct Moment {
    pub(crate) state: State,
    /// Events up to here have been acknowledged, or shown.
    pub(crate) acked: Position,
    /// Everything that has been issued; what is recovered is a prefix of it.
    pub(crate) issued: Arc<Model>,
    /// What was submitted, in order, whatever became of it.
    pub(crate) batches: Arc<Vec<Append>>,
}

/// Batches by small numbers, so that a workload reads as a list.
pub(crate) fn batch(first_id: u128, lens: &[usize]) -> Append {
    let one = |(n, len): (usize, &usize)| {
        let id = first_id + n as u128;
        event(id, SEGMENTS[n % 2], ["a", "b"][n / 2 % 2], *len)
    };
    Append::of(lens.iter().enumerate().map(one).collect())
}

/// The same, if the first key is at this revision.
pub(crate) fn batch_at(first_id: u128, lens: &[usize], rev: u64) -> Append {
    let expect = if rev == 0 {
        Expect::None
    } else {
        Expect::Rev(Rev(rev))
    };
    let segment = SEGMENTS[0].parse().expect("a segment of a test");
    batch(first_id, lens).expecting(segment, "a", expect)
}

/// A log being worked on, with its disk recorded.
pub(crate) struct Run {
    disk: SimDisk,
    setup: Setup,
    engine: Option<Engine>,
    /// What is in the queue, with the answers that the model gives.
    waiting: Vec<(Waiting, Answer)>,
    /// What is promised now; its state is the last recorded one.
    now: Moment,
    moments: Vec<Moment>,
}

impl Run {
    /// Starts at some moment.
    pub(crate) fn from(moment: &Moment, setup: Setup) -> Self {
        let disk = SimDisk::of(moment.state.clone()).skipping(setup.skip);
        disk.record();
        Self {
            disk,
            setup,
            engine: None,
            waiting: Vec::new(),
            now: moment.clone(),
            moments: Vec::new(),
        }
    }

    /// Opens the log and does everything in order; answers the moments.
    pub(crate) async fn all(mut self, acts: &[Act]) -> Result<Vec<Moment>, Wrong> {
        self.open().await?;
        for act in acts {
            self.act(act).await?;
        }
        Ok(self.moments)
    }

    async fn act(&mut self, act: &Act) -> Result<(), Wrong> {
        match act {
            Act::Submit(batch) => {
                let waiting = self.engine()?.submit(batch.clone());
                Arc::make_mut(&mut self.now.batches).push(batch.clone());
                let expected = Arc::make_mut(&mut self.now.issued).append(batch);
                self.waiting.push((waiting, expected));
            }
            Act::Commit => while self.commit()? == Step::Done {},
            Act::Reopen => {
                self.leave();
                self.open().await?;
            }
            Act::Kill(changes) => {
                self.interrupt(*changes)?;
                self.disk.faults(|faults| faults.power = None);
                self.open().await?;
            }
            Act::Tear(len) => {
                // The frame is written, and its sync fails.
                self.interrupt(1)?;
                let left = self.disk.state().torn(*len);
                self.disk = SimDisk::of(left.state()).skipping(self.setup.skip);
                self.disk.record();
                self.open().await?;
            }
            Act::Cool => while self.cool()? == Done::More {},
            Act::KillCooling(changes) => {
                self.disk.faults(|faults| faults.power = Some(*changes));
                // Until the process is gone.
                while self.engine()?.cool().is_ok_and(|done| done == Done::More) {}
                self.keep_recorded();
                self.leave();
                self.disk.faults(|faults| faults.power = None);
                self.open().await?;
            }
        }
        Ok(())
    }

    /// One closed extent is stored or removed. What was promised stays promised.
    fn cool(&mut self) -> Result<Done, Wrong> {
        let done = self.engine()?.cool()?;
        self.keep_recorded();
        match done {
            Done::Refused => Err("the store refuses, and nobody broke it".into()),
            done => Ok(done),
        }
    }

    fn engine(&mut self) -> Result<&mut Engine, Wrong> {
        self.engine
            .as_mut()
            .ok_or_else(|| "the log is not open".into())
    }

    /// The process works until the disk has changed so often, and is gone.
    fn interrupt(&mut self, changes: u64) -> Result<(), Wrong> {
        self.disk.faults(|faults| faults.power = Some(changes));
        let engine = self.engine()?;
        while engine.step() == Step::Done {}
        self.keep_recorded();
        self.leave();
        Ok(())
    }

    /// Nothing is answered any more.
    fn leave(&mut self) {
        self.waiting.clear();
        self.engine = None;
    }

    /// Opens the log. What it shows then must stay.
    async fn open(&mut self) -> Result<(), Wrong> {
        let opened = Engine::open_sealing(&self.disk, EXTENT_LEN, self.setup.seal);
        self.keep_recorded();
        let engine = opened?;
        let found = engine.read_all().await?;
        if let Some(wrong) = self.now.issued.differs(&found) {
            return Err(wrong.into());
        }
        let head = engine.head();
        if head < self.now.acked {
            return Err(format!("{} is lost; the head is {head}", self.now.acked).into());
        }
        self.now.issued = Arc::new(self.now.issued.upto(head));
        self.now.acked = head;
        self.engine = Some(engine);
        self.moments.push(self.now.clone());
        Ok(())
    }

    /// One commit, and the answers it gives.
    fn commit(&mut self) -> Result<Step, Wrong> {
        let step = self.engine()?.step();
        if step == Step::Failed {
            return Err("the disk has failed".into());
        }
        self.keep_recorded();
        let mut still = Vec::new();
        for (mut waiting, expected) in self.waiting.drain(..) {
            let Some(answer) = waiting.answer() else {
                still.push((waiting, expected));
                continue;
            };
            if !agree(&answer, &expected) {
                return Err(format!("answered {answer:?}, not {expected:?}").into());
            }
            if let Ok(appended) = answer {
                self.now.acked = self.now.acked.max(appended.last);
            }
        }
        self.waiting = still;
        self.moments.push(self.now.clone());
        Ok(step)
    }

    /// Keeps what has been recorded since, with what was promised meanwhile.
    fn keep_recorded(&mut self) {
        for state in self.disk.drain_recorded() {
            self.now.state = state;
            self.moments.push(self.now.clone());
        }
    }
}
