//! The power goes at every moment of a trace, and leaves everything that it may leave.
//!
//! For each moment of each workload and each image that [`State::crashes`] gives: recovery succeeds,
//! what was acknowledged is there, what is there is a prefix of what was issued, whole batches,
//! gapless, of a valid chain; every batch that is submitted again, and every expectation, is answered
//! as by the model; a second recovery changes nothing. Then the power goes at each moment of that
//! recovery, with the same demands. And at each moment the process alone is killed, the machine goes
//! on with what is not synced, a new process recovers, answers, and then the power goes.

use std::collections::HashSet;
use std::path::Path;

use tabbify_api::log::{Append, Expect};
use tabbify_types::{Position, Rev};

use super::engine::{DIR, Engine, SEGMENTS, Seal, tiered};
use super::model::{Model, agree};
use super::workload::{Act, EXTENT_LEN, Moment, Run, Setup, batch, batch_at};
use super::{Wrong, long};
use crate::Log;
use crate::disk::sim::SimDisk;
use crate::disk::sim::crash::{Detail, Image};

/// How far within recoveries the power goes again.
const DEPTH: usize = 1;
/// An id that no workload uses.
const FRESH_ID: u128 = 1 << 100;

/// Checks images, each once.
#[derive(Debug, Default)]
pub(crate) struct Enumeration {
    setup: Setup,
    /// Of so many moments one is looked at closely.
    every: usize,
    known: HashSet<([u8; 32], Position, Position, usize)>,
    moments: usize,
    recoveries: usize,
}

impl Enumeration {
    pub(crate) fn of(setup: Setup) -> Self {
        Self {
            setup,
            every: 1,
            ..Self::default()
        }
    }

    /// A workload, with everything that may befall it; the error is the first thing that is wrong.
    pub(crate) async fn workload(&mut self, acts: &[Act]) -> Result<(), Wrong> {
        let run = Run::from(&Moment::default(), self.setup);
        for (n, moment) in run.all(acts).await?.into_iter().enumerate() {
            if !n.is_multiple_of(self.every) {
                self.moment(&moment, Detail::Coarse, 0).await?;
                continue;
            }
            self.moment(&moment, Detail::Fine, 0).await?;
            self.moment(&moment, Detail::Coarse, DEPTH).await?;
            // Another process takes over; the machine has not forgotten anything.
            let again = moment.batches.iter().rev().take(2).rev().cloned();
            let mut acts: Vec<Act> = again.map(Act::Submit).collect();
            acts.extend([
                Act::Commit,
                Act::Submit(batch(FRESH_ID, &[10])),
                Act::Commit,
            ]);
            for later in Run::from(&moment, self.setup).all(&acts).await? {
                self.moment(&later, Detail::Coarse, 0).await?;
            }
        }
        Ok(())
    }

    /// The power goes at this moment.
    async fn moment(&mut self, moment: &Moment, detail: Detail, depth: usize) -> Result<(), Wrong> {
        self.moments += 1;
        for image in moment.state.crashes(detail) {
            let head = moment.issued.head();
            if !self.known.insert((image.hash(), moment.acked, head, depth)) {
                continue;
            }
            let recovered = self.recover(&image, moment).await.map_err(|error| {
                let (acked, files) = (moment.acked, image.files());
                format!("{error}; {acked} of {head} acknowledged, on disk {files:?}")
            })?;
            if depth > 0 {
                for within in recovered {
                    Box::pin(self.moment(&within, Detail::Coarse, depth - 1)).await?;
                }
            }
        }
        Ok(())
    }

    /// Recovers from an image and asks everything; answers the moments of that recovery.
    async fn recover(&mut self, image: &Image, moment: &Moment) -> Result<Vec<Moment>, Wrong> {
        self.recoveries += 1;
        let disk = SimDisk::of(image.state()).skipping(self.setup.skip);
        let start = Moment {
            state: disk.state(),
            ..moment.clone()
        };
        let moments = Run::from(&start, self.setup).all(&[]).await?;
        let last = moments.last().ok_or("a recovery")?;
        let (head, model) = (last.acked, &last.issued);
        if !moment.issued.ends_at(head) {
            return Err(format!("{head} is within a batch").into());
        }
        let disk = SimDisk::of(last.state.clone()).skipping(self.setup.skip);
        let verified = Log::verify_on(&tiered(&disk), Path::new(DIR))?;
        if (verified.head, &verified.torn) != (head, &None) {
            return Err(format!("verified {verified:?}, recovered {head}").into());
        }
        let engine = Engine::open_sealing(&disk, EXTENT_LEN, self.setup.seal)?;
        if disk.state().ending_in(".extent") != last.state.ending_in(".extent") {
            return Err("a second recovery has changed an extent".into());
        }
        answers_as(engine, model.as_ref().clone(), &moment.batches).await?;
        let after = Log::verify_on(&tiered(&disk), Path::new(DIR))?;
        if after.head < head {
            return Err(format!("{head} is gone after appending to it").into());
        }
        Ok(moments)
    }
}

/// Submits every batch again, and expectations right and wrong.
async fn answers_as(mut engine: Engine, mut model: Model, batches: &[Append]) -> Result<(), Wrong> {
    let mut ask = |engine: &mut Engine, batch: Append| {
        let (ours, expected) = (engine.append(batch.clone()), model.append(&batch));
        if agree(&ours, &expected) {
            Ok::<_, Wrong>(())
        } else {
            Err(format!("answered {ours:?}, not {expected:?}").into())
        }
    };
    for batch in batches {
        ask(&mut engine, batch.clone())?;
    }
    let mut id = FRESH_ID + 1000;
    for segment in SEGMENTS {
        for expect in [Expect::None, Expect::Rev(Rev(1)), Expect::Rev(Rev(9))] {
            id += 10;
            let segment = segment.parse()?;
            ask(&mut engine, batch(id, &[1]).expecting(segment, "a", expect))?;
        }
    }
    match model.differs(&engine.read_all().await?) {
        None => Ok(()),
        Some(wrong) => Err(wrong.into()),
    }
}

fn submit(first_id: u128, lens: &[usize]) -> Act {
    Act::Submit(batch(first_id, lens))
}

fn submit_at(first_id: u128, lens: &[usize], rev: u64) -> Act {
    Act::Submit(batch_at(first_id, lens, rev))
}

/// Small commits, and what conflicts with them.
pub(crate) fn small() -> Vec<Act> {
    vec![
        submit(10, &[10]),
        Act::Commit,
        submit_at(20, &[5], 0),
        submit_at(30, &[5, 5], 1),
        submit(10, &[10]),
        submit(10, &[11]),
        Act::Commit,
    ]
}

/// Batches that share frames, of several sectors.
pub(crate) fn groups() -> Vec<Act> {
    vec![
        submit(10, &[100, 200, 300]),
        submit(20, &[400]),
        submit(30, &[10, 10]),
        Act::Commit,
        submit(40, &[1200]),
        submit(50, &[1]),
        Act::Commit,
    ]
}

/// Frames until two more extents have begun, one of them for a batch longer than the others.
pub(crate) fn rollover() -> Vec<Act> {
    let mut acts = Vec::new();
    for n in 1..=6 {
        acts.extend([submit(n * 10, &[700]), Act::Commit]);
    }
    acts.extend([
        submit(100, &[3000, 1500]),
        Act::Commit,
        submit(110, &[1]),
        Act::Commit,
    ]);
    acts
}

/// Torn tails that are cut, with shorter and longer frames written over them.
pub(crate) fn torn() -> Vec<Act> {
    vec![
        submit(10, &[10]),
        Act::Commit,
        submit(20, &[1400]),
        Act::Tear(1024),
        submit(30, &[10]),
        Act::Commit,
        submit(20, &[1400]),
        Act::Commit,
        submit(40, &[10, 900]),
        Act::Tear(512),
        Act::Reopen,
        submit(50, &[10]),
        Act::Commit,
    ]
}

/// Processes that are killed within a commit and within the change to a new extent.
pub(crate) fn killed() -> Vec<Act> {
    vec![
        submit(10, &[900]),
        Act::Commit,
        submit(20, &[900]),
        // Written, not synced.
        Act::Kill(1),
        submit(20, &[900]),
        Act::Commit,
        // Does not fit: header, sync, new name, and nothing more.
        submit(30, &[900]),
        Act::Kill(3),
        submit(30, &[900]),
        submit(40, &[900]),
        Act::Commit,
    ]
}

/// Extents that become runs, and runs that become one; some of it done by a second process.
fn sealed() -> Vec<Act> {
    let mut acts = Vec::new();
    for n in 1..=3 {
        acts.extend([submit(n * 10, &[3000]), Act::Commit]);
    }
    acts.push(Act::Reopen);
    for n in 4..=5 {
        acts.extend([submit(n * 10, &[2900, 10]), Act::Commit]);
    }
    // Its answer is in a run.
    acts.extend([submit(10, &[3000]), Act::Commit]);
    acts
}

/// Extents that are stored and removed from the disk, by processes that are killed within it; and
/// batches whose first answers are only in the store.
pub(crate) fn stored() -> Vec<Act> {
    vec![
        submit(10, &[3000]),
        Act::Commit,
        submit(20, &[3000]),
        Act::Commit,
        // Put, and of the record only its draft.
        Act::KillCooling(3),
        Act::Cool,
        submit(30, &[3000]),
        Act::Commit,
        // Put and recorded; the name of the record is not synced.
        Act::KillCooling(5),
        Act::Cool,
        submit(10, &[3000]),
        submit(20, &[2999]),
        Act::Commit,
        Act::Reopen,
        submit(20, &[3000]),
        Act::Commit,
    ]
}

async fn check(acts: Vec<Act>) {
    check_with(Setup::default(), 1, acts).await;
}

async fn check_with(setup: Setup, every: usize, acts: Vec<Act>) {
    let mut enumeration = Enumeration {
        every: if long() { 1 } else { every },
        ..Enumeration::of(setup)
    };
    enumeration.workload(&acts).await.unwrap();
    println!(
        "{} moments, {} recoveries",
        enumeration.moments, enumeration.recoveries
    );
    assert!(enumeration.recoveries > 100);
}

#[tokio::test]
async fn power_is_lost_at_every_moment_of_small_commits() {
    check(small()).await;
}

#[tokio::test]
async fn power_is_lost_at_every_moment_of_grouped_batches() {
    check(groups()).await;
}

#[tokio::test]
async fn power_is_lost_at_every_moment_of_a_rollover() {
    check(rollover()).await;
}

#[tokio::test]
async fn power_is_lost_at_every_moment_around_a_torn_tail() {
    check(torn()).await;
}

#[tokio::test]
async fn power_is_lost_at_every_moment_around_a_killed_process() {
    check(killed()).await;
}

/// Files of the index are long, and torn at every 512 bytes: only the long version looks at each moment
/// as closely as it does without an index. Primes, so that no kind of moment is left out.
const INDEX_EVERY: usize = 23;
const STORED_EVERY: usize = 7;

const SEALING: Setup = Setup {
    skip: None,
    seal: Seal::Always,
};

#[tokio::test]
async fn power_is_lost_at_every_moment_of_the_index() {
    check_with(SEALING, INDEX_EVERY, sealed()).await;
}

#[tokio::test]
async fn power_is_lost_at_every_moment_of_storing() {
    check_with(SEALING, STORED_EVERY, stored()).await;
}
